//! `gru bench`: times a GRU on one device, or on several side by side.

mod copies;
mod measure;
mod memory;
mod picture;
mod report;
mod sweep;
mod verify;
mod workload;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use gru_wgpu::plan::{DeviceCaps, Mode};
use gru_wgpu::{DeviceKind, Direction, Recurrence, RunOptions};

use crate::ui::arguments::{ResetArg, at_least_one};
use crate::ui::numbers::format_si;
use crate::ui::output::causes;
use crate::ui::outputs::OutputFiles;
use measure::{BenchDevice, measure_all};
use sweep::Sweep;
use workload::Workload;

/// Time a GRU of any size on one device, or compare several devices.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct BenchArgs {
    #[arg(long, default_value = "64,32,128,256", value_parser = shape)]
    shape: ShapeArg,
    #[arg(long, value_enum, default_value_t = ModeArg::Forward)]
    mode: ModeArg,
    #[arg(long, value_enum, default_value_t = ResetArg::After)]
    reset: ResetArg,
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    layers: usize,
    #[arg(long)]
    bidirectional: bool,
    #[arg(long, value_parser = at_least_one)]
    repeats: Option<usize>,
    #[arg(long, default_value_t = Recurrence::Auto)]
    kernel: Recurrence,
    #[arg(long)]
    recompute: bool,
    #[arg(long)]
    profile: bool,
    #[arg(long, conflicts_with = "profile")]
    sweep: Option<Sweep>,
    #[arg(long, requires = "sweep")]
    output: Option<PathBuf>,
    #[arg(long, conflicts_with_all = ["json", "profile", "sweep"])]
    plan: bool,
    #[arg(long)]
    json: bool,
}

/// T, B, I, H on the command line.
#[derive(Clone, Copy, Debug)]
pub struct ShapeArg([usize; 4]);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    Forward,
    Train,
}

const EXAMPLES: &str = "\
Examples:
  gru bench --device cpu,gpu
  gru bench --device gpu --shape 1500,32,1024,1024 --mode train --profile
  gru bench --device cpu,gpu --sweep B=1,4,16,64,256 --output batch.svg";

const DETAILS: &str = "\
Compares the results (y and h_n, in training every gradient) with the double-precision reference
first; of a long run a part, which the output names. Then it warms up and measures. A time is a
whole call, from arrays to arrays. Upload, compute and download are measured in runs that wait in
between; compute by the adapter's timestamps if it has them. Weights stay on the device. x and the
weights are random, the same on every device.

Beside the rates of upload and download stands a plain copy in memory of as many bytes (at most 256
MiB) by one thread: to memory in use, and to memory just allocated, whose pages the system may have
yet to supply. A call returns new memory; into_ms is a call into the caller's arrays: forward_into,
in training forward_train_into and backward_into.

--json: device (cpu, gpu, gpu:1 if it was given so, or software), adapter, adapter_kind, backend
and driver (null on the CPU), mode, reset, shape [T, B, I, H], layers, bidirectional, kernel,
recompute, repeats, median_ms, min_ms, upload_ms, forward_ms, backward_ms, download_ms,
compute_ms, compute_clock (adapter or host), us_per_step (compute), gflop, gflops (over
median_ms), compute_gflops, dispatches and plan_bytes (null on the CPU), checked {steps, rows,
share (the largest error as a fraction of the tolerance), results (names)}, into_ms, upload_bytes,
download_bytes, and in GB/s (null on the CPU) upload_gbytes_per_s, download_gbytes_per_s,
upload_copy_gbytes_per_s and download_copy_gbytes_per_s (a plain copy, to memory in use) and
download_new_copy_gbytes_per_s (to new memory), and version. With
--profile also profile [{kernel, label, calls, ms, share, gflops, gbytes_per_s}] of the fastest of
profile_runs. With several devices: the first one's fields, and others [the same, and ratio: its
median over the first one's]. With --sweep: sweep, values, points [the same for each value],
failed [{value, error}], crossings [{devices, at}], output; the exit status is 1 if a size failed.";

/// Runs the command. Wrong results are an error.
pub fn run(arguments: &BenchArgs, kinds: &[DeviceKind], out: &mut impl Write) -> Result<()> {
    let picture = arguments.output.clone().unwrap_or_else(|| PathBuf::from("bench.svg"));
    let BenchArgs { shape, sweep, json, profile, repeats, .. } = arguments;
    // Refuses bad arguments before any work.
    ensure!(
        !arguments.recompute || matches!(arguments.mode, ModeArg::Train),
        "--recompute needs --mode train"
    );
    if sweep.is_some() {
        OutputFiles::check([("--output", &*picture, "svg")], [])?;
    }
    let devices = kinds.iter().map(|&kind| BenchDevice::open(kind)).collect::<Result<Vec<_>>>()?;
    if let Some(sweep) = sweep {
        let workloads =
            sweep.sizes(shape.0).map(|(size, sizes)| (size, workload(arguments, sizes)));
        let workloads = workloads.collect();
        return sweep.measure(workloads, &devices, *repeats)?.report(&picture, *json, out);
    }
    let workload = workload(arguments, shape.0)?;
    if arguments.plan {
        return devices.iter().try_for_each(|device| write_plan(&workload, device, out));
    }
    let rows = measure_all(&workload, &devices, *repeats, *profile)?;
    match json {
        true => writeln!(out, "{}", report::json(&workload, &rows))?,
        false => report::text(&workload, &rows, out)?,
    }
    Ok(())
}

/// Prints a device's plan. The CPU has none: prints its memory, and the plan of a default adapter.
fn write_plan(workload: &Workload, device: &BenchDevice, out: &mut impl Write) -> Result<()> {
    if device.device.is_adapter() {
        return Ok(write!(out, "{device}: {}", workload.plan_on(&device.device)?)?);
    }
    let memory = format_si(memory::on_cpu(workload), "B");
    writeln!(out, "{device}: {}", workload.title())?;
    writeln!(out, "the CPU has no dispatches; it needs at least {memory} of memory")?;
    match workload.plan(&DeviceCaps::WEBGPU) {
        Ok(plan) => write!(out, "\nan adapter of WebGPU's default limits: {plan}")?,
        Err(error) => writeln!(
            out,
            "\nan adapter of WebGPU's default limits would refuse: {}",
            causes(&error)
        )?,
    }
    Ok(())
}

fn workload(arguments: &BenchArgs, [steps, batch, input, hidden]: [usize; 4]) -> Result<Workload> {
    let config = arguments.reset.config(input, hidden);
    let direction = if arguments.bidirectional { Direction::Both } else { Direction::Forward };
    let mode = match arguments.mode {
        ModeArg::Forward => Mode::Inference,
        ModeArg::Train => Mode::Training,
    };
    let options =
        RunOptions::default().with_recurrence(arguments.kernel).with_recompute(arguments.recompute);
    let config = config.with_layers(arguments.layers).with_direction(direction);
    Workload::new(config, [steps, batch], mode, options)
}

fn shape(text: &str) -> Result<ShapeArg, String> {
    let sizes: Vec<_> = text.split(',').map(at_least_one).collect::<Result<_, _>>()?;
    let sizes = <[usize; 4]>::try_from(sizes);
    sizes.map(ShapeArg).map_err(|got| format!("expected the 4 sizes T,B,I,H, got {}", got.len()))
}
