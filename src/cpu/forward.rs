//! [`Forward`]: the forward steps of a block of rows.
//!
//! Units are computed in blocks of `N`. One block of a step (the products with the weights of all
//! three gates, the activations, the new state) is computed while it is in the nearest cache, then
//! written out by rows. Rows are independent, so each thread takes some rows. If a large state has
//! too few rows, threads share a step instead, and each takes some blocks.
//!
//! Shapes: R rows of the row block, Q = ⌈H / N⌉ blocks of N units, padded H = Q·N. M is the number
//! of rows computed at once: R, or R for each of several steps if the gates are recomputed.

mod kernel;
mod part;

use std::sync::Arc;

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

use super::cell::{CellSpec, ForwardWeights, RowBlock, row_of, row_of_mut};
use super::product::PackedLeft;
use super::simd::{SimdKernel, SimdVector, lanes, lanes_mut, store};
use super::team::Team;
use crate::error::{Result, try_zeros};
use crate::spec::config::Reset;
use kernel::{CANDIDATE, CellStage, N_RECURRENT, NEW, R, SLOTS, StepInputs, Z};
use part::{ForwardPart, InputsStep, UnitsStep};

/// A task of the forward pass: the steps of a block of rows.
pub(super) struct Forward<'a> {
    pub weights: &'a Arc<ForwardWeights>,
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

/// The threads that share a forward step.
type ForwardTeam = Team<ForwardPart>;

/// The steps to compute.
#[derive(Clone, Copy)]
struct StepsNow<'t> {
    /// The index of their chunk, and its number of steps.
    chunk: usize,
    steps: usize,
    /// The index of the first step in the chunk.
    first: usize,
    /// One step, or all of the chunk.
    times: &'t [usize],
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
        let max_rows = (rows_at_once, chunk * rows);
        let mut team = ForwardPart::team(self.weights, &self.row_block, max_rows)?;
        self.run_steps(&mut team, (chunk, steps_at_once), &mut scratch)?;
        if let StepStates::Computed { state, .. } = &mut self.states {
            for (mut to, from) in state.rows_mut().into_iter().zip(scratch.h.chunks_exact(padded)) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
        Ok(())
    }

    /// Runs all steps, in chunks of `chunk` steps, `steps_at_once` at a time.
    fn run_steps(
        &mut self,
        team: &mut ForwardTeam,
        (chunk, steps_at_once): (usize, usize),
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let times: Vec<_> = self.row_block.context.in_order(self.row_block.times.clone()).collect();
        for (chunk, all) in times.chunks(chunk).enumerate() {
            self.input_products(team, (chunk, all), scratch)?;
            for (i, times) in all.chunks(steps_at_once).enumerate() {
                let now = StepsNow { chunk, steps: all.len(), first: i * steps_at_once, times };
                self.load_states(times, scratch);
                if !self.row_block.is_idle(times) {
                    team.measure(|team| self.step(team, now, scratch))?;
                }
                let rows = times.len() * self.x.len_of(Axis(1));
                for (block_row, position) in self.positions(times).enumerate() {
                    self.store_outputs(position, (block_row, rows), scratch);
                }
            }
        }
        Ok(())
    }

    /// Returns the time and the row of each of the M rows of a step.
    fn positions<'t>(&self, times: &'t [usize]) -> impl Iterator<Item = (usize, usize)> + use<'t> {
        let rows = self.x.len_of(Axis(1));
        times.iter().flat_map(move |&t| (0..rows).map(move |row| (t, row)))
    }

    /// Computes W_ih x + b for a chunk of steps: `inputs [3Q, C·R, N] = bias + x [C·R, I] · W_ihᵀ`.
    fn input_products(
        &self,
        team: &mut ForwardTeam,
        (chunk, times): (usize, &[usize]),
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let (weights, spec) = (self.weights, self.weights.spec);
        let (_, rows, width) = self.x.dim();
        let mut copies = scratch.x.chunks_exact_mut(width);
        for &t in times {
            for (from, to) in self.x.index_axis(Axis(0), t).rows().into_iter().zip(&mut copies) {
                to.copy_from_slice(from.to_slice().expect("rows are contiguous"));
            }
        }
        let x = &scratch.x[..times.len() * rows * width];
        let left = PackedLeft::pack(spec.level, x, width, [0..width, 0..0], &mut scratch.left)?;
        let parts = self.row_block.parts(spec.blocks());
        let len = 3 * parts.blocks * left.rows * spec.level.lanes();
        let inputs = &mut scratch.inputs[..len];
        team.step(InputsStep { weights, parts, chunk, left, inputs });
        Ok(())
    }

    /// Loads saved states, and the reset state of rows that restart.
    fn load_states(&self, times: &[usize], scratch: &mut StepScratch) {
        let CellSpec { hidden, .. } = self.weights.spec;
        let RowBlock { context, rows, .. } = &self.row_block;
        let padded = scratch.zone.len();
        for ((t, row), h) in self.positions(times).zip(scratch.h.chunks_exact_mut(padded)) {
            match &self.states {
                StepStates::Saved(saved) => h[..hidden].copy_from_slice(row_of(saved, t, row)),
                StepStates::Computed { .. } if self.row_block.restarts(t, row) => {
                    let reset_state = context.reset_state.row(rows.start + row);
                    h.iter_mut().zip(reset_state).for_each(|(h, &reset)| *h = reset);
                }
                StepStates::Computed { .. } => {}
            }
        }
    }

    /// Computes one step, or all steps of a chunk if the states are saved. The M rows are the R rows
    /// of each step.
    fn step(
        &mut self,
        team: &mut ForwardTeam,
        now: StepsNow<'_>,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let spec = self.weights.spec;
        let step_rows = self.x.len_of(Axis(1));
        let (rows, padded) = (now.times.len() * step_rows, spec.padded());
        let StepScratch { h, rh, inputs, left, blocks, .. } = &mut *scratch;
        let (h, rh) = (&h[..rows * padded], &mut rh[..rows * padded]);
        let blocks = &mut blocks[..spec.blocks() * SLOTS * rows * spec.level.lanes()];
        let panel_rows = now.steps * step_rows;
        let inputs = StepInputs { all: inputs, panel_rows, first: now.first * step_rows };
        let (weights, saves_gates) = (self.weights, self.gates.is_some());
        let parts = self.row_block.parts(spec.blocks());
        // `operand [M, padded H]` is h or r ⊙ h.
        let mut compute = |stage: CellStage, operand: &[f32], blocks: &mut [f32]| -> Result<()> {
            let operand =
                PackedLeft::pack(spec.level, operand, padded, [0..spec.hidden, 0..0], left)?;
            let chunk = now.chunk;
            team.step(UnitsStep {
                weights,
                parts,
                chunk,
                stage,
                saves_gates,
                h,
                operand,
                inputs,
                blocks,
            });
            Ok(())
        };
        match spec.reset {
            Reset::After => compute(CellStage::Whole, h, blocks)?,
            Reset::Before => {
                compute(CellStage::Gates, h, blocks)?;
                spec.level.run(Gather { slot: N_RECURRENT, blocks, rows, to: rh });
                compute(CellStage::Candidate, rh, blocks)?;
            }
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
