//! One cell: its definition, its weights in the form that the steps read, and the block of rows of
//! a task.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3, Axis};
use rayon::prelude::*;

use super::product::{PackedRight, PanelSource};
use super::simd::SimdLevel;
use crate::error::Result;
use crate::reference::StepContext;
use crate::spec::config::{Activation, Reset, Update};
use crate::spec::params::{CellRanges, Params};

/// What a cell computes, without its weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellSpec {
    pub level: SimdLevel,
    pub reset: Reset,
    pub update: Update,
    pub gate: Activation,
    pub candidate: Activation,
    pub hidden: usize,
}

/// A cell's parameters in the form that its forward steps read.
#[derive(Debug)]
pub(super) struct ForwardWeights {
    pub spec: CellSpec,
    /// W_ihᵀ and W_hhᵀ. Panels `3q`, `3q + 1` and `3q + 2` are r, z and n of block q.
    pub input: PackedRight,
    pub recurrent: PackedRight,
    /// `[3 · blocks, N]`: the biases added before the products, including b_hh if it is not
    /// multiplied by r.
    pub bias: Vec<f32>,
    /// `[blocks, N]`: b_hn if it is multiplied by r.
    pub past_bias: Vec<f32>,
}

/// A cell's parameters in the form that its backward steps read: W_ih and W_hh, with the gates
/// along the depth.
#[derive(Debug)]
pub(super) struct BackwardWeights {
    pub spec: CellSpec,
    pub input: PackedRight,
    pub recurrent: PackedRight,
}

impl CellSpec {
    fn new(params: &Params, level: SimdLevel) -> Self {
        let config = params.layout().config();
        Self {
            level,
            reset: config.reset,
            update: config.update,
            gate: config.gate_activation,
            candidate: config.candidate_activation,
            hidden: config.hidden_size,
        }
    }

    pub fn blocks(&self) -> usize {
        self.hidden.div_ceil(self.level.lanes())
    }

    /// Returns H rounded up to whole blocks.
    pub fn padded(&self) -> usize {
        self.blocks() * self.level.lanes()
    }
}

impl ForwardWeights {
    pub fn new(
        params: &Params,
        ranges: &CellRanges,
        level: SimdLevel,
        is_parallel: bool,
    ) -> Result<Self> {
        let spec = CellSpec::new(params, level);
        let (lanes, blocks, hidden) = (level.lanes(), spec.blocks(), spec.hidden);
        let flat = params.as_slice();
        let pack = |range: &Range<usize>| {
            let weight = &flat[range.clone()];
            PackedRight::new(level, weight.len() / (3 * hidden), 3 * blocks, is_parallel, |panel| {
                let unit = panel / 3 * lanes;
                PanelSource::Transposed(weight, panel % 3 * hidden + unit, hidden - unit)
            })
        };
        let mut bias = vec![0.0; 3 * blocks * lanes];
        let mut past_bias = vec![0.0; blocks * lanes];
        for gate in 0..3 {
            for unit in 0..hidden {
                let at = |range: &Option<Range<usize>>| {
                    range.as_ref().map_or(0.0, |range| flat[range.start + gate * hidden + unit])
                };
                let (block, lane) = (unit / lanes, unit % lanes);
                let bias = &mut bias[(3 * block + gate) * lanes + lane];
                *bias = at(&ranges.bias_ih);
                match (gate, spec.reset) {
                    (2, Reset::After) => past_bias[unit] = at(&ranges.bias_hh),
                    _ => *bias += at(&ranges.bias_hh),
                }
            }
        }
        let (input, recurrent) = (pack(&ranges.weight_ih)?, pack(&ranges.weight_hh)?);
        Ok(Self { spec, input, recurrent, bias, past_bias })
    }
}

impl BackwardWeights {
    pub fn new(
        params: &Params,
        ranges: &CellRanges,
        level: SimdLevel,
        is_parallel: bool,
    ) -> Result<Self> {
        let spec = CellSpec::new(params, level);
        let pack = |range: &Range<usize>| {
            let weight = &params.as_slice()[range.clone()];
            let (depth, lanes) = (3 * spec.hidden, level.lanes());
            let width = weight.len() / depth;
            PackedRight::new(level, depth, width.div_ceil(lanes), is_parallel, |panel| {
                PanelSource::Rows(weight, width, panel * lanes)
            })
        };
        let (input, recurrent) = (pack(&ranges.weight_ih)?, pack(&ranges.weight_hh)?);
        Ok(Self { spec, input, recurrent })
    }
}

/// The work of a task: R rows of a cell, and some of their steps.
#[derive(Clone)]
pub(super) struct RowBlock<'a> {
    pub context: StepContext<'a, f32>,
    /// The rows of the batch.
    pub rows: Range<usize>,
    /// The times of its steps.
    pub times: Range<usize>,
    /// The number of threads that share a step.
    pub threads: usize,
}

impl RowBlock<'_> {
    pub fn is_padding(&self, t: usize, row: usize) -> bool {
        self.context.is_padding(t, self.rows.start + row)
    }

    pub fn restarts(&self, t: usize, row: usize) -> bool {
        self.context.restarts(t, self.rows.start + row)
    }
}

/// Fills `out`, `count` blocks of `block_len` numbers, on `threads` threads. `fill` gets the index
/// of its first block, and its blocks.
pub(super) fn split_over_threads(
    out: &mut [f32],
    block_len: usize,
    count: usize,
    threads: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    if threads == 1 {
        return fill(0, out);
    }
    let each = count.div_ceil(threads);
    let parts = out.par_chunks_mut(each * block_len).enumerate();
    parts.for_each(|(i, out)| fill(i * each, out));
}

/// Returns one row of one step of an array `[T, R, ·]`.
pub(super) fn row_of<'a>(array: &'a ArrayView3<'_, f32>, t: usize, row: usize) -> &'a [f32] {
    let step = array.index_axis(Axis(0), t);
    step.index_axis_move(Axis(0), row).to_slice().expect("rows are contiguous")
}

/// Returns one row of one step of an array `[T, R, ·]`, mutable.
pub(super) fn row_of_mut<'a>(
    array: &'a mut ArrayViewMut3<'_, f32>,
    t: usize,
    row: usize,
) -> &'a mut [f32] {
    let step = array.index_axis_mut(Axis(0), t);
    step.index_axis_move(Axis(0), row).into_slice().expect("rows are contiguous")
}
