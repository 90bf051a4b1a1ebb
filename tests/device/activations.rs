//! The activations on the adapter beside f64; σ and tanh in units in the last place. WGSL's own exp may be off by
//! 3 + 2|x| ulp, and its tanh by more.

use crate::common::adapter;
use gru_wgpu::{Activation, Batch, Device, Gru, GruConfig, Params, reference};
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

/// The value and the derivative of every function, on the adapter and on the CPU, beside the
/// reference: with z = 1, h' = f(x) and dx = f'(x). Every second one has a clip.
#[test]
fn every_activation_equals_the_reference() {
    let far = [1e-30, 1e-5, 0.4999, 0.5001, 0.9999, 1.0001, 20.0, 100.0, 1e4, 1e30];
    let points = (0..201).map(|i| 0.0123 + (i - 100) as f32 * 0.05);
    let points: Vec<_> = points.chain(far).chain(far.map(|x| -x)).collect();
    let x = Array3::from_shape_vec([1, points.len(), 1], points.clone()).unwrap();
    let dy = Array3::ones(x.dim());
    for (i, activation) in Activation::ALL.into_iter().enumerate() {
        let config = GruConfig::new(1, 1).with_activations(Activation::Sigmoid, activation);
        // σ of the clip is not 1, so z is scaled by it.
        let config = config.with_clip((i % 2 == 1).then_some(19.0));
        let mut params = Params::zeros(&config).unwrap();
        params.set("weight_ih_l0", ndarray::array![[0.0], [0.0], [1.0]].into_dyn().view()).unwrap();
        params.set("bias_ih_l0", ndarray::array![0.0, 1e4, 0.0].into_dyn().view()).unwrap();
        let double = params.cast::<f64>();
        let trace =
            reference::forward_train(&double, Batch::new(x.mapv(f64::from).view())).unwrap();
        let dy64 = dy.mapv(f64::from);
        let expected =
            reference::backward(&double, x.mapv(f64::from).view(), &trace, Some(dy64.view()), None);
        let expected_dx = expected.unwrap().x;
        for device in [adapter().clone(), Device::cpu()] {
            let gru = Gru::with_params(params.clone(), &device).unwrap();
            let (out, tape) = gru.forward_train(&x).unwrap();
            let dx = gru.backward(tape, Some(dy.view()), None).unwrap().x;
            for (i, x) in points.iter().enumerate() {
                for (what, got, expected) in [
                    ("f", out.y[[0, i, 0]], trace.y()[[0, i, 0]]),
                    ("f'", dx[[0, i, 0]], expected_dx[[0, i, 0]]),
                ] {
                    let error = (f64::from(got) - expected).abs();
                    // αx + β near 0 is the difference of larger numbers, as is 1 − f².
                    let is_line = matches!(activation, Activation::HardSigmoid { .. });
                    let largest = if what == "f'" || is_line { 0.3 } else { 1e-30 };
                    let allowed = 1e-6 * expected.abs().max(largest);
                    assert!(
                        error <= allowed,
                        "{device}, {activation}: {what}({x}) is {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn activations_saturate() {
    let far = [-1e30, -1e4, -100.0, 100.0, 1e4, 1e30];
    assert_eq!(step(&far, [1.0, 0.0], [0.0, 20.0]), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    assert_eq!(step(&far, [0.0, 1.0], [100.0, 0.0]), [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
}
