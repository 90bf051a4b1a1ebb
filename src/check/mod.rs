//! A device held against the f64 reference: every kernel alone, then the whole, at odd sizes.
//!
//! `gru check` prints what [`run`] finds; a program that embeds this library may call it to decide
//! whether an adapter can be trusted.
//!
//! Unwritten elements cannot hide: outputs are filled with NaN before a kernel runs, and a whole
//! model runs once over NaN, which poisons every buffer of its session, before it runs for real.

mod flows;
mod models;
mod products;
mod steps;
mod training;

use ndarray::{Array3, ArrayView, Dimension};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::error::Result;
use crate::model::device::{Device, DeviceTarget};
use crate::spec::config::{Activation, Direction, GruConfig, Layout, Shape};
use crate::spec::params::{Init, Params};

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
    /// The error as a fraction of what is allowed: up to 1 is within the tolerance. NaN where only
    /// one of the two is a number counts as infinite.
    pub fn fraction(&self, got: f64, expected: f64) -> f64 {
        if got.is_nan() && expected.is_nan() {
            return 0.0;
        }
        let fraction = (got - expected).abs() / (self.atol + self.rtol * expected.abs());
        if fraction.is_nan() { f64::INFINITY } else { fraction }
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
    /// The largest difference as a fraction of the tolerance. Above 1 is a failure.
    pub fraction: f64,
    /// The sizes at which that was.
    pub worst: String,
}

impl Finding {
    /// Whether every difference was within [`TOLERANCE`].
    pub fn passed(&self) -> bool {
        self.fraction <= 1.0
    }
}

/// Findings in the order their subjects were first seen.
#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    /// Whether an array's largest number, where it is more than 1, is the scale of its errors.
    scaled: bool,
}

impl Findings {
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

/// A section of what [`run`] checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Section {
    /// Every kernel alone against its twin. Nothing on a CPU device, which has no kernels.
    Kernels,
    /// Forward and backward of every variant, through [`Gru`](crate::Gru) as a user would call it.
    Models,
    /// Streams, states carried from chunk to chunk and, on an adapter, forward passes over a
    /// caller's buffers.
    Flows,
    /// Losses and updates, through [`Learner`](crate::Learner) as a user would call it.
    Training,
}

impl Section {
    /// All of them, in the order in which [`run`] takes them.
    pub const ALL: [Self; 4] = [Self::Kernels, Self::Models, Self::Flows, Self::Training];

    /// This section alone.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(self, device: &Device) -> Result<Vec<Finding>> {
        pollster::block_on(self.run_async(device))
    }

    /// [`Self::run`] as a future.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn run_async(self, device: &Device) -> Result<Vec<Finding>> {
        let mut findings = Findings::default();
        match self {
            Self::Kernels => kernels(device, &mut findings).await?,
            Self::Models => {
                for (case, config, seed) in variants() {
                    let params = Params::init(&config, Init::Uniform, seed)?;
                    models::check(device, case, params, seed, &mut findings).await?;
                }
            }
            Self::Flows => flows::check(device, &mut findings).await?,
            Self::Training => training::check(device, &mut findings).await?,
        }
        Ok(findings.all)
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

/// Every [`Section`].
///
/// # Errors
/// What the device reports. A wrong number is a [`Finding`], not an error.
pub fn run(device: &Device) -> Result<Vec<Finding>> {
    pollster::block_on(run_async(device))
}

/// [`run`] as a future.
///
/// # Errors
/// As [`run`].
pub async fn run_async(device: &Device) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for section in Section::ALL {
        findings.extend(section.run_async(device).await?);
    }
    Ok(findings)
}

async fn kernels(device: &Device, findings: &mut Findings) -> Result<()> {
    let DeviceTarget::Gpu(gpu) = device.target() else { return Ok(()) };
    products::check_matmul(gpu, findings).await?;
    products::check_column_sum(gpu, findings).await?;
    for (case, config, seed) in variants() {
        steps::check(gpu, case, &config, seed, findings).await?;
    }
    Ok(())
}

/// Forward and backward of one model, with its own weights. Large weights make large sums, so a
/// number is held to the tolerance at the scale of the largest one of its array, where that is more
/// than 1.
///
/// # Errors
/// As [`run`].
pub fn model(device: &Device, params: &Params) -> Result<Vec<Finding>> {
    pollster::block_on(model_async(device, params))
}

/// [`model`] as a future.
///
/// # Errors
/// As [`run`].
pub async fn model_async(device: &Device, params: &Params) -> Result<Vec<Finding>> {
    let mut findings = Findings { scaled: true, ..Findings::default() };
    for (seed, case) in (0..).zip(&MODEL_CASES) {
        models::check(device, case, params.clone(), seed, &mut findings).await?;
    }
    Ok(findings.all)
}

/// What a run is made of, besides the variant.
struct ModelCase {
    /// [T, B, I, H, L]
    sizes: [usize; 5],
    direction: Direction,
    /// Of gates and of the candidate. Those without bounds only where few steps keep the states,
    /// and so the sums, of order 1.
    activations: [Activation; 2],
    dropout: f32,
    zoneout: f32,
    layout: Layout,
    lengths: bool,
    resets: bool,
    /// Whether h0, the reset state, dy and dh_n are given; else they count as zeros.
    given: [bool; 4],
    /// Whether it is also run the ways that a model of this size would not take by itself: by every
    /// other family of kernels, and with gates made again. Each size of each variant is a kernel to
    /// compile.
    other_way: bool,
}

const PLAIN: ModelCase = ModelCase {
    sizes: [1; 5],
    direction: Direction::Forward,
    activations: [Activation::Sigmoid, Activation::Tanh],
    dropout: 0.0,
    zoneout: 0.0,
    layout: Layout::TimeMajor,
    lengths: false,
    resets: false,
    given: [true; 4],
    other_way: true,
};

/// Ones, primes, each tile's edge ± 1, many steps; each feature alone and with others.
static CASES: [ModelCase; 10] = [
    PLAIN,
    ModelCase {
        sizes: [2, 1, 3, 5, 2],
        activations: [Activation::Sigmoid, Activation::Relu],
        dropout: 0.5,
        given: [false, false, true, false],
        other_way: false,
        ..PLAIN
    },
    ModelCase {
        sizes: [5, 3, 7, 17, 1],
        direction: Direction::Both,
        activations: [Activation::HardSigmoid, Activation::Tanh],
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
        activations: [Activation::Sigmoid, Activation::Identity],
        layout: Layout::BatchFirst,
        given: [false, false, false, true],
        ..PLAIN
    },
    ModelCase {
        sizes: [67, 2, 2, 7, 1],
        resets: true,
        given: [true, false, true, true],
        other_way: false,
        ..PLAIN
    },
    ModelCase {
        sizes: [1, 2, 3, 2, 3],
        direction: Direction::Both,
        activations: [Activation::Tanh, Activation::Relu],
        dropout: 0.4,
        layout: Layout::BatchFirst,
        other_way: false,
        ..PLAIN
    },
    ModelCase { sizes: [6, 5, 2, 3, 2], direction: Direction::Both, other_way: false, ..PLAIN },
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

/// What a model of a user's is run over; its sizes besides T and B are its own.
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
            .with_dropout(self.dropout)
            .with_zoneout(self.zoneout)
    }

    /// What distinguishes it from other cases of the same variant.
    fn describe(&self, config: &GruConfig, shape: Shape) -> String {
        let (gate, candidate) = (config.gate_activation, config.candidate_activation);
        let mut text = format!("{shape}, {gate} gates, {candidate} candidate");
        for (given, what) in [
            (self.direction == Direction::Reverse, "reverse".to_owned()),
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

/// Every variant in every case, and a seed for each case.
fn variants() -> impl Iterator<Item = (&'static ModelCase, GruConfig, u64)> {
    (0..).zip(&CASES).flat_map(|(seed, case)| {
        let [_, _, input, hidden, _] = case.sizes;
        let variants = GruConfig::all_variants(input, hidden).into_iter();
        variants.map(move |variant| (case, case.config(variant), 100 * seed))
    })
}

/// The variant without its sizes, layers, directions and activations.
fn describe_variant(config: &GruConfig) -> String {
    let plain = GruConfig::new(1, 1).with_reset(config.reset).with_update(config.update);
    let whole = plain.with_bias(config.bias).to_string();
    whole.split_once(", ").map_or(whole.clone(), |(_, variant)| variant.to_owned())
}

/// `len` numbers uniform in ±`bound`.
fn random(len: usize, bound: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-bound..bound)).collect()
}

/// An array uniform in ±1.
pub(crate) fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let data = random(shape.iter().product(), 1.0, seed);
    Array3::from_shape_vec(shape, data).expect("as many as the shape holds")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(got: &[f32], expected: &[f64]) -> Finding {
        let mut findings = Findings::default();
        findings.compare_slices("it", "good", &[1.0], &[1.0]);
        findings.compare_slices("it", "bad", got, expected);
        findings.all.pop().expect("one subject")
    }

    #[test]
    fn a_wrong_number_fails_its_subject_and_names_the_sizes() {
        assert!(found(&[1.0, 2.0], &[1.00005, 2.0]).passed());
        for (got, expected) in [(1.001, 1.0), (f32::NAN, 1.0), (1.0, f64::NAN), (0.0, 2e-5)] {
            let finding = found(&[0.0, got], &[0.0, expected]);
            assert!(!finding.passed() && finding.worst == "bad", "{finding:?}");
            assert_eq!(finding.cases, 2);
        }
    }
}
