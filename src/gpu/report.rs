//! Error messages and error scopes of wgpu.

/// Joins the lines of a wgpu message, which are indented, into one line.
pub(crate) fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// Calls `work` and discards its errors. A caller's handler of uncaptured errors does not get them.
pub(crate) fn without_errors<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> T {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    // wgpu requires scopes to be popped in reverse order, which is the drop order of these locals.
    let [_first, _second, _third] =
        [Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter));
    work()
}
