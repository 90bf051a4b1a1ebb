//! [`Gru`]: what a user holds, a configuration with parameters on a device.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::ArrayView3;

use crate::cpu::{self, GradientsWanted};
use crate::error::{Error, Result};
use crate::gpu::pool::SessionPool;
use crate::gpu::wait::Wait;
use crate::lock::lock;
use crate::model::blocking::blocking_and_async;
use crate::model::device::{Device, DeviceTarget};
use crate::model::executor::{AdapterModel, Executor, RecordedRun};
use crate::model::output::Output;
use crate::model::state::State;
use crate::plan::{DeviceCaps, Mode, Plan, RunPurpose};
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::{GruConfig, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::{Gradients, Init, Params};

#[cfg(test)]
mod tests;

/// What [`Gru::forward_train`] keeps for [`Gru::backward`], on the model's device.
///
/// Backward overwrites it with gradients in place, which halves the memory of training; so it takes
/// the tape by value, and a tape serves one backward pass. Dropping it unused is fine.
///
/// After a backward pass the model keeps the tape's memory for its next training run of the same
/// shape, which then need not ask for it again. On the CPU that is the memory of one run at most;
/// it is freed when a run of another shape is trained, and with the model. On an adapter it is that
/// of the last two runs of different shapes, and of the last 32 of them, in inference and in
/// training, while all of it is 512 MiB at most.
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
}

impl Tape {
    blocking_and_async! {
        /// The states after the run's last steps, for the next chunk of the same sequences; a copy,
        /// on the model's device.
        ///
        /// # Errors
        /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
        pub fn state, state_async(&self) -> Result<State> {
            |wait| self.copy_state(wait)
        }
    }

    async fn copy_state(&self, wait: Wait) -> Result<State> {
        match &self.record {
            TapeRecord::Cpu(trace) => Ok(State::of_array(trace.h_n().clone())),
            TapeRecord::Gpu(recorded) => recorded.state(wait).await,
        }
    }
}

/// A gated recurrent unit: configuration, parameters and the device it runs on.
///
/// The calls are the same on every device. Arrays are time-major: x `[T, B, I]`, y `[T, B, D·H]`,
/// the first and last states `[L·D, B, H]`. On an adapter only x, h0, dy, dh_n go up and y and the
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
    options: RunOptions,
    /// There on an adapter.
    pool: Option<SessionPool>,
    /// Of the CPU.
    weights: cpu::Weights,
    /// Of the CPU: the memory of the last training run, for the next of its shape.
    cached_trace: Mutex<Option<cpu::CpuTrace>>,
    /// Tells this model's tapes from another's.
    id: u64,
    /// Counts changes of the parameters.
    version: u64,
}

impl Gru {
    blocking_and_async! {
        /// A model with fresh parameters, the same for the same seed on every machine and device.
        ///
        /// # Errors
        /// [`Error::ZeroSize`] or [`Error::Overflow`] for an impossible configuration,
        /// [`Error::Limit`] when the parameters do not fit the device.
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
            // Before memory is taken for what would be refused.
            SessionPool::check_limits(gpu, &config)?;
        }
        Self::with_params_async(Params::init(&config, init, seed)?, device).await
    }

    blocking_and_async! {
        /// A model with these parameters; they carry their configuration.
        ///
        /// # Errors
        /// [`Error::Limit`] when the parameters do not fit the device.
        pub fn with_params, with_params_async(params: Params, device: &Device) -> Result<Self> {
            |_| Self::of_params(params, device)
        }
    }

    async fn of_params(params: Params, device: &Device) -> Result<Self> {
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
        /// The same model on another device: its parameters and options. Also where its own device
        /// is lost: the host has the parameters.
        ///
        /// # Errors
        /// As [`Self::with_params`].
        pub fn to, to_async(&self, device: &Device) -> Result<Self> {
            |_| self.moved_to(device)
        }
    }

    async fn moved_to(&self, device: &Device) -> Result<Self> {
        let moved = Self::with_params_async(self.params.clone(), device).await?;
        Ok(moved.with_options(self.options))
    }

    /// The same model run another way. Streams, forward passes and tapes made before stay as they
    /// are.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { options, ..self }
    }

    /// How it runs.
    pub fn options(&self) -> RunOptions {
        self.options
    }

    /// The schedule that a run of `shape` takes on the model's device, without making anything of
    /// it. For the CPU device, which follows none, that of [`DeviceCaps::WEBGPU`]. Where the device
    /// cannot bind one of its buffers, [`Self::chunks`] says what runs instead.
    ///
    /// # Errors
    /// As [`Plan::with_options`].
    pub fn plan(&self, shape: Shape, mode: Mode) -> Result<Plan> {
        let caps = match self.device.target() {
            DeviceTarget::Cpu => DeviceCaps::WEBGPU,
            DeviceTarget::Gpu(gpu) => gpu.caps(),
        };
        Plan::with_options(&self.config, shape, mode, self.options, &caps)
    }

    /// The sizes of the runs that a run of `shape` is made of, one after the other: its own alone,
    /// as long as [`Plan::check`] lets it pass. A larger one is cut into as many steps of all rows
    /// each as fit, where there is one direction, for that takes no more steps one after the other
    /// than the whole would; or else into rows. What comes out is the same to rounding, and so is
    /// what is drawn while training. (A learner's batch is cut into rows alone.)
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
    /// As [`Plan::with_options`], and [`Error::Limit`] where not even one row fits.
    pub fn chunks(&self, shape: Shape, mode: Mode) -> Result<Vec<Shape>> {
        // Which tells of a shape that is another model's.
        self.plan(shape, mode)?;
        if self.pool.is_none() {
            return Ok(vec![shape]);
        }
        let executor =
            Executor::new(self.on_adapter()?, shape, mode, RunPurpose::States, Wait::Block)?;
        Ok(executor.chunks().map(|chunk| chunk.shape(shape)).collect())
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

    blocking_and_async! {
        /// Runs the model over a [`Batch`], in the simplest case just `&x` of `[T, B, I]`.
        ///
        /// # Errors
        /// [`Error::Shape`], [`Error::ZeroSize`], [`Error::Length`] or [`Error::ParameterLayout`]
        /// when the batch or the parameters do not fit the model, [`Error::Limit`] when the work
        /// does not fit the device, and the device's own: [`Error::OutOfMemory`],
        /// [`Error::DeviceLost`], [`Error::Gpu`].
        pub fn forward, forward_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<Output> {
            |wait| self.run_forward(None, batch.into(), wait)
        }

        /// As [`Self::forward`], from the states that another run left on the device.
        ///
        /// # Errors
        /// As [`Self::forward`], and [`Error::Conflict`] when the batch has an h0 of its own or the
        /// state is another device's.
        pub fn forward_from, forward_from_async<'a>(&self, state: &State, batch: impl Into<Batch<'a>>) -> Result<Output> {
            |wait| self.run_forward(Some(state), batch.into(), wait)
        }

        /// As [`Self::forward`], while training: dropout and zoneout draw from the batch's seed,
        /// and what [`Self::backward`] needs is kept.
        ///
        /// # Errors
        /// As [`Self::forward`], and [`Error::NoSeed`].
        pub fn forward_train, forward_train_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<(Output, Tape)> {
            |wait| self.run_forward_train(None, batch.into(), wait)
        }

        /// As [`Self::forward_train`], from the states that another run left on the device:
        /// truncated backpropagation through time. No gradient flows into the earlier run.
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
        /// As [`Self::forward_train`] and [`Self::forward_from`].
        pub fn forward_train_from, forward_train_from_async<'a>(
            &self,
            state: &State,
            batch: impl Into<Batch<'a>>,
        ) -> Result<(Output, Tape)> {
            |wait| self.run_forward_train(Some(state), batch.into(), wait)
        }

        /// The gradient of every parameter, of x, of h0 and of the reset state, from dy `[T, B,
        /// D·H]` (of y) and dh_n `[L·D, B, H]` (of the last states; they count besides what dy says
        /// of them). At least one must be given. What dy says of padding is not looked at. After a
        /// batch-first run dy and dx are batch-first too.
        ///
        /// # Errors
        /// [`Error::Tape`] when the tape is another model's or the parameters changed since,
        /// [`Error::Shape`], [`Error::NoGradient`], and the device's own errors.
        pub fn backward, backward_async(
            &self,
            tape: Tape,
            dy: Option<ArrayView3<'_, f32>>,
            dh_n: Option<ArrayView3<'_, f32>>,
        ) -> Result<Gradients> {
            |wait| self.run_backward(tape, dy, dh_n, GradientsWanted::All, wait)
        }
    }

    pub(crate) async fn run_forward(
        &self,
        state: Option<&State>,
        batch: Batch<'_>,
        wait: Wait,
    ) -> Result<Output> {
        let (batch, shape) = self.check(state, batch.reborrow())?;
        match &self.pool {
            None => {
                let (y, h_n) = cpu::forward(&self.params, self.cpu_weights(), batch)?;
                Ok(Output { y, h_n })
            }
            Some(_) => {
                let mode = Mode::Inference;
                let (output, _) =
                    self.on_adapter()?.forward(shape, mode, state, batch, wait).await?;
                Ok(output)
            }
        }
    }

    pub(crate) async fn run_forward_train(
        &self,
        state: Option<&State>,
        batch: Batch<'_>,
        wait: Wait,
    ) -> Result<(Output, Tape)> {
        let (batch, shape) = self.check(state, batch.reborrow())?;
        batch.noise(&self.config, Mode::Training)?;
        let (output, record) = match &self.pool {
            None => {
                let cached = lock(&self.cached_trace).take();
                let (weights, options) = (self.cpu_weights(), self.options);
                let ran = cpu::forward_train(&self.params, weights, batch, options, cached)?;
                let (y, trace) = ran;
                (Output { y, h_n: trace.h_n().clone() }, TapeRecord::Cpu(Box::new(trace)))
            }
            Some(_) => {
                let mode = Mode::Training;
                let ran = self.on_adapter()?.forward(shape, mode, state, batch, wait).await;
                let (output, recorded) = ran?;
                (output, TapeRecord::Gpu(recorded))
            }
        };
        let (model, version) = (self.id, self.version);
        Ok((output, Tape { model, version, shape, record }))
    }

    /// On an adapter all of it, whatever is asked for.
    pub(crate) async fn run_backward(
        &self,
        tape: Tape,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
        asked: GradientsWanted,
        wait: Wait,
    ) -> Result<Gradients> {
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
                let gradients = cpu::backward(&self.params, weights, &mut trace, dy, dh_n, asked)?;
                *lock(&self.cached_trace) = Some(*trace);
                Ok(gradients)
            }
            TapeRecord::Gpu(recorded) => {
                self.on_adapter()?.backward(recorded, dy, dh_n, wait).await
            }
        }
    }

    /// The batch, on the CPU with the state as its h0, and the shape of the run, when everything
    /// fits the model.
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
                why: "a run starts from one of them",
            });
        }
        let h0 = state.on(&self.device, shape)?;
        Ok((batch.with_h0(h0), shape))
    }

    /// Tells this model from another.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What runs it on an adapter.
    pub(crate) fn session_pool(&self) -> Result<&SessionPool> {
        self.pool.as_ref().ok_or(Error::Conflict {
            what: "a model on the CPU and buffers or encoders of wgpu",
            why: "its device must be one of wgpu's",
        })
    }

    /// The model as its runs on an adapter need it.
    pub(crate) fn on_adapter(&self) -> Result<AdapterModel<'_>> {
        let (pool, options) = (self.session_pool()?, self.options);
        Ok(AdapterModel { pool, params: &self.params, version: self.version, options })
    }

    /// What the CPU reads the parameters from, and of which version they must be.
    pub(crate) fn cpu_weights(&self) -> (&cpu::Weights, u64) {
        (&self.weights, self.version)
    }

    /// Counts changes of the parameters.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// `Ok` unless the parameters were replaced by those of another configuration, or the process
    /// forked.
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.device.check_process()?;
        let got = self.params.layout().config();
        if *got == self.config {
            return Ok(());
        }
        let (expected, got) = (self.config.to_string(), got.to_string());
        Err(Error::ParameterLayout { expected, got })
    }

    /// Leaves the parameters on the adapter to what moves them there: from now on those here are
    /// old.
    pub(crate) async fn acquire_params(&self) -> Result<()> {
        self.session_pool()?.acquire_params(&self.params, self.version).await
    }

    /// Takes these for the model's parameters, wherever those were.
    pub(crate) fn replace_params(&mut self, params: Params) {
        *self.params_mut() = params;
        if let Some(pool) = &self.pool {
            pool.release_params();
        }
    }
}
