//! `gru forecast`: trains a forecaster on a series and holds it against rules that need no model.

mod config;
mod job;
mod model;
mod plot;
pub mod predict;
mod report;
mod runner;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use gru_wgpu::DeviceKind;

use crate::data::csv_table::CsvOptions;
use crate::data::fingerprint::{fingerprint, whole};
use crate::data::series::Series;
use crate::data::windows::Windows;
use crate::rundir::checkpoints::{Every, every};
use crate::rundir::folder::RunDir;
use crate::rundir::overrides::{PaceArguments, Paced};
use crate::ui::arguments::{delimiter, yes_or_no};
use crate::ui::output::{check_directory, open};
use config::{Column, Config, Data, Model, Settings, Sizes, Task};
use job::{Job, Parts};
use runner::Runner;

/// Train a forecaster on a real series and print its error beside simple rules.
///
/// Reads a numeric column of a CSV file, or several, holds out its last part, trains a GRU with a linear head
/// on windows of the rest (by Adam, its learning rate falling along half a cosine), forecasts the held-out part from every row of it, and writes
/// forecast.svg and loss.svg. Missing values are filled by straight lines first, wherever they are.
/// With --run all is kept in a folder: config.toml, metrics.csv, curves.svg, forecast.svg, model.safetensors and
/// checkpoint.safetensors. The last two are written after the first epoch, every so often, at the end, and at
/// Ctrl-C or SIGTERM, which end the run.
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
pub struct Arguments {
    /// The CSV file; with --resume only where it has moved.
    #[arg(required_unless_present = "resume")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    pace: PaceArguments,
    /// The directory for forecast.svg and loss.svg.
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Keep the run in this folder, pictures included.
    #[arg(long, value_name = "FOLDER", conflicts_with = "output", group = "kept")]
    run: Option<PathBuf>,
    /// Start anew in the folder of another run, whose files are lost.
    #[arg(long, requires = "run")]
    force: bool,
    /// Go on with a run that was interrupted, with its own data and settings: on the same device to the same
    /// bits as if it had not been. Of the settings --epochs, --learning-rate and --clip may be others from there
    /// on; config.toml notes what they were. Where the data have moved, the CSV file says where to.
    #[arg(long, value_name = "FOLDER", group = "kept",
        conflicts_with_all = ["run", "force", "output", "What", "Sizes", "Model", "Settings"])]
    resume: Option<PathBuf>,
    /// Write a checkpoint after so many updates, or with s, m or h behind it after so much time. Looked at
    /// between updates, about four times a second and after every 16.
    #[arg(long, value_name = "UPDATES|TIME", default_value = "10m", value_parser = every,
        requires = "kept")]
    checkpoint_every: Every,
}

/// What is forecast from which columns.
#[derive(clap::Args, Debug)]
struct What {
    /// The column's name, or its number from 1 [default: the last numeric one]. After a comma, others that
    /// the model sees besides, each scaled by its own changes; the first is forecast.
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
pub fn run(arguments: &Arguments, kind: DeviceKind, out: &mut impl Write) -> Result<ExitCode> {
    let Arguments { csv, pace, output, run, force, resume, checkpoint_every, .. } = arguments;
    // What can be refused is refused before the work, not after it.
    let (folder, lock, job, checkpoint) = match (resume, csv) {
        (Some(path), csv) => {
            let folder = RunDir::open(path)?;
            let lock = folder.lock()?;
            let mut config = Config::read(&folder.config())?;
            let series = config.read_again(csv.as_deref())?;
            let checkpoint = folder.read_checkpoint()?;
            let parts = Parts::new(&config.windows, series.values().len())?;
            let mut job = Job { config, series, parts };
            let checkpoint = job.go_on(checkpoint, pace)?;
            (Some(folder), Some(lock), job, Some(checkpoint))
        }
        (None, Some(csv)) => {
            let folder = run.as_ref().map(|path| RunDir::claim(path, *force)).transpose()?;
            if folder.is_none() {
                check_directory(output)?;
            }
            let job = arguments.start(csv, folder.is_some())?;
            (folder, None, job, None)
        }
        (None, None) => bail!("expected a CSV file or --resume"), // clap has asked for one
    };
    let device = open(kind)?;
    job.announce();
    let runner = Runner::new(&job, folder.as_ref(), *checkpoint_every, checkpoint, &device)?;
    let lock = match (&folder, lock) {
        (Some(folder), None) => Some(folder.take(*force)?),
        (_, lock) => lock,
    };
    if let Some(folder) = &folder {
        job.config.write(&folder.config())?;
    }
    let ended = runner.run()?;
    let status = ended.report(&job, folder.as_ref(), output, out)?;
    drop(lock);
    ended.unsaved.map_or(Ok(status), |why| Err(why.context("the run was not saved")))
}

impl Arguments {
    /// What a new run is to be, and whether it is kept.
    fn start(&self, csv: &Path, is_kept: bool) -> Result<Job> {
        let What { column, delimiter, missing, header } = &self.what;
        let reading = CsvOptions {
            delimiter: *delimiter,
            missing: missing.iter().cloned().collect(),
            header: *header,
        };
        let series = Series::read(csv, column.as_deref(), reading)?;
        let parts = Parts::new(&self.sizes, series.values().len())?;
        let Sizes { input, horizon, .. } = self.sizes;
        let scales = Windows::new(&series.columns, parts.split, input, horizon)?.scales;
        let columns = series.keys.iter().cloned().zip(scales);
        let config = Config {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task: Task::Forecast,
            data: Data {
                // What is not kept may come through a pipe, which is read but once.
                csv: if is_kept { whole(csv)? } else { csv.to_owned() },
                delimiter: (*delimiter).into(),
                header: series.has_header,
                missing: missing.clone(),
                fingerprint: if is_kept { fingerprint([Some(csv), None])? } else { String::new() },
            },
            windows: self.sizes.clone(),
            columns: columns.map(|(name, scale)| Column { name, scale }).collect(),
            model: self.model.clone(),
            training: self.settings.with(self.pace.on(self.settings.pace())),
            changes: Vec::new(),
        };
        Ok(Job { config, series, parts })
    }
}
