//! The `config.toml` of a run of `gru forecast`.

use std::path::Path;

use anyhow::{Result, ensure};
use gru_wgpu::{
    Clip, Head, LearnerConfig, Loss, Optimizer, Order, ParamLayout, Schedule, TrainerConfig,
};
use serde::{Deserialize, Serialize};

use crate::data::fingerprint::{canonical, check_fingerprint};
use crate::data::series::{Series, SeriesSource};
use crate::data::table_options::check_marks;
use crate::data::windows::WindowSizes;
use crate::rundir::config::{self, RunConfig};
use crate::rundir::settings::{self, ResumableSettings, SettingsChange, TrainingSettings};
use crate::ui::arguments::{ResetArg, at_least_one};
use crate::ui::training_options::ClipArg;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastConfig {
    /// The program's version.
    pub version: String,
    pub task: ForecastTask,
    pub data: SeriesSource,
    pub windows: WindowSizes,
    /// The model's inputs; the first is the series itself.
    pub columns: Vec<ScaledColumn>,
    pub model: ForecastModelSettings,
    pub training: ForecastSettings,
    /// Earlier settings of a run that was resumed with others, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<SettingsChange>,
}

/// Distinguishes such a run from those of `gru train`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForecastTask {
    Forecast,
}

/// An input column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaledColumn {
    /// The column's name, or its number.
    pub name: String,
    /// The change that the model sees as 1.
    pub scale: f64,
}

/// The model's settings, except those that follow from the data.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastModelSettings {
    /// Hidden units.
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    pub hidden: usize,
    /// Where the reset gate acts. PyTorch can load the model only with `after`.
    #[arg(long, value_enum, default_value_t = ResetArg::Before)]
    pub reset: ResetArg,
}

/// The training settings. [`ResumeOverrides`] are the ones that a resumed run may change.
///
/// [`ResumeOverrides`]: crate::rundir::settings::ResumeOverrides
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastSettings {
    /// Passes over the training windows.
    #[arg(skip = 30_usize)]
    pub epochs: usize,
    /// Windows per batch.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    pub batch: usize,
    /// The learning rate at the start; it falls to 0 along half a cosine.
    #[arg(skip = 0.01_f64)]
    pub learning_rate: f64,
    #[arg(skip = ClipArg(Clip::Norm(1.0)))]
    pub clip: ClipArg,
    /// The seed of the initial parameters and of the order of windows.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
}

impl RunConfig for ForecastConfig {
    const COMMAND: &'static str = config::FORECAST;

    const COMMENTS: &'static [(&'static str, &'static str)] = &[
        ("[data]", "The file of the series."),
        ("[windows]", "The sizes of a window, in rows. season is only for the baselines."),
        (
            "[[columns]]",
            "An input column. A value becomes (value - the window's last value) / scale. The first is forecast.",
        ),
        ("[model]", "A GRU (reset = \"after\": PyTorch's) with a linear head on its last state."),
        ("[training]", "The training settings. Adam minimizes the mean squared error."),
        settings::COMMENT,
    ];

    fn check(&self) -> Result<()> {
        let WindowSizes { input, horizon, season, holdout } = self.windows;
        ensure!(input.min(horizon).min(season) > 0, "[windows] has a size of 0");
        ensure!(holdout > 0.0 && holdout < 1.0, "holdout is not between 0 and 1");
        ensure!(!self.columns.is_empty(), "there are no [[columns]]");
        for ScaledColumn { name, scale } in &self.columns {
            let is_sound = scale.is_finite() && *scale > 0.0;
            ensure!(is_sound, "the scale of column {name} is not a finite number above 0");
        }
        check_marks(self.data.delimiter, self.data.numbers())?;
        self.training.trainer_config().validate()?;
        self.training.learner_config(0).validate()?;
        Ok(())
    }
}

impl ForecastConfig {
    /// Reads the series that the run was started with, from where it is or has moved to.
    pub fn read_again(&mut self, moved: Option<&Path>) -> Result<Series> {
        if let Some(csv) = moved {
            self.data.csv = canonical(csv)?;
        }
        let SeriesSource { csv, fingerprint, .. } = &self.data;
        check_fingerprint([Some(csv), None], fingerprint)?;
        self.series(csv)
    }

    /// Reads the run's columns from a file.
    pub fn series(&self, csv: &Path) -> Result<Series> {
        let names: Vec<_> = self.columns.iter().map(|column| &column.name).collect();
        Series::read_columns(csv, self.data.options(), |csv| {
            names.iter().map(|name| csv.find(name)).collect()
        })
    }

    pub fn scales(&self) -> Vec<f64> {
        self.columns.iter().map(|column| column.scale).collect()
    }

    /// Returns the layout of the parameters. The head predicts all targets of a window from the
    /// last state.
    pub fn layout(&self) -> Result<ParamLayout> {
        let gru = self.model.reset.config(self.columns.len(), self.model.hidden);
        Ok(ParamLayout::with_head(&gru, Head::last(self.windows.horizon))?)
    }
}

impl TrainingSettings for ForecastSettings {
    fn resumable(&self) -> ResumableSettings {
        let Self { epochs, learning_rate, clip, .. } = *self;
        ResumableSettings { epochs, learning_rate, clip, patience: None }
    }

    fn with_resumable(&self, settings: ResumableSettings) -> Self {
        let ResumableSettings { epochs, learning_rate, clip, patience: _ } = settings;
        Self { epochs, learning_rate, clip, ..self.clone() }
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    /// All windows have the same length.
    fn trainer_config(&self) -> TrainerConfig {
        let config = TrainerConfig::new(self.epochs, self.batch).with_seed(self.seed);
        config.with_order(Order::Shuffled)
    }

    fn learner_config(&self, windows: usize) -> LearnerConfig {
        let updates =
            (self.epochs as u64).saturating_mul(self.trainer_config().updates(windows, 1));
        LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), self.learning_rate)
            .with_schedule(Schedule::cosine(updates))
            .with_clip(self.clip.0)
    }
}
