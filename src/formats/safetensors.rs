//! safetensors: PyTorch's state dicts, and this crate's own files.
//!
//! ```no_run
//! use gru_wgpu::{Device, Gru, formats::safetensors};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! // In Python: safetensors.torch.save_file(model.state_dict(), "model.safetensors")
//! let options = safetensors::SafetensorsOptions::new().with_prefix("encoder.gru");
//! let params = safetensors::load("model.safetensors", &options)?;
//! let gru = Gru::with_params(params, &Device::auto())?;
//! safetensors::save("gru.safetensors", gru.params())?; // PyTorch loads it into an nn.GRU
//! # Ok(())
//! # }
//! ```
//!
//! Readers read only the header and the tensors that they need, so one GRU of a state dict of
//! gigabytes costs no more than its own size. A memory map would save as much, but another process
//! that shortens a mapped file ends the program, and no code can rule that out.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{Read, Seek, Write};
use std::path::Path;

use ndarray::{ArrayD, ArrayViewD, IxDyn};
use safetensors::View;
use safetensors::tensor::{Dtype, Metadata};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::checkpoint_metadata::{CHECKPOINT_KEY, CheckpointMetadata};
use super::files::{self, ByteSource};
use super::layout_arrays;
use super::metadata::{CONFIG_KEY, read_config, write_config};
use super::numbers::FloatType;
use super::state_dict::{StateDict, StateDictOptions, StoredConfig, network_name};
use super::weight_layout::WeightLayout;
use crate::error::{Error, Result, quote};
use crate::spec::params::{Gradients, ParamLayout, Params};

/// The longest header that the crate `safetensors` allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Options for reading a GRU from a safetensors file.
pub type SafetensorsOptions = StateDictOptions;

/// Reads a GRU's parameters. A file written by this crate holds the configuration in its metadata.
/// Any other file is read as PyTorch's `nn.GRU` (or `nn.GRUCell`), or as the GRU of another
/// framework that its names tell ([`WeightLayout`]): sizes, layers, directions and biases follow
/// from the names and shapes of the tensors. f16 and bf16 are widened to f32, f64 is rounded.
///
/// # Errors
/// [`Error::Io`]; [`Error::Choice`] if the file holds no GRU, several, or not the one that the
/// options name; [`Error::Format`] or [`Error::Shape`] if it is not a safetensors file or its GRU
/// cannot be used.
pub fn load(path: impl AsRef<Path>, options: &SafetensorsOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| Tensors::open(source)?.read_gru(options))
}

/// Like [`load`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read(from: impl Read + Seek, options: &SafetensorsOptions) -> Result<Params> {
    Tensors::open(ByteSource::new(from)?)?.read_gru(options)
}

/// Returns the prefix of every GRU in a file; `""` for a GRU without a prefix.
///
/// # Errors
/// The errors of [`load`].
pub fn prefixes(path: impl AsRef<Path>) -> Result<Vec<String>> {
    files::open(path.as_ref(), |source| Ok(Tensors::open(source)?.prefixes()))
}

/// Like [`prefixes`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_prefixes(from: impl Read + Seek) -> Result<Vec<String>> {
    Ok(Tensors::open(ByteSource::new(from)?)?.prefixes())
}

/// Returns the layout of the GRU that the options choose.
///
/// # Errors
/// The errors of [`load`].
pub fn layout(path: impl AsRef<Path>, options: &SafetensorsOptions) -> Result<WeightLayout> {
    files::open(path.as_ref(), |source| Tensors::open(source)?.layout(options))
}

/// Like [`layout`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_layout(from: impl Read + Seek, options: &SafetensorsOptions) -> Result<WeightLayout> {
    Tensors::open(ByteSource::new(from)?)?.layout(options)
}

/// Writes a GRU's parameters under PyTorch's names and the configuration in the file's metadata, so
/// every configuration loads back bit for bit. Does not write a head; [`save_network`] does.
///
/// # Errors
/// [`Error::Io`].
pub fn save(path: impl AsRef<Path>, params: &Params) -> Result<()> {
    let file = encode_gru(params)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// Like [`save`], to a stream.
///
/// # Errors
/// [`Error::Io`].
pub fn write(to: impl Write, params: &Params) -> Result<()> {
    let file = encode_gru(params)?;
    files::write_stream(to, |to| to.write_all(&file))
}

/// Like [`save`], under the names and with the axes of another framework, which `layout` names. The
/// metadata holds the configuration here too. What z means is converted; biases that the framework
/// has no place for are added to others.
///
/// ```no_run
/// use gru_wgpu::formats::{WeightLayout, safetensors};
/// use gru_wgpu::{GruConfig, Init, Params};
///
/// let params = Params::init(&GruConfig::pytorch(3, 8), Init::Uniform, 1)?;
/// // In Python: mlx.nn.GRU(3, 8).load_weights("gru.safetensors")
/// safetensors::save_as("gru.safetensors", &params, WeightLayout::Mlx)?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`]; [`Error::Conflict`] for a configuration that the framework cannot express:
/// zoneout; a clip, except in the layout of ONNX; [`Reset::Before`](crate::Reset::Before) in those
/// of Flax and MLX; other activations in that of MLX;
/// [`Update::Overwrites`](crate::Update::Overwrites) with a gate function for which
/// 1 − f(a) = f(−a) does not hold.
pub fn save_as(path: impl AsRef<Path>, params: &Params, layout: WeightLayout) -> Result<()> {
    let file = encode_as(params, layout)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// Like [`save_as`], to a stream.
///
/// # Errors
/// The errors of [`save_as`].
pub fn write_as(to: impl Write, params: &Params, layout: WeightLayout) -> Result<()> {
    let file = encode_as(params, layout)?;
    files::write_stream(to, |to| to.write_all(&file))
}

fn encode_gru(params: &Params) -> Result<Vec<u8>> {
    encode_as(params, WeightLayout::Pytorch)
}

fn encode_as(params: &Params, layout: WeightLayout) -> Result<Vec<u8>> {
    let config = write_config(params.layout().config(), None);
    let arrays = layout_arrays::arrays(params, layout)?;
    let views = arrays.iter().map(|(name, array)| (name.as_str(), array.view()));
    encode_tensors(views, Some((CONFIG_KEY, config)))
}

/// Writes the parameters of a network: a GRU and its head. PyTorch's `load_state_dict` loads the
/// file into a module with an `nn.GRU` called `gru` and an `nn.Linear` called `head`. The metadata
/// holds the configuration and the head's [`Readout`](crate::Readout).
///
/// # Errors
/// [`Error::Conflict`] if there is no head; [`Error::Io`].
pub fn save_network(path: impl AsRef<Path>, params: &Params) -> Result<()> {
    let file = encode_network(params)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// Like [`save_network`], to a stream.
///
/// # Errors
/// The errors of [`save_network`].
pub fn write_network(to: impl Write, params: &Params) -> Result<()> {
    let file = encode_network(params)?;
    files::write_stream(to, |to| to.write_all(&file))
}

fn encode_network(params: &Params) -> Result<Vec<u8>> {
    let layout = params.layout();
    let config = write_config(layout.config(), Some(layout.required_head()?.readout));
    encode_tensors(network_tensors("", layout, params.as_slice()), Some((CONFIG_KEY, config)))
}

/// Reads a network's parameters: a GRU and its linear head. The options' prefix is the prefix of
/// the GRU.
///
/// - In a file of [`save_network`], even if its tensors have been moved under a prefix since, and
///   in a [`Checkpoint`](crate::Checkpoint), the head's `weight` and `bias` are next to the GRU,
///   under `head`, and the metadata says what it reads.
/// - In a file of another program the options say it ([`StateDictOptions::with_head`]), and the
///   head is found by its shape, or by its name. A head without a bias gets one of zeros.
///
/// # Errors
/// The errors of [`load`], and [`Error::Format`] if there is no head, or not the one that the
/// options describe; [`Error::Choice`] if several layers could be the head.
pub fn load_network(path: impl AsRef<Path>, options: &SafetensorsOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| Tensors::open(source)?.read_network(options))
}

/// Like [`load_network`], from a stream.
///
/// # Errors
/// The errors of [`load_network`].
pub fn read_network(from: impl Read + Seek, options: &SafetensorsOptions) -> Result<Params> {
    Tensors::open(ByteSource::new(from)?)?.read_network(options)
}

/// Returns the name of the head that [`load_network`] reads, such as `classifier.fc`.
///
/// # Errors
/// The errors of [`load_network`].
pub fn head_name(path: impl AsRef<Path>, options: &StateDictOptions) -> Result<String> {
    files::open(path.as_ref(), |source| Ok(Tensors::open(source)?.read_named_network(options)?.1))
}

/// Like [`head_name`], from a stream.
///
/// # Errors
/// The errors of [`load_network`].
pub fn read_head_name(from: impl Read + Seek, options: &StateDictOptions) -> Result<String> {
    Ok(Tensors::open(ByteSource::new(from)?)?.read_named_network(options)?.1)
}

/// Returns the tensors of a network in a flat buffer, with their names in a file under the prefix
/// `parent`.
pub(crate) fn network_tensors<'a>(
    parent: &str,
    layout: &'a ParamLayout,
    flat: &'a [f32],
) -> impl Iterator<Item = (String, ArrayViewD<'a, f32>)> {
    let gru = format!("{parent}gru.");
    layout.named(flat).map(move |(name, array)| (network_name(&gru, name), array))
}

/// Writes the gradient of every parameter under the parameter's name, the gradient of x as `input`
/// and the gradient of h0 as `h0`.
///
/// # Errors
/// [`Error::Io`].
pub fn save_gradients(path: impl AsRef<Path>, gradients: &Gradients) -> Result<()> {
    let file = encode_gradients(gradients)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// Like [`save_gradients`], to a stream.
///
/// # Errors
/// [`Error::Io`].
pub fn write_gradients(to: impl Write, gradients: &Gradients) -> Result<()> {
    let file = encode_gradients(gradients)?;
    files::write_stream(to, |to| to.write_all(&file))
}

fn encode_gradients(gradients: &Gradients) -> Result<Vec<u8>> {
    let others = [("input", gradients.x.view().into_dyn()), ("h0", gradients.h0.view().into_dyn())];
    encode_tensors(gradients.params.iter().chain(others), None)
}

/// Returns the bytes of a file with these tensors. The metadata has at most one entry, because the
/// order of several would differ from file to file.
pub(crate) fn encode_tensors<'a, N: AsRef<str> + Ord + fmt::Display>(
    tensors: impl Iterator<Item = (N, ArrayViewD<'a, f32>)>,
    metadata: Option<(&str, String)>,
) -> Result<Vec<u8>> {
    let tensors = tensors.map(|(name, array)| (name, Tensor::new(array)));
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    safetensors::serialize(tensors, metadata)
        .map_err(|error| Error::format_from(error.to_string(), error))
}

/// An array in the file's format: little-endian, row-major.
struct Tensor<'a> {
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    fn new(array: ArrayViewD<'a, f32>) -> Self {
        let bytes = match array.to_slice() {
            Some(slice) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(slice))
            }
            _ => array.iter().flat_map(|number| number.to_le_bytes()).collect(),
        };
        Self { shape: array.shape().to_vec(), bytes }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A file with a checked header, from which tensors can be read.
pub(crate) struct Tensors<S> {
    source: ByteSource<S>,
    /// The offset of the tensor data in the file.
    data: u64,
    header: Metadata,
}

impl<S: Read + Seek> Tensors<S> {
    /// Reads and checks the header.
    pub fn open(mut source: ByteSource<S>) -> Result<Self> {
        let len = source.read_at("the length of its header", 0, 8)?;
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes were read"));
        if len > MAX_HEADER {
            return Err(Error::format(format!(
                "its header takes {len} bytes, more than the {MAX_HEADER} allowed; is it a safetensors file?"
            )));
        }
        let header = source.read_at("its header", 8, len)?;
        let header = std::str::from_utf8(&header).map_err(|error| {
            Error::format_from(format!("its header is not UTF-8: {error}"), error)
        })?;
        check_names(header)?;
        let header: Metadata = serde_json::from_str(header).map_err(in_header)?;
        let (data, tensors) = (8 + len, header.data_len() as u64);
        if data.checked_add(tensors) != Some(source.len()) {
            return Err(Error::format(format!(
                "its header describes {tensors} bytes of tensors, but the file has {}; the file is \
                 damaged",
                source.len() - data
            )));
        }
        Ok(Self { source, data, header })
    }

    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The number of tensors.
    pub fn count(&self) -> usize {
        self.header.offset_keys().len()
    }

    /// Returns the metadata entry under a key.
    pub fn entry(&self, key: &str) -> Option<&str> {
        Some(self.header.metadata().as_ref()?.get(key)?.as_str())
    }
}

impl<S: Read + Seek> StateDict for Tensors<S> {
    fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.header.offset_keys().into_iter().map(Cow::Owned)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.header.info(name).map(|info| info.shape.clone())
    }

    fn tensor(&mut self, name: &str) -> Result<ArrayD<f32>> {
        let what = quote(name);
        let info = self.header.info(name);
        let info = info.ok_or_else(|| Error::format(format!("there is no tensor {what}")))?;
        let (first, end) = info.data_offsets;
        let float = match info.dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F64 => FloatType::F64,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::Bf16,
            other => {
                let reason = format!("{what} has dtype {other:?}; expected F32, F64, F16 or BF16");
                return Err(Error::format(reason));
            }
        };
        let bytes = self.source.read_at(&what, self.data + first as u64, (end - first) as u64)?;
        let numbers = float.widen(&bytes);
        Ok(ArrayD::from_shape_vec(IxDyn(&info.shape), numbers).expect("the header was checked"))
    }

    fn file_len(&self) -> u64 {
        self.source.len()
    }

    /// The tensors may have been moved under a prefix since. All GRUs of a checkpoint have the same
    /// configuration.
    fn stored_config(&self) -> Result<Option<StoredConfig>> {
        let stored = |(config, readout), is_of_all| StoredConfig { config, readout, is_of_all };
        if let Some(entry) = self.entry(CHECKPOINT_KEY) {
            let entry = CheckpointMetadata::parse(entry)?;
            return Ok(Some(stored(read_config(entry.model()?)?, true)));
        }
        let config = self.entry(CONFIG_KEY).map(read_config).transpose()?;
        Ok(config.map(|config| stored(config, false)))
    }
}

fn in_header(error: serde_json::Error) -> Error {
    Error::format_from(format!("its header is not valid: {}", quote(&error.to_string())), error)
}

/// Refuses a header with duplicate names, which the crate `safetensors` accepts.
fn check_names(header: &str) -> Result<()> {
    let mut parser = serde_json::Deserializer::from_str(header);
    parser.deserialize_map(UniqueNames).and_then(|()| parser.end()).map_err(in_header)
}

struct UniqueNames;

impl<'de> Visitor<'de> for UniqueNames {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if let Some(name) = seen.replace(name) {
                return Err(serde::de::Error::custom(format!("the name `{name}` appears twice")));
            }
        }
        Ok(())
    }
}
