//! The activations and their derivatives.

use super::SimdVector;
use crate::spec::activation::{Activation, ClippedActivation};

/// Returns the function's value of every element. The comparisons are written so that NaN stays NaN.
#[inline(always)]
pub(crate) fn activate<V: SimdVector>(function: &ClippedActivation, a: V) -> V {
    // The defaults first, without a jump through a table.
    match (function.activation, function.bounds) {
        (Activation::Sigmoid, None) => return sigmoid(a),
        (Activation::Tanh, None) => return tanh(a),
        _ => {}
    }
    let value = unbounded(function.activation, a);
    let Some([least, most]) = function.bounds else { return value };
    let (least, most) = (V::splat(least), V::splat(most));
    let value = V::select_less(value, least, least, value);
    V::select_less(most, value, most, value)
}

#[inline(always)]
fn unbounded<V: SimdVector>(activation: Activation, a: V) -> V {
    let (zero, one) = (V::splat(0.0), V::splat(1.0));
    match activation {
        Activation::Sigmoid => sigmoid(a),
        Activation::Tanh => tanh(a),
        Activation::Relu => V::select_less(a, zero, zero, a),
        Activation::HardSigmoid { alpha, beta } => {
            let line = V::splat(beta).add_product(V::splat(alpha), a);
            let line = V::select_less(line, zero, zero, line);
            V::select_less(one, line, one, line)
        }
        Activation::Affine { alpha, beta } => V::splat(beta).add_product(V::splat(alpha), a),
        Activation::ScaledTanh { alpha, beta } => V::splat(alpha).mul(tanh(V::splat(beta).mul(a))),
        Activation::LeakyRelu { alpha } => V::select_less(a, zero, V::splat(alpha).mul(a), a),
        Activation::ThresholdedRelu { alpha } => {
            // Not `a < α`, so that α itself gives 0, and written so that NaN stays NaN.
            let above = V::select_less(V::splat(alpha), a, a, zero);
            V::select_less(
                a.abs(),
                V::splat(f32::INFINITY),
                above,
                V::select_less(a, zero, zero, a),
            )
        }
        Activation::Elu { alpha } => {
            let negative = V::select_less(a, zero, a, zero);
            V::select_less(a, zero, V::splat(alpha).mul(exp_minus_one(negative)), a)
        }
        Activation::Softsign => {
            // 1 − 1 / (1 + |a|) would cancel for small a; a / (1 + |a|) is NaN for an infinite a.
            let size = a.abs();
            let large = one.sub(one.div(one.add(size)));
            V::select_less(one, size, large, size.div(one.add(size))).with_sign(a)
        }
        Activation::Softplus => softplus(a),
    }
}

/// Returns ln(1 + e^a) = max(a, 0) + ln(1 + e) with e = e^−|a|. The logarithm is 2 artanh(s) with
/// s = e / (2 + e), at most 1/3, by its series.
#[inline(always)]
fn softplus<V: SimdVector>(a: V) -> V {
    let (zero, two) = (V::splat(0.0), V::splat(2.0));
    let e = exp(zero.sub(a.abs()));
    let s = e.div(two.add(e));
    let square = s.mul(s);
    let mut p = V::splat(1.0 / 13.0);
    for n in [11.0, 9.0, 7.0, 5.0, 3.0] {
        p = V::splat(1.0 / n).add_product(p, square);
    }
    let half = s.add_product(p, square.mul(s));
    V::select_less(a, zero, zero, a).add_product(two, half)
}

/// Returns e^x − 1 for x ≤ 0: near 0 by its series, because the difference would cancel.
#[inline(always)]
fn exp_minus_one<V: SimdVector>(x: V) -> V {
    let mut p = V::splat(1.0 / 40_320.0);
    for n in [5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0] {
        p = V::splat(1.0 / n).add_product(p, x);
    }
    let near = x.add_product(p, x.mul(x));
    V::select_less(x, V::splat(-0.5), exp(x).sub(V::splat(1.0)), near)
}

/// Returns σ(x), computed from e = e^−|x| ≤ 1 to avoid overflow: 1 / (1 + e), or e / (1 + e) for
/// negative x. The rounding error of 1 + e is known exactly, so the quotient q is corrected for it:
/// q (1 − error / (1 + e)).
#[inline(always)]
fn sigmoid<V: SimdVector>(x: V) -> V {
    let (zero, one) = (V::splat(0.0), V::splat(1.0));
    let e = exp(zero.sub(x.abs()));
    let sum = one.add(e);
    let error = e.sub(sum.sub(one));
    let quotient = V::select_less(x, zero, e, one).div(sum);
    let reciprocal = V::select_less(x, zero, one.sub(quotient), quotient);
    quotient.add_product(zero.sub(quotient.mul(error)), reciprocal)
}

/// Returns tanh(x) = 1 − 2e / (1 + e), where e = e^−2|x|. The 1 is so much larger than the quotient
/// that the quotient's error counts little. Below |x| = 0.625, where it would not, tanh is a
/// polynomial in x² fitted to minimise the maximum relative error, 8e-8. `shaders/common.wgsl` has
/// the same function.
#[inline(always)]
fn tanh<V: SimdVector>(x: V) -> V {
    let a = x.abs();
    let s = a.mul(a);
    let mut p = V::splat(0.002_142_963);
    for c in [-0.008_177_4, 0.021_700_704, -0.053_946_763, 0.133_332_06, -0.333_333_3] {
        p = V::splat(c).add_product(p, s);
    }
    let small = a.add_product(a.mul(s), p);
    let e = exp(a.mul(V::splat(-2.0)));
    let one = V::splat(1.0);
    let large = one.add_product(V::splat(-2.0), e.div(one.add(e)));
    V::select_less(a, V::splat(0.625), small, large).with_sign(x)
}

/// Returns e^x for x ≤ 0, accurate to 1 unit in the last place, and 0 below −87.7, where e^x is
/// about 8e-39.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2. The polynomial for e^r is from Cephes' `expf`.
#[inline(always)]
fn exp<V: SimdVector>(x: V) -> V {
    // Adding 1.5 · 2^23 rounds to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 = LN2_HIGH + LN2_LOW. LN2_HIGH has so few digits that its products with n are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // At −88, n is −127, and the computed 2^n is 0.
    let least = V::splat(-88.0);
    let x = V::select_less(x, least, least, x);
    let shifted = V::splat(ROUND).add_product(x, V::splat(std::f32::consts::LOG2_E));
    let n = shifted.sub(V::splat(ROUND));
    let r = x.add_product(n, V::splat(-LN2_HIGH)).add_product(n, V::splat(-LN2_LOW));
    let mut p = V::splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = V::splat(c).add_product(p, r);
    }
    r.add_product(p.mul(r), r).add(V::splat(1.0)).mul(shifted.power_of_two())
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

/// Returns the derivative at every element, computed from the function's values.
#[inline(always)]
pub(crate) fn derivative<const N: usize>(
    function: &ClippedActivation,
    values: &[f32; N],
) -> [f32; N] {
    let mut derivatives = *values;
    match function.activation {
        Activation::Sigmoid => for_each!(derivatives, |v| v * (1.0 - v)),
        Activation::Tanh => for_each!(derivatives, |v| 1.0 - v * v),
        Activation::Relu | Activation::ThresholdedRelu { .. } => {
            for_each!(derivatives, |v| if v > 0.0 { 1.0 } else { 0.0 });
        }
        Activation::HardSigmoid { alpha, .. } => {
            for_each!(derivatives, |v| if v > 0.0 && v < 1.0 { alpha } else { 0.0 });
        }
        Activation::Affine { alpha, .. } => derivatives = [alpha; N],
        Activation::ScaledTanh { alpha, beta } => {
            let (first, second) = (alpha * beta, beta / alpha);
            for_each!(derivatives, |v| first - second * v * v);
        }
        Activation::LeakyRelu { alpha } => {
            for_each!(derivatives, |v| if v > 0.0 { 1.0 } else { alpha });
        }
        Activation::Elu { alpha } => {
            for_each!(derivatives, |v| if v > 0.0 { 1.0 } else { v + alpha });
        }
        Activation::Softsign => for_each!(derivatives, |v| (1.0 - v.abs()) * (1.0 - v.abs())),
        Activation::Softplus => for_each!(derivatives, |v| -(-v).exp_m1()),
    }
    if let Some([least, most]) = function.bounds {
        for (derivative, &value) in derivatives.iter_mut().zip(values) {
            *derivative = if value <= least || value >= most { 0.0 } else { *derivative };
        }
    }
    derivatives
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{SimdKernel, SimdLevel, load, store};

    struct Activate<'a>(Activation, &'a mut [f32]);

    impl SimdKernel for Activate<'_> {
        #[inline(always)]
        fn run<V: SimdVector, const N: usize, const ROWS: usize>(self) {
            for first in (0..self.1.len()).step_by(N) {
                let mut values = load::<N>(self.1, first);
                for part in values.chunks_exact_mut(V::WIDTH) {
                    activate(&ClippedActivation::new(self.0, None), V::load(part)).store(part);
                }
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
                    let expected: f32 = kind.value(x);
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
            for kind in [Activation::Sigmoid, Activation::Tanh, Activation::HARD_SIGMOID_ONNX] {
                let values = apply(kind);
                assert!(values[0].is_nan(), "{level:?} {kind}");
                assert_eq!(values[1], 1.0, "{level:?} {kind}");
                let low = if kind == Activation::Tanh { -1.0 } else { 0.0 };
                assert!((values[2] - low).abs() < 1e-37, "{level:?} {kind}: {}", values[2]);
                assert!(values[3..].iter().all(|v| v.abs() <= 1.0), "{level:?} {kind}: {values:?}");
            }
            assert!(apply(Activation::Relu)[0].is_nan() && apply(Activation::IDENTITY)[0].is_nan());
        }
    }
}
