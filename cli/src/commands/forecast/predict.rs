//! `gru predict` with a run of `gru forecast`.

use std::path::Path;

use anyhow::{Result, ensure};
use gru_wgpu::{DeviceKind, Network};

use super::config::ForecastConfig;
use super::series::ForecastRun;
use crate::commands::training_run::TrainingRun;
use crate::data::windows::{WindowSizes, Windows};
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
    ensure!(
        *params.layout() == config.layout()?,
        "the model in {} does not match its config.toml",
        quote_path(folder.path())
    );
    let series = config.series(csv)?;
    let WindowSizes { input, horizon, .. } = config.windows;
    let rows = series.values().len();
    ensure!(
        rows >= input,
        "{} has {rows} rows, and the model forecasts from the last {input}",
        quote_path(csv)
    );
    let network = Network::new(params, &open(kind)?)?;
    let windows = Windows::scaled(&series.columns, input, horizon, config.scales());
    let forecasts = windows.forecast(&[rows], 1, |x| network.forward(x))?;
    windows.check(&[rows], &forecasts)?;
    if series.filled > 0 {
        log(format_args!("{} missing values interpolated", series.filled));
    }
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(["ahead", "predicted"])?;
    for (ahead, value) in (1..).zip(&forecasts) {
        csv.serialize((ahead, value))?;
    }
    Ok(csv.into_inner().map_err(|error| error.into_error())?)
}
