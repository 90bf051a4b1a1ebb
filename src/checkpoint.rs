//! [`Checkpoint`]: all that a [`Trainer`] goes on from, in a file.

use std::collections::BTreeMap;
use std::path::Path;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::learner::{LearnerState, Training};
use crate::trainer::{Best, Position, Regime, Trainer};

/// All that a [`Trainer`] goes on from: the parameters, the optimiser's moments and its count of updates
/// (which the schedule goes by), the seed and the place in the epoch (which the order of the examples and
/// what dropout draws follow from), and what did best on validation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The parameters and the optimiser's moments.
    pub state: LearnerState,
    /// How they are trained.
    pub training: Training,
    /// How long, and from which seed.
    pub regime: Regime,
    /// Where the run stood.
    pub position: Position,
    /// What did best on validation so far.
    pub best: Option<Best>,
    /// Whatever the program wants to find again, by names of its own.
    pub notes: BTreeMap<String, String>,
}

impl Trainer {
    /// Waits for all that was queued and takes all that training goes on from.
    ///
    /// # Errors
    /// The device's own.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        unimplemented!()
    }

    /// Goes on from where [`Self::checkpoint`] was taken: over the same examples on the same device to the
    /// same bits as if it had not been interrupted.
    ///
    /// # Errors
    /// As [`Learner::resume`](crate::Learner::resume) and [`Self::resume`].
    pub fn from_checkpoint(checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let _ = (checkpoint, device);
        unimplemented!()
    }
}

impl Checkpoint {
    /// Writes it as a safetensors file: whole, flushed to the disk, or not at all. What was at `path`
    /// before stays beside it, as `<path>.before`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let _ = path;
        unimplemented!()
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it is cut short, was changed, or is none.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        unimplemented!()
    }

    /// Reads the last one written to `path`, or where that is refused the one before it, with the reason
    /// why the last was refused.
    ///
    /// # Errors
    /// As [`Self::read`], when both are refused: that of the last.
    pub fn read_last(path: impl AsRef<Path>) -> Result<(Self, Option<Error>)> {
        let _ = path;
        unimplemented!()
    }
}
