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
// in place by the activations, by the very thread that read them. The twin is Cell::forward_steps.
//
// The first step takes its state from states, the last one leaves its own there; in between, a step's
// result goes to h as the state that the next step starts from, which after a restart is another. So
// h holds what dW_hh needs.
//
// For each k, one vec4 of the past and one weight a gate feed four multiply-adds a gate.

// One more than DEPTH, so that the units of one k fall into different banks.
const PITCH: u32 = DEPTH + 1u;

@group(0) @binding(4) var<storage, read> bias_hh: array<f32>; // [D, 3H]
@group(0) @binding(5) var<storage, read_write> h: array<f32>; // [D, h_times·B, H]
@group(0) @binding(6) var<storage, read_write> states: array<f32>; // first, reset and last [L·D, B, H]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [T·B, D·H]

var<workgroup> past_slice: array<vec4<f32>, DEPTH * QUADS>; // [DEPTH][QUADS], four rows each
var<workgroup> weight_slice: array<f32, 3u * UNITS * PITCH>; // [gate][UNITS][DEPTH]

fn bias(gate: u32, unit: u32) -> f32 {
    return bias_hh[direction * args.bias_apart + gate * args.hidden + unit];
}

// The state that the step starts from.
fn load_state(time: u32, row: u32, unit: u32) -> f32 {
    if args.step > 0u {
        return h[h_at(time, row, unit)];
    }
    return states[state_at(select(args.first_state, args.reset_state, restarts(time, row)), row, unit)];
}

// Where the step's result goes: the next step's start, or the end.
fn store_state(row: u32, unit: u32, value: f32) {
    if args.step + 1u == args.steps {
        states[state_at(args.last_state, row, unit)] = value;
        return;
    }
    let next = time(args.step + 1u);
    var start = value;
    if restarts(next, row) {
        start = states[state_at(args.reset_state, row, unit)];
    }
    h[h_at(next, row, unit)] = start;
}

// What the weights are multiplied with: h, or r ⊙ h where the candidate comes in its own dispatch.
fn load_past(time: u32, row: u32, k: u32) -> f32 {
    if row >= args.batch || k >= args.hidden {
        return 0.0;
    }
    if GATES_RZ {
        return load_state(time, row, k);
    }
    return gates[gates_at(time, row, 3u * args.hidden + k)];
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

fn stage(time: u32, row0: u32, unit0: u32, k0: u32, thread: u32) {
    let row = row0 + thread / DEPTH * 4u;
    let k = k0 + thread % DEPTH;
    past_slice[(thread % DEPTH) * QUADS + thread / DEPTH] = vec4(
        load_past(time, row, k), load_past(time, row + 1u, k),
        load_past(time, row + 2u, k), load_past(time, row + 3u, k));
    if GATES_RZ {
        stage_weight(0u, unit0, k0, thread);
        stage_weight(1u, unit0, k0, thread);
    }
    if GATE_N {
        stage_weight(2u, unit0, k0, thread);
    }
}

// Past a row's length: the state stays, and gates of 0 pass no gradient on.
fn skip(time: u32, row: u32, unit: u32, before: f32) {
    let at_r = gates_at(time, row, unit);
    if GATES_RZ {
        gates[at_r] = 0.0;
        gates[at_r + args.hidden] = 0.0;
        gates[at_r + 3u * args.hidden] = 0.0;
    }
    if GATE_N {
        gates[at_r + 2u * args.hidden] = 0.0;
        y[output_at(time, row, unit)] = 0.0;
        store_state(row, unit, before);
    }
}

// The elementwise part for one unit of one row, from the products with the past.
fn update(time: u32, row: u32, unit: u32, product: vec3<f32>) {
    if row >= args.batch {
        return;
    }
    let before = load_state(time, row, unit);
    if GATES_RZ && args.step == 0u {
        h[h_at(time, row, unit)] = before;
    }
    if is_padding(time, row) {
        skip(time, row, unit, before);
        return;
    }
    let at_r = gates_at(time, row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    let at_past = at_n + args.hidden;
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
        var after = keep * before + take * n;
        if ZONEOUT != NO_ZONEOUT {
            let zone = zone(time, row, unit);
            after = zone * before + (1.0 - zone) * after;
        }
        y[output_at(time, row, unit)] = after * dropout_factor(time, row, unit);
        store_state(row, unit, after);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    direction = group.z;
    let time = time(args.step);
    let unit0 = group.x * UNITS;
    let row0 = args.row_first + group.y * ROWS;
    let unit = thread % UNITS;
    let quad = thread / UNITS;
    // Products of one unit with the past of four rows, a vec4 a gate.
    var r = vec4<f32>();
    var z = vec4<f32>();
    var n = vec4<f32>();
    for (var k0 = 0u; k0 < args.hidden; k0 += DEPTH) {
        stage(time, row0, unit0, k0, thread);
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
        update(time, row, unit0 + unit, vec3(r.x, z.x, n.x));
        update(time, row + 1u, unit0 + unit, vec3(r.y, z.y, n.y));
        update(time, row + 2u, unit0 + unit, vec3(r.z, z.z, n.z));
        update(time, row + 3u, unit0 + unit, vec3(r.w, z.w, n.w));
    }
}
