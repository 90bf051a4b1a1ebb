// Shared by forward_step and backward_step: their arguments, where a step's elements lie, what its
// marks say and what dropout and zoneout draw.
//
// The directions of a layer are independent; workgroups' z tells them apart. A reverse one runs from the
// last time to the first; a second one's tensors lie one direction's size after those of the first.
//
// The axes of time and batch lie in x, y and gates as the two strides say, so that time-major and
// batch-first arrays are the same to a kernel.

override GATES_RZ: bool = true;
override GATE_N: bool = true;
override Z_KEEPS: bool = true;
override GATE_ACTIVATION: u32 = SIGMOID; // of r and z
override CANDIDATE_ACTIVATION: u32 = TANH; // of n
override DROPOUT: bool = false; // of the layer's output
override ZONEOUT: u32 = NO_ZONEOUT; // of the state

const NO_ZONEOUT: u32 = 0u;
const EXPECTED_ZONEOUT: u32 = 1u;
const DRAWN_ZONEOUT: u32 = 2u;

// mark in src/kernels.rs.
const PADDING: u32 = 1u;
const RESTART: u32 = 2u;
const RESTART_REVERSE: u32 = 4u;

// A workgroup makes UNITS hidden units of ROWS batch rows, a thread one unit of four rows.
const UNITS: u32 = 16u;
const ROWS: u32 = 16u;
const DEPTH: u32 = 16u;
const QUADS: u32 = ROWS / 4u;
const THREADS: u32 = UNITS * QUADS;

struct Args {
    steps: u32, // T
    batch: u32, // B
    hidden: u32, // H
    directions: u32, // D
    reverse_from: u32, // the directions from this one on run from the last time to the first
    row_first: u32, // the first batch row of this dispatch
    time_stride: u32, // rows of x, y and gates from a step to the next
    row_stride: u32, // and from a batch row to the next
    h_times: u32, // states of each batch row that h holds
    h_time_stride: u32,
    h_row_stride: u32,
    weight_apart: u32, // elements from a weight to the same one of the other direction
    bias_apart: u32,
    first_state: u32, // where the layer's [D, B, H] lie in states or dstates
    reset_state: u32,
    last_state: u32,
    layer: u32,
    drop_below: u32, // draws below this drop an output
    drop_scale: u32, // f32: what kept outputs are multiplied with
    zone_below: u32, // draws below this keep a unit's state
    zone_share: u32, // f32: the share of it kept where nothing is drawn
    step: u32, // the direction's own: its first is 0
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> weight_hh: array<f32>; // [D, 3H, H]
@group(0) @binding(2) var<storage, read> marks: array<u32>; // [T, B], then the seed, low and high
@group(0) @binding(3) var<storage, read_write> gates: array<f32>; // [D, T·B, 4H]: r, z, n, past

// The direction of this workgroup.
var<private> direction: u32;

fn time(step: u32) -> u32 {
    return select(step, args.steps - 1u - step, direction >= args.reverse_from);
}

fn sequence_row(time: u32, row: u32) -> u32 {
    return time * args.time_stride + row * args.row_stride;
}

fn gates_at(time: u32, row: u32, column: u32) -> u32 {
    let at = direction * args.steps * args.batch + sequence_row(time, row);
    return at * 4u * args.hidden + column;
}

// In y and dy, [T·B, D·H].
fn output_at(time: u32, row: u32, unit: u32) -> u32 {
    return (sequence_row(time, row) * args.directions + direction) * args.hidden + unit;
}

// The state that the step at this time starts from.
fn h_at(time: u32, row: u32, unit: u32) -> u32 {
    let slot = direction * args.h_times * args.batch
        + time % args.h_times * args.h_time_stride + row * args.h_row_stride;
    return slot * args.hidden + unit;
}

fn state_at(first: u32, row: u32, unit: u32) -> u32 {
    return first + (direction * args.batch + row) * args.hidden + unit;
}

fn is_padding(time: u32, row: u32) -> bool {
    return (marks[time * args.batch + row] & PADDING) != 0u;
}

fn restarts(time: u32, row: u32) -> bool {
    let bit = select(RESTART, RESTART_REVERSE, direction >= args.reverse_from);
    return (marks[time * args.batch + row] & bit) != 0u;
}

// The draw of a place, the same however the batch is laid out or cut. The twin is in src/noise.rs.
fn draw(purpose: u32, time: u32, row: u32, unit: u32) -> u32 {
    let seed = args.steps * args.batch;
    let place = vec4(direction * args.hidden + unit, row, time, 2u * args.layer + purpose);
    return philox(place, vec2(marks[seed], marks[seed + 1u])).x;
}

// What an output is multiplied with on its way to the next layer.
fn dropout_factor(time: u32, row: u32, unit: u32) -> f32 {
    if !DROPOUT {
        return 1.0;
    }
    return select(bitcast<f32>(args.drop_scale), 0.0, draw(0u, time, row, unit) < args.drop_below);
}

// The share of its old state that a unit keeps, besides what its gates keep.
fn zone(time: u32, row: u32, unit: u32) -> f32 {
    if ZONEOUT == EXPECTED_ZONEOUT {
        return bitcast<f32>(args.zone_share);
    }
    if ZONEOUT == DRAWN_ZONEOUT {
        return select(0.0, 1.0, draw(1u, time, row, unit) < args.zone_below);
    }
    return 0.0;
}
