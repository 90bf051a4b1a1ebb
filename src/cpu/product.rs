#![allow(clippy::needless_range_loop, reason = "loops over rows and panels read like the sums")]

//! Matrix products with packed operands. The right side is packed into panels of `N` columns, each
//! stored row by row; the left side into tiles of a few rows, each stored column by column.
//!
//! The product of one tile with one panel stays in registers over the whole inner axis. For each
//! index of the inner axis, a row of the panel is loaded once and multiplied with one element of
//! each row of the tile. Each result adds its terms in the order of the inner axis, so results
//! depend neither on the tile sizes nor on the threads.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{SimdKernel, SimdLevel, SimdVector, lanes, lanes_mut};
use crate::error::{Result, try_grow, try_untouched};

/// The right side of a product, `[depth, columns]`, packed into panels.
#[derive(Debug)]
pub(super) struct PackedRight {
    /// The panels `[panels, depth, N]` from `start` on, with zeros past the last column.
    data: Vec<f32>,
    /// The offset of the first panel, at the start of a cache line: a vector load that crosses a
    /// cache line takes twice the time.
    start: usize,
    panels: usize,
    /// The length of the inner axis.
    pub depth: usize,
    /// N
    lanes: usize,
    /// The index of the first of the narrow panels at the end. A narrow panel has at most N / 2
    /// columns, so half of the work is skipped.
    first_narrow: usize,
}

/// The source of a panel's columns.
#[derive(Clone, Copy)]
pub(super) enum PanelSource<'a> {
    /// A matrix `[columns, depth]`, to transpose. The first column of the panel, and the number of
    /// columns from there on.
    Transposed(&'a [f32], usize, usize),
    /// A matrix `[depth, width]`. Its width, and the first column of the panel.
    Rows(&'a [f32], usize, usize),
}

impl PanelSource<'_> {
    /// Returns the number of columns from the panel's first column on.
    fn columns(&self) -> usize {
        match *self {
            Self::Transposed(_, _, columns) => columns,
            Self::Rows(_, width, first) => width - first,
        }
    }
}

impl PackedRight {
    /// Packs a matrix. `source` returns the source of each panel.
    pub fn new<'a>(
        level: SimdLevel,
        depth: usize,
        panels: usize,
        is_parallel: bool,
        source: impl Fn(usize) -> PanelSource<'a> + Sync,
    ) -> Result<Self> {
        let lanes = level.lanes();
        let is_narrow = |&panel: &usize| source(panel).columns() <= lanes / 2;
        let first_narrow = panels - (0..panels).rev().take_while(is_narrow).count();
        let line = 64 / size_of::<f32>();
        let mut data: Vec<f32> = try_untouched("a packed matrix", panels * depth * lanes + line)?;
        let start = data.as_ptr().align_offset(64).min(line);
        let to = &mut data[start..start + panels * depth * lanes];
        let fill = |(i, panel): (usize, &mut [f32])| pack(source(i), depth, lanes, panel);
        match is_parallel {
            true => to.par_chunks_mut(depth * lanes).enumerate().for_each(fill),
            false => to.chunks_mut(depth * lanes).enumerate().for_each(fill),
        }
        Ok(Self { data, start, panels, depth, lanes, first_narrow })
    }

    /// Returns the rows `depth` of panel `i`, `[depth, N]`.
    fn panel(&self, i: usize, depth: &Range<usize>) -> &[f32] {
        let first = i * self.depth + depth.start;
        &self.data[self.start + first * self.lanes..][..depth.len() * self.lanes]
    }
}

/// Packs the columns of `source` into `panel [depth, lanes]`.
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

/// Copies `C` columns of `matrix [·, width]`, from column `first` on, to the first columns of
/// `to [·, stride]`. `C` is a constant so that the compiler inlines the copy of each row.
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

/// Copies `line(i)` to column `i` of `to [·, stride]`, for each `i` below `count`. The other
/// columns do not change.
fn interleave<'a>(line: impl Fn(usize) -> &'a [f32], count: usize, stride: usize, to: &mut [f32]) {
    // The writes are strided, so the destination is cut into blocks that fit the nearest cache.
    const BLOCK: usize = 64;
    for (block, to) in to.chunks_mut(BLOCK * stride).enumerate() {
        for i in 0..count {
            let line = &line(i)[BLOCK * block..];
            to[i..].iter_mut().step_by(stride).zip(line).for_each(|(to, &from)| *to = from);
        }
    }
}

/// The left side of a product, `[rows, depth]`, packed into tiles of some rows, each stored column
/// by column.
#[derive(Clone, Copy)]
pub(super) struct PackedLeft<'a> {
    /// The tiles, each `[depth, height]`.
    data: &'a [f32],
    pub rows: usize,
    /// The length of the inner axis.
    depth: usize,
}

impl<'a> PackedLeft<'a> {
    /// Packs two ranges of columns of `matrix [rows, stride]`, one after the other, into `scratch`,
    /// which grows if needed.
    pub fn pack(
        level: SimdLevel,
        matrix: &[f32],
        stride: usize,
        columns: [Range<usize>; 2],
        scratch: &'a mut Vec<f32>,
    ) -> Result<Self> {
        let rows = matrix.len().div_ceil(stride);
        let depth = columns.iter().map(Range::len).sum();
        let padded = tile_heights(rows, level.rows()).map(|(_, height)| height).sum::<usize>();
        // The padding rows of the last tile keep old values: their results are not stored.
        try_grow("the left side of a product", scratch, padded * depth)?;
        let mut to = &mut scratch[..padded * depth];
        for (first, height) in tile_heights(rows, level.rows()) {
            for columns in &columns {
                let (tile, rest) = to.split_at_mut(height * columns.len());
                let row = |i: usize| &matrix[(first + i) * stride..][columns.clone()];
                interleave(row, height.min(rows - first), height, tile);
                to = rest;
            }
        }
        Ok(Self { data: &scratch[..padded * depth], rows, depth })
    }
}

/// Returns the first row and the height of each tile. Heights are about equal and at most `max`.
/// Only a few different heights occur, because the code is compiled once for each height.
#[inline(always)]
fn tile_heights(rows: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let rest = rows - first;
        if rest == 0 {
            return None;
        }
        let height = match rest.div_ceil(rest.div_ceil(max)) {
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

/// A kernel that computes `out [panels, rows, N] += left [rows, depth] · right[depth, panels]`.
pub(super) struct AddProduct<'a> {
    pub left: PackedLeft<'a>,
    pub right: &'a PackedRight,
    /// The rows of `right` to multiply `left` with.
    pub depth: Range<usize>,
    /// The first panel of `right`.
    pub first: usize,
    /// `[panels, rows, N]`. Its length is the number of panels.
    pub out: &'a mut [f32],
}

impl SimdKernel for AddProduct<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        add_product::<V, N, ROWS>(self);
    }
}

/// Computes an [`AddProduct`].
#[inline(always)]
pub(super) fn add_product<V: SimdVector, const N: usize, const ROWS: usize>(p: AddProduct<'_>) {
    assert_eq!(p.left.depth, p.depth.len(), "the inner axes of a product differ");
    let panel_len = p.left.rows * N;
    let wide = p.right.first_narrow.saturating_sub(p.first).min(p.out.len() / panel_len);
    let (wide_out, narrow_out) = p.out.split_at_mut(wide * panel_len);
    let (left, depth) = (p.left, &p.depth);
    add_panels::<V, N, ROWS, 2>(left, p.right, depth, p.first, wide_out);
    add_panels::<V, N, ROWS, 1>(left, p.right, depth, p.first + wide, narrow_out);
}

/// Multiplies with the panels from `first` on, as many as `out [panels, rows, N]` has. Computes `W`
/// vectors of each panel: 2 for whole panels, 1 for narrow ones.
#[inline(always)]
fn add_panels<V: SimdVector, const N: usize, const ROWS: usize, const W: usize>(
    left: PackedLeft<'_>,
    right: &PackedRight,
    depth: &Range<usize>,
    mut first: usize,
    mut out: &mut [f32],
) {
    let panel_len = left.rows * N;
    // With few rows, one panel leaves registers unused and each addition waits for the previous
    // one, so three panels are computed at once.
    if left.rows * 3 <= ROWS {
        while out.len() >= 3 * panel_len {
            let (three, rest) = out.split_at_mut(3 * panel_len);
            let panels = [
                right.panel(first, depth),
                right.panel(first + 1, depth),
                right.panel(first + 2, depth),
            ];
            add_tiles::<V, N, ROWS, 3, W>(left, panels, three);
            (out, first) = (rest, first + 3);
        }
    }
    for panel in out.chunks_exact_mut(panel_len) {
        add_tiles::<V, N, ROWS, 1, W>(left, [right.panel(first, depth)], panel);
        first += 1;
    }
}

/// Multiplies all rows with `P` panels `[depth, N]`, and adds to `out [P, rows, N]`.
#[inline(always)]
fn add_tiles<V: SimdVector, const N: usize, const ROWS: usize, const P: usize, const W: usize>(
    left: PackedLeft<'_>,
    panels: [&[f32]; P],
    out: &mut [f32],
) {
    let mut at = 0;
    for (row, height) in tile_heights(left.rows, ROWS) {
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
            _ => unreachable!("tile_heights returns no other height"),
        }
    }
}

/// Multiplies a tile of `M` rows, from `row` on, with `P` panels `[depth, N]`, and adds to
/// `out [P, rows, N]`. Rows past the last are not stored.
#[inline(always)]
fn add_tile<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
    left: PackedLeft<'_>,
    panels: [&[f32]; P],
    out: &mut [f32],
    row: usize,
) {
    let mut sums = [[[V::splat(0.0); W]; M]; P];
    // All indices of `sums` are constants after unrolling, so that the sums stay in registers.
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

/// The innermost loop of every product: `sums[p] [M, N] += left [depth, M]ᵀ · panel [depth, N]` for
/// each panel p. Computes the first `W` vectors of each row of N.
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
                // No closures: a closure that is not inlined is compiled for the baseline
                // instruction set.
                for w in 0..W {
                    sums[p][i][w] = sums[p][i][w].add_product(left, vectors[w]);
                }
            }
        }
    }
    sums
}

/// A kernel for some columns of a left side: `sums += column sums`, and for each right side
/// `to [columns, ·] += left[.., columns]ᵀ · right`, rows of a weight gradient.
pub(super) struct AddTransposed<'a> {
    /// `[depth, stride]`
    pub left: &'a [f32],
    pub stride: usize,
    /// The index of the first column.
    pub first: usize,
    /// `[columns]`, accumulated. Its length is the number of columns.
    pub sums: &'a mut [f32],
    /// Right sides `[depth, ·]`, each with its result `to [columns, ·]`.
    pub products: Vec<(&'a PackedRight, &'a mut [f32])>,
    /// Scratch memory of at least [`Self::scratch_len`] elements.
    pub scratch: &'a mut [f32],
}

impl AddTransposed<'_> {
    /// Returns the length of `scratch`.
    pub fn scratch_len(level: SimdLevel, columns: usize, depth: usize) -> usize {
        columns.next_multiple_of(level.rows()) * depth
    }

    /// Packs the columns into `scratch [tiles, depth, ROWS]` and adds their sums. The padding
    /// columns of the last tile keep old values: their results are not stored.
    #[inline(always)]
    fn pack<const ROWS: usize>(&mut self, depth: usize) {
        for (k, row) in self.left.chunks_exact(self.stride).enumerate() {
            let columns = &row[self.first..][..self.sums.len()];
            self.sums.iter_mut().zip(columns).for_each(|(sum, &d)| *sum += d);
            let whole = columns.len() / ROWS;
            for i in 0..whole {
                *lanes_mut::<ROWS>(self.scratch, (i * depth + k) * ROWS) =
                    *lanes(columns, i * ROWS);
            }
            let rest = &columns[whole * ROWS..];
            if !rest.is_empty() {
                self.scratch[(whole * depth + k) * ROWS..][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

impl SimdKernel for AddTransposed<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(mut self) {
        // to [columns, ·] += left [depth, columns]ᵀ · right [depth, ·], for one panel of the right
        // side and ROWS columns of the left side at a time.
        let depth = self.left.len() / self.stride;
        self.pack::<ROWS>(depth);
        let left_columns = self.sums.len();
        for (right, to) in self.products {
            let columns = to.len() / left_columns;
            for panel in 0..right.panels {
                let panels = [right.panel(panel, &(0..depth))];
                let first = panel * N;
                let width = N.min(columns - first);
                let tiles = to.chunks_mut(ROWS * columns);
                for (left, to) in self.scratch.chunks_exact(depth * ROWS).zip(tiles) {
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
