//! [`WeightGradient`]: the gradients of a cell's weights and biases, which are products with one k.

use std::ops::Range;

use super::{ColumnSum, Epilogue, Operand, PARTIAL, Product, ProductPlanner};
use crate::plan::tiles::ProductTile;
use crate::plan::{BufferSlice, Stage};

/// The gradient of a weight, and of the biases that are added where the weight is used: daᵀ · x, and
/// the sums of the rows of daᵀ.
#[derive(Clone)]
pub(crate) struct WeightGradient {
    pub product: Product,
    /// The slice for the sums of the rows of `a`, and the first element in it.
    pub bias: Option<(BufferSlice, usize)>,
    /// The label of the sums, if they take a dispatch of their own.
    pub bias_label: String,
}

impl WeightGradient {
    /// Joins two gradients whose results follow one another, and which differ in the columns of da,
    /// to a single one.
    fn join(&self, next: &Self) -> Option<Self> {
        let ([m, n, k], [next_m, next_n, next_k]) = (self.product.mnk, next.product.mnk);
        let (a, next_a) = (self.product.a, next.product.a);
        let follows = self.product.b == next.product.b
            && (n, k) == (next_n, next_k)
            && self.product.result().end == next.product.result().start;
        let biases_follow = match (self.bias, next.bias) {
            (None, None) => true,
            (Some((slice, first)), Some(then)) => then == (slice, first + m),
            _ => false,
        };
        let gap = next_a.first.checked_sub(a.first + m)?;
        // Four rows are loaded at once.
        let is_whole = a.gap.is_none() && m.is_multiple_of(4) && gap.is_multiple_of(4);
        let same = Operand { first: next_a.first, ..a } == next_a && a.transposed;
        if !(follows && biases_follow && is_whole && same) {
            return None;
        }
        let product = Product {
            label: format!("{}; {}", self.product.label, next.product.label),
            mnk: [m + next_m, n, k],
            a: Operand { gap: Some((m, gap)), ..a },
            ..self.product.clone()
        };
        let bias_label = format!("{}; {}", self.bias_label, next.bias_label);
        Some(Self { product, bias: self.bias, bias_label })
    }

    /// Returns the sum of columns of da that is the bias's gradient.
    fn bias_sum(&self) -> Option<BiasSum> {
        let (out, first_sum) = self.bias?;
        let Operand { slice, first, stride, .. } = self.product.a;
        let [m, _, rows] = self.product.mnk;
        let columns = ColumnSum { slice, rows, stride, range: first..first + m };
        let accumulate = matches!(self.product.epilogue, Epilogue::Present);
        let label = self.bias_label.clone();
        Some(BiasSum { label, columns, out, first: first_sum, accumulate })
    }

    /// Returns the number of large tiles of the product.
    fn large_tiles(&self) -> u64 {
        let [m, n, _] = self.product.mnk;
        ProductTile::Large.groups(m, n).iter().product()
    }

    /// Returns the ranges of the buffer that the gradient consists of.
    pub(super) fn results(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let m = self.product.mnk[0];
        let bias = self.bias.map(|(slice, first)| slice.first + first..slice.first + first + m);
        std::iter::once(self.product.result()).chain(bias)
    }
}

/// Gradients of one cell by the kernel that computes them.
struct Grouped {
    /// Gradients with large tiles, those that follow one another joined.
    large: Vec<WeightGradient>,
    other: Vec<WeightGradient>,
}

impl ProductPlanner<'_> {
    /// Returns the stages of the gradients of a cell's parameters, which have one epilogue and are in
    /// one buffer; the first has all of da. The large tile also sums the rows of `a`, which it stages
    /// anyway. Gradients that have it are added up from their parts together.
    pub fn weight_gradients(&self, label: &str, gradients: &[WeightGradient]) -> Vec<Stage> {
        let most = self.most_large_parts(gradients[0].product.mnk, bound_range(gradients).len());
        let Grouped { large, other } = self.grouped(gradients, most);
        let mut stages = Vec::new();
        if let Some(first) = large.first() {
            let tiles: Vec<u64> = large.iter().map(WeightGradient::large_tiles).collect();
            let parts = self.large_parts(&tiles, first.product.mnk[2], most);
            stages = self.in_parts(label, &large, ProductTile::Large, parts);
        }
        stages.extend(other.iter().flat_map(|gradient| self.matmul(&gradient.product)));
        stages.extend(self.bias_gradients(&other));
        stages
    }

    /// Groups gradients by their kernel. If large tiles pay for one gradient, with k in at most `most`
    /// parts, all that are wide enough for them get them.
    fn grouped(&self, gradients: &[WeightGradient], most: usize) -> Grouped {
        let bytes = PARTIAL.bytes(bound_range(gradients).len());
        let is_bound = bytes <= self.caps.limits.max_storage_buffer_binding_size;
        let is_large = |gradient: &WeightGradient, parts| {
            is_bound && self.tile(gradient.product.mnk, parts) == ProductTile::Large
        };
        let is_wide = |gradient: &WeightGradient| is_large(gradient, usize::MAX);
        let (mut large, mut other) = (Vec::new(), Vec::new());
        let mut rest = gradients;
        while let [gradient, after @ ..] = rest {
            let joined = after.first().and_then(|next| gradient.join(next)).filter(is_wide);
            rest = &after[usize::from(joined.is_some())..];
            let gradient = joined.unwrap_or_else(|| gradient.clone());
            if is_wide(&gradient) { large.push(gradient) } else { other.push(gradient) }
        }
        match large.iter().any(|gradient| is_large(gradient, most)) {
            true => Grouped { large, other },
            false => Grouped { large: Vec::new(), other: gradients.to_vec() },
        }
    }

    /// Returns the column sums for the gradients' biases, one for adjacent columns.
    fn bias_gradients(&self, gradients: &[WeightGradient]) -> Vec<Stage> {
        let mut sums: Vec<BiasSum> = Vec::new();
        for sum in gradients.iter().filter_map(WeightGradient::bias_sum) {
            match sums.last_mut().filter(|last| last.is_before(&sum)) {
                Some(last) => {
                    last.columns.range.end = sum.columns.range.end;
                    last.label = format!("{}; {}", last.label, sum.label);
                }
                None => sums.push(sum),
            }
        }
        let stages = |BiasSum { label, columns, out, first, accumulate }: BiasSum| {
            self.column_sum(&label, &columns, out, first, accumulate)
        };
        sums.into_iter().flat_map(stages).collect()
    }
}

/// The gradient of biases as sums of columns of da.
struct BiasSum {
    label: String,
    columns: ColumnSum,
    out: BufferSlice,
    /// The first sum's element in `out`.
    first: usize,
    accumulate: bool,
}

impl BiasSum {
    /// Returns true if the columns and the sums of `next` follow these.
    fn is_before(&self, next: &Self) -> bool {
        let ColumnSum { slice, stride, ref range, .. } = self.columns;
        (slice, stride, range.end)
            == (next.columns.slice, next.columns.stride, next.columns.range.start)
            && (self.out, self.first + range.len()) == (next.out, next.first)
    }
}

/// Returns the range of the buffer that a binding of all gradients covers.
pub(super) fn bound_range(gradients: &[WeightGradient]) -> Range<usize> {
    let slices = |gradient: &WeightGradient| {
        std::iter::once(gradient.product.c.slice).chain(gradient.bias.map(|(slice, _)| slice))
    };
    let bounds =
        gradients.iter().flat_map(slices).map(|slice| (slice.first, slice.first + slice.len));
    let all = bounds.reduce(|(first, end), (f, e)| (first.min(f), end.max(e)));
    let (first, end) = all.expect("at least one gradient");
    first..end
}
