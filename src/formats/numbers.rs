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

/// The element type of a tensor whose numbers can be read as f32.
#[cfg(any(feature = "pytorch", feature = "safetensors"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloatType {
    F32,
    F64,
    F16,
    Bf16,
}

#[cfg(any(feature = "pytorch", feature = "safetensors"))]
impl FloatType {
    /// Converts little-endian numbers of this type to f32: widens f16 and bf16, rounds f64.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => arrays(bytes).map(f32::from_le_bytes).collect(),
            Self::F64 => arrays(bytes).map(|b| f64::from_le_bytes(b) as f32).collect(),
            Self::F16 => widen_f16(bytes),
            Self::Bf16 => widen_bf16(bytes),
        }
    }
}
