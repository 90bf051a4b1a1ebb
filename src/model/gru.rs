//! [`Gru`]: a configuration with its parameters on a device.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{Array3, ArrayView3};

use crate::cpu::{self, GradientsWanted};
use crate::error::{Error, Result, check_shape};
use crate::gpu::pool::SessionPool;
use crate::gpu::wait::Wait;
use crate::lock::lock;
use crate::model::blocking::blocking_and_async;
use crate::model::device::{Device, DeviceTarget};
use crate::model::executor::{AdapterModel, Executor, OutputResults, RecordedRun};
use crate::model::output::{Output, OutputMut};
use crate::model::state::State;
use crate::plan::{DeviceCaps, Mode, Plan, RunPurpose};
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::{GruConfig, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::{Gradients, Init, Params};

#[cfg(test)]
mod exactness;
#[cfg(test)]
mod tests;

/// The intermediate results that [`Gru::forward_train`] keeps for [`Gru::backward`], on the model's
/// device.
///
/// [`Gru::backward`] overwrites the tape with gradients in place, which halves the memory of
/// training. So it takes the tape by value, and a tape serves one backward pass. You may drop a
/// tape unused.
///
/// After a backward pass the model keeps the tape's memory and reuses it in the next training run
/// of the same shape:
///
/// - On the CPU the model keeps the memory of one run. It frees the memory when a run of another
///   shape is trained, or with the model.
/// - On an adapter the model keeps the memory of its last two runs of different shapes, in
///   inference and in training. It keeps up to 32 as long as together they hold at most 512 MiB.
#[derive(Debug)]
#[must_use = "a tape holds the memory of its run until it is dropped"]
pub struct Tape {
    model: u64,
    version: u64,
    shape: Shape,
    record: TapeRecord,
}

#[derive(Debug)]
enum TapeRecord {
    Cpu(Box<cpu::CpuTrace>),
    Gpu(RecordedRun),
    /// A run of no steps or no rows, whose last states are its first.
    Empty(State),
}

impl Tape {
    blocking_and_async! {
        /// Copies the states after the run's last steps, on the model's device. The next chunk of
        /// the same sequences can start from them.
        ///
        /// # Errors
        /// [`Error::OutOfMemory`] or [`Error::DeviceLost`].
        pub fn state, state_async(&self) -> Result<State> {
            |_| self.copy_state()
        }
    }

    async fn copy_state(&self) -> Result<State> {
        match &self.record {
            TapeRecord::Cpu(trace) => Ok(State::from_array(trace.h_n().clone())),
            TapeRecord::Gpu(recorded) => recorded.state().await,
            TapeRecord::Empty(state) => Ok(state.clone()),
        }
    }
}

/// A gated recurrent unit (GRU): a configuration, its parameters and the device it runs on.
///
/// The calls are the same on every device. Arrays are time-major: x `[T, B, I]`, y `[T, B, D·H]`,
/// the first and last states `[L·D, B, H]`. On an adapter a run uploads only x, h0, dy and dh_n,
/// and the parameters if they have changed. It downloads only y, h_n and the gradients.
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
/// let grads = gru.backward(tape, None, Some(out.h_n.view()))?; // the gradients of Σ h_n² / 2
/// assert_eq!(grads.params.get("weight_hh_l0")?.shape(), [24, 8]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Gru {
    /// The configuration that `params` must keep: a user may replace `params` as a whole.
    config: GruConfig,
    params: Params,
    device: Device,
    options: RunOptions,
    /// `Some` on an adapter.
    pool: Option<SessionPool>,
    /// The CPU device's packed parameters.
    weights: cpu::Weights,
    /// The memory of the last training run on the CPU, for the next run of its shape.
    cached_trace: Mutex<Option<cpu::CpuTrace>>,
    /// Distinguishes this model's tapes from other models' tapes.
    id: u64,
    /// The number of changes of the parameters.
    version: u64,
}

impl Gru {
    blocking_and_async! {
        /// Makes a model with newly drawn parameters. The same seed gives the same parameters on
        /// every computer and device.
        ///
        /// # Errors
        /// [`Error::ZeroSize`] or [`Error::Overflow`] for an impossible configuration,
        /// [`Error::Limit`] if the parameters do not fit the device.
        pub fn new, new_async(
            config: GruConfig,
            init: Init,
            seed: u64,
            device: &Device
        ) -> Result<Self> {
            |_| Self::create(config, init, seed, device)
        }
    }

    async fn create(config: GruConfig, init: Init, seed: u64, device: &Device) -> Result<Self> {
        if let DeviceTarget::Gpu(gpu) = device.target() {
            // Checks the limits before the host allocates the parameters.
            SessionPool::check_limits(gpu, &config)?;
        }
        Self::with_params_async(Params::init(&config, init, seed)?, device).await
    }

    blocking_and_async! {
        /// Makes a model with these parameters, which contain their configuration.
        ///
        /// # Errors
        /// [`Error::Limit`] if the parameters do not fit the device.
        pub fn with_params, with_params_async(params: Params, device: &Device) -> Result<Self> {
            |_| Self::from_params(params, device)
        }
    }

    async fn from_params(params: Params, device: &Device) -> Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let pool = match device.target() {
            DeviceTarget::Cpu => None,
            DeviceTarget::Gpu(gpu) => Some(SessionPool::new(gpu, params.layout()).await?),
        };
        Ok(Self {
            config: params.layout().config().clone(),
            params,
            device: device.clone(),
            options: RunOptions::default(),
            pool,
            weights: cpu::Weights::default(),
            cached_trace: Mutex::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            version: 0,
        })
    }

    blocking_and_async! {
        /// Copies the model, with its parameters and options, to another device. Works even if the
        /// model's own device is lost, because the host has the parameters.
        ///
        /// # Errors
        /// The errors of [`Self::with_params`].
        pub fn to, to_async(&self, device: &Device) -> Result<Self> {
            |_| self.copy_to(device)
        }
    }

    async fn copy_to(&self, device: &Device) -> Result<Self> {
        let copy = Self::with_params_async(self.params.clone(), device).await?;
        Ok(copy.with_options(self.options))
    }

    /// Sets the run options. Streams, forward passes and tapes made before keep the options that
    /// they were made with.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { options, ..self }
    }

    /// Returns the run options.
    pub fn options(&self) -> RunOptions {
        self.options
    }

    /// Computes the plan of a run of `shape` on the model's device. Allocates nothing on the
    /// device.
    ///
    /// The CPU device follows no plan; for it, the plan is for [`DeviceCaps::WEBGPU`]. If the
    /// device cannot bind one of the plan's buffers, [`Self::chunks`] returns the runs that take
    /// its place.
    ///
    /// # Errors
    /// The errors of [`Plan::with_options`].
    pub fn plan(&self, shape: Shape, mode: Mode) -> Result<Plan> {
        let caps = match self.device.target() {
            DeviceTarget::Cpu => DeviceCaps::WEBGPU,
            DeviceTarget::Gpu(gpu) => gpu.caps(),
        };
        Plan::with_options(&self.config, shape, mode, self.options, &caps)
    }

    /// Returns the sizes of the chunks of a run of `shape`, in the order in which they run.
    ///
    /// There is one chunk, `shape` itself, if its plan passes [`Plan::check`]. Otherwise:
    ///
    /// - With one direction, each chunk has all rows and some steps. This runs no more steps one
    ///   after the other than a single run would.
    /// - With two directions, or if no such chunk fits, each chunk has all steps and some rows.
    ///
    /// There are as few chunks as possible. They have equal sizes, except that one may be smaller.
    ///
    /// Chunks do not change the results, to rounding, nor the draws of dropout and zoneout. (A
    /// learner's batch is cut into rows only.)
    ///
    /// ```
    /// use gru_wgpu::{Device, Gru, GruConfig, Init, plan::Mode};
    ///
    /// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::auto())?;
    /// let shape = gru.config().shape(10, 2)?;
    /// assert_eq!(gru.chunks(shape, Mode::Training)?, [shape]);
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`Plan::with_options`], and [`Error::Limit`] if not even one row fits.
    pub fn chunks(&self, shape: Shape, mode: Mode) -> Result<Vec<Shape>> {
        // Refuses a shape that belongs to another model.
        self.plan(shape, mode)?;
        if self.pool.is_none() {
            return Ok(vec![shape]);
        }
        let executor =
            Executor::new(self.on_adapter()?, shape, mode, RunPurpose::States, Wait::Block)?;
        Ok(executor.chunks().map(|chunk| chunk.shape(shape)).collect())
    }

    /// Returns the model's configuration.
    pub fn config(&self) -> &GruConfig {
        &self.config
    }

    /// Returns the device that the model runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Returns the parameters mutably. You may change them, or replace them by parameters of the
    /// same configuration. The next run uses the new parameters. Tapes recorded before become
    /// invalid.
    pub fn params_mut(&mut self) -> &mut Params {
        self.version += 1;
        &mut self.params
    }

    blocking_and_async! {
        /// Runs the model over a [`Batch`]. The simplest batch is `&x`, an array `[T, B, I]`. With
        /// T or B 0, y is empty and h_n is h0.
        ///
        /// # Errors
        /// [`Error::Shape`], [`Error::Length`] or [`Error::ParameterLayout`] if the batch or the
        /// parameters do not fit the model, [`Error::Limit`] if the run does not fit the device,
        /// and errors of the device: [`Error::OutOfMemory`], [`Error::DeviceLost`],
        /// [`Error::Gpu`].
        pub fn forward, forward_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<Output> {
            |wait| self.run_forward(None, batch.into(), None, wait)
        }

        /// Runs like [`Self::forward`], and writes y `[T, B, D·H]` and h_n `[L·D, B, H]` to the
        /// caller's arrays. They may hold anything before, and hold the same bits afterwards as the
        /// [`Output`] of `forward`. After an error their contents are unspecified.
        ///
        /// Use it for calls of one shape in a row: new memory costs a page fault for every 4 KiB,
        /// which can take longer than the run itself.
        ///
        /// ```
        /// use gru_wgpu::{Device, Gru, GruConfig, Init, OutputMut};
        /// use ndarray::{Array3, s};
        ///
        /// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 42, &Device::cpu())?;
        /// let x = Array3::from_elem((10, 2, 3), 0.5); // T 10, B 2, I 3
        /// let mut out = gru.forward(&x)?;
        /// gru.forward_into(&x, &mut out)?; // the memory of the first call
        ///
        /// // Steps 20 to 29 of a longer array.
        /// let (mut y, mut h_n) = (Array3::zeros((100, 2, 8)), Array3::zeros((1, 2, 8)));
        /// let part = y.slice_mut(s![20..30, .., ..]);
        /// gru.forward_into(&x, OutputMut::new(part, h_n.view_mut()))?;
        /// assert_eq!(y.slice(s![20..30, .., ..]), out.y);
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Self::forward`], and [`Error::Shape`] if an array has another shape than
        /// the result. Wrong shapes are refused before anything runs.
        pub fn forward_into, forward_into_async<'a, 'o>(
            &self,
            batch: impl Into<Batch<'a>>,
            output: impl Into<OutputMut<'o>>,
        ) -> Result<()> {
            |wait| async {
                let output = Some(output.into());
                self.run_forward(None, batch.into(), output, wait).await.map(drop)
            }
        }

        /// Runs like [`Self::forward`], but starts from a state that an earlier run left on the
        /// device.
        ///
        /// # Errors
        /// The errors of [`Self::forward`], and [`Error::Conflict`] if the batch has an h0 of its
        /// own or the state is on another device.
        pub fn forward_from, forward_from_async<'a>(&self, state: &State, batch: impl Into<Batch<'a>>) -> Result<Output> {
            |wait| self.run_forward(Some(state), batch.into(), None, wait)
        }

        /// Runs like [`Self::forward_from`], and writes the results to the caller's arrays as
        /// [`Self::forward_into`] does.
        ///
        /// # Errors
        /// The errors of [`Self::forward_from`] and [`Self::forward_into`].
        pub fn forward_from_into, forward_from_into_async<'a, 'o>(
            &self,
            state: &State,
            batch: impl Into<Batch<'a>>,
            output: impl Into<OutputMut<'o>>,
        ) -> Result<()> {
            |wait| async {
                let output = Some(output.into());
                self.run_forward(Some(state), batch.into(), output, wait).await.map(drop)
            }
        }

        /// Runs the forward pass for training. Dropout and zoneout draw from the batch's seed, and
        /// the tape keeps the intermediate results for [`Self::backward`].
        ///
        /// # Errors
        /// The errors of [`Self::forward`], and [`Error::NoSeed`].
        pub fn forward_train, forward_train_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<(Output, Tape)> {
            |wait| self.run_forward_train(None, batch.into(), None, wait)
        }

        /// Runs like [`Self::forward_train`], and writes the results to the caller's arrays as
        /// [`Self::forward_into`] does.
        ///
        /// # Errors
        /// The errors of [`Self::forward_train`] and [`Self::forward_into`].
        pub fn forward_train_into, forward_train_into_async<'a, 'o>(
            &self,
            batch: impl Into<Batch<'a>>,
            output: impl Into<OutputMut<'o>>,
        ) -> Result<Tape> {
            |wait| async {
                let output = Some(output.into());
                Ok(self.run_forward_train(None, batch.into(), output, wait).await?.1)
            }
        }

        /// Runs like [`Self::forward_train`], but starts from a state that an earlier run left on
        /// the device. Use it for truncated backpropagation through time: no gradient flows into
        /// the earlier run.
        ///
        /// ```
        /// use gru_wgpu::{Device, Gru, GruConfig, Init};
        /// use ndarray::{Array3, Axis};
        ///
        /// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
        /// let long = Array3::ones((1000, 2, 3));
        /// let mut state = None;
        /// for chunk in long.axis_chunks_iter(Axis(0), 50) {
        ///     let (out, tape) = match &state {
        ///         None => gru.forward_train(chunk)?,
        ///         Some(state) => gru.forward_train_from(state, chunk)?,
        ///     };
        ///     state = Some(tape.state()?); // stays on the device
        ///     let grads = gru.backward(tape, Some(out.y.view()), None)?;
        /// }
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Self::forward_train`] and [`Self::forward_from`].
        pub fn forward_train_from, forward_train_from_async<'a>(
            &self,
            state: &State,
            batch: impl Into<Batch<'a>>,
        ) -> Result<(Output, Tape)> {
            |wait| self.run_forward_train(Some(state), batch.into(), None, wait)
        }

        /// Runs like [`Self::forward_train_from`], and writes the results to the caller's arrays as
        /// [`Self::forward_into`] does.
        ///
        /// # Errors
        /// The errors of [`Self::forward_train_from`] and [`Self::forward_into`].
        pub fn forward_train_from_into, forward_train_from_into_async<'a, 'o>(
            &self,
            state: &State,
            batch: impl Into<Batch<'a>>,
            output: impl Into<OutputMut<'o>>,
        ) -> Result<Tape> {
            |wait| async {
                let output = Some(output.into());
                Ok(self.run_forward_train(Some(state), batch.into(), output, wait).await?.1)
            }
        }

        /// Computes the gradients of the parameters, x, h0 and the reset state.
        ///
        /// `dy [T, B, D·H]` is the gradient of y and `dh_n [L·D, B, H]` the gradient of the last
        /// states. At least one of them is required. With both, dh_n adds to the gradient of the
        /// last states that dy contains. dy at padding is ignored. After a batch-first run dy and
        /// dx are batch-first too.
        ///
        /// # Errors
        /// [`Error::Tape`] if another model recorded the tape or the parameters changed since,
        /// [`Error::Shape`], [`Error::NoGradient`], and errors of the device.
        pub fn backward, backward_async(
            &self,
            tape: Tape,
            dy: Option<ArrayView3<'_, f32>>,
            dh_n: Option<ArrayView3<'_, f32>>,
        ) -> Result<Gradients> {
            |wait| self.run_backward(tape, dy, dh_n, GradientsWanted::All, wait)
        }

        /// Runs like [`Self::backward`], and replaces the values of the caller's gradients, those of
        /// an earlier [`Self::backward`] of the same shapes. On an adapter their memory is reused.
        /// After an error their contents are unspecified.
        ///
        /// ```
        /// use gru_wgpu::{Device, Gradients, Gru, GruConfig, Init};
        /// use ndarray::Array3;
        ///
        /// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
        /// let x = Array3::ones((10, 2, 3));
        /// let (mut out, tape) = gru.forward_train(&x)?;
        /// let mut grads = gru.backward(tape, Some(out.y.view()), None)?;
        /// for _ in 0..3 {
        ///     let tape = gru.forward_train_into(&x, &mut out)?;
        ///     gru.backward_into(tape, Some(out.y.view()), None, &mut grads)?;
        /// }
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Self::backward`], and [`Error::Shape`] or [`Error::ParameterLayout`] if
        /// the caller's gradients belong to another shape or another model. They are refused before
        /// anything runs.
        pub fn backward_into, backward_into_async(
            &self,
            tape: Tape,
            dy: Option<ArrayView3<'_, f32>>,
            dh_n: Option<ArrayView3<'_, f32>>,
            gradients: &mut Gradients,
        ) -> Result<()> {
            |wait| self.run_backward_into(tape, dy, dh_n, gradients, wait)
        }
    }

    /// Runs the forward pass for inference. The results go to `given`, and the returned arrays are
    /// empty, or to new arrays.
    pub(crate) async fn run_forward(
        &self,
        state: Option<&State>,
        batch: Batch<'_>,
        given: Option<OutputMut<'_>>,
        wait: Wait,
    ) -> Result<Output> {
        let (batch, shape) = self.check(state, batch.reborrow())?;
        if shape.is_empty() {
            return Ok(self.run_empty(state, &batch, shape, given, wait).await?.0.finish());
        }
        if self.pool.is_some() {
            let run = (shape, Mode::Inference);
            let (results, _) = self.on_adapter()?.forward(run, state, batch, given, wait).await?;
            return Ok(results.finish());
        }
        let mut results = OutputResults::new(shape, given, false)?;
        let (weights, y) = (self.cpu_weights(), results.y.view_mut());
        let h_n = cpu::forward_into(&self.params, weights, batch, y)?;
        results.h_n.view_mut().assign(&h_n);
        Ok(results.finish())
    }

    /// Runs the forward pass for training. The results go where [`Self::run_forward`] has them.
    pub(crate) async fn run_forward_train(
        &self,
        state: Option<&State>,
        batch: Batch<'_>,
        given: Option<OutputMut<'_>>,
        wait: Wait,
    ) -> Result<(Output, Tape)> {
        let (batch, shape) = self.check(state, batch.reborrow())?;
        batch.noise(&self.config, Mode::Training)?;
        let (results, record) = match &self.pool {
            _ if shape.is_empty() => {
                let (results, h_n) = self.run_empty(state, &batch, shape, given, wait).await?;
                (results, TapeRecord::Empty(State::from_array(h_n).on(&self.device).await?))
            }
            None => {
                let mut results = OutputResults::new(shape, given, false)?;
                let cached = lock(&self.cached_trace).take();
                let (weights, options) = (self.cpu_weights(), self.options);
                let (params, y) = (&self.params, results.y.view_mut());
                let trace = cpu::forward_train_into(params, weights, batch, options, cached, y)?;
                results.h_n.view_mut().assign(trace.h_n());
                (results, TapeRecord::Cpu(Box::new(trace)))
            }
            Some(_) => {
                let run = (shape, Mode::Training);
                let ran = self.on_adapter()?.forward(run, state, batch, given, wait).await;
                let (results, recorded) = ran?;
                (results, TapeRecord::Gpu(recorded))
            }
        };
        let (model, version) = (self.id, self.version);
        Ok((results.finish(), Tape { model, version, shape, record }))
    }

    /// Returns the results of a run of no steps or no rows, and the last states, which are the
    /// first.
    async fn run_empty<'o>(
        &self,
        state: Option<&State>,
        batch: &Batch<'_>,
        shape: Shape,
        given: Option<OutputMut<'o>>,
        wait: Wait,
    ) -> Result<(OutputResults<'o>, Array3<f32>)> {
        let mut results = OutputResults::new(shape, given, false)?;
        let h_n = first_states(state, batch, shape, wait).await?;
        results.h_n.view_mut().assign(&h_n);
        Ok((results, h_n))
    }

    /// Computes the gradients that `wanted` names. An adapter always computes all of them.
    pub(crate) async fn run_backward(
        &self,
        tape: Tape,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
        wanted: GradientsWanted,
        wait: Wait,
    ) -> Result<Gradients> {
        let computed = self.differentiate(tape, (dy, dh_n), wanted, None, wait).await?;
        Ok(computed.expect("without gradients of the caller there are new ones"))
    }

    async fn run_backward_into(
        &self,
        tape: Tape,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
        gradients: &mut Gradients,
        wait: Wait,
    ) -> Result<()> {
        let [expected, got] = [&self.params, &gradients.params].map(Params::layout);
        check_config(&self.config, got.config())?;
        check_shape("dparams", &[expected.flat_len()], &[got.flat_len()])?;
        let state = tape.shape.state();
        for (what, expected, got) in [
            ("dx", tape.shape.x(), &gradients.x),
            ("dh0 [L·D, B, H]", state, &gradients.h0),
            ("the gradient of the reset state [L·D, B, H]", state, &gradients.reset_state),
        ] {
            check_shape(what, &expected, got.shape())?;
        }
        let (wanted, given) = (GradientsWanted::All, Some(&mut *gradients));
        if let Some(new) = self.differentiate(tape, (dy, dh_n), wanted, given, wait).await? {
            *gradients = new;
        }
        Ok(())
    }

    /// Runs the backward pass from the gradients of y and of the last states. On an adapter the
    /// results go to `given`; otherwise they are returned.
    async fn differentiate(
        &self,
        tape: Tape,
        (dy, dh_n): (Option<ArrayView3<'_, f32>>, Option<ArrayView3<'_, f32>>),
        wanted: GradientsWanted,
        given: Option<&mut Gradients>,
        wait: Wait,
    ) -> Result<Option<Gradients>> {
        self.device.check_process()?;
        if tape.model != self.id {
            return Err(Error::Tape("another model recorded it"));
        }
        if tape.version != self.version {
            return Err(Error::Tape("the parameters changed since it was recorded"));
        }
        reference::check_gradients(&tape.shape, dy.map(|d| d.dim()), dh_n.map(|d| d.dim()))?;
        match tape.record {
            TapeRecord::Cpu(mut trace) => {
                let weights = self.cpu_weights();
                let gradients = cpu::backward(&self.params, weights, &mut trace, dy, dh_n, wanted)?;
                *lock(&self.cached_trace) = Some(*trace);
                Ok(Some(gradients))
            }
            TapeRecord::Gpu(recorded) => {
                self.on_adapter()?.backward(recorded, dy, dh_n, given, wait).await
            }
            TapeRecord::Empty(_) => {
                let state = tape.shape.state();
                let h0 = dh_n.map_or_else(|| Array3::zeros(state), |dh_n| dh_n.to_owned());
                Ok(Some(Gradients {
                    params: Params::zeros_of(self.params.layout().clone())?,
                    x: Array3::zeros(tape.shape.x()),
                    h0,
                    reset_state: Array3::zeros(state),
                }))
            }
        }
    }

    /// Checks that the batch and the state fit the model. Returns the batch and the shape of the
    /// run. On the CPU the returned batch has the state as its h0.
    pub(crate) fn check<'a>(
        &self,
        state: Option<&'a State>,
        batch: Batch<'a>,
    ) -> Result<(Batch<'a>, Shape)> {
        self.check_usable()?;
        let shape = batch.check(&self.config)?;
        let Some(state) = state else { return Ok((batch, shape)) };
        if batch.h0.is_some() {
            return Err(Error::Conflict {
                what: "a state to start from and an h0",
                why: "a run starts from only one of them; leave out one",
            });
        }
        let h0 = state.check(&self.device, shape)?;
        Ok((batch.with_h0(h0), shape))
    }

    /// Returns a number that no other model of this process has.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Returns the model's session pool.
    ///
    /// # Errors
    /// [`Error::Conflict`] on the CPU device.
    pub(crate) fn session_pool(&self) -> Result<&SessionPool> {
        self.pool.as_ref().ok_or(Error::Conflict {
            what: "a model on the CPU device and wgpu buffers or encoders",
            why: "make the model on a GPU or a software adapter",
        })
    }

    /// Returns the parts of the model that a run on an adapter needs.
    pub(crate) fn on_adapter(&self) -> Result<AdapterModel<'_>> {
        let (pool, options) = (self.session_pool()?, self.options);
        Ok(AdapterModel { pool, params: &self.params, version: self.version, options })
    }

    /// Returns the CPU device's packed parameters, and the version that they must have.
    pub(crate) fn cpu_weights(&self) -> (&cpu::Weights, u64) {
        (&self.weights, self.version)
    }

    /// Returns the number of changes of the parameters.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Checks that the parameters still have the model's configuration and that the process has not
    /// forked.
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.device.check_process()?;
        check_config(&self.config, self.params.layout().config())
    }

    /// Lets a learner update the parameters on the adapter. The host's copy is stale from now on.
    pub(crate) async fn acquire_params(&self) -> Result<()> {
        self.session_pool()?.acquire_params(&self.params, self.version).await
    }

    /// Replaces the model's parameters, and ends a learner's updates on the adapter.
    pub(crate) fn replace_params(&mut self, params: Params) {
        *self.params_mut() = params;
        if let Some(pool) = &self.pool {
            pool.release_params();
        }
    }
}

/// Returns the states `[L·D, B, H]` that a checked run starts from, on the host.
pub(crate) async fn first_states(
    state: Option<&State>,
    batch: &Batch<'_>,
    shape: Shape,
    wait: Wait,
) -> Result<Array3<f32>> {
    match (state, &batch.h0) {
        (Some(state), _) => state.read(wait).await,
        (None, Some(h0)) => Ok(h0.to_owned()),
        (None, None) => Ok(Array3::zeros(shape.state())),
    }
}

/// Checks that the parameters of a model, or the gradients of its parameters, have its
/// configuration.
///
/// # Errors
/// [`Error::ParameterLayout`].
fn check_config(expected: &GruConfig, got: &GruConfig) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let (expected, got) = (expected.to_string(), got.to_string());
    Err(Error::ParameterLayout { expected, got })
}
