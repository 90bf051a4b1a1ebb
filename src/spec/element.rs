//! [`ElementType`]: what the elements of a buffer are.

use std::fmt;

/// What the elements of a buffer on the device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElementType {
    /// Single precision.
    F32,
    /// Half precision. No plan asks for it yet.
    F16,
    /// Flags, seeds, classes, arguments.
    U32,
}

impl ElementType {
    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
        }
    }

    /// Bytes of `len` elements.
    pub const fn bytes(self, len: usize) -> u64 {
        self.size() * len as u64
    }
}

impl fmt::Display for ElementType {
    /// As WGSL calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        })
    }
}

/// A number of the host that is an element of a buffer as it is.
pub(crate) trait BufferElement: bytemuck::Pod {
    const TYPE: ElementType;
}

impl BufferElement for f32 {
    const TYPE: ElementType = ElementType::F32;
}

impl BufferElement for u32 {
    const TYPE: ElementType = ElementType::U32;
}
