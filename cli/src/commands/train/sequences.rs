//! [`SequenceRun`]: the sequences that `gru train` trains on, and the baseline.

use anyhow::Result;
use gru_wgpu::{Dataset, ParamLayout};

use super::baselines::{Baselines, MajorityBaseline, NumberBaselines};
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
use crate::ui::output::{log, quote, some_of};

/// A run of `gru train`. It holds only numbers; the tables that they come from are freed after
/// [`Self::new`].
pub struct SequenceRun {
    pub config: TrainConfig,
    pub examples: SequenceExamples,
    pub baselines: Baselines,
}

impl SequenceRun {
    pub fn new(config: TrainConfig, split: SequenceSplit) -> Result<Self> {
        let task = config.task_of_sequences();
        let examples = split.into_examples(task, &config.features)?;
        let SequenceExamples { train, valid, .. } = &examples;
        let baselines = match &config.columns.numeric {
            Some(numeric) => Baselines::Numbers(NumberBaselines::new(numeric, task, valid)?),
            None => Baselines::Classes(MajorityBaseline::new(task, train, valid)?),
        };
        Ok(Self { config, examples, baselines })
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
        let TrainConfig { columns, features, windows, .. } = &self.config;
        let inputs: usize = features.iter().map(|feature| feature.inputs()).sum();
        let SequenceExamples { train, valid, .. } = &self.examples;
        let [train_count, valid_count] = [train, valid].map(|set| set.sequences().len());
        let label = quote(&columns.label);
        let per = self.config.task_of_sequences().per().word();
        let labels = match columns.numeric {
            Some(NumericLabel { mean, deviation, .. }) => format!(
                "numbers of {label}, one a {per}: mean {}, standard deviation {}",
                format_sig3(mean),
                format_sig3(deviation)
            ),
            None => format!("classes of {label}, one a {per}: {}", columns.classes.len()),
        };
        log(format_args!(
            "sequences: {train_count} to train on, {valid_count} held out; inputs: {inputs}; {labels}"
        ));
        if let Some(WindowSettings { window, stride }) = windows {
            let carried = match self.config.task_of_sequences().carried() {
                Some(_) => "the state is carried from window to window",
                None => "the label of a window is that of its last row",
            };
            log(format_args!(
                "windows of {window} rows, {stride} rows apart: {} to train on; {carried}",
                train.data().len()
            ));
        }
        for (column, words) in self.config.words() {
            let column = quote(column);
            log(format_args!("column {column} is read as words, of which there are {words}"));
        }
    }

    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String> {
        let Self { config, examples, baselines } = self;
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
