//! [`Trainer`]: epochs over a data set, with validation, until it no longer helps.

use std::ops::{AsyncFnMut, ControlFlow, Range};

use crate::error::{Error, MadeFrom, Result, check_shape};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::network::{Evaluation, Network};
use crate::spec::sequences::batch_ranges;
use crate::training::config::TrainerConfig;
use crate::training::dataset::{Dataset, TrainingBatch};
use crate::training::learner::{Learner, StepMetrics};
use crate::training::progress::{BestNetwork, DataFingerprints, Event, Progress, StopReason};
use crate::training::sampler::{BatchSampler, noise_seed};

/// Updates between two reports, unless the caller says otherwise.
const METRICS_EVERY: usize = 16;

/// Trains a [`Learner`] for some epochs. A loop of one's own needs no more than [`Learner::step`].
///
/// ```
/// use std::ops::ControlFlow;
/// use gru_wgpu::{
///     Device, Event, Example, GruConfig, Head, Init, Learner, Loss, Optimizer, ParamLayout, Params, TrainerConfig,
///     Target, Trainer, LearnerConfig,
/// };
/// use ndarray::Array2;
///
/// // Whether a sequence's first number is above 0, of sequences of 1 to 7 steps.
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
/// assert!(trainer.best().expect("it was validated").validation.accuracy() > Some(0.9));
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    learner: Learner,
    config: TrainerConfig,
    progress: Progress,
    best: Option<BestNetwork>,
    data: Option<DataFingerprints>,
    /// Updates between two reports.
    metrics_every: usize,
}

impl Trainer {
    /// Before the first epoch.
    ///
    /// # Errors
    /// As [`TrainerConfig::validate`].
    pub fn new(learner: Learner, config: TrainerConfig) -> Result<Self> {
        Self::resume(learner, config, Progress::default(), None)
    }

    /// Where another one stood, over any data sets.
    ///
    /// # Errors
    /// As [`TrainerConfig::validate`].
    pub fn resume(
        learner: Learner,
        config: TrainerConfig,
        progress: Progress,
        best: Option<BestNetwork>,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self { learner, config, progress, best, data: None, metrics_every: METRICS_EVERY })
    }

    /// The same over these data sets: [`Self::run`] refuses others. `None` takes any, such as those
    /// of before with a mistake mended.
    #[must_use]
    pub fn with_data(self, data: Option<DataFingerprints>) -> Self {
        Self { data, ..self }
    }

    /// Which data sets it is over, once it has run.
    pub fn data(&self) -> Option<DataFingerprints> {
        self.data
    }

    /// The network in training.
    pub fn learner(&mut self) -> &mut Learner {
        &mut self.learner
    }

    /// Has the run report its updates after each so many of them, at least one, from the next
    /// report on: fewer where they take long, so that the listener can stop it soon. What is
    /// computed stays the same, bit for bit.
    pub fn metrics_every(&mut self, updates: usize) {
        self.metrics_every = updates.max(1);
    }

    /// How long it trains, on how much at a time.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Where it stands.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The network that did best on validation so far.
    pub fn best(&self) -> Option<&BestNetwork> {
        self.best.as_ref()
    }

    /// Trains on `train` from where it stands, validating on `valid` after each epoch unless that
    /// is empty. `listen` gets every event and may stop the run, at a place from which it can go
    /// on; it may ask the trainer for all that training goes on from.
    ///
    /// # Errors
    /// [`Error::NoExamples`] when no example of `train` has a target, those of [`Dataset::check`],
    /// [`Error::OtherData`] when the data sets are not those of the run so far, [`Error::Diverged`]
    /// with the batch that did, whatever `listen` returns, [`Error::DivergedValidation`], and as
    /// [`Learner::step`]. After an error the trainer stands where the last good update left it, and
    /// may be asked for what training goes on from.
    pub fn run<T: Dataset + ?Sized, V: Dataset + ?Sized>(
        &mut self,
        train: &T,
        valid: &V,
        mut listen: impl FnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<StopReason> {
        let listen = async |trainer: &mut Self, event: &Event<'_>| listen(trainer, event);
        pollster::block_on(self.run_epochs(train, valid, listen, Wait::Block))
    }

    /// [`Self::run`] as a future, whose `listen` may wait as well.
    ///
    /// # Errors
    /// As [`Self::run`].
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
        while self.progress.epoch < self.config.epochs {
            if self.config.patience.is_some_and(|patience| self.progress.stale >= patience) {
                return Ok(StopReason::EarlyStopping);
            }
            let batches = sampler.batches(train, self.progress.epoch);
            if self.progress.batch > batches.len() {
                let expected = "no more than the batches of an epoch";
                let what = "the batch that a run stands at";
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

    /// The rest of an epoch's batches.
    async fn train_epoch<T: Dataset + ?Sized>(
        &mut self,
        train: &T,
        batches: &[Vec<usize>],
        listen: &mut impl AsyncFnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
        wait: Wait,
    ) -> Result<ControlFlow<()>> {
        let accumulation = self.learner.config().accumulation;
        while self.progress.batch < batches.len() {
            let between = self.metrics_every.saturating_mul(accumulation);
            let end = self.progress.batch.saturating_add(between).min(batches.len());
            let metrics = self.update(train, batches, end, wait).await?;
            if listen(self, &Event::Updates(&metrics)).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The updates of an epoch's batches up to `end`. After an error the progress is that of the
    /// first batch of the update that it stopped: what went before has moved the parameters and
    /// counts.
    async fn update<T: Dataset + ?Sized>(
        &mut self,
        train: &T,
        batches: &[Vec<usize>],
        end: usize,
        wait: Wait,
    ) -> Result<Vec<StepMetrics>> {
        let (first, before) = (self.progress.batch, self.learner.updates());
        let stepped = self.step(train, batches, end, wait).await;
        let (reported, metrics) = match self.learner.run_metrics(wait).await {
            Ok(metrics) => (Ok(()), metrics),
            // Those before it.
            Err(error) => (Err(error), self.learner.run_metrics(wait).await.unwrap_or_default()),
        };
        self.learner.forget();
        let made =
            usize::try_from(self.learner.updates().saturating_sub(before)).unwrap_or(usize::MAX);
        let accumulation = self.learner.config().accumulation;
        let done = made.saturating_mul(accumulation).saturating_add(first).min(end);
        let examples = |batches: &[Vec<usize>]| batches.iter().map(Vec::len).sum::<usize>();
        // One by one: the sum is the same however many there are between two reports.
        for (of_update, metrics) in batches[first..done].chunks(accumulation).zip(&metrics) {
            self.progress.loss.0 += f64::from(metrics.loss) * examples(of_update) as f64;
        }
        self.progress.loss.1 += metrics.len();
        self.progress.examples += examples(&batches[first..done]);
        self.progress.batch = done;
        // An update that diverged came before whatever else went wrong.
        match reported.and(stepped) {
            Ok(()) => Ok(metrics),
            Err(Error::Diverged { step, loss, norm, largest, parameter, .. }) => {
                let made_from = Some(Box::new(self.made_from(batches)));
                Err(Error::Diverged { step, loss, norm, largest, parameter, made_from })
            }
            Err(other) => Err(other),
        }
    }

    /// Queues an epoch's batches up to `end`.
    async fn step<T: Dataset + ?Sized>(
        &mut self,
        train: &T,
        batches: &[Vec<usize>],
        end: usize,
        wait: Wait,
    ) -> Result<()> {
        let Progress { epoch, batch: first, .. } = self.progress;
        for (at, examples) in (first..end).zip(&batches[first..end]) {
            let made = batch_of(train, examples)?;
            let seed = noise_seed(self.config.seed, epoch, at);
            self.learner.run_step(made.batch().with_seed(seed), made.targets(), wait).await?;
        }
        if end == batches.len() { self.learner.run_apply(wait).await } else { Ok(()) }
    }

    /// The batches and examples of the update that comes next.
    fn made_from(&self, batches: &[Vec<usize>]) -> MadeFrom {
        let Progress { epoch, batch: first, .. } = self.progress;
        let end = first.saturating_add(self.learner.config().accumulation).min(batches.len());
        MadeFrom { epoch, batches: first..end, examples: batches[first..end].concat() }
    }

    /// How the network does on the data set kept for validation, unless that is empty.
    async fn validate<V: Dataset + ?Sized>(
        &mut self,
        valid: &V,
        listen: &mut impl AsyncFnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
        wait: Wait,
    ) -> Result<ControlFlow<(), Option<Evaluation>>> {
        let mut all = Evaluation::default();
        for examples in batch_ranges(valid.len(), self.config.batch) {
            let done = examples.end;
            self.evaluate_batch(valid, examples, &mut all, wait).await?;
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
        Ok(Event::Epoch { epoch, loss, validation, is_best })
    }

    blocking_and_async! {
        /// How the network does on a data set as it is now.
        ///
        /// # Errors
        /// Those of [`Dataset::check`], and as [`Learner::evaluate`].
        pub fn evaluate, evaluate_async(&self, data: &(impl Dataset + ?Sized)) -> Result<Evaluation> {
            |wait| self.evaluate_all(data, wait)
        }

        /// The network that did best on validation, or where there was none the network as it is.
        ///
        /// # Errors
        /// As [`Learner::params`] and [`Network::new`].
        pub fn into_network, into_network_async(self, device: &Device) -> Result<Network> {
            |wait| self.take_network(device, wait)
        }
    }

    async fn evaluate_all(&self, data: &(impl Dataset + ?Sized), wait: Wait) -> Result<Evaluation> {
        self.check(data)?;
        let mut all = Evaluation::default();
        for examples in batch_ranges(data.len(), self.config.batch) {
            self.evaluate_batch(data, examples, &mut all, wait).await?;
        }
        Ok(all)
    }

    async fn evaluate_batch<D: Dataset + ?Sized>(
        &self,
        data: &D,
        examples: Range<usize>,
        all: &mut Evaluation,
        wait: Wait,
    ) -> Result<()> {
        let made = batch_of(data, &examples.collect::<Vec<_>>())?;
        match self.learner.run_evaluation(made.batch(), made.targets(), wait).await {
            // All of a batch's targets may be of the ignored class.
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
        data.check(network.gru().config(), &network.head())
    }
}

/// A batch of these examples, with a row for each.
///
/// # Errors
/// The data set's own, and [`Error::Shape`] when it gives another number of rows.
fn batch_of<D: Dataset + ?Sized>(data: &D, examples: &[usize]) -> Result<TrainingBatch> {
    let made = data.batch(examples)?;
    let (first, second, _) = made.x.dim();
    let [_, rows] = made.layout.order(first, second);
    check_shape("the rows of a data set's batch", &[examples.len()], &[rows])?;
    Ok(made)
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

    /// The moments, twice as large, stay where they are.
    #[test]
    fn the_best_epoch_takes_the_parameters_alone() {
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
            assert_eq!((best, trainer.learner.states), (3, 0), "on {device}");
            let params = trainer.best().map(|best| best.params.clone());
            assert_eq!(params, Some(trainer.learner.state().unwrap().params));
        }
    }
}
