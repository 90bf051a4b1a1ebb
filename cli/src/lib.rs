//! The program `gru`: parses the command line, runs one command, prints its error.
//!
//! It is a library only so that tests and fuzz targets reach code inside it. It has no interface
//! for other programs.

mod commands;
mod data;
mod rundir;
mod ui;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use gru_wgpu::DeviceKind;

use commands::{bench, check, convert, forecast, grad, info, predict, run, train};
use ui::{device, help, output};

const EXAMPLES: &str = "\
Examples:
  gru forecast data/mauna_loa_co2_weekly.csv
  gru train data/japanese_vowels_train.csv --task classify --run vowels
  gru bench --device cpu,gpu
  gru check --device gpu";

/// Train, run, convert and time gated recurrent units (GRUs) on any GPU.
#[derive(Parser, Debug)]
#[command(name = "gru", version, arg_required_else_help = true, args_override_self = true)]
#[command(before_help = EXAMPLES, after_help = "Help on a command: gru COMMAND -h")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[arg(long, global = true)]
    device: Option<String>,

    #[arg(long, global = true)]
    pipeline_cache: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(Box<train::TrainArgs>),
    Predict(predict::PredictArgs),
    Forecast(forecast::ForecastArgs),
    Run(run::RunArgs),
    Grad(grad::GradArgs),
    Convert(convert::ConvertArgs),
    Bench(bench::BenchArgs),
    Check(check::CheckArgs),
    Info(info::InfoArgs),
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let matches = help::arrange(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match dispatch(&cli) {
        Ok(status) => status,
        // The reader of our output has closed it, as in `gru check | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::log(format_args!("error: {}", output::causes(&error)));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    let kinds = device_kinds(cli)?;
    device::set_pipeline_cache(cli.pipeline_cache.as_deref())?;
    // Not locked, because a progress bar writes between two lines of a table.
    let out = &mut io::stdout();
    let mut status = ExitCode::SUCCESS;
    match &cli.command {
        Command::Train(arguments) => status = train::run(arguments, one(&kinds)?, out)?,
        Command::Predict(arguments) => predict::run(arguments, one(&kinds)?, out)?,
        Command::Forecast(arguments) => status = forecast::run(arguments, one(&kinds)?, out)?,
        Command::Run(arguments) => run::run(arguments, one(&kinds)?)?,
        Command::Grad(arguments) => grad::run(arguments, one(&kinds)?)?,
        Command::Convert(arguments) => convert::run(arguments)?,
        Command::Bench(arguments) => bench::run(arguments, &kinds, out)?,
        Command::Check(arguments) => check::run(arguments, one(&kinds)?, out)?,
        Command::Info(arguments) => info::run(arguments, one(&kinds)?, out)?,
    }
    out.flush()?;
    Ok(status)
}

/// Returns the devices of `--device`, or else of GRU_DEVICE. An empty variable counts as unset.
fn device_kinds(cli: &Cli) -> Result<Vec<DeviceKind>> {
    let variable = || {
        let word = std::env::var_os("GRU_DEVICE").filter(|word| !word.is_empty())?;
        Some(("GRU_DEVICE", word.to_string_lossy().into_owned()))
    };
    let option = cli.device.clone().map(|words| ("--device", words));
    let Some((source, words)) = option.or_else(variable) else {
        return Ok(vec![DeviceKind::Auto]);
    };
    let kinds = words.split(',').map(str::parse).collect::<Result<Vec<DeviceKind>, _>>();
    let kinds = kinds.context(source)?;
    let adapters = kinds.iter().map(|&kind| match kind {
        // `gpu` is the first GPU that opens, usually gpu:0.
        DeviceKind::Gpu => DeviceKind::GpuAt(0),
        kind => kind,
    });
    let adapters: Vec<_> = adapters.collect();
    match (1..kinds.len()).find(|&i| adapters[..i].contains(&adapters[i])) {
        Some(i) => {
            let word = words.split(',').nth(i).unwrap_or_default();
            bail!("{source} names the device {word} twice")
        }
        None => Ok(kinds),
    }
}

/// Returns the only device. Most commands take one.
fn one(kinds: &[DeviceKind]) -> Result<DeviceKind> {
    match *kinds {
        [kind] => Ok(kind),
        _ => {
            bail!(
                "--device or GRU_DEVICE names {} devices, but this command takes one; `gru bench` takes several",
                kinds.len()
            )
        }
    }
}

/// Reads a table as the `command` `train` or `forecast` does with these `arguments`, up to the
/// numbers that training would get. Returns those of the first and the last training example.
///
/// Public for `tests/fuzz/targets/table.rs` and the test that reads the files it kept.
///
/// # Errors
/// The errors of the command before it trains.
#[doc(hidden)]
pub fn read_table(command: &str, table: &Path, arguments: &[String]) -> Result<Vec<f32>> {
    commands::read_table(command, table, arguments)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
