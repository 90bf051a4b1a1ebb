//! The buffers that a plan needs, and the ranges of them that dispatches bind.

use std::ops::Range;

use super::BINDING_ALIGNMENT;
use crate::spec::element::ElementType;

/// A buffer of a plan: an index into [`Plan::buffers`](super::Plan::buffers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub(crate) usize);

impl BufferId {
    /// Returns the buffer's index in [`Plan::buffers`](super::Plan::buffers).
    pub fn index(self) -> usize {
        self.0
    }
}

/// The purpose of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Written by the host before a run.
    Input,
    /// The model's parameters. All runs of a model share them, so the plan does not own the buffer.
    Parameters,
    /// Read by the host after a run.
    Output,
    /// Written before a run and read after it.
    InputOutput,
    /// Used only on the device.
    Scratch,
    /// Zero from the start, never written.
    Zeros,
}

/// A buffer that a plan needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BufferSpec {
    /// The buffer's name, which the shaders' comments use too.
    pub name: String,
    /// The axes as text: `[T, B, I]`.
    pub axes: String,
    /// The type of the elements.
    pub element: ElementType,
    /// The number of elements.
    pub len: usize,
    /// The purpose of the buffer.
    pub role: Role,
}

impl BufferSpec {
    /// Returns the size of the buffer in bytes.
    pub fn bytes(&self) -> u64 {
        self.element.bytes(self.len)
    }

    /// Returns the start and the length of a range of elements, in bytes.
    pub(crate) fn byte_range(&self, range: &Range<usize>) -> (u64, u64) {
        (self.element.bytes(range.start), self.element.bytes(range.len()))
    }
}

/// A range of a buffer that a dispatch binds. The range starts at a multiple of 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BufferSlice {
    /// The buffer.
    pub buffer: BufferId,
    /// The type of the elements.
    pub element: ElementType,
    /// The first bound element.
    pub first: usize,
    /// The number of bound elements.
    pub len: usize,
}

impl BufferSlice {
    /// Returns the slice's offset in the buffer, in bytes, a multiple of 256.
    pub fn offset(&self) -> u64 {
        self.element.bytes(self.first)
    }

    /// Returns the size of the slice in bytes.
    pub fn bytes(&self) -> u64 {
        self.element.bytes(self.len)
    }
}

/// The list of buffers while a plan is made.
#[derive(Default)]
pub(crate) struct BufferList {
    specs: Vec<BufferSpec>,
}

impl BufferList {
    pub fn add(
        &mut self,
        name: &str,
        axes: &str,
        element: ElementType,
        len: usize,
        role: Role,
    ) -> BufferId {
        let (name, axes) = (name.to_owned(), axes.to_owned());
        self.specs.push(BufferSpec { name, axes, element, len, role });
        BufferId(self.specs.len() - 1)
    }

    /// Returns the id of the next buffer.
    pub fn next_id(&self) -> BufferId {
        BufferId(self.specs.len())
    }

    /// Returns a slice of the whole buffer.
    pub fn whole(&self, buffer: BufferId) -> BufferSlice {
        self.slice(buffer, 0..self.specs[buffer.0].len)
    }

    /// Returns a slice of a range of elements.
    ///
    /// # Panics
    /// If it does not start at a multiple of [`BINDING_ALIGNMENT`] bytes.
    pub fn slice(&self, buffer: BufferId, range: Range<usize>) -> BufferSlice {
        let element = self.specs[buffer.0].element;
        let slice = BufferSlice { buffer, element, first: range.start, len: range.len() };
        assert!(
            slice.offset().is_multiple_of(BINDING_ALIGNMENT),
            "{} is bound from byte {}, which is not a multiple of {BINDING_ALIGNMENT}",
            self.specs[buffer.0].name,
            slice.offset(),
        );
        slice
    }

    pub fn specs(&self) -> &[BufferSpec] {
        &self.specs
    }

    pub fn into_specs(self) -> Vec<BufferSpec> {
        self.specs
    }
}
