//! [`Carry`]: the states that one batch of windows leaves to the next.

use ndarray::{Array2, Axis};

use crate::error::{Error, Result, check_shape};
use crate::gpu::wait::Wait;
use crate::model::network::{Evaluation, Network};
use crate::model::state::State;
use crate::spec::config::{Direction, GruConfig};
use crate::training::dataset::{Dataset, TrainingBatch, load_batch};
use crate::training::learner::Learner;

/// The states between two batches of windows. They stay on the device.
pub(super) struct Carry {
    stride: usize,
    /// The states where the windows that follow those of the last batch start.
    state: Option<State>,
    /// The examples of the last batch.
    last: Vec<usize>,
}

/// A batch of windows and the states that it starts from; zeros if `None`.
struct CarriedBatch {
    batch: TrainingBatch,
    start: Option<State>,
}

impl Carry {
    /// Returns the states of the windows of `data` before the first batch, or `None` if its
    /// examples are independent.
    pub fn new(data: &(impl Dataset + ?Sized)) -> Option<Self> {
        let stride = data.stride()?;
        Some(Self { stride, state: None, last: Vec::new() })
    }

    /// Continues after a batch of the examples `last`, which left `state`.
    pub fn resume(&mut self, last: &[usize], state: Option<State>) {
        (self.state, self.last) = (state, last.to_vec());
    }

    /// Checks that a model can carry states from window to window.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it reads sequences from their end, and [`Error::ZeroSize`] if the
    /// windows do not advance.
    pub fn check(data: &(impl Dataset + ?Sized), config: &GruConfig) -> Result<()> {
        if data.stride() == Some(0) {
            return Err(Error::ZeroSize { what: "the stride of windows" });
        }
        if data.stride().is_some() && config.direction != Direction::Forward {
            return Err(Error::Conflict {
                what: "states carried from window to window and a GRU with a reverse direction",
                why: "the reverse direction starts at the end of a sequence; use Direction::Forward, or whole \
                      sequences as examples",
            });
        }
        Ok(())
    }

    /// Trains on a batch. Returns the states where the next windows start.
    pub async fn train(
        &mut self,
        learner: &mut Learner,
        data: &(impl Dataset + ?Sized),
        examples: &[usize],
        seed: u64,
        wait: Wait,
    ) -> Result<State> {
        let CarriedBatch { batch, start } = self.load(data, examples).await?;
        let next = self.next(learner.network(), &batch, start.as_ref(), wait).await?;
        let of_step = batch.batch().with_seed(seed);
        let last = learner.run_step_from(start.as_ref(), of_step, batch.targets(), wait).await?;
        Ok(self.end(examples, next.unwrap_or(last)))
    }

    /// Evaluates a batch. A batch without targets gives an empty evaluation.
    pub async fn evaluate(
        &mut self,
        learner: &Learner,
        data: &(impl Dataset + ?Sized),
        examples: &[usize],
        wait: Wait,
    ) -> Result<Evaluation> {
        let CarriedBatch { batch, start } = self.load(data, examples).await?;
        let (network, loss) = (learner.network(), &learner.config().loss);
        let next = self.next(network, &batch, start.as_ref(), wait).await?;
        let (of_batch, targets) = (batch.batch(), batch.targets());
        let evaluated = network.run_evaluation_from(loss, start.as_ref(), of_batch, targets, wait);
        let (evaluation, last) = match evaluated.await {
            Err(Error::NoTarget) => (Evaluation::default(), None),
            evaluated => evaluated.map(|(evaluation, last)| (evaluation, Some(last)))?,
        };
        let next = match next.or(last) {
            Some(next) => next,
            None => network.run_advance(start.as_ref(), batch.batch(), wait).await?,
        };
        self.end(examples, next);
        Ok(evaluation)
    }

    /// Computes the states after a batch that has no targets.
    pub async fn skip(
        &mut self,
        network: &Network,
        data: &(impl Dataset + ?Sized),
        examples: &[usize],
        wait: Wait,
    ) -> Result<()> {
        let CarriedBatch { batch, start } = self.load(data, examples).await?;
        let next = match self.next(network, &batch, start.as_ref(), wait).await? {
            Some(next) => next,
            None => network.run_advance(start.as_ref(), batch.batch(), wait).await?,
        };
        self.end(examples, next);
        Ok(())
    }

    /// Loads a batch. Rows that do not continue the row of the last batch are reset.
    async fn load(
        &self,
        data: &(impl Dataset + ?Sized),
        examples: &[usize],
    ) -> Result<CarriedBatch> {
        let mut batch = load_batch(data, examples)?;
        if batch.h0.is_some() {
            return Err(Error::Conflict {
                what: "a batch with first states and windows whose states are carried",
                why: "a window starts from the states of the one before; leave out h0",
            });
        }
        let continues = |(row, &example): (usize, &usize)| {
            data.continues(example) && self.last.get(row).is_some_and(|last| last + 1 == example)
        };
        let continues: Vec<_> = examples.iter().enumerate().map(continues).collect();
        let state = self.state.as_ref().filter(|_| continues.contains(&true));
        let start = match state {
            Some(state) if state.shape()[1] > examples.len() => {
                Some(state.first_rows(examples.len()).await?)
            }
            state => state.cloned(),
        };
        if start.is_some() || batch.reset_state.is_some() {
            reset_rows(&mut batch, &continues)?;
        }
        Ok(CarriedBatch { batch, start })
    }

    /// Returns the states where the next windows start, if that is inside the windows of this
    /// batch.
    async fn next(
        &self,
        network: &Network,
        batch: &TrainingBatch,
        start: Option<&State>,
        wait: Wait,
    ) -> Result<Option<State>> {
        let time = batch.layout.order(Axis(0), Axis(1))[0];
        if self.stride >= batch.x.len_of(time) {
            return Ok(None);
        }
        let mut head = batch.batch();
        let lengths = head.lengths.map(|lengths| {
            lengths.iter().map(|&length| length.min(self.stride)).collect::<Vec<_>>()
        });
        head.x.slice_axis_inplace(time, (..self.stride).into());
        if let Some(resets) = &mut head.resets {
            resets.slice_axis_inplace(time, (..self.stride).into());
        }
        head.lengths = lengths.as_deref();
        network.run_advance(start, head, wait).await.map(Some)
    }

    /// Notes the states that a batch leaves.
    fn end(&mut self, examples: &[usize], next: State) -> State {
        self.last = examples.to_vec();
        self.state.insert(next).clone()
    }
}

/// Resets the rows that do not continue before their first step.
fn reset_rows(batch: &mut TrainingBatch, continues: &[bool]) -> Result<()> {
    if continues.iter().all(|&continues| continues) {
        return Ok(());
    }
    let (first, second, _) = batch.x.dim();
    let mut resets = match batch.resets.take() {
        Some(resets) => resets,
        None => Array2::from_elem((first, second), false),
    };
    check_shape("the resets of a batch", &[first, second], resets.shape())?;
    let time = batch.layout.order(Axis(0), Axis(1))[0];
    let mut at_start = resets.index_axis_mut(time, 0);
    at_start.iter_mut().zip(continues).for_each(|(reset, &continues)| *reset |= !continues);
    batch.resets = Some(resets);
    Ok(())
}
