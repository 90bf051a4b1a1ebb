//! [`LearnerConfig`]: the loss, optimizer, learning rate, schedule, clipping and accumulation.

use crate::error::{Error, Result};
use crate::spec::loss::Loss;
use crate::spec::optimizer::{Clip, Optimizer, Schedule};

/// The training settings of a [`Learner`](super::Learner): loss, optimizer, learning rate,
/// schedule, gradient clipping and gradient accumulation.
///
/// ```
/// use gru_wgpu::{Clip, Loss, Optimizer, Schedule, LearnerConfig};
///
/// let config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adamw(0.01), 1e-3)
///     .with_clip(Clip::Norm(1.0))
///     .with_schedule(Schedule::Cosine { warmup: 100, updates: 2000, last: 0.0 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct LearnerConfig {
    /// The loss to minimize.
    pub loss: Loss,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning rate η, before the schedule's factor.
    pub learning_rate: f64,
    /// The learning rate schedule.
    #[cfg_attr(feature = "serde", serde(default))]
    pub schedule: Schedule,
    /// The gradient clipping.
    #[cfg_attr(feature = "serde", serde(default))]
    pub clip: Clip,
    /// Gradient accumulation: batches per update, at least 1. Their gradients are averaged.
    #[cfg_attr(feature = "serde", serde(default = "one_batch"))]
    pub accumulation: usize,
}

/// The default of `accumulation` when deserializing, as in [`LearnerConfig::new`].
#[cfg(feature = "serde")]
fn one_batch() -> usize {
    1
}

impl LearnerConfig {
    /// Creates a configuration with a constant learning rate, no clipping and one batch per update.
    pub fn new(loss: Loss, optimizer: Optimizer, learning_rate: f64) -> Self {
        let (schedule, clip) = Default::default();
        Self { loss, optimizer, learning_rate, schedule, clip, accumulation: 1 }
    }

    /// Sets the learning rate schedule.
    #[must_use]
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Self { schedule, ..self }
    }

    /// Sets the gradient clipping.
    #[must_use]
    pub fn with_clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
    }

    /// Sets the number of batches per update.
    #[must_use]
    pub fn with_accumulation(self, accumulation: usize) -> Self {
        Self { accumulation, ..self }
    }

    /// Checks that every number is in its valid range.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        if self.accumulation == 0 {
            return Err(Error::setting("the number of batches per update", 0, "at least 1"));
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            let expected = "a finite number above 0";
            return Err(Error::setting("the learning rate", self.learning_rate, expected));
        }
        self.loss.validate()?;
        self.optimizer.validate()?;
        self.clip.validate()?;
        self.schedule.validate()
    }

    /// Returns the learning rate of update `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.learning_rate * self.schedule.factor(step)
    }
}
