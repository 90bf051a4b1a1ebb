//! [`WeightLayout`]: the frameworks whose names and axes a file's arrays can have.

use std::fmt;

/// The framework whose names and axes the arrays of a GRU have, whatever the file's format.
///
/// H units, I inputs (D·H above the first layer), D directions.
///
/// | layout | arrays of one layer in one direction | gates | definition |
/// |---|---|---|---|
/// | `Pytorch` | `weight_ih_l0 [3H, I]`, `weight_hh_l0 [3H, H]`, `bias_ih_l0 [3H]`, `bias_hh_l0 [3H]` | r, z, n | reset after |
/// | `Keras` | `kernel [I, 3H]`, `recurrent_kernel [H, 3H]`, `bias [2, 3H]` or `[3H]` | z, r, n | reset after with two rows of bias, before with one |
/// | `Flax` | Linen: `ir/kernel`, `iz/kernel`, `in/kernel [I, H]`, `hr/kernel`, `hz/kernel`, `hn/kernel [H, H]`, `ir/bias`, `iz/bias`, `in/bias`, `hn/bias [H]` | | reset after |
/// | | NNX: `dense_i/kernel [I, 3H]`, `dense_h/kernel [H, 3H]`, `dense_i/bias [3H]` | r, z, n | reset after |
/// | `Mlx` | `Wx [3H, I]`, `Wh [3H, H]`, `b [3H]`, `bhn [H]` | r, z, n | reset after |
/// | `Onnx` | `W [D, 3H, I]`, `R [D, 3H, H]`, `B [D, 6H]` | z, r, n | not in the arrays |
///
/// In all of them z keeps ([`Update::Keeps`](crate::Update::Keeps)), and the activations are σ and
/// tanh: the arrays do not tell of others. Names may be joined by slashes or dots, and stand under
/// any prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightLayout {
    /// PyTorch's `nn.GRU` and `nn.GRUCell`.
    Pytorch,
    /// `keras.layers.GRU`, `GRUCell` and `Bidirectional`; TensorFlow.js.
    Keras,
    /// `flax.linen.GRUCell` and `flax.nnx.GRUCell`. Linen's names are written.
    Flax,
    /// `mlx.nn.GRU`.
    Mlx,
    /// The operator GRU of ONNX and WebNN.
    Onnx,
}

impl WeightLayout {
    /// All layouts.
    pub const ALL: [Self; 5] = [Self::Pytorch, Self::Keras, Self::Flax, Self::Mlx, Self::Onnx];

    /// What errors call a GRU of this layout.
    pub(super) fn gru(self) -> &'static str {
        match self {
            Self::Pytorch => "GRU in the layout of PyTorch",
            Self::Keras => "GRU in the layout of Keras",
            Self::Flax => "GRU in the layout of Flax",
            Self::Mlx => "GRU in the layout of MLX",
            Self::Onnx => "GRU in the layout of ONNX",
        }
    }
}

impl fmt::Display for WeightLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pytorch => "PyTorch",
            Self::Keras => "Keras",
            Self::Flax => "Flax",
            Self::Mlx => "MLX",
            Self::Onnx => "ONNX",
        })
    }
}
