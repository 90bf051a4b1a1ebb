// The results of matmul and matmul_blocks, stored one by one.

@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// Stores the sum of one element of C over the first block of k, or adds that of a later block.
fn store(m: u32, n: u32, part: u32, sum: f32, first: bool) {
    let at = c_position(m, part) + n;
    var value = sum;
    if args.accumulate == 1u || !first {
        value += c[at];
    }
    if args.add_bias == 1u && first {
        value += bias[args.bias_first + n];
    }
    c[at] = value;
}
