// Large products on a GPU: product.wgsl has the formula.
//
// A workgroup computes a tile of 128 × 128 of C, a thread four blocks of 4 × 4. It loops over k in
// slices of eight. Workgroup memory holds two slices: the threads multiply one while they load the
// next, with one barrier per slice. Four vec4 loads from workgroup memory feed 64 multiply-adds.
//
// The eight k of a slice are written out, so that all but two indices are constants and the
// compiler sees 512 multiply-adds in a row. naga limits each dynamic index, but the same two for
// every load. Rows and columns outside C are loaded from any place and never stored, so only the
// end of k needs a check.

const TILE: u32 = 128u;
const DEPTH: u32 = 8u;

// Rows or columns of a slice, four to a vec4: [buffer][k / 4][k % 4][half][16]. From k 4 on the
// quads of a half are permuted, by `^ 4`, so that the stores of a transposed operand are in
// different banks.
var<workgroup> a_slices: array<array<array<array<array<vec4<f32>, 16>, 2>, 4>, 2>, 2>;
var<workgroup> b_slices: array<array<array<array<array<vec4<f32>, 16>, 2>, 4>, 2>, 2>;

// What a thread loads from an operand for each slice: four k of one row or column of C, if these
// are next to each other in memory, or four rows or columns of C at one k.
struct LoadSlot {
    along_k: bool,
    k: u32, // in the slice
    side: u32, // row or column in the tile
}

// Neighbouring threads load neighbouring addresses.
fn load_slot(thread: u32, along_k: bool) -> LoadSlot {
    if along_k {
        return LoadSlot(true, 4u * (thread % 2u), thread / 2u);
    }
    return LoadSlot(false, thread / 32u, 4u * (thread % 32u));
}

// The position of a place's quad in its half of the tile.
fn quad_of(at: LoadSlot) -> u32 {
    return (at.side / 4u % 16u) ^ (at.k & 4u);
}

// The position in memory of element (row m, k) of A.
fn a_position(m: u32, k: u32) -> u32 {
    if args.a_transposed == 0u {
        return args.a_first + row_at(m, args.a_stride, args.a_row, args.a_run, args.a_skip) + k;
    }
    return args.a_first + row_at(k, args.a_stride, args.a_row, args.a_run, args.a_skip)
        + m + select(0u, args.a_gap, m >= args.a_gap_at);
}

fn b_position(n: u32, k: u32) -> u32 {
    if args.b_transposed == 1u {
        return args.b_first + row_at(n, args.b_stride, args.b_row, args.b_run, args.b_skip) + k;
    }
    return args.b_first + row_at(k, args.b_stride, args.b_row, args.b_run, args.b_skip) + n;
}

// Replaces what belongs to k from the end on by 0. Both operands need it: 0 · NaN is NaN.
fn before_end(quad: vec4<f32>, along_k: bool, k: u32, end: u32) -> vec4<f32> {
    let ks = vec4(k) + select(vec4(0u), vec4(0u, 1u, 2u, 3u), along_k);
    return select(vec4<f32>(), quad, ks < vec4(end));
}

fn put_a(buffer: u32, at: LoadSlot, quad: vec4<f32>) {
    let half = at.side / 64u;
    let to = quad_of(at);
    if at.along_k {
        let of_quad = at.side % 4u;
        a_slices[buffer][at.k / 4u][0][half][to][of_quad] = quad.x;
        a_slices[buffer][at.k / 4u][1][half][to][of_quad] = quad.y;
        a_slices[buffer][at.k / 4u][2][half][to][of_quad] = quad.z;
        a_slices[buffer][at.k / 4u][3][half][to][of_quad] = quad.w;
    } else {
        a_slices[buffer][at.k / 4u][at.k % 4u][half][to] = quad;
    }
}

fn put_b(buffer: u32, at: LoadSlot, quad: vec4<f32>) {
    let half = at.side / 64u;
    let to = quad_of(at);
    if at.along_k {
        let of_quad = at.side % 4u;
        b_slices[buffer][at.k / 4u][0][half][to][of_quad] = quad.x;
        b_slices[buffer][at.k / 4u][1][half][to][of_quad] = quad.y;
        b_slices[buffer][at.k / 4u][2][half][to][of_quad] = quad.z;
        b_slices[buffer][at.k / 4u][3][half][to][of_quad] = quad.w;
    } else {
        b_slices[buffer][at.k / 4u][at.k % 4u][half][to] = quad;
    }
}

// A thread's sums: rows from both halves of the tile by columns from both halves, one row of C in
// each column of a matrix.
struct Sums {
    s00: mat4x4<f32>,
    s01: mat4x4<f32>,
    s10: mat4x4<f32>,
    s11: mat4x4<f32>,
}

fn outer(sum: mat4x4<f32>, rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(rows.x), columns, sum[0]), fma(vec4(rows.y), columns, sum[1]),
        fma(vec4(rows.z), columns, sum[2]), fma(vec4(rows.w), columns, sum[3]));
}

// The threads' k-th slice element: two quads of rows times two quads of columns.
fn multiply(sums: Sums, a0: vec4<f32>, a1: vec4<f32>, b0: vec4<f32>, b1: vec4<f32>) -> Sums {
    return Sums(
        outer(sums.s00, a0, b0), outer(sums.s01, a0, b1),
        outer(sums.s10, a1, b0), outer(sums.s11, a1, b1));
}

// The biases of four columns for each of four rows. Sums start with them, so that no more registers
// are needed at the end.
fn biases(n: u32) -> mat4x4<f32> {
    if args.add_bias == 0u {
        return mat4x4<f32>();
    }
    let at = args.bias_first + n;
    let quad = vec4(bias[at], bias[at + 1u], bias[at + 2u], bias[at + 3u]);
    return mat4x4(quad, quad, quad, quad);
}

fn store_rows(m: u32, n: u32, part: u32, block: mat4x4<f32>, first: bool) {
    store_quad(m, n, part, block[0], first);
    store_quad(m + 1u, n, part, block[1], first);
    store_quad(m + 2u, n, part, block[2], first);
    store_quad(m + 3u, n, part, block[3], first);
}

// Stores a thread's sums over the first block of k, or adds those of a later block.
fn store_tile(m: u32, n: u32, part: u32, sums: Sums, first: bool) {
    store_rows(m, n, part, sums.s00, first);
    store_rows(m, n + 64u, part, sums.s01, first);
    store_rows(m + 64u, n, part, sums.s10, first);
    store_rows(m + 64u, n + 64u, part, sums.s11, first);
}

// Stores Σ_k A(m, k) of the tile's rows, from the sums of the threads for each k of a slice, by way
// of a buffer whose slice has been multiplied.
fn store_row_sums(
    tile_m: u32, part: u32, thread: u32, buffer: u32, at: LoadSlot, sums: vec4<f32>, first: bool,
) {
    put_a(buffer, at, sums);
    workgroupBarrier();
    if thread < 32u {
        let half = thread / 16u;
        let low = thread % 16u;
        let high = low ^ 4u;
        let sum = (a_slices[buffer][0][0][half][low] + a_slices[buffer][0][1][half][low])
            + (a_slices[buffer][0][2][half][low] + a_slices[buffer][0][3][half][low])
            + ((a_slices[buffer][1][0][half][high] + a_slices[buffer][1][1][half][high])
            + (a_slices[buffer][1][2][half][high] + a_slices[buffer][1][3][half][high]));
        store_sums(tile_m + 4u * thread, part, sum, first);
    }
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile_m = group.y * TILE;
    let tile_n = group.x * TILE;
    let first = group.z * args.k_part;
    let end = min(first + args.k_part, args.k);
    let a_place = load_slot(thread, args.a_transposed == 0u);
    let b_place = load_slot(thread, args.b_transposed == 1u);
    let m_quad = thread / 16u;
    let n_quad = thread % 16u;
    let m_high = m_quad ^ 4u;
    let n_high = n_quad ^ 4u;
    let m = tile_m + 4u * m_quad;
    let n = tile_n + 4u * n_quad;
    var sums = Sums(biases(n), biases(n + 64u), biases(n), biases(n + 64u));
    var buffer = 0u;
    var a_at = a_position(tile_m + a_place.side, first + a_place.k);
    var b_at = b_position(tile_n + b_place.side, first + b_place.k);
    let a_step = DEPTH * select(args.a_stride, 1u, a_place.along_k);
    let b_step = DEPTH * select(args.b_stride, 1u, b_place.along_k);
    var a_next = load_a(a_at);
    var b_next = load_b(b_at);
    if first + DEPTH > end {
        a_next = before_end(a_next, a_place.along_k, first + a_place.k, end);
        b_next = before_end(b_next, b_place.along_k, first + b_place.k, end);
    }
    put_a(0u, a_place, a_next);
    put_b(0u, b_place, b_next);
    var row_sums = a_next;
    workgroupBarrier();
    for (var block = first; block < end; block += args.k_block) {
        let block_end = min(block + args.k_block, end);
        for (var k0 = block; k0 < block_end; k0 += DEPTH) {
            let next = k0 + DEPTH;
            a_at += a_step;
            b_at += b_step;
            if RUNS && !a_place.along_k {
                a_at = a_position(tile_m + a_place.side, next + a_place.k);
            }
            if RUNS && !b_place.along_k {
                b_at = b_position(tile_n + b_place.side, next + b_place.k);
            }
            a_next = load_a(a_at);
            b_next = load_b(b_at);
            sums = multiply(sums,
                a_slices[buffer][0][0][0][m_quad], a_slices[buffer][0][0][1][m_quad],
                b_slices[buffer][0][0][0][n_quad], b_slices[buffer][0][0][1][n_quad]);
            sums = multiply(sums,
                a_slices[buffer][0][1][0][m_quad], a_slices[buffer][0][1][1][m_quad],
                b_slices[buffer][0][1][0][n_quad], b_slices[buffer][0][1][1][n_quad]);
            sums = multiply(sums,
                a_slices[buffer][0][2][0][m_quad], a_slices[buffer][0][2][1][m_quad],
                b_slices[buffer][0][2][0][n_quad], b_slices[buffer][0][2][1][n_quad]);
            sums = multiply(sums,
                a_slices[buffer][0][3][0][m_quad], a_slices[buffer][0][3][1][m_quad],
                b_slices[buffer][0][3][0][n_quad], b_slices[buffer][0][3][1][n_quad]);
            sums = multiply(sums,
                a_slices[buffer][1][0][0][m_high], a_slices[buffer][1][0][1][m_high],
                b_slices[buffer][1][0][0][n_high], b_slices[buffer][1][0][1][n_high]);
            sums = multiply(sums,
                a_slices[buffer][1][1][0][m_high], a_slices[buffer][1][1][1][m_high],
                b_slices[buffer][1][1][0][n_high], b_slices[buffer][1][1][1][n_high]);
            sums = multiply(sums,
                a_slices[buffer][1][2][0][m_high], a_slices[buffer][1][2][1][m_high],
                b_slices[buffer][1][2][0][n_high], b_slices[buffer][1][2][1][n_high]);
            sums = multiply(sums,
                a_slices[buffer][1][3][0][m_high], a_slices[buffer][1][3][1][m_high],
                b_slices[buffer][1][3][0][n_high], b_slices[buffer][1][3][1][n_high]);
            if next + DEPTH > end {
                a_next = before_end(a_next, a_place.along_k, next + a_place.k, end);
                b_next = before_end(b_next, b_place.along_k, next + b_place.k, end);
            }
            row_sums += a_next;
            buffer = 1u - buffer;
            put_a(buffer, a_place, a_next);
            put_b(buffer, b_place, b_next);
            workgroupBarrier();
        }
        zero = block >> 31u; // no k is so large
        store_tile(m + zero, n + zero, group.z + zero, sums, block == first);
        sums = Sums();
        if args.row_sums == 1u && group.x == 0u {
            store_row_sums(
                tile_m + zero, group.z, thread + zero, 1u - buffer, a_place, row_sums,
                block == first);
            row_sums = vec4<f32>();
        }
    }
}
