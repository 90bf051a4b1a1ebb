// Backward steps with the weights in registers (persistent.wgsl). The elementwise gradients are in
// backward_shared.wgsl.
//
// Reset after: dh of a state is the sum over all gates of the step after it. Reset before: over r
// and z; then the gates of n give d(r ⊙ h).
//
// A state's inputs are loaded one state ahead. The carry stays in its thread.

const OPERAND_GATES: u32 = 3u;

// A column for each k, with four units.
fn load_block(tile: WeightTile, block: u32) -> mat4x4<f32> {
    return k_weights(tile.gate, 4u * block_quad(tile, block), 4u * tile.unit_quad);
}

fn store_operands(item: Item, values: vec3<f32>) {
    store_operand(item, 0u, values.x);
    store_operand(item, 1u, values.y);
    store_operand(item, 2u, values.z);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    args = arguments;
    direction = group.z;
    let tile = weight_tile(thread);
    let item = item(thread, group.y);
    let last = args.step + 1u - args.count;
    load_blocks(tile);
    clear_operands(thread);
    workgroupBarrier();
    var carry = 0.0;
    var inputs = StepInputs();
    var flags_after = 0u; // of the step that starts from the state
    if item.exists {
        carry = dstates[state_at(args.last_state, item.row, item.unit)];
        inputs = load_inputs(args.step, item.row, item.unit);
        flags_after = next_flags(args.step, item.row);
        if args.step < end_step() {
            store_operands(item, vec3(
                load_operand(args.step, item.row, 0u, item.unit),
                load_operand(args.step, item.row, 1u, item.unit),
                load_operand(args.step, item.row, 2u, item.unit)));
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < arguments.count; i++) {
        let step = arguments.step - i;
        var inputs_ahead = StepInputs();
        if item.exists {
            inputs_ahead = load_inputs(max(step, last + 1u) - 1u, item.row, item.unit);
        }
        if tile.gate < select(3u, 2u, RESET_BEFORE) {
            multiply(tile, tile.gate);
        }
        workgroupBarrier();
        var gradients = StepGradients();
        if item.exists {
            var dh = carry;
            if step < end_step() {
                dh += item_sum(item, 0u, select(3u, 2u, RESET_BEFORE));
            }
            gradients = through_step(step, item.row, item.unit, dh, inputs, flags_after);
            store_operands(item, gate_operands(gradients));
        }
        workgroupBarrier();
        if RESET_BEFORE && step > arguments.gates_first {
            if tile.gate == 2u {
                multiply(tile, 2u);
            }
            workgroupBarrier();
            if item.exists {
                gradients = through_reset(gradients, item_sum(item, 2u, 1u), inputs);
                store_operand(item, 0u, gradients.da_r);
            }
            workgroupBarrier();
        }
        // Stored after the barrier: the other threads multiply meanwhile.
        if item.exists {
            store_gradients(step, item.row, item.unit, inputs, gradients, true, true);
            carry = gradients.carry;
        }
        flags_after = inputs.flags;
        inputs = inputs_ahead;
    }
    if item.exists {
        dstates[carry_at(last, item.row, item.unit)] = carry;
    }
}
