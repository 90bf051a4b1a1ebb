//! `gru predict` with a run of `gru forecast`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gru_wgpu::{DeviceKind, Network};
use ndarray::Array2;

use super::config::ForecastConfig;
use super::series::ForecastRun;
use crate::commands::training_run::TrainingRun;
use crate::data::series::Series;
use crate::rundir::config::{FORECAST, RunConfig};
use crate::rundir::folder::RunDir;
use crate::ui::device::open;
use crate::ui::output::{log, quote_path};
use crate::ui::outputs::OutputFiles;

/// Returns the rows after the file's last row as CSV: the number of rows ahead, and the value.
///
/// # Errors
/// Also if one of `outputs` is the run's data.
pub fn forecast(
    folder: &RunDir,
    csv: &Path,
    outputs: &OutputFiles,
    kind: DeviceKind,
) -> Result<Vec<u8>> {
    let config = ForecastConfig::read(&folder.config())?;
    outputs.check_kept(&config.data.csv, "the run needs to resume")?;
    let params = folder.read_model(ForecastRun::KEPT, FORECAST)?;
    folder.check_layout(&params, &config.layout()?)?;
    let table = config.table(csv)?;
    let network = Network::new(params, &open(kind)?)?;
    let forecast = |series| forecast_series(&config, series, &network);
    let forecasts = table.series.iter().map(forecast).collect::<Result<Vec<_>>>();
    let forecasts = forecasts.with_context(|| quote_path(csv))?;
    let filled: usize = table.series.iter().map(|series| series.filled).sum();
    if filled > 0 {
        log(format_args!("{filled} missing values interpolated"));
    }
    let mut csv = csv::Writer::from_writer(Vec::new());
    let header = table.series_column.as_deref().into_iter().chain(["ahead", "predicted"]);
    csv.write_record(header)?;
    for (series, forecasts) in table.series.iter().zip(&forecasts) {
        for (ahead, value) in (1..).zip(forecasts) {
            let (ahead, value) = (format!("{ahead}"), format!("{value}"));
            csv.write_record(series.label.iter().chain([&ahead, &value]))?;
        }
    }
    Ok(csv.into_inner().map_err(|error| error.into_error())?)
}

/// Returns the forecast of the rows after the last row of a series.
fn forecast_series(
    config: &ForecastConfig,
    series: &Series,
    network: &Network,
) -> Result<Array2<f64>> {
    let (windows, rows) = (config.windows(series)?, series.values().len());
    ensure!(
        rows >= windows.input,
        "{rows} rows{} are too few: the model forecasts from the last {}",
        series.of_series(),
        windows.input
    );
    let forecasts = windows.forecast(&[rows], 1, |x| network.forward(x))?;
    windows.check(&[rows], &forecasts)?;
    Ok(forecasts)
}
