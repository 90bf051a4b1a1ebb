// Products on a GPU with too few results for matmul_large: product.wgsl has the formula.
//
// A workgroup computes a tile of 8 · M_THREADS × 4 · N_QUADS · N_THREADS of C. It loops over k in
// slices of DEPTH, which it stages in workgroup memory, four rows of A or four columns of B to a
// vec4. A thread owns two quads of rows and N_QUADS quads of columns: with two of each, four vec4
// loads feed 64 multiply-adds.

override M_THREADS: u32 = 8u;
override N_THREADS: u32 = 8u;
override N_QUADS: u32 = 2u; // 1 or 2: quads of columns per thread
override DEPTH: u32 = 16u;

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;

// One more vec4 per k, so that the k of a quad are in different banks.
var<workgroup> a_slice: array<vec4<f32>, DEPTH * (2u * M_THREADS + 1u)>; // [DEPTH][quads + 1], four m each
var<workgroup> b_slice: array<vec4<f32>, DEPTH * (N_QUADS * N_THREADS + 1u)>; // [DEPTH][quads + 1], four n each

// The block of each thread: [4 · M_THREADS][N_THREADS].
var<workgroup> blocks: array<vec4<f32>, 4u * M_THREADS * N_THREADS>;

fn m_quads() -> u32 {
    return 2u * M_THREADS;
}

fn n_quads() -> u32 {
    return N_QUADS * N_THREADS;
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
    if args.a_transposed == 1u {
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
    if args.b_transposed == 1u {
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
        let at = slot_place(slot, m_quads(), args.a_transposed == 0u);
        a_slice[at.x * (m_quads() + 1u) + at.y] = load_a(tile_m + at.y * 4u, k0 + at.x, end);
    }
    for (var slot = thread; slot < n_quads() * DEPTH; slot += M_THREADS * N_THREADS) {
        let at = slot_place(slot, n_quads(), args.b_transposed == 1u);
        b_slice[at.x * (n_quads() + 1u) + at.y] = load_b(tile_n + at.y * 4u, k0 + at.x, end);
    }
}

// The sums of a thread for a quad of rows: one matrix per quad of columns, one column of it per
// row.
struct Band {
    q0: mat4x4<f32>,
    q1: mat4x4<f32>,
}

// Adds to `sum` the products of four rows with four columns.
fn outer(sum: mat4x4<f32>, rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(rows.x), columns, sum[0]), fma(vec4(rows.y), columns, sum[1]),
        fma(vec4(rows.z), columns, sum[2]), fma(vec4(rows.w), columns, sum[3]));
}

fn outer_band(sum: Band, rows: vec4<f32>, columns0: vec4<f32>, columns1: vec4<f32>) -> Band {
    var band = sum;
    band.q0 = outer(sum.q0, rows, columns0);
    if N_QUADS > 1u {
        band.q1 = outer(sum.q1, rows, columns1);
    }
    return band;
}

// Stores every thread's block, from row m and column n of C on. The blocks go through workgroup
// memory, so that neighbouring threads write neighbouring columns.
fn store_blocks(
    m: u32, n: u32, part: u32, thread: u32, block: mat4x4<f32>, first: bool,
) {
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
            store(m + i / (4u * N_THREADS), n + column, part, blocks[i / 4u][column % 4u], first);
        }
    }
    workgroupBarrier();
}

fn store_band(m: u32, n: u32, part: u32, thread: u32, band: Band, first: bool) {
    store_blocks(m, n, part, thread, band.q0, first);
    if N_QUADS > 1u {
        store_blocks(m, n + 4u * N_THREADS, part, thread, band.q1, first);
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
    for (var block = first; block < end; block += args.k_block) {
        var band0 = Band();
        var band1 = Band();
        let block_end = min(block + args.k_block, end);
        for (var k0 = block; k0 < block_end; k0 += DEPTH) {
            stage(tile_m, tile_n, k0, end, thread);
            workgroupBarrier();
            for (var k = 0u; k < DEPTH; k++) {
                let column = k * (n_quads() + 1u) + n_thread;
                let columns0 = b_slice[column];
                var columns1 = vec4<f32>();
                if N_QUADS > 1u {
                    columns1 = b_slice[column + N_THREADS];
                }
                let row = k * (m_quads() + 1u) + m_thread;
                band0 = outer_band(band0, a_slice[row], columns0, columns1);
                band1 = outer_band(band1, a_slice[row + M_THREADS], columns0, columns1);
            }
            workgroupBarrier();
        }
        let is_first = block == first;
        store_band(tile_m, tile_n, group.z, thread, band0, is_first);
        store_band(tile_m + 4u * M_THREADS, tile_n, group.z, thread, band1, is_first);
    }
}
