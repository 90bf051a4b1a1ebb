//! [`SequenceRun`]: the sequences that `gru train` trains on, and the baseline.

use anyhow::{Result, ensure};
use gru_wgpu::{Dataset, Example, ParamLayout, Target};

use super::config::{TrainConfig, TrainSettings};
use super::curves::{CurvesText, draw_curves};
use crate::commands::training_run::TrainingRun;
use crate::data::csv_table::printable;
use crate::data::features::Task;
use crate::data::sequences::{SequenceExamples, SequenceSource, SequenceSplit};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::KeptModel;
use crate::rundir::settings::SettingsChange;
use crate::ui::output::{log, quote, some_of};

/// A run of `gru train`. It holds only numbers; the tables that they come from are freed after
/// [`Self::new`].
pub struct SequenceRun {
    pub config: TrainConfig,
    pub examples: SequenceExamples,
    pub majority: MajorityBaseline,
}

/// A baseline that knows only the class frequencies of the training set.
pub struct MajorityBaseline {
    pub class: String,
    /// The accuracy on the validation set of always predicting the most frequent class.
    pub accuracy: f64,
    /// The cross-entropy on the validation set of the class frequencies, each class counted once
    /// more than it occurs.
    pub loss: f64,
}

impl SequenceRun {
    pub fn new(config: TrainConfig, split: SequenceSplit) -> Result<Self> {
        let examples = split.into_examples(config.task, &config.columns, &config.features)?;
        let SequenceExamples { train, valid, .. } = &examples;
        let majority = MajorityBaseline::new(&config.columns.classes, train, valid)?;
        Ok(Self { config, examples, majority })
    }
}

impl TrainingRun for SequenceRun {
    type Config = TrainConfig;
    type Settings = TrainSettings;

    const EXAMPLES: &'static str = "sequences";
    const KEPT: KeptModel = KeptModel::Best;
    const DATA_TABLES: &'static str = "[data]";

    fn config(&self) -> &TrainConfig {
        &self.config
    }

    fn settings(&self) -> &TrainSettings {
        &self.config.training
    }

    fn settings_mut(&mut self) -> (&mut TrainSettings, &mut Vec<SettingsChange>) {
        (&mut self.config.training, &mut self.config.changes)
    }

    fn layout(&self) -> Result<ParamLayout> {
        self.config.layout()
    }

    fn train(&self) -> impl Dataset {
        &self.examples.train[..]
    }

    fn valid(&self) -> impl Dataset {
        &self.examples.valid[..]
    }

    fn data_note(&self) -> String {
        let SequenceSource {
            holdout,
            time,
            delimiter,
            decimal,
            thousands,
            header,
            missing,
            fingerprint,
            ..
        } = &self.config.data;
        let missing = match &missing[..] {
            [] => String::new(),
            words => format!(" missing={words:?}"),
        };
        format!(
            "{fingerprint} holdout={holdout:?} time={time:?} delimiter={delimiter:?} decimal={decimal:?} \
             thousands={thousands:?} header={header}{missing}"
        )
    }

    fn name_examples(&self, examples: &[usize]) -> String {
        let names = examples.iter().map(|&example| quote(&self.examples.names[example]));
        format!("sequences {}", some_of(names))
    }

    fn announce(&self) {
        let TrainConfig { columns, features, task, .. } = &self.config;
        let inputs: usize = features.iter().map(|feature| feature.inputs()).sum();
        let (train, valid) = (self.examples.train.len(), self.examples.valid.len());
        let each = match task {
            Task::Classify => "sequence",
            Task::Label => "row",
        };
        log(format_args!(
            "sequences: {train} to train on, {valid} held out; inputs: {inputs}; classes of {}, one a {each}: {}",
            quote(&columns.label),
            columns.classes.len()
        ));
        for (column, words) in self.config.words() {
            let column = quote(column);
            log(format_args!("column {column} is read as words, of which there are {words}"));
        }
    }

    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String> {
        let Self { config, examples, majority } = self;
        let file = config.data.train.file_name().unwrap_or_default().to_string_lossy();
        let text = CurvesText {
            title: &printable(&format!("{file}: {}", config.columns.label)),
            subtitle: &format!(
                "{}, {} sequences to train on, {} held out",
                config.layout()?.config(),
                examples.train.len(),
                examples.valid.len()
            ),
            majority: (majority.loss, majority.accuracy),
        };
        draw_curves(epochs, &text)
    }
}

impl MajorityBaseline {
    fn new(classes: &[String], train: &[Example], valid: &[Example]) -> Result<Self> {
        let [trained, held_out] = [train, valid].map(|examples| frequencies(classes, examples));
        let [all, count] = [&trained, &held_out].map(|counts| counts.iter().sum::<usize>());
        ensure!(count > 0, "no sequence that is held out has a label");
        let present = trained.iter().filter(|&&count| count > 0).count();
        ensure!(
            present > 1,
            "the training set has {present} class and needs two; hold out other \
             sequences with another --seed, or fewer with a smaller --holdout"
        );
        let most = (0..classes.len()).rev().max_by_key(|&class| trained[class]);
        let most = most.expect("there are two classes or more");
        let frequency = |class: usize| (trained[class] + 1) as f64 / (all + classes.len()) as f64;
        let loss =
            held_out.iter().enumerate().map(|(class, &n)| -(n as f64) * frequency(class).ln());
        Ok(Self {
            class: classes[most].clone(),
            accuracy: held_out[most] as f64 / count as f64,
            loss: loss.sum::<f64>() / count as f64,
        })
    }
}

/// Counts each class.
fn frequencies(classes: &[String], examples: &[Example]) -> Vec<usize> {
    let mut counts = vec![0; classes.len()];
    let mut count = |class: i32| {
        if let Some(count) = usize::try_from(class).ok().and_then(|class| counts.get_mut(class)) {
            *count += 1;
        }
    };
    for example in examples {
        match &example.target {
            Target::Class(class) => count(*class),
            Target::Classes(all) => all.iter().for_each(|&class| count(class)),
            _ => unreachable!("tables have classes"),
        }
    }
    counts
}
