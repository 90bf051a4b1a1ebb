// Computes the norm of a gradient, and its largest element with its index. NaN counts as larger
// than infinity, and infinity as larger than any other number.
//
// An f32 cannot hold the square of 1e25 or of 1e-25. So squares are summed in units of the square
// of the power of two below the largest element. Then each is below 4, and a square that underflows
// would not change the sum.
//
// First, each workgroup takes `part` elements and writes three u32 words to partials. Then, with
// FINISH, one workgroup combines them and writes the report of the update: its loss, the norm, the
// largest element's magnitude and index, and whether the update is stopped. If the loss or the norm
// is not finite, reports[0] is set, which stops shaders/optimizer.wgsl from this update on.

const THREADS: u32 = 256u;
const PARTIAL: u32 = 3u; // u32 words: the sum of squares in its unit, largest magnitude, its index
const REPORT: u32 = 5u; // u32 words: loss, norm, largest magnitude, its index, 1 if stopped
const NOT_FINITE: u32 = 0x7f800000u; // magnitudes from here on are not finite

override FINISH: bool = false;

struct Args {
    length: u32, // elements of gradient, or partial results
    part: u32, // elements per workgroup
    slots: u32, // updates that reports has slots for
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read> loss: array<f32>; // [1]
@group(0) @binding(3) var<storage, read> update: array<u32>; // Update of optimizer.wgsl
@group(0) @binding(4) var<storage, read_write> partials: array<u32>; // [parts][PARTIAL]
@group(0) @binding(5) var<storage, read_write> reports: array<u32>; // REPORT u32 words, then [slots][REPORT]

struct Partial {
    squares: f32, // in units of the square of unit(largest)
    largest: u32, // a magnitude's bits, which have the magnitudes' order
    index: u32,
}

var<workgroup> group_partials: array<Partial, THREADS>;

// The exponent of a magnitude's unit, a power of two, in f32's encoding. Subnormal numbers, which
// devices may flush to 0, have the unit of the smallest normal number.
fn unit(magnitude: u32) -> u32 {
    return max(magnitude >> 23u, 1u);
}

// The square of a magnitude in its unit, from its bits, so that no device flushes it to 0.
fn square(magnitude: u32) -> f32 {
    let fraction = f32(magnitude & 0x7fffffu) * 0x1p-23f;
    let units = select(fraction, 1.0 + fraction, magnitude > 0x7fffffu);
    return units * units;
}

// The squares of a partial result in the unit with exponent `to`, which is no smaller.
fn squares_in(partial: Partial, to: u32) -> f32 {
    let halvings = min(2u * (to - unit(partial.largest)), 126u);
    return partial.squares * bitcast<f32>((127u - halvings) << 23u);
}

// Combines two partial results. Of equal largest elements the lower index is kept.
fn together(a: Partial, b: Partial) -> Partial {
    let b_wins = b.largest > a.largest || (b.largest == a.largest && b.index < a.index);
    let to = unit(max(a.largest, b.largest));
    return Partial(
        squares_in(a, to) + squares_in(b, to),
        select(a.largest, b.largest, b_wins),
        select(a.index, b.index, b_wins));
}

fn element(i: u32) -> Partial {
    if FINISH {
        let at = PARTIAL * i;
        return Partial(bitcast<f32>(partials[at]), partials[at + 1u], partials[at + 2u]);
    }
    let magnitude = bitcast<u32>(gradient[i]) & 0x7fffffffu;
    return Partial(square(magnitude), magnitude, i);
}

fn norm_bits(all: Partial) -> u32 {
    if all.largest >= NOT_FINITE {
        return all.largest;
    }
    return bitcast<u32>(sqrt(all.squares) * bitcast<f32>(unit(all.largest) << 23u));
}

fn report(all: Partial) {
    let loss_bits = bitcast<u32>(loss[0]);
    let norm = norm_bits(all);
    if max(norm, loss_bits & 0x7fffffffu) >= NOT_FINITE {
        reports[0] = 1u;
    }
    let slot = update[0] % args.slots;
    let at = REPORT * (1u + slot);
    reports[at] = loss_bits;
    reports[at + 1u] = norm;
    reports[at + 2u] = all.largest;
    reports[at + 3u] = all.index;
    reports[at + 4u] = reports[0];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first = group.x * args.part;
    let end = min(first + args.part, args.length);
    var partial = Partial(0.0, 0u, 0xffffffffu);
    for (var i = first + thread; i < end; i += THREADS) {
        partial = together(partial, element(i));
    }
    group_partials[thread] = partial;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if thread < half {
            group_partials[thread] = together(group_partials[thread], group_partials[thread + half]);
        }
        workgroupBarrier();
    }
    if thread == 0u {
        let all = group_partials[0];
        if FINISH {
            report(all);
        } else {
            let at = PARTIAL * group.x;
            partials[at] = bitcast<u32>(all.squares);
            partials[at + 1u] = all.largest;
            partials[at + 2u] = all.index;
        }
    }
}
