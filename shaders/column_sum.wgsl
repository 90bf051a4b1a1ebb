// out[out_first + c] = (accumulate ? out[out_first + c] : 0) + Σ_row a[first + row · stride + c]
//
// With few columns and many rows, workgroups along z each take a part of the rows. Their sums are
// part_apart elements apart and are added up afterwards.
//
// `lanes` threads per column each take every lanes-th row, and their sums are combined in a tree. A
// rounding is as large as the sum that it rounds, so a thread adds up blocks of 8 rows, blocks of 8
// of these, and then those. The order of additions is fixed, so the same input gives the same bits.

const THREADS: u32 = 256u;

const BLOCK: u32 = 8u;

struct Args {
    rows: u32,
    rows_part: u32, // rows per workgroup
    columns: u32,
    first: u32,
    stride: u32,
    out_first: u32,
    part_apart: u32,
    accumulate: u32, // 1: adds to the contents of out
    lanes: u32, // a power of two
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> partial: array<f32, THREADS>; // [lanes][THREADS / lanes]

// The end of `count` rows from `row` on. Not a minimum: Mesa unrolls a loop that ends at one.
fn end_of(row: u32, count: u32, end: u32) -> u32 {
    return select(end, row + count, row + count < end);
}

// The sum of every lanes-th row from `first` to `end`, in blocks.
fn sum_blocks(first: u32, end: u32, column: u32) -> f32 {
    var sum = 0.0;
    for (var row0 = first; row0 < end; row0 += BLOCK * args.lanes) {
        let block_end = end_of(row0, BLOCK * args.lanes, end);
        var block = 0.0;
        for (var row = row0; row < block_end; row += args.lanes) {
            block += a[args.first + row * args.stride + column];
        }
        sum += block;
    }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lanes = args.lanes;
    let width = THREADS / lanes; // columns of the workgroup
    let lane = thread / width;
    let column = (group.y * groups.x + group.x) * width + thread % width;
    var sum = 0.0;
    if column < args.columns {
        let first = group.z * args.rows_part;
        let end = min(first + args.rows_part, args.rows);
        for (var row = first + lane; row < end; row += BLOCK * BLOCK * lanes) {
            sum += sum_blocks(row, end_of(row, BLOCK * BLOCK * lanes, end), column);
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[thread] += partial[thread + half * width];
        }
        workgroupBarrier();
    }
    if lane == 0u && column < args.columns {
        let at = args.out_first + group.z * args.part_apart + column;
        out[at] = select(0.0, out[at], args.accumulate == 1u) + partial[thread];
    }
}
