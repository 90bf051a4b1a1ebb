//! Every loss, optimizer and kind of clipping: the adapter equals the CPU, and the CPU PyTorch.

use crate::common::{adapter, devices, random3};
use gru_wgpu::{
    Adam, Batch, Clip, Device, Direction, Error, GruConfig, Head, Init, Layout, Learner,
    LearnerConfig, Loss, Network, Optimizer, ParamLayout, Params, Schedule, Targets,
};
use ndarray::{Array2, Array3, ArrayD, Dimension, Ix3, IxDyn};

/// A task of odd sizes: T 9, B 5, I 3, H 7, C 4.
struct TrainingTask {
    config: GruConfig,
    head: Head,
    layout: Layout,
    lengths: Option<[usize; 5]>,
    training: LearnerConfig,
}

const SIZES: [usize; 4] = [9, 5, 3, 4];

impl TrainingTask {
    fn new(head: Head, training: LearnerConfig) -> Self {
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
        self.with_batch(seed, |batch, targets| learner.step(batch, targets))
    }

    fn step_with_loss(&self, learner: &mut Learner, seed: u64) -> gru_wgpu::Result<f32> {
        self.with_batch(seed, |batch, targets| learner.step_with_loss(batch, targets))
    }

    fn with_batch<T>(&self, seed: u64, call: impl FnOnce(Batch<'_>, Targets<'_>) -> T) -> T {
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
                call(batch, Targets::Classes(classes.view()))
            }
            _ => {
                axes.push(SIZES[3]);
                let values = ArrayD::from_shape_fn(IxDyn(&axes), |at| {
                    let sum: usize = (0..at.ndim()).map(|i| (5 * i + 3) * at[i]).sum();
                    (sum + seed as usize) as f32 * 0.7 % 3.0 - 1.5
                });
                call(batch, Targets::Values(values.view()))
            }
        }
    }

    fn learner(&self, device: &Device) -> Learner {
        Learner::new(self.params(), self.training, device).unwrap()
    }
}

/// Every loss with both kinds of head, every optimizer, every kind of clipping, some in other
/// layouts.
fn tasks() -> Vec<(&'static str, TrainingTask)> {
    let sgd = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.01 };
    let cosine = Schedule::Cosine { warmup: 2, updates: 6, last: 0.1 };
    let [every, last] = [Head::every_step(SIZES[3]), Head::last(SIZES[3])];
    let lengths = Some([9, 0, 4, 1, 9]);
    let two_ways = GruConfig::pytorch(SIZES[2], 7).with_layers(2).with_direction(Direction::Both);
    let mean_squared = |optimizer, rate| LearnerConfig::new(Loss::MeanSquared, optimizer, rate);
    let huber = LearnerConfig::new(Loss::Huber { delta: 0.6 }, Optimizer::adam(), 0.01);
    let entropy = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adamw(0.05), 0.01);
    vec![
        ("plain descent", TrainingTask::new(every, mean_squared(Optimizer::sgd(), 0.1))),
        (
            "momentum, bounded norm",
            TrainingTask {
                lengths,
                ..TrainingTask::new(every, mean_squared(sgd, 0.1).with_clip(Clip::Norm(0.2)))
            },
        ),
        (
            "Huber, bounded values, batch-first",
            TrainingTask {
                layout: Layout::BatchFirst,
                lengths,
                ..TrainingTask::new(every, huber.with_clip(Clip::Value(0.01)))
            },
        ),
        (
            "Huber of the last states",
            TrainingTask {
                config: two_ways.clone(),
                lengths,
                ..TrainingTask::new(last, huber.with_schedule(cosine))
            },
        ),
        (
            "cross-entropy, two batches an update",
            TrainingTask {
                config: two_ways,
                layout: Layout::BatchFirst,
                lengths,
                ..TrainingTask::new(every, entropy.with_accumulation(2))
            },
        ),
        ("cross-entropy of the last states", TrainingTask::new(last, entropy)),
    ]
}

#[test]
fn the_adapter_trains_like_the_cpu() {
    let device = adapter();
    for (name, task) in tasks() {
        let [mut adapter, mut cpu] = [device, &Device::cpu()].map(|device| task.learner(device));
        for seed in 0..6 {
            task.step(&mut adapter, seed).unwrap();
            task.step(&mut cpu, seed).unwrap();
        }
        let (got, expected) = (adapter.metrics().unwrap(), cpu.metrics().unwrap());
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

/// On both devices a resumed learner equals an uninterrupted one bit for bit.
#[test]
fn a_resumed_learner_equals_an_uninterrupted_one() {
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
        assert_eq!(second.metrics().unwrap(), whole.metrics().unwrap()[2..]);
        assert_eq!(second.state().unwrap(), whole.state().unwrap());
    }
}

#[test]
fn parameters_equal_the_parameters_of_the_state() {
    for device in devices() {
        let (_, task) = tasks().swap_remove(3);
        let mut learner = task.learner(&device);
        for seed in 0..3 {
            task.step(&mut learner, seed).unwrap();
        }
        let params = learner.params().unwrap();
        assert_eq!(params, pollster::block_on(learner.params_async()).unwrap());
        assert_eq!(params, learner.state().unwrap().params);
        assert_ne!(params, task.params());
        task.step(&mut learner, 3).unwrap();
        let params = learner.params().unwrap();
        assert_eq!(&params, learner.into_network().unwrap().params());
    }
}

/// Two machines with half of the batch each, whose gradients are summed, make the same update as
/// one machine with the whole batch.
#[test]
fn two_learners_on_two_halves_equal_one_on_all() {
    let [steps, batch, ..] = SIZES;
    let batch = 2 * (batch / 2);
    let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
    let task = TrainingTask::new(Head::every_step(SIZES[3]), config.with_clip(Clip::Norm(0.3)));
    let halves = task.training.with_accumulation(2);
    for device in devices() {
        let mut whole = task.learner(&device);
        let mut machines = [(); 2].map(|()| Learner::new(task.params(), halves, &device).unwrap());
        for seed in 0..3 {
            let x = random3([steps, batch, SIZES[2]], seed);
            let targets = random3([steps, batch, SIZES[3]], 10 + seed);
            whole.step(&x, targets.view()).unwrap();
            let parts = [0..batch / 2, batch / 2..batch];
            for (machine, rows) in machines.iter_mut().zip(parts) {
                let rows = ndarray::s![.., rows, ..];
                machine.accumulate(x.slice(rows), targets.slice(rows)).unwrap();
            }
            let [mut sum, other] = machines.each_mut().map(|machine| machine.gradient().unwrap());
            assert_eq!((sum.batches, other.batches), (1, 1));
            assert_ne!(sum.params, other.params);
            sum.add(&other).unwrap();
            assert_eq!(sum.batches, 2);
            for machine in &mut machines {
                machine.set_gradient(&sum).unwrap();
                assert_eq!(machine.gradient().unwrap(), sum);
                machine.apply().unwrap();
            }
        }
        let expected = (whole.metrics().unwrap(), whole.state().unwrap());
        let [one, other] = machines
            .each_mut()
            .map(|machine| (machine.metrics().unwrap(), machine.state().unwrap()));
        assert_eq!(one, other, "on {device}");
        assert_eq!(one.0.len(), 3);
        for (got, expected) in one.0.iter().zip(&expected.0) {
            assert_eq!(got.step, expected.step);
            assert!(
                (got.loss - expected.loss).abs() < 1e-5 * expected.loss,
                "{got:?} {expected:?}"
            );
            assert!(
                (got.norm - expected.norm).abs() < 1e-4 * expected.norm,
                "{got:?} {expected:?}"
            );
        }
        for (got, expected) in one.1.params.as_slice().iter().zip(expected.1.params.as_slice()) {
            assert!((got - expected).abs() < 1e-4, "on {device}: {got}, expected {expected}");
        }
    }
}

/// `accumulate` and `apply` equal `step`, to the bit.
#[test]
fn a_step_equals_accumulate_and_apply() {
    for device in devices() {
        let (_, task) = tasks().swap_remove(4);
        let (mut steps, mut halves) = (task.learner(&device), task.learner(&device));
        assert_eq!(halves.gradient().unwrap().batches, 0);
        halves.apply().unwrap();
        assert_eq!(halves.updates(), 0);
        let x = task.x(1);
        let batch = || {
            let batch = Batch::new(x.view()).with_layout(task.layout);
            batch.with_lengths(task.lengths.as_ref().unwrap())
        };
        let classes = ArrayD::from_elem(IxDyn(&task.axes()), 1);
        for at in 0..4 {
            steps.step(batch(), Targets::Classes(classes.view())).unwrap();
            halves.accumulate(batch(), Targets::Classes(classes.view())).unwrap();
            if at % 2 == 1 {
                assert_eq!(halves.gradient().unwrap().batches, 2);
                halves.apply().unwrap();
                assert_eq!(halves.gradient().unwrap().batches, 0);
            }
        }
        assert_eq!(halves.metrics().unwrap(), steps.metrics().unwrap());
        assert_eq!(halves.state().unwrap(), steps.state().unwrap());
        // A gradient of another model is refused, and changes nothing.
        let other =
            TrainingTask::new(Head::last(2), task.training).learner(&device).gradient().unwrap();
        let refused = halves.set_gradient(&other).unwrap_err();
        assert!(matches!(refused, Error::ParameterLayout { .. }), "{refused}");
        assert_eq!(halves.state().unwrap(), steps.state().unwrap());
    }
}

/// For every batch; the metrics of an update have their mean.
#[test]
fn a_step_returns_its_loss_on_request() {
    for device in devices() {
        for (name, task) in tasks() {
            let (mut asked, mut unasked) = (task.learner(&device), task.learner(&device));
            let mut losses = Vec::new();
            for seed in 0..4 {
                losses.push(task.step_with_loss(&mut asked, seed).unwrap());
                task.step(&mut unasked, seed).unwrap();
            }
            let metrics = asked.metrics().unwrap();
            assert_eq!(metrics, unasked.metrics().unwrap());
            assert_eq!(asked.state().unwrap(), unasked.state().unwrap());
            for (metrics, losses) in metrics.iter().zip(losses.chunks(task.training.accumulation)) {
                let mean = losses.iter().sum::<f32>() / losses.len() as f32;
                let close = (mean - metrics.loss).abs() <= 1e-5 * metrics.loss.abs();
                assert!(close, "{name} on {device}: {losses:?}, {metrics:?}");
            }
        }
    }
}

/// For any loss of the batch before it.
#[test]
fn a_batch_loss_covers_only_that_batch() {
    for device in devices() {
        let (_, mut task) = tasks().swap_remove(0);
        task.training = task.training.with_accumulation(2);
        let small = task.step_with_loss(&mut task.learner(&device), 1).unwrap();
        let mut learner = task.learner(&device);
        let x = task.x(2);
        let [steps, rows, _] = x.dim().into();
        let far = ndarray::Array3::from_elem((steps, rows, SIZES[3]), 1e5_f32);
        let large = learner.step_with_loss(&x, far.view()).unwrap();
        assert!(large > 1e9, "{large}");
        let after = task.step_with_loss(&mut learner, 1).unwrap();
        assert!((after - small).abs() <= 1e-6 * small, "{after}, {small} on {device}");
    }
}

#[test]
fn a_requested_loss_that_is_not_finite_is_an_error_at_once() {
    for device in devices() {
        let (_, task) = tasks().swap_remove(0);
        let mut learner = task.learner(&device);
        let mut x = task.x(2);
        x[[2, 0, 1]] = f32::NAN;
        let [steps, rows, _] = x.dim().into();
        let values = random3([steps, rows, SIZES[3]], 5);
        let error = learner.step_with_loss(&x, values.view()).unwrap_err();
        assert!(matches!(error, Error::Diverged { step: 0, .. }), "{error} on {device}");
        assert_eq!(learner.updates(), 0);
    }
}

#[test]
fn batches_beyond_a_full_update_are_refused() {
    for device in devices() {
        let (_, mut task) = tasks().swap_remove(0);
        task.training = task.training.with_accumulation(2);
        let mut learner = task.learner(&device);
        let accumulate = |learner: &mut Learner, seed| {
            task.with_batch(seed, |batch, targets| learner.accumulate(batch, targets))
        };
        accumulate(&mut learner, 0).unwrap();
        accumulate(&mut learner, 1).unwrap();
        let full = learner.gradient().unwrap();
        assert!(matches!(accumulate(&mut learner, 2), Err(Error::Conflict { .. })));
        assert!(matches!(task.step(&mut learner, 2), Err(Error::Conflict { .. })));
        // A refused gradient changes nothing.
        assert_eq!(learner.gradient().unwrap(), full);
        let mut other = full.clone();
        for batches in [0, 3, usize::MAX] {
            other.batches = batches;
            let refused = learner.set_gradient(&other).unwrap_err();
            assert!(matches!(refused, Error::Setting { .. }), "{refused}");
        }
        let mut sum = full.clone();
        assert!(matches!(sum.add(&other), Err(Error::Overflow { .. })));
        assert_eq!(sum, full);
        learner.apply().unwrap();
        assert_eq!(learner.metrics().unwrap().len(), 1);
    }
}

/// More updates than the device keeps reports for; all are returned in order.
#[test]
fn metrics_need_not_be_read() {
    let (_, task) = tasks().swap_remove(0);
    let mut learner = task.learner(adapter());
    for seed in 0..70 {
        task.step(&mut learner, seed).unwrap();
    }
    let steps: Vec<_> = learner.metrics().unwrap().iter().map(|report| report.step).collect();
    assert_eq!(steps, (0..70).collect::<Vec<_>>());
}

#[test]
fn gradients_that_are_not_finite_change_nothing_and_are_named() {
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
        // The adapter has not reported it yet, and takes another batch, which changes nothing
        // either.
        let error = match bad {
            Err(error) => error,
            Ok(()) => {
                task.step(&mut learner, 3).unwrap();
                learner.metrics().unwrap_err()
            }
        };
        let Error::Diverged { step: 1, loss, largest, parameter, .. } = &error else {
            panic!("{error}");
        };
        assert!(loss.is_nan() && largest.is_nan(), "{error}");
        assert_eq!(parameter, "weight_ih_l0", "{error}");
        assert_eq!(learner.updates(), 1);
        assert_eq!(learner.metrics().unwrap().len(), 1);
        assert_eq!(learner.state().unwrap(), before);
        // It continues like a learner that never had that batch.
        task.step(&mut learner, 4).unwrap();
        let mut other = Learner::resume(before, task.training, &device).unwrap();
        task.step(&mut other, 4).unwrap();
        assert_eq!(learner.state().unwrap(), other.state().unwrap());
    }
}

#[test]
fn wrong_shapes_are_refused_and_change_nothing() {
    let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::sgd(), 0.1);
    let task = TrainingTask::new(Head::last(SIZES[3]), training);
    let mut learner = task.learner(&Device::cpu());
    let before = learner.state().unwrap();
    let x = task.x(0);
    let mut refused = |targets: &Targets<'_>| -> String {
        learner.step(&x, targets.clone()).unwrap_err().to_string()
    };
    let classes = |classes: [i32; 5]| ndarray::Array1::from(classes.to_vec()).into_dyn();
    let message = refused(&Targets::Classes(classes([0, 1, 4, 0, 0]).view()));
    assert_eq!(
        message,
        "target 2 is class 4; expected 0 to 3, since the head has 4 outputs; to leave out a class, set it \
         as the `ignore` of Loss::CrossEntropy"
    );
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

/// A case of `tests/data/generate_training.py`.
struct Expected(serde_json::Value);

impl Expected {
    fn all() -> Vec<Self> {
        let cases: Vec<_> = serde_json::from_str(include_str!("../data/training.json")).unwrap();
        assert_eq!(cases.len(), 15);
        cases.into_iter().map(Self).collect()
    }

    fn size(&self, name: &str) -> usize {
        self.0[name].as_u64().unwrap() as usize
    }

    fn params(&self, when: &str) -> Params {
        let two_ways = self.0["bidirectional"].as_bool().unwrap();
        let config = GruConfig::pytorch(self.size("input"), self.size("hidden"))
            .with_layers(self.size("layers"))
            .with_direction(if two_ways { Direction::Both } else { Direction::Forward });
        let outputs = self.size("output");
        let head = match self.0["head"].as_str().unwrap() {
            "steps" => Head::every_step(outputs),
            "last" => Head::last(outputs),
            other => panic!("{other}"),
        };
        let layout = ParamLayout::with_head(&config, head).unwrap();
        let mut params = Params::zeros_of(layout).unwrap();
        let named = self.0[when].as_object().unwrap();
        assert_eq!(named.len(), params.layout().entries().len());
        for (name, tensor) in named {
            params.set(name, array::<f32>(tensor).view()).unwrap();
        }
        params
    }

    fn training(&self) -> LearnerConfig {
        let (loss, optimizer) = (&self.0["loss"], &self.0["optimizer"]);
        let (clip, schedule) = (&self.0["clip"], &self.0["schedule"]);
        let number = |of: &serde_json::Value, name: &str| of[name].as_f64().unwrap();
        let loss = match loss["kind"].as_str().unwrap() {
            "mse" => Loss::MeanSquared,
            "huber" => Loss::Huber { delta: number(loss, "delta") as f32 },
            "cross_entropy" => {
                Loss::CrossEntropy { ignore: Some(number(loss, "ignore_index") as i32) }
            }
            other => panic!("{other}"),
        };
        let weight_decay = number(optimizer, "weight_decay");
        let adam = || Adam {
            beta1: number(optimizer, "beta1"),
            beta2: number(optimizer, "beta2"),
            epsilon: number(optimizer, "eps"),
            weight_decay,
        };
        let optimizer = match optimizer["kind"].as_str().unwrap() {
            "sgd" => Optimizer::Sgd { momentum: number(optimizer, "momentum"), weight_decay },
            "adam" => Optimizer::Adam(adam()),
            "adamw" => Optimizer::AdamW(adam()),
            other => panic!("{other}"),
        };
        let clip = match clip["kind"].as_str().unwrap() {
            "none" => Clip::None,
            "norm" => Clip::Norm(number(clip, "max_norm") as f32),
            "value" => Clip::Value(number(clip, "max") as f32),
            other => panic!("{other}"),
        };
        let count = |name| number(schedule, name) as u64;
        let schedule = match schedule["kind"].as_str().unwrap() {
            "constant" => Schedule::Constant,
            "cosine" => Schedule::Cosine {
                warmup: count("warm_up"),
                updates: count("steps"),
                last: number(schedule, "floor"),
            },
            "step" => Schedule::Steps { every: count("every"), factor: number(schedule, "factor") },
            other => panic!("{other}"),
        };
        LearnerConfig::new(loss, optimizer, self.0["rate"].as_f64().unwrap())
            .with_clip(clip)
            .with_schedule(schedule)
            .with_accumulation(self.size("accumulate"))
    }

    /// Runs ten updates.
    fn train(&self, learner: &mut Learner) {
        let batches = self.0["batches"].as_array().unwrap();
        for at in 0..10 * self.size("accumulate") {
            let batch = &batches[at % batches.len()];
            let x = array::<f32>(&batch["x"]).into_dimensionality::<Ix3>().unwrap();
            let lengths: Vec<_> = batch["lengths"].as_array().unwrap().iter().collect();
            let lengths: Vec<_> = lengths.iter().map(|n| n.as_u64().unwrap() as usize).collect();
            let batch_of = Batch::new(x.view()).with_lengths(&lengths);
            let targets = &batch["targets"];
            if self.0["loss"]["kind"] == "cross_entropy" {
                let classes = array::<i32>(targets);
                learner.step(batch_of, Targets::Classes(classes.view())).unwrap();
            } else {
                let values = array::<f32>(targets);
                learner.step(batch_of, Targets::Values(values.view())).unwrap();
            }
        }
    }
}

trait FromF64 {
    fn from_f64(value: f64) -> Self;
}

impl FromF64 for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl FromF64 for i32 {
    fn from_f64(value: f64) -> Self {
        value as i32
    }
}

fn array<A: FromF64>(tensor: &serde_json::Value) -> ArrayD<A> {
    let numbers = |key: &str| tensor[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
    let shape: Vec<_> = numbers("shape").map(|v| v as usize).collect();
    let data: Vec<_> = numbers("data").map(|v| A::from_f64(v)).collect();
    ArrayD::from_shape_vec(IxDyn(&shape), data).unwrap()
}

/// The losses, the norms and the parameters after ten updates, on both devices.
#[test]
fn ten_updates_equal_pytorchs() {
    for case in Expected::all() {
        let name = case.0["name"].as_str().unwrap();
        let training = case.training();
        let numbers = |key: &str| -> Vec<f64> {
            case.0[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        for (step, rate) in (0..).zip(numbers("rates")) {
            assert!((training.rate(step) - rate).abs() < 1e-12 * rate, "{name}: rate of {step}");
        }
        let after = case.params("after");
        for device in devices() {
            let name = format!("{name} on {device}");
            let mut learner = Learner::new(case.params("before"), training, &device).unwrap();
            case.train(&mut learner);
            let reports = learner.metrics().unwrap();
            assert_eq!(reports.len(), 10, "{name}");
            let expected = numbers("losses").into_iter().zip(numbers("norms"));
            for (report, (loss, norm)) in reports.iter().zip(expected) {
                let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-6 * b.abs().max(1.0);
                assert!(close(report.loss, loss), "{name}: {report:?}, expected loss {loss}");
                assert!(close(report.norm, norm), "{name}: {report:?}, expected norm {norm}");
            }
            let state = learner.state().unwrap();
            for ((name_of, got), (_, expected)) in state.params.iter().zip(after.iter()) {
                for (got, expected) in got.iter().zip(&expected) {
                    let gap = (got - expected).abs();
                    assert!(gap < 4e-6, "{name}: {name_of} is {got}, expected {expected}");
                }
            }
        }
    }
}

/// Matrices of one column or one row are both row-major and column-major; results must not depend
/// on that.
#[test]
fn a_single_hidden_unit_trains_too() {
    let entropy = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
    for (head, layout) in [
        (Head::last(SIZES[3]), Layout::TimeMajor),
        (Head::every_step(SIZES[3]), Layout::BatchFirst),
    ] {
        let config = GruConfig::pytorch(SIZES[2], 1);
        let task = TrainingTask { config, layout, ..TrainingTask::new(head, entropy) };
        let [mut adapter, mut cpu] = [adapter(), &Device::cpu()].map(|device| task.learner(device));
        for seed in 0..3 {
            task.step(&mut adapter, seed).unwrap();
            task.step(&mut cpu, seed).unwrap();
        }
        let x = task.x(9);
        let batch = || Batch::new(x.view()).with_layout(layout);
        let (got, expected) = (adapter.forward(batch()).unwrap(), cpu.forward(batch()).unwrap());
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-4), "{got} {expected}");
    }
}

/// An update of one batch instead of three: a third of the gradient, but the batch's own loss.
#[test]
fn an_update_of_fewer_batches_reports_their_loss() {
    let training = LearnerConfig::new(Loss::MeanSquared, Optimizer::sgd(), 0.1);
    let whole = TrainingTask::new(Head::last(SIZES[3]), training);
    let part = TrainingTask::new(Head::last(SIZES[3]), training.with_accumulation(3));
    for device in devices() {
        let [mut whole_learner, mut part_learner] =
            [&whole, &part].map(|task| task.learner(&device));
        whole.step(&mut whole_learner, 1).unwrap();
        part.step(&mut part_learner, 1).unwrap();
        part_learner.apply().unwrap();
        let [whole, part] = [whole_learner, part_learner].map(|mut l| l.metrics().unwrap()[0]);
        assert!((whole.loss - part.loss).abs() < 1e-5, "{whole:?}, {part:?}");
        assert!((whole.norm - 3.0 * part.norm).abs() < 1e-5, "{whole:?}, {part:?}");
    }
}

/// An update that would make a parameter or a moment infinite, without a following update.
#[test]
fn updates_to_infinite_parameters_are_not_made() {
    let [every, last] = [Head::every_step(SIZES[3]), Head::last(SIZES[3])];
    let of = |optimizer, rate| LearnerConfig::new(Loss::MeanSquared, optimizer, rate);
    // A gradient of 1e25, whose square is infinite; 1e3 times 1e38; Adam's rate over 1 − β₁.
    let steep = TrainingTask::new(last, of(Optimizer::adam(), 1e-3));
    let far = TrainingTask::new(every, of(Optimizer::sgd(), 1e38).with_clip(Clip::Norm(1e6)));
    let adam = TrainingTask::new(every, of(Optimizer::adam(), 1e38).with_clip(Clip::Value(1.0)));
    for (task, is_steep) in [(steep, true), (far, false), (adam, false)] {
        for device in devices() {
            let params = if is_steep { flat_start(1e25) } else { task.params() };
            let mut learner = Learner::new(params, task.training, &device).unwrap();
            let before = learner.state().unwrap();
            let x = task.x(1);
            let step = |learner: &mut Learner| match is_steep {
                true => learner.step(&x, Array2::<f32>::ones((SIZES[1], SIZES[3])).view()),
                false => {
                    let targets = Array3::from_elem((SIZES[0], SIZES[1], SIZES[3]), 1e4_f32);
                    learner.step(&x, targets.view())
                }
            };
            let error = match step(&mut learner) {
                Err(error) => error,
                Ok(()) => learner.metrics().unwrap_err(),
            };
            let Error::Diverged { step: 0, loss, norm, largest, parameter, .. } = &error else {
                panic!("{error} on {device}");
            };
            assert!(loss.is_finite() && norm.is_finite() && *largest > 0.0, "{error}");
            assert!(parameter.contains(if is_steep { "_l0" } else { "head" }), "{error}");
            assert!(error.to_string().contains("would not be finite after it"), "{error}");
            assert_eq!(learner.updates(), 0);
            assert_eq!(learner.state().unwrap(), before);
            // Another bad batch is reported too, and a good one counts.
            assert!(step(&mut learner).and_then(|()| learner.metrics()).is_err());
            let better = of(Optimizer::sgd(), 1e-3).with_clip(Clip::Norm(1e-6));
            let mut learner = Learner::resume(learner.state().unwrap(), better, &device).unwrap();
            step(&mut learner).unwrap();
            assert_eq!(learner.metrics().unwrap().len(), 1);
        }
    }
}

/// Zeros except for the head's weight: states are 0, and the gradient is as large as that weight.
fn flat_start(weight: f32) -> Params {
    let task = TrainingTask::new(
        Head::last(SIZES[3]),
        LearnerConfig::new(Loss::MeanSquared, Optimizer::sgd(), 0.1),
    );
    let mut params = Params::zeros_of(task.params().layout().clone()).unwrap();
    let weights = random3([1, SIZES[3], 7], 8).index_axis_move(ndarray::Axis(0), 0) * weight;
    params.set("head.weight", weights.view().into_dyn()).unwrap();
    params
}

/// Gradients whose squares do not fit f32, and their clipping by norm.
#[test]
fn the_norm_of_very_large_and_very_small_gradients_is_right() {
    let training = LearnerConfig::new(Loss::MeanSquared, Optimizer::sgd(), 1.0);
    for (weight, target, range) in
        [(1e25, 1.0_f32, 1e23..1e27), (1.0, 1e-25, 1e-27..1e-23), (1e33, 1.0, 1e31..1e35)]
    {
        let task = TrainingTask::new(Head::last(SIZES[3]), training.with_clip(Clip::Norm(1e-30)));
        let mut all = Vec::new();
        for device in devices() {
            let mut learner = Learner::new(flat_start(weight), task.training, &device).unwrap();
            let x = task.x(1);
            learner.step(&x, Array2::from_elem((SIZES[1], SIZES[3]), target).view()).unwrap();
            let report = learner.metrics().unwrap()[0];
            assert!(range.contains(&report.norm), "{report:?} on {device}");
            all.push((report, learner.state().unwrap()));
        }
        let [(cpu, on_cpu), (adapter, on_adapter)] = &all[..] else { panic!() };
        assert!((cpu.norm - adapter.norm).abs() < 1e-5 * cpu.norm, "{cpu:?}, {adapter:?}");
        for (a, b) in on_cpu.params.as_slice().iter().zip(on_adapter.params.as_slice()) {
            assert!((a - b).abs() <= 1e-4 * a.abs() + 1e-36, "{a}, {b}");
        }
    }
}

/// One chain of additions in f32 is off by 6e-7 of this sum.
#[test]
fn the_gradient_of_a_heads_bias_over_many_rows_is_exact() {
    let steps = 50_000;
    let shape = [steps, 1, 1];
    let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 2), Head::every_step(1)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    let (x, targets) = (random3(shape, 1), random3(shape, 2) + 3.0);
    let cpu = Device::cpu();
    let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
    let mut learner = Learner::new(params.clone(), config, &cpu).unwrap();
    learner.accumulate(&x, targets.view()).unwrap();
    let gradient = learner.gradient().unwrap().params.get("head.bias").unwrap()[0];
    let outputs = Network::new(params, &cpu).unwrap().forward(&x).unwrap();
    let terms = outputs.iter().zip(&targets).map(|(&o, &t)| 2.0 * f64::from(o - t));
    let expected = terms.sum::<f64>() / steps as f64;
    let error = (f64::from(gradient) / expected - 1.0).abs();
    assert!(error < 3e-7, "{gradient}, expected {expected}: off by {error:e}");
}
