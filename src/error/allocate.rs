//! Room for numbers: sizes by checked arithmetic, and allocations that fail with an error.

use ndarray::{Array, Dimension, IntoDimension};

use super::{Cause, Error, Result};

/// The product of `sizes`, or [`Error::Overflow`] where it does not fit `isize` bytes of f64.
pub(crate) fn checked_len(what: &'static str, sizes: &[usize]) -> Result<usize> {
    const MAX: usize = isize::MAX as usize / size_of::<f64>();
    sizes
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .filter(|&len| len <= MAX)
        .ok_or(Error::Overflow { what })
}

/// `len` zeros as the host clears them, page by page, when and where each is first touched: by many
/// threads, and by one write where all is written anyway. Or [`Error::OutOfMemory`].
pub(crate) fn try_untouched<A: bytemuck::Zeroable>(what: &str, len: usize) -> Result<Vec<A>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| no_room::<A>(what, len, None))
}

/// An array of such zeros.
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
    let zeros = try_untouched(what, checked_len(what, shape.slice())?)?;
    Ok(Array::from_shape_vec(shape, zeros).expect("as many as the shape holds"))
}

/// `len` zeros, or [`Error::OutOfMemory`] where the host has no room for them.
pub(crate) fn try_zeros<F: ndarray::NdFloat>(what: &str, len: usize) -> Result<Vec<F>> {
    let mut zeros = try_room(what, len)?;
    zeros.resize(len, F::zero());
    Ok(zeros)
}

/// Room for `len` values, or [`Error::OutOfMemory`] where the host has none.
pub(crate) fn try_room<V>(what: &str, len: usize) -> Result<Vec<V>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(len) {
        Ok(()) => Ok(values),
        Err(error) => Err(no_room::<V>(what, len, Some(Cause::new(error)))),
    }
}

/// Makes numbers at least `len`, what is new of them zeros, or [`Error::OutOfMemory`] where the host
/// has no room for them.
pub(crate) fn try_grow<F: ndarray::NdFloat>(
    what: &str,
    numbers: &mut Vec<F>,
    len: usize,
) -> Result<()> {
    let more = len.saturating_sub(numbers.len());
    let reserved = numbers.try_reserve_exact(more);
    reserved.map_err(|error| no_room::<F>(what, len, Some(Cause::new(error))))?;
    numbers.resize(numbers.len() + more, F::zero());
    Ok(())
}

fn no_room<F>(what: &str, len: usize, source: Option<Cause>) -> Error {
    let bytes = len.saturating_mul(size_of::<F>());
    Error::OutOfMemory {
        reason: format!("{what} takes {bytes} bytes of the host's memory"),
        source,
    }
}
