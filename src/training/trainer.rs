//! [`Trainer`]: trains for several epochs over a data set, with validation and early stopping.

use std::ops::{AsyncFnMut, ControlFlow};

use ndarray::Array3;

use crate::error::{Error, MadeFrom, Result};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::network::{Evaluation, Network};
use crate::model::state::State;
use crate::training::carry::Carry;
use crate::training::config::TrainerConfig;
use crate::training::dataset::{Dataset, load_batch};
use crate::training::learner::{Learner, StepMetrics};
use crate::training::progress::{BestNetwork, DataFingerprints, Event, Progress, StopReason};
use crate::training::sampler::{BatchSampler, EpochBatch, noise_seed, validation_batches};

/// Default number of updates between two reports.
const METRICS_EVERY: usize = 16;

/// The largest number of batches between two reports if states are carried. Those after each batch
/// are kept until the report shows that its update did not diverge.
const MAX_CARRIED: usize = 64;

/// A training loop: trains a [`Learner`] for several epochs, validates after each one and keeps the
/// best network. To write your own loop, call [`Learner::step`] instead.
///
/// ```
/// use std::ops::ControlFlow;
/// use gru_wgpu::{
///     Device, Event, Example, GruConfig, Head, Init, Learner, Loss, Optimizer, ParamLayout, Params, TrainerConfig,
///     Target, Trainer, LearnerConfig,
/// };
/// use ndarray::Array2;
///
/// // Sequences of 1 to 7 steps. The class is 1 if the first number is above 0.
/// let example = |i: usize| {
///     let x = Array2::from_shape_fn((1 + i % 7, 1), |(t, _)| ((i * 7 + t * 3) as f32).sin());
///     let class = i32::from(x[[0, 0]] > 0.0);
///     Example::new(x, Target::Class(class))
/// };
/// let examples: Vec<_> = (0..200).map(example).collect();
/// let (train, valid) = examples.split_at(150);
///
/// let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::last(2))?;
/// let params = Params::init_of(layout, Init::Uniform, 1)?;
/// let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.02);
/// let learner = Learner::new(params, training, &Device::cpu())?;
/// let mut trainer = Trainer::new(learner, TrainerConfig::new(20, 16))?;
/// trainer.run(train, valid, |_, event| {
///     if let Event::Epoch { epoch, loss, .. } = event {
///         println!("epoch {epoch}: {loss}");
///     }
///     Ok(ControlFlow::Continue(()))
/// })?;
/// assert!(trainer.best().expect("there is a validation set").validation.accuracy() > Some(0.9));
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    learner: Learner,
    config: TrainerConfig,
    progress: Progress,
    best: Option<BestNetwork>,
    data: Option<DataFingerprints>,
    /// The states after the last batch, if the next one continues it.
    carried: Option<State>,
    /// Updates between two reports.
    metrics_every: usize,
}

impl Trainer {
    /// Creates a trainer at the start of the first epoch.
    ///
    /// # Errors
    /// The errors of [`TrainerConfig::validate`].
    pub fn new(learner: Learner, config: TrainerConfig) -> Result<Self> {
        Self::resume(learner, config, Progress::default(), None)
    }

    /// Creates a trainer that resumes from the progress and the best network of another one. It
    /// accepts any data sets; [`Self::with_data`] restricts them.
    ///
    /// # Errors
    /// The errors of [`TrainerConfig::validate`].
    pub fn resume(
        learner: Learner,
        config: TrainerConfig,
        progress: Progress,
        best: Option<BestNetwork>,
    ) -> Result<Self> {
        config.validate()?;
        let (data, carried) = Default::default();
        Ok(Self { learner, config, progress, best, data, carried, metrics_every: METRICS_EVERY })
    }

    /// Sets the states `[L·D, B, H]` that the next batch of windows continues from, those of a
    /// checkpoint in the middle of an epoch; see [`Dataset::stride`].
    #[must_use]
    pub fn with_carried(self, states: impl Into<Option<Array3<f32>>>) -> Self {
        Self { carried: states.into().map(State::from_array), ..self }
    }

    /// Returns the states that the next batch of windows continues from.
    #[cfg(feature = "safetensors")]
    pub(super) fn carried(&self) -> Option<&State> {
        self.carried.as_ref()
    }

    /// Sets the data sets of the run: [`Self::run`] refuses any others. With `None` it accepts any,
    /// for example a corrected version of the earlier ones.
    #[must_use]
    pub fn with_data(self, data: Option<DataFingerprints>) -> Self {
        Self { data, ..self }
    }

    /// Returns the fingerprints of the data sets, or `None` before the first run.
    pub fn data(&self) -> Option<DataFingerprints> {
        self.data
    }

    /// Returns the learner, which holds the network in training.
    pub fn learner(&mut self) -> &mut Learner {
        &mut self.learner
    }

    /// Sets the number of updates between two reports, at least 1 and 16 by default. It takes
    /// effect from the next report on. If updates are slow, use a small number, so that the
    /// listener can stop the run soon. The results keep the same bits.
    pub fn metrics_every(&mut self, updates: usize) {
        self.metrics_every = updates.max(1);
    }

    /// Returns the configuration.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Returns the position of the run.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Returns the network with the best validation result so far.
    pub fn best(&self) -> Option<&BestNetwork> {
        self.best.as_ref()
    }

    /// Trains on `train` from the current position and evaluates on `valid` after each epoch,
    /// unless `valid` is empty. `listen` receives every event and may stop the run; a second call
    /// continues it. `listen` may also save a checkpoint.
    ///
    /// # Errors
    /// [`Error::NoExamples`] if no example of `train` has a target; the errors of
    /// [`Dataset::check`]; [`Error::OtherData`] if the data sets differ from those of the run so
    /// far; [`Error::Diverged`] with the batch that diverged; [`Error::DivergedValidation`]; any
    /// error that `listen` returns; and the errors of [`Learner::step`]. After an error the trainer
    /// is in the state after the last good update, and can save a checkpoint.
    pub fn run<T: Dataset + ?Sized, V: Dataset + ?Sized>(
        &mut self,
        train: &T,
        valid: &V,
        mut listen: impl FnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<StopReason> {
        let listen = async |trainer: &mut Self, event: &Event<'_>| listen(trainer, event);
        pollster::block_on(self.run_epochs(train, valid, listen, Wait::Block))
    }

    /// The async version of [`Self::run`]. `listen` is async too.
    ///
    /// # Errors
    /// The errors of [`Self::run`].
    pub async fn run_async<T: Dataset + ?Sized, V: Dataset + ?Sized>(
        &mut self,
        train: &T,
        valid: &V,
        listen: impl AsyncFnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<StopReason> {
        self.run_epochs(train, valid, listen, Wait::Async).await
    }

    async fn run_epochs<T: Dataset + ?Sized, V: Dataset + ?Sized>(
        &mut self,
        train: &T,
        valid: &V,
        mut listen: impl AsyncFnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
        wait: Wait,
    ) -> Result<StopReason> {
        let mut sampler = BatchSampler::new(train, &self.config, &self.learner.config().loss);
        if sampler.is_empty() {
            return Err(Error::NoExamples);
        }
        self.check(train)?;
        self.check(valid)?;
        let data = DataFingerprints { train: train.fingerprint(), valid: valid.fingerprint() };
        data.check(self.data.get_or_insert(data))?;
        if train.stride().is_some() && self.progress.batch > 0 && self.carried.is_none() {
            return Err(Error::Conflict {
                what: "a run in the middle of an epoch of windows and no carried states",
                why: "pass the checkpoint's carried states to Trainer::with_carried",
            });
        }
        while self.progress.epoch < self.config.epochs {
            if self.config.patience.is_some_and(|patience| self.progress.stale >= patience) {
                return Ok(StopReason::EarlyStopping);
            }
            let batches = sampler.batches(train, self.progress.epoch);
            if self.progress.batch > batches.len() {
                let expected = "at most the number of batches in an epoch";
                let what = "the batch of the run's progress";
                return Err(Error::setting(what, self.progress.batch, expected));
            }
            if self.train_epoch(train, &batches, &mut listen, wait).await?.is_break() {
                return Ok(StopReason::Requested);
            }
            let validation = self.validate(valid, &mut listen, wait).await?;
            let ControlFlow::Continue(validation) = validation else {
                return Ok(StopReason::Requested);
            };
            let event = self.end_epoch(validation, wait).await?;
            if listen(self, &event).await?.is_break() {
                return Ok(StopReason::Requested);
            }
        }
        Ok(StopReason::Completed)
    }

    /// Trains on the remaining batches of an epoch.
    async fn train_epoch<T: Dataset + ?Sized>(
        &mut self,
        train: &T,
        batches: &[EpochBatch],
        listen: &mut impl AsyncFnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
        wait: Wait,
    ) -> Result<ControlFlow<()>> {
        let accumulation = self.learner.config().accumulation;
        while self.progress.batch < batches.len() {
            let mut between = self.metrics_every.saturating_mul(accumulation);
            if train.stride().is_some() {
                between = between.min(MAX_CARRIED.next_multiple_of(accumulation));
            }
            let end = self.progress.batch.saturating_add(between).min(batches.len());
            let metrics = self.update(train, batches, end, wait).await?;
            if listen(self, &Event::Updates(&metrics)).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Trains on the epoch's batches up to `end`. After an error, the progress points to the first
    /// batch of the update that failed. The updates before it changed the parameters and count.
    async fn update<T: Dataset + ?Sized>(
        &mut self,
        train: &T,
        batches: &[EpochBatch],
        end: usize,
        wait: Wait,
    ) -> Result<Vec<StepMetrics>> {
        let (first, before) = (self.progress.batch, self.learner.updates());
        let mut carried = Vec::new();
        let stepped = self.step(train, batches, end, &mut carried, wait).await;
        let (reported, metrics) = match self.learner.run_metrics(wait).await {
            Ok(metrics) => (Ok(()), metrics),
            // The metrics of the updates before the failed one.
            Err(error) => (Err(error), self.learner.run_metrics(wait).await.unwrap_or_default()),
        };
        self.learner.discard_gradient();
        let updates =
            usize::try_from(self.learner.updates().saturating_sub(before)).unwrap_or(usize::MAX);
        let accumulation = self.learner.config().accumulation;
        let done = updates.saturating_mul(accumulation).saturating_add(first).min(end);
        let examples = |batches: &[EpochBatch]| {
            batches.iter().map(|batch| batch.examples.len()).sum::<usize>()
        };
        // Add one update at a time, so that the sum does not depend on the report interval.
        for (of_update, metrics) in batches[first..done].chunks(accumulation).zip(&metrics) {
            self.progress.loss.0 += f64::from(metrics.loss) * examples(of_update) as f64;
        }
        self.progress.loss.1 += metrics.len();
        self.progress.examples += examples(&batches[first..done]);
        self.progress.batch = done;
        if done > first {
            self.carried = carried.into_iter().nth(done - first - 1);
        }
        // A diverged update happened before any error in `stepped`, so report it first.
        match reported.and(stepped) {
            Ok(()) => Ok(metrics),
            Err(Error::Diverged { step, loss, norm, largest, parameter, .. }) => {
                let made_from = Some(Box::new(self.made_from(batches)));
                Err(Error::Diverged { step, loss, norm, largest, parameter, made_from })
            }
            Err(other) => Err(other),
        }
    }

    /// Queues the epoch's batches up to `end`. If states are carried, `carried` receives those
    /// after each batch.
    async fn step<T: Dataset + ?Sized>(
        &mut self,
        train: &T,
        batches: &[EpochBatch],
        end: usize,
        carried: &mut Vec<State>,
        wait: Wait,
    ) -> Result<()> {
        let Progress { epoch, batch: first, .. } = self.progress;
        let mut carry = Carry::new(train);
        if let (Some(before), Some(carry)) = (first.checked_sub(1), &mut carry) {
            let device = self.learner.network().gru().device();
            let state = match self.carried.clone() {
                Some(state) => Some(state.on(device).await?),
                None => None,
            };
            carry.resume(&batches[before].examples, state);
        }
        for (at, EpochBatch { skipped, examples }) in (first..end).zip(&batches[first..end]) {
            let seed = noise_seed(self.config.seed, epoch, at);
            let Some(carry) = &mut carry else {
                let batch = load_batch(train, examples)?;
                let of_step = batch.batch().with_seed(seed);
                self.learner.run_step(of_step, batch.targets(), wait).await?;
                continue;
            };
            for examples in skipped {
                carry.skip(self.learner.network(), train, examples, wait).await?;
            }
            let learner = &mut self.learner;
            carried.push(carry.train(learner, train, examples, seed, wait).await?);
        }
        if end == batches.len() { self.learner.run_apply(wait).await } else { Ok(()) }
    }

    /// Returns the batches and examples of the next update.
    fn made_from(&self, batches: &[EpochBatch]) -> MadeFrom {
        let Progress { epoch, batch: first, .. } = self.progress;
        let end = first.saturating_add(self.learner.config().accumulation).min(batches.len());
        let examples = batches[first..end].iter().flat_map(|batch| &batch.examples);
        MadeFrom { epoch, batches: first..end, examples: examples.copied().collect() }
    }

    /// Evaluates the network on the validation set. Returns `None` in `Continue` if the set is
    /// empty, and `Break` if the listener stops the run.
    async fn validate<V: Dataset + ?Sized>(
        &mut self,
        valid: &V,
        listen: &mut impl AsyncFnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
        wait: Wait,
    ) -> Result<ControlFlow<(), Option<Evaluation>>> {
        let (mut all, mut done, mut carry) = (Evaluation::default(), 0, Carry::new(valid));
        for examples in validation_batches(valid, self.config.batch) {
            done += examples.len();
            self.evaluate_batch(valid, &examples, &mut carry, &mut all, wait).await?;
            if listen(self, &Event::Validating(done)).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue((!valid.is_empty()).then_some(all)))
    }

    async fn end_epoch(
        &mut self,
        validation: Option<Evaluation>,
        wait: Wait,
    ) -> Result<Event<'static>> {
        let Progress { epoch, stale, .. } = self.progress;
        if let Some(Evaluation { loss, .. }) = validation.filter(|now| !now.loss.is_finite()) {
            return Err(Error::DivergedValidation { epoch, loss });
        }
        let is_best = validation.is_some_and(|now| {
            self.best.as_ref().is_none_or(|best| now.is_better_than(&best.validation))
        });
        if let (true, Some(validation)) = (is_best, validation) {
            let params = self.learner.run_params(wait).await?;
            self.best = Some(BestNetwork { epoch, validation, params });
        }
        let loss = self.progress.mean_loss() as f32;
        let stale = if is_best || validation.is_none() { 0 } else { stale + 1 };
        self.progress = Progress { epoch: epoch + 1, stale, ..Progress::default() };
        self.carried = None;
        Ok(Event::Epoch { epoch, loss, validation, is_best })
    }

    blocking_and_async! {
        /// Evaluates the current network on a data set, without dropout.
        ///
        /// # Errors
        /// The errors of [`Dataset::check`] and [`Learner::evaluate`].
        pub fn evaluate, evaluate_async(&self, data: &(impl Dataset + ?Sized)) -> Result<Evaluation> {
            |wait| self.evaluate_all(data, wait)
        }

        /// Returns the network with the best validation result, or the current network if there was
        /// no validation.
        ///
        /// # Errors
        /// The errors of [`Learner::params`] and [`Network::new`].
        pub fn into_network, into_network_async(self, device: &Device) -> Result<Network> {
            |wait| self.take_network(device, wait)
        }
    }

    async fn evaluate_all(&self, data: &(impl Dataset + ?Sized), wait: Wait) -> Result<Evaluation> {
        self.check(data)?;
        let (mut all, mut carry) = (Evaluation::default(), Carry::new(data));
        for examples in validation_batches(data, self.config.batch) {
            self.evaluate_batch(data, &examples, &mut carry, &mut all, wait).await?;
        }
        Ok(all)
    }

    async fn evaluate_batch<D: Dataset + ?Sized>(
        &self,
        data: &D,
        examples: &[usize],
        carry: &mut Option<Carry>,
        all: &mut Evaluation,
        wait: Wait,
    ) -> Result<()> {
        if let Some(carry) = carry {
            let evaluation = carry.evaluate(&self.learner, data, examples, wait).await?;
            if evaluation.counted > 0 {
                *all += evaluation;
            }
            return Ok(());
        }
        let batch = load_batch(data, examples)?;
        match self.learner.run_evaluation(batch.batch(), batch.targets(), wait).await {
            // A batch may hold the ignored class only. It adds nothing.
            Err(Error::NoTarget) => Ok(()),
            evaluation => {
                *all += evaluation?;
                Ok(())
            }
        }
    }

    async fn take_network(mut self, device: &Device, wait: Wait) -> Result<Network> {
        let params = match self.best.take() {
            Some(best) => best.params,
            None => self.learner.run_params(wait).await?,
        };
        Network::new_async(params, device).await
    }

    fn check(&self, data: &(impl Dataset + ?Sized)) -> Result<()> {
        let network = self.learner.network();
        Carry::check(data, network.gru().config())?;
        data.check(network.gru().config(), &network.head())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::model::device::test_device;
    use crate::spec::config::GruConfig;
    use crate::spec::head::Head;
    use crate::spec::loss::Loss;
    use crate::spec::optimizer::Optimizer;
    use crate::spec::params::{Init, ParamLayout, Params};
    use crate::training::dataset::{Example, Target};
    use crate::training::learner::LearnerConfig;

    /// The moments, which are twice as large, are not downloaded.
    #[test]
    fn a_best_epoch_downloads_the_parameters_only() {
        let example = |i: usize| {
            let x = Array2::from_elem((3, 1), (i as f32).sin());
            Example::new(x, Target::Values(vec![(i as f32).sin()]))
        };
        let examples: Vec<_> = (0..8).map(example).collect();
        for device in [test_device().0, Device::cpu()] {
            let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 4), Head::last(1));
            let params = Params::init_of(layout.unwrap(), Init::Uniform, 1).unwrap();
            let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
            let learner = Learner::new(params, config, &device).unwrap();
            let mut trainer = Trainer::new(learner, TrainerConfig::new(3, 4)).unwrap();
            let mut best = 0;
            let listen = |_: &mut Trainer, event: &Event<'_>| {
                best += usize::from(matches!(event, Event::Epoch { is_best: true, .. }));
                Ok(ControlFlow::Continue(()))
            };
            trainer.run(&examples, &examples, listen).unwrap();
            assert_eq!((best, trainer.learner.state_downloads), (3, 0), "on {device}");
            let params = trainer.best().map(|best| best.params.clone());
            assert_eq!(params, Some(trainer.learner.state().unwrap().params));
        }
    }
}
