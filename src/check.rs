//! A device held against the f64 reference: every kernel alone, then the whole, at odd sizes.
//!
//! `gru check` prints what [`run`] finds; a program that embeds this library may call it to decide
//! whether an adapter can be trusted.
//!
//! Unwritten elements cannot hide: outputs are filled with NaN before a kernel runs, and a whole
//! model runs once over NaN, which poisons every buffer of its session, before it runs for real.

use ndarray::{Array3, ArrayView, Dimension};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::config::GruConfig;
use crate::device::{Device, Target};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gru::Gru;
use crate::params::{Init, Params};
use crate::plan::{Buffers, Mode, Operand, Plan, Role, Stage, column_sum, matmul};
use crate::reference::{self, Cell};
use crate::runner::{Pass, Session};

/// How far a number may be from the expected one: `atol + rtol · |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// For expected values near 0.
    pub atol: f64,
    /// For the others.
    pub rtol: f64,
}

/// The tolerance of every comparison between f32 on a device and f64 in the reference.
///
/// Inputs are scaled so that every sum is of order 1. A rounding error of f32 is 6e-8 of a partial
/// sum; over the up to 70,000 terms summed here such errors wander to a few 1e-6, and adapters may
/// take `exp` up to `3 + 2|x|` units in the last place wide (WGSL's own bound). 1e-5 leaves each of
/// them room, and is far below what a wrong term, gate or index would make: 1e-2 and more.
pub const TOLERANCE: Tolerance = Tolerance { atol: 1e-5, rtol: 1e-4 };

impl Tolerance {
    /// The error as a share of what is allowed: up to 1 is within the tolerance. NaN where only one
    /// of the two is a number counts as infinite.
    pub fn share(&self, got: f64, expected: f64) -> f64 {
        if got.is_nan() && expected.is_nan() {
            return 0.0;
        }
        let share = (got - expected).abs() / (self.atol + self.rtol * expected.abs());
        if share.is_nan() { f64::INFINITY } else { share }
    }
}

/// What one subject, a kernel or a result of a model, came to over all its sizes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The kernel or the result, and the variant: `matmul Aᵀ·B`, `dW_hh of reset before, …`.
    pub subject: String,
    /// How many sizes were tried.
    pub cases: usize,
    /// The largest difference from the reference.
    pub error: f64,
    /// The largest share of the tolerance that a difference took. Above 1 is a failure.
    pub share: f64,
    /// The sizes at which that was.
    pub worst: String,
}

impl Finding {
    /// Whether every difference was within [`TOLERANCE`].
    pub fn passed(&self) -> bool {
        self.share <= 1.0
    }
}

/// Findings in the order their subjects were first seen.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn compare<D: Dimension>(
        &mut self,
        subject: &str,
        sizes: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
    ) {
        assert_eq!(got.shape(), expected.shape(), "{subject} at {sizes}");
        let (mut error, mut share) = (0.0, 0.0);
        for (&got, &expected) in got.iter().zip(expected) {
            let got = f64::from(got);
            error = f64::max(error, (got - expected).abs());
            share = f64::max(share, TOLERANCE.share(got, expected));
        }
        if share == f64::INFINITY {
            error = f64::INFINITY;
        }
        let at = self.0.iter().position(|f| f.subject == subject).unwrap_or_else(|| {
            let subject = subject.to_owned();
            let worst = sizes.to_owned();
            self.0.push(Finding { subject, cases: 0, error: 0.0, share: 0.0, worst });
            self.0.len() - 1
        });
        let finding = &mut self.0[at];
        finding.cases += 1;
        finding.error = finding.error.max(error);
        if share > finding.share {
            finding.share = share;
            finding.worst = sizes.to_owned();
        }
    }

    fn compare_slices(&mut self, subject: &str, sizes: &str, got: &[f32], expected: &[f64]) {
        self.compare(subject, sizes, &ArrayView::from(got), &ArrayView::from(expected));
    }
}

/// [`kernels`] and [`models`], in this order.
///
/// # Errors
/// What the device reports. A wrong number is a [`Finding`], not an error.
pub fn run(device: &Device) -> Result<Vec<Finding>> {
    let mut findings = kernels(device)?;
    findings.extend(models(device)?);
    Ok(findings)
}

/// Every kernel alone against its twin. Nothing on a CPU device, which has no kernels.
///
/// # Errors
/// As [`run`].
pub fn kernels(device: &Device) -> Result<Vec<Finding>> {
    let Target::Gpu(gpu) = device.target() else { return Ok(Vec::new()) };
    let mut findings = Findings::default();
    check_matmul(gpu, &mut findings)?;
    check_column_sum(gpu, &mut findings)?;
    for config in variants() {
        check_steps(gpu, config, &mut findings)?;
    }
    Ok(findings.0)
}

/// Forward and backward of every variant, through [`Gru`] as a user would call it.
///
/// # Errors
/// As [`run`].
pub fn models(device: &Device) -> Result<Vec<Finding>> {
    let mut findings = Findings::default();
    for config in variants() {
        check_model(device, config, &mut findings)?;
    }
    Ok(findings.0)
}

/// All twelve definitions, to be given sizes.
fn variants() -> impl Iterator<Item = impl Fn(usize, usize) -> GruConfig + Copy> {
    (0..GruConfig::all_variants(1, 1).len())
        .map(|i| move |input, hidden| GruConfig::all_variants(input, hidden).swap_remove(i))
}

/// [T, B, I, H]: ones, primes, and each tile's edge ± 1.
const SIZES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [2, 1, 3, 5], [5, 3, 7, 17], [3, 17, 33, 15], [4, 15, 1, 16], [2, 33, 16, 31]];

fn check_matmul(gpu: &Gpu, findings: &mut Findings) -> Result<()> {
    // The last is longer than lavapipe's loops may run: it must be cut into dispatches.
    const MNK: [[usize; 3]; 8] = [
        [1, 1, 1],
        [2, 3, 5],
        [31, 33, 17],
        [32, 32, 16],
        [33, 31, 15],
        [65, 2, 33],
        [1, 97, 100],
        [1, 1, 70_001],
    ];
    for (a_transposed, b_transposed, subject) in [
        (false, false, "matmul A·B"),
        (false, true, "matmul A·Bᵀ + bias"),
        (true, false, "matmul Aᵀ·B"),
        (true, true, "matmul Aᵀ·Bᵀ + bias"),
    ] {
        for (seed, [m, n, k]) in (0..).zip(MNK) {
            // Offsets and distances between rows of their own, as inside `gates`.
            let place = |rows: usize, columns: usize, transposed, extra| {
                let (major, minor) = if transposed { (columns, rows) } else { (rows, columns) };
                (major * (minor + extra) + 1, minor + extra)
            };
            let (a_len, a_stride) = place(m, k, a_transposed, 2);
            let (b_len, b_stride) = place(k, n, b_transposed, 0);
            let (c_len, c_stride) = place(m, n, false, 3);
            let a = random(a_len, 1.0, 4 * seed);
            let b = random(b_len, 1.0 / (k as f32).sqrt(), 4 * seed + 1);
            let bias = random(n, 1.0, 4 * seed + 2);

            let mut buffers = Buffers::default();
            let ids = [("a", a_len), ("b", b_len), ("bias", n), ("c", c_len)]
                .map(|(name, len)| buffers.add(name, "", len, Role::Input));
            let [a_slice, b_slice, bias_slice, c_slice] = ids.map(|id| buffers.whole(id));
            let operand = |slice, stride, transposed| {
                let make = if transposed { Operand::transposed } else { Operand::plain };
                make(slice, 1, stride)
            };
            let stages = matmul(
                subject,
                [m, n, k],
                operand(a_slice, a_stride, a_transposed),
                operand(b_slice, b_stride, b_transposed),
                if b_transposed { Ok(bias_slice) } else { Err(bias_slice) },
                Operand::plain(c_slice, 1, c_stride),
            );
            let plan = Plan::of_stages(subject, buffers.into_specs(), stages);
            let mut session = Session::new(gpu, plan, None)?;
            let nan = vec![f32::NAN; c_len];
            for (id, data) in ids.into_iter().zip([&a, &b, &bias, &nan]) {
                session.write(id, 0, data.len(), Some(data));
            }
            session.run(Pass::Forward)?;
            let got = &session.read(&[(ids[3], 0..c_len)])?[0];

            let at = |data: &[f32], stride, transposed, row: usize, column: usize| {
                let (major, minor) = if transposed { (column, row) } else { (row, column) };
                f64::from(data[1 + major * stride + minor])
            };
            let (mut results, mut expected) = (Vec::new(), Vec::new());
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k)
                        .map(|l| {
                            at(&a, a_stride, a_transposed, i, l)
                                * at(&b, b_stride, b_transposed, l, j)
                        })
                        .sum();
                    expected.push(sum + if b_transposed { f64::from(bias[j]) } else { 0.0 });
                    results.push(got[1 + i * c_stride + j]);
                }
            }
            let sizes = format!("M {m}, N {n}, K {k}");
            findings.compare_slices(subject, &sizes, &results, &expected);
        }
    }
    Ok(())
}

fn check_column_sum(gpu: &Gpu, findings: &mut Findings) -> Result<()> {
    // The last has more rows than one dispatch sums.
    for (seed, (rows, columns)) in
        (100..).zip([(1, 1), (15, 17), (16, 16), (17, 15), (257, 5), (600_011, 1)])
    {
        let stride = columns + 1;
        let a = random(rows * stride, 1.0 / (rows as f32).sqrt(), seed);
        let mut buffers = Buffers::default();
        let input = buffers.add("a", "", a.len(), Role::Input);
        let output = buffers.add("out", "", columns + 2, Role::Output);
        let stages = column_sum(
            "column_sum",
            rows,
            1..columns + 1,
            buffers.whole(input),
            stride,
            buffers.whole(output),
            2,
        );
        let plan = Plan::of_stages("column_sum", buffers.into_specs(), stages);
        let mut session = Session::new(gpu, plan, None)?;
        session.write(input, 0, a.len(), Some(&a));
        session.write(output, 0, columns + 2, Some(&vec![f32::NAN; columns + 2]));
        session.run(Pass::Forward)?;
        let got = &session.read(&[(output, 2..columns + 2)])?[0];
        let expected: Vec<f64> = (1..columns + 1)
            .map(|column| a.chunks_exact(stride).map(|row| f64::from(row[column])).sum())
            .collect();
        findings.compare_slices(
            "column_sum",
            &format!("{rows} rows, {columns} columns"),
            got,
            &expected,
        );
    }
    Ok(())
}

/// The step kernels of one variant over two steps, on gates that no input product made.
fn check_steps(
    gpu: &Gpu,
    make: impl Fn(usize, usize) -> GruConfig,
    findings: &mut Findings,
) -> Result<()> {
    for (seed, [_, batch, input, hidden]) in (200..).zip(SIZES) {
        const STEPS: usize = 2;
        let config = make(input, hidden);
        let shape = config.shape(STEPS, batch)?;
        let plan = Plan::new(&config, shape, Mode::Training)?;
        let steps = |stages: &[Stage]| {
            let is_step =
                |s: &&Stage| !matches!(s, Stage::Once(d) if !d.kernel.name.ends_with("_step"));
            stages.iter().filter(is_step).cloned().collect::<Vec<_>>()
        };
        let stages = [steps(plan.forward()), steps(plan.backward())];
        let id = |name| plan.buffer(name).expect("a training plan has it");
        let state = batch * hidden;
        let params = Params::init(&config, Init::Uniform, seed)?;
        let gates = random(STEPS * 4 * state, 1.0, seed + 10);
        let mut h = random((STEPS + 1) * state, 1.0, seed + 20);
        h[state..].fill(f32::NAN);
        let dy = random(STEPS * state, 1.0, seed + 30);
        let carry = random(state, 1.0, seed + 40);

        let params64 = params.cast::<f64>();
        let cell = Cell::new(&params64);
        let (mut gates64, mut h64) = (widen(&gates), widen(&h));
        for t in 0..STEPS {
            for b in 0..batch {
                let row = t * batch + b;
                let (past, next) = h64.split_at_mut((t + 1) * state);
                let gates = &mut gates64[row * 4 * hidden..][..4 * hidden];
                cell.step(
                    &past[row * hidden..][..hidden],
                    gates,
                    &mut next[b * hidden..][..hidden],
                );
            }
        }
        let (forward_gates, forward_h) = (gates64.clone(), h64.clone());
        let mut carry64 = widen(&carry);
        for t in (0..STEPS).rev() {
            for b in 0..batch {
                let row = t * batch + b;
                let dh = &mut carry64[b * hidden..][..hidden];
                dh.iter_mut().zip(&dy[row * hidden..]).for_each(|(d, &g)| *d += f64::from(g));
                let gates = &mut gates64[row * 4 * hidden..][..4 * hidden];
                cell.step_backward(&h64[row * hidden..][..hidden], gates, dh);
            }
        }

        let [forward, backward] =
            stages.map(|stages| Plan::of_stages("steps", plan.buffers().to_vec(), stages));
        let sizes = format!("B {batch}, H {hidden}");
        let mut session = Session::new(gpu, forward, None)?;
        let upload = |session: &mut Session, gates: &[f32], h: &[f32]| {
            session.write(id("params"), 0, params.as_slice().len(), Some(params.as_slice()));
            session.write(id("gates"), 0, gates.len(), Some(gates));
            session.write(id("h"), 0, h.len(), Some(h));
        };
        upload(&mut session, &gates, &h);
        session.run(Pass::Forward)?;
        let got = session.read(&[(id("gates"), 0..gates.len()), (id("h"), 0..h.len())])?;
        let variant = config_words(&config);
        let subject = format!("forward_step, {variant}");
        findings.compare_slices(&subject, &sizes, &got[0], &forward_gates);
        findings.compare_slices(&subject, &sizes, &got[1], &forward_h);

        let mut session = Session::new(gpu, backward, None)?;
        let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        upload(&mut session, &narrow(&forward_gates), &narrow(&forward_h));
        session.write(id("dy"), 0, dy.len(), Some(&dy));
        session.write(id("carry"), 0, carry.len(), Some(&carry));
        session.run(Pass::Forward)?;
        let got = session.read(&[(id("gates"), 0..gates.len()), (id("carry"), 0..carry.len())])?;
        let subject = format!("backward_step, {variant}");
        findings.compare_slices(&subject, &sizes, &got[0], &gates64);
        findings.compare_slices(&subject, &sizes, &got[1], &carry64);
    }
    Ok(())
}

fn check_model(
    device: &Device,
    make: impl Fn(usize, usize) -> GruConfig,
    findings: &mut Findings,
) -> Result<()> {
    for (seed, [steps, batch, input, hidden]) in (300..).zip(SIZES) {
        let config = make(input, hidden);
        let shape = config.shape(steps, batch)?;
        let params = Params::init(&config, Init::Uniform, seed)?;
        let [x, h0, dy, dh_n] =
            [(shape.x(), 10), (shape.state(), 20), (shape.y(), 30), (shape.state(), 40)]
                .map(|(shape, offset)| random3(shape, seed + offset));
        let gru = Gru::with_params(params, device)?;

        let nan = x.mapv(|_| f32::NAN);
        let (_, tape) = gru.forward_train(nan.view(), None)?;
        let nan = dy.mapv(|_| f32::NAN);
        gru.backward(tape, Some(nan.view()), None)?;

        let params64 = gru.params().cast::<f64>();
        let [x64, h064, dy64, dh_n64] = [&x, &h0, &dy, &dh_n].map(|a| a.mapv(f64::from));
        // h0 and dh_n are left out where the seed is odd: they must then count as zeros.
        let given = seed % 2 == 0;
        let h064 = given.then_some(h064.view());
        let dh_n64 = given.then_some(dh_n64.view());
        let trace = reference::forward(&params64, x64.view(), h064)?;
        let expected =
            reference::backward(&params64, x64.view(), &trace, Some(dy64.view()), dh_n64)?;

        let h0 = given.then_some(h0.view());
        let dh_n = given.then_some(dh_n.view());
        let (output, tape) = gru.forward_train(x.view(), h0)?;
        let got = gru.backward(tape, Some(dy.view()), dh_n)?;
        let inference = gru.forward(x.view(), h0)?;

        let (sizes, variant) = (shape.to_string(), config_words(&config));
        let mut compare = |name: &str, got: &ArrayView<f32, _>, expected: &ArrayView<f64, _>| {
            findings.compare(&format!("{name}, {variant}"), &sizes, got, expected);
        };
        for y in [&output.y, &inference.y] {
            compare("y", &y.view().into_dyn(), &trace.y().into_dyn());
        }
        compare("h_n", &output.h_n.view().into_dyn(), &trace.h_n().into_dyn());
        for ((name, got), (_, expected)) in got.params.iter().zip(expected.params.iter()) {
            compare(&format!("d{}", name.trim_end_matches("_l0")), &got, &expected);
        }
        compare("dx", &got.x.view().into_dyn(), &expected.x.view().into_dyn());
        compare("dh0", &got.h0.view().into_dyn(), &expected.h0.view().into_dyn());
    }
    Ok(())
}

/// The variant without its sizes.
fn config_words(config: &GruConfig) -> String {
    let whole = config.to_string();
    whole.split_once(", ").map_or(whole.clone(), |(_, variant)| variant.to_owned())
}

/// `len` numbers uniform in ±`bound`.
fn random(len: usize, bound: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-bound..bound)).collect()
}

fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let data = random(shape.iter().product(), 1.0, seed);
    Array3::from_shape_vec(shape, data).expect("as many as the shape holds")
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}
