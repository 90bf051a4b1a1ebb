//! NumPy's `.npz`: arrays by name.
//!
//! ```no_run
//! use gru_wgpu::{GruConfig, formats::npz};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! let config = GruConfig::pytorch(3, 16);
//! let options = npz::LoadOptions::new();
//! let params = npz::load("encoder.npz", &config, |name| format!("encoder/{name}"), &options)?;
//! npz::save("gru.npz", &params, str::to_owned)?; // under PyTorch's names
//! # Ok(())
//! # }
//! ```
//!
//! For layouts other than PyTorch's, [`load_arrays`] and [`save_arrays`] move the arrays as they are
//! named, and [`Cell`](super::Cell) converts them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use ndarray::{ArrayD, ArrayViewD};
use ndarray_npy::WriteNpyExt;
use zip::{CompressionMethod, ZipArchive};

use super::files::{self, Source, check_finite};
use super::npy;
use crate::error::{Error, Result, quote};
use crate::spec::config::GruConfig;
use crate::spec::params::Params;

/// How strictly arrays are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Whether weights that are infinite or NaN are taken.
    pub allow_non_finite: bool,
}

impl LoadOptions {
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

/// Reads the parameters of a `config`: each from the array that `name` gives for its name here. Other
/// arrays are not looked at. float16 and float64 are converted.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when the file is no archive of arrays, one is missing or has another
/// shape than `config` asks for; those of [`GruConfig::validate`].
pub fn load(
    path: impl AsRef<Path>,
    config: &GruConfig,
    name: impl Fn(&str) -> String,
    options: &LoadOptions,
) -> Result<Params> {
    config.validate()?;
    files::open(path.as_ref(), |source| {
        let mut archive = Archive::open(source)?;
        let names = config.tensors().map(|(ours, shape)| (name(&ours), ours, shape));
        let mut arrays = Vec::new();
        // Read before the parameters are allocated: a file holds as much as it is long.
        for (theirs, ours, shape) in names {
            let array = archive.array(&theirs, Some(&shape))?;
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
    })
}

/// Reads the arrays of these names, in their order.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when the file is no archive of arrays or one is missing.
pub fn load_arrays<const N: usize>(
    path: impl AsRef<Path>,
    names: [&str; N],
) -> Result<[ArrayD<f32>; N]> {
    files::open(path.as_ref(), |source| {
        let mut archive = Archive::open(source)?;
        let arrays: Result<Vec<_>> = names.iter().map(|name| archive.array(name, None)).collect();
        Ok(arrays?.try_into().expect("an array for each name"))
    })
}

/// Writes every parameter as an array under the name that `name` gives it. Not compressed:
/// `numpy.load` reads it.
///
/// # Errors
/// [`Error::Io`].
pub fn save(path: impl AsRef<Path>, params: &Params, name: impl Fn(&str) -> String) -> Result<()> {
    save_arrays(path, params.iter().map(|(ours, array)| (name(ours), array)))
}

/// Writes arrays under their names. Not compressed.
///
/// # Errors
/// [`Error::Io`], also for a name that comes twice.
pub fn save_arrays<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (String, ArrayViewD<'a, f32>)>,
) -> Result<()> {
    files::write_whole(path, |to| {
        let mut archive = zip::ZipWriter::new(to);
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        for (name, array) in arrays {
            archive.start_file(format!("{name}.npy"), stored)?;
            let mut bytes = io::BufWriter::new(&mut archive);
            let array = array.as_standard_layout();
            array.write_npy(&mut bytes).map_err(io::Error::other)?;
            bytes.flush()?;
        }
        archive.finish()?;
        Ok(())
    })
}

struct Archive<S: Read + Seek>(ZipArchive<BufReader<S>>);

impl Archive<File> {
    fn open(source: Source<File>) -> Result<Self> {
        let archive = ZipArchive::new(BufReader::new(source.into_inner()));
        let wrong = |error: zip::result::ZipError| Error::Format(error.to_string());
        Ok(Self(archive.map_err(wrong)?))
    }

    /// What an archive says of sizes is not trusted: more than an array of the shape takes is never
    /// unpacked, nor, where there is no shape, more than packing can have made of so many bytes.
    fn array(&mut self, name: &str, shape: Option<&[usize]>) -> Result<ArrayD<f32>> {
        const DENSEST: u64 = 1032; // deflate's limit
        let quoted = quote(name);
        let entry = self.0.by_name(&format!("{name}.npy"));
        let entry = entry.map_err(|error| {
            Error::Format(format!("there is no array {quoted} to be read: {error}"))
        })?;
        let numbers = match shape {
            Some(shape) => 8 * shape.iter().product::<usize>() as u64,
            None => entry.compressed_size().saturating_mul(DENSEST),
        };
        let in_array = |error| match error {
            Error::Format(reason) => Error::Format(format!("the array {quoted}: {reason}")),
            other => other,
        };
        let most = numbers.saturating_add(npy::MAX_OVERHEAD);
        let bytes = npy::Bytes::of_stream(entry.take(most)).map_err(in_array)?;
        let (array, _) = npy::parse(bytes).map_err(in_array)?;
        match shape {
            Some(expected) if expected != array.shape() => Err(Error::Format(format!(
                "the array {quoted} has shape {:?}, expected {expected:?}",
                array.shape()
            ))),
            _ => Ok(array),
        }
    }
}
