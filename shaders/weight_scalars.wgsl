// Recurrent weights whose rows start anywhere.

@group(0) @binding(1) var<storage, read> weight_hh: array<f32>; // [D, 3H, H]

// Four consecutive weights of each of four rows, from index `first` on. A row after `last` is the
// last.
fn four_rows(first: u32, row: u32, last: u32, width: u32) -> mat4x4<f32> {
    return mat4x4(
        four_weights(first + min(row, last) * width),
        four_weights(first + min(row + 1u, last) * width),
        four_weights(first + min(row + 2u, last) * width),
        four_weights(first + min(row + 3u, last) * width));
}

fn four_weights(at: u32) -> vec4<f32> {
    return vec4(weight_hh[at], weight_hh[at + 1u], weight_hh[at + 2u], weight_hh[at + 3u]);
}

// Four weights of a row, from k on. After the end of a row come the weights of the next row,
// replaced by 0.
fn in_row(weights: vec4<f32>, k: u32, width: u32) -> vec4<f32> {
    return select(vec4<f32>(), weights, vec4(k) + vec4(0u, 1u, 2u, 3u) < vec4(width));
}
