//! One cell: its configuration, its packed weights, and the block of rows of a task.
//!
//! Units are computed in blocks of N, the SIMD lanes of the [`SimdLevel`]. A cell has
//! Q = ⌈H / N⌉ blocks; "padded H" is Q·N.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3, Axis};

use super::product::{PackedRight, PanelSource};
use super::simd::SimdLevel;
use super::team::{Parts, Sharing};
use crate::error::Result;
use crate::reference::StepContext;
use crate::spec::activation::ClippedActivation;
use crate::spec::config::{GruConfig, Reset, Update};
use crate::spec::params::{CellRanges, Params};

/// The configuration of a cell: everything except its weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellSpec {
    pub level: SimdLevel,
    pub reset: Reset,
    pub update: Update,
    /// The function of r and z.
    pub gate: ClippedActivation,
    /// The function of n.
    pub candidate: ClippedActivation,
    pub hidden: usize,
}

/// A cell's parameters, packed for the forward pass. Panels `3q`, `3q + 1` and `3q + 2` hold the
/// columns of r, z and n of block q.
#[derive(Debug)]
pub(super) struct ForwardWeights {
    pub spec: CellSpec,
    /// W_ihᵀ `[I, 3H]`; above the first layer `[D·H, 3H]`.
    pub input: PackedRight,
    /// W_hhᵀ `[H, 3H]`
    pub recurrent: PackedRight,
    /// `[3Q, N]`, one row for each panel: b_ih + b_hh. With reset after the product, n has b_in
    /// alone.
    pub bias: Vec<f32>,
    /// `[Q, N]`: b_hn with reset after the product, which multiplies it by r; otherwise zeros.
    pub bias_hn: Vec<f32>,
}

/// A cell's parameters, packed for the backward pass: W_ih and W_hh, not transposed. The inner axis
/// of their products are the gates.
#[derive(Debug)]
pub(super) struct BackwardWeights {
    pub spec: CellSpec,
    /// W_ih `[3H, I]`; above the first layer `[3H, D·H]`.
    pub input: PackedRight,
    /// W_hh `[3H, H]`
    pub recurrent: PackedRight,
}

impl CellSpec {
    pub fn new(config: &GruConfig, direction: usize, level: SimdLevel) -> Self {
        let [gate, candidate] = config.functions(direction);
        let GruConfig { reset, update, hidden_size: hidden, .. } = *config;
        Self { level, reset, update, gate, candidate, hidden }
    }

    /// Returns Q, the number of blocks.
    pub fn blocks(&self) -> usize {
        self.hidden.div_ceil(self.level.lanes())
    }

    /// Returns padded H: H rounded up to whole blocks.
    pub fn padded(&self) -> usize {
        self.blocks() * self.level.lanes()
    }
}

impl ForwardWeights {
    pub fn new(
        params: &Params,
        ranges: &CellRanges,
        spec: CellSpec,
        is_parallel: bool,
    ) -> Result<Self> {
        let level = spec.level;
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
        let mut bias_hn = vec![0.0; blocks * lanes];
        for gate in 0..3 {
            for unit in 0..hidden {
                let at = |range: &Option<Range<usize>>| {
                    range.as_ref().map_or(0.0, |range| flat[range.start + gate * hidden + unit])
                };
                let (block, lane) = (unit / lanes, unit % lanes);
                let bias = &mut bias[(3 * block + gate) * lanes + lane];
                *bias = at(&ranges.bias_ih);
                match (gate, spec.reset) {
                    (2, Reset::After) => bias_hn[unit] = at(&ranges.bias_hh),
                    _ => *bias += at(&ranges.bias_hh),
                }
            }
        }
        let (input, recurrent) = (pack(&ranges.weight_ih)?, pack(&ranges.weight_hh)?);
        Ok(Self { spec, input, recurrent, bias, bias_hn })
    }
}

impl BackwardWeights {
    pub fn new(
        params: &Params,
        ranges: &CellRanges,
        spec: CellSpec,
        is_parallel: bool,
    ) -> Result<Self> {
        let level = spec.level;
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

/// The work of a task: R rows of the batch in one cell, over a range of time steps.
#[derive(Clone)]
pub(super) struct RowBlock<'a> {
    pub context: StepContext<'a, f32>,
    /// The R batch rows.
    pub rows: Range<usize>,
    /// The time steps.
    pub times: Range<usize>,
    /// The number of threads that may share a step.
    pub threads: usize,
    pub sharing: Sharing,
}

impl RowBlock<'_> {
    /// Returns the parts of a step of `blocks` blocks of units.
    pub fn parts(&self, blocks: usize) -> Parts {
        Parts { blocks, count: self.threads.min(blocks) }
    }

    pub fn is_padding(&self, t: usize, row: usize) -> bool {
        self.context.is_padding(t, self.rows.start + row)
    }

    /// Returns true if all rows are padding in these steps.
    pub fn is_idle(&self, times: &[usize]) -> bool {
        times.iter().all(|&t| (0..self.rows.len()).all(|row| self.is_padding(t, row)))
    }

    /// Returns the number of steps in which some row is not padding.
    pub fn active_steps(&self) -> usize {
        self.times.clone().filter(|&t| !self.is_idle(&[t])).count()
    }

    pub fn restarts(&self, t: usize, row: usize) -> bool {
        self.context.restarts(t, self.rows.start + row)
    }
}

/// Returns one row of one step of `[T, R, ·]`.
pub(super) fn row_of<'a>(array: &'a ArrayView3<'_, f32>, t: usize, row: usize) -> &'a [f32] {
    let step = array.index_axis(Axis(0), t);
    step.index_axis_move(Axis(0), row).to_slice().expect("rows are contiguous")
}

/// Returns one row of one step of `[T, R, ·]`, to write.
pub(super) fn row_of_mut<'a>(
    array: &'a mut ArrayViewMut3<'_, f32>,
    t: usize,
    row: usize,
) -> &'a mut [f32] {
    let step = array.index_axis_mut(Axis(0), t);
    step.index_axis_move(Axis(0), row).into_slice().expect("rows are contiguous")
}
