//! Arrays in NumPy's `.npy` format.
//!
//! ```no_run
//! use gru_wgpu::{Device, Gru, GruConfig, Init, formats::npy};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! // In Python: numpy.save("x.npy", x), x of shape [T, B, I]
//! let (x, _) = npy::load_as::<ndarray::Ix3>("x.npy")?;
//! let gru = Gru::new(GruConfig::pytorch(x.dim().2, 16), Init::Uniform, 1, &Device::auto())?;
//! npy::save("y.npy", gru.forward(&x)?.y.view())?;
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use ndarray::{Array, ArrayD, ArrayView, ArrayViewD, Dimension};
use ndarray_npy::{ViewDataError, ViewElement, ViewNpyError, ViewNpyExt, WriteNpyExt};
use py_literal::Value;

use super::files::{self, ByteSource};
use crate::error::{Error, Result, quote};

/// The longest accepted header, in bytes: the limit of version 1.0. NumPy writes about 100 bytes.
const MAX_HEADER: usize = 65_535;

/// The most bytes of a file that are not array data.
pub(super) const MAX_OVERHEAD: u64 = MAX_HEADER as u64 + 12;

/// The element type of the array in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NpyElement {
    /// float16, widened to f32.
    F16,
    /// float32, read unchanged.
    F32,
    /// float64, rounded to f32.
    F64,
}

impl fmt::Display for NpyElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        })
    }
}

/// Reads an array of float32, float64 or float16 in C or Fortran order. Returns it with the element
/// type in the file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] if the file is not such an array.
pub fn load(path: impl AsRef<Path>) -> Result<(ArrayD<f32>, NpyElement)> {
    files::open(path.as_ref(), read_source)
}

/// Like [`load`], for an array with the number of axes of `D`.
///
/// # Errors
/// The errors of [`load`], and [`Error::Format`] for any other number of axes.
pub fn load_as<D: Dimension>(path: impl AsRef<Path>) -> Result<(Array<f32, D>, NpyElement)> {
    files::open(path.as_ref(), |source| with_axes(read_source(source)?))
}

/// Like [`load`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read(from: impl Read + Seek) -> Result<(ArrayD<f32>, NpyElement)> {
    read_source(ByteSource::new(from)?)
}

/// Like [`load_as`], from a stream.
///
/// # Errors
/// The errors of [`load_as`].
pub fn read_as<D: Dimension>(from: impl Read + Seek) -> Result<(Array<f32, D>, NpyElement)> {
    with_axes(read(from)?)
}

/// Reads row lengths: an array `[B]` of int32 or int64 without negative values.
///
/// # Errors
/// The errors of [`load`].
pub fn load_lengths(path: impl AsRef<Path>) -> Result<Vec<usize>> {
    files::open(path.as_ref(), |source| parse_lengths(AlignedBytes::from_source(source)?))
}

/// Like [`load_lengths`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_lengths(from: impl Read + Seek) -> Result<Vec<usize>> {
    parse_lengths(AlignedBytes::from_source(ByteSource::new(from)?)?)
}

/// Writes an array as float32 in C order.
///
/// # Errors
/// [`Error::Io`].
pub fn save<D: Dimension>(path: impl AsRef<Path>, array: ArrayView<'_, f32, D>) -> Result<()> {
    files::write_whole(path, |to| put(array, to))
}

/// Like [`save`], to a stream.
///
/// # Errors
/// [`Error::Io`].
pub fn write<D: Dimension>(to: impl Write, array: ArrayView<'_, f32, D>) -> Result<()> {
    files::write_stream(to, |to| put(array, to))
}

pub(super) fn put<D: Dimension>(
    array: ArrayView<'_, f32, D>,
    to: &mut impl Write,
) -> io::Result<()> {
    array.as_standard_layout().write_npy(to).map_err(io::Error::other)
}

fn with_axes<D: Dimension>(
    (array, element): (ArrayD<f32>, NpyElement),
) -> Result<(Array<f32, D>, NpyElement)> {
    let (shape, axes) = (array.shape().to_vec(), D::NDIM.unwrap_or(array.ndim()));
    let array = array.into_dimensionality();
    let wrong =
        |error| Error::format_from(format!("its shape is {shape:?}; expected {axes} axes"), error);
    Ok((array.map_err(wrong)?, element))
}

fn read_source<S: Read + Seek>(source: ByteSource<S>) -> Result<(ArrayD<f32>, NpyElement)> {
    parse(AlignedBytes::from_source(source)?)
}

/// Bytes in memory that is aligned for every element type, so that they can be viewed as numbers.
pub(super) struct AlignedBytes {
    words: Vec<u64>,
    /// The offset of the first byte in `words`.
    first: usize,
    /// The number of bytes.
    len: usize,
}

impl AlignedBytes {
    fn from_source<S: Read + Seek>(mut source: ByteSource<S>) -> Result<Self> {
        let mut words: Vec<u64> = Vec::new();
        let len = source.len();
        source.read_at_into("the file", 0, len, |len| {
            words.resize(len.div_ceil(8), 0);
            &mut bytemuck::cast_slice_mut(&mut words)[..len]
        })?;
        Ok(Self { words, first: 0, len: len as usize })
    }

    /// Reads a stream to its end.
    pub fn from_stream(mut stream: impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        read.map_err(|error| Error::format_from(format!("it cannot be read: {error}"), error))?;
        Ok(Self::starting_at(0, &bytes))
    }

    fn starting_at(first: usize, bytes: &[u8]) -> Self {
        let mut words = vec![0u64; (first + bytes.len()).div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[first..first + bytes.len()].copy_from_slice(bytes);
        Self { words, first, len: bytes.len() }
    }

    fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[self.first..self.first + self.len]
    }

    /// Checks the header and aligns the array data after it. NumPy pads its headers so that the
    /// data is aligned already; other writers may not.
    fn checked(self) -> Result<Self> {
        let header = checked_header(self.as_slice())?;
        match header % 8 {
            0 => Ok(self),
            rest => Ok(Self::starting_at(8 - rest, self.as_slice())),
        }
    }
}

pub(super) fn parse(bytes: AlignedBytes) -> Result<(ArrayD<f32>, NpyElement)> {
    let bytes = bytes.checked()?;
    let bytes = bytes.as_slice();
    if let Some(array) = view::<f32>(bytes)? {
        return Ok((array.as_standard_layout().into_owned(), NpyElement::F32));
    }
    if let Some(array) = view::<f64>(bytes)? {
        let array = array.mapv(|number| number as f32);
        return Ok((array.as_standard_layout().into_owned(), NpyElement::F64));
    }
    match ArrayViewD::<Float16>::view_npy(bytes) {
        Ok(array) => {
            let array = array.mapv(|Float16(bits)| half::f16::from_bits(bits).to_f32());
            Ok((array.as_standard_layout().into_owned(), NpyElement::F16))
        }
        Err(error) => Err(wrong(error, "float32, float64 or float16")),
    }
}

fn parse_lengths(bytes: AlignedBytes) -> Result<Vec<usize>> {
    let bytes = bytes.checked()?;
    let bytes = bytes.as_slice();
    let wide = match view::<i32>(bytes)? {
        Some(array) => array.mapv(i64::from),
        None => match ArrayViewD::<i64>::view_npy(bytes) {
            Ok(array) => array.to_owned(),
            Err(error) => return Err(wrong(error, "lengths of int32 or int64")),
        },
    };
    if wide.ndim() != 1 {
        let shape = wide.shape();
        return Err(Error::format(format!("its shape is {shape:?}; expected one axis, [B]")));
    }
    let length = |&length: &i64| {
        usize::try_from(length).map_err(|_| {
            Error::format(format!("it holds the length {length}; expected at least 0"))
        })
    };
    wide.iter().map(length).collect()
}

/// Views the array with elements of type `A`. Returns `None` if its elements have another type.
fn view<A: ViewElement>(bytes: &[u8]) -> Result<Option<ArrayViewD<'_, A>>> {
    match ArrayViewD::<A>::view_npy(bytes) {
        Ok(array) => Ok(Some(array)),
        Err(ViewNpyError::WrongDescriptor(_)) => Ok(None),
        Err(error) => Err(wrong(error, "")),
    }
}

fn wrong(error: ViewNpyError, expected: &str) -> Error {
    let reason = match &error {
        ViewNpyError::WrongDescriptor(found) => {
            let order = if cfg!(target_endian = "little") { "little" } else { "big" };
            let found = quote(found.to_string().trim_matches('\''));
            format!("its dtype is {found}; expected {expected}, {order}-endian")
        }
        ViewNpyError::NonNativeEndian => {
            "its byte order is not this machine's; convert it first (in Python: \
             x.astype(x.dtype.newbyteorder('=')))"
                .to_owned()
        }
        ViewNpyError::ParseHeader(_) => "its header is not valid".to_owned(),
        other => quote(&other.to_string()).trim_matches('`').to_owned(),
    };
    Error::format_from(reason, error)
}

/// Reads the header of a stream and returns the array's shape.
pub(super) fn read_shape(mut stream: impl Read) -> Result<Vec<usize>> {
    let mut read = |len: u64, header: &mut Vec<u8>| {
        let read = stream.by_ref().take(len).read_to_end(header);
        read.map_err(|error| Error::format_from(format!("it cannot be read: {error}"), error))
    };
    let mut header = Vec::new();
    read(12, &mut header)?;
    let len = header_len(&header)?;
    if len <= MAX_HEADER + 12 {
        read((len as u64).saturating_sub(header.len() as u64), &mut header)?;
    }
    checked_header(&header)?;
    let shape =
        shape_of(&header).ok_or_else(|| Error::format("its header is not valid".to_owned()))?;
    Ok(shape)
}

/// Returns the length of the header in bytes, with what stands before it.
fn header_len(bytes: &[u8]) -> Result<usize> {
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(Error::format(
            "it does not start with the magic bytes of .npy; is it a .npy file?".to_owned(),
        ));
    }
    match (bytes.get(6), bytes.get(8..10), bytes.get(8..12)) {
        (Some(1), Some(len), _) => Ok(10 + usize::from(u16::from_le_bytes([len[0], len[1]]))),
        (Some(2 | 3), _, Some(len)) => {
            let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
            Ok(usize::try_from(len).unwrap_or(usize::MAX).saturating_add(12))
        }
        _ => Err(Error::format(
            "its .npy version is not 1, 2 or 3, or its header is cut short".to_owned(),
        )),
    }
}

/// Checks the header's size, nesting and shape, and returns its length in bytes.
fn checked_header(bytes: &[u8]) -> Result<usize> {
    const MAX_COMMAS: usize = 64;
    let len = header_len(bytes)?;
    let header = bytes.get(..len).filter(|_| len <= MAX_HEADER + 12);
    let header = header.ok_or_else(|| {
        Error::format(format!(
            "its header takes {len} bytes, but the file has {} and the limit is {}",
            bytes.len(),
            MAX_HEADER + 12
        ))
    })?;
    // A valid header is one dictionary with one tuple of numbers. The literal parser is slow on
    // anything more deeply nested.
    let count = |chars: &[u8]| header[len.min(10)..].iter().filter(|b| chars.contains(b)).count();
    if count(b"{") > 1 || count(b"(") > 1 || count(b"[") > 0 || count(b",") > MAX_COMMAS {
        return Err(Error::format(
            "its header does not describe an array of numbers; structured dtypes are not supported"
                .to_owned(),
        ));
    }
    check_shape(header)?;
    Ok(len)
}

/// Refuses a shape that is invalid or overflows even with its zeros counted as ones; ndarray-npy
/// assumes that such shapes do not occur. It reports all other errors in a header itself.
fn check_shape(header: &[u8]) -> Result<()> {
    let Some(sizes) = sizes(header) else { return Ok(()) };
    let size = |size: &Value| Some(whole(size)?.max(1));
    let count = sizes.iter().try_fold(1usize, |count, next| count.checked_mul(size(next)?));
    match count {
        Some(count) if count <= isize::MAX as usize / size_of::<f64>() => Ok(()),
        _ => Err(Error::format(
            "its shape is not valid: a size is negative or the element count overflows".to_owned(),
        )),
    }
}

/// Returns the shape in a header that has passed [`checked_header`].
fn shape_of(header: &[u8]) -> Option<Vec<usize>> {
    sizes(header)?.iter().map(whole).collect()
}

/// Returns the tuple of sizes in a header.
fn sizes(header: &[u8]) -> Option<Vec<Value>> {
    let text = String::from_utf8_lossy(&header[if header[6] == 1 { 10 } else { 12 }..]);
    let Ok(Value::Dict(entries)) = text.trim_end_matches('\n').parse() else { return None };
    let mut entries = entries.into_iter();
    match entries.find(|(key, _)| *key == Value::String("shape".to_owned())) {
        Some((_, Value::Tuple(sizes))) => Some(sizes),
        _ => None,
    }
}

fn whole(size: &Value) -> Option<usize> {
    match size {
        Value::Integer(size) => usize::try_from(size).ok(),
        _ => None,
    }
}

/// The bits of a float16.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
struct Float16(u16);

impl ViewElement for Float16 {
    fn bytes_as_slice<'a>(
        bytes: &'a [u8],
        descriptor: &Value,
        len: usize,
    ) -> std::result::Result<&'a [Self], ViewDataError> {
        let native = if cfg!(target_endian = "little") { "<f2" } else { ">f2" };
        if *descriptor != Value::String(native.to_owned()) {
            return Err(ViewDataError::WrongDescriptor(descriptor.clone()));
        }
        // The caller has checked that the size of `len` elements does not overflow.
        let expected = 2 * len;
        match bytes.len() {
            got if got < expected => Err(ViewDataError::MissingBytes(expected - got)),
            got if got > expected => Err(ViewDataError::ExtraBytes(got - expected)),
            _ => bytemuck::try_cast_slice(bytes).map_err(|_| ViewDataError::Misaligned),
        }
    }
}
