//! wip
pub mod check;
mod config;
mod device;
mod error;
mod gpu;
mod gru;
pub mod kernels;
mod optim;
mod params;
pub mod plan;
pub mod reference;
mod runner;
pub use config::{Bias, GruConfig, Reset, Shape, Update};
pub use device::{AdapterInfo, Device};
pub use error::{Error, Result};
pub use gru::{Gru, Output, Tape};
pub use optim::{Adam, clip_global_norm};
pub use params::{Gradients, Init, ParamEntry, ParamLayout, Params};
