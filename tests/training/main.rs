//! Training: losses, optimizers and clipping are PyTorch's and the same on every device, and a run
//! that stops continues from its checkpoint to the same bits.

#[path = "../common/mod.rs"]
mod common;

mod checkpoint;
mod learner;
mod trainer;
mod windows;
