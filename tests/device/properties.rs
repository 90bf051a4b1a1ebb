//! Random models and runs: the CPU device and the adapter against the reference in f64, forward and
//! backward.
//!
//! proptest draws the cases from a fixed seed. `PROPTEST_CASES` sets their number (default 40; for
//! a long run `PROPTEST_CASES=2000 cargo test --release --test device properties`), and
//! `PROPTEST_RNG_SEED` another seed. A failing case is shrunk and printed as Rust code: add it to
//! `KNOWN` to run it alone.

use std::cell::{Cell, RefCell};
use std::fmt;

use crate::common::{adapter, rng};
use gru_wgpu::check::TOLERANCE;
use gru_wgpu::{
    Activation, Activations, Batch, Bias, Device, Direction, Error, Gru, GruConfig, Init, Layout,
    Params, Recurrence, Reset, RunOptions, Update, reference,
};
use ndarray::{Array2, Array3, ArrayViewD, Axis, Dimension, s};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use rand::RngExt;

/// A model and a run.
#[derive(Clone, Copy)]
struct RandomCase {
    reset: Reset,
    update: Update,
    bias: Bias,
    /// Activations of the gates and of the candidate.
    activations: [Activation; 2],
    /// Other activations of the reverse direction.
    reverse: Option<[Activation; 2]>,
    clip: Option<f32>,
    layers: usize,
    direction: Direction,
    dropout: f32,
    zoneout: f32,
    /// [T, B, I, H]
    sizes: [usize; 4],
    layout: Layout,
    lengths: bool,
    resets: bool,
    /// True if h0, the reset state, dy and dh_n are given; otherwise they count as zeros.
    given: [bool; 4],
    recurrence: Recurrence,
    recompute: bool,
    /// True if the model has run over NaN before, in the same memory.
    poisoned: bool,
    /// The seed of parameters, inputs, lengths and resets.
    seed: u64,
}

/// Cases that always run: one per kernel family, and any that once failed.
const KNOWN: [RandomCase; 2] = [
    RandomCase {
        reset: Reset::Before,
        update: Update::Overwrites,
        bias: Bias::One,
        activations: [Activation::Sigmoid, Activation::Tanh],
        reverse: None,
        clip: None,
        layers: 2,
        direction: Direction::Both,
        dropout: 0.3,
        zoneout: 0.2,
        sizes: [5, 3, 2, 5],
        layout: Layout::BatchFirst,
        lengths: true,
        resets: true,
        given: [true, true, true, true],
        recurrence: Recurrence::Step,
        recompute: true,
        poisoned: true,
        seed: 1,
    },
    RandomCase {
        reset: Reset::After,
        update: Update::Keeps,
        bias: Bias::Two,
        activations: [Activation::Sigmoid, Activation::Tanh],
        reverse: None,
        clip: None,
        layers: 1,
        direction: Direction::Reverse,
        dropout: 0.0,
        zoneout: 0.0,
        sizes: [9, 2, 3, 17],
        layout: Layout::TimeMajor,
        lengths: true,
        resets: false,
        given: [false, false, true, false],
        recurrence: Recurrence::Sequence,
        recompute: false,
        poisoned: true,
        seed: 2,
    },
];

/// Prints the case as in [`KNOWN`], on one line.
impl fmt::Debug for RandomCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reset, update, bias, activations: [gate, candidate], .. } = self;
        let Self { reverse, clip, .. } = self;
        let Self { layers, direction, dropout, zoneout, sizes, layout, .. } = self;
        let Self { lengths, resets, given, recurrence, recompute, poisoned, seed, .. } = self;
        write!(
            f,
            "RandomCase {{ reset: Reset::{reset:?}, update: Update::{update:?}, bias: Bias::{bias:?}, "
        )?;
        write!(
            f,
            "activations: [{gate:?}, {candidate:?}], reverse: {reverse:?}, clip: {clip:?}, \
             layers: {layers}, "
        )?;
        write!(
            f,
            "direction: Direction::{direction:?}, dropout: {dropout:?}, zoneout: {zoneout:?}, "
        )?;
        write!(f, "sizes: {sizes:?}, layout: Layout::{layout:?}, lengths: {lengths}, ")?;
        write!(f, "resets: {resets}, given: {given:?}, recurrence: Recurrence::{recurrence:?}, ")?;
        write!(f, "recompute: {recompute}, poisoned: {poisoned}, seed: {seed} }}")
    }
}

/// Any case. An adapter compiles kernels for each variant and each kind of size, so common ones
/// come often, but every one can come.
fn cases() -> impl Strategy<Value = RandomCase> {
    let any_activation = || select(&Activation::ALL[..]);
    let clip = proptest::option::of(select(&[0.3_f32, 1.25][..]));
    let variant = (
        select(&[Reset::Before, Reset::After][..]),
        select(&[Update::Overwrites, Update::Keeps][..]),
        select(&[Bias::None, Bias::One, Bias::Two][..]),
        prop_oneof![
            9 => Just(([Activation::Sigmoid, Activation::Tanh], None, None)),
            1 => ([any_activation(), any_activation()], proptest::option::of([any_activation(), any_activation()]), clip),
        ],
    );
    let form = (
        prop_oneof![5 => Just(1), 3 => Just(2), 1 => Just(3_usize)],
        select(&[Direction::Forward, Direction::Reverse, Direction::Both][..]),
        prop_oneof![4 => Just(0.0), 1 => select(&[0.1_f32, 0.5][..])],
        prop_oneof![4 => Just(0.0), 1 => select(&[0.1_f32, 0.5][..])],
    );
    let small = || prop_oneof![8 => 1..10_usize, 2 => select(&[15, 16, 17, 31, 32, 33][..]), 1 => 34..71_usize];
    let hidden = prop_oneof![
        8 => select(&[1, 3, 5, 8, 16, 17][..]),
        2 => select(&[2, 4, 7, 9, 31, 32, 33, 64, 65][..]),
        1 => 1..100_usize,
    ];
    let run = (
        [small(), small(), small()],
        hidden,
        select(&[Layout::TimeMajor, Layout::BatchFirst][..]),
        any::<[bool; 2]>(),
        any::<[bool; 4]>(),
    );
    let way = (
        select(
            &[Recurrence::Auto, Recurrence::Step, Recurrence::Sequence, Recurrence::Persistent][..],
        ),
        any::<[bool; 2]>(),
        any::<u32>(),
    );
    (variant, form, run, way).prop_map(|(variant, form, run, way)| {
        let (reset, update, bias, (activations, reverse, clip)) = variant;
        let (layers, direction, dropout, zoneout) = form;
        let ([mut steps, batch, input], hidden, layout, [lengths, resets], mut given) = run;
        let (recurrence, [recompute, poisoned], seed) = way;
        // Sizes that the reference can compute quickly, and sums of order 1 if the state is not
        // bounded.
        let step = batch * hidden * (input + hidden) * layers * direction.count();
        steps = steps.min((100_000 / step).max(1));
        let reverse = reverse.filter(|_| direction == Direction::Both);
        if activations.iter().chain(reverse.iter().flatten()).any(|&a| !is_bounded(a)) {
            steps = steps.min(5);
        }
        // A backward pass needs a gradient to start from.
        given[2] |= !given[3];
        RandomCase {
            reset,
            update,
            bias,
            activations,
            reverse,
            clip,
            layers,
            direction,
            dropout: if layers > 1 { dropout } else { 0.0 },
            zoneout,
            sizes: [steps, batch, input, hidden],
            layout,
            lengths,
            resets,
            given,
            recurrence,
            recompute,
            poisoned,
            seed: seed.into(),
        }
    })
}

fn is_bounded(activation: Activation) -> bool {
    use Activation::{HardSigmoid, ScaledTanh, Sigmoid, Softsign, Tanh};
    matches!(activation, Sigmoid | Tanh | HardSigmoid { .. } | ScaledTanh { .. } | Softsign)
}

/// The largest fraction of the tolerance, and what is wrong.
#[derive(Default)]
struct Verdict {
    share: f64,
    wrong: Vec<String>,
    /// True if numbers are too large for f32 and were not compared.
    beyond: bool,
}

impl Verdict {
    /// Errors are relative to an array's largest number, if that is above 1.
    fn compare(&mut self, what: &str, got: ArrayViewD<'_, f32>, expected: ArrayViewD<'_, f64>) {
        assert_eq!(got.shape(), expected.shape(), "{what}");
        let largest = expected.iter().fold(1.0, |largest, value| f64::max(largest, value.abs()));
        let mut worst = (0.0, String::new());
        for ((at, &got), &expected) in got.indexed_iter().zip(&expected) {
            let share = TOLERANCE.fraction(f64::from(got) / largest, expected / largest);
            if share > worst.0 {
                worst =
                    (share, format!("{what} at {:?}: {got:e}, expected {expected:e}", at.slice()));
            }
        }
        self.share = self.share.max(worst.0);
        if worst.0 > 1.0 {
            self.wrong.push(worst.1);
        }
    }
}

/// The input arrays of a run.
struct RunArrays {
    x: Array3<f32>,
    states: [Array3<f32>; 2],
    dy: Array3<f32>,
    dh_n: Array3<f32>,
    lengths: Vec<usize>,
    resets: Array2<bool>,
}

impl RandomCase {
    fn config(&self) -> GruConfig {
        let [_, _, input, hidden] = self.sizes;
        let [gate, candidate] = self.activations;
        GruConfig::new(input, hidden)
            .with_reset(self.reset)
            .with_update(self.update)
            .with_bias(self.bias)
            .with_layers(self.layers)
            .with_direction(self.direction)
            .with_activations(gate, candidate)
            .with_reverse_activations(
                self.reverse.map(|[gate, candidate]| Activations { gate, candidate }),
            )
            .with_clip(self.clip)
            .with_dropout(self.dropout)
            .with_zoneout(self.zoneout)
    }

    /// Padding holds NaN.
    fn given(&self) -> RunArrays {
        let [steps, batch, ..] = self.sizes;
        let shape = self.config().shape(steps, batch).unwrap().with_layout(self.layout);
        let mut rng = rng(self.seed);
        let lengths: Vec<usize> = (0..batch).map(|_| rng.random_range(0..=steps)).collect();
        let [first, second, _] = shape.x();
        let resets = Array2::from_shape_simple_fn((first, second), || rng.random_range(0..4) == 0);
        let mut random = |shape: [usize; 3]| {
            Array3::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0_f32))
        };
        let [mut x, mut dy] = [shape.x(), shape.y()].map(&mut random);
        let [h0, reset_state, dh_n] = [shape.state(); 3].map(random);
        if self.lengths {
            for (row, &length) in lengths.iter().enumerate() {
                for array in [&mut x, &mut dy] {
                    let axis = Axis(if self.layout == Layout::TimeMajor { 1 } else { 0 });
                    array.index_axis_mut(axis, row).slice_mut(s![length.., ..]).fill(f32::NAN);
                }
            }
        }
        RunArrays { x, states: [h0, reset_state], dy, dh_n, lengths, resets }
    }

    fn batch<'a, F>(
        &self,
        given: &'a RunArrays,
        x: &'a Array3<F>,
        [h0, reset_state]: &'a [Array3<F>; 2],
    ) -> Batch<'a, F> {
        let mut batch = Batch::new(x.view())
            .with_layout(self.layout)
            .with_h0(self.given[0].then_some(h0.view()))
            .with_reset_state(self.given[1].then_some(reset_state.view()))
            .with_seed(self.seed);
        if self.lengths {
            batch = batch.with_lengths(&given.lengths);
        }
        if self.resets {
            batch = batch.with_resets(given.resets.view());
        }
        batch
    }

    /// Runs the case on a device and in the reference.
    fn run(&self, device: &Device) -> Result<Verdict, Error> {
        let params = Params::init(&self.config(), Init::Uniform, self.seed)?;
        let given = self.given();
        let (with_dy, with_dh_n) = (self.given[2], self.given[3]);

        let params64 = params.cast::<f64>();
        let [x64, dy64, dh_n64] = [&given.x, &given.dy, &given.dh_n].map(|a| a.mapv(f64::from));
        let states64 = given.states.each_ref().map(|a| a.mapv(f64::from));
        let batch64 = self.batch(&given, &x64, &states64);
        let trace = reference::forward_train(&params64, batch64)?;
        let (dy64, dh_n64) = (with_dy.then_some(dy64.view()), with_dh_n.then_some(dh_n64.view()));
        let expected = reference::backward(&params64, x64.view(), &trace, dy64, dh_n64)?;
        let expected_in_use = reference::forward(&params64, batch64)?;
        // If the state is not bounded, sums may be too large for f32.
        let all = trace.y().into_iter().chain(expected.x.iter().chain(&expected.h0).copied());
        let all = all.chain(expected.params.as_slice().iter().copied());
        if all.fold(0.0, |largest, v| f64::max(largest, v.abs())) > 1e6 {
            return Ok(Verdict { beyond: true, ..Verdict::default() });
        }

        let options =
            RunOptions::default().with_recurrence(self.recurrence).with_recompute(self.recompute);
        let gru = Gru::with_params(params, device)?.with_options(options);
        if self.poisoned {
            self.poison(&gru, &given)?;
        }
        let batch = self.batch(&given, &given.x, &given.states);
        let in_use = gru.forward(batch)?;
        let (output, tape) = gru.forward_train(batch)?;
        let dy = with_dy.then_some(given.dy.view());
        let got = gru.backward(tape, dy, with_dh_n.then_some(given.dh_n.view()))?;

        let mut verdict = Verdict::default();
        for (what, got, expected) in [
            ("y", &output.y, &trace.y()),
            ("h_n", &output.h_n, &trace.h_n()),
            ("y in use", &in_use.y, &expected_in_use.y()),
            ("h_n in use", &in_use.h_n, &expected_in_use.h_n()),
            ("dx", &got.x, &expected.x),
            ("dh0", &got.h0, &expected.h0),
            ("dreset_state", &got.reset_state, &expected.reset_state),
        ] {
            verdict.compare(what, got.view().into_dyn(), expected.view().into_dyn());
        }
        for ((name, got), (_, expected)) in got.params.iter().zip(expected.params.iter()) {
            verdict.compare(&format!("d{name}"), got, expected);
        }
        Ok(verdict)
    }

    /// Fills the memory of the model's runs of this shape with NaN.
    fn poison(&self, gru: &Gru, given: &RunArrays) -> Result<(), Error> {
        let nan = |like: &Array3<f32>| Array3::from_elem(like.dim(), f32::NAN);
        let (x, dy) = (nan(&given.x), nan(&given.dy));
        let batch = Batch::new(x.view()).with_layout(self.layout).with_seed(0);
        gru.forward(batch)?;
        let (_, tape) = gru.forward_train(batch)?;
        gru.backward(tape, Some(dy.view()), None)?;
        Ok(())
    }
}

fn check(device: &Device) {
    for case in KNOWN {
        let verdict = case.run(device).unwrap();
        assert!(verdict.wrong.is_empty(), "{case:?} on {device}:\n{}", verdict.wrong.join("\n"));
    }
    let mut config =
        Config { failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = if device.is_adapter() { 12 } else { 40 };
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(7);
    }
    let count = config.cases;
    let worst = RefCell::new((0.0, String::new()));
    let beyond = Cell::new(0);
    let start = std::time::Instant::now();
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&cases(), |case| {
        let fail = |error: String| TestCaseError::fail(error);
        let ran = case.run(device).map_err(|error| fail(error.to_string()))?;
        let Verdict { share, wrong, beyond: is_beyond } = ran;
        beyond.set(beyond.get() + u32::from(is_beyond));
        if share > worst.borrow().0 {
            *worst.borrow_mut() = (share, format!("{case:?}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(fail(wrong.join("\n"))) }
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("on {device}, {case:?}:\n{}", why.message()),
        Err(TestError::Abort(why)) => panic!("on {device}: {}", why.message()),
    }
    let (share, case) = worst.into_inner();
    println!(
        "{count} cases on {device}, {} of them beyond f32, in {:.0} s; at most {share:.3} of the tolerance, by {case}",
        beyond.get(),
        start.elapsed().as_secs_f64()
    );
}

#[test]
fn any_run_on_the_cpu_agrees_with_the_reference() {
    check(&Device::cpu());
}

#[test]
fn any_run_on_the_adapter_agrees_with_the_reference() {
    check(adapter());
}
