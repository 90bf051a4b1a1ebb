// Backward steps: the gradient dh of each state, from the states after it, then through the step
// that made it.
//
// The elementwise gradients are in backward_shared.wgsl. Reset after: GATES_RZ and GATE_N, in one
// dispatch. Reset before: GATES_RZ goes through the steps. Then GATE_N goes through their resets,
// because da_r needs every da_n, in its own dispatch or, if the workgroup computes all units, in the
// same one.
//
// A thread multiplies four units by ROWS rows, at every SPLIT_K-th quad along k. k counts
// the gates' units, with each gate padded to whole quads: with four rows 8 vec4 loads feed 64
// multiply-adds.

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

// Four k of four units, a column for each unit.
fn quad_weights(quad: u32, unit: u32) -> mat4x4<f32> {
    let gate = quad / gate_quads();
    return transpose(k_weights(gate, 4u * (quad - gate * gate_quads()), unit));
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

// The elementwise part, one unit of one row at a time: through the step that made a state, or, if
// not `state`, through its reset.
fn finish(step: u32, row0: u32, unit0: u32, thread: u32, state: bool) {
    for (var item = thread; item < items_from(row0); item += threads()) {
        let local = item_position(item);
        let unit = unit0 + local.x;
        let row = row0 + local.y;
        let product = product_of(0u, local);
        if unit >= args.hidden {
            keep_operands(local, vec3<f32>());
            continue;
        }
        let inputs = load_inputs(step, row, unit);
        let carry = dstates[state_at(args.last_state, row, unit)];
        var gradients = StepGradients();
        if state {
            let next_flags = next_flags(step, row);
            gradients = through_step(step, row, unit, carry + product, inputs, next_flags);
            keep_operands(local, gate_operands(gradients));
        } else {
            gradients.carry = carry;
            gradients = through_reset(gradients, product, inputs);
            keep_operand(0u, local, gradients.da_r);
        }
        store_gradients(step, row, unit, inputs, gradients, state, !state);
        dstates[carry_at(step, row, unit)] = gradients.carry;
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
