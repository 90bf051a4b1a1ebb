//! `gru forecast`: trains a model that forecasts a series, and compares it with baselines.

mod config;
mod plot;
pub mod predict;
mod report;
mod series;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use gru_wgpu::DeviceKind;

use super::training_run::{self, RunTarget};
use crate::data::fingerprint::{canonical, fingerprint};
use crate::data::series::{SeriesSource, SeriesTable};
use crate::data::table_options::TableArgs;
use crate::data::windows::{WindowSizes, Windows};
use crate::rundir::checkpoints::{CheckpointInterval, interval};
use crate::rundir::config::RunConfig;
use crate::rundir::folder::RunDir;
use crate::rundir::settings::{ResumeOverrides, TrainingSettings};
use crate::ui::output::{check_directory, quote_path};
use crate::ui::outputs::OutputFiles;
use config::{ForecastConfig, ForecastModelSettings, ForecastSettings, ForecastTask, SeriesScales};
use series::{ForecastRun, split};

/// Train a model that forecasts a series from a CSV file, and compare it with baselines.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct ForecastArgs {
    /// The CSV file. With --resume only if it has moved.
    #[arg(required_unless_present = "resume")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    columns: SeriesColumnArgs,
    #[command(flatten)]
    table: TableArgs,
    #[command(flatten)]
    sizes: WindowSizes,
    #[command(flatten)]
    model: ForecastModelSettings,
    #[command(flatten)]
    settings: ForecastSettings,
    #[command(flatten)]
    overrides: ResumeOverrides,
    #[arg(long, default_value = ".")]
    output: PathBuf,
    #[arg(long, conflicts_with = "output", group = "kept")]
    run: Option<PathBuf>,
    #[arg(long, requires = "run")]
    force: bool,
    #[arg(long, group = "kept",
        conflicts_with_all = ["run", "force", "output", "SeriesColumnArgs", "TableArgs", "WindowSizes", "ForecastModelSettings",
            "ForecastSettings"])]
    resume: Option<PathBuf>,
    #[arg(long, default_value = "10m", value_parser = interval,
        requires = "kept")]
    checkpoint_every: CheckpointInterval,
}

/// The columns of the series.
#[derive(clap::Args, Debug)]
struct SeriesColumnArgs {
    #[arg(long)]
    column: Option<String>,
    #[arg(long)]
    series: Option<String>,
    #[arg(long)]
    missing: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  gru forecast data/mauna_loa_co2_weekly.csv
  gru forecast sales.csv --column revenue --season 7 --input 28 --horizon 14
  gru forecast data/mauna_loa_co2_weekly.csv --run co2
  gru forecast --resume co2 --epochs 40";

const DETAILS: &str = "\
Trains a GRU with a linear head on windows of the series (Adam, half-cosine schedule), forecasts
the held-out end from every row of it, and writes forecast.svg and loss.svg. Missing values are
interpolated linearly.

With --run, the folder gets config.toml, metrics.csv, curves.svg, forecast.svg, model.safetensors
and checkpoint.safetensors. The last two are written after the first epoch, at intervals
(--checkpoint-every), at the end, and at Ctrl-C or SIGTERM, which stop the run. `gru predict`
forecasts from new data with it:

  gru forecast sales.csv --column revenue,visitors,price --run sales
  gru predict sales newer.csv

`gru run FOLDER/model.safetensors` runs the model's GRU. With --reset after, PyTorch loads the
file into a module with an nn.GRU named gru and an nn.Linear named head.";

/// Runs the command.
pub fn run(arguments: &ForecastArgs, kind: DeviceKind, out: &mut impl Write) -> Result<ExitCode> {
    let ForecastArgs { csv, output, run, force, resume, checkpoint_every, .. } = arguments;
    // Refuses bad arguments before the work.
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

/// Checks that the pictures of a run without a folder can be written, and do not replace its data.
fn check_pictures(output: &Path, csv: &Path) -> Result<()> {
    check_directory(output)?;
    let paths = report::PICTURES.map(|name| output.join(name));
    let pictures = paths.iter().map(|path| ("the picture", &**path, "svg"));
    OutputFiles::check(pictures, [csv]).map(drop).map_err(|error| {
        anyhow!("{error}: --output FOLDER puts it elsewhere, --run FOLDER keeps the run there")
    })
}

/// Reads a run's configuration and its data, from where they are or have moved to.
fn read_again(folder: &RunDir, csv: Option<&Path>) -> Result<ForecastRun> {
    let mut config = ForecastConfig::read(&folder.config())?;
    let table = config.read_again(csv)?;
    folder.check_inputs([&*config.data.csv])?;
    // The file has not changed, so only the sizes in the configuration can be wrong.
    let shown = || format!("{}: [windows]", quote_path(&folder.config()));
    ForecastRun::new(config, table, true).with_context(shown)
}

impl ForecastArgs {
    /// Starts a new run.
    pub fn start(&self, csv: &Path, is_kept: bool) -> Result<ForecastRun> {
        let SeriesColumnArgs { column, series, missing } = &self.columns;
        let options = self.table.options(missing.clone())?;
        let table = SeriesTable::read(csv, column.as_deref(), series.as_deref(), options)?;
        let WindowSizes { input, horizon, .. } = self.sizes;
        let splits = split(&self.sizes, &table).with_context(|| quote_path(csv))?;
        let scales = table.series.iter().zip(&splits).map(|(series, split)| {
            let scales = Windows::new(&series.columns, split.row, input, horizon)?.scales;
            Ok(SeriesScales { name: series.label.clone(), scales })
        });
        let scales = scales.collect::<Result<_>>()?;
        let settings = &self.settings;
        let config = ForecastConfig {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task: ForecastTask::Forecast,
            data: SeriesSource {
                // Data that are not kept may come from a pipe, which can be read only once.
                csv: if is_kept { canonical(csv)? } else { csv.to_owned() },
                columns: table.keys.clone(),
                series: table.series_column.clone(),
                fingerprint: if is_kept { fingerprint([Some(csv), None])? } else { String::new() },
                format: table.format.clone(),
            },
            windows: self.sizes.clone(),
            series: scales,
            model: self.model.clone(),
            training: settings.with_resumable(self.overrides.apply_to(settings.resumable())),
            changes: Vec::new(),
        };
        ForecastRun::new(config, table, is_kept).with_context(|| quote_path(csv))
    }
}
