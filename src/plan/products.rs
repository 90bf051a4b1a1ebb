//! The stages that are plain linear algebra: products and column sums of matrices inside buffers.

use super::{Dispatch, Slice, Stage};
use crate::kernels::{COLUMN_SUM, ColumnSumArgs, Kernel, MATMUL, MatmulArgs};

/// Workgroups a dispatch may have along one axis: WebGPU's default, which every adapter allows.
const MAX_WORKGROUPS: usize = 65_535;

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

/// `c [m, n] = a [m, k] · b [k, n] (+ bias)`: one dispatch, or several where the output has more
/// tiles along an axis, or the sum more terms, than one may have. `bias` is `Err` of any slice to
/// bind in its place where there is none.
pub(crate) fn matmul(
    label: &'static str,
    [m, n, k]: [usize; 3],
    a: Operand,
    b: Operand,
    bias: Result<Slice, Slice>,
    c: Operand,
) -> Vec<Stage> {
    let [tile_n, tile_m] = MATMUL.tile.map(|t| t as usize * MAX_WORKGROUPS);
    let mut stages = Vec::new();
    for (m0, m) in chunks(m, tile_m) {
        for (n0, n) in chunks(n, tile_n) {
            for (k0, k) in chunks(k, MATMUL_MAX_DEPTH) {
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
                    add_bias: u32::from(bias.is_ok() && k0 == 0),
                    accumulate: u32::from(k0 > 0),
                };
                stages.push(Stage::Once(Dispatch {
                    label,
                    kernel: &MATMUL,
                    constants: vec![a.transposed, b.transposed],
                    bindings: vec![
                        a.slice,
                        b.slice,
                        bias.unwrap_or_else(|placeholder| placeholder),
                        c.slice,
                    ],
                    args: bytemuck::cast_slice(&[args]).to_vec(),
                    workgroups: tiles(&MATMUL, n, m),
                    flops: 2 * product([m, n, k]),
                    bytes: 4 * (product([m, k]) + product([n, k]) + product([m, n])),
                    iterations: k.div_ceil(16) as u64 * (17 + 2),
                }));
            }
        }
    }
    stages
}

/// `out[to..] = Σ over rows` of `columns` of `a`, whose rows are `stride` apart.
pub(crate) fn column_sum(
    label: &'static str,
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
                label,
                kernel: &COLUMN_SUM,
                constants: Vec::new(),
                bindings: vec![a, out],
                args: bytemuck::cast_slice(&[args]).to_vec(),
                workgroups: tiles(&COLUMN_SUM, width, 1),
                flops: product([rows, width]),
                bytes: 4 * product([rows + 1, width]),
                iterations: rows.div_ceil(16) as u64 + 5,
            })
        })
        .collect()
}

/// Workgroups that cover `columns` × `rows` outputs.
pub(super) fn tiles(kernel: &Kernel, columns: usize, rows: usize) -> [u64; 3] {
    let [tile_columns, tile_rows] = kernel.tile.map(|t| t as usize);
    [columns.div_ceil(tile_columns) as u64, rows.div_ceil(tile_rows) as u64, 1]
}

/// `0..total` in pieces of at most `most`: (start, length).
fn chunks(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(most).map(move |start| (start, most.min(total - start)))
}

/// A product of sizes that may not fit a usize of 32 bits.
pub(super) fn product<const N: usize>(sizes: [usize; N]) -> u64 {
    sizes.into_iter().map(|size| size as u64).product()
}
