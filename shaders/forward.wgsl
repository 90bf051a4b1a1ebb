// Forward steps: the gates' recurrent products, fused with the elementwise update.
//
// Reset after: GATES_RZ and GATE_N, in one dispatch.
//     r = σ(gates_r + W_hr h + b_hr)    z = σ(gates_z + W_hz h + b_hz)    past = W_hn h + b_hn
//     n = tanh(gates_n + r ⊙ past)      h' from z, n, h
// Reset before: every n needs every r. First GATES_RZ,
//     r, z as above                     past = r ⊙ h
// then GATE_N, in its own dispatch or, if the workgroup computes all units, in the same one:
//     n = tanh(gates_n + W_hn past + b_hn)      h' from z, n, h
//
// On entry gates holds the input products (with b_ih) in its r, z, n columns. The thread that reads
// them overwrites them with the activations. The reference is ReferenceCell::forward_steps.
//
// The first step reads its state from states, and the last step writes its own there. In between, a
// step writes its result to h, or the reset state if the next step restarts: the state that the
// next step starts from. So h holds what dW_hh needs.
//
// A thread multiplies four units of each gate by ROWS rows, at every SPLIT_K-th quad along k.
// Neighbouring lanes read neighbouring weights, and with four rows 16 vec4 loads feed 192
// multiply-adds.

@group(0) @binding(4) var<storage, read> bias_hh: array<f32>; // [D, 3H]
@group(0) @binding(5) var<storage, read_write> h: array<f32>; // [D, h_times·B, H]
@group(0) @binding(6) var<storage, read_write> states: array<f32>; // first, reset and last [L·D, B, H]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [T·B, D·H]

fn bias(gate: u32, unit: u32) -> f32 {
    return bias_hh[direction * args.bias_apart + gate * args.hidden + unit];
}

// The state that a step starts from.
fn load_state(step: u32, row: u32, unit: u32) -> f32 {
    let time = time(step);
    if step > 0u {
        return h[h_at(time, row, unit)];
    }
    return states[state_at(select(args.first_state, args.reset_state, restarts(time, row)), row, unit)];
}

// Writes a step's result: to the next step's start, or to the last states. Returns the state that
// the next step starts from.
fn store_state(step: u32, row: u32, unit: u32, value: f32) -> f32 {
    if step + 1u == args.steps {
        states[state_at(args.last_state, row, unit)] = value;
        return value;
    }
    let next = time(step + 1u);
    var start = value;
    if restarts(next, row) {
        start = states[state_at(args.reset_state, row, unit)];
    }
    h[h_at(next, row, unit)] = start;
    return start;
}

// The operand of the weights: h, or r ⊙ h if the candidate has its own dispatch.
fn load_operand(step: u32, row: u32, k: u32) -> f32 {
    if k >= args.hidden {
        return 0.0;
    }
    if GATES_RZ {
        return load_state(step, row, k);
    }
    return gates[gates_at(time(step), row, 3u * args.hidden + k)];
}

fn four_operands(step: u32, row: u32, k: u32) -> vec4<f32> {
    if SPLIT_K > 1u {
        return vec4(
            load_operand(step, row, k), load_operand(step, row, k + 1u),
            load_operand(step, row, k + 2u), load_operand(step, row, k + 3u));
    }
    // A software adapter's compiler takes time for each load that it sees. Mesa unrolls a loop that
    // ends at a constant or at a minimum with one, but not this one.
    var four = vec4<f32>();
    let end = select(args.hidden, k + 4u, k + 4u < args.hidden);
    for (var i = k; i < end; i++) {
        four[i - k] = load_operand(step, row, i);
    }
    return four;
}

// Loads operands from `quad0` on, as many as workgroup memory holds.
fn stage(step: u32, row0: u32, quad0: u32, thread: u32) {
    let quads = min(DEPTH_QUADS, gate_quads() - quad0);
    for (var i = thread; i < DEPTH_QUADS * rows_from(row0); i += threads()) {
        let quad = i % DEPTH_QUADS;
        let row = i / DEPTH_QUADS;
        if quad < quads {
            operand[operand_at(row, quad)] = four_operands(step, row0 + row, 4u * (quad0 + quad));
        }
    }
}

// Four k of one unit. Units after the last give products that are not read.
fn row_weights(gate: u32, unit: u32, quad: u32) -> vec4<f32> {
    let row = gate * args.hidden + min(unit, args.hidden - 1u);
    let at = direction * args.weight_apart + row * args.hidden + 4u * quad;
    return weights_in_row(at, 4u * quad, args.hidden);
}

// Four k of four units, a column each.
fn unit_weights(gate: u32, unit: u32, quad: u32) -> mat4x4<f32> {
    return mat4x4(
        row_weights(gate, unit, quad), row_weights(gate, unit + 1u, quad),
        row_weights(gate, unit + 2u, quad), row_weights(gate, unit + 3u, quad));
}

// The index of n's product among those of a pass.
fn n_product() -> u32 {
    return select(2u, 0u, RESET_BEFORE);
}

// Stores the products of r and z, of n, or of all three.
fn multiply(step: u32, row0: u32, unit0: u32, thread: u32, rz: bool, n: bool) {
    let depth = (arguments.hidden + 3u) / 4u;
    // Neighbouring lanes read neighbouring weights.
    let lane = thread % SPLIT_K;
    let unit_quad = thread / SPLIT_K;
    let unit = unit0 + 4u * unit_quad;
    var of_r = Products();
    var of_z = Products();
    var of_n = Products();
    for (var quad0 = 0u; quad0 < depth; quad0 += DEPTH_QUADS) {
        if !RESIDENT {
            workgroupBarrier();
            stage(step, row0, quad0, thread);
            workgroupBarrier();
        }
        let end = min(DEPTH_QUADS, depth - quad0);
        for (var quad = lane; quad < end; quad += SPLIT_K) {
            if rz {
                of_r = multiplied(of_r, quad, unit_weights(0u, unit, quad0 + quad));
                of_z = multiplied(of_z, quad, unit_weights(1u, unit, quad0 + quad));
            }
            if n {
                of_n = multiplied(of_n, quad, unit_weights(2u, unit, quad0 + quad));
            }
        }
    }
    if rz {
        store_products(0u, thread, lane, unit_quad, row0, of_r);
        store_products(1u, thread, lane, unit_quad, row0, of_z);
    }
    if n {
        store_products(n_product(), thread, lane, unit_quad, row0, of_n);
    }
    if SPLIT_K == 1u {
        workgroupBarrier();
    }
}

// The input products of a unit and a row: r, z and n.
fn load_inputs(step: u32, row: u32, unit: u32) -> vec3<f32> {
    let at_r = gates_at(time(step), row, min(unit, args.hidden - 1u));
    return vec3(gates[at_r], gates[at_r + args.hidden], gates[at_r + 2u * args.hidden]);
}

// The biases of r, z and n.
fn biases(unit: u32) -> vec3<f32> {
    return vec3(bias(0u, unit), bias(1u, unit), bias(2u, unit));
}

// The elementwise part for one unit of one row, from the input products of r, z and n (z itself if
// it was computed before) and from the recurrent products, biases included. Returns the unit's
// operand for the next products: r ⊙ h if n comes later, otherwise the state that the next step
// starts from.
fn update(
    step: u32, row: u32, unit: u32, before: f32,
    inputs: vec3<f32>, products: vec3<f32>, rz: bool, n: bool,
) -> f32 {
    let time = time(step);
    if rz && step == 0u {
        h[h_at(time, row, unit)] = before;
    }
    // Past a row's length the state does not change, and gates of 0 pass no gradient.
    let padding = is_padding(time, row);
    let keeps_gates = args.keeps_gates == 1u;
    let at_r = gates_at(time, row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    let at_past = at_n + args.hidden;
    var r = 0.0;
    var z = inputs.y;
    if rz {
        r = select(activate(gate_activation(), inputs.x + products.x), 0.0, padding);
        z = select(activate(gate_activation(), inputs.y + products.y), 0.0, padding);
        if keeps_gates {
            gates[at_r] = r;
        }
        if keeps_gates || !n {
            gates[at_z] = z;
        }
        if !n {
            let past = select(r * before, 0.0, padding);
            gates[at_past] = past;
            return past;
        }
    }
    let recurrent = products.z;
    var from_past = recurrent;
    if rz {
        if keeps_gates {
            gates[at_past] = select(recurrent, 0.0, padding);
        }
        from_past = r * recurrent;
    }
    let activated = activate(candidate_activation(), inputs.z + from_past);
    let proposed = select(activated, 0.0, padding);
    if keeps_gates {
        gates[at_n] = proposed;
    }
    let keep_take = keep_take(z);
    var after = keep_take.x * before + keep_take.y * proposed;
    if EXTRAS {
        let zone = zone(time, row, unit);
        after = zone * before + (1.0 - zone) * after;
    }
    after = select(after, before, padding);
    y[output_at(time, row, unit)] =
        select(after * dropout_factor(time, row, unit), 0.0, padding);
    return store_state(step, row, unit, after);
}

// The elementwise part, one unit of one row at a time. `ahead` holds the input products of the
// thread's first item.
fn finish(
    step: u32, row0: u32, unit0: u32, thread: u32, ahead: vec3<f32>, rz: bool, n: bool,
) {
    for (var item = thread; item < items_from(row0); item += threads()) {
        let local = item_position(item);
        let unit = unit0 + local.x;
        let row = row0 + local.y;
        var next = 0.0; // for units after the last
        if unit < args.hidden {
            var inputs = ahead;
            if SPLIT_K == 1u || item != thread {
                inputs = load_inputs(step, row, unit);
            }
            var products = biases(unit);
            if rz {
                products.x += product_of(0u, local);
                products.y += product_of(1u, local);
            }
            if n {
                products.z += product_of(n_product(), local);
            }
            // The states that the step starts from are in workgroup memory after the products.
            var before = 0.0;
            if RESIDENT && rz {
                before = operand[operand_at(local.y, local.x / 4u)][local.x % 4u];
            } else {
                before = load_state(step, row, unit);
            }
            next = update(step, row, unit, before, inputs, products, rz, n);
        }
        if RESIDENT {
            accumulators[accumulator_at(0u, local.x, local.y)] = next;
        }
    }
}

fn pass_over(step: u32, row0: u32, unit0: u32, thread: u32, rz: bool, n: bool) {
    // Loaded before they are needed, so that on a GPU they arrive during the products. A thread
    // without an item loads some other item's.
    var ahead = vec3<f32>();
    if SPLIT_K > 1u {
        let local = item_position(thread);
        let row = row0 + min(local.y, rows_from(row0) - 1u);
        ahead = load_inputs(step, row, unit0 + local.x);
    }
    multiply(step, row0, unit0, thread, rz, n);
    finish(step, row0, unit0, thread, ahead, rz, n);
    store_operands(1u, row0, thread);
}

@compute @workgroup_size(UNIT_QUADS * SPLIT_K)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    args = arguments;
    direction = group.z;
    let unit0 = group.x * 4u * UNIT_QUADS;
    let row0 = args.row_first + group.y * ROWS;
    clear_operands(thread);
    if RESIDENT {
        workgroupBarrier();
        stage(args.step, row0, 0u, thread);
        workgroupBarrier();
    }
    for (var i = 0u; i < arguments.count; i++) {
        let step = args.step + i;
        if RESET_BEFORE {
            if GATES_RZ {
                pass_over(step, row0, unit0, thread, true, false);
            }
            if GATE_N {
                pass_over(step, row0, unit0, thread, false, true);
            }
        } else {
            pass_over(step, row0, unit0, thread, true, true);
        }
    }
}
