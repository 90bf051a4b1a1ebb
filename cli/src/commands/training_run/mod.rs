//! What `gru train` and `gru forecast` share: a run with or without a folder, from the first update
//! or from a checkpoint, to its end or to Ctrl-C.

mod kind;
mod monitor;
mod runner;
mod target;

use std::process::ExitCode;

use anyhow::Result;
use gru_wgpu::{Device, DeviceKind, StopReason};

use crate::rundir::checkpoints::CheckpointInterval;
use crate::rundir::config::RunConfig;
use crate::rundir::folder::RunDir;
use crate::rundir::interrupt::{Interrupt, report_interrupted};
use crate::ui::device::open;
use crate::ui::output::log;
pub use kind::TrainingRun;
pub use runner::Outcome;
use runner::Runner;
pub use target::RunTarget;

/// Trains, writes the run's folder, and calls `report` at the end. If the run is interrupted,
/// prints how to resume it.
pub fn train<R: TrainingRun>(
    run: &R,
    target: RunTarget,
    interval: CheckpointInterval,
    kind: DeviceKind,
    report: impl FnOnce(&mut Outcome, Option<&RunDir>, &Device) -> Result<()>,
) -> Result<ExitCode> {
    let device = open(kind)?;
    let (folder, checkpoint, lock) = target.into_parts();
    let runner = Runner::new(run, folder.as_ref(), interval, checkpoint, &device)?;
    let lock = lock.take(folder.as_ref())?;
    if let Some(folder) = &folder {
        run.config().write(&folder.config())?;
    }
    let interrupt = folder.as_ref().map(|_| Interrupt::listen()).transpose()?;
    run.announce();
    let parameters = run.layout()?.parameter_count();
    log(format_args!("training {parameters} parameters on {device}"));
    let mut outcome = runner.run(interrupt.as_ref())?;
    let status = match (outcome.ended, &folder) {
        (StopReason::Requested, Some(folder)) => {
            let saved = outcome.unsaved.is_none().then_some(folder);
            let epochs = (outcome.trainer.progress().epoch, outcome.trainer.config().epochs);
            let updates = outcome.trainer.learner().updates();
            report_interrupted(R::Config::COMMAND, saved, updates, epochs)
        }
        _ => {
            report(&mut outcome, folder.as_ref(), &device)?;
            ExitCode::SUCCESS
        }
    };
    drop(lock);
    outcome.unsaved.map_or(Ok(status), |why| Err(why.context("the run was not saved")))
}
