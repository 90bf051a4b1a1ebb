//! Checks that the host has the memory for a workload, before any of it is allocated. Linux grants
//! more memory than there is, and kills the program that then uses it.

use anyhow::Result;
use gru_wgpu::plan::Plan;
use gru_wgpu::{Device, Error};

use super::workload::Workload;
use crate::ui::numbers::format_si;

/// Checks that the run fits `device` and the host. It refuses only what cannot fit: the need is a
/// lower bound, the available memory an upper bound.
///
/// # Errors
/// [`Error::OutOfMemory`] with both numbers, and the error of the plan for the adapter's limits.
pub fn check(workload: &Workload, device: &Device) -> Result<()> {
    let needed = match device.adapter() {
        None => on_cpu(workload),
        Some(adapter) => on_adapter(workload, &workload.plan_on(device)?, adapter.is_software()),
    };
    match available() {
        Some(available) if needed > available => {
            let [needed, available] = [needed, available].map(|bytes| format_si(bytes, "B"));
            let (mode, shape) = (workload.mode_name(), workload.shape);
            let reason = format!(
                "{mode} of {shape} takes at least {needed} of the host's memory, but {available} are \
                 available; use smaller sizes"
            );
            Err(Error::OutOfMemory { reason, source: None }.into())
        }
        _ => Ok(()),
    }
}

/// Returns a lower bound for a run on the CPU: the arrays, the parameters (plain and packed), and
/// the trace.
pub fn on_cpu(workload: &Workload) -> f64 {
    let (cells, states) = (workload.cells(), workload.states_per_cell());
    let (input, hidden) = (workload.shape.input as f64, workload.shape.hidden as f64);
    let width = workload.shape.directions as f64 * hidden;
    let floats = if workload.trains() {
        // A copy of x, h and the gates, each layer's output except the last, a copy of dy, and a
        // layer's dx.
        let gates = if workload.options.recompute { 0.0 } else { 4.0 * states };
        let below = states - width;
        cells * (input + states + gates + below + width + input.min(width))
            + 4.0 * workload.parameters()
    } else {
        2.0 * workload.parameters()
    };
    arrays(workload) + 4.0 * floats
}

/// Returns a lower bound of the host memory for a run on an adapter.
fn on_adapter(workload: &Workload, plan: &Plan, is_software: bool) -> f64 {
    // A software adapter's memory is the host's.
    arrays(workload) + if is_software { plan.bytes() as f64 } else { 0.0 }
}

/// Returns the bytes of the caller's arrays: x and y, and in training dy and dx.
fn arrays(workload: &Workload) -> f64 {
    let width = (workload.shape.directions * workload.shape.hidden) as f64;
    let input = workload.shape.input as f64;
    let more = if workload.trains() { width } else { 0.0 };
    4.0 * workload.cells() * (input + width + more)
}

/// Returns an upper bound of the bytes that this process can still allocate, or `None` if the
/// system does not tell.
#[cfg(target_os = "linux")]
fn available() -> Option<f64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let info = read("/proc/meminfo")?;
    let kilobytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok()
    };
    let free = 1024.0 * (kilobytes("MemAvailable")? + kilobytes("SwapFree").unwrap_or(0.0));
    // The limit of a container. Without one the file holds a word or an enormous number.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits.into_iter().filter_map(|path| read(path)?.trim().parse::<f64>().ok());
    Some(limits.fold(free, f64::min))
}

#[cfg(not(target_os = "linux"))]
fn available() -> Option<f64> {
    None
}
