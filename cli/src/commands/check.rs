//! `gru check`: compares a device with the f64 reference.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use gru_wgpu::check::{self, Finding};
use gru_wgpu::{Device, DeviceKind};
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::model_file::ModelSelection;
use crate::ui::device::open;
use crate::ui::output::{TextTable, log, quote_path};

/// Check a device against the double-precision reference. Run it first on a new machine.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct CheckArgs {
    /// Check this model instead: a .safetensors, .pt, .npz or .onnx file, with its own weights.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,

    #[command(flatten)]
    selection: ModelSelection,
}

const EXAMPLES: &str = "\
Examples:
  gru check
  gru check --device gpu
  gru check gru.safetensors --device gpu";

const DETAILS: &str = "\
Checks every kernel, then every variant forward and backward, at odd sizes. With MODEL it checks
that model with its own weights. On a new adapter most of the time is shader compilation.";

/// The time between two lines of progress, where stderr is not a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Runs all checks with progress on stderr: on a new adapter the driver compiles for a minute or
/// more.
fn run_all(device: &Device) -> Result<Vec<Finding>> {
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(
        "{bar:30} {msg}, {pos} of {len} cases, {elapsed}",
    )?);
    let start = Instant::now();
    let mut logged = Duration::ZERO;
    let findings = check::run_with_progress(device, |at| {
        bar.set_length(at.total as u64);
        bar.set_position(at.done as u64);
        bar.set_message(at.section.to_string());
        let elapsed = start.elapsed();
        if bar.is_hidden() && (elapsed >= logged + LOG_INTERVAL || at.done == at.total) {
            logged = elapsed;
            let seconds = elapsed.as_secs_f64();
            log(format_args!("{}: {} of {} cases, {seconds:.0} s", at.section, at.done, at.total));
        }
    })?;
    bar.finish_and_clear();
    Ok(findings)
}

/// Runs the command. Wrong results are an error.
pub fn run(arguments: &CheckArgs, kind: DeviceKind, out: &mut impl Write) -> Result<()> {
    let CheckArgs { model, selection } = arguments;
    ensure!(
        model.is_some() || selection.is_empty(),
        "--prefix, --node and --allow-non-finite need a MODEL"
    );
    let model = model.as_deref().map(|path| Ok::<_, Error>((path, selection.load(path)?)));
    let model = model.transpose()?;
    let device = open(kind)?;
    let findings = match &model {
        Some((path, model)) => {
            check::model(&device, &model.params).with_context(|| quote_path(path))?
        }
        None => run_all(&device)?,
    };
    let header = ["what", "cases", "largest error", "of the tolerance", ""];
    let mut table = TextTable::new(header.map(str::to_owned).to_vec());
    for finding in &findings {
        let verdict =
            if finding.passed() { "ok".to_owned() } else { format!("WRONG at {}", finding.worst) };
        table.row(vec![
            finding.subject.clone(),
            finding.cases.to_string(),
            format!("{:.1e}", finding.error),
            format!("{:.1} %", 100.0 * finding.fraction),
            verdict,
        ]);
    }
    let tolerance = check::TOLERANCE;
    writeln!(out, "{device} against the f64 reference")?;
    writeln!(out, "tolerance: {:e} + {:e} · |expected|", tolerance.atol, tolerance.rtol)?;
    write!(out, "{table}")?;
    let wrong = findings.iter().filter(|finding| !finding.passed()).count();
    ensure!(wrong == 0, "{wrong} of {} results are out of bounds on {device}", findings.len());
    writeln!(out, "all {} results are within bounds", findings.len())?;
    if !device.is_adapter() && model.is_none() {
        writeln!(
            out,
            "no kernel was checked: the CPU device has none. `gru check --device software` checks \
             them on a software adapter, `--device gpu` on a GPU"
        )?;
    }
    Ok(())
}
