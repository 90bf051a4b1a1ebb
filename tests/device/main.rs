//! The CPU device and the adapter compute what the reference computes, for every kernel, model,
//! layout and way to run; and they keep what the documentation promises on wrong calls, limits,
//! memory, NaN, threads and lost devices.

#[path = "../common/mod.rs"]
mod common;

mod asynchronous;
mod device_lost;
mod dropout;
mod embed;
mod errors;
mod kernels;
mod lengths;
mod limits;
mod memory;
mod misuse;
mod nan;
mod network;
mod plan;
mod properties;
mod rayon;
mod resets;
mod stream;
mod whole_models;
