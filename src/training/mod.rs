//! Training: one update after the other, epochs over examples, checkpoints.

#[cfg(feature = "safetensors")]
pub(crate) mod checkpoint;
pub(crate) mod dataset;
pub(crate) mod learner;
pub(crate) mod trainer;
