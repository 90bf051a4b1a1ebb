//! The choice of the kernel for a product or a recurrence, and the layout of its work over the
//! threads of a workgroup: [`ProductTile`] for products (`tiles/products.rs`), [`RecurrenceKernel`]
//! for the recurrence.
//!
//! # Kernel families
//!
//! The recurrence has three families of kernels. Step: one step per dispatch, spread over the whole
//! device. Sequence: many steps per dispatch; each workgroup takes a few rows through them. Both have
//! a [`StepTile`]. Persistent: as sequence, with the weights in registers, and a [`PersistentTile`].
//! Only [`RecurrenceKernels::choose`] chooses between them, from the configuration, the
//! batch and [`DeviceCaps`]; `RunOptions::recurrence` (`gru bench --kernel`) can force one. A new
//! family needs:
//!
//! 1. a WGSL file in `shaders/`, or a variant of one;
//! 2. a row in `kernels/recurrence.rs`, or a constant of an existing one;
//! 3. a tile type here, with an arm in [`RecurrenceKernel`], whose methods are everything that the
//!    stages use;
//! 4. a line in the rule, [`RecurrenceKernels::choose`];
//! 5. a value of [`Recurrence`], also in [`Recurrence::ALL`], so that it can be forced, measured
//!    and checked: `check/steps.rs` runs all of them against the reference;
//! 6. its loop over the steps: the two `match`es of `plan/steps.rs`, unless a dispatch runs whole
//!    sequences;
//! 7. the wgpu features that it needs, in `FEATURES` of `gpu/context.rs`: a device is opened with
//!    no others, so until then [`DeviceCaps`] reports them as missing on any adapter.
//!
//! `tiles/tests.rs` pins the choices of the rules.

use super::limits::within;
use super::{DeviceCaps, Pass};
use crate::error::Result;
use crate::kernels::{
    BACKWARD, BACKWARD_LANES, BACKWARD_LANES_SCALAR, BACKWARD_SCALAR, FORWARD, FORWARD_LANES,
    FORWARD_LANES_SCALAR, FORWARD_SCALAR, Kernel, MAX_BLOCKS, PERSISTENT_BACKWARD,
    PERSISTENT_BACKWARD_SCALAR, PERSISTENT_FORWARD, PERSISTENT_FORWARD_SCALAR, PersistentConstants,
    StepConstants,
};
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

/// The most threads of a workgroup of the persistent kernels: three warps for each of a
/// multiprocessor's four schedulers, with 128 weights and 40 other registers a thread in a register
/// file of 65,536.
const PERSISTENT_THREADS: u64 = 384;

/// The number of steps that repays loading the weights into registers.
const PERSISTENT_STEPS: usize = 8;

/// Quads along k that a workgroup stages at once if it runs a single step.
const STAGED_QUADS: usize = 32;

/// Quads of units of a workgroup that runs a single step on a software adapter: few, so that every
/// core has some.
const STEP_UNIT_QUADS: usize = 8;

/// The threads of a workgroup of a dispatch per step on a GPU, the first that fit.
const STEP_THREADS: [usize; 3] = [256, 128, 64];

/// The workgroups that occupy a large GPU, one for each multiprocessor.
const LARGE_WORKGROUPS: usize = 128;

/// The kernel of one pass through the recurrence: its family, and the family's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecurrenceKernel {
    Step(StepTile),
    Sequence(StepTile),
    Persistent(PersistentTile),
}

/// The variant of a recurrence kernel that a dispatch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepVariant {
    /// The dispatch computes r and z.
    pub rz: bool,
    /// The dispatch computes n.
    pub n: bool,
    /// n needs every r first.
    pub reset_before: bool,
    /// Other activations than σ and tanh, dropout or zoneout.
    pub extras: bool,
}

/// The threads and the workgroup memory of the kernels that load the weights at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepTile {
    /// Threads along the units, one quad of units each.
    unit_quads: usize,
    /// Split-K lanes: threads along k.
    split_k: usize,
    /// Threads along the batch rows.
    row_groups: usize,
    /// Batch rows per thread.
    rows: usize,
    /// Quads along k that workgroup memory holds.
    depth_quads: usize,
    /// The products that a pass has.
    products: usize,
    /// A workgroup computes all units of its rows, for any number of steps, and workgroup memory
    /// holds all of k. Otherwise it computes some units, for one step.
    resident: bool,
}

/// A workgroup computes all units of its rows, for any number of steps. Its threads hold the weights
/// in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PersistentTile {
    /// Quads of units: all units, rounded up by [`padded_unit_quads`].
    unit_quads: usize,
    /// Threads along the k of a gate.
    parts: usize,
    /// Blocks of 4 × 4 weights of a thread.
    blocks: usize,
    /// Batch rows of a workgroup.
    rows: usize,
}

/// The kernels of the two passes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecurrenceKernels {
    pub forward: RecurrenceKernel,
    pub backward: RecurrenceKernel,
}

impl RecurrenceKernels {
    /// Chooses the kernels: the weights in registers if they fit ([`persistent_pays`]); otherwise
    /// whole sequences if H is small ([`sequence_pays`]) and workgroup memory suffices in both
    /// passes; otherwise one step per dispatch. `recurrence` can force a family.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if the family that is forced does not fit.
    pub fn choose(
        config: &GruConfig,
        [steps, batch]: [usize; 2],
        recurrence: Recurrence,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let both = |kernel: &dyn Fn(Pass) -> Result<RecurrenceKernel>| {
            Ok(Self { forward: kernel(Pass::Forward)?, backward: kernel(Pass::Backward)? })
        };
        let step = |pass| Ok(RecurrenceKernel::Step(StepTile::of_steps(config, batch, pass, caps)));
        let sequence = |pass| {
            StepTile::of_sequences(config, batch, pass, caps).map(RecurrenceKernel::Sequence)
        };
        let persistent =
            |pass| PersistentTile::new(config, batch, pass, caps).map(RecurrenceKernel::Persistent);
        match recurrence {
            Recurrence::Step => both(&step),
            Recurrence::Sequence => both(&sequence),
            Recurrence::Persistent => both(&persistent),
            Recurrence::Auto => {
                let mut kernels: Result<Self> = both(&step);
                if sequence_pays(config, batch, caps) {
                    kernels = both(&sequence).or(kernels);
                }
                if persistent_pays(steps, caps) {
                    kernels = both(&persistent).or(kernels);
                }
                kernels
            }
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

/// Returns true if the weights in registers are faster than reading them at every step. For one row
/// they are on a software adapter, too, but their unrolled code compiles for seconds.
fn persistent_pays(steps: usize, caps: &DeviceCaps) -> bool {
    steps >= PERSISTENT_STEPS && !caps.software
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
            Self::Step(tile) | Self::Sequence(tile) => tile.kernel(pass, hidden),
            Self::Persistent(_) => persistent_kernel(pass, hidden),
        }
    }

    /// Returns true if a dispatch runs any number of steps.
    pub fn runs_sequences(self) -> bool {
        match self {
            Self::Step(_) => false,
            Self::Sequence(_) | Self::Persistent(_) => true,
        }
    }

    /// Returns the values of the kernel's override constants.
    pub fn constants(self, variant: StepVariant) -> Vec<u32> {
        let StepVariant { rz, n, reset_before, extras } = variant;
        let [gates_rz, gate_n, reset_before, extras] = [rz, n, reset_before, extras].map(u32::from);
        match self {
            Self::Step(tile) | Self::Sequence(tile) => {
                let tile = tile.constants();
                let constants = StepConstants { gates_rz, gate_n, reset_before, extras, ..tile };
                constants.as_u32s().to_vec()
            }
            Self::Persistent(tile) => {
                let tile = tile.constants();
                let constants = PersistentConstants { reset_before, extras, ..tile };
                constants.as_u32s().to_vec()
            }
        }
    }

    /// Returns the batch rows of a workgroup.
    pub fn rows(self) -> usize {
        match self {
            Self::Step(tile) | Self::Sequence(tile) => tile.rows * tile.row_groups,
            Self::Persistent(tile) => tile.rows,
        }
    }

    /// Returns the hidden units of a workgroup.
    pub fn units(self) -> usize {
        match self {
            Self::Step(StepTile { unit_quads, .. })
            | Self::Sequence(StepTile { unit_quads, .. })
            | Self::Persistent(PersistentTile { unit_quads, .. }) => 4 * unit_quads,
        }
    }

    /// Returns an upper bound on the loop iterations of one thread in `count` steps of `gates` gates
    /// with H hidden units, each of which makes `draws` iterations for an item's random draws.
    pub fn iterations(
        self,
        pass: Pass,
        hidden: usize,
        gates: usize,
        draws: usize,
        count: usize,
    ) -> u64 {
        match self {
            Self::Step(tile) | Self::Sequence(tile) => {
                tile.iterations(pass, hidden, gates, draws, count)
            }
            Self::Persistent(tile) => tile.iterations(draws, count),
        }
    }
}

impl StepTile {
    /// Makes a tile of `threads`: along the units, along k, and along the rows.
    fn new(
        [unit_quads, split_k, row_groups]: [usize; 3],
        rows: usize,
        depth_quads: usize,
        config: &GruConfig,
        pass: Pass,
    ) -> Self {
        let products = match (pass, config.reset) {
            (Pass::Backward, _) => 1,
            // One per gate if no gate waits for another.
            (Pass::Forward, Reset::After) => 3,
            (Pass::Forward, Reset::Before) => 2,
        };
        let resident = false;
        Self { unit_quads, split_k, row_groups, rows, depth_quads, products, resident }
    }

    /// Returns the kernel of a pass for H hidden units.
    fn kernel(&self, pass: Pass, hidden: usize) -> &'static Kernel {
        let lanes = self.split_k > 1 || self.row_groups > 1;
        match (pass, lanes, hidden.is_multiple_of(4)) {
            (Pass::Forward, false, true) => &FORWARD,
            (Pass::Forward, false, false) => &FORWARD_SCALAR,
            (Pass::Forward, true, true) => &FORWARD_LANES,
            (Pass::Forward, true, false) => &FORWARD_LANES_SCALAR,
            (Pass::Backward, false, true) => &BACKWARD,
            (Pass::Backward, false, false) => &BACKWARD_SCALAR,
            (Pass::Backward, true, true) => &BACKWARD_LANES,
            (Pass::Backward, true, false) => &BACKWARD_LANES_SCALAR,
        }
    }

    fn allow(&self, what: &str, pass: Pass, hidden: usize, caps: &DeviceCaps) -> Result<()> {
        allow(what, self.kernel(pass, hidden), self.constants().as_u32s(), caps)
    }

    /// Chooses the tile of a dispatch per step.
    fn of_steps(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Self {
        if caps.software {
            // A software adapter runs a thread in a SIMD lane, and adding the sums of split-K lanes
            // costs loads. With more rows per weight, each load does more work.
            let units = config.hidden_size.div_ceil(4 * STEP_UNIT_QUADS);
            let rows = software_rows(config, batch, units, caps);
            return Self::new([STEP_UNIT_QUADS, 1, 1], rows, STAGED_QUADS, config, pass);
        }
        let what = "a workgroup of the step kernel";
        let fits = |tile: &Self| tile.allow(what, pass, config.hidden_size, caps).is_ok();
        let tiles = || {
            STEP_THREADS.iter().flat_map(|&threads| {
                [STAGED_QUADS, STAGED_QUADS / 2]
                    .map(|depth| Self::spread(config, batch, pass, threads, depth))
            })
        };
        // If none fits, the plan's check reports it.
        tiles().find(fits).or_else(|| tiles().last()).expect("a list of tiles")
    }

    /// Spreads a step over a large GPU. A workgroup computes all of up to 32 rows, so that the
    /// weights are read once, of as few units as give every multiprocessor a workgroup; backward,
    /// where the operands are three times as large as the state, every second one. The other threads
    /// are split-K lanes.
    fn spread(config: &GruConfig, batch: usize, pass: Pass, threads: usize, depth: usize) -> Self {
        // Forward, a thread has the sums of three gates; backward, one sum for each unit and row.
        let rows = if pass == Pass::Backward && batch > 4 { 8 } else { 4 };
        let row_groups = batch.div_ceil(rows).next_power_of_two().min(32 / rows);
        let groups = batch.div_ceil(rows * row_groups) * config.direction.count();
        let quads = config.hidden_size.div_ceil(4);
        let workgroups = match pass {
            Pass::Forward => LARGE_WORKGROUPS,
            Pass::Backward => LARGE_WORKGROUPS / 2,
        };
        let unit_quads = (groups * quads / workgroups + 1).next_power_of_two() / 2;
        let unit_quads = unit_quads.clamp(1, 8).min(threads / row_groups);
        let split_k =
            (threads / (row_groups * unit_quads)).min(quads.div_ceil(2).next_power_of_two());
        // A thread stages at most 16 numbers.
        let depth = depth.min(split_k * unit_quads * 4 / rows).max(1);
        Self::new([unit_quads, split_k, row_groups], rows, depth, config, pass)
    }

    /// Chooses the tile of whole sequences.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if all units of four rows do not fit a workgroup.
    fn of_sequences(
        config: &GruConfig,
        batch: usize,
        pass: Pass,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let unit_quads = padded_unit_quads(config.hidden_size, caps);
        let operand_quads = depth_quads(unit_quads, pass);
        let make = |split_k, rows| {
            let tile = Self::new([unit_quads, split_k, 1], rows, operand_quads, config, pass);
            Self { resident: true, ..tile }
        };
        // On a GPU: many small workgroups, in which each lane has enough of k to pay for the sums.
        let sizes = match (caps.software, pass) {
            (true, _) => vec![(1, software_rows(config, batch, 1, caps)), (1, 4)],
            (false, Pass::Forward) => vec![(8, 4), (4, 4), (2, 4), (1, 4)],
            (false, Pass::Backward) => vec![(16, 4), (8, 4), (4, 4), (2, 4), (1, 4)],
        };
        let what = "a workgroup of the sequence kernel (Recurrence::Auto does not require it)";
        let fits = |tile: &Self| tile.allow(what, pass, config.hidden_size, caps);
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
            row_groups: self.row_groups as u32,
            rows: self.rows as u32,
            depth_quads: self.depth_quads as u32,
            products: self.products as u32,
            resident: u32::from(self.resident),
            ..StepConstants::default()
        }
    }

    /// Returns an upper bound on the loop iterations of one thread.
    fn iterations(
        &self,
        pass: Pass,
        hidden: usize,
        gates: usize,
        draws: usize,
        count: usize,
    ) -> u64 {
        let Self { unit_quads, split_k, row_groups, rows, depth_quads, .. } = *self;
        let threads = unit_quads * split_k * row_groups;
        let quads = hidden.div_ceil(4);
        // Backward, one gate after the other.
        let (loops, sums) = match pass {
            Pass::Forward => (1, gates),
            Pass::Backward => (gates, 1),
        };
        let staged = (4 * depth_quads * rows * row_groups).div_ceil(threads) + 1;
        let slices = quads.div_ceil(depth_quads);
        let staging = if self.resident { 0 } else { 2 * staged };
        let multiply = loops * (2 + staged + slices * (2 + staging) + quads.div_ceil(split_k));
        let items = (4 * unit_quads * rows * row_groups).div_ceil(threads);
        let add = if split_k > 1 { sums * (1 + items * (split_k + 1)) } else { 0 };
        // At most two passes over the gates, each with its items and their draws.
        let step = 1 + 2 * (multiply + add + items * (1 + draws) + 1);
        (step * count + 4 * staged + 5 * items) as u64
    }
}

impl PersistentTile {
    /// Chooses the tile: the fewest blocks a thread for which there are not too many threads, so
    /// that many threads share the work of a step.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if the weights do not fit the registers of a workgroup,
    /// or the device's limits.
    fn new(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Result<Self> {
        let unit_quads = padded_unit_quads(config.hidden_size, caps);
        let most_blocks = caps.thread_weights.min(16 * MAX_BLOCKS) / 16;
        let limit = caps.limits.max_compute_invocations_per_workgroup;
        let most_threads = limit.min(PERSISTENT_THREADS) as usize;
        let tile = |blocks: usize| {
            let parts = unit_quads.div_ceil(blocks);
            Self { unit_quads, parts, blocks, rows: 1 }
        };
        let one_row = (1..most_blocks)
            .map(tile)
            .find(|tile| tile.threads() <= most_threads)
            .unwrap_or(tile(most_blocks.max(1)));
        let what = "a workgroup of the persistent kernel (Recurrence::Auto does not require it)";
        within(|| what.to_owned(), "registers", one_row.threads() as u64, most_threads as u64)?;
        let allow = |tile: Self| {
            allow(
                what,
                persistent_kernel(pass, config.hidden_size),
                tile.constants().as_u32s(),
                caps,
            )
            .map(|()| tile)
        };
        // With two rows a step takes half as long again, so they pay when workgroups must wait.
        let two_rows = Self { rows: 2, ..one_row };
        let fits = two_rows.threads() == one_row.threads() && allow(two_rows).is_ok();
        allow(if batch > MANY_ROWS && fits { two_rows } else { one_row })
    }

    /// Returns the threads of a workgroup: for the weights of three gates, and for the items.
    fn threads(&self) -> usize {
        (3 * self.parts * self.unit_quads).max(4 * self.rows * self.unit_quads)
    }

    fn constants(&self) -> PersistentConstants {
        PersistentConstants {
            unit_quads: self.unit_quads as u32,
            parts: self.parts as u32,
            blocks: self.blocks as u32,
            rows: self.rows as u32,
            threads: self.threads() as u32,
            ..PersistentConstants::default()
        }
    }

    /// Returns an upper bound on the loop iterations of one thread.
    fn iterations(&self, draws: usize, count: usize) -> u64 {
        let clear = (3 * 36 * self.parts * self.rows).div_ceil(self.threads()) + 1;
        let step = 1 + 2 * (self.rows + 1) + 3 * (self.parts + 1) + 2 * draws;
        (step * count + clear) as u64
    }
}

fn persistent_kernel(pass: Pass, hidden: usize) -> &'static Kernel {
    match (pass, hidden.is_multiple_of(4)) {
        (Pass::Forward, true) => &PERSISTENT_FORWARD,
        (Pass::Forward, false) => &PERSISTENT_FORWARD_SCALAR,
        (Pass::Backward, true) => &PERSISTENT_BACKWARD,
        (Pass::Backward, false) => &PERSISTENT_BACKWARD_SCALAR,
    }
}

/// Returns the quads of units that a workgroup of whole sequences has threads for. They are rounded
/// up, so that models of similar sizes share their pipelines: to whole SIMD vectors on a software
/// adapter, which computes whole vectors in any case; elsewhere to a quarter of a subgroup.
fn padded_unit_quads(hidden: usize, caps: &DeviceCaps) -> usize {
    hidden.div_ceil(4).next_multiple_of(if caps.software { caps.usable_lanes() } else { 4 })
}

/// Returns the quads along k: H forward; backward the H of each gate, padded to whole quads.
fn depth_quads(unit_quads: usize, pass: Pass) -> usize {
    match pass {
        Pass::Forward => unit_quads,
        Pass::Backward => 3 * unit_quads,
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
