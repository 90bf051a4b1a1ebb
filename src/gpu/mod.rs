//! An open wgpu adapter: device, pipelines, transfers, and the sessions that run a plan.
//!
//! Only this module and `model/interop.rs` call wgpu.

pub(crate) mod adapter;
pub(crate) mod context;
pub(crate) mod device_lost;
pub(crate) mod host_copy;
pub(crate) mod once;
pub(crate) mod pipeline;
pub(crate) mod pipeline_cache;
pub(crate) mod pipeline_store;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod poller;
pub(crate) mod pool;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod staging;
pub(crate) mod throttle;
pub(crate) mod transfer;
pub(crate) mod wait;
