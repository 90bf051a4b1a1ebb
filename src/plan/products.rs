//! The linear-algebra stages: products and column sums of matrices inside buffers.

use std::cell::Cell;
use std::ops::Range;

use super::tiles::ProductTile;
use super::{BufferId, BufferList, BufferSlice, DeviceCaps, ElementType, Role, Stage};
use cut::Cut;
use gradients::bound_range;
use sums::sum_stage;

mod cut;
mod gradients;
mod sums;

pub(crate) use gradients::WeightGradient;
pub(crate) use sums::ColumnSum;

/// The largest number of workgroups of a dispatch along one axis: WebGPU's default limit.
pub(super) const MAX_WORKGROUPS: usize = 65_535;

/// The shortest sum that is worth its own workgroup on a software adapter.
const MATMUL_MIN_DEPTH: usize = 512;

/// The same for the large tile, which computes a sum several times as fast.
const LARGE_PART_MIN_DEPTH: usize = 128;

/// The most bytes of a product's partial results. H of 1024 gets four parts.
const PARTIALS_BYTES: u64 = 128 << 20;

/// The workgroups of the large tile that a large GPU computes at the same time: two on each of 132
/// multiprocessors.
const LARGE_AT_ONCE: u64 = 264;

/// The most rows that one workgroup sums, with 16 threads per column.
const COLUMN_SUM_MAX_ROWS: usize = 16 * 32_768;

/// The fewest rows that are worth their own workgroup.
const COLUMN_SUM_MIN_ROWS: usize = 1024;

/// The element type of partial results.
const PARTIAL: ElementType = ElementType::F32;

/// A matrix inside a bound slice.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Operand {
    slice: BufferSlice,
    first: usize,
    stride: usize,
    transposed: bool,
    /// If the rows in memory are grouped in runs: the number of rows of a run, and the number of
    /// elements from one run to the next.
    runs: Option<(usize, usize)>,
    /// In a transposed matrix: the row from which on elements are further away, and by how many.
    gap: Option<(usize, usize)>,
}

impl Operand {
    /// Makes a matrix whose rows are rows in memory, `stride` apart, from element `first` of the
    /// slice.
    pub fn plain(slice: BufferSlice, first: usize, stride: usize) -> Self {
        Self { slice, first, stride, transposed: false, runs: None, gap: None }
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

/// `c [m, n] = epilogue + a [m, k] · b [k, n]`
#[derive(Clone)]
pub(crate) struct Product {
    pub label: String,
    pub mnk: [usize; 3],
    pub a: Operand,
    pub b: Operand,
    pub epilogue: Epilogue,
    pub c: Operand,
}

impl Product {
    /// Returns true if the result has no gaps between its rows and can be added up from parts.
    fn is_splittable(&self) -> bool {
        let is_whole = self.c.stride == self.mnk[1] && self.c.runs.is_none();
        is_whole && !matches!(self.epilogue, Epilogue::Bias(_))
    }

    /// Returns the product with its result in `slice`, which covers the buffer from `start` on, or
    /// is laid out as if it did.
    fn to(&self, slice: BufferSlice, start: usize) -> Self {
        let c = Operand::plain(slice, self.result().start - start, self.mnk[1]);
        Self { c, ..self.clone() }
    }

    /// Returns the elements of the result in the buffer, if it is splittable.
    fn result(&self) -> Range<usize> {
        let first = self.c.slice.first + self.c.first;
        first..first + self.mnk[0] * self.mnk[1]
    }
}

/// Makes the stages of products and sums. Products with few results and long sums are computed in
/// parts; the partial results share one buffer until they are added up.
pub(crate) struct ProductPlanner<'a> {
    caps: &'a DeviceCaps,
    /// The FLOPs of the plan's forward pass.
    plan_flops: u64,
    /// The tile of all products, if a check forces one.
    forced: Option<ProductTile>,
    partials: BufferId,
    partials_len: Cell<usize>,
}

impl<'a> ProductPlanner<'a> {
    /// Makes a planner for a plan whose forward pass has `plan_flops`. It puts partial results into
    /// the next of `buffers`. Call [`Self::add_partials`] after all stages are made.
    pub fn new(caps: &'a DeviceCaps, plan_flops: u64, buffers: &BufferList) -> Self {
        let partials = buffers.next_id();
        Self { caps, plan_flops, forced: None, partials, partials_len: Cell::new(0) }
    }

    /// Makes all products with the large tile, to check it with small ones.
    pub fn with_large_tiles(self) -> Self {
        Self { forced: Some(ProductTile::Large), ..self }
    }

    /// Returns the tile of a product that is added up from at most `parts` large tiles along k.
    fn tile(&self, mnk: [usize; 3], parts: usize) -> ProductTile {
        let choose = || ProductTile::choose(mnk, parts, self.plan_flops, self.caps);
        self.forced.unwrap_or_else(choose)
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

    /// Returns the number of parts for `groups` workgroups, at most `most`.
    fn parts(&self, groups: u64, most: usize) -> usize {
        // Enough workgroups to fill the device several times.
        let enough = if self.caps.software { 2 * self.caps.usable_cores() as u64 } else { 512 };
        let parts = (enough / groups.max(1)).min(most as u64);
        if parts < 2 { 1 } else { parts as usize }
    }

    /// Returns the most parts of which the partial results, of `len` elements each, are bound.
    fn most_partials(&self, len: usize) -> usize {
        let limits = &self.caps.limits;
        let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let parts = PARTIALS_BYTES.min(bound) / PARTIAL.bytes(len.max(1));
        parts.try_into().unwrap_or(usize::MAX)
    }

    /// Returns the most parts of a product of large tiles, whose partial results have `len` elements:
    /// they take half as much memory as the operand a at most.
    fn most_large_parts(&self, [m, _, k]: [usize; 3], len: usize) -> usize {
        let by_operand = product([m, k]) / 2 / len.max(1) as u64;
        let by_operand = by_operand.try_into().unwrap_or(usize::MAX);
        (k / LARGE_PART_MIN_DEPTH).min(self.most_partials(len)).min(by_operand).max(1)
    }

    /// Returns the number of parts of large products with sums of length `k`, at most `most`: the
    /// number that takes the least time. The device computes as many tiles at a time as fit, so a
    /// product takes as many rounds, each as long as a part of k and the work around it. A tile's
    /// partial results are written and read again at the pace of memory.
    fn large_parts(&self, tiles: &[u64], k: usize, most: usize) -> usize {
        /// The k that a tile's first loads and its stores take the time of.
        const AROUND: u64 = 64;
        /// The twentieths of a k that the partial results of a tile take the time of: 128 KiB at 4
        /// TB/s, to 8.6 TFLOP that the tiles of a round have for each k at 40 TFLOP/s.
        const PARTIAL_TWENTIETHS: u64 = 3;
        let time = |&parts: &usize| {
            let (parts, part) = (parts as u64, k.div_ceil(parts) as u64);
            let rounds: u64 = tiles.iter().map(|n| (n * parts).div_ceil(LARGE_AT_ONCE)).sum();
            let partials = if parts == 1 { 0 } else { parts * tiles.iter().sum::<u64>() };
            20 * rounds * (part + AROUND) + PARTIAL_TWENTIETHS * partials
        };
        (1..=most).min_by_key(time).expect("at least one part")
    }

    /// Returns the stages of a product: one dispatch, or several of the largest allowed size.
    pub fn matmul(&self, product: &Product) -> Vec<Stage> {
        let [m, n, k] = product.mnk;
        let len = m * n;
        let most = if product.is_splittable() { self.most_large_parts([m, n, k], len) } else { 1 };
        let tile = self.tile(product.mnk, most);
        let [x, y] = tile.groups(m, n);
        let parts = match tile {
            ProductTile::Large => self.large_parts(&[x * y], k, most),
            _ if !product.is_splittable() => 1,
            // A GPU with few workgroups waits for each slice of k, and short parts are more exact.
            ProductTile::Staged(_) => {
                self.parts(x * y, k.div_ceil(tile.depth()).min(self.most_partials(len)))
            }
            ProductTile::Blocks(_) => {
                self.parts(x * y, (k / MATMUL_MIN_DEPTH).min(self.most_partials(len)))
            }
        };
        let gradient =
            WeightGradient { product: product.clone(), bias: None, bias_label: String::new() };
        self.in_parts(&product.label, &[gradient], tile, parts)
    }

    /// Computes products with sums of one length, with k in `parts`: one workgroup along z per part.
    /// Their partial results lie together as the results do, and are added up together.
    fn in_parts(
        &self,
        label: &str,
        gradients: &[WeightGradient],
        tile: ProductTile,
        parts: usize,
    ) -> Vec<Stage> {
        if parts == 1 {
            return self.whole(gradients, tile);
        }
        let k = gradients[0].product.mnk[2];
        let k_part = k.div_ceil(parts).next_multiple_of(tile.depth()).min(tile.max_depth());
        let parts = k.div_ceil(k_part);
        let mut ranges: Vec<_> = gradients.iter().flat_map(WeightGradient::results).collect();
        ranges.sort_by_key(|range| range.start);
        // Quads in the partial results are the quads of the results.
        let start = ranges[0].start / 4 * 4;
        let apart = (ranges[ranges.len() - 1].end - start).next_multiple_of(4);
        let partials = self.partials(parts * apart);
        let mut stages = Vec::new();
        for WeightGradient { product: whole, bias, .. } in gradients {
            let [m, n, _] = whole.mnk;
            let [most_m, most_n, _] = self.largest_dispatch(tile, [m, n, k_part]);
            let flops = 2 * product([most_m, most_n, k_part]);
            let at_once = (self.caps.product_flops() / flops).clamp(1, parts as u64) as usize;
            let part = Product { epilogue: Epilogue::Zero, ..whole.to(partials, start) };
            let sums_first = bias.map(|(slice, first)| slice.first + first - start);
            let most = [most_m, most_n, k_part * at_once];
            let cut = Cut { tile, most, parts: Some((k_part, apart)) };
            stages.extend(cut.stages(&part, sums_first));
        }
        let Product { epilogue, c, .. } = gradients[0].product;
        let bound = bound_range(gradients);
        let out = BufferSlice { first: bound.start, len: bound.len(), ..c.slice };
        let accumulate = matches!(epilogue, Epilogue::Present);
        for range in joined(ranges) {
            let to = range.start - bound.start;
            let range = range.start - start..range.end - start;
            let columns = ColumnSum { slice: partials, rows: parts, stride: apart, range };
            stages.push(sum_stage(label, &columns, parts, out, to, accumulate));
        }
        stages
    }

    /// Computes products without partial results.
    fn whole(&self, gradients: &[WeightGradient], tile: ProductTile) -> Vec<Stage> {
        let bound = bound_range(gradients);
        let stages = |WeightGradient { product, bias, .. }: &WeightGradient| {
            let [m, n, k] = product.mnk;
            let k = k.min(tile.max_depth());
            let k = if tile == ProductTile::Large { self.largest_k([m, n, k]) } else { k };
            let cut = Cut { tile, most: self.largest_dispatch(tile, [m, n, k]), parts: None };
            let Some((slice, first)) = bias else { return cut.stages(product, None) };
            // The result and the sums are in one binding.
            let out = BufferSlice { first: bound.start, len: bound.len(), ..product.c.slice };
            let sums_first = slice.first + first - bound.start;
            cut.stages(&product.to(out, bound.start), Some(sums_first))
        };
        gradients.iter().flat_map(stages).collect()
    }

    /// Computes a product in dispatches of at most `most_m` × `most_n` × `most_k`.
    pub fn matmul_in_dispatches(&self, product: &Product, most: [usize; 3]) -> Vec<Stage> {
        let tile = self.tile(product.mnk, 1);
        Cut { tile, most, parts: None }.stages(product, None)
    }

    /// Returns the largest part of an m × n × k product that one dispatch may compute, limited by
    /// its workgroups, its loops and its work.
    fn largest_dispatch(&self, tile: ProductTile, [m, n, k]: [usize; 3]) -> [usize; 3] {
        let (tile_n, tile_m) = (tile.columns(), tile.rows());
        let k = k.min(tile.max_depth());
        // As many columns or rows as the work allows, in whole tiles, at least one.
        let most = |tile: usize, others: usize| {
            let flops_each = 2 * product([others, k]).max(1);
            let tiles = self.caps.product_flops() / (flops_each * tile as u64);
            tile * tiles.clamp(1, MAX_WORKGROUPS as u64) as usize
        };
        let n = n.min(most(tile_n, tile_m));
        let m = m.min(most(tile_m, n));
        [m, n, k]
    }

    /// Returns the largest k of a dispatch of large tiles: with a longer one, the work of a dispatch
    /// would be too few tiles for a large GPU.
    fn largest_k(&self, [m, n, k]: [usize; 3]) -> usize {
        let tile = ProductTile::Large;
        let [x, y] = tile.groups(m, n);
        let tiles = (x * y).min(2 * LARGE_AT_ONCE);
        let flops_each = 2 * product([tile.rows(), tile.columns()]) * tiles;
        let most = (self.caps.product_flops() / flops_each) as usize / 16 * 16;
        k.min(most.max(MATMUL_MIN_DEPTH))
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

/// Distributes workgroups over x and y. The last workgroups may have no work.
pub(super) fn over_two_axes(groups: usize) -> [u64; 3] {
    let x = groups.min(MAX_WORKGROUPS);
    [x as u64, groups.div_ceil(x) as u64, 1]
}

/// Joins ranges that follow one another.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.dedup_by(|next, range| {
        let follows = range.end == next.start;
        if follows {
            range.end = next.end;
        }
        follows
    });
    ranges
}

/// Splits `0..total` into ranges of at most `most`: (start, length).
pub(super) fn split(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(most).map(move |start| (start, most.min(total - start)))
}

/// Multiplies sizes whose product may not fit into a 32-bit usize.
pub(super) fn product<const N: usize>(sizes: [usize; N]) -> u64 {
    sizes.into_iter().map(|size| size as u64).product()
}
