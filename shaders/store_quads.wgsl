// The results of matmul_large, whose rows start at whole vec4 and have whole vec4.

@group(0) @binding(4) var<storage, read_write> c: array<vec4<f32>>;

// Stores four results of a row that is inside C, from the first block of k, or adds those of a later
// block.
fn store_quad(m: u32, n: u32, part: u32, sums: vec4<f32>, first: bool) {
    if m < args.m && n < args.n {
        add_quad(c_position(m, part) + n, sums, first);
    }
}

// Stores the sums of four rows of A.
fn store_sums(m: u32, part: u32, sums: vec4<f32>, first: bool) {
    if m < args.m {
        add_quad(args.sums_first + part * args.part_apart + m, sums, first);
    }
}

fn add_quad(at: u32, sums: vec4<f32>, first: bool) {
    if args.accumulate == 1u || !first {
        c[at / 4u] += sums;
    } else {
        c[at / 4u] = sums;
    }
}
