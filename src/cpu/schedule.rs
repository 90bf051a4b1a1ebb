//! The layout of a layer's steps over threads, and their split into chunks.

use rayon::prelude::*;

use crate::error::Result;
use crate::spec::config::Shape;

/// Floating-point operations below which (about 20 µs) other threads are not worth waking.
pub(super) const WORTH_THREADS: f64 = 2e6;

/// Floating-point operations of one step above which it is worth sharing, which costs a few µs.
const WORTH_SHARING: f64 = 4e6;

/// Steps times rows whose contribution to the weights' gradients is added at once: they fit into
/// the cache.
pub(super) const DEPTH: usize = 512;

/// The numbers of a layer's gates (4 MiB) that are still in the last-level cache after the steps
/// that computed their gradients.
const IN_CACHE: usize = 1 << 20;

/// Returns how many steps of a layer run backward before the products over them are computed.
pub(super) fn chunk_steps(shape: Shape) -> usize {
    let rows = DEPTH.max(IN_CACHE / (4 * shape.hidden));
    (rows / shape.batch).max(1)
}

/// The layout of a layer's steps over threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ThreadLayout {
    /// The batch rows of a task.
    pub rows: usize,
    /// The threads that share each of its steps.
    pub sharing: usize,
    /// True if other threads are woken.
    pub is_parallel: bool,
}

impl ThreadLayout {
    /// Returns the layout for `threads` threads and a layer with `width` inputs.
    pub fn new(shape: Shape, width: usize, threads: usize) -> Self {
        let Shape { steps, batch, hidden, directions, .. } = shape;
        let step = 6.0 * (batch * hidden) as f64 * (hidden + width) as f64;
        if threads == 1 || step * ((steps * directions) as f64) < WORTH_THREADS {
            return Self { rows: batch, sharing: 1, is_parallel: false };
        }
        // With fewer than eight rows, reading the weights from the cache would take longer than
        // computing.
        let groups = (threads / directions).clamp(1, (batch / 8).max(1));
        let rows = batch.div_ceil(groups);
        let idle = threads / (groups * directions);
        let share = idle > 1 && 6.0 * (rows * hidden * hidden) as f64 > WORTH_SHARING;
        Self { rows, sharing: if share { idle } else { 1 }, is_parallel: true }
    }

    /// Runs a layer's tasks.
    pub fn run<T: Send>(
        self,
        tasks: Vec<T>,
        work: impl Fn(T) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        if self.is_parallel && (tasks.len() > 1 || self.sharing > 1) {
            // Also for a single task: inside the pool its steps are shared at less cost.
            return tasks.into_par_iter().with_max_len(1).try_for_each(work);
        }
        tasks.into_iter().try_for_each(work)
    }
}
