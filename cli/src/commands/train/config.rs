//! What a run is, as `config.toml` in its folder says: all that `gru predict` and `--resume` need.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use gru_wgpu::{
    Adam, Clip, GruConfig, Head, LearnerConfig, Loss, Optimizer, ParamLayout, TrainerConfig,
};
use serde::{Deserialize, Serialize};

use crate::data::csv_table::CsvOptions;
use crate::rundir::overrides::{self, Change, Pace, PaceArguments, Paced};
use crate::rundir::settings;
use crate::ui::arguments::{
    DirectionArg, ResetArg, at_least_one, at_least_zero, check_delimiter, fraction_or_zero,
};
use crate::ui::output::quote_path;
use crate::ui::training_options::{ClipArg, ScheduleArg};

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
    /// Earlier settings of a run that went on with others, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
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
    /// Words that mean a missing number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Of the files' bytes.
    pub fingerprint: String,
}

impl Data {
    /// How its files are read, and those to be predicted.
    pub fn reading(&self) -> CsvOptions {
        let Self { delimiter, header, missing, .. } = self;
        CsvOptions { delimiter: *delimiter as u8, missing: missing.clone(), header: Some(*header) }
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
    /// One input: (cell - mean) / deviation, 0 where the number is missing.
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
    #[arg(long, value_enum, default_value_t = DirectionArg::Forward)]
    pub direction: DirectionArg,
    /// Where the reset gate acts: after the state's product, as in PyTorch, or before it.
    #[arg(long, value_enum, default_value_t = ResetArg::After)]
    pub reset: ResetArg,
    /// The share of states that are dropped between layers while training.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = fraction_or_zero::<f32>)]
    pub dropout: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerWord {
    Adamw,
    Adam,
    Sgd,
}

/// How it is trained. What a run may change where it goes on stands in
/// [`TrainPace`] on the command line.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[arg(skip = 40_usize)]
    pub epochs: usize,
    /// Sequences of a batch, which is an update unless --accumulate says otherwise.
    #[arg(long, value_name = "SEQUENCES", default_value_t = 32, value_parser = at_least_one)]
    pub batch: usize,
    /// Batches of an update, whose gradients are averaged.
    #[arg(long, value_name = "BATCHES", default_value_t = 1, value_parser = at_least_one)]
    #[serde(default = "one")]
    pub accumulate: usize,
    #[arg(skip = 3e-3_f64)]
    pub learning_rate: f64,
    /// How the learning rate changes: constant; cosine, which rises over the warm-up and falls along half a
    /// cosine to 0 or, as in cosine:0.1, to that share of it; step:EPOCHS:FACTOR, multiplied by FACTOR after
    /// each EPOCHS.
    #[arg(long, value_name = "WORD", default_value_t = ScheduleArg::default())]
    #[serde(default)]
    pub schedule: ScheduleArg,
    /// The share of all updates over which the learning rate of a cosine rises to its height [default: 0.05].
    #[arg(long, value_name = "SHARE", value_parser = fraction_or_zero::<f64>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f64>,
    /// What a gradient does to the parameters.
    #[arg(long, value_enum, default_value_t = OptimizerWord::Adamw)]
    pub optimizer: OptimizerWord,
    /// The momentum of sgd [default: 0.9].
    #[arg(long, value_name = "SHARE", value_parser = fraction_or_zero::<f64>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// λ: of adamw the parameters lose the learning rate times λ of themselves at each update; of the
    /// others λ times themselves is added to the gradient.
    #[arg(long, value_name = "λ", default_value_t = 0.01, value_parser = at_least_zero)]
    pub weight_decay: f64,
    #[arg(skip = ClipArg(Clip::Norm(1.0)))]
    pub clip: ClipArg,
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Of the fresh parameters, of what is held out, of the sequences' order and of dropout.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
}

/// What the command line says of a run's [`Pace`].
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct TrainPace {
    #[command(flatten)]
    pace: PaceArguments,
    /// End after so many epochs without a better validation; none: never [default: none].
    #[arg(long, value_name = "EPOCHS|none", value_parser = patience)]
    patience: Option<Patience>,
}

impl TrainPace {
    /// `before` where they say nothing else.
    pub fn on(&self, before: Pace) -> Pace {
        let patience = self.patience.map_or(before.patience, |Patience(patience)| patience);
        Pace { patience, ..self.pace.on(before) }
    }
}

/// Epochs to be patient for, where a run is not so without end.
#[derive(Clone, Copy, Debug)]
struct Patience(Option<usize>);

/// `5` or `none`.
fn patience(text: &str) -> Result<Patience, String> {
    match text {
        "none" => Ok(Patience(None)),
        _ => at_least_one(text).map(|epochs| Patience(Some(epochs))),
    }
}

fn one() -> usize {
    1
}

/// Said above the heads of the file.
const COMMENTS: [(&str, &str); 6] = [
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
    overrides::COMMENT,
];

impl Config {
    pub fn write(&self, path: &Path) -> Result<()> {
        settings::write(path, self, settings::TRAIN, &COMMENTS)
    }

    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = settings::read(path, settings::TRAIN)?;
        config.check().with_context(|| quote_path(path))?;
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
        check_delimiter(self.data.delimiter)?;
        self.training.check()?;
        self.training.trainer_config().validate()?;
        Ok(())
    }

    /// The columns that are read as words, and how many different ones each has.
    pub fn words(&self) -> impl Iterator<Item = (&str, usize)> {
        self.features.iter().filter_map(|feature| match feature {
            Feature::Words { column, words } => Some((&column[..], words.len())),
            Feature::Number { .. } => None,
        })
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

/// Of what is not given.
const WARMUP: f64 = 0.05;
const MOMENTUM: f64 = 0.9;

impl Settings {
    /// Those of a new run: each that counts is there.
    pub fn begun_with(&self, pace: &TrainPace) -> Result<Self> {
        self.check()?;
        let Self { schedule, optimizer, .. } = *self;
        let cosine = matches!(schedule, ScheduleArg::Cosine { .. }).then_some(WARMUP);
        let sgd = (optimizer == OptimizerWord::Sgd).then_some(MOMENTUM);
        let (warmup, momentum) = (self.warmup.or(cosine), self.momentum.or(sgd));
        Ok(Self { warmup, momentum, ..self.with(pace.on(self.pace())) })
    }

    /// `Ok` when nothing is given that would not count.
    fn check(&self) -> Result<()> {
        let is_cosine = matches!(self.schedule, ScheduleArg::Cosine { .. });
        ensure!(
            is_cosine || self.warmup.is_none(),
            "a warm-up is a part of the schedule cosine, and the schedule is {}",
            self.schedule
        );
        ensure!(
            self.optimizer == OptimizerWord::Sgd || self.momentum.is_none(),
            "a momentum is a part of the optimizer sgd, and another one is chosen"
        );
        Ok(())
    }
}

impl Paced for Settings {
    fn pace(&self) -> Pace {
        let Self { epochs, learning_rate, clip, patience, .. } = *self;
        Pace { epochs, learning_rate, clip, patience }
    }

    fn with(&self, pace: Pace) -> Self {
        let Pace { epochs, learning_rate, clip, patience } = pace;
        Self { epochs, learning_rate, clip, patience, ..self.clone() }
    }

    fn trainer_config(&self) -> TrainerConfig {
        let regime = TrainerConfig::new(self.epochs, self.batch).with_seed(self.seed);
        regime.with_patience(self.patience)
    }

    fn learner_config(&self, sequences: usize) -> LearnerConfig {
        let weight_decay = self.weight_decay;
        let optimizer = match self.optimizer {
            OptimizerWord::Adamw => Optimizer::adamw(weight_decay),
            OptimizerWord::Adam => Optimizer::Adam(Adam { weight_decay, ..Adam::default() }),
            OptimizerWord::Sgd => {
                Optimizer::Sgd { momentum: self.momentum.unwrap_or(MOMENTUM), weight_decay }
            }
        };
        let updates = self.trainer_config().updates(sequences, self.accumulate);
        let warmup = self.warmup.unwrap_or(WARMUP);
        LearnerConfig::new(Loss::cross_entropy(), optimizer, self.learning_rate)
            .with_schedule(self.schedule.schedule(self.epochs, updates, warmup))
            .with_clip(self.clip.0)
            .with_accumulation(self.accumulate)
    }
}
