//! `gru check`: the device against the f64 reference.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use gru_wgpu::{DeviceKind, check};

use super::model::Choice;
use super::output::{Table, open};

/// Hold a device against the double-precision reference; run it first on a new machine.
///
/// Every kernel, then every variant forward and backward, at odd sizes; or one model with its own weights.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Check this model instead, forward and backward, with its own weights: a .safetensors or .onnx file.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,

    #[command(flatten)]
    choice: Choice,
}

/// Runs the command. An error when a number is out of bounds.
pub fn run(arguments: &Arguments, kind: DeviceKind, out: &mut impl Write) -> Result<()> {
    let Arguments { model, choice } = arguments;
    ensure!(model.is_some() || choice.is_empty(), "there is no MODEL to choose a GRU from");
    let model = model.as_deref().map(|path| choice.load(path)).transpose()?;
    let device = open(kind)?;
    let findings = match &model {
        Some(model) => check::model(&device, &model.params)?,
        None => check::run(&device)?,
    };
    let header = ["what", "cases", "largest error", "of the tolerance", ""];
    let mut table = Table::new(header.map(str::to_owned).to_vec());
    for finding in &findings {
        let verdict =
            if finding.passed() { "ok".to_owned() } else { format!("WRONG at {}", finding.worst) };
        table.row(vec![
            finding.subject.clone(),
            finding.cases.to_string(),
            format!("{:.1e}", finding.error),
            format!("{:.1} %", 100.0 * finding.share),
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
