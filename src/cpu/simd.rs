//! SIMD kernels: one source, compiled for each instruction set that the CPU may have.
//!
//! A [`SimdKernel`] is inlined into functions compiled for the baseline, AVX2 and AVX-512, and
//! [`SimdLevel::run`] calls the one for its level. Products and activations use [`SimdVector`]s: there
//! the compiler's own vectorisation gains or loses a factor of four with every small change. Other
//! elementwise loops, over `[f32; N]`, are vectorised by the compiler.

mod activations;
mod vectors;

#[cfg(target_arch = "x86_64")]
use vectors::Avx2;
#[cfg(target_arch = "x86_64")]
#[rustversion::since(1.89)]
use vectors::Avx512;
use vectors::PortableVector;

pub(super) use activations::{activate, derivative};

/// A kernel that is compiled for every [`SimdLevel`]. `run` and all functions it calls must be
/// `#[inline(always)]`: a function that is not inlined is compiled for the target's baseline.
pub(super) trait SimdKernel {
    /// Runs the kernel. `N` is the width of a panel: the elements of two vectors `V`. `ROWS` is the
    /// number of rows of `N` that fit into the registers, with registers left to work.
    fn run<V: SimdVector, const N: usize, const ROWS: usize>(self);
}

/// A vector register of f32. The types that implement it are private to this module. A
/// [`SimdKernel`] gets one only from [`SimdLevel::run`], which has checked that the CPU has its
/// instructions.
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

    /// Returns self − other.
    fn sub(self, other: Self) -> Self;

    /// Returns self · other.
    fn mul(self, other: Self) -> Self;

    /// Returns self / other.
    fn div(self, other: Self) -> Self;

    /// Returns self + a · b, rounded once if the CPU has an instruction for it.
    fn add_product(self, a: Self, b: Self) -> Self;

    /// Returns |self|.
    fn abs(self) -> Self;

    /// Returns self with the signs of `sign`. Self must not be negative.
    fn with_sign(self, sign: Self) -> Self;

    /// Returns the elements of `yes` where a < b, and of `no` elsewhere, also where one is NaN.
    fn select_less(a: Self, b: Self, yes: Self, no: Self) -> Self;

    /// Returns 2^n for numbers 1.5 · 2^23 + n, with n from −127 on. Of −127 it is 0.
    fn power_of_two(self) -> Self;
}

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
                kernel.run::<PortableVector<true>, 16, 6>()
            }
            InstructionSet::Baseline => kernel.run::<PortableVector<false>, 16, 2>(),
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
/// older compiler, AVX2 is the best level, and with `--cfg gru_no_avx512`, to measure AVX2 on a CPU
/// that has both.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    !cfg!(gru_no_avx512)
        && rustversion::cfg!(since(1.89))
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// Runs a kernel with AVX2. Of its 16 registers of 8 elements, a tile uses 12 for 6 rows of two
/// vectors, 2 for a row of the panel, and 1 for the element that multiplies it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(kernel: impl SimdKernel) {
    kernel.run::<Avx2, 16, 6>();
}

/// Runs a kernel with AVX-512. Of its 32 registers of 16 elements, a tile uses 24 for 12 rows of two
/// vectors.
#[cfg(target_arch = "x86_64")]
#[rustversion::since(1.89)]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn run_avx512(kernel: impl SimdKernel) {
    kernel.run::<Avx512, 32, 12>();
}

#[cfg(target_arch = "x86_64")]
#[rustversion::before(1.89)]
use run_avx2 as run_avx512;

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
