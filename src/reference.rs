//! The reference: forward and backward passes in plain loops, in f32 or f64, for every variant.
//!
//! This module is the specification, so it is simple rather than fast.
//! `ReferenceCell::forward_steps` and `ReferenceCell::backward_steps` are the references of
//! `shaders/forward.wgsl` and `shaders/backward.wgsl`. They keep the same values in the same
//! columns, so each kernel can be compared with its reference alone. The tests compare this module
//! with PyTorch's results and with central differences, and every kernel with this module.

use ndarray::{Array2, Array3, ArrayView3, Axis, NdFloat, concatenate, s};

pub(crate) mod cell;

pub use cell::CellTrace;
pub(crate) use cell::{ReferenceCell, StepContext};
use cell::{row_at, row_at_mut};

use crate::error::{Error, Result, check_shape, try_zeros};
use crate::spec::batch::{Batch, step_flag, time_major};
use crate::spec::config::{Direction, GruConfig, Layout, Shape};
use crate::spec::noise::Noise;
use crate::spec::options::Mode;
use crate::spec::params::{Gradients, Params};

/// The values of a forward pass that a backward pass needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trace<F> {
    /// The trace of each cell: layer-major, forward before reverse.
    pub cells: Vec<CellTrace<F>>,
    run: Run<F>,
}

/// The data that all cells of a run share, here and on the CPU device.
#[derive(Clone, Debug)]
pub(crate) struct Run<F> {
    pub shape: Shape,
    direction: Direction,
    /// The step flags `[T, B]`, bits of [`step_flag`].
    step_flags: Array2<u32>,
    noise: Noise,
    /// The reset state `[L·D, B, H]`.
    reset_state: Array3<F>,
}

impl<F: NdFloat> Run<F> {
    /// Checks that `batch` fits `config`. Returns their run and its first states `[L·D, B, H]`.
    pub fn start(
        config: &GruConfig,
        batch: &Batch<'_, F>,
        mode: Mode,
    ) -> Result<(Self, Array3<F>)> {
        let shape = batch.check(config)?;
        let states = |state: Option<ArrayView3<'_, F>>| {
            state.map_or_else(|| zeros("states [L·D, B, H]", shape.state()), |s| Ok(standard(s)))
        };
        let run = Self {
            shape,
            direction: config.direction,
            step_flags: batch.step_flags()?,
            noise: batch.noise(config, mode)?,
            reset_state: states(batch.reset_state)?,
        };
        Ok((run, states(batch.h0)?))
    }

    /// Returns the data that all steps of a cell share.
    pub fn context(&self, layer: usize, direction: usize) -> StepContext<'_, F> {
        let cell = layer * self.shape.directions + direction;
        StepContext {
            layer,
            direction,
            is_reverse: self.direction.is_reverse(direction),
            step_flags: self.step_flags.view(),
            noise: &self.noise,
            reset_state: self.reset_state.index_axis(Axis(0), cell),
        }
    }
}

impl<F: NdFloat> Trace<F> {
    /// Returns y, the last layer's output at every step: `[T, B, D·H]`, or `[B, T, D·H]` if x is
    /// batch-first.
    pub fn y(&self) -> Array3<F> {
        standard(time_major(self.output(self.run.shape.layers - 1), self.run.shape.layout).view())
    }

    /// Returns h_n `[L·D, B, H]`, the state of each cell after its last step. The reverse
    /// direction's last step is the first step of the sequence.
    pub fn h_n(&self) -> Array3<F> {
        join(Axis(0), self.cells.iter().map(|cell| cell.last.view().insert_axis(Axis(0))))
    }

    /// Returns a layer's output `[T, B, D·H]`.
    fn output(&self, layer: usize) -> Array3<F> {
        let directions = self.run.shape.directions;
        let cells = &self.cells[layer * directions..][..directions];
        join(Axis(2), cells.iter().map(|cell| cell.y.view()))
    }
}

/// Concatenates arrays along an axis, in standard layout.
fn join<'a, F: NdFloat>(axis: Axis, parts: impl Iterator<Item = ArrayView3<'a, F>>) -> Array3<F> {
    let parts: Vec<_> = parts.collect();
    // Along the last axis, `concatenate` returns an array that is not in standard layout.
    standard(concatenate(axis, &parts).expect("the other axes are equal").view())
}

/// Copies a view to an array in standard layout. (`to_owned` may keep the view's order of axes.)
pub(crate) fn standard<F: NdFloat>(view: ArrayView3<'_, F>) -> Array3<F> {
    view.as_standard_layout().into_owned()
}

/// Runs the forward pass for inference: no dropout, zoneout by its expected value.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Length`] if the batch does not fit the parameters, and
/// [`Error::OutOfMemory`].
///
/// ```
/// use gru_wgpu::{Direction, GruConfig, Init, Params, reference};
/// use ndarray::Array3;
///
/// let config = GruConfig::new(2, 3).with_layers(2).with_direction(Direction::Both);
/// let params = Params::init(&config, Init::Uniform, 1)?.cast::<f64>();
/// let trace = reference::forward(&params, &Array3::ones((5, 4, 2)))?;
/// assert_eq!((trace.y().dim(), trace.h_n().dim()), ((5, 4, 6), (4, 4, 3)));
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
pub fn forward<'a, F: NdFloat>(
    params: &Params<F>,
    batch: impl Into<Batch<'a, F>>,
) -> Result<Trace<F>> {
    run(params, &batch.into(), Mode::Inference)
}

/// Runs the forward pass for training: dropout and zoneout draw from the batch's seed.
///
/// # Errors
/// The errors of [`forward`], and [`Error::NoSeed`].
pub fn forward_train<'a, F: NdFloat>(
    params: &Params<F>,
    batch: impl Into<Batch<'a, F>>,
) -> Result<Trace<F>> {
    run(params, &batch.into(), Mode::Training)
}

fn run<F: NdFloat>(params: &Params<F>, data: &Batch<'_, F>, mode: Mode) -> Result<Trace<F>> {
    let (run, h0) = Run::start(params.layout().config(), data, mode)?;
    let Shape { steps, batch, hidden, layers, directions, layout, .. } = run.shape;
    let mut trace = Trace { cells: Vec::new(), run };
    let mut input = standard(time_major(data.x, layout));
    for layer in 0..layers {
        for direction in 0..directions {
            let cell = ReferenceCell::new(params, layer, direction);
            let first = h0.index_axis(Axis(0), trace.cells.len());
            let mut cell_trace = CellTrace {
                h: zeros("h [T, B, H]", [steps, batch, hidden])?,
                gates: zeros("gates [T, B, 4H]", [steps, batch, 4 * hidden])?,
                y: zeros("y [T, B, H]", [steps, batch, hidden])?,
                last: first.to_owned(),
            };
            cell.input_products(input.view(), cell_trace.gates.view_mut());
            cell.forward_steps(&trace.run.context(layer, direction), &mut cell_trace);
            trace.cells.push(cell_trace);
        }
        if layer + 1 < layers {
            input = trace.output(layer);
        }
    }
    Ok(trace)
}

/// Runs the backward pass of the run that `trace` recorded over `x`. It starts from dy
/// `[T, B, D·H]`, the gradient of y, and dh_n `[L·D, B, H]`, the gradient of the last states. In a
/// batch-first run x, dy and dx are batch-first.
///
/// # Errors
/// [`Error::Shape`] if an array does not fit the parameters or the trace, [`Error::NoGradient`] if
/// both gradients are `None`, and [`Error::OutOfMemory`].
pub fn backward<F: NdFloat>(
    params: &Params<F>,
    x: ArrayView3<'_, F>,
    trace: &Trace<F>,
    dy: Option<ArrayView3<'_, F>>,
    dh_n: Option<ArrayView3<'_, F>>,
) -> Result<Gradients<F>> {
    let layout = trace.run.shape.layout;
    let shape = Batch { layout, ..Batch::new(x) }.check(params.layout().config())?;
    check_gradients(&shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
    check_shape("x given with this trace", &trace.run.shape.x(), x.shape())?;
    let Shape { steps, batch, hidden, layers, directions, .. } = shape;
    check_shape("the trace's cells [L·D]", &[layers * directions], &[trace.cells.len()])?;
    for cell in &trace.cells {
        check_shape("the trace's h [T, B, H]", &[steps, batch, hidden], cell.h.shape())?;
        check_shape("the trace's y [T, B, H]", &[steps, batch, hidden], cell.y.shape())?;
        check_shape(
            "the trace's gates [T, B, 4H]",
            &[steps, batch, 4 * hidden],
            cell.gates.shape(),
        )?;
    }

    let mut dparams = Params::zeros(params.layout().config())?;
    // The gradient of each cell's last state, which becomes the gradient of its first state.
    let mut dh =
        dh_n.map_or_else(|| zeros("dh [L·D, B, H]", shape.state()), |d| Ok(standard(d)))?;
    let mut dreset = zeros("the reset state's gradient [L·D, B, H]", shape.state())?;
    let mut doutput = match dy {
        Some(dy) => standard(time_major(dy, layout)),
        None => zeros("dy [T, B, D·H]", [steps, batch, directions * hidden])?,
    };
    for layer in (0..layers).rev() {
        let input = match layer {
            0 => standard(time_major(x, layout)),
            _ => trace.output(layer - 1),
        };
        let mut dinput = zeros("a layer's dx [T, B, ·]", input.dim().into())?;
        for direction in 0..directions {
            let i = layer * directions + direction;
            let (cell, context) =
                (ReferenceCell::new(params, layer, direction), trace.run.context(layer, direction));
            let CellTrace { h, gates, .. } = &trace.cells[i];
            let mut gates = gates.clone();
            cell.backward_steps(
                &context,
                h.view(),
                doutput.slice(s![.., .., direction * hidden..(direction + 1) * hidden]),
                gates.view_mut(),
                dh.index_axis_mut(Axis(0), i),
                dreset.index_axis_mut(Axis(0), i),
            );
            for ((t, row), _) in
                context.step_flags.indexed_iter().filter(|&(_, f)| f & step_flag::PADDING == 0)
            {
                cell.parameter_gradients(
                    row_at(&input.view(), t, row),
                    row_at(&h.view(), t, row),
                    row_at(&gates.view(), t, row),
                    row_at_mut(&mut dinput.view_mut(), t, row),
                    &mut dparams,
                );
            }
        }
        doutput = dinput;
    }
    let x = standard(time_major(doutput, layout).view());
    Ok(Gradients { params: dparams, x, h0: dh, reset_state: dreset })
}

/// Returns an array of zeros, or [`Error::OutOfMemory`].
pub(crate) fn zeros<F: NdFloat>(what: &str, shape: [usize; 3]) -> Result<Array3<F>> {
    let zeros = try_zeros(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("the length is the product of the shape"))
}

/// Returns `Ok` if the gradients that start a backward pass fit `shape` and at least one is given.
pub(crate) fn check_gradients(
    shape: &Shape,
    dy: Option<(usize, usize, usize)>,
    dh_n: Option<(usize, usize, usize)>,
) -> Result<()> {
    if dy.is_none() && dh_n.is_none() {
        return Err(Error::NoGradient);
    }
    if let Some(dim) = dy {
        let what = match shape.layout {
            Layout::TimeMajor => "dy [T, B, D·H]",
            Layout::BatchFirst => "dy [B, T, D·H]",
        };
        check_shape(what, &shape.y(), &<[usize; 3]>::from(dim))?;
    }
    if let Some(dim) = dh_n {
        check_shape("dh_n [L·D, B, H]", &shape.state(), &<[usize; 3]>::from(dim))?;
    }
    Ok(())
}
