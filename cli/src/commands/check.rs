//! `gru check`: compares a device with the f64 reference.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gru_wgpu::check::{self, Finding, Section};
use gru_wgpu::{Device, DeviceKind};
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::model_file::ModelSelection;
use crate::ui::device::open;
use crate::ui::output::{TextTable, log};

/// Check a device against the double-precision reference. Run it first on a new machine.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct CheckArgs {
    /// Check this model instead, with its own weights: a .safetensors or .onnx file.
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
that model with its own weights. On a new GPU most of the time is shader compilation.";

/// Runs [`check::run`] with progress on stderr: on a new adapter the driver compiles for a minute
/// or more.
fn run_all(device: &Device) -> Result<Vec<Finding>> {
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {msg}, {elapsed} so far")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut findings = Vec::new();
    for (index, section) in Section::ALL.into_iter().enumerate() {
        bar.set_message(format!("{section}, part {} of {}", index + 1, Section::ALL.len()));
        let start = Instant::now();
        let found = section.run(device)?;
        if bar.is_hidden() && !found.is_empty() {
            let (results, seconds) = (found.len(), start.elapsed().as_secs_f64());
            log(format_args!("{section}: {results} results in {seconds:.1} s"));
        }
        findings.extend(found);
    }
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
    let model = model.as_deref().map(|path| selection.load(path)).transpose()?;
    let device = open(kind)?;
    let findings = match &model {
        Some(model) => check::model(&device, &model.params)?,
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
