//! One open adapter: device and pipelines, transfers, and plans made real and run.
//!
//! Besides `model/interop.rs`, this is the only place that calls wgpu.

pub(crate) mod adapter;
pub(crate) mod context;
pub(crate) mod pool;
pub(crate) mod session;
pub(crate) mod throttle;
pub(crate) mod transfer;
