//! Sums of the columns of a matrix.

use std::ops::Range;

use super::{over_two_axes, product};
use crate::kernels::{
    COLUMN_SUM, COLUMN_SUM_BLOCK, COLUMN_SUM_LANES, COLUMN_SUM_THREADS, ColumnSumArgs,
};
use crate::plan::{BufferSlice, Dispatch, Stage};

/// Columns of a matrix to sum.
#[derive(Clone)]
pub(crate) struct ColumnSum {
    pub slice: BufferSlice,
    pub rows: usize,
    /// The distance between rows, in elements.
    pub stride: usize,
    /// The elements of the first row in the slice, one for each column to sum.
    pub range: Range<usize>,
}

/// Returns a dispatch that sums columns. Its rows are split into parts, whose partial sums follow
/// one another.
pub(super) fn sum_stage(
    label: &str,
    columns: &ColumnSum,
    rows_part: usize,
    out: BufferSlice,
    to: usize,
    accumulate: bool,
) -> Stage {
    let ColumnSum { slice, rows, stride, ref range } = *columns;
    let width = range.len();
    // A lane adds a few rows at least.
    let lanes = (rows_part / 4).clamp(1, COLUMN_SUM_LANES);
    let lanes = 1 << lanes.ilog2();
    let args = ColumnSumArgs {
        rows: rows as u32,
        rows_part: rows_part as u32,
        columns: width as u32,
        first: range.start as u32,
        stride: stride as u32,
        out_first: to as u32,
        part_apart: width as u32,
        accumulate: u32::from(accumulate),
        lanes: lanes as u32,
    };
    let tile = COLUMN_SUM_THREADS / lanes;
    let (groups, parts) = (width.div_ceil(tile), rows.div_ceil(rows_part));
    let [x, y, _] = over_two_axes(groups);
    Stage::Once(Dispatch {
        label: label.to_owned(),
        kernel: &COLUMN_SUM,
        constants: Vec::new(),
        bindings: vec![slice, out],
        args: args.as_u32s().to_vec(),
        workgroups: [x, y, parts as u64],
        flops: product([rows, width]),
        padded_flops: product([groups, tile, rows]),
        bytes: slice.element.size() * product([rows, width])
            + out.element.size() * product([parts, width]),
        iterations: iterations(rows_part.div_ceil(lanes)) as u64,
    })
}

/// Returns the iterations of a thread that adds up `rows`: these, their blocks, and the tree.
fn iterations(rows: usize) -> usize {
    let blocks = rows.div_ceil(COLUMN_SUM_BLOCK);
    let outer_blocks = blocks.div_ceil(COLUMN_SUM_BLOCK);
    rows + blocks + outer_blocks + COLUMN_SUM_LANES.ilog2() as usize + 1
}
