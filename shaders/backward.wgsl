// Backward steps: the gradient dh of each state, from the states after it, then through the step
// that made it.
//
// A direction has T + 1 states; its step t turns state t into state t + 1. For s from T down to 0:
//     dh[s] = carry + Σ over step s's recurrent products (none at s = T) + dy of step s − 1 (none at
//     s = 0)
// and for s > 0, with r, z, n, h of step s − 1:
//     z overwrites: dn = dh z,        dz = dh (n − h),  carry = dh (1 − z)
//     z keeps:      dn = dh (1 − z),  dz = dh (h − n),  carry = dh z
//     da_n = dn n′    da_z = dz z′    where ′ is the activation's derivative
// Reset after: GATES_RZ and GATE_N, in one dispatch.
//     dpast = da_n r        da_r = da_n past r′
// Reset before: GATES_RZ computes the above. Then GATE_N, because da_r needs every da_n, in its own
// dispatch or, if the workgroup computes all units, in the same one:
//     d(rh) = W_hnᵀ da_n    da_r = d(rh) h r′    carry += d(rh) r
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
//
// A thread multiplies four units by ROWS rows, at every SPLIT_K-th quad along k. k counts
// the gates' units, with each gate padded to whole quads: with four rows 8 vec4 loads feed 64
// multiply-adds.

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

fn four_operands(step: u32, row: u32, gate: u32, unit: u32) -> vec4<f32> {
    if SPLIT_K > 1u {
        return vec4(
            load_operand(step, row, gate, unit), load_operand(step, row, gate, unit + 1u),
            load_operand(step, row, gate, unit + 2u), load_operand(step, row, gate, unit + 3u));
    }
    // As in forward.wgsl: not unrolled.
    var four = vec4<f32>();
    let end = select(args.hidden, unit + 4u, unit + 4u < args.hidden);
    for (var i = unit; i < end; i++) {
        four[i - unit] = load_operand(step, row, gate, i);
    }
    return four;
}

// Loads operands from `quad0` on, as many as workgroup memory holds.
fn stage(step: u32, row0: u32, quad0: u32, thread: u32) {
    let quads = min(DEPTH_QUADS, 3u * gate_quads() - quad0);
    for (var i = thread; i < DEPTH_QUADS * rows_from(row0); i += threads()) {
        let quad = i % DEPTH_QUADS;
        let row = i / DEPTH_QUADS;
        if quad < quads {
            let gate = (quad0 + quad) / gate_quads();
            let unit = 4u * (quad0 + quad - gate * gate_quads());
            operand[operand_at(row, quad)] = four_operands(step, row0 + row, gate, unit);
        }
    }
}

// Four k of four units, a column each.
fn quad_weights(quad: u32, unit: u32) -> mat4x4<f32> {
    let gate = quad / gate_quads();
    let k = 4u * (quad - gate * gate_quads());
    return transpose(mat4x4(
        row_weights(gate, k, unit), row_weights(gate, k + 1u, unit),
        row_weights(gate, k + 2u, unit), row_weights(gate, k + 3u, unit)));
}

// One k of four units. If k is beyond the gate's units, the operand is 0. Units after the last give
// products that are not read.
fn row_weights(gate: u32, k: u32, unit: u32) -> vec4<f32> {
    let row = gate * args.hidden + min(k, args.hidden - 1u);
    return weights(direction * args.weight_apart + row * args.hidden + unit);
}

// Stores the products of quads `first` to `last` along k with the gradients of step `step`
// in accumulators, or zeros if there is no such step.
fn multiply(step: u32, row0: u32, unit0: u32, thread: u32, first: u32, last: u32) {
    // Neighbouring units read neighbouring weights.
    let lane = thread / UNIT_QUADS;
    let unit_quad = thread % UNIT_QUADS;
    let unit = unit0 + 4u * unit_quad;
    var sum = Products();
    for (var quad0 = first; quad0 < last; quad0 += DEPTH_QUADS) {
        var operand_quad = quad0; // the index of quad0 in operand
        if !RESIDENT {
            workgroupBarrier();
            stage(step, row0, quad0, thread);
            workgroupBarrier();
            operand_quad = 0u;
        }
        let end = min(DEPTH_QUADS, last - quad0);
        for (var quad = lane; quad < end; quad += SPLIT_K) {
            sum = multiplied(sum, operand_quad + quad, quad_weights(quad0 + quad, unit));
        }
    }
    store_products(0u, thread, lane, unit_quad, row0, sum);
    if SPLIT_K == 1u {
        workgroupBarrier();
    }
}

// Stores the operands of the next products for one unit and row of the workgroup.
fn keep_operand(gate: u32, local: vec2<u32>, value: f32) {
    if RESIDENT {
        accumulators[accumulator_at(gate, local.x, local.y)] = value;
    }
}

fn keep_operands(local: vec2<u32>, values: vec3<f32>) {
    keep_operand(0u, local, values.x);
    keep_operand(1u, local, values.y);
    keep_operand(2u, local, values.z);
}

// With dh of one unit of one row complete: goes through the step that made this state. `local` is
// the unit and row within the workgroup.
fn through_step(step: u32, row: u32, unit: u32, local: vec2<u32>, product: f32) {
    let at = state_at(args.last_state, row, unit);
    var dh = dstates[at] + product;
    if step < end_step() && restarts(time(step), row) {
        dstates[state_at(args.reset_state, row, unit)] += dh;
        dh = 0.0;
    }
    if step == args.gates_first {
        dstates[select(at, state_at(args.first_state, row, unit), step == 0u)] = dh;
        keep_operands(local, vec3<f32>());
        return;
    }
    let time = time(step - 1u);
    if is_padding(time, row) {
        // The step is padding: its gates are 0 and dy is padding.
        dstates[at] = dh;
        keep_operands(local, vec3<f32>());
        return;
    }
    let past = h[h_at(time, row, unit)];
    dh += dy[output_at(time, row, unit)] * dropout_factor(time, row, unit);
    let at_r = gates_at(time, row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    let z = gates[at_z];
    let n = gates[at_n];
    let keep_take = keep_take(z);
    let toward_n = select(n - past, past - n, args.z_keeps == 1u); // ∂h'/∂z
    var dnew = dh;
    var carry = dh * keep_take.x;
    if EXTRAS {
        let zone = zone(time, row, unit);
        dnew = dh * (1.0 - zone);
        carry = dh * zone + dnew * keep_take.x;
    }
    let da_n = dnew * keep_take.y * derivative(candidate_activation(), n);
    let da_z = dnew * toward_n * derivative(gate_activation(), z);
    dstates[at] = carry;
    gates[at_z] = da_z;
    gates[at_n] = da_n;
    if RESET_BEFORE {
        keep_operands(local, vec3(0.0, da_z, da_n)); // da_r follows later
        return;
    }
    let at_past = at_n + args.hidden;
    let r = gates[at_r];
    let da_r = da_n * gates[at_past] * derivative(gate_activation(), r);
    gates[at_r] = da_r;
    gates[at_past] = da_n * r;
    keep_operands(local, vec3(da_r, da_z, da_n * r));
}

// Reset before, with d(r ⊙ h) of one unit of one row complete.
fn through_reset(step: u32, row: u32, unit: u32, local: vec2<u32>, drh: f32) {
    let time = time(step - 1u);
    if is_padding(time, row) {
        keep_operand(0u, local, 0.0);
        return;
    }
    let at_r = gates_at(time, row, unit);
    let r = gates[at_r];
    let da_r = drh * h[h_at(time, row, unit)] * derivative(gate_activation(), r);
    dstates[state_at(args.last_state, row, unit)] += drh * r;
    gates[at_r] = da_r;
    keep_operand(0u, local, da_r);
}

// The elementwise part of a step, one unit of one row at a time.
fn finish(step: u32, row0: u32, unit0: u32, thread: u32, state: bool) {
    for (var item = thread; item < items_from(row0); item += threads()) {
        let local = item_position(item);
        let unit = unit0 + local.x;
        let row = row0 + local.y;
        let product = product_of(0u, local);
        if unit >= args.hidden {
            keep_operands(local, vec3<f32>());
        } else if state {
            through_step(step, row, unit, local, product);
        } else {
            through_reset(step, row, unit, local, product);
        }
    }
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
    // The gates whose products give dh: r and z, and n if it is in the same dispatch.
    let quads = (arguments.hidden + 3u) / 4u;
    let depth = select(3u, 2u, RESET_BEFORE) * quads;
    let end = arguments.gates_first + arguments.gates_times;
    clear_operands(thread);
    if RESIDENT {
        workgroupBarrier();
        if args.step < end_step() {
            stage(args.step, row0, 0u, thread);
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < arguments.count; i++) {
        let step = arguments.step - i;
        if GATES_RZ {
            let last = select(0u, depth, step < end);
            multiply(step, row0, unit0, thread, 0u, last);
            finish(step, row0, unit0, thread, true);
            store_operands(3u, row0, thread);
        }
        if RESET_BEFORE && GATE_N && step > arguments.gates_first {
            multiply(step - 1u, row0, unit0, thread, 2u * quads, 3u * quads);
            finish(step, row0, unit0, thread, false);
            store_operands(1u, row0, thread);
        }
    }
}
