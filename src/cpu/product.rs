#![allow(clippy::needless_range_loop, reason = "loops over rows and panels read like the sums")]

//! Matrix products with a packed right side: panels of `N` columns, each stored row by row.
//!
//! A tile of some rows of the left side and one panel stays in registers over the whole inner axis:
//! each row of the panel is read once and multiplied by one number of each row. The additions to
//! one result always follow the order of the inner axis, so results depend neither on the size of
//! tiles nor on the thread.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{SimdKernel, SimdLevel, SimdVector, lanes, lanes_mut};
use crate::error::{Result, try_grow, try_untouched};

/// The right side of a product, `[depth, columns]`, in panels.
#[derive(Debug)]
pub(super) struct PackedRight {
    /// `[panels, depth, N]` from `start` on, with zeros after a panel's last column.
    data: Vec<f32>,
    /// The offset of the first cache line: a register load that crosses two cache lines takes twice
    /// the time.
    start: usize,
    panels: usize,
    pub depth: usize,
    lanes: usize,
    /// From this panel on, panels have at most half of their columns, and half of the work is done.
    narrow: usize,
}

/// The source of a panel's columns.
#[derive(Clone, Copy)]
pub(super) enum PanelSource<'a> {
    /// Rows `[columns, depth]` of a matrix, whose transpose is packed; the first column, and the
    /// number of columns from there on.
    Transposed(&'a [f32], usize, usize),
    /// The matrix itself, with rows of this length; the first column of the panel.
    Rows(&'a [f32], usize, usize),
}

impl PanelSource<'_> {
    /// Returns the number of columns from the first one on.
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
        let mut data: Vec<f32> = try_untouched("a packed matrix", panels * depth * lanes + line)?;
        let start = data.as_ptr().align_offset(64).min(line);
        let to = &mut data[start..start + panels * depth * lanes];
        let fill = |(i, panel): (usize, &mut [f32])| pack(source(i), depth, lanes, panel);
        match is_parallel {
            true => to.par_chunks_mut(depth * lanes).enumerate().for_each(fill),
            false => to.chunks_mut(depth * lanes).enumerate().for_each(fill),
        }
        Ok(Self { data, start, panels, depth, lanes, narrow })
    }

    /// Returns rows `depth` of panel `i`.
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

/// Copies `C` columns of `matrix [·, width]`, from `first` on, to the first columns of `to [·,
/// stride]`. The compiler knows `C`, so it makes no call per row.
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

/// Writes `line(i)` to column `i` of `to [·, stride]`. Columns from `count` on are not written.
fn interleave<'a>(line: impl Fn(usize) -> &'a [f32], count: usize, stride: usize, to: &mut [f32]) {
    // In blocks that fit into the nearest cache, because the writes are strided.
    const BLOCK: usize = 64;
    for (block, to) in to.chunks_mut(BLOCK * stride).enumerate() {
        for i in 0..count {
            let line = &line(i)[BLOCK * block..];
            to[i..].iter_mut().step_by(stride).zip(line).for_each(|(to, &from)| *to = from);
        }
    }
}

/// The left side of a product, `[rows, depth]`, in tiles. A tile is stored column by column.
#[derive(Clone, Copy)]
pub(super) struct PackedLeft<'a> {
    data: &'a [f32],
    pub rows: usize,
    depth: usize,
}

impl<'a> PackedLeft<'a> {
    /// Packs some columns of a row-major matrix into `space`, after those packed before.
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
        // Rows of a tile after the last keep their old contents, because their results are not
        // stored.
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

/// Returns the first row and the height of each tile. Heights are about equal and at most `most`.
/// There are few different heights, because each is compiled separately.
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
    /// The rows of `right` to multiply `left` by.
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

/// Computes panels from `first` on, each `W` vectors wide, as many as `out` holds.
#[inline(always)]
fn panels<V: SimdVector, const N: usize, const ROWS: usize, const W: usize>(
    left: PackedLeft<'_>,
    right: &PackedRight,
    depth: &Range<usize>,
    mut first: usize,
    mut out: &mut [f32],
) {
    let panel_len = left.rows * N;
    // If a tile of one panel would leave registers idle and wait for the previous sum, three panels
    // share it.
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

/// Computes all rows of `P` panels.
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

/// Computes a tile of `M` rows, from `row` on, and `P` panels. Rows after the last are not stored.
#[inline(always)]
fn add_tile<V: SimdVector, const N: usize, const M: usize, const P: usize, const W: usize>(
    left: PackedLeft<'_>,
    panels: [&[f32]; P],
    out: &mut [f32],
    row: usize,
) {
    let mut sums = [[[V::splat(0.0); W]; M]; P];
    // All indices are constants, so that the sums stay in registers.
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

/// The innermost loop: adds `left [depth, M]ᵀ` times each of the panels `[depth, N]`.
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
                // No closures: code that is not inlined is not compiled for the SIMD level.
                for w in 0..W {
                    sums[p][i][w] = sums[p][i][w].add_product(left, vectors[w]);
                }
            }
        }
    }
    sums
}

/// Sums columns of `left [depth, ·]`, from `first` on, and for some right sides adds `to [columns,
/// ·] += leftᵀ · right`, rows of a weight's gradient.
pub(super) struct AddTransposed<'a> {
    pub left: &'a [f32],
    pub stride: usize,
    pub first: usize,
    /// One sum per column, added to.
    pub sums: &'a mut [f32],
    pub products: Vec<(&'a PackedRight, &'a mut [f32])>,
    /// Scratch memory of at least the size that [`Self::space`] returns.
    pub space: &'a mut [f32],
}

impl AddTransposed<'_> {
    pub fn space(level: SimdLevel, columns: usize, depth: usize) -> usize {
        columns.next_multiple_of(level.rows()) * depth
    }

    /// Packs the columns, `[tiles, depth, ROWS]`, and sums them. Columns of a tile after the last
    /// keep their old contents, because their results are not stored.
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
