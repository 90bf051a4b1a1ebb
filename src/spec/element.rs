//! [`ElementType`]: the type of a device buffer's elements.

use std::fmt;

/// The type of a device buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElementType {
    /// Single precision, 4 bytes.
    F32,
    /// Half precision, 2 bytes. No plan uses it yet.
    F16,
    /// Unsigned 32-bit integers: step flags, seeds, classes, kernel arguments.
    U32,
}

impl ElementType {
    /// Returns the size of one element in bytes.
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
        }
    }

    /// Returns the size of `len` elements in bytes.
    pub const fn bytes(self, len: usize) -> u64 {
        self.size() * len as u64
    }
}

impl fmt::Display for ElementType {
    /// Writes the type's name in WGSL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        })
    }
}

/// A host type with the same bytes as an element of a device buffer.
pub(crate) trait BufferElement: bytemuck::Pod + Send + Sync {
    const TYPE: ElementType;
}

impl BufferElement for f32 {
    const TYPE: ElementType = ElementType::F32;
}

impl BufferElement for u32 {
    const TYPE: ElementType = ElementType::U32;
}
