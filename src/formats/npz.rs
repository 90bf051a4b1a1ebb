//! NumPy's `.npz`: arrays by name.
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
//! For layouts other than PyTorch's, [`load_arrays`] and [`save_arrays`] move the arrays as they
//! are named, and [`Cell`](super::Cell) converts them.

use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use ndarray::{ArrayD, ArrayViewD};
use zip::{CompressionMethod, ZipArchive};

use super::files::{self, ByteSource, check_finite};
use super::npy;
use crate::error::{Error, Result, quote};
use crate::spec::config::GruConfig;
use crate::spec::params::Params;

/// How strictly arrays are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NpzOptions {
    /// Whether weights that are infinite or NaN are taken.
    pub allow_non_finite: bool,
}

impl NpzOptions {
    /// Finite weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, taking weights that are infinite or NaN or not.
    #[must_use]
    pub fn with_non_finite(self, allow_non_finite: bool) -> Self {
        Self { allow_non_finite }
    }
}

/// Reads the parameters of a `config`: each from the array that `name` gives for its name here.
/// Other arrays are not looked at. float16 and float64 are converted.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when the file is no archive of arrays, one is missing or has
/// another shape than `config` asks for; those of [`GruConfig::validate`].
pub fn load(
    path: impl AsRef<Path>,
    config: &GruConfig,
    name: impl Fn(&str) -> String,
    options: &NpzOptions,
) -> Result<Params> {
    config.validate()?;
    files::open(path.as_ref(), |source| Archive::open(source)?.params(config, name, options))
}

/// As [`load`], from a stream.
///
/// # Errors
/// As [`load`], but for [`Error::Io`].
pub fn read(
    from: impl Read + Seek,
    config: &GruConfig,
    name: impl Fn(&str) -> String,
    options: &NpzOptions,
) -> Result<Params> {
    config.validate()?;
    Archive::open(ByteSource::new(from)?)?.params(config, name, options)
}

/// Reads the arrays of these names, in their order.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when the file is no archive of arrays or one is missing.
pub fn load_arrays<const N: usize>(
    path: impl AsRef<Path>,
    names: [&str; N],
) -> Result<[ArrayD<f32>; N]> {
    files::open(path.as_ref(), |source| Archive::open(source)?.arrays(names))
}

/// As [`load_arrays`], from a stream.
///
/// # Errors
/// [`Error::Format`].
pub fn read_arrays<const N: usize>(
    from: impl Read + Seek,
    names: [&str; N],
) -> Result<[ArrayD<f32>; N]> {
    Archive::open(ByteSource::new(from)?)?.arrays(names)
}

/// Writes every parameter as an array under the name that `name` gives it. Not compressed:
/// `numpy.load` reads it.
///
/// # Errors
/// [`Error::Io`], also for a name that comes twice.
pub fn save(path: impl AsRef<Path>, params: &Params, name: impl Fn(&str) -> String) -> Result<()> {
    save_arrays(path, named(params, name))
}

/// As [`save`], to a stream: one that seeks, for sizes are filled in after the arrays.
///
/// # Errors
/// As [`save`].
pub fn write(to: impl Write + Seek, params: &Params, name: impl Fn(&str) -> String) -> Result<()> {
    write_arrays(to, named(params, name))
}

/// Writes arrays under their names. Not compressed.
///
/// # Errors
/// [`Error::Io`], also for a name that comes twice.
pub fn save_arrays<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
) -> Result<()> {
    files::write_whole(path, |to| put(arrays, to))
}

/// As [`save_arrays`], to a stream, as [`write()`] does.
///
/// # Errors
/// As [`save_arrays`].
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
        // Read before the parameters are allocated: a file holds as much as it is long.
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

    /// What an archive says of sizes is not trusted: more than an array of the shape takes is never
    /// unpacked, nor, where there is no shape, more than packing can have made of so many bytes.
    fn array(&mut self, name: &str, shape: Option<&[usize]>) -> Result<ArrayD<f32>> {
        const DENSEST: u64 = 1032; // deflate's limit
        let quoted = quote(name);
        let entry = self.0.by_name(&format!("{name}.npy"));
        let entry = entry.map_err(|error| {
            Error::format_from(format!("there is no array {quoted} to be read: {error}"), error)
        })?;
        let numbers = match shape {
            Some(shape) => 8 * shape.iter().product::<usize>() as u64,
            None => entry.compressed_size().saturating_mul(DENSEST),
        };
        let in_array = |error: Error| error.within(&format!("the array {quoted}"));
        let most = numbers.saturating_add(npy::MAX_OVERHEAD);
        let bytes = npy::Bytes::of_stream(entry.take(most)).map_err(in_array)?;
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
