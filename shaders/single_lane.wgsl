// For kernels without split-K lanes and row groups, on a software adapter above all: there a load
// costs as much as several multiplications, and its compiler takes time for each load that it sees.

// The operands of the weights, four k to a vec4: [ROWS][DEPTH_QUADS].
var<workgroup> operand: array<vec4<f32>, DEPTH_QUADS * ROWS>;

// The next operands of each item: [OPERAND_GATES][ROWS][4 · UNIT_QUADS].
var<workgroup> next_operands: array<f32, OPERAND_GATES * 4u * ROWS * UNIT_QUADS>;

// The products, four units to a vec4: [ROWS][PRODUCTS][UNIT_QUADS].
var<workgroup> products: array<vec4<f32>, ROWS * PRODUCTS * UNIT_QUADS>;

fn operand_at(row: u32, quad: u32) -> u32 {
    return row * DEPTH_QUADS + quad;
}

fn operand_quad(row: u32, quad: u32) -> vec4<f32> {
    return operand[operand_at(row, quad)];
}

// Adds the products of one unit with four k of four rows, added up by themselves first: a rounding
// is as large as the sum that it rounds. Where fma rounds twice, as on these adapters, it takes no
// more operations.
fn multiplied_unit(sum: vec4<f32>, rows: mat4x4<f32>, weights: vec4<f32>) -> vec4<f32> {
    return sum + fma(rows[3], vec4(weights.w),
        fma(rows[2], vec4(weights.z), fma(rows[1], vec4(weights.y), rows[0] * vec4(weights.x))));
}

// Sets the operands of all rows to 0. Rows and units after the last stay 0: their products are
// computed, and not read.
fn clear_operands(thread: u32) {
    for (var i = thread; i < DEPTH_QUADS * ROWS; i += threads()) {
        operand[i] = vec4<f32>();
    }
    for (var i = thread; i < OPERAND_GATES * 4u * ROWS * UNIT_QUADS; i += threads()) {
        next_operands[i] = 0.0;
    }
}

// Stores the operands of a gate from `quad0` on, as many as workgroup memory holds, at `at_quad`.
fn stage(step: u32, row0: u32, gate: u32, quad0: u32, at_quad: u32, thread: u32) {
    let quads = min(DEPTH_QUADS, gate_quads() - quad0);
    for (var i = thread; i < quads * rows_from(row0); i += threads()) {
        let quad = i % quads;
        let row = i / quads;
        operand[operand_at(row, at_quad + quad)] =
            four_operands(step, row0 + row, gate, 4u * (quad0 + quad));
    }
}

fn four_operands(step: u32, row: u32, gate: u32, k: u32) -> vec4<f32> {
    // Mesa unrolls a loop that ends at a constant or at a minimum with one, but not this one.
    var four = vec4<f32>();
    let end = select(args.hidden, k + 4u, k + 4u < args.hidden);
    for (var i = k; i < end; i++) {
        four[i - k] = load_operand(step, row, gate, i);
    }
    return four;
}

// Begins the slices of a gate's operands.
fn first_slice(step: u32, row0: u32, gate: u32, thread: u32) {}

// Stores the slice of a gate's operands from `quad0` on, once the slice before is multiplied.
fn next_slice(step: u32, row0: u32, gate: u32, quad0: u32, thread: u32) {
    workgroupBarrier();
    stage(step, row0, gate, quad0, 0u, thread);
    workgroupBarrier();
}

fn next_operand_at(gate: u32, unit: u32, row: u32) -> u32 {
    return (gate * ROWS + row) * 4u * UNIT_QUADS + unit;
}

// Keeps an item's operand of a gate for the next products.
fn keep_operand(gate: u32, local: vec2<u32>, value: f32) {
    if RESIDENT {
        next_operands[next_operand_at(gate, local.x, local.y)] = value;
    }
}

// Stores the operands of `gates` gates that the items kept. Four units make a vec4, so an item
// cannot store its operand itself.
fn complete_operands(gates: u32, row0: u32, thread: u32) {
    if !RESIDENT {
        return;
    }
    let quads = gate_quads();
    workgroupBarrier();
    for (var gate = 0u; gate < gates; gate++) {
        for (var i = thread; i < quads * rows_from(row0); i += threads()) {
            let quad = i % quads;
            let row = i / quads;
            let at = next_operand_at(gate, 4u * quad, row);
            operand[operand_at(row, gate * quads + quad)] = vec4(
                next_operands[at], next_operands[at + 1u],
                next_operands[at + 2u], next_operands[at + 3u]);
        }
    }
    workgroupBarrier();
}

fn sum_at(row: u32, product: u32, unit_quad: u32) -> u32 {
    return (row * PRODUCTS + product) * UNIT_QUADS + unit_quad;
}

fn store_sum(row: u32, product: u32, unit_quad: u32, units: vec4<f32>) {
    products[sum_at(row, product, unit_quad)] = units;
}

// Stores the products of a workgroup's units and rows. products_stored comes after the last.
fn store_products(product: u32, thread: u32, tile: ThreadTile, row0: u32, sum: Products) {
    store_sums(product, tile, sum);
}

fn products_stored() {
    workgroupBarrier();
}

// The product of one unit and row.
fn product_of(product: u32, local: vec2<u32>) -> f32 {
    return products[sum_at(local.y, product, local.x / 4u)][local.x % 4u];
}

// Nothing is loaded ahead.
fn inputs_ahead(step: u32, row0: u32, unit0: u32, thread: u32) -> StepInputs {
    return StepInputs();
}

fn item_inputs(
    step: u32, row: u32, unit: u32, item: u32, thread: u32, ahead: StepInputs,
) -> StepInputs {
    return load_inputs(step, row, unit);
}
