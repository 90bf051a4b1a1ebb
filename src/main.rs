//! The program `gru`: parses the command line, opens the device, runs one command.

mod commands;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use gru_wgpu::Device;

use commands::{check, forecast, info};

/// Gated recurrent units on any GPU.
#[derive(Parser, Debug)]
#[command(name = "gru", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Where to compute: auto (a hardware GPU, or else the CPU), cpu, gpu or software.
    #[arg(long, global = true, env = "GRU_DEVICE", default_value = "auto", value_name = "DEVICE")]
    device: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    Forecast(forecast::Arguments),
    Check(check::Arguments),
    Info(info::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Forecast(arguments) => forecast::run(arguments, &open(&cli.device)?),
        Command::Check(arguments) => check::run(arguments, &open(&cli.device)?),
        Command::Info(arguments) => info::run(arguments),
    }
}

/// Opens the device; says what `auto` took and why.
fn open(word: &str) -> Result<Device> {
    let device: Device = word.parse()?;
    if word == "auto" {
        eprintln!("device: {device} ({})", device.reason());
    }
    Ok(device)
}
