//! Compares every SIMD level and every thread layout with the reference in f64. `gru check --device
//! cpu` tests only the best level and the default layout of the computer it runs on.

use ndarray::{Array2, Array3, ArrayView, Dimension};

use super::schedule::{ThreadLayout, chunk_steps};
use super::simd::SimdLevel;
use super::team::Sharing;
use super::trace::{CpuCellTrace, Workspace};
use super::*;
use crate::check::random3;
use crate::reference;
use crate::spec::activation::{Activation, Activations};
use crate::spec::config::{Bias, Direction, GruConfig, Reset, Update};
use crate::spec::params::Init;

/// Runs the forward pass for training. Returns y and the trace.
fn forward_train(
    params: &Params,
    weights: (&Weights, u64),
    batch: Batch<'_>,
    options: RunOptions,
    cached: Option<CpuTrace>,
) -> Result<(Array3<f32>, CpuTrace)> {
    let shape = batch.check(params.layout().config())?;
    let mut y = Array3::from_elem(shape.y(), f32::NAN);
    let trace = forward_train_into(params, weights, batch, options, cached, y.view_mut())?;
    Ok((y, trace))
}

/// Returns a thread layout, given the shape and the input size.
type LayOut = fn(Shape, usize) -> ThreadLayout;

const SINGLE: LayOut = |shape, _| by_blocks(shape, 1, Sharing::Expected);
const BY_ROWS: LayOut =
    |shape, _| ThreadLayout { rows: 3, ..by_blocks(shape, 1, Sharing::Expected) };
const BY_BLOCKS: LayOut = |shape, _| by_blocks(shape, 2, Sharing::Expected);
/// The same work as of a team, on one thread.
const REHEARSED: LayOut = |shape, _| by_blocks(shape, 3, Sharing::Rehearsed);

fn by_blocks(shape: Shape, threads_per_step: usize, sharing: Sharing) -> ThreadLayout {
    ThreadLayout { rows: shape.batch, threads_per_step, sharing, is_parallel: true }
}

#[derive(Clone, Debug)]
struct CpuCase {
    /// T, B, I, H, L
    sizes: [usize; 5],
    direction: Direction,
    layout: Layout,
    activations: [Activation; 2],
    /// Other activations of the reverse direction.
    reverse: Option<[Activation; 2]>,
    clip: Option<f32>,
    /// The probabilities of dropout and zoneout.
    noise: [f32; 2],
    has_step_flags: bool,
}

/// Sizes of 1, primes, and the sizes of panels and tiles ± 1.
fn cases() -> Vec<CpuCase> {
    let plain = CpuCase {
        sizes: [3, 2, 3, 5, 1],
        direction: Direction::Forward,
        layout: Layout::TimeMajor,
        activations: [Activation::Sigmoid, Activation::Tanh],
        reverse: None,
        clip: None,
        noise: [0.0; 2],
        has_step_flags: false,
    };
    let sized = |sizes| CpuCase { sizes, ..plain.clone() };
    vec![
        sized([1, 1, 1, 1, 1]),
        sized([5, 1, 2, 33, 1]),
        sized([50, 1, 17, 16, 1]),
        sized([4, 3, 1, 31, 1]),
        sized([3, 4, 31, 15, 2]),
        sized([2, 5, 33, 65, 1]),
        sized([3, 7, 5, 17, 1]),
        sized([2, 12, 16, 32, 1]),
        sized([3, 13, 7, 64, 1]),
        sized([2, 25, 3, 97, 1]),
        sized([260, 2, 2, 3, 1]),
        sized([47, 11, 4, 5, 1]),
        // Several chunks of steps, and several blocks of units.
        CpuCase {
            direction: Direction::Both,
            has_step_flags: true,
            noise: [0.0, 0.3],
            ..sized([21, 3, 5, 70, 1])
        },
        CpuCase { direction: Direction::Both, has_step_flags: true, ..sized([6, 5, 3, 19, 2]) },
        CpuCase {
            direction: Direction::Reverse,
            layout: Layout::BatchFirst,
            has_step_flags: true,
            noise: [0.4, 0.3],
            ..sized([7, 4, 3, 9, 2])
        },
        CpuCase {
            direction: Direction::Both,
            layout: Layout::BatchFirst,
            noise: [0.4, 0.0],
            activations: [Activation::HARD_SIGMOID_ONNX, Activation::Relu],
            ..sized([4, 3, 2, 18, 3])
        },
        CpuCase { activations: [Activation::Tanh, Activation::IDENTITY], ..sized([3, 3, 2, 4, 1]) },
        CpuCase {
            direction: Direction::Both,
            activations: [
                Activation::HARD_SIGMOID_PYTORCH,
                Activation::ScaledTanh { alpha: -0.9, beta: 1.2 },
            ],
            reverse: Some([Activation::Softsign, Activation::Softplus]),
            clip: Some(0.8),
            ..sized([4, 3, 2, 19, 2])
        },
        CpuCase {
            activations: [Activation::Sigmoid, Activation::LeakyRelu { alpha: 0.1 }],
            ..sized([3, 2, 3, 5, 1])
        },
        CpuCase {
            activations: [Activation::Softsign, Activation::Elu { alpha: 0.6 }],
            ..sized([3, 5, 3, 17, 1])
        },
        CpuCase {
            activations: [Activation::Sigmoid, Activation::ThresholdedRelu { alpha: 0.1 }],
            ..sized([3, 2, 4, 6, 1])
        },
    ]
}

/// The parameters and inputs of a case.
struct CaseData {
    params: Params,
    layout: Layout,
    x: Array3<f32>,
    h0: Array3<f32>,
    reset_state: Array3<f32>,
    dy: Array3<f32>,
    dh_n: Array3<f32>,
    lengths: Option<Vec<usize>>,
    resets: Option<Array2<bool>>,
}

impl CaseData {
    fn new(case: &CpuCase, variant: &GruConfig) -> Self {
        let [steps, batch, _, _, layers] = case.sizes;
        let [gate, candidate] = case.activations;
        let [dropout, zoneout] = case.noise;
        let config = variant
            .clone()
            .with_layers(layers)
            .with_direction(case.direction)
            .with_activations(gate, candidate)
            .with_reverse_activations(
                case.reverse.map(|[gate, candidate]| Activations { gate, candidate }),
            )
            .with_clip(case.clip)
            .with_dropout(dropout)
            .with_zoneout(zoneout);
        let shape = config.shape(steps, batch).unwrap().with_layout(case.layout);
        let mut data = Self {
            params: Params::init(&config, Init::Uniform, 3).unwrap(),
            layout: case.layout,
            x: random3(shape.x(), 1),
            h0: random3(shape.state(), 2),
            reset_state: random3(shape.state(), 3),
            dy: random3(shape.y(), 4),
            dh_n: random3(shape.state(), 5),
            lengths: case
                .has_step_flags
                .then(|| (0..batch).map(|row| (5 * row + 3) % (steps + 1)).collect()),
            resets: case.has_step_flags.then(|| {
                Array2::from_shape_fn(case.layout.order(steps, batch), |(i, j)| {
                    (i + 2 * j) % 3 == 1
                })
            }),
        };
        data.fill_padding(f32::NAN);
        data
    }

    /// Fills x and dy past each row's length. The results must not depend on these values.
    fn fill_padding(&mut self, value: f32) {
        let Some(lengths) = &self.lengths else { return };
        for array in [&mut self.x, &mut self.dy] {
            let mut array = time_major(array.view_mut(), self.layout);
            for (mut row, &length) in array.axis_iter_mut(Axis(1)).zip(lengths) {
                row.slice_mut(s![length.., ..]).fill(value);
            }
        }
    }

    fn batch(&self) -> Batch<'_> {
        let lengths = self.lengths.as_deref();
        let resets = self.resets.as_ref().map(|resets| resets.view());
        let batch = Batch { lengths, resets, ..Batch::new(self.x.view()).with_seed(7) };
        batch
            .with_layout(self.layout)
            .with_h0(self.h0.view())
            .with_reset_state(self.reset_state.view())
    }

    /// Returns y and h_n of inference, y and h_n of training, and all gradients.
    fn run(
        &self,
        level: SimdLevel,
        lay_out: LayOut,
        options: RunOptions,
    ) -> Vec<(String, Array3<f32>)> {
        let weights = Weights::new(level, lay_out, chunk_steps);
        self.run_with(&weights, options, None).0
    }

    /// Returns the same as [`Self::run`], and the trace of the training run.
    fn run_with(
        &self,
        weights: &Weights,
        options: RunOptions,
        cached: Option<CpuTrace>,
    ) -> (Vec<(String, Array3<f32>)>, CpuTrace) {
        let (params, weights, batch) = (&self.params, (weights, 0), self.batch());
        let (y, h_n) = forward(params, weights, batch).unwrap();
        let (y_train, mut trace) = forward_train(params, weights, batch, options, cached).unwrap();
        let h_n_train = trace.h_n().clone();
        let (dy, dh_n) = (Some(self.dy.view()), Some(self.dh_n.view()));
        let gradients =
            backward(params, weights, &mut trace, dy, dh_n, GradientsWanted::All).unwrap();
        let mut all = named([y, h_n, y_train, h_n_train]);
        all.extend(named_gradients(&gradients));
        (all, trace)
    }

    fn expected(&self) -> Vec<(String, Array3<f64>)> {
        let params = self.params.cast::<f64>();
        let [x, h0, reset_state, dy, dh_n] =
            [&self.x, &self.h0, &self.reset_state, &self.dy, &self.dh_n].map(|a| a.mapv(f64::from));
        let source = self.batch();
        let batch = Batch::new(x.view()).with_h0(h0.view()).with_reset_state(reset_state.view());
        let Batch { layout, lengths, resets, seed, .. } = source;
        let batch = Batch { layout, lengths, resets, seed, ..batch };
        let inference = reference::forward(&params, batch).unwrap();
        let trace = reference::forward_train(&params, batch).unwrap();
        let (dy, dh_n) = (Some(dy.view()), Some(dh_n.view()));
        let gradients = reference::backward(&params, x.view(), &trace, dy, dh_n).unwrap();
        let mut all = named([inference.y(), inference.h_n(), trace.y(), trace.h_n()]);
        all.extend(named_gradients(&gradients));
        all
    }
}

fn named<F>(arrays: [Array3<F>; 4]) -> Vec<(String, Array3<F>)> {
    let names = ["y", "h_n", "y in training", "h_n in training"].map(str::to_owned);
    names.into_iter().zip(arrays).collect()
}

fn named_gradients<F: ndarray::NdFloat>(gradients: &Gradients<F>) -> Vec<(String, Array3<F>)> {
    let flat =
        |values: &[F]| Array3::from_shape_vec([1, 1, values.len()], values.to_vec()).unwrap();
    vec![
        ("dparams".to_owned(), flat(gradients.params.as_slice())),
        ("dx".to_owned(), gradients.x.clone()),
        ("dh0".to_owned(), gradients.h0.clone()),
        ("dreset_state".to_owned(), gradients.reset_state.clone()),
    ]
}

fn bits<D: Dimension>(array: &ArrayView<'_, f32, D>) -> Vec<u32> {
    array.iter().map(|value| value.to_bits()).collect()
}

fn variants(case: &CpuCase) -> Vec<GruConfig> {
    let [_, _, input, hidden, _] = case.sizes;
    GruConfig::all_variants(input, hidden).into_iter().collect()
}

#[test]
fn every_simd_level_and_thread_layout_matches_the_reference() {
    let mut failures = Vec::new();
    for case in cases() {
        for variant in variants(&case) {
            let data = CaseData::new(&case, &variant);
            let expected = data.expected();
            let [default_chunks, short_chunks] = [Weights::default().chunk_steps, |_| 2];
            let schedules = [(SINGLE, default_chunks), (BY_ROWS, short_chunks)];
            for (level, (lay_out, chunk_steps)) in
                SimdLevel::all().flat_map(|level| schedules.map(|schedule| (level, schedule)))
            {
                let weights = Weights::new(level, lay_out, chunk_steps);
                let (got, _) = data.run_with(&weights, RunOptions::default(), None);
                for ((name, got), (_, expected)) in got.iter().zip(&expected) {
                    assert_eq!(got.dim(), expected.dim(), "{name}");
                    let scale = expected.iter().fold(1.0, |scale, e| f64::max(scale, e.abs()));
                    let error = |(&g, e): (&f32, &f64)| (f64::from(g) - e).abs();
                    // Each element is compared by itself: a maximum of errors would drop a NaN.
                    let is_close = got.iter().zip(expected).all(|pair| error(pair) <= 3e-6 * scale);
                    if !is_close {
                        failures.push(format!("{name}: {level:?} {variant} {case:?}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn thread_layouts_give_bitwise_equal_results() {
    for case in cases() {
        for variant in variants(&case) {
            if variant.bias == Bias::One || variant.update == Update::Keeps {
                continue;
            }
            let data = CaseData::new(&case, &variant);
            let default = RunOptions::default();
            for options in [default, default.with_recompute(true)] {
                for level in SimdLevel::all() {
                    let expected = data.run(level, SINGLE, options);
                    for lay_out in [BY_ROWS, BY_BLOCKS, REHEARSED] {
                        let got = data.run(level, lay_out, options);
                        for ((name, got), (_, expected)) in got.iter().zip(&expected) {
                            let same = bits(&got.view()) == bits(&expected.view());
                            assert!(same, "{name} {level:?} {variant} {options:?} {case:?}");
                        }
                    }
                }
            }
        }
    }
}

/// Sizes at which gates are recomputed in spans of one step and of several, with a shorter last
/// span.
fn recompute_cases() -> Vec<CpuCase> {
    let [first, .., last] = &cases()[..] else { unreachable!() };
    let plain = CpuCase { activations: first.activations, ..last.clone() };
    let mut cases = Vec::new();
    for (steps, batch) in [(1, 1), (1, 3), (2, 3), (7, 1), (7, 3), (17, 1), (17, 3)] {
        for direction in [Direction::Forward, Direction::Reverse, Direction::Both] {
            for layers in [1, 2] {
                let sizes = [steps, batch, 3, 19, layers];
                let layout = [Layout::TimeMajor, Layout::BatchFirst][layers - 1];
                let plain = CpuCase { sizes, direction, layout, ..plain.clone() };
                // Dropout is between layers, so it needs a second layer.
                let noise = [if layers == 2 { 0.4 } else { 0.0 }, 0.3];
                cases.push(CpuCase { noise, has_step_flags: true, ..plain.clone() });
                cases.push(plain);
            }
        }
    }
    cases
}

#[test]
fn recomputed_gates_give_the_same_gradients() {
    let default = RunOptions::default();
    for case in recompute_cases() {
        for variant in variants(&case) {
            if variant.bias == Bias::One {
                continue;
            }
            let data = CaseData::new(&case, &variant);
            let level = SimdLevel::best();
            let expected = data.run(level, BY_ROWS, default);
            let got = data.run(level, BY_ROWS, default.with_recompute(true));
            for ((name, got), (_, expected)) in got.iter().zip(&expected) {
                // Gradients of parameters are sums over all steps. Recomputation adds them span by
                // span, in another order.
                let is_same = match name.as_str() {
                    "dparams" => {
                        let scale = expected.iter().fold(1.0, |scale, e| f32::max(scale, e.abs()));
                        got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= 1e-6 * scale)
                    }
                    _ => bits(&got.view()) == bits(&expected.view()),
                };
                assert!(is_same, "{name}: {variant} {case:?}");
            }
        }
    }
}

/// Returns the address of each array.
fn addresses(trace: &CpuTrace) -> Vec<*const f32> {
    let cells = trace.cells.iter().flat_map(|cell| [Some(&cell.h), cell.gates.as_ref()]);
    let Workspace { gates, doutputs } = &trace.workspace;
    let others = [&trace.x].into_iter().chain(&trace.layer_y).chain(gates).chain(doutputs);
    cells.flatten().chain(others).map(|array| array.as_ptr()).collect()
}

#[test]
fn leaving_out_the_gradient_of_x_does_not_change_other_gradients() {
    for case in cases() {
        for variant in variants(&case).into_iter().step_by(5) {
            let data = CaseData::new(&case, &variant);
            let Weights { level, lay_out, .. } = Weights::default();
            let weights = Weights::new(level, lay_out, |_| 2);
            let run = |wanted| {
                let (params, weights, batch) = (&data.params, (&weights, 0), data.batch());
                let (_, mut trace) =
                    forward_train(params, weights, batch, RunOptions::default(), None).unwrap();
                let (dy, dh_n) = (Some(data.dy.view()), Some(data.dh_n.view()));
                backward(params, weights, &mut trace, dy, dh_n, wanted).unwrap()
            };
            let (all, but_x) = (run(GradientsWanted::All), run(GradientsWanted::AllButX));
            assert_eq!((all.x.len(), but_x.x.len()), (data.x.len(), 0), "{variant}");
            let same = but_x.params.as_slice() == all.params.as_slice() && but_x.h0 == all.h0;
            assert!(same && but_x.reset_state == all.reset_state, "{variant} {case:?}");
        }
    }
}

#[test]
fn old_contents_of_a_reused_trace_do_not_matter() {
    let default = RunOptions::default();
    for case in cases() {
        for variant in variants(&case) {
            if variant.bias == Bias::One {
                continue;
            }
            let data = CaseData::new(&case, &variant);
            // Leaves NaN in every array of the trace: rows have full length and no resets.
            let mut nan_data =
                CaseData::new(&CpuCase { has_step_flags: false, ..case.clone() }, &variant);
            for array in [&mut nan_data.x, &mut nan_data.h0, &mut nan_data.dy] {
                array.fill(f32::NAN);
            }
            let mut longer = case.clone();
            longer.sizes[0] += 1;
            let longer = CaseData::new(&longer, &variant);
            for options in [default, default.with_recompute(true)] {
                let weights = Weights::default();
                let (fresh, _) = data.run_with(&weights, options, None);
                let (_, cached) = nan_data.run_with(&weights, options, None);
                let before = addresses(&cached);
                let (again, cached) = data.run_with(&weights, options, Some(cached));
                let is_reused = before.iter().all(|address| addresses(&cached).contains(address));
                assert!(is_reused, "memory is not reused: {variant} {options:?} {case:?}");
                let (_, cached) = longer.run_with(&weights, options, Some(cached));
                let (shorter, cached) = data.run_with(&weights, options, Some(cached));
                let other = default.with_recompute(!options.recompute);
                let (_, cached) = data.run_with(&weights, other, Some(cached));
                assert_eq!(cached.cells[0].gates.is_none(), other.recompute);
                for ((name, fresh), ((_, again), (_, shorter))) in
                    fresh.iter().zip(again.iter().zip(&shorter))
                {
                    let [fresh, again, shorter] = [fresh, again, shorter].map(|a| bits(&a.view()));
                    assert!(fresh == again, "{name}: {variant} {options:?} {case:?}");
                    assert!(fresh == shorter, "{name}: {variant} {options:?} {case:?}");
                }
            }
        }
    }
}

#[test]
fn recomputed_gates_are_not_saved() {
    let config = GruConfig::pytorch(3, 5).with_layers(2).with_direction(Direction::Both);
    let params = Params::init(&config, Init::Uniform, 3).unwrap();
    let x = random3([17, 2, 3], 1);
    let saved_len = |options| {
        let weights = (&Weights::default(), 0);
        let (_, trace) =
            forward_train(&params, weights, Batch::new(x.view()), options, None).unwrap();
        let cell_len =
            |cell: &CpuCellTrace| cell.h.len() + cell.gates.as_ref().map_or(0, |g| g.len());
        trace.cells.iter().map(cell_len).sum::<usize>()
    };
    let states = 2 * 2 * 17 * 2 * 5;
    assert_eq!(saved_len(RunOptions::default()), 5 * states);
    assert_eq!(saved_len(RunOptions::default().with_recompute(true)), states);
}

#[test]
fn a_nan_affects_only_its_row_from_its_step_on() {
    for variant in GruConfig::all_variants(3, 37) {
        let mut x = random3([5, 14, 3], 1);
        let params = Params::init(&variant, Init::Uniform, 3).unwrap();
        let run = |x: &Array3<f32>| {
            forward(&params, (&Weights::default(), 0), Batch::new(x.view())).unwrap().0
        };
        let clean = run(&x);
        x[[2, 12, 1]] = f32::NAN;
        for ((index, &got), &clean) in run(&x).indexed_iter().zip(&clean) {
            if index.1 == 12 && index.0 >= 2 {
                assert!(got.is_nan(), "{variant} {index:?}: {got}");
            } else {
                assert_eq!(got.to_bits(), clean.to_bits(), "{variant} {index:?}");
            }
        }
    }
}

#[test]
fn weights_are_packed_again_for_a_new_version_of_the_parameters() {
    let config = GruConfig::pytorch(3, 5);
    let [old, new] = [1, 2].map(|seed| Params::init(&config, Init::Uniform, seed).unwrap());
    let x = random3([4, 2, 3], 1);
    let weights = Weights::default();
    let run = |weights: &Weights, params: &Params, version: u64| {
        forward(params, (weights, version), Batch::new(x.view())).unwrap().0
    };
    run(&weights, &old, 0);
    assert_eq!(run(&weights, &new, 1), run(&Weights::default(), &new, 0));
}

#[test]
fn thread_layouts_follow_the_amount_of_work() {
    use Sharing::{Expected, Tried};
    let layout = |[steps, batch, input, hidden]: [usize; 4], threads| {
        let shape = GruConfig::pytorch(input, hidden).shape(steps, batch).unwrap();
        ThreadLayout::new(shape, input, threads)
    };
    let rows = |shape, threads| {
        let ThreadLayout { rows, threads_per_step, is_parallel, .. } = layout(shape, threads);
        (rows, threads_per_step, is_parallel)
    };
    assert_eq!(rows([4, 2, 8, 8], 2), (2, 1, false));
    assert_eq!(rows([64, 32, 128, 256], 2), (16, 1, true));
    assert_eq!(rows([64, 31, 128, 256], 1), (31, 1, false));
    // Only the products of the backward pass use threads.
    assert_eq!(rows([512, 1, 64, 96], 2), (1, 1, true));
    assert_eq!(rows([2, 4, 512, 512], 2), (4, 2, true));
    assert_eq!(rows([1, 4, 512, 512], 2), (4, 1, true));
    let shared = |shape, threads| {
        let ThreadLayout { rows, threads_per_step, sharing, .. } = layout(shape, threads);
        (rows, threads_per_step, sharing)
    };
    assert_eq!(shared([128, 1, 64, 128], 2), (1, 2, Tried));
    assert_eq!(shared([200, 4, 40, 192], 2), (4, 2, Tried));
    assert_eq!(shared([200, 4, 40, 192], 32), (4, 6, Tried));
    assert_eq!(shared([25, 1, 1024, 1024], 2), (1, 2, Expected));
    assert_eq!(shared([25, 16, 1024, 1024], 16), (8, 8, Expected));
    assert_eq!(shared([25, 1, 1024, 1024], 200), (1, 17, Expected));
    assert_eq!(shared([25, 100, 2048, 2048], 2_000), (9, 64, Expected));
}

/// Every thread of a pool leads a team or is in one.
#[test]
fn runs_that_share_steps_on_all_threads_of_a_pool_finish() {
    use rayon::prelude::*;
    let case = CpuCase { sizes: [40, 2, 9, 80, 2], ..cases()[0].clone() };
    let lay_outs: [LayOut; 3] = [
        BY_BLOCKS,
        |shape, _| by_blocks(shape, 3, Sharing::Expected),
        |shape, _| by_blocks(shape, 3, Sharing::Tried),
    ];
    for config in [GruConfig::pytorch(9, 80), GruConfig::new(9, 80).with_reset(Reset::Before)] {
        let data = CaseData::new(&case, &config);
        let (level, options) = (SimdLevel::best(), RunOptions::default());
        let expected = data.run(level, SINGLE, options);
        for threads in [2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                (0..60).into_par_iter().for_each(|i| {
                    let got = data.run(level, lay_outs[i % 3], options);
                    for ((name, got), (_, expected)) in got.iter().zip(&expected) {
                        assert!(bits(&got.view()) == bits(&expected.view()), "{name} {config}");
                    }
                });
            });
        }
    }
}
