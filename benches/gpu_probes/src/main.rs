//! `gpu_probes`: small measurements of a GPU that the program `gru` does not make. `benches/gpu.py`
//! runs them. Each prints one JSON object.

mod dispatch;
mod gpu;
mod grid_barrier;
mod kernel;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use gpu::{Gpu, Kind};

/// Small measurements of a GPU: each prints one JSON object, with times in µs.
#[derive(Parser, Debug)]
#[command(name = "gpu_probes")]
struct Arguments {
    /// The adapter: a GPU, or a software adapter.
    #[arg(long, value_enum, default_value_t = Kind::Gpu, global = true)]
    device: Kind,
    /// How often each measurement is made; the median counts.
    #[arg(long, default_value_t = 7, global = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Subcommand, Debug)]
enum Probe {
    /// The cost of an empty dispatch that depends on the one before it.
    Dispatch(dispatch::DispatchArgs),
    /// One kernel of a plan by itself, with other constants or without index checks.
    Kernel(Box<kernel::KernelArgs>),
    /// A barrier between the workgroups of one dispatch.
    GridBarrier(grid_barrier::BarrierArgs),
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    let gpu = Gpu::open(arguments.device)?;
    let repeats = arguments.repeats;
    let mut answer = match &arguments.probe {
        Probe::Dispatch(probe) => dispatch::run(&gpu, probe, repeats),
        Probe::Kernel(probe) => kernel::run(&gpu, probe, repeats),
        Probe::GridBarrier(probe) => grid_barrier::run(&gpu, probe, repeats),
    }?;
    answer["adapter"] = gpu.name.clone().into();
    answer["clock"] = gpu.clock().into();
    Ok(answer)
}
