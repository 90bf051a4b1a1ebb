// What an update is to know of its gradient: the sum of its squares, and its largest element and where that
// is. NaN counts as larger than infinity, and that as larger than any other.
//
// In parts, each workgroup takes `part` elements and leaves three words in partials. Then, FINISH, one
// workgroup takes all of these together, and leaves an update's report: its loss, the norm, the largest
// element's magnitude and place. Where the loss or an element is not finite, reports[0] is set, which stops
// shaders/optimizer.wgsl from this update on.

const THREADS: u32 = 256u;
const PARTIAL: u32 = 3u; // words: the sum of squares, the largest magnitude, its place
const REPORT: u32 = 4u; // words: loss, norm, the largest magnitude, its place
const NOT_FINITE: u32 = 0x7f800000u; // magnitudes from here on

override FINISH: bool = false;

struct Args {
    length: u32, // elements of gradient, or parts
    part: u32, // of a workgroup
    slots: u32, // updates that reports has room for
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read> loss: array<f32>; // [1]
@group(0) @binding(3) var<storage, read> update: array<f32>; // an Update of shaders/optimizer.wgsl: the slot comes first
@group(0) @binding(4) var<storage, read_write> partials: array<u32>; // [parts][PARTIAL]
@group(0) @binding(5) var<storage, read_write> reports: array<u32>; // REPORT words, then [slots][REPORT]

struct Share {
    squares: f32,
    largest: u32, // a magnitude's bits, which are ordered as the magnitudes
    place: u32,
}

var<workgroup> shares: array<Share, THREADS>;

fn together(a: Share, b: Share) -> Share {
    let b_wins = b.largest > a.largest || (b.largest == a.largest && b.place < a.place);
    return Share(
        a.squares + b.squares,
        select(a.largest, b.largest, b_wins),
        select(a.place, b.place, b_wins));
}

fn element(i: u32) -> Share {
    if FINISH {
        let at = PARTIAL * i;
        return Share(bitcast<f32>(partials[at]), partials[at + 1u], partials[at + 2u]);
    }
    let value = gradient[i];
    return Share(value * value, bitcast<u32>(value) & 0x7fffffffu, i);
}

fn report(all: Share) {
    let loss_bits = bitcast<u32>(loss[0]);
    if max(all.largest, loss_bits & 0x7fffffffu) >= NOT_FINITE {
        reports[0] = 1u;
    }
    let slot = u32(update[0]) % args.slots;
    let at = REPORT * (1u + slot);
    reports[at] = loss_bits;
    reports[at + 1u] = bitcast<u32>(sqrt(all.squares));
    reports[at + 2u] = all.largest;
    reports[at + 3u] = all.place;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first = group.x * args.part;
    let end = min(first + args.part, args.length);
    var share = Share(0.0, 0u, 0xffffffffu);
    for (var i = first + thread; i < end; i += THREADS) {
        share = together(share, element(i));
    }
    shares[thread] = share;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if thread < half {
            shares[thread] = together(shares[thread], shares[thread + half]);
        }
        workgroupBarrier();
    }
    if thread == 0u {
        let all = shares[0];
        if FINISH {
            report(all);
        } else {
            let at = PARTIAL * group.x;
            partials[at] = bitcast<u32>(all.squares);
            partials[at + 1u] = all.largest;
            partials[at + 2u] = all.place;
        }
    }
}
