//! [`Output`] and [`OutputMut`]: the result of a forward pass.

use ndarray::{Array3, ArrayViewMut3};

/// The result of a forward pass.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// y `[T, B, D·H]` (`[B, T, D·H]` for a batch-first batch): the last layer's state after every
    /// step, the forward direction's half first.
    pub y: Array3<f32>,
    /// h_n `[L·D, B, H]`: the state of each cell after its last step, layer-major, forward before
    /// reverse.
    pub h_n: Array3<f32>,
}

/// The caller's arrays for the result of a forward pass; see [`Gru::forward_into`].
///
/// An [`Output`] converts into this, so the output of one call can be the memory of the next.
///
/// Any arrays of the right shapes will do. Those whose rows (along the last axis) are contiguous are
/// written in place; others are copied from a new array.
///
/// [`Gru::forward_into`]: crate::Gru::forward_into
#[derive(Debug)]
#[non_exhaustive]
pub struct OutputMut<'a> {
    /// Receives y `[T, B, D·H]` (`[B, T, D·H]` for a batch-first batch).
    pub y: ArrayViewMut3<'a, f32>,
    /// Receives h_n `[L·D, B, H]`.
    pub h_n: ArrayViewMut3<'a, f32>,
}

impl<'a> OutputMut<'a> {
    /// Writes y and h_n to these arrays.
    pub fn new(y: ArrayViewMut3<'a, f32>, h_n: ArrayViewMut3<'a, f32>) -> Self {
        Self { y, h_n }
    }
}

impl<'a> From<&'a mut Output> for OutputMut<'a> {
    fn from(output: &'a mut Output) -> Self {
        Self { y: output.y.view_mut(), h_n: output.h_n.view_mut() }
    }
}
