// C[m, n] = (accumulate ? C : 0) + Σ_k A(m, k) · B(k, n) (+ bias[bias_first + n])
//
// One kernel for every large product. Each operand is a rectangle inside a row-major buffer, given
// by the index of its first element and the distance between rows.
//
//   A(m, k)   A_TRANSPOSED ? a[a_first + k · a_stride + m] : a[a_first + m · a_stride + k]
//   B(k, n)   B_TRANSPOSED ? b[b_first + n · b_stride + k] : b[b_first + k · b_stride + n]
//   C[m, n]   c[c_first + m · c_stride + n]
//
// With RUNS the rows of these rectangles are grouped in runs: `run` rows per run, and `skip`
// elements from one run to the next. Example: some steps of every row of a batch-first sequence.
//
// A workgroup computes a tile of 4 · M_QUADS · M_THREADS × 4 · N_QUADS · N_THREADS of C. It loops
// over k in slices of DEPTH, which it stages in workgroup memory, four rows of A or four columns of
// B to a vec4. A thread owns M_QUADS quads of rows and N_QUADS quads of columns: with two of each,
// four vec4 loads feed 64 multiply-adds.
//
// Without STAGED each thread loads from the buffers, with a DEPTH of 1: for adapters whose
// workgroup memory is not faster than any other.
//
// If C has few tiles and k is long, workgroups along z each take a part of k. Their results are
// part_apart elements apart and are added up afterwards.

override A_TRANSPOSED: bool = false;
override B_TRANSPOSED: bool = false;
override RUNS: bool = false;
override M_THREADS: u32 = 8u;
override N_THREADS: u32 = 8u;
override M_QUADS: u32 = 2u; // 2 or 4: quads of rows per thread
override N_QUADS: u32 = 2u; // 1, 2 or 4: quads of columns per thread
override DEPTH: u32 = 16u;
override STAGED: bool = true;

struct Args {
    m: u32,
    n: u32,
    k: u32,
    k_part: u32, // k per workgroup
    a_first: u32,
    a_stride: u32,
    a_row: u32, // row of the first run at a_first
    a_run: u32, // rows per run
    a_skip: u32, // elements from one run to the next
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
    add_bias: u32, // 1: adds bias[bias_first + n]
    accumulate: u32, // 1: adds to the contents of C
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // not read if add_bias is 0
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// One more vec4 per k, so that the k of a quad are in different banks.
var<workgroup> a_slice: array<vec4<f32>, DEPTH * (M_QUADS * M_THREADS + 1u)>; // [DEPTH][quads + 1], four m each
var<workgroup> b_slice: array<vec4<f32>, DEPTH * (N_QUADS * N_THREADS + 1u)>; // [DEPTH][quads + 1], four n each

// The block of each thread: [4 · M_THREADS][N_THREADS].
var<workgroup> blocks: array<vec4<f32>, 4u * M_THREADS * N_THREADS>;

fn m_quads() -> u32 {
    return M_QUADS * M_THREADS;
}

fn n_quads() -> u32 {
    return N_QUADS * N_THREADS;
}

// The start of the row that is `row` rows after `offset` in the first run.
fn row_at(row: u32, stride: u32, offset: u32, run: u32, skip: u32) -> u32 {
    if !RUNS {
        return row * stride;
    }
    let whole = row + offset;
    return whole / run * skip + whole % run * stride;
}

// The starts of rows `row` to `row` + 3, or of the last of `rows` if they end before.
fn rows_at(row: u32, rows: u32, stride: u32, offset: u32, run: u32, skip: u32) -> vec4<u32> {
    let four = vec4(0u, 1u, 2u, 3u);
    if !RUNS {
        return min(vec4(row * stride) + four * stride, vec4((rows - 1u) * stride));
    }
    let whole = min(vec4(row) + four, vec4(rows - 1u)) + offset;
    return whole / run * skip + whole % run * stride;
}

// Four m or n, from `quad` on, at one k below `k_end`: in memory four rows' elements in a column,
// or four elements of a row. Outside C they have any value and their products are not stored;
// beyond the end of k they are 0.
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

// Neighbouring threads must read neighbouring addresses. So in an operand whose rows run along k
// they take neighbouring k, in the other operand neighbouring quads. Returns (k, quad).
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

// Four rows of A: quad `quad` of the tile, at `k` of the slice that starts at `k0`.
fn rows_at_k(tile_m: u32, quad: u32, k0: u32, k: u32, end: u32) -> vec4<f32> {
    if STAGED {
        return a_slice[k * (m_quads() + 1u) + quad];
    }
    return load_a(tile_m + 4u * quad, k0 + k, end);
}

// Four columns of B.
fn columns_at_k(tile_n: u32, quad: u32, k0: u32, k: u32, end: u32) -> vec4<f32> {
    if STAGED {
        return b_slice[k * (n_quads() + 1u) + quad];
    }
    return load_b(tile_n + 4u * quad, k0 + k, end);
}

// One k of a thread's columns, one quad each.
struct Columns {
    q0: vec4<f32>,
    q1: vec4<f32>,
    q2: vec4<f32>,
    q3: vec4<f32>,
}

// The sums of a thread for a quad of rows: one matrix per quad of columns, one column of it per
// row.
struct Band {
    q0: mat4x4<f32>,
    q1: mat4x4<f32>,
    q2: mat4x4<f32>,
    q3: mat4x4<f32>,
}

// Adds to `sum` the products of four rows with four columns.
fn outer(sum: mat4x4<f32>, rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(rows.x), columns, sum[0]), fma(vec4(rows.y), columns, sum[1]),
        fma(vec4(rows.z), columns, sum[2]), fma(vec4(rows.w), columns, sum[3]));
}

fn outer_band(sum: Band, rows: vec4<f32>, columns: Columns) -> Band {
    var band = sum;
    band.q0 = outer(sum.q0, rows, columns.q0);
    if N_QUADS > 1u {
        band.q1 = outer(sum.q1, rows, columns.q1);
    }
    if N_QUADS > 2u {
        band.q2 = outer(sum.q2, rows, columns.q2);
        band.q3 = outer(sum.q3, rows, columns.q3);
    }
    return band;
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

// Stores every thread's block, from row m and column n of C on. The blocks go through workgroup
// memory, so that neighbouring threads write neighbouring columns.
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

fn store_band(m: u32, n: u32, part: u32, thread: u32, band: Band) {
    store_blocks(m, n, part, thread, band.q0);
    if N_QUADS > 1u {
        store_blocks(m, n + 4u * N_THREADS, part, thread, band.q1);
    }
    if N_QUADS > 2u {
        store_blocks(m, n + 8u * N_THREADS, part, thread, band.q2);
        store_blocks(m, n + 12u * N_THREADS, part, thread, band.q3);
    }
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
    var band0 = Band();
    var band1 = Band();
    var band2 = Band();
    var band3 = Band();
    for (var k0 = first; k0 < end; k0 += DEPTH) {
        if STAGED {
            stage(tile_m, tile_n, k0, end, thread);
            workgroupBarrier();
        }
        for (var k = 0u; k < DEPTH; k++) {
            var columns = Columns();
            columns.q0 = columns_at_k(tile_n, n_thread, k0, k, end);
            if N_QUADS > 1u {
                columns.q1 = columns_at_k(tile_n, n_thread + N_THREADS, k0, k, end);
            }
            if N_QUADS > 2u {
                columns.q2 = columns_at_k(tile_n, n_thread + 2u * N_THREADS, k0, k, end);
                columns.q3 = columns_at_k(tile_n, n_thread + 3u * N_THREADS, k0, k, end);
            }
            band0 = outer_band(band0, rows_at_k(tile_m, m_thread, k0, k, end), columns);
            band1 = outer_band(band1, rows_at_k(tile_m, m_thread + M_THREADS, k0, k, end), columns);
            if M_QUADS > 2u {
                band2 = outer_band(band2, rows_at_k(tile_m, m_thread + 2u * M_THREADS, k0, k, end), columns);
                band3 = outer_band(band3, rows_at_k(tile_m, m_thread + 3u * M_THREADS, k0, k, end), columns);
            }
        }
        if STAGED {
            workgroupBarrier();
        }
    }
    store_band(tile_m, tile_n, group.z, thread, band0);
    store_band(tile_m + 4u * M_THREADS, tile_n, group.z, thread, band1);
    if M_QUADS > 2u {
        store_band(tile_m + 8u * M_THREADS, tile_n, group.z, thread, band2);
        store_band(tile_m + 12u * M_THREADS, tile_n, group.z, thread, band3);
    }
}
