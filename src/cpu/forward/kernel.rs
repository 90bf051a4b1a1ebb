//! [`StepBlocks`]: the kernel that computes blocks of units in a forward step.

use crate::cpu::cell::{CellSpec, ForwardWeights};
use crate::cpu::product::{AddProduct, PackedLeft, add_product};
use crate::cpu::simd::{SimdKernel, SimdVector, activate, lanes, lanes_mut};
use crate::spec::config::Update;

/// The stage of a block's step to compute.
#[derive(Clone, Copy)]
pub(super) enum CellStage {
    /// r, z and r ⊙ h, with reset before the product.
    Gates,
    /// n and the new state, with reset before the product.
    Candidate,
    /// Everything, with reset after the product.
    Whole,
}

/// The number of slots in a block. A slot holds one result of all rows, `[M, N]`: r, z, the
/// recurrent term of n (`W_hn h + b_hn`, or `r ⊙ h` with reset before), n, and h'.
pub(super) const SLOTS: usize = 5;
pub(super) const R: usize = 0;
pub(super) const Z: usize = 1;
pub(super) const N_RECURRENT: usize = 2;
pub(super) const CANDIDATE: usize = 3;
pub(super) const NEW: usize = 4;

/// The elements of the blocks (16 KiB) whose products are computed before their activations.
const GROUP_LEN: usize = 4 << 10;

/// The input products of a step: some rows of a chunk's input products.
#[derive(Clone, Copy)]
pub(super) struct StepInputs<'a> {
    /// The chunk's input products, `[·, panel_rows, N]`, from the first block on.
    pub all: &'a [f32],
    /// The rows of a panel, C·R.
    pub panel_rows: usize,
    /// The step's first row.
    pub first: usize,
}

impl<'a> StepInputs<'a> {
    /// Returns one of the step's rows of a panel, `[N]`.
    #[inline(always)]
    fn row<const N: usize>(&self, panel: usize, row: usize) -> &'a [f32; N] {
        lanes(self.all, (panel * self.panel_rows + self.first + row) * N)
    }
}

/// A kernel that computes one stage of a step for some blocks of units.
pub(super) struct StepBlocks<'a> {
    pub weights: &'a ForwardWeights,
    pub stage: CellStage,
    /// The states h, `[M, stride]`, from the first block on.
    pub h: &'a [f32],
    pub stride: usize,
    /// The left side of the recurrent products, `[M, H]`: h, or r ⊙ h in
    /// [`CellStage::Candidate`].
    pub operand: PackedLeft<'a>,
    pub inputs: StepInputs<'a>,
    /// The index of the first block.
    pub first: usize,
    /// The blocks, `[·, SLOTS, M, N]`.
    pub blocks: &'a mut [f32],
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
        let CellSpec { gate, candidate, update, .. } = self.weights.spec;
        let rows = self.operand.rows;
        let own = q - self.first;
        let h = lanes::<N>(self.h, row * self.stride + own * N);
        let bias = lanes::<N>(&self.weights.bias_hn, q * N);
        let inputs = [0, 1, 2].map(|gate| self.inputs.row::<N>(3 * own + gate, row));
        for first in (0..N).step_by(V::WIDTH) {
            let at = |slot: usize| (slot * rows + row) * N + first;
            let input = |gate: usize| V::load(&inputs[gate][first..]);
            let h = V::load(&h[first..]);
            if !matches!(self.stage, CellStage::Candidate) {
                for (slot, column) in [(R, 0), (Z, 1)] {
                    let sum = V::load(&block[at(slot)..]).add(input(column));
                    activate(&gate, sum).store(&mut block[at(slot)..]);
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
            let n = activate(&candidate, sum);
            n.store(&mut block[at(CANDIDATE)..]);
            let new = match update {
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

/// A kernel that computes the input products W_ih x + b of some blocks, for a chunk of steps:
/// `out [·, rows, N] = bias + x [rows, I] · W_ihᵀ`.
pub(super) struct InputProducts<'a> {
    pub weights: &'a ForwardWeights,
    /// The index of the first block.
    pub first: usize,
    /// x, `[rows, I]`
    pub left: PackedLeft<'a>,
    /// `[·, rows, N]`
    pub out: &'a mut [f32],
}

impl SimdKernel for InputProducts<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
        let Self { weights, left, out, .. } = self;
        let first = 3 * self.first;
        for (panel, out) in (first..).zip(out.chunks_exact_mut(left.rows * N)) {
            let bias = lanes::<N>(&weights.bias, panel * N);
            out.chunks_exact_mut(N).for_each(|row| *lanes_mut(row, 0) = *bias);
        }
        let right = &weights.input;
        add_product::<V, N, ROWS>(AddProduct { left, right, depth: 0..right.depth, first, out });
    }
}
