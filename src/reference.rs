//! The specification: forward and backward in plain loops, in f32 or f64, every variant.
//!
//! Nothing here is clever. `Cell::step` and `Cell::step_backward` are the twins of
//! `shaders/forward_step.wgsl` and `shaders/backward_step.wgsl`; they keep the same rows in the same
//! columns, so a kernel can be held against its twin alone. `tests/` holds this file against
//! PyTorch's numbers and against central differences, and every kernel against this file.
#![allow(clippy::needless_range_loop, reason = "loops over j and k read like the equations")]

use ndarray::{Array3, ArrayView3, NdFloat, s};

use crate::config::{GruConfig, Reset, Shape, Update};
use crate::error::{Error, Result, check_shape, try_zeros};
use crate::params::{Gradients, Params};

/// What a forward pass computes and a backward pass needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trace<F> {
    /// All states `[T+1, B, H]`: row 0 is h0, row t is step t's input, row t + 1 its output.
    pub h: Array3<F>,
    /// `[T, B, 4H]`: r, z, n and what the candidate took from the past, which is
    /// `W_hn h + b_hn` with [`Reset::After`] and `r ⊙ h` with [`Reset::Before`].
    pub gates: Array3<F>,
}

impl<F: NdFloat> Trace<F> {
    /// y `[T, B, H]`: the state after every step.
    pub fn y(&self) -> ArrayView3<'_, F> {
        self.h.slice(s![1.., .., ..])
    }

    /// h_n `[1, B, H]`: the state after the last step.
    pub fn h_n(&self) -> ArrayView3<'_, F> {
        self.h.slice(s![-1.., .., ..])
    }
}

/// Runs the GRU over x `[T, B, I]` from h0 `[1, B, H]` (zeros when `None`).
///
/// # Errors
/// [`Error::ZeroSize`] or [`Error::Shape`] when the shapes do not fit the parameters,
/// [`Error::OutOfMemory`].
///
/// ```
/// use gru_wgpu::{GruConfig, Init, Params, reference};
/// use ndarray::Array3;
///
/// let params = Params::init(&GruConfig::new(2, 3), Init::Uniform, 1)?.cast::<f64>();
/// let trace = reference::forward(&params, Array3::ones((5, 4, 2)).view(), None)?;
/// assert_eq!(trace.y().shape(), [5, 4, 3]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
pub fn forward<F: NdFloat>(
    params: &Params<F>,
    x: ArrayView3<'_, F>,
    h0: Option<ArrayView3<'_, F>>,
) -> Result<Trace<F>> {
    let shape = check_input(params.layout().config(), x.dim(), h0.map(|h| h.dim()))?;
    let cell = Cell::new(params);
    let Shape { steps, batch, hidden, .. } = shape;

    let mut h = zeros("h [T+1, B, H]", [steps + 1, batch, hidden])?;
    let mut gates = zeros("gates [T, B, 4H]", [steps, batch, 4 * hidden])?;
    if let Some(h0) = h0 {
        h.slice_mut(s![..1, .., ..]).assign(&h0);
    }
    let x = x.as_standard_layout();
    for t in 0..steps {
        let (past, mut next) = h.multi_slice_mut((s![t, .., ..], s![t + 1, .., ..]));
        for b in 0..batch {
            let x = x.slice(s![t, b, ..]);
            let mut gates = gates.slice_mut(s![t, b, ..]);
            let gates = gates.as_slice_mut().expect("rows are contiguous");
            cell.input_products(x.as_slice().expect("standard layout"), gates);
            cell.step(
                past.row(b).as_slice().expect("rows are contiguous"),
                gates,
                next.row_mut(b).as_slice_mut().expect("rows are contiguous"),
            );
        }
    }
    Ok(Trace { h, gates })
}

/// Carries dy `[T, B, H]` (of every step's state) and dh_n `[1, B, H]` (of the last state, added to
/// dy's last row) back through the run that `trace` recorded over `x`.
///
/// # Errors
/// [`Error::Shape`] when an array does not fit the parameters, [`Error::NoGradient`] when both
/// gradients are `None`.
pub fn backward<F: NdFloat>(
    params: &Params<F>,
    x: ArrayView3<'_, F>,
    trace: &Trace<F>,
    dy: Option<ArrayView3<'_, F>>,
    dh_n: Option<ArrayView3<'_, F>>,
) -> Result<Gradients<F>> {
    let shape = check_input(params.layout().config(), x.dim(), None)?;
    check_gradients(&shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    let Shape { steps, batch, hidden, .. } = shape;
    check_shape("trace.h [T+1, B, H]", &[steps + 1, batch, hidden], trace.h.shape())?;
    check_shape("trace.gates [T, B, 4H]", &[steps, batch, 4 * hidden], trace.gates.shape())?;
    let cell = Cell::new(params);
    let x = x.as_standard_layout();

    let mut dparams = Params::zeros(params.layout().config())?;
    let mut dx = zeros("dx [T, B, I]", shape.x())?;
    // The gradient of the state that a row's next step to be undone produced; dh0 in the end.
    let mut dh = dh_n.map_or_else(|| Array3::zeros(shape.state()), |d| d.to_owned());
    let mut gates = vec![F::zero(); 4 * hidden];
    for t in (0..steps).rev() {
        if let Some(dy) = dy {
            let mut dh = dh.slice_mut(s![0, .., ..]);
            dh += &dy.slice(s![t, .., ..]);
        }
        for b in 0..batch {
            let h = trace.h.slice(s![t, b, ..]);
            let h = h.as_slice().expect("rows are contiguous");
            gates.iter_mut().zip(trace.gates.slice(s![t, b, ..])).for_each(|(g, &v)| *g = v);
            let mut dh = dh.slice_mut(s![0, b, ..]);
            cell.step_backward(h, &mut gates, dh.as_slice_mut().expect("rows are contiguous"));
            cell.parameter_gradients(
                x.slice(s![t, b, ..]).as_slice().expect("standard layout"),
                h,
                &gates,
                dx.slice_mut(s![t, b, ..]).as_slice_mut().expect("rows are contiguous"),
                &mut dparams,
            );
        }
    }
    Ok(Gradients { params: dparams, x: dx, h0: dh })
}

fn zeros<F: NdFloat>(what: &str, shape: [usize; 3]) -> Result<Array3<F>> {
    let zeros = try_zeros(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("as many as the shape holds"))
}

/// The shape of a run over an x and an h0 of these dimensions.
pub(crate) fn check_input(
    config: &GruConfig,
    x: (usize, usize, usize),
    h0: Option<(usize, usize, usize)>,
) -> Result<Shape> {
    let (steps, batch, input) = x;
    let shape = config.shape(steps, batch)?;
    check_shape("x [T, B, I]", &shape.x(), &[steps, batch, input])?;
    if let Some(dim) = h0 {
        check_shape("h0 [1, B, H]", &shape.state(), &<[usize; 3]>::from(dim))?;
    }
    Ok(shape)
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
        check_shape("dy [T, B, H]", &shape.y(), &<[usize; 3]>::from(dim))?;
    }
    if let Some(dim) = dh_n {
        check_shape("dh_n [1, B, H]", &shape.state(), &<[usize; 3]>::from(dim))?;
    }
    Ok(())
}

/// One direction of one layer: what a step reads. Weights are row-major, gates stacked r, z, n.
pub(crate) struct Cell<'a, F> {
    config: &'a GruConfig,
    /// `[3H, I]`
    weight_ih: &'a [F],
    /// `[3H, H]`
    weight_hh: &'a [F],
    /// `[3H]`
    bias_ih: Option<&'a [F]>,
    /// `[3H]`
    bias_hh: Option<&'a [F]>,
}

impl<'a, F: NdFloat> Cell<'a, F> {
    pub(crate) fn new(params: &'a Params<F>) -> Self {
        let ranges = params.layout().cell();
        let flat = params.as_slice();
        Self {
            config: params.layout().config(),
            weight_ih: &flat[ranges.weight_ih],
            weight_hh: &flat[ranges.weight_hh],
            bias_ih: ranges.bias_ih.map(|range| &flat[range]),
            bias_hh: ranges.bias_hh.map(|range| &flat[range]),
        }
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
        let [r, z, n, past] = quarters(gates);
        let recurrent =
            |k: usize, v: &[F]| dot(row(self.weight_hh, k, hidden), v) + at(self.bias_hh, k);
        for j in 0..hidden {
            r[j] = sigmoid(r[j] + recurrent(j, h));
            z[j] = sigmoid(z[j] + recurrent(hidden + j, h));
        }
        match self.config.reset {
            Reset::After => {
                for j in 0..hidden {
                    past[j] = recurrent(2 * hidden + j, h);
                    n[j] = (n[j] + r[j] * past[j]).tanh();
                }
            }
            Reset::Before => {
                for j in 0..hidden {
                    past[j] = r[j] * h[j];
                }
                for j in 0..hidden {
                    n[j] = (n[j] + recurrent(2 * hidden + j, past)).tanh();
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
        let [r, z, n, past] = quarters(gates);
        for j in 0..hidden {
            let (dn, dz, direct) = match self.config.update {
                Update::Overwrites => (dh[j] * z[j], dh[j] * (n[j] - h[j]), dh[j] * (one - z[j])),
                Update::Keeps => (dh[j] * (one - z[j]), dh[j] * (h[j] - n[j]), dh[j] * z[j]),
            };
            n[j] = dn * (one - n[j] * n[j]);
            z[j] = dz * z[j] * (one - z[j]);
            dh[j] = direct;
        }
        let weight = |gate: usize, j: usize| row(self.weight_hh, gate * hidden + j, hidden);
        match self.config.reset {
            Reset::After => {
                for j in 0..hidden {
                    let dr = n[j] * past[j];
                    past[j] = n[j] * r[j];
                    r[j] = dr * r[j] * (one - r[j]);
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
                    r[j] = drh[j] * h[j] * r[j] * (one - r[j]);
                }
            }
        }
        for j in 0..hidden {
            add_scaled(dh, r[j], weight(0, j));
            add_scaled(dh, z[j], weight(1, j));
        }
    }

    /// Adds what one step of one row gives to the parameters' gradients, and writes its `dx [I]`.
    /// `gates` is as [`Self::step_backward`] left it.
    fn parameter_gradients(&self, x: &[F], h: &[F], gates: &[F], dx: &mut [F], d: &mut Params<F>) {
        let hidden = h.len();
        let (input_side, past) = gates.split_at(3 * hidden);
        let ranges = d.layout().cell();
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

fn sigmoid<F: NdFloat>(x: F) -> F {
    F::one() / (F::one() + (-x).exp())
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
