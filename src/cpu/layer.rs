//! The steps of one layer, cut into tasks, forward and backward.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array3, ArrayView3, ArrayViewMut, ArrayViewMut3, Axis, Dimension, s};

use super::backward::Backward;
use super::cell::{BackwardWeights, ForwardWeights, RowBlock};
use super::forward::{Forward, StepStates};
use super::gradients::{CellProducts, CellSums};
use super::schedule::{MIN_PARALLEL_FLOPS, ThreadLayout};
use super::trace::CpuCellTrace;
use super::weights::Weights;
use crate::error::Result;
use crate::reference::Run;
use crate::spec::config::Shape;
use crate::spec::params::Params;

/// A range of steps of a layer. Steps are counted in each direction's own order.
#[derive(Clone)]
pub(super) struct LayerSteps<'a> {
    run: &'a Run<f32>,
    layer: usize,
    steps: Range<usize>,
}

impl<'a> LayerSteps<'a> {
    pub fn all(run: &'a Run<f32>, layer: usize) -> Self {
        Self { run, layer, steps: 0..run.shape.steps }
    }

    /// Cuts the steps into ranges of `len` steps. The last range may be shorter.
    pub fn chunks(&self, len: usize) -> impl DoubleEndedIterator<Item = Self> + use<'a> {
        let Self { run, layer, steps: Range { start, end } } = self.clone();
        let firsts = (start..end).step_by(len);
        firsts.map(move |first| Self { run, layer, steps: first..end.min(first + len) })
    }

    /// Returns the layer's range among all cells.
    pub fn cells(&self) -> Range<usize> {
        let directions = self.run.shape.directions;
        self.layer * directions..(self.layer + 1) * directions
    }

    /// Returns the shape of the layer's input: `[T, B, I]`, above the first layer `[T, B, D·H]`.
    pub fn input_dim(&self) -> [usize; 3] {
        let Shape { steps, batch, input, hidden, directions, .. } = self.run.shape;
        [steps, batch, if self.layer == 0 { input } else { directions * hidden }]
    }

    /// Returns the time steps of a direction.
    fn times(&self, direction: usize) -> Range<usize> {
        self.run.context(self.layer, direction).times_of(self.steps.clone())
    }

    /// Returns the thread layout, for steps with `width` input elements.
    fn threads(&self, weights: &Weights, width: usize) -> ThreadLayout {
        (weights.lay_out)(Shape { steps: self.steps.len(), ..self.run.shape }, width)
    }

    /// Returns the direction and row block of each task, ordered by direction, then by rows. The
    /// rows are split as [`split_axis`] splits arrays.
    fn row_blocks(&self, threads: ThreadLayout) -> impl Iterator<Item = (usize, RowBlock<'a>)> {
        let Shape { batch, directions, .. } = self.run.shape;
        (0..directions).flat_map(move |direction| {
            let (context, times) = (self.run.context(self.layer, direction), self.times(direction));
            (0..batch).step_by(threads.rows).map(move |first| {
                let rows = first..batch.min(first + threads.rows);
                (
                    direction,
                    RowBlock {
                        context,
                        rows,
                        times: times.clone(),
                        threads: threads.threads_per_step,
                        sharing: threads.sharing,
                    },
                )
            })
        })
    }

    /// Runs the steps forward: reads x `[T, B, ·]`, writes y `[T, B, D·H]`, and replaces the
    /// layer's first states in `h_n [L·D, B, H]` with the last states. Writes to `saved`, the
    /// layer's cells, for a backward pass.
    pub fn forward(
        &self,
        (weights, packed): (&Weights, &[Arc<ForwardWeights>]),
        x: ArrayView3<'_, f32>,
        h_n: &mut Array3<f32>,
        y: ArrayViewMut3<'_, f32>,
        saved: Option<&mut [CpuCellTrace]>,
    ) -> Result<()> {
        let hidden = self.run.shape.hidden;
        let threads = self.threads(weights, x.len_of(Axis(2)));
        let (mut h, mut gates) = (Vec::new(), Vec::new());
        for cell in saved.into_iter().flatten() {
            h.extend(by_rows(cell.h.view_mut(), threads));
            gates.extend(cell.gates.iter_mut().flat_map(|g| by_rows(g.view_mut(), threads)));
        }
        let (mut h, mut gates) = (h.into_iter(), gates.into_iter());
        let y = split_axis(y, Axis(2), hidden).into_iter().flat_map(|y| by_rows(y, threads));
        let mut states = h_n.slice_mut(s![self.cells(), .., ..]);
        let states = states.outer_iter_mut().flat_map(|s| split_axis(s, Axis(0), threads.rows));
        let tasks = self.row_blocks(threads).zip(y.zip(states)).map(
            |((direction, row_block), (y, state))| Forward {
                weights: &packed[direction],
                x: x.slice_move(s![.., row_block.rows.clone(), ..]),
                states: StepStates::Computed { state, y, saved: h.next() },
                gates: gates.next(),
                row_block,
            },
        );
        threads.run(tasks.collect(), Forward::run)
    }
}

/// Splits an array along an axis into views of length `size`. The last view may be shorter.
fn split_axis<D: Dimension>(
    array: ArrayViewMut<'_, f32, D>,
    axis: Axis,
    size: usize,
) -> Vec<ArrayViewMut<'_, f32, D>> {
    let (mut views, mut rest) = (Vec::new(), array);
    while rest.len_of(axis) > size {
        let (view, others) = rest.split_at(axis, size);
        views.push(view);
        rest = others;
    }
    views.push(rest);
    views
}

/// Splits `[T, B, ·]` into the rows of the tasks.
fn by_rows(array: ArrayViewMut3<'_, f32>, threads: ThreadLayout) -> Vec<ArrayViewMut3<'_, f32>> {
    split_axis(array, Axis(1), threads.rows)
}

/// The backward pass of a layer, which runs span by span from the last steps to the first.
pub(super) struct LayerBackward<'a> {
    pub weights: (&'a Weights, &'a [Arc<BackwardWeights>]),
    /// The layer's input, `[T, B, ·]`.
    pub input: &'a Array3<f32>,
    /// The state that each step starts from, `[T, B, H]` for each direction; see [`CpuCellTrace`].
    pub h: Vec<&'a Array3<f32>>,
    /// The gates of the current span, `[·, B, 4H]` for each direction. They become gradients.
    pub gates: Vec<&'a mut Array3<f32>>,
    /// The gradient of the layer's output, `[T, B, D·H]`; zeros if `None`.
    pub dy: Option<ArrayView3<'a, f32>>,
    /// The gradient of the state before the steps that have run backward, `[D, B, H]`. In the end,
    /// the gradient of the first state.
    pub dh: ArrayViewMut3<'a, f32>,
    /// The gradient of the reset state, `[D, B, H]`, accumulated.
    pub dreset: ArrayViewMut3<'a, f32>,
    /// The gradient of the input, `[T, B, ·]`, accumulated; `None` if it is not needed.
    pub dinput: Option<Array3<f32>>,
    /// The gradients of the parameters, accumulated. Complete after [`Self::finish`].
    pub dparams: &'a mut Params,
    /// The sums behind them, for each direction.
    pub sums: Vec<CellSums>,
}

impl LayerBackward<'_> {
    /// Recomputes the gates of a span from the saved states that its steps start from.
    pub fn recompute_gates(
        &mut self,
        span: &LayerSteps<'_>,
        (weights, packed): (&Weights, &[Arc<ForwardWeights>]),
    ) -> Result<()> {
        let Self { input, h, gates, .. } = self;
        let threads = span.threads(weights, input.len_of(Axis(2)));
        let gates = gates
            .iter_mut()
            .flat_map(|gates| by_rows(gates.slice_mut(s![..span.steps.len(), .., ..]), threads));
        let tasks = span.row_blocks(threads).zip(gates).map(|((direction, row_block), gates)| {
            let rows = s![.., row_block.rows.clone(), ..];
            Forward {
                weights: &packed[direction],
                x: input.slice(rows),
                states: StepStates::Saved(h[direction].slice(rows)),
                gates: Some(gates),
                row_block,
            }
        });
        threads.run(tasks.collect(), Forward::run)
    }

    /// Runs the steps of a chunk backward in all directions. `self.gates` holds the gates of
    /// `span`, which contains the chunk.
    pub fn step_backward(&mut self, chunk: &LayerSteps<'_>, span: &LayerSteps<'_>) -> Result<()> {
        let Self { weights: (weights, packed), h, gates, dy, dh, dreset, .. } = self;
        let hidden = chunk.run.shape.hidden;
        let threads = chunk.threads(weights, hidden);
        let gates = gates.iter_mut().enumerate().flat_map(|(direction, gates)| {
            let (times, first) = (chunk.times(direction), span.times(direction).start);
            by_rows(gates.slice_mut(s![times.start - first..times.end - first, .., ..]), threads)
        });
        let dh = dh.outer_iter_mut().flat_map(|dh| split_axis(dh, Axis(0), threads.rows));
        let dreset = dreset.outer_iter_mut().flat_map(|d| split_axis(d, Axis(0), threads.rows));
        let tasks = chunk.row_blocks(threads).zip(gates).zip(dh.zip(dreset));
        let tasks = tasks.map(|(((direction, row_block), gates), (dh, dreset))| {
            let units = direction * hidden..(direction + 1) * hidden;
            Backward {
                weights: &packed[direction],
                h: h[direction].slice(s![.., row_block.rows.clone(), ..]),
                gates,
                dy: dy.as_ref().map(|dy| dy.slice(s![.., row_block.rows.clone(), units])),
                dh,
                dreset,
                row_block,
            }
        });
        threads.run(tasks.collect(), Backward::run)
    }

    /// Adds the chunk's gradients of the input and of the parameters, after
    /// [`Self::step_backward`] has computed the gradients of its gates.
    pub fn add_products(&mut self, chunk: &LayerSteps<'_>, span: &LayerSteps<'_>) -> Result<()> {
        let Shape { batch, hidden, .. } = chunk.run.shape;
        let width = self.input.len_of(Axis(2));
        let is_parallel = chunk.threads(self.weights.0, hidden).is_parallel;
        for direction in 0..self.gates.len() {
            let (times, first) = (chunk.times(direction), span.times(direction).start);
            let rows = |width: usize| times.start * batch * width..times.end * batch * width;
            let gate_range = rows(4 * hidden);
            let first = first * batch * 4 * hidden;
            let products = CellProducts {
                weights: &self.weights.1[direction],
                width,
                input: &as_slice(self.input)[rows(width)],
                h: &as_slice(self.h[direction])[rows(hidden)],
                gates: &as_slice(self.gates[direction])
                    [gate_range.start - first..gate_range.end - first],
            };
            let dinput = match &mut self.dinput {
                Some(dinput) => &mut dinput.as_slice_mut().expect("standard layout")[rows(width)],
                None => &mut [],
            };
            let ranges = self.dparams.layout().cell(chunk.layer, direction);
            // Even if the steps use several threads, the products of a chunk may be too small.
            let is_parallel = is_parallel && products.flops() > MIN_PARALLEL_FLOPS;
            products.add_to(
                dinput,
                self.dparams,
                &mut self.sums[direction],
                &ranges,
                is_parallel,
            )?;
        }
        Ok(())
    }

    /// Completes the gradients of the parameters of `layer`. Returns the gradient of the input.
    pub fn finish(self, layer: usize) -> Option<Array3<f32>> {
        for (direction, sums) in self.sums.into_iter().enumerate() {
            let ranges = self.dparams.layout().cell(layer, direction);
            sums.finish(self.dparams, &ranges, self.weights.1[direction].spec.reset);
        }
        self.dinput
    }
}

fn as_slice(array: &Array3<f32>) -> &[f32] {
    array.as_slice().expect("standard layout")
}
