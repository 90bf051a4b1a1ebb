//! NumPy's `.npz` archives: arrays by name.
//!
//! ```no_run
//! use gru_wgpu::{GruConfig, formats::npz};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! let config = GruConfig::pytorch(3, 16);
//! let options = npz::NpzOptions::new();
//! let params = npz::load("encoder.npz", &config, |name| format!("encoder/{name}"), &options)?;
//! npz::save("gru.npz", &params, str::to_owned)?; // under PyTorch's names
//! # Ok(())
//! # }
//! ```
//!
//! For layouts other than PyTorch's, read and write plain arrays with [`load_arrays`] and
//! [`save_arrays`], and convert them with [`Cell`](super::Cell).

use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use ndarray::{ArrayD, ArrayViewD};
use zip::{CompressionMethod, ZipArchive};

use super::files::{self, ByteSource, check_finite};
use super::npy;
use crate::error::{Error, Result, quote};
use crate::spec::config::GruConfig;
use crate::spec::params::Params;

/// Options for reading weights from an `.npz` file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NpzOptions {
    /// True to accept weights that are infinite or NaN.
    pub allow_non_finite: bool,
}

impl NpzOptions {
    /// Returns the default options: only finite weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether weights that are infinite or NaN are accepted.
    #[must_use]
    pub fn with_non_finite(self, allow_non_finite: bool) -> Self {
        Self { allow_non_finite }
    }
}

/// Reads the parameters of a model with configuration `config`. `name` maps a parameter's name to
/// the name of its array in the file. Ignores other arrays. Converts float16 and float64.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] if the file is not an archive of arrays, or an array is missing
/// or does not have the shape that `config` requires; the errors of [`GruConfig::validate`].
pub fn load(
    path: impl AsRef<Path>,
    config: &GruConfig,
    name: impl Fn(&str) -> String,
    options: &NpzOptions,
) -> Result<Params> {
    config.validate()?;
    files::open(path.as_ref(), |source| Archive::open(source)?.params(config, name, options))
}

/// Like [`load`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read(
    from: impl Read + Seek,
    config: &GruConfig,
    name: impl Fn(&str) -> String,
    options: &NpzOptions,
) -> Result<Params> {
    config.validate()?;
    Archive::open(ByteSource::new(from)?)?.params(config, name, options)
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

/// Writes every parameter as an array, uncompressed. `name` maps a parameter's name to the name of
/// its array. `numpy.load` reads the file.
///
/// # Errors
/// [`Error::Io`], also if two arrays have the same name.
pub fn save(path: impl AsRef<Path>, params: &Params, name: impl Fn(&str) -> String) -> Result<()> {
    save_arrays(path, named(params, name))
}

/// Like [`save`], to a stream. The stream must seek, because sizes are filled in after the arrays.
///
/// # Errors
/// The errors of [`save`].
pub fn write(to: impl Write + Seek, params: &Params, name: impl Fn(&str) -> String) -> Result<()> {
    write_arrays(to, named(params, name))
}

/// Writes arrays under the given names, uncompressed.
///
/// # Errors
/// [`Error::Io`], also if two arrays have the same name.
pub fn save_arrays<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
) -> Result<()> {
    files::write_whole(path, |to| put(arrays, to))
}

/// Like [`save_arrays`], to a stream, which must seek as for [`write()`].
///
/// # Errors
/// The errors of [`save_arrays`].
pub fn write_arrays<'a>(
    to: impl Write + Seek,
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
) -> Result<()> {
    files::write_stream(to, |to| put(arrays, to))
}

fn named(
    params: &Params,
    name: impl Fn(&str) -> String,
) -> impl Iterator<Item = (String, ArrayViewD<'_, f32>)> {
    params.iter().map(move |(ours, array)| (name(ours), array))
}

fn put<'a>(
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
    to: impl Write + Seek,
) -> io::Result<()> {
    let mut archive = zip::ZipWriter::new(to);
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

struct Archive<S: Read + Seek>(ZipArchive<BufReader<S>>);

impl<S: Read + Seek> Archive<S> {
    fn open(source: ByteSource<S>) -> Result<Self> {
        let archive = ZipArchive::new(BufReader::new(source.into_inner()));
        let wrong = |error: zip::result::ZipError| Error::format_from(error.to_string(), error);
        Ok(Self(archive.map_err(wrong)?))
    }

    fn params(
        &mut self,
        config: &GruConfig,
        name: impl Fn(&str) -> String,
        options: &NpzOptions,
    ) -> Result<Params> {
        // Read all arrays before allocating the parameters: the file's length bounds the arrays,
        // but `config` may require more.
        let mut arrays = Vec::new();
        for (ours, shape) in config.tensors() {
            let theirs = name(&ours);
            let array = self.array(&theirs, Some(&shape))?;
            if !options.allow_non_finite {
                check_finite(&theirs, array.iter())?;
            }
            arrays.push((ours, array));
        }
        let mut params = Params::zeros(config)?;
        for (ours, array) in arrays {
            params.set(&ours, array.view())?;
        }
        Ok(params)
    }

    fn arrays<const N: usize>(&mut self, names: [&str; N]) -> Result<[ArrayD<f32>; N]> {
        let arrays: Result<Vec<_>> = names.iter().map(|name| self.array(name, None)).collect();
        Ok(arrays?.try_into().expect("an array for each name"))
    }

    /// Reads an array, and checks its shape if `shape` is given. The sizes in the archive are not
    /// trusted: this unpacks at most the bytes that an array of the given shape takes, or, without
    /// a shape, at most what deflate can have packed into the entry's compressed bytes.
    fn array(&mut self, name: &str, shape: Option<&[usize]>) -> Result<ArrayD<f32>> {
        const MAX_RATIO: u64 = 1032; // the largest compression ratio of deflate
        let quoted = quote(name);
        let entry = self.0.by_name(&format!("{name}.npy"));
        let entry = entry.map_err(|error| {
            Error::format_from(format!("the array {quoted} cannot be read: {error}"), error)
        })?;
        let max_data = match shape {
            Some(shape) => 8 * shape.iter().product::<usize>() as u64,
            None => entry.compressed_size().saturating_mul(MAX_RATIO),
        };
        let in_array = |error: Error| error.within(&format!("the array {quoted}"));
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
