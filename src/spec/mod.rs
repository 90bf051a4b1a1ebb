//! The computation as plain data: configuration, parameters, input, head, loss, optimizer.
//!
//! Nothing here computes on a device, opens a file or starts a thread.

pub(crate) mod activation;
pub(crate) mod batch;
pub(crate) mod chunk;
pub(crate) mod config;
pub(crate) mod element;
pub(crate) mod head;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod noise;
pub(crate) mod optimizer;
pub(crate) mod options;
pub(crate) mod params;
pub(crate) mod sequences;
