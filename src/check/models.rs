//! Whole models against the reference, through the calls that a user makes.

use ndarray::{Array3, ArrayView, Axis, IxDyn, s};

use super::{Findings, case_words, random, variant_words};
use crate::batch::Batch;
use crate::config::GruConfig;
use crate::device::Device;
use crate::error::Result;
use crate::gru::Gru;
use crate::params::{Init, Params};
use crate::reference;

pub(super) fn check(
    device: &Device,
    config: &GruConfig,
    steps: usize,
    batch: usize,
    seed: u64,
    findings: &mut Findings,
) -> Result<()> {
    let shape = config.shape(steps, batch)?;
    let params = Params::init(config, Init::Uniform, seed)?;
    let [mut x, h0, mut dy, dh_n] =
        [(shape.x(), 1), (shape.state(), 2), (shape.y(), 3), (shape.state(), 4)]
            .map(|(shape, i)| random3(shape, seed + i));
    // At some sizes one of them is left out, and must then count as zeros.
    let round = seed / 100;
    let give_h0 = round.is_multiple_of(2);
    let give_dy = round % 3 != 2;
    let give_dh_n = round % 3 != 1;
    // At half of them rows have lengths, 0 and T among them, and padding holds NaN.
    let lengths: Vec<usize> = (0..batch).map(|row| (5 * row + 3) % (steps + 1)).collect();
    let lengths = (round % 4 > 1).then_some(&lengths[..]);
    if let Some(lengths) = lengths {
        fill_padding(&mut x, lengths);
        fill_padding(&mut dy, lengths);
    }

    let params64 = params.cast::<f64>();
    let [x64, h064, dy64, dh_n64] = [&x, &h0, &dy, &dh_n].map(|a| a.mapv(f64::from));
    let run64 = Batch::new(x64.view()).with_h0(give_h0.then_some(h064.view()));
    let trace = reference::forward(&params64, Batch { lengths, ..run64 })?;
    let (dy64, dh_n64) = (give_dy.then_some(dy64.view()), give_dh_n.then_some(dh_n64.view()));
    let expected = reference::backward(&params64, x64.view(), &trace, dy64, dh_n64)?;

    let gru = Gru::with_params(params, device)?;
    poison(&gru, &x, &dy)?;
    let (h0, dy_given) = (give_h0.then_some(h0.view()), give_dy.then_some(dy.view()));
    let run = Batch { lengths, ..Batch::new(x.view()).with_h0(h0) };
    let (output, tape) = gru.forward_train(run)?;
    let got = gru.backward(tape, dy_given, give_dh_n.then_some(dh_n.view()))?;
    let inference = gru.forward(run)?;

    let padded = if lengths.is_some() { ", padded" } else { "" };
    let sizes = case_words(config, shape) + padded;
    let variant = variant_words(config);
    let mut compare =
        |name: &str, got: &ArrayView<f32, IxDyn>, expected: &ArrayView<f64, IxDyn>| {
            findings.compare(&format!("{name}, {variant}"), &sizes, got, expected);
        };
    for y in [&output.y, &inference.y] {
        compare("y", &y.view().into_dyn(), &trace.y().view().into_dyn());
    }
    compare("h_n", &output.h_n.view().into_dyn(), &trace.h_n().view().into_dyn());
    for ((name, got), (_, expected)) in got.params.iter().zip(expected.params.iter()) {
        // One subject for each kind of parameter; the sizes tell of layers and directions.
        let kind = name.split_once("_l").map_or(name, |(kind, _)| kind);
        compare(&format!("d{kind}"), &got, &expected);
    }
    compare("dx", &got.x.view().into_dyn(), &expected.x.view().into_dyn());
    compare("dh0", &got.h0.view().into_dyn(), &expected.h0.view().into_dyn());
    Ok(())
}

/// What stands past a row's length must not matter, whatever it is.
fn fill_padding(array: &mut Array3<f32>, lengths: &[usize]) {
    for (mut row, &length) in array.axis_iter_mut(Axis(1)).zip(lengths) {
        row.slice_mut(s![length.., ..]).fill(f32::NAN);
    }
}

/// Leaves NaN in every buffer of the sessions that the next runs of these shapes will use.
fn poison(gru: &Gru, x: &Array3<f32>, dy: &Array3<f32>) -> Result<()> {
    let nan = |array: &Array3<f32>| array.mapv(|_| f32::NAN);
    gru.forward(nan(x).view())?;
    let (_, tape) = gru.forward_train(nan(x).view())?;
    gru.backward(tape, Some(nan(dy).view()), None)?;
    Ok(())
}

fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let data = random(shape.iter().product(), 1.0, seed);
    Array3::from_shape_vec(shape, data).expect("as many as the shape holds")
}
