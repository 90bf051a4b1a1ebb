//! Sizes by checked arithmetic, and allocations that return an error instead of aborting.

use ndarray::{Array, Dimension, IntoDimension};

use super::{Cause, Error, Result};

/// Returns the product of `sizes`, or [`Error::Overflow`] if that many f64 exceed `isize::MAX`
/// bytes.
pub(crate) fn checked_len(what: &'static str, sizes: &[usize]) -> Result<usize> {
    const MAX: usize = isize::MAX as usize / size_of::<f64>();
    sizes
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .filter(|&len| len <= MAX)
        .ok_or(Error::Overflow { what })
}

/// Returns `len` zeros, or [`Error::OutOfMemory`]. The operating system clears each page when a
/// thread first touches it. This spreads the clearing over many threads, and memory that
/// is overwritten anyway is not written twice.
pub(crate) fn try_lazy_zeros<A: bytemuck::Zeroable>(what: &str, len: usize) -> Result<Vec<A>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| out_of_memory::<A>(what, len, None))
}

/// Returns an array of the zeros of [`try_lazy_zeros`].
///
/// # Errors
/// [`Error::Overflow`], [`Error::OutOfMemory`].
pub(crate) fn try_array<A, D, S>(what: &'static str, shape: S) -> Result<Array<A, D>>
where
    A: bytemuck::Zeroable,
    D: Dimension,
    S: IntoDimension<Dim = D>,
{
    let shape = shape.into_dimension();
    let zeros = try_lazy_zeros(what, checked_len(what, shape.slice())?)?;
    Ok(Array::from_shape_vec(shape, zeros).expect("the length is the product of the shape"))
}

/// Returns `len` zeros, written at once, or [`Error::OutOfMemory`].
pub(crate) fn try_zeros<F: ndarray::NdFloat>(what: &str, len: usize) -> Result<Vec<F>> {
    let mut zeros = try_with_capacity(what, len)?;
    zeros.resize(len, F::zero());
    Ok(zeros)
}

/// Returns an empty vector with capacity for `len` values, or [`Error::OutOfMemory`].
pub(crate) fn try_with_capacity<V>(what: &str, len: usize) -> Result<Vec<V>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(len) {
        Ok(()) => Ok(values),
        Err(error) => Err(out_of_memory::<V>(what, len, Some(Cause::new(error)))),
    }
}

/// Extends `numbers` with zeros to at least `len` elements, or returns [`Error::OutOfMemory`].
pub(crate) fn try_grow<F: ndarray::NdFloat>(
    what: &str,
    numbers: &mut Vec<F>,
    len: usize,
) -> Result<()> {
    let more = len.saturating_sub(numbers.len());
    let reserved = numbers.try_reserve_exact(more);
    reserved.map_err(|error| out_of_memory::<F>(what, len, Some(Cause::new(error))))?;
    numbers.resize(numbers.len() + more, F::zero());
    Ok(())
}

fn out_of_memory<F>(what: &str, len: usize, source: Option<Cause>) -> Error {
    let bytes = len.saturating_mul(size_of::<F>());
    Error::OutOfMemory {
        reason: format!(
            "cannot allocate {bytes} bytes of host memory for {what}; use smaller sizes"
        ),
        source,
    }
}
