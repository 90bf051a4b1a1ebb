//! [`LossGradient`]: what the batches of an update come to.

use crate::error::{Error, Result};
use crate::spec::params::{ParamLayout, Params};

/// The gradient of the batches of an update, as far as they have come:
/// [`Learner::gradient`](super::Learner::gradient) gives it.
///
/// Each batch's loss and gradient count 1 /
/// [`LearnerConfig::accumulation`](super::LearnerConfig::accumulation), so the sum over all batches
/// of an update is their mean.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LossGradient {
    /// The sum of the gradients, laid out as the parameters.
    pub params: Params,
    /// The sum of the losses.
    pub loss: f32,
    /// How many batches there were.
    pub batches: usize,
}

impl LossGradient {
    /// Adds that of other batches, element by element, as an all-reduce does over machines.
    ///
    /// # Errors
    /// [`Error::ParameterLayout`] when it is that of another model, [`Error::Overflow`] when both
    /// have more batches than can be counted. Nothing is added then.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        check_layout(self.params.layout(), other.params.layout())?;
        let batches = self.batches.checked_add(other.batches);
        let batches = batches.ok_or(Error::Overflow { what: "the number of batches" })?;
        let sum = self.params.as_mut_slice().iter_mut();
        sum.zip(other.params.as_slice()).for_each(|(sum, &more)| *sum += more);
        self.loss += other.loss;
        self.batches = batches;
        Ok(())
    }
}

/// `Ok` when both are laid out for the same model.
pub(super) fn check_layout(expected: &ParamLayout, got: &ParamLayout) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let describe = |layout: &ParamLayout| match layout.head() {
        Some(head) => format!("{} with {} outputs", layout.config(), head.outputs),
        None => layout.config().to_string(),
    };
    Err(Error::ParameterLayout { expected: describe(expected), got: describe(got) })
}
