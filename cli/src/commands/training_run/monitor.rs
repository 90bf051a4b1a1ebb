//! [`RunMonitor`]: shows the progress of a run and writes its folder.

use anyhow::{Error, Result, anyhow};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{Dataset, Evaluation, Event, Progress, Trainer};

use super::kind::TrainingRun;
use crate::rundir::checkpoints::{CheckpointWriter, explain, keep_good};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::{KeptModel, MODEL_NOTE, model_fingerprint};
use crate::rundir::interrupt::CheckTimer;
use crate::ui::files::write_file;
use crate::ui::output::quote_path;
use crate::ui::progress::ProgressDisplay;

pub struct RunMonitor<'a, R: TrainingRun> {
    run: &'a R,
    /// `None` without a run folder.
    writer: Option<CheckpointWriter<'a>>,
    epochs: Vec<EpochMetrics>,
    timer: CheckTimer,
    progress: ProgressDisplay,
}

impl<'a, R: TrainingRun> RunMonitor<'a, R> {
    pub fn new(
        run: &'a R,
        writer: Option<CheckpointWriter<'a>>,
        epochs: Vec<EpochMetrics>,
        progress: ProgressDisplay,
    ) -> Self {
        Self { run, writer, epochs, timer: CheckTimer::start(), progress }
    }

    pub fn run(&self) -> &'a R {
        self.run
    }

    /// Called when training begins or resumes.
    pub fn start(&mut self, trainer: &mut Trainer) {
        let Progress { epoch, examples, loss: (loss, _), .. } = trainer.progress();
        self.progress.start_at(epoch, examples, self.run.train().len(), (loss, examples));
        if let Some(writer) = &mut self.writer {
            writer.start(trainer.learner().updates());
        }
        trainer.metrics_every(1);
        self.timer = CheckTimer::start();
    }

    /// Shows an event, and saves the run when a checkpoint is due.
    pub fn follow(&mut self, trainer: &mut Trainer, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Updates(metrics) => {
                trainer.metrics_every(self.timer.until_next(metrics.len()));
                let Progress { epoch, examples, loss: (loss, _), .. } = trainer.progress();
                self.progress.reach(epoch, examples, (loss, examples));
            }
            Event::Epoch { epoch, loss, validation, is_best } => {
                self.end_epoch(trainer, *epoch, *loss, *validation, *is_best)?;
            }
            _ => {}
        }
        let is_epoch_over = matches!(event, Event::Epoch { .. });
        let updates = trainer.learner().updates();
        if self.writer.as_mut().is_some_and(|writer| writer.is_due(updates, is_epoch_over)) {
            let saved = self.save(trainer);
            self.tolerate(saved)?;
        }
        self.timer = CheckTimer::start();
        Ok(())
    }

    fn end_epoch(
        &mut self,
        trainer: &mut Trainer,
        epoch: usize,
        train_loss: f32,
        validation: Option<Evaluation>,
        is_best: bool,
    ) -> Result<()> {
        let updates = trainer.learner().updates();
        let learning_rate = trainer.learner().config().rate(updates.saturating_sub(1));
        let seconds = (self.seconds() * 1e3).round() / 1e3;
        self.epochs.push(EpochMetrics {
            epoch: epoch + 1,
            updates,
            learning_rate,
            train_loss,
            valid_loss: validation.map_or(f64::NAN, |validation| validation.loss),
            valid_accuracy: validation.and_then(|validation| validation.accuracy()),
            seconds,
        });
        if let Some(writer) = &mut self.writer {
            let written = EpochMetrics::write_all(&self.epochs, &writer.folder().metrics());
            writer.tolerate(written)?;
        }
        let loss = validation.map(|Evaluation { loss, .. }| format!("  held out {loss:.5}"));
        let accuracy = validation.and_then(|validation| validation.accuracy());
        let accuracy = accuracy.map(|accuracy| format!(", accuracy {accuracy:.4}"));
        let star = if is_best && R::KEPT == KeptModel::Best { "*" } else { "" };
        let [loss, accuracy] = [loss, accuracy].map(Option::unwrap_or_default);
        self.progress.end_epoch(&format!("{loss}{accuracy}{star}"));
        Ok(())
    }

    fn tolerate(&mut self, saved: Result<()>) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.tolerate(saved))
    }

    fn seconds(&self) -> f64 {
        let elapsed = self.progress.elapsed();
        self.writer.as_ref().map_or(elapsed.as_secs_f64(), |writer| writer.seconds(elapsed))
    }

    /// Writes the folder's files except configuration and report. The checkpoint is last, so that
    /// everything it needs exists.
    pub fn save(&mut self, trainer: &mut Trainer) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let (folder, mut checkpoint) = (writer.folder(), trainer.checkpoint()?);
        if let Some(params) = R::KEPT.of(&checkpoint) {
            safetensors::save_network(folder.model(), params)?;
            let fingerprint = model_fingerprint(params);
            checkpoint.notes.insert(MODEL_NOTE.to_owned(), fingerprint);
        }
        if !self.epochs.is_empty() {
            EpochMetrics::write_all(&self.epochs, &folder.metrics())?;
            write_file(folder.curves(), self.run.curves(&self.epochs)?.as_bytes())?;
        }
        writer.write(checkpoint, self.progress.elapsed())
    }

    /// Explains an error, with the examples of an update that diverged, and says which files are
    /// kept.
    pub fn explain(&mut self, trainer: &mut Trainer, error: gru_wgpu::Error) -> Error {
        if let (gru_wgpu::Error::OtherData { .. }, Some(writer)) = (&error, &self.writer) {
            return anyhow!(
                "{}: the tables that describe the data have changed since the run started; restore them, because a run \
                 resumes only with the same examples",
                quote_path(&writer.folder().config())
            );
        }
        let kept = self.writer.as_ref().map(|writer| (writer.folder(), writer.kept()));
        let kept = kept.map(|(folder, kept)| keep_good(folder, kept, || self.save(trainer)));
        let from = match &error {
            gru_wgpu::Error::Diverged { made_from: Some(from), .. } => {
                let batches = self.run.train().len().div_ceil(trainer.config().batch);
                let (epoch, batch) = (from.epoch + 1, from.batches.start + 1);
                let examples = self.run.name_examples(&from.examples);
                format!("epoch {epoch}, batch {batch} of {batches}: {examples}")
            }
            _ => String::new(),
        };
        explain(&error, &from, kept.as_deref())
    }

    /// Removes the progress bar.
    pub fn clear(&self) {
        self.progress.clear();
    }

    /// Returns the epochs, and the seconds of training.
    pub fn finish(self) -> (Vec<EpochMetrics>, f64) {
        let seconds = self.seconds();
        (self.epochs, seconds)
    }
}
