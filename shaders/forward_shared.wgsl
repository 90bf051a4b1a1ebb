// Shared by forward and persistent_forward: the recurrent weights, and the elementwise part of a
// step for one unit of one row.
//
// On entry gates holds the input products (with b_ih) in its r, z, n columns. The thread that reads
// them overwrites them with the activations. The reference is ReferenceCell::forward_steps.
//
// The first step reads its state from states, and the last step writes its own there. In between, a
// step writes to h what the next step starts from: its state, or the reset state if the next step
// restarts. So h holds what dW_hh needs.

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
    let first = select(args.first_state, args.reset_state, restarts(flags(time, row)));
    return states[state_at(first, row, unit)];
}

// What a step reads for one unit of one row, besides its state and its biases.
struct StepInputs {
    r: f32, // the input products of r, z and n
    z: f32,
    n: f32,
    flags: u32, // the step's flags
}

fn load_inputs(step: u32, row: u32, unit: u32) -> StepInputs {
    let now = time(step);
    let at_r = gates_at(now, row, min(unit, args.hidden - 1u));
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    return StepInputs(gates[at_r], gates[at_z], gates[at_n], flags(now, row));
}

// The biases of r, z and n.
fn biases(unit: u32) -> vec3<f32> {
    return vec3(bias(0u, unit), bias(1u, unit), bias(2u, unit));
}

// What a step computes for one unit of one row.
struct StepResult {
    r: f32,
    z: f32,
    n: f32,
    past: f32, // reset after: n's recurrent product; reset before: r ⊙ h
    state: f32,
    next_start: f32, // the state that the next step starts from
}

// Computes r and z from the recurrent products, biases included, and past: the product of n, or,
// with reset before, r ⊙ h from the state that the step starts from. Past a row's length all are 0,
// so that they pass no gradient.
fn compute_gates(start: f32, inputs: StepInputs, products: vec3<f32>) -> StepResult {
    var result = StepResult();
    result.next_start = start;
    if is_padding(inputs.flags) {
        return result;
    }
    result.r = activate(gate_activation(), inputs.r + products.x);
    result.z = activate(gate_activation(), inputs.z + products.y);
    result.past = select(products.z, result.r * start, RESET_BEFORE);
    return result;
}

// The flags of the step after a step; of the last step, any flags.
fn next_flags(step: u32, row: u32) -> u32 {
    return flags(time(min(step + 1u, args.steps - 1u)), row);
}

// start · keep + n · take, where keep + take = 1: from the one with the larger weight toward the
// other, so that the rounded term is small. A weight of 0 or 1 gives one of the two exactly.
fn mix_states(start: f32, n: f32, keep_take: vec2<f32>) -> f32 {
    let keeps = keep_take.y < 0.5;
    let weight = select(-keep_take.x, keep_take.y, keeps);
    return fma(weight, n - start, select(n, start, keeps));
}

// Completes a step's result by n and the states. `product` is n's recurrent product, after the
// reset.
fn compute_state(
    step: u32, row: u32, unit: u32, start: f32, inputs: StepInputs, next_flags: u32,
    gates: StepResult, product: f32,
) -> StepResult {
    var result = gates;
    // Past a row's length the state does not change.
    result.state = start;
    if !is_padding(inputs.flags) {
        result.n = activate(candidate_activation(), inputs.n + product);
        result.state = mix_states(start, result.n, keep_take(result.z));
        if NOISE {
            let zone = zone(time(step), row, unit);
            result.state = zone * start + (1.0 - zone) * result.state;
        }
    }
    result.next_start = result.state;
    if restarts(next_flags) {
        result.next_start = states[state_at(args.reset_state, row, unit)];
    }
    return result;
}

// Stores what the second half of a step, with reset before, loads in a dispatch of its own, and what
// a backward pass needs of the first half.
fn store_gates(step: u32, row: u32, unit: u32, start: f32, result: StepResult) {
    if step == 0u {
        // The other steps have their starts here, too.
        h[h_at(time(step), row, unit)] = start;
    }
    let at_r = gates_at(time(step), row, unit);
    if has_mode(KEEPS_GATES) {
        gates[at_r] = result.r;
    }
    if has_mode(KEEPS_GATES) || RESET_BEFORE {
        gates[at_r + args.hidden] = result.z;
        gates[at_r + 3u * args.hidden] = result.past;
    }
}

// Stores n, the output, and the state: as the next step's start, or as the last state.
fn store_state(step: u32, row: u32, unit: u32, inputs: StepInputs, result: StepResult) {
    let now = time(step);
    let next = time(step + 1u);
    if has_mode(KEEPS_GATES) {
        gates[gates_at(now, row, unit) + 2u * args.hidden] = result.n;
    }
    let output = result.state * dropout_factor(now, row, unit);
    y[output_at(now, row, unit)] = select(output, 0.0, is_padding(inputs.flags));
    if step + 1u == args.steps {
        states[state_at(args.last_state, row, unit)] = result.state;
    } else {
        h[h_at(next, row, unit)] = result.next_start;
    }
}

// Four k of four units, a column for each unit. Units after the last give products that are not
// read.
fn unit_weights(gate: u32, unit: u32, quad: u32) -> mat4x4<f32> {
    let k = 4u * quad;
    let width = args.hidden;
    let first = direction * args.weight_apart + gate * width * width + k;
    let rows = four_rows(first, unit, width - 1u, width);
    return mat4x4(
        in_row(rows[0], k, width), in_row(rows[1], k, width),
        in_row(rows[2], k, width), in_row(rows[3], k, width));
}
