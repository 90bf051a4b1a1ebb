//! [`TrainingRun`]: in what the runs of one command differ from those of another.

use anyhow::Result;
use gru_wgpu::{Dataset, LearnerConfig, ParamLayout};

use crate::rundir::config::RunConfig;
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::KeptModel;
use crate::rundir::settings::{SettingsChange, TrainingSettings};

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
pub fn learner_config(run: &impl TrainingRun) -> LearnerConfig {
    run.settings().learner_config(run.train().len())
}
