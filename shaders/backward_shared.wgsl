// Shared by backward and persistent_backward: the recurrent weights, and the elementwise part of a
// step for one unit of one row.
//
// A direction has T + 1 states; its step t turns state t into state t + 1. For s from T down to 0:
//     dh[s] = carry + Σ over step s's recurrent products (none at s = T) + dy of step s − 1 (none at
//     s = 0)
// and for s > 0, with r, z, n, h of step s − 1:
//     z overwrites: dn = dh z,        dz = dh (n − h),  carry = dh (1 − z)
//     z keeps:      dn = dh (1 − z),  dz = dh (h − n),  carry = dh z
//     da_n = dn n′    da_z = dz z′    where ′ is the activation's derivative
// Reset after:      dpast = da_n r        da_r = da_n past r′
// Reset before:     d(rh) = W_hnᵀ da_n    da_r = d(rh) h r′    carry += d(rh) r
// With reset before da_r needs every da_n first.
// If step s started from the reset state, dh[s] without dy belongs to the reset state and goes no
// further back.
//
// gates may hold only some of the steps. Then this kernel processes the states from the end of
// those steps down to their start. The last of these states ends as the carry, from which the steps
// before it continue.
//
// dstates holds dh_n at the last states on entry, which becomes the carry. At the end it holds dh0
// at the first states, and the gradient of the reset states has been added at the reset states. The
// gradients overwrite gates in place: da_r, da_z, da_n and, with reset after, dpast in the fourth
// column (with reset before it keeps r ⊙ h). The reference is ReferenceCell::backward_steps.

@group(0) @binding(4) var<storage, read> h: array<f32>; // [D, T·B, H], the state that each step starts from
@group(0) @binding(5) var<storage, read> dy: array<f32>; // [T·B, D·H], after dropout
@group(0) @binding(6) var<storage, read_write> dstates: array<f32>; // gradients of the first, reset and last states [L·D, B, H]

// The end of the steps whose gates are in memory.
fn end_step() -> u32 {
    return args.gates_first + args.gates_times;
}

// The gradient that weight row `unit` of `gate` is multiplied by: dpast for n with reset after.
fn load_operand(step: u32, row: u32, gate: u32, unit: u32) -> f32 {
    if unit >= args.hidden {
        return 0.0;
    }
    let column = select(gate, 3u, gate == 2u && !RESET_BEFORE);
    return gates[gates_at(time(step), row, column * args.hidden + unit)];
}

// What the gradient of a state needs from memory, for one unit of one row: the activations of the
// step that made the state, its start and its output's gradient. All are 0 for the start of the
// steps in memory.
struct StepInputs {
    r: f32,
    z: f32,
    n: f32,
    past: f32,
    start: f32, // the state that the step started from
    dy: f32,
    flags: u32, // of the step that made the state
}

// The flags of the step that starts from a state: 0 if its gates are not in memory.
fn next_flags(step: u32, row: u32) -> u32 {
    if step < end_step() {
        return flags(time(step), row);
    }
    return 0u;
}

fn load_inputs(step: u32, row: u32, unit: u32) -> StepInputs {
    var inputs = StepInputs();
    if step == args.gates_first {
        return inputs;
    }
    let made = time(step - 1u);
    let at_r = gates_at(made, row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    inputs.r = gates[at_r];
    inputs.z = gates[at_z];
    inputs.n = gates[at_n];
    inputs.past = gates[at_n + args.hidden];
    inputs.start = h[h_at(made, row, unit)];
    inputs.dy = dy[output_at(made, row, unit)];
    inputs.flags = flags(made, row);
    return inputs;
}

// The gradients of one unit of one row, from the gradient of a state.
struct StepGradients {
    da_r: f32,
    da_z: f32,
    da_n: f32,
    dpast: f32, // with reset before: 0
    carry: f32, // toward the state before
}

// Computes the gradients of the step that made a state, from dh of the state: the carry and the
// recurrent products. With reset before, da_r is 0 until through_reset.
fn through_step(
    step: u32, row: u32, unit: u32, dh_after: f32, inputs: StepInputs, next_flags: u32,
) -> StepGradients {
    var dh = dh_after;
    if restarts(next_flags) {
        dstates[state_at(args.reset_state, row, unit)] += dh;
        dh = 0.0;
    }
    // The gates of padding are 0 and its dy is padding.
    var gradients = StepGradients();
    gradients.carry = dh;
    if step == args.gates_first || is_padding(inputs.flags) {
        return gradients;
    }
    let made = time(step - 1u);
    dh += inputs.dy * dropout_factor(made, row, unit);
    let keep_take = keep_take(inputs.z);
    let toward_n = inputs.n - inputs.start;
    let dz = select(toward_n, -toward_n, has_mode(Z_KEEPS)); // ∂h'/∂z
    var dnew = dh;
    gradients.carry = dh * keep_take.x;
    if NOISE {
        let zone = zone(made, row, unit);
        dnew = dh * (1.0 - zone);
        gradients.carry = dh * zone + dnew * keep_take.x;
    }
    let da_n = dnew * keep_take.y * derivative(candidate_activation(), inputs.n);
    gradients.da_z = dnew * dz * derivative(gate_activation(), inputs.z);
    gradients.da_n = da_n;
    if !RESET_BEFORE {
        gradients.da_r = da_n * inputs.past * derivative(gate_activation(), inputs.r);
        gradients.dpast = da_n * inputs.r;
    }
    return gradients;
}

// Reset before: adds da_r and its part of the carry, from the gradient of r ⊙ h.
fn through_reset(gradients: StepGradients, drh: f32, inputs: StepInputs) -> StepGradients {
    var complete = gradients;
    if !is_padding(inputs.flags) {
        complete.da_r = drh * inputs.start * derivative(gate_activation(), inputs.r);
        complete.carry += drh * inputs.r;
    }
    return complete;
}

// The next operands: da_r, da_z and dpast, or da_n with reset before.
fn gate_operands(gradients: StepGradients) -> vec3<f32> {
    let of_n = select(gradients.dpast, gradients.da_n, RESET_BEFORE);
    return vec3(gradients.da_r, gradients.da_z, of_n);
}

// Replaces the gates of the step that made a state by their gradients. `rz`: those of z and n, and
// with reset after of r; `reset`: with reset before, that of r.
fn store_gradients(
    step: u32, row: u32, unit: u32, inputs: StepInputs, gradients: StepGradients, rz: bool,
    reset: bool,
) {
    // The gates of padding are 0, as their gradients.
    if step == args.gates_first || is_padding(inputs.flags) {
        return;
    }
    let at_r = gates_at(time(step - 1u), row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    if rz {
        gates[at_z] = gradients.da_z;
        gates[at_n] = gradients.da_n;
    }
    if rz && !RESET_BEFORE {
        gates[at_n + args.hidden] = gradients.dpast;
    }
    if reset || !RESET_BEFORE {
        gates[at_r] = gradients.da_r;
    }
}

// The index in dstates of the gradient that a state ends with. Toward earlier steps it is the carry.
fn carry_at(step: u32, row: u32, unit: u32) -> u32 {
    return state_at(select(args.last_state, args.first_state, step == 0u), row, unit);
}

// Four k of four units, a column for each k. If k is beyond the gate's units, the operand is 0. Units
// after the last give products that are not read.
fn k_weights(gate: u32, k: u32, unit: u32) -> mat4x4<f32> {
    let width = args.hidden;
    let first = direction * args.weight_apart + gate * width * width + unit;
    return four_rows(first, k, width - 1u, width);
}
