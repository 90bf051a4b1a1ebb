// Shared by forward and backward, whose threads load the recurrent weights at every step: the
// operands and sums in workgroup memory, and the multiplication by the weights (weight_quads.wgsl,
// weight_scalars.wgsl).
//
// A workgroup computes 4 · UNIT_QUADS hidden units of ROWS batch rows, for `count` steps one after
// another. With count 1 the units of a step are spread over many workgroups and the host
// loops over the steps. A workgroup that computes all units may loop over many steps itself; its
// operands then stay in workgroup memory.

override GATES_RZ: bool = true; // the dispatch computes r and z
override GATE_N: bool = true; // the dispatch computes n

// Threads of a workgroup: UNIT_QUADS along the units, four units each, times SPLIT_K along k.
override UNIT_QUADS: u32 = 4u;
override SPLIT_K: u32 = 4u; // lanes that share a sum over k
override ROWS: u32 = 4u; // 1, 4 or 8: batch rows per thread
override DEPTH_QUADS: u32 = 16u; // quads along k that workgroup memory holds
override LANE_SUMS: u32 = 4u; // SPLIT_K; or, if that is 1, the products that a pass has
override ACCUMULATORS: u32 = 3u; // sums per unit and row in workgroup memory
override RESIDENT: bool = false; // workgroup memory holds all of k, from step to step

// The operands of the weights, four k to a vec4: [ROWS][DEPTH_QUADS].
var<workgroup> operand: array<vec4<f32>, DEPTH_QUADS * ROWS>;

// The split-K lanes' partial sums of one product, or without such lanes the products themselves,
// four units to a vec4: [ROWS][LANE_SUMS][UNIT_QUADS].
var<workgroup> lane_sums: array<vec4<f32>, ROWS * LANE_SUMS * UNIT_QUADS>;

// The products of each item, then its next operands. An item is one unit of one row. Only the
// item's own thread accesses its accumulators until all items are complete:
// [ACCUMULATORS][ROWS][4 · UNIT_QUADS].
var<workgroup> accumulators: array<f32, ACCUMULATORS * 4u * ROWS * UNIT_QUADS>;

fn threads() -> u32 {
    return UNIT_QUADS * SPLIT_K;
}

fn operand_at(row: u32, quad: u32) -> u32 {
    return row * DEPTH_QUADS + quad;
}

// Four k of four rows: one column per k.
fn operands(quad: u32, row_quad: u32) -> mat4x4<f32> {
    let at = operand_at(4u * row_quad, quad);
    return transpose(mat4x4(
        operand[at], operand[at + DEPTH_QUADS],
        operand[at + 2u * DEPTH_QUADS], operand[at + 3u * DEPTH_QUADS]));
}

// Sets the operands of all rows to 0. Rows after the last stay 0: their products are computed, and
// not read.
fn clear_operands(thread: u32) {
    for (var i = thread; i < DEPTH_QUADS * ROWS; i += threads()) {
        operand[i] = vec4<f32>();
    }
}

// The products of a thread's four units with its rows.
struct Products {
    one: vec4<f32>, // ROWS 1
    low: mat4x4<f32>, // four rows: a column for each unit
    high: mat4x4<f32>, // ROWS 8: four more
}

// Adds to `sum` the products with the operands of one quad of k. `weights` has one column per unit.
fn multiplied(sum: Products, quad: u32, weights: mat4x4<f32>) -> Products {
    var more = sum;
    if ROWS == 1u {
        more.one = multiplied_unit(sum.one, transpose(weights), operand[operand_at(0u, quad)]);
        return more;
    }
    more.low = multiplied_rows(sum.low, operands(quad, 0u), weights);
    if ROWS > 4u {
        more.high = multiplied_rows(sum.high, operands(quad, 1u), weights);
    }
    return more;
}

// Like `sum + rows * weights`, which some adapters compute as separate multiplications and
// additions.
fn multiplied_rows(sum: mat4x4<f32>, rows: mat4x4<f32>, weights: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4(
        multiplied_unit(sum[0], rows, weights[0]), multiplied_unit(sum[1], rows, weights[1]),
        multiplied_unit(sum[2], rows, weights[2]), multiplied_unit(sum[3], rows, weights[3]));
}

fn multiplied_unit(sum: vec4<f32>, rows: mat4x4<f32>, weights: vec4<f32>) -> vec4<f32> {
    return fma(rows[3], vec4(weights.w),
        fma(rows[2], vec4(weights.z), fma(rows[1], vec4(weights.y), fma(rows[0], vec4(weights.x), sum))));
}

// The batch rows of a workgroup, from row0 on.
fn rows_from(row0: u32) -> u32 {
    return min(ROWS, args.batch - row0);
}

// The items of a workgroup: one unit of one row each. Neighbouring items are neighbouring units.
fn items_from(row0: u32) -> u32 {
    return 4u * UNIT_QUADS * rows_from(row0);
}

// The unit and the row within the workgroup of an item.
fn item_position(item: u32) -> vec2<u32> {
    return vec2(item % (4u * UNIT_QUADS), item / (4u * UNIT_QUADS));
}

fn accumulator_at(accumulator: u32, unit: u32, row: u32) -> u32 {
    return (accumulator * ROWS + row) * 4u * UNIT_QUADS + unit;
}

// Stores the products of a workgroup's units and rows, for product_of. The lanes' partial sums are
// added up in a fixed order.
fn store_products(product: u32, thread: u32, lane: u32, unit_quad: u32, row0: u32, sum: Products) {
    if SPLIT_K == 1u {
        store_lane_sums(product, unit_quad, sum);
        return;
    }
    store_lane_sums(lane, unit_quad, sum);
    workgroupBarrier();
    for (var item = thread; item < items_from(row0); item += threads()) {
        let local = item_position(item);
        var whole = 0.0;
        for (var part = 0u; part < SPLIT_K; part++) {
            whole += lane_sums[lane_sum_at(local.y, part, local.x / 4u)][local.x % 4u];
        }
        accumulators[accumulator_at(product, local.x, local.y)] = whole;
    }
    workgroupBarrier();
}

// The product of one unit and row. There is a barrier after store_products.
fn product_of(product: u32, local: vec2<u32>) -> f32 {
    if SPLIT_K == 1u {
        return lane_sums[lane_sum_at(local.y, product, local.x / 4u)][local.x % 4u];
    }
    return accumulators[accumulator_at(product, local.x, local.y)];
}

fn lane_sum_at(row: u32, part: u32, unit_quad: u32) -> u32 {
    return (row * LANE_SUMS + part) * UNIT_QUADS + unit_quad;
}

// Stores a thread's sums: one vec4 of units per row.
fn store_lane_sums(part: u32, unit_quad: u32, sum: Products) {
    if ROWS == 1u {
        lane_sums[lane_sum_at(0u, part, unit_quad)] = sum.one;
        return;
    }
    store_lane_rows(0u, part, unit_quad, sum.low);
    if ROWS > 4u {
        store_lane_rows(4u, part, unit_quad, sum.high);
    }
}

fn store_lane_rows(row: u32, part: u32, unit_quad: u32, of_units: mat4x4<f32>) {
    let of_rows = transpose(of_units);
    let at = lane_sum_at(row, part, unit_quad);
    let apart = LANE_SUMS * UNIT_QUADS;
    lane_sums[at] = of_rows[0];
    lane_sums[at + apart] = of_rows[1];
    lane_sums[at + 2u * apart] = of_rows[2];
    lane_sums[at + 3u * apart] = of_rows[3];
}

// Turns the first `count` accumulators into operands, one gate's quads from one accumulator to the
// next. Four units make a vec4, so an item cannot write its operand itself.
fn store_operands(count: u32, row0: u32, thread: u32) {
    if !RESIDENT {
        return;
    }
    let quads = gate_quads();
    workgroupBarrier();
    for (var accumulator = 0u; accumulator < count; accumulator++) {
        for (var i = thread; i < quads * rows_from(row0); i += threads()) {
            let quad = i % quads;
            let row = i / quads;
            let at = accumulator_at(accumulator, 4u * quad, row);
            operand[operand_at(row, accumulator * quads + quad)] = vec4(
                accumulators[at], accumulators[at + 1u],
                accumulators[at + 2u], accumulators[at + 3u]);
        }
    }
    workgroupBarrier();
}
