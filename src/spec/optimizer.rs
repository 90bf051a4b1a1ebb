//! Optimizers over a flat buffer, gradient clipping, and learning-rate schedules.
//!
//! [`Optimizer`] with its [`OptimizerState`] runs on the CPU. It is also the reference of
//! `shaders/optimizer.wgsl`.

use ndarray::NdFloat;

use crate::error::{Error, Result, check_shape, try_zeros};

/// An optimizer, as PyTorch defines it. θ are the parameters, g is the gradient, η the learning
/// rate and λ the weight decay.
///
/// ```
/// use gru_wgpu::{OptimizerState, Optimizer};
///
/// let optimizer = Optimizer::adam();
/// let (mut x, mut moments) = ([1.0_f32], OptimizerState::zeros(1)?);
/// for _ in 0..100 {
///     let gradient = [2.0 * x[0]]; // the derivative of x²
///     optimizer.step(0.1, &mut x, &gradient, &mut moments)?;
/// }
/// assert!(x[0].abs() < 0.05);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Optimizer {
    /// SGD with momentum: g ← g + λ θ; v ← μ v + g; θ ← θ − η v.
    Sgd {
        /// μ, the momentum, 0 ≤ μ < 1.
        #[cfg_attr(feature = "serde", serde(default))]
        momentum: f64,
        /// λ, the weight decay.
        #[cfg_attr(feature = "serde", serde(default))]
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1), with ε outside the square root and
    /// g ← g + λ θ.
    Adam(Adam),
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101): g is not
    /// changed, and θ ← θ − η λ θ.
    #[cfg_attr(feature = "serde", serde(rename = "adamw"))]
    AdamW(Adam),
}

/// The constants of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adam {
    /// β₁, the decay of the first moment.
    pub beta1: f64,
    /// β₂, the decay of the second moment.
    pub beta2: f64,
    /// ε, the term added to the denominator.
    pub epsilon: f64,
    /// λ, the weight decay.
    pub weight_decay: f64,
}

impl Default for Adam {
    /// Returns β₁ = 0.9, β₂ = 0.999, ε = 1e-8 and λ = 0.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The state of an optimizer: its moments, in the parameters' layout, and the number of updates.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OptimizerState {
    /// The first moment: the running mean of the gradients, or SGD's velocity.
    pub first: Vec<f32>,
    /// The second moment: the running mean of the squared gradients. Zeros with SGD.
    pub second: Vec<f32>,
    /// The number of updates so far.
    pub steps: u64,
}

impl OptimizerState {
    /// Returns the state for `len` parameters before the first update.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(len: usize) -> Result<Self> {
        let zeros = || try_zeros("an optimizer's moments", len);
        Ok(Self { first: zeros()?, second: zeros()?, steps: 0 })
    }
}

impl Optimizer {
    /// Returns SGD without momentum and weight decay.
    pub fn sgd() -> Self {
        Self::Sgd { momentum: 0.0, weight_decay: 0.0 }
    }

    /// Returns Adam with the default constants.
    pub fn adam() -> Self {
        Self::Adam(Adam::default())
    }

    /// Returns AdamW with the default constants and this weight decay.
    pub fn adamw(weight_decay: f64) -> Self {
        Self::AdamW(Adam { weight_decay, ..Adam::default() })
    }

    /// Checks that every constant is in its range.
    ///
    /// # Errors
    /// [`Error::Setting`] with the constant that is not.
    pub fn validate(&self) -> Result<()> {
        let (decays, epsilon, weight_decay) = match *self {
            Self::Sgd { momentum, weight_decay } => {
                (vec![("SGD's momentum", momentum)], 1.0, weight_decay)
            }
            Self::Adam(adam) | Self::AdamW(adam) => {
                let Adam { beta1, beta2, epsilon, weight_decay } = adam;
                (vec![("Adam's beta1", beta1), ("Adam's beta2", beta2)], epsilon, weight_decay)
            }
        };
        for (what, decay) in decays {
            if !(0.0..1.0).contains(&decay) {
                return Err(Error::setting(what, decay, "at least 0 and less than 1"));
            }
        }
        if !(epsilon.is_finite() && epsilon > 0.0) {
            return Err(Error::setting("Adam's epsilon", epsilon, "a finite number above 0"));
        }
        at_least_zero("the weight decay", weight_decay)
    }

    /// Makes one update: changes `params` and `moments` by `gradient` at this learning rate.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ. Nothing is changed then.
    pub fn step(
        &self,
        learning_rate: f64,
        params: &mut [f32],
        gradient: &[f32],
        moments: &mut OptimizerState,
    ) -> Result<()> {
        check_shape("the optimizer's parameters", &[moments.first.len()], &[params.len()])?;
        check_shape("the optimizer's gradient", &[moments.first.len()], &[gradient.len()])?;
        check_shape("the optimizer's moments", &[moments.first.len()], &[moments.second.len()])?;
        let constants = self.constants(learning_rate, moments.steps);
        constants.apply(params, gradient, [&mut moments.first, &mut moments.second]);
        moments.steps += 1;
        Ok(())
    }

    pub(crate) fn is_adam(&self) -> bool {
        !matches!(self, Self::Sgd { .. })
    }

    /// Returns the constants of update `step` (from 0) in f32. They are the same for all
    /// parameters, and are computed once, in f64.
    pub(crate) fn constants(&self, learning_rate: f64, step: u64) -> UpdateConstants {
        let none = UpdateConstants::default();
        match *self {
            Self::Sgd { momentum, weight_decay } => UpdateConstants {
                rate: learning_rate as f32,
                keep1: momentum as f32,
                take1: 1.0,
                coupled: weight_decay as f32,
                ..none
            },
            Self::Adam(adam) => UpdateConstants {
                coupled: adam.weight_decay as f32,
                ..adam.constants(learning_rate, step)
            },
            Self::AdamW(adam) => UpdateConstants {
                decoupled: (learning_rate * adam.weight_decay) as f32,
                ..adam.constants(learning_rate, step)
            },
        }
    }
}

impl Adam {
    fn constants(&self, learning_rate: f64, step: u64) -> UpdateConstants {
        let steps = (step + 1) as f64;
        let correction = |beta: f64| 1.0 - beta.powf(steps);
        UpdateConstants {
            adam: true,
            rate: (learning_rate / correction(self.beta1)) as f32,
            keep1: self.beta1 as f32,
            take1: (1.0 - self.beta1) as f32,
            keep2: self.beta2 as f32,
            take2: (1.0 - self.beta2) as f32,
            correction2: (1.0 / correction(self.beta2).sqrt()) as f32,
            epsilon: self.epsilon as f32,
            coupled: 0.0,
            decoupled: 0.0,
        }
    }
}

/// The constants of one update: g ← g + coupled θ; m ← keep1 m + take1 g; v ← keep2 v + take2 g²;
/// θ ← θ − decoupled θ − rate m / (√v correction2 + ε). SGD has no v and no division.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct UpdateConstants {
    pub adam: bool,
    pub rate: f32,
    pub keep1: f32,
    pub take1: f32,
    pub keep2: f32,
    pub take2: f32,
    pub correction2: f32,
    pub epsilon: f32,
    pub coupled: f32,
    pub decoupled: f32,
}

impl UpdateConstants {
    /// Updates `params` and their moments by `gradient`.
    pub fn apply<F: NdFloat>(&self, params: &mut [F], gradient: &[F], moments: [&mut [F]; 2]) {
        let [first, second] = moments;
        let moments = first.iter_mut().zip(second);
        for ((param, &g), (m, v)) in params.iter_mut().zip(gradient).zip(moments) {
            [*param, *m, *v] = self.after([*param, *m, *v], g);
        }
    }

    /// Returns true if [`Self::apply`] would leave all parameters and moments finite.
    pub fn keep_finite<F: NdFloat>(
        &self,
        params: &[F],
        gradient: &[F],
        [first, second]: [&[F]; 2],
    ) -> bool {
        let moments = first.iter().zip(second);
        let elements = params.iter().zip(gradient).zip(moments);
        // No early exit, so the compiler can vectorize the loop.
        elements.fold(true, |all, ((&param, &g), (&m, &v))| {
            let [param, m, v] = self.after([param, m, v], g);
            all & param.is_finite() & m.is_finite() & v.is_finite()
        })
    }

    /// Returns [θ, m, v] after the update by g.
    #[inline(always)]
    fn after<F: NdFloat>(&self, [param, m, v]: [F; 3], g: F) -> [F; 3] {
        let c = |value: f32| F::from(value).expect("every float converts to a float");
        let g = g + c(self.coupled) * param;
        let m = c(self.keep1) * m + c(self.take1) * g;
        let moved = c(self.rate) * m;
        if !self.adam {
            return [param - (c(self.decoupled) * param + moved), m, v];
        }
        let v = c(self.keep2) * v + c(self.take2) * g * g;
        let moved = moved / (v.sqrt() * c(self.correction2) + c(self.epsilon));
        [param - (c(self.decoupled) * param + moved), m, v]
    }
}

/// Gradient clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Clip {
    /// No clipping.
    #[default]
    None,
    /// Scales the whole gradient so that its Euclidean norm is at most this bound (Pascanu et al.
    /// 2013, arXiv 1211.5063).
    Norm(f32),
    /// Clamps each element to ± this bound.
    Value(f32),
}

impl Clip {
    /// Checks that the bound is finite and above 0.
    pub(crate) fn validate(&self) -> Result<()> {
        match *self {
            Self::Norm(bound) | Self::Value(bound) if !(bound.is_finite() && bound > 0.0) => {
                Err(Error::setting("the clipping bound", bound, "a finite number above 0"))
            }
            _ => Ok(()),
        }
    }

    /// Clips `gradient`, whose Euclidean norm is `norm`.
    pub(crate) fn apply<F: NdFloat>(&self, gradient: &mut [F], norm: F) {
        let c = |value: f32| F::from(value).expect("every float converts to a float");
        match *self {
            Self::None => {}
            Self::Norm(bound) => {
                if norm > c(bound) {
                    let scale = c(bound) / norm;
                    gradient.iter_mut().for_each(|v| *v *= scale);
                }
            }
            Self::Value(bound) => {
                let bound = c(bound);
                gradient.iter_mut().for_each(|v| *v = v.max(-bound).min(bound));
            }
        }
    }
}

/// A learning-rate schedule: a factor for each update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Schedule {
    /// A constant learning rate.
    #[default]
    Constant,
    /// Linear warm-up to the full learning rate, then cosine decay.
    Cosine {
        /// The number of warm-up updates; 0 for no warm-up.
        warmup: u64,
        /// The number of updates of warm-up and decay together. After them the factor stays `last`.
        updates: u64,
        /// The factor at the end of the decay.
        last: f64,
    },
    /// Step decay: multiplies the learning rate by `factor` after every `every` updates.
    Steps {
        /// The number of updates between two steps of the decay, at least 1.
        every: u64,
        /// The factor of each step of the decay.
        factor: f64,
    },
}

impl Schedule {
    /// Returns a cosine decay to 0 over `updates`, without warm-up.
    pub fn cosine(updates: u64) -> Self {
        Self::Cosine { warmup: 0, updates, last: 0.0 }
    }

    /// Returns the factor of the learning rate at update `step`, from 0.
    pub fn factor(&self, step: u64) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Cosine { warmup, .. } if step < warmup => (step + 1) as f64 / warmup as f64,
            Self::Cosine { warmup, updates, last } => {
                let fall = updates.saturating_sub(warmup).max(1);
                let done = (step - warmup).min(fall) as f64 / fall as f64;
                last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            Self::Steps { every, factor } => {
                factor.powi(i32::try_from(step / every.max(1)).unwrap_or(i32::MAX))
            }
        }
    }

    /// Checks that every number of the schedule is in its range.
    pub(crate) fn validate(&self) -> Result<()> {
        match *self {
            Self::Constant => Ok(()),
            Self::Cosine { warmup, updates, .. } if updates < warmup => {
                let expected = "at least the number of warm-up updates";
                Err(Error::setting("the number of updates of the schedule", updates, expected))
            }
            Self::Cosine { last, .. } => at_least_zero("the last factor of the schedule", last),
            Self::Steps { every: 0, .. } => {
                Err(Error::setting("the schedule's update interval", 0, "at least 1"))
            }
            Self::Steps { factor, .. } => at_least_zero("the factor of the schedule", factor),
        }
    }
}

/// Checks that `value` is finite and at least 0.
pub(crate) fn at_least_zero(what: &'static str, value: f64) -> Result<()> {
    match value {
        v if v.is_finite() && v >= 0.0 => Ok(()),
        v => Err(Error::setting(what, v, "a finite number, at least 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two updates by hand: the first is α·sign(g), for a gradient of any size.
    #[test]
    fn adam_makes_the_updates_of_the_paper() {
        let mut x = [1.0_f32, -2.0];
        let mut moments = OptimizerState::zeros(2).unwrap();
        let adam = Optimizer::adam();
        adam.step(0.5, &mut x, &[1e-3, -40.0], &mut moments).unwrap();
        approx::assert_abs_diff_eq!(x.as_slice(), [0.5, -1.5].as_slice(), epsilon = 1e-4);
        // m̂ = (0.9·g1 + g2)/1.9 and v̂ ≈ (g1² + g2²)/2 for β₂ near 1.
        adam.step(0.5, &mut x, &[-1e-3, -40.0], &mut moments).unwrap();
        let moved = 0.5 * (0.9 - 1.0) / 1.9;
        approx::assert_abs_diff_eq!(x.as_slice(), [0.5 - moved, -1.0].as_slice(), epsilon = 1e-3);
    }

    #[test]
    fn another_length_is_refused_and_changes_nothing() {
        let mut x = [1.0_f32, 2.0];
        let mut moments = OptimizerState::zeros(2).unwrap();
        let sgd = Optimizer::sgd();
        let error = sgd.step(0.5, &mut x, &[1.0], &mut moments).unwrap_err().to_string();
        assert_eq!(error, "the optimizer's gradient has shape [1], expected [2]");
        assert!(sgd.step(0.5, &mut x[..1], &[1.0, 1.0], &mut moments).is_err());
        assert_eq!((x, moments.steps), ([1.0, 2.0], 0));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let sgd = |momentum, weight_decay| Optimizer::Sgd { momentum, weight_decay }.validate();
        assert!(sgd(0.9, 0.1).is_ok());
        let error = sgd(1.0, 0.0).unwrap_err().to_string();
        assert_eq!(error, "SGD's momentum is 1; expected at least 0 and less than 1");
        assert!(sgd(f64::NAN, 0.0).is_err() && sgd(0.0, -1.0).is_err());
        assert!(Optimizer::Adam(Adam { epsilon: 0.0, ..Adam::default() }).validate().is_err());
        assert!(Clip::Norm(0.0).validate().is_err() && Clip::Value(f32::NAN).validate().is_err());
        let short = Schedule::Cosine { warmup: 3, updates: 2, last: 0.0 };
        assert!(short.validate().is_err());
        assert!(Schedule::Steps { every: 0, factor: 0.5 }.validate().is_err());
    }

    #[test]
    fn schedules_have_their_factors() {
        let cosine = Schedule::Cosine { warmup: 4, updates: 12, last: 0.1 };
        let factors = [0, 3, 4, 8, 12, 99].map(|step| cosine.factor(step));
        let expected = [0.25, 1.0, 1.0, 0.55, 0.1, 0.1];
        approx::assert_abs_diff_eq!(factors.as_slice(), expected.as_slice(), epsilon = 1e-12);
        let steps = Schedule::Steps { every: 3, factor: 0.5 };
        assert_eq!([0, 2, 3, 8, 9].map(|step| steps.factor(step)), [1.0, 1.0, 0.5, 0.25, 0.125]);
        assert!(steps.factor(u64::MAX) >= 0.0);
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let mut gradient = [3.0_f32, 4.0];
        Clip::Norm(10.0).apply(&mut gradient, 5.0);
        assert_eq!(gradient, [3.0, 4.0]);
        Clip::Norm(2.5).apply(&mut gradient, 5.0);
        assert_eq!(gradient, [1.5, 2.0]);
        Clip::Value(1.75).apply(&mut gradient, 2.5);
        assert_eq!(gradient, [1.5, 1.75]);
    }
}
