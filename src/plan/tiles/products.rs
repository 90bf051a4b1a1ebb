//! [`ProductTile`]: the kernel of a product, and the layout of its work.

use super::allow;
use crate::error::Result;
use crate::kernels::{
    BLOCKS_DEPTH, BLOCKS_THREADS, Kernel, LARGE_DEPTH, LARGE_SIDE, MATMUL, MATMUL_BLOCKS,
    MATMUL_BLOCKS_SCALAR, MATMUL_LARGE, MATMUL_LARGE_SCALAR, MatmulConstants,
};
use crate::plan::DeviceCaps;

/// The number of large tiles of a product, with all parts of a split k, from which it is faster with
/// large tiles: they occupy half of the 132 multiprocessors of a large GPU, each with eight warps.
const LARGE_TILES: u64 = 64;

/// The shortest sum for large tiles. A product with a shorter one waits for memory whatever its
/// tile, and the smaller tile writes rows that start anywhere faster.
const LARGE_MIN_DEPTH: usize = 32;

/// The kernel of a product, and the layout of its workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum ProductTile {
    /// The tile of [`MATMUL_LARGE`], of one size: it halves the reads from memory of the largest
    /// [`StagedTile`], and a thread of it multiplies while it loads.
    Large,
    Staged(StagedTile),
    Blocks(BlocksTile),
}

/// The tile of [`MATMUL`]: operands are staged in workgroup memory. A thread computes two quads of
/// rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) struct StagedTile {
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
pub(in crate::plan) struct BlocksTile {
    /// Threads along the result's columns.
    n_threads: usize,
    /// The rows and columns of the result that a thread computes: 4 or 8.
    side: usize,
}

impl ProductTile {
    /// Chooses the kernel and the tile of an m × n × k product whose k can be split into `parts`, in
    /// a plan whose forward pass has `plan_flops`. On a software adapter all products of a plan have
    /// one side, because each is compiled.
    pub fn choose(mnk: [usize; 3], parts: usize, plan_flops: u64, caps: &DeviceCaps) -> Self {
        let [m, n, k] = mnk;
        if caps.software {
            let side = if plan_flops < caps.large_tile_flops { 4 } else { 8 };
            return Self::Blocks(BlocksTile::choose(m, n, side));
        }
        let [x, y] = Self::Large.groups(m, n);
        let fills = (x * y).saturating_mul(parts as u64) >= LARGE_TILES;
        let is_wide = m.min(n) >= LARGE_SIDE / 2 && k >= LARGE_MIN_DEPTH;
        if is_wide && fills && allow_large(caps).is_ok() {
            return Self::Large;
        }
        Self::Staged(StagedTile::choose(mnk))
    }

    /// Returns the kernel. `operands` is true if the rows of both operands start at whole quads,
    /// `result` if those of the result also do and end at whole quads. The large tile reads
    /// runs of rows one by one: with their divisions it needs registers that a quad would take.
    pub fn kernel(&self, operands: bool, result: bool, runs: bool) -> &'static Kernel {
        match self {
            Self::Large if operands && result && !runs => &MATMUL_LARGE,
            Self::Large => &MATMUL_LARGE_SCALAR,
            Self::Staged(_) => &MATMUL,
            Self::Blocks(_) if operands => &MATMUL_BLOCKS,
            Self::Blocks(_) => &MATMUL_BLOCKS_SCALAR,
        }
    }

    /// Returns the kernel's override constants.
    pub fn constants(&self, runs: bool) -> Vec<u32> {
        match self {
            Self::Large => vec![u32::from(runs)],
            Self::Staged(tile) => tile.constants(runs).as_u32s().to_vec(),
            Self::Blocks(tile) => vec![u32::from(runs), tile.side as u32],
        }
    }

    /// Returns the threads along the result's columns.
    pub fn n_threads(&self) -> usize {
        match *self {
            Self::Large => LARGE_SIDE / 8,
            Self::Staged(StagedTile { n_threads, .. })
            | Self::Blocks(BlocksTile { n_threads, .. }) => n_threads,
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Self::Large => LARGE_SIDE,
            Self::Staged(tile) => 8 * tile.m_threads,
            Self::Blocks(tile) => tile.side * BLOCKS_THREADS / tile.n_threads,
        }
    }

    pub fn columns(&self) -> usize {
        match self {
            Self::Large => LARGE_SIDE,
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
            Self::Large => LARGE_DEPTH,
            Self::Staged(tile) => tile.depth,
            Self::Blocks(_) => 4,
        }
    }

    /// Returns the elements along k that a workgroup of a sum of length `k` adds up in registers,
    /// before it adds them to the result in memory. About √k would be the most exact. With fewer
    /// than 128, reading and writing the result would take a noticeable time.
    pub fn k_block(&self, k: usize) -> usize {
        match self {
            Self::Large | Self::Staged(_) => k.isqrt().next_power_of_two().clamp(128, 256),
            Self::Blocks(_) => BLOCKS_DEPTH,
        }
    }

    /// Returns the longest sum that a workgroup computes: its iterations stay below
    /// [`crate::kernels::LOOP_BUDGET`].
    pub fn max_depth(&self) -> usize {
        match self {
            Self::Large => 1 << 18,
            // Every 16 elements cost a slice of 16 iterations and a few more.
            Self::Staged(_) | Self::Blocks(_) => 16_384,
        }
    }

    /// Returns the iterations of a thread's loops for a sum of length `k`.
    pub fn iterations(&self, k: usize) -> usize {
        let slices = k.div_ceil(self.depth());
        let blocks = k.div_ceil(self.k_block(k));
        match self {
            Self::Large => slices + blocks,
            // Per slice: its k, the thread's staged elements, and the slice itself. Per block of k:
            // the thread's results, one after another, and the block itself.
            Self::Staged(tile) => {
                slices * (3 * tile.depth + 3) + blocks * (2 * tile.n_quads * 17 + 1)
            }
            Self::Blocks(tile) => slices + blocks + (tile.side + 1) * tile.side,
        }
    }
}

/// Checks that a device can run the workgroups of the large tile.
fn allow_large(caps: &DeviceCaps) -> Result<()> {
    allow("a product's workgroup", &MATMUL_LARGE, &ProductTile::Large.constants(false), caps)
}

impl StagedTile {
    /// Chooses the tile. Narrow results get narrow tiles, and short sums short slices, so that
    /// little padding is multiplied.
    fn choose([m, n, k]: [usize; 3]) -> Self {
        let (m_threads, n_threads, n_quads, depth) = match (m, n) {
            (..=64, ..=4) => (8, 1, 1, 8),
            (..=8, _) => (1, 32, 2, 8),
            (_, ..=4) => (32, 1, 1, 8),
            (_, ..=16) => (32, 2, 2, 8),
            _ => (8, 8, 2, 16),
        };
        Self { m_threads, n_threads, n_quads, depth: if k <= 4 { 4 } else { depth } }
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
