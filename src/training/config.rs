//! [`TrainerConfig`]: how long to train, on how much at a time, in which order.

use crate::error::{Error, Result};

/// How long to train, on how much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct TrainerConfig {
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples of a batch.
    pub batch: usize,
    /// The seed of the order of the examples, and of dropout.
    #[cfg_attr(feature = "serde", serde(default = "first_seed"))]
    pub seed: u64,
    /// Epochs without a better validation after which to stop.
    #[cfg_attr(feature = "serde", serde(default))]
    pub patience: Option<usize>,
    /// In which order an epoch takes the examples.
    #[cfg_attr(feature = "serde", serde(default))]
    pub order: Order,
}

/// What a serialised configuration need not say, as [`TrainerConfig::new`] has it.
#[cfg(feature = "serde")]
fn first_seed() -> u64 {
    1
}

impl TrainerConfig {
    /// So many passes in batches of so many examples, with seed 1, examples of like lengths
    /// together.
    pub fn new(epochs: usize, batch: usize) -> Self {
        Self { epochs, batch, seed: 1, patience: None, order: Order::Bucketed }
    }

    /// The same with another seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same, ended after so many epochs without a better validation.
    #[must_use]
    pub fn with_patience(self, patience: impl Into<Option<usize>>) -> Self {
        Self { patience: patience.into(), ..self }
    }

    /// The same with the examples in this order.
    #[must_use]
    pub fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// `Ok` when every number makes sense.
    ///
    /// # Errors
    /// [`Error::ZeroSize`].
    pub fn validate(&self) -> Result<()> {
        let Self { epochs, batch, patience, .. } = *self;
        for (what, size) in [
            ("the number of epochs", epochs),
            ("the number of examples of a batch", batch),
            ("the number of epochs to be patient for", patience.unwrap_or(1)),
        ] {
            if size == 0 {
                return Err(Error::ZeroSize { what });
            }
        }
        Ok(())
    }

    /// Updates of an epoch over so many examples, `accumulation` batches each.
    pub fn updates(&self, examples: usize, accumulation: usize) -> u64 {
        examples.div_ceil(self.batch.max(1)).div_ceil(accumulation.max(1)) as u64
    }
}

/// In which order an epoch takes its examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Order {
    /// Shuffled, then sorted by length within 16 batches at a time, and those batches shuffled:
    /// examples of unequal lengths need little padding. The order of an epoch follows from the seed
    /// and the epoch.
    #[default]
    Bucketed,
    /// Shuffled, each epoch from the order of the one before; the last batch may be smaller.
    Shuffled,
}
