//! Conversion of other element types to f32.

/// Converts little-endian float16 to f32.
pub(super) fn widen_f16(bytes: &[u8]) -> Vec<f32> {
    arrays(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()
}

/// Converts little-endian bfloat16 to f32.
pub(super) fn widen_bf16(bytes: &[u8]) -> Vec<f32> {
    arrays(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()
}

/// Splits `bytes` into consecutive arrays of `N` bytes. Drops a shorter remainder.
pub(super) fn arrays<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("every chunk has N bytes"))
}
