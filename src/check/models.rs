//! Compares whole models with the reference, through the public API.

use ndarray::{Array2, Array3, ArrayView, Axis, IxDyn, s};

use super::{Findings, ModelCase, describe_variant, random3};
use crate::error::Result;
use crate::model::device::Device;
use crate::model::gru::Gru;
use crate::reference;
use crate::spec::batch::{Batch, time_major};
use crate::spec::config::Layout;
use crate::spec::options::{Recurrence, RunOptions};
use crate::spec::params::Params;

/// Checks one model in one case.
pub(super) async fn check(
    device: &Device,
    case: &ModelCase,
    params: Params,
    seed: u64,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let config = &params.layout().config().clone();
    let [steps, batch, ..] = case.sizes;
    let shape = config.shape(steps, batch)?.with_layout(case.layout);
    let (state, y) = (shape.state(), shape.y());
    let [mut x, h0, reset_state, mut dy, dh_n] =
        [(shape.x(), 1), (state, 2), (state, 5), (y, 3), (state, 4)]
            .map(|(shape, i)| random3(shape, seed + i));
    // In some cases the lengths include 0 and T. Padding holds NaN.
    let lengths: Vec<usize> = (0..batch).map(|row| (5 * row + 3) % (steps + 1)).collect();
    let lengths = case.lengths.then_some(&lengths[..]);
    if let Some(lengths) = lengths {
        fill_padding(&mut x, case.layout, lengths);
        fill_padding(&mut dy, case.layout, lengths);
    }
    let resets = Array2::from_shape_fn(case.layout.order(steps, batch), |(i, j)| {
        let [t, row] = case.layout.order(i, j);
        (t + 2 * row) % 3 == 1 || (t, row) == (0, 1)
    });
    let resets = case.resets.then_some(resets.view());

    let params64 = params.cast::<f64>();
    let [x64, h064, reset64, dy64, dh_n64] =
        [&x, &h0, &reset_state, &dy, &dh_n].map(|a| a.mapv(f64::from));
    let [give_h0, give_reset, give_dy, give_dh_n] = case.given;
    let (layout, seed) = (case.layout, Some(seed));
    let start = Batch::new(x64.view())
        .with_h0(give_h0.then_some(h064.view()))
        .with_reset_state(give_reset.then_some(reset64.view()));
    let run64 = Batch { layout, lengths, resets, seed, ..start };
    let trace = reference::forward_train(&params64, run64)?;
    let (dy64, dh_n64) = (give_dy.then_some(dy64.view()), give_dh_n.then_some(dh_n64.view()));
    let expected = reference::backward(&params64, x64.view(), &trace, dy64, dh_n64)?;
    let expected_inference = reference::forward(&params64, run64)?;

    let start = Batch::new(x.view())
        .with_h0(give_h0.then_some(h0.view()))
        .with_reset_state(give_reset.then_some(reset_state.view()));
    let run = Batch { layout, lengths, resets, seed, ..start };
    let (dy, dh_n) = (give_dy.then_some(dy.view()), give_dh_n.then_some(dh_n.view()));
    let mut gru = Gru::with_params_async(params, device).await?;
    // The default options; then step kernels with recompute.
    let other = RunOptions::default().with_recurrence(Recurrence::Step).with_recompute(true);
    let all = [RunOptions::default(), other];
    for &options in &all[..if case.other_options { 2 } else { 1 }] {
        gru = gru.with_options(options);
        poison(&gru, run).await?;
        let (output, tape) = gru.forward_train_async(run).await?;
        let got = gru.backward_async(tape, dy, dh_n).await?;
        // Checked with the default options only: with step kernels, inference is training without a
        // trace.
        let inference = match options.recompute {
            false => Some((gru.forward_async(run).await?, &expected_inference)),
            true => None,
        };

        let recompute = if options.recompute { ", recompute" } else { "" };
        let sizes = case.describe(config, shape) + recompute;
        let variant = describe_variant(config);
        let mut compare =
            |name: &str, got: &ArrayView<f32, IxDyn>, expected: &ArrayView<f64, IxDyn>| {
                findings.compare(&format!("{name}, {variant}"), &sizes, got, expected);
            };
        for (output, trace) in std::iter::once((output, &trace)).chain(inference) {
            compare("y", &output.y.view().into_dyn(), &trace.y().view().into_dyn());
            compare("h_n", &output.h_n.view().into_dyn(), &trace.h_n().view().into_dyn());
        }
        for ((name, got), (_, expected)) in got.params.iter().zip(expected.params.iter()) {
            // One subject for each kind of parameter, for all layers and directions.
            let kind = name.split_once("_l").map_or(name, |(kind, _)| kind);
            compare(&format!("d{kind}"), &got, &expected);
        }
        for (name, got, expected) in [
            ("dx", &got.x, &expected.x),
            ("dh0", &got.h0, &expected.h0),
            ("dreset_state", &got.reset_state, &expected.reset_state),
        ] {
            compare(name, &got.view().into_dyn(), &expected.view().into_dyn());
        }
    }
    Ok(())
}

/// Fills the steps past each row's length with NaN. Results must not depend on padding.
fn fill_padding(array: &mut Array3<f32>, layout: Layout, lengths: &[usize]) {
    let mut array = time_major(array.view_mut(), layout);
    for (mut row, &length) in array.axis_iter_mut(Axis(1)).zip(lengths) {
        row.slice_mut(s![length.., ..]).fill(f32::NAN);
    }
}

/// Runs the model over NaN, which fills every buffer of the sessions that the next runs of this
/// shape use.
async fn poison(gru: &Gru, run: Batch<'_>) -> Result<()> {
    let shape = run.check(gru.config())?;
    let nan = |shape| Array3::from_elem(shape, f32::NAN);
    let (x, y) = (nan(shape.x()), nan(shape.y()));
    let run = Batch { layout: run.layout, ..Batch::new(x.view()).with_seed(0) };
    if !gru.options().recompute {
        gru.forward_async(run).await?;
    }
    let (_, tape) = gru.forward_train_async(run).await?;
    gru.backward_async(tape, Some(y.view()), None).await?;
    Ok(())
}
