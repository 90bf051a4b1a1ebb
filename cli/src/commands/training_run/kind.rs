//! [`TrainingRun`]: what differs between the runs of `gru train` and of `gru forecast`.

use anyhow::Result;
use gru_wgpu::{Dataset, LearnerConfig, ParamLayout, Params};

use crate::rundir::config::RunConfig;
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::KeptModel;
use crate::rundir::settings::{SettingsChange, TrainingSettings};

/// The data, model and settings of a run of one command.
pub trait TrainingRun {
    type Config: RunConfig;
    type Settings: TrainingSettings;

    /// The network that becomes the folder's model.
    const KEPT: KeptModel;

    /// The tables of config.toml that describe the data.
    const DATA_TABLES: &'static str;

    fn config(&self) -> &Self::Config;

    /// Returns the name of the examples in the progress display.
    fn examples_name(&self) -> &'static str;

    fn settings(&self) -> &Self::Settings;

    /// Returns the settings, mutable, with the changes so far.
    fn settings_mut(&mut self) -> (&mut Self::Settings, &mut Vec<SettingsChange>);

    /// Returns the layout of the parameters.
    fn layout(&self) -> Result<ParamLayout>;

    /// Returns the parameters of another model that a new run starts from. Without them they are
    /// drawn.
    fn init(&self) -> Option<&Params> {
        None
    }

    /// Returns the training set.
    fn train(&self) -> impl Dataset;

    /// Returns the validation set; empty if nobody sees the result.
    fn valid(&self) -> impl Dataset;

    /// Returns the fingerprint of the data in a checkpoint, independent of the files' location.
    fn data_note(&self) -> String;

    /// Names some training examples.
    fn name_examples(&self, examples: &[usize]) -> String;

    /// Prints a description of the training data.
    fn announce(&self);

    /// Draws `curves.svg` for these epochs.
    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String>;
}

/// Returns the learner's configuration of a run.
pub fn learner_config(run: &impl TrainingRun) -> LearnerConfig {
    run.settings().learner_config(updates_per_epoch(run))
}

/// Returns the number of updates in an epoch of a run.
pub fn updates_per_epoch(run: &impl TrainingRun) -> u64 {
    let LearnerConfig { loss, accumulation, .. } = run.settings().learner_config(1);
    run.settings().trainer_config().updates(&run.train(), &loss, accumulation)
}
