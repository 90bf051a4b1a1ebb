//! Error reports of wgpu.

/// Joins the indented lines of a wgpu message into one line.
pub(crate) fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// Calls `work` and discards its errors. The caller's handler of uncaptured errors does not see
/// them either.
pub(crate) fn without_errors<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> T {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    // Dropped in reverse order, as wgpu requires.
    let [_first, _second, _third] =
        [Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter));
    work()
}
