//! [`Backward`]: the backward steps of a block of rows, from the last to the first.
//!
//! Shapes: R rows of the row block, Q = ⌈H / N⌉ blocks of N units. σ' and tanh' stand for the
//! derivatives of the configured activations.
//!
//! ```text
//! dh += dy ⊙ dropout factor
//! dh' = (1 − ζ) ⊙ dh                                      ζ: zoneout fraction
//! z overwrites:  da_n = dh' ⊙ z ⊙ tanh'(n)         da_z = dh' ⊙ (n − h) ⊙ σ'(z)
//!                dh   = ζ ⊙ dh + dh' ⊙ (1 − z)
//! z keeps:       da_n = dh' ⊙ (1 − z) ⊙ tanh'(n)   da_z = dh' ⊙ (h − n) ⊙ σ'(z)
//!                dh   = ζ ⊙ dh + dh' ⊙ z
//! reset after:   da_r = da_n ⊙ (W_hn h + b_hn) ⊙ σ'(r)
//!                dh  += W_hrᵀ da_r + W_hzᵀ da_z + W_hnᵀ (da_n ⊙ r)
//! reset before:  d(r ⊙ h) = W_hnᵀ da_n             da_r = d(r ⊙ h) ⊙ h ⊙ σ'(r)
//!                dh  += d(r ⊙ h) ⊙ r + W_hrᵀ da_r + W_hzᵀ da_z
//! ```

mod part;

use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

use super::cell::{BackwardWeights, CellSpec, RowBlock, row_of, row_of_mut};
use super::product::PackedLeft;
use super::simd::{SimdKernel, SimdVector, derivative, lanes, load, store};
use super::team::Team;
use crate::error::{Result, try_zeros};
use crate::spec::config::{Reset, Update};
use part::{BackwardPart, ProductStep};

/// A task of the backward pass: the steps of a block of rows.
pub(super) struct Backward<'a> {
    pub weights: &'a Arc<BackwardWeights>,
    pub row_block: RowBlock<'a>,
    /// The state that each step starts from, `[T, R, H]`.
    pub h: ArrayView3<'a, f32>,
    /// The gates that [`Forward`](super::forward::Forward) saved, `[times, R, 4H]`. They become
    /// gradients: da_r, da_z, da_n, and the gradient of `W_hn h + b_hn`. With reset before, the
    /// fourth quarter stays r ⊙ h.
    pub gates: ArrayViewMut3<'a, f32>,
    /// The gradient of the outputs, `[T, R, H]`; zeros if `None`.
    pub dy: Option<ArrayView3<'a, f32>>,
    /// The gradient of the last state, replaced with the gradient of the first state, `[R, H]`.
    pub dh: ArrayViewMut2<'a, f32>,
    /// The gradient of the reset state, `[R, H]`, accumulated.
    pub dreset: ArrayViewMut2<'a, f32>,
}

/// The threads that share a backward step.
type BackwardTeam = Team<BackwardPart>;

/// Scratch memory for a step.
struct BackwardScratch {
    /// The memory of a [`PackedLeft`].
    left: Vec<f32>,
    /// The gradients that are products with W_hh, `[Q, R, N]`.
    products: Vec<f32>,
}

impl Backward<'_> {
    pub fn run(mut self) -> Result<()> {
        let spec = self.weights.spec;
        let rows = self.h.len_of(Axis(1));
        let mut scratch = BackwardScratch {
            left: Vec::new(),
            products: try_zeros("a step's gradients", spec.padded() * rows)?,
        };
        let mut team = BackwardPart::team(self.weights, &self.row_block)?;
        for t in self.row_block.context.in_order(self.row_block.times.clone()).rev() {
            if self.row_block.is_idle(&[t]) {
                continue;
            }
            for row in 0..rows {
                self.elementwise_backward(t, row);
            }
            team.measure(|team| self.products(team, t, &mut scratch))?;
            for row in 0..rows {
                self.add_products(t, row, &scratch.products);
            }
        }
        Ok(())
    }

    /// Computes the products of a step.
    fn products(
        &mut self,
        team: &mut BackwardTeam,
        t: usize,
        scratch: &mut BackwardScratch,
    ) -> Result<()> {
        let CellSpec { hidden, reset, .. } = self.weights.spec;
        match reset {
            Reset::After => {
                let columns = [0..2 * hidden, 3 * hidden..4 * hidden];
                self.product(team, t, columns, 0..3 * hidden, scratch)
            }
            Reset::Before => {
                let n = 2 * hidden..3 * hidden;
                self.product(team, t, [n.clone(), 0..0], n, scratch)?;
                for row in 0..self.h.len_of(Axis(1)) {
                    self.reset_backward(t, row, &scratch.products);
                }
                self.product(team, t, [0..2 * hidden, 0..0], 0..2 * hidden, scratch)
            }
        }
    }

    /// Computes `products [Q, R, N] = gates[t][.., columns] · W_hh[depth, ..]`. `columns` select
    /// gate gradients, and `depth` the matching rows of W_hh.
    fn product(
        &self,
        team: &mut BackwardTeam,
        t: usize,
        columns: [Range<usize>; 2],
        depth: Range<usize>,
        BackwardScratch { left, products }: &mut BackwardScratch,
    ) -> Result<()> {
        let CellSpec { level, hidden, .. } = self.weights.spec;
        let gates = self.gates.index_axis(Axis(0), t - self.row_block.times.start);
        let data = gates.to_slice().expect("all rows of a step are contiguous");
        let left = PackedLeft::pack(level, data, 4 * hidden, columns, left)?;
        let parts = self.row_block.parts(self.weights.spec.blocks());
        team.step(ProductStep { weights: self.weights, parts, left, depth, products });
        Ok(())
    }

    /// Computes the elementwise gradients of one row of a step: everything that needs no product
    /// with W_hh.
    fn elementwise_backward(&mut self, t: usize, row: usize) {
        let spec = self.weights.spec;
        let (context, batch_row) = (self.row_block.context, self.row_block.rows.start + row);
        if context.is_padding(t, batch_row) {
            return;
        }
        let draw = |draw: &dyn Fn(usize) -> f32| (0..spec.hidden).map(draw).collect::<Vec<_>>();
        let zone =
            context.noise.has_zoneout().then(|| draw(&context.zoneout(t, batch_row, spec.hidden)));
        let factor = context
            .noise
            .drops(context.layer)
            .then(|| draw(&context.dropout(t, batch_row, spec.hidden)));
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

    /// Computes da_r and adds to dh from the gradient of r ⊙ h in `products`, for one row, with
    /// reset before the product.
    fn reset_backward(&mut self, t: usize, row: usize, products: &[f32]) {
        let spec = self.weights.spec;
        if self.row_block.is_padding(t, row) {
            return;
        }
        spec.level.run(ResetBackward {
            spec,
            drh: ProductRow { products, rows: self.h.len_of(Axis(1)), row },
            h: row_of(&self.h, t, row),
            r: &mut row_of_mut(&mut self.gates, t - self.row_block.times.start, row)[..spec.hidden],
            dh: self.dh.row_mut(row).into_slice().expect("rows are contiguous"),
        });
    }

    /// Adds one row of `products` to dh. If the row was reset before this step, moves dh to the
    /// gradient of the reset state.
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

/// Loads `N` elements of a slice, or fills them with `otherwise` if there is no slice.
#[inline(always)]
fn load_or<const N: usize>(slice: Option<&[f32]>, first: usize, otherwise: f32) -> [f32; N] {
    match slice {
        Some(slice) => load(slice, first),
        None => [otherwise; N],
    }
}

/// One row of products.
#[derive(Clone, Copy)]
struct ProductRow<'a> {
    /// `[Q, R, N]`
    products: &'a [f32],
    /// R
    rows: usize,
    /// The index of the row.
    row: usize,
}

impl<'a> ProductRow<'a> {
    /// Returns block q of the row, `[N]`.
    #[inline(always)]
    fn block<const N: usize>(&self, q: usize) -> &'a [f32; N] {
        lanes(self.products, (q * self.rows + self.row) * N)
    }
}

/// A kernel for the elementwise gradients of one row of a step; see the equations of this file.
struct ElementwiseBackward<'a> {
    spec: CellSpec,
    /// `[H]`; zeros if `None`.
    dy: Option<&'a [f32]>,
    /// The dropout factors, `[H]`; ones if `None`.
    factor: Option<&'a [f32]>,
    /// The zoneout fractions ζ, `[H]`; zeros if `None`.
    zone: Option<&'a [f32]>,
    /// The state that the step starts from, `[H]`.
    h: &'a [f32],
    /// r, z, n and the recurrent term of n, replaced with gradients, `[4H]`.
    gates: &'a mut [f32],
    /// The gradient of the state after the step, `[H]`. Replaced with the gradient of the state
    /// before the step, without its product terms.
    dh: &'a mut [f32],
}

impl SimdKernel for ElementwiseBackward<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
        let CellSpec { gate, candidate, hidden, .. } = self.spec;
        let (r_z, n_and_recurrent) = self.gates.split_at_mut(2 * hidden);
        let ((all_r, all_z), (all_n, all_n_recurrent)) =
            (r_z.split_at_mut(hidden), n_and_recurrent.split_at_mut(hidden));
        for first in (0..hidden).step_by(N) {
            let (r, z) = (load::<N>(all_r, first), load::<N>(all_z, first));
            let (n, n_recurrent) = (load::<N>(all_n, first), load::<N>(all_n_recurrent, first));
            let h = load::<N>(self.h, first);
            let mut dh = load::<N>(self.dh, first);
            if let Some(dy) = self.dy {
                let dy = load::<N>(dy, first);
                let factor = load_or::<N>(self.factor, first, 1.0);
                // dh += dy ⊙ dropout factor
                for j in 0..N {
                    dh[j] += dy[j] * factor[j];
                }
            }
            let zone = load_or::<N>(self.zone, first, 0.0);
            let (derivative_z, derivative_n) = (derivative(&gate, &z), derivative(&candidate, &n));
            let mut da_z = [0.0; N];
            let mut da_n = [0.0; N];
            // dh' = (1 − ζ) ⊙ dh
            // z overwrites: dn = dh' ⊙ z        dz = dh' ⊙ (n − h)  direct = dh' ⊙ (1 − z)
            // z keeps:      dn = dh' ⊙ (1 − z)  dz = dh' ⊙ (h − n)  direct = dh' ⊙ z
            // da_n = dn ⊙ tanh'(n)              da_z = dz ⊙ σ'(z)   dh = ζ ⊙ dh + direct
            for j in 0..N {
                let dnew = dh[j] * (1.0 - zone[j]);
                let (dn, dz, direct) = match self.spec.update {
                    Update::Overwrites => (dnew * z[j], dnew * (n[j] - h[j]), dnew * (1.0 - z[j])),
                    Update::Keeps => (dnew * (1.0 - z[j]), dnew * (h[j] - n[j]), dnew * z[j]),
                };
                da_n[j] = dn * derivative_n[j];
                da_z[j] = dz * derivative_z[j];
                dh[j] = dh[j] * zone[j] + direct;
            }
            store(all_z, first, &da_z);
            store(all_n, first, &da_n);
            store(self.dh, first, &dh);
            if self.spec.reset == Reset::After {
                let derivative_r = derivative(&gate, &r);
                let (mut da_r, mut dn_recurrent) = ([0.0; N], [0.0; N]);
                // da_r = da_n ⊙ (W_hn h + b_hn) ⊙ σ'(r)
                // d(W_hn h + b_hn) = da_n ⊙ r
                for j in 0..N {
                    da_r[j] = da_n[j] * n_recurrent[j] * derivative_r[j];
                    dn_recurrent[j] = da_n[j] * r[j];
                }
                store(all_r, first, &da_r);
                store(all_n_recurrent, first, &dn_recurrent);
            }
        }
    }
}

/// A kernel for the gradient of r ⊙ h in one row, with reset before the product.
struct ResetBackward<'a> {
    spec: CellSpec,
    /// The gradient of r ⊙ h, `[Q, N]`.
    drh: ProductRow<'a>,
    /// The state that the step starts from, `[H]`.
    h: &'a [f32],
    /// r, replaced with da_r, `[H]`.
    r: &'a mut [f32],
    /// The gradient of h, `[H]`, accumulated.
    dh: &'a mut [f32],
}

impl SimdKernel for ResetBackward<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
        for q in 0..self.spec.hidden.div_ceil(N) {
            let drh = self.drh.block::<N>(q);
            let first = q * N;
            let (h, r) = (load::<N>(self.h, first), load::<N>(self.r, first));
            let mut dh = load::<N>(self.dh, first);
            let derivative = derivative(&self.spec.gate, &r);
            let mut da_r = [0.0; N];
            // dh  += d(r ⊙ h) ⊙ r
            // da_r = d(r ⊙ h) ⊙ h ⊙ σ'(r)
            for j in 0..N {
                dh[j] += drh[j] * r[j];
                da_r[j] = drh[j] * h[j] * derivative[j];
            }
            store(self.dh, first, &dh);
            store(self.r, first, &da_r);
        }
    }
}

/// A kernel that adds one row of products.
struct AddRow<'a> {
    /// `[Q, N]`
    row: ProductRow<'a>,
    /// `[H]`
    to: &'a mut [f32],
}

impl SimdKernel for AddRow<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
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
