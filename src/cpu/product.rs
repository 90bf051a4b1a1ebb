#![allow(clippy::needless_range_loop, reason = "loops over rows and panels read like the sums")]

//! Matrix products in which one side is packed: cut into panels of `N` columns, each stored row by
//! row.
//!
//! A tile of some rows of the left side and one panel stays in registers for as long as the inner
//! axis goes on: each row of the panel is read once and multiplied with one number of each row. The
//! additions to one result always happen in the inner axis' order, so results depend neither on the
//! size of tiles nor on which thread computes what.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{SimdKernel, SimdLevel, SimdVector, lanes, lanes_mut};
use crate::error::{Result, try_grow, try_lazy_zeros};

/// The right side of a product, `[depth, columns]`, in panels.
#[derive(Debug)]
pub(super) struct PackedRight {
    /// From `start` on `[panels, depth, N]`, zeros past a panel's last column.
    data: Vec<f32>,
    /// Where a cache line starts, for a register's load that crosses from one to the next takes
    /// twice the time.
    start: usize,
    panels: usize,
    pub depth: usize,
    lanes: usize,
    /// From this panel on no more than half of their columns are there, and half of their work is
    /// done.
    narrow: usize,
}

/// Where the columns of a panel come from.
#[derive(Clone, Copy)]
pub(super) enum PanelSource<'a> {
    /// Rows `[columns, depth]` of a matrix: its transpose is packed. The first column, and how many
    /// there are from there on.
    Transposed(&'a [f32], usize, usize),
    /// The matrix itself, with rows this long; the first column of the panel.
    Rows(&'a [f32], usize, usize),
}

impl PanelSource<'_> {
    /// How many there are from the first one on.
    fn columns(&self) -> usize {
        match *self {
            Self::Transposed(_, _, columns) => columns,
            Self::Rows(_, width, first) => width - first,
        }
    }
}

impl PackedRight {
    pub fn new<'a>(
        level: SimdLevel,
        depth: usize,
        panels: usize,
        is_parallel: bool,
        source: impl Fn(usize) -> PanelSource<'a> + Sync,
    ) -> Result<Self> {
        let lanes = level.lanes();
        let is_narrow = |&panel: &usize| source(panel).columns() <= lanes / 2;
        let narrow = panels - (0..panels).rev().take_while(is_narrow).count();
        let line = 64 / size_of::<f32>();
        let mut data: Vec<f32> = try_lazy_zeros("a packed matrix", panels * depth * lanes + line)?;
        let start = data.as_ptr().align_offset(64).min(line);
        let to = &mut data[start..start + panels * depth * lanes];
        let fill = |(i, panel): (usize, &mut [f32])| pack(source(i), depth, lanes, panel);
        match is_parallel {
            true => to.par_chunks_mut(depth * lanes).enumerate().for_each(fill),
            false => to.chunks_mut(depth * lanes).enumerate().for_each(fill),
        }
        Ok(Self { data, start, panels, depth, lanes, narrow })
    }

    /// Rows `depth` of panel `i`.
    fn panel(&self, i: usize, depth: &Range<usize>) -> &[f32] {
        let first = i * self.depth + depth.start;
        &self.data[self.start + first * self.lanes..][..depth.len() * self.lanes]
    }
}

fn pack(source: PanelSource<'_>, depth: usize, lanes: usize, panel: &mut [f32]) {
    match source {
        PanelSource::Transposed(matrix, first, columns) => {
            let column = |lane: usize| &matrix[(first + lane) * depth..][..depth];
            interleave(column, lanes.min(columns), lanes, panel);
        }
        PanelSource::Rows(matrix, width, first) => {
            let columns = lanes.min(width - first);
            match columns {
                16 => copy_columns::<16>(matrix, width, first, lanes, panel),
                32 => copy_columns::<32>(matrix, width, first, lanes, panel),
                _ => {
                    for (to, from) in panel.chunks_exact_mut(lanes).zip(matrix.chunks_exact(width))
                    {
                        to[..columns].copy_from_slice(&from[first..first + columns]);
                    }
                }
            }
        }
    }
}

/// `to [·, stride]`, whose first `C` columns become those of `matrix [·, width]` from `first` on:
/// so many that the compiler knows how many, and makes no call for each row.
fn copy_columns<const C: usize>(
    matrix: &[f32],
    width: usize,
    first: usize,
    stride: usize,
    to: &mut [f32],
) {
    for (to, from) in to.chunks_exact_mut(stride).zip(matrix.chunks_exact(width)) {
        *lanes_mut::<C>(to, 0) = *lanes(from, first);
    }
}

/// `to [·, stride]`, whose column `i` becomes `line(i)`; the columns from `count` on stay as they
/// are.
fn interleave<'a>(line: impl Fn(usize) -> &'a [f32], count: usize, stride: usize, to: &mut [f32]) {
    // In blocks that the nearest cache holds, for it is the writes that go in steps.
    const BLOCK: usize = 64;
    for (block, to) in to.chunks_mut(BLOCK * stride).enumerate() {
        for i in 0..count {
            let line = &line(i)[BLOCK * block..];
            to[i..].iter_mut().step_by(stride).zip(line).for_each(|(to, &from)| *to = from);
        }
    }
}

/// The left side of a product, `[rows, depth]`, in tiles: of each, one column after the other.
#[derive(Clone, Copy)]
pub(super) struct PackedLeft<'a> {
    data: &'a [f32],
    pub rows: usize,
    depth: usize,
}

impl<'a> PackedLeft<'a> {
    /// Packs some columns of the rows of a row-major matrix into `space`, and then some more.
    pub fn pack(
        level: SimdLevel,
        matrix: &[f32],
        stride: usize,
        columns: [Range<usize>; 2],
        space: &'a mut Vec<f32>,
    ) -> Result<Self> {
        let rows = matrix.len().div_ceil(stride);
        let depth = columns.iter().map(Range::len).sum();
        let padded = heights(rows, level.rows()).map(|(_, height)| height).sum::<usize>();
        // A tile's rows past the last keep what was there, for nothing of them is stored.
        try_grow("the left side of a product", space, padded * depth)?;
        let mut to = &mut space[..padded * depth];
        for (first, height) in heights(rows, level.rows()) {
            for columns in &columns {
                let (part, rest) = to.split_at_mut(height * columns.len());
                let row = |i: usize| &matrix[(first + i) * stride..][columns.clone()];
                interleave(row, height.min(rows - first), height, part);
                to = rest;
            }
        }
        Ok(Self { data: &space[..padded * depth], rows, depth })
    }
}

/// The first row and the height of each tile: all about as high, none higher than `most`, and of
/// few different heights, each of which is compiled on its own.
#[inline(always)]
fn heights(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let rest = rows - first;
        if rest == 0 {
            return None;
        }
        let height = match rest.div_ceil(rest.div_ceil(most)) {
            3 => 4,
            5 => 6,
            7 => 8,
            11.. => 12,
            same => same,
        };
        let tile = (first, height);
        first += height.min(rest);
        Some(tile)
    })
}

/// `out [panels, rows, N] += left · right[depth]`
pub(super) struct AddProduct<'a> {
    pub left: PackedLeft<'a>,
    pub right: &'a PackedRight,
    /// The rows of `right` that `left` is multiplied with.
    pub depth: Range<usize>,
    /// The first of its panels.
    pub first: usize,
    pub out: &'a mut [f32],
}

impl SimdKernel for AddProduct<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        add_product::<V, N, ROWS>(self);
    }
}

#[inline(always)]
pub(super) fn add_product<V: SimdVector, const N: usize, const ROWS: usize>(p: AddProduct<'_>) {
    assert_eq!(p.left.depth, p.depth.len(), "a product's inner axis");
    let panel_len = p.left.rows * N;
    let wide = p.right.narrow.saturating_sub(p.first).min(p.out.len() / panel_len);
    let (to_wide, to_narrow) = p.out.split_at_mut(wide * panel_len);
    let (left, depth) = (p.left, &p.depth);
    panels::<V, N, ROWS, 2>(left, p.right, depth, p.first, to_wide);
    panels::<V, N, ROWS, 1>(left, p.right, depth, p.first + wide, to_narrow);
}

/// Panels from `first` on, `W` vectors wide, as many as `out` holds.
#[inline(always)]
fn panels<V: SimdVector, const N: usize, const ROWS: usize, const W: usize>(
    left: PackedLeft<'_>,
    right: &PackedRight,
    depth: &Range<usize>,
    mut first: usize,
    mut out: &mut [f32],
) {
    let panel_len = left.rows * N;
    // Where a tile of one panel would leave registers idle and wait for the sum before, three
    // panels share it.
    if left.rows * 3 <= ROWS {
        while out.len() >= 3 * panel_len {
            let (three, rest) = out.split_at_mut(3 * panel_len);
            let panels = [
                right.panel(first, depth),
                right.panel(first + 1, depth),
                right.panel(first + 2, depth),
            ];
            tiles::<V, N, ROWS, 3, W>(left, panels, three);
            (out, first) = (rest, first + 3);
        }
    }
    for panel in out.chunks_exact_mut(panel_len) {
        tiles::<V, N, ROWS, 1, W>(left, [right.panel(first, depth)], panel);
        first += 1;
    }
}

/// All rows of `P` panels.
#[inline(always)]
fn tiles<V: SimdVector, const N: usize, const ROWS: usize, const P: usize, const W: usize>(
    left: PackedLeft<'_>,
    panels: [&[f32]; P],
    out: &mut [f32],
) {
    let mut at = 0;
    for (row, height) in heights(left.rows, ROWS) {
        let tile = PackedLeft { data: &left.data[at..at + height * left.depth], ..left };
        at += height * left.depth;
        match height {
            1 => add_tile::<V, N, 1, P, W>(tile, panels, out, row),
            2 => add_tile::<V, N, 2, P, W>(tile, panels, out, row),
            4 => add_tile::<V, N, 4, P, W>(tile, panels, out, row),
            6 if P == 1 => add_tile::<V, N, 6, P, W>(tile, panels, out, row),
            8 if P == 1 && ROWS > 6 => add_tile::<V, N, 8, P, W>(tile, panels, out, row),
            9 if P == 1 && ROWS > 6 => add_tile::<V, N, 9, P, W>(tile, panels, out, row),
            10 if P == 1 && ROWS > 6 => add_tile::<V, N, 10, P, W>(tile, panels, out, row),
            12 if P == 1 && ROWS > 6 => add_tile::<V, N, 12, P, W>(tile, panels, out, row),
            _ => unreachable!("heights gives no others"),
        }
    }
}

/// A tile of `M` rows from `row` on, of `P` panels; rows past the last are not stored.
#[inline(always)]
fn add_tile<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
    left: PackedLeft<'_>,
    panels: [&[f32]; P],
    out: &mut [f32],
    row: usize,
) {
    let mut sums = [[[V::splat(0.0); W]; M]; P];
    // By constant indices throughout, or the sums would have to lie in memory.
    for p in 0..P {
        for i in 0..M {
            if row + i < left.rows {
                let out = &out[(p * left.rows + row + i) * N..][..N];
                for w in 0..W {
                    sums[p][i][w] = V::load(&out[w * V::WIDTH..]);
                }
            }
        }
    }
    let sums = multiply::<V, N, M, P, W>(left.data, left.depth, panels, sums);
    for p in 0..P {
        for i in 0..M {
            if row + i < left.rows {
                let out = &mut out[(p * left.rows + row + i) * N..][..N];
                for w in 0..W {
                    sums[p][i][w].store(&mut out[w * V::WIDTH..]);
                }
            }
        }
    }
}

/// The innermost loop of everything: adds `left [depth, M]ᵀ` times each of the panels `[depth, N]`.
#[inline(always)]
fn multiply<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
    left: &[f32],
    depth: usize,
    panels: [&[f32]; P],
    mut sums: [[[V; W]; M]; P],
) -> [[[V; W]; M]; P] {
    let left = &left[..depth * M];
    let panels = panels.map(|panel| &panel[..depth * N]);
    for k in 0..depth {
        let left = &left[k * M..][..M];
        for p in 0..P {
            let right = &panels[p][k * N..][..N];
            let mut vectors = [V::splat(0.0); W];
            for w in 0..W {
                vectors[w] = V::load(&right[w * V::WIDTH..]);
            }
            for i in 0..M {
                let left = V::splat(left[i]);
                // No closures: what is not inlined is not compiled for the level.
                for w in 0..W {
                    sums[p][i][w] = sums[p][i][w].add_product(left, vectors[w]);
                }
            }
        }
    }
    sums
}

/// Some columns of `left [depth, ·]`, from `first` on: their sums, and for some right sides
/// `to [columns, ·] += leftᵀ · right`, rows of a weight's gradient.
pub(super) struct AddTransposed<'a> {
    pub left: &'a [f32],
    pub stride: usize,
    pub first: usize,
    /// One for each column, added to.
    pub sums: &'a mut [f32],
    pub products: Vec<(&'a PackedRight, &'a mut [f32])>,
    /// Room for so many numbers at least as [`Self::space`] says.
    pub space: &'a mut [f32],
}

impl AddTransposed<'_> {
    pub fn space(level: SimdLevel, columns: usize, depth: usize) -> usize {
        columns.next_multiple_of(level.rows()) * depth
    }

    /// Packs the columns, `[tiles, depth, ROWS]`, and adds them up. In a tile's columns past the
    /// last stays what was there, for nothing of them is stored.
    #[inline(always)]
    fn pack<const ROWS: usize>(&mut self, depth: usize) {
        for (k, row) in self.left.chunks_exact(self.stride).enumerate() {
            let columns = &row[self.first..][..self.sums.len()];
            self.sums.iter_mut().zip(columns).for_each(|(sum, &d)| *sum += d);
            let whole = columns.len() / ROWS;
            for i in 0..whole {
                *lanes_mut::<ROWS>(self.space, (i * depth + k) * ROWS) = *lanes(columns, i * ROWS);
            }
            let rest = &columns[whole * ROWS..];
            if !rest.is_empty() {
                self.space[(whole * depth + k) * ROWS..][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

impl SimdKernel for AddTransposed<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(mut self) {
        let depth = self.left.len() / self.stride;
        self.pack::<ROWS>(depth);
        let rows = self.sums.len();
        for (right, to) in self.products {
            let columns = to.len() / rows;
            for panel in 0..right.panels {
                let panels = [right.panel(panel, &(0..depth))];
                let first = panel * N;
                let width = N.min(columns - first);
                let tiles = to.chunks_mut(ROWS * columns);
                for (left, to) in self.space.chunks_exact(depth * ROWS).zip(tiles) {
                    let zeros = [[[V::splat(0.0); 2]; ROWS]];
                    let [products] = multiply::<V, N, ROWS, 1, 2>(left, depth, panels, zeros);
                    let mut sums = [[0.0; N]; ROWS];
                    for i in 0..ROWS {
                        products[i][0].store(&mut sums[i]);
                        products[i][1].store(&mut sums[i][V::WIDTH..]);
                    }
                    for (to, sums) in to.chunks_exact_mut(columns).zip(&sums) {
                        let to = &mut to[first..first + width];
                        to.iter_mut().zip(sums).for_each(|(to, &sum)| *to += sum);
                    }
                }
            }
        }
    }
}
