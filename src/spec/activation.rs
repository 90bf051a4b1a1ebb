//! [`Activation`], the functions of the gates and of the candidate, and their bounds by a clip.

use std::fmt;
use std::str::FromStr;

use ndarray::NdFloat;

use crate::error::{Error, Result, quote};

/// The activation function of a gate or of the candidate, of its pre-activation a.
///
/// The names and numbers are ONNX's. As text ([`Display`](fmt::Display), [`FromStr`] and serde) a
/// function is its name, followed by its numbers: `tanh`, `leaky-relu(0.01)`,
/// `hard-sigmoid(0.2,0.5)`.
///
/// A backward pass computes the derivative from the function's value, so the functions are those
/// that never decrease, or never increase: α is at least 0 where the type says so.
///
/// ```
/// use gru_wgpu::{Activation, GruConfig};
///
/// let leaky: Activation = "leaky-relu(0.01)".parse()?;
/// assert_eq!(leaky, Activation::LeakyRelu { alpha: 0.01 });
/// let config = GruConfig::new(3, 8).with_activations(Activation::HARD_SIGMOID_PYTORCH, leaky);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
#[non_exhaustive]
pub enum Activation {
    /// σ(a) = 1 / (1 + e^−a), the default of the gates.
    Sigmoid,
    /// tanh(a), the default of the candidate.
    Tanh,
    /// max(a, 0), with derivative 0 at 0. RNNoise uses it for the candidate.
    Relu,
    /// αa + β, clamped to 0..1, with derivative 0 at the ends. Frameworks have different α:
    /// [`Self::HARD_SIGMOID_ONNX`], [`Self::HARD_SIGMOID_PYTORCH`].
    HardSigmoid {
        /// α, the slope.
        alpha: f32,
        /// β, the value at 0.
        beta: f32,
    },
    /// αa + β. [`Self::IDENTITY`] is a itself.
    Affine {
        /// α, the slope.
        alpha: f32,
        /// β, the value at 0.
        beta: f32,
    },
    /// α tanh(βa).
    ScaledTanh {
        /// α, the largest value. Not 0.
        alpha: f32,
        /// β, the factor of the pre-activation.
        beta: f32,
    },
    /// a, or αa for negative a, with derivative α at 0.
    LeakyRelu {
        /// α, the slope of the negative part, at least 0.
        alpha: f32,
    },
    /// a if it is above α, else 0, with derivative 0 at α.
    ThresholdedRelu {
        /// α, the threshold, at least 0.
        alpha: f32,
    },
    /// a, or α (e^a − 1) for negative a, with derivative α at 0.
    Elu {
        /// α, minus the value at −∞, at least 0.
        alpha: f32,
    },
    /// a / (1 + |a|).
    Softsign,
    /// ln(1 + e^a).
    Softplus,
}

impl Activation {
    /// a, unchanged.
    pub const IDENTITY: Self = Self::Affine { alpha: 1.0, beta: 0.0 };

    /// a / 5 + 1/2, clamped to 0..1: the hard sigmoid of ONNX's defaults and of Keras 1 and 2.
    pub const HARD_SIGMOID_ONNX: Self = Self::HardSigmoid { alpha: 0.2, beta: 0.5 };

    /// a / 6 + 1/2, clamped to 0..1: the hard sigmoid of PyTorch, JAX and Keras 3.
    pub const HARD_SIGMOID_PYTORCH: Self = Self::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };

    /// Every function once, with ONNX's default numbers where there are any.
    pub const ALL: [Self; 11] = [
        Self::Sigmoid,
        Self::Tanh,
        Self::Relu,
        Self::HARD_SIGMOID_ONNX,
        Self::IDENTITY,
        Self::ScaledTanh { alpha: 1.7159, beta: 2.0 / 3.0 },
        Self::LeakyRelu { alpha: 0.01 },
        Self::ThresholdedRelu { alpha: 1.0 },
        Self::Elu { alpha: 1.0 },
        Self::Softsign,
        Self::Softplus,
    ];

    /// Returns the number of this function in `shaders/activations.wgsl`.
    pub fn code(self) -> u32 {
        match self {
            Self::Sigmoid => 0,
            Self::Tanh => 1,
            Self::Relu => 2,
            Self::HardSigmoid { .. } => 3,
            Self::Affine { .. } => 4,
            Self::ScaledTanh { .. } => 5,
            Self::LeakyRelu { .. } => 6,
            Self::ThresholdedRelu { .. } => 7,
            Self::Elu { .. } => 8,
            Self::Softsign => 9,
            Self::Softplus => 10,
        }
    }

    /// Returns the name, without the numbers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Relu => "relu",
            Self::HardSigmoid { .. } => "hard-sigmoid",
            Self::Affine { .. } => "affine",
            Self::ScaledTanh { .. } => "scaled-tanh",
            Self::LeakyRelu { .. } => "leaky-relu",
            Self::ThresholdedRelu { .. } => "thresholded-relu",
            Self::Elu { .. } => "elu",
            Self::Softsign => "softsign",
            Self::Softplus => "softplus",
        }
    }

    /// Returns the function's numbers: α and β, α alone, or none.
    pub(crate) fn numbers(&self) -> Vec<f32> {
        match *self {
            Self::HardSigmoid { alpha, beta }
            | Self::Affine { alpha, beta }
            | Self::ScaledTanh { alpha, beta } => vec![alpha, beta],
            Self::LeakyRelu { alpha } | Self::ThresholdedRelu { alpha } | Self::Elu { alpha } => {
                vec![alpha]
            }
            Self::Sigmoid | Self::Tanh | Self::Relu | Self::Softsign | Self::Softplus => Vec::new(),
        }
    }

    /// Returns this function with other numbers, or `None` if it has another count of them.
    pub(crate) fn with_numbers(self, numbers: &[f32]) -> Option<Self> {
        let (&[alpha] | &[alpha, _]) = numbers else {
            return (numbers.is_empty() && self.numbers().is_empty()).then_some(self);
        };
        let beta = numbers.get(1).copied().unwrap_or_default();
        let changed = match self {
            Self::HardSigmoid { .. } => Self::HardSigmoid { alpha, beta },
            Self::Affine { .. } => Self::Affine { alpha, beta },
            Self::ScaledTanh { .. } => Self::ScaledTanh { alpha, beta },
            Self::LeakyRelu { .. } => Self::LeakyRelu { alpha },
            Self::ThresholdedRelu { .. } => Self::ThresholdedRelu { alpha },
            Self::Elu { .. } => Self::Elu { alpha },
            other => other,
        };
        (changed.numbers().len() == numbers.len()).then_some(changed)
    }

    /// Checks that the numbers are finite and in the ranges that the variants state.
    pub(crate) fn validate(self) -> Result<()> {
        let is_valid = self.numbers().iter().all(|number| number.is_finite())
            && match self {
                Self::LeakyRelu { alpha }
                | Self::ThresholdedRelu { alpha }
                | Self::Elu { alpha } => alpha >= 0.0,
                Self::ScaledTanh { alpha, .. } => alpha != 0.0,
                _ => true,
            };
        if is_valid {
            return Ok(());
        }
        let expected = match self {
            Self::ScaledTanh { .. } => "finite numbers, and an alpha that is not 0",
            Self::HardSigmoid { .. } | Self::Affine { .. } => "finite numbers",
            _ => {
                "a finite alpha of at least 0 (a backward pass computes the derivative from the \
                 function's value, which a negative alpha makes ambiguous)"
            }
        };
        Err(Error::setting("an activation", self, expected))
    }

    /// Returns the function's value.
    pub(crate) fn value<F: NdFloat>(self, a: F) -> F {
        let (zero, one) = (F::zero(), F::one());
        match self {
            Self::Sigmoid => one / (one + (-a).exp()),
            Self::Tanh => a.tanh(),
            Self::Relu if a < zero => zero,
            Self::Relu => a,
            Self::HardSigmoid { alpha, beta } => match float::<F>(alpha) * a + float(beta) {
                line if line < zero => zero,
                line if line > one => one,
                line => line,
            },
            Self::Affine { alpha, beta } => float::<F>(alpha) * a + float(beta),
            Self::ScaledTanh { alpha, beta } => float::<F>(alpha) * (float::<F>(beta) * a).tanh(),
            Self::LeakyRelu { alpha } if a < zero => float::<F>(alpha) * a,
            Self::LeakyRelu { .. } => a,
            Self::ThresholdedRelu { alpha } if a <= float(alpha) => zero,
            Self::ThresholdedRelu { .. } => a,
            Self::Elu { alpha } if a < zero => float::<F>(alpha) * a.exp_m1(),
            Self::Elu { .. } => a,
            // The limits are ±1.
            Self::Softsign if a.is_infinite() => a.signum(),
            Self::Softsign => a / (one + a.abs()),
            Self::Softplus => (-a.abs()).exp().ln_1p() + if a < zero { zero } else { a },
        }
    }

    /// Returns the derivative from the function's value.
    pub(crate) fn derivative<F: NdFloat>(self, value: F) -> F {
        let (zero, one) = (F::zero(), F::one());
        match self {
            Self::Sigmoid => value * (one - value),
            Self::Tanh => one - value * value,
            Self::Relu if value > zero => one,
            Self::Relu => zero,
            Self::HardSigmoid { alpha, .. } if value > zero && value < one => float(alpha),
            Self::HardSigmoid { .. } => zero,
            Self::Affine { alpha, .. } => float(alpha),
            Self::ScaledTanh { alpha, beta } => {
                let (alpha, beta) = (float::<F>(alpha), float::<F>(beta));
                alpha * beta - beta / alpha * value * value
            }
            Self::LeakyRelu { .. } if value > zero => one,
            Self::LeakyRelu { alpha } => float(alpha),
            Self::ThresholdedRelu { .. } if value > zero => one,
            Self::ThresholdedRelu { .. } => zero,
            Self::Elu { .. } if value > zero => one,
            Self::Elu { alpha } => value + float(alpha),
            Self::Softsign => (one - value.abs()) * (one - value.abs()),
            Self::Softplus => -(-value).exp_m1(),
        }
    }
}

fn float<F: NdFloat>(number: f32) -> F {
    F::from(number).expect("every f32 is a float")
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::IDENTITY {
            return f.write_str("identity");
        }
        f.write_str(self.name())?;
        let numbers: Vec<_> = self.numbers().iter().map(f32::to_string).collect();
        if numbers.is_empty() { Ok(()) } else { write!(f, "({})", numbers.join(",")) }
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "identity" {
            return Ok(Self::IDENTITY);
        }
        let (name, numbers) = match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
            Some((name, numbers)) => (name, numbers.split(',').map(str::trim).collect()),
            None => (text, Vec::new()),
        };
        let found = Self::ALL.into_iter().find(|activation| activation.name() == name);
        let numbers: Option<Vec<f32>> = numbers.iter().map(|number| number.parse().ok()).collect();
        let activation = found.and_then(|found| found.with_numbers(&numbers?));
        let activation = activation.ok_or_else(|| Error::setting(
            "an activation",
            quote(text),
            "sigmoid, tanh, relu, identity, softsign, softplus, hard-sigmoid(α,β), affine(α,β), \
             scaled-tanh(α,β), leaky-relu(α), thresholded-relu(α) or elu(α), with numbers for α \
             and β",
        ))?;
        activation.validate().map(|()| activation)
    }
}

impl From<Activation> for String {
    fn from(activation: Activation) -> Self {
        activation.to_string()
    }
}

impl TryFrom<String> for Activation {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The activations of one direction of the layers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Activations {
    /// The activation of r and z.
    pub gate: Activation,
    /// The activation of the candidate n.
    pub candidate: Activation,
}

impl Default for Activations {
    /// σ for r and z, tanh for n.
    fn default() -> Self {
        Self { gate: Activation::Sigmoid, candidate: Activation::Tanh }
    }
}

/// An activation together with a clip of its pre-activation.
///
/// The activations never decrease, or never increase. So a clip of the pre-activation is the same as
/// bounds of the value, and a value at a bound has the derivative 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ClippedActivation<F = f32> {
    pub activation: Activation,
    /// The least and the largest value, if there is a clip.
    pub bounds: Option<[F; 2]>,
}

impl<F: NdFloat> ClippedActivation<F> {
    pub fn new(activation: Activation, clip: Option<f32>) -> Self {
        let bounds = clip.map(|clip| {
            // In double precision, so that every device and the reference have the same bounds.
            let value = |a: f32| F::from(activation.value(f64::from(a))).expect("a float");
            let [a, b] = [-clip, clip].map(value);
            if b < a { [b, a] } else { [a, b] }
        });
        Self { activation, bounds }
    }

    /// Returns the value for pre-activation `a`. NaN stays NaN.
    pub fn value(&self, a: F) -> F {
        let value = self.activation.value(a);
        match self.bounds {
            Some([least, _]) if value < least => least,
            Some([_, most]) if value > most => most,
            _ => value,
        }
    }

    /// Returns the derivative from the value. A value that was rounded to f32 is still at its bound.
    pub fn derivative(&self, value: F) -> F {
        let single = |number: F| number.to_f32().expect("a float");
        let is_at =
            |[least, most]: [F; 2]| single(value) <= single(least) || single(value) >= single(most);
        if self.bounds.is_some_and(is_at) { F::zero() } else { self.activation.derivative(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The functions with other numbers than ONNX's defaults, also decreasing ones.
    const OTHERS: [Activation; 7] = [
        Activation::HardSigmoid { alpha: -0.4, beta: 0.3 },
        Activation::Affine { alpha: -0.7, beta: 0.2 },
        Activation::ScaledTanh { alpha: -0.6, beta: 1.3 },
        Activation::LeakyRelu { alpha: 2.5 },
        Activation::LeakyRelu { alpha: 0.0 },
        Activation::ThresholdedRelu { alpha: 0.25 },
        Activation::Elu { alpha: 0.4 },
    ];

    fn all() -> impl Iterator<Item = Activation> {
        Activation::ALL.into_iter().chain(OTHERS)
    }

    #[test]
    fn text_round_trips() {
        for activation in all() {
            let text = activation.to_string();
            assert!(!text.contains(char::is_whitespace), "{text}");
            assert_eq!(text.parse::<Activation>().unwrap(), activation, "{text}");
        }
        assert_eq!("affine(1, 0)".parse::<Activation>().unwrap(), Activation::IDENTITY);
        assert_eq!(Activation::HARD_SIGMOID_ONNX.to_string(), "hard-sigmoid(0.2,0.5)");
    }

    #[test]
    fn invalid_text_is_refused() {
        for text in [
            "",
            "Sigmoid",
            "softmax",
            "hard-sigmoid",
            "hard-sigmoid(0.2)",
            "hard-sigmoid(0.2,0.5,1)",
            "hard-sigmoid(0.2,x)",
            "hard-sigmoid(0.2,0.5",
            "tanh()",
            "tanh(1)",
            "elu(1,2)",
        ] {
            let error = text.parse::<Activation>().unwrap_err().to_string();
            assert!(error.contains("leaky-relu(α)"), "{error}");
        }
        for (text, expected) in [
            ("leaky-relu(-0.1)", "at least 0"),
            ("elu(NaN)", "at least 0"),
            ("affine(inf,0)", "finite numbers"),
            ("scaled-tanh(0,1)", "not 0"),
        ] {
            let error = text.parse::<Activation>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(text), "{error}");
        }
    }

    /// With and without a clip, away from the corners.
    #[test]
    fn derivatives_equal_central_differences() {
        for activation in all() {
            for clip in [None, Some(1.7)] {
                let function = ClippedActivation::<f64>::new(activation, clip);
                for i in -60..60 {
                    let (a, step) = (0.05 * f64::from(i) + 0.0123, 1e-6);
                    let difference =
                        (function.value(a + step) - function.value(a - step)) / (2.0 * step);
                    let derivative = function.derivative(function.value(a));
                    let error = (derivative - difference).abs();
                    assert!(
                        error < 1e-8,
                        "{activation} {clip:?} at {a}: {derivative} {difference}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_clip_bounds_the_pre_activation() {
        for activation in all() {
            for clip in [1e-3, 0.8, 40.0] {
                let function = ClippedActivation::<f64>::new(activation, Some(clip));
                for a in [-1e30, -50.0, -0.9, -0.8, -0.1, 0.0, 0.3, 0.9, 7.0, f64::INFINITY] {
                    let clip = f64::from(clip);
                    let expected = activation.value(a.clamp(-clip, clip));
                    assert_eq!(function.value(a), expected, "{activation} of {a}, clip {clip}");
                }
                assert!(function.value(f64::NAN).is_nan(), "{activation}");
            }
        }
    }
}
