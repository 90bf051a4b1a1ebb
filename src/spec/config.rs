//! [`GruConfig`], the definition of a GRU, and [`Shape`], the sizes of a run.

use ndarray::NdFloat;

use super::activation::{Activation, Activations, ClippedActivation};
use crate::error::{Error, Result, checked_len};

/// The largest number of layers, far more than any trainable model has. A mistaken number is
/// refused before entries are allocated for each layer.
const MAX_LAYERS: usize = 1024;

/// The place where the reset gate r acts in the candidate n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Reset {
    /// `n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn)`: r scales the state, before the recurrent
    /// product.
    ///
    /// Cho et al. 2014 (arXiv 1406.1078v3); ONNX `linear_before_reset = 0`; Keras
    /// `reset_after = False`.
    Before,
    /// `n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))`: r scales the result of the recurrent
    /// product.
    ///
    /// PyTorch `nn.GRU`, cuDNN, Keras `reset_after = True`, ONNX `linear_before_reset = 1`.
    After,
}

/// The meaning of the update gate z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Update {
    /// `h' = (1 − z) ⊙ h + z ⊙ n`: z near 1 overwrites the past, z near 0 keeps it.
    ///
    /// Chung et al. 2014 (arXiv 1412.3555); the default of [`GruConfig::new`].
    Overwrites,
    /// `h' = z ⊙ h + (1 − z) ⊙ n`: z near 1 keeps the past.
    ///
    /// Cho et al. 2014, PyTorch, cuDNN, Keras, ONNX.
    Keeps,
}

/// The direction in which a layer runs over the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first. y stays in time order.
    Reverse,
    /// Both directions, each with its own weights. Outputs are `[.., 2H]`, the forward half first.
    Both,
}

impl Direction {
    /// Returns D, the number of directions of a layer.
    pub fn count(self) -> usize {
        if self == Self::Both { 2 } else { 1 }
    }

    /// Returns true if direction `index` of a layer is the reverse one. `index` is below
    /// [`Self::count`].
    pub fn is_reverse(self, index: usize) -> bool {
        match self {
            Self::Forward => false,
            Self::Reverse => true,
            Self::Both => index == 1,
        }
    }
}

/// The bias vectors of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Bias {
    /// No biases.
    None,
    /// One bias per gate, `bias_ih [3H]`, added to the input's product. The reset gate does not
    /// scale it.
    One,
    /// Two biases per gate, `bias_ih [3H]` and `bias_hh [3H]`, as in PyTorch, cuDNN and ONNX.
    ///
    /// With [`Reset::Before`] both have the same effect and the same gradient. With
    /// [`Reset::After`] the candidate's `b_hn` is scaled by the reset gate.
    Two,
}

/// The configuration of a GRU: its sizes, layers and directions, and the variant of the equations.
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
    /// I, the number of input features at each step.
    pub input_size: usize,
    /// H, the number of units of the hidden state.
    pub hidden_size: usize,
    /// The place where the reset gate acts.
    pub reset: Reset,
    /// The meaning of the update gate.
    pub update: Update,
    /// The bias vectors.
    pub bias: Bias,
    /// L, the number of layers, at most 1024. Each layer reads the outputs of the layer below.
    #[cfg_attr(feature = "serde", serde(default = "one_layer"))]
    pub layers: usize,
    /// The direction of every layer.
    #[cfg_attr(feature = "serde", serde(default))]
    pub direction: Direction,
    /// The activations of the gates and of the candidate.
    #[cfg_attr(feature = "serde", serde(default))]
    pub activations: Activations,
    /// The activations of the reverse direction of [`Direction::Both`], if they differ.
    #[cfg_attr(feature = "serde", serde(default))]
    pub reverse_activations: Option<Activations>,
    /// Clamps the pre-activation of every gate and candidate to −clip..clip, as ONNX's `clip`. Its
    /// gradient is 0 at and beyond the ends.
    #[cfg_attr(feature = "serde", serde(default))]
    pub clip: Option<f32>,
    /// The probability p of dropout, while training: an element of a layer's output reaches the
    /// next layer as 0 with probability p, otherwise divided by 1 − p. The last layer's output has
    /// no dropout, as in PyTorch.
    #[cfg_attr(feature = "serde", serde(default))]
    pub dropout: f32,
    /// The probability p of zoneout (Krueger et al. 2016, arXiv 1606.01305): while training, a unit
    /// keeps its old state at a step with probability p. In inference each state is the expected
    /// value, p · h + (1 − p) · h′.
    #[cfg_attr(feature = "serde", serde(default))]
    pub zoneout: f32,
}

impl GruConfig {
    /// Returns this crate's default variant: reset before the product, z overwrites, one bias per
    /// gate.
    ///
    /// The sizes are not checked here. [`Gru::new`](crate::Gru::new) refuses a size of 0.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            input_size,
            hidden_size,
            reset: Reset::Before,
            update: Update::Overwrites,
            bias: Bias::One,
            layers: 1,
            direction: Direction::Forward,
            activations: Activations::default(),
            reverse_activations: None,
            clip: None,
            dropout: 0.0,
            zoneout: 0.0,
        }
    }

    /// Returns the variant of PyTorch's `nn.GRU` and of cuDNN: reset after the product, z keeps,
    /// two biases per gate.
    pub fn pytorch(input_size: usize, hidden_size: usize) -> Self {
        Self {
            reset: Reset::After,
            update: Update::Keeps,
            bias: Bias::Two,
            ..Self::new(input_size, hidden_size)
        }
    }

    /// Sets the place where the reset gate acts.
    #[must_use]
    pub fn with_reset(self, reset: Reset) -> Self {
        Self { reset, ..self }
    }

    /// Sets the meaning of the update gate.
    #[must_use]
    pub fn with_update(self, update: Update) -> Self {
        Self { update, ..self }
    }

    /// Sets the bias vectors.
    #[must_use]
    pub fn with_bias(self, bias: Bias) -> Self {
        Self { bias, ..self }
    }

    /// Sets the number of layers.
    #[must_use]
    pub fn with_layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// Sets the direction of every layer.
    #[must_use]
    pub fn with_direction(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }

    /// Sets the activation of r and z to `gate`, and the activation of n to `candidate`, for both
    /// directions.
    ///
    /// ```
    /// use gru_wgpu::{Activation, GruConfig};
    ///
    /// // The GRU of RNNoise: reset before the product, ReLU for the candidate.
    /// let config = GruConfig::new(42, 24).with_activations(Activation::Sigmoid, Activation::Relu);
    /// ```
    #[must_use]
    pub fn with_activations(self, gate: Activation, candidate: Activation) -> Self {
        let activations = Activations { gate, candidate };
        Self { activations, reverse_activations: None, ..self }
    }

    /// Sets the activations of the reverse direction. `None`: those of the forward direction.
    #[must_use]
    pub fn with_reverse_activations(self, reverse_activations: Option<Activations>) -> Self {
        Self { reverse_activations, ..self }
    }

    /// Sets the clip of the pre-activations.
    #[must_use]
    pub fn with_clip(self, clip: Option<f32>) -> Self {
        Self { clip, ..self }
    }

    /// Sets the probability of dropout between layers, 0 ≤ p < 1.
    ///
    /// ```
    /// use gru_wgpu::{Batch, Device, Gru, GruConfig, Init};
    /// use ndarray::Array3;
    ///
    /// let config = GruConfig::pytorch(3, 8).with_layers(2).with_dropout(0.2);
    /// let gru = Gru::new(config, Init::Uniform, 1, &Device::cpu())?;
    /// let x = Array3::ones((10, 2, 3));
    /// for step in 0..3 {
    ///     // Each run has its own seed: the same seed drops the same elements.
    ///     let (out, tape) = gru.forward_train(Batch::new(x.view()).with_seed(step))?;
    /// }
    /// let out = gru.forward(&x)?; // inference: no dropout
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    #[must_use]
    pub fn with_dropout(self, dropout: f32) -> Self {
        Self { dropout, ..self }
    }

    /// Sets the probability of zoneout on the hidden state, 0 ≤ p < 1.
    #[must_use]
    pub fn with_zoneout(self, zoneout: f32) -> Self {
        Self { zoneout, ..self }
    }

    /// Returns true if training runs draw random numbers and so need a seed.
    pub(crate) fn draws(&self) -> bool {
        self.dropout > 0.0 || self.zoneout > 0.0
    }

    /// Returns the functions of a direction: of r and z, and of n.
    pub(crate) fn functions<F: NdFloat>(&self, direction: usize) -> [ClippedActivation<F>; 2] {
        let reverse = self.reverse_activations.filter(|_| direction == 1);
        let Activations { gate, candidate } = reverse.unwrap_or(self.activations);
        [gate, candidate].map(|activation| ClippedActivation::new(activation, self.clip))
    }

    /// Returns D: 2 if each layer runs in both directions, else 1.
    pub fn directions(&self) -> usize {
        self.direction.count()
    }

    /// Returns the number of features that a layer reads: I for the first layer, D·H for the
    /// others.
    pub fn layer_input_size(&self, layer: usize) -> usize {
        if layer == 0 { self.input_size } else { self.directions() * self.hidden_size }
    }

    /// Returns all twelve variants (reset × update × bias) at these sizes, with one layer in one
    /// direction. For tests and self-checks.
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

    /// Returns the shape of a run over `steps` steps of `batch` rows.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] if a size is 0, [`Error::Overflow`] if a tensor's size overflows, and
    /// the errors of [`Self::validate`].
    pub fn shape(&self, steps: usize, batch: usize) -> Result<Shape> {
        let shape = self.any_shape(steps, batch)?;
        shape.check_not_empty()?;
        Ok(shape)
    }

    /// Like [`Self::shape`], but allows no steps and no rows.
    pub(crate) fn any_shape(&self, steps: usize, batch: usize) -> Result<Shape> {
        self.validate()?;
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

    /// Checks the configuration: no size is 0, the number of parameters does not overflow, there
    /// are at most 1024 layers, dropout and zoneout are probabilities below 1, and the numbers of
    /// the activations and the clip are in range.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Overflow`], [`Error::Setting`], [`Error::Probability`], or
    /// [`Error::Conflict`] for dropout in a model with a single layer, and for activations of the
    /// reverse direction in a model with a single direction.
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
        // An upper bound: the factor 16 covers a cell's two weights, its biases, and the padding
        // that aligns the ranges.
        let (cells, hidden) = ([self.layers, 16, self.directions()], self.hidden_size);
        let widest = hidden.max(self.input_size).max(64);
        checked_len("the parameters", &[&cells[..], &[hidden, widest]].concat())?;
        if self.layers > MAX_LAYERS {
            return Err(Error::setting("the number of layers L", self.layers, "at most 1024"));
        }
        for (what, p) in [("dropout", self.dropout), ("zoneout", self.zoneout)] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::Probability { what, got: p.to_string() });
            }
        }
        let of_both = self.reverse_activations;
        for Activations { gate, candidate } in [self.activations].into_iter().chain(of_both) {
            gate.validate()?;
            candidate.validate()?;
        }
        let is_valid = |&clip: &f32| clip > 0.0 && clip.is_finite();
        if let Some(clip) = self.clip.filter(|clip| !is_valid(clip)) {
            return Err(Error::setting("the clip", clip, "a finite number above 0"));
        }
        if self.reverse_activations.is_some() && self.direction != Direction::Both {
            return Err(Error::Conflict {
                what: "activations of the reverse direction and a single direction",
                why: "they are for Direction::Both; set the activations of the one direction",
            });
        }
        if self.dropout > 0.0 && self.layers == 1 {
            return Err(Error::Conflict {
                what: "dropout and a single layer",
                why: "dropout acts between layers; add layers or set dropout to 0",
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
        let Activations { gate, candidate } = self.activations;
        for (activation, default, what) in
            [(gate, Activation::Sigmoid, "gates"), (candidate, Activation::Tanh, "candidate")]
        {
            if activation != default {
                write!(f, ", {activation} {what}")?;
            }
        }
        if let Some(Activations { gate, candidate }) = self.reverse_activations {
            write!(f, ", in reverse {gate} gates and {candidate} candidate")?;
        }
        if let Some(clip) = self.clip {
            write!(f, ", clip {clip}")?;
        }
        for (what, p) in [("dropout", self.dropout), ("zoneout", self.zoneout)] {
            if p != 0.0 {
                write!(f, ", {what} {p}")?;
            }
        }
        Ok(())
    }
}

/// The serde default of `layers`.
#[cfg(feature = "serde")]
fn one_layer() -> usize {
    1
}

/// The order of the axes T and B in x, y, their gradients and the reset mask. States are
/// `[L·D, B, H]` in both layouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Layout {
    /// `[T, B, ·]`, PyTorch's default.
    #[default]
    TimeMajor,
    /// `[B, T, ·]`, PyTorch's `batch_first=True`. The kernels use strides; no array is transposed.
    BatchFirst,
}

impl Layout {
    /// Returns `steps` and `batch` in the order of this layout's axes.
    pub(crate) fn order<V>(self, steps: V, batch: V) -> [V; 2] {
        match self {
            Self::TimeMajor => [steps, batch],
            Self::BatchFirst => [batch, steps],
        }
    }
}

/// The sizes of one run, from [`GruConfig::shape`], which checks that no size is 0 and that no
/// tensor's size overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shape {
    /// T, the number of time steps.
    pub steps: usize,
    /// B, the number of batch rows.
    pub batch: usize,
    /// I, the number of input features.
    pub input: usize,
    /// H, the number of hidden units.
    pub hidden: usize,
    /// L, the number of layers.
    pub layers: usize,
    /// D, the number of directions of each layer.
    pub directions: usize,
    /// The order of the axes T and B.
    pub layout: Layout,
}

impl Shape {
    /// Sets the order of the axes T and B.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Returns true if the run has no steps or no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps == 0 || self.batch == 0
    }

    /// Checks that the run has steps and rows.
    ///
    /// # Errors
    /// [`Error::ZeroSize`].
    pub(crate) fn check_not_empty(&self) -> Result<()> {
        let sizes = [("the number of steps T", self.steps), ("the batch size B", self.batch)];
        match sizes.into_iter().find(|&(_, size)| size == 0) {
            Some((what, _)) => Err(Error::ZeroSize { what }),
            None => Ok(()),
        }
    }

    /// Returns the shape of the input, `[T, B, I]` or `[B, T, I]`.
    pub fn x(&self) -> [usize; 3] {
        let [first, second] = self.layout.order(self.steps, self.batch);
        [first, second, self.input]
    }

    /// Returns the shape of the last layer's output, `[T, B, D·H]` or `[B, T, D·H]`.
    pub fn y(&self) -> [usize; 3] {
        let [first, second] = self.layout.order(self.steps, self.batch);
        [first, second, self.directions * self.hidden]
    }

    /// Returns the shape of the first and of the last states, `[L·D, B, H]`: layer-major, forward
    /// before reverse.
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
