//! [`ForwardPart`]: the part of a team's member in the forward steps.

use std::ops::Range;
use std::sync::Arc;

use super::kernel::{
    CANDIDATE, CellStage, InputProducts, NEW, R, SLOTS, StepBlocks, StepInputs, Z,
};
use crate::cpu::cell::{ForwardWeights, RowBlock};
use crate::cpu::product::{LeftCopy, PackedLeft};
use crate::cpu::team::{Part, Parts, Team, TeamStep};
use crate::error::{Result, try_zeros};

/// Some blocks of units, with copies of what only they read.
pub(super) struct ForwardPart {
    weights: Arc<ForwardWeights>,
    blocks: Range<usize>,
    work: Work,
    /// The index of the chunk of steps whose input products are in `inputs`.
    chunk: Option<usize>,
    /// `[·, C·R, N]`
    inputs: Vec<f32>,
    /// The states of these units, `[M, ·]`.
    h: Vec<f32>,
    /// `[·, SLOTS, M, N]`
    results: Vec<f32>,
}

#[derive(Clone, Copy)]
enum Work {
    /// The input products of this chunk.
    Inputs { chunk: usize },
    /// A stage of a step, whose inputs are these rows of the chunk.
    Step { stage: CellStage, panel_rows: usize, first: usize },
}

impl ForwardPart {
    /// Returns a team for the steps of `row_block`, for up to this many rows M, and rows of a chunk.
    pub fn team(
        weights: &Arc<ForwardWeights>,
        row_block: &RowBlock<'_>,
        (rows, chunk_rows): (usize, usize),
    ) -> Result<Team<Self>> {
        let level = weights.spec.level;
        let parts = row_block.parts(weights.spec.blocks());
        let mut left = LeftCopy::default();
        if parts.count > 1 {
            left.grow(level, rows, weights.recurrent.depth)?;
            left.grow(level, chunk_rows, weights.input.depth)?;
        }
        let members = (1..parts.count)
            .map(|i| Self::new(weights, parts.blocks(i..i + 1), rows, chunk_rows))
            .collect::<Result<_>>()?;
        Ok(Team::new(members, left, row_block.sharing, row_block.active_steps()))
    }

    /// Returns the part of some blocks, for up to `rows` rows M, and `chunk_rows` rows of a chunk.
    fn new(
        weights: &Arc<ForwardWeights>,
        blocks: Range<usize>,
        rows: usize,
        chunk_rows: usize,
    ) -> Result<Self> {
        let units = blocks.len() * weights.spec.level.lanes();
        Ok(Self {
            work: Work::Inputs { chunk: 0 },
            chunk: None,
            inputs: try_zeros("a member's input products", 3 * units * chunk_rows)?,
            h: try_zeros("a member's h", units * rows)?,
            results: try_zeros("a member's gates", units * SLOTS * rows)?,
            weights: weights.clone(),
            blocks,
        })
    }
}

impl Part for ForwardPart {
    /// The left side of the products.
    type Operand = LeftCopy;

    fn compute(&mut self, operand: &LeftCopy) {
        let Self { weights, blocks, work, chunk, inputs, h, results } = self;
        let level = weights.spec.level;
        let (operand, units) = (operand.view(level), blocks.len() * level.lanes());
        match *work {
            Work::Inputs { chunk: index } => {
                let out = &mut inputs[..3 * units * operand.rows];
                let first = blocks.start;
                level.run(InputProducts { weights, first, left: operand, out });
                *chunk = Some(index);
            }
            Work::Step { stage, panel_rows, first } => level.run(StepBlocks {
                weights,
                stage,
                h,
                stride: units,
                operand,
                inputs: StepInputs { all: inputs, panel_rows, first },
                first: blocks.start,
                blocks: &mut results[..units * SLOTS * operand.rows],
            }),
        }
    }
}

/// The input products of a chunk of steps.
pub(super) struct InputsStep<'s> {
    pub weights: &'s ForwardWeights,
    pub parts: Parts,
    /// The index of the chunk.
    pub chunk: usize,
    /// x, `[C·R, I]`
    pub left: PackedLeft<'s>,
    /// `[3Q, C·R, N]`
    pub inputs: &'s mut [f32],
}

impl InputsStep<'_> {
    /// Returns the input products of some blocks.
    fn inputs(&mut self, blocks: &Range<usize>) -> &mut [f32] {
        let len = 3 * self.left.rows * self.weights.spec.level.lanes();
        &mut self.inputs[blocks.start * len..blocks.end * len]
    }
}

impl TeamStep<ForwardPart> for InputsStep<'_> {
    fn share(&self, operand: &mut LeftCopy) {
        operand.assign(self.left);
    }

    fn give(&self, _: usize, part: &mut ForwardPart) {
        part.work = Work::Inputs { chunk: self.chunk };
    }

    fn own(&mut self, parts: Range<usize>) {
        let blocks = self.parts.blocks(parts);
        let (weights, left) = (self.weights, self.left);
        let (first, out) = (blocks.start, self.inputs(&blocks));
        weights.spec.level.run(InputProducts { weights, first, left, out });
    }

    /// The leader also needs the results: it may compute steps of this part.
    fn take(&mut self, _: usize, part: &ForwardPart) {
        let to = self.inputs(&part.blocks);
        to.copy_from_slice(&part.inputs[..to.len()]);
    }
}

/// A stage of a step, for all units.
pub(super) struct UnitsStep<'s> {
    pub weights: &'s ForwardWeights,
    pub parts: Parts,
    /// The index of the chunk.
    pub chunk: usize,
    pub stage: CellStage,
    /// Whether all gates are needed, or only the new state.
    pub saves_gates: bool,
    /// `[M, padded H]`
    pub h: &'s [f32],
    /// The left side of the products: h or r ⊙ h.
    pub operand: PackedLeft<'s>,
    pub inputs: StepInputs<'s>,
    /// `[Q, SLOTS, M, N]`
    pub blocks: &'s mut [f32],
}

impl UnitsStep<'_> {
    /// Returns the length of a slot.
    fn slot_len(&self) -> usize {
        self.operand.rows * self.weights.spec.level.lanes()
    }

    /// Returns the slots that a member's stage computes and the leader needs.
    fn results(&self) -> Range<usize> {
        match self.stage {
            CellStage::Gates => R..CANDIDATE,
            CellStage::Whole if self.saves_gates => R..SLOTS,
            CellStage::Candidate if self.saves_gates => CANDIDATE..SLOTS,
            CellStage::Whole | CellStage::Candidate => NEW..SLOTS,
        }
    }

    /// Returns the input products of some blocks, for all steps of the chunk.
    fn inputs_of(&self, blocks: &Range<usize>) -> &[f32] {
        let len = 3 * self.inputs.panel_rows * self.weights.spec.level.lanes();
        &self.inputs.all[blocks.start * len..blocks.end * len]
    }
}

impl TeamStep<ForwardPart> for UnitsStep<'_> {
    fn share(&self, operand: &mut LeftCopy) {
        operand.assign(self.operand);
    }

    fn give(&self, _: usize, part: &mut ForwardPart) {
        let (rows, lanes) = (self.operand.rows, self.weights.spec.level.lanes());
        let StepInputs { panel_rows, first, .. } = self.inputs;
        let units = part.blocks.len() * lanes;
        let rows_of_h = self.h.chunks_exact(self.h.len() / rows);
        for (to, from) in part.h.chunks_exact_mut(units).zip(rows_of_h) {
            to.copy_from_slice(&from[part.blocks.start * lanes..][..units]);
        }
        if part.chunk != Some(self.chunk) {
            let inputs = self.inputs_of(&part.blocks);
            part.inputs[..inputs.len()].copy_from_slice(inputs);
            part.chunk = Some(self.chunk);
        }
        if matches!(self.stage, CellStage::Candidate) {
            // The leader may have computed z.
            let (Range { start, end }, slot_len) = (part.blocks.clone(), self.slot_len());
            let from = &self.blocks[start * SLOTS * slot_len..end * SLOTS * slot_len];
            copy_slots(Z..Z + 1, slot_len, from, &mut part.results);
        }
        part.work = Work::Step { stage: self.stage, panel_rows, first };
    }

    fn own(&mut self, parts: Range<usize>) {
        let blocks = self.parts.blocks(parts);
        let Self { weights, stage, h, operand, inputs, .. } = *self;
        let (lanes, block_len) = (weights.spec.level.lanes(), SLOTS * self.slot_len());
        weights.spec.level.run(StepBlocks {
            weights,
            stage,
            h: &h[blocks.start * lanes..],
            stride: h.len() / operand.rows,
            operand,
            inputs: StepInputs {
                all: &inputs.all[3 * blocks.start * inputs.panel_rows * lanes..],
                ..inputs
            },
            first: blocks.start,
            blocks: &mut self.blocks[blocks.start * block_len..blocks.end * block_len],
        });
    }

    fn take(&mut self, _: usize, part: &ForwardPart) {
        let (slots, slot_len) = (self.results(), self.slot_len());
        let Range { start, end } = part.blocks.clone();
        let to = &mut self.blocks[start * SLOTS * slot_len..end * SLOTS * slot_len];
        copy_slots(slots, slot_len, &part.results, to);
    }
}

/// Copies some slots of each block from `from` to `to`, `[·, SLOTS, M, N]`.
fn copy_slots(slots: Range<usize>, slot_len: usize, from: &[f32], to: &mut [f32]) {
    let slots = slots.start * slot_len..slots.end * slot_len;
    let block_len = SLOTS * slot_len;
    for (from, to) in from.chunks_exact(block_len).zip(to.chunks_exact_mut(block_len)) {
        to[slots.clone()].copy_from_slice(&from[slots.clone()]);
    }
}
