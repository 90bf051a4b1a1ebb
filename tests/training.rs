//! Training: every loss, optimiser and way to clip, on the adapter as on the CPU.

mod common;

use common::{adapter, devices, random3};
use gru_wgpu::{
    Batch, Clip, Device, Direction, Error, GruConfig, Head, Init, Layout, Learner, Loss, Optimizer,
    ParamLayout, Params, Schedule, Targets, Training,
};
use ndarray::{Array2, Array3, ArrayD, Dimension, IxDyn};

/// A task of odd sizes: T 9, B 5, I 3, H 7, C 4.
struct Task {
    config: GruConfig,
    head: Head,
    layout: Layout,
    lengths: Option<[usize; 5]>,
    training: Training,
}

const SIZES: [usize; 4] = [9, 5, 3, 4];

impl Task {
    fn new(head: Head, training: Training) -> Self {
        let config = GruConfig::pytorch(SIZES[2], 7);
        Self { config, head, layout: Layout::TimeMajor, lengths: None, training }
    }

    fn params(&self) -> Params {
        let layout = ParamLayout::with_head(&self.config, self.head).unwrap();
        Params::init_of(layout, Init::Uniform, 3).unwrap()
    }

    fn x(&self, seed: u64) -> Array3<f32> {
        let [steps, batch, input, _] = SIZES;
        match self.layout {
            Layout::TimeMajor => random3([steps, batch, input], seed),
            Layout::BatchFirst => random3([batch, steps, input], seed),
        }
    }

    fn axes(&self) -> Vec<usize> {
        let [steps, batch, ..] = SIZES;
        match (self.head == Head::last(SIZES[3]), self.layout) {
            (true, _) => vec![batch],
            (false, Layout::TimeMajor) => vec![steps, batch],
            (false, Layout::BatchFirst) => vec![batch, steps],
        }
    }

    fn step(&self, learner: &mut Learner, seed: u64) -> gru_wgpu::Result<()> {
        let x = self.x(seed);
        let mut batch = Batch::new(x.view()).with_layout(self.layout);
        batch.lengths = self.lengths.as_ref().map(|lengths| &lengths[..]);
        let mut axes = self.axes();
        match self.training.loss {
            Loss::CrossEntropy { .. } => {
                // The last class is the ignored one.
                let classes = ArrayD::from_shape_fn(IxDyn(&axes), |at| {
                    let sum: usize = (0..at.ndim()).map(|i| (3 * i + 2) * at[i]).sum();
                    [0, 1, 2, 3, -100][(sum + seed as usize) % 5]
                });
                learner.step(batch, Targets::Classes(classes.view()))
            }
            _ => {
                axes.push(SIZES[3]);
                let values = ArrayD::from_shape_fn(IxDyn(&axes), |at| {
                    let sum: usize = (0..at.ndim()).map(|i| (5 * i + 3) * at[i]).sum();
                    (sum + seed as usize) as f32 * 0.7 % 3.0 - 1.5
                });
                learner.step(batch, Targets::Values(values.view()))
            }
        }
    }

    fn learner(&self, device: &Device) -> Learner {
        Learner::new(self.params(), self.training, device).unwrap()
    }
}

/// Every loss over both kinds of head, every optimiser, every way to clip, some of it in other layouts.
fn tasks() -> Vec<(&'static str, Task)> {
    let sgd = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.01 };
    let cosine = Schedule::Cosine { warmup: 2, updates: 6, last: 0.1 };
    let [every, last] = [Head::every_step(SIZES[3]), Head::last(SIZES[3])];
    let lengths = Some([9, 0, 4, 1, 9]);
    let two_ways = GruConfig::pytorch(SIZES[2], 7).with_layers(2).with_direction(Direction::Both);
    let mean_squared = |optimizer, rate| Training::new(Loss::MeanSquared, optimizer, rate);
    let huber = Training::new(Loss::Huber { delta: 0.6 }, Optimizer::adam(), 0.01);
    let entropy = Training::new(Loss::cross_entropy(), Optimizer::adamw(0.05), 0.01);
    vec![
        ("plain descent", Task::new(every, mean_squared(Optimizer::sgd(), 0.1))),
        (
            "momentum, bounded norm",
            Task { lengths, ..Task::new(every, mean_squared(sgd, 0.1).with_clip(Clip::Norm(0.2))) },
        ),
        (
            "Huber, bounded values, batch-first",
            Task {
                layout: Layout::BatchFirst,
                lengths,
                ..Task::new(every, huber.with_clip(Clip::Value(0.01)))
            },
        ),
        (
            "Huber of the last states",
            Task {
                config: two_ways.clone(),
                lengths,
                ..Task::new(last, huber.with_schedule(cosine))
            },
        ),
        (
            "cross-entropy, two batches an update",
            Task {
                config: two_ways,
                layout: Layout::BatchFirst,
                lengths,
                ..Task::new(every, entropy.with_accumulation(2))
            },
        ),
        ("cross-entropy of the last states", Task::new(last, entropy)),
    ]
}

#[test]
fn the_adapter_trains_as_the_cpu() {
    let device = adapter();
    for (name, task) in tasks() {
        let [mut adapter, mut cpu] = [device, &Device::cpu()].map(|device| task.learner(device));
        for seed in 0..6 {
            task.step(&mut adapter, seed).unwrap();
            task.step(&mut cpu, seed).unwrap();
        }
        let (got, expected) = (adapter.reports().unwrap(), cpu.reports().unwrap());
        assert_eq!(got.len(), 6 / task.training.accumulation, "{name}");
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got.step, expected.step, "{name}");
            let close = |a: f32, b: f32| (a - b).abs() <= 2e-5 * b.abs().max(1.0);
            assert!(close(got.loss, expected.loss), "{name}: {got:?}, expected {expected:?}");
            assert!(close(got.norm, expected.norm), "{name}: {got:?}, expected {expected:?}");
        }
        let (got, expected) = (adapter.state().unwrap(), cpu.state().unwrap());
        assert_eq!(got.moments.steps, expected.moments.steps);
        let started = task.params();
        let mut moved = 0;
        for (i, (&a, &b)) in
            got.params.as_slice().iter().zip(expected.params.as_slice()).enumerate()
        {
            assert!((a - b).abs() < 2e-4, "{name}: element {i} is {a}, expected {b}");
            moved += usize::from(b != started.as_slice()[i]);
        }
        assert_eq!(moved, started.layout().parameter_count(), "{name}");
        let x = task.x(9);
        let batch = || Batch::new(x.view()).with_layout(task.layout);
        let (got, expected) = (adapter.forward(batch()).unwrap(), cpu.forward(batch()).unwrap());
        assert_eq!(got.shape(), expected.shape());
        let network = adapter.into_network().unwrap();
        let after = network.forward(batch()).unwrap();
        for ((&a, &b), &c) in got.iter().zip(&expected).zip(&after) {
            assert!((a - b).abs() < 2e-4 && a == c, "{name}: {a}, {b}, {c}");
        }
    }
}

/// On both devices: what goes on from a state is the same to the bit as what was not interrupted.
#[test]
fn what_is_resumed_is_as_if_it_had_not_been_interrupted() {
    for device in devices() {
        let (_, task) = tasks().swap_remove(3);
        let mut whole = task.learner(&device);
        let mut first = task.learner(&device);
        for seed in 0..5 {
            task.step(&mut whole, seed).unwrap();
        }
        for seed in 0..2 {
            task.step(&mut first, seed).unwrap();
        }
        let state = first.state().unwrap();
        drop(first);
        let mut second = Learner::resume(state, task.training, &device).unwrap();
        for seed in 2..5 {
            task.step(&mut second, seed).unwrap();
        }
        assert_eq!(second.updates(), 5);
        assert_eq!(second.reports().unwrap(), whole.reports().unwrap()[2..]);
        assert_eq!(second.state().unwrap(), whole.state().unwrap());
    }
}

/// More updates than the device keeps reports of, and then all of them are told of in order.
#[test]
fn reports_need_not_be_asked_for() {
    let (_, task) = tasks().swap_remove(0);
    let mut learner = task.learner(adapter());
    for seed in 0..70 {
        task.step(&mut learner, seed).unwrap();
    }
    let steps: Vec<_> = learner.reports().unwrap().iter().map(|report| report.step).collect();
    assert_eq!(steps, (0..70).collect::<Vec<_>>());
}

#[test]
fn what_is_not_finite_moves_nothing_and_is_named() {
    for device in devices() {
        let (_, task) = tasks().swap_remove(2);
        let mut learner = task.learner(&device);
        task.step(&mut learner, 1).unwrap();
        let before = learner.state().unwrap();
        let mut x = task.x(2);
        x[[2, 0, 1]] = f32::NAN;
        let values = random3([SIZES[1], SIZES[0], SIZES[3]], 5);
        let batch = Batch::batch_first(x.view());
        let bad = learner.step(batch, values.view());
        // An adapter has not heard of it yet, and takes another batch, which moves nothing either.
        let error = match bad {
            Err(error) => error,
            Ok(()) => {
                task.step(&mut learner, 3).unwrap();
                learner.reports().unwrap_err()
            }
        };
        let Error::Diverged { step: 1, loss, largest, parameter, .. } = &error else {
            panic!("{error}");
        };
        assert!(loss.is_nan() && largest.is_nan(), "{error}");
        assert_eq!(parameter, "weight_ih_l0", "{error}");
        assert_eq!(learner.updates(), 1);
        assert_eq!(learner.reports().unwrap().len(), 1);
        assert_eq!(learner.state().unwrap(), before);
        // It goes on, as a learner that never saw that batch.
        task.step(&mut learner, 4).unwrap();
        let mut other = Learner::resume(before, task.training, &device).unwrap();
        task.step(&mut other, 4).unwrap();
        assert_eq!(learner.state().unwrap(), other.state().unwrap());
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let training = Training::new(Loss::cross_entropy(), Optimizer::sgd(), 0.1);
    let task = Task::new(Head::last(SIZES[3]), training);
    let mut learner = task.learner(&Device::cpu());
    let before = learner.state().unwrap();
    let x = task.x(0);
    let mut refused = |targets: &Targets<'_>| -> String {
        learner.step(&x, targets.clone()).unwrap_err().to_string()
    };
    let classes = |classes: [i32; 5]| ndarray::Array1::from(classes.to_vec()).into_dyn();
    let message = refused(&Targets::Classes(classes([0, 1, 4, 0, 0]).view()));
    assert_eq!(message, "target 2 is class 4; the model's outputs stand for classes 0 to 3");
    assert!(refused(&Targets::Classes(classes([0, -1, 3, 0, 0]).view())).contains("class -1"));
    let message = refused(&Targets::Classes(classes([-100; 5]).view()));
    assert!(message.contains("no target of this batch counts"), "{message}");
    let message = refused(&Array2::<i32>::zeros((9, 5)).view().into());
    assert_eq!(message, "targets has shape [9, 5], expected [5]");
    let message = refused(&Array2::<f32>::zeros((5, 4)).view().into());
    assert!(message.contains("cannot be combined"), "{message}");
    assert_eq!(learner.state().unwrap(), before);
    let bare = Params::init(&task.config, Init::Uniform, 1).unwrap();
    let error = Learner::new(bare, training, &Device::cpu()).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    let (mut rate, mut none, mut loss) = (training, training, training);
    rate.learning_rate = f64::NAN;
    none.accumulation = 0;
    loss.loss = Loss::Huber { delta: 0.0 };
    for bad in [rate, none, loss] {
        assert!(matches!(bad.validate(), Err(Error::Setting { .. })), "{bad:?}");
        assert!(Learner::new(task.params(), bad, &Device::cpu()).is_err());
    }
}
