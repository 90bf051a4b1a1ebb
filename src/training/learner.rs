//! [`Learner`]: a network that is being trained, step after step.

use ndarray::ArrayD;

use crate::error::{Error, Result, check_shape};
use crate::gpu::transfer::Wait;
use crate::model::device::Device;
use crate::model::network::{Evaluation, Network};
use crate::plan::Mode;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;
use crate::spec::loss::{Loss, PreparedTargets, Targets};
use crate::spec::optimizer::{Clip, Optimizer, OptimizerState, Schedule};
use crate::spec::options::RunOptions;
use crate::spec::params::Params;

mod adapter;
mod host;

use adapter::OnAdapter;
use host::OnHost;

/// How a network is trained.
///
/// ```
/// use gru_wgpu::{Clip, Loss, Optimizer, Schedule, LearnerConfig};
///
/// let config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adamw(0.01), 1e-3)
///     .with_clip(Clip::Norm(1.0))
///     .with_schedule(Schedule::Cosine { warmup: 100, updates: 2000, last: 0.0 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LearnerConfig {
    /// What is made small.
    pub loss: Loss,
    /// What a gradient does to the parameters.
    pub optimizer: Optimizer,
    /// η, before the schedule.
    pub learning_rate: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// How the gradient is bounded.
    pub clip: Clip,
    /// Batches to an update, whose gradients are averaged. At least 1.
    pub accumulation: usize,
}

impl LearnerConfig {
    /// At a constant rate, with the gradient as it is, an update a batch.
    pub fn new(loss: Loss, optimizer: Optimizer, learning_rate: f64) -> Self {
        let (schedule, clip) = Default::default();
        Self { loss, optimizer, learning_rate, schedule, clip, accumulation: 1 }
    }

    /// The same with the learning rate on this schedule.
    #[must_use]
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Self { schedule, ..self }
    }

    /// The same with the gradient bounded.
    #[must_use]
    pub fn with_clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
    }

    /// The same with so many batches to an update.
    #[must_use]
    pub fn with_accumulation(self, accumulation: usize) -> Self {
        Self { accumulation, ..self }
    }

    /// `Ok` when every number makes sense.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        if self.accumulation == 0 {
            return Err(Error::setting("the number of batches to an update", 0, "at least 1"));
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            let expected = "a finite number above 0";
            return Err(Error::setting("the learning rate", self.learning_rate, expected));
        }
        self.loss.validate()?;
        self.optimizer.validate()?;
        self.clip.validate()?;
        self.schedule.validate()
    }

    /// The learning rate of update `step`, from 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.learning_rate * self.schedule.factor(step)
    }
}

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
    /// The optimiser's moments and its count of updates.
    pub moments: OptimizerState,
}

/// A [`Network`] that is being trained. Parameters, moments and gradients stay on its device: a step takes a
/// batch up, and a report of 20 bytes comes down when it is asked for.
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
/// let reports = learner.metrics()?;
/// assert!(reports[19].loss < reports[0].loss);
/// let network = learner.into_network()?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Learner {
    network: Network,
    config: LearnerConfig,
    /// Batches towards the next update.
    gathered: usize,
    /// Updates, those still under way included.
    updates: u64,
    /// Read, but not yet asked for.
    reports: Vec<StepMetrics>,
    /// Updates of fewer batches than make one, still to be told of, and what makes the mean of their losses
    /// out of what the device has: each is counted as one of a whole update.
    short: Vec<(u64, f32)>,
    /// An update was begun on the device and not brought to its end.
    broken: bool,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host(Box<OnHost>),
    Adapter(Box<OnAdapter>),
}

/// An update's words, as a device leaves them.
#[derive(Clone, Copy, Debug)]
struct RawMetrics {
    loss: f32,
    norm: f32,
    /// The gradient's largest element, by magnitude, and its place in the flat buffer.
    largest: f32,
    place: usize,
    /// Whether all of it was finite, and what it makes of the parameters and moments: nothing moves else.
    moved: bool,
}

impl Learner {
    /// Trains a network with these parameters, whose layout has a head.
    ///
    /// # Errors
    /// [`Error::Setting`] when a number of `config` makes no sense, and as [`Network::new`].
    pub fn new(params: Params, config: LearnerConfig, device: &Device) -> Result<Self> {
        pollster::block_on(Self::new_async(params, config, device))
    }

    /// As [`Self::new`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(params: Params, config: LearnerConfig, device: &Device) -> Result<Self> {
        let moments = OptimizerState::zeros(params.layout().flat_len())?;
        Self::resume_async(LearnerState { params, moments }, config, device).await
    }

    /// Goes on from where [`Self::state`] was taken. The same device gives the same bits as if it had not
    /// been interrupted.
    ///
    /// # Errors
    /// As [`Self::new`], and [`Error::Shape`] when the moments do not belong to the parameters.
    pub fn resume(state: LearnerState, config: LearnerConfig, device: &Device) -> Result<Self> {
        pollster::block_on(Self::resume_async(state, config, device))
    }

    /// As [`Self::resume`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub async fn resume_async(
        state: LearnerState,
        config: LearnerConfig,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        state.params.layout().required_head()?;
        let LearnerState { params, moments } = state;
        let len = params.layout().flat_len();
        check_shape("the first moments", &[len], &[moments.first.len()])?;
        check_shape("the second moments", &[len], &[moments.second.len()])?;
        let updates = moments.steps;
        let network = Network::new_async(params, device).await?;
        let place = if device.is_adapter() {
            Place::Adapter(Box::new(OnAdapter::new(&network, &config, &moments).await?))
        } else {
            Place::Host(Box::new(OnHost::new(&network, moments)?))
        };
        Ok(Self {
            network,
            config,
            gathered: 0,
            updates,
            reports: Vec::new(),
            short: Vec::new(),
            broken: false,
            place,
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

    /// Updates so far, those still under way included.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One batch: its loss, the gradient of all parameters, and, when as many batches as make an update
    /// have come, the update. Returns when the work is queued; [`Self::reports`] tells how it went.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Class`], [`Error::NoTarget`] or [`Error::Conflict`] when the targets do
    /// not fit, as [`Gru::forward_train`](crate::Gru::forward_train), [`Error::Diverged`] of an earlier
    /// update, and [`Error::Interrupted`] after an update that failed on the device or whose future was
    /// dropped. What is refused leaves the learner as it was; after another error, no batch of the update
    /// under way counts.
    pub fn step<'b, 't>(
        &mut self,
        batch: impl Into<Batch<'b>>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<()> {
        pollster::block_on(self.run_step(batch.into(), &targets.into(), Wait::Block))
    }

    /// As [`Self::step`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn step_async<'b, 't>(
        &mut self,
        batch: impl Into<Batch<'b>>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<()> {
        self.run_step(batch.into(), &targets.into(), Wait::Async).await
    }

    async fn run_step(
        &mut self,
        batch: Batch<'_>,
        targets: &Targets<'_>,
        wait: Wait,
    ) -> Result<()> {
        self.check_whole()?;
        let Self { network, config, place, .. } = self;
        let (batch, shape) = network.gru().check(None, batch.reborrow())?;
        batch.noise(network.gru().config(), Mode::Training)?;
        let share = 1.0 / config.accumulation as f64;
        let (head, loss) = (network.head(), config.loss);
        let wanted = PreparedTargets::new(&head, &loss, shape, batch.lengths, targets, share)?;
        // Until this batch is in: after an error none is.
        let gathered = std::mem::take(&mut self.gathered);
        let part = Part { network, loss, shape, batch, wanted: &wanted, is_first: gathered == 0 };
        match place {
            Place::Host(host) => host.gather(part)?,
            Place::Adapter(adapter) => adapter.gather(part, wait).await?,
        }
        if gathered + 1 < config.accumulation {
            self.gathered = gathered + 1;
            return Ok(());
        }
        self.update(wait).await
    }

    /// The update of the batches that have come, though they are fewer than make one: their gradients count
    /// as if the missing ones' were 0. Where none has come, nothing happens.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn flush(&mut self) -> Result<()> {
        pollster::block_on(self.run_flush(Wait::Block))
    }

    /// As [`Self::flush`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn flush_async(&mut self) -> Result<()> {
        self.run_flush(Wait::Async).await
    }

    async fn run_flush(&mut self, wait: Wait) -> Result<()> {
        match std::mem::take(&mut self.gathered) {
            0 => Ok(()),
            gathered => {
                let missing = self.config.accumulation as f32 / gathered as f32;
                self.short.push((self.updates, missing));
                self.update(wait).await
            }
        }
    }

    /// Leaves out the batches of an update that is not yet full.
    pub(crate) fn forget(&mut self) {
        self.gathered = 0;
    }

    async fn update(&mut self, wait: Wait) -> Result<()> {
        // A caller may drop this before it is done.
        self.broken = true;
        let Self { network, config, updates, place, .. } = self;
        let step = *updates;
        let constants = config.optimizer.constants(config.rate(step), step);
        let is_full = match place {
            Place::Host(host) => host.update(network, config.clip, &constants),
            Place::Adapter(adapter) => adapter.update(config.clip, &constants).await?,
        };
        self.updates += 1;
        self.broken = false;
        if is_full { self.collect(wait).await } else { Ok(()) }
    }

    fn check_whole(&self) -> Result<()> {
        // A loss says more than what it interrupted.
        self.network.gru().device().check_lost()?;
        if self.broken { Err(Error::Interrupted { what: "learner" }) } else { Ok(()) }
    }

    /// Reads what is known of the updates since the last time.
    async fn collect(&mut self, wait: Wait) -> Result<()> {
        self.check_whole()?;
        let raw = match &mut self.place {
            Place::Host(host) => host.take_metrics(),
            Place::Adapter(adapter) => adapter.take_metrics(wait).await?,
        };
        let short = std::mem::take(&mut self.short);
        for (step, raw) in (self.updates - raw.len() as u64..).zip(raw) {
            let RawMetrics { loss, norm, largest, place, moved } = raw;
            let missing = short.iter().find(|&&(at, _)| at == step).map_or(1.0, |&(_, n)| n);
            let loss = loss * missing;
            if !moved {
                // None of those after it moved anything.
                self.updates = step;
                let name = self.network.params().layout().name_at(place);
                let parameter = name.unwrap_or("no parameter").to_owned();
                let made_from = None;
                return Err(Error::Diverged { step, loss, norm, largest, parameter, made_from });
            }
            self.reports.push(StepMetrics { step, loss, norm });
        }
        Ok(())
    }

    /// Waits for all that was queued, and says how each update went that was not told of before, in order.
    ///
    /// # Errors
    /// [`Error::Diverged`] when a loss or the norm of a gradient was not finite, or a parameter or a moment
    /// would not be after an update: from that update on nothing has moved, and the next step takes its place. What went before it is told by the next call. And the device's
    /// own errors.
    pub fn metrics(&mut self) -> Result<Vec<StepMetrics>> {
        pollster::block_on(self.run_metrics(Wait::Block))
    }

    /// As [`Self::reports`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::reports`].
    pub async fn metrics_async(&mut self) -> Result<Vec<StepMetrics>> {
        self.run_metrics(Wait::Async).await
    }

    async fn run_metrics(&mut self, wait: Wait) -> Result<Vec<StepMetrics>> {
        self.collect(wait).await?;
        Ok(std::mem::take(&mut self.reports))
    }

    /// The outputs of the network as it is now, without dropout: as [`Network::forward`].
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn forward<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<ArrayD<f32>> {
        self.network.forward(batch)
    }

    /// As [`Self::forward`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn forward_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<ArrayD<f32>> {
        self.network.forward_async(batch).await
    }

    /// How the network as it is now does on a batch, without dropout: as [`Network::evaluate`].
    ///
    /// # Errors
    /// As [`Network::evaluate`].
    pub fn evaluate<'b, 't>(
        &self,
        batch: impl Into<Batch<'b>>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<Evaluation> {
        self.network.evaluate(&self.config.loss, batch, targets)
    }

    /// Waits for all that was queued and takes what training can go on from. Batches of an update that is
    /// not yet full are not in it.
    ///
    /// # Errors
    /// The device's own.
    pub fn state(&mut self) -> Result<LearnerState> {
        pollster::block_on(self.run_state(Wait::Block))
    }

    /// As [`Self::state`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn state_async(&mut self) -> Result<LearnerState> {
        self.run_state(Wait::Async).await
    }

    async fn run_state(&mut self, wait: Wait) -> Result<LearnerState> {
        // An update that is not finite is no update: the count is right after this.
        self.collect(wait).await?;
        let steps = self.updates;
        let (params, first, second) = match &mut self.place {
            Place::Host(host) => {
                let OptimizerState { first, second, .. } = host.moments().clone();
                (self.network.params().clone(), first, second)
            }
            Place::Adapter(adapter) => {
                let [params, first, second] = adapter.download(wait).await?;
                let layout = self.network.params().layout().clone();
                (Params::from_flat(layout, params), first, second)
            }
        };
        Ok(LearnerState { params, moments: OptimizerState { first, second, steps } })
    }

    /// Waits for all that was queued and gives the network as it is then.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub fn into_network(self) -> Result<Network> {
        pollster::block_on(self.finish(Wait::Block))
    }

    /// As [`Self::into_network`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn into_network_async(self) -> Result<Network> {
        self.finish(Wait::Async).await
    }

    async fn finish(mut self, wait: Wait) -> Result<Network> {
        let LearnerState { params, .. } = self.run_state(wait).await?;
        self.network.gru_mut().replace_params(params);
        Ok(self.network)
    }
}

/// A batch of an update.
struct Part<'a> {
    network: &'a Network,
    loss: Loss,
    shape: Shape,
    batch: Batch<'a>,
    wanted: &'a PreparedTargets,
    /// Of its update.
    is_first: bool,
}
