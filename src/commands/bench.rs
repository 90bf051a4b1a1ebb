//! `gru bench`: how long a GRU of some size takes, on one device or on several side by side.

mod job;
mod measure;
mod picture;
mod report;
mod sweep;
mod verify;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use gru_wgpu::plan::Mode;
use gru_wgpu::{Device, DeviceKind, Direction, GruConfig, Options, Recurrence, Reset};

use super::output::{check_output, open};
use job::Job;
use measure::{Row, measure};
use sweep::Sweep;

/// Time a GRU of any size: forward or training, on one device or on several side by side.
///
/// The numbers are held against the double-precision reference first; then come runs to warm up, then
/// the measurement. A time is a whole call, from arrays to arrays; upload, compute and download are told
/// apart by runs that wait in between, compute by the adapter's own clock where it has timestamps. Weights
/// stay on the device.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// Steps, batch rows, input size, hidden size.
    #[arg(long, value_name = "T,B,I,H", default_value = "64,32,128,256", value_parser = shape)]
    shape: Sizes,
    /// A forward pass, or training: forward and backward.
    #[arg(long, value_enum, default_value_t = ModeWord::Forward)]
    mode: ModeWord,
    /// The reset gate after the product, as in PyTorch and cuDNN, or before it, as in `GruConfig::new`.
    #[arg(long, value_enum, default_value_t = ResetWord::After)]
    reset: ResetWord,
    /// Layers, one upon the other.
    #[arg(long, value_name = "LAYERS", default_value_t = 1, value_parser = at_least_one)]
    layers: usize,
    /// Run over the sequence in both directions.
    #[arg(long)]
    bidirectional: bool,
    /// Measured calls [default: up to 20, or as many as take 3 seconds].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    repeats: Option<usize>,
    /// What walks over the steps on an adapter: auto, step or sequence.
    #[arg(long, value_name = "WORD", default_value_t = Recurrence::Auto)]
    kernel: Recurrence,
    /// While training, make the gates again in the backward pass instead of keeping them.
    #[arg(long)]
    recompute: bool,
    /// Also time each kernel for itself.
    #[arg(long)]
    profile: bool,
    /// Measure at several sizes of one axis, and draw them: T, B or H, or T=64,256,1024.
    #[arg(long, value_name = "AXIS[=SIZES]", conflicts_with = "profile")]
    sweep: Option<Sweep>,
    /// The picture of a sweep [default: bench.svg].
    #[arg(long, value_name = "FILE.svg", requires = "sweep")]
    output: Option<PathBuf>,
    /// Print the schedule, with its buffers, instead of running it.
    #[arg(long, conflicts_with_all = ["json", "profile", "sweep"])]
    plan: bool,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

const HELP: &str = "Examples:
  gru bench --device cpu,gpu
  gru bench --device gpu --shape 1500,32,1024,1024 --mode train --profile
  gru bench --device software --shape 64,8,32,64 --plan
  gru bench --device cpu,gpu --sweep B=1,4,16,64,256 --output batch.svg
  gru bench --device gpu --sweep T=64,256,1024,4096 --json

--json: device (cpu, gpu or software), adapter, adapter_kind, backend and driver (null on the CPU), mode,
reset, shape [T, B, I, H], layers, bidirectional, kernel, recompute, repeats, median_ms, min_ms,
upload_ms, forward_ms, backward_ms, download_ms, compute_ms, compute_clock (adapter or host),
us_per_step (compute), gflop, gflops (over median_ms), compute_gflops, dispatches and plan_bytes (null on
the CPU), checked {steps, rows, share of the tolerance}, and version; with --profile also profile [{kernel,
label, calls, ms, share, gflops, gbytes_per_s}]; with several devices the first one's, and others: [the
same, and ratio, its median over the first one's]. With --sweep: sweep, values, points: [the same for each
size], crossings [{devices, at}], output.";

/// T, B, I, H.
#[derive(Clone, Copy, Debug)]
pub struct Sizes([usize; 4]);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeWord {
    Forward,
    Train,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResetWord {
    After,
    Before,
}

/// Runs the command. An error when a number is out of bounds.
pub fn run(arguments: &Arguments, kinds: &[DeviceKind], out: &mut impl Write) -> Result<()> {
    let picture = arguments.output.clone().unwrap_or_else(|| PathBuf::from("bench.svg"));
    let Arguments { shape, sweep, json, profile, repeats, .. } = arguments;
    // What can be refused is refused before the work, not after it.
    let mut jobs = Vec::new();
    if let Some(sweep) = sweep {
        check_output(&picture, "svg")?;
        for (size, sizes) in sweep.sizes(shape.0) {
            jobs.push((size, job(arguments, sizes)?));
        }
    }
    let first = job(arguments, shape.0)?;
    let devices = kinds.iter().map(|&kind| open(kind)).collect::<Result<Vec<_>>>()?;
    if arguments.plan {
        return devices.iter().try_for_each(|device| {
            let plan = first.model(device)?.plan(first.shape, first.mode)?;
            Ok(write!(out, "{device}: {plan}")?)
        });
    }
    if let Some(sweep) = sweep {
        return sweep.measure(&first, jobs, &devices, *repeats)?.report(&picture, *json, out);
    }
    let rows = measure_all(&first, &devices, *repeats, *profile)?;
    match json {
        true => writeln!(out, "{}", report::json(&first, &rows))?,
        false => report::text(&first, &rows, out)?,
    }
    Ok(())
}

/// Every device in turn.
fn measure_all(
    job: &Job,
    devices: &[Device],
    repeats: Option<usize>,
    profile: bool,
) -> Result<Vec<Row>> {
    let each =
        |device| measure(job, device, repeats, profile).with_context(|| format!("on {device}"));
    devices.iter().map(each).collect()
}

fn job(arguments: &Arguments, [steps, batch, input, hidden]: [usize; 4]) -> Result<Job> {
    let config = match arguments.reset {
        ResetWord::After => GruConfig::pytorch(input, hidden),
        ResetWord::Before => GruConfig::new(input, hidden).with_reset(Reset::Before),
    };
    let direction = if arguments.bidirectional { Direction::Both } else { Direction::Forward };
    let mode = match arguments.mode {
        ModeWord::Forward => Mode::Inference,
        ModeWord::Train => Mode::Training,
    };
    ensure!(
        !arguments.recompute || mode == Mode::Training,
        "--recompute is about the backward pass; it needs --mode train"
    );
    let options =
        Options::default().with_recurrence(arguments.kernel).with_recompute(arguments.recompute);
    let config = config.with_layers(arguments.layers).with_direction(direction);
    Job::new(config, [steps, batch], mode, options)
}

fn shape(text: &str) -> Result<Sizes, String> {
    let sizes: Vec<_> = text.split(',').map(at_least_one).collect::<Result<_, _>>()?;
    let sizes = <[usize; 4]>::try_from(sizes);
    sizes.map(Sizes).map_err(|got| format!("expected the 4 sizes T,B,I,H, got {}", got.len()))
}

/// A size.
fn at_least_one(text: &str) -> Result<usize, String> {
    let size: usize = text.trim().parse().map_err(|error| format!("`{text}`: {error}"))?;
    if size == 0 { Err("every size must be at least 1".to_owned()) } else { Ok(size) }
}
