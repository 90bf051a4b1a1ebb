//! The specification: forward and backward in plain loops, in f32 or f64, every variant.
//!
//! Nothing here is clever. `Cell::step` and `Cell::step_backward` are the twins of
//! `shaders/forward_step.wgsl` and `shaders/backward_step.wgsl`; they keep the same rows in the same
//! columns, so a kernel can be held against its twin alone. `tests/` holds this file against
//! PyTorch's numbers and against central differences, and every kernel against this file.
#![allow(clippy::needless_range_loop, reason = "loops over j and k read like the equations")]

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, NdFloat, concatenate, s};

use crate::batch::{Batch, zero_padding};
use crate::config::{Activation, GruConfig, Reset, Shape, Update};
use crate::error::{Error, Result, check_shape, try_zeros};
use crate::params::{CellRanges, Gradients, Params};

/// What a forward pass computes and a backward pass needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trace<F> {
    /// What each cell went through: layer-major, forward before reverse.
    pub cells: Vec<CellTrace<F>>,
    directions: usize,
    lengths: Vec<usize>,
}

/// What one direction of one layer went through.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CellTrace<F> {
    /// All states `[T+1, B, H]`. Forward, row t is step t's input and row t + 1 its output, so row 0
    /// is h0. The reverse direction runs from the last step to the first: row t + 1 is step t's input
    /// and row t its output, so row T is h0.
    pub h: Array3<F>,
    /// `[T, B, 4H]`: r, z, n and what the candidate took from the past, which is
    /// `W_hn h + b_hn` with [`Reset::After`] and `r ⊙ h` with [`Reset::Before`].
    pub gates: Array3<F>,
}

impl<F: NdFloat> Trace<F> {
    /// y `[T, B, D·H]`: the last layer's state after every step.
    pub fn y(&self) -> Array3<F> {
        self.output(self.cells.len() / self.directions - 1)
    }

    /// h_n `[L·D, B, H]`: the state of each cell after its last step, which is the first of the
    /// sequence for the reverse direction.
    pub fn h_n(&self) -> Array3<F> {
        let last = |(i, cell): (usize, &CellTrace<F>)| {
            let steps = cell.gates.len_of(Axis(0));
            let row = after(steps - 1, i % self.directions, steps);
            cell.h.slice(s![row..row + 1, .., ..]).to_owned()
        };
        let states: Vec<_> = self.cells.iter().enumerate().map(last).collect();
        join(Axis(0), states.iter().map(|state| state.view()))
    }

    /// A layer's output `[T, B, D·H]`.
    fn output(&self, layer: usize) -> Array3<F> {
        let cells = &self.cells[layer * self.directions..][..self.directions];
        let rows = cells.iter().enumerate().map(|(direction, cell)| match direction {
            0 => cell.h.slice(s![1.., .., ..]),
            _ => cell.h.slice(s![..-1, .., ..]),
        });
        let mut output = join(Axis(2), rows);
        zero_padding(&mut output, &self.lengths);
        output
    }
}

/// Joins arrays along an axis, in standard layout.
pub(crate) fn join<'a, F: NdFloat>(
    axis: Axis,
    parts: impl Iterator<Item = ArrayView3<'a, F>>,
) -> Array3<F> {
    let parts: Vec<_> = parts.collect();
    // Along the last axis ndarray leaves another order of memory.
    standard(concatenate(axis, &parts).expect("the other axes are the same").view())
}

/// A copy whose rows are contiguous, whatever the view's strides: `to_owned` may keep its order.
fn standard<F: NdFloat>(view: ArrayView3<'_, F>) -> Array3<F> {
    view.as_standard_layout().into_owned()
}

/// The time step that a direction takes at its own step `step` of `steps`.
pub(crate) fn time(step: usize, direction: usize, steps: usize) -> usize {
    if direction == 0 { step } else { steps - 1 - step }
}

/// The row of `h` that a direction's own step reads.
pub(crate) fn before(step: usize, direction: usize, steps: usize) -> usize {
    time(step, direction, steps) + direction
}

/// The row of `h` that a direction's own step writes.
pub(crate) fn after(step: usize, direction: usize, steps: usize) -> usize {
    time(step, direction, steps) + 1 - direction
}

/// Runs the GRU over a batch.
///
/// # Errors
/// [`Error::ZeroSize`], [`Error::Shape`] or [`Error::Length`] when the batch does not fit the
/// parameters, [`Error::OutOfMemory`].
///
/// ```
/// use gru_wgpu::{GruConfig, Init, Params, reference};
/// use ndarray::Array3;
///
/// let config = GruConfig::new(2, 3).with_layers(2).with_bidirectional(true);
/// let params = Params::init(&config, Init::Uniform, 1)?.cast::<f64>();
/// let trace = reference::forward(&params, &Array3::ones((5, 4, 2)))?;
/// assert_eq!((trace.y().dim(), trace.h_n().dim()), ((5, 4, 6), (4, 4, 3)));
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
pub fn forward<'a, F: NdFloat>(
    params: &Params<F>,
    batch: impl Into<Batch<'a, F>>,
) -> Result<Trace<F>> {
    let run = batch.into();
    let shape = run.check(params.layout().config())?;
    let Shape { steps, batch, hidden, layers, directions, .. } = shape;
    let mut trace = Trace { cells: Vec::new(), directions, lengths: run.row_lengths() };
    let mut input = standard(run.x);
    for layer in 0..layers {
        for direction in 0..directions {
            let mut h = zeros("h [T+1, B, H]", [steps + 1, batch, hidden])?;
            let mut gates = zeros("gates [T, B, 4H]", [steps, batch, 4 * hidden])?;
            if let Some(h0) = run.h0 {
                let first = before(0, direction, steps);
                h.slice_mut(s![first, .., ..]).assign(&h0.slice(s![trace.cells.len(), .., ..]));
            }
            let cell = Cell::new(params, layer, direction);
            cell.run(direction, &trace.lengths, input.view(), h.view_mut(), gates.view_mut());
            trace.cells.push(CellTrace { h, gates });
        }
        if layer + 1 < layers {
            input = trace.output(layer);
        }
    }
    Ok(trace)
}

/// Carries dy `[T, B, D·H]` (of every step's output) and dh_n `[L·D, B, H]` (of the last states) back
/// through the run that `trace` recorded over `x`.
///
/// # Errors
/// [`Error::Shape`] when an array does not fit the parameters, [`Error::NoGradient`] when both
/// gradients are `None`, [`Error::OutOfMemory`].
pub fn backward<F: NdFloat>(
    params: &Params<F>,
    x: ArrayView3<'_, F>,
    trace: &Trace<F>,
    dy: Option<ArrayView3<'_, F>>,
    dh_n: Option<ArrayView3<'_, F>>,
) -> Result<Gradients<F>> {
    let shape = Batch::new(x).check(params.layout().config())?;
    check_gradients(&shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    let Shape { steps, batch, hidden, layers, directions, .. } = shape;
    check_shape("trace.cells", &[layers * directions], &[trace.cells.len()])?;
    check_shape("trace's lengths [B]", &[batch], &[trace.lengths.len()])?;
    for cell in &trace.cells {
        check_shape("trace's h [T+1, B, H]", &[steps + 1, batch, hidden], cell.h.shape())?;
        check_shape("trace's gates [T, B, 4H]", &[steps, batch, 4 * hidden], cell.gates.shape())?;
    }

    let mut dparams = Params::zeros(params.layout().config())?;
    // Of each cell's last state at first, of its first state in the end.
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", shape.state()), |d| Ok(standard(d)))?;
    let mut doutput = dy.map_or_else(|| zeros("dy [T, B, D·H]", shape.y()), |d| Ok(standard(d)))?;
    for layer in (0..layers).rev() {
        let input = match layer {
            0 => standard(x),
            _ => trace.output(layer - 1),
        };
        let mut dinput = zeros("a layer's dx [T, B, ·]", input.dim().into())?;
        for direction in 0..directions {
            let i = layer * directions + direction;
            let run = BackwardRun {
                direction,
                lengths: &trace.lengths,
                input: input.view(),
                trace: &trace.cells[i],
                doutput: doutput.slice(s![.., .., direction * hidden..(direction + 1) * hidden]),
            };
            let cell = Cell::new(params, layer, direction);
            let dh = dh.slice_mut(s![i..i + 1, .., ..]);
            cell.run_backward(&run, dh, dinput.view_mut(), &mut dparams);
        }
        doutput = dinput;
    }
    Ok(Gradients { params: dparams, x: doutput, h0: dh })
}

fn zeros<F: NdFloat>(what: &str, shape: [usize; 3]) -> Result<Array3<F>> {
    let zeros = try_zeros(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("as many as the shape holds"))
}

/// `Ok` when the gradients that start a backward pass fit `shape` and there is one.
pub(crate) fn check_gradients(
    shape: &Shape,
    dy: Option<(usize, usize, usize)>,
    dh_n: Option<(usize, usize, usize)>,
) -> Result<()> {
    if dy.is_none() && dh_n.is_none() {
        return Err(Error::NoGradient);
    }
    if let Some(dim) = dy {
        check_shape("dy [T, B, D·H]", &shape.y(), &<[usize; 3]>::from(dim))?;
    }
    if let Some(dim) = dh_n {
        check_shape("dh_n [L·D, B, H]", &shape.state(), &<[usize; 3]>::from(dim))?;
    }
    Ok(())
}

/// One direction of one layer: what a step reads. Weights are row-major, gates stacked r, z, n.
pub(crate) struct Cell<'a, F> {
    config: &'a GruConfig,
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

/// What a cell's backward pass starts from.
struct BackwardRun<'a, F> {
    direction: usize,
    /// `[B]`
    lengths: &'a [usize],
    /// `[T, B, I or D·H]`
    input: ArrayView3<'a, F>,
    trace: &'a CellTrace<F>,
    /// `[T, B, H]`
    doutput: ArrayView3<'a, F>,
}

impl<'a, F: NdFloat> Cell<'a, F> {
    pub(crate) fn new(params: &'a Params<F>, layer: usize, direction: usize) -> Self {
        let ranges = params.layout().cell(layer, direction);
        let flat = params.as_slice();
        Self {
            config: params.layout().config(),
            weight_ih: &flat[ranges.weight_ih.clone()],
            weight_hh: &flat[ranges.weight_hh.clone()],
            bias_ih: ranges.bias_ih.clone().map(|range| &flat[range]),
            bias_hh: ranges.bias_hh.clone().map(|range| &flat[range]),
            ranges,
        }
    }

    /// All steps of a direction over input `[T, B, ·]`: fills `gates [T, B, 4H]` and the rows of
    /// `h [T+1, B, H]` after the first state. Past a row's length the state stays and gates are 0.
    fn run(
        &self,
        direction: usize,
        lengths: &[usize],
        input: ArrayView3<'_, F>,
        mut h: ArrayViewMut3<'_, F>,
        mut gates: ArrayViewMut3<'_, F>,
    ) {
        let (steps, batch, _) = input.dim();
        let mut next = vec![F::zero(); self.config.hidden_size];
        for step in 0..steps {
            let t = time(step, direction, steps);
            for b in 0..batch {
                let past = h.slice(s![before(step, direction, steps), b, ..]);
                if t < lengths[b] {
                    let input = input.slice(s![t, b, ..]);
                    let mut gates = gates.slice_mut(s![t, b, ..]);
                    let gates = gates.as_slice_mut().expect("rows are contiguous");
                    self.input_products(input.as_slice().expect("rows are contiguous"), gates);
                    self.step(past.as_slice().expect("rows are contiguous"), gates, &mut next);
                } else {
                    next.iter_mut().zip(past).for_each(|(next, &h)| *next = h);
                }
                let row = after(step, direction, steps);
                h.slice_mut(s![row, b, ..]).iter_mut().zip(&next).for_each(|(h, &v)| *h = v);
            }
        }
    }

    /// Undoes all steps of a direction. `dh [1, B, H]` is the gradient of the last state and becomes
    /// that of the first; `dinput [T, B, ·]` and `dparams` are added to.
    fn run_backward(
        &self,
        run: &BackwardRun<'_, F>,
        mut dh: ArrayViewMut3<'_, F>,
        mut dinput: ArrayViewMut3<'_, F>,
        dparams: &mut Params<F>,
    ) {
        let (steps, batch, hidden) = run.doutput.dim();
        let mut gates = vec![F::zero(); 4 * hidden];
        let mut h = vec![F::zero(); hidden];
        for step in (0..steps).rev() {
            let t = time(step, run.direction, steps);
            for b in (0..batch).filter(|&b| t < run.lengths[b]) {
                let row = before(step, run.direction, steps);
                h.iter_mut().zip(run.trace.h.slice(s![row, b, ..])).for_each(|(h, &v)| *h = v);
                let traced = run.trace.gates.slice(s![t, b, ..]);
                gates.iter_mut().zip(traced).for_each(|(g, &v)| *g = v);
                let mut dh = dh.slice_mut(s![0, b, ..]);
                dh += &run.doutput.slice(s![t, b, ..]);
                self.step_backward(&h, &mut gates, dh.as_slice_mut().expect("contiguous"));
                self.parameter_gradients(
                    run.input.slice(s![t, b, ..]).as_slice().expect("contiguous"),
                    &h,
                    &gates,
                    dinput.slice_mut(s![t, b, ..]).as_slice_mut().expect("contiguous"),
                    dparams,
                );
            }
        }
    }

    /// What r and z end with, and what n does.
    fn activations(&self) -> (Activation, Activation) {
        (self.config.gate_activation, self.config.candidate_activation)
    }

    /// `gates[0..3H] = W_ih x + b_ih`.
    fn input_products(&self, x: &[F], gates: &mut [F]) {
        for k in 0..3 * self.config.hidden_size {
            gates[k] = dot(row(self.weight_ih, k, x.len()), x) + at(self.bias_ih, k);
        }
    }

    /// One step. `gates [4H]` holds [`Self::input_products`] on entry and r, z, n and the past's
    /// part of the candidate on return; `next [H]` receives h'.
    pub(crate) fn step(&self, h: &[F], gates: &mut [F], next: &mut [F]) {
        let hidden = h.len();
        let (gate, candidate) = self.activations();
        let [r, z, n, past] = quarters(gates);
        let recurrent =
            |k: usize, v: &[F]| dot(row(self.weight_hh, k, hidden), v) + at(self.bias_hh, k);
        for j in 0..hidden {
            r[j] = activate(gate, r[j] + recurrent(j, h));
            z[j] = activate(gate, z[j] + recurrent(hidden + j, h));
        }
        match self.config.reset {
            Reset::After => {
                for j in 0..hidden {
                    past[j] = recurrent(2 * hidden + j, h);
                    n[j] = activate(candidate, n[j] + r[j] * past[j]);
                }
            }
            Reset::Before => {
                for j in 0..hidden {
                    past[j] = r[j] * h[j];
                }
                for j in 0..hidden {
                    n[j] = activate(candidate, n[j] + recurrent(2 * hidden + j, past));
                }
            }
        }
        for j in 0..hidden {
            next[j] = match self.config.update {
                Update::Overwrites => (F::one() - z[j]) * h[j] + z[j] * n[j],
                Update::Keeps => z[j] * h[j] + (F::one() - z[j]) * n[j],
            };
        }
    }

    /// Undoes one step. On entry `gates [4H]` is as [`Self::step`] left it and `dh [H]` the gradient
    /// of h'. On return r, z and n have become the gradients of their pre-activations, the fourth
    /// quarter that of `W_hn h + b_hn` (reset after; unchanged r ⊙ h with reset before), and `dh`
    /// is the gradient of h.
    pub(crate) fn step_backward(&self, h: &[F], gates: &mut [F], dh: &mut [F]) {
        let hidden = h.len();
        let one = F::one();
        let (gate, candidate) = self.activations();
        let [r, z, n, past] = quarters(gates);
        for j in 0..hidden {
            let (dn, dz, direct) = match self.config.update {
                Update::Overwrites => (dh[j] * z[j], dh[j] * (n[j] - h[j]), dh[j] * (one - z[j])),
                Update::Keeps => (dh[j] * (one - z[j]), dh[j] * (h[j] - n[j]), dh[j] * z[j]),
            };
            n[j] = dn * slope(candidate, n[j]);
            z[j] = dz * slope(gate, z[j]);
            dh[j] = direct;
        }
        let weight = |gate: usize, j: usize| row(self.weight_hh, gate * hidden + j, hidden);
        match self.config.reset {
            Reset::After => {
                for j in 0..hidden {
                    let dr = n[j] * past[j];
                    past[j] = n[j] * r[j];
                    r[j] = dr * slope(gate, r[j]);
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
                    r[j] = drh[j] * h[j] * slope(gate, r[j]);
                }
            }
        }
        for j in 0..hidden {
            add_scaled(dh, r[j], weight(0, j));
            add_scaled(dh, z[j], weight(1, j));
        }
    }

    /// Adds what one step of one row gives to the parameters' gradients and to its `dx`.
    /// `gates` is as [`Self::step_backward`] left it.
    fn parameter_gradients(&self, x: &[F], h: &[F], gates: &[F], dx: &mut [F], d: &mut Params<F>) {
        let hidden = h.len();
        let (input_side, past) = gates.split_at(3 * hidden);
        let ranges = &self.ranges;
        let flat = d.as_mut_slice();
        for (k, &da) in input_side.iter().enumerate() {
            // What the recurrent row k was multiplied with, and the gradient of that product.
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

fn activate<F: NdFloat>(kind: Activation, a: F) -> F {
    let (zero, one) = (F::zero(), F::one());
    match kind {
        Activation::Sigmoid => one / (one + (-a).exp()),
        Activation::Tanh => a.tanh(),
        Activation::Relu if a < zero => zero,
        Activation::Relu | Activation::Identity => a,
        Activation::HardSigmoid => match fraction::<F>(5) * a + fraction(2) {
            line if line < zero => zero,
            line if line > one => one,
            line => line,
        },
    }
}

/// The derivative of an activation, from its value.
fn slope<F: NdFloat>(kind: Activation, value: F) -> F {
    let (zero, one) = (F::zero(), F::one());
    match kind {
        Activation::Sigmoid => value * (one - value),
        Activation::Tanh => one - value * value,
        Activation::Relu if value > zero => one,
        Activation::Relu => zero,
        Activation::HardSigmoid if value > zero && value < one => fraction(5),
        Activation::HardSigmoid => zero,
        Activation::Identity => one,
    }
}

/// 1 / `n`
fn fraction<F: NdFloat>(n: u8) -> F {
    F::one() / F::from(n).expect("every small number is a float")
}

fn dot<F: NdFloat>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).fold(F::zero(), |sum, (&a, &b)| sum + a * b)
}

fn add_scaled<F: NdFloat>(target: &mut [F], scale: F, source: &[F]) {
    target.iter_mut().zip(source).for_each(|(t, &s)| *t += scale * s);
}

/// Row `k` of a row-major matrix with rows of `len`.
fn row<F>(matrix: &[F], k: usize, len: usize) -> &[F] {
    &matrix[k * len..][..len]
}

fn row_mut<F>(matrix: &mut [F], k: usize, len: usize) -> &mut [F] {
    &mut matrix[k * len..][..len]
}

/// Element `k` of a bias, 0 where there is none.
fn at<F: NdFloat>(bias: Option<&[F]>, k: usize) -> F {
    bias.map_or(F::zero(), |bias| bias[k])
}

fn quarters<F>(gates: &mut [F]) -> [&mut [F]; 4] {
    let (rz, n_past) = gates.split_at_mut(gates.len() / 2);
    let (r, z) = rz.split_at_mut(rz.len() / 2);
    let (n, past) = n_past.split_at_mut(n_past.len() / 2);
    [r, z, n, past]
}
