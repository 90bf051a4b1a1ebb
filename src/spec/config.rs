//! What a GRU computes ([`GruConfig`]) and on how much data ([`Shape`]).

use crate::error::{Error, Result, checked_len};

/// Layers that a model may have: far more than any has that can be trained. What a model is made
/// from has some entries a layer, so a number that is a mistake is refused before they are made.
const MOST_LAYERS: usize = 1024;

/// Where the reset gate r acts in the candidate n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Reset {
    /// `n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn)`: on the state, before the recurrent product.
    ///
    /// Cho et al. 2014 (arXiv 1406.1078v3); ONNX `linear_before_reset = 0`; Keras
    /// `reset_after = False`.
    Before,
    /// `n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))`: on the product, after it was taken.
    ///
    /// PyTorch `nn.GRU`, cuDNN, Keras `reset_after = True`, ONNX `linear_before_reset = 1`.
    After,
}

/// What the update gate z does with the old state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Update {
    /// `h' = (1 − z) ⊙ h + z ⊙ n`: z near 1 overwrites the past, z near 0 keeps it.
    ///
    /// Chung et al. 2014 (arXiv 1412.3555), and this project's own statement.
    Overwrites,
    /// `h' = z ⊙ h + (1 − z) ⊙ n`: z near 1 keeps the past.
    ///
    /// Cho et al. 2014, PyTorch, cuDNN, Keras, ONNX.
    Keeps,
}

/// A function of one number that a gate or the candidate ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Activation {
    /// σ(a) = 1 / (1 + e^−a). What gates use unless told otherwise.
    Sigmoid,
    /// tanh(a). What candidates use unless told otherwise.
    Tanh,
    /// max(a, 0); its derivative at 0 counts as 0. RNNoise's candidate.
    Relu,
    /// a / 5 + 1/2, held within 0 and 1: ONNX's default and Keras 2's. (PyTorch's and Keras 3's
    /// divide by 6.)
    HardSigmoid,
    /// a itself.
    Identity,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 5] =
        [Self::Sigmoid, Self::Tanh, Self::Relu, Self::HardSigmoid, Self::Identity];

    /// What `shaders/common.wgsl` calls it.
    pub fn code(self) -> u32 {
        match self {
            Self::Sigmoid => 0,
            Self::Tanh => 1,
            Self::Relu => 2,
            Self::HardSigmoid => 3,
            Self::Identity => 4,
        }
    }
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Relu => "relu",
            Self::HardSigmoid => "hard sigmoid",
            Self::Identity => "identity",
        })
    }
}

/// Which way a layer runs over the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first. y stays in the order of time.
    Reverse,
    /// Both, each with weights of its own. The outputs are `[.., 2H]`, the forward half first.
    Both,
}

impl Direction {
    /// D: how many ways a layer runs.
    pub fn count(self) -> usize {
        if self == Self::Both { 2 } else { 1 }
    }

    /// Whether the `index`th of a layer's ways, below [`Self::count`], is the reverse one.
    pub fn is_reverse(self, index: usize) -> bool {
        match self {
            Self::Forward => false,
            Self::Reverse => true,
            Self::Both => index == 1,
        }
    }
}

/// Which bias vectors a cell has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Bias {
    /// None.
    None,
    /// One a gate, `bias_ih [3H]`, added on the input's side (outside the reset gate's product).
    One,
    /// Two a gate, `bias_ih [3H]` and `bias_hh [3H]`, as PyTorch, cuDNN and ONNX have them.
    ///
    /// With [`Reset::Before`] their effects are the same, and so are their gradients. With
    /// [`Reset::After`] the candidate's `b_hn` is scaled by the reset gate.
    Two,
}

/// A GRU's sizes, its layers and directions, and which of the definitions in use it follows.
///
/// ```
/// use gru_wgpu::{Bias, GruConfig, Reset, Update};
///
/// let ours = GruConfig::new(8, 32);
/// assert_eq!((ours.reset, ours.update, ours.bias), (Reset::Before, Update::Overwrites, Bias::One));
///
/// let torch = GruConfig::pytorch(8, 32).with_bias(Bias::None); // nn.GRU(8, 32, bias=False)
/// assert_eq!((torch.reset, torch.update), (Reset::After, Update::Keeps));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct GruConfig {
    /// I: features of the input at each step.
    pub input_size: usize,
    /// H: units of the hidden state.
    pub hidden_size: usize,
    /// Where the reset gate acts.
    pub reset: Reset,
    /// What the update gate does with the old state.
    pub update: Update,
    /// Which biases there are.
    pub bias: Bias,
    /// L: layers, each reading the outputs of the one below; 1024 at most.
    #[cfg_attr(feature = "serde", serde(default = "one_layer"))]
    pub layers: usize,
    /// Which way each layer runs over the steps.
    #[cfg_attr(feature = "serde", serde(default))]
    pub direction: Direction,
    /// What r and z end with.
    #[cfg_attr(feature = "serde", serde(default = "sigmoid"))]
    pub gate_activation: Activation,
    /// What the candidate n ends with.
    #[cfg_attr(feature = "serde", serde(default = "tanh"))]
    pub candidate_activation: Activation,
    /// The probability, while training, that an element of a layer's output does not reach the next
    /// layer; what does is divided by 1 − p. As in PyTorch, the last layer's output is left alone.
    #[cfg_attr(feature = "serde", serde(default))]
    pub dropout: f32,
    /// The probability, while training, that a unit keeps its old state at a step. Otherwise each
    /// state is the expectation, p · h + (1 − p) · h′ (Krueger et al. 2016, arXiv 1606.01305).
    #[cfg_attr(feature = "serde", serde(default))]
    pub zoneout: f32,
}

impl GruConfig {
    /// The project's own statement of a GRU: reset before the product, z overwrites, one bias a
    /// gate.
    ///
    /// Sizes are checked where they are used: [`Gru::new`](crate::Gru::new) refuses a 0.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            input_size,
            hidden_size,
            reset: Reset::Before,
            update: Update::Overwrites,
            bias: Bias::One,
            layers: 1,
            direction: Direction::Forward,
            gate_activation: Activation::Sigmoid,
            candidate_activation: Activation::Tanh,
            dropout: 0.0,
            zoneout: 0.0,
        }
    }

    /// PyTorch's `nn.GRU` and cuDNN's: reset after the product, z keeps, two biases a gate.
    pub fn pytorch(input_size: usize, hidden_size: usize) -> Self {
        Self {
            reset: Reset::After,
            update: Update::Keeps,
            bias: Bias::Two,
            ..Self::new(input_size, hidden_size)
        }
    }

    /// The same with the reset gate acting at `reset`.
    #[must_use]
    pub fn with_reset(self, reset: Reset) -> Self {
        Self { reset, ..self }
    }

    /// The same with the update gate meaning `update`.
    #[must_use]
    pub fn with_update(self, update: Update) -> Self {
        Self { update, ..self }
    }

    /// The same with the biases `bias`.
    #[must_use]
    pub fn with_bias(self, bias: Bias) -> Self {
        Self { bias, ..self }
    }

    /// The same with `layers` layers.
    #[must_use]
    pub fn with_layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// The same with each layer running this way over the steps.
    #[must_use]
    pub fn with_direction(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }

    /// The same with `gate` for r and z and `candidate` for n.
    ///
    /// ```
    /// use gru_wgpu::{Activation, GruConfig};
    ///
    /// // RNNoise's: reset before, ReLU for the candidate.
    /// let config = GruConfig::new(42, 24).with_activations(Activation::Sigmoid, Activation::Relu);
    /// ```
    #[must_use]
    pub fn with_activations(self, gate: Activation, candidate: Activation) -> Self {
        Self { gate_activation: gate, candidate_activation: candidate, ..self }
    }

    /// The same with this probability of dropout between layers, 0 ≤ p < 1.
    ///
    /// ```
    /// use gru_wgpu::{Batch, Device, Gru, GruConfig, Init};
    /// use ndarray::Array3;
    ///
    /// let config = GruConfig::pytorch(3, 8).with_layers(2).with_dropout(0.2);
    /// let gru = Gru::new(config, Init::Uniform, 1, &Device::cpu())?;
    /// let x = Array3::ones((10, 2, 3));
    /// for step in 0..3 {
    ///     // A seed of its own for each run: the same seed drops the same elements.
    ///     let (out, tape) = gru.forward_train(Batch::new(x.view()).with_seed(step))?;
    /// }
    /// let out = gru.forward(&x)?; // drops nothing
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    #[must_use]
    pub fn with_dropout(self, dropout: f32) -> Self {
        Self { dropout, ..self }
    }

    /// The same with this probability of zoneout on the hidden state, 0 ≤ p < 1.
    #[must_use]
    pub fn with_zoneout(self, zoneout: f32) -> Self {
        Self { zoneout, ..self }
    }

    /// Whether training runs draw random numbers, and so need a seed.
    pub(crate) fn draws(&self) -> bool {
        self.dropout > 0.0 || self.zoneout > 0.0
    }

    /// D: 2 when each layer runs in both directions, else 1.
    pub fn directions(&self) -> usize {
        self.direction.count()
    }

    /// Features that a layer reads: I for the first, D·H for the others.
    pub fn layer_input_size(&self, layer: usize) -> usize {
        if layer == 0 { self.input_size } else { self.directions() * self.hidden_size }
    }

    /// All twelve definitions of one layer, one direction, at these sizes: reset × update × bias.
    /// For tests and self-checks.
    pub fn all_variants(input_size: usize, hidden_size: usize) -> Vec<Self> {
        let mut variants = Vec::new();
        for reset in [Reset::Before, Reset::After] {
            for update in [Update::Overwrites, Update::Keeps] {
                for bias in [Bias::None, Bias::One, Bias::Two] {
                    let config = Self::new(input_size, hidden_size);
                    variants.push(Self { reset, update, bias, ..config });
                }
            }
        }
        variants
    }

    /// The shape of a run over `steps` steps of `batch` rows.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] when a size is 0, [`Error::Overflow`] when a tensor's size overflows.
    pub fn shape(&self, steps: usize, batch: usize) -> Result<Shape> {
        self.validate()?;
        for (what, size) in [("the number of steps T", steps), ("the batch B", batch)] {
            if size == 0 {
                return Err(Error::ZeroSize { what });
            }
        }
        let (input, hidden) = (self.input_size, self.hidden_size);
        let (layers, directions) = (self.layers, self.directions());
        let steps_and_one = steps.saturating_add(1);
        checked_len("the input [T, B, I]", &[steps, batch, input])?;
        checked_len(
            "the gates [L, D, T, B, 4H]",
            &[layers, directions, steps_and_one, batch, 4, hidden],
        )?;
        let layout = Layout::TimeMajor;
        Ok(Shape { steps, batch, input, hidden, layers, directions, layout })
    }

    /// `Ok` when no size is 0, the parameters' number does not overflow, there are at most 1024
    /// layers, and dropout and zoneout make sense.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Overflow`], [`Error::Setting`], [`Error::Probability`], or
    /// [`Error::Conflict`] for dropout between the layers of a model that has only one.
    pub fn validate(&self) -> Result<()> {
        for (what, size) in [
            ("the input size I", self.input_size),
            ("the hidden size H", self.hidden_size),
            ("the number of layers L", self.layers),
        ] {
            if size == 0 {
                return Err(Error::ZeroSize { what });
            }
        }
        // Room for what a cell has besides: its other weight, its biases, and the ranges'
        // alignment.
        let (cells, hidden) = ([self.layers, 16, self.directions()], self.hidden_size);
        let widest = hidden.max(self.input_size).max(64);
        checked_len("the parameters", &[&cells[..], &[hidden, widest]].concat())?;
        if self.layers > MOST_LAYERS {
            return Err(Error::setting("the number of layers L", self.layers, "at most 1024"));
        }
        for (what, p) in [("dropout", self.dropout), ("zoneout", self.zoneout)] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::Probability { what, got: p.to_string() });
            }
        }
        if self.dropout > 0.0 && self.layers == 1 {
            return Err(Error::Conflict {
                what: "dropout and a single layer",
                why: "dropout acts between layers",
            });
        }
        Ok(())
    }
}

impl std::fmt::Display for GruConfig {
    /// `GRU 8→32, reset before, z overwrites, one bias`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reset = match self.reset {
            Reset::Before => "reset before",
            Reset::After => "reset after",
        };
        let update = match self.update {
            Update::Overwrites => "z overwrites",
            Update::Keeps => "z keeps",
        };
        let bias = match self.bias {
            Bias::None => "no bias",
            Bias::One => "one bias",
            Bias::Two => "two biases",
        };
        write!(f, "GRU {}→{}, {reset}, {update}, {bias}", self.input_size, self.hidden_size)?;
        if self.layers > 1 {
            write!(f, ", {} layers", self.layers)?;
        }
        match self.direction {
            Direction::Forward => {}
            Direction::Reverse => write!(f, ", reverse")?,
            Direction::Both => write!(f, ", both directions")?,
        }
        if self.gate_activation != Activation::Sigmoid {
            write!(f, ", {} gates", self.gate_activation)?;
        }
        if self.candidate_activation != Activation::Tanh {
            write!(f, ", {} candidate", self.candidate_activation)?;
        }
        for (what, p) in [("dropout", self.dropout), ("zoneout", self.zoneout)] {
            if p != 0.0 {
                write!(f, ", {what} {p}")?;
            }
        }
        Ok(())
    }
}

/// What a serialised configuration need not say, as [`GruConfig::new`] has it.
#[cfg(feature = "serde")]
fn one_layer() -> usize {
    1
}

#[cfg(feature = "serde")]
fn sigmoid() -> Activation {
    Activation::Sigmoid
}

#[cfg(feature = "serde")]
fn tanh() -> Activation {
    Activation::Tanh
}

/// Which of the axes T and B comes first in x, y, their gradients and the mask of resets. States
/// are `[L·D, B, H]` either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Layout {
    /// `[T, B, ·]`, PyTorch's default.
    #[default]
    TimeMajor,
    /// `[B, T, ·]`, PyTorch's `batch_first=True`. The kernels' strides do it; nothing is
    /// transposed.
    BatchFirst,
}

impl Layout {
    /// The axes `[T, B]` in this layout's order.
    pub(crate) fn order<V>(self, steps: V, batch: V) -> [V; 2] {
        match self {
            Self::TimeMajor => [steps, batch],
            Self::BatchFirst => [batch, steps],
        }
    }
}

/// The sizes of one run. Made by [`GruConfig::shape`], so none is 0 and no tensor's size overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shape {
    /// T: time steps.
    pub steps: usize,
    /// B: independent rows.
    pub batch: usize,
    /// I: input features.
    pub input: usize,
    /// H: hidden units.
    pub hidden: usize,
    /// L: layers.
    pub layers: usize,
    /// D: directions of each layer.
    pub directions: usize,
    /// The order of the axes T and B.
    pub layout: Layout,
}

impl Shape {
    /// The same with its axes T and B in another order.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// `[T, B, I]` or `[B, T, I]`, the input's.
    pub fn x(&self) -> [usize; 3] {
        let [first, second] = self.layout.order(self.steps, self.batch);
        [first, second, self.input]
    }

    /// `[T, B, D·H]` or `[B, T, D·H]`, that of all hidden states of the last layer.
    pub fn y(&self) -> [usize; 3] {
        let [first, second] = self.layout.order(self.steps, self.batch);
        [first, second, self.directions * self.hidden]
    }

    /// `[L·D, B, H]`, that of the first and the last states; layer-major, forward before reverse.
    pub fn state(&self) -> [usize; 3] {
        [self.layers * self.directions, self.batch, self.hidden]
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { steps, batch, input, hidden, layers, directions, layout } = self;
        write!(f, "T {steps}, B {batch}, I {input}, H {hidden}")?;
        if (*layers, *directions) != (1, 1) {
            write!(f, ", L {layers}, D {directions}")?;
        }
        match layout {
            Layout::TimeMajor => Ok(()),
            Layout::BatchFirst => write!(f, ", batch first"),
        }
    }
}
