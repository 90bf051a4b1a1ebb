// Products for software adapters: product.wgsl has the formula.
//
// A software adapter runs the threads of a workgroup in SIMD lanes, one workgroup to a core. A load
// costs as much as several multiplications, from workgroup memory as from any buffer, and the
// driver's compiler takes time for each load that it sees. So a thread keeps 4 × 4 or 8 × 8 results
// in registers, and at four k multiplies one or two 4 × 4 blocks of each operand. Loading a block
// takes four loads of a vec4, or sixteen loads if rows do not start at whole vec4 (load_quads.wgsl,
// load_scalars.wgsl). 8 × 8 results take half the loads, and twice the time to compile. Workgroup
// memory is not used.
//
// A long sum is added up in blocks: the products of four k, these for BLOCK k in registers, and the
// blocks in a private array. A rounding is as large as the sum that it rounds, so this is more
// exact than one chain. Where fma rounds twice, as on these adapters, it takes no more operations.
//
// A workgroup's threads lie in rows of n_threads. Nothing else depends on the product's shape, so
// that all products of a run share one pipeline.

override SIDE: u32 = 8u; // 4 or 8: rows and columns of C per thread

const THREADS: u32 = 16u;

const BLOCK: u32 = 64u; // k

// The start of four consecutive rows in memory, from `row` on.
fn rows_at(row: u32, stride: u32, offset: u32, run: u32, skip: u32) -> vec4<u32> {
    return vec4(
        row_at(row, stride, offset, run, skip), row_at(row + 1u, stride, offset, run, skip),
        row_at(row + 2u, stride, offset, run, skip), row_at(row + 3u, stride, offset, run, skip));
}

// Four k of four rows of A, or of four columns of B, from row or column `i` on: each is a column of
// the matrix. Those after the last have any value: their products are not stored. From the end of k
// on it is 0. `is_b` is a constant of the call, so that the compiler sees one operand.
fn block(is_b: bool, i: u32, k: u32, end: u32) -> mat4x4<f32> {
    let along_k = select(args.a_transposed == 0u, args.b_transposed == 1u, is_b);
    let rows = rows_at(
        select(k, i, along_k), select(args.a_stride, args.b_stride, is_b),
        select(args.a_row, args.b_row, is_b), select(args.a_run, args.b_run, is_b),
        select(args.a_skip, args.b_skip, is_b))
        + select(args.a_first, args.b_first, is_b) + select(i, k, along_k);
    let loaded = mat4x4(
        load(is_b, rows.x), load(is_b, rows.y), load(is_b, rows.z), load(is_b, rows.w));
    if along_k {
        return before_end(loaded, k, end);
    }
    return before_end(transpose(loaded), k, end);
}

fn load(is_b: bool, at: u32) -> vec4<f32> {
    if is_b {
        return load_b(at);
    }
    return load_a(at);
}

// Replaces what belongs to k from the end on by 0, in a block of four k to a column. Both operands
// need it: 0 · NaN is NaN.
fn before_end(block: mat4x4<f32>, k: u32, end: u32) -> mat4x4<f32> {
    let inside = vec4(k) + vec4(0u, 1u, 2u, 3u) < vec4(end);
    return mat4x4(
        select(vec4<f32>(), block[0], inside), select(vec4<f32>(), block[1], inside),
        select(vec4<f32>(), block[2], inside), select(vec4<f32>(), block[3], inside));
}

// sum + a · b
fn multiplied(sum: mat4x4<f32>, a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4(
        multiplied_row(sum[0], a[0], b), multiplied_row(sum[1], a[1], b),
        multiplied_row(sum[2], a[2], b), multiplied_row(sum[3], a[3], b));
}

fn multiplied_row(sum: vec4<f32>, a: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
    return sum
        + fma(vec4(a.w), b[3], fma(vec4(a.z), b[2], fma(vec4(a.y), b[1], vec4(a.x) * b[0])));
}

// A thread's sums, four columns of C to a vec4: [8][2].
var<private> sums: array<vec4<f32>, 16>;

// Adds up the sums of four rows, from `row` on, and of the first or second four columns.
fn add_sums(row: u32, quad: u32, block: mat4x4<f32>) {
    let at = 2u * row + quad;
    sums[at] += block[0];
    sums[at + 2u] += block[1];
    sums[at + 4u] += block[2];
    sums[at + 6u] += block[3];
}

// The end of `count` numbers from `first` on, which is at most `all`. Not a minimum: Mesa unrolls a
// loop that ends at a constant or at a minimum with one.
fn end_of(first: u32, count: u32, all: u32) -> u32 {
    return select(all, first + count, first + count < all);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let m = (group.y * (THREADS / args.n_threads) + thread / args.n_threads) * SIDE;
    let n = (group.x * args.n_threads + thread % args.n_threads) * SIDE;
    let first = group.z * args.k_part;
    let end = min(first + args.k_part, args.k);
    for (var k0 = first; k0 < end; k0 += BLOCK) {
        var sum00 = mat4x4<f32>();
        var sum01 = mat4x4<f32>();
        var sum10 = mat4x4<f32>();
        var sum11 = mat4x4<f32>();
        let block_end = end_of(k0, BLOCK, end);
        for (var k = k0; k < block_end; k += 4u) {
            let a0 = block(false, m, k, end);
            let b0 = transpose(block(true, n, k, end));
            sum00 = multiplied(sum00, a0, b0);
            if SIDE > 4u {
                let a1 = block(false, m + 4u, k, end);
                sum10 = multiplied(sum10, a1, b0);
                let b1 = transpose(block(true, n + 4u, k, end));
                sum01 = multiplied(sum01, a0, b1);
                sum11 = multiplied(sum11, a1, b1);
            }
        }
        add_sums(0u, 0u, sum00);
        if SIDE > 4u {
            add_sums(0u, 1u, sum01);
            add_sums(4u, 0u, sum10);
            add_sums(4u, 1u, sum11);
        }
    }
    // The compiler sees one store.
    for (var row = m; row < end_of(m, SIDE, args.m); row++) {
        for (var column = n; column < end_of(n, SIDE, args.n); column++) {
            let four = sums[2u * (row - m) + (column - n) / 4u];
            store(row, column, group.z, four[(column - n) % 4u], true);
        }
    }
}
