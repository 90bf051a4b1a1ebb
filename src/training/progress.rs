//! [`Progress`]: where a run stands, what it reports, and why it ended.

use crate::error::{Error, Result};
use crate::fingerprint::DataFingerprint;
use crate::model::network::Evaluation;
use crate::spec::params::Params;
use crate::training::learner::StepMetrics;

/// Where a run stands, between two updates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Its batches that are done.
    pub batch: usize,
    /// The examples of those.
    pub examples: usize,
    /// The sum of the losses of their updates, each times its examples, and how many updates those
    /// were.
    pub loss: (f64, usize),
    /// Epochs since the best validation.
    pub stale: usize,
}

impl Progress {
    /// The mean loss of the epoch's examples that are done, 0 where none is.
    pub fn mean_loss(&self) -> f64 {
        self.loss.0 / self.examples.max(1) as f64
    }
}

/// The network that did best on validation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BestNetwork {
    /// After which epoch, from 0.
    pub epoch: usize,
    /// Its validation.
    pub validation: Evaluation,
    /// Its parameters.
    pub params: Params,
}

/// Which data sets a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFingerprints {
    /// Those that it trains on.
    pub train: DataFingerprint,
    /// Those that it is validated on.
    pub valid: DataFingerprint,
}

impl DataFingerprints {
    /// `Ok` when these are `expected`.
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

/// What a run reports, always between two updates.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Updates were made: every 16 unless [`Trainer::metrics_every`](crate::Trainer::metrics_every)
    /// says otherwise, and at the end of an epoch.
    Updates(&'a [StepMetrics]),
    /// So many examples of the validation after an epoch are done. A run that is stopped here goes
    /// on with the whole validation.
    Validating(usize),
    /// An epoch is over.
    Epoch {
        /// Which one, from 0.
        epoch: usize,
        /// The mean loss of its examples, each at the update that it was in.
        loss: f32,
        /// On the examples kept for it, if there are any.
        validation: Option<Evaluation>,
        /// Whether no epoch before was better.
        is_best: bool,
    },
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// All epochs are over.
    Completed,
    /// Validation did not get better for as many epochs as
    /// [`TrainerConfig::patience`](crate::TrainerConfig::patience) says.
    EarlyStopping,
    /// The caller asked for it. [`Trainer::run`](crate::Trainer::run) goes on from there.
    Requested,
}
