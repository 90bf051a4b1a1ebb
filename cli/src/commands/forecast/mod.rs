//! `gru forecast`: trains a forecaster on a series and compares it with baselines that need no
//! model.

mod config;
mod plot;
pub mod predict;
mod report;
mod series;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use gru_wgpu::DeviceKind;

use super::training_run::{self, RunTarget};
use crate::data::csv_table::CsvOptions;
use crate::data::fingerprint::{canonical, fingerprint};
use crate::data::series::{Series, SeriesSource};
use crate::data::windows::{WindowSizes, WindowSplit, Windows};
use crate::rundir::checkpoints::{CheckpointInterval, interval};
use crate::rundir::config::RunConfig;
use crate::rundir::folder::RunDir;
use crate::rundir::settings::{ResumeOverrides, TrainingSettings};
use crate::ui::arguments::{delimiter, yes_or_no};
use crate::ui::output::check_directory;
use crate::ui::outputs::OutputFiles;
use config::{ForecastConfig, ForecastModelSettings, ForecastSettings, ForecastTask, ScaledColumn};
use series::ForecastRun;

/// Train a forecaster on a real series and print its error beside those of baselines.
///
/// Reads a numeric column of a CSV file, or several, holds out its last part, trains a GRU with a
/// linear head on windows of the rest (by Adam, its learning rate falling along half a cosine),
/// forecasts the held-out part from every row of it, and writes forecast.svg and loss.svg. Missing
/// values are filled by straight lines first, wherever they are. With --run all is kept in a
/// folder: config.toml, metrics.csv, curves.svg, forecast.svg, model.safetensors and
/// checkpoint.safetensors. The last two are written after the first epoch, every so often, at the
/// end, and at Ctrl-C or SIGTERM, which end the run.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    gru forecast data/mauna_loa_co2_weekly.csv\n  \
    gru forecast sales.csv --column revenue --season 7 --input 28 --horizon 14\n  \
    gru forecast sales.csv --column revenue,visitors,price --season 7 --input 28 --horizon 14\n  \
    gru forecast data/mauna_loa_co2_weekly.csv --device software --epochs 2\n\n  \
    gru forecast data/mauna_loa_co2_weekly.csv --run co2\n  \
    gru forecast --resume co2\n  \
    gru forecast --resume co2 --epochs 40 --learning-rate 0.002\n  \
    gru predict co2 newer.csv\n\n\
    `gru run FOLDER/model.safetensors` runs the model's GRU. With --reset after PyTorch loads it as a module\n\
    with an nn.GRU called gru and an nn.Linear called head.")]
pub struct ForecastArgs {
    /// The CSV file; with --resume only where it has moved.
    #[arg(required_unless_present = "resume")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    columns: SeriesColumnArgs,
    #[command(flatten)]
    sizes: WindowSizes,
    #[command(flatten)]
    model: ForecastModelSettings,
    #[command(flatten)]
    settings: ForecastSettings,
    #[command(flatten)]
    overrides: ResumeOverrides,
    /// The directory for forecast.svg and loss.svg.
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Keep the run in this folder, pictures included.
    #[arg(long, value_name = "FOLDER", conflicts_with = "output", group = "kept")]
    run: Option<PathBuf>,
    /// Start anew in the folder of another run, whose files are lost.
    #[arg(long, requires = "run")]
    force: bool,
    /// Go on with a run that was interrupted, with its own data and settings: on the same device to
    /// the same bits as if it had not been. Of the settings --epochs, --learning-rate and --clip
    /// may be others from there on; config.toml notes what they were. Where the data have moved,
    /// the CSV file says where to.
    #[arg(long, value_name = "FOLDER", group = "kept",
        conflicts_with_all = ["run", "force", "output", "SeriesColumnArgs", "WindowSizes", "ForecastModelSettings",
            "ForecastSettings"])]
    resume: Option<PathBuf>,
    /// Write a checkpoint after so many updates, or with s, m or h behind it after so much time.
    /// Looked at between updates, about four times a second and after every 16.
    #[arg(long, value_name = "UPDATES|TIME", default_value = "10m", value_parser = interval,
        requires = "kept")]
    checkpoint_every: CheckpointInterval,
}

/// What is forecast from which columns.
#[derive(clap::Args, Debug)]
struct SeriesColumnArgs {
    /// The column's name, or its number from 1 [default: the last numeric one]. After a comma,
    /// others that the model sees besides, each scaled by its own changes; the first is forecast.
    #[arg(long, value_name = "NAME[,NAME…]")]
    column: Option<String>,
    /// The character between cells.
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = delimiter)]
    delimiter: u8,
    /// A word that means a missing value, besides an empty cell, NA, N/A, null and none.
    #[arg(long, value_name = "WORD")]
    missing: Option<String>,
    /// Whether the first row names the columns [default: judged by its looks].
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    header: Option<bool>,
}

/// Runs the command.
pub fn run(arguments: &ForecastArgs, kind: DeviceKind, out: &mut impl Write) -> Result<ExitCode> {
    let ForecastArgs { csv, output, run, force, resume, checkpoint_every, .. } = arguments;
    // What can be refused is refused before the work, not after it.
    let (target, run) = match (resume, csv.as_deref()) {
        (Some(path), csv) => {
            let read = |folder: &RunDir| read_again(folder, csv);
            RunTarget::resume(path, read, |before| arguments.overrides.apply_to(before))?
        }
        (None, Some(csv)) => {
            let target = match run {
                Some(path) => RunTarget::new(path, *force, [csv])?,
                None => {
                    check_pictures(output, csv)?;
                    RunTarget::none()
                }
            };
            (target, arguments.start(csv, run.is_some())?)
        }
        (None, None) => bail!("expected a CSV file or --resume"), // clap has asked for one
    };
    training_run::train(&run, target, *checkpoint_every, kind, |outcome, folder, _| {
        report::report(&run, outcome, folder, output, out)
    })
}

/// `Ok` when the pictures of a run without a folder can be written, and not over its data.
fn check_pictures(output: &Path, csv: &Path) -> Result<()> {
    check_directory(output)?;
    let paths = report::PICTURES.map(|name| output.join(name));
    let pictures = paths.iter().map(|path| ("the picture", &**path, "svg"));
    OutputFiles::check(pictures, [csv]).map(drop).map_err(|error| {
        anyhow!("{error}: --output DIR puts it elsewhere, --run FOLDER keeps the run there")
    })
}

/// A run as its folder says, on its file or where that has moved to.
fn read_again(folder: &RunDir, csv: Option<&Path>) -> Result<ForecastRun> {
    let mut config = ForecastConfig::read(&folder.config())?;
    let series = config.read_again(csv)?;
    folder.check_inputs([&*config.data.csv])?;
    let split = WindowSplit::new(&config.windows, series.values().len())?;
    Ok(ForecastRun { config, series, split, is_validated: true })
}

impl ForecastArgs {
    /// A new run, and whether it is kept.
    fn start(&self, csv: &Path, is_kept: bool) -> Result<ForecastRun> {
        let SeriesColumnArgs { column, delimiter, missing, header } = &self.columns;
        let options = CsvOptions {
            delimiter: *delimiter,
            missing: missing.iter().cloned().collect(),
            header: *header,
        };
        let series = Series::read(csv, column.as_deref(), options)?;
        let split = WindowSplit::new(&self.sizes, series.values().len())?;
        let WindowSizes { input, horizon, .. } = self.sizes;
        let scales = Windows::new(&series.columns, split.row, input, horizon)?.scales;
        let columns = series.keys.iter().cloned().zip(scales);
        let settings = &self.settings;
        let config = ForecastConfig {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task: ForecastTask::Forecast,
            data: SeriesSource {
                // What is not kept may come through a pipe, which is read but once.
                csv: if is_kept { canonical(csv)? } else { csv.to_owned() },
                delimiter: (*delimiter).into(),
                header: series.has_header,
                missing: missing.clone(),
                fingerprint: if is_kept { fingerprint([Some(csv), None])? } else { String::new() },
            },
            windows: self.sizes.clone(),
            columns: columns.map(|(name, scale)| ScaledColumn { name, scale }).collect(),
            model: self.model.clone(),
            training: settings.with_resumable(self.overrides.apply_to(settings.resumable())),
            changes: Vec::new(),
        };
        Ok(ForecastRun { config, series, split, is_validated: is_kept })
    }
}
