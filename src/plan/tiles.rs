//! The choice of the kernel for a product or a recurrence, and the layout of its work over the
//! threads of a workgroup: [`ProductTile`] for products, [`RecurrenceKernel`] for the recurrence.
//!
//! # Kernel families
//!
//! The recurrence has three families of kernels, each with its own tile type. [`StepTile`]: one step
//! per dispatch, spread over the whole device. [`SequenceTile`]: many steps per dispatch; each
//! workgroup takes a few rows through them. [`PersistentTile`]: the same with the weights in
//! registers. Only [`RecurrenceKernels::choose`] chooses between them, from the configuration, the
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
    BACKWARD, BACKWARD_SCALAR, BLOCKS_THREADS, FORWARD, FORWARD_SCALAR, Kernel, MATMUL,
    MATMUL_BLOCKS, MATMUL_BLOCKS_SCALAR, MAX_BLOCKS, MatmulConstants, PERSISTENT_BACKWARD,
    PERSISTENT_BACKWARD_SCALAR, PERSISTENT_FORWARD, PERSISTENT_FORWARD_SCALAR, PersistentConstants,
    StepConstants,
};
use crate::spec::config::{GruConfig, Reset};
use crate::spec::options::Recurrence;

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

/// The number of large tiles of a product that occupies a whole large GPU.
const LARGE_TILES: u64 = 96;

/// The kernel of one pass through the recurrence: its family, and the family's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecurrenceKernel {
    Step(StepTile),
    Sequence(SequenceTile),
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
        let step = |pass| Ok(RecurrenceKernel::Step(StepTile::new(config, batch, pass, caps)));
        let sequence =
            |pass| SequenceTile::new(config, batch, pass, caps).map(RecurrenceKernel::Sequence);
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
            Self::Step(_) | Self::Sequence(_) => kernel_of(pass, hidden),
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
        let tile = match self {
            Self::Step(tile) => tile.constants(),
            Self::Sequence(tile) => tile.constants(),
            Self::Persistent(tile) => {
                let tile = tile.constants();
                let constants = PersistentConstants { reset_before, extras, ..tile };
                return constants.as_u32s().to_vec();
            }
        };
        let constants = StepConstants { gates_rz, gate_n, reset_before, extras, ..tile };
        constants.as_u32s().to_vec()
    }

    /// Returns the batch rows of a workgroup.
    pub fn rows(self) -> usize {
        match self {
            Self::Step(StepTile { rows, .. })
            | Self::Sequence(SequenceTile { rows, .. })
            | Self::Persistent(PersistentTile { rows, .. }) => rows,
        }
    }

    /// Returns the hidden units of a workgroup.
    pub fn units(self) -> usize {
        match self {
            Self::Step(StepTile { unit_quads, .. })
            | Self::Sequence(SequenceTile { unit_quads, .. })
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
        let tile = match self {
            Self::Step(tile) => tile.constants(),
            Self::Sequence(tile) => tile.constants(),
            Self::Persistent(tile) => return tile.iterations(draws, count),
        };
        staged_iterations(tile, pass, hidden, gates, draws, count)
    }
}

/// [`RecurrenceKernel::iterations`] of the kernels that stage operands.
fn staged_iterations(
    tile: StepConstants,
    pass: Pass,
    hidden: usize,
    gates: usize,
    draws: usize,
    count: usize,
) -> u64 {
    let StepConstants { unit_quads, split_k, rows, depth_quads, resident, .. } = tile;
    let [unit_quads, split_k, rows, depth_quads] =
        [unit_quads, split_k, rows, depth_quads].map(|n| n as usize);
    let quads = hidden.div_ceil(4);
    let depth = match pass {
        Pass::Forward => quads,
        Pass::Backward => gates * quads,
    };
    let threads = unit_quads * split_k;
    // Each quad in a loop of its own four elements.
    let staged = 6 * (depth_quads * rows).div_ceil(threads) + 1;
    let slices = depth.div_ceil(depth_quads);
    // At most two passes, each with its slices, its quads along k, the items that add up the lanes'
    // sums of each product, and their draws; plus the gates' operands.
    let items = (4 * unit_quads * rows).div_ceil(threads);
    let stored = if resident == 1 { 3 * (2 + items) } else { 0 };
    let finish = items * (1 + draws) + gates * (1 + items * (split_k + 1)) + stored;
    let staging = if resident == 1 { 0 } else { staged };
    let multiply = slices * (1 + staging) + depth.div_ceil(split_k) + slices;
    let step = 1 + 2 * (multiply + finish) + 2;
    (step * count + 2 * staged) as u64
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

/// The kernel of a product, and the layout of its workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProductTile {
    Staged(StagedTile),
    Blocks(BlocksTile),
}

/// The tile of [`MATMUL`]: operands are staged in workgroup memory. A thread computes two quads of
/// rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StagedTile {
    /// Threads along the result's rows.
    m_threads: usize,
    /// Threads along the result's columns.
    n_threads: usize,
    /// Quads of columns per thread: 1 or 2.
    n_quads: usize,
    /// Elements along k in workgroup memory.
    depth: usize,
}

/// The tile of [`MATMUL_BLOCKS`]: a thread computes a square of results. How the threads lie is an
/// argument of the kernel, so products of all shapes with one side share a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlocksTile {
    /// Threads along the result's columns.
    n_threads: usize,
    /// The rows and columns of the result that a thread computes: 4 or 8.
    side: usize,
}

impl ProductTile {
    /// Chooses the kernel and the tile of an m × n × k product, in a plan whose forward pass has
    /// `plan_flops`. On a software adapter all products of a plan have one side, because each is
    /// compiled. Inference and training of a shape share it.
    pub fn choose([m, n, k]: [usize; 3], plan_flops: u64, caps: &DeviceCaps) -> Self {
        match caps.software {
            true => {
                let side = if plan_flops < caps.large_tile_flops { 4 } else { 8 };
                Self::Blocks(BlocksTile::choose(m, n, side))
            }
            false => Self::Staged(StagedTile::choose([m, n, k], caps)),
        }
    }

    /// Returns the kernel. `aligned` is true if the rows of both operands start at whole quads.
    pub fn kernel(&self, aligned: bool) -> &'static Kernel {
        match (self, aligned) {
            (Self::Staged(_), _) => &MATMUL,
            (Self::Blocks(_), true) => &MATMUL_BLOCKS,
            (Self::Blocks(_), false) => &MATMUL_BLOCKS_SCALAR,
        }
    }

    /// Returns the kernel's override constants.
    pub fn constants(&self, runs: bool) -> Vec<u32> {
        match self {
            Self::Staged(tile) => tile.constants(runs).as_u32s().to_vec(),
            Self::Blocks(tile) => vec![u32::from(runs), tile.side as u32],
        }
    }

    /// Returns the threads along the result's columns.
    pub fn n_threads(&self) -> usize {
        match *self {
            Self::Staged(StagedTile { n_threads, .. })
            | Self::Blocks(BlocksTile { n_threads, .. }) => n_threads,
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Self::Staged(tile) => 8 * tile.m_threads,
            Self::Blocks(tile) => tile.side * BLOCKS_THREADS / tile.n_threads,
        }
    }

    pub fn columns(&self) -> usize {
        match self {
            Self::Staged(tile) => 4 * tile.n_quads * tile.n_threads,
            Self::Blocks(tile) => tile.side * tile.n_threads,
        }
    }

    /// Returns the workgroups along x and y for m × n results.
    pub fn groups(&self, m: usize, n: usize) -> [u64; 2] {
        [n.div_ceil(self.columns()) as u64, m.div_ceil(self.rows()) as u64]
    }

    /// Returns the elements along k that the kernel processes at once.
    pub fn depth(&self) -> usize {
        match self {
            Self::Staged(tile) => tile.depth,
            Self::Blocks(_) => 4,
        }
    }

    /// Returns the iterations of a thread's loops for a sum of length `k`.
    pub fn iterations(&self, k: usize) -> usize {
        let slices = k.div_ceil(self.depth());
        match self {
            // Per slice: its k, the thread's staged elements, and the slice itself. Finally the
            // blocks, one after another.
            Self::Staged(tile) => slices * (3 * tile.depth + 3) + 2 * tile.n_quads * 17,
            Self::Blocks(tile) => slices + (tile.side + 1) * tile.side,
        }
    }
}

impl StagedTile {
    /// Chooses the tile. Narrow results get narrow tiles, and short sums short slices, so that
    /// little padding is multiplied.
    fn choose([m, n, k]: [usize; 3], caps: &DeviceCaps) -> Self {
        if let Some(large) = Self::large([m, n, k], caps) {
            return large;
        }
        let (m_threads, n_threads, n_quads, depth) = match (m, n) {
            (..=64, ..=4) => (8, 1, 1, 8),
            (..=8, _) => (1, 32, 2, 8),
            (_, ..=4) => (32, 1, 1, 8),
            (_, ..=16) => (32, 2, 2, 8),
            _ => (8, 8, 2, 16),
        };
        Self { m_threads, n_threads, n_quads, depth: if k <= 4 { 4 } else { depth } }
    }

    /// Tiles of 128 × 128 halve the reads from memory. They are for GPUs whose workgroups can hold
    /// them, and for results with enough tiles to occupy such a GPU.
    fn large([m, n, k]: [usize; 3], caps: &DeviceCaps) -> Option<Self> {
        let tile = |depth| Self { m_threads: 16, n_threads: 16, n_quads: 2, depth };
        let [x, y] = ProductTile::Staged(tile(1)).groups(m, n);
        if m.min(n) <= 64 || x * y < LARGE_TILES {
            return None;
        }
        let depths: &[usize] = if k <= 4 { &[4] } else { &[16, 8] };
        depths.iter().map(|&depth| tile(depth)).find(|tile| tile.allow(caps).is_ok())
    }

    fn allow(&self, caps: &DeviceCaps) -> Result<()> {
        allow("a product's workgroup", &MATMUL, self.constants(false).as_u32s(), caps)
    }

    fn constants(&self, runs: bool) -> MatmulConstants {
        MatmulConstants {
            runs: u32::from(runs),
            m_threads: self.m_threads as u32,
            n_threads: self.n_threads as u32,
            n_quads: self.n_quads as u32,
            depth: self.depth as u32,
        }
    }
}

impl BlocksTile {
    /// Chooses the tile with the least padding; of several, the one closest to a square.
    fn choose(m: usize, n: usize, side: usize) -> Self {
        let tiles = [4, 8, 2, 16, 1].map(|n_threads| Self { n_threads, side });
        let groups = |tile: &Self| ProductTile::Blocks(*tile).groups(m, n).iter().product::<u64>();
        tiles.into_iter().min_by_key(groups).expect("five tiles")
    }
}

#[cfg(test)]
mod tests;
