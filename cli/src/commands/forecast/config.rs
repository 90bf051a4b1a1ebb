//! What a forecast is made of, as `config.toml` in its run's folder says: all that `gru predict` and `--resume`
//! need.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gru_wgpu::{Clip, Head, LearnerConfig, Loss, Optimizer, ParamLayout, Schedule, TrainerConfig};
use serde::{Deserialize, Serialize};

use crate::data::csv_table::CsvOptions;
use crate::data::fingerprint::{check_fingerprint, whole};
use crate::data::series::Series;
use crate::rundir::overrides::{self, Change, Pace, Paced};
use crate::rundir::settings;
use crate::ui::arguments::{ResetArg, at_least_one, check_delimiter, fraction};
use crate::ui::output::quote_path;
use crate::ui::training_options::ClipArg;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program's.
    pub version: String,
    pub task: Task,
    pub data: Data,
    pub windows: Sizes,
    /// What the model sees, the series itself first.
    pub columns: Vec<Column>,
    pub model: Model,
    pub training: Settings,
    /// Earlier settings of a run that went on with others, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// What tells such a run from those of `gru train`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    Forecast,
}

/// Where the series comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub csv: PathBuf,
    pub delimiter: char,
    pub header: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Of the file's bytes.
    pub fingerprint: String,
}

impl Data {
    /// How its file is read, and those to be predicted from.
    pub fn reading(&self) -> CsvOptions {
        let Self { delimiter, header, missing, .. } = self;
        let delimiter = *delimiter as u8;
        CsvOptions { delimiter, missing: missing.iter().cloned().collect(), header: Some(*header) }
    }
}

/// A column that the model sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Or its number.
    pub name: String,
    /// What a change of 1 means to the model.
    pub scale: f64,
}

/// How the series is cut.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Rows that a window shows the model.
    #[arg(long, value_name = "ROWS", default_value_t = 104, value_parser = at_least_one)]
    pub input: usize,
    /// Rows to forecast.
    #[arg(long, value_name = "ROWS", default_value_t = 52, value_parser = at_least_one)]
    pub horizon: usize,
    /// Rows of a season, for the rules.
    #[arg(long, value_name = "ROWS", default_value_t = 52, value_parser = at_least_one)]
    pub season: usize,
    /// The share of the series held out at its end.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = fraction)]
    pub holdout: f64,
}

/// The network, but for what the data say.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Hidden units.
    #[arg(long, value_name = "UNITS", default_value_t = 32, value_parser = at_least_one)]
    pub hidden: usize,
    /// Where the reset gate acts: before the state's product, or after it, as in PyTorch, which then loads the
    /// model.
    #[arg(long, value_enum, default_value_t = ResetArg::Before)]
    pub reset: ResetArg,
}

/// How it is trained. What a run may change where it goes on stands in [`PaceArguments`] on the command line.
///
/// [`PaceArguments`]: crate::rundir::overrides::PaceArguments
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Passes over the training windows.
    #[arg(skip = 30_usize)]
    pub epochs: usize,
    /// Windows a training step.
    #[arg(long, value_name = "WINDOWS", default_value_t = 64, value_parser = at_least_one)]
    pub batch: usize,
    /// At the start; it falls to 0 along half a cosine.
    #[arg(skip = 0.01_f64)]
    pub learning_rate: f64,
    #[arg(skip = ClipArg(Clip::Norm(1.0)))]
    pub clip: ClipArg,
    /// Seed of the fresh parameters and of the windows' order.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
}

/// Said above the heads of the file.
const COMMENTS: [(&str, &str); 6] = [
    ("[data]", "Where the series comes from."),
    ("[windows]", "How it is cut, in rows; season is for the rules alone."),
    (
        "[[columns]]",
        "What the model sees, each value as (value - the window's last value) / scale; the first is forecast.",
    ),
    ("[model]", "A GRU (reset = \"after\": PyTorch's) with a linear head on its last state."),
    ("[training]", "How it is trained, by Adam for the mean squared error."),
    overrides::COMMENT,
];

impl Config {
    pub fn write(&self, path: &Path) -> Result<()> {
        settings::write(path, self, settings::FORECAST, &COMMENTS)
    }

    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = settings::read(path, settings::FORECAST)?;
        config.check().with_context(|| quote_path(path))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let Sizes { input, horizon, season, holdout } = self.windows;
        ensure!(input.min(horizon).min(season) > 0, "[windows] has a size of 0");
        ensure!(holdout > 0.0 && holdout < 1.0, "holdout is not between 0 and 1");
        ensure!(!self.columns.is_empty(), "there are no [[columns]]");
        for Column { name, scale } in &self.columns {
            let is_sound = scale.is_finite() && *scale > 0.0;
            ensure!(is_sound, "the scale of column {name} is no finite number above 0");
        }
        check_delimiter(self.data.delimiter)?;
        self.training.trainer_config().validate()?;
        self.training.learner_config(0).validate()?;
        Ok(())
    }

    /// The series that a run was started with, or where it has moved to.
    pub fn read_again(&mut self, moved: Option<&Path>) -> Result<Series> {
        if let Some(csv) = moved {
            self.data.csv = whole(csv)?;
        }
        let Data { csv, fingerprint, .. } = &self.data;
        check_fingerprint([Some(csv), None], fingerprint)?;
        self.series(csv)
    }

    /// Its columns of a file.
    pub fn series(&self, csv: &Path) -> Result<Series> {
        let names: Vec<_> = self.columns.iter().map(|column| &column.name).collect();
        Series::read_columns(csv, self.data.reading(), |sheet| {
            names.iter().map(|name| sheet.find(name)).collect()
        })
    }

    pub fn scales(&self) -> Vec<f64> {
        self.columns.iter().map(|column| column.scale).collect()
    }

    /// The network's parameters: all of a window's targets at once from the last state.
    pub fn layout(&self) -> Result<ParamLayout> {
        let gru = self.model.reset.config(self.columns.len(), self.model.hidden);
        Ok(ParamLayout::with_head(&gru, Head::last(self.windows.horizon))?)
    }
}

impl Paced for Settings {
    fn pace(&self) -> Pace {
        let Self { epochs, learning_rate, clip, .. } = *self;
        Pace { epochs, learning_rate, clip, patience: None }
    }

    fn with(&self, pace: Pace) -> Self {
        let Pace { epochs, learning_rate, clip, patience: _ } = pace;
        Self { epochs, learning_rate, clip, ..self.clone() }
    }

    fn trainer_config(&self) -> TrainerConfig {
        TrainerConfig::new(self.epochs, self.batch).with_seed(self.seed)
    }

    fn learner_config(&self, windows: usize) -> LearnerConfig {
        let updates =
            (self.epochs as u64).saturating_mul(self.trainer_config().updates(windows, 1));
        LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), self.learning_rate)
            .with_schedule(Schedule::cosine(updates))
            .with_clip(self.clip.0)
    }
}
