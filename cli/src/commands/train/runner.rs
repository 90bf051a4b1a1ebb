//! A run: trains, tells how it goes, and keeps its folder.

use std::ops::ControlFlow;

use anyhow::{Error, Result};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{
    Best, Checkpoint, Device, Evaluation, Event, Init, Learner, Params, StopReason, Trainer,
};

use super::curves::{Words, draw_curves};
use super::job::Job;
use crate::data::csv_table::printable;
use crate::rundir::checkpoints::{CheckpointWriter, Every, explain, keep_good, unsaved};
use crate::rundir::folder::{Epoch, RunDir};
use crate::rundir::interrupt::{Interrupt, Looks};
use crate::rundir::overrides::Paced;
use crate::ui::files::write_file;
use crate::ui::progress::ProgressDisplay;

pub struct Runner<'a> {
    trainer: Trainer,
    keeper: RunMonitor<'a>,
}

/// How a run ended.
pub struct Outcome {
    pub ended: StopReason,
    /// Epochs and updates so far.
    pub epochs: usize,
    pub updates: u64,
    /// Of training, those of earlier parts included.
    pub seconds: f64,
    /// What did best on the held-out part, if an epoch is over.
    pub best: Option<Best>,
    /// Why it is not in its folder, if so.
    pub unsaved: Option<Error>,
}

impl<'a> Runner<'a> {
    /// Before the first epoch, or where a checkpoint was taken.
    pub fn new(
        job: &'a Job,
        folder: &'a RunDir,
        every: Every,
        checkpoint: Option<Checkpoint>,
        device: &Device,
    ) -> Result<Self> {
        let settings = &job.config.training;
        let saver = CheckpointWriter::new(folder, every, job.data(), device, checkpoint.as_ref());
        let trainer = match checkpoint {
            Some(checkpoint) => Trainer::from_checkpoint(checkpoint, device)?,
            None => {
                let params = Params::init_of(job.config.layout()?, Init::Uniform, settings.seed)?;
                let learner = Learner::new(params, job.learner_config(), device)?;
                Trainer::new(learner, settings.trainer_config())?
            }
        };
        let epochs = Epoch::read(&folder.metrics(), trainer.progress().epoch);
        let total = (settings.epochs as u64).saturating_mul(job.train.len() as u64);
        let progress = ProgressDisplay::new(total, settings.epochs, "sequences")?;
        let keeper = RunMonitor { job, saver, epochs, looks: Looks::new(), progress };
        Ok(Self { trainer, keeper })
    }

    /// Trains to the end, or until Ctrl-C.
    pub fn run(mut self, interrupt: &Interrupt) -> Result<Outcome> {
        let Self { trainer, keeper } = &mut self;
        keeper.start(trainer);
        // The trainer passes on its own errors alone.
        let mut failed = None;
        let ended = trainer.run(&keeper.job.train, &keeper.job.valid, |trainer, event| {
            let heard = keeper.hear(trainer, event, interrupt);
            Ok(heard.unwrap_or_else(|error| {
                failed = Some(error);
                ControlFlow::Break(())
            }))
        });
        keeper.progress.clear();
        if let Some(error) = failed {
            return Err(error);
        }
        let ended = ended.map_err(|error| keeper.explain(trainer, error))?;
        let unsaved = unsaved(keeper.save(trainer))?;
        Ok(Outcome {
            unsaved,
            ended,
            epochs: trainer.progress().epoch,
            updates: trainer.learner().updates(),
            seconds: keeper.seconds(),
            best: trainer.best().cloned(),
        })
    }
}

/// Follows a run, and keeps its folder.
struct RunMonitor<'a> {
    job: &'a Job,
    saver: CheckpointWriter<'a>,
    epochs: Vec<Epoch>,
    looks: Looks,
    progress: ProgressDisplay,
}

impl RunMonitor<'_> {
    fn start(&mut self, trainer: &mut Trainer) {
        let (position, seen) = (trainer.progress(), self.seen(trainer));
        self.progress.start_at(position.epoch, seen, self.job.train.len(), position.loss);
        self.saver.start(trainer.learner().updates());
        trainer.metrics_every(1);
        self.looks = Looks::new();
    }

    /// Training sequences of the epoch so far; one batch is smaller, and may have been among them.
    fn seen(&self, trainer: &Trainer) -> usize {
        let batches = trainer.progress().batch;
        batches.saturating_mul(trainer.config().batch).min(self.job.train.len())
    }

    fn hear(
        &mut self,
        trainer: &mut Trainer,
        event: &Event<'_>,
        interrupt: &Interrupt,
    ) -> Result<ControlFlow<()>> {
        match event {
            Event::Updates(reports) => {
                trainer.metrics_every(self.looks.until_next(reports.len()));
                let (position, seen) = (trainer.progress(), self.seen(trainer));
                self.progress.reach(position.epoch, seen, position.loss);
            }
            Event::Epoch { epoch, loss, validation, is_best } => {
                let validation = validation.unwrap_or_default();
                self.end_epoch(trainer, *epoch, *loss, &validation, *is_best)?;
            }
            _ => {}
        }
        let is_epoch_over = matches!(event, Event::Epoch { .. });
        let updates = trainer.learner().updates();
        if self.saver.is_due(updates, is_epoch_over) {
            let saved = self.save(trainer);
            self.saver.tolerate(saved)?;
        }
        self.looks = Looks::new();
        Ok(if interrupt.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn end_epoch(
        &mut self,
        trainer: &mut Trainer,
        epoch: usize,
        train_loss: f32,
        validation: &Evaluation,
        is_best: bool,
    ) -> Result<()> {
        let updates = trainer.learner().updates();
        let learning_rate = trainer.learner().config().rate(updates.saturating_sub(1));
        let (valid_loss, valid_accuracy) = (validation.loss, validation.accuracy());
        let seconds = (self.seconds() * 1e3).round() / 1e3;
        self.epochs.push(Epoch {
            epoch: epoch + 1,
            updates,
            learning_rate,
            train_loss,
            valid_loss,
            valid_accuracy,
            seconds,
        });
        self.saver.tolerate(Epoch::write_all(&self.epochs, &self.saver.folder().metrics()))?;
        let star = if is_best { "*" } else { "" };
        let valid_accuracy = valid_accuracy.unwrap_or(f64::NAN);
        self.progress
            .end_epoch(&format!("  held out {valid_loss:.5}, accuracy {valid_accuracy:.4}{star}"));
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.saver.seconds(self.progress.elapsed())
    }

    /// All that the folder holds but its configuration. The checkpoint comes last: what it goes on from is
    /// there then.
    fn save(&mut self, trainer: &mut Trainer) -> Result<()> {
        let folder = self.saver.folder();
        if let Some(best) = trainer.best() {
            safetensors::save_network(folder.model(), &best.params)?;
        }
        if !self.epochs.is_empty() {
            Epoch::write_all(&self.epochs, &folder.metrics())?;
            let curves = self.curves()?;
            write_file(folder.curves(), curves.as_bytes())?;
        }
        self.saver.write(trainer.checkpoint()?, self.progress.elapsed())
    }

    fn curves(&self) -> Result<String> {
        let Job { config, train, valid, majority, .. } = self.job;
        let file = config.data.train.file_name().unwrap_or_default().to_string_lossy();
        let words = Words {
            title: &printable(&format!("{file}: {}", config.columns.label)),
            subtitle: &format!(
                "{}, {} sequences to train on, {} held out",
                config.layout()?.config(),
                train.len(),
                valid.len()
            ),
            majority: (majority.loss, majority.accuracy),
        };
        draw_curves(&self.epochs, &words)
    }

    /// What went wrong, of what diverged with the sequences' names, and what is kept.
    fn explain(&mut self, trainer: &mut Trainer, error: gru_wgpu::Error) -> Error {
        let (folder, kept) = (self.saver.folder(), self.saver.kept());
        let kept = keep_good(folder, kept, || self.save(trainer));
        let from = match &error {
            gru_wgpu::Error::Diverged { made_from: Some(from), .. } => {
                let batches = self.job.train.len().div_ceil(trainer.config().batch);
                let (epoch, batch) = (from.epoch + 1, from.batches.start + 1);
                let names = self.job.names(&from.examples);
                format!("epoch {epoch}, batch {batch} of {batches}: sequences {names}")
            }
            _ => String::new(),
        };
        explain(&error, &from, Some(&kept))
    }
}
