// The results of matmul_large, whose rows start and end anywhere.

@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// Stores four results of a row, those inside C.
fn store_quad(m: u32, n: u32, part: u32, sums: vec4<f32>) {
    if m < args.m {
        add_inside(c_position(m, part) + n, n, args.n, sums);
    }
}

// Stores the sums of four rows of A, those inside C.
fn store_sums(m: u32, part: u32, sums: vec4<f32>) {
    add_inside(args.sums_first + part * args.part_apart + m, m, args.m, sums);
}

// Stores four numbers, those below `end`.
fn add_inside(at: u32, first: u32, end: u32, sums: vec4<f32>) {
    if first < end {
        add_one(at, sums.x);
    }
    if first + 1u < end {
        add_one(at + 1u, sums.y);
    }
    if first + 2u < end {
        add_one(at + 2u, sums.z);
    }
    if first + 3u < end {
        add_one(at + 3u, sums.w);
    }
}

fn add_one(at: u32, sum: f32) {
    if args.accumulate == 1u {
        c[at] += sum;
    } else {
        c[at] = sum;
    }
}
