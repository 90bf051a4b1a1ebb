// Shared by persistent_forward and persistent_backward: kernels of many steps whose threads hold the
// recurrent weights in registers, loaded before the first step.
//
// A workgroup computes all units of ROWS batch rows. Forward, a gate's sums are its units and k is
// the state's units; backward, the sums are the state's units and k is the gate's. In both, a
// thread multiplies 4 · BLOCKS k of one gate by four sums: BLOCKS blocks of 4 × 4 weights, used
// again at every step. The PARTS threads that share the sums of a gate, and backward the gates,
// each store a partial sum. An item is one unit of one row; its thread adds up the partial sums, in
// a fixed order, computes the elementwise part and stores the next operand. So a step has two
// barriers, and with reset before four.
//
// The blocks and the operands within a thread's part have constant indices, so that the blocks stay
// in registers and index checks cost nothing inside the sums.

override UNIT_QUADS: u32 = 4u; // quads of hidden units, all of them
override PARTS: u32 = 4u; // threads along the k of a gate
override BLOCKS: u32 = 1u; // blocks of 4 × 4 weights of a thread, at most 8
override ROWS: u32 = 1u; // batch rows of a workgroup
override THREADS: u32 = 48u; // at least 3 · PARTS · UNIT_QUADS, and 4 · ROWS · UNIT_QUADS

// The 4 · 8 operands of a part, and four unused ones, so that parts start in different banks.
const OPERAND_STRIDE: u32 = 36u;

// [ROWS][OPERAND_GATES][PARTS], each with 4 · BLOCKS k.
var<workgroup> operands: array<array<f32, OPERAND_STRIDE>, OPERAND_GATES * PARTS * ROWS>;

// Partial sums, four units to a vec4: [ROWS][3 gates][PARTS][UNIT_QUADS].
var<workgroup> partial_sums: array<vec4<f32>, ROWS * 3u * PARTS * UNIT_QUADS>;

// The blocks of weights of a thread: a column for each k, with four sums.
var<private> blocks: array<mat4x4<f32>, 8>;

// The weights of a thread: `gate`, `part` of its k, and `unit_quad` of its sums.
struct WeightTile {
    gate: u32, // 3 or more: none
    part: u32,
    unit_quad: u32,
}

fn weight_tile(thread: u32) -> WeightTile {
    let slice = thread / UNIT_QUADS;
    return WeightTile(slice / PARTS, slice % PARTS, thread % UNIT_QUADS);
}

// Loads the weights of a thread.
fn load_blocks(tile: WeightTile) {
    if tile.gate > 2u {
        return;
    }
    blocks[0] = load_block(tile, 0u);
    if BLOCKS > 1u { blocks[1] = load_block(tile, 1u); }
    if BLOCKS > 2u { blocks[2] = load_block(tile, 2u); }
    if BLOCKS > 3u { blocks[3] = load_block(tile, 3u); }
    if BLOCKS > 4u { blocks[4] = load_block(tile, 4u); }
    if BLOCKS > 5u { blocks[5] = load_block(tile, 5u); }
    if BLOCKS > 6u { blocks[6] = load_block(tile, 6u); }
    if BLOCKS > 7u { blocks[7] = load_block(tile, 7u); }
}

// The quad of a gate's k that a block starts at. After the last quad it is the last: its operands
// are 0.
fn block_quad(tile: WeightTile, block: u32) -> u32 {
    return min(BLOCKS * tile.part + block, gate_quads() - 1u);
}

// The products of a block with four operands, added to `sum`.
fn multiply_block(sum: vec4<f32>, block: mat4x4<f32>, operands: vec4<f32>) -> vec4<f32> {
    return fma(block[3], vec4(operands.w), fma(block[2], vec4(operands.z),
        fma(block[1], vec4(operands.y), fma(block[0], vec4(operands.x), sum))));
}

fn operand_quad(part: u32, quad: u32) -> vec4<f32> {
    let k = 4u * quad;
    return vec4(
        operands[part][k], operands[part][k + 1u], operands[part][k + 2u], operands[part][k + 3u]);
}

// The index of a part of a gate's operands.
fn operand_part(row: u32, gate: u32, part: u32) -> u32 {
    return (row * OPERAND_GATES + gate) * PARTS + part;
}

// Stores a thread's partial sums of all rows, from the operands of `operand_gate`.
fn multiply(tile: WeightTile, operand_gate: u32) {
    for (var row = 0u; row < ROWS; row++) {
        let part = operand_part(row, operand_gate, tile.part);
        var sum = multiply_block(vec4<f32>(), blocks[0], operand_quad(part, 0u));
        if BLOCKS > 1u { sum = multiply_block(sum, blocks[1], operand_quad(part, 1u)); }
        if BLOCKS > 2u { sum = multiply_block(sum, blocks[2], operand_quad(part, 2u)); }
        if BLOCKS > 3u { sum = multiply_block(sum, blocks[3], operand_quad(part, 3u)); }
        if BLOCKS > 4u { sum = multiply_block(sum, blocks[4], operand_quad(part, 4u)); }
        if BLOCKS > 5u { sum = multiply_block(sum, blocks[5], operand_quad(part, 5u)); }
        if BLOCKS > 6u { sum = multiply_block(sum, blocks[6], operand_quad(part, 6u)); }
        if BLOCKS > 7u { sum = multiply_block(sum, blocks[7], operand_quad(part, 7u)); }
        let slice = (row * 3u + tile.gate) * PARTS + tile.part;
        partial_sums[slice * UNIT_QUADS + tile.unit_quad] = sum;
    }
}

// An item: one unit of one row. A thread has at most one.
struct Item {
    exists: bool,
    local_row: u32, // within the workgroup
    row: u32,
    unit: u32,
}

fn item(thread: u32, group: u32) -> Item {
    let local_row = thread / (4u * UNIT_QUADS);
    let row = args.row_first + group * ROWS + local_row;
    let unit = thread % (4u * UNIT_QUADS);
    let exists = local_row < ROWS && row < args.batch && unit < args.hidden;
    return Item(exists, local_row, row, unit);
}

// The sum of an item over `count` gates from `gate` on.
fn item_sum(item: Item, gate: u32, count: u32) -> f32 {
    var sum = 0.0;
    let first = (item.local_row * 3u + gate) * PARTS;
    for (var part = 0u; part < count * PARTS; part++) {
        sum += partial_sums[(first + part) * UNIT_QUADS + item.unit / 4u][item.unit % 4u];
    }
    return sum;
}

// Stores an item's operand of a gate.
fn store_operand(item: Item, gate: u32, value: f32) {
    let part = operand_part(item.local_row, gate, item.unit / (4u * BLOCKS));
    operands[part][item.unit % (4u * BLOCKS)] = value;
}

// Sets all operands to 0, so that units past the last have finite products.
fn clear_operands(thread: u32) {
    let count = OPERAND_GATES * PARTS * ROWS * OPERAND_STRIDE;
    for (var i = thread; i < count; i += THREADS) {
        operands[i / OPERAND_STRIDE][i % OPERAND_STRIDE] = 0.0;
    }
}
