// One update of all parameters, element by element, with the numbers of `update` (src/plan/update.rs):
//
//   g ← gradient, bounded; g ← g + coupled · θ
//   m ← keep1 · m + take1 · g
//   v ← keep2 · v + take2 · g²                            (ADAM)
//   θ ← θ − decoupled · θ − rate · m / (√v · correction2 + ε), without ADAM the division left out
//
// Nothing moves from an update on whose loss or gradient was not finite: reports[0].

const THREADS: u32 = 256u;

const CLIP_NONE: u32 = 0u;
const CLIP_NORM: u32 = 1u;
const CLIP_VALUE: u32 = 2u;

override ADAM: bool = true;
override CLIP: u32 = CLIP_NONE;

struct Args {
    length: u32,
    threads: u32, // of all workgroups
    slots: u32,
}

struct Update {
    slot: f32,
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
@group(0) @binding(5) var<storage, read> update: array<f32>; // an Update
@group(0) @binding(6) var<storage, read> reports: array<u32>; // as shaders/gradient_norm.wgsl leaves them

fn numbers() -> Update {
    return Update(
        update[0], update[1], update[2], update[3], update[4], update[5], update[6], update[7],
        update[8], update[9], update[10]);
}

fn bounded(g: f32, now: Update, norm: f32) -> f32 {
    switch CLIP {
        case CLIP_NORM: { return select(g, g * (now.bound / norm), norm > now.bound); }
        case CLIP_VALUE: { return clamp(g, -now.bound, now.bound); }
        default: { return g; }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) thread: vec3<u32>) {
    if reports[0] != 0u {
        return;
    }
    let now = numbers();
    let norm = bitcast<f32>(reports[4u * (1u + u32(now.slot) % args.slots) + 1u]);
    for (var i = thread.x; i < args.length; i += args.threads) {
        let g = bounded(gradient[i], now, norm) + now.coupled * params[i];
        let m = now.keep1 * first_moment[i] + now.take1 * g;
        first_moment[i] = m;
        var moved = now.rate * m;
        if ADAM {
            let v = now.keep2 * second_moment[i] + now.take2 * g * g;
            second_moment[i] = v;
            moved /= sqrt(v) * now.correction2 + now.epsilon;
        }
        params[i] -= now.decoupled * params[i] + moved;
    }
}
