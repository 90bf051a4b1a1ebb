//! NumPy's `.npz` archives: arrays by name.
//!
//! ```no_run
//! use gru_wgpu::formats::{StateDictOptions, WeightLayout, npz};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! // In Python: numpy.savez("keras.npz", **{w.path: w.numpy() for w in model.weights})
//! let options = StateDictOptions::new().with_prefix("sequential/gru");
//! let params = npz::load("keras.npz", &options)?;
//! npz::save("gru.npz", &params, WeightLayout::Pytorch)?;
//! # Ok(())
//! # }
//! ```
//!
//! A written file holds its definition in the archive's comment, which NumPy ignores, so it is read
//! again in the same definition. [`load_arrays`] and [`save_arrays`] read and write any arrays.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use ndarray::{ArrayD, ArrayViewD};
use zip::{CompressionMethod, ZipArchive};

use super::files::{self, ByteSource};
use super::layout_arrays;
use super::metadata::{CONFIG_KEY, read_config, write_config};
use super::npy;
use super::state_dict::{StateDict, StateDictOptions, StoredConfig, parse};
use super::weight_layout::WeightLayout;
use super::zip_archive;
use crate::error::{Error, Result, quote};
use crate::spec::params::Params;

/// Reads a GRU's parameters, from arrays in the layout of any framework ([`WeightLayout`]). Sizes,
/// layers, directions and biases follow from the names and shapes of the arrays; a file of [`save`]
/// holds the whole definition. Ignores other arrays. Converts float16 and float64.
///
/// # Errors
/// [`Error::Io`]; [`Error::Choice`] if the file holds no GRU, several, or not the one that the
/// options name; [`Error::Format`] if it is not an archive of arrays or its GRU cannot be used.
pub fn load(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| NpzFile::open(source)?.read_gru(options))
}

/// Like [`load`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read(from: impl Read + Seek, options: &StateDictOptions) -> Result<Params> {
    NpzFile::open(ByteSource::new(from)?)?.read_gru(options)
}

/// Returns the prefix of every GRU in a file; `""` for a GRU without a prefix.
///
/// # Errors
/// The errors of [`load`].
pub fn prefixes(path: impl AsRef<Path>) -> Result<Vec<String>> {
    files::open(path.as_ref(), |source| Ok(NpzFile::open(source)?.prefixes()))
}

/// Like [`prefixes`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_prefixes(from: impl Read + Seek) -> Result<Vec<String>> {
    Ok(NpzFile::open(ByteSource::new(from)?)?.prefixes())
}

/// Returns the layout of the GRU that the options choose.
///
/// # Errors
/// The errors of [`load`].
pub fn layout(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<WeightLayout> {
    files::open(path.as_ref(), |source| NpzFile::open(source)?.layout(options))
}

/// Like [`layout`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_layout(from: impl Read + Seek, options: &StateDictOptions) -> Result<WeightLayout> {
    NpzFile::open(ByteSource::new(from)?)?.layout(options)
}

/// Reads the arrays with these names, in the order of the names.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] if the file is not an archive of arrays or an array is missing.
pub fn load_arrays<const N: usize>(
    path: impl AsRef<Path>,
    names: [&str; N],
) -> Result<[ArrayD<f32>; N]> {
    files::open(path.as_ref(), |source| Archive::open(source)?.arrays(names))
}

/// Like [`load_arrays`], from a stream.
///
/// # Errors
/// The errors of [`load_arrays`].
pub fn read_arrays<const N: usize>(
    from: impl Read + Seek,
    names: [&str; N],
) -> Result<[ArrayD<f32>; N]> {
    Archive::open(ByteSource::new(from)?)?.arrays(names)
}

/// Writes a GRU's parameters in a layout, uncompressed, and their definition as the archive's
/// comment. `numpy.load` reads the file. In the layout of PyTorch every definition is read again
/// bit for bit. In another layout what z means is converted, and biases that the framework has no
/// place for are added to others. Does not write a head.
///
/// # Errors
/// [`Error::Io`]; [`Error::Conflict`] for a configuration that the framework cannot express:
/// zoneout; a clip, except in the layout of ONNX; [`Reset::Before`](crate::Reset::Before) in those
/// of Flax and MLX; other activations in that of MLX;
/// [`Update::Overwrites`](crate::Update::Overwrites) with a gate function for which
/// 1 − f(a) = f(−a) does not hold.
pub fn save(path: impl AsRef<Path>, params: &Params, layout: WeightLayout) -> Result<()> {
    let arrays = layout_arrays::arrays(params, layout)?;
    files::write_whole(path, |to| put(views(&arrays), &comment(params), to))
}

/// Like [`save`], to a stream. The stream must seek, because sizes are filled in after the arrays.
///
/// # Errors
/// The errors of [`save`].
pub fn write(to: impl Write + Seek, params: &Params, layout: WeightLayout) -> Result<()> {
    let arrays = layout_arrays::arrays(params, layout)?;
    files::write_stream(to, |to| put(views(&arrays), &comment(params), to))
}

fn views(arrays: &[(String, ArrayD<f32>)]) -> impl Iterator<Item = (String, ArrayViewD<'_, f32>)> {
    arrays.iter().map(|(name, array)| (name.clone(), array.view()))
}

/// Returns the text that a written archive has as its comment.
fn comment(params: &Params) -> String {
    format!("{CONFIG_KEY} {}", write_config(params.layout().config(), None))
}

/// Writes arrays under the given names, uncompressed.
///
/// # Errors
/// [`Error::Io`], also if two arrays have the same name.
pub fn save_arrays<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
) -> Result<()> {
    files::write_whole(path, |to| put(arrays, "", to))
}

/// Like [`save_arrays`], to a stream, which must seek as for [`write()`].
///
/// # Errors
/// The errors of [`save_arrays`].
pub fn write_arrays<'a>(
    to: impl Write + Seek,
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
) -> Result<()> {
    files::write_stream(to, |to| put(arrays, "", to))
}

fn put<'a>(
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
    comment: &str,
    to: impl Write + Seek,
) -> io::Result<()> {
    let mut archive = zip::ZipWriter::new(to);
    archive.set_comment(comment);
    let stored = zip::write::SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(true);
    for (name, array) in arrays {
        archive.start_file(format!("{name}.npy"), stored)?;
        let mut bytes = io::BufWriter::new(&mut archive);
        npy::put(array, &mut bytes)?;
        bytes.flush()?;
    }
    archive.finish()?;
    Ok(())
}

/// An archive whose headers are read, from which arrays can be read.
struct NpzFile<S: Read + Seek> {
    archive: Archive<S>,
    /// The shape of each array by its name, or what is wrong with its header.
    shapes: BTreeMap<String, Result<Vec<usize>>>,
    /// At most the bytes that the entries unpack to.
    len: u64,
}

impl<S: Read + Seek> NpzFile<S> {
    fn open(source: ByteSource<S>) -> Result<Self> {
        let mut archive = Archive::open(source)?;
        let (mut shapes, mut len) = (BTreeMap::new(), 0u64);
        for at in 0..archive.0.len() {
            let Ok(entry) = archive.0.by_index(at) else { continue };
            let Some(name) = entry.name().strip_suffix(".npy").map(str::to_owned) else { continue };
            len = len.saturating_add(entry.size().min(unpacked_len(&entry)));
            let shape = npy::read_shape(entry);
            // Only the arrays of GRUs must be in order. Those of other layouts are checked when
            // they are read.
            if parse(&name).is_some() {
                shape.clone().map_err(|error| error.within(&in_array(&name)))?;
            }
            shapes.insert(name, shape);
        }
        Ok(Self { archive, shapes, len })
    }
}

impl<S: Read + Seek> StateDict for NpzFile<S> {
    fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.shapes.keys().map(|name| Cow::Borrowed(&**name))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name)?.as_ref().ok().cloned()
    }

    fn tensor(&mut self, name: &str) -> Result<ArrayD<f32>> {
        match self.shapes.get(name) {
            None => Err(Error::format(format!("there is no array {}", quote(name)))),
            Some(Err(error)) => Err(error.clone().within(&in_array(name))),
            Some(Ok(shape)) => self.archive.array(name, Some(shape)),
        }
    }

    fn file_len(&self) -> u64 {
        self.len
    }

    fn stored_config(&self) -> Result<Option<StoredConfig>> {
        let comment = std::str::from_utf8(self.archive.0.comment()).unwrap_or("");
        let Some(text) = comment.strip_prefix(CONFIG_KEY) else { return Ok(None) };
        let (config, readout) = read_config(text)?;
        Ok(Some(StoredConfig { config, readout, is_of_all: false }))
    }
}

struct Archive<S: Read + Seek>(ZipArchive<BufReader<S>>);

impl<S: Read + Seek> Archive<S> {
    fn open(source: ByteSource<S>) -> Result<Self> {
        Ok(Self(zip_archive::open(source.into_inner())?))
    }

    fn arrays<const N: usize>(&mut self, names: [&str; N]) -> Result<[ArrayD<f32>; N]> {
        let arrays: Result<Vec<_>> = names.iter().map(|name| self.array(name, None)).collect();
        Ok(arrays?.try_into().expect("an array for each name"))
    }

    /// Reads an array, and checks its shape if `shape` is given. The sizes in the archive are not
    /// trusted: this unpacks at most the bytes that an array of the given shape takes, or, without
    /// a shape, at most what deflate can have packed into the entry's compressed bytes.
    fn array(&mut self, name: &str, shape: Option<&[usize]>) -> Result<ArrayD<f32>> {
        let quoted = quote(name);
        let entry = self.0.by_name(&format!("{name}.npy"));
        let entry = entry.map_err(|error| {
            Error::format_from(format!("the array {quoted} cannot be read: {error}"), error)
        })?;
        let max_data = match shape {
            Some(shape) => 8 * shape.iter().product::<usize>() as u64, // the header was checked
            None => unpacked_len(&entry),
        };
        let in_array = |error: Error| error.within(&in_array(name));
        let max_len = max_data.saturating_add(npy::MAX_OVERHEAD);
        let bytes = npy::AlignedBytes::from_stream(entry.take(max_len)).map_err(in_array)?;
        let (array, _) = npy::parse(bytes).map_err(in_array)?;
        match shape {
            Some(expected) if expected != array.shape() => Err(Error::format(format!(
                "the array {quoted} has shape {:?}, expected {expected:?}",
                array.shape()
            ))),
            _ => Ok(array),
        }
    }
}

/// Returns the most bytes that an entry can unpack to.
fn unpacked_len<R: Read>(entry: &zip::read::ZipFile<'_, R>) -> u64 {
    const MAX_RATIO: u64 = 1032; // the largest compression ratio of deflate
    entry.compressed_size().saturating_mul(MAX_RATIO)
}

fn in_array(name: &str) -> String {
    format!("the array {}", quote(name))
}
