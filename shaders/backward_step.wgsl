// One state backward: dh of state s from what lies after it, then through the step that made it.
//
// A direction has T + 1 states; its step t turns state t into state t + 1. With s from T down to 0:
//     dh[s] = carry + Σ over step s's recurrent products (none at s = T) + dy of step s − 1 (none at
//     s = 0)
// and for s > 0, with r, z, n, h of step s − 1:
//     z overwrites: dn = dh z,        dz = dh (n − h),  carry = dh (1 − z)
//     z keeps:      dn = dh (1 − z),  dz = dh (h − n),  carry = dh z
//     da_n = dn n′    da_z = dz z′    where ′ is the activation's derivative
// Reset after: one dispatch a state, GATES_RZ and GATE_N both true.
//     dpast = da_n r        da_r = da_n past r′
// Reset before: two. GATES_RZ alone does the above; then GATE_N alone, as da_r needs every da_n:
//     d(rh) = W_hnᵀ da_n    da_r = d(rh) h r′    carry += d(rh) r
// Where step s started afresh, dh[s] without dy is the reset state's and does not go further back.
//
// dstates holds dh_n in the place of the last states, which becomes the carry; in the end dh0 lies in
// that of the first ones, and that of the reset states has been added to. The gradients overwrite gates
// in place: da_r, da_z, da_n and, reset after, dpast in the fourth column (with reset before it keeps
// r ⊙ h). The twin is Cell::backward_steps.

@group(0) @binding(4) var<storage, read> h: array<f32>; // [D, T·B, H], where each step started
@group(0) @binding(5) var<storage, read> dy: array<f32>; // [T·B, D·H], after dropout
@group(0) @binding(6) var<storage, read_write> dstates: array<f32>; // of first, reset, last [L·D, B, H]

var<workgroup> d_slice: array<vec4<f32>, DEPTH * QUADS>; // [DEPTH][QUADS], four rows each
var<workgroup> weight_slice: array<f32, DEPTH * UNITS>; // [DEPTH][UNITS]

// How many products a unit sums: the gates whose recurrent product leads to this dispatch's dh.
fn product_depth() -> u32 {
    if !GATES_RZ {
        return args.hidden;
    }
    if args.step == args.steps {
        return 0u;
    }
    return select(2u, 3u, GATE_N) * args.hidden;
}

// The gradient that row k of the summed weights is multiplied with.
fn load_d(row: u32, k: u32, depth: u32) -> f32 {
    if row >= args.batch || k >= depth {
        return 0.0;
    }
    if !GATES_RZ {
        return gates[gates_at(time(args.step - 1u), row, 2u * args.hidden + k)]; // da_n
    }
    if k >= 2u * args.hidden {
        return gates[gates_at(time(args.step), row, args.hidden + k)]; // dpast, past the n column
    }
    return gates[gates_at(time(args.step), row, k)]; // da_r, da_z
}

fn load_weight(k: u32, unit: u32, depth: u32) -> f32 {
    if unit >= args.hidden || k >= depth {
        return 0.0;
    }
    let row = k + select(2u * args.hidden, 0u, GATES_RZ);
    return weight_hh[direction * args.weight_apart + row * args.hidden + unit];
}

fn stage(row0: u32, unit0: u32, k0: u32, depth: u32, thread: u32) {
    let row = row0 + thread / DEPTH * 4u;
    let k = k0 + thread % DEPTH;
    d_slice[(thread % DEPTH) * QUADS + thread / DEPTH] = vec4(
        load_d(row, k, depth), load_d(row + 1u, k, depth),
        load_d(row + 2u, k, depth), load_d(row + 3u, k, depth));
    for (var i = thread; i < DEPTH * UNITS; i += THREADS) {
        weight_slice[i] = load_weight(k0 + i / UNITS, unit0 + i % UNITS, depth);
    }
}

// dh of one unit of one row is whole: through the step that made this state.
fn through_step(row: u32, unit: u32, product: f32) {
    let at = state_at(args.last_state, row, unit);
    var dh = dstates[at] + product;
    if args.step < args.steps && restarts(time(args.step), row) {
        dstates[state_at(args.reset_state, row, unit)] += dh;
        dh = 0.0;
    }
    if args.step == 0u {
        dstates[state_at(args.first_state, row, unit)] = dh;
        return;
    }
    let time = time(args.step - 1u);
    if is_padding(time, row) {
        // The step did nothing: its gates are 0 and dy is padding.
        dstates[at] = dh;
        return;
    }
    let past = h[h_at(time, row, unit)];
    dh += dy[output_at(time, row, unit)] * dropout_factor(time, row, unit);
    let at_r = gates_at(time, row, unit);
    let at_z = at_r + args.hidden;
    let at_n = at_z + args.hidden;
    let z = gates[at_z];
    let n = gates[at_n];
    let keep = select(1.0 - z, z, Z_KEEPS);
    let take = select(z, 1.0 - z, Z_KEEPS);
    let toward_n = select(n - past, past - n, Z_KEEPS); // ∂h'/∂z
    var dnew = dh;
    var carry = dh * keep;
    if ZONEOUT != NO_ZONEOUT {
        let zone = zone(time, row, unit);
        dnew = dh * (1.0 - zone);
        carry = dh * zone + dnew * keep;
    }
    let da_n = dnew * take * slope(CANDIDATE_ACTIVATION, n);
    dstates[at] = carry;
    gates[at_z] = dnew * toward_n * slope(GATE_ACTIVATION, z);
    gates[at_n] = da_n;
    if GATE_N {
        let at_past = at_n + args.hidden;
        let r = gates[at_r];
        gates[at_r] = da_n * gates[at_past] * slope(GATE_ACTIVATION, r);
        gates[at_past] = da_n * r;
    }
}

// Reset before: d(r ⊙ h) of one unit of one row is whole.
fn through_reset(row: u32, unit: u32, drh: f32) {
    let time = time(args.step - 1u);
    if is_padding(time, row) {
        return;
    }
    let at_r = gates_at(time, row, unit);
    let r = gates[at_r];
    dstates[state_at(args.last_state, row, unit)] += drh * r;
    gates[at_r] = drh * h[h_at(time, row, unit)] * slope(GATE_ACTIVATION, r);
}

fn finish(row: u32, unit: u32, product: f32) {
    if row >= args.batch {
        return;
    }
    if GATES_RZ {
        through_step(row, unit, product);
    } else {
        through_reset(row, unit, product);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    direction = group.z;
    let unit0 = group.x * UNITS;
    let row0 = args.row_first + group.y * ROWS;
    let unit = thread % UNITS;
    let quad = thread / UNITS;
    let depth = product_depth();
    var product = vec4<f32>(); // of one unit, four rows
    for (var k0 = 0u; k0 < depth; k0 += DEPTH) {
        stage(row0, unit0, k0, depth, thread);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            product = fma(d_slice[k * QUADS + quad], vec4(weight_slice[k * UNITS + unit]), product);
        }
        workgroupBarrier();
    }
    if unit0 + unit < args.hidden {
        let row = row0 + quad * 4u;
        finish(row, unit0 + unit, product.x);
        finish(row + 1u, unit0 + unit, product.y);
        finish(row + 2u, unit0 + unit, product.z);
        finish(row + 3u, unit0 + unit, product.w);
    }
}
