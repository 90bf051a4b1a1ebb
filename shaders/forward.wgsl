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
// The elementwise update is in forward_shared.wgsl.
//
// With four rows a thread's 16 loads of a quad feed 192 multiply-adds.

const OPERAND_GATES: u32 = 1u; // all gates have the same operands

// The operand of the weights of all gates: h, or r ⊙ h if the candidate has its own dispatch.
fn load_operand(step: u32, row: u32, gate: u32, k: u32) -> f32 {
    if k >= args.hidden {
        return 0.0;
    }
    if GATES_RZ {
        return load_state(step, row, k);
    }
    return gates[gates_at(time(step), row, 3u * args.hidden + k)];
}

// The index of n's product among those of a pass.
fn n_product() -> u32 {
    return select(2u, 0u, RESET_BEFORE);
}

// Stores the products of r and z, of n, or of all three.
fn multiply(step: u32, row0: u32, unit0: u32, thread: u32, rz: bool, n: bool) {
    let depth = (arguments.hidden + 3u) / 4u;
    let tile = thread_tile(thread);
    let unit = unit0 + 4u * tile.unit_quad;
    var of_r = Products();
    var of_z = Products();
    var of_n = Products();
    if !RESIDENT {
        first_slice(step, row0, 0u, thread);
    }
    for (var quad0 = 0u; quad0 < depth; quad0 += DEPTH_QUADS) {
        if !RESIDENT {
            next_slice(step, row0, 0u, quad0, thread);
        }
        let end = min(DEPTH_QUADS, depth - quad0);
        for (var quad = tile.lane; quad < end; quad += SPLIT_K) {
            let group = tile.row_group;
            if rz {
                of_r = multiplied(of_r, quad, group, unit_weights(0u, unit, quad0 + quad));
                of_z = multiplied(of_z, quad, group, unit_weights(1u, unit, quad0 + quad));
            }
            if n {
                of_n = multiplied(of_n, quad, group, unit_weights(2u, unit, quad0 + quad));
            }
        }
    }
    if rz {
        store_products(0u, thread, tile, row0, of_r);
        store_products(1u, thread, tile, row0, of_z);
    }
    if n {
        store_products(n_product(), thread, tile, row0, of_n);
    }
    products_stored();
}

// Computes and stores r and z, n, or all, for one unit of one row. Returns the unit's operand for
// the next products: r ⊙ h if n comes later, otherwise the state that the next step starts from.
fn step_item(
    step: u32, row: u32, unit: u32, start: f32, inputs: StepInputs, products: vec3<f32>,
    rz: bool, n: bool,
) -> f32 {
    var result = StepResult();
    if rz {
        result = compute_gates(start, inputs, products);
        store_gates(step, row, unit, start, result);
    } else {
        result.z = inputs.z; // store_gates has replaced z's input product by z
    }
    if !n {
        return result.past;
    }
    let product = select(products.z, result.r * products.z, rz);
    let next_flags = next_flags(step, row);
    result = compute_state(step, row, unit, start, inputs, next_flags, result, product);
    store_state(step, row, unit, inputs, result);
    return result.next_start;
}

// The elementwise part, one unit of one row at a time. `ahead` holds the inputs of the thread's
// first item.
fn finish(
    step: u32, row0: u32, unit0: u32, thread: u32, ahead: StepInputs, rz: bool, n: bool,
) {
    for (var item = thread; item < items_from(row0); item += threads()) {
        let local = item_position(item);
        let unit = unit0 + local.x;
        let row = row0 + local.y;
        if unit >= args.hidden {
            continue;
        }
        let inputs = item_inputs(step, row, unit, item, thread, ahead);
        var of_gates = biases(unit);
        if rz {
            of_gates.x += product_of(0u, local);
            of_gates.y += product_of(1u, local);
        }
        if n {
            of_gates.z += product_of(n_product(), local);
        }
        // The states that the step starts from are in workgroup memory after the products.
        var start = 0.0;
        if RESIDENT && rz {
            start = operand[operand_at(local.y, local.x / 4u)][local.x % 4u];
        } else {
            start = load_state(step, row, unit);
        }
        keep_operand(0u, local, step_item(step, row, unit, start, inputs, of_gates, rz, n));
    }
}

fn pass_over(step: u32, row0: u32, unit0: u32, thread: u32, rz: bool, n: bool) {
    let ahead = inputs_ahead(step, row0, unit0, thread);
    multiply(step, row0, unit0, thread, rz, n);
    finish(step, row0, unit0, thread, ahead, rz, n);
    complete_operands(1u, row0, thread);
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
    clear_operands(thread);
    if RESIDENT {
        workgroupBarrier();
        stage(args.step, row0, 0u, 0u, 0u, thread);
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
