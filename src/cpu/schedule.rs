//! [`ThreadLayout`]: how the steps of a layer are split over threads, and into chunks.

use rayon::prelude::*;

use super::team::{MAX_PARTS, MIN_MEASURED_STEPS, Sharing};
use crate::error::Result;
use crate::spec::config::Shape;

/// The floating-point operations, about 20 µs of work, below which one thread is faster than
/// several.
pub(super) const MIN_PARALLEL_FLOPS: f64 = 2e6;

/// The floating-point operations of a step above which threads are expected to share it.
const MIN_SHARED_STEP_FLOPS: f64 = 4e6;

/// The floating-point operations of a layer, several times the 20 µs that tasks take to come, above
/// which threads are expected to share its steps.
const MIN_SHARED_FLOPS: f64 = 1.5e7;

/// The floating-point operations in the time, about 0.2 µs, that the hand-over of a part takes.
const HAND_OVER_FLOPS: f64 = 2e4;

/// The longest inner axis (steps × rows) of a product for the weights' gradients. Packed operands
/// of this size stay in the cache.
pub(super) const MAX_PRODUCT_DEPTH: usize = 512;

/// The elements (4 MiB) of a layer's gates that are still in the last-level cache after the steps
/// that computed their gradients.
const CACHED_GATES: usize = 1 << 20;

/// Returns the number of steps that run backward through a layer before the products over them are
/// computed.
pub(super) fn chunk_steps(shape: Shape) -> usize {
    let rows = MAX_PRODUCT_DEPTH.max(CACHED_GATES / (4 * shape.hidden));
    (rows / shape.batch).max(1)
}

/// The split of a layer's steps over threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ThreadLayout {
    /// Batch rows per task.
    pub rows: usize,
    /// Threads that may share each step of a task.
    pub threads_per_step: usize,
    /// Whether they are expected to share it.
    pub sharing: Sharing,
    /// True if more than one thread is used.
    pub is_parallel: bool,
}

impl ThreadLayout {
    /// Splits the steps of a layer of input size `width` over `threads` threads.
    pub fn new(shape: Shape, width: usize, threads: usize) -> Self {
        let Shape { steps, batch, hidden, directions, .. } = shape;
        let step_flops = 6.0 * (batch * hidden) as f64 * (hidden + width) as f64;
        if threads == 1 || step_flops * ((steps * directions) as f64) < MIN_PARALLEL_FLOPS {
            let sharing = Sharing::Tried;
            return Self { rows: batch, threads_per_step: 1, sharing, is_parallel: false };
        }
        // A task takes at least eight rows. With fewer, loading the weights from the cache takes
        // longer than multiplying with them.
        let groups = (threads / directions).clamp(1, (batch / 8).max(1));
        let rows = batch.div_ceil(groups);
        let idle = threads / (groups * directions);
        let row_flops = 6.0 * (rows * hidden * hidden) as f64;
        // One row takes as long as two: the weights are loaded from memory.
        let layer_flops = step_flops * steps as f64 * if batch == 1 { 2.0 } else { 1.0 };
        let is_long = row_flops > MIN_SHARED_STEP_FLOPS && layer_flops > MIN_SHARED_FLOPS;
        let sharing = if is_long { Sharing::Expected } else { Sharing::Tried };
        // n parts take the time of 1 / n of the step, and of n hand-overs.
        let parts = match is_long || steps >= MIN_MEASURED_STEPS {
            true => (row_flops / HAND_OVER_FLOPS).sqrt() as usize,
            false => 1,
        };
        let threads_per_step = idle.min(parts).clamp(1, MAX_PARTS);
        Self { rows, threads_per_step, sharing, is_parallel: true }
    }

    /// Runs the tasks of a layer.
    pub fn run<T: Send>(
        self,
        tasks: Vec<T>,
        work: impl Fn(T) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        if self.is_parallel && tasks.len() > 1 {
            return tasks.into_par_iter().with_max_len(1).try_for_each(work);
        }
        tasks.into_iter().try_for_each(work)
    }
}
