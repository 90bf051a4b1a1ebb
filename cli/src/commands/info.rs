//! `gru info`: the adapters of this machine and which one `--device` takes.

use std::io::Write;

use anyhow::Result;
use gru_wgpu::{AdapterInfo, Device, DeviceKind, plan::Limits};
use serde_json::json;

/// List the adapters of this machine, their limits and features, and what `--device` takes and why.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments, kind: DeviceKind, out: &mut impl Write) -> Result<()> {
    let adapters = Device::adapters();
    // A device that does not open is told of among the rest, which helps to see why.
    let device = kind.open();
    let word = format!("{kind:?}").to_lowercase();
    if arguments.json {
        let adapters: Vec<_> = adapters.iter().map(adapter_json).collect();
        let device = match &device {
            Ok(device) => {
                json!({ "kind": word, "device": device.to_string(), "reason": device.reason() })
            }
            Err(error) => json!({ "kind": word, "error": error.to_string() }),
        };
        let all = json!({ "version": VERSION, "adapters": adapters, "device": device });
        writeln!(out, "{all}")?;
        return Ok(());
    }
    writeln!(out, "gru-wgpu {VERSION}")?;
    match &device {
        Ok(device) => writeln!(out, "--device {word} takes: {device} ({})", device.reason())?,
        Err(error) => writeln!(out, "--device {word} takes none: {error}")?,
    }
    if adapters.is_empty() {
        writeln!(out, "no adapters: the CPU device works all the same")?;
    }
    for (i, adapter) in adapters.iter().enumerate() {
        writeln!(out, "\nadapter {i}: {}", adapter.name)?;
        let mut row = |name: &str, value: &str| writeln!(out, "  {name:<42} {value}");
        row("kind", adapter.kind)?;
        row("backend", &adapter.backend)?;
        row("driver", &adapter.driver)?;
        for (name, value) in limit_rows(&adapter.limits) {
            row(name, &value.map_or("unlimited".to_owned(), |value| value.to_string()))?;
        }
        row("features", &adapter.features.join(", "))?;
    }
    Ok(())
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn limit_rows(limits: &Limits) -> [(&'static str, Option<u64>); 7] {
    [
        ("max_buffer_size", Some(limits.max_buffer_size)),
        ("max_storage_buffer_binding_size", Some(limits.max_storage_buffer_binding_size)),
        ("max_storage_buffers_per_shader_stage", Some(limits.max_storage_buffers_per_shader_stage)),
        ("max_compute_workgroups_per_dimension", Some(limits.max_compute_workgroups_per_dimension)),
        (
            "max_compute_invocations_per_workgroup",
            Some(limits.max_compute_invocations_per_workgroup),
        ),
        ("max_compute_workgroup_storage_size", Some(limits.max_compute_workgroup_storage_size)),
        (
            "max_loop_iterations",
            (limits.max_loop_iterations < u64::MAX).then_some(limits.max_loop_iterations),
        ),
    ]
}

fn adapter_json(adapter: &AdapterInfo) -> serde_json::Value {
    let limits: serde_json::Map<_, _> = limit_rows(&adapter.limits)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    json!({
        "name": adapter.name,
        "kind": adapter.kind,
        "software": adapter.software,
        "backend": adapter.backend,
        "driver": adapter.driver,
        "limits": limits,
        "features": adapter.features,
    })
}
