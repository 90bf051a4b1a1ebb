// One update of all parameters, element by element, with the constants of `update`
// (src/plan/update.rs):
//
//   g ← gradient, clipped; g ← g + coupled · θ
//   m ← keep1 · m + take1 · g
//   v ← keep2 · v + take2 · g²                            (ADAM)
//   θ ← θ − decoupled · θ − rate · m / (√v · correction2 + ε), without ADAM no division
//
// CHECK runs first: it changes nothing, and sets reports[0] if one of θ, m and v would not be
// finite. From an update that set reports[0] (here, or by its loss or norm) on, nothing changes.

const THREADS: u32 = 256u;

const REPORT: u32 = 5u; // u32 words, as in shaders/gradient_norm.wgsl
const NOT_FINITE: u32 = 0x7f800000u; // magnitudes from here on are not finite

const CLIP_NONE: u32 = 0u;
const CLIP_NORM: u32 = 1u;
const CLIP_VALUE: u32 = 2u;

override ADAM: bool = true;
override CLIP: u32 = CLIP_NONE;
override CHECK: bool = false;

struct Args {
    length: u32,
    threads: u32, // in all workgroups
    slots: u32,
}

struct Update {
    slot: u32, // slot of the report
    bound: f32,
    rate: f32,
    keep1: f32,
    take1: f32,
    keep2: f32,
    take2: f32,
    correction2: f32,
    epsilon: f32,
    coupled: f32,
    decoupled: f32,
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read_write> params: array<f32>;
@group(0) @binding(2) var<storage, read> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> first_moment: array<f32>;
@group(0) @binding(4) var<storage, read_write> second_moment: array<f32>;
@group(0) @binding(5) var<storage, read> update: array<u32>; // an Update, numbers as their bits
@group(0) @binding(6) var<storage, read_write> reports: array<atomic<u32>>; // as in shaders/gradient_norm.wgsl

fn number(i: u32) -> f32 {
    return bitcast<f32>(update[i]);
}

fn numbers() -> Update {
    return Update(
        update[0], number(1u), number(2u), number(3u), number(4u), number(5u), number(6u),
        number(7u), number(8u), number(9u), number(10u));
}

fn bounded(g: f32, now: Update, norm: f32) -> f32 {
    switch CLIP {
        case CLIP_NORM: { return select(g, g * (now.bound / norm), norm > now.bound); }
        case CLIP_VALUE: { return clamp(g, -now.bound, now.bound); }
        default: { return g; }
    }
}

struct Element {
    param: f32,
    m: f32,
    v: f32, // only with ADAM
}

fn after(i: u32, now: Update, norm: f32) -> Element {
    let param = params[i];
    let g = bounded(gradient[i], now, norm) + now.coupled * param;
    let m = now.keep1 * first_moment[i] + now.take1 * g;
    var v = 0.0;
    var moved = now.rate * m;
    if ADAM {
        v = now.keep2 * second_moment[i] + now.take2 * g * g;
        moved /= sqrt(v) * now.correction2 + now.epsilon;
    }
    return Element(param - (now.decoupled * param + moved), m, v);
}

// Tests the bits, because compilers may assume that no value is infinite.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) < NOT_FINITE;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) thread: vec3<u32>) {
    if atomicLoad(&reports[0]) != 0u {
        return;
    }
    let now = numbers();
    let report = REPORT * (1u + now.slot % args.slots);
    let norm = bitcast<f32>(atomicLoad(&reports[report + 1u]));
    var finite = true;
    for (var i = thread.x; i < args.length; i += args.threads) {
        let element = after(i, now, norm);
        if CHECK {
            finite = finite && is_finite(element.param) && is_finite(element.m) && is_finite(element.v);
        } else {
            params[i] = element.param;
            first_moment[i] = element.m;
            if ADAM {
                second_moment[i] = element.v;
            }
        }
    }
    if !finite {
        atomicStore(&reports[0], 1u);
        atomicStore(&reports[report + 4u], 1u);
    }
}
