//! [`Runner`]: trains until the end of a run, or until Ctrl-C.

use std::ops::ControlFlow;

use anyhow::{Error, Result};
use gru_wgpu::{Checkpoint, Dataset, Device, Init, Learner, Params, StopReason, Trainer};

use super::kind::{TrainingRun, learner_config};
use super::monitor::RunMonitor;
use crate::rundir::checkpoints::{CheckpointInterval, CheckpointWriter, unsaved};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::RunDir;
use crate::rundir::interrupt::Interrupt;
use crate::rundir::settings::TrainingSettings;
use crate::ui::progress::ProgressDisplay;

pub struct Runner<'a, R: TrainingRun> {
    trainer: Trainer,
    monitor: RunMonitor<'a, R>,
}

/// The result of a run.
pub struct Outcome {
    pub ended: StopReason,
    pub trainer: Trainer,
    pub epochs: Vec<EpochMetrics>,
    /// The seconds of training, including those before a resume.
    pub seconds: f64,
    /// The error that kept the run from being saved.
    pub unsaved: Option<Error>,
}

impl<'a, R: TrainingRun> Runner<'a, R> {
    /// Makes a runner that starts before the first epoch, or from a checkpoint.
    pub fn new(
        run: &'a R,
        folder: Option<&'a RunDir>,
        interval: CheckpointInterval,
        checkpoint: Option<Checkpoint>,
        device: &Device,
    ) -> Result<Self> {
        let writer = folder.map(|folder| {
            CheckpointWriter::new(folder, interval, run.data_note(), device, checkpoint.as_ref())
        });
        let trainer = match checkpoint {
            Some(checkpoint) => Trainer::from_checkpoint(checkpoint, device)?,
            None => {
                let settings = run.settings();
                let params = match run.init() {
                    Some(params) => params.clone(),
                    None => Params::init_of(run.layout()?, Init::Uniform, settings.seed())?,
                };
                let learner = Learner::new(params, learner_config(run), device)?;
                Trainer::new(learner, settings.trainer_config())?
            }
        };
        let over = trainer.progress().epoch;
        let epochs = folder.map(|folder| EpochMetrics::read(&folder.metrics(), over));
        let (all, examples) = (trainer.config().epochs, run.train().len());
        let total = (all as u64).saturating_mul(examples as u64);
        let progress = ProgressDisplay::new(total, all, run.examples_name())?;
        let monitor = RunMonitor::new(run, writer, epochs.unwrap_or_default(), progress);
        Ok(Self { trainer, monitor })
    }

    /// Trains until the end, or until Ctrl-C if `interrupt` is given.
    pub fn run(self, interrupt: Option<&Interrupt>) -> Result<Outcome> {
        let Self { mut trainer, mut monitor } = self;
        monitor.start(&mut trainer);
        // The trainer passes on only its own errors.
        let mut failed = None;
        let run = monitor.run();
        let ended = trainer.run(&run.train(), &run.valid(), |trainer, event| {
            let is_requested = || interrupt.is_some_and(Interrupt::is_requested);
            Ok(match monitor.follow(trainer, event) {
                Ok(()) if is_requested() => ControlFlow::Break(()),
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })
        });
        monitor.clear();
        if let Some(error) = failed {
            return Err(error);
        }
        let ended = ended.map_err(|error| monitor.explain(&mut trainer, error))?;
        let unsaved = unsaved(monitor.save(&mut trainer))?;
        let (epochs, seconds) = monitor.finish();
        Ok(Outcome { ended, trainer, epochs, seconds, unsaved })
    }
}
