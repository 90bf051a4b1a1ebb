// Functions shared by all kernels: σ and tanh, in forms that neither overflow nor cancel, and a
// random number generator.
//
// WGSL's own tanh may give NaN for large inputs (Metal, from |x| > 44) and is inexact on some
// adapters. exp of a number that is never positive has neither problem.

// e^x for x ≤ 0. `hardware` is a constant of the call: by the adapter's own exp, a few
// instructions on a GPU. A software adapter's is a polynomial, off by 3 ulp or more the smaller e^x
// is, by up to 63. This one takes as long and is within 0.95 ulp, also where fma rounds twice. It
// is from x = k ln 2 + r with a whole k and |r| ≤ ln 2 / 2. Below −87.3 it is 0.
fn exp_negative(x: f32, hardware: bool) -> f32 {
    if hardware {
        return exp(x);
    }
    let above = select(x, -88.0, x < -88.0); // NaN stays NaN
    let k = round(above * 1.44269504);
    // ln 2 as 355 / 512, whose product with k is exact, and the rest. The maximum changes nothing
    // but keeps Mesa from adding up the two factors of k.
    let r = fma(max(k, -127.0), 2.12194440e-4, fma(k, -0.693359375, above));
    // (e^r − 1 − r) / r² with the smallest maximum error of e^r, 3e-9.
    var p = 0.00138141742;
    p = fma(p, r, 0.00836892179);
    p = fma(p, r, 0.0416684080);
    p = fma(p, r, 0.166665189);
    p = fma(p, r, 0.499999933);
    p = fma(p, r * r, r);
    // 2^k: the last bits of k + 1.5 · 2^23 are k, and move to the exponent's place.
    let scale = bitcast<f32>((bitcast<u32>(k + 12582912.0) << 23u) + 0x3f800000u);
    return fma(scale, p, scale);
}

// σ(−a) = e^−a / (1 + e^−a) for a ≥ 0, at most 1/2.
fn sigmoid_negative(a: f32, hardware: bool) -> f32 {
    let e = exp_negative(-a, hardware);
    return e / (1.0 + e);
}

// σ(x) = 1 − σ(−x): from the one that is at most 1/2.
fn sigmoid(x: f32, hardware: bool) -> f32 {
    if hardware {
        // A register less: persistent_forward has none left on NVIDIA.
        let e = exp_negative(-abs(x), hardware);
        return select(e, 1.0, x >= 0.0) / (1.0 + e);
    }
    let s = sigmoid_negative(abs(x), hardware);
    return select(s, 1.0 - s, x >= 0.0);
}

// tanh(x) = 1 − 2 σ(−2|x|) with x's sign. Below 0.625 that would cancel, so a polynomial in x² is
// used there, with the smallest maximum relative error, 8e-8.
fn tanh_stable(x: f32, hardware: bool) -> f32 {
    let a = abs(x);
    let s = a * a;
    var p = 0.0021429630;
    p = fma(p, s, -0.0081773996);
    p = fma(p, s, 0.0217007045);
    p = fma(p, s, -0.0539467633);
    p = fma(p, s, 0.1333320588);
    p = fma(p, s, -0.3333333135);
    let small = fma(a * s, p, a);
    let large = fma(-2.0, sigmoid_negative(2.0 * a, hardware), 1.0);
    let magnitude = select(large, small, a < 0.625);
    return select(-magnitude, magnitude, x >= 0.0);
}

// The high word of a product: WGSL has no 64-bit integers.
fn multiply_high(a: u32, b: u32) -> u32 {
    let low = vec2(a & 0xffffu, b & 0xffffu);
    let high = vec2(a >> 16u, b >> 16u);
    let middle = high.x * low.y + ((low.x * low.y) >> 16u);
    let carry = low.x * high.y + (middle & 0xffffu);
    return high.x * high.y + (middle >> 16u) + (carry >> 16u);
}

// Philox4x32 (Salmon et al. 2011): four random words from a counter and a key. Its 10 rounds are an
// argument, so that compilers do not unroll them.
fn philox(counter: vec4<u32>, seed: vec2<u32>, rounds: u32) -> vec4<u32> {
    var c = counter;
    var key = seed;
    for (var round = 0u; round < rounds; round++) {
        let high0 = multiply_high(0xd2511f53u, c.x);
        let high1 = multiply_high(0xcd9e8d57u, c.z);
        c = vec4(
            high1 ^ c.y ^ key.x, 0xcd9e8d57u * c.z,
            high0 ^ c.w ^ key.y, 0xd2511f53u * c.x);
        key += vec2(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}
