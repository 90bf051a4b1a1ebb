//! The CPU device: a fast f32 version of [`mod@crate::reference`], with SIMD and threads.
//!
//! | file | contents |
//! |---|---|
//! | `cpu/simd.rs` and its folder | one source compiled for several instruction sets; the vectors; exp, σ and tanh |
//! | `cpu/product.rs` | packed matrices, and the loops that multiply them |
//! | `cpu/schedule.rs` | the number of threads, and of steps at a time |
//! | `cpu/cell.rs` | a cell: its configuration, its packed weights, the rows of a task |
//! | `cpu/team.rs` | threads that share each step |
//! | `cpu/forward.rs`, `cpu/backward.rs` | the recurrence, step by step |
//! | `cpu/forward/kernel.rs` | the kernel of a forward step |
//! | `cpu/forward/part.rs`, `cpu/backward/part.rs` | the part of a thread in a step |
//! | `cpu/gradients.rs` | gradients of weights and input: products over many steps at once |
//! | `cpu/long_sum.rs` | sums over many chunks of steps, in short chains of additions |
//! | `cpu/weights.rs` | the cache of packed weights for one version of the parameters |
//! | `cpu/trace.rs` | the arrays that a forward pass saves for the backward pass |
//! | `cpu/layer.rs` | the steps of a layer, cut into tasks |
//! | this file | whole runs, layer after layer |
//!
//! Weights are packed once for each version of the parameters. Each thread takes some batch rows
//! through all steps. If a state has too few rows, threads may share each step instead. The
//! results are bitwise equal for any number of threads.

mod backward;
mod cell;
mod forward;
mod gradients;
mod layer;
mod long_sum;
mod product;
mod schedule;
mod simd;
mod team;
#[cfg(test)]
mod tests;
mod trace;
mod weights;

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, CowArray, Ix3, s};

use crate::error::{Result, try_lazy_zeros};
use crate::plan::{Mode, recomputed_at_once};
use crate::process::thread_pool;
use crate::reference::{Run, check_gradients, standard, zeros};
use crate::spec::batch::{Batch, time_major, zero_padding};
use crate::spec::config::{Layout, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::{Gradients, Params};
use gradients::CellSums;
use layer::{LayerBackward, LayerSteps};
use trace::untouched;

pub(crate) use trace::CpuTrace;
pub(crate) use weights::Weights;

/// Checks that this process was not forked from one that used the thread pool before.
pub(crate) fn check_process() -> Result<()> {
    thread_pool().check("the thread pool of the CPU device")
}

/// Runs [`forward_into`] and returns y, `[T, B, D·H]` or `[B, T, D·H]`, and h_n `[L·D, B, H]`.
pub(crate) fn forward(
    params: &Params,
    weights: (&Weights, u64),
    batch: Batch<'_>,
) -> Result<(Array3<f32>, Array3<f32>)> {
    let shape = batch.check(params.layout().config())?;
    let mut y = untouched("y [T, B, D·H]", shape.y())?;
    let h_n = forward_into(params, weights, batch, y.view_mut())?;
    Ok((y, h_n))
}

/// Runs the forward pass for inference: no dropout, zoneout by its expected value, no trace saved.
/// Writes every element of y, `[T, B, D·H]` or `[B, T, D·H]`, whose rows must be contiguous. Returns
/// h_n `[L·D, B, H]`.
pub(crate) fn forward_into(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
    y: ArrayViewMut3<'_, f32>,
) -> Result<Array3<f32>> {
    let (run, mut h_n) = Run::start(params.layout().config(), &batch, Mode::Inference)?;
    let packed = weights.forward(params, version)?;
    let x = with_contiguous_rows("x [T, B, I]", time_major(batch.x, batch.layout))?;
    let Shape { layers, layout, .. } = run.shape;
    let mut input: Option<Array3<f32>> = None;
    for layer in 0..layers - 1 {
        let mut layer_y = untouched("y [T, B, D·H]", run.shape.with_layout(Layout::TimeMajor).y())?;
        let x = input.as_ref().map_or(x.view(), |array| array.view());
        let all = LayerSteps::all(&run, layer);
        all.forward((weights, &packed[all.cells()]), x, &mut h_n, layer_y.view_mut(), None)?;
        input = Some(layer_y);
    }
    let x = input.as_ref().map_or(x.view(), |array| array.view());
    let last = LayerSteps::all(&run, layers - 1);
    last.forward((weights, &packed[last.cells()]), x, &mut h_n, time_major(y, layout), None)?;
    Ok(h_n)
}

/// Runs the forward pass for training: with dropout and zoneout, and with a trace for [`backward`].
/// Reuses the arrays of the `cached` trace of an earlier run if they have the right shapes. Writes y
/// as [`forward_into`] does.
pub(crate) fn forward_train_into(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
    options: RunOptions,
    cached: Option<CpuTrace>,
    mut y: ArrayViewMut3<'_, f32>,
) -> Result<CpuTrace> {
    let (run, h0) = Run::start(params.layout().config(), &batch, Mode::Training)?;
    let packed = weights.forward(params, version)?;
    let mut trace = CpuTrace::start(run, h0, options, cached)?;
    let CpuTrace { run, x, layer_y, h_n, cells, .. } = &mut trace;
    x.assign(&time_major(batch.x, batch.layout));
    if let Some(lengths) = batch.lengths {
        zero_padding(x, Layout::TimeMajor, lengths);
    }
    let Shape { layers, layout, .. } = run.shape;
    for layer in 0..layers {
        let (below, others) = layer_y.split_at_mut(layer);
        let input = below.last().unwrap_or(x).view();
        let y_view = match others.first_mut() {
            Some(layer_y) => layer_y.view_mut(),
            None => time_major(y.view_mut(), layout),
        };
        let all = LayerSteps::all(run, layer);
        let saved = Some(&mut cells[all.cells()]);
        all.forward((weights, &packed[all.cells()]), input, h_n, y_view, saved)?;
    }
    Ok(trace)
}

/// The gradients that a backward pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GradientsWanted {
    /// Every gradient.
    All,
    /// Every gradient except dx, which stays empty.
    AllButX,
}

/// Runs the backward pass from dy `[T, B, D·H]` and dh_n `[L·D, B, H]`. Overwrites the gates in
/// `trace` with their gradients.
pub(crate) fn backward(
    params: &Params,
    (weights, version): (&Weights, u64),
    trace: &mut CpuTrace,
    dy: Option<ArrayView3<'_, f32>>,
    dh_n: Option<ArrayView3<'_, f32>>,
    wanted: GradientsWanted,
) -> Result<Gradients> {
    let CpuTrace { run, x, layer_y, cells, workspace, .. } = trace;
    let Shape { steps, batch, hidden, layers, directions, layout, .. } = run.shape;
    check_gradients(&run.shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    let packed = weights.backward(params, version)?;
    let param_layout = params.layout().clone();
    let dparams = try_lazy_zeros("the parameters' gradients", param_layout.flat_len())?;
    let mut dparams = Params::from_flat(param_layout, dparams);
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", run.shape.state()), |d| Ok(standard(d)))?;
    let mut dreset = zeros("the reset state's gradient [L·D, B, H]", run.shape.state())?;
    // If the gates were not saved, they are recomputed for a span of steps at a time. This takes
    // the forward weights, and room for the gates of one span.
    let (mut recompute_weights, mut span_steps) = (None, steps);
    if cells.iter().any(|cell| cell.gates.is_none()) {
        recompute_weights = Some(weights.forward(params, version)?);
        span_steps = recomputed_at_once(steps);
        while workspace.gates.len() < directions {
            let size = [span_steps, batch, 4 * hidden];
            workspace.gates.push(untouched("recomputed gates [T / 8, B, 4H]", size)?);
        }
    }
    let dy = match dy {
        None => None,
        Some(dy) => Some(with_contiguous_rows("dy [T, B, D·H]", time_major(dy, layout))?),
    };
    let mut doutput: Option<Array3<f32>> = None;
    for layer in (0..layers).rev() {
        let all = LayerSteps::all(run, layer);
        let layer_cells = &mut cells[all.cells()];
        let (h, saved_gates): (Vec<_>, Vec<_>) =
            layer_cells.iter_mut().map(|cell| (&cell.h, cell.gates.as_mut())).unzip();
        let mut layer_backward = LayerBackward {
            weights: (weights, &packed[all.cells()]),
            input: if layer == 0 { x } else { &layer_y[layer - 1] },
            h,
            gates: match &recompute_weights {
                None => saved_gates.into_iter().flatten().collect(),
                Some(_) => workspace.gates.iter_mut().collect(),
            },
            dy: doutput.as_ref().map(|d| d.view()).or(dy.as_ref().map(|d| d.view())),
            dh: dh.slice_mut(s![all.cells(), .., ..]),
            dreset: dreset.slice_mut(s![all.cells(), .., ..]),
            // dx of the first layer is returned to the caller, so it gets a new array.
            dinput: match workspace.doutputs.pop_if(|_| layer > 0) {
                _ if layer == 0 && wanted == GradientsWanted::AllButX => None,
                None => Some(untouched("a layer's dx [T, B, ·]", all.input_dim())?),
                Some(cached) => Some(zeroed(cached)),
            },
            dparams: &mut dparams,
            sums: (0..directions).map(|_| CellSums::new(hidden)).collect::<Result<_>>()?,
        };
        for span in all.chunks(span_steps).rev() {
            if let Some(packed) = &recompute_weights {
                layer_backward.recompute_gates(&span, (weights, &packed[span.cells()]))?;
            }
            for chunk in span.chunks((weights.chunk_steps)(run.shape)).rev() {
                layer_backward.step_backward(&chunk, &span)?;
                layer_backward.add_products(&chunk, &span)?;
            }
        }
        let dinput = layer_backward.finish(layer);
        workspace.doutputs.extend(std::mem::replace(&mut doutput, dinput));
    }
    let x = doutput.unwrap_or_default();
    let x = match layout {
        Layout::TimeMajor => x,
        Layout::BatchFirst => standard(time_major(x.view(), layout)),
    };
    Ok(Gradients { params: dparams, x, h0: dh, reset_state: dreset })
}

/// Returns the view if its rows are contiguous, or else a copy with contiguous rows.
fn with_contiguous_rows<'a>(
    what: &str,
    view: ArrayView3<'a, f32>,
) -> Result<CowArray<'a, f32, Ix3>> {
    if view.len_of(Axis(2)) == 1 || view.stride_of(Axis(2)) == 1 {
        return Ok(view.into());
    }
    let mut rows = untouched(what, view.dim().into())?;
    rows.assign(&view);
    Ok(rows.into())
}

/// Fills an array with zeros and returns it.
fn zeroed(mut array: Array3<f32>) -> Array3<f32> {
    array.fill(0.0);
    array
}
