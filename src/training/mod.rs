//! Training: the optimizer loop, epochs over a data set, validation and checkpoints.

mod carry;
#[cfg(feature = "safetensors")]
pub(crate) mod checkpoint;
pub(crate) mod config;
pub(crate) mod dataset;
pub(crate) mod learner;
pub(crate) mod progress;
pub(crate) mod sampler;
pub(crate) mod trainer;
pub(crate) mod windows;
