//! [`PersistentTile`]: the layout of the kernels that hold the weights in registers.

use super::{LARGE_WORKGROUPS, StepVariant, allow, padded_unit_quads};
use crate::error::{Error, Result};
use crate::kernels::{
    Kernel, MAX_BLOCKS, PERSISTENT_BACKWARD, PERSISTENT_BACKWARD_SCALAR, PERSISTENT_FORWARD,
    PERSISTENT_FORWARD_SCALAR, PersistentConstants,
};
use crate::plan::{DeviceCaps, Pass};
use crate::spec::config::GruConfig;

/// The most threads of a workgroup of the persistent kernels: three warps for each of a
/// multiprocessor's four schedulers, with 128 weights and 40 other registers a thread in a register
/// file of 65,536.
const PERSISTENT_THREADS: u64 = 384;

/// A workgroup computes all units of its rows, for any number of steps. Its threads hold the weights
/// in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) struct PersistentTile {
    /// Quads of units: all units, rounded up by [`padded_unit_quads`].
    unit_quads: usize,
    /// Threads along the k of a gate.
    parts: usize,
    /// Blocks of 4 × 4 weights of a thread.
    blocks: usize,
    /// Batch rows of a workgroup.
    rows: usize,
}

impl PersistentTile {
    /// Chooses the tile: the fewest blocks a thread for which there are not too many threads, so
    /// that many threads share the work of a step.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if the weights do not fit the registers of a workgroup,
    /// or the device's limits.
    pub fn new(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Result<Self> {
        let unit_quads = padded_unit_quads(config.hidden_size, caps);
        let most_blocks = caps.thread_weights.min(16 * MAX_BLOCKS) / 16;
        let limit = caps.limits.max_compute_invocations_per_workgroup;
        let most_threads = limit.min(PERSISTENT_THREADS) as usize;
        let tile = |blocks: usize| {
            let parts = unit_quads.div_ceil(blocks);
            Self { unit_quads, parts, blocks, rows: 1 }
        };
        let what = "a workgroup of the persistent kernel (Recurrence::Auto does not require it)";
        let blocks = (1..=most_blocks).find(|&blocks| tile(blocks).threads() <= most_threads);
        let Some(one_row) = blocks.map(tile) else {
            // The weights of three gates, in blocks.
            let asked = 48usize.saturating_mul(unit_quads).saturating_mul(unit_quads);
            // Blocks and parts leave some registers unused.
            let allowed = (16 * most_blocks).saturating_mul(most_threads).min(asked - 1);
            return Err(Error::Limit {
                what: what.to_owned(),
                limit: "the recurrent weights that a workgroup can hold in registers",
                asked: asked as u64,
                allowed: allowed as u64,
            });
        };
        let allow = |tile: Self| {
            allow(
                what,
                Self::kernel(pass, config.hidden_size),
                tile.constants(StepVariant::default()).as_u32s(),
                caps,
            )
            .map(|()| tile)
        };
        // With two rows a step takes half as long again, so they pay when workgroups of one row wait
        // for a multiprocessor.
        let two_rows = Self { rows: 2, ..one_row };
        let fits = two_rows.threads() == one_row.threads() && allow(two_rows).is_ok();
        allow(if batch > LARGE_WORKGROUPS && fits { two_rows } else { one_row })
    }

    /// Returns the batch rows of a workgroup.
    pub fn group_rows(&self) -> usize {
        self.rows
    }

    /// Returns the hidden units of a workgroup: all of them.
    pub fn units(&self) -> usize {
        4 * self.unit_quads
    }

    /// Returns the kernel of a pass for H hidden units.
    pub fn kernel(pass: Pass, hidden: usize) -> &'static Kernel {
        match (pass, hidden.is_multiple_of(4)) {
            (Pass::Forward, true) => &PERSISTENT_FORWARD,
            (Pass::Forward, false) => &PERSISTENT_FORWARD_SCALAR,
            (Pass::Backward, true) => &PERSISTENT_BACKWARD,
            (Pass::Backward, false) => &PERSISTENT_BACKWARD_SCALAR,
        }
    }

    /// Returns the threads of a workgroup: for the weights of three gates, and for the items.
    fn threads(&self) -> usize {
        let [products, items] = [3 * self.parts, 4 * self.rows];
        self.unit_quads.saturating_mul(products.max(items))
    }

    /// Returns the values of the kernel's override constants.
    pub fn constants(&self, variant: StepVariant) -> PersistentConstants {
        PersistentConstants {
            reset_before: u32::from(variant.reset_before),
            noise: u32::from(variant.noise),
            hardware_exp: u32::from(variant.hardware_exp),
            unit_quads: self.unit_quads as u32,
            parts: self.parts as u32,
            blocks: self.blocks as u32,
            rows: self.rows as u32,
            threads: self.threads() as u32,
        }
    }

    /// Returns an upper bound on the loop iterations of one thread.
    pub fn iterations(&self, draws: usize, count: usize) -> u64 {
        let clear = (3 * 36 * self.parts * self.rows).div_ceil(self.threads()) + 1;
        let step = 1 + 2 * (self.rows + 1) + 3 * (self.parts + 1) + 2 * draws;
        (step * count + clear) as u64
    }
}
