//! Whether the host has the memory that a job takes, asked before any of it is taken: Linux gives more
//! than it has, and ends the program that then uses it.

use gru_wgpu::Error;
use gru_wgpu::plan::{Plan, format_si};

use super::workload::Workload;

/// `Ok` when the host may have `needed` bytes for `job`. Refuses only what cannot be: what is needed is
/// counted low, what is there high.
///
/// # Errors
/// [`Error::OutOfMemory`] with both.
pub fn allow(job: &Workload, needed: f64) -> Result<(), Error> {
    match available() {
        Some(available) if needed > available => {
            let [needed, available] = [needed, available].map(|bytes| format_si(bytes, "B"));
            let shape = job.shape;
            let reason = format!(
                "{} of {shape} takes at least {needed} of the host's memory, of which {available} can be had",
                job.words()
            );
            Err(Error::OutOfMemory { reason, source: None })
        }
        _ => Ok(()),
    }
}

/// What a run on the CPU takes at least: the arrays, the parameters, plain and packed, and what it keeps.
pub fn on_cpu(job: &Workload) -> f64 {
    let (cells, states) = (job.cells(), job.states_of_a_cell());
    let (input, hidden) = (job.shape.input as f64, job.shape.hidden as f64);
    let width = job.shape.directions as f64 * hidden;
    let floats = if job.trains() {
        // x again, h and the gates, each layer's output but the last one's, dy again, and a layer's dx.
        let gates = if job.options.recompute { 0.0 } else { 4.0 * states };
        let below = states - width;
        cells * (input + states + gates + below + width + input.min(width)) + 4.0 * job.parameters()
    } else {
        2.0 * job.parameters()
    };
    arrays(job) + 4.0 * floats
}

/// What a run on an adapter takes of the host's memory at least.
pub fn on_adapter(job: &Workload, plan: &Plan, is_software: bool) -> f64 {
    // A software adapter's memory is the host's.
    arrays(job) + if is_software { plan.bytes() as f64 } else { 0.0 }
}

/// The caller's arrays: x and y, and dy or dx in training.
fn arrays(job: &Workload) -> f64 {
    let width = (job.shape.directions * job.shape.hidden) as f64;
    let input = job.shape.input as f64;
    let more = if job.trains() { width } else { 0.0 };
    4.0 * job.cells() * (input + width + more)
}

/// Bytes that this process may still take at most; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn available() -> Option<f64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let info = read("/proc/meminfo")?;
    let kilobytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok()
    };
    let free = 1024.0 * (kilobytes("MemAvailable")? + kilobytes("SwapFree").unwrap_or(0.0));
    // A container's own limit; without one there is a word or an enormous number.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits.into_iter().filter_map(|path| read(path)?.trim().parse::<f64>().ok());
    Some(limits.fold(free, f64::min))
}

#[cfg(not(target_os = "linux"))]
fn available() -> Option<f64> {
    None
}
