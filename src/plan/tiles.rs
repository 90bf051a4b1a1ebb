//! How the work of a kernel is laid out over the threads of a workgroup, and by which rule: [`Tile`] of the
//! recurrence kernels, [`ProductTile`] of the products.

use super::DeviceCaps;
use super::limits::within;
use crate::error::Result;
use crate::kernels::{MATMUL, MatmulConstants};
use crate::spec::config::{GruConfig, Reset};
use crate::spec::options::Recurrence;

/// H up to which a workgroup takes rows through the whole sequence, unless told otherwise. Beyond it the
/// weights, which each workgroup reads anew at every step, come through one multiprocessor's cache more
/// slowly than a dispatch a step can spread them over the device.
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

/// One of the two kernels of the recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// The shape of a recurrence kernel's workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Threads along the units, four units each.
    pub unit_quads: usize,
    /// Threads along k.
    pub lanes: usize,
    /// Rows of a thread, four each.
    pub row_quads: usize,
    /// Of k, four each, that the workgroup's memory holds.
    pub depth_quads: usize,
    /// Numbers of each unit and row that the workgroup's memory holds.
    pub totals: usize,
    /// Whether the workgroup makes all units, for any number of steps.
    pub resident: bool,
}

impl Tile {
    pub fn rows(&self) -> usize {
        4 * self.row_quads
    }

    fn threads(&self) -> usize {
        self.unit_quads * self.lanes
    }

    /// As `step_workgroup` in `kernels.rs` has it.
    fn bytes(&self) -> usize {
        let numbers = self.depth_quads + self.threads() + self.totals * self.unit_quads;
        4 * 16 * self.row_quads * numbers
    }

    fn allow(&self, caps: &DeviceCaps) -> Result<()> {
        let what = || "a workgroup that makes all units of its rows".to_owned();
        allow(what, self.threads() as u64, self.bytes() as u64, caps)
    }
}

/// `Ok` when `caps` can run workgroups of so many threads and bytes.
fn allow(
    what: impl Fn() -> String,
    threads: u64,
    bytes: u64,
    DeviceCaps { limits, .. }: &DeviceCaps,
) -> Result<()> {
    let (most_threads, most_bytes) =
        (limits.max_compute_invocations_per_workgroup, limits.max_compute_workgroup_storage_size);
    within(&what, "max_compute_invocations_per_workgroup", threads, most_threads)?;
    within(&what, "max_compute_workgroup_storage_size", bytes, most_bytes)
}

/// The tiles of the two kernels of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    pub forward: Tile,
    pub backward: Tile,
}

impl Tiles {
    pub fn of(&self, pass: Pass) -> Tile {
        match pass {
            Pass::Forward => self.forward,
            Pass::Backward => self.backward,
        }
    }

    /// A workgroup takes whole sequences where H is small, as [`sequence_pays`] has it, and its memory
    /// suffices, or where `recurrence` asks for it; or else one step.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) when whole sequences are asked for and do not fit.
    pub fn choose(
        config: &GruConfig,
        batch: usize,
        recurrence: Recurrence,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let tiles = |tile: fn(&GruConfig, usize, Pass, &DeviceCaps) -> Result<Tile>| {
            let [forward, backward] =
                [Pass::Forward, Pass::Backward].map(|pass| tile(config, batch, pass, caps));
            Ok(Self { forward: forward?, backward: backward? })
        };
        match recurrence {
            Recurrence::Step => tiles(step_tile),
            Recurrence::Sequence => tiles(sequence_tile),
            Recurrence::Auto if sequence_pays(config, batch, caps) => {
                tiles(sequence_tile).or_else(|_| tiles(step_tile))
            }
            Recurrence::Auto => tiles(step_tile),
        }
    }
}

/// Whether whole sequences are faster than a dispatch a step.
fn sequence_pays(config: &GruConfig, batch: usize, caps: &DeviceCaps) -> bool {
    let many = caps.software || batch >= MANY_ROWS;
    config.hidden_size <= if many { SEQUENCE_HIDDEN_OF_MANY } else { SEQUENCE_HIDDEN }
}

/// Numbers that the workgroup's memory holds of each unit and row: its products with the past, forward of
/// each gate where they do not wait for each other; backward also what the next step needs of each gate, where
/// it stays there.
fn totals(config: &GruConfig, pass: Pass, resident: bool) -> usize {
    match (pass, config.reset, resident) {
        (Pass::Forward, Reset::After, _) | (Pass::Backward, _, true) => 3,
        (Pass::Forward, Reset::Before, _) => 2,
        (Pass::Backward, _, false) => 1,
    }
}

/// A workgroup for one step of some units. Its weights pass through once, so many lanes read them side by
/// side.
fn step_tile(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Result<Tile> {
    let quads = config.hidden_size.div_ceil(4);
    let depth = if pass == Pass::Forward { quads } else { 3 * quads };
    let make = |unit_quads: usize, lanes: usize, row_quads, staged: usize| Tile {
        unit_quads: unit_quads.min(quads),
        lanes: lanes.min(depth),
        row_quads,
        depth_quads: staged.min(depth),
        totals: totals(config, pass, false),
        resident: false,
    };
    if caps.software {
        // A thread is a lane of a vector unit there, and adding up lanes' shares costs loads; more rows to
        // a weight are more work to a load.
        return Ok(make(16, 1, if batch > 4 { 2 } else { 1 }, STAGED_QUADS));
    }
    let best = match pass {
        Pass::Forward => (8, 16, STAGED_QUADS),
        Pass::Backward => (8, 32, 2 * STAGED_QUADS),
    };
    let [a, b, c, d] = [(8, 16), (4, 16), (4, 8), (4, 4)].map(|(u, l)| (u, l, STAGED_QUADS));
    let tiles =
        [best, a, b, c, d].map(|(unit_quads, lanes, staged)| make(unit_quads, lanes, 1, staged));
    let fitting = tiles.into_iter().find(|tile| tile.allow(caps).is_ok());
    Ok(fitting.unwrap_or(tiles[tiles.len() - 1]))
}

/// A workgroup for all units of its rows, step after step.
fn sequence_tile(config: &GruConfig, batch: usize, pass: Pass, caps: &DeviceCaps) -> Result<Tile> {
    let quads = config.hidden_size.div_ceil(4);
    let depth_quads = if pass == Pass::Forward { quads } else { 3 * quads };
    let make = |lanes, row_quads| Tile {
        unit_quads: quads,
        lanes,
        row_quads,
        depth_quads,
        totals: totals(config, pass, true),
        resident: true,
    };
    // On a GPU many small workgroups, with enough of k for each lane to be worth its share.
    let sizes = match (caps.software, pass) {
        (true, _) if batch >= 16 => vec![(1, 2), (1, 1)],
        (true, _) => vec![(1, 1)],
        (false, Pass::Forward) => vec![(8, 1), (4, 1), (2, 1), (1, 1)],
        (false, Pass::Backward) => vec![(16, 1), (8, 1), (4, 1), (2, 1), (1, 1)],
    };
    let tiles = sizes.into_iter().map(|(lanes, row_quads)| make(lanes, row_quads));
    let mut worthwhile = tiles.filter(|tile| tile.lanes == 1 || depth_quads >= 2 * tile.lanes);
    match worthwhile.find(|tile| tile.allow(caps).is_ok()) {
        Some(tile) => Ok(tile),
        None => make(1, 1).allow(caps).map(|()| make(1, 1)),
    }
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
    /// For an m × n × k product. Narrow results take narrow tiles, and short sums short slices, so that
    /// little is multiplied in vain.
    pub fn choose([m, n, k]: [usize; 3], caps: &DeviceCaps) -> Self {
        if let Some(large) = Self::large([m, n, k], caps) {
            return large;
        }
        let (m_threads, n_threads, n_quads, depth) = match (m, n) {
            (..=64, ..=4) => (8, 1, 1, 8),
            (..=8, _) => (1, 32, 2, 8),
            (_, ..=4) => (32, 1, 1, 8),
            (_, ..=16) => (32, 2, 2, 8),
            // Where a processor computes, a load costs as much as its arithmetic, from the workgroup's
            // memory as from any other: there larger tiles pay, and staging does not.
            (65.., _) if caps.software => {
                return Self { m_threads: 8, n_threads: 8, m_quads: 4, n_quads: 4, staged: None };
            }
            _ => (8, 8, 2, 16),
        };
        let staged = Some(if k <= 4 { 4 } else { depth });
        Self { m_threads, n_threads, m_quads: 2, n_quads, staged }
    }

    /// Tiles of 128 × 128 halve what is read from memory. They are for GPUs whose workgroups can hold
    /// them, and for results that give each of its parts some.
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
        let workgroup = (MATMUL.workgroup)(bytemuck::cast_slice(&[self.constants()]));
        let what = || "a product's workgroup".to_owned();
        allow(what, workgroup.threads.into(), workgroup.bytes.into(), caps)
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

    /// Turns of a thread's loops for `k` of a sum. A slice: its k, what a thread stages of it, a turn of its
    /// own. In the end the blocks, one after another.
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
