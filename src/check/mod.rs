//! Self-checks that compare a device with the f64 reference: every kernel alone, then whole models,
//! at odd sizes.
//!
//! `gru check` prints the findings of [`run`]. A program that embeds this library can call [`run`]
//! to decide whether to trust an adapter.
//!
//! Elements that a kernel fails to write are detected: outputs are filled with NaN before a kernel
//! runs. A whole model first runs over NaN, which fills every buffer of its session with NaN, and
//! then over the data of the check.

mod flows;
mod models;
mod products;
mod steps;
mod training;

use ndarray::{Array3, ArrayView, Dimension};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::error::Result;
use crate::model::device::{Device, DeviceTarget};
use crate::spec::activation::{Activation, Activations};
use crate::spec::config::{Direction, GruConfig, Layout, Shape};
use crate::spec::params::{Init, Params};

/// The largest allowed difference from an expected value: `atol + rtol · |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The absolute tolerance.
    pub atol: f64,
    /// The relative tolerance.
    pub rtol: f64,
}

/// The tolerance of every comparison of f32 on a device with f64 in the reference.
///
/// Inputs are scaled so that every sum is of order 1. An f32 rounding error is 6e-8 of a partial
/// sum; the errors of up to 70,000 terms accumulate to a few 1e-6. In addition, an adapter's `exp`
/// may be off by `3 + 2|x|` units in the last place (WGSL's bound). 1e-5 covers both. A wrong term,
/// gate or index causes a far larger error, of 1e-2 and more.
pub const TOLERANCE: Tolerance = Tolerance { atol: 1e-5, rtol: 1e-4 };

impl Tolerance {
    /// Returns the difference as a fraction of the tolerance; up to 1 is within it. If exactly one
    /// of the two is NaN, the fraction is infinite.
    pub fn fraction(&self, got: f64, expected: f64) -> f64 {
        if got.is_nan() && expected.is_nan() {
            return 0.0;
        }
        let fraction = (got - expected).abs() / (self.atol + self.rtol * expected.abs());
        if fraction.is_nan() { f64::INFINITY } else { fraction }
    }
}

/// The result of a check for one subject, a kernel or an output of a model, over all its sizes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The kernel or the output, and the variant, such as `matmul Aᵀ·B` or `dx, reset before, …`.
    pub subject: String,
    /// The number of comparisons.
    pub cases: usize,
    /// The largest difference from the reference.
    pub error: f64,
    /// The largest difference as a fraction of the tolerance. Above 1 the check failed.
    pub fraction: f64,
    /// The sizes of the comparison with the largest fraction.
    pub worst: String,
}

impl Finding {
    /// Returns true if every difference is within [`TOLERANCE`].
    pub fn passed(&self) -> bool {
        self.fraction <= 1.0
    }
}

/// The findings so far, in the order in which their subjects were added.
#[derive(Default)]
struct Findings<'a> {
    all: Vec<Finding>,
    /// True to divide the values of an array by its largest absolute value, if that exceeds 1.
    scaled: bool,
    /// Called after each case.
    on_case: Option<&'a mut (dyn FnMut() + Send)>,
}

impl Findings<'_> {
    /// Reports that a case is complete.
    fn case_done(&mut self) {
        if let Some(on_case) = &mut self.on_case {
            on_case();
        }
    }

    /// Compares arrays and adds the result to the finding of `subject`.
    fn compare<D: Dimension>(
        &mut self,
        subject: &str,
        sizes: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
    ) {
        assert_eq!(got.shape(), expected.shape(), "{subject} at {sizes}");
        let (mut error, mut fraction) = (0.0, 0.0);
        let largest = expected.iter().fold(1.0, |largest, value| f64::max(largest, value.abs()));
        let scale = if self.scaled { largest } else { 1.0 };
        for (&got, &expected) in got.iter().zip(expected) {
            let (got, expected) = (f64::from(got) / scale, expected / scale);
            error = f64::max(error, (got - expected).abs());
            fraction = f64::max(fraction, TOLERANCE.fraction(got, expected));
        }
        if fraction == f64::INFINITY {
            error = f64::INFINITY;
        }
        let at = self.all.iter().position(|f| f.subject == subject).unwrap_or_else(|| {
            let subject = subject.to_owned();
            let worst = sizes.to_owned();
            self.all.push(Finding { subject, cases: 0, error: 0.0, fraction: 0.0, worst });
            self.all.len() - 1
        });
        let finding = &mut self.all[at];
        finding.cases += 1;
        finding.error = finding.error.max(error);
        if fraction > finding.fraction {
            finding.fraction = fraction;
            finding.worst = sizes.to_owned();
        }
    }

    fn compare_slices(&mut self, subject: &str, sizes: &str, got: &[f32], expected: &[f64]) {
        self.compare(subject, sizes, &ArrayView::from(got), &ArrayView::from(expected));
    }
}

/// A section of the checks of [`run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Section {
    /// Every kernel alone, compared with its reference. Empty on the CPU device, which has no
    /// kernels.
    Kernels,
    /// The forward and backward passes of every variant, through the public API of
    /// [`Gru`](crate::Gru).
    Models,
    /// Streams, states carried from chunk to chunk, and, on an adapter, forward passes over the
    /// caller's buffers.
    Flows,
    /// Losses and updates, through the public API of [`Learner`](crate::Learner).
    Training,
}

impl Section {
    /// All sections, in the order in which [`run`] runs them.
    pub const ALL: [Self; 4] = [Self::Kernels, Self::Models, Self::Flows, Self::Training];

    /// Runs this section.
    ///
    /// # Errors
    /// The errors of [`run`].
    pub fn run(self, device: &Device) -> Result<Vec<Finding>> {
        pollster::block_on(self.run_async(device))
    }

    /// The async version of [`Self::run`].
    ///
    /// # Errors
    /// The errors of [`run`].
    pub async fn run_async(self, device: &Device) -> Result<Vec<Finding>> {
        self.run_cases(device, &mut || ()).await
    }

    /// Runs this section, and calls `on_case` after each of its [`Self::cases`].
    async fn run_cases(
        self,
        device: &Device,
        on_case: &mut (dyn FnMut() + Send),
    ) -> Result<Vec<Finding>> {
        let mut findings = Findings { on_case: Some(on_case), ..Findings::default() };
        match self {
            Self::Kernels => kernels(device, &mut findings).await?,
            Self::Models => {
                for (case, config, seed) in variants() {
                    let params = Params::init(&config, Init::Uniform, seed)?;
                    models::check(device, case, params, seed, &mut findings).await?;
                    findings.case_done();
                }
            }
            Self::Flows => flows::check(device, &mut findings).await?,
            Self::Training => training::check(device, &mut findings).await?,
        }
        Ok(findings.all)
    }

    /// Returns the number of cases of this section on a device.
    fn cases(self, device: &Device) -> usize {
        match self {
            Self::Kernels if device.is_adapter() => {
                let large = if has_large_tiles(device) { large_variants().count() } else { 0 };
                variants().count() + large + PRODUCT_CASES
            }
            Self::Kernels => 0,
            Self::Models => variants().count(),
            Self::Flows => flows::variants().len(),
            Self::Training => training::CASES,
        }
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernels => "kernels",
            Self::Models => "models",
            Self::Flows => "streams and states",
            Self::Training => "training",
        })
    }
}

/// Runs every [`Section`].
///
/// # Errors
/// The errors of the device. A wrong value is reported as a [`Finding`], not as an error.
pub fn run(device: &Device) -> Result<Vec<Finding>> {
    pollster::block_on(run_async(device))
}

/// The async version of [`run`].
///
/// # Errors
/// The errors of [`run`].
pub async fn run_async(device: &Device) -> Result<Vec<Finding>> {
    run_with_progress_async(device, |_| ()).await
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The section that runs.
    pub section: Section,
    /// The cases that are complete, of all sections.
    pub done: usize,
    /// The number of cases of all sections.
    pub total: usize,
}

/// Runs every [`Section`], and calls `on_progress` at the start of each section and after each
/// case. A case takes from milliseconds to some seconds, most of them for compilation.
///
/// ```no_run
/// use gru_wgpu::{Device, check};
///
/// let device = Device::software()?;
/// let findings = check::run_with_progress(&device, |at| {
///     eprint!("\r{}: {} of {} cases", at.section, at.done, at.total);
/// })?;
/// assert!(findings.iter().all(|finding| finding.passed()));
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
///
/// # Errors
/// The errors of [`run`].
pub fn run_with_progress(
    device: &Device,
    on_progress: impl FnMut(Progress) + Send,
) -> Result<Vec<Finding>> {
    pollster::block_on(run_with_progress_async(device, on_progress))
}

/// The async version of [`run_with_progress`].
///
/// # Errors
/// The errors of [`run`].
pub async fn run_with_progress_async(
    device: &Device,
    mut on_progress: impl FnMut(Progress) + Send,
) -> Result<Vec<Finding>> {
    let total = Section::ALL.iter().map(|section| section.cases(device)).sum();
    let (mut findings, mut done) = (Vec::new(), 0);
    for section in Section::ALL {
        on_progress(Progress { section, done, total });
        let mut on_case = || {
            done += 1;
            on_progress(Progress { section, done, total });
        };
        findings.extend(section.run_cases(device, &mut on_case).await?);
    }
    Ok(findings)
}

/// The cases of the kernels of products and sums.
const PRODUCT_CASES: usize = 2;

/// Checks every kernel.
async fn kernels(device: &Device, findings: &mut Findings<'_>) -> Result<()> {
    let DeviceTarget::Gpu(gpu) = device.target() else { return Ok(()) };
    products::check_matmul(gpu, findings).await?;
    findings.case_done();
    products::check_weight_gradients(gpu, findings).await?;
    products::check_column_sum(gpu, findings).await?;
    findings.case_done();
    let large = large_variants().filter(|_| has_large_tiles(device));
    for (case, config, seed) in variants().chain(large) {
        steps::check(gpu, case, &config, seed, findings).await?;
        findings.case_done();
    }
    Ok(())
}

/// Returns true if plans for large models have other tiles than those for small ones.
fn has_large_tiles(device: &Device) -> bool {
    device.is_adapter() && !device.caps().software
}

/// Checks the forward and backward passes of one model with its own weights. Large weights cause
/// large sums. So if the largest absolute value of an array exceeds 1, the array is divided by it
/// before the comparison.
///
/// # Errors
/// The errors of [`run`].
pub fn model(device: &Device, params: &Params) -> Result<Vec<Finding>> {
    pollster::block_on(model_async(device, params))
}

/// The async version of [`model`].
///
/// # Errors
/// The errors of [`run`].
pub async fn model_async(device: &Device, params: &Params) -> Result<Vec<Finding>> {
    let mut findings = Findings { scaled: true, ..Findings::default() };
    for (seed, case) in (0..).zip(&MODEL_CASES) {
        models::check(device, case, params.clone(), seed, &mut findings).await?;
    }
    Ok(findings.all)
}

/// The sizes and features of a run, without the variant.
struct ModelCase {
    /// `[T, B, I, H, L]`
    sizes: [usize; 5],
    direction: Direction,
    /// Activations of the gates and of the candidate. Unbounded ones only with few steps, so that
    /// states and sums stay of order 1.
    activations: [Activation; 2],
    /// Other activations of the reverse direction.
    reverse: Option<[Activation; 2]>,
    clip: Option<f32>,
    dropout: f32,
    zoneout: f32,
    layout: Layout,
    lengths: bool,
    resets: bool,
    /// True if h0, the reset state, dy and dh_n are given; else they are zeros.
    given: [bool; 4],
    /// True to run the case with other options too: with every kernel family, and with recompute.
    /// It is false for some cases to save time: each size of each variant compiles another kernel.
    other_options: bool,
}

const PLAIN: ModelCase = ModelCase {
    sizes: [1; 5],
    direction: Direction::Forward,
    activations: [Activation::Sigmoid, Activation::Tanh],
    reverse: None,
    clip: None,
    dropout: 0.0,
    zoneout: 0.0,
    layout: Layout::TimeMajor,
    lengths: false,
    resets: false,
    given: [true; 4],
    other_options: true,
};

/// The sizes 1, primes, each tile size ± 1, and many steps; each feature alone and combined.
static CASES: [ModelCase; 10] = [
    PLAIN,
    ModelCase {
        sizes: [2, 1, 3, 5, 2],
        activations: [Activation::Sigmoid, Activation::Relu],
        dropout: 0.5,
        given: [false, false, true, false],
        other_options: false,
        ..PLAIN
    },
    ModelCase {
        sizes: [5, 3, 7, 17, 1],
        direction: Direction::Both,
        activations: [
            Activation::HARD_SIGMOID_PYTORCH,
            Activation::ScaledTanh { alpha: 1.7, beta: 0.7 },
        ],
        clip: Some(0.75),
        layout: Layout::BatchFirst,
        lengths: true,
        resets: true,
        given: [true, true, false, true],
        ..PLAIN
    },
    ModelCase { sizes: [3, 17, 33, 15, 1], zoneout: 0.3, lengths: true, ..PLAIN },
    ModelCase {
        sizes: [4, 15, 1, 16, 2],
        direction: Direction::Both,
        dropout: 0.25,
        zoneout: 0.1,
        lengths: true,
        resets: true,
        ..PLAIN
    },
    ModelCase {
        sizes: [2, 33, 16, 31, 1],
        direction: Direction::Reverse,
        activations: [Activation::Sigmoid, Activation::LeakyRelu { alpha: 0.1 }],
        layout: Layout::BatchFirst,
        given: [false, false, false, true],
        ..PLAIN
    },
    ModelCase {
        sizes: [67, 2, 2, 7, 1],
        resets: true,
        given: [true, false, true, true],
        other_options: false,
        ..PLAIN
    },
    ModelCase {
        sizes: [1, 2, 3, 2, 3],
        direction: Direction::Both,
        activations: [Activation::Tanh, Activation::Elu { alpha: 0.8 }],
        reverse: Some([Activation::Softsign, Activation::Softplus]),
        dropout: 0.4,
        layout: Layout::BatchFirst,
        other_options: false,
        ..PLAIN
    },
    ModelCase {
        sizes: [6, 5, 2, 3, 2],
        direction: Direction::Both,
        reverse: Some([Activation::Sigmoid, Activation::ThresholdedRelu { alpha: 0.1 }]),
        clip: Some(1.5),
        other_options: false,
        ..PLAIN
    },
    ModelCase {
        sizes: [3, 5, 4, 9, 2],
        direction: Direction::Reverse,
        dropout: 0.5,
        zoneout: 0.2,
        lengths: true,
        resets: true,
        ..PLAIN
    },
];

/// The cases of [`model`]. Of the sizes only T and B apply; the model has the others.
static MODEL_CASES: [ModelCase; 3] = [
    ModelCase { sizes: [1; 5], given: [false, false, true, false], ..PLAIN },
    ModelCase { sizes: [7, 3, 1, 1, 1], lengths: true, resets: true, ..PLAIN },
    ModelCase { sizes: [3, 17, 1, 1, 1], layout: Layout::BatchFirst, ..PLAIN },
];

impl ModelCase {
    fn config(&self, variant: GruConfig) -> GruConfig {
        let [_, _, _, _, layers] = self.sizes;
        let [gate, candidate] = self.activations;
        variant
            .with_layers(layers)
            .with_direction(self.direction)
            .with_activations(gate, candidate)
            .with_reverse_activations(
                self.reverse.map(|[gate, candidate]| Activations { gate, candidate }),
            )
            .with_clip(self.clip)
            .with_dropout(self.dropout)
            .with_zoneout(self.zoneout)
    }

    /// Describes the case for a finding: the properties that differ between cases of a variant.
    fn describe(&self, config: &GruConfig, shape: Shape) -> String {
        let Activations { gate, candidate } = config.activations;
        let mut text = format!("{shape}, {gate} gates, {candidate} candidate");
        for (given, what) in [
            (self.direction == Direction::Reverse, "reverse".to_owned()),
            (self.reverse.is_some(), "other activations in reverse".to_owned()),
            (self.clip.is_some(), "clipped".to_owned()),
            (self.lengths, "padded".to_owned()),
            (self.resets, "resets".to_owned()),
            (self.dropout > 0.0, format!("dropout {}", self.dropout)),
            (self.zoneout > 0.0, format!("zoneout {}", self.zoneout)),
        ] {
            if given {
                text = format!("{text}, {what}");
            }
        }
        text
    }
}

/// The tiles of large models on a GPU, for the kernels of the recurrence: eight blocks of weights a
/// thread, two rows a workgroup, and row groups.
static LARGE_CASES: [ModelCase; 3] = [
    ModelCase { sizes: [3, 2, 2, 128, 1], lengths: true, ..PLAIN },
    ModelCase { sizes: [3, 131, 2, 20, 1], zoneout: 0.3, resets: true, ..PLAIN },
    ModelCase { sizes: [3, 35, 2, 132, 1], ..PLAIN },
];

/// Returns every case with every variant, and a seed for each case.
fn variants() -> impl Iterator<Item = (&'static ModelCase, GruConfig, u64)> {
    with_variants(&CASES)
}

/// As [`variants`], for large tiles.
fn large_variants() -> impl Iterator<Item = (&'static ModelCase, GruConfig, u64)> {
    with_variants(&LARGE_CASES)
}

fn with_variants(
    cases: &'static [ModelCase],
) -> impl Iterator<Item = (&'static ModelCase, GruConfig, u64)> {
    (0..).zip(cases).flat_map(|(seed, case)| {
        let [_, _, input, hidden, _] = case.sizes;
        let variants = GruConfig::all_variants(input, hidden).into_iter();
        variants.map(move |variant| (case, case.config(variant), 100 * seed))
    })
}

/// Describes the variant: reset, update and bias.
fn describe_variant(config: &GruConfig) -> String {
    let plain = GruConfig::new(1, 1).with_reset(config.reset).with_update(config.update);
    let whole = plain.with_bias(config.bias).to_string();
    whole.split_once(", ").map_or(whole.clone(), |(_, variant)| variant.to_owned())
}

/// Returns `len` random numbers, uniform in ±`bound`.
pub(crate) fn random(len: usize, bound: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-bound..bound)).collect()
}

/// Returns an array of random numbers, uniform in ±1.
pub(crate) fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let data = random(shape.iter().product(), 1.0, seed);
    Array3::from_shape_vec(shape, data).expect("the length is the product of the shape")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device_as_gpu;

    fn found(got: &[f32], expected: &[f64]) -> Finding {
        let mut findings = Findings::default();
        findings.compare_slices("it", "good", &[1.0], &[1.0]);
        findings.compare_slices("it", "bad", got, expected);
        findings.all.pop().expect("one subject")
    }

    #[test]
    fn progress_counts_every_case() {
        let mut seen = Vec::new();
        run_with_progress(&Device::cpu(), |at| seen.push((at.section, at.done))).unwrap();
        let total = Section::ALL.iter().map(|section| section.cases(&Device::cpu())).sum();
        assert_eq!(seen.first(), Some(&(Section::Kernels, 0)));
        assert_eq!(seen.last(), Some(&(Section::Training, total)));
        assert!(seen.is_sorted_by_key(|&(_, done)| done) && total > 50, "{seen:?}");
    }

    /// The tiles, kernel families and immediates of a hardware GPU, also on a software adapter.
    #[test]
    fn the_plans_of_a_gpu_agree_with_the_reference() {
        let (device, _) = test_device_as_gpu();
        for section in Section::ALL {
            for finding in section.run(&device).unwrap() {
                assert!(finding.passed(), "{finding:?}");
            }
        }
    }

    #[test]
    fn a_wrong_value_fails_its_subject_and_names_the_sizes() {
        assert!(found(&[1.0, 2.0], &[1.00005, 2.0]).passed());
        for (got, expected) in [(1.001, 1.0), (f32::NAN, 1.0), (1.0, f64::NAN), (0.0, 2e-5)] {
            let finding = found(&[0.0, got], &[0.0, expected]);
            assert!(!finding.passed() && finding.worst == "bad", "{finding:?}");
            assert_eq!(finding.cases, 2);
        }
    }
}
