// Recurrent weights whose rows start at whole vec4: H is a multiple of 4.

@group(0) @binding(1) var<storage, read> weight_hh: array<vec4<f32>>; // [D, 3H, H]

// Four consecutive weights.
fn weights(at: u32) -> vec4<f32> {
    return weight_hh[at / 4u];
}

// Four k of a row, of which some may be after its end: none, as H is a multiple of 4.
fn weights_in_row(at: u32, k: u32, hidden: u32) -> vec4<f32> {
    return weights(at);
}
