//! What was measured, as tables and as JSON.

use std::io::Write;

use anyhow::Result;
use gru_wgpu::plan::{Mode, format_si, format_sig3};
use gru_wgpu::{Clock, Device, KernelTime, Reset};
use serde_json::{Value, json};

use super::measure::{Kernels, Measurement, ms};
use super::workload::Workload;
use crate::ui::output::TextTable;

/// The word that `--device` has for it.
pub fn word(device: &Device) -> &'static str {
    match device.adapter() {
        None => "cpu",
        Some(adapter) if adapter.is_software() => "software",
        Some(_) => "gpu",
    }
}

/// The same in words, for tables whose text says which adapter it is.
pub fn name(device: &Device) -> &'static str {
    match word(device) {
        "software" => "software adapter",
        word => word,
    }
}

/// The headings of a measurement's columns, and below it its cells.
pub const COLUMNS: [&str; 8] =
    ["median ms", "min ms", "upload", "compute", "download", "µs a step", "GFLOP/s", "ratio"];

pub fn cells(job: &Workload, row: &Measurement, first: &Measurement) -> [String; 8] {
    let moved =
        |time: f64| if row.planned.is_some() { format_sig3(time) } else { "–".to_owned() };
    [
        format_sig3(row.median),
        format_sig3(row.min),
        moved(row.upload),
        format_sig3(row.compute),
        moved(row.download),
        format_sig3(us_per_step(job, row)),
        format_sig3(gflops(job, row.median)),
        format_sig3(row.median / first.median),
    ]
}

/// What the columns mean, for these devices.
pub fn legend(job: &Workload, rows: &[Measurement], out: &mut impl Write) -> Result<()> {
    let work = if job.trains() { "18·T·B·H·(I + H)" } else { "6·T·B·H·(I + H)" };
    writeln!(
        out,
        "\nmedian, min: ms of a whole call, from arrays to arrays; GFLOP/s: {work} a cell over the median\n\
         upload, compute, download: ms of the same run with waits in between, medians; µs a step: compute \
         over T\n\
         ratio: the median over that of {}",
        name(&rows[0].device)
    )?;
    let mut told: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| row.planned.is_some()) {
        let clock = match row.clock {
            Clock::Adapter => "the adapter's timestamps",
            Clock::Host => "the host's clock: it has no timestamps",
        };
        let line = format!("compute on the {} is by {clock}", name(&row.device));
        if !told.contains(&line) {
            writeln!(out, "{line}")?;
            told.push(line);
        }
    }
    Ok(())
}

/// The tables.
pub fn text(job: &Workload, rows: &[Measurement], out: &mut impl Write) -> Result<()> {
    writeln!(out, "{}", job.title())?;
    for row in rows {
        writeln!(out, "{}: {}", row.device, row.verified)?;
    }
    let header = ["device", "calls"].into_iter().chain(COLUMNS);
    let mut table = TextTable::new(header.map(str::to_owned).collect());
    for row in rows {
        let start = [name(&row.device).to_owned(), row.repeats.to_string()];
        table.row(start.into_iter().chain(cells(job, row, &rows[0])).collect());
    }
    write!(out, "\n{table}")?;
    legend(job, rows, out)?;
    for row in rows {
        if let Some((dispatches, bytes)) = row.planned {
            let held = format_si(bytes as f64, "B");
            writeln!(out, "{}: {dispatches} dispatches a run, {held} held", name(&row.device))?;
        }
        if let Some(kernels) = &row.profile {
            write_profile(row, kernels, out)?;
        }
    }
    Ok(())
}

fn write_profile(row: &Measurement, kernels: &Kernels, out: &mut impl Write) -> Result<()> {
    let Kernels { times: kernels, runs } = kernels;
    if kernels.is_empty() {
        writeln!(out, "\n{}: it has no kernels to profile", name(&row.device))?;
        return Ok(());
    }
    let total: f64 = kernels.iter().map(|kernel| ms(kernel.time)).sum();
    let header = ["kernel", "calls", "ms", "share", "GFLOP/s", "GB/s"];
    let mut table = TextTable::new(header.map(str::to_owned).to_vec());
    for kernel in kernels {
        table.row(vec![
            format!("{}: {}", kernel.kernel, kernel.label),
            kernel.calls.to_string(),
            format_sig3(ms(kernel.time)),
            format!("{:.1} %", share(kernel, total)),
            format_sig3(kernel.gflops()),
            format_sig3(kernel.gbytes()),
        ]);
    }
    let how = match row.clock {
        Clock::Adapter => "each dispatch in a pass of its own, by the adapter's timestamps",
        Clock::Host => "each stage submitted and waited for, by the host's clock",
    };
    let of = if *runs == 1 { "one run".to_owned() } else { format!("the fastest of {runs} runs") };
    write!(out, "\nkernels on the {}, {of}: {how}\n{table}", name(&row.device))?;
    let (total, compute) = (format_sig3(total), format_sig3(row.compute));
    writeln!(
        out,
        "  {total} ms in all; where they follow one another freely {compute} ms, the median of {} runs",
        row.repeats
    )?;
    Ok(())
}

/// One object: the first device's, with the others inside.
pub fn json(job: &Workload, rows: &[Measurement]) -> Value {
    let mut all = rows.iter().map(|row| row_json(job, row));
    let mut first = all.next().unwrap_or_default();
    let others: Vec<_> = all
        .zip(&rows[1..])
        .map(|(mut object, row)| {
            object["ratio"] = json!(row.median / rows[0].median);
            object
        })
        .collect();
    if !others.is_empty() {
        first["others"] = Value::Array(others);
    }
    first
}

fn row_json(job: &Workload, row: &Measurement) -> Value {
    let adapter = row.device.adapter();
    let adapter = adapter.as_ref();
    let (config, shape) = (&job.config, job.shape);
    let mut object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": word(&row.device),
        "adapter": adapter.map(|adapter| &adapter.name),
        "adapter_kind": adapter.map(|adapter| adapter.kind.to_string()),
        "backend": adapter.map(|adapter| adapter.backend.to_string()),
        "driver": adapter.map(|adapter| &adapter.driver),
        "mode": if job.mode == Mode::Training { "train" } else { "forward" },
        "reset": if config.reset == Reset::After { "after" } else { "before" },
        "shape": [shape.steps, shape.batch, shape.input, shape.hidden],
        "layers": shape.layers,
        "bidirectional": shape.directions == 2,
        "kernel": job.options.recurrence.to_string(),
        "recompute": job.options.recompute,
        "repeats": row.repeats,
        "median_ms": row.median,
        "min_ms": row.min,
        "gflop": job.flop() / 1e9,
        "gflops": gflops(job, row.median),
    });
    let split = json!({
        "upload_ms": row.upload,
        "forward_ms": row.forward,
        "backward_ms": row.backward,
        "download_ms": row.download,
        "compute_ms": row.compute,
        "compute_clock": if row.clock == Clock::Adapter { "adapter" } else { "host" },
        "compute_gflops": gflops(job, row.compute),
        "us_per_step": us_per_step(job, row),
        "dispatches": row.planned.map(|(dispatches, _)| dispatches),
        "plan_bytes": row.planned.map(|(_, bytes)| bytes),
        "checked": {
            "steps": row.verified.steps,
            "rows": row.verified.rows,
            "share": row.verified.share,
            "results": row.verified.results,
        },
    });
    if let (Value::Object(object), Value::Object(split)) = (&mut object, split) {
        object.extend(split);
    }
    if let Some(kernels) = &row.profile {
        object["profile"] = profile_json(&kernels.times);
        object["profile_runs"] = json!(kernels.runs);
    }
    object
}

fn profile_json(kernels: &[KernelTime]) -> Value {
    let total: f64 = kernels.iter().map(|kernel| ms(kernel.time)).sum();
    let each = |kernel: &KernelTime| {
        json!({
            "kernel": kernel.kernel,
            "label": kernel.label,
            "calls": kernel.calls,
            "ms": ms(kernel.time),
            "share": share(kernel, total) / 100.0,
            "gflops": kernel.gflops(),
            "gbytes_per_s": kernel.gbytes(),
        })
    };
    kernels.iter().map(each).collect()
}

/// In percent.
fn share(kernel: &KernelTime, total: f64) -> f64 {
    if total > 0.0 { 100.0 * ms(kernel.time) / total } else { 0.0 }
}

fn gflops(job: &Workload, ms: f64) -> f64 {
    if ms > 0.0 { job.flop() / ms / 1e6 } else { 0.0 }
}

pub fn us_per_step(job: &Workload, row: &Measurement) -> f64 {
    1e3 * row.compute / job.shape.steps as f64
}
