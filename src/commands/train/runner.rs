//! A run: trains, tells how it goes, and keeps its folder.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, ensure};
use gru_wgpu::formats::{quote, safetensors, write_whole};
use gru_wgpu::{
    Best, Checkpoint, Device, Ended, Evaluation, Event, Init, Learner, Params, Trainer,
};

use super::curves::{Words, draw_curves};
use super::folder::{Epoch, Folder};
use super::job::Job;
use crate::commands::interrupt::Interrupt;
use crate::commands::output::{note, quote_path};
use crate::commands::progress::Progress;
use crate::commands::sheet::printable;

/// How often a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub enum Every {
    Updates(u64),
    Time(Duration),
}

/// What a checkpoint notes: the data, the device, and the seconds that training took.
const DATA: &str = "data";
const DEVICE: &str = "device";
const SECONDS: &str = "seconds";

pub struct Runner<'a> {
    trainer: Trainer,
    keeper: Keeper<'a>,
}

/// How a run ended.
pub struct Outcome {
    pub ended: Ended,
    /// Epochs and updates so far.
    pub epochs: usize,
    pub updates: u64,
    /// Of training, those of earlier parts included.
    pub seconds: f64,
    /// What did best on the held-out part, if an epoch is over.
    pub best: Option<Best>,
}

impl<'a> Runner<'a> {
    /// Before the first epoch, or where a checkpoint was taken.
    pub fn new(
        job: &'a Job,
        folder: &'a Folder,
        every: Every,
        checkpoint: Option<Checkpoint>,
        device: &Device,
    ) -> Result<Self> {
        let settings = &job.config.training;
        let note_of = |key: &str| checkpoint.as_ref()?.notes.get(key).cloned();
        let earlier = note_of(SECONDS).and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
        let device_name = device.to_string();
        if let Some(other) = note_of(DEVICE).filter(|other| *other != device_name) {
            note(format_args!(
                "it was trained on {} before; the last bits will be others",
                quote(&other)
            ));
        }
        let has_saved = checkpoint.is_some();
        let trainer = match checkpoint {
            Some(checkpoint) => {
                check_same(job, &checkpoint)?;
                Trainer::from_checkpoint(checkpoint, device)?
            }
            None => {
                let params = Params::init_of(job.config.layout()?, Init::Uniform, settings.seed)?;
                let learner = Learner::new(params, job.training(), device)?;
                Trainer::new(learner, settings.regime())?
            }
        };
        let epochs = Epoch::read(&folder.metrics(), trainer.position().epoch)?;
        let total = (settings.epochs as u64).saturating_mul(job.train.len() as u64);
        let progress = Progress::new(total, settings.epochs, "sequences")?;
        let keeper = Keeper {
            job,
            folder,
            every,
            device: device_name,
            earlier,
            epochs,
            saved: (Instant::now(), 0),
            has_saved,
            progress,
        };
        Ok(Self { trainer, keeper })
    }

    /// Trains to the end, or until Ctrl-C.
    pub fn run(mut self) -> Result<Outcome> {
        let Self { trainer, keeper } = &mut self;
        let interrupt = Interrupt::listen()?;
        keeper.start(trainer);
        // The trainer passes on its own errors alone.
        let mut failed = None;
        let ended = trainer.run(&keeper.job.train, &keeper.job.valid, |trainer, event| {
            let heard = keeper.hear(trainer, event, &interrupt);
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
        keeper.save(trainer)?;
        Ok(Outcome {
            ended,
            epochs: trainer.position().epoch,
            updates: trainer.learner().updates(),
            seconds: keeper.seconds(),
            best: trainer.best().cloned(),
        })
    }
}

/// `Ok` when the folder's configuration is that of its checkpoint.
fn check_same(job: &Job, checkpoint: &Checkpoint) -> Result<()> {
    let Job { config, .. } = job;
    let data = checkpoint.notes.get(DATA);
    for (what, is_same) in [
        ("[data]", data.is_none_or(|data| *data == data_of(job))),
        ("[model]", *checkpoint.state.params.layout() == config.layout()?),
        ("[training]", checkpoint.regime == config.training.regime()),
        ("[training]", checkpoint.training == job.training()),
    ] {
        ensure!(
            is_same,
            "{what} in config.toml is not what the run was started with; a run goes on with its own settings"
        );
    }
    Ok(())
}

/// Which sequences are trained and validated on, to be held against another time's.
fn data_of(job: &Job) -> String {
    format!("{:?}", job.config.data)
}

/// Follows a run, and keeps its folder.
struct Keeper<'a> {
    job: &'a Job,
    folder: &'a Folder,
    every: Every,
    device: String,
    /// Seconds of training before this part.
    earlier: f64,
    epochs: Vec<Epoch>,
    /// When the last checkpoint was written, or this part begun, and after how many updates.
    saved: (Instant, u64),
    /// Whether the folder has a checkpoint.
    has_saved: bool,
    progress: Progress,
}

impl Keeper<'_> {
    fn start(&mut self, trainer: &mut Trainer) {
        let (position, seen) = (trainer.position(), self.seen(trainer));
        self.progress.start_at(position.epoch, seen, self.job.train.len(), position.loss);
        self.saved = (Instant::now(), trainer.learner().updates());
    }

    /// Training sequences of the epoch so far; one batch is smaller, and may have been among them.
    fn seen(&self, trainer: &Trainer) -> usize {
        let batches = trainer.position().batch;
        batches.saturating_mul(trainer.regime().batch).min(self.job.train.len())
    }

    fn hear(
        &mut self,
        trainer: &mut Trainer,
        event: &Event<'_>,
        interrupt: &Interrupt,
    ) -> Result<ControlFlow<()>> {
        match event {
            Event::Updates(_) => {
                let (position, seen) = (trainer.position(), self.seen(trainer));
                self.progress.reach(position.epoch, seen, position.loss);
            }
            Event::Epoch { epoch, loss, validation, is_best } => {
                let validation = validation.unwrap_or_default();
                self.end_epoch(trainer, *epoch, *loss, &validation, *is_best)?;
            }
            _ => {}
        }
        let updates = trainer.learner().updates();
        // Soon one to go on from, however seldom they are asked for.
        let is_first = matches!(event, Event::Epoch { .. }) && !self.has_saved;
        if is_first || self.is_due(updates) {
            self.save(trainer)?;
        }
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
        let learning_rate = trainer.learner().training().rate(updates.saturating_sub(1));
        let (valid_loss, valid_accuracy) =
            (validation.loss, validation.accuracy().unwrap_or(f64::NAN));
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
        Epoch::write_all(&self.epochs, &self.folder.metrics())?;
        let star = if is_best { "*" } else { "" };
        self.progress
            .end_epoch(&format!("  held out {valid_loss:.5}, accuracy {valid_accuracy:.4}{star}"));
        Ok(())
    }

    fn is_due(&self, updates: u64) -> bool {
        let (time, before) = self.saved;
        match self.every {
            Every::Updates(count) => updates - before >= count,
            Every::Time(time_between) => time.elapsed() >= time_between,
        }
    }

    fn seconds(&self) -> f64 {
        self.earlier + self.progress.elapsed().as_secs_f64()
    }

    /// All that the folder holds but its configuration. The checkpoint comes last: what it goes on from is
    /// there then.
    fn save(&mut self, trainer: &mut Trainer) -> Result<()> {
        let folder = self.folder;
        if let Some(best) = trainer.best() {
            safetensors::save_network(folder.model(), &best.params)?;
        }
        if !self.epochs.is_empty() {
            let curves = self.curves()?;
            write_whole(folder.curves(), |to| to.write_all(curves.as_bytes()))?;
        }
        let mut checkpoint = trainer.checkpoint()?;
        checkpoint.notes.insert(DEVICE.to_owned(), self.device.clone());
        checkpoint.notes.insert(SECONDS.to_owned(), self.seconds().to_string());
        checkpoint.notes.insert(DATA.to_owned(), data_of(self.job));
        checkpoint.write(folder.checkpoint())?;
        self.has_saved = true;
        self.saved = (Instant::now(), trainer.learner().updates());
        Ok(())
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

    /// What went wrong, of what diverged with the sequences' names, after the last good update is kept.
    fn explain(&mut self, trainer: &mut Trainer, error: gru_wgpu::Error) -> Error {
        let kept = match self.save(trainer) {
            Ok(()) => format!("what was good until then is in {}", quote_path(self.folder.path())),
            Err(error) => format!("and the updates before it were not saved: {error:#}"),
        };
        let gru_wgpu::Error::Diverged { step, loss, norm, largest, ref parameter, ref made_from } =
            error
        else {
            return anyhow!("{error}; {kept}");
        };
        let from = made_from.as_deref().map_or(String::new(), |from| {
            let batches = self.job.train.len().div_ceil(trainer.regime().batch);
            let (epoch, batch) = (from.epoch + 1, from.batches.start + 1);
            let names = self.job.names(&from.examples);
            format!(" (epoch {epoch}, batch {batch} of {batches}: sequences {names})")
        });
        let outcome = match loss.is_finite() && norm.is_finite() {
            true => ", and what it would make of the parameters is not finite",
            false => "",
        };
        anyhow!(
            "update {}{from} diverged: loss {loss}, the gradient's norm {norm}, its largest element {largest} \
             in {parameter}{outcome}; {kept}; a lower --learning-rate or --clip may help",
            step + 1
        )
    }
}
