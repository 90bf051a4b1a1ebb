//! What the program's tests share.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod program;
pub mod sequences;

use ndarray::Array3;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Uniform in ±1, the same for the same seed.
pub fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0))
}
