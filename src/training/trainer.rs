//! [`Trainer`]: epochs over examples, with validation, until it no longer helps.

use std::ops::ControlFlow;

use crate::error::{Error, MadeFrom, Result};
use crate::fingerprint::DataFingerprint;
use crate::model::device::Device;
use crate::model::network::{Evaluation, Network};
use crate::spec::params::Params;
use crate::spec::sequences::in_order;
use crate::training::dataset::{Example, Padded, check, noise_seed, order};
use crate::training::learner::{Learner, StepMetrics};

/// Updates between two looks at how they went, unless the caller says otherwise.
const METRICS_EVERY: usize = 16;

/// How long to train, on how much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct TrainerConfig {
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples of a batch.
    pub batch: usize,
    /// Of the order of the examples, and of dropout.
    #[cfg_attr(feature = "serde", serde(default = "first_seed"))]
    pub seed: u64,
    /// Epochs without a better validation after which to stop.
    #[cfg_attr(feature = "serde", serde(default))]
    pub patience: Option<usize>,
}

/// What a serialised configuration need not say, as [`TrainerConfig::new`] has it.
#[cfg(feature = "serde")]
fn first_seed() -> u64 {
    1
}

impl TrainerConfig {
    /// So many passes in batches of so many examples, with seed 1.
    pub fn new(epochs: usize, batch: usize) -> Self {
        Self { epochs, batch, seed: 1, patience: None }
    }

    /// The same with another seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same, ended after so many epochs without a better validation.
    #[must_use]
    pub fn with_patience(self, patience: impl Into<Option<usize>>) -> Self {
        Self { patience: patience.into(), ..self }
    }

    /// `Ok` when every number makes sense.
    ///
    /// # Errors
    /// [`Error::ZeroSize`].
    pub fn validate(&self) -> Result<()> {
        let Self { epochs, batch, patience, .. } = *self;
        for (what, size) in [
            ("the number of epochs", epochs),
            ("the number of examples of a batch", batch),
            ("the number of epochs to be patient for", patience.unwrap_or(1)),
        ] {
            if size == 0 {
                return Err(Error::ZeroSize { what });
            }
        }
        Ok(())
    }

    /// Updates of an epoch over so many examples, `accumulation` batches each.
    pub fn updates(&self, examples: usize, accumulation: usize) -> u64 {
        examples.div_ceil(self.batch.max(1)).div_ceil(accumulation.max(1)) as u64
    }
}

/// Where a run stands, between two updates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Its batches that are done.
    pub batch: usize,
    /// The sum of their updates' losses, and how many those were.
    pub loss: (f64, usize),
    /// Epochs since the best validation.
    pub stale: usize,
}

/// The network that did best on validation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Best {
    /// After which epoch, from 0.
    pub epoch: usize,
    /// Its validation.
    pub validation: Evaluation,
    /// Its parameters.
    pub params: Params,
}

/// Which examples a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFingerprints {
    /// Those that it trains on.
    pub train: DataFingerprint,
    /// Those that it is validated on.
    pub valid: DataFingerprint,
}

impl DataFingerprints {
    /// `Ok` when these are `expected`.
    fn check(&self, expected: &Self) -> Result<()> {
        for (what, expected, got) in
            [("train on", expected.train, self.train), ("validate on", expected.valid, self.valid)]
        {
            if expected != got {
                return Err(Error::OtherData { what, expected, got });
            }
        }
        Ok(())
    }
}

/// What a run tells of itself, always between two updates.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Updates were made: every 16 unless [`Trainer::metrics_every`] says otherwise, and at the end of an epoch.
    Updates(&'a [StepMetrics]),
    /// So many examples of the validation after an epoch are done. A run that is stopped here goes on with
    /// the whole validation.
    Validating(usize),
    /// An epoch is over.
    Epoch {
        /// Which one, from 0.
        epoch: usize,
        /// The mean loss of its updates.
        loss: f32,
        /// On the examples kept for it, if there are any.
        validation: Option<Evaluation>,
        /// Whether no epoch before was better.
        is_best: bool,
    },
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// All epochs are over.
    Completed,
    /// Validation did not get better for as long as the regime is patient.
    EarlyStopping,
    /// Whoever listened asked for it. [`Trainer::run`] goes on from there.
    Requested,
}

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
    best: Option<Best>,
    data: Option<DataFingerprints>,
    /// Updates between two looks.
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

    /// Where another one stood, over any examples.
    ///
    /// # Errors
    /// As [`TrainerConfig::validate`].
    pub fn resume(
        learner: Learner,
        config: TrainerConfig,
        progress: Progress,
        best: Option<Best>,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self { learner, config, progress, best, data: None, metrics_every: METRICS_EVERY })
    }

    /// The same over these examples: [`Self::run`] refuses others. Over any with `None`, such as those of
    /// before with a mistake mended.
    #[must_use]
    pub fn with_data(self, data: Option<DataFingerprints>) -> Self {
        Self { data, ..self }
    }

    /// Which examples it is over, once it has run.
    pub fn data(&self) -> Option<DataFingerprints> {
        self.data
    }

    /// What is trained.
    pub fn learner(&mut self) -> &mut Learner {
        &mut self.learner
    }

    /// Has the run say how updates went after each so many of them, at least one, from the next look on:
    /// fewer where they take long, so that what listens can stop it soon. What is computed stays the same,
    /// bit for bit.
    pub fn metrics_every(&mut self, updates: usize) {
        self.metrics_every = updates.max(1);
    }

    /// How.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Where it stands.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// What did best on validation so far.
    pub fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }

    /// Trains on `train` from where it stands, validating on `valid` after each epoch unless that is empty.
    /// `listen` hears of every event and may stop the run, at a place from which it can go on; while it
    /// listens, the trainer may be asked for all that training goes on from.
    ///
    /// # Errors
    /// [`Error::NoExamples`] and [`Error::Shape`] when the examples do not fit, [`Error::OtherData`] when they
    /// are not those of the run so far, [`Error::Diverged`] with the
    /// batch that did, whatever `listen` returns, [`Error::DivergedValidation`], and as [`Learner::step`]. After an error the trainer stands
    /// where the last good update left it, and may be asked for what training goes on from.
    pub fn run(
        &mut self,
        train: &[Example],
        valid: &[Example],
        mut listen: impl FnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<StopReason> {
        let ignored = self.learner.config().loss.ignored();
        if !train.iter().any(|example| example.counts(ignored)) {
            return Err(Error::NoExamples);
        }
        self.check(train)?;
        self.check(valid)?;
        let data = DataFingerprints {
            train: DataFingerprint::of(train),
            valid: DataFingerprint::of(valid),
        };
        data.check(self.data.get_or_insert(data))?;
        while self.progress.epoch < self.config.epochs {
            if self.config.patience.is_some_and(|patience| self.progress.stale >= patience) {
                return Ok(StopReason::EarlyStopping);
            }
            if self.epoch(train, &mut listen)?.is_break() {
                return Ok(StopReason::Requested);
            }
            let ControlFlow::Continue(validation) = self.validate(valid, &mut listen)? else {
                return Ok(StopReason::Requested);
            };
            let event = self.end_epoch(validation)?;
            if listen(self, &event)?.is_break() {
                return Ok(StopReason::Requested);
            }
        }
        Ok(StopReason::Completed)
    }

    /// The rest of an epoch.
    fn epoch(
        &mut self,
        train: &[Example],
        listen: &mut impl FnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let TrainerConfig { batch, seed, .. } = self.config;
        let ignored = self.learner.config().loss.ignored();
        let order = order(train, ignored, batch, seed, self.progress.epoch);
        let accumulation = self.learner.config().accumulation;
        while self.progress.batch < order.len() {
            let between = self.metrics_every.saturating_mul(accumulation);
            let end = self.progress.batch.saturating_add(between).min(order.len());
            let reports = self.updates(train, &order, end)?;
            if listen(self, &Event::Updates(&reports))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The updates of an epoch's batches up to `end`. After an error the position is that of the first batch
    /// of the update that it stopped: what went before has moved the parameters and counts.
    fn updates(
        &mut self,
        train: &[Example],
        order: &[Vec<usize>],
        end: usize,
    ) -> Result<Vec<StepMetrics>> {
        let (first, before) = (self.progress.batch, self.learner.updates());
        let stepped = self.steps(train, order, end);
        let (told, reports) = match self.learner.metrics() {
            Ok(reports) => (Ok(()), reports),
            // Those before it.
            Err(error) => (Err(error), self.learner.metrics().unwrap_or_default()),
        };
        self.learner.forget();
        let made =
            usize::try_from(self.learner.updates().saturating_sub(before)).unwrap_or(usize::MAX);
        let accumulation = self.learner.config().accumulation;
        self.progress.batch = made.saturating_mul(accumulation).saturating_add(first).min(end);
        // One by one: the sum is the same however many there are between two looks.
        reports.iter().for_each(|report| self.progress.loss.0 += f64::from(report.loss));
        self.progress.loss.1 += reports.len();
        // What was told of came first.
        match told.and(stepped) {
            Ok(()) => Ok(reports),
            Err(Error::Diverged { step, loss, norm, largest, parameter, .. }) => {
                let made_from = Some(Box::new(self.made_from(order)));
                Err(Error::Diverged { step, loss, norm, largest, parameter, made_from })
            }
            Err(other) => Err(other),
        }
    }

    /// Queues an epoch's batches up to `end`.
    fn steps(&mut self, train: &[Example], order: &[Vec<usize>], end: usize) -> Result<()> {
        let Progress { epoch, batch: first, .. } = self.progress;
        for (at, rows) in (first..end).zip(&order[first..end]) {
            let padded = Padded::new(rows.iter().map(|&row| &train[row]))?;
            let drawn = padded.batch().with_seed(noise_seed(self.config.seed, epoch, at));
            self.learner.step(drawn, padded.targets())?;
        }
        if end == order.len() { self.learner.apply() } else { Ok(()) }
    }

    /// What the update at the position is made from.
    fn made_from(&self, order: &[Vec<usize>]) -> MadeFrom {
        let Progress { epoch, batch: first, .. } = self.progress;
        let end = first.saturating_add(self.learner.config().accumulation).min(order.len());
        MadeFrom { epoch, batches: first..end, examples: order[first..end].concat() }
    }

    /// How the network does on the examples kept for it, if there are any.
    fn validate(
        &mut self,
        valid: &[Example],
        listen: &mut impl FnMut(&mut Self, &Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<(), Option<Evaluation>>> {
        let mut all = Evaluation::default();
        for range in in_order(valid.len(), self.config.batch) {
            let done = range.end;
            self.add_batch(&valid[range], &mut all)?;
            if listen(self, &Event::Validating(done))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue((!valid.is_empty()).then_some(all)))
    }

    fn end_epoch(&mut self, validation: Option<Evaluation>) -> Result<Event<'static>> {
        let Progress { epoch, loss: (sum, updates), stale, .. } = self.progress;
        if let Some(Evaluation { loss, .. }) = validation.filter(|now| !now.loss.is_finite()) {
            return Err(Error::DivergedValidation { epoch, loss });
        }
        let is_best = validation.is_some_and(|now| {
            self.best.as_ref().is_none_or(|best| now.is_better_than(&best.validation))
        });
        if let (true, Some(validation)) = (is_best, validation) {
            let params = self.learner.state()?.params;
            self.best = Some(Best { epoch, validation, params });
        }
        let stale = if is_best || validation.is_none() { 0 } else { stale + 1 };
        self.progress = Progress { epoch: epoch + 1, batch: 0, loss: (0.0, 0), stale };
        let loss = (sum / updates.max(1) as f64) as f32;
        Ok(Event::Epoch { epoch, loss, validation, is_best })
    }

    /// How the network does on `examples` as it is now.
    ///
    /// # Errors
    /// As [`Learner::forward`].
    pub fn evaluate(&self, examples: &[Example]) -> Result<Evaluation> {
        let mut all = Evaluation::default();
        for range in in_order(examples.len(), self.config.batch) {
            self.add_batch(&examples[range], &mut all)?;
        }
        Ok(all)
    }

    fn add_batch(&self, examples: &[Example], all: &mut Evaluation) -> Result<()> {
        let padded = Padded::new(examples.iter())?;
        match self.learner.evaluate(padded.batch(), padded.targets()) {
            // All of a batch's targets may be of the ignored class.
            Err(Error::NoTarget) => Ok(()),
            other => {
                *all += other?;
                Ok(())
            }
        }
    }

    /// The network that did best on validation, or where there was none the network as it is.
    ///
    /// # Errors
    /// As [`Learner::state`].
    pub fn into_network(mut self, device: &Device) -> Result<Network> {
        let params = match self.best.take() {
            Some(best) => best.params,
            None => self.learner.state()?.params,
        };
        Network::new(params, device)
    }

    fn check(&self, examples: &[Example]) -> Result<()> {
        let network = self.learner.network();
        check(examples, network.gru().config().input_size, &network.head())
    }
}
