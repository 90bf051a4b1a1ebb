//! Copies between the host's arrays and mapped memory, by several threads if they are large.

use std::collections::VecDeque;

use ndarray::{ArrayViewMut3, Axis};
#[cfg(not(target_arch = "wasm32"))]
use rayon::prelude::*;

#[cfg(not(target_arch = "wasm32"))]
use crate::process::thread_pool;
use crate::spec::element::BufferElement;

/// The bytes from which a copy is split over threads. Waking the threads costs up to 50 µs, in
/// which one thread copies 0.5 MB, and they are slow for the first few.
#[cfg(not(target_arch = "wasm32"))]
const MIN_PARALLEL_BYTES: usize = 2 << 20;

/// The bytes that one thread copies at a time.
#[cfg(not(target_arch = "wasm32"))]
const PIECE_BYTES: usize = 256 << 10;

/// Where the elements of a download go, in order.
#[derive(Debug)]
pub(crate) enum Destination<'a, T> {
    /// Elements are appended. The vector's spare capacity is not cleared before it is written, so
    /// each page of new memory is touched once.
    Vec(&'a mut Vec<T>),
    /// Slices are filled one after the other.
    Slices(VecDeque<&'a mut [T]>),
}

impl<'a, T> Destination<'a, T> {
    pub fn slice(slice: &'a mut [T]) -> Self {
        Self::Slices(VecDeque::from([slice]))
    }

    /// Returns the elements of an array in logical order. Its rows, along the last axis, must be
    /// contiguous.
    pub fn rows(array: ArrayViewMut3<'a, T>) -> Self {
        let mut slices = VecDeque::new();
        for matrix in split(array, Axis(0)) {
            for row in split(matrix, Axis(1)) {
                slices.push_back(row.into_slice().expect("rows are contiguous"));
            }
        }
        Self::Slices(slices)
    }
}

/// Splits an array along an axis into views of length 1, unless it is contiguous as it is.
fn split<T>(array: ArrayViewMut3<'_, T>, axis: Axis) -> Vec<ArrayViewMut3<'_, T>> {
    let count = if array.is_standard_layout() { 1 } else { array.len_of(axis) };
    let mut rest = array;
    let mut parts = Vec::with_capacity(count);
    for _ in 1..count {
        let (first, others) = rest.split_at(axis, 1);
        parts.push(first);
        rest = others;
    }
    parts.push(rest);
    parts
}

impl<T: BufferElement> Destination<'_, T> {
    /// Copies the next elements.
    pub fn copy_from(&mut self, from: &[T]) {
        match self {
            Self::Vec(to) => append(to, from),
            Self::Slices(slices) => {
                let mut copies = Vec::new();
                let mut from = from;
                while !from.is_empty() {
                    let slice = slices.pop_front().expect("the destination is as long as its read");
                    let (now, later) = slice.split_at_mut(slice.len().min(from.len()));
                    let (next, rest) = from.split_at(now.len());
                    copies.push((now, next));
                    from = rest;
                    if !later.is_empty() {
                        slices.push_front(later);
                    }
                }
                copy(copies);
            }
        }
    }
}

/// Extends a vector, as `extend_from_slice` does.
#[allow(unsafe_code, reason = "std's safe form has one thread")]
fn append<T: BufferElement>(to: &mut Vec<T>, from: &[T]) {
    to.reserve(from.len());
    let spare = &mut to.spare_capacity_mut()[..from.len()];
    copy(vec![(spare, bytemuck::cast_slice(from))]);
    // SAFETY: `reserve` made room for `from.len()` more elements. `spare` is the memory of exactly
    // these, and `copy` wrote each of them: it panics unless source and destination have the same
    // length.
    unsafe { to.set_len(to.len() + from.len()) }
}

/// Copies each source to its destination of the same length.
///
/// # Panics
/// If lengths differ.
pub(crate) fn copy<T: Copy + Send + Sync>(copies: Vec<(&mut [T], &[T])>) {
    #[cfg(not(target_arch = "wasm32"))]
    if is_parallel(copies.iter().map(|(_, from)| size_of_val(*from)).sum()) {
        let len = PIECE_BYTES / size_of::<T>();
        let pieces = copies.into_iter().flat_map(|(to, from)| {
            assert_eq!(to.len(), from.len(), "a copy's lengths");
            to.chunks_mut(len).zip(from.chunks(len))
        });
        let pieces: Vec<_> = pieces.collect();
        return pieces.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
    }
    copies.into_iter().for_each(|(to, from)| to.copy_from_slice(from));
}

/// Copies to mapped memory.
pub(crate) fn copy_to_mapped(to: wgpu::WriteOnly<'_, [u8]>, from: &[u8]) {
    #[cfg(not(target_arch = "wasm32"))]
    if is_parallel(from.len()) {
        let (pieces, mut rest) = to.into_chunks::<PIECE_BYTES>();
        let (from, last) = from.split_at(pieces.len() * PIECE_BYTES);
        let pieces: Vec<_> = pieces.into_iter().zip(from.chunks(PIECE_BYTES)).collect();
        pieces.into_par_iter().for_each(|(to, from)| {
            wgpu::WriteOnly::<[u8]>::from(to).copy_from_slice(from);
        });
        return rest.copy_from_slice(last);
    }
    let mut to = to;
    to.copy_from_slice(from);
}

/// True if a copy of this many bytes is split over threads. Not in a forked child, where the
/// threads do not exist.
#[cfg(not(target_arch = "wasm32"))]
fn is_parallel(bytes: usize) -> bool {
    let pays = bytes >= MIN_PARALLEL_BYTES && rayon::current_num_threads() > 1;
    // A thread of the pool that waits here could start another job of the caller, which may need a
    // lock that the caller holds.
    pays && rayon::current_thread_index().is_none() && !thread_pool().is_forked()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, s};

    use super::*;

    /// Copies in parts, some of which are large enough for several threads.
    #[test]
    fn destinations_are_filled_in_order() {
        let len = 3 * MIN_PARALLEL_BYTES / 4 + 77;
        let from: Vec<f32> = (0..len).map(|i| i as f32).collect();
        let mut appended = vec![-1.0];
        let mut first = vec![0.0; len / 3];
        let mut second = vec![0.0; len - len / 3];
        let slices = VecDeque::from([&mut first[..], &mut second[..]]);
        for to in [&mut Destination::Vec(&mut appended), &mut Destination::Slices(slices)] {
            let (a, b) = from.split_at(5);
            let (b, c) = b.split_at(len / 2);
            for part in [a, b, c] {
                to.copy_from(part);
            }
        }
        assert!(appended[0] == -1.0 && appended[1..] == from);
        assert!([first, second].concat() == from);
    }

    #[test]
    fn rows_of_any_order_are_filled_in_logical_order() {
        let mut array = Array3::from_elem((4, 5, 6), -1.0_f32);
        for order in [[0, 1, 2], [1, 0, 2]] {
            let cases = [s![.., .., ..], s![1..3, .., ..], s![.., 2..3, ..], s![1.., ..4, 2..5]];
            for case in cases {
                array.fill(-1.0);
                let mut view = array.view_mut().permuted_axes(order);
                let part = view.slice_mut(case);
                let (len, shape) = (part.len(), part.dim());
                let numbers: Vec<f32> = (0..len).map(|i| i as f32).collect();
                let mut to = Destination::rows(part);
                let (first, rest) = numbers.split_at(len / 3);
                to.copy_from(first);
                to.copy_from(rest);
                let expected = Array3::from_shape_vec(shape, numbers).unwrap();
                assert_eq!(view.slice(case), expected);
                let untouched = array.iter().filter(|&&number| number == -1.0).count();
                assert_eq!(untouched, array.len() - len);
            }
        }
    }
}
