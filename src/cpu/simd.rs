//! One source compiled for each instruction set.
//!
//! A [`SimdKernel`] is inlined completely into a function that the compiler may compile for AVX2 or
//! AVX-512. [`SimdLevel::run`] calls the best of these functions that the CPU supports. Loops over
//! `[f32; N]` are left to the compiler's vectoriser. The innermost loop of products is not: there,
//! every small change can make a difference of a factor of four, so its registers are
//! [`SimdVector`]s.

use crate::spec::config::Activation;

/// Code to be compiled for every [`SimdLevel`]. `run` and everything that it calls must be
/// `#[inline(always)]`: code that is not inlined is compiled for the target's baseline.
pub(super) trait SimdKernel {
    /// `N`: the numbers in a panel's row, two vectors. `ROWS`: the rows of `N` that the registers
    /// hold with room to work. `FMA`: true if there is an instruction for a · b + c.
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self);
}

/// Numbers in a register. Only this file defines such types: a [`SimdKernel`] gets one from
/// [`SimdLevel::run`], on a CPU that has its instructions.
pub(super) trait SimdVector: Copy {
    /// How many numbers it holds.
    const WIDTH: usize;

    /// Copies one number to every lane.
    fn splat(value: f32) -> Self;

    /// Loads the first numbers of a slice.
    fn load(from: &[f32]) -> Self;

    /// Stores to the first numbers of a slice.
    fn store(self, to: &mut [f32]);

    /// Returns self + a · b.
    fn add_product(self, a: Self, b: Self) -> Self;
}

/// For targets without their own type: the compiler chooses the registers.
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
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..Self::WIDTH {
            self.0[i] = fma::<FMA>(a.0[i], b.0[i], self.0[i]);
        }
        self
    }
}

/// Defines a [`SimdVector`] over one of x86's registers, with its intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($name:ident, $register:ident, $width:literal, $splat:ident, $load:ident, $store:ident, $fma:ident) => {
        #[derive(Clone, Copy)]
        struct $name(std::arch::x86_64::$register);

        // SAFETY of each block: the type is private, so it is only used as the `V` of a kernel, and
        // `SimdLevel::run` passes it only if the instructions were detected. Pointers point to
        // arrays of the register's length.
        #[allow(unsafe_code, reason = "the registers' functions are for machines that have them")]
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
            fn add_product(self, a: Self, b: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { std::arch::x86_64::$fma(a.0, b.0, self.0) })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_vector!(Avx2, __m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimdLevel(InstructionSet);

/// Private, so that a [`SimdLevel`] proves that its instructions were detected.
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
        Self::all().next_back().expect("there is the baseline")
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
        let present = others.into_iter().filter_map(|(kind, is_there)| is_there.then_some(kind));
        std::iter::once(InstructionSet::Baseline).chain(present).map(Self)
    }

    /// Returns `N` of its kernels.
    pub fn lanes(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => 32,
            _ => 16,
        }
    }

    /// Returns `ROWS` of its kernels.
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

    /// Runs a kernel.
    #[allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]
    pub fn run(self, kernel: impl SimdKernel) {
        match self.0 {
            // 16 registers of 4 numbers on x86 without AVX; NEON has 32.
            InstructionSet::Baseline if cfg!(target_arch = "aarch64") => {
                kernel.run::<PortableVector<true>, 16, 6, true>()
            }
            InstructionSet::Baseline => kernel.run::<PortableVector<false>, 16, 2, false>(),
            // SAFETY: `SimdLevel::all`, the only function that makes this level, detected avx2 and
            // fma.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: `SimdLevel::all`, the only function that makes this level, detected all of
            // them.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Rust compiles for AVX-512 since 1.89; before that, AVX2 is the best level.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    rustversion::cfg!(since(1.89))
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// 16 registers of 8 numbers: 6 rows of two, two for a panel's row, one for its factor.
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
        _mm512_fmadd_ps
    );

    /// 32 registers of 16 numbers: 12 rows of two.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    pub(super) fn run_avx512(kernel: impl SimdKernel) {
        kernel.run::<Avx512, 32, 12, true>();
    }
}

/// Returns `N` numbers of a slice that is known to hold them.
#[inline(always)]
pub(super) fn lanes<const N: usize>(slice: &[f32], first: usize) -> &[f32; N] {
    slice[first..first + N].try_into().expect("N of them")
}

#[inline(always)]
pub(super) fn lanes_mut<const N: usize>(slice: &mut [f32], first: usize) -> &mut [f32; N] {
    (&mut slice[first..first + N]).try_into().expect("N of them")
}

/// Returns `N` numbers, with zeros after the slice's last.
#[inline(always)]
pub(super) fn load<const N: usize>(slice: &[f32], first: usize) -> [f32; N] {
    match slice.len() - first >= N {
        true => *lanes(slice, first),
        false => {
            let mut some = [0.0; N];
            some[..slice.len() - first].copy_from_slice(&slice[first..]);
            some
        }
    }
}

/// Stores `N` numbers, or as many as fit.
#[inline(always)]
pub(super) fn store<const N: usize>(slice: &mut [f32], first: usize, values: &[f32; N]) {
    match slice.len() - first >= N {
        true => *lanes_mut(slice, first) = *values,
        false => {
            let room = slice.len() - first;
            slice[first..].copy_from_slice(&values[..room]);
        }
    }
}

/// Returns a · b + c, rounded once if there is an instruction for it. (Without one, `mul_add` is a
/// slow call.)
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Applies `each` to every number, in place. (A closure that is not inlined would be compiled for
/// the baseline; a macro is always inlined.)
macro_rules! for_each {
    ($values:expr, |$v:ident| $each:expr) => {
        for value in $values.iter_mut() {
            let $v = *value;
            *value = $each;
        }
    };
}

/// Applies the activation to every number. The comparisons are written so that NaN stays NaN.
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

/// Returns the derivative at every number, from the activation's value.
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

/// σ(x), from e^−|x| ≤ 1, so that nothing overflows.
#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    let e = exp::<FMA>(-x.abs());
    let above = if x >= 0.0 { 1.0 } else { e };
    above / (1.0 + e)
}

/// tanh(x), from e^−2|x|. Below 0.625, where 1 − e would cancel, a polynomial in x² with the
/// smallest maximum relative error, 8e-8. `shaders/common.wgsl` has the same function.
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
    let large = (1.0 - e) / (1.0 + e);
    let magnitude = if a < 0.625 { small } else { large };
    magnitude.copysign(x)
}

/// e^x for x ≤ 0, to 1 unit in the last place; 0 below −87.7, where e^x is about 8e-39.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; the polynomial for e^r is that of Cephes' `expf`.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, and leaves it in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts. The first has so few digits that its products with n are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // There n is −127, and the bits of 2^n are those of 0.
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
                let mut some = load::<N>(self.1, first);
                activate::<N, FMA>(self.0, &mut some);
                store(self.1, first, &some);
            }
        }
    }

    #[test]
    fn activations_are_right_to_a_few_units_in_the_last_place() {
        let inputs: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 5e-4).collect();
        let functions = [
            (Activation::Sigmoid, (|x| 1.0 / (1.0 + (-x).exp())) as fn(f64) -> f64),
            (Activation::Tanh, f64::tanh),
        ];
        for level in SimdLevel::all() {
            for (kind, exact) in functions {
                let mut values = inputs.clone();
                level.run(Activate(kind, &mut values));
                for (&x, &value) in inputs.iter().zip(&values) {
                    let expected = exact(f64::from(x));
                    let error = (f64::from(value) - expected).abs() / expected.abs().max(1e-30);
                    assert!(error < 3e-7, "{level:?} {kind} of {x}: {value}, not {expected}");
                }
            }
        }
    }

    /// An infinite state can give an infinite pre-activation. A σ of −∞ that is not 0 would hide
    /// it.
    #[test]
    fn activations_of_the_ends_are_the_references() {
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
                    let what = format!("{level:?} {kind} of {x}: {value}, not {expected}");
                    assert_eq!(value.is_nan(), expected.is_nan(), "{what}");
                    if expected.is_infinite() || (!x.is_finite() && !expected.is_nan()) {
                        assert_eq!(value, expected, "{what}");
                    } else if !expected.is_nan() {
                        let error = (value - expected).abs();
                        assert!(error <= 3e-7 * expected.abs() + 1e-37, "{what}");
                    }
                    // A zero has the same sign as in the reference.
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
            let of = |kind| {
                let mut values = inputs;
                level.run(Activate(kind, &mut values));
                values
            };
            for kind in [Activation::Sigmoid, Activation::Tanh, Activation::HardSigmoid] {
                let values = of(kind);
                assert!(values[0].is_nan(), "{level:?} {kind}");
                assert_eq!(values[1], 1.0, "{level:?} {kind}");
                let low = if kind == Activation::Tanh { -1.0 } else { 0.0 };
                assert!((values[2] - low).abs() < 1e-37, "{level:?} {kind}: {}", values[2]);
                assert!(values[3..].iter().all(|v| v.abs() <= 1.0), "{level:?} {kind}: {values:?}");
            }
            assert!(of(Activation::Relu)[0].is_nan() && of(Activation::Identity)[0].is_nan());
        }
    }
}
