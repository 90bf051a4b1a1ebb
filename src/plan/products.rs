//! The linear-algebra stages: products and column sums of matrices inside buffers.

use std::cell::Cell;
use std::ops::Range;

use super::tiles::ProductTile;
use super::{BufferId, BufferList, BufferSlice, DeviceCaps, Dispatch, ElementType, Role, Stage};
use crate::kernels::{COLUMN_SUM, ColumnSumArgs, MatmulArgs};

/// The largest number of workgroups of a dispatch along one axis: WebGPU's default limit.
pub(super) const MAX_WORKGROUPS: usize = 65_535;

/// The longest sum that one workgroup computes. Every 16 elements cost a slice of 16 iterations and
/// a few more, so this stays below [`crate::kernels::LOOP_BUDGET`].
const MATMUL_MAX_DEPTH: usize = 16_384;

/// The shortest sum that is worth its own workgroup.
const MATMUL_MIN_DEPTH: usize = 512;

/// The most rows that one workgroup sums, with 16 threads per column.
const COLUMN_SUM_MAX_ROWS: usize = 16 * 32_768;

/// The fewest rows that are worth their own workgroup.
const COLUMN_SUM_MIN_ROWS: usize = 1024;

/// The element type of partial results.
const PARTIAL: ElementType = ElementType::F32;

/// A matrix inside a bound slice.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    slice: BufferSlice,
    first: usize,
    stride: usize,
    transposed: bool,
    /// If the rows in memory are grouped in runs: the number of rows of a run, and the number of
    /// elements from one run to the next.
    runs: Option<(usize, usize)>,
}

impl Operand {
    /// Makes a matrix whose rows are rows in memory, `stride` apart, from element `first` of the
    /// slice.
    pub fn plain(slice: BufferSlice, first: usize, stride: usize) -> Self {
        Self { slice, first, stride, transposed: false, runs: None }
    }

    /// Makes a matrix whose columns are rows in memory.
    pub fn transposed(slice: BufferSlice, first: usize, stride: usize) -> Self {
        Self { transposed: true, ..Self::plain(slice, first, stride) }
    }

    /// Groups the rows in memory in runs of `rows`, with `skip` elements from one run to the next.
    pub fn in_runs(self, rows: usize, skip: usize) -> Self {
        Self { runs: Some((rows, skip)), ..self }
    }

    /// Returns the kernel's arguments for the matrix from element (row, column) on.
    fn from(&self, row: usize, column: usize) -> [u32; 5] {
        let (major, minor) = if self.transposed { (column, row) } else { (row, column) };
        let args = match self.runs {
            // One run without an end.
            None => {
                [self.first + major * self.stride + minor, self.stride, 0, u32::MAX as usize, 0]
            }
            Some((run, skip)) => [self.first + minor, self.stride, major, run, skip],
        };
        args.map(|arg| arg as u32)
    }

    /// Returns true if every row in memory starts at a whole quad, and the slice ends at one. The
    /// matrix starts at element `first` of the slice.
    fn is_aligned(&self, first: u32) -> bool {
        let skip = self.runs.map_or(0, |(_, skip)| skip);
        let numbers = [self.slice.len, first as usize, self.stride, skip];
        numbers.iter().all(|number| number.is_multiple_of(4))
    }

    /// Returns the bytes of `len` of its elements.
    fn bytes(&self, len: u64) -> u64 {
        self.slice.element.size() * len
    }
}

/// The term that is added to a product before the result is stored.
#[derive(Clone, Copy)]
pub(crate) enum Epilogue {
    /// Nothing.
    Zero,
    /// These `n` numbers, to every row.
    Bias(BufferSlice),
    /// The current contents of the result.
    Present,
}

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

/// Makes the stages of products and sums. Products with few results and long sums are computed in
/// parts; the partial results share one buffer until they are added up.
pub(crate) struct ProductPlanner<'a> {
    caps: &'a DeviceCaps,
    /// The FLOPs of the plan's forward pass.
    plan_flops: u64,
    partials: BufferId,
    partials_len: Cell<usize>,
}

impl<'a> ProductPlanner<'a> {
    /// Makes a planner for a plan whose forward pass has `plan_flops`. It puts partial results into the next of
    /// `buffers`. Call [`Self::add_partials`] after all stages are made.
    pub fn new(caps: &'a DeviceCaps, plan_flops: u64, buffers: &BufferList) -> Self {
        Self { caps, plan_flops, partials: buffers.next_id(), partials_len: Cell::new(0) }
    }

    fn tile(&self, mnk: [usize; 3]) -> ProductTile {
        ProductTile::choose(mnk, self.plan_flops, self.caps)
    }

    /// Adds the buffer of partial results if there are any. It is large enough for every product.
    pub fn add_partials(&self, buffers: &mut BufferList) {
        let len = self.partials_len.get();
        if len > 0 {
            buffers.add("partials", "[parts, ·]", PARTIAL, len, Role::Scratch);
        }
    }

    fn partials(&self, len: usize) -> BufferSlice {
        self.partials_len.set(self.partials_len.get().max(len));
        BufferSlice { buffer: self.partials, element: PARTIAL, first: 0, len }
    }

    /// Returns the number of parts for a product of `groups` workgroups, at most `most`.
    fn parts(&self, groups: u64, most: usize) -> usize {
        // Enough workgroups to fill the device several times.
        let enough = if self.caps.software { 2 * self.caps.usable_cores() as u64 } else { 512 };
        let parts = (enough / groups.max(1)).min(most as u64);
        if parts < 2 { 1 } else { parts as usize }
    }

    /// Returns the stages of `c [m, n] = epilogue + a [m, k] · b [k, n]`: one dispatch, or several
    /// of the largest allowed size.
    pub fn matmul(
        &self,
        label: &str,
        mnk: [usize; 3],
        a: Operand,
        b: Operand,
        epilogue: Epilogue,
        c: Operand,
    ) -> Vec<Stage> {
        let [m, n, k] = mnk;
        let [x, y] = self.tile(mnk).groups(m, n);
        let parts = self.parts(x * y, k / MATMUL_MIN_DEPTH);
        let is_whole = c.stride == n && c.runs.is_none() && m * n <= MAX_WORKGROUPS * 16;
        if parts == 1 || !is_whole || matches!(epilogue, Epilogue::Bias(_)) {
            let most = self.largest_dispatch(mnk);
            return self.matmul_in_dispatches(label, mnk, most, a, b, epilogue, c);
        }
        self.matmul_split_k(label, mnk, parts, a, b, epilogue, c)
    }

    /// Split-K: computes the product with k in parts, one workgroup along z per part, and adds them
    /// up.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of matmul, and the number of parts"
    )]
    fn matmul_split_k(
        &self,
        label: &str,
        [m, n, k]: [usize; 3],
        parts: usize,
        a: Operand,
        b: Operand,
        epilogue: Epilogue,
        c: Operand,
    ) -> Vec<Stage> {
        let k_part = k.div_ceil(parts).next_multiple_of(16).min(MATMUL_MAX_DEPTH);
        let tile = self.tile([m, n, k]);
        let [x, y] = tile.groups(m, n);
        let flops = 2 * x * y * product([tile.rows(), tile.columns(), k_part]);
        let parts_at_once = (self.caps.dispatch_flops() / flops).clamp(1, parts as u64) as usize;
        let mut stages = Vec::new();
        for (k0, k) in split(k, k_part * parts_at_once) {
            let parts = k.div_ceil(k_part);
            let partials = self.partials(parts * m * n);
            let product = SubProduct { first: [0, 0, k0], mnk: [m, n, k], k_part, tile };
            let to = Operand::plain(partials, 0, n);
            stages.push(product.stage(label, a, b, Epilogue::Zero, to));
            let columns =
                ColumnSum { slice: partials, rows: parts, stride: m * n, range: 0..m * n };
            let accumulate = k0 > 0 || matches!(epilogue, Epilogue::Present);
            stages.push(sum_stage(label, &columns, parts, c.slice, c.first, accumulate));
        }
        stages
    }

    /// Computes a product in dispatches of at most `most_m` × `most_n` × `most_k`.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of matmul, and a dispatch's largest size"
    )]
    pub fn matmul_in_dispatches(
        &self,
        label: &str,
        [m, n, k]: [usize; 3],
        [most_m, most_n, most_k]: [usize; 3],
        a: Operand,
        b: Operand,
        epilogue: Epilogue,
        c: Operand,
    ) -> Vec<Stage> {
        let mut stages = Vec::new();
        for (m0, m) in split(m, most_m) {
            for (n0, n) in split(n, most_n) {
                for (k0, k) in split(k, most_k) {
                    let tile = self.tile([m, n, k]);
                    let product =
                        SubProduct { first: [m0, n0, k0], mnk: [m, n, k], k_part: k, tile };
                    let epilogue = if k0 > 0 { Epilogue::Present } else { epilogue };
                    stages.push(product.stage(label, a, b, epilogue, c));
                }
            }
        }
        stages
    }

    /// Returns the largest part of an m × n × k product that one dispatch may compute, limited by
    /// its workgroups, its loops and its work.
    fn largest_dispatch(&self, [m, n, k]: [usize; 3]) -> [usize; 3] {
        let tile = self.tile([m, n, k]);
        let (tile_n, tile_m) = (tile.columns(), tile.rows());
        let k = k.min(MATMUL_MAX_DEPTH);
        // As many columns or rows as the work allows, in whole tiles, at least one.
        let most = |tile: usize, others: usize| {
            let flops_each = 2 * product([others, k]).max(1);
            let tiles = self.caps.dispatch_flops() / (flops_each * tile as u64);
            tile * tiles.clamp(1, MAX_WORKGROUPS as u64) as usize
        };
        let n = n.min(most(tile_n, tile_m));
        let m = m.min(most(tile_m, n));
        [m, n, k]
    }

    /// Returns the stages of `out[to..] = Σ over rows` of columns. They add to the contents of
    /// `out` if `accumulate` is set.
    pub fn column_sum(
        &self,
        label: &str,
        columns: &ColumnSum,
        out: BufferSlice,
        to: usize,
        accumulate: bool,
    ) -> Vec<Stage> {
        let ColumnSum { rows, ref range, .. } = *columns;
        let groups = range.len().div_ceil(16) as u64;
        let parts = self.parts(groups, rows / COLUMN_SUM_MIN_ROWS);
        let rows_part = rows.div_ceil(parts).min(COLUMN_SUM_MAX_ROWS);
        let parts = rows.div_ceil(rows_part);
        if parts == 1 {
            return vec![sum_stage(label, columns, rows_part, out, to, accumulate)];
        }
        let width = range.len();
        let partials = self.partials(parts * width);
        let of_parts = ColumnSum { slice: partials, rows: parts, stride: width, range: 0..width };
        vec![
            sum_stage(label, columns, rows_part, partials, 0, false),
            sum_stage(label, &of_parts, parts, out, to, accumulate),
        ]
    }
}

/// The block of a product that one dispatch computes. Its k is split into parts of `k_part`, with
/// one workgroup along z for each part.
struct SubProduct {
    /// The start along m, n and k.
    first: [usize; 3],
    mnk: [usize; 3],
    k_part: usize,
    tile: ProductTile,
}

impl SubProduct {
    /// Returns the dispatch. With several parts, `c` holds their results one after another.
    fn stage(&self, label: &str, a: Operand, b: Operand, epilogue: Epilogue, c: Operand) -> Stage {
        let Self { first: [m0, n0, k0], mnk: [m, n, k], k_part, tile } = *self;
        let bias = match epilogue {
            Epilogue::Bias(slice) => Some(slice),
            Epilogue::Zero | Epilogue::Present => None,
        };
        let [a_first, a_stride, a_row, a_run, a_skip] = a.from(m0, k0);
        let [b_first, b_stride, b_row, b_run, b_skip] = b.from(k0, n0);
        let [c_first, c_stride, c_row, c_run, c_skip] = c.from(m0, n0);
        let args = MatmulArgs {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            k_part: k_part as u32,
            a_transposed: u32::from(a.transposed),
            a_first,
            a_stride,
            a_row,
            a_run,
            a_skip,
            b_transposed: u32::from(b.transposed),
            b_first,
            b_stride,
            b_row,
            b_run,
            b_skip,
            c_first,
            c_stride,
            c_row,
            c_run,
            c_skip,
            part_apart: (m * n) as u32,
            bias_first: n0 as u32,
            add_bias: u32::from(bias.is_some()),
            accumulate: u32::from(matches!(epilogue, Epilogue::Present)),
            n_threads: tile.n_threads() as u32,
        };
        let runs = [a, b, c].iter().any(|operand| operand.runs.is_some());
        let parts = k.div_ceil(k_part) as u64;
        let [x, y] = tile.groups(m, n);
        let k_padded = k_part.min(k).next_multiple_of(tile.depth());
        Stage::Once(Dispatch {
            label: label.to_owned(),
            kernel: tile.kernel(a.is_aligned(a_first) && b.is_aligned(b_first)),
            constants: tile.constants(runs),
            // Every binding needs a buffer: without a bias, b is bound and not read.
            bindings: vec![a.slice, b.slice, bias.unwrap_or(b.slice), c.slice],
            args: args.as_u32s().to_vec(),
            workgroups: [x, y, parts],
            flops: 2 * product([m, n, k]),
            padded_flops: 2 * x * y * parts * product([tile.rows(), tile.columns(), k_padded]),
            bytes: a.bytes(product([m, k]))
                + b.bytes(product([n, k]))
                + c.bytes(parts * product([m, n])),
            iterations: tile.iterations(k_part) as u64,
        })
    }
}

/// Returns a dispatch that sums columns. Its rows are split into parts, whose partial sums follow
/// one another.
fn sum_stage(
    label: &str,
    columns: &ColumnSum,
    rows_part: usize,
    out: BufferSlice,
    to: usize,
    accumulate: bool,
) -> Stage {
    let ColumnSum { slice, rows, stride, ref range } = *columns;
    let width = range.len();
    let args = ColumnSumArgs {
        rows: rows as u32,
        rows_part: rows_part as u32,
        columns: width as u32,
        first: range.start as u32,
        stride: stride as u32,
        out_first: to as u32,
        part_apart: width as u32,
        accumulate: u32::from(accumulate),
    };
    let [tile, _] = (COLUMN_SUM.workgroup)(&[]).tile.map(|side| side as usize);
    let (groups, parts) = (width.div_ceil(tile), rows.div_ceil(rows_part));
    Stage::Once(Dispatch {
        label: label.to_owned(),
        kernel: &COLUMN_SUM,
        constants: Vec::new(),
        bindings: vec![slice, out],
        args: args.as_u32s().to_vec(),
        workgroups: [groups as u64, 1, parts as u64],
        flops: product([rows, width]),
        padded_flops: product([groups, tile, rows]),
        bytes: slice.element.size() * product([rows, width])
            + out.element.size() * product([parts, width]),
        iterations: rows_part.div_ceil(16) as u64 + 5,
    })
}

/// Splits `0..total` into ranges of at most `most`: (start, length).
pub(super) fn split(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(most).map(move |start| (start, most.min(total - start)))
}

/// Multiplies sizes whose product may not fit into a 32-bit usize.
pub(super) fn product<const N: usize>(sizes: [usize; N]) -> u64 {
    sizes.into_iter().map(|size| size as u64).product()
}
