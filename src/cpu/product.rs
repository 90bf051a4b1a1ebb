#![allow(clippy::needless_range_loop, reason = "loops over rows and panels read like the sums")]

//! Matrix products with packed operands. The right side is packed into panels of `N` columns, each
//! stored row by row; the left side into tiles of a few rows, each stored column by column.
//!
//! The product of one tile with one panel stays in registers over a block of the inner axis. For
//! each index of the inner axis, a row of the panel is loaded once and multiplied with one element
//! of each row of the tile.
//!
//! **The order of a sum.** The terms of a block of indices are added in their order, and the sums of
//! the blocks in theirs. So a sum of n terms in blocks of b has a chain of b + n / b additions instead
//! of n, and its rounding error is as much smaller. The order depends neither on the tile
//! sizes nor on the threads.

#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{SimdKernel, SimdLevel, SimdVector, lanes, lanes_mut};
use crate::error::{Result, try_grow, try_lazy_zeros};

/// Returns the length of the blocks of a sum of `depth` terms. Adding a block to the result in memory
/// takes as long as a few of its terms. So up to 128 terms are one block, and blocks of 64 become
/// blocks of 128 in long sums.
fn block_len(depth: usize) -> usize {
    match depth {
        ..=128 => 128,
        _ => (depth / 8).next_multiple_of(64).clamp(64, 128),
    }
}

/// The height of tiles up to which one panel has too few sums to keep a CPU busy.
const FEW_ROWS: usize = 4;

/// The most columns of an [`AddTransposed`]: a multiple of the tile height of every [`SimdLevel`], so
/// few that the gate gradients stay in the cache.
pub(super) const MAX_COLUMNS: usize = 48;

/// The bytes of the panels that stay in the nearest cache while all tiles are multiplied with them.
const CACHED_PANELS: usize = 16 << 10;

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
        let mut data: Vec<f32> = try_lazy_zeros("a packed matrix", panels * depth * lanes + line)?;
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
        let len = Self::packed_len(level, rows, depth);
        // The padding rows of the last tile keep old values: their results are not stored.
        try_grow("the left side of a product", scratch, len)?;
        let mut to = &mut scratch[..len];
        for (first, height) in tile_heights(rows, level.rows()) {
            for columns in &columns {
                let (tile, rest) = to.split_at_mut(height * columns.len());
                let row = |i: usize| &matrix[(first + i) * stride..][columns.clone()];
                interleave(row, height.min(rows - first), height, tile);
                to = rest;
            }
        }
        Ok(Self { data: &scratch[..len], rows, depth })
    }

    /// Returns the elements of a packed left side.
    fn packed_len(level: SimdLevel, rows: usize, depth: usize) -> usize {
        tile_heights(rows, level.rows()).map(|(_, height)| height).sum::<usize>() * depth
    }
}

/// A copy of a [`PackedLeft`], for another thread.
#[derive(Default)]
pub(super) struct LeftCopy {
    data: Vec<f32>,
    rows: usize,
    depth: usize,
}

impl LeftCopy {
    /// Grows until it can hold left sides `[rows, depth]`, with as many rows or fewer.
    pub fn grow(&mut self, level: SimdLevel, rows: usize, depth: usize) -> Result<()> {
        // The padding of the last tile may be higher with fewer rows.
        let lens = (1..=rows).map(|rows| PackedLeft::packed_len(level, rows, depth));
        let len = lens.max().unwrap_or(0);
        try_grow("a copy of the left side of a product", &mut self.data, len)
    }

    pub fn assign(&mut self, left: PackedLeft<'_>) {
        self.data[..left.data.len()].copy_from_slice(left.data);
        (self.rows, self.depth) = (left.rows, left.depth);
    }

    /// Returns the last assigned left side.
    pub fn view(&self, level: SimdLevel) -> PackedLeft<'_> {
        let Self { rows, depth, .. } = *self;
        let data = &self.data[..PackedLeft::packed_len(level, rows, depth)];
        PackedLeft { data, rows, depth }
    }
}

/// Returns the first row and the height of each tile. The last tile may be higher than the rows that
/// are left. Only some heights up to `max`, the registers' `ROWS`, occur: the code is compiled once
/// for each.
#[inline(always)]
fn tile_heights(rows: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let rest = rows - first;
        if rest == 0 {
            return None;
        }
        let height = tile_height(rest, max);
        let tile = (first, height);
        first += height.min(rest);
        Some(tile)
    })
}

/// Returns the height of the next tile if `rest` rows are left.
#[inline(always)]
fn tile_height(rest: usize, max: usize) -> usize {
    match max {
        // Four rows have too few sums in one panel, and too many for the registers in three. So
        // two tiles of two rows are faster, and no tile leaves four rows.
        6 => match rest {
            1 | 2 | 3 | 5 => rest,
            4 => 2,
            7 | 10 => 5,
            _ => 6,
        },
        // About equal heights.
        _ => match rest.div_ceil(rest.div_ceil(max)) {
            3 => 4,
            5 => 6,
            7 => 8,
            11.. => 12,
            same => same,
        },
    }
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
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
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
    // Tiles of few rows take three panels at once.
    let has_few_rows = tile_heights(left.rows, ROWS).any(|(_, height)| height <= FEW_ROWS);
    while has_few_rows && out.len() >= 3 * panel_len {
        let (three, rest) = out.split_at_mut(3 * panel_len);
        let panels = [0, 1, 2].map(|p| right.panel(first + p, depth));
        add_tiles::<V, N, ROWS, 3, W>(left, panels, three);
        (out, first) = (rest, first + 3);
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
    let block = block_len(left.depth);
    // A single tile reads the panels once.
    let slice = match tile_height(left.rows, ROWS) < left.rows {
        true => (CACHED_PANELS / (size_of::<f32>() * N * P)).next_multiple_of(block),
        false => left.depth,
    };
    for first in (0..left.depth).step_by(slice) {
        let depth = first..left.depth.min(first + slice);
        let mut at = 0;
        for (row, height) in tile_heights(left.rows, ROWS) {
            let data = &left.data[at..at + height * left.depth];
            at += height * left.depth;
            let tile = Tile { data, depth: depth.clone(), block, row, rows: left.rows };
            match height {
                1 => tile.add_few::<V, N, ROWS, 1, P, W>(panels, out),
                2 => tile.add_few::<V, N, ROWS, 2, P, W>(panels, out),
                3 if ROWS <= 6 => tile.add_few::<V, N, ROWS, 3, P, W>(panels, out),
                4 => tile.add_few::<V, N, ROWS, 4, P, W>(panels, out),
                5 if ROWS <= 6 => tile.add_each::<V, N, 5, P, W>(panels, out),
                6 => tile.add_each::<V, N, 6, P, W>(panels, out),
                8 if ROWS > 6 => tile.add_each::<V, N, 8, P, W>(panels, out),
                9 if ROWS > 6 => tile.add_each::<V, N, 9, P, W>(panels, out),
                10 if ROWS > 6 => tile.add_each::<V, N, 10, P, W>(panels, out),
                12 if ROWS > 6 => tile.add_each::<V, N, 12, P, W>(panels, out),
                _ => unreachable!("tile_height returns no other height"),
            }
        }
    }
}

/// A part of a product: some rows, some indices of the inner axis, and some vectors of each panel.
struct Tile<'a> {
    /// The rows over the whole inner axis, `[·, M]`.
    data: &'a [f32],
    /// The indices of the inner axis.
    depth: Range<usize>,
    /// The length of the blocks of a sum.
    block: usize,
    /// The first row.
    row: usize,
    /// The number of all rows. Rows past the last are not stored.
    rows: usize,
}

impl Tile<'_> {
    /// Multiplies a few rows with `P` panels at once, because one panel has too few sums: each waits
    /// about four cycles for the one before, and a CPU begins two in a cycle. If the registers do
    /// not suffice, one vector of each panel at a time.
    #[inline(always)]
    fn add_few<
        V: SimdVector,
        const N: usize,
        const ROWS: usize,
        const M: usize,
        const P: usize,
        const W: usize,
    >(
        &self,
        panels: [&[f32]; P],
        out: &mut [f32],
    ) {
        if M * P * W <= 2 * ROWS {
            return self.add::<V, N, M, P, W>(panels, 0, out);
        }
        for vector in 0..W {
            self.add::<V, N, M, P, 1>(panels, vector, out);
        }
    }

    /// Multiplies many rows with `P` panels, one after the other.
    #[inline(always)]
    fn add_each<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
        &self,
        panels: [&[f32]; P],
        out: &mut [f32],
    ) {
        for (panel, out) in panels.into_iter().zip(out.chunks_exact_mut(self.rows * N)) {
            self.add::<V, N, M, 1, W>([panel], 0, out);
        }
    }

    /// Multiplies `M` rows with `W` vectors of `P` panels `[depth, N]`, from `vector` on, and adds
    /// to `out [P, rows, N]`.
    #[inline(always)]
    fn add<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
        &self,
        panels: [&[f32]; P],
        vector: usize,
        out: &mut [f32],
    ) {
        let Self { block, row, rows, .. } = *self;
        for first in self.depth.clone().step_by(block) {
            let last = self.depth.end.min(first + block);
            let left = &self.data[first * M..last * M];
            let panels = panels.map(|panel| &panel[first * N..last * N]);
            let sums = multiply::<V, N, M, P, W>(left, panels, vector);
            for p in 0..P {
                let out = &mut out[(p * rows + row) * N..];
                match out.get_mut(..M * N) {
                    // All indices and the length are constants, so nothing is checked.
                    Some(out) if row + M <= rows => {
                        add_rows::<V, N, M, W>(&sums[p], out, M, vector)
                    }
                    _ => add_rows::<V, N, M, W>(&sums[p], out, rows - row, vector),
                }
            }
        }
    }
}

/// Adds the sums of the first `rows` of `M` rows to `out [rows, N]`, from `vector` on.
#[inline(always)]
fn add_rows<V: SimdVector, const N: usize, const M: usize, const W: usize>(
    sums: &[[V; W]; M],
    out: &mut [f32],
    rows: usize,
    vector: usize,
) {
    for i in 0..M {
        if i < rows {
            for w in 0..W {
                let out = &mut out[i * N + (vector + w) * V::WIDTH..][..V::WIDTH];
                sums[i][w].add(V::load(out)).store(out);
            }
        }
    }
}

/// The innermost loop of every product: the sums over a block of the inner axis, `left [·, M]ᵀ ·
/// panel [·, N]` for each panel. Computes `W` vectors of each row of N, from `vector` on.
#[inline(always)]
fn multiply<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
    left: &[f32],
    panels: [&[f32]; P],
    vector: usize,
) -> [[[V; W]; M]; P] {
    // All indices of `sums` are constants after unrolling, so that the sums stay in registers.
    let mut sums = [[[V::splat(0.0); W]; M]; P];
    let depth = left.len() / M;
    // With these lengths, no index in the loop is checked.
    let left = &left[..depth * M];
    let panels = panels.map(|panel| &panel[..depth * N]);
    for k in 0..depth {
        let left = &left[k * M..][..M];
        for p in 0..P {
            let right = &panels[p][k * N..][..N];
            let mut vectors = [V::splat(0.0); W];
            for w in 0..W {
                vectors[w] = V::load(&right[(vector + w) * V::WIDTH..]);
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

/// Returns `left [depth, ROWS]ᵀ · panel [depth, N]`, added up block by block.
#[inline(always)]
fn multiply_blocks<V: SimdVector, const N: usize, const ROWS: usize>(
    left: &[f32],
    panel: &[f32],
) -> [[V; 2]; ROWS] {
    // Short sums have shorter blocks, so that their chains are about as short.
    let block = (left.len() / ROWS / 8).clamp(8, 32);
    let mut totals = [[V::splat(0.0); 2]; ROWS];
    for (left, panel) in left.chunks(block * ROWS).zip(panel.chunks(block * N)) {
        let [sums] = multiply::<V, N, ROWS, 1, 2>(left, [panel], 0);
        for i in 0..ROWS {
            for w in 0..2 {
                totals[i][w] = totals[i][w].add(sums[i][w]);
            }
        }
    }
    totals
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
    pub sums: &'a mut [f64],
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
        /// The rows that are added in f32 before their sum is added in f64.
        const SUMMED: usize = 8;
        let mut sums = [0.0; MAX_COLUMNS];
        let sums = &mut sums[..self.sums.len()];
        for (k, row) in self.left.chunks_exact(self.stride).enumerate() {
            let columns = &row[self.first..][..sums.len()];
            sums.iter_mut().zip(columns).for_each(|(sum, &d)| *sum += d);
            if k % SUMMED == SUMMED - 1 || k == depth - 1 {
                self.sums.iter_mut().zip(&*sums).for_each(|(sum, &d)| *sum += f64::from(d));
                sums.fill(0.0);
            }
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
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(mut self) {
        // to [columns, ·] += left [depth, columns]ᵀ · right [depth, ·], for one panel of the right
        // side and ROWS columns of the left side at a time.
        let depth = self.left.len() / self.stride;
        self.pack::<ROWS>(depth);
        let left_columns = self.sums.len();
        for (right, to) in self.products {
            let columns = to.len() / left_columns;
            for panel in 0..right.panels {
                let first = panel * N;
                let panel = right.panel(panel, &(0..depth));
                let width = N.min(columns - first);
                let tiles = to.chunks_mut(ROWS * columns);
                for (left, to) in self.scratch.chunks_exact(depth * ROWS).zip(tiles) {
                    let totals = multiply_blocks::<V, N, ROWS>(left, panel);
                    let mut sums = [[0.0; N]; ROWS];
                    for i in 0..ROWS {
                        totals[i][0].store(&mut sums[i]);
                        totals[i][1].store(&mut sums[i][V::WIDTH..]);
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
