//! The CPU path: the same contract as [`mod@crate::reference`], fast, in f32.
//!
//! | file | holds |
//! |---|---|
//! | `cpu/simd.rs` | one source compiled for several instruction sets; exp, σ and tanh |
//! | `cpu/product.rs` | packed matrices and their products |
//! | `cpu/schedule.rs` | the number of threads, and of steps at a time |
//! | `cpu/cell.rs` | one cell: its definition, its weights, the rows of a task |
//! | `cpu/forward.rs`, `cpu/backward.rs` | the sequential steps |
//! | `cpu/gradients.rs` | products over all steps, after the backward steps |
//! | `cpu/weights.rs` | the packed weights of one version of the parameters |
//! | `cpu/trace.rs` | the memory between a forward pass and its backward pass |
//! | `cpu/layer.rs` | a layer's steps, all or some, split into tasks |
//! | this file | whole runs, layer by layer |
//!
//! Weights are packed once for each version of the parameters. Threads take batch rows; if there
//! are too few rows for a large state, they share a step. The results do not depend on the number
//! of threads, to the bit.

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

use crate::error::{Result, try_untouched};
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

/// Returns an error if this process was forked from one that had used the CPU device: its threads
/// are in the parent. (Threads of rayon that only the caller's own code had used are not detected.)
pub(crate) fn check_process() -> Result<()> {
    static FIRST_USE: OnceLock<ProcessGuard> = OnceLock::new();
    FIRST_USE.get_or_init(ProcessGuard::here).check("the pool of threads that the CPU runs on")
}

/// y `[T, B, D·H]` or `[B, T, D·H]`, and h_n `[L·D, B, H]` or, in training, the trace that
/// [`backward`] needs.
type ForwardResult<T> = (Array3<f32>, T);

/// Runs the forward pass for inference: no dropout, zoneout by its expected value, no trace.
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

/// Runs the forward pass for training, in the memory of an earlier training run if it fits.
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

/// The gradients that a backward pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GradientsWanted {
    /// Every gradient.
    All,
    /// Every gradient except that of x, which is left empty.
    AllButX,
}

/// Runs the backward pass from dy `[T, B, D·H]` and dh_n `[L·D, B, H]`. It overwrites the run's
/// gates.
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
    let dparams = try_untouched("the parameters' gradients", layout_of_params.flat_len())?;
    let mut dparams = Params::from_flat(layout_of_params, dparams);
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", run.shape.state()), |d| Ok(standard(d)))?;
    let mut dreset = zeros("the reset state's gradient [L·D, B, H]", run.shape.state())?;
    // For gates that must be computed again: the weights for it, and memory for those of a span of
    // steps.
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
            // dx goes to the caller.
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

/// Returns the view if each row's numbers are contiguous, or else a copy.
fn whole_rows<'a>(what: &str, view: ArrayView3<'a, f32>) -> Result<CowArray<'a, f32, Ix3>> {
    if view.len_of(Axis(2)) == 1 || view.stride_of(Axis(2)) == 1 {
        return Ok(view.into());
    }
    let mut rows = untouched(what, view.dim().into())?;
    rows.assign(&view);
    Ok(rows.into())
}

/// Zeroes an array in place.
fn cleared(mut array: Array3<f32>) -> Array3<f32> {
    array.fill(0.0);
    array
}
