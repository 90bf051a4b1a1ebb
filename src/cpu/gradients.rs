//! The gradients of the weights and of the input, for some steps of a cell that went backward:
//! products over all of these steps.
//!
//! Threads take tasks from one list, so that no thread waits between one product and the next.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::cell::BackwardWeights;
use super::product::{
    AddProduct, AddTransposed, PackedLeft, PackedRight, PanelSource, add_product,
};
use super::schedule::DEPTH;
use super::simd::{SimdKernel, SimdVector, load, store};
use crate::error::{Result, try_grow, try_zeros};
use crate::spec::config::Reset;
use crate::spec::params::{CellRanges, Params};

/// Rows of a result per task: whole tiles at every SIMD level, with gate gradients that fit into
/// the cache.
const ROWS: usize = 48;

/// The gradients of some steps of a cell, as [`Backward`](super::backward::Backward) left them. R
/// counts rows of all these steps.
pub(super) struct CellProducts<'a> {
    pub weights: &'a BackwardWeights,
    pub width: usize,
    /// `[R, width]`
    pub input: &'a [f32],
    /// `[R, H]`
    pub h: &'a [f32],
    /// `[R, 4H]`
    pub gates: &'a [f32],
}

/// An independent part of the work.
enum GradientTask<'a> {
    Weights(GateColumns<'a>),
    /// `to [·, width] += gates · W_ih`
    Input {
        gates: &'a [f32],
        to: &'a mut [f32],
    },
}

/// Some columns of the gates' gradients, with the matrices to multiply them by.
struct GateColumns<'a> {
    first: usize,
    /// One sum per column, added to.
    sums: &'a mut [f32],
    /// The right sides, and the rows of the weights' gradients that their products are added to.
    products: Vec<(&'a PackedRight, &'a mut [f32])>,
}

impl<'a> GateColumns<'a> {
    /// Splits the columns into tasks.
    fn cut(self) -> impl Iterator<Item = Self> {
        let Self { mut first, mut sums, mut products } = self;
        std::iter::from_fn(move || {
            let (all, some) = (sums.len(), ROWS.min(sums.len()));
            let sums_of = sums.split_off_mut(..some).filter(|sums| !sums.is_empty())?;
            let products = products.iter_mut().map(|(right, to)| {
                let rows = to.len() / all * some;
                (*right, to.split_off_mut(..rows).expect("as many rows as columns"))
            });
            let cut = Self { first, sums: sums_of, products: products.collect() };
            first += some;
            Some(cut)
        })
    }
}

/// The scratch memory of a thread.
#[derive(Default)]
struct ThreadScratch {
    left: Vec<f32>,
    sums: Vec<f32>,
}

impl CellProducts<'_> {
    /// Returns the floating-point operations.
    pub fn flops(&self) -> f64 {
        let hidden = self.weights.spec.hidden;
        6.0 * self.h.len() as f64 * (2 * self.width + hidden) as f64
    }

    /// Adds to `dinput [R, width]` (empty if it is not needed), and to the gradients of the cell's
    /// parameters.
    pub fn add_to(
        &self,
        mut dinput: &mut [f32],
        dparams: &mut Params,
        ranges: &CellRanges,
        is_parallel: bool,
    ) -> Result<()> {
        let (width, hidden) = (self.width, self.weights.spec.hidden);
        // The sums of the gates' gradients, column by column.
        let mut sums = try_zeros("the gradients of biases", 4 * hidden)?;
        let flat = dparams.as_mut_slice();
        let of_weights = [ranges.weight_ih.clone(), ranges.weight_hh.clone()];
        let mut of_weights = flat.get_disjoint_mut(of_weights).expect("two parameters");
        let rows = |width: usize| DEPTH * width;
        let of_states = self.h.chunks(rows(hidden)).zip(self.gates.chunks(rows(4 * hidden)));
        for (input, (h, gates)) in self.input.chunks(rows(width)).zip(of_states) {
            let block = CellProducts { input, h, gates, ..*self };
            let len = input.len().min(dinput.len());
            let dinput = dinput.split_off_mut(..len).expect("no more than there is");
            block.add_block(dinput, &mut of_weights, &mut sums, is_parallel)?;
        }
        let last = match self.weights.spec.reset {
            Reset::After => 3 * hidden..4 * hidden,
            Reset::Before => 2 * hidden..3 * hidden,
        };
        let add = |to: &mut [f32], sums: &[f32]| {
            to.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
        };
        if let Some(range) = ranges.bias_ih.clone() {
            add(&mut flat[range], &sums[..3 * hidden]);
        }
        if let Some(range) = ranges.bias_hh.clone() {
            let (of_r_z, of_n) = flat[range].split_at_mut(2 * hidden);
            add(of_r_z, &sums[..2 * hidden]);
            add(of_n, &sums[last]);
        }
        Ok(())
    }

    /// Adds the products of rows whose packed right sides fit into the cache.
    fn add_block(
        &self,
        dinput: &mut [f32],
        [weight_ih, weight_hh]: &mut [&mut [f32]; 2],
        sums: &mut [f32],
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
        let (of_r_z, of_others) = sums.split_at_mut(2 * hidden);
        let (of_n, of_past) = of_others.split_at_mut(hidden);
        let columns = |first, sums, products| GateColumns { first, sums, products };
        let mut all = vec![columns(0, of_r_z, vec![(&input, ih_r_z), (&h, hh_r_z)])];
        match &rh {
            None => {
                all.push(columns(2 * hidden, of_n, vec![(&input, ih_n)]));
                all.push(columns(3 * hidden, of_past, vec![(&h, hh_n)]));
            }
            Some(rh) => all.push(columns(2 * hidden, of_n, vec![(&input, ih_n), (rh, hh_n)])),
        }
        let rows = self.gates.chunks(ROWS * 4 * hidden).zip(dinput.chunks_mut(ROWS * width));
        let of_input = rows.map(|(gates, to)| GradientTask::Input { gates, to });
        let of_weights = all.into_iter().flat_map(GateColumns::cut).map(GradientTask::Weights);
        let tasks = Mutex::new(of_weights.chain(of_input));
        // Each thread allocates its scratch memory once.
        let work = |_| {
            let mut space = ThreadScratch::default();
            // A panic on another thread cannot leave the list half split: its tasks are already
            // separate.
            let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(task) = next() {
                self.run(task, &mut space)?;
            }
            Ok(())
        };
        let threads = if is_parallel { rayon::current_num_threads() } else { 1 };
        match threads {
            1 => work(0),
            _ => (0..threads).into_par_iter().with_max_len(1).try_for_each(work),
        }
    }

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
                try_grow("a task's gates", left, AddTransposed::space(level, sums.len(), depth))?;
                let (stride, gates) = (4 * hidden, self.gates);
                let space = &mut left[..];
                level.run(AddTransposed { left: gates, stride, first, sums, products, space });
            }
            GradientTask::Input { gates, to } => {
                let rows = gates.len() / (4 * hidden);
                let left = PackedLeft::pack(level, gates, 4 * hidden, [0..3 * hidden, 0..0], left)?;
                let len = rows * self.width.next_multiple_of(level.lanes());
                try_grow("a block's dx", sums, len)?;
                let (right, width, sums) = (&self.weights.input, self.width, &mut sums[..len]);
                level.run(InputGradient { left, right, width, sums, to });
            }
        }
        Ok(())
    }
}

/// Some rows of dx.
struct InputGradient<'a> {
    left: PackedLeft<'a>,
    right: &'a PackedRight,
    width: usize,
    /// `[panels, rows, N]`: scratch memory.
    sums: &'a mut [f32],
    /// `[rows, width]`: added to.
    to: &'a mut [f32],
}

impl SimdKernel for InputGradient<'_> {
    #[inline(always)]
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
        let Self { left, right, width, sums, to } = self;
        sums.fill(0.0);
        let depth = 0..right.depth;
        add_product::<V, N, ROWS>(AddProduct { left, right, depth, first: 0, out: &mut *sums });
        for (panel, rows) in sums.chunks_exact(left.rows * N).enumerate() {
            for (to, add) in to.chunks_exact_mut(width).zip(rows.chunks_exact(N)) {
                let mut sum = load::<N>(to, panel * N);
                sum.iter_mut().zip(add).for_each(|(sum, add)| *sum += add);
                store(to, panel * N, &sum);
            }
        }
    }
}
