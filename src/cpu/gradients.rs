//! [`CellProducts`]: the gradients of a cell's weights, biases and input, as matrix products over
//! many steps at once, after [`Backward`](super::backward::Backward) has run those steps.
//!
//! With R rows (steps × batch rows) and the gate gradients da:
//!
//! ```text
//! dx      [R, I]   += [da_r da_z da_n] [R, 3H] · W_ih [3H, I]
//! dW_ih   [3H, I]  += [da_r da_z da_n]ᵀ · x [R, I]
//! dW_hr,z [2H, H]  += [da_r da_z]ᵀ · h [R, H]
//! dW_hn   [H, H]   += (da_n ⊙ r)ᵀ · h        reset after the product
//!                  += da_nᵀ · (r ⊙ h)        reset before the product
//! db_ih   [3H]     += column sums of [da_r da_z da_n]
//! db_hh   [3H]     += column sums of [da_r da_z], and of da_n ⊙ r (reset after) or da_n (before)
//! ```
//!
//! Above the first layer, I stands for D·H. The products are sums over all steps and rows of the
//! batch; [`CellSums`] adds them up in short chains. Threads take tasks from one list, so that no thread
//! waits for another between two products.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::cell::BackwardWeights;
use super::long_sum::LongSum;
use super::product::{
    AddProduct, AddTransposed, MAX_COLUMNS, PackedLeft, PackedRight, PanelSource, add_product,
};
use super::schedule::MAX_PRODUCT_DEPTH;
use super::simd::{SimdKernel, SimdVector, load, store};
use crate::error::{Result, try_grow, try_zeros};
use crate::spec::config::Reset;
use crate::spec::params::{CellRanges, Params};

/// The operands of the products over a range of steps of a cell, with R = steps × batch rows.
pub(super) struct CellProducts<'a> {
    pub weights: &'a BackwardWeights,
    /// I, above the first layer D·H.
    pub width: usize,
    /// The cell's input, `[R, width]`.
    pub input: &'a [f32],
    /// The state that each step starts from, `[R, H]`.
    pub h: &'a [f32],
    /// The gate gradients: da_r, da_z, da_n, and da_n ⊙ r or, with reset before, r ⊙ h;
    /// `[R, 4H]`.
    pub gates: &'a [f32],
}

/// The sums of a cell's gradients over the products of all its steps.
pub(super) struct CellSums {
    /// The upper levels of the sums of dW_ih and dW_hh.
    weights: [LongSum; 2],
    /// The column sums of the gate gradients, `[4H]`. They take so little of the work that they are
    /// in f64.
    gates: Vec<f64>,
}

impl CellSums {
    pub fn new(hidden: usize) -> Result<Self> {
        let gates = try_zeros("the gradients of biases", 4 * hidden)?;
        Ok(Self { weights: Default::default(), gates })
    }

    /// Completes the gradients of the cell's parameters.
    pub fn finish(self, dparams: &mut Params, ranges: &CellRanges, reset: Reset) {
        let flat = dparams.as_mut_slice();
        let weight_ranges = [ranges.weight_ih.clone(), ranges.weight_hh.clone()];
        for (sum, range) in self.weights.into_iter().zip(weight_ranges) {
            sum.finish(&mut flat[range]);
        }
        let hidden = self.gates.len() / 4;
        let hn_columns = match reset {
            Reset::After => 3 * hidden..4 * hidden,
            Reset::Before => 2 * hidden..3 * hidden,
        };
        let store = |to: &mut [f32], sums: &[f64]| {
            to.iter_mut().zip(sums).for_each(|(d, &sum)| *d = sum as f32);
        };
        if let Some(range) = ranges.bias_ih.clone() {
            store(&mut flat[range], &self.gates[..3 * hidden]);
        }
        if let Some(range) = ranges.bias_hh.clone() {
            let (db_hr_hz, db_hn) = flat[range].split_at_mut(2 * hidden);
            store(db_hr_hz, &self.gates[..2 * hidden]);
            store(db_hn, &self.gates[hn_columns]);
        }
    }
}

/// An independent part of the work.
enum GradientTask<'a> {
    Weights(GateColumns<'a>),
    /// `dx [·, width] += gates [·, 3H of 4H] · W_ih [3H, width]`
    Input {
        gates: &'a [f32],
        dx: &'a mut [f32],
    },
}

/// Some columns of the gate gradients, and the right sides to multiply their transpose with.
struct GateColumns<'a> {
    /// The index of the first column.
    first: usize,
    /// One element for each column; the column's sum is added.
    sums: &'a mut [f64],
    /// Right sides, each with the rows of a weight gradient that the product is added to.
    products: Vec<(&'a PackedRight, &'a mut [f32])>,
}

impl<'a> GateColumns<'a> {
    /// Splits the columns into tasks.
    fn split(self) -> impl Iterator<Item = Self> {
        let Self { mut first, mut sums, mut products } = self;
        std::iter::from_fn(move || {
            let (rest, count) = (sums.len(), MAX_COLUMNS.min(sums.len()));
            let task_sums = sums.split_off_mut(..count).filter(|sums| !sums.is_empty())?;
            let products = products.iter_mut().map(|(right, to)| {
                let len = to.len() / rest * count;
                (*right, to.split_off_mut(..len).expect("one row for each column"))
            });
            let task = Self { first, sums: task_sums, products: products.collect() };
            first += count;
            Some(task)
        })
    }
}

/// Scratch memory of a thread.
#[derive(Default)]
struct ThreadScratch {
    left: Vec<f32>,
    sums: Vec<f32>,
}

impl CellProducts<'_> {
    /// Returns the number of floating-point operations.
    pub fn flops(&self) -> f64 {
        let hidden = self.weights.spec.hidden;
        6.0 * self.h.len() as f64 * (2 * self.width + hidden) as f64
    }

    /// Adds to `dinput [R, width]`, which is empty if it is not needed, and to the gradients of the
    /// cell's parameters, whose `sums` these are.
    pub fn add_to(
        &self,
        mut dinput: &mut [f32],
        dparams: &mut Params,
        sums: &mut CellSums,
        ranges: &CellRanges,
        is_parallel: bool,
    ) -> Result<()> {
        let (width, hidden) = (self.width, self.weights.spec.hidden);
        let weight_ranges = [ranges.weight_ih.clone(), ranges.weight_hh.clone()];
        let mut dweights =
            dparams.as_mut_slice().get_disjoint_mut(weight_ranges).expect("disjoint parameters");
        let rows = |width: usize| MAX_PRODUCT_DEPTH * width;
        let h_and_gates = self.h.chunks(rows(hidden)).zip(self.gates.chunks(rows(4 * hidden)));
        for (input, (h, gates)) in self.input.chunks(rows(width)).zip(h_and_gates) {
            let block = CellProducts { input, h, gates, ..*self };
            let len = input.len().min(dinput.len());
            let dinput = dinput.split_off_mut(..len).expect("len is at most its length");
            block.add_block(dinput, &mut dweights, &mut sums.gates, is_parallel)?;
            for (sum, dweight) in sums.weights.iter_mut().zip(&mut dweights) {
                sum.array_added(dweight)?;
            }
        }
        Ok(())
    }

    /// Adds the products over at most [`MAX_PRODUCT_DEPTH`] rows, whose packed right sides stay in
    /// the cache.
    fn add_block(
        &self,
        dinput: &mut [f32],
        [weight_ih, weight_hh]: &mut [&mut [f32]; 2],
        sums: &mut [f64],
        is_parallel: bool,
    ) -> Result<()> {
        let (width, hidden) = (self.width, self.weights.spec.hidden);
        let pack = |matrix: &[f32], width: usize, first: usize| {
            let level = self.weights.spec.level;
            let panels = (width - first).div_ceil(level.lanes());
            PackedRight::new(level, matrix.len() / width, panels, is_parallel, |panel| {
                PanelSource::Rows(matrix, width, first + panel * level.lanes())
            })
        };
        let (input, h) = (pack(self.input, width, 0)?, pack(self.h, hidden, 0)?);
        let reset = self.weights.spec.reset;
        let rh = match reset {
            Reset::After => None,
            Reset::Before => Some(pack(self.gates, 4 * hidden, 3 * hidden)?),
        };
        let (ih_r_z, ih_n) = weight_ih.split_at_mut(2 * hidden * width);
        let (hh_r_z, hh_n) = weight_hh.split_at_mut(2 * hidden * hidden);
        let (sums_r_z, other_sums) = sums.split_at_mut(2 * hidden);
        let (sums_n, sums_n_recurrent) = other_sums.split_at_mut(hidden);
        let columns = |first, sums, products| GateColumns { first, sums, products };
        let mut all = vec![columns(0, sums_r_z, vec![(&input, ih_r_z), (&h, hh_r_z)])];
        match &rh {
            None => {
                all.push(columns(2 * hidden, sums_n, vec![(&input, ih_n)]));
                all.push(columns(3 * hidden, sums_n_recurrent, vec![(&h, hh_n)]));
            }
            Some(rh) => all.push(columns(2 * hidden, sums_n, vec![(&input, ih_n), (rh, hh_n)])),
        }
        let rows =
            self.gates.chunks(MAX_COLUMNS * 4 * hidden).zip(dinput.chunks_mut(MAX_COLUMNS * width));
        let input_tasks = rows.map(|(gates, dx)| GradientTask::Input { gates, dx });
        let weight_tasks = all.into_iter().flat_map(GateColumns::split).map(GradientTask::Weights);
        let tasks = Mutex::new(weight_tasks.chain(input_tasks));
        // Each thread allocates its scratch memory once.
        let work = |_| {
            let mut scratch = ThreadScratch::default();
            // A poisoned lock is safe to use: tasks run after the lock is released, so a task that
            // panics cannot leave the list in a partial state.
            let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(task) = next() {
                self.run(task, &mut scratch)?;
            }
            Ok(())
        };
        let threads = if is_parallel { rayon::current_num_threads() } else { 1 };
        match threads {
            1 => work(0),
            _ => (0..threads).into_par_iter().with_max_len(1).try_for_each(work),
        }
    }

    /// Runs a task.
    fn run(
        &self,
        task: GradientTask<'_>,
        ThreadScratch { left, sums }: &mut ThreadScratch,
    ) -> Result<()> {
        let level = self.weights.spec.level;
        let hidden = self.weights.spec.hidden;
        match task {
            GradientTask::Weights(GateColumns { first, sums, products }) => {
                let depth = self.h.len() / hidden;
                let scratch_len = AddTransposed::scratch_len(level, sums.len(), depth);
                try_grow("a task's gate gradients", left, scratch_len)?;
                let (stride, gates) = (4 * hidden, self.gates);
                let scratch = &mut left[..];
                level.run(AddTransposed { left: gates, stride, first, sums, products, scratch });
            }
            GradientTask::Input { gates, dx } => {
                let rows = gates.len() / (4 * hidden);
                let left = PackedLeft::pack(level, gates, 4 * hidden, [0..3 * hidden, 0..0], left)?;
                let len = rows * self.width.next_multiple_of(level.lanes());
                try_grow("a block's dx", sums, len)?;
                let (right, width, sums) = (&self.weights.input, self.width, &mut sums[..len]);
                level.run(InputGradient { left, right, width, sums, dx });
            }
        }
        Ok(())
    }
}

/// A kernel that computes some rows of dx: `dx += left · right`.
struct InputGradient<'a> {
    /// The gate gradients, `[rows, 3H]`.
    left: PackedLeft<'a>,
    /// W_ih `[3H, width]`
    right: &'a PackedRight,
    width: usize,
    /// Scratch memory for the product, `[panels, rows, N]`.
    sums: &'a mut [f32],
    /// `[rows, width]`, accumulated.
    dx: &'a mut [f32],
}

impl SimdKernel for InputGradient<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
        let Self { left, right, width, sums, dx } = self;
        sums.fill(0.0);
        let depth = 0..right.depth;
        add_product::<V, N, ROWS>(AddProduct { left, right, depth, first: 0, out: &mut *sums });
        for (panel, rows) in sums.chunks_exact(left.rows * N).enumerate() {
            for (dx, add) in dx.chunks_exact_mut(width).zip(rows.chunks_exact(N)) {
                let mut sum = load::<N>(dx, panel * N);
                sum.iter_mut().zip(add).for_each(|(sum, add)| *sum += add);
                store(dx, panel * N, &sum);
            }
        }
    }
}
