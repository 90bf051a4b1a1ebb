//! The stages that are plain linear algebra: products and column sums of matrices inside buffers.

use super::{Dispatch, Machine, Slice, Stage};
use crate::kernels::{COLUMN_SUM, ColumnSumArgs, Kernel, MATMUL, MatmulArgs};

/// Workgroups a dispatch may have along one axis: WebGPU's default, which every adapter allows.
pub(super) const MAX_WORKGROUPS: usize = 65_535;

/// Depth of one product's sum in one dispatch. Every 16 of it cost a slice of 16 iterations and four
/// more around them, so this stays below [`crate::kernels::LOOP_BUDGET`].
const MATMUL_MAX_DEPTH: usize = 32_768;

/// Rows that one dispatch sums, 16 lanes taking turns.
const COLUMN_SUM_MAX_ROWS: usize = 16 * 32_768;

/// A matrix inside a bound slice.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    slice: Slice,
    first: usize,
    stride: usize,
    transposed: bool,
}

impl Operand {
    /// Rows of the matrix are rows in memory, `stride` apart, from element `first` of the slice.
    pub fn plain(slice: Slice, first: usize, stride: usize) -> Self {
        Self { slice, first, stride, transposed: false }
    }

    /// Rows in memory are the matrix's columns.
    pub fn transposed(slice: Slice, first: usize, stride: usize) -> Self {
        Self { slice, first, stride, transposed: true }
    }

    /// The index of the matrix's element (row, column).
    fn index(&self, row: usize, column: usize) -> u32 {
        let (major, minor) = if self.transposed { (column, row) } else { (row, column) };
        (self.first + major * self.stride + minor) as u32
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Nothing.
    Zero,
    /// These `n` numbers, for every row.
    Bias(Slice),
    /// What the result's place holds.
    Present,
}

/// `c [m, n] = start + a [m, k] · b [k, n]`: one dispatch, or several that each make as large a
/// piece as one may.
pub(crate) fn matmul(
    machine: &Machine,
    label: &str,
    mnk: [usize; 3],
    a: Operand,
    b: Operand,
    start: Start,
    c: Operand,
) -> Vec<Stage> {
    matmul_in_pieces(label, mnk, largest_piece(machine, mnk), a, b, start, c)
}

/// The same in pieces of at most `most_m` × `most_n` × `most_k`.
pub(crate) fn matmul_in_pieces(
    label: &str,
    [m, n, k]: [usize; 3],
    [most_m, most_n, most_k]: [usize; 3],
    a: Operand,
    b: Operand,
    start: Start,
    c: Operand,
) -> Vec<Stage> {
    let bias = match start {
        Start::Bias(slice) => Some(slice),
        Start::Zero | Start::Present => None,
    };
    let mut stages = Vec::new();
    for (m0, m) in chunks(m, most_m) {
        for (n0, n) in chunks(n, most_n) {
            for (k0, k) in chunks(k, most_k) {
                let args = MatmulArgs {
                    m: m as u32,
                    n: n as u32,
                    k: k as u32,
                    a_first: a.index(m0, k0),
                    a_stride: a.stride as u32,
                    b_first: b.index(k0, n0),
                    b_stride: b.stride as u32,
                    c_first: c.index(m0, n0),
                    c_stride: c.stride as u32,
                    bias_first: n0 as u32,
                    add_bias: u32::from(k0 == 0 && bias.is_some()),
                    accumulate: u32::from(k0 > 0 || matches!(start, Start::Present)),
                };
                stages.push(Stage::Once(Dispatch {
                    label: label.to_owned(),
                    kernel: &MATMUL,
                    constants: [a.transposed, b.transposed].map(u32::from).to_vec(),
                    // A binding cannot stay empty: where there is no bias, b is bound and not read.
                    bindings: vec![a.slice, b.slice, bias.unwrap_or(b.slice), c.slice],
                    args: bytemuck::cast_slice(&[args]).to_vec(),
                    workgroups: tiles(&MATMUL, n, m),
                    flops: 2 * product([m, n, k]),
                    padded_flops: padded_outputs(&MATMUL, n, m) * 2 * k as u64,
                    bytes: 4 * (product([m, k]) + product([n, k]) + product([m, n])),
                    iterations: k.div_ceil(16) as u64 * (17 + 2),
                }));
            }
        }
    }
    stages
}

/// The largest piece of an m × n × k product that one dispatch makes: limited by its workgroups, by
/// the length of its loops and by its work.
fn largest_piece(machine: &Machine, [m, n, k]: [usize; 3]) -> [usize; 3] {
    let [tile_n, tile_m] = (MATMUL.workgroup)(&[]).tile.map(|tile| tile as usize);
    let k = k.min(MATMUL_MAX_DEPTH);
    // As many columns or rows as the work allows, in whole tiles, at least one.
    let most = |tile: usize, others: usize| {
        let flops_each = 2 * product([others, k]).max(1);
        let tiles = machine.dispatch_flops() / (flops_each * tile as u64);
        tile * tiles.clamp(1, MAX_WORKGROUPS as u64) as usize
    };
    let n = n.min(most(tile_n, tile_m));
    let m = m.min(most(tile_m, n));
    [m, n, k]
}

/// `out[to..] = Σ over rows` of `columns` of `a`, whose rows are `stride` apart.
pub(crate) fn column_sum(
    label: &str,
    rows: usize,
    columns: std::ops::Range<usize>,
    a: Slice,
    stride: usize,
    out: Slice,
    to: usize,
) -> Vec<Stage> {
    let width = columns.len();
    chunks(rows, COLUMN_SUM_MAX_ROWS)
        .map(|(row0, rows)| {
            let args = ColumnSumArgs {
                rows: rows as u32,
                columns: width as u32,
                first: (row0 * stride + columns.start) as u32,
                stride: stride as u32,
                out_first: to as u32,
                accumulate: u32::from(row0 > 0),
            };
            Stage::Once(Dispatch {
                label: label.to_owned(),
                kernel: &COLUMN_SUM,
                constants: Vec::new(),
                bindings: vec![a, out],
                args: bytemuck::cast_slice(&[args]).to_vec(),
                workgroups: tiles(&COLUMN_SUM, width, 1),
                flops: product([rows, width]),
                padded_flops: padded_outputs(&COLUMN_SUM, width, 1) * rows as u64,
                bytes: 4 * product([rows + 1, width]),
                iterations: rows.div_ceil(16) as u64 + 5,
            })
        })
        .collect()
}

/// Workgroups that cover `columns` × `rows` outputs.
fn tiles(kernel: &Kernel, columns: usize, rows: usize) -> [u64; 3] {
    let [tile_columns, tile_rows] = (kernel.workgroup)(&[]).tile.map(|t| t as usize);
    [columns.div_ceil(tile_columns) as u64, rows.div_ceil(tile_rows) as u64, 1]
}

/// Outputs that those workgroups make, padding included.
fn padded_outputs(kernel: &Kernel, columns: usize, rows: usize) -> u64 {
    let tile: u64 = (kernel.workgroup)(&[]).tile.iter().map(|&t| u64::from(t)).product();
    tiles(kernel, columns, rows).iter().product::<u64>() * tile
}

/// `0..total` in pieces of at most `most`: (start, length).
pub(super) fn chunks(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(most).map(move |start| (start, most.min(total - start)))
}

/// A product of sizes that may not fit a usize of 32 bits.
pub(super) fn product<const N: usize>(sizes: [usize; N]) -> u64 {
    sizes.into_iter().map(|size| size as u64).product()
}
