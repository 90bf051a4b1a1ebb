//! What `gru train` and `gru forecast` share: a run in a folder or without one, from the first update or from
//! a checkpoint, to its end or to Ctrl-C.

mod monitor;
mod runner;
mod target;

use std::process::ExitCode;

use anyhow::Result;
use gru_wgpu::{Checkpoint, Dataset, Device, DeviceKind, LearnerConfig, ParamLayout, StopReason};

use crate::rundir::checkpoints::{CheckpointInterval, check_same, is_of};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::{KeptModel, RunDir};
use crate::rundir::interrupt::{Interrupt, report_interrupted};
use crate::rundir::overrides::{ResumableSettings, SettingsChange, TrainingSettings};
use crate::rundir::settings::RunConfig;
use crate::ui::output::{log, open};
pub use runner::Outcome;
use runner::Runner;
pub use target::RunTarget;

/// What is trained on what: all in which one command's runs differ from another's.
pub trait TrainingRun {
    type Config: RunConfig;
    type Settings: TrainingSettings;

    /// The examples, as the progress calls them.
    const EXAMPLES: &'static str;

    /// Which network becomes the folder's model.
    const KEPT: KeptModel;

    /// The tables of config.toml that say what the data are.
    const DATA_TABLES: &'static str;

    fn config(&self) -> &Self::Config;

    fn settings(&self) -> &Self::Settings;

    /// The same, to be changed, with the changes so far.
    fn settings_mut(&mut self) -> (&mut Self::Settings, &mut Vec<SettingsChange>);

    /// The network's parameters.
    fn layout(&self) -> Result<ParamLayout>;

    /// The examples to train on.
    fn train(&self) -> impl Dataset;

    /// The examples to validate on after each epoch, none where nobody looks at it.
    fn valid(&self) -> impl Dataset;

    /// What a checkpoint notes of the data, wherever their files are.
    fn data_note(&self) -> String;

    /// Some training examples in words.
    fn name_examples(&self, examples: &[usize]) -> String;

    /// Says what is about to be trained on.
    fn announce(&self);

    /// `curves.svg` after these epochs.
    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String>;
}

/// How the learner of a run trains.
fn learner_config(run: &impl TrainingRun) -> LearnerConfig {
    run.settings().learner_config(run.train().len())
}

/// Has what is left of a run be trained with the settings that `apply` makes of its own, which must be those
/// of its checkpoint, or must have been before a change that is noted.
///
/// # Errors
/// When the configuration is not the checkpoint's, or the epochs are over.
pub fn resume(
    run: &mut impl TrainingRun,
    last: Checkpoint,
    apply: impl FnOnce(ResumableSettings) -> ResumableSettings,
) -> Result<Checkpoint> {
    check_config(run, &last)?;
    let examples = run.train().len();
    let (settings, changes) = run.settings_mut();
    let now = apply(settings.resumable());
    settings.resume(changes, last, examples, now)
}

fn check_config<R: TrainingRun>(run: &mut R, checkpoint: &Checkpoint) -> Result<()> {
    let examples = run.train().len();
    let (settings, changes) = run.settings_mut();
    let is_same = settings.match_checkpoint(checkpoint, changes, examples);
    check_same(&[
        (R::DATA_TABLES, is_of(checkpoint, &run.data_note())),
        ("[model]", *checkpoint.state.params.layout() == run.layout()?),
        ("[training]", is_same),
    ])
}

/// Trains, keeps the run's folder, and has `report` say what the run came to; says how a run that was
/// interrupted goes on.
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
