//! [`LossGradient`]: the accumulated gradient of an update's batches.

use crate::error::{Error, Result};
use crate::spec::params::{ParamLayout, Params};

/// The accumulated loss and gradient of the current update, from
/// [`Learner::gradient`](super::Learner::gradient).
///
/// Each batch's loss and gradient are scaled by 1 /
/// [`LearnerConfig::accumulation`](super::LearnerConfig::accumulation), so the sum over all batches
/// of an update is their mean.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LossGradient {
    /// The sum of the scaled gradients, in the layout of the parameters.
    pub params: Params,
    /// The sum of the scaled losses.
    pub loss: f32,
    /// The number of batches.
    pub batches: usize,
}

impl LossGradient {
    /// Adds the gradient of other batches, element by element, as an all-reduce over machines does.
    ///
    /// # Errors
    /// [`Error::ParameterLayout`] if `other` belongs to another model; [`Error::Overflow`] if the
    /// number of batches overflows. On error nothing is added.
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

/// Checks that both layouts belong to the same model.
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
