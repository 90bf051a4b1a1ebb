//! [`Linear`]: the forward pass of a head on the host.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView1, ArrayView2, NdFloat};

use crate::spec::params::Params;

/// The parameters of a head.
pub(crate) struct Linear<'a, F> {
    /// `[C, D·H]`
    pub weight: ArrayView2<'a, F>,
    /// `[C]`
    bias: ArrayView1<'a, F>,
}

impl<'a, F: NdFloat> Linear<'a, F> {
    /// Returns the head of `params`. Panics if there is none.
    pub fn new(params: &'a Params<F>) -> Self {
        let [weight, bias] = params.layout().head_ranges();
        let bias = ArrayView1::from(&params.as_slice()[bias]);
        let shape = (bias.len(), weight.len() / bias.len());
        let weight = ArrayView2::from_shape(shape, &params.as_slice()[weight]);
        Self { weight: weight.expect("a range holds exactly its shape"), bias }
    }

    /// Returns outputs `[rows, C]` = features `[rows, D·H]` · weightᵀ + bias.
    pub fn forward(&self, features: ArrayView2<'_, F>) -> Array2<F> {
        // Not `dot`: its result is column-major if both operands are.
        let mut outputs = Array2::zeros((features.nrows(), self.weight.nrows()));
        general_mat_mul(F::one(), &features, &self.weight.t(), F::zero(), &mut outputs);
        outputs += &self.bias;
        outputs
    }
}
