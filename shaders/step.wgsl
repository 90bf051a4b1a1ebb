// Shared by forward and backward, the kernels of the recurrence: their arguments, the positions of
// a step's elements, the step flags, the random draws of dropout and zoneout, and the
// multiplication by the recurrent weights (weight_quads.wgsl, weight_scalars.wgsl).
//
// The directions of a layer are independent; a workgroup's z is its direction. A reverse direction
// runs from the last time to the first. The tensors of the second direction follow those of the
// first.
//
// The strides give the order of the axes time and batch in x, y, h and gates, so that a kernel
// treats time-major and batch-first arrays alike.
//
// A workgroup computes 4 · UNIT_QUADS hidden units of ROWS batch rows, for `count` steps one after
// another. With count 1 the units of a step are spread over many workgroups and the host
// loops over the steps. A workgroup that computes all units may loop over many steps itself; its
// operands then stay in workgroup memory.

override GATES_RZ: bool = true; // the dispatch computes r and z
override GATE_N: bool = true; // the dispatch computes n
override RESET_BEFORE: bool = false; // n needs every r first
override EXTRAS: bool = false; // other activations than σ and tanh, dropout, zoneout: by arguments

// Threads of a workgroup: UNIT_QUADS along the units, four units each, times SPLIT_K along k.
override UNIT_QUADS: u32 = 4u;
override SPLIT_K: u32 = 4u; // lanes that share a sum over k
override ROWS: u32 = 4u; // 1, 4 or 8: batch rows per thread
override DEPTH_QUADS: u32 = 16u; // quads along k that workgroup memory holds
override LANE_SUMS: u32 = 4u; // SPLIT_K; or, if that is 1, the products that a pass has
override ACCUMULATORS: u32 = 3u; // sums per unit and row in workgroup memory
override RESIDENT: bool = false; // workgroup memory holds all of k, from step to step

const NO_ZONEOUT: u32 = 0u;
const EXPECTED_ZONEOUT: u32 = 1u;
const DRAWN_ZONEOUT: u32 = 2u;

// step_flag in src/spec/batch.rs.
const PADDING: u32 = 1u;
const RESTART: u32 = 2u;
const RESTART_REVERSE: u32 = 4u;

struct Args {
    steps: u32, // T
    batch: u32, // B
    hidden: u32, // H
    directions: u32, // D
    reverse_from: u32, // the first direction that runs from the last time to the first
    row_first: u32, // the first batch row of this dispatch
    time_stride: u32, // rows of x and y from one step to the next
    row_stride: u32, // rows of x and y from one batch row to the next
    h_times: u32, // states per batch row that h holds
    h_time_stride: u32,
    h_row_stride: u32,
    gates_first: u32, // the direction's own step at which gates starts
    gates_times: u32, // steps that gates holds
    gates_room: u32, // steps that gates has room for
    gates_time_stride: u32,
    gates_row_stride: u32,
    weight_apart: u32, // elements from a weight to that of the other direction
    bias_apart: u32,
    first_state: u32, // index of the layer's [D, B, H] in states or dstates
    reset_state: u32,
    last_state: u32,
    layer: u32,
    z_keeps: u32, // 1: z keeps the state; 0: z overwrites it
    keeps_gates: u32, // 1: gates are kept for a backward pass
    gate_activation: u32, // of r and z
    candidate_activation: u32, // of n
    drop_below: u32, // an output is dropped if its draw is below this
    drop_scale: u32, // f32: factor of kept outputs
    zoneout: u32, // zoneout of the state
    zone_below: u32, // a unit keeps its state if its draw is below this
    zone_fraction: u32, // f32: the fraction of its state that a unit keeps in inference
    draw_rounds: u32, // of philox: 10, or 0 if nothing is drawn
    count: u32, // steps in this dispatch
    step: u32, // the first step, in the direction's own order, from 0
}

@group(0) @binding(0) var<storage, read> arguments: Args;
@group(0) @binding(2) var<storage, read> step_flags: array<u32>; // [T, B], then draw_seed (src/spec/noise.rs)
@group(0) @binding(3) var<storage, read_write> gates: array<f32>; // [D, gates_room·B, 4H]: r, z, n, past

// The operands of the weights, four k to a vec4: [ROWS][DEPTH_QUADS].
var<workgroup> operand: array<vec4<f32>, DEPTH_QUADS * ROWS>;

// The split-K lanes' partial sums of one product, or without such lanes the products themselves,
// four units to a vec4: [ROWS][LANE_SUMS][UNIT_QUADS].
var<workgroup> lane_sums: array<vec4<f32>, ROWS * LANE_SUMS * UNIT_QUADS>;

// The products of each item, then its next operands. An item is one unit of one row. Only the
// item's own thread accesses its accumulators until all items are complete:
// [ACCUMULATORS][ROWS][4 · UNIT_QUADS].
var<workgroup> accumulators: array<f32, ACCUMULATORS * 4u * ROWS * UNIT_QUADS>;

// The arguments, loaded once: lavapipe 22 loads them again at every use. Loops and branches around
// a barrier use `arguments`: WGSL takes a private variable for a different value in each thread.
var<private> args: Args;

// The direction of this workgroup.
var<private> direction: u32;

fn threads() -> u32 {
    return UNIT_QUADS * SPLIT_K;
}

fn time(step: u32) -> u32 {
    return select(step, args.steps - 1u - step, direction >= args.reverse_from);
}

fn sequence_row(time: u32, row: u32) -> u32 {
    return time * args.time_stride + row * args.row_stride;
}

fn gates_at(time: u32, row: u32, column: u32) -> u32 {
    let first = args.gates_first;
    let reverse = time + first + args.gates_times - args.steps;
    let slot = select(time - first, reverse, direction >= args.reverse_from);
    let at = direction * args.gates_room * args.batch
        + slot * args.gates_time_stride + row * args.gates_row_stride;
    return at * 4u * args.hidden + column;
}

// The index in y and dy, [T·B, D·H].
fn output_at(time: u32, row: u32, unit: u32) -> u32 {
    return (sequence_row(time, row) * args.directions + direction) * args.hidden + unit;
}

// The index of the state that the step at this time starts from.
fn h_at(time: u32, row: u32, unit: u32) -> u32 {
    let slot = direction * args.h_times * args.batch
        + time % args.h_times * args.h_time_stride + row * args.h_row_stride;
    return slot * args.hidden + unit;
}

fn state_at(first: u32, row: u32, unit: u32) -> u32 {
    return first + (direction * args.batch + row) * args.hidden + unit;
}

fn is_padding(time: u32, row: u32) -> bool {
    return (step_flags[time * args.batch + row] & PADDING) != 0u;
}

fn restarts(time: u32, row: u32) -> bool {
    let bit = select(RESTART, RESTART_REVERSE, direction >= args.reverse_from);
    return (step_flags[time * args.batch + row] & bit) != 0u;
}

// A draw depends only on the seed and on its index, for any layout and chunks of the batch. The
// reference is Noise::draw in src/spec/noise.rs.
fn draw(purpose: u32, time: u32, row: u32, unit: u32) -> u32 {
    let seed = args.steps * args.batch;
    let first = vec2(step_flags[seed + 3u], step_flags[seed + 2u]);
    let counter = vec4(direction * args.hidden + unit, vec2(row, time) + first, 2u * args.layer + purpose);
    return philox(counter, vec2(step_flags[seed], step_flags[seed + 1u]), args.draw_rounds).x;
}

// The factor of an output on its way to the next layer.
fn dropout_factor(time: u32, row: u32, unit: u32) -> f32 {
    if !EXTRAS {
        return 1.0;
    }
    return select(bitcast<f32>(args.drop_scale), 0.0, draw(0u, time, row, unit) < args.drop_below);
}

// The fraction of its old state that a unit keeps, in addition to its gates.
fn zone(time: u32, row: u32, unit: u32) -> f32 {
    if EXTRAS && args.zoneout == EXPECTED_ZONEOUT {
        return bitcast<f32>(args.zone_fraction);
    }
    if EXTRAS && args.zoneout == DRAWN_ZONEOUT {
        return select(0.0, 1.0, draw(1u, time, row, unit) < args.zone_below);
    }
    return 0.0;
}

fn gate_activation() -> u32 {
    return select(SIGMOID, args.gate_activation, EXTRAS);
}

fn candidate_activation() -> u32 {
    return select(TANH, args.candidate_activation, EXTRAS);
}

// The fraction of the old state, and of the candidate, in the new state.
fn keep_take(z: f32) -> vec2<f32> {
    return select(vec2(1.0 - z, z), vec2(z, 1.0 - z), args.z_keeps == 1u);
}

// The number of quads of one gate.
fn gate_quads() -> u32 {
    return (args.hidden + 3u) / 4u;
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
