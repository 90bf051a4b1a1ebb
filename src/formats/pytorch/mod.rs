//! PyTorch's own files, read without Python: `.pt`, `.pth`, `.bin`, `.ckpt`.
//!
//! ```no_run
//! use gru_wgpu::formats::{StateDictOptions, pytorch};
//! use gru_wgpu::{Device, Gru};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! // In Python: torch.save(model.state_dict(), "model.pt")
//! let options = StateDictOptions::new().with_prefix("encoder.gru");
//! let gru = Gru::with_params(pytorch::load("model.pt", &options)?, &Device::auto())?;
//! # Ok(())
//! # }
//! ```
//!
//! Such a file holds a pickle, which is a program that may call any Python function. This reader
//! calls none: it builds tensors and plain containers, and takes everything else for an object of
//! unknown class. So a file from anywhere can be read.
//!
//! The tensors may be nested in any way, as in a checkpoint of PyTorch Lightning. Their names are
//! the keys that lead to them, joined by dots: `state_dict.model.gru.weight_ih_l0`. A module that
//! was saved whole has the names of its state dict. Old files (before torch 1.6) are read too.
//!
//! Reads only the pickle and the numbers that it needs, so one GRU of a checkpoint of gigabytes
//! costs no more than its own size.

use std::borrow::Cow;
use std::io::{Read, Seek};
use std::path::Path;

use ndarray::{ArrayD, IxDyn};

use self::archive::Storages;
use self::pickle::{Id, Pickle};
use super::files::{self, ByteSource};
use super::state_dict::{StateDict, StateDictOptions, parse};
use super::weight_layout::WeightLayout;
use crate::error::{Error, Result, quote};
use crate::spec::params::Params;

mod archive;
mod pickle;

/// Reads the parameters of an `nn.GRU`, or of `nn.GRUCell`s: sizes, layers, directions and biases
/// follow from the names and shapes of the tensors. f16 and bf16 are widened to f32, f64 is
/// rounded. Weight norm is computed, and the weights of a weight drop are those of evaluation.
///
/// # Errors
/// [`Error::Io`]; [`Error::Choice`] if the file holds no GRU, several, or not the one that the
/// options name; [`Error::Format`] or [`Error::Shape`] if it is not a file of `torch.save` or its
/// GRU cannot be used.
pub fn load(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| PytorchFile::open(source)?.read_gru(options))
}

/// Like [`load`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read(from: impl Read + Seek, options: &StateDictOptions) -> Result<Params> {
    PytorchFile::open(ByteSource::new(from)?)?.read_gru(options)
}

/// Reads a network's parameters: a GRU and its linear head, which the options describe
/// ([`StateDictOptions::with_head`]). The head is found by its shape, or by its name. A head
/// without a bias gets one of zeros.
///
/// # Errors
/// The errors of [`load`], and [`Error::Format`] if there is no head, or not the one that the
/// options describe; [`Error::Choice`] if several layers could be the head.
pub fn load_network(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| PytorchFile::open(source)?.read_network(options))
}

/// Like [`load_network`], from a stream.
///
/// # Errors
/// The errors of [`load_network`].
pub fn read_network(from: impl Read + Seek, options: &StateDictOptions) -> Result<Params> {
    PytorchFile::open(ByteSource::new(from)?)?.read_network(options)
}

/// Returns the name of the head that [`load_network`] reads, such as `classifier.fc`.
///
/// # Errors
/// The errors of [`load_network`].
pub fn head_name(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<String> {
    files::open(path.as_ref(), |source| {
        Ok(PytorchFile::open(source)?.read_named_network(options)?.1)
    })
}

/// Like [`head_name`], from a stream.
///
/// # Errors
/// The errors of [`load_network`].
pub fn read_head_name(from: impl Read + Seek, options: &StateDictOptions) -> Result<String> {
    Ok(PytorchFile::open(ByteSource::new(from)?)?.read_named_network(options)?.1)
}

/// Returns the prefix of every GRU in a file; `""` for a GRU without a prefix.
///
/// # Errors
/// The errors of [`load`].
pub fn prefixes(path: impl AsRef<Path>) -> Result<Vec<String>> {
    files::open(path.as_ref(), |source| Ok(PytorchFile::open(source)?.prefixes()))
}

/// Like [`prefixes`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_prefixes(from: impl Read + Seek) -> Result<Vec<String>> {
    Ok(PytorchFile::open(ByteSource::new(from)?)?.prefixes())
}

/// Returns the layout of the GRU that the options choose.
///
/// # Errors
/// The errors of [`load`].
pub fn layout(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<WeightLayout> {
    files::open(path.as_ref(), |source| PytorchFile::open(source)?.layout(options))
}

/// Like [`layout`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_layout(from: impl Read + Seek, options: &StateDictOptions) -> Result<WeightLayout> {
    PytorchFile::open(ByteSource::new(from)?)?.layout(options)
}

/// A file whose pickle is read, from which tensors can be read.
struct PytorchFile<S> {
    source: ByteSource<S>,
    pickle: Pickle,
    storages: Storages,
    /// The tensors by name, sorted.
    tensors: Vec<(Box<str>, Id)>,
}

impl<S: Read + Seek> PytorchFile<S> {
    fn open(mut source: ByteSource<S>) -> Result<Self> {
        let (pickle, storages) = archive::open(&mut source)?;
        let mut tensors = pickle.named_tensors()?;
        tensors.sort();
        tensors.dedup();
        // Only the tensors of GRUs must be in order: a program may store anything else.
        let of_grus = || tensors.iter().filter(|(name, _)| parse(name).is_some());
        for (name, id) in of_grus() {
            pickle.tensor(name, *id)?;
        }
        let twice = of_grus().zip(of_grus().skip(1)).find(|(one, other)| one.0 == other.0);
        if let Some(((name, _), _)) = twice {
            let reason = format!("two of its tensors have the name {}", quote(name));
            return Err(Error::format(reason));
        }
        Ok(Self { source, pickle, storages, tensors })
    }
}

/// Returns the tensor with this name.
fn find<'a>(
    pickle: &'a Pickle,
    tensors: &[(Box<str>, Id)],
    name: &str,
) -> Option<pickle::Tensor<'a>> {
    let at = tensors.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
    pickle.tensor(name, tensors[at].1).ok()
}

impl<S: Read + Seek> StateDict for PytorchFile<S> {
    fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.tensors.iter().map(|(name, _)| Cow::Borrowed(&**name))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        find(&self.pickle, &self.tensors, name).map(|tensor| tensor.shape)
    }

    fn file_len(&self) -> u64 {
        self.source.len()
    }

    fn tensor(&mut self, name: &str) -> Result<ArrayD<f32>> {
        let what = quote(name);
        let wrong = |reason: String| Error::format(format!("{what} {reason}"));
        let Self { source, pickle, storages, tensors } = self;
        let tensor = find(pickle, tensors, name)
            .ok_or_else(|| Error::format(format!("there is no tensor {what}")))?;
        let (float, size) = archive::float_type(&tensor).map_err(|other| {
            wrong(format!("has dtype {other}; expected float32, float64, float16 or bfloat16"))
        })?;
        let key = tensor.storage.key;
        let range = *storages.get(key).ok_or_else(|| {
            wrong(format!("is in the storage {}, which the file lacks", quote(key)))
        })?;
        let count = tensor.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let count = count.filter(|&count| count as u64 <= source.len()).ok_or_else(|| {
            wrong(format!("has shape {:?}, more numbers than the file has bytes", tensor.shape))
        })?;
        let shape = IxDyn(&tensor.shape);
        if count == 0 {
            return Ok(ArrayD::zeros(shape));
        }
        // The first element and the number of elements up to the last, in the storage.
        let axes = tensor.shape.iter().zip(&tensor.strides);
        let span = axes.clone().try_fold(1u64, |span, (&size, &stride)| {
            span.checked_add(stride.checked_mul(size as u64 - 1)?)
        });
        let first = tensor.first.checked_add(tensor.storage.first);
        let bytes = first.zip(span).and_then(|(first, span)| {
            let (start, len) = (first.checked_mul(size)?, span.checked_mul(size)?);
            (start.checked_add(len)? <= range.len).then_some((range.start + start, len))
        });
        let (start, len) = bytes.ok_or_else(|| {
            wrong(format!(
                "has shape {:?}, strides {:?} and offset {}, which reach beyond its storage of {} \
                 bytes",
                tensor.shape, tensor.strides, tensor.first, range.len
            ))
        })?;
        // Row-major strides. The stride of an axis of length 1 does not matter.
        let mut next = 1;
        let is_contiguous = axes.rev().all(|(&size, &stride)| {
            let expected = next;
            next *= size as u64;
            size == 1 || stride == expected
        });
        let numbers = float.widen(&source.read_at(&what, start, len)?);
        if is_contiguous {
            return Ok(ArrayD::from_shape_vec(shape, numbers).expect("as many numbers were read"));
        }
        Ok(ArrayD::from_shape_fn(shape, |index| {
            let axes = tensor.strides.iter().enumerate();
            numbers[axes.map(|(axis, &stride)| index[axis] * stride as usize).sum::<usize>()]
        }))
    }
}
