//! What `gru predict` says of a series by a forecaster's run.

use std::path::Path;

use anyhow::{Result, ensure};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{DeviceKind, Network};

use super::config::{Config, Sizes};
use crate::data::windows::Windows;
use crate::rundir::folder::RunDir;
use crate::ui::output::{log, open, quote_path};

/// The rows after the last one of the file, as a CSV file: how far ahead, and the value.
pub fn forecast(folder: &RunDir, csv: &Path, kind: DeviceKind) -> Result<Vec<u8>> {
    let config = Config::read(&folder.config())?;
    let params =
        safetensors::load_network(folder.model(), &safetensors::SafetensorsOptions::new())?;
    ensure!(
        *params.layout() == config.layout()?,
        "the model in {} is another one than its config.toml says",
        quote_path(folder.path())
    );
    let series = config.series(csv)?;
    let Sizes { input, horizon, .. } = config.windows;
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
