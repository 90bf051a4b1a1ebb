// Forward steps with the weights in registers (persistent.wgsl). The elementwise update is in
// forward_shared.wgsl.
//
// Reset after: r, z and n have the state as their operand. Reset before: the threads of n wait for
// r and z, and then have r ⊙ h.
//
// A step's inputs are loaded one step ahead. On a GPU they arrive during that step: it takes longer
// than a load. Two steps ahead, NVIDIA's compiler has no registers left for them.

const OPERAND_GATES: u32 = 1u; // all gates have the same operands

// A column for each k, with four units.
fn load_block(tile: WeightTile, block: u32) -> mat4x4<f32> {
    let quad = block_quad(tile, block);
    return transpose(unit_weights(tile.gate, 4u * tile.unit_quad, quad));
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
    let last = args.step + args.count - 1u;
    load_blocks(tile);
    clear_operands(thread);
    workgroupBarrier();
    var start = 0.0; // the state that the step starts from
    var bias = vec3<f32>();
    var inputs = StepInputs();
    if item.exists {
        start = load_state(args.step, item.row, item.unit);
        bias = biases(item.unit);
        inputs = load_inputs(args.step, item.row, item.unit);
        store_operand(item, 0u, start);
    }
    workgroupBarrier();
    for (var i = 0u; i < arguments.count; i++) {
        let step = args.step + i;
        var inputs_ahead = StepInputs();
        if item.exists {
            inputs_ahead = load_inputs(min(step + 1u, last), item.row, item.unit);
            inputs_ahead.flags = next_flags(step, item.row);
        }
        if tile.gate < select(3u, 2u, RESET_BEFORE) {
            multiply(tile, 0u);
        }
        workgroupBarrier();
        var result = StepResult();
        var product = 0.0; // of n, after the reset
        if item.exists {
            var products = bias;
            products.x += item_sum(item, 0u, 1u);
            products.y += item_sum(item, 1u, 1u);
            if !RESET_BEFORE {
                products.z += item_sum(item, 2u, 1u);
            }
            result = compute_gates(start, inputs, products);
            product = result.r * products.z;
        }
        if RESET_BEFORE {
            if item.exists {
                store_operand(item, 0u, result.past);
            }
            workgroupBarrier();
            if tile.gate == 2u {
                multiply(tile, 0u);
            }
            workgroupBarrier();
            if item.exists {
                product = bias.z + item_sum(item, 2u, 1u);
            }
        }
        if item.exists {
            result = compute_state(
                step, item.row, item.unit, start, inputs, inputs_ahead.flags, result, product);
            store_operand(item, 0u, result.next_start);
        }
        workgroupBarrier();
        // Stored after the barrier: the other threads multiply meanwhile.
        if item.exists {
            store_gates(step, item.row, item.unit, start, result);
            store_state(step, item.row, item.unit, inputs, result);
            start = result.next_start;
        }
        inputs = inputs_ahead;
    }
}
