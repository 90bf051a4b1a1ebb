//! [`TrainerConfig`]: the epochs, batch size, seed, patience and example order of a run.

use crate::error::{Error, Result};

/// The settings of a training run: epochs, batch size, seed, patience and example order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct TrainerConfig {
    /// Number of passes over the training set.
    pub epochs: usize,
    /// Batch size: examples per batch. The last batch of an epoch may be smaller.
    pub batch: usize,
    /// Seed of the example order and of dropout.
    #[cfg_attr(feature = "serde", serde(default = "default_seed"))]
    pub seed: u64,
    /// Early stopping: epochs without a better validation result after which the run stops. `None`
    /// never stops early.
    #[cfg_attr(feature = "serde", serde(default))]
    pub patience: Option<usize>,
    /// Order of the examples within an epoch.
    #[cfg_attr(feature = "serde", serde(default))]
    pub order: Order,
}

/// The default of `seed` when deserializing, as in [`TrainerConfig::new`].
#[cfg(feature = "serde")]
fn default_seed() -> u64 {
    1
}

impl TrainerConfig {
    /// Creates a configuration with this number of epochs and this batch size, seed 1, no early
    /// stopping and [`Order::Bucketed`].
    pub fn new(epochs: usize, batch: usize) -> Self {
        Self { epochs, batch, seed: 1, patience: None, order: Order::Bucketed }
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Stops the run after this many epochs without a better validation result.
    #[must_use]
    pub fn with_patience(self, patience: impl Into<Option<usize>>) -> Self {
        Self { patience: patience.into(), ..self }
    }

    /// Sets the order of the examples.
    #[must_use]
    pub fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// Checks that every size is at least 1.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] if `epochs`, `batch` or `patience` is 0.
    pub fn validate(&self) -> Result<()> {
        let Self { epochs, batch, patience, .. } = *self;
        for (what, size) in [
            ("the number of epochs", epochs),
            ("the batch size", batch),
            ("the patience in epochs", patience.unwrap_or(1)),
        ] {
            if size == 0 {
                return Err(Error::ZeroSize { what });
            }
        }
        Ok(())
    }
}

/// The order of the examples within an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Order {
    /// Shuffles the examples, sorts them by length within groups of 16 batches, then shuffles the
    /// batches. Examples in a batch have similar lengths, so batches need little padding. The order
    /// depends only on the seed and the epoch.
    #[default]
    Bucketed,
    /// Shuffles the previous epoch's order again in each epoch. Examples of all lengths share a
    /// batch.
    Shuffled,
}
