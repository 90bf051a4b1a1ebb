//! [`BackwardPart`]: the part of a team's member in the backward steps.

use std::ops::Range;
use std::sync::Arc;

use crate::cpu::cell::{BackwardWeights, RowBlock};
use crate::cpu::product::{AddProduct, LeftCopy, PackedLeft};
use crate::cpu::team::{Part, Parts, Team, TeamStep};
use crate::error::{Result, try_zeros};

/// Some blocks of units.
pub(super) struct BackwardPart {
    weights: Arc<BackwardWeights>,
    blocks: Range<usize>,
    /// The rows of W_hh to multiply with.
    depth: Range<usize>,
    /// `[·, R, N]`
    products: Vec<f32>,
}

impl BackwardPart {
    /// Returns a team for the steps of `row_block`.
    pub fn team(weights: &Arc<BackwardWeights>, row_block: &RowBlock<'_>) -> Result<Team<Self>> {
        let (spec, rows) = (&weights.spec, row_block.rows.len());
        let parts = row_block.parts(spec.blocks());
        let mut left = LeftCopy::default();
        if parts.count > 1 {
            left.grow(spec.level, rows, 3 * spec.hidden)?;
        }
        let members = (1..parts.count)
            .map(|i| Self::new(weights, parts.blocks(i..i + 1), rows))
            .collect::<Result<_>>()?;
        Ok(Team::new(members, left, row_block.sharing, row_block.active_steps()))
    }

    fn new(weights: &Arc<BackwardWeights>, blocks: Range<usize>, rows: usize) -> Result<Self> {
        let spec = &weights.spec;
        let len = blocks.len() * rows * spec.level.lanes();
        let products = try_zeros("a member's gradients", len)?;
        Ok(Self { weights: weights.clone(), blocks, depth: 0..0, products })
    }
}

impl Part for BackwardPart {
    /// Some gate gradients.
    type Operand = LeftCopy;

    fn compute(&mut self, operand: &LeftCopy) {
        let Self { weights, blocks, depth, products } = self;
        let left = operand.view(weights.spec.level);
        multiply(weights, blocks.start, left, depth.clone(), products);
    }
}

/// Computes the products of some blocks from `first` on: `out [·, R, N] = left · W_hh[depth, ..]`.
fn multiply(
    weights: &BackwardWeights,
    first: usize,
    left: PackedLeft<'_>,
    depth: Range<usize>,
    out: &mut [f32],
) {
    out.fill(0.0);
    let right = &weights.recurrent;
    weights.spec.level.run(AddProduct { left, right, depth, first, out });
}

/// A product of a step.
pub(super) struct ProductStep<'s> {
    pub weights: &'s BackwardWeights,
    pub parts: Parts,
    pub left: PackedLeft<'s>,
    pub depth: Range<usize>,
    /// `[Q, R, N]`
    pub products: &'s mut [f32],
}

impl<'s> ProductStep<'s> {
    /// Returns the products of some blocks.
    fn products(&mut self, blocks: &Range<usize>) -> &mut [f32] {
        let len = self.left.rows * self.weights.spec.level.lanes();
        &mut self.products[blocks.start * len..blocks.end * len]
    }
}

impl TeamStep<BackwardPart> for ProductStep<'_> {
    fn share(&self, operand: &mut LeftCopy) {
        operand.assign(self.left);
    }

    fn give(&self, _: usize, part: &mut BackwardPart) {
        part.depth = self.depth.clone();
    }

    fn own(&mut self, parts: Range<usize>) {
        let blocks = self.parts.blocks(parts);
        let (weights, left, depth) = (self.weights, self.left, self.depth.clone());
        multiply(weights, blocks.start, left, depth, self.products(&blocks));
    }

    fn take(&mut self, _: usize, part: &BackwardPart) {
        self.products(&part.blocks).copy_from_slice(&part.products);
    }
}
