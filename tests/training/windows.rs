//! Long sequences, cut into windows: states pass from window to window on every device, each step
//! counts once, and a run that stops between two windows resumes to the same bits.

use std::ops::ControlFlow;

use crate::common::{assert_close, devices, random3, within};
use approx::assert_relative_eq;
use gru_wgpu::{
    Batch, Checkpoint, DataFingerprint, Dataset, Device, Direction, Error, Event, Example,
    GruConfig, Head, Init, Learner, LearnerConfig, Loss, Network, Optimizer, ParamLayout, Params,
    Result, SequenceWindows, StopReason, Target, Targets, Trainer, TrainerConfig, TrainingBatch,
};
use ndarray::{Array1, Array2, Array3, Axis, s};

const INPUTS: usize = 3;

/// A sequence with a value per step. Every seventh step has no target.
fn sequence(len: usize, seed: u64) -> Example {
    let x = random3([len, 1, INPUTS], seed).index_axis_move(Axis(1), 0);
    let target = random3([len, 1, 1], seed + 50).index_axis_move(Axis(1), 0);
    let mask: Vec<_> = (0..len).map(|t| t % 7 != 3).collect();
    Example::new(x, Target::Series(target)).with_mask(mask)
}

fn params(config: &GruConfig, head: Head) -> Params {
    let layout = ParamLayout::with_head(config, head).unwrap();
    Params::init_of(layout, Init::Uniform, 1).unwrap()
}

fn config() -> GruConfig {
    GruConfig::pytorch(INPUTS, 5).with_layers(2)
}

fn learner(optimizer: Optimizer, device: &Device) -> Learner {
    let training = LearnerConfig::new(Loss::MeanSquared, optimizer, 0.05);
    Learner::new(params(&config(), Head::every_step(1)), training, device).unwrap()
}

fn network(device: &Device) -> Network {
    Network::new(params(&config(), Head::every_step(1)), device).unwrap()
}

fn sgd() -> Optimizer {
    Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 }
}

/// The pieces of a long batch give the outputs, the evaluation and the last states of the whole.
#[test]
fn pieces_from_carried_states_equal_the_whole() {
    for device in devices() {
        let network = network(&device);
        let (x, values) = (random3([23, 3, INPUTS], 1), random3([23, 3, 1], 2));
        let lengths = [23, 17, 9];
        let whole = network.forward(Batch::new(x.view()).with_lengths(&lengths)).unwrap();
        let batch = Batch::new(x.view()).with_lengths(&lengths);
        let expected = network.evaluate(&Loss::MeanSquared, batch, values.view()).unwrap();
        let (mut state, mut advanced) = (None, None);
        let (mut sum, mut counted) = (0.0, 0);
        for start in [0, 7, 14, 21] {
            let end = (start + 7).min(23);
            let piece = x.slice(s![start..end, .., ..]);
            let lengths = lengths.map(|length: usize| length.clamp(start, end) - start);
            let batch = Batch::new(piece.view()).with_lengths(&lengths);
            let (outputs, last) = network.forward_from(state.as_ref(), batch).unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                let part = s![..length, row, ..];
                let expected = whole.slice(s![start..end, .., ..]);
                assert_close(
                    "the outputs",
                    outputs.slice(part),
                    expected.slice(part),
                    within(1e-6),
                );
            }
            let of_piece = values.slice(s![start..end, .., ..]);
            let (evaluation, from) =
                network.evaluate_from(&Loss::MeanSquared, state.as_ref(), batch, of_piece).unwrap();
            sum += evaluation.loss * evaluation.counted as f64;
            counted += evaluation.counted;
            let only = network.advance(advanced.as_ref(), batch).unwrap();
            let [last_states, from, only_states] =
                [&last, &from, &only].map(|state| state.to_array().unwrap());
            assert_eq!(last_states, from, "on {device}");
            assert_close("the states", &last_states, &only_states, within(1e-6));
            (state, advanced) = (Some(last), Some(only));
        }
        assert_eq!(counted, expected.counted);
        assert_relative_eq!(sum / counted as f64, expected.loss, max_relative = 1e-5);
    }
}

/// One row, windows that follow each other: the trainer makes the same updates as a loop over
/// `step_from`, and both equal windows whose first states are given.
#[test]
fn a_run_over_windows_carries_the_states() {
    for device in devices() {
        let sequence = sequence(23, 1);
        let data = SequenceWindows::every_step(vec![sequence.clone()], 6, 6).unwrap();
        // By hand, from the first window to the last.
        let mut by_hand = learner(sgd(), &device);
        let mut by_arrays = learner(sgd(), &device);
        let mut state = None;
        let mut h0: Option<Array3<f32>> = None;
        for index in 0..data.len() {
            let batch = data.batch(&[index]).unwrap();
            let of_step = batch.batch();
            let last = by_hand.step_from(state.as_ref(), of_step, batch.targets()).unwrap();
            let of_step = batch.batch().with_h0(h0.as_ref().map(|h0| h0.view()));
            by_arrays.step(of_step, batch.targets()).unwrap();
            h0 = Some(last.to_array().unwrap());
            state = Some(last);
        }
        assert_eq!(by_hand.params().unwrap(), by_arrays.params().unwrap(), "on {device}");

        // The order of an epoch of one row is rotated, so give the rows in the trainer's order.
        let mut trainer =
            Trainer::new(learner(sgd(), &device), TrainerConfig::new(1, 1).with_seed(4)).unwrap();
        let recorder = Recorder::new(data.clone());
        trainer.run(&recorder, &[] as &[Example], go_on).unwrap();
        let order = recorder.order.into_inner().concat();
        assert_eq!(order.len(), data.len());
        let mut expected = learner(sgd(), &device);
        let mut state = None;
        for (at, &index) in order.iter().enumerate() {
            let continues = at > 0 && order[at - 1] + 1 == index;
            let start = state.as_ref().filter(|_| continues);
            let batch = data.batch(&[index]).unwrap();
            state = Some(expected.step_from(start, batch.batch(), batch.targets()).unwrap());
        }
        let got = trainer.learner().params().unwrap();
        assert_eq!(got, expected.params().unwrap(), "on {device}");
        // And states were carried at all.
        let mut from_zeros = learner(sgd(), &device);
        for &index in &order {
            let batch = data.batch(&[index]).unwrap();
            from_zeros.step(batch.batch(), batch.targets()).unwrap();
        }
        assert_ne!(got, from_zeros.params().unwrap());
    }
}

/// In a batch some rows continue and others start a sequence. With a learning rate of almost 0, the
/// loss of each batch is that of its windows after all steps before them in their row.
#[test]
fn rows_that_start_a_sequence_start_from_zeros() {
    for device in devices() {
        let sequences = vec![sequence(20, 1), sequence(8, 2), sequence(13, 3), sequence(4, 4)];
        let data = Recorder::new(SequenceWindows::every_step(sequences, 4, 3).unwrap());
        let training = LearnerConfig::new(Loss::MeanSquared, sgd(), 1e-30);
        let params = params(&config(), Head::every_step(1));
        let learner = Learner::new(params.clone(), training, &device).unwrap();
        let mut trainer = Trainer::new(learner, TrainerConfig::new(1, 3)).unwrap();
        let mut losses = Vec::new();
        let listen = |_: &mut Trainer, event: &Event<'_>| {
            if let Event::Updates(metrics) = event {
                losses.extend(metrics.iter().map(|metrics| metrics.loss));
            }
            Ok(ControlFlow::Continue(()))
        };
        trainer.run(&data, &[] as &[Example], listen).unwrap();
        let network = Network::new(params, &Device::cpu()).unwrap();
        let batches = data.order.borrow();
        let is_mixed = |batch: &Vec<usize>| {
            batch.iter().any(|&index| data.continues(index))
                && batch.iter().any(|&index| !data.continues(index))
        };
        assert!(batches.iter().skip(1).any(is_mixed));
        assert_eq!(losses.len(), batches.len());
        for (at, &loss) in losses.iter().enumerate() {
            let rows =
                (0..batches[at].len()).map(|row| squares(&data, &network, &batches, at, row));
            let squares: Vec<_> = rows.flatten().collect();
            let expected = squares.iter().sum::<f32>() / squares.len() as f32;
            assert_relative_eq!(loss, expected, max_relative = 1e-4);
        }
    }
}

/// Returns the squared errors of the counted steps of a row of a batch.
fn squares(
    data: &Recorder,
    network: &Network,
    batches: &[Vec<usize>],
    at: usize,
    row: usize,
) -> Vec<f32> {
    let continues = |at: usize| {
        at > 0 && data.continues(batches[at][row]) && batches[at - 1][row] + 1 == batches[at][row]
    };
    let mut first = at;
    while continues(first) {
        first -= 1;
    }
    let (sequence, steps) = data.data.window(batches[at][row]);
    let start = data.data.window(batches[first][row]).1.start;
    let x = data.data.sequences()[sequence].x.slice(s![start..steps.end, ..]);
    let outputs = network.forward(x.insert_axis(Axis(1))).unwrap();
    let batch = data.data.batch(&[batches[at][row]]).unwrap();
    let Targets::Masked { targets, mask } = batch.targets() else { panic!("no mask") };
    let Targets::Values(values) = *targets else { panic!("no values") };
    let counted = (0..steps.len()).filter(|&t| mask[[t, 0]]);
    let output = |t: usize| outputs[[steps.start - start + t, 0, 0]];
    counted.map(|t| (output(t) - values[[t, 0, 0]]).powi(2)).collect()
}

/// Notes the examples of each batch.
struct Recorder {
    data: SequenceWindows,
    order: std::cell::RefCell<Vec<Vec<usize>>>,
}

impl Recorder {
    fn new(data: SequenceWindows) -> Self {
        Self { data, order: Default::default() }
    }
}

impl Dataset for Recorder {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn steps(&self, index: usize) -> usize {
        Dataset::steps(&self.data, index)
    }

    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
        self.order.borrow_mut().push(examples.to_vec());
        self.data.batch(examples)
    }

    fn fingerprint(&self) -> DataFingerprint {
        self.data.fingerprint()
    }

    fn has_target(&self, index: usize, loss: &Loss) -> bool {
        self.data.has_target(index, loss)
    }

    fn stride(&self) -> Option<usize> {
        Dataset::stride(&self.data)
    }

    fn continues(&self, index: usize) -> bool {
        self.data.continues(index)
    }
}

fn go_on(_: &mut Trainer, _: &Event<'_>) -> Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

/// With a learning rate of almost 0, overlapping windows have the losses of the whole sequence.
#[test]
fn each_step_of_overlapping_windows_counts_once_and_starts_from_its_own_state() {
    for device in devices() {
        let sequences = vec![sequence(29, 1), sequence(11, 2), sequence(1, 3), sequence(16, 4)];
        let windows = SequenceWindows::every_step(sequences.clone(), 8, 5).unwrap();
        let training = LearnerConfig::new(Loss::MeanSquared, sgd(), 1e-30);
        let learner =
            Learner::new(params(&config(), Head::every_step(1)), training, &device).unwrap();
        let mut trainer = Trainer::new(learner, TrainerConfig::new(1, 3)).unwrap();
        let (got, expected) =
            (trainer.evaluate(&windows).unwrap(), trainer.evaluate(&sequences).unwrap());
        assert_eq!(got.counted, expected.counted);
        assert_relative_eq!(got.loss, expected.loss, max_relative = 1e-5);
        let mut validation = None;
        let listen = |_: &mut Trainer, event: &Event<'_>| {
            if let Event::Epoch { validation: of_epoch, .. } = event {
                validation = *of_epoch;
            }
            Ok(ControlFlow::Continue(()))
        };
        trainer.run(&windows, &windows, listen).unwrap();
        let validation = validation.unwrap();
        assert_eq!(validation.counted, expected.counted);
        assert_relative_eq!(validation.loss, expected.loss, max_relative = 1e-5);
    }
}

/// A batch may lack targets. It makes no update, but the states pass through it.
#[test]
fn windows_without_targets_carry_their_states() {
    for device in devices() {
        let mask = (0..24).map(|t| t >= 18).collect::<Vec<_>>();
        let sequences = vec![sequence(24, 1).with_mask(mask)];
        for stride in [3, 2] {
            let windows = SequenceWindows::every_step(sequences.clone(), 3, stride).unwrap();
            let data = Recorder::new(windows.clone());
            let config = TrainerConfig::new(1, 1).with_seed(4);
            let mut trainer = Trainer::new(learner(sgd(), &device), config).unwrap();
            trainer.run(&data, &[] as &[Example], go_on).unwrap();
            let order = data.order.into_inner().concat();
            let has_target = |index: usize| windows.has_target(index, &Loss::MeanSquared);
            assert!(!has_target(order[0]), "the epoch starts with windows that lack targets");
            let (mut expected, mut state) = (learner(sgd(), &device), None);
            for &index in &order {
                let batch = windows.batch(&[index]).unwrap();
                let head =
                    batch.batch().x.slice_move(s![..stride.min(windows.steps(index)), .., ..]);
                let network = Network::new(expected.params().unwrap(), &device).unwrap();
                let next = network.advance(state.as_ref(), head).unwrap();
                if has_target(index) {
                    expected.step_from(state.as_ref(), batch.batch(), batch.targets()).unwrap();
                }
                state = Some(next);
            }
            let got = trainer.learner().params().unwrap();
            assert_eq!(got, expected.params().unwrap(), "on {device}");
        }
    }
}

/// The same in validation.
#[test]
fn windows_without_targets_carry_their_states_in_validation() {
    for device in devices() {
        let mask = (0..20).map(|t| !(4..=12).contains(&t)).collect::<Vec<_>>();
        let sequences = vec![sequence(20, 1).with_mask(mask)];
        let trainer = Trainer::new(learner(sgd(), &device), TrainerConfig::new(1, 3)).unwrap();
        let expected = trainer.evaluate(&sequences).unwrap();
        assert_eq!(expected.counted, 4 + 7);
        for (window, stride) in [(4, 4), (6, 3)] {
            let windows = SequenceWindows::every_step(sequences.clone(), window, stride).unwrap();
            let has_target = |at: usize| windows.has_target(at, &Loss::MeanSquared);
            assert!((0..windows.len()).any(|at| !has_target(at)), "some windows lack targets");
            let got = trainer.evaluate(&windows).unwrap();
            assert_eq!(got.counted, expected.counted);
            assert_relative_eq!(got.loss, expected.loss, max_relative = 1e-5);
        }
    }
}

#[test]
fn a_run_that_stops_between_two_windows_resumes_bit_for_bit() {
    for device in devices() {
        let dropout = config().with_dropout(0.3);
        let windows = || {
            let all = vec![sequence(40, 1), sequence(9, 2), sequence(25, 3)];
            SequenceWindows::every_step(all, 6, 4).unwrap()
        };
        let trainer = || {
            let training =
                LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.05).with_accumulation(2);
            let params = params(&dropout, Head::every_step(1));
            let learner = Learner::new(params, training, &device).unwrap();
            Trainer::new(learner, TrainerConfig::new(2, 2)).unwrap()
        };
        let mut whole = trainer();
        whole.run(&windows(), &windows(), go_on).unwrap();
        let mut stopped = trainer();
        stopped.metrics_every(1);
        for stop_after in [1, 2, 4] {
            let mut updates = 0;
            let listen = |_: &mut Trainer, event: &Event<'_>| {
                updates += usize::from(matches!(event, Event::Updates(_)));
                Ok(match updates < stop_after {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                })
            };
            let ended = stopped.run(&windows(), &windows(), listen).unwrap();
            assert_eq!(ended, StopReason::Requested);
            let bytes = stopped.checkpoint().unwrap().to_bytes().unwrap();
            let checkpoint = Checkpoint::from_bytes(&bytes).unwrap();
            assert!(checkpoint.carried.is_some() || checkpoint.progress.batch == 0);
            assert_eq!(checkpoint, stopped.checkpoint().unwrap());
            stopped = Trainer::from_checkpoint(checkpoint, &device).unwrap();
            stopped.metrics_every(1);
        }
        stopped.run(&windows(), &windows(), go_on).unwrap();
        assert_eq!(stopped.checkpoint().unwrap(), whole.checkpoint().unwrap(), "on {device}");
    }
}

#[test]
fn only_the_steps_of_a_mask_count() {
    for device in devices() {
        let network = network(&device);
        let (x, values) = (random3([5, 2, INPUTS], 1), random3([5, 2, 1], 2));
        let mask = Array2::from_shape_fn((5, 2), |(t, b)| t == 4 || (t, b) == (1, 0));
        let targets = Targets::from(values.view()).with_mask(mask.view().into_dyn());
        let got = network.evaluate(&Loss::MeanSquared, &x, targets.clone()).unwrap();
        let outputs = network.forward(&x).unwrap();
        let counted = mask.indexed_iter().filter(|(_, counts)| **counts);
        let squares = counted.map(|((t, b), _)| (outputs[[t, b, 0]] - values[[t, b, 0]]).powi(2));
        let squares: Array1<f32> = squares.collect();
        assert_eq!(got.counted, 3);
        assert_relative_eq!(got.loss, f64::from(squares.mean().unwrap()), max_relative = 1e-5);
        // Masks in masks: both must be true.
        let other = Array2::from_shape_fn((5, 2), |(t, _)| t < 4);
        let both = targets.with_mask(other.view().into_dyn());
        assert_eq!(network.evaluate(&Loss::MeanSquared, &x, both).unwrap().counted, 1);
        let none = Array2::from_elem((5, 2), false);
        let none = Targets::from(values.view()).with_mask(none.view().into_dyn());
        let refused = network.evaluate(&Loss::MeanSquared, &x, none).unwrap_err();
        assert_eq!(refused, Error::NoTarget);
        let short = Array2::from_elem((4, 2), true);
        let short = Targets::from(values.view()).with_mask(short.view().into_dyn());
        let refused = network.evaluate(&Loss::MeanSquared, &x, short).unwrap_err();
        assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    }
}

/// The gradients of masked targets are those of the steps that count.
#[test]
fn a_masked_step_has_no_gradient() {
    for device in devices() {
        let x = random3([6, 1, INPUTS], 1);
        let mask = Array2::from_shape_fn((6, 1), |(t, _)| t < 4);
        let gradient = |steps: usize, values: Array3<f32>, mask: Option<&Array2<bool>>| {
            let mut learner = learner(sgd(), &device);
            let targets = Targets::from(values.view());
            let targets = match mask {
                Some(mask) => targets.with_mask(mask.view().into_dyn()),
                None => targets,
            };
            learner.accumulate(x.slice(s![..steps, .., ..]), targets).unwrap();
            learner.gradient().unwrap().params
        };
        let mut values = random3([6, 1, 1], 2);
        values[[5, 0, 0]] = f32::NAN; // not read
        let expected = gradient(4, values.slice(s![..4, .., ..]).to_owned(), None);
        let got = gradient(6, values, Some(&mask));
        let pairs = got.as_slice().iter().zip(expected.as_slice());
        pairs.for_each(|(got, expected)| assert_relative_eq!(got, expected, epsilon = 1e-6));
    }
}

#[test]
fn what_cannot_be_carried_is_refused() {
    let device = Device::cpu();
    let windows = SequenceWindows::every_step(vec![sequence(9, 1)], 3, 3).unwrap();
    for direction in [Direction::Both, Direction::Reverse] {
        let config = config().with_direction(direction);
        let training = LearnerConfig::new(Loss::MeanSquared, sgd(), 0.1);
        let params = params(&config, Head::every_step(1));
        let learner = Learner::new(params, training, &device).unwrap();
        let mut trainer = Trainer::new(learner, TrainerConfig::new(1, 1)).unwrap();
        let refused = trainer.run(&windows, &windows, go_on).unwrap_err();
        assert!(refused.to_string().contains("reverse direction"), "{refused}");
    }
    let mut learner = learner(sgd(), &device);
    let batch = windows.batch(&[0]).unwrap();
    let state = learner.step_from(None, batch.batch(), batch.targets()).unwrap();
    let two = Dataset::batch(&windows, &[0, 1]).unwrap();
    let refused = learner.step_from(Some(&state), two.batch(), two.targets()).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    let h0 = Array3::zeros((2, 1, 5));
    let both = batch.batch().with_h0(h0.view());
    let refused = learner.step_from(Some(&state), both, batch.targets()).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
}
