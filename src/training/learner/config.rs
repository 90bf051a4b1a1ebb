//! [`LearnerConfig`]: how a network is trained.

use crate::error::{Error, Result};
use crate::spec::loss::Loss;
use crate::spec::optimizer::{Clip, Optimizer, Schedule};

/// How a network is trained.
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
    /// What is made small.
    pub loss: Loss,
    /// What a gradient does to the parameters.
    pub optimizer: Optimizer,
    /// η, before the schedule.
    pub learning_rate: f64,
    /// How it changes.
    #[cfg_attr(feature = "serde", serde(default))]
    pub schedule: Schedule,
    /// How the gradient is bounded.
    #[cfg_attr(feature = "serde", serde(default))]
    pub clip: Clip,
    /// Batches to an update, whose gradients are averaged. At least 1.
    #[cfg_attr(feature = "serde", serde(default = "one_batch"))]
    pub accumulation: usize,
}

/// What a serialised configuration need not say, as [`LearnerConfig::new`] has it.
#[cfg(feature = "serde")]
fn one_batch() -> usize {
    1
}

impl LearnerConfig {
    /// At a constant rate, with the gradient as it is, an update a batch.
    pub fn new(loss: Loss, optimizer: Optimizer, learning_rate: f64) -> Self {
        let (schedule, clip) = Default::default();
        Self { loss, optimizer, learning_rate, schedule, clip, accumulation: 1 }
    }

    /// The same with the learning rate on this schedule.
    #[must_use]
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Self { schedule, ..self }
    }

    /// The same with the gradient bounded.
    #[must_use]
    pub fn with_clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
    }

    /// The same with so many batches to an update.
    #[must_use]
    pub fn with_accumulation(self, accumulation: usize) -> Self {
        Self { accumulation, ..self }
    }

    /// `Ok` when every number makes sense.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        if self.accumulation == 0 {
            return Err(Error::setting("the number of batches to an update", 0, "at least 1"));
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

    /// The learning rate of update `step`, from 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.learning_rate * self.schedule.share(step)
    }
}
