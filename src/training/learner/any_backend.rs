//! [`AnyBackend`]: the backend of a device, whichever it is.

use super::adapter::AdapterBackend;
use super::host::HostBackend;

#[derive(Debug)]
pub(super) enum AnyBackend {
    Host(Box<HostBackend>),
    Adapter(Box<AdapterBackend>),
}

/// Calls either backend by the same name.
macro_rules! on_backend {
    ($any:expr, $backend:ident => $call:expr) => {
        match $any {
            AnyBackend::Host($backend) => $call,
            AnyBackend::Adapter($backend) => $call,
        }
    };
}

pub(super) use on_backend;
