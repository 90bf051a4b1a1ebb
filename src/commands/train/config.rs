//! What a run is, as `config.toml` in its folder says: all that `gru predict` and `--resume` need.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use gru_wgpu::{
    Adam, Clip, GruConfig, Head, Loss, Optimizer, ParamLayout, Regime, Schedule, Training,
};
use serde::{Deserialize, Serialize};

use crate::commands::arguments::{
    DirectionWord, ResetWord, at_least_one, at_least_zero, positive, share_or_zero,
};
use crate::commands::output::quote_path;
use crate::commands::settings;
use crate::commands::sheet::Reading;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program's.
    pub version: String,
    pub task: Task,
    pub data: Data,
    pub columns: Columns,
    pub features: Vec<Feature>,
    pub model: Model,
    pub training: Settings,
}

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One class a sequence.
    Classify,
    /// A class a row.
    Label,
}

/// Where the sequences come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub train: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// The share of the sequences held out, where no other file is there to validate on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<f64>,
    pub delimiter: char,
    pub header: bool,
    /// Of the files' bytes.
    pub fingerprint: String,
}

impl Data {
    /// How its files are read, and those to be predicted.
    pub fn reading(&self) -> Reading<'static> {
        let Self { delimiter, header, .. } = *self;
        Reading { delimiter: delimiter as u8, missing: None, header: Some(header) }
    }
}

/// Columns by their names, or by their numbers where the file has no names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    pub sequence: String,
    pub label: String,
    /// The labels' words, sorted. The model's outputs are in this order.
    pub classes: Vec<String>,
}

/// A column that the model sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Feature {
    /// One input: (cell - mean) / deviation.
    Number { column: String, mean: f64, deviation: f64 },
    /// An input a word, 1 where the cell is it and 0 elsewhere. Sorted.
    Words { column: String, words: Vec<String> },
}

impl Feature {
    pub fn column(&self) -> &str {
        match self {
            Self::Number { column, .. } | Self::Words { column, .. } => column,
        }
    }

    /// How many inputs it is.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Number { .. } => 1,
            Self::Words { words, .. } => words.len(),
        }
    }
}

/// The network, but for what the data say.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Hidden units of a layer and direction.
    #[arg(long, value_name = "UNITS", default_value_t = 64, value_parser = at_least_one)]
    pub hidden: usize,
    /// Layers, one upon the other.
    #[arg(long, value_name = "LAYERS", default_value_t = 1, value_parser = at_least_one)]
    pub layers: usize,
    /// Which way sequences are read. `label` profits from both: a row's class may hang on the next ones.
    #[arg(long, value_enum, default_value_t = DirectionWord::Forward)]
    pub direction: DirectionWord,
    /// Where the reset gate acts: after the state's product, as in PyTorch, or before it.
    #[arg(long, value_enum, default_value_t = ResetWord::After)]
    pub reset: ResetWord,
    /// The share of states that are dropped between layers while training.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share_or_zero::<f32>)]
    pub dropout: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerWord {
    Adamw,
    Adam,
    Sgd,
}

/// How it is trained.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Passes over the training sequences.
    #[arg(long, value_name = "TIMES", default_value_t = 40, value_parser = at_least_one)]
    pub epochs: usize,
    /// Sequences of an update.
    #[arg(long, value_name = "SEQUENCES", default_value_t = 32, value_parser = at_least_one)]
    pub batch: usize,
    /// The learning rate after the warm-up; it falls to 0 along half a cosine.
    #[arg(long, value_name = "RATE", default_value_t = 3e-3, value_parser = positive::<f64>)]
    pub learning_rate: f64,
    /// The share of all updates over which the learning rate rises to its height.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share_or_zero::<f64>)]
    pub warmup: f64,
    /// What a gradient does to the parameters (sgd: with momentum 0.9).
    #[arg(long, value_enum, default_value_t = OptimizerWord::Adamw)]
    pub optimizer: OptimizerWord,
    /// λ: of adamw the parameters lose the learning rate times λ of themselves at each update; of the
    /// others λ times themselves is added to the gradient.
    #[arg(long, value_name = "λ", default_value_t = 0.01, value_parser = at_least_zero)]
    pub weight_decay: f64,
    /// The largest norm of an update's gradient.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = positive::<f32>)]
    pub clip: f32,
    /// End after so many epochs without a better validation.
    #[arg(long, value_name = "EPOCHS", value_parser = at_least_one)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Of the fresh parameters, of what is held out, of the sequences' order and of dropout.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
}

/// Said above the heads of the file.
const COMMENTS: [(&str, &str); 5] = [
    ("[data]", "What it is trained and validated on."),
    (
        "[columns]",
        "Which column names the sequence of a row, which one is to be said, and its words.",
    ),
    (
        "[[features]]",
        "A column that the model sees: a number as (cell - mean) / deviation, a word as a 1 in its place.",
    ),
    (
        "[model]",
        "A GRU of PyTorch's definition (reset = \"before\": of Cho et al. 2014) with a linear head.",
    ),
    ("[training]", "How it is trained."),
];

impl Config {
    pub fn write(&self, path: &Path) -> Result<()> {
        settings::write(path, self, "gru train", &COMMENTS)
    }

    pub fn read(path: &Path) -> Result<Self> {
        let shown = quote_path(path);
        ensure!(
            !settings::is_forecast(path)?,
            "{shown} is that of a run of `gru forecast`, not of `gru train`"
        );
        let config: Self = settings::read(path)?;
        config.check().with_context(|| shown)?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let is_sorted = |words: &[String]| words.windows(2).all(|pair| pair[0] < pair[1]);
        let Columns { classes, .. } = &self.columns;
        let are_classes = classes.len() >= 2 && is_sorted(classes);
        ensure!(are_classes, "columns.classes are to be two words or more, sorted");
        for feature in &self.features {
            match feature {
                Feature::Number { column, mean, deviation } => {
                    let is_sound = mean.is_finite() && deviation.is_finite() && *deviation > 0.0;
                    ensure!(is_sound, "the numbers of feature {column} make no scale");
                }
                Feature::Words { column, words } => {
                    ensure!(is_sorted(words), "the words of feature {column} are not sorted");
                }
            }
        }
        self.training.regime().validate()?;
        Ok(())
    }

    /// The network's parameters.
    pub fn layout(&self) -> Result<ParamLayout> {
        let Model { hidden, layers, direction, reset, dropout } = self.model;
        let inputs = self.features.iter().map(Feature::inputs).sum();
        let config: GruConfig = reset.config(inputs, hidden).with_layers(layers);
        let config = config.with_direction(direction.into()).with_dropout(dropout);
        let outputs = self.columns.classes.len();
        let head = match self.task {
            Task::Classify => Head::last(outputs),
            Task::Label => Head::every_step(outputs),
        };
        Ok(ParamLayout::with_head(&config, head)?)
    }
}

impl Settings {
    pub fn regime(&self) -> Regime {
        let regime = Regime::new(self.epochs, self.batch).with_seed(self.seed);
        regime.with_patience(self.patience)
    }

    /// Over so many sequences.
    pub fn training(&self, sequences: usize) -> Training {
        let weight_decay = self.weight_decay;
        let optimizer = match self.optimizer {
            OptimizerWord::Adamw => Optimizer::adamw(weight_decay),
            OptimizerWord::Adam => Optimizer::Adam(Adam { weight_decay, ..Adam::default() }),
            OptimizerWord::Sgd => Optimizer::Sgd { momentum: 0.9, weight_decay },
        };
        let updates = (self.epochs as u64).saturating_mul(self.regime().updates(sequences, 1));
        let warmup = (self.warmup * updates as f64).round() as u64;
        Training::new(Loss::cross_entropy(), optimizer, self.learning_rate)
            .with_schedule(Schedule::Cosine { warmup, updates, last: 0.0 })
            .with_clip(Clip::Norm(self.clip))
    }
}
