// C[m, n] = (accumulate ? C : 0) + Σ_k A(m, k) · B(k, n) (+ bias[bias_first + n])
//
// One kernel for every large product: each operand is a rectangle inside a row-major buffer, given
// by the index of its first element and the distance between rows.
//
//   A(m, k)   A_TRANSPOSED ? a[a_first + k · a_stride + m] : a[a_first + m · a_stride + k]
//   B(k, n)   B_TRANSPOSED ? b[b_first + n · b_stride + k] : b[b_first + k · b_stride + n]
//   C[m, n]   c[c_first + m · c_stride + n]
//
// With RUNS the rows of these rectangles come in runs, so many rows each and each so many elements after
// the last: some steps of every row of a batch-first sequence.
//
// A workgroup makes a tile of 8 · M_THREADS × 4 · N_QUADS · N_THREADS of C, walking k in slices of DEPTH
// that it stages in workgroup memory, four rows of A or four columns of B to a vec4. A thread owns eight
// rows and four or eight columns: four vec4 loads feed 64 multiply-adds.
//
// Where C has few tiles and k is long, workgroups' z takes k in parts, each with a C of its own, part_apart
// elements after the last one's, to be added up after.

override A_TRANSPOSED: bool = false;
override B_TRANSPOSED: bool = false;
override RUNS: bool = false;
override M_THREADS: u32 = 8u;
override N_THREADS: u32 = 8u;
override N_QUADS: u32 = 2u; // 1 or 2: columns of a thread, four each
override DEPTH: u32 = 16u;

struct Args {
    m: u32,
    n: u32,
    k: u32,
    k_part: u32, // k of a workgroup
    a_first: u32,
    a_stride: u32,
    a_row: u32, // of the first run, that a_first stands for
    a_run: u32, // rows of a run
    a_skip: u32, // elements from a run to the next
    b_first: u32,
    b_stride: u32,
    b_row: u32,
    b_run: u32,
    b_skip: u32,
    c_first: u32,
    c_stride: u32,
    c_row: u32,
    c_run: u32,
    c_skip: u32,
    part_apart: u32,
    bias_first: u32,
    add_bias: u32, // 1: add bias[bias_first + n]
    accumulate: u32, // 1: add to what C holds
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // anything where add_bias is 0
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// One vec4 more a k, so that the k of a quad fall into different banks.
var<workgroup> a_slice: array<vec4<f32>, DEPTH * (2u * M_THREADS + 1u)>; // [DEPTH][quads + 1], four m each
var<workgroup> b_slice: array<vec4<f32>, DEPTH * (N_QUADS * N_THREADS + 1u)>; // [DEPTH][quads + 1], four n each

// A block of each thread: [4 · M_THREADS][N_THREADS].
var<workgroup> blocks: array<vec4<f32>, 4u * M_THREADS * N_THREADS>;

fn m_quads() -> u32 {
    return 2u * M_THREADS;
}

fn n_quads() -> u32 {
    return N_QUADS * N_THREADS;
}

// Where a row starts that is `row` rows after the first run's `offset`.
fn row_at(row: u32, stride: u32, offset: u32, run: u32, skip: u32) -> u32 {
    if !RUNS {
        return row * stride;
    }
    let whole = row + offset;
    return whole / run * skip + whole % run * stride;
}

// Where rows `row` to `row` + 3 start, or the last one of `rows` where they end before.
fn rows_at(row: u32, rows: u32, stride: u32, offset: u32, run: u32, skip: u32) -> vec4<u32> {
    let four = vec4(0u, 1u, 2u, 3u);
    if !RUNS {
        return min(vec4(row * stride) + four * stride, vec4((rows - 1u) * stride));
    }
    let whole = min(vec4(row) + four, vec4(rows - 1u)) + offset;
    return whole / run * skip + whole % run * stride;
}

// Four m or n, from `quad` on, at one k of `k_end`: in memory four rows' elements in a column, or four in a
// row. Past the edge of C they are some others, whose products nobody stores; past the end of k, 0.
fn load_a(quad: u32, k: u32, k_end: u32) -> vec4<f32> {
    let k_in = min(k, args.k - 1u);
    var at = vec4(args.a_first);
    if A_TRANSPOSED {
        at += row_at(k_in, args.a_stride, args.a_row, args.a_run, args.a_skip)
            + min(vec4(quad) + vec4(0u, 1u, 2u, 3u), vec4(args.m - 1u));
    } else {
        at += rows_at(quad, args.m, args.a_stride, args.a_row, args.a_run, args.a_skip) + k_in;
    }
    return select(vec4<f32>(), vec4(a[at.x], a[at.y], a[at.z], a[at.w]), k < k_end);
}

fn load_b(quad: u32, k: u32, k_end: u32) -> vec4<f32> {
    let k_in = min(k, args.k - 1u);
    var at = vec4(args.b_first);
    if B_TRANSPOSED {
        at += rows_at(quad, args.n, args.b_stride, args.b_row, args.b_run, args.b_skip) + k_in;
    } else {
        at += row_at(k_in, args.b_stride, args.b_row, args.b_run, args.b_skip)
            + min(vec4(quad) + vec4(0u, 1u, 2u, 3u), vec4(args.n - 1u));
    }
    return select(vec4<f32>(), vec4(b[at.x], b[at.y], b[at.z], b[at.w]), k < k_end);
}

// Neighbouring threads must read neighbouring addresses. In an operand whose rows run along k they
// therefore take neighbouring k, in the other neighbouring quads. Returns (k, quad).
fn slot_place(slot: u32, quads: u32, rows_along_k: bool) -> vec2<u32> {
    if rows_along_k {
        return vec2(slot % DEPTH, slot / DEPTH);
    }
    return vec2(slot / quads, slot % quads);
}

fn stage(tile_m: u32, tile_n: u32, k0: u32, end: u32, thread: u32) {
    for (var slot = thread; slot < m_quads() * DEPTH; slot += M_THREADS * N_THREADS) {
        let at = slot_place(slot, m_quads(), !A_TRANSPOSED);
        a_slice[at.x * (m_quads() + 1u) + at.y] = load_a(tile_m + at.y * 4u, k0 + at.x, end);
    }
    for (var slot = thread; slot < n_quads() * DEPTH; slot += M_THREADS * N_THREADS) {
        let at = slot_place(slot, n_quads(), B_TRANSPOSED);
        b_slice[at.x * (n_quads() + 1u) + at.y] = load_b(tile_n + at.y * 4u, k0 + at.x, end);
    }
}

// `sum` and the products of four rows with four columns; a column of the matrix for each row of C.
fn outer(sum: mat4x4<f32>, rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(rows.x), columns, sum[0]), fma(vec4(rows.y), columns, sum[1]),
        fma(vec4(rows.z), columns, sum[2]), fma(vec4(rows.w), columns, sum[3]));
}

fn store(m: u32, n: u32, part: u32, sum: f32) {
    let row = row_at(m, args.c_stride, args.c_row, args.c_run, args.c_skip);
    let at = args.c_first + part * args.part_apart + row + n;
    var value = sum;
    if args.accumulate == 1u {
        value += c[at];
    }
    if args.add_bias == 1u {
        value += bias[args.bias_first + n];
    }
    c[at] = value;
}

// Every thread's block, from row m and column n of C on. They go through workgroup memory, so that
// neighbouring threads write neighbouring columns.
fn store_blocks(m: u32, n: u32, part: u32, thread: u32, block: mat4x4<f32>) {
    let at = thread / N_THREADS * 4u * N_THREADS + thread % N_THREADS;
    blocks[at] = block[0];
    blocks[at + N_THREADS] = block[1];
    blocks[at + 2u * N_THREADS] = block[2];
    blocks[at + 3u * N_THREADS] = block[3];
    workgroupBarrier();
    let rows = min(4u * M_THREADS, args.m - min(m, args.m));
    for (var i = thread; i < rows * 4u * N_THREADS; i += M_THREADS * N_THREADS) {
        let column = i % (4u * N_THREADS);
        if n + column < args.n {
            store(m + i / (4u * N_THREADS), n + column, part, blocks[i / 4u][column % 4u]);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(M_THREADS * N_THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile_m = group.y * 4u * m_quads();
    let tile_n = group.x * 4u * n_quads();
    let m_thread = thread / N_THREADS;
    let n_thread = thread % N_THREADS;
    let first = group.z * args.k_part;
    let end = min(first + args.k_part, args.k);
    // Of the upper and the lower quad of rows, the left and the right quad of columns.
    var upper_left = mat4x4<f32>();
    var lower_left = mat4x4<f32>();
    var upper_right = mat4x4<f32>();
    var lower_right = mat4x4<f32>();
    for (var k0 = first; k0 < end; k0 += DEPTH) {
        stage(tile_m, tile_n, k0, end, thread);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let upper = a_slice[k * (m_quads() + 1u) + m_thread];
            let lower = a_slice[k * (m_quads() + 1u) + m_thread + M_THREADS];
            let left = b_slice[k * (n_quads() + 1u) + n_thread];
            upper_left = outer(upper_left, upper, left);
            lower_left = outer(lower_left, lower, left);
            if N_QUADS > 1u {
                let right = b_slice[k * (n_quads() + 1u) + n_thread + N_THREADS];
                upper_right = outer(upper_right, upper, right);
                lower_right = outer(lower_right, lower, right);
            }
        }
        workgroupBarrier();
    }
    store_blocks(tile_m, tile_n, group.z, thread, upper_left);
    store_blocks(tile_m + 4u * M_THREADS, tile_n, group.z, thread, lower_left);
    if N_QUADS > 1u {
        store_blocks(tile_m, tile_n + 4u * N_THREADS, group.z, thread, upper_right);
        store_blocks(tile_m + 4u * M_THREADS, tile_n + 4u * N_THREADS, group.z, thread, lower_right);
    }
}
