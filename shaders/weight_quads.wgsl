// Recurrent weights whose rows start at whole vec4: H is a multiple of 4.

@group(0) @binding(1) var<storage, read> weight_hh: array<vec4<f32>>; // [D, 3H, H]

// Four consecutive weights of each of four rows, from index `first` on. All are rows of one gate,
// or after its last.
fn four_rows(first: u32, row: u32, last: u32, width: u32) -> mat4x4<f32> {
    let at = (first + row * width) / 4u;
    let apart = width / 4u;
    return mat4x4(
        weight_hh[at], weight_hh[at + apart],
        weight_hh[at + 2u * apart], weight_hh[at + 3u * apart]);
}

// Four weights of a row, from k on, of which some may be after its end: none, as H is a multiple
// of 4.
fn in_row(weights: vec4<f32>, k: u32, width: u32) -> vec4<f32> {
    return weights;
}
