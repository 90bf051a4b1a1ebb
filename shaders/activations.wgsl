// The activations of the gates and of the candidate, and their derivatives: Activation in
// src/spec/activation.rs. They are constants, so that a pipeline has only the code of its own.

override GATE: u32 = SIGMOID; // the function of r and z
override GATE_ALPHA: u32 = 0u; // f32: its numbers
override GATE_BETA: u32 = 0u;
override GATE_LEAST: u32 = 0u; // f32: with CLIPS, its least and largest value
override GATE_MOST: u32 = 0u;
override CANDIDATE: u32 = TANH; // the function of n
override CANDIDATE_ALPHA: u32 = 0u;
override CANDIDATE_BETA: u32 = 0u;
override CANDIDATE_LEAST: u32 = 0u;
override CANDIDATE_MOST: u32 = 0u;
override CLIPS: bool = false; // the pre-activations are clipped, which bounds the values
override REVERSE_DIFFERS: bool = false; // the second direction has functions of its own:
override REVERSE_GATE: u32 = SIGMOID;
override REVERSE_GATE_ALPHA: u32 = 0u;
override REVERSE_GATE_BETA: u32 = 0u;
override REVERSE_GATE_LEAST: u32 = 0u;
override REVERSE_GATE_MOST: u32 = 0u;
override REVERSE_CANDIDATE: u32 = TANH;
override REVERSE_CANDIDATE_ALPHA: u32 = 0u;
override REVERSE_CANDIDATE_BETA: u32 = 0u;
override REVERSE_CANDIDATE_LEAST: u32 = 0u;
override REVERSE_CANDIDATE_MOST: u32 = 0u;

const SIGMOID: u32 = 0u;
const TANH: u32 = 1u;
const RELU: u32 = 2u;
const HARD_SIGMOID: u32 = 3u;
const AFFINE: u32 = 4u;
const SCALED_TANH: u32 = 5u;
const LEAKY_RELU: u32 = 6u;
const THRESHOLDED_RELU: u32 = 7u;
const ELU: u32 = 8u;
const SOFTSIGN: u32 = 9u;
const SOFTPLUS: u32 = 10u;

struct Activation {
    kind: u32,
    alpha: f32,
    beta: f32,
    least: f32,
    most: f32,
}

fn gate_activation() -> Activation {
    if REVERSE_DIFFERS && direction == 1u {
        return Activation(
            REVERSE_GATE, bitcast<f32>(REVERSE_GATE_ALPHA), bitcast<f32>(REVERSE_GATE_BETA),
            bitcast<f32>(REVERSE_GATE_LEAST), bitcast<f32>(REVERSE_GATE_MOST));
    }
    return Activation(
        GATE, bitcast<f32>(GATE_ALPHA), bitcast<f32>(GATE_BETA), bitcast<f32>(GATE_LEAST),
        bitcast<f32>(GATE_MOST));
}

fn candidate_activation() -> Activation {
    if REVERSE_DIFFERS && direction == 1u {
        return Activation(
            REVERSE_CANDIDATE, bitcast<f32>(REVERSE_CANDIDATE_ALPHA),
            bitcast<f32>(REVERSE_CANDIDATE_BETA), bitcast<f32>(REVERSE_CANDIDATE_LEAST),
            bitcast<f32>(REVERSE_CANDIDATE_MOST));
    }
    return Activation(
        CANDIDATE, bitcast<f32>(CANDIDATE_ALPHA), bitcast<f32>(CANDIDATE_BETA),
        bitcast<f32>(CANDIDATE_LEAST), bitcast<f32>(CANDIDATE_MOST));
}

// e^x − 1 for x ≤ 0: near 0 by its series, because the difference would cancel.
fn exp_minus_one(x: f32) -> f32 {
    var p = 2.48015873e-5; // 1 / 8!
    p = fma(p, x, 1.98412698e-4);
    p = fma(p, x, 1.38888889e-3);
    p = fma(p, x, 8.33333333e-3);
    p = fma(p, x, 4.16666667e-2);
    p = fma(p, x, 1.66666667e-1);
    p = fma(p, x, 0.5);
    p = fma(p, x * x, x);
    return select(exp_negative(x, HARDWARE_EXP) - 1.0, p, x > -0.5);
}

// ln(1 + e^a) = max(a, 0) + ln(1 + e) with e = e^−|a|. The logarithm is 2 artanh(s) with
// s = e / (2 + e), at most 1/3, by its series.
fn softplus(a: f32) -> f32 {
    let e = exp_negative(-abs(a), HARDWARE_EXP);
    let s = e / (2.0 + e);
    let square = s * s;
    var p = 0.0769230769; // 1 / 13
    p = fma(p, square, 0.0909090909);
    p = fma(p, square, 0.111111111);
    p = fma(p, square, 0.142857143);
    p = fma(p, square, 0.2);
    p = fma(p, square, 0.333333333);
    p = fma(p, square * s, s);
    return fma(2.0, p, select(a, 0.0, a < 0.0));
}

// The comparisons here are written so that NaN stays NaN.
fn activate(f: Activation, a: f32) -> f32 {
    let value = unbounded(f, a);
    if CLIPS {
        return select(select(value, f.least, value < f.least), f.most, value > f.most);
    }
    return value;
}

fn unbounded(f: Activation, a: f32) -> f32 {
    switch f.kind {
        case SIGMOID: { return sigmoid(a, HARDWARE_EXP); }
        case TANH: { return tanh_stable(a, HARDWARE_EXP); }
        case RELU: { return select(a, 0.0, a < 0.0); }
        case HARD_SIGMOID: {
            let line = fma(f.alpha, a, f.beta);
            return select(select(line, 0.0, line < 0.0), 1.0, line > 1.0);
        }
        case AFFINE: { return fma(f.alpha, a, f.beta); }
        case SCALED_TANH: { return f.alpha * tanh_stable(f.beta * a, HARDWARE_EXP); }
        case LEAKY_RELU: { return select(a, f.alpha * a, a < 0.0); }
        case THRESHOLDED_RELU: { return select(a, 0.0, a <= f.alpha); }
        case ELU: { return select(a, f.alpha * exp_minus_one(min(a, 0.0)), a < 0.0); }
        case SOFTSIGN: {
            // 1 − 1 / (1 + |a|) would cancel for small a; a / (1 + |a|) is NaN for an infinite a.
            let size = abs(a);
            let large = 1.0 - 1.0 / (1.0 + size);
            let magnitude = select(size / (1.0 + size), large, size > 1.0);
            return select(-magnitude, magnitude, a >= 0.0);
        }
        default: { return softplus(a); }
    }
}

// The derivative, from the activation's value.
fn derivative(f: Activation, value: f32) -> f32 {
    if CLIPS && (value <= f.least || value >= f.most) {
        return 0.0;
    }
    switch f.kind {
        case SIGMOID: { return value * (1.0 - value); }
        case TANH: { return 1.0 - value * value; }
        case RELU, THRESHOLDED_RELU: { return select(0.0, 1.0, value > 0.0); }
        case HARD_SIGMOID: { return select(0.0, f.alpha, value > 0.0 && value < 1.0); }
        case AFFINE: { return f.alpha; }
        case SCALED_TANH: { return fma(-f.beta / f.alpha * value, value, f.alpha * f.beta); }
        case LEAKY_RELU: { return select(f.alpha, 1.0, value > 0.0); }
        case ELU: { return select(value + f.alpha, 1.0, value > 0.0); }
        case SOFTSIGN: {
            let rest = 1.0 - abs(value);
            return rest * rest;
        }
        default: { return -exp_minus_one(-value); }
    }
}
