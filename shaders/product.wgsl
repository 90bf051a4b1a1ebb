// Shared by the kernels of products: their arguments, and the positions of rows in memory.
//
//   C[m, n] = (accumulate ? C : 0) + Σ_k A(m, k) · B(k, n) (+ bias[bias_first + n])
//
//   A(m, k)   a_transposed ? a[a_first + k · a_stride + m] : a[a_first + m · a_stride + k]
//   B(k, n)   b_transposed ? b[b_first + n · b_stride + k] : b[b_first + k · b_stride + n]
//   C[m, n]   c[c_first + m · c_stride + n]
//
// Each operand is a rectangle inside a row-major buffer, given by the index of its first element and
// the distance between rows. With RUNS the rows of these rectangles are grouped in runs: `run` rows
// per run, and `skip` elements from one run to the next. Example: some steps of every row of a
// batch-first sequence.
//
// If C has few tiles and k is long, workgroups along z each take a part of k. Their results are
// part_apart elements apart and are added up afterwards.
//
// A rounding is as large as the sum that it rounds, so a long chain of additions is inexact. On a
// GPU a workgroup adds to C, or to its partial result, after every k_block, and starts from 0
// again: registers have no room for a second sum.

override RUNS: bool = false;

struct Args {
    m: u32,
    n: u32,
    k: u32,
    k_part: u32, // k per workgroup
    k_block: u32, // matmul, matmul_large: k after which sums are added to C, in whole slices
    a_transposed: u32, // 1: A's rows in memory are its columns
    a_first: u32,
    a_stride: u32,
    a_row: u32, // row of the first run at a_first
    a_run: u32, // rows per run
    a_skip: u32, // elements from one run to the next
    b_transposed: u32,
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
    n_threads: u32, // matmul_blocks: threads of a workgroup along n
    // Only in matmul_large, for a transposed A:
    a_gap_at: u32, // from this row of A on …
    a_gap: u32, // … its elements are so many further
    row_sums: u32, // 1: also stores Σ_k A(m, k) …
    sums_first: u32, // … from here in c
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // not read if add_bias is 0

// The start of the row that is `row` rows after `offset` in the first run.
fn row_at(row: u32, stride: u32, offset: u32, run: u32, skip: u32) -> u32 {
    if !RUNS {
        return row * stride;
    }
    let whole = row + offset;
    return whole / run * skip + whole % run * stride;
}

// 0, unknown to compilers. A loop that stores has it depend on the loop: otherwise they compute all
// positions before the loop, and keep them in registers that the sums need.
var<private> zero: u32;

// The start of row m of C, or of a partial result.
fn c_position(m: u32, part: u32) -> u32 {
    return args.c_first + part * args.part_apart
        + row_at(m, args.c_stride + zero, args.c_row, args.c_run, args.c_skip);
}
