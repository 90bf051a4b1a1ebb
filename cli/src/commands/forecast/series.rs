//! [`ForecastRun`]: the windows of a series that `gru forecast` trains on.

use anyhow::Result;
use gru_wgpu::{Dataset, ParamLayout};

use super::config::{ForecastConfig, ForecastSettings};
use super::plot;
use crate::commands::training_run::TrainingRun;
use crate::data::series::{Series, SeriesSource};
use crate::data::windows::{WindowSet, WindowSizes, WindowSplit, Windows};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::KeptModel;
use crate::rundir::settings::SettingsChange;
use crate::ui::output::{log, quote, quote_path, some_of};
use crate::ui::plot::{GREY, ORANGE};

/// A run of `gru forecast`.
pub struct ForecastRun {
    pub config: ForecastConfig,
    pub series: Series,
    pub split: WindowSplit,
    /// True if each epoch is validated on the held-out part. Without a run folder nobody sees the
    /// result.
    pub is_validated: bool,
}

impl ForecastRun {
    /// Returns the windows of the series.
    pub fn windows(&self) -> Windows<'_> {
        let WindowSizes { input, horizon, .. } = self.config.windows;
        Windows::scaled(&self.series.columns, input, horizon, self.config.scales())
    }
}

impl TrainingRun for ForecastRun {
    type Config = ForecastConfig;
    type Settings = ForecastSettings;

    const EXAMPLES: &'static str = "windows";
    const KEPT: KeptModel = KeptModel::Last;
    const DATA_TABLES: &'static str = "[data], [windows] or [[columns]]";

    fn config(&self) -> &ForecastConfig {
        &self.config
    }

    fn settings(&self) -> &ForecastSettings {
        &self.config.training
    }

    fn settings_mut(&mut self) -> (&mut ForecastSettings, &mut Vec<SettingsChange>) {
        (&mut self.config.training, &mut self.config.changes)
    }

    fn layout(&self) -> Result<ParamLayout> {
        self.config.layout()
    }

    fn train(&self) -> impl Dataset {
        WindowSet { windows: self.windows(), origins: &self.split.training }
    }

    fn valid(&self) -> impl Dataset {
        let origins = if self.is_validated { &self.split.testing[..] } else { &[] };
        WindowSet { windows: self.windows(), origins }
    }

    fn data_note(&self) -> String {
        let ForecastConfig { data, windows, columns, .. } = &self.config;
        let SeriesSource { csv: _, delimiter, decimal, thousands, header, missing, fingerprint } =
            data;
        let marks = (delimiter, decimal, thousands);
        format!("{:?}", (fingerprint, marks, header, missing, windows, columns))
    }

    /// Names each example by the first row that it forecasts, counted without the header.
    fn name_examples(&self, examples: &[usize]) -> String {
        let rows = examples.iter().map(|&example| (self.split.training[example] + 1).to_string());
        format!("the windows before rows {}", some_of(rows))
    }

    fn announce(&self) {
        let Self { config, series, split, .. } = self;
        let (rows, filled) = (series.values().len(), series.filled);
        let shown = quote_path(&config.data.csv);
        log(format_args!(
            "{shown}: {} {}, {rows} rows, {filled} missing ones interpolated",
            if series.names.len() == 1 { "column" } else { "columns" },
            series.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
        ));
        let WindowSizes { input, horizon, .. } = config.windows;
        let (training, testing) = (split.training.len(), split.testing.len());
        log(format_args!(
            "{input} rows in, {horizon} out: {training} windows to train on, {testing} held out"
        ));
    }

    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String> {
        let title = format!("{}: loss", self.series.name());
        let train = epochs.iter().map(|epoch| f64::from(epoch.train_loss)).collect();
        let valid = epochs.iter().map(|epoch| epoch.valid_loss).collect();
        plot::losses(&title, &[("training", train, GREY), ("held out", valid, ORANGE)])
    }
}
