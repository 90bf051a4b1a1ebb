//! Batches of sequences of unequal lengths.

use std::ops::Range;

use ndarray::{Array2, Array3, s};

use crate::error::{Error, Result, check_shape, try_array};

/// The number of steps of a padded batch is a multiple of this. So few different shapes occur, and
/// sessions are reused.
const STEPS_MULTIPLE: usize = 8;

/// The name of a padded batch in error messages.
const PADDED: &str = "a batch of padded sequences [T, B, I]";

/// Returns `Ok` if x is a sequence `[T, I]` with at least one step and I = `inputs`.
pub(crate) fn check_sequence(what: &str, x: &Array2<f32>, inputs: usize) -> Result<()> {
    let steps = x.nrows();
    if steps == 0 {
        return Err(Error::ZeroSize { what: "the number of steps of a sequence" });
    }
    check_shape(&format!("{what} [T, I]"), &[steps, inputs], x.shape())
}

/// Returns the ranges of `0..len` in batches of `batch`, in order; the last may be shorter.
pub(crate) fn batch_ranges(len: usize, batch: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(batch.max(1)).map(move |first| first..(first + batch).min(len))
}

/// Pads sequences `[T, I]`, at least one, to a batch `[T, B, I]`. Returns the batch and the
/// lengths.
///
/// # Errors
/// [`Error::Overflow`] or [`Error::OutOfMemory`]: every sequence is padded to the longest one.
pub(crate) fn pad<'a>(
    sequences: impl Iterator<Item = &'a Array2<f32>> + Clone,
) -> Result<(Array3<f32>, Vec<usize>)> {
    let lengths: Vec<_> = sequences.clone().map(Array2::nrows).collect();
    let inputs = sequences.clone().next().map_or(0, Array2::ncols);
    let mut x: Array3<f32> = try_array(PADDED, [padded_steps(&lengths)?, lengths.len(), inputs])?;
    for (row, sequence) in sequences.enumerate() {
        x.slice_mut(s![..lengths[row], row, ..]).assign(sequence);
    }
    Ok((x, lengths))
}

/// Returns the number of steps of a padded batch of sequences of these lengths.
fn padded_steps(lengths: &[usize]) -> Result<usize> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    longest.checked_next_multiple_of(STEPS_MULTIPLE).ok_or(Error::Overflow { what: PADDED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert_eq!(padded_steps(&[3, 17]).unwrap(), 24);
        for lengths in [[1, usize::MAX], [usize::MAX - 6, 1]] {
            let error = padded_steps(&lengths).unwrap_err();
            assert_eq!(error, Error::Overflow { what: PADDED });
        }
        let error = try_array::<f32, _, _>(PADDED, [1 << 40, 1 << 30, 2]).unwrap_err();
        assert_eq!(error, Error::Overflow { what: PADDED });
        let error = try_array::<i32, _, _>("targets", [1 << 58, 2]).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    }
}
