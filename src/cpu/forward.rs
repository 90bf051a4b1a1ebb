//! [`Forward`]: the forward steps of a block of rows.
//!
//! Units are computed in blocks of `N`. One block of a step (the products with the weights of all
//! three gates, the activations, the new state) is computed while it is in the nearest cache, then
//! written out by rows. Rows are independent, so each thread takes some rows. If a large state has
//! too few rows, threads share a step instead, and each takes some blocks.
//!
//! Shapes: R rows of the row block, Q = ⌈H / N⌉ blocks of N units, padded H = Q·N. M is the number
//! of rows computed at once: R, or R for each of several steps if the gates are recomputed.

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

use super::cell::{CellSpec, ForwardWeights, RowBlock, row_of, row_of_mut, split_over_threads};
use super::product::{AddProduct, PackedLeft, add_product};
use super::simd::{SimdKernel, SimdVector, activate, lanes, lanes_mut, store};
use crate::error::{Result, try_zeros};
use crate::spec::config::{Reset, Update};

/// A task of the forward pass: the steps of a block of rows.
pub(super) struct Forward<'a> {
    pub weights: &'a ForwardWeights,
    pub row_block: RowBlock<'a>,
    /// The layer's input, `[T, R, ·]`.
    pub x: ArrayView3<'a, f32>,
    pub states: StepStates<'a>,
    /// Receives r, z, n and the recurrent term of n, `[times, R, 4H]`; `None` if they are not
    /// saved.
    pub gates: Option<ArrayViewMut3<'a, f32>>,
}

/// The states that steps start from.
pub(super) enum StepStates<'a> {
    /// Each step starts from the state that the previous step computed.
    Computed {
        /// The first state, replaced with the last state, `[R, H]`.
        state: ArrayViewMut2<'a, f32>,
        /// Receives the outputs, `[T, R, H]`.
        y: ArrayViewMut3<'a, f32>,
        /// In training, receives the state that each step starts from, `[T, R, H]`.
        saved: Option<ArrayViewMut3<'a, f32>>,
    },
    /// The states saved by an earlier run, `[T, R, H]`. Only the gates are computed. Steps are
    /// independent.
    Saved(ArrayView3<'a, f32>),
}

/// The stage of a block's step to compute.
#[derive(Clone, Copy)]
enum CellStage {
    /// r, z and r ⊙ h, with reset before the product.
    Gates,
    /// n and the new state, with reset before the product.
    Candidate,
    /// Everything, with reset after the product.
    Whole,
}

/// The number of slots in a block. A slot holds one result of all rows, `[M, N]`: r, z, the
/// recurrent term of n (`W_hn h + b_hn`, or `r ⊙ h` with reset before), n, and h'.
const SLOTS: usize = 5;
const R: usize = 0;
const Z: usize = 1;
const N_RECURRENT: usize = 2;
const CANDIDATE: usize = 3;
const NEW: usize = 4;

/// The elements of the blocks (16 KiB) whose products are computed before their activations.
const GROUP_LEN: usize = 4 << 10;

/// Scratch memory for a chunk of C steps.
struct StepScratch {
    /// The states h, `[M, padded H]`.
    h: Vec<f32>,
    /// r ⊙ h, `[M, padded H]`, for reset before the product.
    rh: Vec<f32>,
    /// A contiguous copy of x, `[C, R, I]`.
    x: Vec<f32>,
    /// The input products W_ih x + b, `[3Q, C, R, N]`.
    inputs: Vec<f32>,
    /// The memory of a [`PackedLeft`].
    left: Vec<f32>,
    /// The results of a step, `[Q, SLOTS, M, N]`.
    blocks: Vec<f32>,
    /// The zoneout fractions ζ of one row, `[padded H]`.
    zone: Vec<f32>,
}

impl Forward<'_> {
    pub fn run(mut self) -> Result<()> {
        let spec = self.weights.spec;
        let (_, rows, width) = self.x.dim();
        let lanes = spec.level.lanes();
        // The input products of several steps are computed at once, so that tiles are full.
        let chunk = 48usize.div_ceil(rows).min(self.row_block.times.len());
        let steps_at_once = match self.states {
            StepStates::Computed { .. } => 1,
            StepStates::Saved(_) => chunk,
        };
        let (blocks, padded) = (spec.blocks(), spec.padded());
        let rows_at_once = steps_at_once * rows;
        let mut scratch = StepScratch {
            h: try_zeros("h [R, H]", rows_at_once * padded)?,
            rh: try_zeros("r ⊙ h [R, H]", rows_at_once * padded)?,
            x: try_zeros("a chunk's x", chunk * rows * width)?,
            inputs: try_zeros("a chunk's input products", 3 * blocks * chunk * rows * lanes)?,
            left: Vec::new(),
            blocks: try_zeros("a step's gates", blocks * SLOTS * rows_at_once * lanes)?,
            zone: try_zeros("a row's zoneout fractions", padded)?,
        };
        if let StepStates::Computed { state, .. } = &self.states {
            for (to, from) in scratch.h.chunks_exact_mut(padded).zip(state.rows()) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        let times: Vec<_> = self.row_block.context.in_order(self.row_block.times.clone()).collect();
        for times in times.chunks(chunk) {
            self.input_products(times, &mut scratch)?;
            for (i, now) in times.chunks(steps_at_once).enumerate() {
                self.step(now, i * steps_at_once, times.len(), &mut scratch)?;
            }
        }
        if let StepStates::Computed { state, .. } = &mut self.states {
            for (mut to, from) in state.rows_mut().into_iter().zip(scratch.h.chunks_exact(padded)) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        Ok(())
    }

    /// Computes W_ih x + b for a chunk of steps: `inputs [3Q, C·R, N] = bias + x [C·R, I] · W_ihᵀ`.
    fn input_products(&self, times: &[usize], scratch: &mut StepScratch) -> Result<()> {
        let ForwardWeights { spec, input, bias, .. } = self.weights;
        let (_, rows, width) = self.x.dim();
        let lanes = spec.level.lanes();
        let mut copies = scratch.x.chunks_exact_mut(width);
        for &t in times {
            for (from, to) in self.x.index_axis(Axis(0), t).rows().into_iter().zip(&mut copies) {
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

    /// Computes the steps at `times`: one step, or all steps of a chunk if the states are saved.
    /// The first is step `i` of a chunk of `steps` steps. The M rows are the R rows of each step.
    fn step(
        &mut self,
        times: &[usize],
        i: usize,
        steps: usize,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let spec = self.weights.spec;
        let step_rows = self.x.len_of(Axis(1));
        let (rows, padded) = (times.len() * step_rows, spec.padded());
        let positions = || times.iter().flat_map(|&t| (0..step_rows).map(move |row| (t, row)));
        for ((t, row), h) in positions().zip(scratch.h.chunks_exact_mut(padded)) {
            match &self.states {
                StepStates::Saved(saved) => h[..spec.hidden].copy_from_slice(row_of(saved, t, row)),
                StepStates::Computed { .. } if self.row_block.restarts(t, row) => {
                    let reset_state =
                        self.row_block.context.reset_state.row(self.row_block.rows.start + row);
                    h.iter_mut().zip(reset_state).for_each(|(h, &reset)| *h = reset);
                }
                StepStates::Computed { .. } => {}
            }
        }
        let StepScratch { h, rh, inputs, left, blocks, .. } = &mut *scratch;
        let block_len = SLOTS * rows * spec.level.lanes();
        let (h, rh) = (&h[..rows * padded], &mut rh[..rows * padded]);
        let blocks = &mut blocks[..spec.blocks() * block_len];
        // `operand [M, padded H]` is h or r ⊙ h.
        let mut compute = |stage: CellStage, operand: &[f32], blocks: &mut [f32]| -> Result<()> {
            let operand =
                PackedLeft::pack(spec.level, operand, padded, [0..spec.hidden, 0..0], left)?;
            let (weights, all) = (self.weights, &inputs[..]);
            let inputs = StepInputs { all, panel_rows: steps * step_rows, first: i * step_rows };
            split_over_threads(
                blocks,
                block_len,
                spec.blocks(),
                self.row_block.threads,
                |first, blocks| {
                    let step = StepBlocks { weights, stage, h, operand, inputs, first, blocks };
                    spec.level.run(step);
                },
            );
            Ok(())
        };
        let is_idle = positions().all(|(t, row)| self.row_block.is_padding(t, row));
        match spec.reset {
            _ if is_idle => {}
            Reset::After => compute(CellStage::Whole, h, blocks)?,
            Reset::Before => {
                compute(CellStage::Gates, h, blocks)?;
                spec.level.run(Gather { slot: N_RECURRENT, blocks, rows, to: rh });
                compute(CellStage::Candidate, rh, blocks)?;
            }
        }
        for (block_row, position) in positions().enumerate() {
            self.store_outputs(position, (block_row, rows), scratch);
        }
        Ok(())
    }

    /// Writes the results of one row of a step to the state, y, the saved state and the gates. The
    /// results are row `block_row` of the `rows` rows in the blocks.
    fn store_outputs(
        &mut self,
        (t, row): (usize, usize),
        (block_row, rows): (usize, usize),
        scratch: &mut StepScratch,
    ) {
        let CellSpec { level, hidden, .. } = self.weights.spec;
        let RowBlock { context, rows: batch_rows, times, .. } = &self.row_block;
        let (batch_row, first) = (batch_rows.start + row, times.start);
        let mut gates = self.gates.as_mut().map(|gates| row_of_mut(gates, t - first, row));
        let (mut y, mut saved) = match &mut self.states {
            StepStates::Computed { y, saved, .. } => {
                (Some(row_of_mut(y, t, row)), saved.as_mut().map(|saved| row_of_mut(saved, t, row)))
            }
            StepStates::Saved(_) => (None, None),
        };
        if context.is_padding(t, batch_row) {
            // Zeros rather than old values, which may be NaN: the backward pass multiplies them
            // with gradients of 0, and the products must be 0.
            for row in [&mut y, &mut saved, &mut gates].into_iter().flatten() {
                row.fill(0.0);
            }
            return;
        }
        let padded = scratch.zone.len();
        let h = &mut scratch.h[block_row * padded..][..padded];
        if let Some(saved) = saved {
            saved.copy_from_slice(&h[..hidden]);
        }
        let has_zoneout = y.is_some() && context.noise.has_zoneout();
        if has_zoneout {
            let zone = context.zoneout(t, batch_row, hidden);
            scratch.zone[..hidden]
                .iter_mut()
                .enumerate()
                .for_each(|(j, fraction)| *fraction = zone(j));
        }
        level.run(StoreOutputs {
            blocks: &scratch.blocks[..padded * SLOTS * rows],
            rows,
            row: block_row,
            zone: has_zoneout.then_some(&scratch.zone),
            h,
            gates,
        });
        let Some(y) = y else { return };
        y.copy_from_slice(&h[..hidden]);
        if context.noise.drops(context.layer) {
            let factor = context.dropout(t, batch_row, hidden);
            y.iter_mut().enumerate().for_each(|(j, y)| *y *= factor(j));
        }
    }
}

/// The input products of a step: some rows of a chunk's input products.
#[derive(Clone, Copy)]
struct StepInputs<'a> {
    /// The chunk's input products, `[3Q, panel_rows, N]`.
    all: &'a [f32],
    /// The rows of a panel, C·R.
    panel_rows: usize,
    /// The step's first row.
    first: usize,
}

impl<'a> StepInputs<'a> {
    /// Returns one of the step's rows of a panel, `[N]`.
    #[inline(always)]
    fn row<const N: usize>(&self, panel: usize, row: usize) -> &'a [f32; N] {
        lanes(self.all, (panel * self.panel_rows + self.first + row) * N)
    }
}

/// A kernel that computes one stage of a step for some blocks of units.
struct StepBlocks<'a> {
    weights: &'a ForwardWeights,
    stage: CellStage,
    /// The states h, `[M, padded H]`.
    h: &'a [f32],
    /// The left side of the recurrent products, `[M, H]`: h, or r ⊙ h in
    /// [`CellStage::Candidate`].
    operand: PackedLeft<'a>,
    inputs: StepInputs<'a>,
    /// The index of the first block.
    first: usize,
    /// The blocks, `[·, SLOTS, M, N]`.
    blocks: &'a mut [f32],
}

impl SimdKernel for StepBlocks<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(mut self) {
        let rows = self.operand.rows;
        let block_len = SLOTS * rows * N;
        let blocks = std::mem::take(&mut self.blocks);
        // The activations of one row wait for each other. So those of several blocks follow each
        // other, as many blocks as stay in the nearest cache.
        let group = (GROUP_LEN / block_len).max(1);
        for (i, group_blocks) in blocks.chunks_mut(group * block_len).enumerate() {
            let first = self.first + i * group;
            for (q, block) in (first..).zip(group_blocks.chunks_exact_mut(block_len)) {
                self.products::<V, N, ROWS>(q, block);
            }
            for (q, block) in (first..).zip(group_blocks.chunks_exact_mut(block_len)) {
                for row in 0..rows {
                    self.activations::<V, N>(q, row, block);
                }
            }
        }
    }
}

impl StepBlocks<'_> {
    /// Computes the recurrent products of block q, without the biases:
    ///
    /// ```text
    /// Whole:     block[r, z, n_recurrent] = h · W_hhᵀ, all three gates
    /// Gates:     block[r, z]              = h · W_hhᵀ, the gates r and z
    /// Candidate: block[n]                 = (r ⊙ h) · W_hnᵀ
    /// ```
    #[inline(always)]
    fn products<V: SimdVector, const N: usize, const ROWS: usize>(
        &self,
        q: usize,
        block: &mut [f32],
    ) {
        let (slots, first) = match self.stage {
            CellStage::Whole => (R..N_RECURRENT + 1, 3 * q),
            CellStage::Gates => (R..N_RECURRENT, 3 * q),
            CellStage::Candidate => (CANDIDATE..NEW, 3 * q + 2),
        };
        let slot_len = self.operand.rows * N;
        let out = &mut block[slots.start * slot_len..slots.end * slot_len];
        out.fill(0.0);
        let (left, right) = (self.operand, &self.weights.recurrent);
        let depth = 0..self.weights.spec.hidden;
        add_product::<V, N, ROWS>(AddProduct { left, right, depth, first, out });
    }

    /// Applies the activations to the recurrent sums s of one row of block q, `[N]` per slot, and to
    /// its input products i. An input product is added to the whole sum of the recurrent product:
    /// if the sum started with it, each addition would be rounded to its size.
    ///
    /// ```text
    /// Gates, Whole:      r = σ(i_r + s_r), z = σ(i_z + s_z)
    /// Gates:             n_recurrent = r ⊙ h
    /// Whole:             n_recurrent = s_n + b_hn, n = tanh(i_n + r ⊙ n_recurrent)
    /// Candidate:         n = tanh(i_n + s_n)                  s_n is W_hn (r ⊙ h)
    /// Whole, Candidate:  h' = (1 − z) ⊙ h + z ⊙ n, or z ⊙ h + (1 − z) ⊙ n if z keeps
    /// ```
    #[inline(always)]
    fn activations<V: SimdVector, const N: usize>(&self, q: usize, row: usize, block: &mut [f32]) {
        let spec = &self.weights.spec;
        let rows = self.operand.rows;
        let h = lanes::<N>(self.h, row * (self.h.len() / rows) + q * N);
        let bias = lanes::<N>(&self.weights.bias_hn, q * N);
        let inputs = [0, 1, 2].map(|gate| self.inputs.row::<N>(3 * q + gate, row));
        for first in (0..N).step_by(V::WIDTH) {
            let at = |slot: usize| (slot * rows + row) * N + first;
            let input = |gate: usize| V::load(&inputs[gate][first..]);
            let h = V::load(&h[first..]);
            if !matches!(self.stage, CellStage::Candidate) {
                for (slot, gate) in [(R, 0), (Z, 1)] {
                    let sum = V::load(&block[at(slot)..]).add(input(gate));
                    activate(spec.gate, sum).store(&mut block[at(slot)..]);
                }
            }
            let (r, z) = (V::load(&block[at(R)..]), V::load(&block[at(Z)..]));
            let sum = match self.stage {
                CellStage::Gates => {
                    r.mul(h).store(&mut block[at(N_RECURRENT)..]);
                    continue;
                }
                CellStage::Candidate => V::load(&block[at(CANDIDATE)..]).add(input(2)),
                CellStage::Whole => {
                    let n_recurrent =
                        V::load(&block[at(N_RECURRENT)..]).add(V::load(&bias[first..]));
                    n_recurrent.store(&mut block[at(N_RECURRENT)..]);
                    input(2).add_product(r, n_recurrent)
                }
            };
            let n = activate(spec.candidate, sum);
            n.store(&mut block[at(CANDIDATE)..]);
            let new = match spec.update {
                Update::Overwrites => mix(h, n, z),
                Update::Keeps => mix(n, h, z),
            };
            new.store(&mut block[at(NEW)..]);
        }
    }
}

/// Returns (1 − t) · a + t · b: from the one with the larger weight toward the other, so that the
/// rounded term is small. A weight of 0 or 1 gives one of the two exactly.
#[inline(always)]
fn mix<V: SimdVector>(a: V, b: V, t: V) -> V {
    let (half, one) = (V::splat(0.5), V::splat(1.0));
    let start = V::select_less(t, half, a, b);
    let weight = V::select_less(t, half, t, t.sub(one));
    start.add_product(weight, b.sub(a))
}

/// A kernel that copies one slot of every block to rows.
struct Gather<'a> {
    slot: usize,
    /// `[Q, SLOTS, M, N]`
    blocks: &'a [f32],
    /// M
    rows: usize,
    /// `[M, padded H]`
    to: &'a mut [f32],
}

impl SimdKernel for Gather<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
        let stride = self.to.len() / self.rows;
        for (q, block) in self.blocks.chunks_exact(SLOTS * self.rows * N).enumerate() {
            for row in 0..self.rows {
                let from = lanes::<N>(block, (self.slot * self.rows + row) * N);
                *lanes_mut(self.to, row * stride + q * N) = *from;
            }
        }
    }
}

/// A kernel that applies zoneout, `h = ζ ⊙ h + (1 − ζ) ⊙ h'`, and stores the gates of one row.
struct StoreOutputs<'a> {
    /// `[Q, SLOTS, M, N]`
    blocks: &'a [f32],
    /// M
    rows: usize,
    /// The index of the row.
    row: usize,
    /// The zoneout fractions ζ, `[padded H]`; `None` without zoneout.
    zone: Option<&'a Vec<f32>>,
    /// The old state, replaced with the new state, `[padded H]`.
    h: &'a mut [f32],
    /// Receives r, z, n and the recurrent term of n, `[4H]`.
    gates: Option<&'a mut [f32]>,
}

impl SimdKernel for StoreOutputs<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(mut self) {
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
                for (quarter, from) in quarters.zip([R, Z, CANDIDATE, N_RECURRENT]) {
                    store(quarter, q * N, slot(from));
                }
            }
        }
    }
}
