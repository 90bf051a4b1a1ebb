//! [`Cut`]: the dispatches of a product.

use super::{Epilogue, Product, product, split};
use crate::kernels::MatmulArgs;
use crate::plan::tiles::ProductTile;
use crate::plan::{Dispatch, Stage};

/// The dispatches that a product is cut into.
pub(super) struct Cut {
    pub tile: ProductTile,
    /// The largest sizes of a dispatch.
    pub most: [usize; 3],
    /// With partial results: the k of each part, and the distance between their results. Otherwise
    /// each dispatch along k adds to the result.
    pub parts: Option<(usize, usize)>,
}

impl Cut {
    /// Returns the dispatches. `sums` is the index in c's slice for the sums of the rows of a.
    pub fn stages(&self, whole: &Product, sums: Option<usize>) -> Vec<Stage> {
        let [m, n, k] = whole.mnk;
        let [most_m, most_n, most_k] = self.most;
        let mut stages = Vec::new();
        for (m0, m) in split(m, most_m) {
            for (n0, n) in split(n, most_n) {
                for (k0, k) in split(k, most_k) {
                    let block = Block { first: [m0, n0, k0], mnk: [m, n, k] };
                    // The first columns' workgroups sum the rows.
                    stages.push(self.stage(whole, block, sums.filter(|_| n0 == 0)));
                }
            }
        }
        stages
    }

    fn stage(&self, whole: &Product, block: Block, sums: Option<usize>) -> Stage {
        let Product { label, a, b, c, .. } = whole;
        let Block { first: [m0, n0, k0], mnk: [m, n, k] } = block;
        let (k_part, apart) = self.parts.unwrap_or((k, 0));
        let to = k0 / k_part * apart;
        let accumulate = match whole.epilogue {
            Epilogue::Present => true,
            Epilogue::Zero | Epilogue::Bias(_) => k0 > 0 && self.parts.is_none(),
        };
        let bias = match whole.epilogue {
            Epilogue::Bias(slice) if k0 == 0 => Some(slice),
            _ => None,
        };
        let [a_first, a_stride, a_row, a_run, a_skip] = a.from(m0, k0);
        let [b_first, b_stride, b_row, b_run, b_skip] = b.from(k0, n0);
        let [c_first, c_stride, c_row, c_run, c_skip] = c.from(m0, n0);
        let c_first = c_first + to as u32;
        let (gap_at, gap) = a.gap.unwrap_or((usize::MAX, 0));
        let sums_first = sums.map_or(0, |first| first + to + m0);
        let args = MatmulArgs {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            k_part: k_part as u32,
            k_block: self.tile.k_block(k_part.min(k)) as u32,
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
            part_apart: apart as u32,
            bias_first: n0 as u32,
            add_bias: u32::from(bias.is_some()),
            accumulate: u32::from(accumulate),
            n_threads: self.tile.n_threads() as u32,
            a_gap_at: gap_at.saturating_sub(m0).min(u32::MAX as usize) as u32,
            a_gap: gap as u32,
            row_sums: u32::from(sums.is_some()),
            sums_first: sums_first as u32,
        };
        let tile = self.tile;
        let runs = [a, b, c].iter().any(|operand| operand.runs.is_some());
        let operands = a.is_aligned(a_first) && b.is_aligned(b_first);
        let ends = [n, apart, sums_first, sums.map_or(0, |_| m)];
        let result = c.is_aligned(c_first) && ends.iter().all(|end| end.is_multiple_of(4));
        let parts = k.div_ceil(k_part) as u64;
        let [x, y] = tile.groups(m, n);
        let k_padded = k_part.min(k).next_multiple_of(tile.depth());
        Stage::Once(Dispatch {
            label: label.clone(),
            kernel: tile.kernel(operands, result, runs),
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
            iterations: tile.iterations(k_part.min(k)) as u64,
        })
    }
}

/// The block of a product that one dispatch computes.
#[derive(Clone, Copy)]
struct Block {
    /// The start along m, n and k.
    first: [usize; 3],
    mnk: [usize; 3],
}
