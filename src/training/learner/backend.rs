//! [`LearnerBackend`]: the operations of a learner that each kind of device implements.

use crate::error::Result;
use crate::gpu::wait::Wait;
use crate::model::network::Network;
use crate::model::state::State;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;
use crate::spec::loss::{Loss, PreparedTargets};
use crate::spec::optimizer::{Clip, UpdateConstants};
use crate::spec::params::Params;

/// The device side of a learner. It holds the gradients and moments and computes the updates.
///
/// An update calls `accumulate` for each batch, then `apply`. Between them, an all-reduce may read
/// the `gradient` and replace it by the sum over all machines with `set_gradient`.
pub(super) trait LearnerBackend {
    /// Adds a batch's loss and gradient to the accumulated ones. The first batch of an update
    /// replaces them. Returns the states after the last steps if the batch keeps them.
    async fn accumulate(
        &mut self,
        network: &Network,
        batch: PreparedBatch<'_>,
        wait: Wait,
    ) -> Result<Option<State>>;

    /// Returns the accumulated gradient as a flat buffer, and the accumulated loss.
    async fn gradient(&mut self, wait: Wait) -> Result<(Vec<f32>, f32)>;

    /// Returns the accumulated loss.
    async fn loss(&mut self, wait: Wait) -> Result<f64>;

    /// Replaces the accumulated loss.
    async fn set_loss(&mut self, loss: f64, wait: Wait) -> Result<()>;

    /// Replaces the accumulated gradient and loss.
    async fn set_gradient(&mut self, flat: &[f32], loss: f32, wait: Wait) -> Result<()>;

    /// Clips the accumulated gradient and updates the parameters, unless a value is not finite.
    /// Returns true if the metrics must be taken before the next update.
    async fn apply(
        &mut self,
        network: &mut Network,
        clip: Clip,
        constants: &UpdateConstants,
        wait: Wait,
    ) -> Result<bool>;

    /// Waits for all queued work. Returns the metrics of the updates since the last call.
    async fn take_metrics(&mut self, wait: Wait) -> Result<Vec<RawMetrics>>;

    /// Waits for all queued work. Returns the parameters.
    async fn params(&mut self, network: &Network, wait: Wait) -> Result<Params>;

    /// Waits for all queued work. Returns the parameters, and the first and second moments.
    async fn state(&mut self, network: &Network, wait: Wait) -> Result<(Params, [Vec<f32>; 2])>;
}

/// A checked batch of an update.
pub(super) struct PreparedBatch<'a> {
    pub loss: Loss,
    pub shape: Shape,
    /// The states that the batch starts from; those of the batch if `None`.
    pub state: Option<&'a State>,
    /// True if the states after the last steps are kept.
    pub keeps_last: bool,
    pub batch: Batch<'a>,
    pub targets: &'a PreparedTargets,
    /// True for the first batch of an update.
    pub is_first: bool,
}

/// The metrics of one update as the device reports them.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawMetrics {
    pub loss: f32,
    pub norm: f32,
    /// The gradient element with the largest magnitude: its magnitude.
    pub largest: f32,
    /// The index of that element in the flat buffer.
    pub index: usize,
    /// True if the update was applied: loss, norm, new parameters and new moments are all finite.
    pub applied: bool,
}
