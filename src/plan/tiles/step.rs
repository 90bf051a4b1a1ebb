//! [`StepTile`]: the layout of the kernels that load the weights at every step.

use super::{LARGE_WORKGROUPS, StepVariant, allow, padded_unit_quads};
use crate::error::Result;
use crate::kernels::{
    BACKWARD, BACKWARD_LANES, BACKWARD_LANES_SCALAR, BACKWARD_SCALAR, FORWARD, FORWARD_LANES,
    FORWARD_LANES_SCALAR, FORWARD_SCALAR, Kernel, StepConstants,
};
use crate::plan::{DeviceCaps, Pass};
use crate::spec::config::{GruConfig, Reset};

/// Quads along k that a workgroup stages at once if it runs a single step.
const STAGED_QUADS: usize = 32;

/// Quads of units of a workgroup that runs a single step on a software adapter: few, so that every
/// core has some.
const STEP_UNIT_QUADS: usize = 8;

/// The threads of a workgroup of a dispatch per step on a GPU. The first that fit are taken, with
/// the first of the rows and of the quads along k below.
const STEP_THREADS: [usize; 3] = [256, 128, 64];

/// The most batch rows of such a workgroup.
const STEP_ROWS: [usize; 4] = [32, 16, 8, 4];

/// The most quads along k that it holds at once.
const STEP_DEPTHS: [usize; 3] = [STAGED_QUADS, STAGED_QUADS / 2, STAGED_QUADS / 4];

/// The threads and the workgroup memory of the kernels that load the weights at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) struct StepTile {
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

    /// Returns the batch rows of a workgroup.
    pub fn group_rows(&self) -> usize {
        self.rows * self.row_groups
    }

    /// Returns the hidden units of a workgroup.
    pub fn units(&self) -> usize {
        4 * self.unit_quads
    }

    /// Returns the kernel of a pass for H hidden units.
    pub fn kernel(&self, pass: Pass, hidden: usize) -> &'static Kernel {
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
        allow(
            what,
            self.kernel(pass, hidden),
            self.constants(StepVariant::default()).as_u32s(),
            caps,
        )
    }

    /// Chooses the tile of a dispatch per step.
    pub fn of_steps(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Self {
        if caps.software {
            // A software adapter runs a thread in a SIMD lane, and adding the sums of split-K lanes
            // costs loads. With more rows per weight, each load does more work.
            let units = config.hidden_size.div_ceil(4 * STEP_UNIT_QUADS);
            let rows = software_rows(config, batch, units, caps);
            return Self::new([STEP_UNIT_QUADS, 1, 1], rows, STAGED_QUADS, config, pass);
        }
        let what = "a workgroup of the step kernel";
        let fits = |tile: &Self| tile.allow(what, pass, config.hidden_size, caps).is_ok();
        // Forward, a thread has the sums of three gates; backward, one sum for each unit and row.
        let most_thread_rows: &[usize] = match pass {
            Pass::Forward => &[4],
            Pass::Backward => &[8, 4],
        };
        let tiles = || {
            STEP_THREADS.into_iter().flat_map(|threads| {
                STEP_ROWS.into_iter().flat_map(move |most_rows| {
                    most_thread_rows.iter().flat_map(move |&thread_rows| {
                        STEP_DEPTHS.map(|depth| {
                            let rows = [most_rows, thread_rows];
                            Self::spread(config, batch, pass, threads, rows, depth)
                        })
                    })
                })
            })
        };
        // If none fits, the plan's check reports it.
        tiles().find(fits).or_else(|| tiles().last()).expect("a list of tiles")
    }

    /// Spreads a step over a large GPU. A workgroup computes all of up to `most_rows` rows, which
    /// share a read of the weights, of as few units as give every multiprocessor a workgroup, with
    /// up to `thread_rows` rows per thread. The other threads are split-K lanes.
    fn spread(
        config: &GruConfig,
        batch: usize,
        pass: Pass,
        threads: usize,
        [most_rows, thread_rows]: [usize; 2],
        depth: usize,
    ) -> Self {
        let rows = if batch.min(most_rows) > 4 { thread_rows } else { 4 };
        let row_groups = batch.div_ceil(rows).next_power_of_two().min(most_rows / rows);
        // Not times the directions: models of one and of two directions share their pipelines.
        let groups = batch.div_ceil(rows * row_groups);
        let quads = config.hidden_size.div_ceil(4);
        let workgroups = groups.saturating_mul(quads) / LARGE_WORKGROUPS;
        let unit_quads = (workgroups.clamp(1, 8) + 1).next_power_of_two() / 2;
        let unit_quads = unit_quads.min(threads / row_groups);
        let split_k =
            (threads / (row_groups * unit_quads)).min(quads.div_ceil(2).next_power_of_two().max(2));
        // A thread stages at least one number and at most 16.
        let threads = split_k * unit_quads;
        let depth = depth.clamp(threads.div_ceil(4 * rows), (threads * 4 / rows).max(1));
        Self::new([unit_quads, split_k, row_groups], rows, depth, config, pass)
    }

    /// Chooses the tile of whole sequences.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if all units of four rows do not fit a workgroup.
    pub fn of_sequences(
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

    /// Returns the values of the kernel's override constants.
    pub fn constants(&self, variant: StepVariant) -> StepConstants {
        let StepVariant { rz, n, reset_before, noise, hardware_exp, .. } = variant;
        let [gates_rz, gate_n, reset_before, noise, hardware_exp] =
            [rz, n, reset_before, noise, hardware_exp].map(u32::from);
        StepConstants {
            reset_before,
            noise,
            hardware_exp,
            gates_rz,
            gate_n,
            unit_quads: self.unit_quads as u32,
            split_k: self.split_k as u32,
            row_groups: self.row_groups as u32,
            rows: self.rows as u32,
            depth_quads: self.depth_quads as u32,
            products: self.products as u32,
            resident: u32::from(self.resident),
        }
    }

    /// Returns an upper bound on the loop iterations of one thread.
    pub fn iterations(
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

/// Returns the quads along k: H forward; backward the H of each gate, padded to whole quads.
fn depth_quads(unit_quads: usize, pass: Pass) -> usize {
    match pass {
        Pass::Forward => unit_quads,
        Pass::Backward => 3 * unit_quads,
    }
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
pub(super) fn cores_pay(config: &GruConfig, batch: usize, caps: &DeviceCaps) -> bool {
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
