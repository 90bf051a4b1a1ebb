//! [`LearnerBackend`]: where a learner's numbers are, and what is done with them there.

use crate::error::Result;
use crate::gpu::wait::Wait;
use crate::model::network::Network;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;
use crate::spec::loss::{Loss, PreparedTargets};
use crate::spec::optimizer::{Clip, UpdateConstants};
use crate::spec::params::Params;

/// The memory that holds gradients and moments, and computes there.
///
/// An update is `accumulate` for each of its batches, then `apply`. Between the two an all-reduce
/// may take the `gradient` and put back that of all machines.
pub(super) trait LearnerBackend {
    /// Adds a batch's loss and gradient to the accumulated ones, or to nothing for an update's
    /// first.
    async fn accumulate(
        &mut self,
        network: &Network,
        batch: PreparedBatch<'_>,
        wait: Wait,
    ) -> Result<()>;

    /// The accumulated gradient, flat, and loss.
    async fn gradient(&mut self, wait: Wait) -> Result<(Vec<f32>, f32)>;

    /// The accumulated loss.
    async fn loss(&mut self, wait: Wait) -> Result<f64>;

    /// Replaces the accumulated loss.
    async fn set_loss(&mut self, loss: f64) -> Result<()>;

    /// Replaces the accumulated gradient and loss.
    async fn set_gradient(&mut self, flat: &[f32], loss: f32) -> Result<()>;

    /// Clips the accumulated gradient and updates the parameters by it, unless something is not
    /// finite. Returns whether the metrics must be taken before the next update.
    async fn apply(
        &mut self,
        network: &mut Network,
        clip: Clip,
        constants: &UpdateConstants,
    ) -> Result<bool>;

    /// Waits for all that was queued; the metrics of the updates since the last time.
    async fn take_metrics(&mut self, wait: Wait) -> Result<Vec<RawMetrics>>;

    /// Waits for all that was queued; the parameters.
    async fn params(&mut self, network: &Network, wait: Wait) -> Result<Params>;

    /// Waits for all that was queued; the parameters, and the first and second moments.
    async fn state(&mut self, network: &Network, wait: Wait) -> Result<(Params, [Vec<f32>; 2])>;
}

/// A batch of an update, checked.
pub(super) struct PreparedBatch<'a> {
    pub loss: Loss,
    pub shape: Shape,
    pub batch: Batch<'a>,
    pub targets: &'a PreparedTargets,
    /// Of its update.
    pub is_first: bool,
}

/// An update's metrics, as a device leaves them.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawMetrics {
    pub loss: f32,
    pub norm: f32,
    /// The gradient's largest element, by magnitude, and its index in the flat buffer.
    pub largest: f32,
    pub index: usize,
    /// Whether all of it was finite, and what it makes of the parameters and moments: nothing moves
    /// else.
    pub moved: bool,
}
