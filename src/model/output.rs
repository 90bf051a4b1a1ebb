//! [`Output`]: what a forward pass gives.

use ndarray::Array3;

/// What a forward pass gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// y `[T, B, D·H]`: the last layer's state after every step, the forward half first.
    pub y: Array3<f32>,
    /// h_n `[L·D, B, H]`: each cell's state after its last step; layer-major, forward before
    /// reverse.
    pub h_n: Array3<f32>,
}
