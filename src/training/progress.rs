//! [`Progress`]: the position of a training run, its events and its reasons to stop.

use crate::error::{Error, Result};
use crate::fingerprint::DataFingerprint;
use crate::model::network::Evaluation;
use crate::spec::params::Params;
use crate::training::learner::StepMetrics;

/// The position of a training run between two updates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The current epoch, from 0.
    pub epoch: usize,
    /// Batches of this epoch that are done.
    pub batch: usize,
    /// Examples in those batches.
    pub examples: usize,
    /// The epoch's updates so far: the sum of loss × examples over the updates, and the number of
    /// updates.
    pub loss: (f64, usize),
    /// Epochs since the best validation result.
    pub stale: usize,
}

impl Progress {
    /// Returns the mean loss over the examples of this epoch so far, or 0 if there are none.
    pub fn mean_loss(&self) -> f64 {
        self.loss.0 / self.examples.max(1) as f64
    }
}

/// The network with the best validation result so far: the highest accuracy if there are classes,
/// then the lowest loss.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BestNetwork {
    /// The epoch it comes from, from 0.
    pub epoch: usize,
    /// Its results on the validation set.
    pub validation: Evaluation,
    /// Its parameters.
    pub params: Params,
}

/// Fingerprints of a run's training set and validation set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFingerprints {
    /// The training set.
    pub train: DataFingerprint,
    /// The validation set.
    pub valid: DataFingerprint,
}

impl DataFingerprints {
    /// Checks that both fingerprints equal those in `expected`.
    pub(super) fn check(&self, expected: &Self) -> Result<()> {
        for (what, expected, got) in
            [("train on", expected.train, self.train), ("validate on", expected.valid, self.valid)]
        {
            if expected != got {
                return Err(Error::OtherData { what, expected, got });
            }
        }
        Ok(())
    }
}

/// A report of a training run. Events arrive between two updates.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Metrics of the updates since the last report. Sent every 16 updates, or as set by
    /// [`Trainer::metrics_every`](crate::Trainer::metrics_every), and at the end of an epoch.
    Updates(&'a [StepMetrics]),
    /// Number of validation examples evaluated so far after an epoch. A run that stops here starts
    /// this validation again when it resumes.
    Validating(usize),
    /// An epoch has ended.
    Epoch {
        /// The epoch, from 0.
        epoch: usize,
        /// Mean training loss over the epoch's examples, each measured during its own update.
        loss: f32,
        /// Results on the validation set. `None` if that set is empty.
        validation: Option<Evaluation>,
        /// True if this epoch has the best validation result so far.
        is_best: bool,
    },
}

/// The reason why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// All epochs are done.
    Completed,
    /// The validation result did not improve for
    /// [`TrainerConfig::patience`](crate::TrainerConfig::patience) epochs.
    EarlyStopping,
    /// The caller's listener stopped the run. Call [`Trainer::run`](crate::Trainer::run) again to
    /// continue it.
    Requested,
}
