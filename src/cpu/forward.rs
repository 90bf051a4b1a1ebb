//! The steps of a block of rows forward: what happens one after the other.
//!
//! Units come in blocks of `N`. A block's part of a step (its products with all three gates'
//! weights, the activations, the new state) is computed while it is in the nearest cache, then
//! written out by rows. Rows know nothing of each other, so threads take rows; only where there are
//! too few of them for a large state do they share a step, by blocks.

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

use super::cell::{CellSpec, ForwardWeights, RowBlock, row_of, row_of_mut, split_over_threads};
use super::product::{AddProduct, PackedLeft, add_product};
use super::simd::{SimdKernel, SimdVector, activate, lanes, lanes_mut, store};
use crate::error::{Result, try_zeros};
use crate::spec::config::{Reset, Update};

/// A block of rows forward. Arrays are `[T, R, ·]`.
pub(super) struct Forward<'a> {
    pub weights: &'a ForwardWeights,
    pub row_block: RowBlock<'a>,
    pub x: ArrayView3<'a, f32>,
    pub states: StepStates<'a>,
    /// Where they are kept, `[times, R, 4H]`: r, z, n and what n took from the past.
    pub gates: Option<ArrayViewMut3<'a, f32>>,
}

/// The states that steps start from.
pub(super) enum StepStates<'a> {
    /// Each is what the step before made.
    New {
        /// `[R, H]`: the first state, which becomes the last.
        state: ArrayViewMut2<'a, f32>,
        y: ArrayViewMut3<'a, f32>,
        /// While training, the state that each step starts from.
        kept: Option<ArrayViewMut3<'a, f32>>,
    },
    /// As another run kept them, whose gates alone are made again. No step waits for another.
    Kept(ArrayView3<'a, f32>),
}

/// How much of a block's step is computed.
#[derive(Clone, Copy)]
enum CellStage {
    /// r, z, and what n takes from the past.
    Gates,
    /// n and the new state.
    Candidate,
    /// Both, for with reset after the product nothing lies between them.
    Whole,
}

/// A block's results, `[rows, N]` each, one after the other: r, z, the past's part of n, n and h'.
const SLOTS: usize = 5;
const R: usize = 0;
const Z: usize = 1;
const PAST: usize = 2;
const CANDIDATE: usize = 3;
const NEW: usize = 4;

/// What a chunk of steps works in; rows are those of the steps that are made at once.
struct StepScratch {
    /// `[rows, padded H]`
    h: Vec<f32>,
    /// r ⊙ h, with reset before.
    rh: Vec<f32>,
    /// `[steps, R, I]`
    x: Vec<f32>,
    /// `[3 · blocks, steps, R, N]`: W_ih x + b.
    inputs: Vec<f32>,
    /// A [`PackedLeft`]'s.
    left: Vec<f32>,
    /// `[blocks, SLOTS, rows, N]`
    blocks: Vec<f32>,
    /// `[padded H]`: the fraction of its old state that each unit of a row keeps, where any does.
    zone: Vec<f32>,
}

impl Forward<'_> {
    pub fn run(mut self) -> Result<()> {
        let spec = self.weights.spec;
        let (_, rows, width) = self.x.dim();
        let lanes = spec.level.lanes();
        // Input products of so many steps at once that tiles are full.
        let chunk = 48usize.div_ceil(rows).min(self.row_block.times.len());
        let at_once = match self.states {
            StepStates::New { .. } => 1,
            StepStates::Kept(_) => chunk,
        };
        let (blocks, padded) = (spec.blocks(), spec.padded());
        let made = at_once * rows;
        let mut scratch = StepScratch {
            h: try_zeros("h [R, H]", made * padded)?,
            rh: try_zeros("r ⊙ h [R, H]", made * padded)?,
            x: try_zeros("a chunk's x", chunk * rows * width)?,
            inputs: try_zeros("a chunk's input products", 3 * blocks * chunk * rows * lanes)?,
            left: Vec::new(),
            blocks: try_zeros("a step's gates", blocks * SLOTS * made * lanes)?,
            zone: try_zeros("a row's zones", padded)?,
        };
        if let StepStates::New { state, .. } = &self.states {
            for (to, from) in scratch.h.chunks_exact_mut(padded).zip(state.rows()) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        let times: Vec<_> = self.row_block.context.in_order(self.row_block.times.clone()).collect();
        for times in times.chunks(chunk) {
            self.input_products(times, &mut scratch)?;
            for (i, now) in times.chunks(at_once).enumerate() {
                self.step(now, i * at_once, times.len(), &mut scratch)?;
            }
        }
        if let StepStates::New { state, .. } = &mut self.states {
            for (mut to, from) in state.rows_mut().into_iter().zip(scratch.h.chunks_exact(padded)) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        Ok(())
    }

    fn input_products(&self, times: &[usize], scratch: &mut StepScratch) -> Result<()> {
        let ForwardWeights { spec, input, bias, .. } = self.weights;
        let (_, rows, width) = self.x.dim();
        let lanes = spec.level.lanes();
        let mut to = scratch.x.chunks_exact_mut(width);
        for &t in times {
            for (from, to) in self.x.index_axis(Axis(0), t).rows().into_iter().zip(&mut to) {
                to.copy_from_slice(from.to_slice().expect("rows are contiguous"));
            }
        }
        let rows = times.len() * rows;
        let x = &scratch.x[..rows * width];
        let left = PackedLeft::pack(spec.level, x, width, [0..width, 0..0], &mut scratch.left)?;
        let panels = 3 * spec.blocks();
        let out = &mut scratch.inputs[..panels * rows * lanes];
        split_over_threads(out, rows * lanes, panels, self.row_block.threads, |first, out| {
            for (panel, out) in out.chunks_exact_mut(rows * lanes).enumerate() {
                let bias = &bias[(first + panel) * lanes..][..lanes];
                out.chunks_exact_mut(lanes).for_each(|row| row.copy_from_slice(bias));
            }
            spec.level.run(AddProduct { left, right: input, depth: 0..width, first, out });
        });
        Ok(())
    }

    /// The steps at some times, of which the first is the i-th of a chunk of `steps`; a row for
    /// each row of each.
    fn step(
        &mut self,
        times: &[usize],
        i: usize,
        steps: usize,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let spec = self.weights.spec;
        let each = self.x.len_of(Axis(1));
        let (rows, padded) = (times.len() * each, spec.padded());
        let positions = || times.iter().flat_map(|&t| (0..each).map(move |row| (t, row)));
        for ((t, row), h) in positions().zip(scratch.h.chunks_exact_mut(padded)) {
            match &self.states {
                StepStates::Kept(kept) => h[..spec.hidden].copy_from_slice(row_of(kept, t, row)),
                StepStates::New { .. } if self.row_block.restarts(t, row) => {
                    let fresh =
                        self.row_block.context.reset_state.row(self.row_block.rows.start + row);
                    h.iter_mut().zip(fresh).for_each(|(h, &fresh)| *h = fresh);
                }
                StepStates::New { .. } => {}
            }
        }
        let StepScratch { h, rh, inputs, left, blocks, .. } = &mut *scratch;
        let block = SLOTS * rows * spec.level.lanes();
        let (h, rh) = (&h[..rows * padded], &mut rh[..rows * padded]);
        let blocks = &mut blocks[..spec.blocks() * block];
        let mut make = |stage: CellStage, past: &[f32], blocks: &mut [f32]| -> Result<()> {
            let past = PackedLeft::pack(spec.level, past, padded, [0..spec.hidden, 0..0], left)?;
            let (weights, all) = (self.weights, &inputs[..]);
            let inputs = StepInputs { all, panel: steps * each, first: i * each };
            split_over_threads(
                blocks,
                block,
                spec.blocks(),
                self.row_block.threads,
                |first, blocks| {
                    spec.level.run(StepBlocks { weights, stage, h, past, inputs, first, blocks });
                },
            );
            Ok(())
        };
        let is_idle = positions().all(|(t, row)| self.row_block.is_padding(t, row));
        match spec.reset {
            _ if is_idle => {}
            Reset::After => make(CellStage::Whole, h, blocks)?,
            Reset::Before => {
                make(CellStage::Gates, h, blocks)?;
                spec.level.run(Gather { slot: PAST, blocks, rows, to: rh });
                make(CellStage::Candidate, rh, blocks)?;
            }
        }
        for (made, position) in positions().enumerate() {
            self.store_outputs(position, (made, rows), scratch);
        }
        Ok(())
    }

    /// Writes what a step computed for a row to where it belongs: row `made` of the `rows` in the
    /// blocks.
    fn store_outputs(
        &mut self,
        (t, row): (usize, usize),
        (made, rows): (usize, usize),
        scratch: &mut StepScratch,
    ) {
        let CellSpec { level, hidden, .. } = self.weights.spec;
        let RowBlock { context, rows: of_batch, times, .. } = &self.row_block;
        let (of_batch, first) = (of_batch.start + row, times.start);
        let mut gates = self.gates.as_mut().map(|gates| row_of_mut(gates, t - first, row));
        let (mut y, mut kept) = match &mut self.states {
            StepStates::New { y, kept, .. } => {
                (Some(row_of_mut(y, t, row)), kept.as_mut().map(|kept| row_of_mut(kept, t, row)))
            }
            StepStates::Kept(_) => (None, None),
        };
        if context.is_padding(t, of_batch) {
            // Zeros, so that whatever a gradient of 0 is multiplied with here gives 0.
            for row in [&mut y, &mut kept, &mut gates].into_iter().flatten() {
                row.fill(0.0);
            }
            return;
        }
        let padded = scratch.zone.len();
        let h = &mut scratch.h[made * padded..][..padded];
        if let Some(kept) = kept {
            kept.copy_from_slice(&h[..hidden]);
        }
        let has_zones = y.is_some() && context.noise.has_zoneout();
        if has_zones {
            let zone = context.zoneout(t, of_batch, hidden);
            scratch.zone[..hidden]
                .iter_mut()
                .enumerate()
                .for_each(|(j, fraction)| *fraction = zone(j));
        }
        level.run(StoreOutputs {
            blocks: &scratch.blocks[..padded * SLOTS * rows],
            rows,
            row: made,
            zone: has_zones.then_some(&scratch.zone),
            h,
            gates,
        });
        let Some(y) = y else { return };
        y.copy_from_slice(&h[..hidden]);
        if context.noise.drops(context.layer) {
            let factor = context.dropout(t, of_batch, hidden);
            y.iter_mut().enumerate().for_each(|(j, y)| *y *= factor(j));
        }
    }
}

/// A step's rows of a chunk's input products.
#[derive(Clone, Copy)]
struct StepInputs<'a> {
    all: &'a [f32],
    /// Rows of a panel.
    panel: usize,
    /// The first of the step's.
    first: usize,
}

impl<'a> StepInputs<'a> {
    /// `[R, N]`
    fn of<const N: usize>(&self, panel: usize, rows: usize) -> &'a [f32] {
        &self.all[(panel * self.panel + self.first) * N..][..rows * N]
    }
}

/// Some blocks' part of a step.
struct StepBlocks<'a> {
    weights: &'a ForwardWeights,
    stage: CellStage,
    /// `[R, padded H]`
    h: &'a [f32],
    /// What the recurrent weights are multiplied with: h, or r ⊙ h.
    past: PackedLeft<'a>,
    inputs: StepInputs<'a>,
    /// The first of the blocks.
    first: usize,
    blocks: &'a mut [f32],
}

impl SimdKernel for StepBlocks<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(mut self) {
        let rows = self.past.rows;
        let blocks = std::mem::take(&mut self.blocks);
        for (i, block) in blocks.chunks_exact_mut(SLOTS * rows * N).enumerate() {
            let q = self.first + i;
            self.start::<N>(q, block);
            let (slots, panel) = match self.stage {
                CellStage::Whole => (R..PAST + 1, 3 * q),
                CellStage::Gates => (R..PAST, 3 * q),
                CellStage::Candidate => (CANDIDATE..NEW, 3 * q + 2),
            };
            add_product::<V, N, ROWS>(AddProduct {
                left: self.past,
                right: &self.weights.recurrent,
                depth: 0..self.weights.spec.hidden,
                first: panel,
                out: &mut block[slots.start * rows * N..slots.end * rows * N],
            });
            for row in 0..rows {
                self.activations::<N, FMA>(q, row, block);
            }
        }
    }
}

impl StepBlocks<'_> {
    /// Fills what products are added to: r, z and n with their inputs, the past's part of n with
    /// b_hn.
    #[inline(always)]
    fn start<const N: usize>(&self, q: usize, block: &mut [f32]) {
        let rows = self.past.rows;
        if matches!(self.stage, CellStage::Candidate) {
            return;
        }
        for (slot, gate) in [(R, 0), (Z, 1), (CANDIDATE, 2)] {
            let inputs = self.inputs.of::<N>(3 * q + gate, rows);
            block[slot * rows * N..][..rows * N].copy_from_slice(inputs);
        }
        let bias = lanes::<N>(&self.weights.past_bias, q * N);
        for row in 0..rows {
            *lanes_mut(block, (PAST * rows + row) * N) = *bias;
        }
    }

    /// From sums to r, z, n and the new state, or to r, z and r ⊙ h.
    #[inline(always)]
    fn activations<const N: usize, const FMA: bool>(
        &self,
        q: usize,
        row: usize,
        block: &mut [f32],
    ) {
        let spec = &self.weights.spec;
        let rows = self.past.rows;
        let at = |slot: usize| (slot * rows + row) * N;
        let h = lanes::<N>(self.h, row * (self.h.len() / rows) + q * N);
        if !matches!(self.stage, CellStage::Candidate) {
            activate::<N, FMA>(spec.gate, lanes_mut(block, at(R)));
            activate::<N, FMA>(spec.gate, lanes_mut(block, at(Z)));
        }
        let r = *lanes::<N>(block, at(R));
        if matches!(self.stage, CellStage::Gates) {
            let past = lanes_mut::<N>(block, at(PAST));
            for j in 0..N {
                past[j] = r[j] * h[j];
            }
            return;
        }
        let z = *lanes::<N>(block, at(Z));
        let mut n = *lanes::<N>(block, at(CANDIDATE));
        if matches!(self.stage, CellStage::Whole) {
            let past = lanes::<N>(block, at(PAST));
            for j in 0..N {
                n[j] += r[j] * past[j];
            }
        }
        activate::<N, FMA>(spec.candidate, &mut n);
        *lanes_mut(block, at(CANDIDATE)) = n;
        let new = lanes_mut::<N>(block, at(NEW));
        match spec.update {
            Update::Overwrites => {
                for j in 0..N {
                    new[j] = (1.0 - z[j]) * h[j] + z[j] * n[j];
                }
            }
            Update::Keeps => {
                for j in 0..N {
                    new[j] = z[j] * h[j] + (1.0 - z[j]) * n[j];
                }
            }
        }
    }
}

/// A slot of every block, to rows `[R, padded H]`.
struct Gather<'a> {
    slot: usize,
    blocks: &'a [f32],
    rows: usize,
    to: &'a mut [f32],
}

impl SimdKernel for Gather<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        let stride = self.to.len() / self.rows;
        for (q, block) in self.blocks.chunks_exact(SLOTS * self.rows * N).enumerate() {
            for row in 0..self.rows {
                let from = lanes::<N>(block, (self.slot * self.rows + row) * N);
                *lanes_mut(self.to, row * stride + q * N) = *from;
            }
        }
    }
}

/// One row's results of a step, from blocks to rows.
struct StoreOutputs<'a> {
    blocks: &'a [f32],
    rows: usize,
    row: usize,
    /// `[padded H]`
    zone: Option<&'a Vec<f32>>,
    /// `[padded H]`, the old state, which becomes the new one.
    h: &'a mut [f32],
    /// `[4H]`
    gates: Option<&'a mut [f32]>,
}

impl SimdKernel for StoreOutputs<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(mut self) {
        for (q, block) in self.blocks.chunks_exact(SLOTS * self.rows * N).enumerate() {
            let slot = |slot: usize| lanes::<N>(block, (slot * self.rows + self.row) * N);
            let h = lanes_mut::<N>(self.h, q * N);
            let mut new = *slot(NEW);
            if let Some(zone) = self.zone {
                let zone = lanes::<N>(zone, q * N);
                for j in 0..N {
                    new[j] = zone[j] * h[j] + (1.0 - zone[j]) * new[j];
                }
            }
            *h = new;
            if let Some(gates) = &mut self.gates {
                let hidden = gates.len() / 4;
                let quarters = gates.chunks_exact_mut(hidden);
                for (quarter, from) in quarters.zip([R, Z, CANDIDATE, PAST]) {
                    store(quarter, q * N, slot(from));
                }
            }
        }
    }
}
