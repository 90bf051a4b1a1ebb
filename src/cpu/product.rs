//! Matrix products in which one side is packed: cut into panels of `N` columns, each stored row by row.
//!
//! A tile of some rows of the left side and one panel stays in registers for as long as the inner
//! axis goes on: each row of the panel is read once and multiplied with one number of each row. The
//! additions to one result always happen in the inner axis' order, so results depend neither on the
//! size of tiles nor on which thread computes what.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{Kernel, Level, fma, lanes, lanes_mut};
use crate::error::{Result, try_zeros};

/// The right side of a product, `[depth, columns]`, in panels.
#[derive(Debug)]
pub(super) struct Packed {
    /// `[panels, depth, N]`, zeros past a panel's last column.
    data: Vec<f32>,
    pub depth: usize,
    lanes: usize,
}

/// Where the columns of a panel come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Rows `[columns, depth]` of a matrix: its transpose is packed. The first column, and how many
    /// there are from there on.
    Transposed(&'a [f32], usize, usize),
    /// The matrix itself, with rows this long; the first column of the panel.
    Rows(&'a [f32], usize, usize),
}

impl Packed {
    pub fn new<'a>(
        level: Level,
        depth: usize,
        panels: usize,
        is_parallel: bool,
        source: impl Fn(usize) -> Source<'a> + Sync,
    ) -> Result<Self> {
        let lanes = level.lanes();
        let mut data = try_zeros("packed weights", panels * depth * lanes)?;
        let fill = |(i, panel): (usize, &mut [f32])| pack(source(i), depth, lanes, panel);
        match is_parallel {
            true => data.par_chunks_mut(depth * lanes).enumerate().for_each(fill),
            false => data.chunks_mut(depth * lanes).enumerate().for_each(fill),
        }
        Ok(Self { data, depth, lanes })
    }

    fn panels(&self) -> usize {
        self.data.len() / (self.depth * self.lanes)
    }

    /// Rows `depth` of panel `i`.
    fn panel(&self, i: usize, depth: &Range<usize>) -> &[f32] {
        let first = i * self.depth;
        &self.data[(first + depth.start) * self.lanes..(first + depth.end) * self.lanes]
    }
}

fn pack(source: Source<'_>, depth: usize, lanes: usize, panel: &mut [f32]) {
    match source {
        Source::Transposed(matrix, first, columns) => {
            // In blocks that the nearest cache holds, for it is the writes that go in steps.
            for (block, panel) in panel.chunks_mut(64 * lanes).enumerate() {
                for lane in 0..lanes.min(columns) {
                    let column = &matrix[(first + lane) * depth + 64 * block..];
                    let to = panel[lane..].iter_mut().step_by(lanes);
                    to.zip(column).for_each(|(to, &from)| *to = from);
                }
            }
        }
        Source::Rows(matrix, width, first) => {
            let columns = lanes.min(width - first);
            for (to, from) in panel.chunks_exact_mut(lanes).zip(matrix.chunks_exact(width)) {
                to[..columns].copy_from_slice(&from[first..first + columns]);
            }
        }
    }
}

/// The left side of a product: rows of a row-major matrix, from one of its columns on.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub data: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
    pub first: usize,
    pub rows: usize,
}

/// `out [panels, rows, N] += left · right[depth]`
pub(super) struct AddProduct<'a> {
    pub left: Left<'a>,
    pub right: &'a Packed,
    /// The rows of `right` that `left` is multiplied with.
    pub depth: Range<usize>,
    /// The first of its panels.
    pub first: usize,
    pub out: &'a mut [f32],
}

impl Kernel for AddProduct<'_> {
    #[inline(always)]
    fn run<const N: usize, const ROWS: usize, const FMA: bool>(self) {
        add_product::<N, ROWS, FMA>(self);
    }
}

#[inline(always)]
pub(super) fn add_product<const N: usize, const ROWS: usize, const FMA: bool>(p: AddProduct<'_>) {
    let Left { rows, .. } = p.left;
    let depth = p.depth;
    let mut first = p.first;
    let mut out = p.out;
    // Where a tile of one panel would leave registers idle and wait for the sum before, three panels
    // share it.
    if rows * 3 <= ROWS {
        while out.len() >= 3 * rows * N {
            let (three, rest) = out.split_at_mut(3 * rows * N);
            let panels = [0, 1, 2].map(|i| p.right.panel(first + i, &depth));
            row_tiles::<N, ROWS, 3, FMA>(p.left, depth.len(), panels, three);
            (out, first) = (rest, first + 3);
        }
    }
    for panel in out.chunks_exact_mut(rows * N) {
        let panels = [p.right.panel(first, &depth)];
        row_tiles::<N, ROWS, 1, FMA>(p.left, depth.len(), panels, panel);
        first += 1;
    }
}

/// All rows of `P` panels.
#[inline(always)]
fn row_tiles<const N: usize, const ROWS: usize, const P: usize, const FMA: bool>(
    left: Left<'_>,
    depth: usize,
    panels: [&[f32]; P],
    out: &mut [f32],
) {
    let mut row = 0;
    while row < left.rows {
        let rest = left.rows - row;
        // Tiles of about the same height, none of them much too high.
        let height = rest.div_ceil(rest.div_ceil((ROWS / P).max(1)));
        row += match height {
            1 => tile::<N, 1, P, FMA>(left, depth, panels, out, row),
            2 => tile::<N, 2, P, FMA>(left, depth, panels, out, row),
            3 | 4 => tile::<N, 4, P, FMA>(left, depth, panels, out, row),
            5 | 6 => tile::<N, 6, P, FMA>(left, depth, panels, out, row),
            7 | 8 => tile::<N, 8, P, FMA>(left, depth, panels, out, row),
            _ => tile::<N, 12, P, FMA>(left, depth, panels, out, row),
        };
    }
}

/// Up to `M` rows from `row` on, of `P` panels; gives how many. The rows past the last are copies of
/// it, and are not stored.
#[inline(always)]
fn tile<const N: usize, const M: usize, const P: usize, const FMA: bool>(
    left: Left<'_>,
    depth: usize,
    panels: [&[f32]; P],
    out: &mut [f32],
    row: usize,
) -> usize {
    let last = left.rows - 1;
    let rows: [&[f32]; M] = std::array::from_fn(|i| {
        &left.data[(row + i).min(last) * left.stride + left.first..][..depth]
    });
    let at = |p: usize, i: usize| (p * left.rows + (row + i).min(last)) * N;
    let mut sums = [[[0.0; N]; M]; P];
    for (p, sums) in sums.iter_mut().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate() {
            *sums = *lanes::<N>(out, at(p, i));
        }
    }
    multiply::<N, M, P, FMA>(depth, |k| std::array::from_fn(|i| rows[i][k]), panels, &mut sums);
    for (p, sums) in sums.iter().enumerate() {
        for (i, sums) in sums.iter().enumerate() {
            *lanes_mut::<N>(out, at(p, i)) = *sums;
        }
    }
    M.min(left.rows - row)
}

/// The innermost loop of everything: `sums[p][i] += left(k)[i] · panels[p][k]` over all k.
#[inline(always)]
fn multiply<const N: usize, const M: usize, const P: usize, const FMA: bool>(
    depth: usize,
    left: impl Fn(usize) -> [f32; M],
    panels: [&[f32]; P],
    sums: &mut [[[f32; N]; M]; P],
) {
    // A local copy is what the compiler keeps in registers.
    let mut local = *sums;
    let panels = panels.map(|panel| &panel[..depth * N]);
    for k in 0..depth {
        let left = left(k);
        for p in 0..P {
            let right = lanes::<N>(panels[p], k * N);
            for i in 0..M {
                for j in 0..N {
                    local[p][i][j] = fma::<FMA>(left[i], right[j], local[p][i][j]);
                }
            }
        }
    }
    *sums = local;
}

/// `to [rows, columns] += leftᵀ · right`, and the sums of left's columns: one block of rows of a weight's
/// gradient. `left [depth, ·]` is read from its column `first` on.
pub(super) struct AddTransposed<'a> {
    pub left: &'a [f32],
    pub stride: usize,
    pub first: usize,
    pub right: &'a Packed,
    pub columns: usize,
    pub to: &'a mut [f32],
    /// `[rows]`, added to.
    pub sums: &'a mut [f32],
}

impl Kernel for AddTransposed<'_> {
    #[inline(always)]
    fn run<const N: usize, const ROWS: usize, const FMA: bool>(self) {
        let (depth, rows) = (self.right.depth, self.sums.len());
        // [tiles, depth, ROWS], zeros past the last row.
        let mut left = vec![0.0; rows.div_ceil(ROWS) * depth * ROWS];
        for (tile, sums) in self.sums.chunks_mut(ROWS).enumerate() {
            let to = left[tile * depth * ROWS..].chunks_exact_mut(ROWS);
            for (to, from) in to.zip(self.left.chunks_exact(self.stride)) {
                let first = self.first + tile * ROWS;
                to[..sums.len()].copy_from_slice(&from[first..first + sums.len()]);
                sums.iter_mut().zip(&*to).for_each(|(sum, &d)| *sum += d);
            }
        }
        for panel in 0..self.right.panels() {
            let right = [self.right.panel(panel, &(0..depth))];
            let first = panel * N;
            let width = N.min(self.columns - first);
            let tiles = self.to.chunks_mut(ROWS * self.columns);
            for (left, to) in left.chunks_exact(depth * ROWS).zip(tiles) {
                let mut sums = [[[0.0; N]; ROWS]];
                let at = |k: usize| *lanes::<ROWS>(left, k * ROWS);
                multiply::<N, ROWS, 1, FMA>(depth, at, right, &mut sums);
                for (to, sums) in to.chunks_exact_mut(self.columns).zip(&sums[0]) {
                    let to = &mut to[first..first + width];
                    to.iter_mut().zip(sums).for_each(|(to, &sum)| *to += sum);
                }
            }
        }
    }
}
