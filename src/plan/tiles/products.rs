//! [`ProductTile`]: the kernel of a product, and the layout of its work.

use super::allow;
use crate::error::Result;
use crate::kernels::{
    BLOCKS_THREADS, Kernel, MATMUL, MATMUL_BLOCKS, MATMUL_BLOCKS_SCALAR, MatmulConstants,
};
use crate::plan::DeviceCaps;

/// The number of large tiles of a product that occupies a whole large GPU.
const LARGE_TILES: u64 = 96;

/// The kernel of a product, and the layout of its workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum ProductTile {
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

/// The FLOPs of a forward pass from which a software adapter uses the large tile for its products.
/// In a run of this size the large tile saves 2 to 4 ms, and it compiles 0.2 to 0.5 s longer: about
/// a hundred runs repay it. Inference and training of a shape share a tile.
const LARGE_BLOCKS_FLOPS: u64 = 20_000_000;

impl ProductTile {
    /// Chooses the kernel and the tile of an m × n × k product, in a plan whose forward pass has
    /// `plan_flops`. On a software adapter all products of a plan have one side, because each is
    /// compiled.
    pub fn choose([m, n, k]: [usize; 3], plan_flops: u64, caps: &DeviceCaps) -> Self {
        match caps.software {
            true => {
                let side = if plan_flops < LARGE_BLOCKS_FLOPS { 4 } else { 8 };
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
