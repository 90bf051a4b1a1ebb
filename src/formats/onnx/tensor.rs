//! A tensor's data, in the model's own bytes or in a file of external data.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use prost::bytes::Bytes;

use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto, data_type, decode};
use crate::error::{Error, Result, quote};
use crate::formats::files;
use crate::formats::numbers::{arrays, widen_bf16, widen_f16};

/// Reads tensor data from a model's files, within a memory budget.
#[derive(Debug)]
pub(super) struct TensorReader {
    /// The folders that may hold external data: the model's own and, if the model is a symbolic
    /// link, its target's.
    folders: Vec<PathBuf>,
    /// The files of external data read so far.
    files: RefCell<HashSet<PathBuf>>,
    /// The bytes of memory that tensors may still take.
    budget: Cell<u64>,
}

/// The bytes of tensors in memory that one byte of a file may become. 16-bit numbers become 32-bit
/// ones, exporters' nodes rearrange them several times, and a few layers may share one tensor; a
/// thousand layers may not.
const MAX_EXPANSION: u64 = 16;

impl TensorReader {
    /// Returns a reader for a model of `len` bytes. `path` is the model's file, if it has one.
    pub fn new(len: usize, path: Option<&Path>) -> Self {
        let folder = |path: &Path| {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            parent.unwrap_or(Path::new(".")).canonicalize().ok()
        };
        let target = path.and_then(|path| path.canonicalize().ok());
        let folders = [path, target.as_deref()].into_iter().flatten().filter_map(folder);
        Self {
            folders: folders.collect(),
            files: RefCell::default(),
            budget: Cell::new((len as u64).saturating_mul(MAX_EXPANSION)),
        }
    }

    /// Returns the file at a tensor's location. Resolves symbolic links, and refuses a file outside
    /// the allowed folders.
    fn find(&self, location: &str) -> Result<PathBuf> {
        let refused = |reason: &str| {
            Error::format(format!("external data at {} is refused: {reason}", quote(location)))
        };
        let is_plain = Path::new(location).components().all(|c| matches!(c, Component::Normal(_)));
        if location.is_empty() || !is_plain {
            return Err(refused("expected a relative path inside the model's folder"));
        }
        let Some(own) = self.folders.first() else {
            return Err(refused("a model from a stream has no folder; load it by its path"));
        };
        let file = own.join(location).canonicalize();
        let file = file
            .map_err(|error| Error::format_from(refused(&error.to_string()).to_string(), error))?;
        if !self.folders.iter().any(|folder| file.starts_with(folder)) {
            return Err(refused("it is outside the model's folder"));
        }
        Ok(file)
    }

    /// Reads bytes of a file that [`Self::find`] returned. A file read for the first time adds to
    /// the budget.
    fn read(&self, file: PathBuf, offset: u64, len: usize) -> Result<Vec<u8>> {
        files::open(&file, |mut source| {
            let bytes = source.read_at("external data", offset, len as u64)?;
            if self.files.borrow_mut().insert(file.clone()) {
                let more = source.len().saturating_mul(MAX_EXPANSION);
                self.budget.set(self.budget.get().saturating_add(more));
            }
            Ok(bytes)
        })
    }

    /// Returns the files of external data read so far, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.files.borrow().iter().cloned().collect();
        files.sort();
        files
    }

    /// Charges the memory of `count` f32 to the budget. Fails if the budget is used up.
    pub fn spend_budget(&self, count: usize) -> Result<()> {
        let left = self.budget.get().checked_sub(4 * count as u64);
        let exhausted = || {
            Error::format(format!(
                "its weights take more than {MAX_EXPANSION} times the size of the model's files"
            ))
        };
        self.budget.set(left.ok_or_else(exhausted)?);
        Ok(())
    }
}

/// The most axes of an array: more than any weight has at any stage.
pub(super) const MAX_AXES: usize = 8;

/// Returns the sizes of a tensor's axes, and their product.
pub(super) fn shape(dims: &[i64]) -> Result<(Vec<usize>, usize)> {
    let wrong = || {
        let shown = &dims[..dims.len().min(MAX_AXES)];
        Error::format(format!(
            "a tensor has the invalid shape {shown:?}; expected at most {MAX_AXES} axes, no negative \
             size and a size in bytes that does not overflow"
        ))
    };
    if dims.len() > MAX_AXES {
        return Err(wrong());
    }
    let sizes: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let sizes = sizes.ok_or_else(wrong)?;
    let count = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    // The size in bytes must not overflow either.
    let count = count.filter(|&count| count <= isize::MAX as usize / 8).ok_or_else(wrong)?;
    Ok((sizes, count))
}

/// The elements of a constant.
#[derive(Debug)]
pub(super) enum Value {
    /// Elements of the types float, float16, bfloat16 and double.
    Floats(ArrayD<f32>),
    /// Elements of the types int64, int32, int16, uint16, int8, uint8 and bool.
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

    /// The number of f32 that take the same memory.
    pub fn len_in_f32(&self) -> usize {
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

/// Reads a tensor's elements.
pub(super) fn value(tensor: &TensorProto, storage: &TensorReader) -> Result<Value> {
    let (shape, count) = shape(&tensor.dims)?;
    let raw = |width: usize| raw(tensor, count, width, storage);
    let halves = |widen: fn(&[u8]) -> Vec<f32>| {
        // Without raw data, int32_data holds one 16-bit number in each element.
        let bits = tensor.int32_data.iter().flat_map(|&word| (word as u16).to_le_bytes());
        let raw = raw(2)?;
        Ok::<_, Error>(raw.map_or_else(|| widen(&bits.collect::<Vec<_>>()), |raw| widen(&raw)))
    };
    // Without raw data, int32_data holds the integers of all types but int64.
    let words = || tensor.int32_data.iter().map(|&word| i64::from(word)).collect();
    let integers =
        |raw: Option<Vec<i64>>| shaped(&shape, raw.unwrap_or_else(words)).map(Value::Integers);
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
        data_type::INT32 => integers(
            raw(4)?.map(|raw| arrays(&raw).map(|b| i32::from_le_bytes(b).into()).collect()),
        ),
        data_type::BOOL | data_type::UINT8 => {
            integers(raw(1)?.map(|raw| raw.iter().map(|&byte| byte.into()).collect()))
        }
        data_type::INT8 => {
            integers(raw(1)?.map(|raw| raw.iter().map(|&byte| (byte as i8).into()).collect()))
        }
        data_type::UINT16 => integers(
            raw(2)?.map(|raw| arrays(&raw).map(|b| u16::from_le_bytes(b).into()).collect()),
        ),
        data_type::INT16 => integers(
            raw(2)?.map(|raw| arrays(&raw).map(|b| i16::from_le_bytes(b).into()).collect()),
        ),
        other => Err(Error::format(format!(
            "it has the ONNX data type {other}, which is not supported; expected float, double, \
             float16, bfloat16, an integer of 8 to 64 bits or bool"
        ))),
    }?;
    storage.spend_budget(value.len_in_f32())?;
    Ok(value)
}

fn shaped<T>(shape: &[usize], numbers: Vec<T>) -> Result<ArrayD<T>> {
    let got = numbers.len();
    let array = ArrayD::from_shape_vec(IxDyn(shape), numbers);
    array.map_err(|error| {
        Error::format_from(format!("it has {got} elements, but the shape {shape:?}"), error)
    })
}

/// Returns the bytes of `count` numbers of `width` bytes each, or `None` if the tensor holds them
/// in the field of their type instead of as raw data.
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
        got => Err(Error::format(format!("it has {got} bytes, but its shape takes {expected}"))),
    }
}

/// Reads a tensor's external data.
fn external(tensor: &TensorProto, expected: usize, storage: &TensorReader) -> Result<Vec<u8>> {
    let (mut location, mut offset, mut length) = (None, 0, None);
    for entry in &tensor.external_data {
        let entry = decode::<StringStringEntryProto>(entry)?;
        let number = || {
            let shown = quote(&entry.value);
            let wrong = |error| {
                Error::format_from(
                    format!(
                        "external data has the {} {shown}, expected a number of bytes",
                        entry.key
                    ),
                    error,
                )
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
        let reason = format!("external data has {length} bytes, but its shape takes {expected}");
        return Err(Error::format(reason));
    }
    storage.read(storage.find(&location)?, offset, expected)
}
