//! A run: trains, tells how it goes, and keeps its folder where it has one.

use std::ops::ControlFlow;

use anyhow::{Error, Result};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{Checkpoint, Device, Event, Init, Learner, Params, Progress, StopReason};

use super::job::Job;
use super::model::{Forecaster, Stopped};
use super::plot;
use crate::data::windows::Windows;
use crate::rundir::checkpoints::{CheckpointWriter, Every, explain, keep_good, unsaved};
use crate::rundir::folder::{Epoch, RunDir};
use crate::rundir::interrupt::Interrupt;
use crate::rundir::overrides::Paced;
use crate::ui::files::write_file;
use crate::ui::output::log;
use crate::ui::plot::{GREY, ORANGE};
use crate::ui::progress::ProgressDisplay;

pub struct Runner<'a> {
    model: Forecaster,
    keeper: RunMonitor<'a>,
}

/// How a run ended.
pub struct Outcome {
    pub ended: StopReason,
    pub model: Forecaster,
    pub epochs: Vec<Epoch>,
    /// Of training, those of earlier parts included.
    pub seconds: f64,
    /// Why it is not in its folder, if so.
    pub unsaved: Option<Error>,
}

impl<'a> Runner<'a> {
    /// Before the first epoch, or where a checkpoint was taken.
    pub fn new(
        job: &'a Job,
        folder: Option<&'a RunDir>,
        every: Every,
        checkpoint: Option<Checkpoint>,
        device: &Device,
    ) -> Result<Self> {
        let saver = folder.map(|folder| {
            CheckpointWriter::new(folder, every, job.data(), device, checkpoint.as_ref())
        });
        let settings = &job.config.training;
        let layout = job.config.layout()?;
        log(format_args!("training {} parameters on {device}", layout.parameter_count()));
        let model = match checkpoint {
            Some(checkpoint) => Forecaster::from_checkpoint(checkpoint, device)?,
            None => {
                let params = Params::init_of(layout, Init::Uniform, settings.seed)?;
                let learner = Learner::new(params, job.learner_config(), device)?;
                Forecaster::new(learner, settings.trainer_config())
            }
        };
        let epochs = match folder {
            Some(folder) => Epoch::read(&folder.metrics(), model.progress().epoch),
            None => Vec::new(),
        };
        let windows = job.parts.training.len() as u64;
        let total = (settings.epochs as u64).saturating_mul(windows);
        let progress = ProgressDisplay::new(total, settings.epochs, "windows")?;
        let keeper = RunMonitor { job, windows: job.windows(), saver, epochs, progress };
        Ok(Self { model, keeper })
    }

    /// Trains to the end, or where the run has a folder until Ctrl-C.
    pub fn run(self) -> Result<Outcome> {
        let Self { mut model, mut keeper } = self;
        let job = keeper.job;
        let interrupt = keeper.saver.as_ref().map(|_| Interrupt::listen()).transpose()?;
        keeper.start(&model);
        let mut failed = None;
        let ended = model.train(&job.windows(), &job.parts.training, |model, event| {
            match keeper.hear(model, event) {
                Ok(()) if !interrupt.as_ref().is_some_and(Interrupt::is_asked) => {
                    ControlFlow::Continue(())
                }
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        keeper.progress.clear();
        if let Some(error) = failed {
            return Err(error);
        }
        let ended = ended.map_err(|stopped| keeper.explain(&mut model, &stopped))?;
        let unsaved = unsaved(keeper.save(&mut model))?;
        let seconds = keeper.seconds();
        Ok(Outcome { ended, model, epochs: keeper.epochs, seconds, unsaved })
    }
}

/// Follows a run.
struct RunMonitor<'a> {
    job: &'a Job,
    windows: Windows<'a>,
    /// Where the run has a folder.
    saver: Option<CheckpointWriter<'a>>,
    epochs: Vec<Epoch>,
    progress: ProgressDisplay,
}

impl RunMonitor<'_> {
    fn start(&mut self, model: &Forecaster) {
        let (epoch, seen) = (model.progress().epoch, self.seen(model));
        let loss = (model.progress().loss.0, seen);
        self.progress.start_at(epoch, seen, self.job.parts.training.len(), loss);
        if let Some(saver) = &mut self.saver {
            saver.start(model.learner().updates());
        }
    }

    fn seen(&self, model: &Forecaster) -> usize {
        model.seen(self.job.parts.training.len())
    }

    fn hear(&mut self, model: &mut Forecaster, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Updates(_) => {
                let (position, seen) = (model.progress(), self.seen(model));
                self.progress.reach(position.epoch, seen, (position.loss.0, seen));
            }
            Event::Epoch { epoch, loss, .. } => self.end_epoch(model, *epoch, *loss)?,
            _ => {}
        }
        let is_epoch_over = matches!(event, Event::Epoch { .. });
        let updates = model.learner().updates();
        if self.saver.as_mut().is_some_and(|saver| saver.is_due(updates, is_epoch_over)) {
            let saved = self.save(model);
            self.saver.as_mut().map_or(Ok(()), |saver| saver.tolerate(saved))?;
        }
        Ok(())
    }

    fn end_epoch(&mut self, model: &Forecaster, epoch: usize, train_loss: f32) -> Result<()> {
        let updates = model.learner().updates();
        let valid_loss = match &self.saver {
            Some(_) => model.evaluate(&self.windows, &self.job.parts.testing)?.loss,
            None => f64::NAN, // nobody looks at it
        };
        self.epochs.push(Epoch {
            epoch: epoch + 1,
            updates,
            learning_rate: model.learner().config().rate(updates.saturating_sub(1)),
            train_loss,
            valid_loss,
            valid_accuracy: None,
            seconds: (self.seconds() * 1e3).round() / 1e3,
        });
        let Some(saver) = &mut self.saver else {
            self.progress.end_epoch("");
            return Ok(());
        };
        saver.tolerate(Epoch::write_all(&self.epochs, &saver.folder().metrics()))?;
        self.progress.end_epoch(&format!("  held out {valid_loss:.5}"));
        Ok(())
    }

    fn seconds(&self) -> f64 {
        let elapsed = self.progress.elapsed();
        self.saver.as_ref().map_or(elapsed.as_secs_f64(), |saver| saver.seconds(elapsed))
    }

    /// All that the folder holds but its configuration and the forecast. The checkpoint comes last: what it
    /// goes on from is there then.
    fn save(&mut self, model: &mut Forecaster) -> Result<()> {
        let Some(saver) = &mut self.saver else { return Ok(()) };
        let checkpoint = model.checkpoint()?;
        let folder = saver.folder();
        safetensors::save_network(folder.model(), &checkpoint.state.params)?;
        if !self.epochs.is_empty() {
            Epoch::write_all(&self.epochs, &folder.metrics())?;
            let title = format!("{}: loss", self.job.series.name());
            let train = self.epochs.iter().map(|epoch| f64::from(epoch.train_loss)).collect();
            let valid = self.epochs.iter().map(|epoch| epoch.valid_loss).collect();
            let lines = [("training", train, GREY), ("held out", valid, ORANGE)];
            let curves = plot::losses(&title, &lines)?;
            write_file(folder.curves(), curves.as_bytes())?;
        }
        saver.write(checkpoint, self.progress.elapsed())
    }

    /// What went wrong, of what diverged with its windows, and what is kept.
    fn explain(&mut self, model: &mut Forecaster, stopped: &Stopped) -> Error {
        let Stopped { error, origins } = stopped;
        let kept = self.saver.as_ref().map(|saver| (saver.folder(), saver.kept()));
        let kept = kept.map(|(folder, kept)| keep_good(folder, kept, || self.save(model)));
        let Progress { epoch, batch, .. } = model.progress();
        let batches = self.job.parts.training.len().div_ceil(self.job.config.training.batch);
        let from = format!(
            "epoch {}, batch {} of {batches}: the windows before rows {}",
            epoch + 1,
            batch + 1,
            self.job.names(origins)
        );
        explain(error, &from, kept.as_deref())
    }
}
