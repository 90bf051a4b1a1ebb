// Recurrent weights whose rows start anywhere.

@group(0) @binding(1) var<storage, read> weight_hh: array<f32>; // [D, 3H, H]

// Four consecutive weights. Those past the end have any value and are not used.
fn weights(at: u32) -> vec4<f32> {
    return vec4(weight_hh[at], weight_hh[at + 1u], weight_hh[at + 2u], weight_hh[at + 3u]);
}

// Four k of a row. After the end of a row come the weights of the next row, replaced by 0.
fn weights_in_row(at: u32, k: u32, hidden: u32) -> vec4<f32> {
    return select(vec4<f32>(), weights(at), vec4(k) + vec4(0u, 1u, 2u, 3u) < vec4(hidden));
}
