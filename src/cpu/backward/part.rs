//! [`BackwardPart`]: the part of a team's member in the backward steps.

use std::ops::Range;

use crate::cpu::cell::BackwardWeights;
use crate::cpu::product::{AddProduct, LeftCopy, PackedLeft};
use crate::cpu::team::{Part, Parts, TeamStep};
use crate::error::{Result, try_zeros};

/// Some blocks of units, with a copy of the gate gradients.
pub(super) struct BackwardPart<'a> {
    weights: &'a BackwardWeights,
    blocks: Range<usize>,
    left: LeftCopy,
    /// The rows of W_hh to multiply with.
    depth: Range<usize>,
    /// `[·, R, N]`
    products: Vec<f32>,
}

impl<'a> BackwardPart<'a> {
    pub fn new(weights: &'a BackwardWeights, blocks: Range<usize>, rows: usize) -> Result<Self> {
        let spec = &weights.spec;
        let len = blocks.len() * rows * spec.level.lanes();
        let products = try_zeros("a member's gradients", len)?;
        let mut left = LeftCopy::default();
        left.grow(spec.level, rows, 3 * spec.hidden)?;
        Ok(Self { weights, blocks, left, depth: 0..0, products })
    }
}

impl Part for BackwardPart<'_> {
    fn compute(&mut self) {
        let Self { weights, blocks, left, depth, products } = self;
        let left = left.view(weights.spec.level);
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

impl<'a> TeamStep<BackwardPart<'a>> for ProductStep<'_> {
    fn give(&self, _: usize, part: &mut BackwardPart<'a>) {
        part.left.assign(self.left);
        part.depth = self.depth.clone();
    }

    fn own(&mut self, parts: Range<usize>) {
        let blocks = self.parts.blocks(parts);
        let (weights, left, depth) = (self.weights, self.left, self.depth.clone());
        multiply(weights, blocks.start, left, depth, self.products(&blocks));
    }

    fn take(&mut self, _: usize, part: &BackwardPart<'a>) {
        self.products(&part.blocks).copy_from_slice(&part.products);
    }
}
