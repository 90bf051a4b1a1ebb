//! `gru info`: lists the adapters of this machine, and the one that `--device` chooses.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use gru_wgpu::{AdapterInfo, Device, DeviceKind, PipelineCacheStatus, plan::Limits};
use serde_json::json;

use crate::ui::device::{attach_pipeline_cache, pipeline_cache_folder};
use crate::ui::output::quote_path;

/// List the adapters of this machine, and the device that `--device` chooses.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct InfoArgs {
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  gru info
  gru info --device gpu --json";

const DETAILS: &str = "\
--json: version, adapters [{device, name, kind, software, backend, driver, limits {NAME: value, null
if unlimited}, features}], device {kind, device, reason}, or {kind, error} if it does not open, and
pipeline_cache {folder, file, loaded (bytes), error}, null where there is none.";

/// Runs the command.
pub fn run(arguments: &InfoArgs, kind: DeviceKind, out: &mut impl Write) -> Result<()> {
    let adapters = Device::adapters();
    // Lists the adapters even if the device does not open, which helps to see why.
    let device = kind.open().map(attach_pipeline_cache);
    let cache = device.as_ref().ok().and_then(Device::pipeline_cache);
    let word = kind.to_string();
    if arguments.json {
        let adapters: Vec<_> = adapters.iter().enumerate().map(adapter_json).collect();
        let device = match &device {
            Ok(device) => {
                json!({ "kind": word, "device": device.to_string(), "reason": device.reason() })
            }
            Err(error) => json!({ "kind": word, "error": error.to_string() }),
        };
        let cache = json!({
            "folder": pipeline_cache_folder().map(Path::to_string_lossy),
            "file": cache.as_ref().map(|cache| cache.file.to_string_lossy()),
            "loaded": cache.as_ref().map(|cache| cache.loaded),
            "error": cache.as_ref().and_then(|cache| cache.error.as_ref()),
        });
        let all = json!({
            "version": VERSION,
            "adapters": adapters,
            "device": device,
            "pipeline_cache": cache,
        });
        writeln!(out, "{all}")?;
        return Ok(());
    }
    writeln!(out, "gru-wgpu {VERSION}")?;
    match &device {
        Ok(device) => writeln!(out, "--device {word} takes: {device} ({})", device.reason())?,
        Err(error) => writeln!(out, "--device {word} takes none: {error}")?,
    }
    writeln!(out, "pipeline cache: {}", describe_cache(device.ok().as_ref(), cache.as_ref()))?;
    if adapters.is_empty() {
        writeln!(out, "no adapters; the CPU device works without one")?;
    }
    for (i, adapter) in adapters.iter().enumerate() {
        writeln!(out, "\nadapter {i}: {}", adapter.name)?;
        let mut row = |name: &str, value: &str| writeln!(out, "  {name:<42} {value}");
        row("--device", &device_word(i, adapter).to_string())?;
        row("kind", &adapter.kind.to_string())?;
        row("backend", &adapter.backend.to_string())?;
        row("driver", &adapter.driver)?;
        for (name, value) in limit_rows(&adapter.limits) {
            row(name, &value.map_or("unlimited".to_owned(), |value| value.to_string()))?;
        }
        row("features", &feature_names(adapter).join(", "))?;
    }
    Ok(())
}

/// Says where the device's compiled pipelines are kept, or why they are not.
fn describe_cache(device: Option<&Device>, cache: Option<&PipelineCacheStatus>) -> String {
    match (pipeline_cache_folder(), device, cache) {
        (None, ..) => "none".to_owned(),
        (Some(_), _, Some(PipelineCacheStatus { file, error: Some(error), .. })) => {
            format!("none: {} {error}", quote_path(file))
        }
        (Some(_), _, Some(cache)) => {
            format!("{} ({} bytes loaded)", quote_path(&cache.file), cache.loaded)
        }
        (Some(folder), device, None) => {
            let why = match device.and_then(Device::adapter) {
                None => "for GPUs",
                Some(adapter) if adapter.is_software() => {
                    "unused: on a software adapter it would stay empty"
                }
                Some(_) => "unused: the adapter does not support PIPELINE_CACHE",
            };
            format!("{}, {why}", quote_path(folder))
        }
    }
}

/// Returns the value of `--device` for the adapter with this index. Of several software adapters
/// `--device` takes the first.
fn device_word(index: usize, adapter: &AdapterInfo) -> DeviceKind {
    if adapter.is_software() { DeviceKind::Software } else { DeviceKind::GpuAt(index) }
}

fn feature_names(adapter: &AdapterInfo) -> Vec<String> {
    adapter.features.iter().map(ToString::to_string).collect()
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

fn adapter_json((index, adapter): (usize, &AdapterInfo)) -> serde_json::Value {
    let limits: serde_json::Map<_, _> = limit_rows(&adapter.limits)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    json!({
        "device": device_word(index, adapter).to_string(),
        "name": adapter.name,
        "kind": adapter.kind.to_string(),
        "software": adapter.is_software(),
        "backend": adapter.backend.to_string(),
        "driver": adapter.driver,
        "limits": limits,
        "features": feature_names(adapter),
    })
}
