// matmul_blocks over operands whose rows start at whole vec4.

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;

fn load_a(at: u32) -> vec4<f32> {
    return a[at / 4u];
}

fn load_b(at: u32) -> vec4<f32> {
    return b[at / 4u];
}
