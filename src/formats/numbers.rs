//! Numbers of other types as f32.

/// float16, little-endian.
pub(super) fn widen_f16(bytes: &[u8]) -> Vec<f32> {
    arrays(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()
}

/// bfloat16, little-endian.
pub(super) fn widen_bf16(bytes: &[u8]) -> Vec<f32> {
    arrays(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()
}

/// `bytes` in consecutive arrays of `N`. A remainder is left out.
pub(super) fn arrays<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("of N bytes"))
}
