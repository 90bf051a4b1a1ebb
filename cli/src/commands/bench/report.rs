//! Measurements as tables and as JSON.

use std::io::Write;

use anyhow::Result;
use gru_wgpu::plan::Mode;
use gru_wgpu::{DeviceKind, KernelTime, Reset, TimeSource};
use serde_json::{Value, json};

use super::copies::Copies;
use super::measure::{BenchDevice, KernelProfile, Measurement, ms};
use super::workload::Workload;
use crate::ui::numbers::{format_si, format_sig3};
use crate::ui::output::TextTable;

/// Returns the device as `--device` takes it: `gpu:1` if the user gave an index.
pub fn device_word(device: &BenchDevice) -> String {
    match (device.kind, device.device.adapter()) {
        (DeviceKind::GpuAt(_), _) => device.kind.to_string(),
        (_, None) => "cpu".to_owned(),
        (_, Some(adapter)) if adapter.is_software() => "software".to_owned(),
        (_, Some(_)) => "gpu".to_owned(),
    }
}

/// Returns a short name for tables whose text names the adapter.
pub fn device_name(device: &BenchDevice) -> String {
    match device_word(device) {
        word if word == "software" => "software adapter".to_owned(),
        word => word,
    }
}

/// The headings of a measurement's columns.
pub const COLUMNS: [&str; 8] =
    ["median ms", "min ms", "upload", "compute", "download", "µs a step", "GFLOP/s", "ratio"];

/// A measurement's cells under [`COLUMNS`].
pub fn cells(workload: &Workload, row: &Measurement, first: &Measurement) -> [String; 8] {
    let transfer =
        |time: f64| if row.planned.is_some() { format_sig3(time) } else { "–".to_owned() };
    [
        format_sig3(row.median),
        format_sig3(row.min),
        transfer(row.upload),
        format_sig3(row.compute),
        transfer(row.download),
        format_sig3(us_per_step(workload, row)),
        format_sig3(gflops(workload, row.median)),
        format_sig3(row.median / first.median),
    ]
}

/// Explains the columns for these devices.
pub fn legend(workload: &Workload, rows: &[Measurement], out: &mut impl Write) -> Result<()> {
    let work = if workload.trains() { "18·T·B·H·(I + H)" } else { "6·T·B·H·(I + H)" };
    writeln!(
        out,
        "\nmedian, min: ms of a whole call, from arrays to arrays; GFLOP/s: {work} a cell over the median\n\
         upload, compute, download: ms of the same run with waits in between, medians; µs a step: compute \
         over T\n\
         ratio: the median over that of {}",
        device_name(&rows[0].device)
    )?;
    let mut written: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| row.planned.is_some()) {
        let clock = match row.time_source {
            TimeSource::Adapter => "the adapter's timestamps",
            TimeSource::Host => "the host's clock: it has no timestamps",
        };
        let line = format!("compute on the {} is by {clock}", device_name(&row.device));
        if !written.contains(&line) {
            writeln!(out, "{line}")?;
            written.push(line);
        }
    }
    Ok(())
}

/// Prints the tables.
pub fn text(workload: &Workload, rows: &[Measurement], out: &mut impl Write) -> Result<()> {
    writeln!(out, "{}", workload.title())?;
    for row in rows {
        writeln!(out, "{}: {}", row.device, row.verified)?;
    }
    let header = ["device", "calls"].into_iter().chain(COLUMNS);
    let mut table = TextTable::new(header.map(str::to_owned).collect());
    for row in rows {
        let start = [device_name(&row.device), row.repeats.to_string()];
        table.row(start.into_iter().chain(cells(workload, row, &rows[0])).collect());
    }
    write!(out, "\n{table}")?;
    legend(workload, rows, out)?;
    write_copies(workload, rows, out)?;
    for row in rows {
        if let Some((dispatches, bytes)) = row.planned {
            let held = format_si(bytes as f64, "B");
            writeln!(
                out,
                "{}: {dispatches} dispatches a run, {held} held",
                device_name(&row.device)
            )?;
        }
        if let Some(profile) = &row.profile {
            write_profile(row, profile, out)?;
        }
    }
    Ok(())
}

/// Prints the rates of upload and download beside plain copies, and the time of a call into the
/// caller's arrays.
fn write_copies(workload: &Workload, rows: &[Measurement], out: &mut impl Write) -> Result<()> {
    let header = ["device", "transfer", "bytes", "GB/s", "copy", "to new memory"];
    let mut table = TextTable::new(header.map(str::to_owned).to_vec());
    for row in rows {
        let Some(Copies { upload, download }) = &row.copies else { continue };
        for (name, transfer) in [("upload", upload), ("download", download)] {
            table.row(vec![
                device_name(&row.device),
                name.to_owned(),
                format_si(transfer.bytes as f64, "B"),
                format_sig3(transfer.rate),
                format_sig3(transfer.copy),
                format_sig3(transfer.new_copy),
            ]);
        }
    }
    if rows.iter().any(|row| row.copies.is_some()) {
        writeln!(
            out,
            "\n{table}copy: GB/s of a plain copy in memory of as many bytes, to memory in use; a \
             download goes to new memory"
        )?;
    }
    let calls = match workload.trains() {
        true => "forward_train_into, backward_into",
        false => "forward_into",
    };
    for row in rows {
        writeln!(
            out,
            "{}: {} ms a call into the caller's arrays ({calls})",
            device_name(&row.device),
            format_sig3(row.into)
        )?;
    }
    Ok(())
}

fn write_profile(row: &Measurement, profile: &KernelProfile, out: &mut impl Write) -> Result<()> {
    let KernelProfile { times: kernels, runs } = profile;
    if kernels.is_empty() {
        writeln!(out, "\n{}: no kernels to profile", device_name(&row.device))?;
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
            format!("{:.1} %", 100.0 * time_fraction(kernel, total)),
            format_sig3(kernel.gflops()),
            format_sig3(kernel.gbytes()),
        ]);
    }
    let method = match row.time_source {
        TimeSource::Adapter => "each dispatch in a pass of its own, by the adapter's timestamps",
        TimeSource::Host => "each stage submitted and waited for, by the host's clock",
    };
    let of = if *runs == 1 { "one run".to_owned() } else { format!("the fastest of {runs} runs") };
    write!(out, "\nkernels on the {}, {of}: {method}\n{table}", device_name(&row.device))?;
    let (total, compute) = (format_sig3(total), format_sig3(row.compute));
    writeln!(
        out,
        "  {total} ms in all; where they follow one another freely {compute} ms, the median of {} runs",
        row.repeats
    )?;
    Ok(())
}

/// Returns one object: the first device's, with the others inside.
pub fn json(workload: &Workload, rows: &[Measurement]) -> Value {
    let mut all = rows.iter().map(|row| row_json(workload, row));
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

fn row_json(workload: &Workload, row: &Measurement) -> Value {
    let adapter = row.device.device.adapter();
    let adapter = adapter.as_ref();
    let (config, shape) = (&workload.config, workload.shape);
    let mut object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": device_word(&row.device),
        "adapter": adapter.map(|adapter| &adapter.name),
        "adapter_kind": adapter.map(|adapter| adapter.kind.to_string()),
        "backend": adapter.map(|adapter| adapter.backend.to_string()),
        "driver": adapter.map(|adapter| &adapter.driver),
        "mode": if workload.mode == Mode::Training { "train" } else { "forward" },
        "reset": if config.reset == Reset::After { "after" } else { "before" },
        "shape": [shape.steps, shape.batch, shape.input, shape.hidden],
        "layers": shape.layers,
        "bidirectional": shape.directions == 2,
        "kernel": workload.options.recurrence.to_string(),
        "recompute": workload.options.recompute,
        "repeats": row.repeats,
        "median_ms": row.median,
        "min_ms": row.min,
        "gflop": workload.flop() / 1e9,
        "gflops": gflops(workload, row.median),
    });
    let split = json!({
        "upload_ms": row.upload,
        "forward_ms": row.forward,
        "backward_ms": row.backward,
        "download_ms": row.download,
        "compute_ms": row.compute,
        "compute_clock": if row.time_source == TimeSource::Adapter { "adapter" } else { "host" },
        "compute_gflops": gflops(workload, row.compute),
        "us_per_step": us_per_step(workload, row),
        "dispatches": row.planned.map(|(dispatches, _)| dispatches),
        "plan_bytes": row.planned.map(|(_, bytes)| bytes),
        "checked": {
            "steps": row.verified.steps,
            "rows": row.verified.rows,
            "share": row.verified.error,
            "results": row.verified.results,
        },
    });
    for more in [split, copies_json(row)] {
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
    }
    if let Some(profile) = &row.profile {
        object["profile"] = profile_json(&profile.times);
        object["profile_runs"] = json!(profile.runs);
    }
    object
}

fn copies_json(row: &Measurement) -> Value {
    let (upload, download) =
        row.copies.as_ref().map(|copies| (&copies.upload, &copies.download)).unzip();
    json!({
        "into_ms": row.into,
        "upload_bytes": upload.map(|transfer| transfer.bytes),
        "upload_gbytes_per_s": upload.map(|transfer| transfer.rate),
        "upload_copy_gbytes_per_s": upload.map(|transfer| transfer.copy),
        "download_bytes": download.map(|transfer| transfer.bytes),
        "download_gbytes_per_s": download.map(|transfer| transfer.rate),
        "download_copy_gbytes_per_s": download.map(|transfer| transfer.copy),
        "download_new_copy_gbytes_per_s": download.map(|transfer| transfer.new_copy),
    })
}

fn profile_json(kernels: &[KernelTime]) -> Value {
    let total: f64 = kernels.iter().map(|kernel| ms(kernel.time)).sum();
    let each = |kernel: &KernelTime| {
        json!({
            "kernel": kernel.kernel,
            "label": kernel.label,
            "calls": kernel.calls,
            "ms": ms(kernel.time),
            "share": time_fraction(kernel, total),
            "gflops": kernel.gflops(),
            "gbytes_per_s": kernel.gbytes(),
        })
    };
    kernels.iter().map(each).collect()
}

/// Returns the fraction of `total` ms that a kernel takes.
fn time_fraction(kernel: &KernelTime, total: f64) -> f64 {
    if total > 0.0 { ms(kernel.time) / total } else { 0.0 }
}

fn gflops(workload: &Workload, ms: f64) -> f64 {
    if ms > 0.0 { workload.flop() / ms / 1e6 } else { 0.0 }
}

pub fn us_per_step(workload: &Workload, row: &Measurement) -> f64 {
    1e3 * row.compute / workload.shape.steps as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two GPUs are distinguished as the user gave them.
    #[test]
    fn a_device_has_the_index_that_it_was_asked_for_by() {
        let named = |kind| {
            // Works on a machine without several GPUs.
            let device = BenchDevice { kind, device: gru_wgpu::Device::cpu() };
            (device_word(&device), device_name(&device), device.to_string())
        };
        let words = |word: &str, shown: &str| (word.to_owned(), word.to_owned(), shown.to_owned());
        assert_eq!(named(DeviceKind::GpuAt(0)), words("gpu:0", "gpu:0, cpu"));
        assert_eq!(named(DeviceKind::GpuAt(1)), words("gpu:1", "gpu:1, cpu"));
        assert_eq!(named(DeviceKind::Auto), words("cpu", "cpu"));
    }
}
