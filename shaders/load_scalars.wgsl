// matmul_blocks over operands whose rows start anywhere.

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;

fn load_a(at: u32) -> vec4<f32> {
    return vec4(a[at], a[at + 1u], a[at + 2u], a[at + 3u]);
}

fn load_b(at: u32) -> vec4<f32> {
    return vec4(b[at], b[at + 1u], b[at + 2u], b[at + 3u]);
}
