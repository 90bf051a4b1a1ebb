//! Which kernel a product or a recurrence takes, and how its work is laid out over the threads of a
//! workgroup: [`ProductTile`] of the products, [`RecurrenceKernel`] of the recurrence.
//!
//! # Kernel families
//!
//! The recurrence has two families of kernels, each with a tile type of its own: [`StepTile`], one
//! step a dispatch, spread over the whole device; [`SequenceTile`], many steps a dispatch, each
//! workgroup taking a few rows through them. [`RecurrenceKernels::choose`] is the one place that
//! chooses between them, from the configuration, the batch and [`DeviceCaps`];
//! `RunOptions::recurrence` (`gru bench --kernel`) can force one. A new family (weights held in
//! registers, say) is
//!
//! 1. a WGSL file or a variant of one, in `shaders/`;
//! 2. its row in `kernels/recurrence.rs`, or a constant of an existing one;
//! 3. a tile type here, with an arm in [`RecurrenceKernel`], whose methods are all that the stages
//!    ask of a family;
//! 4. a line in the rule, [`RecurrenceKernels::choose`];
//! 5. a value of [`Recurrence`], in [`Recurrence::ALL`] too, so that it can be forced, measured and
//!    checked: `check/steps.rs` runs all of them against the reference;
//! 6. how its dispatches walk over the steps: the two `match`es of `plan/steps.rs`, unless it does
//!    as one of the others;
//! 7. the wgpu features that it needs, in `FEATURES` of `gpu/context.rs`: a device is opened with
//!    no others, so until then [`DeviceCaps`] says that it lacks them, whatever the adapter has.
//!
//! `tiles/tests.rs` pins what the rules choose.

use super::limits::within;
use super::{DeviceCaps, Pass};
use crate::error::{Error, Result};
use crate::kernels::{BACKWARD, FORWARD, Kernel, MATMUL, MatmulConstants, StepConstants};
use crate::spec::config::{GruConfig, Reset};
use crate::spec::options::Recurrence;

/// H up to which a workgroup takes rows through the whole sequence, unless told otherwise. Beyond
/// it the weights, which each workgroup reads anew at every step, come through one multiprocessor's
/// cache more slowly than a dispatch a step can spread them over the device.
const SEQUENCE_HIDDEN: usize = 128;

/// The same where a batch is large enough for every part of a device to have rows, and on software
/// adapters, whose processors share one cache.
const SEQUENCE_HIDDEN_OF_MANY: usize = 256;

/// So many rows are many.
const MANY_ROWS: usize = 128;

/// Of k, four each, that a workgroup stages at once where it walks over a single step.
const STAGED_QUADS: usize = 32;

/// So many large tiles of a product, or more, give every part of a large GPU one.
const LARGE_TILES: u64 = 96;

/// The kernel of a pass through the recurrence: its family, and the family's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecurrenceKernel {
    Step(StepTile),
    Sequence(SequenceTile),
}

/// A workgroup makes some units of its rows, for one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepTile {
    /// Threads along the units, four units each.
    unit_quads: usize,
    /// Split-K lanes: threads along k.
    split_k: usize,
    /// Rows of a thread, four each.
    row_quads: usize,
    /// Of k, four each, that the workgroup stages at once.
    staged_quads: usize,
    /// Sums of each unit and row that the workgroup's memory holds.
    accumulators: usize,
}

/// A workgroup makes all units of its rows, for any number of steps. What it multiplies with the
/// weights stays in its own memory from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SequenceTile {
    /// Threads along the units, four units each: all units.
    unit_quads: usize,
    /// Split-K lanes: threads along k.
    split_k: usize,
    /// Rows of a thread, four each.
    row_quads: usize,
    /// Of k, four each: all of it.
    operand_quads: usize,
    /// Sums of each unit and row that the workgroup's memory holds.
    accumulators: usize,
}

/// The kernels of the two passes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecurrenceKernels {
    pub forward: RecurrenceKernel,
    pub backward: RecurrenceKernel,
}

impl RecurrenceKernels {
    /// The rule: whole sequences where H is small, as [`sequence_pays`] has it, and a workgroup's
    /// memory suffices in both passes, or where `recurrence` asks for them; or else one step a
    /// dispatch.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) when whole sequences are asked for and do not fit.
    pub fn choose(
        config: &GruConfig,
        batch: usize,
        recurrence: Recurrence,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let step = || {
            let [forward, backward] = [Pass::Forward, Pass::Backward]
                .map(|pass| RecurrenceKernel::Step(StepTile::new(config, batch, pass, caps)));
            Self { forward, backward }
        };
        let sequence = || {
            let [forward, backward] = [Pass::Forward, Pass::Backward]
                .map(|pass| SequenceTile::new(config, batch, pass, caps));
            Ok(Self {
                forward: RecurrenceKernel::Sequence(forward?),
                backward: RecurrenceKernel::Sequence(backward?),
            })
        };
        match recurrence {
            Recurrence::Step => Ok(step()),
            Recurrence::Sequence => sequence(),
            Recurrence::Auto if sequence_pays(config, batch, caps) => {
                Ok(sequence().unwrap_or_else(|_: Error| step()))
            }
            Recurrence::Auto => Ok(step()),
        }
    }

    pub fn of(&self, pass: Pass) -> RecurrenceKernel {
        match pass {
            Pass::Forward => self.forward,
            Pass::Backward => self.backward,
        }
    }
}

/// Whether whole sequences are faster than a dispatch a step.
fn sequence_pays(config: &GruConfig, batch: usize, caps: &DeviceCaps) -> bool {
    let many = caps.software || batch >= MANY_ROWS;
    config.hidden_size <= if many { SEQUENCE_HIDDEN_OF_MANY } else { SEQUENCE_HIDDEN }
}

impl RecurrenceKernel {
    /// The WGSL kernel of a pass.
    pub fn kernel(self, pass: Pass) -> &'static Kernel {
        match self {
            Self::Step(_) | Self::Sequence(_) => kernel_of(pass),
        }
    }

    /// The kernel's constants that lay out its threads; the others are 0.
    pub fn constants(self) -> StepConstants {
        match self {
            Self::Step(tile) => tile.constants(),
            Self::Sequence(tile) => tile.constants(),
        }
    }

    /// Batch rows of a workgroup.
    pub fn rows(self) -> usize {
        match self {
            Self::Step(StepTile { row_quads, .. })
            | Self::Sequence(SequenceTile { row_quads, .. }) => 4 * row_quads,
        }
    }

    /// Hidden units of a workgroup.
    pub fn units(self) -> usize {
        match self {
            Self::Step(StepTile { unit_quads, .. })
            | Self::Sequence(SequenceTile { unit_quads, .. }) => 4 * unit_quads,
        }
    }
}

impl StepTile {
    /// The weights of a step pass through once, so many lanes read them side by side.
    fn new(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Self {
        let quads = config.hidden_size.div_ceil(4);
        let depth = depth_quads(quads, pass);
        let make = |unit_quads: usize, split_k: usize, row_quads, staged: usize| Self {
            unit_quads: unit_quads.min(quads),
            split_k: split_k.min(depth),
            row_quads,
            staged_quads: staged.min(depth),
            accumulators: match pass {
                Pass::Forward => products(config),
                Pass::Backward => 1,
            },
        };
        if caps.software {
            // A thread is a lane of a vector unit there, and adding up lanes' sums costs loads;
            // more rows to a weight are more work to a load.
            return make(16, 1, if batch > 4 { 2 } else { 1 }, STAGED_QUADS);
        }
        let best = match pass {
            Pass::Forward => (8, 16, STAGED_QUADS),
            Pass::Backward => (8, 32, 2 * STAGED_QUADS),
        };
        let [a, b, c, d] = [(8, 16), (4, 16), (4, 8), (4, 4)].map(|(u, l)| (u, l, STAGED_QUADS));
        let tiles = [best, a, b, c, d]
            .map(|(unit_quads, split_k, staged)| make(unit_quads, split_k, 1, staged));
        let what = "a workgroup of some units of its rows";
        let fits =
            |tile: &Self| allow(what, kernel_of(pass), tile.constants().as_u32s(), caps).is_ok();
        // Where none fits, the plan's check says so.
        tiles.into_iter().find(fits).unwrap_or(tiles[tiles.len() - 1])
    }

    fn constants(&self) -> StepConstants {
        StepConstants {
            unit_quads: self.unit_quads as u32,
            split_k: self.split_k as u32,
            row_quads: self.row_quads as u32,
            depth_quads: self.staged_quads as u32,
            accumulators: self.accumulators as u32,
            resident: 0,
            ..StepConstants::default()
        }
    }
}

impl SequenceTile {
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) when all units of four rows are too much for a
    /// workgroup.
    fn new(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Result<Self> {
        let unit_quads = config.hidden_size.div_ceil(4);
        let operand_quads = depth_quads(unit_quads, pass);
        let make = |split_k, row_quads| Self {
            unit_quads,
            split_k,
            row_quads,
            operand_quads,
            accumulators: match pass {
                Pass::Forward => products(config),
                // What the next step needs of each gate stays there too.
                Pass::Backward => 3,
            },
        };
        // On a GPU many small workgroups, with enough of k for each lane to be worth its sums.
        let sizes = match (caps.software, pass) {
            (true, _) if batch >= 16 => vec![(1, 2), (1, 1)],
            (true, _) => vec![(1, 1)],
            (false, Pass::Forward) => vec![(8, 1), (4, 1), (2, 1), (1, 1)],
            (false, Pass::Backward) => vec![(16, 1), (8, 1), (4, 1), (2, 1), (1, 1)],
        };
        let what = "a workgroup that makes all units of its rows";
        let fits = |tile: &Self| allow(what, kernel_of(pass), tile.constants().as_u32s(), caps);
        let tiles = sizes.into_iter().map(|(split_k, row_quads)| make(split_k, row_quads));
        let mut worthwhile =
            tiles.filter(|tile| tile.split_k == 1 || operand_quads >= 2 * tile.split_k);
        match worthwhile.find(|tile| fits(tile).is_ok()) {
            Some(tile) => Ok(tile),
            None => fits(&make(1, 1)).map(|()| make(1, 1)),
        }
    }

    fn constants(&self) -> StepConstants {
        StepConstants {
            unit_quads: self.unit_quads as u32,
            split_k: self.split_k as u32,
            row_quads: self.row_quads as u32,
            depth_quads: self.operand_quads as u32,
            accumulators: self.accumulators as u32,
            resident: 1,
            ..StepConstants::default()
        }
    }
}

/// One for both families, which the constant RESIDENT tells apart.
fn kernel_of(pass: Pass) -> &'static Kernel {
    match pass {
        Pass::Forward => &FORWARD,
        Pass::Backward => &BACKWARD,
    }
}

/// Of k, four each: H forward; backward that of each gate, filled up to whole quads.
fn depth_quads(unit_quads: usize, pass: Pass) -> usize {
    match pass {
        Pass::Forward => unit_quads,
        Pass::Backward => 3 * unit_quads,
    }
}

/// Products of a unit with the past that are there at once forward: of each gate where none waits
/// for another.
fn products(config: &GruConfig) -> usize {
    match config.reset {
        Reset::After => 3,
        Reset::Before => 2,
    }
}

/// `Ok` when a device can run the workgroups of `kernel` with these constants.
fn allow(what: &str, kernel: &Kernel, constants: &[u32], caps: &DeviceCaps) -> Result<()> {
    let (limits, workgroup) = (&caps.limits, (kernel.workgroup)(constants));
    for (limit, asked, allowed) in [
        (
            "max_compute_invocations_per_workgroup",
            workgroup.threads,
            limits.max_compute_invocations_per_workgroup,
        ),
        (
            "max_compute_workgroup_storage_size",
            workgroup.bytes,
            limits.max_compute_workgroup_storage_size,
        ),
    ] {
        within(|| what.to_owned(), limit, asked, allowed)?;
    }
    Ok(())
}

/// The shape of a product's workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProductTile {
    /// Threads along the result's rows.
    m_threads: usize,
    /// Threads along the result's columns.
    n_threads: usize,
    /// Rows of a thread, four each: 2 or 4.
    m_quads: usize,
    /// Columns of a thread, four each: 1, 2 or 4.
    n_quads: usize,
    /// Of k that the workgroup's memory holds, or `None`: threads read for themselves.
    staged: Option<usize>,
}

impl ProductTile {
    /// For an m × n × k product. Narrow results take narrow tiles, and short sums short slices, so
    /// that little is multiplied in vain.
    pub fn choose([m, n, k]: [usize; 3], caps: &DeviceCaps) -> Self {
        if let Some(large) = Self::large([m, n, k], caps) {
            return large;
        }
        let (m_threads, n_threads, n_quads, depth) = match (m, n) {
            (..=64, ..=4) => (8, 1, 1, 8),
            (..=8, _) => (1, 32, 2, 8),
            (_, ..=4) => (32, 1, 1, 8),
            (_, ..=16) => (32, 2, 2, 8),
            // Where a processor computes, a load costs as much as its arithmetic, from the
            // workgroup's memory as from any other: there larger tiles pay, and staging does not.
            (65.., _) if caps.software => {
                return Self { m_threads: 8, n_threads: 8, m_quads: 4, n_quads: 4, staged: None };
            }
            _ => (8, 8, 2, 16),
        };
        let staged = Some(if k <= 4 { 4 } else { depth });
        Self { m_threads, n_threads, m_quads: 2, n_quads, staged }
    }

    /// Tiles of 128 × 128 halve what is read from memory. They are for GPUs whose workgroups can
    /// hold them, and for results that give each of its parts some.
    fn large([m, n, k]: [usize; 3], caps: &DeviceCaps) -> Option<Self> {
        let tile = |depth| Self {
            m_threads: 16,
            n_threads: 16,
            m_quads: 2,
            n_quads: 2,
            staged: Some(depth),
        };
        let [x, y] = tile(1).groups(m, n);
        if caps.software || m.min(n) <= 64 || x * y < LARGE_TILES {
            return None;
        }
        let depths: &[usize] = if k <= 4 { &[4] } else { &[16, 8] };
        depths.iter().map(|&depth| tile(depth)).find(|tile| tile.allow(caps).is_ok())
    }

    fn allow(&self, caps: &DeviceCaps) -> Result<()> {
        allow("a product's workgroup", &MATMUL, self.constants().as_u32s(), caps)
    }

    pub fn rows(&self) -> usize {
        4 * self.m_quads * self.m_threads
    }

    pub fn columns(&self) -> usize {
        4 * self.n_quads * self.n_threads
    }

    /// Workgroups along x and y that make m × n results.
    pub fn groups(&self, m: usize, n: usize) -> [u64; 2] {
        [n.div_ceil(self.columns()) as u64, m.div_ceil(self.rows()) as u64]
    }

    /// Of k that the kernel walks over at once.
    pub fn depth(&self) -> usize {
        self.staged.unwrap_or(1)
    }

    /// Iterations of a thread's loops for `k` of a sum. A slice: its k, what a thread stages of it,
    /// one of its own. In the end the blocks, one after another.
    pub fn iterations(&self, k: usize) -> usize {
        let staging = if self.staged.is_some() { 2 * self.depth() + 2 } else { 0 };
        let slice = self.depth() + staging + 1;
        k.div_ceil(self.depth()) * slice + self.m_quads * self.n_quads * 17
    }

    /// [`MATMUL`](crate::kernels::MATMUL)'s constants that lay out its threads; the others are 0.
    pub fn constants(&self) -> MatmulConstants {
        MatmulConstants {
            m_threads: self.m_threads as u32,
            n_threads: self.n_threads as u32,
            m_quads: self.m_quads as u32,
            n_quads: self.n_quads as u32,
            depth: self.depth() as u32,
            staged: u32::from(self.staged.is_some()),
            ..MatmulConstants::default()
        }
    }
}

#[cfg(test)]
mod tests;
