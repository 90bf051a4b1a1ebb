//! What the tests share.
#![allow(dead_code, reason = "each test file uses a part of it")]

#[cfg(feature = "cli")]
pub mod program;
#[cfg(feature = "cli")]
pub mod sequences;

use std::process::Command;
use std::sync::OnceLock;

use gru_wgpu::Device;
use ndarray::{Array, Array3, Dimension};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// The adapter that GPU tests run on: what GRU_DEVICE says, or else a hardware GPU, or else a
/// software adapter. A machine with none fails the test; it is never skipped.
pub fn adapter() -> &'static Device {
    static ADAPTER: OnceLock<Device> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let word = std::env::var("GRU_DEVICE").ok().filter(|word| !word.is_empty());
        let opened = match word {
            Some(word) => word.parse(),
            None => Device::gpu().or_else(|_| Device::software()),
        };
        let device = opened.unwrap_or_else(|error| {
            panic!("this test needs a GPU or a software adapter: {error}");
        });
        assert!(device.is_adapter(), "GRU_DEVICE={device} is no adapter; this test needs one");
        device
    })
}

/// The CPU and the adapter.
pub fn devices() -> [Device; 2] {
    [Device::cpu(), adapter().clone()]
}

/// What cargo knows of this package and those it depends on.
pub fn metadata() -> serde_json::Value {
    // Of this platform alone: a fresh machine has fetched no other's packages.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Uniform in ±1, the same for the same seed.
pub fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0))
}

/// Fails with every element that is further from the expected one than allowed.
pub fn assert_close<D: Dimension>(
    what: &str,
    got: &Array<f64, D>,
    expected: &Array<f64, D>,
    tolerance: gru_wgpu::check::Tolerance,
) {
    assert_eq!(got.shape(), expected.shape(), "{what}");
    let wrong: Vec<_> = got
        .iter()
        .zip(expected)
        .enumerate()
        .filter(|&(_, (&g, &e))| tolerance.share(g, e) > 1.0)
        .map(|(i, (g, e))| format!("  element {i}: {g:e}, expected {e:e}"))
        .collect();
    assert!(wrong.is_empty(), "{what}: {} wrong\n{}", wrong.len(), wrong.join("\n"));
}
