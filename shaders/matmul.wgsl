// C[m, n] = (accumulate ? C : 0) + Σ_k A(m, k) · B(k, n) (+ bias[bias_first + n])
//
// One kernel for every large product: each operand is a rectangle inside a row-major buffer, given
// by the index of its first element and the distance between rows.
//
//   A(m, k)   A_TRANSPOSED ? a[a_first + k · a_stride + m] : a[a_first + m · a_stride + k]
//   B(k, n)   B_TRANSPOSED ? b[b_first + n · b_stride + k] : b[b_first + k · b_stride + n]
//   C[m, n]   c[c_first + m · c_stride + n]
//
// A workgroup makes a TILE × TILE tile of C, walking k in slices of DEPTH that it stages in
// workgroup memory, four rows of A or four columns of B to a vec4. A thread owns 4 × 4 elements:
// two vec4 loads feed sixteen multiply-adds.

override A_TRANSPOSED: bool = false;
override B_TRANSPOSED: bool = false;

const TILE: u32 = 32u;
const DEPTH: u32 = 16u;
const QUADS: u32 = TILE / 4u;
const THREADS: u32 = QUADS * QUADS;
const SLOTS: u32 = QUADS * DEPTH; // vec4s of a staged slice

struct Args {
    m: u32,
    n: u32,
    k: u32,
    a_first: u32,
    a_stride: u32,
    b_first: u32,
    b_stride: u32,
    c_first: u32,
    c_stride: u32,
    bias_first: u32,
    add_bias: u32, // 1: add bias[bias_first + n]
    accumulate: u32, // 1: add to what C holds
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // anything where add_bias is 0
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

var<workgroup> a_slice: array<vec4<f32>, SLOTS>; // [DEPTH][QUADS], four m each
var<workgroup> b_slice: array<vec4<f32>, SLOTS>; // [DEPTH][QUADS], four n each

fn load_a(m: u32, k: u32) -> f32 {
    if m >= args.m || k >= args.k {
        return 0.0;
    }
    if A_TRANSPOSED {
        return a[args.a_first + k * args.a_stride + m];
    }
    return a[args.a_first + m * args.a_stride + k];
}

fn load_b(k: u32, n: u32) -> f32 {
    if n >= args.n || k >= args.k {
        return 0.0;
    }
    if B_TRANSPOSED {
        return b[args.b_first + n * args.b_stride + k];
    }
    return b[args.b_first + k * args.b_stride + n];
}

// Neighbouring threads must read neighbouring addresses. In an operand whose rows run along k they
// therefore take neighbouring k, in the other neighbouring quads. Returns (k, quad).
fn slot_place(slot: u32, rows_along_k: bool) -> vec2<u32> {
    if rows_along_k {
        return vec2(slot % DEPTH, slot / DEPTH);
    }
    return vec2(slot / QUADS, slot % QUADS);
}

fn stage(tile_m: u32, tile_n: u32, k0: u32, thread: u32) {
    for (var slot = thread; slot < SLOTS; slot += THREADS) {
        let pa = slot_place(slot, !A_TRANSPOSED);
        let m = tile_m + pa.y * 4u;
        let ka = k0 + pa.x;
        a_slice[pa.x * QUADS + pa.y] =
            vec4(load_a(m, ka), load_a(m + 1u, ka), load_a(m + 2u, ka), load_a(m + 3u, ka));

        let pb = slot_place(slot, B_TRANSPOSED);
        let n = tile_n + pb.y * 4u;
        let kb = k0 + pb.x;
        b_slice[pb.x * QUADS + pb.y] =
            vec4(load_b(kb, n), load_b(kb, n + 1u), load_b(kb, n + 2u), load_b(kb, n + 3u));
    }
}

fn store(m: u32, n: u32, sum: f32) {
    if m >= args.m || n >= args.n {
        return;
    }
    let at = args.c_first + m * args.c_stride + n;
    var value = sum;
    if args.accumulate == 1u {
        value += c[at];
    }
    if args.add_bias == 1u {
        value += bias[args.bias_first + n];
    }
    c[at] = value;
}

fn store_row(m: u32, n: u32, sums: vec4<f32>) {
    store(m, n, sums.x);
    store(m, n + 1u, sums.y);
    store(m, n + 2u, sums.z);
    store(m, n + 3u, sums.w);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile_m = group.y * TILE;
    let tile_n = group.x * TILE;
    let quad_m = thread / QUADS;
    let quad_n = thread % QUADS;
    var row0 = vec4<f32>();
    var row1 = vec4<f32>();
    var row2 = vec4<f32>();
    var row3 = vec4<f32>();
    for (var k0 = 0u; k0 < args.k; k0 += DEPTH) {
        stage(tile_m, tile_n, k0, thread);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let am = a_slice[k * QUADS + quad_m];
            let bn = b_slice[k * QUADS + quad_n];
            row0 = fma(vec4(am.x), bn, row0);
            row1 = fma(vec4(am.y), bn, row1);
            row2 = fma(vec4(am.z), bn, row2);
            row3 = fma(vec4(am.w), bn, row3);
        }
        workgroupBarrier();
    }
    let m = tile_m + quad_m * 4u;
    let n = tile_n + quad_n * 4u;
    store_row(m, n, row0);
    store_row(m + 1u, n, row1);
    store_row(m + 2u, n, row2);
    store_row(m + 3u, n, row3);
}
