//! [`AnyBackend`]: the backend of any kind of device.

use super::adapter::AdapterBackend;
use super::host::HostBackend;

/// The backend of a learner: the CPU or an adapter.
#[derive(Debug)]
pub(super) enum AnyBackend {
    Host(Box<HostBackend>),
    Adapter(Box<AdapterBackend>),
}

/// Evaluates `$call` with `$backend` bound to the concrete backend.
macro_rules! on_backend {
    ($any:expr, $backend:ident => $call:expr) => {
        match $any {
            AnyBackend::Host($backend) => $call,
            AnyBackend::Adapter($backend) => $call,
        }
    };
}

pub(super) use on_backend;
