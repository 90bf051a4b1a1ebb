//! The buffers that a plan asks for, and the parts of them that dispatches bind.

use std::ops::Range;

use super::BINDING_ALIGNMENT;
use crate::spec::element::ElementType;

/// Which buffer of a plan: an index into [`Plan::buffers`](super::Plan::buffers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub(crate) usize);

impl BufferId {
    /// Where it stands in [`Plan::buffers`](super::Plan::buffers).
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Written by the host before a run.
    Input,
    /// The model's parameters: shared by every run of a model, not the plan's own.
    Parameters,
    /// Read by the host after a run.
    Output,
    /// Written before a run and read after it.
    InputOutput,
    /// Never leaves the device.
    Scratch,
    /// Zero from the start and never written.
    Zeros,
}

/// A buffer that a plan asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BufferSpec {
    /// Its name, as the shaders' comments use it.
    pub name: String,
    /// Its axes, for people: `[T, B, I]`.
    pub axes: String,
    /// What its elements are.
    pub element: ElementType,
    /// How many elements it has.
    pub len: usize,
    /// What it is for.
    pub role: Role,
}

impl BufferSpec {
    /// Bytes of all elements.
    pub fn bytes(&self) -> u64 {
        self.element.bytes(self.len)
    }

    /// Where a range of elements starts, and how long it is, in bytes.
    pub(crate) fn byte_range(&self, range: &Range<usize>) -> (u64, u64) {
        (self.element.bytes(range.start), self.element.bytes(range.len()))
    }
}

/// The part of a buffer that a dispatch binds. It starts at a multiple of 256 bytes, whatever its
/// elements: see [`Self::offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BufferSlice {
    /// The buffer.
    pub buffer: BufferId,
    /// What its elements are.
    pub element: ElementType,
    /// Its first element bound.
    pub first: usize,
    /// How many elements are bound.
    pub len: usize,
}

impl BufferSlice {
    /// Bytes of the buffer ahead of the slice, a multiple of 256.
    pub fn offset(&self) -> u64 {
        self.element.bytes(self.first)
    }

    /// Bytes bound.
    pub fn bytes(&self) -> u64 {
        self.element.bytes(self.len)
    }
}

/// The buffers asked for so far.
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

    /// What the next buffer will be known by.
    pub fn next_id(&self) -> BufferId {
        BufferId(self.specs.len())
    }

    /// All of a buffer.
    pub fn whole(&self, buffer: BufferId) -> BufferSlice {
        self.slice(buffer, 0..self.specs[buffer.0].len)
    }

    /// A range of a buffer's elements.
    ///
    /// # Panics
    /// If it does not start at a multiple of [`BINDING_ALIGNMENT`] bytes.
    pub fn slice(&self, buffer: BufferId, range: Range<usize>) -> BufferSlice {
        let element = self.specs[buffer.0].element;
        let slice = BufferSlice { buffer, element, first: range.start, len: range.len() };
        assert!(
            slice.offset().is_multiple_of(BINDING_ALIGNMENT),
            "{} is bound from byte {}, which is no multiple of {BINDING_ALIGNMENT}",
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
