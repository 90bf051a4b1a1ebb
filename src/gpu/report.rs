//! What wgpu reports of its calls.

/// wgpu's messages run over several indented lines.
pub(crate) fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// Calls `work`, whose errors nobody hears, a caller's handler of uncaptured ones included.
pub(crate) fn without_errors<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> T {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    // Dropped in reverse order, as they must be.
    let [_first, _second, _third] =
        [Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter));
    work()
}
