//! [`Batch`]: the sequences of a run.

use ndarray::{Array3, ArrayView3, Axis, NdFloat, s};

use crate::config::{GruConfig, Shape};
use crate::error::{Error, Result, check_shape};

/// The sequences of a run: their steps, what state they start from, and how long each is.
///
/// A view or a reference to an array is a batch of its own, so the simplest call is
/// `gru.forward(&x)`.
///
/// ```
/// use gru_wgpu::{Batch, Device, Gru, GruConfig, Init};
/// use ndarray::Array3;
///
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
/// let (x, h0) = (Array3::ones((10, 2, 3)), Array3::zeros((1, 2, 8)));
/// let lengths = [10, 4]; // the second row's steps from 4 on are padding
/// let out = gru.forward(Batch::new(x.view()).with_h0(h0.view()).with_lengths(&lengths))?;
/// assert_eq!(out.y[[4, 1, 0]], 0.0); // past its end
/// assert_eq!(out.h_n[[0, 1, 0]], out.y[[3, 1, 0]]); // its last valid state
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Batch<'a, F = f32> {
    /// `[T, B, I]`
    pub x: ArrayView3<'a, F>,
    /// `[L·D, B, H]`; zeros when `None`.
    pub h0: Option<ArrayView3<'a, F>>,
    /// `[B]`, each from 0 to T; all T when `None`. Past a row's length nothing of x is looked at, y is
    /// 0, gradients are 0, and the state stays what it was after the last valid step. The reverse
    /// direction starts at the row's own last step. Rows need not be sorted.
    pub lengths: Option<&'a [usize]>,
}

impl<'a, F> Batch<'a, F> {
    /// Over x `[T, B, I]`, from zeros, every row of length T.
    pub fn new(x: ArrayView3<'a, F>) -> Self {
        Self { x, h0: None, lengths: None }
    }

    /// The same from the states h0 `[L·D, B, H]`, or from zeros.
    #[must_use]
    pub fn with_h0(self, h0: impl Into<Option<ArrayView3<'a, F>>>) -> Self {
        Self { h0: h0.into(), ..self }
    }

    /// The same with a length for each row `[B]`.
    #[must_use]
    pub fn with_lengths(self, lengths: &'a [usize]) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// The shape of the run, when everything fits `config`.
    pub(crate) fn check(&self, config: &GruConfig) -> Result<Shape> {
        let (steps, batch, input) = self.x.dim();
        let shape = config.shape(steps, batch)?;
        check_shape("x [T, B, I]", &shape.x(), &[steps, batch, input])?;
        if let Some(h0) = &self.h0 {
            check_shape("h0 [L·D, B, H]", &shape.state(), h0.shape())?;
        }
        if let Some(lengths) = self.lengths {
            check_shape("lengths [B]", &[batch], &[lengths.len()])?;
            if let Some(row) = lengths.iter().position(|&length| length > steps) {
                return Err(Error::Length { row, length: lengths[row], steps });
            }
        }
        Ok(shape)
    }

    /// Every row's length.
    pub(crate) fn row_lengths(&self) -> Vec<usize> {
        let (steps, batch, _) = self.x.dim();
        self.lengths.map_or_else(|| vec![steps; batch], <[usize]>::to_vec)
    }
}

impl<'a, F> From<ArrayView3<'a, F>> for Batch<'a, F> {
    fn from(x: ArrayView3<'a, F>) -> Self {
        Self::new(x)
    }
}

impl<'a, F> From<&'a Array3<F>> for Batch<'a, F> {
    fn from(x: &'a Array3<F>) -> Self {
        Self::new(x.view())
    }
}

/// Writes zeros past each row's length in `[T, B, ·]`.
pub(crate) fn zero_padding<F: NdFloat>(array: &mut Array3<F>, lengths: &[usize]) {
    for (mut row, &length) in array.axis_iter_mut(Axis(1)).zip(lengths) {
        row.slice_mut(s![length.., ..]).fill(F::zero());
    }
}
