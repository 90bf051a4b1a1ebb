//! [`Gru`]: what a user holds, a configuration with parameters on a device.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{Array3, ArrayView3, Axis, s};

use crate::batch::{Batch, zero_padding};
use crate::config::{GruConfig, Shape};
use crate::device::{Device, Target};
use crate::error::{Error, Result};
use crate::params::{Gradients, Init, Params};
use crate::plan::{BufferId, Mode, RunBuffers};
use crate::reference::{self, Trace};
use crate::runner::{Runner, SessionGuard};
use crate::session::{Pass, Session};

/// What a forward pass gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// y `[T, B, D·H]`: the last layer's state after every step, the forward half first.
    pub y: Array3<f32>,
    /// h_n `[L·D, B, H]`: each cell's state after its last step; layer-major, forward before reverse.
    pub h_n: Array3<f32>,
}

impl Output {
    fn of_trace(trace: &Trace<f32>) -> Self {
        Self { y: trace.y(), h_n: trace.h_n() }
    }
}

/// What [`Gru::forward_train`] keeps for [`Gru::backward`], on the model's device.
///
/// Backward overwrites it with gradients in place, which halves the memory of training; so it takes
/// the tape by value, and a tape serves one backward pass. Dropping it unused is fine.
#[derive(Debug)]
#[must_use = "a tape holds the memory of its run until it is dropped"]
pub struct Tape {
    model: u64,
    version: u64,
    shape: Shape,
    record: Record,
}

#[derive(Debug)]
enum Record {
    Cpu { x: Array3<f32>, trace: Trace<f32> },
    Gpu(Box<SessionGuard>),
}

/// A gated recurrent unit: configuration, parameters and the device it runs on.
///
/// The calls are the same on every device. Arrays are time-major: x `[T, B, I]`, y `[T, B, D·H]`, the
/// first and last states `[L·D, B, H]`. On an adapter only x, h0, dy, dh_n go up and y and the
/// gradients come down, and the parameters go up when they have changed.
///
/// ```
/// use gru_wgpu::{Device, Gru, GruConfig, Init};
/// use ndarray::Array3;
///
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 42, &Device::cpu())?;
/// let x = Array3::from_elem((10, 2, 3), 0.5); // T 10, B 2, I 3
/// let out = gru.forward(&x)?;
/// assert_eq!(out.y.dim(), (10, 2, 8));
///
/// let (out, tape) = gru.forward_train(&x)?;
/// let grads = gru.backward(tape, None, Some(out.h_n.view()))?; // of Σ h_n² / 2
/// assert_eq!(grads.params.get("weight_hh_l0")?.shape(), [24, 8]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Gru {
    /// What `params` must stay laid out for: a user may assign to them whole.
    config: GruConfig,
    params: Params,
    device: Device,
    /// There on an adapter.
    runner: Option<Runner>,
    /// Tells this model's tapes from another's.
    id: u64,
    /// Counts changes of the parameters.
    version: u64,
}

impl Gru {
    /// A model with fresh parameters, the same for the same seed on every machine and device.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] or [`Error::Overflow`] for an impossible configuration,
    /// [`Error::Limit`] when the parameters do not fit the device.
    pub fn new(config: GruConfig, init: Init, seed: u64, device: &Device) -> Result<Self> {
        if let Target::Gpu(gpu) = device.target() {
            // Before memory is taken for what would be refused.
            Runner::allow(gpu, &config)?;
        }
        Self::with_params(Params::init(&config, init, seed)?, device)
    }

    /// A model with these parameters; they carry their configuration.
    ///
    /// # Errors
    /// [`Error::Limit`] when the parameters do not fit the device.
    pub fn with_params(params: Params, device: &Device) -> Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let runner = match device.target() {
            Target::Cpu => None,
            Target::Gpu(gpu) => Some(Runner::new(gpu, params.layout().config())?),
        };
        Ok(Self {
            config: params.layout().config().clone(),
            params,
            device: device.clone(),
            runner,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            version: 0,
        })
    }

    /// What the model computes.
    pub fn config(&self) -> &GruConfig {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Its parameters, to be changed, or replaced by others of the same configuration. The next run
    /// uses the new ones; a tape recorded before can no longer be used.
    pub fn params_mut(&mut self) -> &mut Params {
        self.version += 1;
        &mut self.params
    }

    /// Runs the model over a [`Batch`], in the simplest case just `&x` of `[T, B, I]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::ZeroSize`], [`Error::Length`] or [`Error::ParameterLayout`] when the
    /// batch or the parameters do not fit the model, [`Error::Limit`] when the work does not fit the
    /// device, and the device's own: [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Gpu`].
    pub fn forward<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<Output> {
        let batch = batch.into();
        let shape = self.check(&batch)?;
        match &self.runner {
            None => {
                let trace = reference::forward(&self.params, batch)?;
                Ok(Output::of_trace(&trace))
            }
            Some(runner) => {
                let (output, _) = self.forward_on(runner, shape, Mode::Inference, &batch)?;
                Ok(output)
            }
        }
    }

    /// As [`Self::forward`], and keeps what [`Self::backward`] needs.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_train<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<(Output, Tape)> {
        let batch = batch.into();
        let shape = self.check(&batch)?;
        let (output, record) = match &self.runner {
            None => {
                let trace = reference::forward(&self.params, batch)?;
                let output = Output::of_trace(&trace);
                (output, Record::Cpu { x: batch.x.to_owned(), trace })
            }
            Some(runner) => {
                let (output, session) = self.forward_on(runner, shape, Mode::Training, &batch)?;
                (output, Record::Gpu(Box::new(session)))
            }
        };
        let (model, version) = (self.id, self.version);
        Ok((output, Tape { model, version, shape, record }))
    }

    /// The gradient of every parameter, of x and of h0, from dy `[T, B, D·H]` (of y) and dh_n
    /// `[L·D, B, H]` (of the last states; they count besides what dy says of them). At least one
    /// must be given. What dy says of padding is not looked at.
    ///
    /// # Errors
    /// [`Error::Tape`] when the tape is another model's or the parameters changed since,
    /// [`Error::Shape`], [`Error::NoGradient`], and the device's own errors.
    pub fn backward(
        &self,
        tape: Tape,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
    ) -> Result<Gradients> {
        if tape.model != self.id {
            return Err(Error::Tape("another model recorded it"));
        }
        if tape.version != self.version {
            return Err(Error::Tape("the parameters changed since it was recorded"));
        }
        reference::check_gradients(&tape.shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
        match tape.record {
            Record::Cpu { x, trace } => {
                reference::backward(&self.params, x.view(), &trace, dy, dh_n)
            }
            Record::Gpu(mut session) => self.backward_on(&mut session, tape.shape, dy, dh_n),
        }
    }

    /// The shape of a run, when the batch and the parameters fit the model.
    fn check(&self, batch: &Batch<'_>) -> Result<Shape> {
        let got = self.params.layout().config();
        if *got != self.config {
            let expected = Box::new(self.config.clone());
            return Err(Error::ParameterLayout { expected, got: Box::new(got.clone()) });
        }
        batch.check(&self.config)
    }

    fn forward_on(
        &self,
        runner: &Runner,
        shape: Shape,
        mode: Mode,
        batch: &Batch<'_>,
    ) -> Result<(Output, SessionGuard)> {
        let mut session = runner.session(&self.params, self.version, shape, mode)?;
        let RunBuffers { x, lengths, h, .. } = session.plan().run_buffers().clone();
        let states = States::new(shape);
        match batch.lengths {
            None => write(&mut session, x, 0, batch.x.len(), Some(batch.x))?,
            Some(lengths) => {
                // Whatever padding holds, a product with a gradient of 0 must be 0.
                let mut clean = batch.x.to_owned();
                zero_padding(&mut clean, lengths);
                write(&mut session, x, 0, clean.len(), Some(clean.view()))?;
            }
        }
        let row_lengths: Vec<u32> = batch.row_lengths().iter().map(|&l| l as u32).collect();
        session.write(lengths, 0, shape.batch, Some(bytemuck::cast_slice(&row_lengths)))?;
        for (i, &h) in states.cells(&h) {
            let h0 = batch.h0.map(|h0| h0.slice_move(s![i..i + 1, .., ..]));
            write(&mut session, h, states.first(i).start, states.len, h0)?;
        }
        session.run(Pass::Forward)?;
        let outputs = states.outputs(&h);
        let lasts = states.cells(&h).map(|(i, &h)| (h, states.last(i)));
        let mut parts = session.read(&outputs.into_iter().chain(lasts).collect::<Vec<_>>())?;
        let h_n = parts.split_off(shape.directions).concat();
        let half = [shape.steps, shape.batch, shape.hidden];
        let halves: Vec<_> = parts.into_iter().map(|part| array(half, part)).collect();
        let mut y = match <[_; 1]>::try_from(halves) {
            Ok([y]) => y,
            Err(halves) => reference::join(Axis(2), halves.iter().map(|half| half.view())),
        };
        if let Some(lengths) = batch.lengths {
            zero_padding(&mut y, lengths);
        }
        Ok((Output { y, h_n: array(shape.state(), h_n) }, session))
    }

    fn backward_on(
        &self,
        session: &mut Session,
        shape: Shape,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
    ) -> Result<Gradients> {
        let training = session.plan().run_buffers().training.clone();
        let t = training.expect("a tape's plan is a training plan");
        let states = States::new(shape);
        let layout = self.params.layout();
        write(session, t.dy, 0, shape.y().iter().product(), dy)?;
        for (i, &carry) in states.cells(&t.carry) {
            let dh_n = dh_n.map(|dh_n| dh_n.slice_move(s![i..i + 1, .., ..]));
            write(session, carry, states.carry(i).start, states.len, dh_n)?;
        }
        session.run(Pass::Backward)?;
        let mut wanted =
            vec![(t.dparams, 0..layout.flat_len()), (t.dx[0], 0..shape.x().iter().product())];
        wanted.extend(states.cells(&t.carry).map(|(i, &carry)| (carry, states.carry(i))));
        let mut parts = session.read(&wanted)?;
        let h0 = parts.split_off(2).concat();
        let [params, x] = parts.try_into().expect("two parts and the states asked for");
        Ok(Gradients {
            params: Params::from_flat(layout.clone(), params),
            x: array(shape.x(), x),
            h0: array(shape.state(), h0),
        })
    }
}

/// Where states lie in the buffers of a run. Cells are counted layer-major, forward before reverse.
struct States {
    shape: Shape,
    /// B·H.
    len: usize,
}

impl States {
    fn new(shape: Shape) -> Self {
        Self { shape, len: shape.batch * shape.hidden }
    }

    /// Every cell with its layer's buffer.
    fn cells<'a>(&self, layers: &'a [BufferId]) -> impl Iterator<Item = (usize, &'a BufferId)> {
        let directions = self.shape.directions;
        (0..layers.len() * directions).map(move |i| (i, &layers[i / directions]))
    }

    /// A cell's row `row` in its layer's `h [D, T+1, B, H]`.
    fn row(&self, i: usize, row: usize) -> Range<usize> {
        let start = (i % self.shape.directions * (self.shape.steps + 1) + row) * self.len;
        start..start + self.len
    }

    /// Its first state: row 0, or row T of the reverse direction.
    fn first(&self, i: usize) -> Range<usize> {
        self.row(i, i % self.shape.directions * self.shape.steps)
    }

    /// Its last state.
    fn last(&self, i: usize) -> Range<usize> {
        self.row(i, self.shape.steps - i % self.shape.directions * self.shape.steps)
    }

    /// The states after each step of the last layer, a direction each: all but the first.
    fn outputs(&self, layers: &[BufferId]) -> Vec<(BufferId, Range<usize>)> {
        let h = layers[layers.len() - 1];
        let rows = |direction| {
            let start = self.row(direction, 1 - direction).start;
            (h, start..start + self.shape.steps * self.len)
        };
        (0..self.shape.directions).map(rows).collect()
    }

    /// A cell's place in its layer's `carry [D, B, H]`.
    fn carry(&self, i: usize) -> Range<usize> {
        let start = i % self.shape.directions * self.len;
        start..start + self.len
    }
}

/// Fills `len` elements of a buffer from an array of any strides, or with zeros.
fn write(
    session: &mut Session,
    buffer: BufferId,
    first: usize,
    len: usize,
    array: Option<ArrayView3<'_, f32>>,
) -> Result<()> {
    let array = array.as_ref().map(|array| array.as_standard_layout());
    let data = array.as_ref().map(|a| a.as_slice().expect("standard layout"));
    session.write(buffer, first, len, data)
}

fn array(shape: [usize; 3], data: Vec<f32>) -> Array3<f32> {
    Array3::from_shape_vec(shape, data).expect("the plan's sizes are the shape's")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_device;

    #[test]
    fn a_lost_device_is_said_to_be_lost_by_every_call() {
        let (device, gpu) = test_device();
        let gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &device).unwrap();
        let x = Array3::ones((4, 2, 2));
        let (_, tape) = gru.forward_train(x.view()).unwrap();
        gpu.device().destroy();
        let dh_n = Array3::ones((1, 2, 3));
        let lost = |error: Error| {
            assert!(matches!(error, Error::DeviceLost(_)), "{error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        };
        lost(gru.backward(tape, None, Some(dh_n.view())).unwrap_err());
        for _ in 0..2 {
            lost(gru.forward(x.view()).unwrap_err());
            lost(gru.forward_train(x.view()).map(|_| ()).unwrap_err());
            lost(Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &device).unwrap_err());
        }
    }

    #[test]
    fn an_error_goes_to_the_thread_that_caused_it() {
        let (device, gpu) = test_device();
        let gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &device).unwrap();
        let x = Array3::ones((4, 2, 2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    let error = gpu.guard(|| {
                        gpu.buffer(
                            "bad",
                            1,
                            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE,
                        );
                        Ok(())
                    });
                    assert!(matches!(error, Err(Error::Gpu(_))), "{error:?}");
                }
            });
            scope.spawn(|| {
                for _ in 0..20 {
                    gru.forward(x.view()).expect("another thread's error");
                }
            });
        });
    }

    #[test]
    fn parameters_of_another_configuration_are_refused() {
        let mut gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &Device::cpu()).unwrap();
        let x = Array3::ones((4, 2, 2));
        *gru.params_mut() = Params::zeros(&GruConfig::new(2, 4)).unwrap();
        let error = gru.forward(x.view()).unwrap_err();
        assert!(matches!(error, Error::ParameterLayout { .. }), "{error}");
        *gru.params_mut() = Params::zeros(&GruConfig::new(2, 3)).unwrap();
        assert_eq!(gru.forward(x.view()).unwrap().h_n, Array3::zeros((1, 2, 3)));
    }
}
