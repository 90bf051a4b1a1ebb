//! [`ReferenceCell`]: one direction of one layer, step by step, forward and backward.
#![allow(clippy::needless_range_loop, reason = "loops over j and k look like the equations")]

use std::ops::Range;

use ndarray::{
    Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, NdFloat, s,
};

use crate::spec::activation::ClippedActivation;
use crate::spec::batch::step_flag;
use crate::spec::config::{GruConfig, Reset, Update};
use crate::spec::noise::{DrawIndex, Noise};
use crate::spec::params::{CellRanges, Params};

/// The trace of a cell (one direction of one layer). All arrays are in time order, time-major, for
/// every direction and every layout of the batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CellTrace<F> {
    /// The state that each step starts from, `[T, B, H]`.
    pub h: Array3<F>,
    /// The gates `[T, B, 4H]`: r, z, n and the recurrent term of the candidate, which is
    /// `W_hn h + b_hn` with [`Reset::After`] and `r ⊙ h` with [`Reset::Before`].
    pub gates: Array3<F>,
    /// The output of each step, `[T, B, H]`: the new state after dropout, or 0 for padding.
    pub y: Array3<F>,
    /// The state after the direction's last step, `[B, H]`.
    pub last: Array2<F>,
}

/// The parameters of a cell (one direction of one layer). Weights are row-major, gates stacked r,
/// z, n.
pub(crate) struct ReferenceCell<'a, F> {
    config: &'a GruConfig,
    /// The function of r and z.
    gate: ClippedActivation<F>,
    /// The function of n.
    candidate: ClippedActivation<F>,
    ranges: CellRanges,
    /// `[3H, I]`, above the first layer `[3H, D·H]`
    weight_ih: &'a [F],
    /// `[3H, H]`
    weight_hh: &'a [F],
    /// `[3H]`
    bias_ih: Option<&'a [F]>,
    /// `[3H]`
    bias_hh: Option<&'a [F]>,
}

/// The data that all steps of a cell share, except its parameters.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a, F> {
    pub layer: usize,
    /// The index of the direction within the layer.
    pub direction: usize,
    pub is_reverse: bool,
    /// The step flags `[T, B]`, bits of [`step_flag`].
    pub step_flags: ArrayView2<'a, u32>,
    pub noise: &'a Noise,
    /// The reset state `[B, H]`.
    pub reset_state: ArrayView2<'a, F>,
}

impl<F: NdFloat> StepContext<'_, F> {
    /// Returns all time steps in the direction's order.
    pub(crate) fn times(&self) -> impl DoubleEndedIterator<Item = usize> + use<F> {
        self.in_order(0..self.step_flags.len_of(Axis(0)))
    }

    /// Returns these time steps in the direction's order.
    pub(crate) fn in_order(
        &self,
        times: Range<usize>,
    ) -> impl DoubleEndedIterator<Item = usize> + use<F> {
        let (is_reverse, ends) = (self.is_reverse, times.start + times.end);
        times.map(move |t| if is_reverse { ends - 1 - t } else { t })
    }

    /// Returns the time steps of the direction's `steps`, which count from the direction's start.
    pub(crate) fn times_of(&self, steps: Range<usize>) -> Range<usize> {
        let all = self.step_flags.len_of(Axis(0));
        if self.is_reverse { all - steps.end..all - steps.start } else { steps }
    }

    /// Returns true if a row starts the direction's step at time t from the reset state.
    pub(crate) fn restarts(&self, t: usize, row: usize) -> bool {
        let bit = if self.is_reverse { step_flag::RESTART_REVERSE } else { step_flag::RESTART };
        self.step_flags[[t, row]] & bit != 0
    }

    pub(crate) fn is_padding(&self, t: usize, row: usize) -> bool {
        self.step_flags[[t, row]] & step_flag::PADDING != 0
    }

    fn draw_index(&self, time: usize, row: usize, unit: usize, hidden: usize) -> DrawIndex {
        DrawIndex { layer: self.layer, time, row, unit: self.direction * hidden + unit }
    }

    /// Returns [`Noise::zoneout_fraction`] as a function of the unit.
    pub(crate) fn zoneout(&self, t: usize, row: usize, hidden: usize) -> impl Fn(usize) -> F {
        move |j| float(self.noise.zoneout_fraction(self.draw_index(t, row, j, hidden)))
    }

    /// Returns [`Noise::dropout_factor`] as a function of the unit.
    pub(crate) fn dropout(&self, t: usize, row: usize, hidden: usize) -> impl Fn(usize) -> F {
        move |j| float(self.noise.dropout_factor(self.draw_index(t, row, j, hidden)))
    }
}

impl<'a, F: NdFloat> ReferenceCell<'a, F> {
    pub(crate) fn new(params: &'a Params<F>, layer: usize, direction: usize) -> Self {
        let ranges = params.layout().cell(layer, direction);
        let flat = params.as_slice();
        let config = params.layout().config();
        let [gate, candidate] = config.functions(direction);
        Self {
            config,
            gate,
            candidate,
            weight_ih: &flat[ranges.weight_ih.clone()],
            weight_hh: &flat[ranges.weight_hh.clone()],
            bias_ih: ranges.bias_ih.clone().map(|range| &flat[range]),
            bias_hh: ranges.bias_hh.clone().map(|range| &flat[range]),
            ranges,
        }
    }

    /// Runs all steps of a direction. On entry `trace` holds [`Self::input_products`] in its gates,
    /// the first state in its `last`, and zeros elsewhere. Steps of padding leave the state
    /// unchanged and set their gates to 0.
    pub(crate) fn forward_steps(&self, context: &StepContext<'_, F>, trace: &mut CellTrace<F>) {
        let (_, batch, hidden) = trace.h.dim();
        let mut next = vec![F::zero(); hidden];
        for t in context.times() {
            for row in 0..batch {
                let mut state = trace.last.row_mut(row);
                if context.restarts(t, row) {
                    state.assign(&context.reset_state.row(row));
                }
                trace.h.slice_mut(s![t, row, ..]).assign(&state);
                let mut gates = trace.gates.view_mut();
                let gates = row_at_mut(&mut gates, t, row);
                if context.is_padding(t, row) {
                    gates.fill(F::zero());
                    continue;
                }
                let past = state.as_slice_mut().expect("rows are contiguous");
                self.step(past, gates, context.zoneout(t, row, hidden), &mut next);
                past.copy_from_slice(&next);
                let mut y = trace.y.view_mut();
                let (y, factor) = (row_at_mut(&mut y, t, row), context.dropout(t, row, hidden));
                (0..hidden).for_each(|j| y[j] = next[j] * factor(j));
            }
        }
    }

    /// Runs all steps of a direction backward. On entry `h` and `gates` hold the values of
    /// [`Self::forward_steps`] and `dh [B, H]` the gradient of the last state. On return `gates`
    /// holds the gradients of [`Self::step_backward`] and `dh` the gradient of the first state. The
    /// gradient of the reset state is added to `dreset [B, H]`.
    pub(crate) fn backward_steps(
        &self,
        context: &StepContext<'_, F>,
        h: ArrayView3<'_, F>,
        doutput: ArrayView3<'_, F>,
        mut gates: ArrayViewMut3<'_, F>,
        mut dh: ArrayViewMut2<'_, F>,
        mut dreset: ArrayViewMut2<'_, F>,
    ) {
        let (_, batch, hidden) = h.dim();
        for t in context.times().rev() {
            for row in (0..batch).filter(|&row| !context.is_padding(t, row)) {
                let mut dh = dh.row_mut(row);
                let factor = context.dropout(t, row, hidden);
                (0..hidden).for_each(|j| dh[j] += doutput[[t, row, j]] * factor(j));
                self.step_backward(
                    row_at(&h, t, row),
                    row_at_mut(&mut gates, t, row),
                    context.zoneout(t, row, hidden),
                    dh.as_slice_mut().expect("rows are contiguous"),
                );
                if context.restarts(t, row) {
                    dreset.row_mut(row).zip_mut_with(&dh, |sum, &d| *sum += d);
                    dh.fill(F::zero());
                }
            }
        }
    }

    /// Computes `gates[.., .., 0..3H] = W_ih x + b_ih`.
    pub(super) fn input_products(&self, input: ArrayView3<'_, F>, mut gates: ArrayViewMut3<'_, F>) {
        let (steps, batch, width) = input.dim();
        for (t, b) in (0..steps).flat_map(|t| (0..batch).map(move |b| (t, b))) {
            let (x, gates) = (row_at(&input, t, b), row_at_mut(&mut gates, t, b));
            for k in 0..3 * self.config.hidden_size {
                gates[k] = dot(row(self.weight_ih, k, width), x) + at(self.bias_ih, k);
            }
        }
    }

    /// Runs one step of one row. On entry `gates [4H]` holds [`Self::input_products`]; on return,
    /// r, z, n and the recurrent term of the candidate. `zoneout` is the fraction of the old state
    /// that each unit keeps by zoneout. `next [H]` receives h'.
    fn step(&self, h: &[F], gates: &mut [F], zoneout: impl Fn(usize) -> F, next: &mut [F]) {
        let hidden = h.len();
        let [r, z, n, past] = quarters(gates);
        let recurrent =
            |k: usize, v: &[F]| dot(row(self.weight_hh, k, hidden), v) + at(self.bias_hh, k);
        for j in 0..hidden {
            r[j] = self.gate.value(r[j] + recurrent(j, h));
            z[j] = self.gate.value(z[j] + recurrent(hidden + j, h));
        }
        match self.config.reset {
            Reset::After => {
                for j in 0..hidden {
                    past[j] = recurrent(2 * hidden + j, h);
                    n[j] = self.candidate.value(n[j] + r[j] * past[j]);
                }
            }
            Reset::Before => {
                for j in 0..hidden {
                    past[j] = r[j] * h[j];
                }
                for j in 0..hidden {
                    n[j] = self.candidate.value(n[j] + recurrent(2 * hidden + j, past));
                }
            }
        }
        for j in 0..hidden {
            let new = match self.config.update {
                Update::Overwrites => (F::one() - z[j]) * h[j] + z[j] * n[j],
                Update::Keeps => z[j] * h[j] + (F::one() - z[j]) * n[j],
            };
            next[j] = zoneout(j) * h[j] + (F::one() - zoneout(j)) * new;
        }
    }

    /// Runs one step of one row backward. On entry `gates [4H]` holds the values of [`Self::step`]
    /// and `dh [H]` the gradient of h'. On return r, z and n hold the gradients of their
    /// pre-activations, and `dh` the gradient of h. With reset after, the fourth quarter holds the
    /// gradient of `W_hn h + b_hn`; with reset before, it still holds r ⊙ h.
    fn step_backward(&self, h: &[F], gates: &mut [F], zoneout: impl Fn(usize) -> F, dh: &mut [F]) {
        let hidden = h.len();
        let one = F::one();
        let [r, z, n, past] = quarters(gates);
        for j in 0..hidden {
            let dnew = dh[j] * (one - zoneout(j));
            let (dn, dz, direct) = match self.config.update {
                Update::Overwrites => (dnew * z[j], dnew * (n[j] - h[j]), dnew * (one - z[j])),
                Update::Keeps => (dnew * (one - z[j]), dnew * (h[j] - n[j]), dnew * z[j]),
            };
            n[j] = dn * self.candidate.derivative(n[j]);
            z[j] = dz * self.gate.derivative(z[j]);
            dh[j] = dh[j] * zoneout(j) + direct;
        }
        let weight = |gate: usize, j: usize| row(self.weight_hh, gate * hidden + j, hidden);
        match self.config.reset {
            Reset::After => {
                for j in 0..hidden {
                    let dr = n[j] * past[j];
                    past[j] = n[j] * r[j];
                    r[j] = dr * self.gate.derivative(r[j]);
                }
                for j in 0..hidden {
                    add_scaled(dh, past[j], weight(2, j));
                }
            }
            Reset::Before => {
                let mut drh = vec![F::zero(); hidden];
                for j in 0..hidden {
                    add_scaled(&mut drh, n[j], weight(2, j));
                }
                for j in 0..hidden {
                    dh[j] += drh[j] * r[j];
                    r[j] = drh[j] * h[j] * self.gate.derivative(r[j]);
                }
            }
        }
        for j in 0..hidden {
            add_scaled(dh, r[j], weight(0, j));
            add_scaled(dh, z[j], weight(1, j));
        }
    }

    /// Adds the contributions of one step of one row to the parameters' gradients and to its `dx`.
    /// `gates` holds the gradients of [`Self::step_backward`].
    pub(super) fn parameter_gradients(
        &self,
        x: &[F],
        h: &[F],
        gates: &[F],
        dx: &mut [F],
        d: &mut Params<F>,
    ) {
        let hidden = h.len();
        let (input_side, past) = gates.split_at(3 * hidden);
        let ranges = &self.ranges;
        let flat = d.as_mut_slice();
        for (k, &da) in input_side.iter().enumerate() {
            // The vector that row k of weight_hh is multiplied with, and the gradient of the
            // product.
            let (operand, dproduct) = match (k / hidden, self.config.reset) {
                (2, Reset::After) => (h, past[k - 2 * hidden]),
                (2, Reset::Before) => (past, da),
                _ => (h, da),
            };
            add_scaled(dx, da, row(self.weight_ih, k, x.len()));
            add_scaled(row_mut(&mut flat[ranges.weight_ih.clone()], k, x.len()), da, x);
            add_scaled(row_mut(&mut flat[ranges.weight_hh.clone()], k, hidden), dproduct, operand);
            if let Some(range) = &ranges.bias_ih {
                flat[range.start + k] += da;
            }
            if let Some(range) = &ranges.bias_hh {
                flat[range.start + k] += dproduct;
            }
        }
    }
}

/// Returns the values of one step of one row.
pub(super) fn row_at<'a, F>(array: &'a ArrayView3<'_, F>, t: usize, row: usize) -> &'a [F] {
    let width = array.len_of(Axis(2));
    let first = (t * array.len_of(Axis(1)) + row) * width;
    &array.as_slice().expect("standard layout")[first..first + width]
}

pub(super) fn row_at_mut<'a, F>(
    array: &'a mut ArrayViewMut3<'_, F>,
    t: usize,
    row: usize,
) -> &'a mut [F] {
    let width = array.len_of(Axis(2));
    let first = (t * array.len_of(Axis(1)) + row) * width;
    &mut array.as_slice_mut().expect("standard layout")[first..first + width]
}

fn float<F: NdFloat>(value: f32) -> F {
    F::from(value).expect("every f32 is a float")
}

fn dot<F: NdFloat>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).fold(F::zero(), |sum, (&a, &b)| sum + a * b)
}

fn add_scaled<F: NdFloat>(target: &mut [F], scale: F, source: &[F]) {
    target.iter_mut().zip(source).for_each(|(t, &s)| *t += scale * s);
}

/// Returns row `k` of a row-major matrix with rows of length `len`.
fn row<F>(matrix: &[F], k: usize, len: usize) -> &[F] {
    &matrix[k * len..][..len]
}

fn row_mut<F>(matrix: &mut [F], k: usize, len: usize) -> &mut [F] {
    &mut matrix[k * len..][..len]
}

/// Returns element `k` of a bias, or 0 if there is none.
fn at<F: NdFloat>(bias: Option<&[F]>, k: usize) -> F {
    bias.map_or(F::zero(), |bias| bias[k])
}

fn quarters<F>(gates: &mut [F]) -> [&mut [F]; 4] {
    let (rz, n_past) = gates.split_at_mut(gates.len() / 2);
    let (r, z) = rz.split_at_mut(rz.len() / 2);
    let (n, past) = n_past.split_at_mut(n_past.len() / 2);
    [r, z, n, past]
}
