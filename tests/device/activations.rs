//! σ and tanh on the adapter in units in the last place, beside f64. WGSL's own exp may be off by
//! 3 + 2|x| ulp, and its tanh by more.

use crate::common::adapter;
use gru_wgpu::{Batch, Gru, GruConfig, Params};
use ndarray::Array3;

/// Numbers between −bound and bound, denser toward 0.
fn numbers(bound: f32) -> Vec<f32> {
    const COUNT: usize = 20_000;
    let sides = |i: usize| {
        let fraction = (i + 1) as f32 / COUNT as f32;
        [-1.0, 1.0].map(|sign| sign * bound * fraction * fraction)
    };
    (0..COUNT).flat_map(sides).collect()
}

/// Runs one step of one unit, with W_in, b_z and b_n given and h0 = 0: h' = σ(z) · tanh(n).
fn step(x: &[f32], [weight_z, weight_n]: [f32; 2], [bias_z, bias_n]: [f32; 2]) -> Vec<f32> {
    let config = GruConfig::new(1, 1);
    let mut params = Params::zeros(&config).unwrap();
    let entries = params.layout().entries().to_vec();
    for entry in entries {
        let values = &mut params.as_mut_slice()[entry.range];
        if entry.name.starts_with("weight_ih") {
            values.copy_from_slice(&[0.0, weight_z, weight_n]);
        } else if entry.name.starts_with("bias") {
            values.copy_from_slice(&[0.0, bias_z, bias_n]);
        }
    }
    let gru = Gru::with_params(params, adapter()).unwrap();
    let x = Array3::from_shape_vec([1, x.len(), 1], x.to_vec()).unwrap();
    gru.forward(Batch::new(x.view())).unwrap().y.into_iter().collect()
}

/// Returns the largest error, in units in the last place of the result, and where it is.
fn largest_ulp(x: &[f32], got: &[f32], expected: fn(f64) -> f64) -> (f64, f32) {
    let errors = x.iter().zip(got).map(|(&x, &got)| {
        let expected = expected(f64::from(x));
        let magnitude = (expected.abs() as f32).max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(magnitude.to_bits() + 1) - magnitude);
        ((f64::from(got) - expected).abs() / ulp, x)
    });
    errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn sigmoid_is_within_a_few_ulp() {
    // Below −87 σ is no normal number. n is 1.
    let x = numbers(86.0);
    let got = step(&x, [1.0, 0.0], [0.0, 20.0]);
    let (error, x) = largest_ulp(&x, &got, |x| 1.0 / (1.0 + (-x).exp()));
    // In software adapters a division is exact. On a GPU, Vulkan allows it 2.5 ulp.
    let limit = if adapter().caps().software { 2.2 } else { 4.0 };
    assert!(error < limit, "σ({x}) is off by {error} ulp");
}

#[test]
fn tanh_is_within_a_few_ulp() {
    // z is 1.
    let x = numbers(12.0);
    let got = step(&x, [0.0, 1.0], [100.0, 0.0]);
    let (error, x) = largest_ulp(&x, &got, f64::tanh);
    assert!(error < 2.0, "tanh({x}) is off by {error} ulp");
}

#[test]
fn activations_saturate() {
    let far = [-1e30, -1e4, -100.0, 100.0, 1e4, 1e30];
    assert_eq!(step(&far, [1.0, 0.0], [0.0, 20.0]), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    assert_eq!(step(&far, [0.0, 1.0], [100.0, 0.0]), [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
}
