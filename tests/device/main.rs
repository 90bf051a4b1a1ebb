//! The CPU device and the adapter compute what the reference computes, and they keep the promises
//! on limits, memory, NaN, threads and lost devices. `tests/README.md` has the whole.

#[path = "../common/mod.rs"]
mod common;

mod activations;
mod asynchronous;
mod device_lost;
mod dropout;
mod embed;
mod empty;
mod errors;
mod into;
mod kernels;
mod lengths;
mod limits;
mod memory;
mod misuse;
mod nan;
mod network;
mod pipeline_cache;
mod plan;
mod properties;
mod rayon;
mod resets;
mod stream;
