//! The steps of some rows of one cell, forward and backward: what happens one after the other.
//!
//! Units come in blocks of `N`. A block's part of a step (its products with all three gates' weights,
//! the activations, the new state) is computed while it is in the nearest cache, then written out by
//! rows. Rows know nothing of each other, so threads take rows; only where there are too few of them
//! for a large state do they share a step, by blocks.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};
use rayon::prelude::*;

use super::product::{AddProduct, Left, Packed, Source, add_product};
use super::simd::{Kernel, Level, Vector, activate, derivative, lanes, lanes_mut, load, store};
use crate::error::{Result, try_zeros};
use crate::reference::StepContext;
use crate::spec::config::{Activation, Reset, Update};
use crate::spec::params::{CellRanges, Params};

/// What a cell computes, besides its weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellSpec {
    pub level: Level,
    pub reset: Reset,
    pub update: Update,
    pub gate: Activation,
    pub candidate: Activation,
    pub hidden: usize,
}

/// A cell's parameters as its forward steps read them.
#[derive(Debug)]
pub(super) struct ForwardWeights {
    spec: CellSpec,
    /// W_ihᵀ and W_hhᵀ. Panels `3q`, `3q + 1` and `3q + 2` are those of r, z and n of block q.
    input: Packed,
    recurrent: Packed,
    /// `[3 · blocks, N]`: what is added before any product; b_hh too, where it is not multiplied with r.
    bias: Vec<f32>,
    /// `[blocks, N]`: b_hn where it is.
    past_bias: Vec<f32>,
}

/// A cell's parameters as its backward steps read them: W_ih and W_hh themselves, gates along the depth.
#[derive(Debug)]
pub(super) struct BackwardWeights {
    pub spec: CellSpec,
    pub input: Packed,
    pub recurrent: Packed,
}

impl CellSpec {
    fn new(params: &Params, level: Level) -> Self {
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

    fn blocks(&self) -> usize {
        self.hidden.div_ceil(self.level.lanes())
    }

    /// H, rounded up to whole blocks.
    fn padded(&self) -> usize {
        self.blocks() * self.level.lanes()
    }
}

impl ForwardWeights {
    pub fn new(
        params: &Params,
        ranges: &CellRanges,
        level: Level,
        is_parallel: bool,
    ) -> Result<Self> {
        let spec = CellSpec::new(params, level);
        let (lanes, blocks, hidden) = (level.lanes(), spec.blocks(), spec.hidden);
        let flat = params.as_slice();
        let pack = |range: &Range<usize>| {
            let weight = &flat[range.clone()];
            Packed::new(level, weight.len() / (3 * hidden), 3 * blocks, is_parallel, |panel| {
                let unit = panel / 3 * lanes;
                Source::Transposed(weight, panel % 3 * hidden + unit, hidden - unit)
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
        level: Level,
        is_parallel: bool,
    ) -> Result<Self> {
        let spec = CellSpec::new(params, level);
        let pack = |range: &Range<usize>| {
            let weight = &params.as_slice()[range.clone()];
            let (depth, lanes) = (3 * spec.hidden, level.lanes());
            let width = weight.len() / depth;
            Packed::new(level, depth, width.div_ceil(lanes), is_parallel, |panel| {
                Source::Rows(weight, width, panel * lanes)
            })
        };
        let (input, recurrent) = (pack(&ranges.weight_ih)?, pack(&ranges.weight_hh)?);
        Ok(Self { spec, input, recurrent })
    }
}

/// What a task takes: some rows R of a cell, and some of their steps.
#[derive(Clone)]
pub(super) struct Part<'a> {
    pub context: StepContext<'a, f32>,
    /// Of the batch.
    pub rows: Range<usize>,
    /// When its steps are.
    pub times: Range<usize>,
    /// How many threads share a step.
    pub threads: usize,
}

impl Part<'_> {
    fn is_padding(&self, t: usize, row: usize) -> bool {
        self.context.is_padding(t, self.rows.start + row)
    }

    fn restarts(&self, t: usize, row: usize) -> bool {
        self.context.restarts(t, self.rows.start + row)
    }
}

/// A part forward. Arrays are `[T, R, ·]`.
pub(super) struct Forward<'a> {
    pub weights: &'a ForwardWeights,
    pub part: Part<'a>,
    pub x: ArrayView3<'a, f32>,
    pub states: States<'a>,
    /// Where they are kept, `[times, R, 4H]`: r, z, n and what n took from the past.
    pub gates: Option<ArrayViewMut3<'a, f32>>,
}

/// The states that steps start from.
pub(super) enum States<'a> {
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
enum Stage {
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
struct Scratch {
    /// `[rows, padded H]`
    h: Vec<f32>,
    /// r ⊙ h, with reset before.
    rh: Vec<f32>,
    /// `[steps, R, I]`
    x: Vec<f32>,
    /// `[3 · blocks, steps, R, N]`: W_ih x + b.
    inputs: Vec<f32>,
    /// A [`Left`]'s.
    left: Vec<f32>,
    /// `[blocks, SLOTS, rows, N]`
    blocks: Vec<f32>,
    /// `[padded H]`: the share of its old state that each unit of a row keeps, where any does.
    zone: Vec<f32>,
}

impl Forward<'_> {
    pub fn run(mut self) -> Result<()> {
        let spec = self.weights.spec;
        let (_, rows, width) = self.x.dim();
        let lanes = spec.level.lanes();
        // Input products of so many steps at once that tiles are full.
        let chunk = 48usize.div_ceil(rows).min(self.part.times.len());
        let at_once = match self.states {
            States::New { .. } => 1,
            States::Kept(_) => chunk,
        };
        let (blocks, padded) = (spec.blocks(), spec.padded());
        let made = at_once * rows;
        let mut scratch = Scratch {
            h: try_zeros("h [R, H]", made * padded)?,
            rh: try_zeros("r ⊙ h [R, H]", made * padded)?,
            x: try_zeros("a chunk's x", chunk * rows * width)?,
            inputs: try_zeros("a chunk's input products", 3 * blocks * chunk * rows * lanes)?,
            left: Vec::new(),
            blocks: try_zeros("a step's gates", blocks * SLOTS * made * lanes)?,
            zone: try_zeros("a row's zones", padded)?,
        };
        if let States::New { state, .. } = &self.states {
            for (to, from) in scratch.h.chunks_exact_mut(padded).zip(state.rows()) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        let times: Vec<_> = self.part.context.in_order(self.part.times.clone()).collect();
        for times in times.chunks(chunk) {
            self.input_products(times, &mut scratch)?;
            for (i, now) in times.chunks(at_once).enumerate() {
                self.step(now, i * at_once, times.len(), &mut scratch)?;
            }
        }
        if let States::New { state, .. } = &mut self.states {
            for (mut to, from) in state.rows_mut().into_iter().zip(scratch.h.chunks_exact(padded)) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        Ok(())
    }

    fn input_products(&self, times: &[usize], scratch: &mut Scratch) -> Result<()> {
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
        let left = Left::pack(spec.level, x, width, [0..width, 0..0], &mut scratch.left)?;
        let panels = 3 * spec.blocks();
        let out = &mut scratch.inputs[..panels * rows * lanes];
        share(out, rows * lanes, panels, self.part.threads, |first, out| {
            for (panel, out) in out.chunks_exact_mut(rows * lanes).enumerate() {
                let bias = &bias[(first + panel) * lanes..][..lanes];
                out.chunks_exact_mut(lanes).for_each(|row| row.copy_from_slice(bias));
            }
            spec.level.run(AddProduct { left, right: input, depth: 0..width, first, out });
        });
        Ok(())
    }

    /// The steps at some times, of which the first is the i-th of a chunk of `steps`; a row for each
    /// row of each.
    fn step(
        &mut self,
        times: &[usize],
        i: usize,
        steps: usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let spec = self.weights.spec;
        let each = self.x.len_of(Axis(1));
        let (rows, padded) = (times.len() * each, spec.padded());
        let places = || times.iter().flat_map(|&t| (0..each).map(move |row| (t, row)));
        for ((t, row), h) in places().zip(scratch.h.chunks_exact_mut(padded)) {
            match &self.states {
                States::Kept(kept) => h[..spec.hidden].copy_from_slice(row_of(kept, t, row)),
                States::New { .. } if self.part.restarts(t, row) => {
                    let fresh = self.part.context.reset_state.row(self.part.rows.start + row);
                    h.iter_mut().zip(fresh).for_each(|(h, &fresh)| *h = fresh);
                }
                States::New { .. } => {}
            }
        }
        let Scratch { h, rh, inputs, left, blocks, .. } = &mut *scratch;
        let block = SLOTS * rows * spec.level.lanes();
        let (h, rh) = (&h[..rows * padded], &mut rh[..rows * padded]);
        let blocks = &mut blocks[..spec.blocks() * block];
        let mut make = |stage: Stage, past: &[f32], blocks: &mut [f32]| -> Result<()> {
            let past = Left::pack(spec.level, past, padded, [0..spec.hidden, 0..0], left)?;
            let (weights, all) = (self.weights, &inputs[..]);
            let inputs = Inputs { all, panel: steps * each, first: i * each };
            share(blocks, block, spec.blocks(), self.part.threads, |first, blocks| {
                spec.level.run(StepBlocks { weights, stage, h, past, inputs, first, blocks });
            });
            Ok(())
        };
        let is_idle = places().all(|(t, row)| self.part.is_padding(t, row));
        match spec.reset {
            _ if is_idle => {}
            Reset::After => make(Stage::Whole, h, blocks)?,
            Reset::Before => {
                make(Stage::Gates, h, blocks)?;
                spec.level.run(Gather { slot: PAST, blocks, rows, to: rh });
                make(Stage::Candidate, rh, blocks)?;
            }
        }
        for (made, place) in places().enumerate() {
            self.put_out(place, (made, rows), scratch);
        }
        Ok(())
    }

    /// Writes what a step computed for a row to where it belongs: row `made` of the `rows` in the blocks.
    fn put_out(
        &mut self,
        (t, row): (usize, usize),
        (made, rows): (usize, usize),
        scratch: &mut Scratch,
    ) {
        let CellSpec { level, hidden, .. } = self.weights.spec;
        let Part { context, rows: of_batch, times, .. } = &self.part;
        let (of_batch, first) = (of_batch.start + row, times.start);
        let mut gates = self.gates.as_mut().map(|gates| row_of_mut(gates, t - first, row));
        let (mut y, mut kept) = match &mut self.states {
            States::New { y, kept, .. } => {
                (Some(row_of_mut(y, t, row)), kept.as_mut().map(|kept| row_of_mut(kept, t, row)))
            }
            States::Kept(_) => (None, None),
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
        let has_zones = y.is_some() && context.noise.has_zones();
        if has_zones {
            let zone = context.zone(t, of_batch, hidden);
            scratch.zone[..hidden].iter_mut().enumerate().for_each(|(j, share)| *share = zone(j));
        }
        level.run(PutOut {
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

/// Has `threads` threads fill `out`, `count` pieces of `piece` numbers; `fill` gets the first of some
/// pieces, and them.
fn share(
    out: &mut [f32],
    piece: usize,
    count: usize,
    threads: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    if threads == 1 {
        return fill(0, out);
    }
    let each = count.div_ceil(threads);
    let shares = out.par_chunks_mut(each * piece).enumerate();
    shares.for_each(|(i, out)| fill(i * each, out));
}

/// A step's rows of a chunk's input products.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    all: &'a [f32],
    /// Rows of a panel.
    panel: usize,
    /// The first of the step's.
    first: usize,
}

impl<'a> Inputs<'a> {
    /// `[R, N]`
    fn of<const N: usize>(&self, panel: usize, rows: usize) -> &'a [f32] {
        &self.all[(panel * self.panel + self.first) * N..][..rows * N]
    }
}

/// Some blocks' part of a step.
struct StepBlocks<'a> {
    weights: &'a ForwardWeights,
    stage: Stage,
    /// `[R, padded H]`
    h: &'a [f32],
    /// What the recurrent weights are multiplied with: h, or r ⊙ h.
    past: Left<'a>,
    inputs: Inputs<'a>,
    /// The first of the blocks.
    first: usize,
    blocks: &'a mut [f32],
}

impl Kernel for StepBlocks<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(mut self) {
        let rows = self.past.rows;
        let blocks = std::mem::take(&mut self.blocks);
        for (i, block) in blocks.chunks_exact_mut(SLOTS * rows * N).enumerate() {
            let q = self.first + i;
            self.start::<N>(q, block);
            let (slots, panel) = match self.stage {
                Stage::Whole => (R..PAST + 1, 3 * q),
                Stage::Gates => (R..PAST, 3 * q),
                Stage::Candidate => (CANDIDATE..NEW, 3 * q + 2),
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
    /// Fills what products are added to: r, z and n with their inputs, the past's part of n with b_hn.
    #[inline(always)]
    fn start<const N: usize>(&self, q: usize, block: &mut [f32]) {
        let rows = self.past.rows;
        if matches!(self.stage, Stage::Candidate) {
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
        if !matches!(self.stage, Stage::Candidate) {
            activate::<N, FMA>(spec.gate, lanes_mut(block, at(R)));
            activate::<N, FMA>(spec.gate, lanes_mut(block, at(Z)));
        }
        let r = *lanes::<N>(block, at(R));
        if matches!(self.stage, Stage::Gates) {
            let past = lanes_mut::<N>(block, at(PAST));
            for j in 0..N {
                past[j] = r[j] * h[j];
            }
            return;
        }
        let z = *lanes::<N>(block, at(Z));
        let mut n = *lanes::<N>(block, at(CANDIDATE));
        if matches!(self.stage, Stage::Whole) {
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

impl Kernel for Gather<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
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
struct PutOut<'a> {
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

impl Kernel for PutOut<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(mut self) {
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

/// A part backward. Arrays are `[T, R, ·]`.
pub(super) struct Backward<'a> {
    pub weights: &'a BackwardWeights,
    pub part: Part<'a>,
    pub h: ArrayView3<'a, f32>,
    /// `[times, R, 4H]`, as [`Forward`] kept them. They become gradients: r, z and n those of their
    /// pre-activations, the fourth quarter that of `W_hn h + b_hn`, or with reset before it stays r ⊙ h.
    pub gates: ArrayViewMut3<'a, f32>,
    /// Of what each step puts out; zeros when `None`.
    pub dy: Option<ArrayView3<'a, f32>>,
    /// `[R, H]`: of the last state, which becomes that of the first.
    pub dh: ArrayViewMut2<'a, f32>,
    /// `[R, H]`, added to.
    pub dreset: ArrayViewMut2<'a, f32>,
}

impl Backward<'_> {
    pub fn run(mut self) -> Result<()> {
        let spec = self.weights.spec;
        let rows = self.h.len_of(Axis(1));
        let hidden = spec.hidden;
        let mut products = try_zeros("a step's gradients", spec.padded() * rows)?;
        let mut space = Vec::new();
        for t in self.part.context.in_order(self.part.times.clone()).rev() {
            if (0..rows).all(|row| self.part.is_padding(t, row)) {
                continue;
            }
            for row in 0..rows {
                self.undo_elementwise(t, row);
            }
            match spec.reset {
                Reset::After => {
                    let columns = [0..2 * hidden, 3 * hidden..4 * hidden];
                    self.product(t, columns, 0..3 * hidden, &mut space, &mut products)?;
                }
                Reset::Before => {
                    let of_n = 2 * hidden..3 * hidden;
                    let columns = [of_n.clone(), 0..0];
                    self.product(t, columns, of_n, &mut space, &mut products)?;
                    for row in 0..rows {
                        self.undo_reset(t, row, &products);
                    }
                    let columns = [0..2 * hidden, 0..0];
                    self.product(t, columns, 0..2 * hidden, &mut space, &mut products)?;
                }
            }
            for row in 0..rows {
                self.add_products(t, row, &products);
            }
        }
        Ok(())
    }

    /// `products [blocks, R, N]` of some columns of the gates' gradients at t with some rows of W_hh.
    fn product(
        &self,
        t: usize,
        columns: [Range<usize>; 2],
        depth: Range<usize>,
        space: &mut Vec<f32>,
        products: &mut [f32],
    ) -> Result<()> {
        let CellSpec { level, hidden, .. } = self.weights.spec;
        let gates = self.gates.index_axis(Axis(0), t - self.part.times.start);
        let data = gates.to_slice().expect("all rows of a step are contiguous");
        let left = Left::pack(level, data, 4 * hidden, columns, space)?;
        let piece = left.rows * level.lanes();
        share(products, piece, self.weights.spec.blocks(), self.part.threads, |first, out| {
            out.fill(0.0);
            let (right, depth) = (&self.weights.recurrent, depth.clone());
            level.run(AddProduct { left, right, depth, first, out });
        });
        Ok(())
    }

    /// All of a row's step but what goes through W_hh.
    fn undo_elementwise(&mut self, t: usize, row: usize) {
        let spec = self.weights.spec;
        let (context, of_batch) = (self.part.context, self.part.rows.start + row);
        if context.is_padding(t, of_batch) {
            return;
        }
        let draw = |draw: &dyn Fn(usize) -> f32| (0..spec.hidden).map(draw).collect::<Vec<_>>();
        let zone = context.noise.has_zones().then(|| draw(&context.zone(t, of_batch, spec.hidden)));
        let factor = context
            .noise
            .drops(context.layer)
            .then(|| draw(&context.dropout(t, of_batch, spec.hidden)));
        let dy = self.dy.as_ref().map(|dy| row_of(dy, t, row));
        spec.level.run(UndoElementwise {
            spec,
            dy,
            factor: factor.as_deref(),
            zone: zone.as_deref(),
            h: row_of(&self.h, t, row),
            gates: row_of_mut(&mut self.gates, t - self.part.times.start, row),
            dh: self.dh.row_mut(row).into_slice().expect("rows are contiguous"),
        });
    }

    /// With reset before: from the gradient of r ⊙ h to those of r and h.
    fn undo_reset(&mut self, t: usize, row: usize, products: &[f32]) {
        let spec = self.weights.spec;
        if self.part.is_padding(t, row) {
            return;
        }
        spec.level.run(UndoReset {
            spec,
            row: OfRow { products, rows: self.h.len_of(Axis(1)), row },
            h: row_of(&self.h, t, row),
            r: &mut row_of_mut(&mut self.gates, t - self.part.times.start, row)[..spec.hidden],
            dh: self.dh.row_mut(row).into_slice().expect("rows are contiguous"),
        });
    }

    fn add_products(&mut self, t: usize, row: usize, products: &[f32]) {
        if self.part.is_padding(t, row) {
            return;
        }
        let mut dh = self.dh.row_mut(row);
        let row_products = OfRow { products, rows: self.h.len_of(Axis(1)), row };
        let to = dh.as_slice_mut().expect("rows are contiguous");
        self.weights.spec.level.run(AddRow { row: row_products, to });
        if self.part.restarts(t, row) {
            self.dreset.row_mut(row).zip_mut_with(&dh, |sum, &d| *sum += d);
            dh.fill(0.0);
        }
    }
}

fn row_of<'a>(array: &'a ArrayView3<'_, f32>, t: usize, row: usize) -> &'a [f32] {
    let step = array.index_axis(Axis(0), t);
    step.index_axis_move(Axis(0), row).to_slice().expect("rows are contiguous")
}

fn row_of_mut<'a>(array: &'a mut ArrayViewMut3<'_, f32>, t: usize, row: usize) -> &'a mut [f32] {
    let step = array.index_axis_mut(Axis(0), t);
    step.index_axis_move(Axis(0), row).into_slice().expect("rows are contiguous")
}

#[inline(always)]
fn load_or<const N: usize>(slice: Option<&[f32]>, first: usize, otherwise: f32) -> [f32; N] {
    match slice {
        Some(slice) => load(slice, first),
        None => [otherwise; N],
    }
}

/// One row of products `[blocks, R, N]`.
#[derive(Clone, Copy)]
struct OfRow<'a> {
    products: &'a [f32],
    rows: usize,
    row: usize,
}

impl<'a> OfRow<'a> {
    #[inline(always)]
    fn block<const N: usize>(&self, q: usize) -> &'a [f32; N] {
        lanes(self.products, (q * self.rows + self.row) * N)
    }
}

struct UndoElementwise<'a> {
    spec: CellSpec,
    dy: Option<&'a [f32]>,
    /// Of dropout.
    factor: Option<&'a [f32]>,
    zone: Option<&'a [f32]>,
    h: &'a [f32],
    /// `[4H]`
    gates: &'a mut [f32],
    /// `[H]`: of h' on entry; on return the part of h's that needs no product.
    dh: &'a mut [f32],
}

impl Kernel for UndoElementwise<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        let CellSpec { gate, candidate, hidden, .. } = self.spec;
        let (r_z, n_past) = self.gates.split_at_mut(2 * hidden);
        let ((all_r, all_z), (all_n, all_past)) =
            (r_z.split_at_mut(hidden), n_past.split_at_mut(hidden));
        for first in (0..hidden).step_by(N) {
            let (r, z) = (load::<N>(all_r, first), load::<N>(all_z, first));
            let (n, past) = (load::<N>(all_n, first), load::<N>(all_past, first));
            let h = load::<N>(self.h, first);
            let mut dh = load::<N>(self.dh, first);
            if let Some(dy) = self.dy {
                let dy = load::<N>(dy, first);
                let factor = load_or::<N>(self.factor, first, 1.0);
                for j in 0..N {
                    dh[j] += dy[j] * factor[j];
                }
            }
            let zone = load_or::<N>(self.zone, first, 0.0);
            let (slope_z, slope_n) = (derivative(gate, &z), derivative(candidate, &n));
            let mut dz = [0.0; N];
            let mut dn = [0.0; N];
            for j in 0..N {
                let new = dh[j] * (1.0 - zone[j]);
                let (to_n, to_z, direct) = match self.spec.update {
                    Update::Overwrites => (new * z[j], new * (n[j] - h[j]), new * (1.0 - z[j])),
                    Update::Keeps => (new * (1.0 - z[j]), new * (h[j] - n[j]), new * z[j]),
                };
                dn[j] = to_n * slope_n[j];
                dz[j] = to_z * slope_z[j];
                dh[j] = dh[j] * zone[j] + direct;
            }
            store(all_z, first, &dz);
            store(all_n, first, &dn);
            store(self.dh, first, &dh);
            if self.spec.reset == Reset::After {
                let slope_r = derivative(gate, &r);
                let (mut dr, mut dpast) = ([0.0; N], [0.0; N]);
                for j in 0..N {
                    dr[j] = dn[j] * past[j] * slope_r[j];
                    dpast[j] = dn[j] * r[j];
                }
                store(all_r, first, &dr);
                store(all_past, first, &dpast);
            }
        }
    }
}

struct UndoReset<'a> {
    spec: CellSpec,
    /// The gradient of r ⊙ h.
    row: OfRow<'a>,
    h: &'a [f32],
    /// r, which becomes the gradient of its pre-activation.
    r: &'a mut [f32],
    dh: &'a mut [f32],
}

impl Kernel for UndoReset<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        for q in 0..self.spec.hidden.div_ceil(N) {
            let d = self.row.block::<N>(q);
            let first = q * N;
            let (h, r) = (load::<N>(self.h, first), load::<N>(self.r, first));
            let mut dh = load::<N>(self.dh, first);
            let derivative = derivative(self.spec.gate, &r);
            let mut dr = [0.0; N];
            for j in 0..N {
                dh[j] += d[j] * r[j];
                dr[j] = d[j] * h[j] * derivative[j];
            }
            store(self.dh, first, &dh);
            store(self.r, first, &dr);
        }
    }
}

struct AddRow<'a> {
    row: OfRow<'a>,
    to: &'a mut [f32],
}

impl Kernel for AddRow<'_> {
    #[inline(always)]
    fn run<V: Vector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        for q in 0..self.to.len().div_ceil(N) {
            let mut sum = load::<N>(self.to, q * N);
            let add = self.row.block::<N>(q);
            for j in 0..N {
                sum[j] += add[j];
            }
            store(self.to, q * N, &sum);
        }
    }
}
