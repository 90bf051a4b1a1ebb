//! Training over all kinds of data sets: batches, the loss of an epoch, and the async calls.

use std::ops::ControlFlow;

use crate::common::{devices, random3};
use gru_wgpu::{
    DataFingerprint, Dataset, Device, Error, Event, Example, GruConfig, Head, Init, Layout,
    Learner, LearnerConfig, Loss, Optimizer, Order, ParamLayout, Params, Result, StopReason,
    Target, Trainer, TrainerConfig, TrainingBatch,
};
use ndarray::{Array2, Axis};
use pollster::block_on;

const EXAMPLES: usize = 21;
const STEPS: usize = 5;

/// Sequences of one length with a target per step: as examples in memory, and as rows of an array.
struct Rows;

impl Rows {
    fn x(&self, index: usize) -> Array2<f32> {
        random3([STEPS, 1, 3], index as u64).index_axis_move(Axis(1), 0)
    }

    fn target(&self, index: usize) -> Array2<f32> {
        random3([STEPS, 1, 2], 100 + index as u64).index_axis_move(Axis(1), 0)
    }

    fn examples(&self) -> Vec<Example> {
        let example = |index| Example::new(self.x(index), Target::Series(self.target(index)));
        (0..EXAMPLES).map(example).collect()
    }
}

impl Dataset for Rows {
    fn len(&self) -> usize {
        EXAMPLES
    }

    fn steps(&self, _: usize) -> usize {
        STEPS
    }

    /// Batch-first, without padding.
    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
        let stack = |rows: Vec<Array2<f32>>| {
            let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
            ndarray::stack(Axis(0), &views).unwrap()
        };
        let x = stack(examples.iter().map(|&index| self.x(index)).collect());
        let targets = stack(examples.iter().map(|&index| self.target(index)).collect());
        Ok(TrainingBatch::new(x, targets).with_layout(Layout::BatchFirst))
    }

    fn fingerprint(&self) -> DataFingerprint {
        DataFingerprint::of_numbers(EXAMPLES, [1, 2, 3])
    }
}

fn learner(head: Head, loss: Loss, device: &Device) -> Learner {
    let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 6), head).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    Learner::new(params, LearnerConfig::new(loss, Optimizer::adam(), 0.02), device).unwrap()
}

fn trainer(config: TrainerConfig, device: &Device) -> Trainer {
    Trainer::new(learner(Head::every_step(2), Loss::MeanSquared, device), config).unwrap()
}

fn continue_training(_: &mut Trainer, _: &Event<'_>) -> Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

/// Returns the losses of the epochs, and the final parameters.
fn trained<D: Dataset + ?Sized>(data: &D, order: Order, device: &Device) -> (Vec<f32>, Vec<f32>) {
    let mut trainer = trainer(TrainerConfig::new(3, 4).with_order(order), device);
    let mut losses = Vec::new();
    let listen = |_: &mut Trainer, event: &Event<'_>| {
        if let Event::Epoch { loss, .. } = event {
            losses.push(*loss);
        }
        Ok(ControlFlow::Continue(()))
    };
    trainer.run(data, data, listen).unwrap();
    let params = trainer.learner().params().unwrap().as_slice().to_vec();
    (losses, params)
}

#[test]
fn a_custom_data_set_trains_like_the_same_examples() {
    for device in devices() {
        for order in [Order::Bucketed, Order::Shuffled] {
            let (losses, params) = trained(&Rows, order, &device);
            let (expected, expected_params) = trained(&Rows.examples(), order, &device);
            assert!(losses.len() == 3 && losses[2] < losses[0], "{losses:?}");
            let pairs = losses.iter().zip(&expected).chain(params.iter().zip(&expected_params));
            let farthest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Padded examples have three more steps: other tiles, other rounding.
            assert!(farthest < 1e-4, "{farthest} on {device}");
        }
    }
}

/// A batch with every optional part, and the same batch passed to a learner directly.
struct Everything;

impl Dataset for Everything {
    fn len(&self) -> usize {
        2
    }

    fn steps(&self, _: usize) -> usize {
        STEPS
    }

    fn batch(&self, _: &[usize]) -> Result<TrainingBatch> {
        let mut resets = Array2::from_elem((STEPS, 2), false);
        resets[[2, 1]] = true;
        let batch = TrainingBatch::new(random3([STEPS, 2, 3], 1), random3([STEPS, 2, 2], 2));
        Ok(batch
            .with_h0(random3([1, 2, 6], 3))
            .with_lengths(vec![STEPS, 4])
            .with_resets(resets)
            .with_reset_state(random3([1, 2, 6], 4)))
    }

    fn fingerprint(&self) -> DataFingerprint {
        DataFingerprint::of_numbers(2, [])
    }
}

#[test]
fn a_batch_supports_every_learner_input() {
    let made = Everything.batch(&[0, 1]).unwrap();
    let plain = TrainingBatch::new(made.x.clone(), random3([STEPS, 2, 2], 2));
    for device in devices() {
        let mut by_hand = trainer(TrainerConfig::new(1, 2), &device);
        by_hand.learner().step(made.batch(), made.targets()).unwrap();
        let expected = by_hand.learner().params().unwrap();
        let mut now = trainer(TrainerConfig::new(1, 2), &device);
        now.run(&Everything, &[], continue_training).unwrap();
        assert_eq!(now.learner().params().unwrap(), expected);
        // Each of them has an effect.
        let mut without = trainer(TrainerConfig::new(1, 2), &device);
        without.learner().step(plain.batch(), plain.targets()).unwrap();
        assert_ne!(without.learner().params().unwrap(), expected);
    }
}

/// Each example has the same weight, also in the last, smaller batch.
#[test]
fn the_loss_of_an_epoch_is_the_mean_over_its_examples() {
    let examples = Rows.examples();
    let mut learner = learner(Head::every_step(2), Loss::MeanSquared, &Device::cpu());
    // So slow that the network hardly changes.
    let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 1e-12);
    learner = Learner::resume(learner.state().unwrap(), config, &Device::cpu()).unwrap();
    let mut trainer = Trainer::new(learner, TrainerConfig::new(1, 4)).unwrap();
    let expected = trainer.evaluate(&examples).unwrap().loss;
    let (mut loss, mut seen) = (0.0, Vec::new());
    trainer.metrics_every(2);
    let listen = |trainer: &mut Trainer, event: &Event<'_>| {
        match event {
            Event::Epoch { loss: mean, .. } => loss = f64::from(*mean),
            _ => seen.push(trainer.progress()),
        }
        Ok(ControlFlow::Continue(()))
    };
    trainer.run(&examples, &[], listen).unwrap();
    let last = seen.last().unwrap();
    assert_eq!((seen.len(), last.batch, last.examples), (3, 6, EXAMPLES));
    assert!((last.mean_loss() - loss).abs() < 1e-6, "{last:?}, {loss}");
    assert!((loss - expected).abs() < 1e-6 * expected, "{loss}, expected {expected}");
}

#[test]
fn async_training_ends_with_the_same_bits() {
    let (examples, valid) = (Rows.examples(), &Rows.examples()[..7]);
    for device in devices() {
        let config = TrainerConfig::new(3, 4);
        let mut whole = trainer(config, &device);
        whole.run(&examples, valid, continue_training).unwrap();
        let expected = (whole.evaluate(valid).unwrap(), whole.best().cloned().unwrap());

        let other = block_on(async {
            let mut now = trainer(config, &device);
            let mut events = 0;
            // The listener may be async too.
            let listen = async |now: &mut Trainer, event: &Event<'_>| {
                events += 1;
                assert_eq!(now.learner().state_async().await?.params.layout().entries().len(), 6);
                let is_over = matches!(event, Event::Epoch { epoch: 1, .. });
                Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            };
            let ended = now.run_async(&examples, valid, listen).await.unwrap();
            assert_eq!((ended, events), (StopReason::Requested, 8));
            let listen = async |_: &mut Trainer, _: &Event<'_>| Ok(ControlFlow::Continue(()));
            let ended = now.run_async(&examples, valid, listen).await.unwrap();
            assert_eq!(ended, StopReason::Completed);
            let evaluation = now.evaluate_async(valid).await.unwrap();
            let best = now.best().cloned().unwrap();
            let network = now.into_network_async(&device).await.unwrap();
            assert_eq!(network.params(), &best.params);
            (evaluation, best)
        });
        assert_eq!(other, expected, "on {device}");
    }
}

/// A target that does not fit its example is an error in every call.
#[test]
fn targets_that_do_not_fit_are_refused_by_every_call() {
    let target = Target::Series(Array2::zeros((9, 2)));
    let long = [Example::new(Array2::zeros((3, 3)), target)];
    let mut now = trainer(TrainerConfig::new(1, 2), &Device::cpu());
    assert!(matches!(now.evaluate(&long), Err(Error::Shape { .. })));
    assert!(matches!(now.run(&long, &[], continue_training), Err(Error::Shape { .. })));
    assert!(matches!(long.batch(&[0]), Err(Error::Shape { .. })));
    assert!(matches!(long.batch(&[1]), Err(Error::Setting { .. })));
    let wide = [Example::new(Array2::zeros((3, 3)), Target::Series(Array2::zeros((3, 4))))];
    let both = [Rows.examples().remove(0), wide[0].clone()];
    assert!(matches!(both.batch(&[0, 1]), Err(Error::Shape { .. })));
    assert!(long.batch(&[]).unwrap().x.is_empty());
}

/// Returns one row too many.
struct Lies;

impl Dataset for Lies {
    fn len(&self) -> usize {
        Rows.len()
    }

    fn steps(&self, _: usize) -> usize {
        STEPS
    }

    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
        Rows.batch(&[examples, &examples[..1]].concat())
    }

    fn fingerprint(&self) -> DataFingerprint {
        Rows.fingerprint()
    }
}

#[test]
fn a_batch_has_a_row_for_each_example() {
    for device in devices() {
        let mut trainer = trainer(TrainerConfig::new(2, 4), &device);
        let refused = trainer.run(&Lies, &Rows, continue_training).unwrap_err();
        assert!(matches!(refused, Error::Shape { .. }), "{refused}");
        assert_eq!(trainer.learner().updates(), 0);
        let refused = trainer.evaluate(&Lies).unwrap_err();
        assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    }
}

#[test]
fn a_position_past_the_epoch_is_refused() {
    let mut trainer = trainer(TrainerConfig::new(2, 4), &Device::cpu());
    let mut progress = trainer.progress();
    progress.batch = 77;
    let (config, state) = (*trainer.config(), trainer.learner().state().unwrap());
    let learner = Learner::resume(state, *trainer.learner().config(), &Device::cpu()).unwrap();
    let mut trainer = Trainer::resume(learner, config, progress, None).unwrap();
    let refused = trainer.run(&Rows, &Rows, continue_training).unwrap_err();
    assert!(matches!(refused, Error::Setting { .. }), "{refused}");
}
