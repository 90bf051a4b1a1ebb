// One time step forward: the products of the gates with the past, fused with the elementwise update.
//
// Reset after: one dispatch a step, GATES_RZ and GATE_N both true.
//     r = σ(gates_r + W_hr h + b_hr)    z = σ(gates_z + W_hz h + b_hz)    past = W_hn h + b_hn
//     n = tanh(gates_n + r ⊙ past)      h' from z, n, h
// Reset before: two, since every n needs every r. First GATES_RZ alone:
//     r, z as above                     past = r ⊙ h
// then GATE_N alone:
//     n = tanh(gates_n + W_hn past + b_hn)      h' from z, n, h
//
// gates holds the input's products (with b_ih) in its r, z, n columns on entry; they are overwritten
// in place by the activations, by the very thread that read them. The twin is Cell::step. Times past
// a row's length are skipped.
//
// The directions of a layer are independent; workgroups' z tells them apart. The reverse one (z = 1)
// runs from the last time to the first, its tensors lie one direction's size after the forward one's.
//
// A workgroup makes UNITS hidden units of ROWS batch rows. A thread owns one unit of four rows: for
// each k one vec4 of the past and one weight a gate feed four multiply-adds a gate.

override GATES_RZ: bool = true;
override GATE_N: bool = true;
override Z_KEEPS: bool = true;
override GATE_ACTIVATION: u32 = SIGMOID; // of r and z
override CANDIDATE_ACTIVATION: u32 = TANH; // of n

const UNITS: u32 = 16u;
const ROWS: u32 = 16u;
const DEPTH: u32 = 16u;
const QUADS: u32 = ROWS / 4u;
const THREADS: u32 = UNITS * QUADS;
// One more than DEPTH, so that the units of one k fall into different banks.
const PITCH: u32 = DEPTH + 1u;

struct Args {
    steps: u32, // T
    batch: u32,
    hidden: u32,
    row_first: u32, // the first batch row of this dispatch
    weight_apart: u32, // elements from a weight to the same one of the reverse direction
    bias_apart: u32,
    step: u32, // the direction's own: its first is 0
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> weight_hh: array<f32>; // [D, 3H, H]
@group(0) @binding(2) var<storage, read> bias_hh: array<f32>; // [D, 3H]
@group(0) @binding(3) var<storage, read_write> gates: array<f32>; // [D, T, B, 4H]: r, z, n, past
// [D, T+1, B, H]. Forward, time t reads row t and writes row t + 1; reverse, the other way round.
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
@group(0) @binding(5) var<storage, read> lengths: array<u32>; // [B]

var<workgroup> past_slice: array<vec4<f32>, DEPTH * QUADS>; // [DEPTH][QUADS], four rows each
var<workgroup> weight_slice: array<f32, 3u * UNITS * PITCH>; // [gate][UNITS][DEPTH]

// The direction of this workgroup.
var<private> direction: u32;

fn time() -> u32 {
    return select(args.step, args.steps - 1u - args.step, direction == 1u);
}

fn gates_at(row: u32, column: u32) -> u32 {
    return ((direction * args.steps + time()) * args.batch + row) * 4u * args.hidden + column;
}

fn h_at(state: u32, row: u32, unit: u32) -> u32 {
    return ((direction * (args.steps + 1u) + state) * args.batch + row) * args.hidden + unit;
}

fn before_at(row: u32, unit: u32) -> u32 {
    return h_at(time() + direction, row, unit);
}

fn after_at(row: u32, unit: u32) -> u32 {
    return h_at(time() + 1u - direction, row, unit);
}

fn bias(gate: u32, unit: u32) -> f32 {
    return bias_hh[direction * args.bias_apart + gate * args.hidden + unit];
}

// What the weights are multiplied with: h, or r ⊙ h where the candidate comes in its own dispatch.
fn load_past(row: u32, k: u32) -> f32 {
    if row >= args.batch || k >= args.hidden {
        return 0.0;
    }
    if GATES_RZ {
        return h[before_at(row, k)];
    }
    return gates[gates_at(row, 3u * args.hidden + k)];
}

fn stage_weight(gate: u32, unit0: u32, k0: u32, thread: u32) {
    for (var i = thread; i < UNITS * DEPTH; i += THREADS) {
        let unit = unit0 + i / DEPTH;
        let k = k0 + i % DEPTH;
        var weight = 0.0;
        if unit < args.hidden && k < args.hidden {
            let at = (gate * args.hidden + unit) * args.hidden + k;
            weight = weight_hh[direction * args.weight_apart + at];
        }
        weight_slice[(gate * UNITS + i / DEPTH) * PITCH + i % DEPTH] = weight;
    }
}

fn stage(row0: u32, unit0: u32, k0: u32, thread: u32) {
    let row = row0 + thread / DEPTH * 4u;
    let k = k0 + thread % DEPTH;
    past_slice[(thread % DEPTH) * QUADS + thread / DEPTH] = vec4(
        load_past(row, k), load_past(row + 1u, k), load_past(row + 2u, k), load_past(row + 3u, k));
    if GATES_RZ {
        stage_weight(0u, unit0, k0, thread);
        stage_weight(1u, unit0, k0, thread);
    }
    if GATE_N {
        stage_weight(2u, unit0, k0, thread);
    }
}

// Past a row's length: the state stays, and gates of 0 pass no gradient on.
fn skip(at_r: u32, before: f32, at_after: u32) {
    if GATES_RZ {
        gates[at_r] = 0.0;
        gates[at_r + args.hidden] = 0.0;
        gates[at_r + 3u * args.hidden] = 0.0;
    }
    if GATE_N {
        gates[at_r + 2u * args.hidden] = 0.0;
        h[at_after] = before;
    }
}

// The elementwise part for one unit of one row, from the products with the past.
fn update(row: u32, unit: u32, product: vec3<f32>) {
    if row >= args.batch {
        return;
    }
    let at_r = gates_at(row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    let at_past = at_n + args.hidden;
    let before = h[before_at(row, unit)];
    if time() >= lengths[row] {
        skip(at_r, before, after_at(row, unit));
        return;
    }
    if GATES_RZ {
        let r = activate(GATE_ACTIVATION, gates[at_r] + product.x + bias(0u, unit));
        gates[at_r] = r;
        gates[at_z] = activate(GATE_ACTIVATION, gates[at_z] + product.y + bias(1u, unit));
        if !GATE_N {
            gates[at_past] = r * before;
        }
    }
    if GATE_N {
        let recurrent = product.z + bias(2u, unit);
        var from_past = recurrent;
        if GATES_RZ {
            gates[at_past] = recurrent;
            from_past = gates[at_r] * recurrent;
        }
        let n = activate(CANDIDATE_ACTIVATION, gates[at_n] + from_past);
        gates[at_n] = n;
        let z = gates[at_z];
        let keep = select(1.0 - z, z, Z_KEEPS);
        let take = select(z, 1.0 - z, Z_KEEPS);
        h[after_at(row, unit)] = keep * before + take * n;
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    direction = group.z;
    let unit0 = group.x * UNITS;
    let row0 = args.row_first + group.y * ROWS;
    let unit = thread % UNITS;
    let quad = thread / UNITS;
    // Products of one unit with the past of four rows, a vec4 a gate.
    var r = vec4<f32>();
    var z = vec4<f32>();
    var n = vec4<f32>();
    for (var k0 = 0u; k0 < args.hidden; k0 += DEPTH) {
        stage(row0, unit0, k0, thread);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let past = past_slice[k * QUADS + quad];
            if GATES_RZ {
                r = fma(past, vec4(weight_slice[unit * PITCH + k]), r);
                z = fma(past, vec4(weight_slice[(UNITS + unit) * PITCH + k]), z);
            }
            if GATE_N {
                n = fma(past, vec4(weight_slice[(2u * UNITS + unit) * PITCH + k]), n);
            }
        }
        workgroupBarrier();
    }
    if unit0 + unit < args.hidden {
        let row = row0 + quad * 4u;
        update(row, unit0 + unit, vec3(r.x, z.x, n.x));
        update(row + 1u, unit0 + unit, vec3(r.y, z.y, n.y));
        update(row + 2u, unit0 + unit, vec3(r.z, z.z, n.z));
        update(row + 3u, unit0 + unit, vec3(r.w, z.w, n.w));
    }
}
