//! A NaN in a run makes its own row NaN from its step on, and no other row, as the crate
//! documentation promises.

use crate::common::{devices, random3};
use gru_wgpu::{
    Batch, Bias, Direction, Gru, GruConfig, Init, Output, Recurrence, Reset, RunOptions, Update,
    reference,
};
use ndarray::{Array2, Array3, Axis, s};

/// T, B, I and H, and the position of the NaN.
const SIZES: [usize; 4] = [6, 19, 3, 9];
const ROW: usize = 17;
const STEP: usize = 2;

/// Returns models of both definitions on each device, one with each kernel family.
fn models(direction: Direction) -> Vec<(String, Gru)> {
    let mut models = Vec::new();
    for device in devices() {
        for (reset, update, way) in [
            (Reset::Before, Update::Overwrites, Recurrence::Step),
            (Reset::After, Update::Keeps, Recurrence::Sequence),
        ] {
            let config = GruConfig::new(SIZES[2], SIZES[3])
                .with_reset(reset)
                .with_update(update)
                .with_bias(Bias::Two)
                .with_layers(2)
                .with_direction(direction);
            let gru = Gru::new(config.clone(), Init::Uniform, 1, &device).unwrap();
            let gru = gru.with_options(RunOptions::default().with_recurrence(way));
            models.push((format!("{config} on {device}, {way}"), gru));
        }
    }
    models
}

fn x() -> Array3<f32> {
    random3([SIZES[0], SIZES[1], SIZES[2]], 1)
}

fn assert_all_nan<'a>(what: &str, numbers: impl IntoIterator<Item = &'a f32>) {
    assert!(numbers.into_iter().all(|v| v.is_nan()), "{what}: not all NaN");
}

/// Compares all rows except one, bit for bit.
fn assert_others_are(what: &str, got: &Array3<f32>, expected: &Array3<f32>) {
    for (row, (got, expected)) in
        got.axis_iter(Axis(1)).zip(expected.axis_iter(Axis(1))).enumerate()
    {
        assert!(row == ROW || got == expected, "{what}: row {row} is another");
    }
}

#[test]
fn nan_in_x_or_h0_stays_in_its_row() {
    let clean = x();
    let h0 = random3([2, SIZES[1], SIZES[3]], 2);
    for (what, gru) in models(Direction::Forward) {
        let run = |x: &Array3<f32>, h0: &Array3<f32>| {
            gru.forward(Batch::new(x.view()).with_h0(h0.view())).unwrap()
        };
        let Output { y, h_n, .. } = run(&clean, &h0);
        let (mut x, mut start) = (clean.clone(), h0.clone());
        x[[STEP, ROW, 1]] = f32::NAN;
        let got = run(&x, &h0);
        assert_others_are(&what, &got.y, &y);
        assert_others_are(&what, &got.h_n, &h_n);
        // Before its step the NaN has no effect.
        assert_eq!(got.y.slice(s![..STEP, ROW, ..]), y.slice(s![..STEP, ROW, ..]), "{what}");
        assert_all_nan(&what, got.y.slice(s![STEP.., ROW, ..]));
        assert_all_nan(&what, got.h_n.slice(s![.., ROW, ..]));
        start[[0, ROW, 4]] = f32::NAN;
        let got = run(&clean, &start);
        assert_others_are(&what, &got.y, &y);
        assert_all_nan(&what, got.y.slice(s![1.., ROW, ..]));
    }
}

/// An infinite state meets gates that are 0 or 1: 0 · ∞ is NaN, other results are infinite or
/// finite, at the same positions as in the reference.
#[test]
fn an_infinite_h0_gives_the_references_numbers() {
    let x = x();
    for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
        let mut h0 = random3([2, SIZES[1], SIZES[3]], 2);
        h0[[0, ROW, 4]] = infinite;
        for (what, gru) in models(Direction::Forward) {
            let batch = Batch::new(x.view()).with_h0(h0.view());
            let got = gru.forward(batch).unwrap();
            let expected = reference::forward(gru.params(), batch).unwrap();
            for (name, got, expected) in
                [("y", &got.y, expected.y()), ("h_n", &got.h_n, expected.h_n())]
            {
                for ((index, &got), &expected) in got.indexed_iter().zip(&expected) {
                    let is_same = match expected {
                        e if e.is_nan() => got.is_nan(),
                        e if e.is_infinite() => got == e,
                        e => (got - e).abs() <= 1e-5,
                    };
                    assert!(is_same, "{what}: {name} {index:?} is {got}, expected {expected}");
                }
            }
            assert_all_nan(&what, got.h_n.slice(s![0, ROW, 4..5]));
        }
    }
}

#[test]
fn a_reset_or_padding_ends_nan() {
    let clean = x();
    let mut x = clean.clone();
    x[[STEP, ROW, 1]] = f32::NAN;
    let mut resets = Array2::from_elem((SIZES[0], SIZES[1]), false);
    resets[[STEP + 1, ROW]] = true;
    let mut lengths = [SIZES[0]; SIZES[1]];
    lengths[ROW] = STEP;
    for (what, gru) in models(Direction::Forward) {
        let expected = gru.forward(Batch::new(clean.view()).with_resets(resets.view())).unwrap();
        let got = gru.forward(Batch::new(x.view()).with_resets(resets.view())).unwrap();
        assert_all_nan(&what, got.y.slice(s![STEP, ROW, ..]));
        assert_eq!(
            got.y.slice(s![STEP + 1.., .., ..]),
            expected.y.slice(s![STEP + 1.., .., ..]),
            "{what}"
        );
        let expected = gru.forward(Batch::new(clean.view()).with_lengths(&lengths)).unwrap();
        assert_eq!(
            gru.forward(Batch::new(x.view()).with_lengths(&lengths)).unwrap(),
            expected,
            "{what}"
        );
    }
}

#[test]
fn nan_gradients_stay_in_their_row() {
    let clean = x();
    for direction in [Direction::Forward, Direction::Both] {
        let width = direction.count() * SIZES[3];
        let dy = random3([SIZES[0], SIZES[1], width], 3);
        for (what, gru) in models(direction) {
            let run = |x: &Array3<f32>, dy: &Array3<f32>| {
                let (_, tape) = gru.forward_train(x).unwrap();
                gru.backward(tape, Some(dy.view()), None).unwrap()
            };
            let expected = run(&clean, &dy);
            // In x: the parameters' gradients are sums over all rows, so they are NaN; other rows'
            // gradients are not.
            let mut x = clean.clone();
            x[[STEP, ROW, 1]] = f32::NAN;
            let got = run(&x, &dy);
            assert_others_are(&what, &got.x, &expected.x);
            assert_others_are(&what, &got.h0, &expected.h0);
            assert_all_nan(&what, got.x.slice(s![STEP, ROW, ..]));
            assert_all_nan(&what, got.params.get("weight_ih_l0").unwrap());
            // In dy: it goes back from its step.
            let mut wrong = dy.clone();
            wrong[[STEP, ROW, 1]] = f32::NAN;
            let got = run(&clean, &wrong);
            assert_others_are(&what, &got.x, &expected.x);
            assert_others_are(&what, &got.h0, &expected.h0);
            assert_all_nan(&what, got.x.slice(s![..=STEP, ROW, ..]));
            assert_all_nan(&what, got.params.get("weight_hh_l0").unwrap());
            if direction == Direction::Forward {
                let after = s![STEP + 1.., .., ..];
                assert_eq!(got.x.slice(after), expected.x.slice(after), "{what}");
            }
        }
    }
}

#[test]
fn a_stream_row_keeps_nan_until_it_is_reset() {
    for (what, gru) in models(Direction::Forward) {
        let rows = SIZES[1];
        let [mut given, mut clean] = [0, 1].map(|_| gru.stream(rows, &[1]).unwrap());
        let mut x = random3([1, rows, SIZES[2]], 1);
        let [mut y, mut expected] = [0, 1].map(|_| Array3::zeros((1, rows, SIZES[3])));
        for step in 0..4 {
            gru.step(&mut clean, x.view(), expected.view_mut()).unwrap();
            if step == 1 {
                x[[0, ROW, 0]] = f32::NAN;
            }
            gru.step(&mut given, x.view(), y.view_mut()).unwrap();
            x[[0, ROW, 0]] = 0.5;
            assert_others_are(&what, &y, &expected);
            let is_lost = y.index_axis(Axis(1), ROW).iter().all(|v| v.is_nan());
            assert_eq!(is_lost, step >= 1, "{what}, step {step}");
        }
        for stream in [&mut given, &mut clean] {
            stream.reset_row(ROW).unwrap();
        }
        gru.step(&mut clean, x.view(), expected.view_mut()).unwrap();
        gru.step(&mut given, x.view(), y.view_mut()).unwrap();
        assert_eq!(y, expected, "{what}");
    }
}
