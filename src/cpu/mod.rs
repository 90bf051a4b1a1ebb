//! The CPU path: the contract of [`mod@crate::reference`], fast, in f32.
//!
//! | file | holds |
//! |---|---|
//! | `cpu/simd.rs` | one source compiled for several sets of instructions; exp, σ and tanh |
//! | `cpu/product.rs` | packed matrices, and the loops that multiply with them |
//! | `cpu/steps.rs` | what happens step by step, forward and backward |
//! | `cpu/gradients.rs` | after some steps backward, the products over all of them at once |
//! | `cpu/layer.rs` | a layer's steps, all or some, cut into tasks |
//! | this file | whole runs: weights, memory, threads, layer after layer |
//!
//! Weights are packed once for each version of the parameters. Threads take batch rows, or share a
//! step where rows are too few for a large state; nothing depends on how many there are, to the bit.

mod gradients;
mod layer;
mod product;
mod simd;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ndarray::{Array3, ArrayView3, Axis, CowArray, Ix3, s};
use rayon::prelude::*;

use crate::error::{Result, try_untouched};
use crate::plan::{Mode, recomputed_at_once};
use crate::process::ProcessGuard;
use crate::reference::{Run, check_gradients, standard, zeros};
use crate::spec::batch::{Batch, time_major, zero_padding};
use crate::spec::config::{Layout, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::{Gradients, Params};
use layer::{LayerBackward, Span, chunk_steps};
use simd::Level;
use steps::{BackwardWeights, ForwardWeights};

/// Below so many floating-point operations, some 20 µs, other threads are not worth waking.
const WORTH_THREADS: f64 = 2e6;

/// So many in one step are worth sharing it, which costs a few µs.
const WORTH_SHARING: f64 = 4e6;

/// `Ok` unless this process was forked from one that had used the CPU before: its threads stayed there.
/// (Threads of rayon that only the caller's own code used before are not known of.)
pub(crate) fn check_process() -> Result<()> {
    static FIRST_USE: OnceLock<ProcessGuard> = OnceLock::new();
    FIRST_USE.get_or_init(ProcessGuard::here).check("the pool of threads that the CPU runs on")
}

/// The weights of all cells as forward and backward steps read them, of one version of the parameters.
#[derive(Debug)]
pub(crate) struct Weights {
    level: Level,
    /// How steps are laid out over threads, for a layer that reads so many numbers.
    lay_out: fn(Shape, usize) -> Threads,
    /// After how many steps backward the products over them are made.
    chunk_steps: fn(Shape) -> usize,
    forward: Place<ForwardWeights>,
    backward: Place<BackwardWeights>,
}

/// The weights that were packed last, and of which version they are.
type Place<W> = Mutex<Option<(u64, Arc<Vec<W>>)>>;

impl Default for Weights {
    fn default() -> Self {
        let lay_out = |shape, width| Threads::new(shape, width, rayon::current_num_threads());
        Self {
            level: Level::best(),
            lay_out,
            chunk_steps,
            forward: Mutex::default(),
            backward: Mutex::default(),
        }
    }
}

impl Weights {
    fn forward(&self, params: &Params, version: u64) -> Result<Arc<Vec<ForwardWeights>>> {
        packed(&self.forward, params, version, |layer, direction, is_parallel| {
            let ranges = params.layout().cell(layer, direction);
            ForwardWeights::new(params, &ranges, self.level, is_parallel)
        })
    }

    fn backward(&self, params: &Params, version: u64) -> Result<Arc<Vec<BackwardWeights>>> {
        packed(&self.backward, params, version, |layer, direction, is_parallel| {
            let ranges = params.layout().cell(layer, direction);
            BackwardWeights::new(params, &ranges, self.level, is_parallel)
        })
    }
}

/// The cells' weights of this version: those packed before, or new ones.
fn packed<W>(
    place: &Place<W>,
    params: &Params,
    version: u64,
    pack: impl Fn(usize, usize, bool) -> Result<W>,
) -> Result<Arc<Vec<W>>> {
    // What a panic left behind is whole: it is put in place last.
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, weights)) = place.as_ref() {
        if *of == version {
            return Ok(weights.clone());
        }
    }
    let config = params.layout().config();
    let is_parallel = params.as_slice().len() as f64 > WORTH_THREADS / 10.0;
    let cells = (0..config.layers)
        .flat_map(|layer| (0..config.directions()).map(move |direction| (layer, direction)));
    let weights = cells.map(|(layer, direction)| pack(layer, direction, is_parallel));
    let weights = Arc::new(weights.collect::<Result<Vec<_>>>()?);
    *place = Some((version, weights.clone()));
    Ok(weights)
}

/// What a forward pass leaves for a backward pass, and a backward pass for the next run of the same
/// shape: its memory. Arrays are time-major, whatever the batch's layout. A run writes all of what it
/// then reads, so whatever stood there before counts for nothing.
#[derive(Debug)]
pub(crate) struct Trace {
    run: Run<f32>,
    /// `[T, B, I]`, zeros at padding.
    x: Array3<f32>,
    /// y `[T, B, D·H]` of each layer below the last.
    between: Vec<Array3<f32>>,
    /// `[L·D, B, H]`
    h_n: Array3<f32>,
    /// Layer-major, forward before reverse.
    cells: Vec<CellTrace>,
    room: Room,
}

/// What one direction of one layer leaves.
#[derive(Debug)]
struct CellTrace {
    /// `[T, B, H]`: the state that each step starts from; 0 at padding.
    h: Array3<f32>,
    /// `[T, B, 4H]`: r, z, n and the past's part of n; 0 at padding. None where they are made again.
    gates: Option<Array3<f32>>,
}

/// What backward passes work in; made by the first that needs it.
#[derive(Debug, Default)]
struct Room {
    /// `[T / 8, B, 4H]` for each direction, where gates are made again.
    gates: Vec<Array3<f32>>,
    /// `[T, B, D·H]`: gradients of what layers put out, one that is read and one that is written at most.
    doutputs: Vec<Array3<f32>>,
}

impl Trace {
    /// For a run that starts from the states h0: in the memory of the last run, or in new.
    fn start(
        run: Run<f32>,
        h0: Array3<f32>,
        options: RunOptions,
        rest: Option<Self>,
    ) -> Result<Self> {
        let fits = |rest: &Self| {
            let recomputes = rest.cells.iter().all(|cell| cell.gates.is_none());
            rest.run.shape == run.shape && recomputes == options.recompute
        };
        // What does not fit is gone before there is anything new.
        if let Some(rest) = rest.filter(fits) {
            return Ok(Self { run, h_n: h0, ..rest });
        }
        let Shape { steps, batch, input, hidden, layers, directions, .. } = run.shape;
        let cell = |_| {
            let h = untouched("h [T, B, H]", [steps, batch, hidden])?;
            let gates = || untouched("gates [T, B, 4H]", [steps, batch, 4 * hidden]);
            Ok(CellTrace { h, gates: (!options.recompute).then(gates).transpose()? })
        };
        let between = |_| untouched("a layer's y [T, B, D·H]", [steps, batch, directions * hidden]);
        Ok(Self {
            x: untouched("x [T, B, I]", [steps, batch, input])?,
            between: (1..layers).map(between).collect::<Result<_>>()?,
            h_n: h0,
            cells: (0..layers * directions).map(cell).collect::<Result<_>>()?,
            room: Room::default(),
            run,
        })
    }

    /// Of the run, and of any that may follow in its memory.
    #[cfg(test)]
    pub fn shape(&self) -> Shape {
        self.run.shape
    }

    /// h_n `[L·D, B, H]`
    pub fn h_n(&self) -> &Array3<f32> {
        &self.h_n
    }
}

/// How a layer's steps are laid out over threads.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Threads {
    /// The batch rows that a task takes.
    rows: usize,
    /// The threads that share each of its steps.
    sharing: usize,
    /// Whether other threads are woken at all.
    is_parallel: bool,
}

impl Threads {
    /// For `threads` threads and a layer that reads `width` numbers.
    fn new(shape: Shape, width: usize, threads: usize) -> Self {
        let Shape { steps, batch, hidden, directions, .. } = shape;
        let step = 6.0 * (batch * hidden) as f64 * (hidden + width) as f64;
        if threads == 1 || step * ((steps * directions) as f64) < WORTH_THREADS {
            return Self { rows: batch, sharing: 1, is_parallel: false };
        }
        // Fewer rows than eight would leave the weights' way from the cache the longer part.
        let groups = (threads / directions).clamp(1, (batch / 8).max(1));
        let rows = batch.div_ceil(groups);
        let idle = threads / (groups * directions);
        let share = idle > 1 && 6.0 * (rows * hidden * hidden) as f64 > WORTH_SHARING;
        Self { rows, sharing: if share { idle } else { 1 }, is_parallel: true }
    }

    /// Runs a layer's tasks.
    fn run<T: Send>(
        self,
        tasks: Vec<T>,
        work: impl Fn(T) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        if self.is_parallel && (tasks.len() > 1 || self.sharing > 1) {
            // Also for a single one: inside the pool its steps are shared at less cost.
            return tasks.into_par_iter().with_max_len(1).try_for_each(work);
        }
        tasks.into_iter().try_for_each(work)
    }
}

/// y `[T, B, D·H]` or `[B, T, D·H]`, h_n `[L·D, B, H]`, and in training what [`backward`] needs.
type Passed<T> = (Array3<f32>, T);

/// As in use: nothing is dropped, zoneout is its expectation, and little memory is taken.
pub(crate) fn forward(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
) -> Result<Passed<Array3<f32>>> {
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
        let all = Span::all(&run, layer);
        all.forward((weights, &packed[all.cells()]), x, &mut h_n, to, None)?;
        input = Some(y);
    }
    Ok((input.expect("a layer at least"), h_n))
}

/// As [`forward`], while training; in the memory that another such run of the model left, where it fits.
pub(crate) fn forward_train(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
    options: RunOptions,
    rest: Option<Trace>,
) -> Result<Passed<Trace>> {
    let (run, h0) = Run::start(params.layout().config(), &batch, Mode::Training)?;
    let packed = weights.forward(params, version)?;
    let mut trace = Trace::start(run, h0, options, rest)?;
    let Trace { run, x, between, h_n, cells, .. } = &mut trace;
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
        let all = Span::all(run, layer);
        let kept = Some(&mut cells[all.cells()]);
        all.forward((weights, &packed[all.cells()]), input, h_n, to, kept)?;
    }
    Ok((y, trace))
}

/// What is asked of a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Every gradient.
    All,
    /// All but that of x, which is left without elements.
    AllButX,
}

/// Carries dy `[T, B, D·H]` and dh_n `[L·D, B, H]` back through a run, whose gates are lost over it.
pub(crate) fn backward(
    params: &Params,
    (weights, version): (&Weights, u64),
    trace: &mut Trace,
    dy: Option<ArrayView3<'_, f32>>,
    dh_n: Option<ArrayView3<'_, f32>>,
    asked: Asked,
) -> Result<Gradients> {
    let Trace { run, x, between, cells, room, .. } = trace;
    let Shape { steps, batch, hidden, layers, directions, layout, .. } = run.shape;
    check_gradients(&run.shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    let packed = weights.backward(params, version)?;
    let layout_of_params = params.layout().clone();
    let dparams = try_untouched("the parameters' gradients", layout_of_params.flat_len())?;
    let mut dparams = Params::from_flat(layout_of_params, dparams);
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", run.shape.state()), |d| Ok(standard(d)))?;
    let mut dreset = zeros("the reset state's gradient [L·D, B, H]", run.shape.state())?;
    // Where gates are to be made again: with what, and room for those of a span of steps.
    let (mut again, mut at_once) = (None, steps);
    if cells.iter().any(|cell| cell.gates.is_none()) {
        again = Some(weights.forward(params, version)?);
        at_once = recomputed_at_once(steps);
        while room.gates.len() < directions {
            let size = [at_once, batch, 4 * hidden];
            room.gates.push(untouched("a span's gates [T / 8, B, 4H]", size)?);
        }
    }
    let dy = match dy {
        None => None,
        Some(dy) => Some(whole_rows("dy [T, B, D·H]", time_major(dy, layout))?),
    };
    let mut doutput: Option<Array3<f32>> = None;
    for layer in (0..layers).rev() {
        let all = Span::all(run, layer);
        let of_layer = &mut cells[all.cells()];
        let (h, kept): (Vec<_>, Vec<_>) =
            of_layer.iter_mut().map(|cell| (&cell.h, cell.gates.as_mut())).unzip();
        let mut undoing = LayerBackward {
            weights: (weights, &packed[all.cells()]),
            input: if layer == 0 { x } else { &between[layer - 1] },
            h,
            gates: match &again {
                None => kept.into_iter().flatten().collect(),
                Some(_) => room.gates.iter_mut().collect(),
            },
            dy: doutput.as_ref().map(|d| d.view()).or(dy.as_ref().map(|d| d.view())),
            dh: dh.slice_mut(s![all.cells(), .., ..]),
            dreset: dreset.slice_mut(s![all.cells(), .., ..]),
            // dx is the caller's.
            dinput: match room.doutputs.pop_if(|_| layer > 0) {
                _ if layer == 0 && asked == Asked::AllButX => None,
                None => Some(untouched("a layer's dx [T, B, ·]", all.input())?),
                Some(resting) => Some(cleared(resting)),
            },
            dparams: &mut dparams,
        };
        for span in all.cut(at_once).rev() {
            if let Some(packed) = &again {
                undoing.make_gates(&span, (weights, &packed[span.cells()]))?;
            }
            for chunk in span.cut((weights.chunk_steps)(run.shape)).rev() {
                undoing.undo_steps(&chunk, &span)?;
                undoing.add_products(&chunk, &span)?;
            }
        }
        let dinput = undoing.dinput;
        room.doutputs.extend(std::mem::replace(&mut doutput, dinput));
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

/// Zeros, touched by none yet.
fn untouched(what: &str, shape: [usize; 3]) -> Result<Array3<f32>> {
    let zeros = try_untouched(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("as many as the shape holds"))
}

/// The same memory, with zeros.
fn cleared(mut array: Array3<f32>) -> Array3<f32> {
    array.fill(0.0);
    array
}
