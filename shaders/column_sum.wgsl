// out[out_first + c] = (accumulate ? out[out_first + c] : 0) + Σ_row a[first + row · stride + c]
//
// With few columns and many rows, workgroups along z each take a part of the rows. Their sums are
// part_apart elements apart and are added up afterwards.
//
// A workgroup sums COLUMNS columns. LANES threads per column each take every LANES-th row, and
// their sums are combined in a tree. The order of additions is fixed, so the same input gives the
// same bits.

const COLUMNS: u32 = 16u;
const LANES: u32 = 16u;

struct Args {
    rows: u32,
    rows_part: u32, // rows per workgroup
    columns: u32,
    first: u32,
    stride: u32,
    out_first: u32,
    part_apart: u32,
    accumulate: u32, // 1: adds to the contents of out
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> partial: array<f32, COLUMNS * LANES>; // [LANES][COLUMNS]

@compute @workgroup_size(COLUMNS, LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let column = group.x * COLUMNS + local.x;
    var sum = 0.0;
    if column < args.columns {
        let first = group.z * args.rows_part;
        let end = min(first + args.rows_part, args.rows);
        for (var row = first + local.y; row < end; row += LANES) {
            sum += a[args.first + row * args.stride + column];
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if local.y < half {
            partial[thread] += partial[thread + half * COLUMNS];
        }
        workgroupBarrier();
    }
    if local.y == 0u && column < args.columns {
        let at = args.out_first + group.z * args.part_apart + column;
        out[at] = select(0.0, out[at], args.accumulate == 1u) + partial[thread];
    }
}
