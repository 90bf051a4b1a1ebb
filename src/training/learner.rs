//! [`Learner`]: a network that is being trained, step after step.

use ndarray::ArrayD;

use crate::error::{Error, Result, check_shape};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::network::{Evaluation, Network};
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

/// How an update went.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepMetrics {
    /// Which one, from 0.
    pub step: u64,
    /// The mean loss of its batches, before it.
    pub loss: f32,
    /// The Euclidean norm of its gradient, before clipping.
    pub norm: f32,
}

/// All that training goes on from: put it in a file to go on another day.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LearnerState {
    /// The parameters.
    pub params: Params,
    /// The optimizer's moments and its count of updates.
    pub moments: OptimizerState,
}

/// A [`Network`] that is being trained. Parameters, moments and gradients stay on its device: a
/// step takes a batch up, and 20 bytes of metrics come down when they are asked for.
///
/// [`Self::step`] is all that most programs need. It is made of two halves, which are public:
/// [`Self::accumulate`] adds a batch's gradient, [`Self::apply`] updates the parameters by it.
/// Between them several machines may sum their gradients; [`Self::gradient`] has an example.
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
///     learner.step(&x, x.view())?; // to say again what it hears
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
    /// Batches in the accumulated gradient.
    accumulated: usize,
    /// Updates, those in flight included.
    updates: u64,
    /// Read, but not yet asked for.
    metrics: Vec<StepMetrics>,
    /// Updates of another number of batches than make one, whose metrics are not read yet, and the
    /// factor that makes the mean of their losses out of the accumulated one.
    loss_factors: Vec<(u64, f32)>,
    /// An update was begun on the device and not brought to its end.
    broken: bool,
    backend: AnyBackend,
    /// How often its whole state was taken.
    #[cfg(test)]
    pub(super) states: usize,
}

impl Learner {
    blocking_and_async! {
        /// Trains a network with these parameters, whose layout has a head.
        ///
        /// # Errors
        /// [`Error::Setting`] when a number of `config` makes no sense, and as [`Network::new`].
        pub fn new, new_async(
            params: Params,
            config: LearnerConfig,
            device: &Device
        ) -> Result<Self> {
            |_| Self::begin(params, config, device)
        }

        /// Goes on from where [`Self::state`] was taken. The same device gives the same bits as if
        /// it had not been interrupted.
        ///
        /// # Errors
        /// As [`Self::new`], and [`Error::Shape`] when the moments do not belong to the parameters.
        pub fn resume, resume_async(
            state: LearnerState,
            config: LearnerConfig,
            device: &Device
        ) -> Result<Self> {
            |_| Self::restore(state, config, device)
        }
    }

    async fn begin(params: Params, config: LearnerConfig, device: &Device) -> Result<Self> {
        let moments = OptimizerState::zeros(params.layout().flat_len())?;
        Self::restore(LearnerState { params, moments }, config, device).await
    }

    async fn restore(state: LearnerState, config: LearnerConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        state.params.layout().required_head()?;
        let LearnerState { params, moments } = state;
        let len = params.layout().flat_len();
        check_shape("the first moments", &[len], &[moments.first.len()])?;
        check_shape("the second moments", &[len], &[moments.second.len()])?;
        let updates = moments.steps;
        let network = Network::new_async(params, device).await?;
        let backend = if device.is_adapter() {
            AnyBackend::Adapter(Box::new(AdapterBackend::new(&network, &config, &moments).await?))
        } else {
            AnyBackend::Host(Box::new(HostBackend::new(&network, moments)?))
        };
        let (metrics, loss_factors) = Default::default();
        let (accumulated, broken) = (0, false);
        Ok(Self {
            network,
            config,
            accumulated,
            updates,
            metrics,
            loss_factors,
            broken,
            backend,
            #[cfg(test)]
            states: 0,
        })
    }

    /// The same run another way.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { network: self.network.with_options(options), ..self }
    }

    /// What is trained. On an adapter its parameters are those that training started from.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// How it is trained.
    pub fn config(&self) -> &LearnerConfig {
        &self.config
    }

    /// Updates so far, those in flight included.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    blocking_and_async! {
        /// One batch: its loss, the gradient of all parameters, and, when as many batches as make
        /// an update have come, the update. Returns when the work is queued; [`Self::metrics`]
        /// tells how it went.
        ///
        /// # Errors
        /// [`Error::Shape`], [`Error::Class`], [`Error::NoTarget`] or [`Error::Conflict`] when the
        /// targets do not fit, as [`Gru::forward_train`](crate::Gru::forward_train),
        /// [`Error::Diverged`] of an earlier update, and [`Error::Interrupted`] after an update
        /// that failed on the device or whose future was dropped. What is refused leaves the
        /// learner as it was; after another error, no batch of the present update counts.
        pub fn step, step_async<'b, 't>(
            &mut self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<()> {
            |wait| self.run_step(batch.into(), targets.into(), wait)
        }

        /// As [`Self::step`], but waits for this batch's mean loss, as it was before any update
        /// that the batch completes.
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
        /// As [`Self::step`], and [`Error::Diverged`] where the loss is not finite and the batch
        /// completes an update.
        pub fn step_with_loss, step_with_loss_async<'b, 't>(
            &mut self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<f32> {
            |wait| self.run_step_with_loss(batch.into(), targets.into(), wait)
        }

        /// The first half of [`Self::step`]: adds a batch's loss and gradient to those of the
        /// present update. Returns when the work is queued.
        ///
        /// # Errors
        /// As [`Self::step`].
        pub fn accumulate, accumulate_async<'b, 't>(
            &mut self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<()> {
            |wait| self.run_accumulate(batch.into(), targets.into(), wait)
        }

        /// Waits for all that was queued and takes the gradient of the present update, zeros where
        /// no batch has come. The sum over machines, put back with [`Self::set_gradient`], has each
        /// of them make the same update:
        ///
        /// ```
        /// use gru_wgpu::{
        ///     Device, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer, ParamLayout, Params,
        /// };
        /// use ndarray::{Array3, Axis};
        ///
        /// let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::every_step(1))?;
        /// let params = Params::init_of(layout, Init::Uniform, 1)?;
        /// // Two halves of a batch make an update.
        /// let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01).with_accumulation(2);
        /// let new = || Learner::new(params.clone(), config, &Device::cpu());
        /// let mut machines = [new()?, new()?];
        /// let x = Array3::from_shape_fn((20, 4, 1), |(t, b, _)| ((t + 5 * b) as f32 * 0.3).sin());
        /// let (left, right) = x.view().split_at(Axis(1), 2);
        /// machines[0].accumulate(left, left)?;
        /// machines[1].accumulate(right, right)?;
        ///
        /// let mut sum = machines[0].gradient()?; // an all-reduce over the network
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
        /// [`Error::Interrupted`] as [`Self::step`], and the device's own.
        pub fn gradient, gradient_async(&mut self) -> Result<LossGradient> {
            |wait| self.run_gradient(wait)
        }

        /// Replaces the gradient of the present update, its loss and the number of its batches.
        ///
        /// # Errors
        /// [`Error::ParameterLayout`] when it is that of another model, [`Error::Setting`] when it
        /// has more batches than make an update, [`Error::Interrupted`] as
        /// [`Self::step`], and the device's own.
        pub fn set_gradient, set_gradient_async(&mut self, gradient: &LossGradient) -> Result<()> {
            |_| self.write_gradient(gradient)
        }

        /// The second half of [`Self::step`]: the update of the batches that have come, its
        /// gradient clipped. Where they are fewer than make one, their gradients count as if the
        /// missing ones' were 0; where none has come, nothing happens. Returns when the work is
        /// queued.
        ///
        /// # Errors
        /// As [`Self::step`].
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

    async fn run_step_with_loss(
        &mut self,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<f32> {
        let (batch, shape, targets) = self.prepare(batch, &targets)?;
        // Until this batch is in: after an error none is.
        let batches = std::mem::take(&mut self.accumulated);
        // What has come so far is taken out, so that the batch's own loss is not rounded by it.
        let mut before = 0.0;
        if batches > 0 {
            before = on_backend!(&mut self.backend, backend => backend.loss(wait).await)?;
            on_backend!(&mut self.backend, backend => backend.set_loss(0.0).await)?;
        }
        self.accumulate_prepared(&batch, shape, &targets, batches, wait).await?;
        let batches = std::mem::take(&mut self.accumulated);
        let own = on_backend!(&mut self.backend, backend => backend.loss(wait).await)?;
        if batches > 1 {
            on_backend!(&mut self.backend, backend => backend.set_loss(before + own).await)?;
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
        let (batch, shape, targets) = self.prepare(batch, &targets)?;
        // Until this batch is in: after an error none is.
        let batches = std::mem::take(&mut self.accumulated);
        self.accumulate_prepared(&batch, shape, &targets, batches, wait).await
    }

    /// What is refused is refused here, before anything changes.
    fn prepare<'b>(
        &self,
        batch: Batch<'b>,
        targets: &Targets<'_>,
    ) -> Result<(Batch<'b>, Shape, PreparedTargets)> {
        self.check_whole()?;
        let Self { network, config, accumulated, .. } = self;
        if *accumulated >= config.accumulation {
            return Err(Error::Conflict {
                what: "another batch and an update that has all of its batches",
                why: "call Learner::apply first",
            });
        }
        let (batch, shape) = network.gru().check(None, batch)?;
        batch.noise(network.gru().config(), Mode::Training)?;
        let fraction = 1.0 / config.accumulation as f64;
        let (head, loss) = (network.head(), config.loss);
        let targets = PreparedTargets::new(&head, &loss, shape, batch.lengths, targets, fraction)?;
        Ok((batch, shape, targets))
    }

    /// Adds a batch to the `batches` that have come.
    async fn accumulate_prepared<'b>(
        &mut self,
        batch: &'b Batch<'_>,
        shape: Shape,
        targets: &'b PreparedTargets,
        batches: usize,
        wait: Wait,
    ) -> Result<()> {
        let Self { network, config, backend, .. } = self;
        let (loss, batch, is_first) = (config.loss, batch.reborrow(), batches == 0);
        let batch = PreparedBatch { loss, shape, batch, targets, is_first };
        on_backend!(backend, backend => backend.accumulate(network, batch, wait).await)?;
        self.accumulated = batches + 1;
        Ok(())
    }

    async fn apply_if_full(&mut self, wait: Wait) -> Result<()> {
        if self.accumulated < self.config.accumulation {
            return Ok(());
        }
        // One machine has nothing to reduce; several call `accumulate` and `apply` themselves.
        self.run_apply(wait).await
    }

    async fn run_gradient(&mut self, wait: Wait) -> Result<LossGradient> {
        self.check_whole()?;
        let (layout, batches) = (self.network.params().layout().clone(), self.accumulated);
        if batches == 0 {
            return Ok(LossGradient { params: Params::zeros_of(layout)?, loss: 0.0, batches });
        }
        let (flat, loss) = on_backend!(&mut self.backend, backend => backend.gradient(wait).await)?;
        Ok(LossGradient { params: Params::from_flat(layout, flat), loss, batches })
    }

    async fn write_gradient(&mut self, gradient: &LossGradient) -> Result<()> {
        self.check_whole()?;
        let LossGradient { params, loss, batches } = gradient;
        check_layout(self.network.params().layout(), params.layout())?;
        let flat = params.as_slice();
        let is_nothing = || *loss == 0.0 && flat.iter().all(|&g| g == 0.0);
        if *batches > self.config.accumulation || (*batches == 0 && !is_nothing()) {
            let expected = "from 1 to LearnerConfig::accumulation";
            return Err(Error::setting("the number of batches of a gradient", batches, expected));
        }
        // Until all of it is there.
        self.accumulated = 0;
        on_backend!(&mut self.backend, backend => backend.set_gradient(flat, *loss).await)?;
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
        // A caller may drop this before it is done.
        self.broken = true;
        let Self { network, config, backend, .. } = self;
        let constants = config.optimizer.constants(config.rate(step), step);
        let clip = config.clip;
        let must_collect =
            on_backend!(backend, backend => backend.apply(network, clip, &constants).await)?;
        self.updates += 1;
        self.broken = false;
        if must_collect { self.collect(wait).await } else { Ok(()) }
    }

    /// Leaves out the batches of an update that is not yet full.
    pub(crate) fn forget(&mut self) {
        self.accumulated = 0;
    }

    /// `Ok` unless the device is lost or an update was interrupted. Of a caller's device this maps
    /// a buffer, so it is asked once a step.
    fn check_whole(&self) -> Result<()> {
        // A loss says more than what it interrupted.
        self.network.gru().device().check_lost()?;
        self.check_uninterrupted()
    }

    fn check_uninterrupted(&self) -> Result<()> {
        if self.broken { Err(Error::Interrupted { what: "learner" }) } else { Ok(()) }
    }

    /// Reads what is known of the updates since the last time.
    async fn collect(&mut self, wait: Wait) -> Result<()> {
        self.check_whole()?;
        let raw = on_backend!(&mut self.backend, backend => backend.take_metrics(wait).await)?;
        let factors = std::mem::take(&mut self.loss_factors);
        for (step, raw) in (self.updates - raw.len() as u64..).zip(raw) {
            let RawMetrics { loss, norm, largest, index, moved } = raw;
            let factor = factors.iter().find(|&&(at, _)| at == step).map_or(1.0, |&(_, f)| f);
            let loss = loss * factor;
            if !moved {
                // None of those after it moved anything.
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
        /// Waits for all that was queued, and says how each update went that was not told of
        /// before, in order.
        ///
        /// # Errors
        /// [`Error::Diverged`] when a loss or the norm of a gradient was not finite, or a parameter
        /// or a moment would not be after an update: from that update on nothing has moved, and the
        /// next step takes its place. What went before it is told by the next call. And the
        /// device's own errors.
        pub fn metrics, metrics_async(&mut self) -> Result<Vec<StepMetrics>> {
            |wait| self.run_metrics(wait)
        }

        /// The outputs of the network as it is now, without dropout: as [`Network::forward`].
        ///
        /// # Errors
        /// As [`Network::forward`].
        pub fn forward, forward_async<'a>(
            &self,
            batch: impl Into<Batch<'a>>
        ) -> Result<ArrayD<f32>> {
            |wait| self.network.run(batch.into(), wait)
        }

        /// How the network as it is now does on a batch, without dropout: as [`Network::evaluate`].
        ///
        /// # Errors
        /// As [`Network::evaluate`].
        pub fn evaluate, evaluate_async<'b, 't>(
            &self,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<Evaluation> {
            |wait| self.run_evaluation(batch.into(), targets.into(), wait)
        }

        /// Waits for all that was queued and takes the parameters alone: less comes down than for
        /// [`Self::state`]. Batches of an update that is not yet full are not in them.
        ///
        /// # Errors
        /// As [`Self::metrics`].
        pub fn params, params_async(&mut self) -> Result<Params> {
            |wait| self.run_params(wait)
        }

        /// Waits for all that was queued and takes what training can go on from. Batches of an
        /// update that is not yet full are not in it.
        ///
        /// # Errors
        /// As [`Self::metrics`].
        pub fn state, state_async(&mut self) -> Result<LearnerState> {
            |wait| self.run_state(wait)
        }

        /// Waits for all that was queued and gives the network as it is then.
        ///
        /// # Errors
        /// As [`Self::metrics`].
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
        // What an update that is not finite was to make of them is not in them either.
        self.collect(wait).await?;
        let Self { network, backend, .. } = self;
        on_backend!(backend, backend => backend.params(network, wait).await)
    }

    pub(super) async fn run_state(&mut self, wait: Wait) -> Result<LearnerState> {
        #[cfg(test)]
        {
            self.states += 1;
        }
        // An update that is not finite is no update: the count is right after this.
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
