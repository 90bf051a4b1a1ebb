//! SIMD kernels: one source, compiled for each instruction set that the CPU may have.
//!
//! A [`SimdKernel`] is inlined into functions compiled for the baseline, AVX2 and AVX-512, and
//! [`SimdLevel::run`] calls the one for its level. Elementwise loops over `[f32; N]` are vectorised
//! by the compiler. The innermost loop of products uses [`SimdVector`]s instead: there the
//! compiler's vectorisation gains or loses a factor of four with every small change.

use crate::spec::config::Activation;

/// A kernel that is compiled for every [`SimdLevel`]. `run` and all functions it calls must be
/// `#[inline(always)]`: a function that is not inlined is compiled for the target's baseline.
pub(super) trait SimdKernel {
    /// Runs the kernel. `N` is the width of a panel: the elements of two vectors `V`. `ROWS` is the
    /// number of rows of `N` that fit into the registers, with registers left to work. `FMA` is
    /// true if the CPU has an instruction for a · b + c.
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self);
}

/// A vector register of f32. The types that implement it are private to this file. A [`SimdKernel`]
/// gets one only from [`SimdLevel::run`], which has checked that the CPU has its instructions.
pub(super) trait SimdVector: Copy {
    /// The number of elements.
    const WIDTH: usize;

    /// Returns a vector with all elements equal to `value`.
    fn splat(value: f32) -> Self;

    /// Loads the first `WIDTH` elements of a slice.
    fn load(from: &[f32]) -> Self;

    /// Stores to the first `WIDTH` elements of a slice.
    fn store(self, to: &mut [f32]);

    /// Returns self + other.
    fn add(self, other: Self) -> Self;

    /// Returns self + a · b.
    fn add_product(self, a: Self, b: Self) -> Self;
}

/// A vector for CPUs without a type of their own. The compiler chooses the registers.
#[derive(Clone, Copy)]
struct PortableVector<const FMA: bool>([f32; 8]);

impl<const FMA: bool> SimdVector for PortableVector<FMA> {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(*lanes(from, 0))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        *lanes_mut(to, 0) = self.0;
    }

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for i in 0..Self::WIDTH {
            self.0[i] += other.0[i];
        }
        self
    }

    #[inline(always)]
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..Self::WIDTH {
            self.0[i] = fma::<FMA>(a.0[i], b.0[i], self.0[i]);
        }
        self
    }
}

/// Defines a [`SimdVector`] from an x86 register type and its intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($name:ident, $register:ident, $width:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident) => {
        #[derive(Clone, Copy)]
        struct $name(std::arch::x86_64::$register);

        // SAFETY of each block below: the instructions exist, because the type is private and only
        // used as the `V` of a kernel, and `SimdLevel::run` passes it only on a level whose
        // instructions were detected. Pointers are valid for the whole register, because they come
        // from references to arrays of its width. Loads and stores need no alignment.
        #[allow(unsafe_code, reason = "intrinsics need a CPU that has them")]
        impl SimdVector for $name {
            const WIDTH: usize = $width;

            #[inline(always)]
            fn splat(value: f32) -> Self {
                // SAFETY: see above.
                Self(unsafe { std::arch::x86_64::$splat(value) })
            }

            #[inline(always)]
            fn load(from: &[f32]) -> Self {
                let from = lanes::<$width>(from, 0);
                // SAFETY: see above.
                Self(unsafe { std::arch::x86_64::$load(from.as_ptr()) })
            }

            #[inline(always)]
            fn store(self, to: &mut [f32]) {
                let to = lanes_mut::<$width>(to, 0);
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$store(to.as_mut_ptr(), self.0) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { std::arch::x86_64::$add(self.0, other.0) })
            }

            #[inline(always)]
            fn add_product(self, a: Self, b: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { std::arch::x86_64::$fma(a.0, b.0, self.0) })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_vector!(
    Avx2,
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps
);

/// An instruction set that was detected on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimdLevel(InstructionSet);

/// An instruction set. It is private, so that a [`SimdLevel`] proves that the set was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InstructionSet {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl SimdLevel {
    /// Returns the best level of this CPU.
    pub fn best() -> Self {
        Self::all().next_back().expect("at least the baseline")
    }

    /// Returns all levels of this CPU, the best last.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let others = [
            (InstructionSet::Avx2, has_avx2()),
            (InstructionSet::Avx512, has_avx2() && has_avx512()),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let others: [(InstructionSet, bool); 0] = [];
        let detected = others.into_iter().filter_map(|(set, detected)| detected.then_some(set));
        std::iter::once(InstructionSet::Baseline).chain(detected).map(Self)
    }

    /// Returns `N`, the width of a panel.
    pub fn lanes(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => 32,
            _ => 16,
        }
    }

    /// Returns `ROWS`, the largest number of rows in a tile.
    pub fn rows(self) -> usize {
        match self.0 {
            InstructionSet::Baseline if cfg!(target_arch = "aarch64") => 6,
            InstructionSet::Baseline => 2,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => 6,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => 12,
        }
    }

    /// Runs a kernel at this level.
    #[allow(unsafe_code, reason = "calls functions compiled for instructions detected at run time")]
    pub fn run(self, kernel: impl SimdKernel) {
        match self.0 {
            // NEON has 32 registers of 4 elements; x86 without AVX has 16.
            InstructionSet::Baseline if cfg!(target_arch = "aarch64") => {
                kernel.run::<PortableVector<true>, 16, 6, true>()
            }
            InstructionSet::Baseline => kernel.run::<PortableVector<false>, 16, 2, false>(),
            // SAFETY: `SimdLevel::all` is the only place that creates this level, and only if avx2
            // and fma were detected. These are the features that `run_avx2` enables.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: `SimdLevel::all` is the only place that creates this level, and only if avx2,
            // fma, avx512f, avx512vl and avx512dq were detected. `run_avx512` enables no others.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Returns true if kernels can use AVX-512. Rust compiles for AVX-512 from version 1.89 on; with an
/// older compiler, AVX2 is the best level.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    rustversion::cfg!(since(1.89))
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// Runs a kernel with AVX2. Of its 16 registers of 8 elements, a tile uses 12 for 6 rows of two
/// vectors, 2 for a row of the panel, and 1 for the element that multiplies it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(kernel: impl SimdKernel) {
    kernel.run::<Avx2, 16, 6, true>();
}

#[cfg(target_arch = "x86_64")]
#[rustversion::since(1.89)]
use avx512::run_avx512;

#[cfg(target_arch = "x86_64")]
#[rustversion::before(1.89)]
use run_avx2 as run_avx512;

#[cfg(target_arch = "x86_64")]
#[rustversion::since(1.89)]
mod avx512 {
    use super::{SimdKernel, SimdVector, lanes, lanes_mut};

    x86_vector!(
        Avx512,
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );

    /// Runs a kernel with AVX-512. Of its 32 registers of 16 elements, a tile uses 24 for 12 rows
    /// of two vectors.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    pub(super) fn run_avx512(kernel: impl SimdKernel) {
        kernel.run::<Avx512, 32, 12, true>();
    }
}

/// Returns the `N` elements of a slice from `first` on.
///
/// # Panics
/// If the slice has fewer elements.
#[inline(always)]
pub(super) fn lanes<const N: usize>(slice: &[f32], first: usize) -> &[f32; N] {
    slice[first..first + N].try_into().expect("a slice of length N")
}

/// Returns the `N` elements of a slice from `first` on, to write.
///
/// # Panics
/// If the slice has fewer elements.
#[inline(always)]
pub(super) fn lanes_mut<const N: usize>(slice: &mut [f32], first: usize) -> &mut [f32; N] {
    (&mut slice[first..first + N]).try_into().expect("a slice of length N")
}

/// Loads the `N` elements of a slice from `first` on, with zeros past the end of the slice.
#[inline(always)]
pub(super) fn load<const N: usize>(slice: &[f32], first: usize) -> [f32; N] {
    match slice.len() - first >= N {
        true => *lanes(slice, first),
        false => {
            let mut values = [0.0; N];
            values[..slice.len() - first].copy_from_slice(&slice[first..]);
            values
        }
    }
}

/// Stores `N` elements to a slice from `first` on, except those past the end of the slice.
#[inline(always)]
pub(super) fn store<const N: usize>(slice: &mut [f32], first: usize, values: &[f32; N]) {
    match slice.len() - first >= N {
        true => *lanes_mut(slice, first) = *values,
        false => {
            let len = slice.len() - first;
            slice[first..].copy_from_slice(&values[..len]);
        }
    }
}

/// Returns a · b + c, rounded once if the CPU has an instruction for it. (If it has none, `mul_add`
/// would be a slow function call.)
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Replaces each value with `$each`. This is a macro because a closure that is not inlined would be
/// compiled for the baseline.
macro_rules! for_each {
    ($values:expr, |$v:ident| $each:expr) => {
        for value in $values.iter_mut() {
            let $v = *value;
            *value = $each;
        }
    };
}

/// Applies an activation to every value. The comparisons are written so that NaN stays NaN.
#[inline(always)]
pub(super) fn activate<const N: usize, const FMA: bool>(kind: Activation, values: &mut [f32; N]) {
    match kind {
        Activation::Sigmoid => for_each!(values, |a| sigmoid::<FMA>(a)),
        Activation::Tanh => for_each!(values, |a| tanh::<FMA>(a)),
        Activation::Relu => for_each!(values, |a| if a < 0.0 { 0.0 } else { a }),
        Activation::HardSigmoid => for_each!(values, |a| {
            let line = 0.2 * a + 0.5;
            let line = if line < 0.0 { 0.0 } else { line };
            if line > 1.0 { 1.0 } else { line }
        }),
        Activation::Identity => {}
    }
}

/// Returns the derivative of an activation at every element, computed from the activation's values.
#[inline(always)]
pub(super) fn derivative<const N: usize>(kind: Activation, values: &[f32; N]) -> [f32; N] {
    let mut derivatives = *values;
    match kind {
        Activation::Sigmoid => for_each!(derivatives, |v| v * (1.0 - v)),
        Activation::Tanh => for_each!(derivatives, |v| 1.0 - v * v),
        Activation::Relu => for_each!(derivatives, |v| if v > 0.0 { 1.0 } else { 0.0 }),
        Activation::HardSigmoid => {
            for_each!(derivatives, |v| if v > 0.0 && v < 1.0 { 0.2 } else { 0.0 });
        }
        Activation::Identity => derivatives = [1.0; N],
    }
    derivatives
}

/// Returns σ(x), computed from e = e^−|x| ≤ 1 to avoid overflow: 1 / (1 + e), or e / (1 + e) for
/// negative x. The rounding error of 1 + e is known exactly, so the quotient q is corrected for it:
/// q (1 − error / (1 + e)).
#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    let e = exp::<FMA>(-x.abs());
    let sum = 1.0 + e;
    let error = e - (sum - 1.0);
    let quotient = (if x >= 0.0 { 1.0 } else { e }) / sum;
    let reciprocal = if x >= 0.0 { quotient } else { 1.0 - quotient };
    fma::<FMA>(-(quotient * error), reciprocal, quotient)
}

/// Returns tanh(x) = 1 − 2e / (1 + e), where e = e^−2|x|: the quotient's error counts little against
/// 1. Below |x| = 0.625, where it would not, tanh is a polynomial in x² fitted to minimise the
/// maximum relative error, 8e-8. `shaders/common.wgsl` has the same function.
#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let s = a * a;
    let mut p = 0.002_142_963;
    for c in [-0.008_177_4, 0.021_700_704, -0.053_946_763, 0.133_332_06, -0.333_333_3] {
        p = fma::<FMA>(p, s, c);
    }
    let small = fma::<FMA>(a * s, p, a);
    let e = exp::<FMA>(-2.0 * a);
    let large = fma::<FMA>(-2.0, e / (1.0 + e), 1.0);
    let magnitude = if a < 0.625 { small } else { large };
    magnitude.copysign(x)
}

/// Returns e^x for x ≤ 0, accurate to 1 unit in the last place, and 0 below −87.7, where e^x is
/// about 8e-39.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2. The polynomial for e^r is from Cephes' `expf`.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 = LN2_HIGH + LN2_LOW. LN2_HIGH has so few digits that its products with n are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // At −88, n is −127, and the computed bits of 2^n are the bits of 0.
    let x = if x < -88.0 { -88.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FMA>(p, r, c);
    }
    let fraction = fma::<FMA>(p * r, r, r) + 1.0;
    fraction * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::cell::activate as activate_reference;

    struct Activate<'a>(Activation, &'a mut [f32]);

    impl SimdKernel for Activate<'_> {
        #[inline(always)]
        fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self) {
            for first in (0..self.1.len()).step_by(N) {
                let mut values = load::<N>(self.1, first);
                activate::<N, FMA>(self.0, &mut values);
                store(self.1, first, &values);
            }
        }
    }

    /// PyTorch 2.15 on the same inputs: σ 1.97 at most and 0.51 in the root mean square, tanh 0.51
    /// and 0.29.
    #[test]
    fn activations_are_accurate_to_about_a_unit_in_the_last_place() {
        let inputs: Vec<f32> = (-400_000..400_000).map(|i| i as f32 * 2.5e-5).collect();
        let functions = [
            (Activation::Sigmoid, (|x| 1.0 / (1.0 + (-x).exp())) as fn(f64) -> f64, 2.0, 0.55),
            (Activation::Tanh, f64::tanh, 1.5, 0.45),
        ];
        for level in SimdLevel::all() {
            for (kind, exact, most, most_mean) in functions {
                let mut values = inputs.clone();
                level.run(Activate(kind, &mut values));
                let (mut largest, mut squares) = (0.0_f64, 0.0);
                for (&x, &value) in inputs.iter().zip(&values) {
                    let expected = exact(f64::from(x));
                    let unit = (expected.abs() as f32).next_up() - expected.abs() as f32;
                    let error = (f64::from(value) - expected) / f64::from(unit);
                    largest = largest.max(error.abs());
                    squares += error * error;
                }
                let mean = (squares / inputs.len() as f64).sqrt();
                println!("{level:?} {kind}: {largest:.2} at most, {mean:.3} root mean square");
                assert!(largest < most && mean < most_mean, "{level:?} {kind}: {largest}, {mean}");
            }
        }
    }

    /// An infinite state can make a pre-activation infinite. If σ(−∞) were not exactly 0, the
    /// result would differ from the reference.
    #[test]
    fn activations_of_extreme_values_match_the_reference() {
        let inputs = [
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
            0.0,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            -f32::MIN_POSITIVE,
            f32::from_bits(1),
            88.8,
            -88.8,
            1e30,
            -1e30,
        ];
        for level in SimdLevel::all() {
            for kind in Activation::ALL {
                let mut values = inputs;
                level.run(Activate(kind, &mut values));
                for (&x, &value) in inputs.iter().zip(&values) {
                    let expected = activate_reference(kind, x);
                    let what = format!("{level:?} {kind} of {x}: {value}, expected {expected}");
                    assert_eq!(value.is_nan(), expected.is_nan(), "{what}");
                    if expected.is_infinite() || (!x.is_finite() && !expected.is_nan()) {
                        assert_eq!(value, expected, "{what}");
                    } else if !expected.is_nan() {
                        let error = (value - expected).abs();
                        assert!(error <= 3e-7 * expected.abs() + 1e-37, "{what}");
                    }
                    // For x = ±0, a zero must have the reference's sign.
                    if expected == 0.0 && x == 0.0 {
                        assert_eq!(value.is_sign_negative(), expected.is_sign_negative(), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn activations_keep_nan_and_stay_in_range() {
        let inputs = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e30, -1e30, 88.8, -88.8];
        for level in SimdLevel::all() {
            let apply = |kind| {
                let mut values = inputs;
                level.run(Activate(kind, &mut values));
                values
            };
            for kind in [Activation::Sigmoid, Activation::Tanh, Activation::HardSigmoid] {
                let values = apply(kind);
                assert!(values[0].is_nan(), "{level:?} {kind}");
                assert_eq!(values[1], 1.0, "{level:?} {kind}");
                let low = if kind == Activation::Tanh { -1.0 } else { 0.0 };
                assert!((values[2] - low).abs() < 1e-37, "{level:?} {kind}: {}", values[2]);
                assert!(values[3..].iter().all(|v| v.abs() <= 1.0), "{level:?} {kind}: {values:?}");
            }
            assert!(apply(Activation::Relu)[0].is_nan() && apply(Activation::Identity)[0].is_nan());
        }
    }
}
