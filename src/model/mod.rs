//! What a user holds: devices, models, streams and forward passes. Also the executor of runs.

pub(crate) mod blocking;
pub(crate) mod device;
pub(crate) mod executor;
pub(crate) mod gru;
pub(crate) mod interop;
pub(crate) mod network;
pub(crate) mod output;
pub(crate) mod profile;
pub(crate) mod state;
pub(crate) mod stream;
