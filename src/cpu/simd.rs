//! One source compiled for each set of instructions a machine may have.
//!
//! A [`SimdKernel`] is inlined whole into a function for which the compiler may use AVX2 or AVX-512,
//! and [`SimdLevel::run`] calls the best of them that the machine has. What goes over `[f32; N]` number
//! by number is left to the compiler's vectoriser. The innermost loop of products is not: there it
//! is right or wrong by a factor of four with every small change, so its registers are [`SimdVector`]s.

use crate::spec::config::Activation;

/// Work to be compiled for every [`SimdLevel`]. `run` and all it calls must be `#[inline(always)]`:
/// what is not inlined is compiled for the target's baseline.
pub(super) trait SimdKernel {
    /// `N`: the numbers of a panel's row, two vectors. `ROWS`: how many rows of `N` the registers
    /// hold with room to work. `FMA`: whether there is an instruction for a · b + c.
    fn run<V: SimdVector, const N: usize, const ROWS: usize, const FMA: bool>(self);
}

/// Some numbers in a register. The kinds of it are this file's own: a [`SimdKernel`] gets one from
/// [`SimdLevel::run`], on a machine that has its instructions, or none.
pub(super) trait SimdVector: Copy {
    /// How many numbers.
    const WIDTH: usize;

    /// The same number everywhere.
    fn splat(value: f32) -> Self;

    /// The first numbers of a slice.
    fn load(from: &[f32]) -> Self;

    /// Writes the first numbers of a slice.
    fn store(self, to: &mut [f32]);

    /// self + a · b
    fn add_product(self, a: Self, b: Self) -> Self;
}

/// For what has no kind of its own: the compiler makes registers of it.
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

/// A [`SimdVector`] over one of x86's registers and the functions that go with it.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($name:ident, $register:ident, $width:literal, $splat:ident, $load:ident, $store:ident, $fma:ident) => {
        #[derive(Clone, Copy)]
        struct $name(std::arch::x86_64::$register);

        // SAFETY of each block: the type is private, so it is reached only as the `V` of a kernel,
        // and `SimdLevel::run` hands it out where the instructions were found. Pointers are those of
        // arrays as long as the register.
        #[allow(unsafe_code, reason = "the registers' functions are for machines that have them")]
        impl SimdVector for $name {
            const WIDTH: usize = $width;

            #[inline(always)]
            fn splat(value: f32) -> Self {
                // SAFETY: above.
                Self(unsafe { std::arch::x86_64::$splat(value) })
            }

            #[inline(always)]
            fn load(from: &[f32]) -> Self {
                let from = lanes::<$width>(from, 0);
                // SAFETY: above.
                Self(unsafe { std::arch::x86_64::$load(from.as_ptr()) })
            }

            #[inline(always)]
            fn store(self, to: &mut [f32]) {
                let to = lanes_mut::<$width>(to, 0);
                // SAFETY: above.
                unsafe { std::arch::x86_64::$store(to.as_mut_ptr(), self.0) }
            }

            #[inline(always)]
            fn add_product(self, a: Self, b: Self) -> Self {
                // SAFETY: above.
                Self(unsafe { std::arch::x86_64::$fma(a.0, b.0, self.0) })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_vector!(Avx2, __m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);

/// A set of instructions that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimdLevel(InstructionSet);

/// Private, so that a [`SimdLevel`] is proof of what was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InstructionSet {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl SimdLevel {
    /// The best this machine has.
    pub fn best() -> Self {
        Self::all().next_back().expect("there is the baseline")
    }

    /// All that this machine has, the best last.
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

    /// `N` of the kernels it runs.
    pub fn lanes(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => 32,
            _ => 16,
        }
    }

    /// `ROWS` of the kernels it runs.
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
            // 16 registers of 4 on x86 without AVX; NEON has 32.
            InstructionSet::Baseline if cfg!(target_arch = "aarch64") => {
                kernel.run::<PortableVector<true>, 16, 6, true>()
            }
            InstructionSet::Baseline => kernel.run::<PortableVector<false>, 16, 2, false>(),
            // SAFETY: `SimdLevel::all`, the only place that makes this level, found avx2 and fma.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: `SimdLevel::all`, the only place that makes this level, found all of them.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Rust 1.89 was the first to compile for AVX-512; before it, AVX2 is the best there is.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    rustversion::cfg!(since(1.89))
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// 16 registers of 8: 6 rows of two, two for a panel's row, one for what it is multiplied with.
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

    /// 32 registers of 16: 12 rows of two.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    pub(super) fn run_avx512(kernel: impl SimdKernel) {
        kernel.run::<Avx512, 32, 12, true>();
    }
}

/// `N` numbers at a place that is known to hold them.
#[inline(always)]
pub(super) fn lanes<const N: usize>(slice: &[f32], first: usize) -> &[f32; N] {
    slice[first..first + N].try_into().expect("N of them")
}

#[inline(always)]
pub(super) fn lanes_mut<const N: usize>(slice: &mut [f32], first: usize) -> &mut [f32; N] {
    (&mut slice[first..first + N]).try_into().expect("N of them")
}

/// `N` numbers, or as many as there are and zeros.
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

/// Writes `N` numbers, or as many as there is room for.
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

/// a · b + c, rounded once where there is an instruction for it. (Where there is none, `mul_add` is
/// a slow call.)
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `each` of every number, in place. (A closure that is not inlined would be compiled for the
/// baseline, and a macro is always inlined.)
macro_rules! for_each {
    ($values:expr, |$v:ident| $each:expr) => {
        for value in $values.iter_mut() {
            let $v = *value;
            *value = $each;
        }
    };
}

/// The function of every number. Comparisons are such that NaN comes out as NaN.
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

/// The derivative at every number, from the function's value.
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

/// tanh(x), from e^−2|x|; below 0.625, where 1 − e would cancel, a polynomial in x² fitted for the
/// smallest largest relative error, 8e-8. The twin is in `shaders/common.wgsl`.
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

/// e^x for x ≤ 0, to 1 unit in the last place, and 0 below −87.7, where e^x is some 8e-39.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; the polynomial of e^r is that of Cephes' `expf`.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, and leaves it in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with so few digits that its products with n are exact.
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

    /// Where a state is infinite, so may be what an activation is taken of, and a σ of −∞ that is
    /// not 0 would hide it.
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
                    // A zero keeps its sign where the reference's does.
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
