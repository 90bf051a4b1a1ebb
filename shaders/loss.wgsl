// The loss of each row of outputs o with targets t. The gradient replaces the outputs.
//
//   MEAN_SQUARED   Σ_c (o − t)²                           2 (o − t)
//   HUBER          Σ_c d² / 2, or δ (|d| − δ / 2)         d between −δ and δ, where d = o − t
//   CROSS_ENTROPY  log Σ_c e^o_c − o_t                    softmax(o) − one-hot(t)
//
// Both are multiplied by the row's weight; with weight 0 both are 0 for any outputs. In evaluation
// the outputs do not change, and a second number per row is 1 if the largest output is at its
// class.
//
// LANES threads process a row; a workgroup has as many rows as fit. The order of additions is
// fixed.

const MEAN_SQUARED: u32 = 0u;
const HUBER: u32 = 1u;
const CROSS_ENTROPY: u32 = 2u;

const THREADS: u32 = 64u;

override LOSS: u32 = MEAN_SQUARED;
override LANES: u32 = 1u; // a power of two
override DIFFERENTIATE: bool = true; // false: evaluate

struct Args {
    rows: u32,
    width: u32, // C
    delta: u32, // an f32
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read_write> outputs: array<f32>; // [rows, C]
@group(0) @binding(2) var<storage, read> targets: array<u32>; // [rows, C] of f32, or [rows] of classes
@group(0) @binding(3) var<storage, read> weights: array<f32>; // [rows]
@group(0) @binding(4) var<storage, read_write> losses: array<f32>; // [rows], or [rows, 2]: loss, correct

var<workgroup> lane_results: array<f32, THREADS>;

// Combines the numbers of all lanes of a row.
fn sum_of_lanes(thread: u32, partial: f32) -> f32 {
    lane_results[thread] = partial;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if thread % LANES < half {
            lane_results[thread] += lane_results[thread + half];
        }
        workgroupBarrier();
    }
    let sum = lane_results[thread / LANES * LANES];
    workgroupBarrier();
    return sum;
}

// The larger number, or NaN if either is NaN.
fn larger(a: f32, b: f32) -> f32 {
    return select(b, a, a > b || a != a);
}

fn largest_of_lanes(thread: u32, partial: f32) -> f32 {
    lane_results[thread] = partial;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if thread % LANES < half {
            lane_results[thread] = larger(lane_results[thread], lane_results[thread + half]);
        }
        workgroupBarrier();
    }
    let largest = lane_results[thread / LANES * LANES];
    workgroupBarrier();
    return largest;
}

// 1 if the largest output is at class `target_class`, or at the first of several largest. NaN is
// not larger.
fn correct_row(thread: u32, lane: u32, first: u32, target_class: u32, end: u32) -> f32 {
    var larger_ones = 0.0;
    for (var c = lane; c < end; c += LANES) {
        let own = outputs[first + target_class];
        let other = outputs[first + c];
        larger_ones += select(1.0, 0.0, other < own || (other == own && c >= target_class));
    }
    return select(0.0, 1.0, sum_of_lanes(thread, larger_ones) == 0.0);
}

// The loss of a row, and in evaluation 1 if the row is correct. A row after the end has no columns,
// but takes part in the barriers.
fn softmax(thread: u32, lane: u32, first: u32, row: u32, end: u32, weight: f32) -> vec2<f32> {
    var partial = -0x1.fffffep127f; // the lowest number
    for (var c = lane; c < end; c += LANES) {
        partial = larger(partial, outputs[first + c]);
    }
    let largest = largest_of_lanes(thread, partial);
    partial = 0.0;
    for (var c = lane; c < end; c += LANES) {
        partial += exp_negative(outputs[first + c] - largest, false);
    }
    var target_class = 0u;
    var own = 0.0;
    if end > 0u {
        target_class = targets[row];
        own = outputs[first + target_class] - largest;
    }
    // Every lane has read `o_t` before one of them overwrites it.
    storageBarrier();
    let sum = sum_of_lanes(thread, partial);
    let loss = log(sum) - own;
    if !DIFFERENTIATE {
        return vec2<f32>(loss, correct_row(thread, lane, first, target_class, end));
    }
    for (var c = lane; c < end; c += LANES) {
        let hot = select(0.0, 1.0, c == target_class);
        let probability = exp_negative(outputs[first + c] - largest, false) / sum;
        outputs[first + c] = weight * (probability - hot);
    }
    return vec2<f32>(loss, 0.0);
}

fn differences(thread: u32, lane: u32, first: u32, end: u32, weight: f32) -> vec2<f32> {
    let delta = bitcast<f32>(args.delta);
    var partial = 0.0;
    for (var c = lane; c < end; c += LANES) {
        let d = outputs[first + c] - bitcast<f32>(targets[first + c]);
        if LOSS == HUBER {
            // A NaN passes neither comparison, so it stays NaN.
            let near = select(select(d, -delta, d < -delta), delta, d > delta);
            partial += near * (d - 0.5 * near);
            if DIFFERENTIATE {
                outputs[first + c] = weight * near;
            }
        } else {
            partial += d * d;
            if DIFFERENTIATE {
                outputs[first + c] = weight * (d + d);
            }
        }
    }
    return vec2<f32>(sum_of_lanes(thread, partial), 0.0);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    let row = (group.y * groups.x + group.x) * (THREADS / LANES) + thread / LANES;
    let first = row * args.width;
    var weight = 0.0;
    if row < args.rows {
        weight = weights[row];
    }
    let end = select(0u, args.width, weight != 0.0);
    var loss: vec2<f32>;
    if LOSS == CROSS_ENTROPY {
        loss = softmax(thread, lane, first, row, end, weight);
    } else {
        loss = differences(thread, lane, first, end, weight);
    }
    if row >= args.rows {
        return;
    }
    if weight == 0.0 && DIFFERENTIATE {
        for (var c = lane; c < args.width; c += LANES) {
            outputs[first + c] = 0.0;
        }
    }
    if lane == 0u {
        let counted = select(vec2<f32>(weight * loss.x, loss.y), vec2<f32>(0.0), weight == 0.0);
        if DIFFERENTIATE {
            losses[row] = counted.x;
        } else {
            losses[2u * row] = counted.x;
            losses[2u * row + 1u] = counted.y;
        }
    }
}
