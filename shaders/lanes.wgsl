// For kernels with split-K lanes, on a GPU: operands that are loaded one slice ahead, and sums over
// the lanes.

// The operands of the weights, four k each: [ROWS · ROW_GROUPS][DEPTH_QUADS + padding()]. As an array
// of arrays it is loaded as quads and stored as numbers.
var<workgroup> operand: array<array<f32, 4>, (DEPTH_QUADS + (ROW_GROUPS + 6u) / 8u) * ROWS * ROW_GROUPS>;

// The split-K lanes' partial sums of one product, four units to a vec4:
// [ROWS · ROW_GROUPS][SPLIT_K · UNIT_QUADS + padding()].
var<workgroup> lane_sums: array<vec4<f32>, ROWS * ROW_GROUPS * (SPLIT_K * UNIT_QUADS + (ROW_GROUPS + 6u) / 8u)>;

// The products of each item: [PRODUCTS][ROWS · ROW_GROUPS][4 · UNIT_QUADS].
var<workgroup> accumulators: array<f32, PRODUCTS * 4u * ROWS * ROW_GROUPS * UNIT_QUADS>;

// The operands of a slice that a thread has loaded, and not stored yet.
var<private> fetched: array<f32, 16>;

// An unused quad per row starts the rows of neighbouring threads in different banks.
fn padding() -> u32 {
    return (ROW_GROUPS + 6u) / 8u; // 0 for one group, 1 for 2, 4 or 8
}

fn operand_at(row: u32, quad: u32) -> u32 {
    return row * (DEPTH_QUADS + padding()) + quad;
}

fn operand_quad(row: u32, quad: u32) -> vec4<f32> {
    let at = operand_at(row, quad);
    return vec4(operand[at][0], operand[at][1], operand[at][2], operand[at][3]);
}

// Adds the products of one unit with four k of four rows.
fn multiplied_unit(sum: vec4<f32>, rows: mat4x4<f32>, weights: vec4<f32>) -> vec4<f32> {
    return fma(rows[3], vec4(weights.w),
        fma(rows[2], vec4(weights.z),
            fma(rows[1], vec4(weights.y), fma(rows[0], vec4(weights.x), sum))));
}

// Sets the operands of all rows to 0. Rows after the last stay 0: their products are computed, and
// not read.
fn clear_operands(thread: u32) {
    for (var i = thread; i < (DEPTH_QUADS + padding()) * ROWS * ROW_GROUPS; i += threads()) {
        operand[i] = array<f32, 4>();
    }
}

// Stores the operands of a gate from `quad0` on, as many as workgroup memory holds, at `at_quad`.
fn stage(step: u32, row0: u32, gate: u32, quad0: u32, at_quad: u32, thread: u32) {
    let numbers = 4u * min(DEPTH_QUADS, gate_quads() - quad0);
    for (var i = thread; i < numbers * rows_from(row0); i += threads()) {
        let k = i % numbers;
        let row = i / numbers;
        operand[operand_at(row, at_quad + k / 4u)][k % 4u] =
            load_operand(step, row0 + row, gate, 4u * quad0 + k);
    }
}

// The numbers of a slice that a thread stages, at most 16.
fn staged() -> u32 {
    return 4u * DEPTH_QUADS * ROWS / (UNIT_QUADS * SPLIT_K);
}

// Loads what store_fetched then stores: a slice as in `stage`. On a GPU the loads arrive while the
// slice before is multiplied.
fn fetch(step: u32, row0: u32, gate: u32, quad0: u32, thread: u32) {
    for (var j = 0u; j < staged(); j++) {
        let i = thread + j * threads();
        let row = min(i / (4u * DEPTH_QUADS), rows_from(row0) - 1u);
        fetched[j] = load_operand(step, row0 + row, gate, 4u * quad0 + i % (4u * DEPTH_QUADS));
    }
}

fn store_fetched(thread: u32) {
    for (var j = 0u; j < staged(); j++) {
        let i = thread + j * threads();
        let k = i % (4u * DEPTH_QUADS);
        operand[operand_at(i / (4u * DEPTH_QUADS), k / 4u)][k % 4u] = fetched[j];
    }
}

// Begins the slices of a gate's operands.
fn first_slice(step: u32, row0: u32, gate: u32, thread: u32) {
    fetch(step, row0, gate, 0u, thread);
}

// Stores the slice of a gate's operands from `quad0` on, once the slice before is multiplied.
fn next_slice(step: u32, row0: u32, gate: u32, quad0: u32, thread: u32) {
    workgroupBarrier();
    store_fetched(thread);
    workgroupBarrier();
    fetch(step, row0, gate, quad0 + DEPTH_QUADS, thread);
}

// Keeps an item's operand of a gate for the next products.
fn keep_operand(gate: u32, local: vec2<u32>, value: f32) {
    if RESIDENT {
        operand[operand_at(local.y, gate * gate_quads() + local.x / 4u)][local.x % 4u] = value;
    }
}

// Completes the operands that the items kept.
fn complete_operands(gates: u32, row0: u32, thread: u32) {
    if RESIDENT {
        workgroupBarrier();
    }
}

fn accumulator_at(accumulator: u32, local: vec2<u32>) -> u32 {
    return (accumulator * ROWS * ROW_GROUPS + local.y) * 4u * UNIT_QUADS + local.x;
}

fn sum_at(row: u32, lane: u32, unit_quad: u32) -> u32 {
    return row * (SPLIT_K * UNIT_QUADS + padding()) + lane * UNIT_QUADS + unit_quad;
}

fn store_sum(row: u32, lane: u32, unit_quad: u32, units: vec4<f32>) {
    lane_sums[sum_at(row, lane, unit_quad)] = units;
}

// Stores the products of a workgroup's units and rows. The lanes' partial sums are added up in a
// fixed order.
fn store_products(product: u32, thread: u32, tile: ThreadTile, row0: u32, sum: Products) {
    store_sums(tile.lane, tile, sum);
    workgroupBarrier();
    for (var item = thread; item < items_from(row0); item += threads()) {
        let local = item_position(item);
        var whole = 0.0;
        for (var lane = 0u; lane < SPLIT_K; lane++) {
            whole += lane_sums[sum_at(local.y, lane, local.x / 4u)][local.x % 4u];
        }
        accumulators[accumulator_at(product, local)] = whole;
    }
    workgroupBarrier();
}

fn products_stored() {}

// The product of one unit and row.
fn product_of(product: u32, local: vec2<u32>) -> f32 {
    return accumulators[accumulator_at(product, local)];
}

// The inputs of a thread's first item, loaded before they are needed, so that they arrive during the
// products. A thread without an item loads some other item's.
fn inputs_ahead(step: u32, row0: u32, unit0: u32, thread: u32) -> StepInputs {
    let local = item_position(thread);
    return load_inputs(step, row0 + min(local.y, rows_from(row0) - 1u), unit0 + local.x);
}

// The inputs of an item, which are `ahead` if it is the thread's first.
fn item_inputs(
    step: u32, row: u32, unit: u32, item: u32, thread: u32, ahead: StepInputs,
) -> StepInputs {
    if item == thread {
        return ahead;
    }
    return load_inputs(step, row, unit);
}
