//! The `config.toml` of a run of `gru train`.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use gru_wgpu::{
    Adam, Clip, GruConfig, Head, LearnerConfig, Loss, Optimizer, ParamLayout, TrainerConfig,
};
use serde::{Deserialize, Serialize};

use super::init::InitSettings;
use crate::data::features::{
    Feature, LabelColumns, NumericLabel, Per, SequenceTask, Task, WindowSettings,
};
use crate::data::predictor::Predictor;
use crate::data::sequences::SequenceSource;
use crate::rundir::config::{self, RunConfig, check_size, check_value};
use crate::rundir::settings::{
    self, ResumableSettings, ResumeOverrides, SettingsChange, TrainingSettings,
};
use crate::ui::arguments::{
    DirectionArg, ResetArg, at_least_one, at_least_zero, finite, fraction, fraction_or_zero,
    positive,
};
use crate::ui::output::quote;
use crate::ui::training_options::{ClipArg, ScheduleArg};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The program's version.
    pub version: String,
    pub task: Task,
    pub data: SequenceSource,
    pub columns: LabelColumns,
    /// The windows that sequences are cut into. `None` if they are whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowSettings>,
    pub features: Vec<Feature>,
    pub model: SequenceModelSettings,
    /// The model that the run started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitSettings>,
    pub training: TrainSettings,
    /// Earlier settings of a run that was resumed with others, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<SettingsChange>,
}

/// The model's settings, except those that follow from the data.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceModelSettings {
    /// Hidden units per layer and direction.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    pub hidden: usize,
    /// Stacked layers.
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub layers: usize,
    /// The direction in which sequences are read.
    #[arg(long, value_enum, default_value_t = DirectionArg::Forward)]
    pub direction: DirectionArg,
    /// Where the reset gate acts.
    #[arg(long, value_enum, default_value_t = ResetArg::After)]
    pub reset: ResetArg,
    /// The probability of dropout between layers.
    #[arg(long, default_value_t = 0.0, value_parser = fraction_or_zero::<f32>)]
    pub dropout: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerArg {
    Adamw,
    Adam,
    Sgd,
}

/// The loss of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossSetting {
    /// Of labels that are classes.
    #[default]
    CrossEntropy,
    /// Of labels that are numbers, scaled.
    MeanSquared,
}

impl From<LossSetting> for Loss {
    fn from(setting: LossSetting) -> Self {
        match setting {
            LossSetting::CrossEntropy => Self::cross_entropy(),
            LossSetting::MeanSquared => Self::MeanSquared,
        }
    }
}

/// The training settings. [`TrainOverrides`] are the ones that a resumed run may change.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// The loss, which follows from the task.
    #[arg(skip)]
    #[serde(default)]
    pub loss: LossSetting,
    #[arg(skip = 40_usize)]
    pub epochs: usize,
    /// Sequences or windows per batch.
    #[arg(skip)]
    pub batch: usize,
    /// Batches per update, whose gradients are averaged.
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    #[serde(default = "one")]
    pub accumulate: usize,
    #[arg(skip = 3e-3_f64)]
    pub learning_rate: f64,
    /// The learning-rate schedule.
    #[arg(long, default_value_t = ScheduleArg::default())]
    #[serde(default)]
    pub schedule: ScheduleArg,
    /// The fraction of all updates in the cosine's warm-up; [`WARMUP`] if `None`.
    #[arg(long, value_parser = fraction_or_zero::<f64>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f64>,
    /// The optimizer.
    #[arg(long, value_enum, default_value_t = OptimizerArg::Adamw)]
    pub optimizer: OptimizerArg,
    /// The momentum of SGD; 0.9 if `None`.
    #[arg(long, value_parser = fraction_or_zero::<f64>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// The weight decay λ.
    #[arg(long, default_value_t = 0.01, value_parser = at_least_zero)]
    pub weight_decay: f64,
    #[arg(skip = ClipArg(Clip::Norm(1.0)))]
    pub clip: ClipArg,
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// The seed of the initial parameters, of the held-out sequences, of the order of sequences,
    /// and of dropout.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
}

/// The settings that a resumed run may change.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct TrainOverrides {
    #[command(flatten)]
    overrides: ResumeOverrides,
    /// Epochs without improvement after which the run stops.
    #[arg(long, value_parser = patience)]
    patience: Option<PatienceArg>,
}

impl TrainOverrides {
    /// Returns the settings `before` with the given changes.
    pub fn apply_to(&self, before: ResumableSettings) -> ResumableSettings {
        let patience = self.patience.map_or(before.patience, |PatienceArg(patience)| patience);
        ResumableSettings { patience, ..self.overrides.apply_to(before) }
    }
}

/// `--patience`: a number of epochs, or `None` to never stop early.
#[derive(Clone, Copy, Debug)]
struct PatienceArg(Option<usize>);

/// Parses `5` or `none`.
fn patience(text: &str) -> Result<PatienceArg, String> {
    match text {
        "none" => Ok(PatienceArg(None)),
        _ => at_least_one(text)
            .map(|epochs| PatienceArg(Some(epochs)))
            .map_err(|error| format!("{error}, or none")),
    }
}

fn one() -> usize {
    1
}

impl RunConfig for TrainConfig {
    const COMMAND: &'static str = config::TRAIN;

    const COMMENTS: &'static [(&'static str, &'static str)] = &[
        ("[data]", "The training set and the validation set."),
        ("[data.format]", "How the text of the tables is read."),
        (
            "[columns]",
            "The column with the sequence's name, the column with the labels, and the classes.",
        ),
        (
            "[columns.numeric]",
            "Labels that are numbers. The model's output is (label - mean) / deviation.",
        ),
        (
            "[windows]",
            "Sequences are cut into windows of this many rows; the next starts `stride` rows later.",
        ),
        (
            "[[features]]",
            "An input column. A number becomes (cell - mean) / deviation; a word becomes one-hot.",
        ),
        (
            "[model]",
            "A GRU by PyTorch's definition (reset = \"before\": by Cho et al. 2014) with a linear head.",
        ),
        ("[init]", "The model that the run started from. A resumed run does not read it again."),
        ("[training]", "The training settings."),
        settings::COMMENT,
    ];

    fn check(&self) -> Result<()> {
        let is_sorted = |words: &[String]| words.windows(2).all(|pair| pair[0] < pair[1]);
        let SequenceModelSettings { hidden, layers, dropout, direction, .. } = self.model;
        if let Some(holdout) = self.data.holdout {
            check_value("data.holdout", holdout, fraction)?;
        }
        self.data.format.check()?;
        let LabelColumns { classes, numeric, .. } = &self.columns;
        match (self.task, numeric) {
            (Task::Regress, Some(NumericLabel { mean, deviation, .. })) => {
                check_scale("columns.numeric", *mean, *deviation)?;
                ensure!(
                    classes.is_empty(),
                    "columns.classes: expected none with task = \"regress\""
                );
            }
            (Task::Regress, None) => bail!("task = \"regress\" needs columns.numeric"),
            (_, Some(_)) => bail!("columns.numeric needs task = \"regress\""),
            (_, None) => ensure!(
                classes.len() >= 2 && is_sorted(classes),
                "columns.classes: expected at least two classes, sorted, each once"
            ),
        }
        if let Some(windows) = self.windows {
            check_size("windows.window", windows.window)?;
            check_size("windows.stride", windows.stride)?;
            windows.check(self.task_of_sequences().per, direction).context("[windows]")?;
        }
        ensure!(!self.features.is_empty(), "features: expected at least one [[features]]");
        for feature in &self.features {
            let of_column = || format!("column {}", quote(feature.column()));
            match feature {
                Feature::Numeric { mean, deviation, .. } => {
                    check_scale("features", *mean, *deviation).with_context(of_column)?;
                }
                Feature::Categorical { words, .. } => ensure!(
                    is_sorted(words),
                    "{}: features.words: expected sorted words, each once",
                    of_column()
                ),
            }
        }
        check_size("model.hidden", hidden)?;
        check_size("model.layers", layers)?;
        check_value("model.dropout", dropout, fraction_or_zero::<f32>)?;
        self.layout().context("[model]")?;
        self.training.check_keys()?;
        self.training.check_resumable(&self.changes)
    }
}

/// Checks the mean and the deviation in a table.
fn check_scale(table: &str, mean: f64, deviation: f64) -> Result<()> {
    check_value(&format!("{table}.mean"), mean, finite)?;
    check_value(&format!("{table}.deviation"), deviation, positive::<f64>)
}

impl WindowSettings {
    /// Refuses windows that leave out rows, or whose states cannot be carried.
    pub fn check(&self, per: Per, direction: DirectionArg) -> Result<()> {
        let Self { window, stride } = *self;
        ensure!(window > 0 && stride > 0, "the window and the stride must have at least one row");
        if per == Per::Row {
            ensure!(
                stride <= window,
                "a stride of {stride} rows is above the window of {window} rows, which would leave out rows; expected at \
                 most the window (--stride)"
            );
            ensure!(
                direction == DirectionArg::Forward,
                "windows with a label per row carry the state from one to the next, which needs direction forward \
                 (--direction)"
            );
        }
        Ok(())
    }
}

impl TrainConfig {
    /// Returns what is learned from the sequences.
    pub fn task_of_sequences(&self) -> SequenceTask<'_> {
        let per = match (self.task, &self.columns.numeric) {
            (Task::Classify, _) => Per::Sequence,
            (Task::Regress, Some(numeric)) => numeric.per,
            (Task::Label | Task::Regress, _) => Per::Row,
        };
        SequenceTask { task: self.task, columns: &self.columns, per, windows: self.windows }
    }

    /// Returns how the network reads sequences.
    pub fn predictor(&self) -> Predictor {
        Predictor::new(self.task_of_sequences(), self.training.batch)
    }

    /// Returns the categorical columns, with the number of categories of each.
    pub fn words(&self) -> impl Iterator<Item = (&str, usize)> {
        self.features.iter().filter_map(|feature| match feature {
            Feature::Categorical { column, words } => Some((&column[..], words.len())),
            Feature::Numeric { .. } => None,
        })
    }

    /// Returns the layout of the parameters.
    pub fn layout(&self) -> Result<ParamLayout> {
        let SequenceModelSettings { hidden, layers, direction, reset, dropout } = self.model;
        let inputs = self.features.iter().map(Feature::inputs).sum();
        let config: GruConfig = reset.config(inputs, hidden).with_layers(layers);
        let config = config.with_direction(direction.into()).with_dropout(dropout);
        let outputs = match self.columns.numeric {
            Some(_) => 1,
            None => self.columns.classes.len(),
        };
        let head = match self.task_of_sequences().per {
            Per::Sequence => Head::last(outputs),
            Per::Row => Head::every_step(outputs),
        };
        Ok(ParamLayout::with_head(&config, head)?)
    }
}

/// Defaults of the settings that belong to one schedule or one optimizer.
const WARMUP: f64 = 0.05;
const MOMENTUM: f64 = 0.9;

impl TrainSettings {
    /// Returns the settings of a new run, with every default filled in.
    pub fn started_with(&self, overrides: &TrainOverrides) -> Result<Self> {
        self.check_use(&["--warmup", "--schedule cosine", "--momentum", "--optimizer sgd"])?;
        let Self { schedule, optimizer, .. } = *self;
        let cosine = matches!(schedule, ScheduleArg::Cosine { .. }).then_some(WARMUP);
        let sgd = (optimizer == OptimizerArg::Sgd).then_some(MOMENTUM);
        let (warmup, momentum) = (self.warmup.or(cosine), self.momentum.or(sgd));
        Ok(Self { warmup, momentum, ..self.with_resumable(overrides.apply_to(self.resumable())) })
    }

    /// Checks the values in config.toml that a resumed run may not change.
    fn check_keys(&self) -> Result<()> {
        check_size("training.batch", self.batch)?;
        check_size("training.accumulate", self.accumulate)?;
        for (key, value) in [("warmup", self.warmup), ("momentum", self.momentum)] {
            if let Some(value) = value {
                check_value(&format!("training.{key}"), value, fraction_or_zero::<f64>)?;
            }
        }
        check_value("training.weight_decay", self.weight_decay, at_least_zero)?;
        self.check_use(&[
            "training.warmup",
            "schedule = \"cosine\"",
            "training.momentum",
            "optimizer = \"sgd\"",
        ])
    }

    /// Refuses settings that have no effect. `names` names the warm-up, the schedule that it needs,
    /// the momentum, and the optimizer that it needs.
    fn check_use(&self, names: &[&str; 4]) -> Result<()> {
        let [warmup, cosine, momentum, sgd] = names;
        let is_cosine = matches!(self.schedule, ScheduleArg::Cosine { .. });
        ensure!(
            is_cosine || self.warmup.is_none(),
            "{warmup} needs {cosine}, not {}",
            self.schedule
        );
        ensure!(
            self.optimizer == OptimizerArg::Sgd || self.momentum.is_none(),
            "{momentum} needs {sgd}"
        );
        Ok(())
    }
}

impl TrainingSettings for TrainSettings {
    fn resumable(&self) -> ResumableSettings {
        let Self { epochs, learning_rate, clip, patience, .. } = *self;
        ResumableSettings { epochs, learning_rate, clip, patience }
    }

    fn with_resumable(&self, settings: ResumableSettings) -> Self {
        let ResumableSettings { epochs, learning_rate, clip, patience } = settings;
        Self { epochs, learning_rate, clip, patience, ..self.clone() }
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn trainer_config(&self) -> TrainerConfig {
        let config = TrainerConfig::new(self.epochs, self.batch).with_seed(self.seed);
        config.with_patience(self.patience)
    }

    fn learner_config(&self, updates: u64) -> LearnerConfig {
        let weight_decay = self.weight_decay;
        let optimizer = match self.optimizer {
            OptimizerArg::Adamw => Optimizer::adamw(weight_decay),
            OptimizerArg::Adam => Optimizer::Adam(Adam { weight_decay, ..Adam::default() }),
            OptimizerArg::Sgd => {
                Optimizer::Sgd { momentum: self.momentum.unwrap_or(MOMENTUM), weight_decay }
            }
        };
        let warmup = self.warmup.unwrap_or(WARMUP);
        LearnerConfig::new(self.loss.into(), optimizer, self.learning_rate)
            .with_schedule(self.schedule.schedule(self.epochs, updates, warmup))
            .with_clip(self.clip.0)
            .with_accumulation(self.accumulate)
    }
}
