//! [`Learner`]: a network in training, with its gradients and optimizer state.

use ndarray::ArrayD;

use crate::error::{Error, Result, check_shape};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::network::{Evaluation, Network};
use crate::model::state::State;
use crate::plan::Mode;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;
use crate::spec::loss::{PreparedTargets, Targets};
use crate::spec::optimizer::OptimizerState;
use crate::spec::options::RunOptions;
use crate::spec::params::Params;

mod adapter;
mod any_backend;
mod backend;
mod config;
mod gradient;
mod host;

use adapter::AdapterBackend;
use any_backend::{AnyBackend, on_backend};
use backend::{LearnerBackend, PreparedBatch, RawMetrics};
pub use config::LearnerConfig;
pub use gradient::LossGradient;
use gradient::check_layout;
use host::HostBackend;

/// The metrics of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepMetrics {
    /// The update, counted from 0.
    pub step: u64,
    /// Mean loss of its batches, measured before the update.
    pub loss: f32,
    /// Euclidean norm of its gradient, before clipping.
    pub norm: f32,
}

/// The state from which a [`Learner`] resumes: parameters and optimizer state. A `Checkpoint` saves
/// it to a file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LearnerState {
    /// The parameters.
    pub params: Params,
    /// The optimizer state: moments and number of updates.
    pub moments: OptimizerState,
}

/// A [`Network`] in training, together with its gradients and its optimizer. All of them stay on
/// the device: a step uploads a batch, and [`Self::metrics`] downloads 20 bytes per update.
///
/// Most programs only need [`Self::step`], which does the work of PyTorch's `loss.backward()`,
/// `optimizer.step()` and `optimizer.zero_grad()`. Its two halves are public:
/// [`Self::accumulate`] adds a batch's gradient, [`Self::apply`] updates the parameters. Between
/// them, data-parallel training can sum the gradients of several machines; see
/// [`Self::gradient`].
///
/// ```
/// use gru_wgpu::{
///     Device, GruConfig, Head, Init, Learner, Loss, Optimizer, ParamLayout, Params, LearnerConfig,
/// };
/// use ndarray::{Array3, ArrayView3};
///
/// let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::every_step(1))?;
/// let params = Params::init_of(layout, Init::Uniform, 1)?;
/// let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
/// let mut learner = Learner::new(params, config, &Device::cpu())?;
/// let x = Array3::from_shape_fn((20, 2, 1), |(t, b, _)| ((t + 5 * b) as f32 * 0.3).sin());
/// for _ in 0..20 {
///     learner.step(&x, x.view())?; // the target is the input itself
/// }
/// let metrics = learner.metrics()?;
/// assert!(metrics[19].loss < metrics[0].loss);
/// let network = learner.into_network()?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Learner {
    network: Network,
    config: LearnerConfig,
    /// Number of batches in the accumulated gradient.
    accumulated: usize,
    /// Number of updates, including those in flight.
    updates: u64,
    /// Metrics read from the device but not yet returned to the caller.
    metrics: Vec<StepMetrics>,
    /// Pending updates with fewer than `accumulation` batches: the update, and the factor that
    /// turns its accumulated loss into the mean over its batches.
    loss_factors: Vec<(u64, f32)>,
    /// True if an update started on the device but did not finish.
    interrupted: bool,
    backend: AnyBackend,
    /// How often the whole state was downloaded.
    #[cfg(test)]
    pub(super) state_downloads: usize,
}

impl Learner {
    blocking_and_async! {
        /// Creates a learner for a network with these parameters. Their layout must have a head.
        ///
        /// # Errors
        /// [`Error::Setting`] if a number in `config` is not valid, and the errors of
        /// [`Network::new`].
        pub fn new, new_async(
            params: Params,
            config: LearnerConfig,
            device: &Device
        ) -> Result<Self> {
            |wait| Self::create(params, config, device, wait)
        }

        /// Resumes from the result of [`Self::state`]. On the same device the results have the same
        /// bits as without the interruption.
        ///
        /// # Errors
        /// The errors of [`Self::new`], and [`Error::Shape`] if the moments do not fit the
        /// parameters.
        pub fn resume, resume_async(
            state: LearnerState,
            config: LearnerConfig,
            device: &Device
        ) -> Result<Self> {
            |wait| Self::restore(state, config, device, wait)
        }
    }

    async fn create(
        params: Params,
        config: LearnerConfig,
        device: &Device,
        wait: Wait,
    ) -> Result<Self> {
        let moments = OptimizerState::zeros(params.layout().flat_len())?;
        Self::restore(LearnerState { params, moments }, config, device, wait).await
    }

    async fn restore(
        state: LearnerState,
        config: LearnerConfig,
        device: &Device,
        wait: Wait,
    ) -> Result<Self> {
        config.validate()?;
        state.params.layout().required_head()?;
        let LearnerState { params, moments } = state;
        let len = params.layout().flat_len();
        check_shape("the first moments", &[len], &[moments.first.len()])?;
        check_shape("the second moments", &[len], &[moments.second.len()])?;
        let updates = moments.steps;
        let network = Network::new_async(params, device).await?;
        let backend = if device.is_adapter() {
            let backend = AdapterBackend::new(&network, &config, &moments, wait).await?;
            AnyBackend::Adapter(Box::new(backend))
        } else {
            AnyBackend::Host(Box::new(HostBackend::new(&network, moments)?))
        };
        let (metrics, loss_factors) = Default::default();
        let (accumulated, interrupted) = (0, false);
        Ok(Self {
            network,
            config,
            accumulated,
            updates,
            metrics,
            loss_factors,
            interrupted,
            backend,
            #[cfg(test)]
            state_downloads: 0,
        })
    }

    /// Sets the run options.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { network: self.network.with_options(options), ..self }
    }

    /// Returns the network. On an adapter, its host parameters are those from before training.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Returns the configuration.
    pub fn config(&self) -> &LearnerConfig {
        &self.config
    }

    /// Returns the number of updates so far, including those in flight.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    blocking_and_async! {
        /// Trains on one batch: computes the loss and the gradient of all parameters. Every
        /// [`LearnerConfig::accumulation`] batches, it updates the parameters. Returns as soon as
        /// the work is queued; [`Self::metrics`] returns the loss.
        ///
        /// # Errors
        /// [`Error::Shape`], [`Error::Class`], [`Error::NoTarget`] or [`Error::Conflict`] if the
        /// targets do not fit; the errors of [`Gru::forward_train`](crate::Gru::forward_train);
        /// [`Error::Diverged`] for an earlier update; [`Error::Interrupted`] after an update that
        /// failed on the device or whose future was dropped. A refused batch does not change the
        /// learner. After any other error, the batches of the current update are discarded.
        pub fn step, step_async<'b, 't>(
            &mut self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<()> {
            |wait| self.run_step(batch.into(), targets.into(), wait)
        }

        /// Trains on one batch that continues another one, from the states that it left on the
        /// device (zeros if `None`). Also returns the states after the last steps. Use it for
        /// truncated backpropagation through time (Williams and Peng 1990): a long sequence is
        /// trained piece by piece, and no gradient flows into the earlier pieces.
        ///
        /// ```
        /// # use gru_wgpu::{
        /// #     Device, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer,
        /// #     ParamLayout, Params,
        /// # };
        /// # use ndarray::{Array3, Axis};
        /// # let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::every_step(1))?;
        /// # let params = Params::init_of(layout, Init::Uniform, 1)?;
        /// # let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
        /// let mut learner = Learner::new(params, config, &Device::cpu())?;
        /// let sine = |(t, b, _)| ((t + 5 * b) as f32 * 0.3).sin();
        /// let long = Array3::from_shape_fn((1000, 2, 1), sine);
        /// let mut state = None;
        /// for piece in long.axis_chunks_iter(Axis(0), 50) {
        ///     state = Some(learner.step_from(state.as_ref(), piece, piece)?);
        /// }
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Self::step`] and [`Gru::forward_from`](crate::Gru::forward_from).
        pub fn step_from, step_from_async<'b, 't>(
            &mut self,
            state: Option<&State>,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<State> {
            |wait| self.run_step_from(state, batch.into(), targets.into(), wait)
        }

        /// Trains on one batch like [`Self::step`], waits for it and returns its mean loss,
        /// measured before the update.
        ///
        /// ```
        /// # use gru_wgpu::{
        /// #     Device, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer, ParamLayout, Params,
        /// # };
        /// # use ndarray::Array3;
        /// # let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::every_step(1))?;
        /// # let params = Params::init_of(layout, Init::Uniform, 1)?;
        /// # let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
        /// let mut learner = Learner::new(params, config, &Device::cpu())?;
        /// let x = Array3::ones((20, 2, 1));
        /// let loss = learner.step_with_loss(&x, x.view())?;
        /// assert_eq!(loss, learner.metrics()?[0].loss);
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Self::step`], and [`Error::Diverged`] if the loss is not finite and the
        /// batch completes an update.
        pub fn step_with_loss, step_with_loss_async<'b, 't>(
            &mut self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<f32> {
            |wait| self.run_step_with_loss(batch.into(), targets.into(), wait)
        }

        /// Adds a batch's loss and gradient to those of the current update: the first half of
        /// [`Self::step`]. Returns as soon as the work is queued.
        ///
        /// # Errors
        /// The errors of [`Self::step`].
        pub fn accumulate, accumulate_async<'b, 't>(
            &mut self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<()> {
            |wait| self.run_accumulate(batch.into(), targets.into(), wait)
        }

        /// Waits for all queued work and returns the accumulated gradient of the current update, or
        /// zeros if it has no batch yet. For data-parallel training, sum it over all machines and
        /// pass the sum to [`Self::set_gradient`], so that each machine makes the same update:
        ///
        /// ```
        /// use gru_wgpu::{
        ///     Device, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer, ParamLayout, Params,
        /// };
        /// use ndarray::{Array3, Axis};
        ///
        /// let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::every_step(1))?;
        /// let params = Params::init_of(layout, Init::Uniform, 1)?;
        /// // An update has two batches, one from each machine.
        /// let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01).with_accumulation(2);
        /// let new = || Learner::new(params.clone(), config, &Device::cpu());
        /// let mut machines = [new()?, new()?];
        /// let x = Array3::from_shape_fn((20, 4, 1), |(t, b, _)| ((t + 5 * b) as f32 * 0.3).sin());
        /// let (left, right) = x.view().split_at(Axis(1), 2);
        /// machines[0].accumulate(left, left)?;
        /// machines[1].accumulate(right, right)?;
        ///
        /// let mut sum = machines[0].gradient()?; // in practice, an all-reduce over the network
        /// sum.add(&machines[1].gradient()?)?;
        /// for machine in &mut machines {
        ///     machine.set_gradient(&sum)?;
        ///     machine.apply()?;
        /// }
        /// assert_eq!(machines[0].params()?, machines[1].params()?);
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// [`Error::Interrupted`] as in [`Self::step`], and errors of the device.
        pub fn gradient, gradient_async(&mut self) -> Result<LossGradient> {
            |wait| self.run_gradient(wait)
        }

        /// Replaces the accumulated gradient of the current update, its loss and its number of
        /// batches.
        ///
        /// # Errors
        /// [`Error::ParameterLayout`] if the gradient belongs to another model, [`Error::Setting`]
        /// if it has more than [`LearnerConfig::accumulation`] batches, [`Error::Interrupted`] as
        /// in [`Self::step`], and errors of the device.
        pub fn set_gradient, set_gradient_async(&mut self, gradient: &LossGradient) -> Result<()> {
            |wait| self.write_gradient(gradient, wait)
        }

        /// Clips the accumulated gradient and updates the parameters: the second half of
        /// [`Self::step`]. With fewer than [`LearnerConfig::accumulation`] batches, the gradients
        /// of the missing ones count as 0. Without any batch it does nothing. Returns as soon as
        /// the work is queued.
        ///
        /// # Errors
        /// The errors of [`Self::step`].
        pub fn apply, apply_async(&mut self) -> Result<()> {
            |wait| self.run_apply(wait)
        }
    }

    pub(super) async fn run_step(
        &mut self,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<()> {
        self.run_accumulate(batch, targets, wait).await?;
        self.apply_if_full(wait).await
    }

    pub(super) async fn run_step_from(
        &mut self,
        state: Option<&State>,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<State> {
        let prepared = self.prepare(state, batch.reborrow(), &targets)?;
        let last = self.accumulate_next(state, prepared, true, wait).await?;
        self.apply_if_full(wait).await?;
        Ok(last.expect("the batch kept its last states"))
    }

    async fn run_step_with_loss(
        &mut self,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<f32> {
        let prepared = self.prepare(None, batch, &targets)?;
        // The count stays 0 until this batch is added, so that an error discards the whole update.
        let batches = std::mem::take(&mut self.accumulated);
        // Set the loss of the earlier batches aside, so that adding to it does not round this
        // one's.
        let mut before = 0.0;
        if batches > 0 {
            before = on_backend!(&mut self.backend, backend => backend.loss(wait).await)?;
            on_backend!(&mut self.backend, backend => backend.set_loss(0.0, wait).await)?;
        }
        self.accumulated = batches;
        self.accumulate_next(None, prepared, false, wait).await?;
        let batches = std::mem::take(&mut self.accumulated);
        let own = on_backend!(&mut self.backend, backend => backend.loss(wait).await)?;
        if batches > 1 {
            on_backend!(&mut self.backend, backend => backend.set_loss(before + own, wait).await)?;
        }
        self.accumulated = batches;
        let is_applied = batches == self.config.accumulation;
        self.apply_if_full(wait).await?;
        if is_applied && !own.is_finite() {
            self.collect(wait).await?;
        }
        Ok((own * self.config.accumulation as f64) as f32)
    }

    async fn run_accumulate(
        &mut self,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<()> {
        let prepared = self.prepare(None, batch, &targets)?;
        self.accumulate_next(None, prepared, false, wait).await.map(drop)
    }

    /// Checks a batch and prepares its targets. All refusals happen here, before anything changes.
    fn prepare<'b>(
        &self,
        state: Option<&'b State>,
        batch: Batch<'b>,
        targets: &Targets<'_>,
    ) -> Result<(Batch<'b>, Shape, PreparedTargets)> {
        self.check_usable()?;
        let Self { network, config, accumulated, .. } = self;
        if *accumulated >= config.accumulation {
            return Err(Error::Conflict {
                what: "another batch and an update that already has all its batches",
                why: "call Learner::apply first",
            });
        }
        let (checked, shape) = network.gru().check(state, batch.reborrow())?;
        // The mean over no targets is undefined.
        shape.check_not_empty()?;
        checked.noise(network.gru().config(), Mode::Training)?;
        let fraction = 1.0 / config.accumulation as f64;
        let (head, loss) = (network.head(), config.loss);
        let targets = PreparedTargets::new(&head, &loss, shape, batch.lengths, targets, fraction)?;
        Ok((batch, shape, targets))
    }

    /// Adds a batch to the accumulated gradient. Returns the states after its last steps if
    /// `keeps_last`.
    async fn accumulate_next(
        &mut self,
        state: Option<&State>,
        (batch, shape, targets): (Batch<'_>, Shape, PreparedTargets),
        keeps_last: bool,
        wait: Wait,
    ) -> Result<Option<State>> {
        // The count stays 0 until this batch is added, so that an error discards the whole update.
        let batches = std::mem::take(&mut self.accumulated);
        let Self { network, config, backend, .. } = self;
        let (loss, is_first, targets) = (config.loss, batches == 0, &targets);
        let batch = batch.reborrow();
        let batch = PreparedBatch { loss, shape, state, keeps_last, batch, targets, is_first };
        let last = on_backend!(backend, backend => backend.accumulate(network, batch, wait).await)?;
        self.accumulated = batches + 1;
        Ok(last)
    }

    async fn apply_if_full(&mut self, wait: Wait) -> Result<()> {
        if self.accumulated < self.config.accumulation {
            return Ok(());
        }
        // No all-reduce happens here: data-parallel callers use `accumulate` and `apply` directly.
        self.run_apply(wait).await
    }

    async fn run_gradient(&mut self, wait: Wait) -> Result<LossGradient> {
        self.check_usable()?;
        let (layout, batches) = (self.network.params().layout().clone(), self.accumulated);
        if batches == 0 {
            return Ok(LossGradient { params: Params::zeros_of(layout)?, loss: 0.0, batches });
        }
        let (flat, loss) = on_backend!(&mut self.backend, backend => backend.gradient(wait).await)?;
        Ok(LossGradient { params: Params::from_flat(layout, flat), loss, batches })
    }

    async fn write_gradient(&mut self, gradient: &LossGradient, wait: Wait) -> Result<()> {
        self.check_usable()?;
        let LossGradient { params, loss, batches } = gradient;
        check_layout(self.network.params().layout(), params.layout())?;
        let flat = params.as_slice();
        let is_zero = || *loss == 0.0 && flat.iter().all(|&g| g == 0.0);
        if *batches > self.config.accumulation || (*batches == 0 && !is_zero()) {
            let expected = "from 1 to LearnerConfig::accumulation";
            return Err(Error::setting("the number of batches of a gradient", batches, expected));
        }
        // The count stays 0 if the upload fails.
        self.accumulated = 0;
        on_backend!(&mut self.backend, backend => backend.set_gradient(flat, *loss, wait).await)?;
        self.accumulated = *batches;
        Ok(())
    }

    pub(super) async fn run_apply(&mut self, wait: Wait) -> Result<()> {
        self.check_uninterrupted()?;
        let step = self.updates;
        match std::mem::take(&mut self.accumulated) {
            0 => return Ok(()),
            full if full == self.config.accumulation => {}
            other => {
                let factor = self.config.accumulation as f32 / other as f32;
                self.loss_factors.push((step, factor));
            }
        }
        // Stays true if the caller drops this future before it finishes.
        self.interrupted = true;
        let Self { network, config, backend, .. } = self;
        let constants = config.optimizer.constants(config.rate(step), step);
        let clip = config.clip;
        let must_collect =
            on_backend!(backend, backend => backend.apply(network, clip, &constants, wait).await)?;
        self.updates += 1;
        self.interrupted = false;
        if must_collect { self.collect(wait).await } else { Ok(()) }
    }

    /// Discards the accumulated batches of the current update.
    pub(super) fn discard_gradient(&mut self) {
        self.accumulated = 0;
    }

    /// Checks that the device is not lost and that no update was interrupted. On a wgpu device of
    /// the caller this maps a buffer, so call it once per step.
    fn check_usable(&self) -> Result<()> {
        // Check the device first: a lost device is the cause of an interrupted update.
        self.network.gru().device().check_lost()?;
        self.check_uninterrupted()
    }

    fn check_uninterrupted(&self) -> Result<()> {
        if self.interrupted { Err(Error::Interrupted { what: "learner" }) } else { Ok(()) }
    }

    /// Reads the metrics of the updates since the last call.
    async fn collect(&mut self, wait: Wait) -> Result<()> {
        self.check_usable()?;
        let raw = on_backend!(&mut self.backend, backend => backend.take_metrics(wait).await)?;
        let factors = std::mem::take(&mut self.loss_factors);
        for (step, raw) in (self.updates - raw.len() as u64..).zip(raw) {
            let RawMetrics { loss, norm, largest, index, applied } = raw;
            let factor = factors.iter().find(|&&(at, _)| at == step).map_or(1.0, |&(_, f)| f);
            let loss = loss * factor;
            if !applied {
                // No later update was applied either.
                self.updates = step;
                let name = self.network.params().layout().name_at(index);
                let parameter = name.unwrap_or("no parameter").to_owned();
                let made_from = None;
                return Err(Error::Diverged { step, loss, norm, largest, parameter, made_from });
            }
            self.metrics.push(StepMetrics { step, loss, norm });
        }
        Ok(())
    }

    blocking_and_async! {
        /// Waits for all queued work and returns the metrics of all updates since the last call, in
        /// order.
        ///
        /// # Errors
        /// [`Error::Diverged`] if a loss or a gradient norm is not finite, or if an update would
        /// make a parameter or a moment not finite. That update and the queued ones after it are
        /// dropped, and the next step takes its number. The next call returns the metrics of the
        /// updates before it. Also errors of the device.
        pub fn metrics, metrics_async(&mut self) -> Result<Vec<StepMetrics>> {
            |wait| self.run_metrics(wait)
        }

        /// Runs the current network on a batch for inference, without dropout, and returns its
        /// outputs; see [`Network::forward`].
        ///
        /// # Errors
        /// The errors of [`Network::forward`].
        pub fn forward, forward_async<'a>(
            &self,
            batch: impl Into<Batch<'a>>
        ) -> Result<ArrayD<f32>> {
            |wait| self.network.run(batch.into(), wait)
        }

        /// Evaluates the current network on a batch, without dropout; see [`Network::evaluate`].
        ///
        /// # Errors
        /// The errors of [`Network::evaluate`].
        pub fn evaluate, evaluate_async<'b, 't>(
            &self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<Evaluation> {
            |wait| self.run_evaluation(batch.into(), targets.into(), wait)
        }

        /// Waits for all queued work and returns the parameters. The download is smaller than that
        /// of [`Self::state`]. Batches of an incomplete update are not included.
        ///
        /// # Errors
        /// The errors of [`Self::metrics`].
        pub fn params, params_async(&mut self) -> Result<Params> {
            |wait| self.run_params(wait)
        }

        /// Waits for all queued work and returns the state from which training can resume. Batches
        /// of an incomplete update are not included.
        ///
        /// # Errors
        /// The errors of [`Self::metrics`].
        pub fn state, state_async(&mut self) -> Result<LearnerState> {
            |wait| self.run_state(wait)
        }

        /// Waits for all queued work and returns the trained network.
        ///
        /// # Errors
        /// The errors of [`Self::metrics`].
        pub fn into_network, into_network_async(self) -> Result<Network> {
            |wait| self.finish(wait)
        }
    }

    pub(super) async fn run_metrics(&mut self, wait: Wait) -> Result<Vec<StepMetrics>> {
        self.collect(wait).await?;
        Ok(std::mem::take(&mut self.metrics))
    }

    pub(super) async fn run_evaluation(
        &self,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<Evaluation> {
        self.network.run_evaluation(&self.config.loss, batch, targets, wait).await
    }

    pub(super) async fn run_params(&mut self, wait: Wait) -> Result<Params> {
        // Return the error of a diverged update, which the parameters do not include.
        self.collect(wait).await?;
        let Self { network, backend, .. } = self;
        on_backend!(backend, backend => backend.params(network, wait).await)
    }

    pub(super) async fn run_state(&mut self, wait: Wait) -> Result<LearnerState> {
        #[cfg(test)]
        {
            self.state_downloads += 1;
        }
        // A diverged update does not count: `collect` corrects `updates`.
        self.collect(wait).await?;
        let Self { network, backend, updates, .. } = self;
        let (params, [first, second]) =
            on_backend!(backend, backend => backend.state(network, wait).await)?;
        Ok(LearnerState { params, moments: OptimizerState { first, second, steps: *updates } })
    }

    async fn finish(mut self, wait: Wait) -> Result<Network> {
        let params = self.run_params(wait).await?;
        self.network.gru_mut().replace_params(params);
        Ok(self.network)
    }
}
