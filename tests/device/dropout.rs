//! Dropout and zoneout: a seed draws the same bits on every device, and inference draws nothing.
//! The reference tests and `check` compare the numbers.

use crate::common::{assert_close, devices, random3, within};
use gru_wgpu::{Batch, Device, Gradients, Gru, GruConfig, Init, Layout, Output};
use ndarray::{Array3, Axis};

fn config() -> GruConfig {
    GruConfig::pytorch(3, 17).with_layers(3).with_dropout(0.4).with_zoneout(0.2)
}

fn run(gru: &Gru, batch: Batch<'_>) -> (Output, Gradients) {
    let (output, tape) = gru.forward_train(batch).unwrap();
    let grads = gru.backward(tape, Some(output.y.view()), None).unwrap();
    (output, grads)
}

fn on(device: &Device) -> Gru {
    Gru::new(config(), Init::Uniform, 1, device).unwrap()
}

#[test]
fn equal_seeds_draw_equal_masks() {
    let x = random3([5, 18, 3], 1);
    for device in devices() {
        let gru = on(&device);
        let batch = Batch::new(x.view());
        let first = run(&gru, batch.with_seed(1));
        for seed in [2, 1 << 32 | 1, u64::MAX] {
            assert_ne!(run(&gru, batch.with_seed(seed)), first, "seed {seed} on {device}");
        }
        assert_eq!(run(&gru, batch.with_seed(1)), first, "{device}");
        // Inference draws nothing, so it ignores the seed.
        let in_use = gru.forward(&x).unwrap();
        assert_ne!(in_use, first.0);
        assert_eq!(gru.forward(batch.with_seed(1)).unwrap(), in_use);
    }
}

#[test]
fn masks_do_not_depend_on_the_layout() {
    let x = random3([5, 18, 3], 1);
    let turned = x.view().permuted_axes([1, 0, 2]);
    for device in devices() {
        let gru = on(&device);
        let (output, grads) = run(&gru, Batch::new(x.view()).with_seed(1));
        let batch = Batch::new(turned).with_layout(Layout::BatchFirst).with_seed(1);
        let (other, other_grads) = run(&gru, batch);
        assert_eq!(other.y.permuted_axes([1, 0, 2]), output.y, "{device}");
        assert_eq!(other.h_n, output.h_n, "{device}");
        assert_eq!(other_grads.x.view().permuted_axes([1, 0, 2]), grads.x, "{device}");
        // Only the order of additions differs.
        let sums = [&other_grads, &grads].map(|grads| grads.params.as_slice());
        assert_close("dparams", sums[0], sums[1], within(1e-3));
    }
}

/// Compares the bits: with zoneout alone, a unit either keeps its state exactly or not, so the
/// pattern of kept units is the pattern of draws.
#[test]
fn all_devices_draw_the_same_bits() {
    let config = GruConfig::pytorch(3, 17).with_zoneout(0.5);
    let x = random3([6, 35, 3], 1);
    let kept = |device: &Device| {
        let gru = Gru::new(config.clone(), Init::Uniform, 1, device).unwrap();
        let y = gru.forward_train(Batch::new(x.view()).with_seed(9)).unwrap().0.y;
        let pairs = y.axis_iter(Axis(0)).zip(y.axis_iter(Axis(0)).skip(1));
        let same = pairs.flat_map(|(one, next)| {
            one.iter().zip(&next).map(|(one, next)| one == next).collect::<Vec<_>>()
        });
        same.collect::<Vec<bool>>()
    };
    let [cpu, adapter] = devices().map(|device| kept(&device));
    assert_eq!(cpu, adapter);
    let share = cpu.iter().filter(|&&kept| kept).count() as f64 / cpu.len() as f64;
    assert!((share - 0.5).abs() < 0.04, "{share}"); // four standard deviations of 2975 draws
}

/// Dropout keeps the expected value of the next layer's input.
#[test]
fn dropout_keeps_the_expectation() {
    // With a linear layer, the mean over many seeds is the run without dropout.
    let config = GruConfig::new(2, 3)
        .with_layers(2)
        .with_dropout(0.3)
        .with_activations(gru_wgpu::Activation::Sigmoid, gru_wgpu::Activation::IDENTITY);
    let gru = Gru::new(config, Init::Uniform, 1, crate::common::adapter()).unwrap();
    let x = Array3::ones((1, 4096, 2)); // every row draws for itself
    let drawn = gru.forward_train(Batch::new(x.view()).with_seed(3)).unwrap().0.y;
    let expected = gru.forward(&x).unwrap().y;
    let mean = drawn.mean_axis(Axis(1)).unwrap();
    for (mean, expected) in mean.iter().zip(&expected.index_axis(Axis(1), 0)) {
        // The gates of the second layer are not linear, but almost, for states this small.
        assert!((mean - expected).abs() < 0.02 * expected.abs() + 2e-3, "{mean}, {expected}");
    }
}
