//! `gru check`: the device against the f64 reference.

use anyhow::{Result, ensure};
use gru_wgpu::{Device, check};

use super::output::Table;

/// Hold a device against the double-precision reference: every kernel, then every variant forward
/// and backward, at odd sizes. Run it first on a new machine.
#[derive(clap::Args, Debug)]
pub struct Arguments {}

/// Runs the command. An error when a number is out of bounds.
pub fn run(_: &Arguments, device: &Device) -> Result<()> {
    let findings = check::run(device)?;
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
    println!("{device} against the f64 reference");
    println!("tolerance: {:e} + {:e} · |expected|", tolerance.atol, tolerance.rtol);
    print!("{table}");
    let wrong = findings.iter().filter(|finding| !finding.passed()).count();
    ensure!(wrong == 0, "{wrong} of {} results are out of bounds on {device}", findings.len());
    println!("all {} results are within bounds", findings.len());
    Ok(())
}
