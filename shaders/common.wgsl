// Shared by every kernel: the activations, in forms that neither overflow nor cancel.
//
// WGSL's own tanh may give NaN for large inputs (Metal, from |x| > 44) and is coarse on some
// adapters; exp of a number that is never positive does neither.

// σ(x) = 1 / (1 + e^−x), from e = e^−|x| ≤ 1.
fn sigmoid(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// tanh(x) = (1 − e^−2|x|) / (1 + e^−2|x|) with x's sign. Below 0.625 the numerator would cancel, and
// a polynomial in x² takes over: fitted for the smallest largest relative error, 8e-8.
fn tanh_stable(x: f32) -> f32 {
    let a = abs(x);
    let s = a * a;
    var p = 0.0021429630;
    p = fma(p, s, -0.0081773996);
    p = fma(p, s, 0.0217007045);
    p = fma(p, s, -0.0539467633);
    p = fma(p, s, 0.1333320588);
    p = fma(p, s, -0.3333333135);
    let small = fma(a * s, p, a);
    let e = exp(-2.0 * a);
    let large = (1.0 - e) / (1.0 + e);
    let magnitude = select(large, small, a < 0.625);
    return select(-magnitude, magnitude, x >= 0.0);
}
