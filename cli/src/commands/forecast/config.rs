//! The `config.toml` of a run of `gru forecast`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gru_wgpu::{
    Clip, Head, LearnerConfig, Loss, Optimizer, Order, ParamLayout, Schedule, TrainerConfig,
};
use serde::{Deserialize, Serialize};

use crate::data::fingerprint::{canonical, check_fingerprint};
use crate::data::series::{Series, SeriesSource, SeriesTable};
use crate::data::windows::{WindowSizes, Windows};
use crate::rundir::config::{self, RunConfig, check_size, check_value};
use crate::rundir::settings::{self, ResumableSettings, SettingsChange, TrainingSettings};
use crate::ui::arguments::{ResetArg, at_least_one, fraction, positive};
use crate::ui::output::{quote, some_of};
use crate::ui::training_options::ClipArg;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastConfig {
    /// The program's version.
    pub version: String,
    pub task: ForecastTask,
    pub data: SeriesSource,
    pub windows: WindowSizes,
    pub series: Vec<SeriesScales>,
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

/// How the model sees a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesScales {
    /// The series' name. `None` if the file has one series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The change that the model sees as 1, for each column.
    pub scales: Vec<f64>,
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
        ("[data.format]", "How the text of the tables is read."),
        ("[windows]", "The sizes of a window, in rows. season is only for the baselines."),
        (
            "[[series]]",
            "A series. A value of a column becomes (value - the window's last value) / scale.",
        ),
        ("[model]", "A GRU (reset = \"after\": PyTorch's) with a linear head on its last state."),
        ("[training]", "The training settings. Adam minimizes the mean squared error."),
        settings::COMMENT,
    ];

    fn check(&self) -> Result<()> {
        let WindowSizes { input, horizon, season, holdout } = self.windows;
        for (key, size) in [("input", input), ("horizon", horizon), ("season", season)] {
            check_size(&format!("windows.{key}"), size)?;
        }
        check_value("windows.holdout", holdout, fraction)?;
        let columns = self.data.columns.len();
        ensure!(columns > 0, "data.columns: expected at least one column");
        ensure!(!self.series.is_empty(), "series: expected at least one [[series]]");
        let is_named = self.data.series.is_some();
        for SeriesScales { name, scales } in &self.series {
            ensure!(
                name.is_some() || !is_named,
                "series.name: expected a name in each [[series]], because data.series is set"
            );
            ensure!(
                name.is_none() || is_named,
                "series.name: expected none, because data.series is not set"
            );
            ensure!(
                scales.len() == columns,
                "series.scales: expected {columns} numbers, one for each of data.columns, got {}",
                scales.len()
            );
            scales
                .iter()
                .try_for_each(|scale| check_value("series.scales", scale, positive::<f64>))?;
        }
        self.data.format.check()?;
        check_size("model.hidden", self.model.hidden)?;
        self.layout().context("[model] and windows.horizon")?;
        check_size("training.batch", self.training.batch)?;
        self.training.check_resumable(&self.changes)
    }
}

impl ForecastConfig {
    /// Reads the series that the run was started with, from where it is or has moved to.
    pub fn read_again(&mut self, moved: Option<&Path>) -> Result<SeriesTable> {
        if let Some(csv) = moved {
            self.data.csv = canonical(csv)?;
        }
        let SeriesSource { csv, fingerprint, .. } = &self.data;
        check_fingerprint([Some(csv), None], fingerprint)?;
        self.table(csv)
    }

    /// Reads the run's columns from a file.
    pub fn table(&self, csv: &Path) -> Result<SeriesTable> {
        let SeriesSource { columns, series, .. } = &self.data;
        SeriesTable::read_columns(csv, series.as_deref(), self.data.format.options(), |csv, _| {
            columns.iter().map(|name| csv.find(name)).collect()
        })
    }

    /// Returns the windows of a series, whose scales the run knows by the series' name.
    pub fn windows<'a>(&self, series: &'a Series) -> Result<Windows<'a>> {
        let WindowSizes { input, horizon, .. } = self.windows;
        let known = self.series.iter().find(|known| known.name == series.label);
        let known = known.with_context(|| {
            let names = self.series.iter().map(|known| known.name.as_deref().unwrap_or_default());
            format!(
                "the run knows no series {}; it was trained on {}",
                quote(series.label.as_deref().unwrap_or_default()),
                some_of(names.map(quote))
            )
        })?;
        Ok(Windows::scaled(&series.columns, input, horizon, known.scales.clone()))
    }

    /// Returns the layout of the parameters. The head predicts all targets of a window from the
    /// last state.
    pub fn layout(&self) -> Result<ParamLayout> {
        let gru = self.model.reset.config(self.data.columns.len(), self.model.hidden);
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

    fn learner_config(&self, updates: u64) -> LearnerConfig {
        let updates = (self.epochs as u64).saturating_mul(updates);
        LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), self.learning_rate)
            .with_schedule(Schedule::cosine(updates))
            .with_clip(self.clip.0)
    }
}
