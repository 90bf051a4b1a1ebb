//! [`ForecastRun`]: the windows of a series that `gru forecast` trains on.

use anyhow::Result;
use gru_wgpu::{Dataset, ParamLayout};

use super::config::{ForecastConfig, ForecastSettings};
use super::plot;
use crate::commands::training_run::TrainingRun;
use crate::data::series::{Series, SeriesSource, SeriesTable, with_series};
use crate::data::windows::{Origin, WindowSet, WindowSizes, WindowSplit, Windows};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::KeptModel;
use crate::rundir::settings::SettingsChange;
use crate::ui::output::{log, quote, quote_path, some_of};
use crate::ui::plot::{GREY, ORANGE};

/// A run of `gru forecast`.
pub struct ForecastRun {
    pub config: ForecastConfig,
    pub table: SeriesTable,
    /// The split of each series.
    pub splits: Vec<WindowSplit>,
    training: Vec<Origin>,
    testing: Vec<Origin>,
    /// True if each epoch is validated on the held-out part. Without a run folder nobody sees the
    /// result.
    pub is_validated: bool,
}

impl ForecastRun {
    pub fn new(config: ForecastConfig, table: SeriesTable, is_validated: bool) -> Result<Self> {
        for series in &table.series {
            let windows = config.windows(series)?;
            with_series(series.label.as_deref(), windows.check_inputs())?;
        }
        let splits = split(&config.windows, &table)?;
        let origins = |rows: fn(&WindowSplit) -> &[usize]| {
            let of = |(series, split)| {
                rows(split).iter().map(move |&row| Origin { series, row }).collect::<Vec<_>>()
            };
            splits.iter().enumerate().flat_map(of).collect()
        };
        let (training, testing) =
            (origins(|split| &split.training), origins(|split| &split.testing));
        Ok(Self { config, table, splits, training, testing, is_validated })
    }

    /// Returns the windows of a series.
    pub fn windows<'a>(&self, series: &'a Series) -> Windows<'a> {
        self.config.windows(series).expect("the run knows its series")
    }

    fn set<'a>(&'a self, origins: &'a [Origin]) -> WindowSet<'a> {
        let windows = self.table.series.iter().map(|series| self.windows(series));
        WindowSet { windows: windows.collect(), origins }
    }
}

/// Splits each series by itself, so that its end is held out.
pub fn split(sizes: &WindowSizes, table: &SeriesTable) -> Result<Vec<WindowSplit>> {
    let split = |series: &Series| {
        with_series(series.label.as_deref(), WindowSplit::new(sizes, series.values().len()))
    };
    table.series.iter().map(split).collect()
}

impl TrainingRun for ForecastRun {
    type Config = ForecastConfig;
    type Settings = ForecastSettings;

    const KEPT: KeptModel = KeptModel::Last;
    const DATA_TABLES: &'static str = "[data], [windows] or [[series]]";

    fn config(&self) -> &ForecastConfig {
        &self.config
    }

    fn examples_name(&self) -> &'static str {
        "windows"
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
        self.set(&self.training)
    }

    fn valid(&self) -> impl Dataset {
        self.set(if self.is_validated { &self.testing } else { &[] })
    }

    fn data_note(&self) -> String {
        let ForecastConfig { data, windows, series: scales, .. } = &self.config;
        let SeriesSource { csv: _, columns, series, fingerprint, format } = data;
        format!("{:?}", (fingerprint, columns, series, format, windows, scales))
    }

    /// Names each example by the first row that it forecasts, counted without the header, and with
    /// several series in its own.
    fn name_examples(&self, examples: &[usize]) -> String {
        let rows = examples.iter().map(|&example| {
            let Origin { series, row } = self.training[example];
            format!("{}{}", row + 1, self.table.series[series].of_series())
        });
        format!("the windows before rows {}", some_of(rows))
    }

    fn announce(&self) {
        let Self { config, table, .. } = self;
        let rows: usize = table.series.iter().map(|series| series.values().len()).sum();
        let filled: usize = table.series.iter().map(|series| series.filled).sum();
        let shown = quote_path(&config.data.csv);
        let several = match &table.series_column {
            Some(column) => format!("{} series by {}, ", table.series.len(), quote(column)),
            None => String::new(),
        };
        log(format_args!(
            "{shown}: {several}{} {}, {rows} rows, {filled} missing ones interpolated",
            if table.names.len() == 1 { "column" } else { "columns" },
            table.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
        ));
        let WindowSizes { input, horizon, .. } = config.windows;
        let (training, testing) = (self.training.len(), self.testing.len());
        log(format_args!(
            "{input} rows in, {horizon} out: {training} windows to train on, {testing} held out"
        ));
    }

    fn curves(&self, epochs: &[EpochMetrics]) -> Result<String> {
        let title = format!("{}: loss", self.table.name());
        let train = epochs.iter().map(|epoch| f64::from(epoch.train_loss)).collect();
        let valid = epochs.iter().map(|epoch| epoch.valid_loss).collect();
        plot::losses(&title, &[("training", train, GREY), ("held out", valid, ORANGE)])
    }
}
