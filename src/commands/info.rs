//! `gru info`: the adapters of this machine and which one `auto` takes.

use anyhow::Result;
use gru_wgpu::{AdapterInfo, Device, plan::Limits};
use serde_json::json;

/// List the adapters of this machine, their limits and features, and what `auto` takes and why.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let adapters = AdapterInfo::all();
    let auto = Device::auto();
    if arguments.json {
        let adapters: Vec<_> = adapters.iter().map(adapter_json).collect();
        let auto = json!({ "device": auto.to_string(), "reason": auto.reason() });
        println!("{}", json!({ "version": VERSION, "adapters": adapters, "auto": auto }));
        return Ok(());
    }
    println!("gru-wgpu {VERSION}");
    println!("auto takes: {auto} ({})", auto.reason());
    if adapters.is_empty() {
        println!("no adapters: the CPU device works all the same");
    }
    for (i, adapter) in adapters.iter().enumerate() {
        println!("\nadapter {i}: {}", adapter.name);
        println!("  {:<42} {}", "kind", adapter.kind);
        println!("  {:<42} {}", "backend", adapter.backend);
        println!("  {:<42} {}", "driver", adapter.driver);
        for (name, value) in limit_rows(&adapter.limits) {
            println!("  {name:<42} {}", words(value));
        }
        println!("  {:<42} {}", "features", adapter.features.join(", "));
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

fn words(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |value| value.to_string())
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
