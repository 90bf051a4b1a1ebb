//! [`Output`]: the result of a forward pass.

use ndarray::Array3;

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
