//! A tensor's numbers: in the model's own bytes, or in a file beside it.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use prost::bytes::Bytes;

use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto, data_type, decode};
use crate::error::{Error, Result, quote};
use crate::formats::files;
use crate::formats::numbers::{arrays, widen_bf16, widen_f16};

/// Where a model's numbers may come from, and how many may be read.
#[derive(Debug)]
pub(super) struct TensorReader {
    /// The folders that external data may lie in: the model's own, and, where the model is a link,
    /// that of the file behind it.
    folders: Vec<PathBuf>,
    /// The files read from.
    files: RefCell<HashSet<PathBuf>>,
    /// Bytes of f32 that may still be made.
    left: Cell<u64>,
}

/// Bytes of f32 that a byte of a file may become: a number of 16 bits becomes one of 32, exporters'
/// nodes rearrange it several times, and a few layers may share it; but a thousand may not.
const MULTIPLE: u64 = 16;

impl TensorReader {
    /// Of a model of so many bytes, at a path where it is a file.
    pub fn new(len: usize, path: Option<&Path>) -> Self {
        let folder = |path: &Path| {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            parent.unwrap_or(Path::new(".")).canonicalize().ok()
        };
        let behind = path.and_then(|path| path.canonicalize().ok());
        let folders = [path, behind.as_deref()].into_iter().flatten().filter_map(folder);
        Self {
            folders: folders.collect(),
            files: RefCell::default(),
            left: Cell::new((len as u64).saturating_mul(MULTIPLE)),
        }
    }

    /// The file at a location that a tensor names, links followed, if it lies in one of the
    /// folders.
    fn find(&self, location: &str) -> Result<PathBuf> {
        let refused = |why: &str| {
            Error::format(format!("external data at {} is refused: {why}", quote(location)))
        };
        let plain = Path::new(location).components().all(|c| matches!(c, Component::Normal(_)));
        if location.is_empty() || !plain {
            return Err(refused("a location is a path inside the model's folder"));
        }
        let Some(own) = self.folders.first() else {
            return Err(refused("a model that is no file has no folder"));
        };
        let file = own.join(location).canonicalize();
        let file = file
            .map_err(|error| Error::format_from(refused(&error.to_string()).to_string(), error))?;
        if !self.folders.iter().any(|folder| file.starts_with(folder)) {
            return Err(refused("it lies outside the model's folder"));
        }
        Ok(file)
    }

    /// Bytes of a file that was found.
    fn read(&self, file: PathBuf, offset: u64, len: usize) -> Result<Vec<u8>> {
        files::open(&file, |mut source| {
            let bytes = source.part("external data", offset, len as u64)?;
            if self.files.borrow_mut().insert(file.clone()) {
                let more = source.len().saturating_mul(MULTIPLE);
                self.left.set(self.left.get().saturating_add(more));
            }
            Ok(bytes)
        })
    }

    /// The files read from so far.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.files.borrow().iter().cloned().collect();
        files.sort();
        files
    }

    /// `Ok` while all numbers together are no more than the files can hold.
    pub fn spend(&self, count: usize) -> Result<()> {
        let left = self.left.get().checked_sub(4 * count as u64);
        let too_many = || {
            let reason = "all weights together are more than the model's files hold";
            Error::format(reason.to_owned())
        };
        self.left.set(left.ok_or_else(too_many)?);
        Ok(())
    }
}

/// More axes than any weight has on its way.
pub(super) const MAX_AXES: usize = 8;

/// The sizes of a tensor's axes, and their product.
pub(super) fn shape(dims: &[i64]) -> Result<(Vec<usize>, usize)> {
    let wrong = || {
        let shown = &dims[..dims.len().min(MAX_AXES)];
        Error::format(format!("a tensor has the impossible shape {shown:?}"))
    };
    if dims.len() > MAX_AXES {
        return Err(wrong());
    }
    let sizes: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let sizes = sizes.ok_or_else(wrong)?;
    let count = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    // Bytes of its numbers are counted too.
    let count = count.filter(|&count| count <= isize::MAX as usize / 8).ok_or_else(wrong)?;
    Ok((sizes, count))
}

/// Numbers that are known.
#[derive(Debug)]
pub(super) enum Value {
    /// Of float, float16, bfloat16 and double.
    Floats(ArrayD<f32>),
    /// Of int64, int32 and bool.
    Integers(ArrayD<i64>),
}

impl Value {
    pub fn floats(&self) -> Option<&ArrayD<f32>> {
        if let Self::Floats(floats) = self { Some(floats) } else { None }
    }

    pub fn integers(&self) -> Option<&ArrayD<i64>> {
        if let Self::Integers(integers) = self { Some(integers) } else { None }
    }

    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Floats(floats) => floats.shape(),
            Self::Integers(integers) => integers.shape(),
        }
    }

    /// As many f32 as take its memory.
    pub fn floats_worth(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.len(),
            Self::Integers(integers) => 2 * integers.len(),
        }
    }

    pub fn is_zeros(&self) -> bool {
        match self {
            Self::Floats(floats) => floats.iter().all(|&number| number == 0.0),
            Self::Integers(integers) => integers.iter().all(|&number| number == 0),
        }
    }
}

/// A tensor's numbers.
pub(super) fn value(tensor: &TensorProto, storage: &TensorReader) -> Result<Value> {
    let (shape, count) = shape(&tensor.dims)?;
    let raw = |width: usize| raw(tensor, count, width, storage);
    let halves = |widen: fn(&[u8]) -> Vec<f32>| {
        // Where they are not raw, each lies in 32 bits of its own.
        let bits = tensor.int32_data.iter().flat_map(|&word| (word as u16).to_le_bytes());
        let raw = raw(2)?;
        Ok::<_, Error>(raw.map_or_else(|| widen(&bits.collect::<Vec<_>>()), |raw| widen(&raw)))
    };
    let words = || tensor.int32_data.iter().map(|&word| i64::from(word)).collect();
    let value = match tensor.data_type {
        data_type::FLOAT => shaped(
            &shape,
            match raw(4)? {
                Some(raw) => arrays(&raw).map(f32::from_le_bytes).collect(),
                None => tensor.float_data.clone(),
            },
        )
        .map(Value::Floats),
        data_type::DOUBLE => shaped(
            &shape,
            match raw(8)? {
                Some(raw) => arrays(&raw).map(|b| f64::from_le_bytes(b) as f32).collect(),
                None => tensor.double_data.iter().map(|&number| number as f32).collect(),
            },
        )
        .map(Value::Floats),
        data_type::FLOAT16 => shaped(&shape, halves(widen_f16)?).map(Value::Floats),
        data_type::BFLOAT16 => shaped(&shape, halves(widen_bf16)?).map(Value::Floats),
        data_type::INT64 => shaped(
            &shape,
            match raw(8)? {
                Some(raw) => arrays(&raw).map(i64::from_le_bytes).collect(),
                None => tensor.int64_data.clone(),
            },
        )
        .map(Value::Integers),
        data_type::INT32 => shaped(
            &shape,
            match raw(4)? {
                Some(raw) => arrays(&raw).map(|b| i64::from(i32::from_le_bytes(b))).collect(),
                None => words(),
            },
        )
        .map(Value::Integers),
        data_type::BOOL => shaped(
            &shape,
            match raw(1)? {
                Some(raw) => raw.iter().map(|&byte| byte.into()).collect(),
                None => words(),
            },
        )
        .map(Value::Integers),
        other => Err(Error::format(format!(
            "its numbers are of ONNX's type {other}, which is not supported"
        ))),
    }?;
    storage.spend(value.floats_worth())?;
    Ok(value)
}

fn shaped<T>(shape: &[usize], numbers: Vec<T>) -> Result<ArrayD<T>> {
    let got = numbers.len();
    let array = ArrayD::from_shape_vec(IxDyn(shape), numbers);
    array.map_err(|error| {
        Error::format_from(format!("it has {got} numbers, but the shape {shape:?}"), error)
    })
}

/// The bytes of `count` numbers of `width` bytes each, unless they lie in a field of their own
/// type.
fn raw(
    tensor: &TensorProto,
    count: usize,
    width: usize,
    storage: &TensorReader,
) -> Result<Option<Bytes>> {
    let expected = count * width;
    if tensor.data_location == EXTERNAL {
        return Ok(Some(external(tensor, expected, storage)?.into()));
    }
    match tensor.raw_data.len() {
        got if got == expected => Ok(Some(tensor.raw_data.clone())),
        0 => Ok(None),
        got => Err(Error::format(format!("it has {got} bytes, its shape takes {expected}"))),
    }
}

fn external(tensor: &TensorProto, expected: usize, storage: &TensorReader) -> Result<Vec<u8>> {
    let (mut location, mut offset, mut length) = (None, 0, None);
    for entry in &tensor.external_data {
        let entry = decode::<StringStringEntryProto>(entry)?;
        let number = || {
            let shown = quote(&entry.value);
            let wrong = |error| {
                Error::format_from(format!("external data has the {} {shown}", entry.key), error)
            };
            entry.value.parse::<u64>().map_err(wrong)
        };
        match entry.key.as_str() {
            "location" => location = Some(entry.value),
            "offset" => offset = number()?,
            "length" => length = Some(number()?),
            _ => {}
        }
    }
    let location =
        location.ok_or_else(|| Error::format("external data has no location".to_owned()))?;
    if let Some(length) = length.filter(|&length| length != expected as u64) {
        let reason = format!("external data has {length} bytes, its shape takes {expected}");
        return Err(Error::format(reason));
    }
    storage.read(storage.find(&location)?, offset, expected)
}
