// Shared by all kernels of the recurrence: their arguments, the positions of a step's elements, the
// step flags, and the random draws of dropout and zoneout.
//
// The directions of a layer are independent; a workgroup's z is its direction. A reverse direction
// runs from the last time to the first. The tensors of the second direction follow those of the
// first.
//
// The strides give the order of the axes time and batch in x, y, h and gates, so that a kernel
// treats time-major and batch-first arrays alike.

override RESET_BEFORE: bool = false; // n needs every r first
override NOISE: bool = false; // dropout and zoneout, by arguments
override HARDWARE_EXP: bool = false; // exponentials by the adapter's own exp

const NO_ZONEOUT: u32 = 0u;
const EXPECTED_ZONEOUT: u32 = 1u;
const DRAWN_ZONEOUT: u32 = 2u;

// Bits of Args.modes.
const Z_KEEPS: u32 = 1u; // z keeps the state; otherwise z overwrites it
const KEEPS_GATES: u32 = 2u; // the gates are kept for a backward pass
const REVERSE_FIRST: u32 = 4u; // the first direction runs from the last time to the first

// step_flag in src/spec/batch.rs.
const PADDING: u32 = 1u;
const RESTART: u32 = 2u;
const RESTART_REVERSE: u32 = 4u;

struct Args {
    steps: u32, // T
    batch: u32, // B
    hidden: u32, // H
    directions: u32, // D
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
    modes: u32, // Z_KEEPS, KEEPS_GATES, REVERSE_FIRST
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

// The arguments, loaded once: lavapipe 22 loads them again at every use. Loops and branches around
// a barrier use `arguments`: WGSL takes a private variable for a different value in each thread.
var<private> args: Args;

// The direction of this workgroup.
var<private> direction: u32;

fn has_mode(mode: u32) -> bool {
    return (args.modes & mode) != 0u;
}

// The second direction is always reverse.
fn is_reverse() -> bool {
    return direction == 1u || has_mode(REVERSE_FIRST);
}

fn time(step: u32) -> u32 {
    return select(step, args.steps - 1u - step, is_reverse());
}

fn sequence_row(time: u32, row: u32) -> u32 {
    return time * args.time_stride + row * args.row_stride;
}

fn gates_at(time: u32, row: u32, column: u32) -> u32 {
    let first = args.gates_first;
    let reverse = time + first + args.gates_times - args.steps;
    let slot = select(time - first, reverse, is_reverse());
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

// The flags of a row's step.
fn flags(time: u32, row: u32) -> u32 {
    return step_flags[time * args.batch + row];
}

fn is_padding(flags: u32) -> bool {
    return (flags & PADDING) != 0u;
}

fn restarts(flags: u32) -> bool {
    return (flags & select(RESTART, RESTART_REVERSE, is_reverse())) != 0u;
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
    if !NOISE {
        return 1.0;
    }
    return select(bitcast<f32>(args.drop_scale), 0.0, draw(0u, time, row, unit) < args.drop_below);
}

// The fraction of its old state that a unit keeps, in addition to its gates.
fn zone(time: u32, row: u32, unit: u32) -> f32 {
    if NOISE && args.zoneout == EXPECTED_ZONEOUT {
        return bitcast<f32>(args.zone_fraction);
    }
    if NOISE && args.zoneout == DRAWN_ZONEOUT {
        return select(0.0, 1.0, draw(1u, time, row, unit) < args.zone_below);
    }
    return 0.0;
}

// The fraction of the old state, and of the candidate, in the new state.
fn keep_take(z: f32) -> vec2<f32> {
    return select(vec2(1.0 - z, z), vec2(z, 1.0 - z), has_mode(Z_KEEPS));
}

// The number of quads of one gate.
fn gate_quads() -> u32 {
    return (args.hidden + 3u) / 4u;
}
