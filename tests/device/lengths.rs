//! Rows of different lengths: padding is ignored, and each row equals the row run alone.

use crate::common::{assert_close, devices, random3, within};
use gru_wgpu::{Batch, Direction, Gradients, Gru, GruConfig, Init, Output};
use ndarray::{Array3, Axis, s};

const T: usize = 6;
const LENGTHS: [usize; 5] = [6, 0, 3, 1, 5];

fn config() -> GruConfig {
    GruConfig::new(3, 5).with_layers(2).with_direction(Direction::Both)
}

struct Arrays {
    x: Array3<f32>,
    h0: Array3<f32>,
    dy: Array3<f32>,
    dh_n: Array3<f32>,
}

/// Random arrays whose padding holds `padding`.
fn arrays(padding: f32) -> Arrays {
    let shape = config().shape(T, LENGTHS.len()).unwrap();
    let fill = |mut array: Array3<f32>| {
        for (mut row, length) in array.axis_iter_mut(Axis(1)).zip(LENGTHS) {
            row.slice_mut(s![length.., ..]).fill(padding);
        }
        array
    };
    Arrays {
        x: fill(random3(shape.x(), 1)),
        h0: random3(shape.state(), 2),
        dy: fill(random3(shape.y(), 3)),
        dh_n: random3(shape.state(), 4),
    }
}

fn run(gru: &Gru, a: &Arrays) -> (Output, Gradients) {
    let batch = Batch::new(a.x.view()).with_h0(a.h0.view()).with_lengths(&LENGTHS);
    let (output, tape) = gru.forward_train(batch).unwrap();
    assert_eq!(gru.forward(batch).unwrap(), output);
    let grads = gru.backward(tape, Some(a.dy.view()), Some(a.dh_n.view())).unwrap();
    (output, grads)
}

#[test]
fn padding_has_no_influence_and_no_gradient() {
    for device in devices() {
        let gru = Gru::new(config(), Init::Uniform, 1, &device).unwrap();
        let zeros = run(&gru, &arrays(0.0));
        for padding in [f32::NAN, f32::INFINITY, 3e38, -1e30] {
            assert_eq!(run(&gru, &arrays(padding)), zeros, "{padding} on {device}");
        }
        let (output, grads) = zeros;
        for (row, length) in LENGTHS.into_iter().enumerate() {
            let past = s![length.., row, ..];
            assert!(output.y.slice(past).iter().all(|&v| v == 0.0), "y of row {row} on {device}");
            assert!(grads.x.slice(past).iter().all(|&v| v == 0.0), "dx of row {row} on {device}");
        }
    }
}

#[test]
fn a_padded_row_equals_the_row_run_alone() {
    for device in devices() {
        let gru = Gru::new(config(), Init::Uniform, 1, &device).unwrap();
        let a = arrays(f32::NAN);
        let (output, grads) = run(&gru, &a);
        let mut total = grads.params.clone();
        total.as_mut_slice().fill(0.0);
        for (row, length) in LENGTHS.into_iter().enumerate() {
            let of = |array: &Array3<f32>| array.slice(s![.., row..row + 1, ..]).to_owned();
            let valid =
                |array: &Array3<f32>| array.slice(s![..length, row..row + 1, ..]).to_owned();
            if length == 0 {
                assert_eq!(of(&output.h_n), of(&a.h0), "the state of a row without steps");
                assert_eq!(of(&grads.h0), of(&a.dh_n), "its gradient");
                continue;
            }
            let (x, h0) = (valid(&a.x), of(&a.h0));
            let (alone, tape) = gru.forward_train(Batch::new(x.view()).with_h0(h0.view())).unwrap();
            let (dy, dh_n) = (valid(&a.dy), of(&a.dh_n));
            let alone_grads = gru.backward(tape, Some(dy.view()), Some(dh_n.view())).unwrap();
            assert_eq!(alone.y, valid(&output.y), "row {row} on {device}");
            assert_eq!(alone.h_n, of(&output.h_n), "row {row} on {device}");
            assert_eq!(alone_grads.x, valid(&grads.x), "row {row} on {device}");
            assert_eq!(alone_grads.h0, of(&grads.h0), "row {row} on {device}");
            for (sum, d) in total.as_mut_slice().iter_mut().zip(alone_grads.params.as_slice()) {
                *sum += d;
            }
        }
        assert_close("gradients", total.as_slice(), grads.params.as_slice(), within(1e-5));
    }
}

/// Lengths of one run must not be left over for the next of the same shape.
#[test]
fn lengths_are_not_kept_for_the_next_run() {
    for device in devices() {
        let gru = Gru::new(config(), Init::Uniform, 1, &device).unwrap();
        let x = random3([T, LENGTHS.len(), 3], 1);
        let whole = gru.forward(&x).unwrap();
        let cut = gru.forward(Batch::new(x.view()).with_lengths(&LENGTHS)).unwrap();
        assert_ne!(whole, cut);
        assert_eq!(gru.forward(&x).unwrap(), whole);
        assert_eq!(gru.forward(Batch::new(x.view()).with_lengths(&[T; 5])).unwrap(), whole);
    }
}
