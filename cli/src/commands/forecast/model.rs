//! The forecaster: a GRU over the window and a linear head on its last state.

use std::ops::ControlFlow;

use gru_wgpu::{
    Checkpoint, Device, Error, Evaluation, Event, Learner, Progress, Result, StepMetrics,
    StopReason, TrainerConfig,
};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::ChaCha8Rng};

use crate::data::windows::Windows;
use crate::rundir::interrupt::Looks;

/// A GRU and a linear head in training. Its windows are made batch by batch: as a list of examples they would
/// take the series' memory as many times as a window has rows.
pub struct Forecaster {
    learner: Learner,
    config: TrainerConfig,
    /// Its loss is the sum of the batches' losses, each times its windows, and the number of batches.
    progress: Progress,
}

/// What ended training, and the windows of the update that did.
#[derive(Debug)]
pub struct Stopped {
    pub error: Error,
    pub origins: Vec<usize>,
}

impl Forecaster {
    /// Before the first epoch.
    pub fn new(learner: Learner, config: TrainerConfig) -> Self {
        Self { learner, config, progress: Progress::default() }
    }

    /// Where another one stood.
    pub fn from_checkpoint(checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let Checkpoint { state, learner_config, trainer_config, progress, .. } = checkpoint;
        let learner = Learner::resume(state, learner_config, device)?;
        Ok(Self { learner, config: trainer_config, progress })
    }

    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.learner.checkpoint(self.config, self.progress)
    }

    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Where it stands.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Windows of the epoch so far, of so many.
    pub fn seen(&self, windows: usize) -> usize {
        self.progress.batch.saturating_mul(self.config.batch).min(windows)
    }

    /// Trains on the windows at `origins` from where it stands. `listen` hears of every event, and may end it
    /// where it can go on from; an error leaves it where the last good update did.
    pub fn train(
        &mut self,
        windows: &Windows,
        origins: &[usize],
        mut listen: impl FnMut(&mut Self, &Event<'_>) -> ControlFlow<()>,
    ) -> Result<StopReason, Box<Stopped>> {
        let mut origins = origins.to_vec();
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed ^ ORDER_STREAM);
        let mut until_look = 1;
        for epoch in 0..self.config.epochs {
            // Of the epochs that are over, too: each order is made from the one before.
            origins.shuffle(&mut rng);
            if epoch < self.progress.epoch {
                continue;
            }
            let batches: Vec<_> = origins.chunks(self.config.batch).collect();
            while let Some(rest) = batches.get(self.progress.batch..).filter(|b| !b.is_empty()) {
                let look = Looks::new();
                let reports = self.updates(windows, &rest[..rest.len().min(until_look)]);
                let reports = reports.map_err(|error| {
                    let origins = batches.get(self.progress.batch).copied().unwrap_or_default();
                    Box::new(Stopped { error, origins: origins.to_vec() })
                })?;
                until_look = look.until_next(reports.len());
                if listen(self, &Event::Updates(&reports)).is_break() {
                    return Ok(StopReason::Requested);
                }
            }
            let event = self.end_epoch(origins.len());
            if listen(self, &event).is_break() {
                return Ok(StopReason::Requested);
            }
        }
        Ok(StopReason::Completed)
    }

    /// The updates of some batches. After an error the position is that of the batch which it stopped.
    fn updates(&mut self, windows: &Windows, batches: &[&[usize]]) -> Result<Vec<StepMetrics>> {
        let before = self.learner.updates();
        let stepped = batches.iter().try_for_each(|batch| {
            self.learner.step(&windows.inputs(batch), windows.targets(batch).view())
        });
        let (told, reports) = match self.learner.metrics() {
            Ok(reports) => (Ok(()), reports),
            // Those before it.
            Err(error) => (Err(error), self.learner.metrics().unwrap_or_default()),
        };
        let made = self.learner.updates().saturating_sub(before);
        self.progress.batch += usize::try_from(made).unwrap_or(usize::MAX).min(batches.len());
        for (batch, report) in batches.iter().zip(&reports) {
            self.progress.loss.0 += f64::from(report.loss) * batch.len() as f64;
            self.progress.loss.1 += 1;
        }
        // What was told of came first.
        told.and(stepped).map(|()| reports)
    }

    fn end_epoch(&mut self, windows: usize) -> Event<'static> {
        let Progress { epoch, loss: (sum, _), .. } = self.progress;
        self.progress = Progress::default();
        self.progress.epoch = epoch + 1;
        let loss = (sum / windows as f64) as f32;
        Event::Epoch { epoch, loss, validation: None, is_best: false }
    }

    /// How it does at `origins` as it is now.
    pub fn evaluate(&self, windows: &Windows, origins: &[usize]) -> Result<Evaluation> {
        let mut all = Evaluation::default();
        for batch in origins.chunks(self.config.batch) {
            all += self.learner.evaluate(&windows.inputs(batch), windows.targets(batch).view())?;
        }
        Ok(all)
    }
}

/// Told apart from the parameters' random numbers, which the seed itself gives.
const ORDER_STREAM: u64 = 0x6f72_6465;

#[cfg(test)]
mod tests {
    use gru_wgpu::{GruConfig, Head, Init, LearnerConfig, Loss, Optimizer, ParamLayout, Params};

    use super::*;
    use crate::data::windows::origins;

    fn forecaster() -> Forecaster {
        let layout = ParamLayout::with_head(&GruConfig::new(1, 6), Head::last(3)).expect("small");
        let params = Params::init_of(layout, Init::Uniform, 5).expect("small");
        let training = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.02);
        let learner = Learner::new(params, training, &Device::cpu()).expect("small");
        Forecaster::new(learner, TrainerConfig::new(8, 4).with_seed(5))
    }

    /// On a wave the loss falls far, and by the GRU's learning, not the head's alone. A run that is ended at
    /// any event goes on from a checkpoint to the same bits.
    #[test]
    fn training_lowers_the_loss_moves_both_parts_and_goes_on_from_anywhere() {
        let columns = [(0..200).map(|i| (f64::from(i) * 0.7).sin()).collect()];
        let windows = Windows::new(&columns, 200, 12, 3).expect("a wave");
        let origins: Vec<usize> = origins(12, 3, 0, 200).collect();
        let mut model = forecaster();
        let before = model.checkpoint().expect("on the CPU").state.params;
        let (mut losses, mut events) = (Vec::new(), 0);
        let ended = model.train(&windows, &origins, |model, event| {
            events += 1;
            if let Event::Epoch { loss, .. } = event {
                losses.push(*loss);
                assert_eq!(model.seen(origins.len()), 0);
            }
            ControlFlow::Continue(())
        });
        assert_eq!((ended.expect("trains"), losses.len()), (StopReason::Completed, 8));
        assert!(losses[7] < 0.2 * losses[0], "{losses:?}");
        let whole = model.checkpoint().expect("on the CPU");
        let params = |of: &Params| of.as_slice().to_vec();
        let (before, after) = (params(&before), params(&whole.state.params));
        // The flat buffer has gaps between its parts.
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert_eq!(moved, whole.state.params.layout().parameter_count());

        for stop in [1, 3, 4, 5, events - 2] {
            let (mut model, mut heard) = (forecaster(), 0);
            let ended = model.train(&windows, &origins, |_, _| {
                heard += 1;
                if heard == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert_eq!(ended.expect("trains"), StopReason::Requested);
            let checkpoint = model.checkpoint().expect("on the CPU");
            let mut model = Forecaster::from_checkpoint(checkpoint, &Device::cpu()).expect("small");
            let go_on = model.train(&windows, &origins, |_, _| ControlFlow::Continue(()));
            assert_eq!(go_on.expect("trains"), StopReason::Completed);
            assert!(model.checkpoint().expect("on the CPU") == whole, "ended at event {stop}");
        }
    }
}
