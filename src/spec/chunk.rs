//! [`Chunk`]: some steps and rows of a run. A run with a tensor that is too large for any buffer of
//! the device is cut into chunks, which run one after the other.

use std::ops::Range;

use ndarray::{ArrayBase, Ix3, RawData, s};

use crate::error::{Error, Result};
use crate::spec::config::{Direction, Layout, Shape};

/// The largest number of chunks of a run. A run of more chunks would exceed the host's memory.
const MAX_CHUNKS: usize = 1 << 16;

/// Some steps and rows of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub steps: Range<usize>,
    pub rows: Range<usize>,
}

impl Chunk {
    /// Returns the chunk of all steps and rows.
    pub fn whole(shape: Shape) -> Self {
        Self { steps: 0..shape.steps, rows: 0..shape.batch }
    }

    /// Returns the shape of this chunk; `whole` is the shape of the run.
    pub fn shape(&self, whole: Shape) -> Shape {
        Shape { steps: self.steps.len(), batch: self.rows.len(), ..whole }
    }

    /// Returns true if `other` has the same rows, so that this chunk continues from its states.
    /// `other` is the previous chunk in a forward pass and the next one in a backward pass.
    pub fn has_same_rows(&self, other: Option<&Self>) -> bool {
        other.is_some_and(|other| other.rows == self.rows)
    }

    /// Returns the lengths within this chunk of its rows; `all` has the lengths of all rows.
    pub fn lengths(&self, all: &[usize]) -> Vec<usize> {
        let Range { start, end } = self.steps;
        all[self.rows.clone()].iter().map(|&length| length.clamp(start, end) - start).collect()
    }

    /// Slices an array `[T, B, ·]` or `[B, T, ·]` of the run to this chunk.
    pub fn of_sequence<S: RawData>(
        &self,
        array: ArrayBase<S, Ix3>,
        layout: Layout,
    ) -> ArrayBase<S, Ix3> {
        let [first, second] = layout.order(self.steps.clone(), self.rows.clone());
        array.slice_move(s![first, second, ..])
    }

    /// Slices an array `[L·D, B, H]` of the run to this chunk.
    pub fn of_states<S: RawData>(&self, array: ArrayBase<S, Ix3>) -> ArrayBase<S, Ix3> {
        array.slice_move(s![.., self.rows.clone(), ..])
    }
}

/// Cuts a run of `shape` into chunks that fit, in the order of the forward pass:
///
/// 1. one chunk, if the whole run fits;
/// 2. else chunks of all rows and as many steps as fit, if states can be carried from chunk to
///    chunk in the direction `carried`. The number of sequential steps does not change;
/// 3. else chunks of all steps and as many rows as fit.
///
/// # Errors
/// The error of `fits` for the whole run, if no smaller chunk fits either or more than
/// [`MAX_CHUNKS`] are needed.
pub(crate) fn chunks(
    shape: Shape,
    carried: Option<Direction>,
    fits: impl Fn(Shape) -> Result<()>,
) -> Result<Vec<Chunk>> {
    let Shape { steps, batch, .. } = shape;
    let of = |steps, rows| Chunk { steps, rows };
    let error = match fits(shape) {
        Ok(()) => return Ok(vec![Chunk::whole(shape)]),
        Err(error @ Error::Limit { .. }) => error,
        Err(error) => return Err(error),
    };
    let few = |len: usize, most: &usize| len.div_ceil(*most) <= MAX_CHUNKS;
    let by_steps = match carried {
        Some(Direction::Forward | Direction::Reverse) => {
            largest(steps, |steps| fits(Shape { steps, ..shape }).is_ok())
        }
        Some(Direction::Both) | None => None,
    };
    if let Some(most) = by_steps.filter(|most| few(steps, most)) {
        let mut chunks: Vec<_> = evenly(steps, most).map(|steps| of(steps, 0..batch)).collect();
        if carried == Some(Direction::Reverse) {
            chunks.reverse();
        }
        return Ok(chunks);
    }
    let by_rows = largest(batch, |batch| fits(Shape { batch, ..shape }).is_ok());
    match by_rows.filter(|most| few(batch, most)) {
        Some(most) => Ok(evenly(batch, most).map(|rows| of(0..steps, rows)).collect()),
        None => Err(error),
    }
}

/// Returns the largest number from 1 to `end` − 1 that fits, or `None`. If a number fits, all
/// smaller ones must fit.
fn largest(end: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut fitting, mut failing) = (0, end);
    while failing - fitting > 1 {
        let middle = fitting + (failing - fitting) / 2;
        *(if fits(middle) { &mut fitting } else { &mut failing }) = middle;
    }
    (fitting > 0).then_some(fitting)
}

/// Cuts `0..len` into the fewest ranges of at most `most`, of equal lengths except the last.
fn evenly(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let each = len.div_ceil(len.div_ceil(most));
    (0..len).step_by(each).map(move |first| first..(first + each).min(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::config::GruConfig;

    /// Cuts a run if at most `cells` steps · rows fit a chunk.
    fn cut(steps: usize, batch: usize, carried: Option<Direction>, cells: usize) -> Vec<Chunk> {
        let shape = GruConfig::new(3, 5).shape(steps, batch).unwrap();
        let fits = |shape: Shape| match shape.steps * shape.batch {
            asked if asked <= cells => Ok(()),
            asked => {
                let (asked, allowed, limit) = (asked as u64, cells as u64, "cells");
                Err(Error::Limit { what: shape.to_string(), limit, asked, allowed })
            }
        };
        chunks(shape, carried, fits).unwrap_or_default()
    }

    #[test]
    fn chunks_are_few_and_even() {
        let of = |steps: Range<usize>, rows: Range<usize>| Chunk { steps, rows };
        let forward = Some(Direction::Forward);
        assert_eq!(cut(10, 7, forward, 70), [of(0..10, 0..7)]);
        // 9 steps of all rows would fit, but the two chunks are even.
        assert_eq!(cut(10, 7, forward, 69), [of(0..5, 0..7), of(5..10, 0..7)]);
        let reverse = cut(10, 7, Some(Direction::Reverse), 28);
        assert_eq!(reverse, [of(8..10, 0..7), of(4..8, 0..7), of(0..4, 0..7)]);
        for carried in [None, Some(Direction::Both)] {
            assert_eq!(cut(10, 7, carried, 69), [of(0..10, 0..4), of(0..10, 4..7)]);
            assert_eq!(cut(10, 7, carried, 10).len(), 7);
            assert_eq!(cut(10, 7, carried, 9), []);
        }
        // A single step of all rows does not fit.
        assert_eq!(
            cut(3, 7, forward, 6),
            [of(0..3, 0..2), of(0..3, 2..4), of(0..3, 4..6), of(0..3, 6..7)]
        );
        assert_eq!(cut(1, 7, forward, 6), [of(0..1, 0..4), of(0..1, 4..7)]);
        assert_eq!(cut(7, 1, forward, 6), [of(0..4, 0..1), of(4..7, 0..1)]);
        assert_eq!(cut(1 << 40, 1 << 10, forward, 1 << 20), []);
    }
}
