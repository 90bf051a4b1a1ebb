//! The CPU path: the contract of [`mod@crate::reference`], fast, in f32.
//!
//! | file | holds |
//! |---|---|
//! | `cpu/simd.rs` | one source compiled for several sets of instructions; exp, σ and tanh |
//! | `cpu/product.rs` | packed matrices, and the loops that multiply with them |
//! | `cpu/steps.rs` | what happens step by step, forward and backward |
//! | this file | layers, spans, threads, and after a span's steps the products over all of them at once |
//!
//! Weights are packed once for each version of the parameters. Threads take batch rows, or share a
//! step where rows are too few for a large state; nothing depends on how many there are, to the bit.

mod product;
mod simd;
mod steps;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, s};
use rayon::prelude::*;

use crate::batch::{Batch, time_major, zero_padding};
use crate::config::{Layout, Reset, Shape};
use crate::error::{Result, try_zeros};
use crate::options::Options;
use crate::params::{Gradients, Params};
use crate::plan::{Mode, recomputed_at_once};
use crate::reference::{Run, Walk, check_gradients, standard, zeros};
use product::{AddProduct, AddTransposed, Left, Packed, Source, add_product};
use simd::{Kernel, Level, Vector, load, store};
use steps::{Backward, BackwardWeights, Forward, ForwardWeights, States};

/// Below so many floating-point operations, some 20 µs, other threads are not worth waking.
const WORTH_THREADS: f64 = 2e6;

/// So many in one step are worth sharing it, which costs a few µs.
const WORTH_SHARING: f64 = 4e6;

/// Steps and rows whose contribution to the weights' gradients is added at once: what stays in the
/// cache.
const DEPTH: usize = 512;

/// The weights of all cells as forward and backward steps read them, of one version of the parameters.
#[derive(Debug)]
pub(crate) struct Weights {
    level: Level,
    lay_out: fn(Shape, usize) -> Threads,
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

/// What a forward pass leaves for a backward pass. Arrays are time-major, whatever the batch's layout.
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
}

/// What one direction of one layer leaves.
#[derive(Debug)]
struct CellTrace {
    /// `[T, B, H]`: the state that each step starts from; 0 at padding.
    h: Array3<f32>,
    /// `[T, B, 4H]`: r, z, n and the past's part of n; 0 at padding. None where they are made again.
    gates: Option<Array3<f32>>,
}

impl Trace {
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
    let (run, h0) = Run::start(params.layout().config(), &batch, Mode::Inference)?;
    let packed = weights.forward(params, version)?;
    let x = time_major(batch.x, batch.layout);
    let rows_lie_whole = x.len_of(Axis(2)) == 1 || x.stride_of(Axis(2)) == 1;
    let copy = (!rows_lie_whole).then(|| standard(x));
    let mut h_n = h0;
    let mut input: Option<Array3<f32>> = None;
    for layer in 0..run.shape.layers {
        let x = input.as_ref().or(copy.as_ref()).map_or(x, |array| array.view());
        input = Some(layer_forward(&run, (weights, &packed), layer, x, &mut h_n, None)?);
    }
    Ok((input.expect("a layer at least"), h_n))
}

/// As [`forward`], while training.
pub(crate) fn forward_train(
    params: &Params,
    (weights, version): (&Weights, u64),
    batch: Batch<'_>,
    options: Options,
) -> Result<Passed<Trace>> {
    let (run, mut h_n) = Run::start(params.layout().config(), &batch, Mode::Training)?;
    let packed = weights.forward(params, version)?;
    let Shape { steps, batch: rows, hidden, layers, directions, .. } = run.shape;
    let mut x = standard(time_major(batch.x, batch.layout));
    if let Some(lengths) = batch.lengths {
        zero_padding(&mut x, Layout::TimeMajor, lengths);
    }
    let (mut cells, mut between): (Vec<CellTrace>, Vec<_>) = Default::default();
    for layer in 0..layers {
        for _ in 0..directions {
            let h = zeros("h [T, B, H]", [steps, rows, hidden])?;
            let gates = || zeros("gates [T, B, 4H]", [steps, rows, 4 * hidden]);
            let gates = (!options.recompute).then(gates).transpose()?;
            cells.push(CellTrace { h, gates });
        }
        let input = between.last().unwrap_or(&x).view();
        let kept = &mut cells[layer * directions..];
        let y = layer_forward(&run, (weights, &packed), layer, input, &mut h_n, Some(kept))?;
        between.push(y);
    }
    let y = between.pop().expect("a layer at least");
    Ok((y, Trace { run, x, between, h_n, cells }))
}

/// y of a layer: the last one's in the batch's layout, the others' time-major.
fn layer_forward(
    run: &Run<f32>,
    (weights, packed): (&Weights, &[ForwardWeights]),
    layer: usize,
    x: ArrayView3<'_, f32>,
    h_n: &mut Array3<f32>,
    kept: Option<&mut [CellTrace]>,
) -> Result<Array3<f32>> {
    let Shape { steps, batch, hidden, layers, directions, layout, .. } = run.shape;
    let is_last = layer + 1 == layers;
    let [first, second] = if is_last { layout.order(steps, batch) } else { [steps, batch] };
    let mut y = zeros("y [T, B, D·H]", [first, second, directions * hidden])?;
    let y_view = if is_last { time_major(y.view_mut(), layout) } else { y.view_mut() };
    let threads = (weights.lay_out)(run.shape, x.len_of(Axis(2)));
    let walks: Vec<_> = (0..directions).map(|direction| run.walk(layer, direction)).collect();
    let mut states = h_n.slice_mut(s![layer * directions..(layer + 1) * directions, .., ..]);
    let mut kept = kept.map(|cells| cells.iter_mut());
    let mut tasks = Vec::new();
    let halves = by_direction(y_view, hidden);
    for (direction, (mut y, mut state)) in
        halves.into_iter().zip(states.outer_iter_mut()).enumerate()
    {
        let (mut h, mut gates) = match kept.as_mut().and_then(Iterator::next) {
            None => (None, None),
            Some(CellTrace { h, gates }) => {
                (Some(h.view_mut()), gates.as_mut().map(|gates| gates.view_mut()))
            }
        };
        for first_row in (0..batch).step_by(threads.rows) {
            let rows = threads.rows.min(batch - first_row);
            let (y_rows, y_rest) = y.split_at(Axis(1), rows);
            let (state_rows, state_rest) = state.split_at(Axis(0), rows);
            (y, state) = (y_rest, state_rest);
            tasks.push(Forward {
                weights: &packed[layer * directions + direction],
                walk: &walks[direction],
                first_row,
                threads: threads.sharing,
                times: 0..steps,
                x: x.slice_move(s![.., first_row..first_row + rows, ..]),
                states: States::New { state: state_rows, y: y_rows, kept: take_rows(&mut h, rows) },
                gates: take_rows(&mut gates, rows),
            });
        }
    }
    threads.run(tasks, Forward::run)?;
    Ok(y)
}

/// The first of the rows that are left of `[T, B, ·]`.
fn take_rows<'a>(
    rest: &mut Option<ArrayViewMut3<'a, f32>>,
    rows: usize,
) -> Option<ArrayViewMut3<'a, f32>> {
    let (taken, others) = rest.take()?.split_at(Axis(1), rows);
    *rest = Some(others);
    Some(taken)
}

/// Each direction's half of `[T, B, D·H]`.
fn by_direction(array: ArrayViewMut3<'_, f32>, hidden: usize) -> Vec<ArrayViewMut3<'_, f32>> {
    let mut rest = array;
    let mut halves = Vec::new();
    while rest.len_of(Axis(2)) > hidden {
        let (half, others) = rest.split_at(Axis(2), hidden);
        halves.push(half);
        rest = others;
    }
    halves.push(rest);
    halves
}

/// Carries dy `[T, B, D·H]` and dh_n `[L·D, B, H]` back through a run.
pub(crate) fn backward(
    params: &Params,
    (weights, version): (&Weights, u64),
    trace: Trace,
    dy: Option<ArrayView3<'_, f32>>,
    dh_n: Option<ArrayView3<'_, f32>>,
) -> Result<Gradients> {
    let Trace { run, x, between, mut cells, .. } = trace;
    let Shape { steps, batch, hidden, layers, directions, layout, .. } = run.shape;
    check_gradients(&run.shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    let packed = weights.backward(params, version)?;
    let mut dparams = Params::zeros(params.layout().config())?;
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", run.shape.state()), |d| Ok(standard(d)))?;
    let mut dreset = zeros("the reset state's gradient [L·D, B, H]", run.shape.state())?;
    let mut doutput = dy.map(|dy| standard(time_major(dy, layout)));
    // Where gates are to be made again: with what, and room for those of a span of steps.
    let (mut again, mut room, mut at_once) = (None, Vec::new(), steps);
    if cells.iter().any(|cell| cell.gates.is_none()) {
        again = Some(weights.forward(params, version)?);
        at_once = recomputed_at_once(steps);
        for _ in 0..directions {
            room.push(zeros("a span's gates [T / 8, B, 4H]", [at_once, batch, 4 * hidden])?);
        }
    }
    for layer in (0..layers).rev() {
        let input = if layer == 0 { &x } else { &between[layer - 1] };
        let width = input.len_of(Axis(2));
        let mut dinput = zeros("a layer's dx [T, B, ·]", input.dim().into())?;
        let cells = cells.split_off(layer * directions).into_iter();
        let (h, kept): (Vec<_>, Vec<_>) = cells.map(|cell| (cell.h, cell.gates)).unzip();
        let mut kept: Option<Vec<_>> = kept.into_iter().collect();
        let gates = kept.as_mut().unwrap_or(&mut room);
        for first in (0..steps).step_by(at_once).rev() {
            let span = Span { run: &run, layer, steps: first..steps.min(first + at_once), h: &h };
            if let Some(packed) = &again {
                span.make_gates((weights, packed), input.view(), gates)?;
            }
            let dstates = (&mut dh, &mut dreset);
            let is_parallel =
                span.undo_steps((weights, &packed), doutput.as_ref(), gates, dstates)?;
            for direction in 0..directions {
                let cell = layer * directions + direction;
                let times = run.walk(layer, direction).times_of(span.steps.clone());
                let rows = |width: usize| times.start * batch * width..times.end * batch * width;
                // Products over a span can be too short for the threads that its steps are worth.
                let product = rows(6 * hidden).len() as f64 * width.max(hidden) as f64;
                let is_worth = again.is_none() || product > WORTH_THREADS;
                let after = After {
                    weights: &packed[cell],
                    input: &whole(input)[rows(width)],
                    width,
                    h: &whole(&h[direction])[rows(hidden)],
                    gates: &whole(&gates[direction])[..rows(4 * hidden).len()],
                    hidden,
                    is_parallel: is_parallel && is_worth,
                };
                let dinput = dinput.as_slice_mut().expect("standard layout");
                after.input_gradient(&mut dinput[rows(width)])?;
                after.parameter_gradients(layer, direction, &mut dparams)?;
            }
        }
        doutput = Some(dinput);
    }
    let x = doutput.expect("a layer at least");
    let x = standard(time_major(x.view(), layout));
    Ok(Gradients { params: dparams, x, h0: dh, reset_state: dreset })
}

fn whole(array: &Array3<f32>) -> &[f32] {
    array.as_slice().expect("standard layout")
}

/// Steps that the backward pass takes at once through a layer: all, or as many as it makes gates again
/// for.
struct Span<'a> {
    run: &'a Run<f32>,
    layer: usize,
    /// Each direction's own.
    steps: Range<usize>,
    /// `[T, B, H]` of each direction, as its [`CellTrace`] has it.
    h: &'a [Array3<f32>],
}

impl Span<'_> {
    fn walks(&self) -> Vec<Walk<'_, f32>> {
        let directions = 0..self.run.shape.directions;
        directions.map(|direction| self.run.walk(self.layer, direction)).collect()
    }

    fn threads(&self, weights: &Weights, width: usize) -> Threads {
        (weights.lay_out)(Shape { steps: self.steps.len(), ..self.run.shape }, width)
    }

    /// The gates of each direction, from the states that steps start from.
    fn make_gates(
        &self,
        (weights, packed): (&Weights, &[ForwardWeights]),
        x: ArrayView3<'_, f32>,
        gates: &mut [Array3<f32>],
    ) -> Result<()> {
        let Shape { batch, directions, .. } = self.run.shape;
        let threads = self.threads(weights, x.len_of(Axis(2)));
        let walks = self.walks();
        let mut tasks = Vec::new();
        for (direction, gates) in gates.iter_mut().enumerate() {
            let times = walks[direction].times_of(self.steps.clone());
            let mut gates = Some(gates.slice_mut(s![..times.len(), .., ..]));
            for first_row in (0..batch).step_by(threads.rows) {
                let rows = threads.rows.min(batch - first_row);
                let of_rows = s![.., first_row..first_row + rows, ..];
                tasks.push(Forward {
                    weights: &packed[self.layer * directions + direction],
                    walk: &walks[direction],
                    first_row,
                    threads: threads.sharing,
                    times: times.clone(),
                    x: x.slice_move(of_rows),
                    states: States::Kept(self.h[direction].slice(of_rows)),
                    gates: take_rows(&mut gates, rows),
                });
            }
        }
        threads.run(tasks, Forward::run)
    }

    /// Its steps, backward, in all directions; whether what follows is worth several threads too.
    fn undo_steps(
        &self,
        (weights, packed): (&Weights, &[BackwardWeights]),
        doutput: Option<&Array3<f32>>,
        gates: &mut [Array3<f32>],
        (dh, dreset): (&mut Array3<f32>, &mut Array3<f32>),
    ) -> Result<bool> {
        let Shape { batch, hidden, directions, .. } = self.run.shape;
        let threads = self.threads(weights, hidden);
        let walks = self.walks();
        let of_layer = self.layer * directions..(self.layer + 1) * directions;
        let mut dh = dh.slice_mut(s![of_layer.clone(), .., ..]);
        let mut dreset = dreset.slice_mut(s![of_layer, .., ..]);
        let mut tasks = Vec::new();
        let of_cells = gates.iter_mut().zip(dh.outer_iter_mut()).zip(dreset.outer_iter_mut());
        for (direction, ((gates, mut dh), mut dreset)) in of_cells.enumerate() {
            let times = walks[direction].times_of(self.steps.clone());
            let mut gates = gates.slice_mut(s![..times.len(), .., ..]);
            for first_row in (0..batch).step_by(threads.rows) {
                let rows = threads.rows.min(batch - first_row);
                let (gates_rows, gates_rest) = gates.split_at(Axis(1), rows);
                let (dh_rows, dh_rest) = dh.split_at(Axis(0), rows);
                let (dreset_rows, dreset_rest) = dreset.split_at(Axis(0), rows);
                (gates, dh, dreset) = (gates_rest, dh_rest, dreset_rest);
                let of_rows = first_row..first_row + rows;
                let units = direction * hidden..(direction + 1) * hidden;
                tasks.push(Backward {
                    weights: &packed[self.layer * directions + direction],
                    walk: &walks[direction],
                    first_row,
                    threads: threads.sharing,
                    times: times.clone(),
                    h: self.h[direction].slice(s![.., of_rows.clone(), ..]),
                    gates: gates_rows,
                    dy: doutput.map(|dy| dy.slice(s![.., of_rows, units])),
                    dh: dh_rows,
                    dreset: dreset_rows,
                });
            }
        }
        threads.run(tasks, Backward::run)?;
        Ok(threads.is_parallel)
    }
}

/// What is left of a cell's backward pass after its steps: products over all of them.
struct After<'a> {
    weights: &'a BackwardWeights,
    /// `[T·B, width]`
    input: &'a [f32],
    width: usize,
    /// `[T·B, H]`
    h: &'a [f32],
    /// `[T·B, 4H]`, as [`Backward`] left it.
    gates: &'a [f32],
    hidden: usize,
    is_parallel: bool,
}

impl After<'_> {
    /// `dinput [T·B, width] += dgates · W_ih`
    fn input_gradient(&self, dinput: &mut [f32]) -> Result<()> {
        // Rows whose gates' gradients stay in the cache.
        const ROWS: usize = 48;
        let hidden = self.hidden;
        let level = self.weights.rule.level;
        let work = |(gates, to): (&[f32], &mut [f32])| {
            let rows = gates.len() / (4 * hidden);
            let mut space = Vec::new();
            let left = Left::pack(level, gates, 4 * hidden, [0..3 * hidden, 0..0], &mut space);
            let padded = self.width.next_multiple_of(level.lanes());
            let mut scratch = try_zeros("a block's dx", rows * padded)?;
            let (right, width, scratch) = (&self.weights.input, self.width, &mut scratch[..]);
            level.run(InputGradient { left, right, width, scratch, to });
            Ok(())
        };
        let (gates, to) = (4 * hidden * ROWS, self.width * ROWS);
        match self.is_parallel {
            true => self.gates.par_chunks(gates).zip(dinput.par_chunks_mut(to)).try_for_each(work),
            false => self.gates.chunks(gates).zip(dinput.chunks_mut(to)).try_for_each(work),
        }
    }

    /// Adds to the gradients of a cell's weights and biases.
    fn parameter_gradients(
        &self,
        layer: usize,
        direction: usize,
        dparams: &mut Params,
    ) -> Result<()> {
        let (hidden, width) = (self.hidden, self.width);
        let ranges = dparams.layout().cell(layer, direction);
        let mut sums_ih = try_zeros("bias_ih's gradient", 3 * hidden)?;
        let mut sums_hh = try_zeros("bias_hh's gradient", 3 * hidden)?;
        let flat = dparams.as_mut_slice();
        for first in (0..self.h.len() / hidden).step_by(DEPTH) {
            let part = |array: &'_ [f32], width: usize| {
                first * width..((first + DEPTH) * width).min(array.len())
            };
            let gates = &self.gates[part(self.gates, 4 * hidden)];
            let input = self.pack(&self.input[part(self.input, width)], width, 0)?;
            let h = self.pack(&self.h[part(self.h, hidden)], hidden, 0)?;
            let to = &mut flat[ranges.weight_ih.clone()];
            self.add_transposed(gates, 0, &input, width, to, &mut sums_ih);
            let to = &mut flat[ranges.weight_hh.clone()];
            let (to_rz, to_n) = to.split_at_mut(2 * hidden * hidden);
            let (sums_rz, sums_n) = sums_hh.split_at_mut(2 * hidden);
            self.add_transposed(gates, 0, &h, hidden, to_rz, sums_rz);
            match self.weights.rule.reset {
                Reset::After => self.add_transposed(gates, 3 * hidden, &h, hidden, to_n, sums_n),
                Reset::Before => {
                    let rh = self.pack(gates, 4 * hidden, 3 * hidden)?;
                    self.add_transposed(gates, 2 * hidden, &rh, hidden, to_n, sums_n);
                }
            }
        }
        for (range, sums) in [(ranges.bias_ih, sums_ih), (ranges.bias_hh, sums_hh)] {
            if let Some(range) = range {
                flat[range].iter_mut().zip(&sums).for_each(|(d, sum)| *d += sum);
            }
        }
        Ok(())
    }

    /// The columns of a matrix `[·, width]` from `first` on.
    fn pack(&self, matrix: &[f32], width: usize, first: usize) -> Result<Packed> {
        let level = self.weights.rule.level;
        let panels = (width - first).div_ceil(level.lanes());
        Packed::new(level, matrix.len() / width, panels, self.is_parallel, |panel| {
            Source::Rows(matrix, width, first + panel * level.lanes())
        })
    }

    /// `to [·, columns] += gates[.., first..]ᵀ · right`, and the sums of those columns of the gates.
    fn add_transposed(
        &self,
        gates: &[f32],
        first: usize,
        right: &Packed,
        columns: usize,
        to: &mut [f32],
        sums: &mut [f32],
    ) {
        // Rows that a task takes: whole tiles of every level.
        const ROWS: usize = 48;
        let work = |(i, (to, sums)): (usize, (&mut [f32], &mut [f32]))| {
            let (stride, first) = (4 * self.hidden, first + i * ROWS);
            let left = gates;
            let level = self.weights.rule.level;
            level.run(AddTransposed { left, stride, first, right, columns, to, sums });
        };
        match self.is_parallel {
            true => {
                let tasks = to.par_chunks_mut(ROWS * columns).zip(sums.par_chunks_mut(ROWS));
                tasks.enumerate().for_each(work);
            }
            false => {
                let tasks = to.chunks_mut(ROWS * columns).zip(sums.chunks_mut(ROWS));
                tasks.enumerate().for_each(work);
            }
        }
    }
}

/// Some rows of dx.
struct InputGradient<'a> {
    left: Left<'a>,
    right: &'a Packed,
    width: usize,
    /// `[panels, rows, N]` of zeros.
    scratch: &'a mut [f32],
    /// `[rows, width]`, added to.
    to: &'a mut [f32],
}

impl Kernel for InputGradient<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        let Self { left, right, width, scratch, to } = self;
        let depth = 0..right.depth;
        add_product::<V, N, ROWS>(AddProduct { left, right, depth, first: 0, out: &mut *scratch });
        for (panel, rows) in scratch.chunks_exact(left.rows * N).enumerate() {
            for (to, add) in to.chunks_exact_mut(width).zip(rows.chunks_exact(N)) {
                let mut sum = load::<N>(to, panel * N);
                sum.iter_mut().zip(add).for_each(|(sum, add)| *sum += add);
                store(to, panel * N, &sum);
            }
        }
    }
}
