// The results of matmul_large, whose rows start and end anywhere.

@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// Stores four results of a row, those inside C, from the first block of k, or adds those of a later
// block.
fn store_quad(m: u32, n: u32, part: u32, sums: vec4<f32>, first: bool) {
    if m < args.m {
        add_inside(c_position(m, part) + n, n, args.n, sums, first);
    }
}

// Stores the sums of four rows of A, those inside C.
fn store_sums(m: u32, part: u32, sums: vec4<f32>, first: bool) {
    add_inside(args.sums_first + part * args.part_apart + m, m, args.m, sums, first);
}

// Stores four numbers, those below `end`.
fn add_inside(at: u32, index: u32, end: u32, sums: vec4<f32>, first: bool) {
    if index < end {
        add_one(at, sums.x, first);
    }
    if index + 1u < end {
        add_one(at + 1u, sums.y, first);
    }
    if index + 2u < end {
        add_one(at + 2u, sums.z, first);
    }
    if index + 3u < end {
        add_one(at + 3u, sums.w, first);
    }
}

fn add_one(at: u32, sum: f32, first: bool) {
    if args.accumulate == 1u || !first {
        c[at] += sum;
    } else {
        c[at] = sum;
    }
}
