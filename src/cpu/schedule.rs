//! How a layer's steps are laid out over threads, and into chunks.

use rayon::prelude::*;

use crate::error::Result;
use crate::spec::config::Shape;

/// Below so many floating-point operations, some 20 µs, other threads are not worth waking.
pub(super) const WORTH_THREADS: f64 = 2e6;

/// So many in one step are worth sharing it, which costs a few µs.
const WORTH_SHARING: f64 = 4e6;

/// Steps and rows whose contribution to the weights' gradients is added at once: what stays in the
/// cache.
pub(super) const DEPTH: usize = 512;

/// Numbers of a layer's gates, 4 MiB of them, that are still in the last cache when the steps that
/// made gradients of them are done.
const IN_CACHE: usize = 1 << 20;

/// So many steps go back through a layer before the products over them are made.
pub(super) fn chunk_steps(shape: Shape) -> usize {
    let rows = DEPTH.max(IN_CACHE / (4 * shape.hidden));
    (rows / shape.batch).max(1)
}

/// How a layer's steps are laid out over threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ThreadLayout {
    /// The batch rows that a task takes.
    pub rows: usize,
    /// The threads that share each of its steps.
    pub sharing: usize,
    /// Whether other threads are woken at all.
    pub is_parallel: bool,
}

impl ThreadLayout {
    /// For `threads` threads and a layer that reads `width` numbers.
    pub fn new(shape: Shape, width: usize, threads: usize) -> Self {
        let Shape { steps, batch, hidden, directions, .. } = shape;
        let step = 6.0 * (batch * hidden) as f64 * (hidden + width) as f64;
        if threads == 1 || step * ((steps * directions) as f64) < WORTH_THREADS {
            return Self { rows: batch, sharing: 1, is_parallel: false };
        }
        // Fewer rows than eight would leave the weights' way from the cache the longer part.
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
            // Also for a single one: inside the pool its steps are shared at less cost.
            return tasks.into_par_iter().with_max_len(1).try_for_each(work);
        }
        tasks.into_iter().try_for_each(work)
    }
}
