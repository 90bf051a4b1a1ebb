// Shared by forward and backward, whose threads load the recurrent weights at every step: the layout
// of a workgroup and the multiplication by the weights (weight_quads.wgsl, weight_scalars.wgsl).
// The operands and sums in workgroup memory are in lanes.wgsl and single_lane.wgsl.
//
// A workgroup computes 4 · UNIT_QUADS hidden units of ROWS · ROW_GROUPS batch rows, for `count` steps
// one after another. With count 1 the units of a step are spread over many workgroups and the host
// loops over the steps. A workgroup that computes all units may loop over many steps itself; its
// operands then stay in workgroup memory.
//
// A thread multiplies four units by ROWS rows, at every SPLIT_K-th quad along k. Neighbouring
// threads have other rows, for the same weights, then other quads.

override GATES_RZ: bool = true; // the dispatch computes r and z
override GATE_N: bool = true; // the dispatch computes n

// Threads of a workgroup: ROW_GROUPS along the rows, SPLIT_K along k, UNIT_QUADS along the units.
override UNIT_QUADS: u32 = 4u; // four units each
override SPLIT_K: u32 = 4u; // lanes that share a sum over k
override ROW_GROUPS: u32 = 1u;
override ROWS: u32 = 4u; // 1, 4 or 8: batch rows per thread
override DEPTH_QUADS: u32 = 16u; // quads along k that workgroup memory holds
override PRODUCTS: u32 = 3u; // the products that a pass has
override RESIDENT: bool = false; // workgroup memory holds all of k, from step to step

fn threads() -> u32 {
    return ROW_GROUPS * UNIT_QUADS * SPLIT_K;
}

// The part of a workgroup's products that a thread computes.
struct ThreadTile {
    row_group: u32,
    lane: u32,
    unit_quad: u32,
}

fn thread_tile(thread: u32) -> ThreadTile {
    let lane = thread / ROW_GROUPS;
    return ThreadTile(thread % ROW_GROUPS, lane % SPLIT_K, lane / SPLIT_K);
}

// Four k of four rows: one column per k. A thread's rows are ROW_GROUPS apart.
fn operands(quad: u32, row_group: u32, row_quad: u32) -> mat4x4<f32> {
    let row = row_group + 4u * row_quad * ROW_GROUPS;
    return transpose(mat4x4(
        operand_quad(row, quad), operand_quad(row + ROW_GROUPS, quad),
        operand_quad(row + 2u * ROW_GROUPS, quad), operand_quad(row + 3u * ROW_GROUPS, quad)));
}

// The products of a thread's four units with its rows.
struct Products {
    one: vec4<f32>, // ROWS 1
    low: mat4x4<f32>, // four rows: a column for each unit
    high: mat4x4<f32>, // ROWS 8: four more
}

// Adds to `sum` the products with the operands of one quad of k. `weights` has one column per unit.
fn multiplied(sum: Products, quad: u32, row_group: u32, weights: mat4x4<f32>) -> Products {
    var more = sum;
    if ROWS == 1u {
        more.one = multiplied_unit(sum.one, transpose(weights), operand_quad(row_group, quad));
        return more;
    }
    more.low = multiplied_rows(sum.low, operands(quad, row_group, 0u), weights);
    if ROWS > 4u {
        more.high = multiplied_rows(sum.high, operands(quad, row_group, 1u), weights);
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

// The batch rows of a workgroup, from row0 on.
fn rows_from(row0: u32) -> u32 {
    return min(ROWS * ROW_GROUPS, args.batch - row0);
}

// The items of a workgroup: one unit of one row each. Neighbouring items are neighbouring units.
fn items_from(row0: u32) -> u32 {
    return 4u * UNIT_QUADS * rows_from(row0);
}

// The unit and the row within the workgroup of an item.
fn item_position(item: u32) -> vec2<u32> {
    return vec2(item % (4u * UNIT_QUADS), item / (4u * UNIT_QUADS));
}

// Stores a thread's sums in slot `part`, a vec4 of units per row.
fn store_sums(part: u32, tile: ThreadTile, sum: Products) {
    if ROWS == 1u {
        store_sum(tile.row_group, part, tile.unit_quad, sum.one);
        return;
    }
    store_rows(tile.row_group, part, tile.unit_quad, sum.low);
    if ROWS > 4u {
        store_rows(tile.row_group + 4u * ROW_GROUPS, part, tile.unit_quad, sum.high);
    }
}

fn store_rows(row: u32, part: u32, unit_quad: u32, of_units: mat4x4<f32>) {
    let of_rows = transpose(of_units);
    store_sum(row, part, unit_quad, of_rows[0]);
    store_sum(row + ROW_GROUPS, part, unit_quad, of_rows[1]);
    store_sum(row + 2u * ROW_GROUPS, part, unit_quad, of_rows[2]);
    store_sum(row + 3u * ROW_GROUPS, part, unit_quad, of_rows[3]);
}
