//! The steps of a block of rows backward, from the last to the first.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

use super::cell::{BackwardWeights, CellSpec, RowBlock, row_of, row_of_mut, split_over_threads};
use super::product::{AddProduct, PackedLeft};
use super::simd::{SimdKernel, SimdVector, derivative, lanes, load, store};
use crate::error::{Result, try_zeros};
use crate::spec::config::{Reset, Update};

/// A block of rows backward. Arrays are `[T, R, ·]`.
pub(super) struct Backward<'a> {
    pub weights: &'a BackwardWeights,
    pub row_block: RowBlock<'a>,
    pub h: ArrayView3<'a, f32>,
    /// `[times, R, 4H]`, as [`Forward`](super::forward::Forward) kept them. They become gradients:
    /// r, z and n those of their pre-activations, the fourth quarter that of `W_hn h + b_hn`, or
    /// with reset before it stays r ⊙ h.
    pub gates: ArrayViewMut3<'a, f32>,
    /// Of what each step puts out; zeros when `None`.
    pub dy: Option<ArrayView3<'a, f32>>,
    /// `[R, H]`: of the last state, which becomes that of the first.
    pub dh: ArrayViewMut2<'a, f32>,
    /// `[R, H]`, added to.
    pub dreset: ArrayViewMut2<'a, f32>,
}

impl Backward<'_> {
    pub fn run(mut self) -> Result<()> {
        let spec = self.weights.spec;
        let rows = self.h.len_of(Axis(1));
        let hidden = spec.hidden;
        let mut products = try_zeros("a step's gradients", spec.padded() * rows)?;
        let mut space = Vec::new();
        for t in self.row_block.context.in_order(self.row_block.times.clone()).rev() {
            if (0..rows).all(|row| self.row_block.is_padding(t, row)) {
                continue;
            }
            for row in 0..rows {
                self.elementwise_backward(t, row);
            }
            match spec.reset {
                Reset::After => {
                    let columns = [0..2 * hidden, 3 * hidden..4 * hidden];
                    self.product(t, columns, 0..3 * hidden, &mut space, &mut products)?;
                }
                Reset::Before => {
                    let of_n = 2 * hidden..3 * hidden;
                    let columns = [of_n.clone(), 0..0];
                    self.product(t, columns, of_n, &mut space, &mut products)?;
                    for row in 0..rows {
                        self.reset_backward(t, row, &products);
                    }
                    let columns = [0..2 * hidden, 0..0];
                    self.product(t, columns, 0..2 * hidden, &mut space, &mut products)?;
                }
            }
            for row in 0..rows {
                self.add_products(t, row, &products);
            }
        }
        Ok(())
    }

    /// `products [blocks, R, N]` of some columns of the gates' gradients at t with some rows of
    /// W_hh.
    fn product(
        &self,
        t: usize,
        columns: [Range<usize>; 2],
        depth: Range<usize>,
        space: &mut Vec<f32>,
        products: &mut [f32],
    ) -> Result<()> {
        let CellSpec { level, hidden, .. } = self.weights.spec;
        let gates = self.gates.index_axis(Axis(0), t - self.row_block.times.start);
        let data = gates.to_slice().expect("all rows of a step are contiguous");
        let left = PackedLeft::pack(level, data, 4 * hidden, columns, space)?;
        let block_len = left.rows * level.lanes();
        split_over_threads(
            products,
            block_len,
            self.weights.spec.blocks(),
            self.row_block.threads,
            |first, out| {
                out.fill(0.0);
                let (right, depth) = (&self.weights.recurrent, depth.clone());
                level.run(AddProduct { left, right, depth, first, out });
            },
        );
        Ok(())
    }

    /// All of a row's step but what goes through W_hh.
    fn elementwise_backward(&mut self, t: usize, row: usize) {
        let spec = self.weights.spec;
        let (context, of_batch) = (self.row_block.context, self.row_block.rows.start + row);
        if context.is_padding(t, of_batch) {
            return;
        }
        let draw = |draw: &dyn Fn(usize) -> f32| (0..spec.hidden).map(draw).collect::<Vec<_>>();
        let zone =
            context.noise.has_zoneout().then(|| draw(&context.zoneout(t, of_batch, spec.hidden)));
        let factor = context
            .noise
            .drops(context.layer)
            .then(|| draw(&context.dropout(t, of_batch, spec.hidden)));
        let dy = self.dy.as_ref().map(|dy| row_of(dy, t, row));
        spec.level.run(ElementwiseBackward {
            spec,
            dy,
            factor: factor.as_deref(),
            zone: zone.as_deref(),
            h: row_of(&self.h, t, row),
            gates: row_of_mut(&mut self.gates, t - self.row_block.times.start, row),
            dh: self.dh.row_mut(row).into_slice().expect("rows are contiguous"),
        });
    }

    /// With reset before: from the gradient of r ⊙ h to those of r and h.
    fn reset_backward(&mut self, t: usize, row: usize, products: &[f32]) {
        let spec = self.weights.spec;
        if self.row_block.is_padding(t, row) {
            return;
        }
        spec.level.run(ResetBackward {
            spec,
            row: ProductRow { products, rows: self.h.len_of(Axis(1)), row },
            h: row_of(&self.h, t, row),
            r: &mut row_of_mut(&mut self.gates, t - self.row_block.times.start, row)[..spec.hidden],
            dh: self.dh.row_mut(row).into_slice().expect("rows are contiguous"),
        });
    }

    fn add_products(&mut self, t: usize, row: usize, products: &[f32]) {
        if self.row_block.is_padding(t, row) {
            return;
        }
        let mut dh = self.dh.row_mut(row);
        let row_products = ProductRow { products, rows: self.h.len_of(Axis(1)), row };
        let to = dh.as_slice_mut().expect("rows are contiguous");
        self.weights.spec.level.run(AddRow { row: row_products, to });
        if self.row_block.restarts(t, row) {
            self.dreset.row_mut(row).zip_mut_with(&dh, |sum, &d| *sum += d);
            dh.fill(0.0);
        }
    }
}

#[inline(always)]
fn load_or<const N: usize>(slice: Option<&[f32]>, first: usize, otherwise: f32) -> [f32; N] {
    match slice {
        Some(slice) => load(slice, first),
        None => [otherwise; N],
    }
}

/// One row of products `[blocks, R, N]`.
#[derive(Clone, Copy)]
struct ProductRow<'a> {
    products: &'a [f32],
    rows: usize,
    row: usize,
}

impl<'a> ProductRow<'a> {
    #[inline(always)]
    fn block<const N: usize>(&self, q: usize) -> &'a [f32; N] {
        lanes(self.products, (q * self.rows + self.row) * N)
    }
}

struct ElementwiseBackward<'a> {
    spec: CellSpec,
    dy: Option<&'a [f32]>,
    /// Of dropout.
    factor: Option<&'a [f32]>,
    zone: Option<&'a [f32]>,
    h: &'a [f32],
    /// `[4H]`
    gates: &'a mut [f32],
    /// `[H]`: of h' on entry; on return the part of h's that needs no product.
    dh: &'a mut [f32],
}

impl SimdKernel for ElementwiseBackward<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        let CellSpec { gate, candidate, hidden, .. } = self.spec;
        let (r_z, n_past) = self.gates.split_at_mut(2 * hidden);
        let ((all_r, all_z), (all_n, all_past)) =
            (r_z.split_at_mut(hidden), n_past.split_at_mut(hidden));
        for first in (0..hidden).step_by(N) {
            let (r, z) = (load::<N>(all_r, first), load::<N>(all_z, first));
            let (n, past) = (load::<N>(all_n, first), load::<N>(all_past, first));
            let h = load::<N>(self.h, first);
            let mut dh = load::<N>(self.dh, first);
            if let Some(dy) = self.dy {
                let dy = load::<N>(dy, first);
                let factor = load_or::<N>(self.factor, first, 1.0);
                for j in 0..N {
                    dh[j] += dy[j] * factor[j];
                }
            }
            let zone = load_or::<N>(self.zone, first, 0.0);
            let (derivative_z, derivative_n) = (derivative(gate, &z), derivative(candidate, &n));
            let mut dz = [0.0; N];
            let mut dn = [0.0; N];
            for j in 0..N {
                let new = dh[j] * (1.0 - zone[j]);
                let (to_n, to_z, direct) = match self.spec.update {
                    Update::Overwrites => (new * z[j], new * (n[j] - h[j]), new * (1.0 - z[j])),
                    Update::Keeps => (new * (1.0 - z[j]), new * (h[j] - n[j]), new * z[j]),
                };
                dn[j] = to_n * derivative_n[j];
                dz[j] = to_z * derivative_z[j];
                dh[j] = dh[j] * zone[j] + direct;
            }
            store(all_z, first, &dz);
            store(all_n, first, &dn);
            store(self.dh, first, &dh);
            if self.spec.reset == Reset::After {
                let derivative_r = derivative(gate, &r);
                let (mut dr, mut dpast) = ([0.0; N], [0.0; N]);
                for j in 0..N {
                    dr[j] = dn[j] * past[j] * derivative_r[j];
                    dpast[j] = dn[j] * r[j];
                }
                store(all_r, first, &dr);
                store(all_past, first, &dpast);
            }
        }
    }
}

struct ResetBackward<'a> {
    spec: CellSpec,
    /// The gradient of r ⊙ h.
    row: ProductRow<'a>,
    h: &'a [f32],
    /// r, which becomes the gradient of its pre-activation.
    r: &'a mut [f32],
    dh: &'a mut [f32],
}

impl SimdKernel for ResetBackward<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        for q in 0..self.spec.hidden.div_ceil(N) {
            let d = self.row.block::<N>(q);
            let first = q * N;
            let (h, r) = (load::<N>(self.h, first), load::<N>(self.r, first));
            let mut dh = load::<N>(self.dh, first);
            let derivative = derivative(self.spec.gate, &r);
            let mut dr = [0.0; N];
            for j in 0..N {
                dh[j] += d[j] * r[j];
                dr[j] = d[j] * h[j] * derivative[j];
            }
            store(self.dh, first, &dh);
            store(self.r, first, &dr);
        }
    }
}

struct AddRow<'a> {
    row: ProductRow<'a>,
    to: &'a mut [f32],
}

impl SimdKernel for AddRow<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        for q in 0..self.to.len().div_ceil(N) {
            let mut sum = load::<N>(self.to, q * N);
            let add = self.row.block::<N>(q);
            for j in 0..N {
                sum[j] += add[j];
            }
            store(self.to, q * N, &sum);
        }
    }
}
