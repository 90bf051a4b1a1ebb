// Backward steps: the gradient dh of each state, from the states after it, then through the step
// that made it.
//
// The elementwise gradients are in backward_shared.wgsl. Reset after: GATES_RZ and GATE_N, in one
// dispatch. Reset before: GATES_RZ goes through the steps. Then GATE_N goes through their resets,
// because da_r needs every da_n, in its own dispatch or, if the workgroup computes all units, in the
// same one.
//
// k counts the units of one gate after the other. With four rows a thread's 8 loads of a quad feed 64
// multiply-adds.

const OPERAND_GATES: u32 = 3u;

// Stores the products of `count` gates from `gate` on with the gradients of step `step`, or zeros if
// `count` is 0.
fn multiply(
    step: u32, row0: u32, unit0: u32, thread: u32, first_gate: u32, count: u32,
) {
    let depth = (arguments.hidden + 3u) / 4u;
    let tile = thread_tile(thread);
    let unit = unit0 + 4u * tile.unit_quad;
    var sum = Products();
    for (var i = 0u; i < count; i++) {
        let gate = first_gate + i;
        if !RESIDENT {
            first_slice(step, row0, gate, thread);
        }
        for (var quad0 = 0u; quad0 < depth; quad0 += DEPTH_QUADS) {
            var resident = gate * depth; // the operands of the gate in workgroup memory
            if !RESIDENT {
                resident = 0u;
                next_slice(step, row0, gate, quad0, thread);
            }
            let end = min(DEPTH_QUADS, depth - quad0);
            for (var quad = tile.lane; quad < end; quad += SPLIT_K) {
                let weights = transpose(k_weights(gate, 4u * (quad0 + quad), unit));
                sum = multiplied(sum, resident + quad, tile.row_group, weights);
            }
        }
    }
    store_products(0u, thread, tile, row0, sum);
    products_stored();
}

// Keeps the operands of the next products.
fn keep_operands(local: vec2<u32>, values: vec3<f32>) {
    keep_operand(0u, local, values.x);
    keep_operand(1u, local, values.y);
    keep_operand(2u, local, values.z);
}

// Loads the operands of all gates that stay in workgroup memory.
fn load_operands(row0: u32, thread: u32) {
    if args.step < end_step() {
        for (var gate = 0u; gate < OPERAND_GATES; gate++) {
            stage(args.step, row0, gate, 0u, gate * gate_quads(), thread);
        }
    }
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

@compute @workgroup_size(ROW_GROUPS * UNIT_QUADS * SPLIT_K)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    args = arguments;
    direction = group.z;
    let unit0 = group.x * 4u * UNIT_QUADS;
    let row0 = args.row_first + group.y * ROWS * ROW_GROUPS;
    let end = arguments.gates_first + arguments.gates_times;
    clear_operands(thread);
    if RESIDENT {
        workgroupBarrier();
        load_operands(row0, thread);
        workgroupBarrier();
    }
    for (var i = 0u; i < arguments.count; i++) {
        let step = arguments.step - i;
        if GATES_RZ {
            // The gates whose products give dh: r and z, and n if it is in the same dispatch.
            let count = select(0u, select(3u, 2u, RESET_BEFORE), step < end);
            multiply(step, row0, unit0, thread, 0u, count);
            finish(step, row0, unit0, thread, true);
            complete_operands(OPERAND_GATES, row0, thread);
        }
        if RESET_BEFORE && GATE_N && step > arguments.gates_first {
            multiply(step - 1u, row0, unit0, thread, 2u, 1u);
            finish(step, row0, unit0, thread, false);
            complete_operands(1u, row0, thread);
        }
    }
}
