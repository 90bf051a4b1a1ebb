//! [`SequenceRun`]: the sequences that `gru train` trains on, and the baseline.

use anyhow::{Context, Result};
use gru_wgpu::{Dataset, ParamLayout, Params};

use super::baselines::{Baselines, LabelOrder, MajorityBaseline, NumberBaselines};
use super::config::{TrainConfig, TrainSettings};
use super::curves::{CurvesMetric, CurvesText, draw_curves};
use crate::commands::training_run::TrainingRun;
use crate::data::csv_table::printable;
use crate::data::features::{NumericLabel, WindowSettings};
use crate::data::sequences::{SequenceExamples, SequenceSource, SequenceSplit};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::KeptModel;
use crate::rundir::settings::SettingsChange;
use crate::ui::numbers::format_sig3;
use crate::ui::output::{log, quote, quote_path, some_of, warn};

/// A run of `gru train`. It holds only numbers; the tables that they come from are freed after
/// [`Self::new`].
pub struct SequenceRun {
    pub config: TrainConfig,
    pub examples: SequenceExamples,
    pub baselines: Baselines,
    /// The parameters of another model that a new run starts from.
    pub init: Option<Params>,
}

impl SequenceRun {
    pub fn new(config: TrainConfig, split: SequenceSplit) -> Result<Self> {
        let task = config.task_of_sequences();
        let examples = split.into_examples(task, &config.features)?;
        let SequenceExamples { train, valid, last_before, is_latest, .. } = &examples;
        let baselines = match &config.columns.numeric {
            Some(numeric) => {
                let order = LabelOrder { last_before: *last_before, is_latest: *is_latest };
                let numbers = NumberBaselines::new(numeric, task, valid, order);
                let path = config.data.valid.as_ref().unwrap_or(&config.data.train);
                let shown =
                    || format!("{}: column {}", quote_path(path), quote(&config.columns.label));
                Baselines::Numbers(numbers.with_context(shown)?)
            }
            None => Baselines::Classes(MajorityBaseline::new(task, train, valid)?),
        };
        Ok(Self { config, examples, baselines, init: None })
    }
}

impl SequenceRun {
    /// Describes the windows, and warns if few of them continue others.
    fn announce_windows(&self) {
        let TrainConfig { windows, training, .. } = &self.config;
        let Some(WindowSettings { window, stride }) = *windows else { return };
        let count = self.examples.train.data().len();
        if self.config.task_of_sequences().carried().is_none() {
            log(format_args!(
                "windows of {window} rows, {stride} apart: {count} to train on; each has the label of its last row"
            ));
            return;
        }
        let rows = training.batch.min(count);
        let each = count.div_ceil(rows.max(1));
        log(format_args!(
            "windows of {window} rows, {stride} apart: {count} to train on, in batches of {rows} whose rows read {each} \
             one after the other; the state is carried from window to window"
        ));
        if each < 4 && count > 1 {
            warn(format_args!(
                "the state is carried over {each} windows at most; a smaller --batch or --window carries it further"
            ));
        }
    }
}

impl TrainingRun for SequenceRun {
    type Config = TrainConfig;
    type Settings = TrainSettings;

    const KEPT: KeptModel = KeptModel::Best;
    const DATA_TABLES: &'static str = "[data] or [windows]";

    fn config(&self) -> &TrainConfig {
        &self.config
    }

    fn examples_name(&self) -> &'static str {
        if self.config.windows.is_some() { "windows" } else { "sequences" }
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

    fn init(&self) -> Option<&Params> {
        self.init.as_ref()
    }

    fn train(&self) -> impl Dataset {
        self.examples.train.data()
    }

    fn valid(&self) -> impl Dataset {
        self.examples.valid.data()
    }

    fn data_note(&self) -> String {
        let SequenceSource { holdout, time, fingerprint, format, .. } = &self.config.data;
        let windows = &self.config.windows;
        format!("{:?}", (fingerprint, holdout, time, format, windows))
    }

    fn name_examples(&self, examples: &[usize]) -> String {
        let name = |&example: &usize| {
            let (sequence, rows) = self.examples.train.place(example);
            let name = quote(&self.examples.names[sequence]);
            let rows = rows.map(|rows| format!(" rows {} to {}", rows.start + 1, rows.end));
            format!("{name}{}", rows.unwrap_or_default())
        };
        format!("sequences {}", some_of(examples.iter().map(name)))
    }

    fn announce(&self) {
        let TrainConfig { columns, features, .. } = &self.config;
        let task = self.config.task_of_sequences();
        let inputs: usize = features.iter().map(|feature| feature.inputs()).sum();
        let SequenceExamples { train, valid, .. } = &self.examples;
        let [train_count, valid_count] = [train, valid].map(|set| set.sequences().len());
        let (label, labelled) = (quote(&columns.label), task.labelled());
        let labels = match columns.numeric {
            Some(NumericLabel { mean, deviation, .. }) => format!(
                "numbers of {label}, one a {labelled}: mean {}, standard deviation {}",
                format_sig3(mean),
                format_sig3(deviation)
            ),
            None => format!("classes of {label}, one a {labelled}: {}", columns.classes.len()),
        };
        log(format_args!(
            "sequences: {train_count} to train on, {valid_count} held out; inputs: {inputs}; {labels}"
        ));
        self.announce_windows();
        for (column, words) in self.config.words() {
            let column = quote(column);
            log(format_args!("column {column} is read as words, of which there are {words}"));
        }
    }

    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String> {
        let Self { config, examples, baselines, .. } = self;
        let file = config.data.train.file_name().unwrap_or_default().to_string_lossy();
        let [train, valid] = [&examples.train, &examples.valid].map(|set| set.sequences().len());
        let (baseline, metric) = match (baselines, &config.columns.numeric) {
            (Baselines::Numbers(numbers), Some(numeric)) => {
                let deviation = numeric.deviation;
                (("mean", numbers.loss, numbers.mean.rmse), CurvesMetric::Rmse { deviation })
            }
            (Baselines::Numbers(_), None) => unreachable!("numbers have a scale"),
            (Baselines::Classes(majority), _) => (
                ("by the classes' frequency", majority.loss, majority.accuracy),
                CurvesMetric::Accuracy,
            ),
        };
        let text = CurvesText {
            title: &printable(&format!("{file}: {}", config.columns.label)),
            subtitle: &format!(
                "{}, sequences: {train} to train on, {valid} held out",
                config.layout()?.config()
            ),
            metric,
            baseline,
        };
        draw_curves(epochs, &text)
    }
}
