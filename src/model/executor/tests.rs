//! Runs in several chunks give the results of runs in one chunk.

use ndarray::{Array2, Array3, ArrayD, Axis, Dimension};

use super::*;
use crate::check::random3;
use crate::model::device::{Device, test_device_with_bindings};
use crate::model::gru::Gru;
use crate::model::network::Network;
use crate::spec::batch::Batch;
use crate::spec::config::{Direction, GruConfig, Layout, Reset};
use crate::spec::head::Head;
use crate::spec::loss::{Loss, Targets};
use crate::spec::optimizer::Optimizer;
use crate::spec::options::RunOptions;
use crate::spec::params::{Init, ParamLayout, Params};
use crate::training::learner::{Learner, LearnerConfig};

/// Bytes of a storage buffer binding. A run of [`STEPS`] and [`ROWS`] needs at least two chunks,
/// because y alone takes 18 KiB.
const BINDING: u64 = 16 << 10;
const STEPS: usize = 61;
const ROWS: usize = 11;

fn chunks_of(gru: &Gru, shape: Shape, mode: Mode, purpose: RunPurpose) -> Vec<Chunk> {
    let executor =
        Executor::new(gru.on_adapter().unwrap(), shape, mode, purpose, Wait::Block).unwrap();
    executor.chunks().cloned().collect()
}

fn assert_close<'a>(
    got: impl IntoIterator<Item = &'a f32>,
    expected: impl IntoIterator<Item = &'a f32>,
    case: &str,
) {
    for (at, (got, expected)) in got.into_iter().zip(expected).enumerate() {
        let bound = 1e-4 * (1.0 + expected.abs());
        assert!((got - expected).abs() < bound, "{case}: {got}, expected {expected}, at {at}");
    }
}

/// Runs a model forward and backward over a batch with all options, twice: the second run starts
/// from the states of the first. Returns all results.
fn run_all(gru: &Gru, shape: Shape) -> Vec<Array3<f32>> {
    let [h0, reset_state] = [1, 2].map(|salt| random3(shape.state(), salt));
    let lengths: Vec<_> = (0..ROWS).map(|row| [STEPS, 0, 1, STEPS / 2, 50][row % 5]).collect();
    let mut x = random3(shape.x(), 0);
    for ((i, j, _), x) in x.indexed_iter_mut() {
        let [step, row] = shape.layout.order(i, j);
        // Padding is ignored.
        *x = if step < lengths[row] { *x } else { f32::NAN };
    }
    let [outer, inner] = shape.layout.order(STEPS, ROWS);
    let resets = Array2::from_shape_fn((outer, inner), |at| {
        let [step, row] = shape.layout.order(at.0, at.1);
        // Some resets are at the borders of chunks.
        step % 7 == row || step == 0 && row == 3 || (28..34).contains(&step) && row % 2 == 0
    });
    let batch = Batch::new(x.view()).with_layout(shape.layout).with_lengths(&lengths);
    let batch = batch.with_resets(resets.view()).with_reset_state(reset_state.view());
    let batch = batch.with_seed(7);
    let inference = gru.forward(batch.with_h0(h0.view())).unwrap();
    let (first, tape) = gru.forward_train(batch.with_h0(h0.view())).unwrap();
    let state = tape.state().unwrap();
    let inference_from = gru.forward_from(&state, batch).unwrap();
    let (second, next) = gru.forward_train_from(&state, batch).unwrap();
    let (dy, dh_n) = (random3(shape.y(), 3), random3(shape.state(), 4));
    let outputs = [inference, first, inference_from, second];
    let mut all: Vec<_> = outputs.into_iter().flat_map(|output| [output.y, output.h_n]).collect();
    all.push(state.to_array().unwrap());
    for (tape, dh_n) in [(tape, Some(dh_n.view())), (next, None)] {
        let grads = gru.backward(tape, Some(dy.view()), dh_n).unwrap();
        let flat = grads.params.as_slice().to_vec();
        let params = Array3::from_shape_vec((1, 1, flat.len()), flat).unwrap();
        all.extend([params, grads.x, grads.h0, grads.reset_state]);
    }
    all
}

#[test]
fn a_run_in_chunks_gives_the_same_numbers() {
    let device = test_device_with_bindings(BINDING);
    for (direction, reset, layout, layers) in [
        (Direction::Forward, Reset::After, Layout::TimeMajor, 2),
        (Direction::Forward, Reset::Before, Layout::BatchFirst, 1),
        (Direction::Reverse, Reset::After, Layout::BatchFirst, 2),
        (Direction::Both, Reset::After, Layout::TimeMajor, 2),
        (Direction::Both, Reset::Before, Layout::BatchFirst, 1),
    ] {
        let config = GruConfig::pytorch(3, 7).with_reset(reset).with_direction(direction);
        let config = config.with_layers(layers).with_zoneout(0.2);
        let config = config.with_dropout(if layers > 1 { 0.3 } else { 0.0 });
        let shape = config.shape(STEPS, ROWS).unwrap().with_layout(layout);
        let [gru, cpu] = [&device, &Device::cpu()]
            .map(|device| Gru::new(config.clone(), Init::Uniform, 5, device).unwrap());
        for mode in [Mode::Inference, Mode::Training] {
            let chunks = chunks_of(&gru, shape, mode, RunPurpose::States);
            let by_steps = chunks.iter().all(|chunk| chunk.rows == (0..ROWS));
            assert!(chunks.len() > 1 && by_steps == (direction != Direction::Both));
        }
        let case = format!("{config}, {layout:?}");
        for (at, (got, expected)) in
            run_all(&gru, shape).iter().zip(run_all(&cpu, shape)).enumerate()
        {
            assert_eq!(got.dim(), expected.dim());
            assert_close(got, &expected, &format!("{case}, array {at}"));
        }
    }
}

#[test]
fn a_network_runs_and_trains_in_chunks() {
    let device = test_device_with_bindings(BINDING);
    for (direction, layout, head) in [
        (Direction::Forward, Layout::TimeMajor, Head::every_step(2)),
        (Direction::Reverse, Layout::BatchFirst, Head::last(3)),
        (Direction::Both, Layout::BatchFirst, Head::every_step(3)),
        (Direction::Both, Layout::TimeMajor, Head::last(2)),
    ] {
        let config = GruConfig::pytorch(3, 7).with_direction(direction);
        let shape = config.shape(STEPS, ROWS).unwrap().with_layout(layout);
        let x = random3(shape.x(), 0);
        let lengths: Vec<_> = (0..ROWS).map(|row| [STEPS, 1, 40, 50][row % 4]).collect();
        let batch = Batch::new(x.view()).with_layout(layout).with_lengths(&lengths);
        let axes = head.row_axes(shape);
        let classes = ArrayD::from_shape_fn(axes, |at| {
            at.slice().iter().sum::<usize>() as i32 % head.outputs as i32
        });
        let layout = ParamLayout::with_head(&config, head).unwrap();
        let params = Params::init_of(layout, Init::Uniform, 3).unwrap();
        let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
        let train = |device: &Device| {
            let mut learner = Learner::new(params.clone(), training, device).unwrap();
            for _ in 0..3 {
                learner.step(batch, Targets::Classes(classes.view())).unwrap();
            }
            let losses: Vec<_> = learner.metrics().unwrap().iter().map(|r| r.loss).collect();
            (losses, learner.into_network().unwrap())
        };
        let [(losses, network), (expected, on_cpu)] = [&device, &Device::cpu()].map(train);
        for (mode, purpose) in [
            (Mode::Inference, RunPurpose::Outputs),
            (Mode::Training, RunPurpose::Loss(Loss::cross_entropy())),
        ] {
            assert!(chunks_of(network.gru(), shape, mode, purpose).len() > 1);
        }
        let case = format!("{direction:?}, {head:?}");
        assert_close(&losses, &expected, &case);
        assert_close(network.params().as_slice(), on_cpu.params().as_slice(), &case);
        let [got, expected] = [&network, &on_cpu].map(|n| n.forward(batch).unwrap());
        assert_eq!(got.dim(), expected.dim());
        assert_close(&got, &expected, &case);
        let entropy = Loss::cross_entropy();
        let purpose = RunPurpose::Evaluation(entropy);
        assert!(chunks_of(network.gru(), shape, Mode::Inference, purpose).len() > 1);
        let [got, expected] = [&device, &Device::cpu()].map(|device| {
            let network = Network::new(params.clone(), device).unwrap();
            network.evaluate(&entropy, batch, Targets::Classes(classes.view())).unwrap()
        });
        assert_eq!((got.counted, got.correct), (expected.counted, expected.correct), "{case}");
        assert!((got.loss - expected.loss).abs() < 1e-5 * expected.loss, "{case}");
        let [got, expected] = [&device, &Device::cpu()].map(|device| {
            let network = Network::new(params.clone(), device).unwrap();
            let mut learner = Learner::new(params.clone(), training, device).unwrap();
            carried(&network, &mut learner, batch, &Targets::Classes(classes.view()))
        });
        for (got, expected) in got.iter().zip(&expected) {
            assert_close(got, expected, &format!("{case}, carried states"));
        }
    }
}

/// Returns the states that several runs leave, each of which starts from those of the one before.
fn carried(
    network: &Network,
    learner: &mut Learner,
    batch: Batch<'_>,
    targets: &Targets<'_>,
) -> [Array3<f32>; 4] {
    let (_, forward) = network.forward_from(None, batch).unwrap();
    let advanced = network.advance(Some(&forward), batch).unwrap();
    let entropy = Loss::cross_entropy();
    let evaluated = network.evaluate_from(&entropy, Some(&advanced), batch, targets.clone());
    let (_, evaluated) = evaluated.unwrap();
    let trained = learner.step_from(Some(&evaluated), batch, targets.clone()).unwrap();
    [forward, advanced, evaluated, trained].map(|state| state.to_array().unwrap())
}

/// A profile of a run in chunks works. A run that does not fit in chunks is refused.
#[test]
fn a_run_that_cannot_be_cut_is_refused() {
    let device = test_device_with_bindings(BINDING);
    let config = GruConfig::pytorch(3, 7).with_direction(Direction::Both);
    let gru = Gru::new(config, Init::Uniform, 5, &device).unwrap();
    let gru = gru.with_options(RunOptions::default().with_recompute(true));
    let x = random3([STEPS, ROWS, 3], 0);
    let dy = random3([STEPS, ROWS, 14], 0);
    let profile = gru.profile(x.view(), Some(dy.view())).unwrap();
    assert!(!profile.kernels.is_empty() && !profile.backward.is_zero());
    let long = Array3::zeros((1000, 1, 3));
    let error = gru.forward(&long).unwrap_err();
    assert!(matches!(error, crate::Error::Limit { .. }), "{error}");
    gru.forward(long.slice_axis(Axis(0), (..9).into())).unwrap();
}
