//! The choice of the kernel for a product or a recurrence, and the layout of its work over the
//! threads of a workgroup: [`ProductTile`] for products (`tiles/products.rs`), [`RecurrenceKernel`]
//! for the recurrence.
//!
//! # Kernel families
//!
//! The recurrence has two families of kernels, each with its own tile type. [`StepTile`]: one step
//! per dispatch, spread over the whole device. [`SequenceTile`]: many steps per dispatch; each
//! workgroup takes a few rows through them. Only [`RecurrenceKernels::choose`] chooses between
//! them, from the configuration, the batch and [`DeviceCaps`]; `RunOptions::recurrence` (`gru bench
//! --kernel`) can force one. A new family (for example with the weights in registers) needs:
//!
//! 1. a WGSL file in `shaders/`, or a variant of one;
//! 2. a row in `kernels/recurrence.rs`, or a constant of an existing one;
//! 3. a tile type here, with an arm in [`RecurrenceKernel`], whose methods are everything that the
//!    stages use;
//! 4. a line in the rule, [`RecurrenceKernels::choose`];
//! 5. a value of [`Recurrence`], also in [`Recurrence::ALL`], so that it can be forced, measured
//!    and checked: `check/steps.rs` runs all of them against the reference;
//! 6. its loop over the steps: the two `match`es of `plan/steps.rs`, unless it loops like another
//!    family;
//! 7. the wgpu features that it needs, in `FEATURES` of `gpu/context.rs`: a device is opened with
//!    no others, so until then [`DeviceCaps`] reports them as missing on any adapter.
//!
//! `tiles/tests.rs` pins the choices of the rules.

use super::limits::within;
use super::{DeviceCaps, Pass};
use crate::error::{Error, Result};
use crate::kernels::{BACKWARD, BACKWARD_SCALAR, FORWARD, FORWARD_SCALAR, Kernel, StepConstants};
use crate::spec::config::{GruConfig, Reset};
use crate::spec::options::Recurrence;

mod products;

pub(super) use products::ProductTile;

/// The largest H for which a workgroup runs the whole sequence, unless it is forced. For larger H,
/// each workgroup reads the weights at every step through one multiprocessor's cache, which is
/// slower than spreading each step over the device.
const SEQUENCE_HIDDEN: usize = 128;

/// The same limit for large batches ([`MANY_ROWS`]), which occupy the whole device, and for
/// software adapters, whose processors share one cache.
const SEQUENCE_HIDDEN_OF_MANY: usize = 256;

/// The number of rows from which a batch counts as large.
const MANY_ROWS: usize = 128;

/// Quads along k that a workgroup stages at once if it runs a single step.
const STAGED_QUADS: usize = 32;

/// Quads of units of a workgroup that runs a single step on a software adapter: few, so that every
/// core has some.
const STEP_UNIT_QUADS: usize = 8;

/// The kernel of one pass through the recurrence: its family, and the family's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecurrenceKernel {
    Step(StepTile),
    Sequence(SequenceTile),
}

/// A workgroup computes some units of its rows, for one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepTile {
    /// Threads along the units, one quad of units each.
    unit_quads: usize,
    /// Split-K lanes: threads along k.
    split_k: usize,
    /// Batch rows per thread.
    rows: usize,
    /// Quads along k that the workgroup stages at once.
    staged_quads: usize,
    /// Partial sums per unit and row that workgroup memory holds.
    lane_sums: usize,
    /// Sums per unit and row that workgroup memory holds.
    accumulators: usize,
}

/// A workgroup computes all units of its rows, for any number of steps. The operands of the weights
/// stay in workgroup memory from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SequenceTile {
    /// Threads along the units, one quad of units each: all units, rounded up by
    /// [`padded_unit_quads`].
    unit_quads: usize,
    /// Split-K lanes: threads along k.
    split_k: usize,
    /// Batch rows per thread.
    rows: usize,
    /// Quads along k: all of it.
    operand_quads: usize,
    /// Partial sums per unit and row that workgroup memory holds.
    lane_sums: usize,
    /// Sums per unit and row that workgroup memory holds.
    accumulators: usize,
}

/// The kernels of the two passes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecurrenceKernels {
    pub forward: RecurrenceKernel,
    pub backward: RecurrenceKernel,
}

impl RecurrenceKernels {
    /// Chooses the kernels: whole sequences if H is small ([`sequence_pays`]) and workgroup memory
    /// suffices in both passes, or if `recurrence` forces them; otherwise one step per dispatch.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if whole sequences are forced and do not fit.
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

/// Returns true if whole sequences are faster than one dispatch per step.
fn sequence_pays(config: &GruConfig, batch: usize, caps: &DeviceCaps) -> bool {
    let many = caps.software || batch >= MANY_ROWS;
    let fits = config.hidden_size <= if many { SEQUENCE_HIDDEN_OF_MANY } else { SEQUENCE_HIDDEN };
    fits && !(caps.software && cores_pay(config, batch, caps))
}

/// Returns the batch rows of a workgroup on a software adapter, if a row is spread over `units`
/// workgroups: the number with the least work for the busiest core. With more rows a weight does
/// more work for its load; with fewer there are more workgroups.
fn software_rows(config: &GruConfig, batch: usize, units: usize, caps: &DeviceCaps) -> usize {
    let most = [8, 4, 1].into_iter();
    most.min_by_key(|&rows| core_work(config, batch, rows, units, caps)).expect("three numbers")
}

/// Returns the work of the busiest core in a step, in FLOPs that take as long. Most of the time goes
/// to loads, which the rows of a workgroup share: eight rows take 7/4 of the time of four, and one
/// row takes half.
fn core_work(
    config: &GruConfig,
    batch: usize,
    rows: usize,
    units: usize,
    caps: &DeviceCaps,
) -> u64 {
    let row_cost = match rows {
        1 => 2,
        4 => 4,
        _ => 7,
    };
    let [batch, rows, units, hidden, directions, cores] =
        [batch, rows, units, config.hidden_size, config.direction.count(), caps.usable_cores()]
            .map(|n| n as u64);
    let groups = directions * batch.div_ceil(rows) * units;
    let group_work = 2 * 3 * row_cost * hidden * hidden.div_ceil(units);
    groups.div_ceil(cores).saturating_mul(group_work)
}

/// Returns true if, on a software adapter, spreading the units of a step over the cores gains more
/// than a step's dispatches cost. With many rows, whole sequences occupy the cores by themselves.
fn cores_pay(config: &GruConfig, batch: usize, caps: &DeviceCaps) -> bool {
    let dispatches = match config.reset {
        Reset::After => 1,
        Reset::Before => 2,
    };
    let work = |units: usize| {
        let rows = software_rows(config, batch, units, caps);
        core_work(config, batch, rows, units, caps)
    };
    let tiles = config.hidden_size.div_ceil(4 * STEP_UNIT_QUADS);
    let cost = (caps.dispatch_cost as u64).saturating_mul(dispatches);
    work(1).saturating_sub(work(tiles)) > cost
}

impl RecurrenceKernel {
    /// Returns the WGSL kernel of a pass for H hidden units.
    pub fn kernel(self, pass: Pass, hidden: usize) -> &'static Kernel {
        match self {
            Self::Step(_) | Self::Sequence(_) => kernel_of(pass, hidden),
        }
    }

    /// Returns the kernel's constants that lay out its threads; the others are 0.
    pub fn constants(self) -> StepConstants {
        match self {
            Self::Step(tile) => tile.constants(),
            Self::Sequence(tile) => tile.constants(),
        }
    }

    /// Returns the batch rows of a workgroup.
    pub fn rows(self) -> usize {
        match self {
            Self::Step(StepTile { rows, .. }) | Self::Sequence(SequenceTile { rows, .. }) => rows,
        }
    }

    /// Returns the hidden units of a workgroup.
    pub fn units(self) -> usize {
        match self {
            Self::Step(StepTile { unit_quads, .. })
            | Self::Sequence(SequenceTile { unit_quads, .. }) => 4 * unit_quads,
        }
    }
}

impl StepTile {
    /// Chooses the tile. Each weight is read only once per step, so many split-K lanes read weights
    /// in parallel.
    fn new(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Self {
        let make = |unit_quads, split_k, rows, staged_quads| Self {
            unit_quads,
            split_k,
            rows,
            staged_quads,
            lane_sums: lane_sums(split_k, config, pass),
            accumulators: match pass {
                Pass::Forward if split_k > 1 => products(config),
                Pass::Forward | Pass::Backward => 1,
            },
        };
        if caps.software {
            // A software adapter runs a thread in a SIMD lane, and adding the sums of split-K lanes
            // costs loads. With more rows per weight, each load does more work.
            let units = config.hidden_size.div_ceil(4 * STEP_UNIT_QUADS);
            return make(
                STEP_UNIT_QUADS,
                1,
                software_rows(config, batch, units, caps),
                STAGED_QUADS,
            );
        }
        let best = match pass {
            Pass::Forward => (8, 16, STAGED_QUADS),
            Pass::Backward => (8, 32, 2 * STAGED_QUADS),
        };
        let [a, b, c, d] = [(8, 16), (4, 16), (4, 8), (4, 4)].map(|(u, l)| (u, l, STAGED_QUADS));
        let tiles = [best, a, b, c, d]
            .map(|(unit_quads, split_k, staged)| make(unit_quads, split_k, 4, staged));
        let what = "a workgroup of the step kernel";
        let fits = |tile: &Self| {
            allow(what, kernel_of(pass, config.hidden_size), tile.constants().as_u32s(), caps)
                .is_ok()
        };
        // If none fits, the plan's check reports it.
        tiles.into_iter().find(fits).unwrap_or(tiles[tiles.len() - 1])
    }

    fn constants(&self) -> StepConstants {
        StepConstants {
            unit_quads: self.unit_quads as u32,
            split_k: self.split_k as u32,
            rows: self.rows as u32,
            depth_quads: self.staged_quads as u32,
            lane_sums: self.lane_sums as u32,
            accumulators: self.accumulators as u32,
            resident: 0,
            ..StepConstants::default()
        }
    }
}

impl SequenceTile {
    /// Chooses the tile.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if all units of four rows do not fit a workgroup.
    fn new(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Result<Self> {
        let unit_quads = padded_unit_quads(config.hidden_size, caps);
        let operand_quads = depth_quads(unit_quads, pass);
        let make = |split_k, rows| Self {
            unit_quads,
            split_k,
            rows,
            operand_quads,
            lane_sums: lane_sums(split_k, config, pass),
            accumulators: match pass {
                Pass::Forward if split_k > 1 => products(config),
                // The operands of the next step.
                Pass::Forward => 1,
                // Workgroup memory also holds the gates' operands for the next step.
                Pass::Backward => 3,
            },
        };
        // On a GPU: many small workgroups, in which each lane has enough of k to pay for the sums.
        let sizes = match (caps.software, pass) {
            (true, _) => vec![(1, software_rows(config, batch, 1, caps)), (1, 4)],
            (false, Pass::Forward) => vec![(8, 4), (4, 4), (2, 4), (1, 4)],
            (false, Pass::Backward) => vec![(16, 4), (8, 4), (4, 4), (2, 4), (1, 4)],
        };
        let what = "a workgroup of the sequence kernel (Recurrence::Auto does not require it)";
        let fits = |tile: &Self| {
            allow(what, kernel_of(pass, config.hidden_size), tile.constants().as_u32s(), caps)
        };
        let tiles = sizes.into_iter().map(|(split_k, rows)| make(split_k, rows));
        let mut worthwhile =
            tiles.filter(|tile| tile.split_k == 1 || operand_quads >= 2 * tile.split_k);
        match worthwhile.find(|tile| fits(tile).is_ok()) {
            Some(tile) => Ok(tile),
            None => fits(&make(1, 4)).map(|()| make(1, 4)),
        }
    }

    fn constants(&self) -> StepConstants {
        StepConstants {
            unit_quads: self.unit_quads as u32,
            split_k: self.split_k as u32,
            rows: self.rows as u32,
            depth_quads: self.operand_quads as u32,
            lane_sums: self.lane_sums as u32,
            accumulators: self.accumulators as u32,
            resident: 1,
            ..StepConstants::default()
        }
    }
}

/// Returns the quads of units that a workgroup of whole sequences has threads for. They are rounded
/// up, so that models of similar sizes share their pipelines: to whole SIMD vectors on a software
/// adapter, which computes whole vectors in any case; elsewhere to a quarter of a subgroup.
fn padded_unit_quads(hidden: usize, caps: &DeviceCaps) -> usize {
    hidden.div_ceil(4).next_multiple_of(if caps.software { caps.usable_lanes() } else { 4 })
}

/// Both families use one kernel; the constant RESIDENT selects the family.
fn kernel_of(pass: Pass, hidden: usize) -> &'static Kernel {
    match (pass, hidden.is_multiple_of(4)) {
        (Pass::Forward, true) => &FORWARD,
        (Pass::Forward, false) => &FORWARD_SCALAR,
        (Pass::Backward, true) => &BACKWARD,
        (Pass::Backward, false) => &BACKWARD_SCALAR,
    }
}

/// Returns the quads along k: H forward; backward the H of each gate, padded to whole quads.
fn depth_quads(unit_quads: usize, pass: Pass) -> usize {
    match pass {
        Pass::Forward => unit_quads,
        Pass::Backward => 3 * unit_quads,
    }
}

/// Returns the number of a unit's products with the state that the forward pass holds at the same
/// time: one per gate if no gate waits for another.
fn products(config: &GruConfig) -> usize {
    match config.reset {
        Reset::After => 3,
        Reset::Before => 2,
    }
}

/// Returns the partial sums per unit and row in workgroup memory: one per split-K lane, or without
/// such lanes one per product.
fn lane_sums(split_k: usize, config: &GruConfig, pass: Pass) -> usize {
    match (split_k, pass) {
        (1, Pass::Forward) => products(config),
        (1, Pass::Backward) => 1,
        (lanes, _) => lanes,
    }
}

/// Checks that a device can run the workgroups of `kernel` with these constants.
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

#[cfg(test)]
mod tests;
