// Shared by forward and persistent_forward: the recurrent weights, and the elementwise part of a
// step for one unit of one row.
//
// On entry gates holds the input products (with b_ih) in its r, z, n columns. The thread that reads
// them overwrites them with the activations. The reference is ReferenceCell::forward_steps.
//
// The first step reads its state from states, and the last step writes its own there. In between, a
// step writes its result to h, or the reset state if the next step restarts: the state that the
// next step starts from. So h holds what dW_hh needs.

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

// Writes a step's result: to the next step's start, or to the last states. Returns the state that
// the next step starts from.
fn store_state(step: u32, row: u32, unit: u32, value: f32, next_flags: u32) -> f32 {
    if step + 1u == args.steps {
        states[state_at(args.last_state, row, unit)] = value;
        return value;
    }
    let next = time(step + 1u);
    var start = value;
    if restarts(next_flags) {
        start = states[state_at(args.reset_state, row, unit)];
    }
    h[h_at(next, row, unit)] = start;
    return start;
}

// What a step reads for one unit of one row, besides its state and its biases.
struct StepInputs {
    products: vec3<f32>, // the input products of r, z and n
    flags: u32, // the step's flags
    next_flags: u32, // the next step's flags
}

fn load_inputs(step: u32, row: u32, unit: u32) -> StepInputs {
    let now = time(step);
    let next = time(min(step + 1u, args.steps - 1u));
    let at_r = gates_at(now, row, min(unit, args.hidden - 1u));
    let products = vec3(gates[at_r], gates[at_r + args.hidden], gates[at_r + 2u * args.hidden]);
    return StepInputs(products, flags(now, row), flags(next, row));
}

// The biases of r, z and n.
fn biases(unit: u32) -> vec3<f32> {
    return vec3(bias(0u, unit), bias(1u, unit), bias(2u, unit));
}

// The activations of r and z. Past a row's length they are 0, so that they pass no gradient.
fn activate_rz(inputs: StepInputs, products: vec3<f32>) -> vec2<f32> {
    let sums = inputs.products.xy + products.xy;
    let rz = vec2(activate(gate_activation(), sums.x), activate(gate_activation(), sums.y));
    return select(rz, vec2<f32>(), is_padding(inputs.flags));
}

// The first step's start is where the other steps have theirs.
fn store_start(step: u32, row: u32, unit: u32, before: f32) {
    if step == 0u {
        h[h_at(time(step), row, unit)] = before;
    }
}

// Computes a whole step, with reset after, from the step's start and the recurrent products of r, z
// and n, biases included. Returns the state that the next step starts from.
fn update(
    step: u32, row: u32, unit: u32, before: f32, inputs: StepInputs, products: vec3<f32>,
) -> f32 {
    store_start(step, row, unit, before);
    let rz = activate_rz(inputs, products);
    if args.keeps_gates == 1u {
        let at_r = gates_at(time(step), row, unit);
        gates[at_r] = rz.x;
        gates[at_r + args.hidden] = rz.y;
        gates[at_r + 3u * args.hidden] = select(products.z, 0.0, is_padding(inputs.flags));
    }
    return update_state(step, row, unit, before, inputs, rz.y, rz.x * products.z);
}

// Reset before: computes r and z. Returns r ⊙ h, which is n's operand, and z.
fn update_rz(
    step: u32, row: u32, unit: u32, before: f32, inputs: StepInputs, products: vec3<f32>,
) -> vec2<f32> {
    store_start(step, row, unit, before);
    let rz = activate_rz(inputs, products);
    let past = select(rz.x * before, 0.0, is_padding(inputs.flags));
    let at_r = gates_at(time(step), row, unit);
    if args.keeps_gates == 1u {
        gates[at_r] = rz.x;
    }
    gates[at_r + args.hidden] = rz.y;
    gates[at_r + 3u * args.hidden] = past;
    return vec2(past, rz.y);
}

// Computes n and the new state from z and from n's recurrent product, after the reset. Returns the
// state that the next step starts from.
fn update_state(
    step: u32, row: u32, unit: u32, before: f32, inputs: StepInputs, z: f32, product: f32,
) -> f32 {
    let time = time(step);
    let padding = is_padding(inputs.flags);
    let activated = activate(candidate_activation(), inputs.products.z + product);
    let n = select(activated, 0.0, padding);
    if args.keeps_gates == 1u {
        gates[gates_at(time, row, unit) + 2u * args.hidden] = n;
    }
    let keep_take = keep_take(z);
    var after = keep_take.x * before + keep_take.y * n;
    if EXTRAS {
        let zone = zone(time, row, unit);
        after = zone * before + (1.0 - zone) * after;
    }
    // Past a row's length the state does not change.
    after = select(after, before, padding);
    y[output_at(time, row, unit)] = select(after * dropout_factor(time, row, unit), 0.0, padding);
    return store_state(step, row, unit, after, inputs.next_flags);
}

// Four k of one unit. Units after the last give products that are not read.
fn row_weights(gate: u32, unit: u32, quad: u32) -> vec4<f32> {
    let row = gate * args.hidden + min(unit, args.hidden - 1u);
    let at = direction * args.weight_apart + row * args.hidden + 4u * quad;
    return weights_in_row(at, 4u * quad, args.hidden);
}

// Four k of four units, a column for each unit.
fn unit_weights(gate: u32, unit: u32, quad: u32) -> mat4x4<f32> {
    return mat4x4(
        row_weights(gate, unit, quad), row_weights(gate, unit + 1u, quad),
        row_weights(gate, unit + 2u, quad), row_weights(gate, unit + 3u, quad));
}
