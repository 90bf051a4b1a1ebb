//! The vector registers: one type for each instruction set.

use super::{SimdVector, lanes, lanes_mut};

/// A vector for CPUs without a type of their own. The compiler chooses the registers.
#[derive(Clone, Copy)]
pub(super) struct PortableVector<const FMA: bool>([f32; 8]);

impl<const FMA: bool> PortableVector<FMA> {
    /// Returns the vector of each element's result. `each` must be inlined: a closure that is not
    /// would be compiled for the baseline, which is what this type is for.
    #[inline(always)]
    fn each(each: impl Fn(usize) -> f32) -> Self {
        Self(std::array::from_fn(each))
    }
}

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
    fn add(self, other: Self) -> Self {
        Self::each(|i| self.0[i] + other.0[i])
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self::each(|i| self.0[i] - other.0[i])
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self::each(|i| self.0[i] * other.0[i])
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self::each(|i| self.0[i] / other.0[i])
    }

    // If the CPU has no instruction for it, `mul_add` would be a slow function call.
    #[inline(always)]
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..Self::WIDTH {
            self.0[i] = match FMA {
                true => a.0[i].mul_add(b.0[i], self.0[i]),
                false => a.0[i] * b.0[i] + self.0[i],
            };
        }
        self
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self::each(|i| self.0[i].abs())
    }

    #[inline(always)]
    fn with_sign(self, sign: Self) -> Self {
        Self::each(|i| self.0[i].copysign(sign.0[i]))
    }

    #[inline(always)]
    fn select_less(a: Self, b: Self, yes: Self, no: Self) -> Self {
        Self::each(|i| if a.0[i] < b.0[i] { yes.0[i] } else { no.0[i] })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self::each(|i| f32::from_bits(self.0[i].to_bits().wrapping_add(127) << 23))
    }
}

/// Defines a [`SimdVector`] from an x86 register type and its intrinsics. Those that differ in more
/// than their names are functions of this module.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    (
        $name:ident, $register:ident, $width:literal,
        $splat:ident, $load:ident, $store:ident, $fma:ident, $special:ident,
        [$($binary:ident = $intrinsic:ident),*]
    ) => {
        #[derive(Clone, Copy)]
        pub(in crate::cpu::simd) struct $name(std::arch::x86_64::$register);

        // SAFETY of each block below: the instructions exist, because the type is private to `simd`
        // and only used as the `V` of a kernel, and `SimdLevel::run` passes it only on a level whose
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

            $(
                #[inline(always)]
                fn $binary(self, other: Self) -> Self {
                    // SAFETY: see above.
                    Self(unsafe { std::arch::x86_64::$intrinsic(self.0, other.0) })
                }
            )*

            #[inline(always)]
            fn add_product(self, a: Self, b: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { std::arch::x86_64::$fma(a.0, b.0, self.0) })
            }

            #[inline(always)]
            fn abs(self) -> Self {
                // SAFETY: see above.
                Self(unsafe { $special::abs(self.0) })
            }

            #[inline(always)]
            fn with_sign(self, sign: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { $special::with_sign(self.0, sign.0) })
            }

            #[inline(always)]
            fn select_less(a: Self, b: Self, yes: Self, no: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { $special::select_less(a.0, b.0, yes.0, no.0) })
            }

            #[inline(always)]
            fn power_of_two(self) -> Self {
                // SAFETY: see above.
                Self(unsafe { $special::power_of_two(self.0) })
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
    _mm256_fmadd_ps,
    avx2,
    [add = _mm256_add_ps, sub = _mm256_sub_ps, mul = _mm256_mul_ps, div = _mm256_div_ps]
);

/// Functions of [`Avx2`].
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn abs(x: __m256) -> __m256 {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn with_sign(x: __m256, sign: __m256) -> __m256 {
        _mm256_or_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0), sign))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn select_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn power_of_two(x: __m256) -> __m256 {
        let exponents = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponents))
    }
}

#[cfg(target_arch = "x86_64")]
#[rustversion::since(1.89)]
pub(super) use avx512::Avx512;

/// AVX-512, for which Rust compiles from version 1.89 on.
#[cfg(target_arch = "x86_64")]
#[rustversion::since(1.89)]
mod avx512 {
    use crate::cpu::simd::{SimdVector, lanes, lanes_mut};

    x86_vector!(
        Avx512,
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        functions,
        [add = _mm512_add_ps, sub = _mm512_sub_ps, mul = _mm512_mul_ps, div = _mm512_div_ps]
    );

    /// Functions of [`Avx512`].
    mod functions {
        use std::arch::x86_64::*;

        #[inline]
        #[target_feature(enable = "avx512f,avx512dq")]
        pub(super) fn abs(x: __m512) -> __m512 {
            _mm512_abs_ps(x)
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512dq")]
        pub(super) fn with_sign(x: __m512, sign: __m512) -> __m512 {
            _mm512_or_ps(x, _mm512_and_ps(_mm512_set1_ps(-0.0), sign))
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512dq")]
        pub(super) fn select_less(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes)
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512dq")]
        pub(super) fn power_of_two(x: __m512) -> __m512 {
            let exponents = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponents))
        }
    }
}
