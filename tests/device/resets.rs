//! Rows with resets: each part between two resets equals the same steps run alone.

use crate::common::{assert_close, devices, random3, within};
use gru_wgpu::{Batch, Direction, Gradients, Gru, GruConfig, Init, Output};
use ndarray::{Array2, Array3, s};

const T: usize = 9;
const B: usize = 2;
/// The steps with a reset, which split each row into three parts.
const CUTS: [[usize; 2]; B] = [[2, 6], [1, 8]];

fn config() -> GruConfig {
    GruConfig::new(3, 5).with_layers(2).with_direction(Direction::Both)
}

fn resets() -> Array2<bool> {
    let mut resets = Array2::from_elem((T, B), false);
    for (row, cuts) in CUTS.into_iter().enumerate() {
        cuts.into_iter().for_each(|t| resets[[t, row]] = true);
    }
    resets
}

fn run(gru: &Gru, batch: Batch<'_>, dy: &Array3<f32>) -> (Output, Gradients) {
    let (output, tape) = gru.forward_train(batch).unwrap();
    assert_eq!(gru.forward(batch).unwrap(), output);
    (output, gru.backward(tape, Some(dy.view()), None).unwrap())
}

#[test]
fn packed_sequences_equal_each_run_alone() {
    let shape = config().shape(T, B).unwrap();
    let [x, dy] = [(shape.x(), 1), (shape.y(), 2)].map(|(shape, seed)| random3(shape, seed));
    let resets = resets();
    for device in devices() {
        let gru = Gru::new(config(), Init::Uniform, 1, &device).unwrap();
        let (output, grads) = run(&gru, Batch::new(x.view()).with_resets(resets.view()), &dy);
        let mut total = vec![0.0; grads.params.as_slice().len()];
        for (row, cuts) in CUTS.into_iter().enumerate() {
            for (first, end) in [(0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], T)] {
                let chunk = s![first..end, row..row + 1, ..];
                let (x, dy) = (x.slice(chunk).to_owned(), dy.slice(chunk).to_owned());
                let (alone, alone_grads) = run(&gru, (&x).into(), &dy);
                assert_eq!(alone.y, output.y.slice(chunk), "{first}..{end} on {device}");
                assert_eq!(alone_grads.x, grads.x.slice(chunk), "{first}..{end} on {device}");
                let parts = alone_grads.params.as_slice();
                total.iter_mut().zip(parts).for_each(|(sum, d)| *sum += d);
            }
        }
        assert_close("gradients", &total[..], grads.params.as_slice(), within(2e-5));
    }
}

/// Neither numbers nor gradients cross a reset, not even NaN.
#[test]
fn nothing_crosses_a_reset() {
    let config = config().with_direction(Direction::Forward);
    let shape = config.shape(T, B).unwrap();
    let x = random3(shape.x(), 1);
    let resets = resets();
    for device in devices() {
        let gru = Gru::new(config.clone(), Init::Uniform, 1, &device).unwrap();
        let clean = gru.forward(Batch::new(x.view()).with_resets(resets.view())).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = x.clone();
            x.slice_mut(s![3, 0, ..]).fill(bad);
            let batch = Batch::new(x.view()).with_resets(resets.view());
            let y = gru.forward(batch).unwrap().y;
            // It affects the steps until the reset before step 6, and nothing else.
            for (t, row) in (0..T).flat_map(|t| [(t, 0), (t, 1)]) {
                let (y, clean) = (y.slice(s![t, row, ..]), clean.y.slice(s![t, row, ..]));
                let spoilt = row == 0 && (3..6).contains(&t);
                if spoilt && bad.is_nan() {
                    assert!(y.iter().all(|v| v.is_nan()), "step {t} on {device}");
                } else if !spoilt {
                    assert_eq!(y, clean, "step {t} of row {row} on {device}");
                }
            }
        }
        // A gradient of y at step 6 reaches x at that step and not before.
        let mut dy = Array3::zeros(shape.y());
        dy.slice_mut(s![7, 0, ..]).fill(1.0);
        let (_, grads) = run(&gru, Batch::new(x.view()).with_resets(resets.view()), &dy);
        for t in 0..T {
            let reached = grads.x.slice(s![t, 0, ..]).iter().any(|&v| v != 0.0);
            assert_eq!(reached, (6..=7).contains(&t), "step {t} on {device}");
        }
        assert_eq!(grads.h0, Array3::<f32>::zeros(shape.state()));
    }
}

/// Resets of one run must not be left over for the next of the same shape.
#[test]
fn resets_are_not_kept_for_the_next_run() {
    let x = random3([T, B, 3], 1);
    let resets = resets();
    let fresh = random3([4, B, 5], 2);
    for device in devices() {
        let gru = Gru::new(config(), Init::Uniform, 1, &device).unwrap();
        let whole = gru.forward(&x).unwrap();
        let cut = gru.forward(Batch::new(x.view()).with_resets(resets.view())).unwrap();
        let batch = Batch::new(x.view()).with_resets(resets.view());
        let elsewhere = gru.forward(batch.with_reset_state(fresh.view())).unwrap();
        assert!(whole != cut && cut != elsewhere);
        assert_eq!(gru.forward(&x).unwrap(), whole);
        assert_eq!(gru.forward(batch).unwrap(), cut);
        let none = Array2::from_elem((T, B), false);
        assert_eq!(gru.forward(Batch::new(x.view()).with_resets(none.view())).unwrap(), whole);
    }
}
