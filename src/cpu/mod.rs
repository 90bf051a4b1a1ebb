//! The CPU path: the contract of [`mod@crate::reference`], fast, in f32.
//!
//! | file | holds |
//! |---|---|
//! | `cpu/simd.rs` | one source compiled for several sets of instructions; exp, σ and tanh |
//! | `cpu/product.rs` | packed matrices, and the loops that multiply with them |
//! | `cpu/schedule.rs` | how many threads and how many steps at a time |
//! | `cpu/cell.rs` | one cell: what it computes, its weights, the rows that a task takes |
//! | `cpu/forward.rs`, `cpu/backward.rs` | what happens step by step |
//! | `cpu/gradients.rs` | after some steps backward, the products over all of them at once |
//! | `cpu/weights.rs` | the packed weights, of one version of the parameters |
//! | `cpu/trace.rs` | what a forward pass leaves for the backward pass: its memory |
//! | `cpu/layer.rs` | a layer's steps, all or some, cut into tasks |
//! | this file | whole runs, layer after layer |
//!
//! Weights are packed once for each version of the parameters. Threads take batch rows, or share a
//! step where rows are too few for a large state; nothing depends on how many there are, to the
//! bit.

mod backward;
mod cell;
mod forward;
mod gradients;
mod layer;
mod product;
mod schedule;
mod simd;
#[cfg(test)]
mod tests;
mod trace;
mod weights;

use std::sync::OnceLock;

use ndarray::{Array3, ArrayView3, Axis, CowArray, Ix3, s};

use crate::error::{Result, try_lazy_zeros};
use crate::plan::{Mode, recomputed_at_once};
use crate::process::ProcessGuard;
use crate::reference::{Run, check_gradients, standard, zeros};
use crate::spec::batch::{Batch, time_major, zero_padding};
use crate::spec::config::{Layout, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::{Gradients, Params};
use layer::{LayerBackward, LayerSteps};
use trace::untouched;

pub(crate) use trace::CpuTrace;
pub(crate) use weights::Weights;

/// `Ok` unless this process was forked from one that had used the CPU before: its threads stayed
/// there. (Threads of rayon that only the caller's own code used before are not known of.)
pub(crate) fn check_process() -> Result<()> {
    static FIRST_USE: OnceLock<ProcessGuard> = OnceLock::new();
    FIRST_USE.get_or_init(ProcessGuard::here).check("the pool of threads that the CPU runs on")
}

/// y `[T, B, D·H]` or `[B, T, D·H]`, h_n `[L·D, B, H]`, and in training what [`backward`] needs.
type ForwardResult<T> = (Array3<f32>, T);

/// As in use: nothing is dropped, zoneout is its expectation, and little memory is taken.
pub(crate) fn forward(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
) -> Result<ForwardResult<Array3<f32>>> {
    let (run, mut h_n) = Run::start(params.layout().config(), &batch, Mode::Inference)?;
    let packed = weights.forward(params, version)?;
    let x = whole_rows("x [T, B, I]", time_major(batch.x, batch.layout))?;
    let Shape { layers, layout, .. } = run.shape;
    let mut input: Option<Array3<f32>> = None;
    for layer in 0..layers {
        let x = input.as_ref().map_or(x.view(), |array| array.view());
        let layout = if layer + 1 < layers { Layout::TimeMajor } else { layout };
        let mut y = untouched("y [T, B, D·H]", run.shape.with_layout(layout).y())?;
        let to = time_major(y.view_mut(), layout);
        let all = LayerSteps::all(&run, layer);
        all.forward((weights, &packed[all.cells()]), x, &mut h_n, to, None)?;
        input = Some(y);
    }
    Ok((input.expect("a layer at least"), h_n))
}

/// As [`forward`], while training; in the memory that another such run of the model left, where it
/// fits.
pub(crate) fn forward_train(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
    options: RunOptions,
    cached: Option<CpuTrace>,
) -> Result<ForwardResult<CpuTrace>> {
    let (run, h0) = Run::start(params.layout().config(), &batch, Mode::Training)?;
    let packed = weights.forward(params, version)?;
    let mut trace = CpuTrace::start(run, h0, options, cached)?;
    let CpuTrace { run, x, between, h_n, cells, .. } = &mut trace;
    x.assign(&time_major(batch.x, batch.layout));
    if let Some(lengths) = batch.lengths {
        zero_padding(x, Layout::TimeMajor, lengths);
    }
    let Shape { layers, layout, .. } = run.shape;
    let mut y = untouched("y [T, B, D·H]", run.shape.y())?;
    for layer in 0..layers {
        let (below, others) = between.split_at_mut(layer);
        let input = below.last().unwrap_or(x).view();
        let to = match others.first_mut() {
            Some(between) => between.view_mut(),
            None => time_major(y.view_mut(), layout),
        };
        let all = LayerSteps::all(run, layer);
        let kept = Some(&mut cells[all.cells()]);
        all.forward((weights, &packed[all.cells()]), input, h_n, to, kept)?;
    }
    Ok((y, trace))
}

/// What is asked of a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GradientsWanted {
    /// Every gradient.
    All,
    /// All but that of x, which is left without elements.
    AllButX,
}

/// Carries dy `[T, B, D·H]` and dh_n `[L·D, B, H]` back through a run, whose gates are lost over
/// it.
pub(crate) fn backward(
    params: &Params,
    (weights, version): (&Weights, u64),
    trace: &mut CpuTrace,
    dy: Option<ArrayView3<'_, f32>>,
    dh_n: Option<ArrayView3<'_, f32>>,
    asked: GradientsWanted,
) -> Result<Gradients> {
    let CpuTrace { run, x, between, cells, workspace, .. } = trace;
    let Shape { steps, batch, hidden, layers, directions, layout, .. } = run.shape;
    check_gradients(&run.shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    let packed = weights.backward(params, version)?;
    let layout_of_params = params.layout().clone();
    let dparams = try_lazy_zeros("the parameters' gradients", layout_of_params.flat_len())?;
    let mut dparams = Params::from_flat(layout_of_params, dparams);
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", run.shape.state()), |d| Ok(standard(d)))?;
    let mut dreset = zeros("the reset state's gradient [L·D, B, H]", run.shape.state())?;
    // Where gates are to be made again: with what, and room for those of a span of steps.
    let (mut recomputing, mut at_once) = (None, steps);
    if cells.iter().any(|cell| cell.gates.is_none()) {
        recomputing = Some(weights.forward(params, version)?);
        at_once = recomputed_at_once(steps);
        while workspace.gates.len() < directions {
            let size = [at_once, batch, 4 * hidden];
            workspace.gates.push(untouched("a span's gates [T / 8, B, 4H]", size)?);
        }
    }
    let dy = match dy {
        None => None,
        Some(dy) => Some(whole_rows("dy [T, B, D·H]", time_major(dy, layout))?),
    };
    let mut doutput: Option<Array3<f32>> = None;
    for layer in (0..layers).rev() {
        let all = LayerSteps::all(run, layer);
        let of_layer = &mut cells[all.cells()];
        let (h, kept): (Vec<_>, Vec<_>) =
            of_layer.iter_mut().map(|cell| (&cell.h, cell.gates.as_mut())).unzip();
        let mut layer_backward = LayerBackward {
            weights: (weights, &packed[all.cells()]),
            input: if layer == 0 { x } else { &between[layer - 1] },
            h,
            gates: match &recomputing {
                None => kept.into_iter().flatten().collect(),
                Some(_) => workspace.gates.iter_mut().collect(),
            },
            dy: doutput.as_ref().map(|d| d.view()).or(dy.as_ref().map(|d| d.view())),
            dh: dh.slice_mut(s![all.cells(), .., ..]),
            dreset: dreset.slice_mut(s![all.cells(), .., ..]),
            // dx is the caller's.
            dinput: match workspace.doutputs.pop_if(|_| layer > 0) {
                _ if layer == 0 && asked == GradientsWanted::AllButX => None,
                None => Some(untouched("a layer's dx [T, B, ·]", all.input())?),
                Some(cached) => Some(cleared(cached)),
            },
            dparams: &mut dparams,
        };
        for span in all.cut(at_once).rev() {
            if let Some(packed) = &recomputing {
                layer_backward.make_gates(&span, (weights, &packed[span.cells()]))?;
            }
            for chunk in span.cut((weights.chunk_steps)(run.shape)).rev() {
                layer_backward.step_backward(&chunk, &span)?;
                layer_backward.add_products(&chunk, &span)?;
            }
        }
        let dinput = layer_backward.dinput;
        workspace.doutputs.extend(std::mem::replace(&mut doutput, dinput));
    }
    let x = doutput.unwrap_or_default();
    let x = match layout {
        Layout::TimeMajor => x,
        Layout::BatchFirst => standard(time_major(x.view(), layout)),
    };
    Ok(Gradients { params: dparams, x, h0: dh, reset_state: dreset })
}

/// A view of it where each row's numbers lie side by side, or a copy where they do not.
fn whole_rows<'a>(what: &str, view: ArrayView3<'a, f32>) -> Result<CowArray<'a, f32, Ix3>> {
    if view.len_of(Axis(2)) == 1 || view.stride_of(Axis(2)) == 1 {
        return Ok(view.into());
    }
    let mut rows = untouched(what, view.dim().into())?;
    rows.assign(&view);
    Ok(rows.into())
}

/// The same memory, with zeros.
fn cleared(mut array: Array3<f32>) -> Array3<f32> {
    array.fill(0.0);
    array
}
