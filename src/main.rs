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
    quiet_mesa();
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Mesa's device-select layer asks a display which adapter to list first. Without a session it prints
/// an `error:` line of its own for each adapter, which reads as if this program had failed.
fn quiet_mesa() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none()
        && std::env::var_os("MESA_VK_DEVICE_SELECT").is_none()
    {
        // SAFETY: called first in main, before any thread is started, so no other code can be
        // reading the environment meanwhile.
        #[allow(unsafe_code, reason = "edition 2024 marks set_var; the proof is above")]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
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
