//! safetensors: PyTorch's state dicts, and our own files.
//!
//! ```no_run
//! use gru_wgpu::{Device, Gru, formats::safetensors};
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! // In Python: safetensors.torch.save_file(model.state_dict(), "model.safetensors")
//! let options = safetensors::SafetensorsOptions::new().with_prefix("encoder.gru");
//! let params = safetensors::load("model.safetensors", &options)?;
//! let gru = Gru::with_params(params, &Device::auto())?;
//! safetensors::save("gru.safetensors", gru.params())?; // PyTorch reads it as an nn.GRU's
//! # Ok(())
//! # }
//! ```
//!
//! Only the header and the tensors asked for are read, by their places in the file: of a state dict
//! of gigabytes one GRU costs what it weighs. That is what a memory map would be for, without its
//! price: a mapped file that somebody shortens meanwhile ends the program, and no code can prove
//! that nobody does.

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
use super::files::{self, ByteSource, check_finite};
use super::metadata::{CONFIG_KEY, read_config, write_config};
use super::numbers::{arrays, widen_bf16, widen_f16};
use crate::error::{Error, Result, quote};
use crate::spec::config::{Bias, Direction, GruConfig};
use crate::spec::head::{Head, Readout};
use crate::spec::params::{Gradients, HEAD_BIAS, HEAD_WEIGHT, ParamLayout, Params};

/// What the crate `safetensors` allows for a header, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Which GRU to take out of a file, and how strictly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SafetensorsOptions {
    /// What stands in front of `weight_ih_l0` in the names of the GRU's tensors. Without it the
    /// file must hold a single GRU.
    pub prefix: Option<String>,
    /// Whether weights that are infinite or NaN are taken.
    pub allow_non_finite: bool,
}

impl SafetensorsOptions {
    /// The file's only GRU, of finite weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// The GRU under this prefix, with or without its last dot; the only one where it is `None`.
    #[must_use]
    pub fn with_prefix<'a>(self, prefix: impl Into<Option<&'a str>>) -> Self {
        Self { prefix: prefix.into().map(str::to_owned), ..self }
    }

    /// The same, taking weights that are infinite or NaN or not.
    #[must_use]
    pub fn with_non_finite(self, allow_non_finite: bool) -> Self {
        Self { allow_non_finite, ..self }
    }
}

/// Reads a GRU's parameters. A file of our own says what it computes; any other is taken to be
/// PyTorch's `nn.GRU` (or `nn.GRUCell`), whose sizes, layers, directions and biases follow from its
/// tensors' names and shapes. f16 and bf16 are widened, f64 is rounded.
///
/// # Errors
/// [`Error::Io`]; [`Error::Choice`] when there is no GRU or several, with what there is;
/// [`Error::Format`] or [`Error::Shape`] when the file is not one, or what it holds is no GRU that
/// can be used, with the reason.
pub fn load(path: impl AsRef<Path>, options: &SafetensorsOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| read_source(source, options))
}

/// As [`load`], from a stream.
///
/// # Errors
/// As [`load`], but for [`Error::Io`].
pub fn read(from: impl Read + Seek, options: &SafetensorsOptions) -> Result<Params> {
    read_source(ByteSource::new(from)?, options)
}

/// What stands in front of the names of every GRU in a file: `""` for one that stands alone.
///
/// # Errors
/// As [`load`].
pub fn prefixes(path: impl AsRef<Path>) -> Result<Vec<String>> {
    files::open(path.as_ref(), |source| Ok(Tensors::open(source)?.prefixes()))
}

/// As [`prefixes`], from a stream.
///
/// # Errors
/// As [`read`].
pub fn read_prefixes(from: impl Read + Seek) -> Result<Vec<String>> {
    Ok(Tensors::open(ByteSource::new(from)?)?.prefixes())
}

fn read_source<S: Read + Seek>(
    source: ByteSource<S>,
    options: &SafetensorsOptions,
) -> Result<Params> {
    let mut file = Tensors::open(source)?;
    let prefix = file.choose(options.prefix.as_deref())?;
    let config = match file.own()? {
        Some((config, _)) => config,
        None => file.infer(&prefix)?,
    };
    file.expect_tensors(&prefix, &config)?;
    file.params(&prefix, ParamLayout::new(&config)?, options.allow_non_finite)
}

/// Writes a GRU's parameters under PyTorch's names, with the configuration in the file's metadata,
/// so that every definition loads back bit for bit. A head is left out; [`save_network`] writes it,
/// too.
///
/// # Errors
/// [`Error::Io`].
pub fn save(path: impl AsRef<Path>, params: &Params) -> Result<()> {
    let file = encode_gru(params)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// As [`save`], to a stream.
///
/// # Errors
/// [`Error::Io`].
pub fn write(to: impl Write, params: &Params) -> Result<()> {
    let file = encode_gru(params)?;
    files::write_stream(to, |to| to.write_all(&file))
}

fn encode_gru(params: &Params) -> Result<Vec<u8>> {
    let config = write_config(params.layout().config(), None);
    let gru = params.iter().filter(|(name, _)| !is_of_head(name));
    encode_tensors(gru, Some((CONFIG_KEY, config)))
}

/// Writes a network's parameters, which have a head, such that PyTorch's `load_state_dict` takes
/// them for a module with an `nn.GRU` called `gru` and an `nn.Linear` called `head`. What the head
/// reads is in the metadata with the configuration.
///
/// # Errors
/// [`Error::Conflict`] when there is no head, [`Error::Io`].
pub fn save_network(path: impl AsRef<Path>, params: &Params) -> Result<()> {
    let file = encode_network(params)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// As [`save_network`], to a stream.
///
/// # Errors
/// As [`save_network`].
pub fn write_network(to: impl Write, params: &Params) -> Result<()> {
    let file = encode_network(params)?;
    files::write_stream(to, |to| to.write_all(&file))
}

fn encode_network(params: &Params) -> Result<Vec<u8>> {
    let layout = params.layout();
    let config = write_config(layout.config(), Some(layout.required_head()?.readout));
    encode_tensors(network_tensors("", layout, params.as_slice()), Some((CONFIG_KEY, config)))
}

/// Reads a network's parameters: what [`save_network`] wrote, also where its tensors were put under
/// a prefix since, or one of the networks of a [`Checkpoint`](crate::Checkpoint), by its GRU's
/// prefix. The head's `weight` and `bias` are looked for under `head`, beside the GRU.
///
/// # Errors
/// As [`load`], and [`Error::Format`] when there is no head, or it is not said what it reads.
pub fn load_network(path: impl AsRef<Path>, options: &SafetensorsOptions) -> Result<Params> {
    files::open(path.as_ref(), |source| read_network_source(source, options))
}

/// As [`load_network`], from a stream.
///
/// # Errors
/// As [`load_network`], but for [`Error::Io`].
pub fn read_network(from: impl Read + Seek, options: &SafetensorsOptions) -> Result<Params> {
    read_network_source(ByteSource::new(from)?, options)
}

fn read_network_source<S: Read + Seek>(
    source: ByteSource<S>,
    options: &SafetensorsOptions,
) -> Result<Params> {
    let mut file = Tensors::open(source)?;
    let prefix = file.choose(options.prefix.as_deref())?;
    let Some((config, Some(readout))) = file.own()? else {
        let reason = "its metadata tells of no GRU with a head; is it a file of save_network?";
        return Err(Error::format(reason.to_owned()));
    };
    let layout = file.network_layout(&prefix, &config, readout)?;
    file.params(&prefix, layout, options.allow_non_finite)
}

fn is_of_head(name: &str) -> bool {
    [HEAD_WEIGHT, HEAD_BIAS].contains(&name)
}

/// The name in a file of a network's parameter, whose GRU is under `gru`, such as `model.gru.`: the
/// head is its neighbour.
fn network_name(gru: &str, name: &str) -> String {
    let gru_name = gru.strip_suffix('.').unwrap_or(gru);
    let parent = gru_name.rfind('.').map_or("", |dot| &gru[..=dot]);
    if is_of_head(name) { format!("{parent}{name}") } else { format!("{gru}{name}") }
}

/// What a flat buffer holds of a network, under the names that a file has for it under `parent`.
pub(crate) fn network_tensors<'a>(
    parent: &str,
    layout: &'a ParamLayout,
    flat: &'a [f32],
) -> impl Iterator<Item = (String, ArrayViewD<'a, f32>)> {
    let gru = format!("{parent}gru.");
    layout.named(flat).map(move |(name, array)| (network_name(&gru, name), array))
}

/// Writes the gradient of every parameter under its name, of x as `input` and of h0 as `h0`.
///
/// # Errors
/// [`Error::Io`].
pub fn save_gradients(path: impl AsRef<Path>, gradients: &Gradients) -> Result<()> {
    let file = encode_gradients(gradients)?;
    files::write_whole(path, |to| to.write_all(&file))
}

/// As [`save_gradients`], to a stream.
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

/// The bytes of a file of these tensors. Its metadata is one entry at most: several would come in
/// another order in each file.
pub(crate) fn encode_tensors<'a, N: AsRef<str> + Ord + fmt::Display>(
    tensors: impl Iterator<Item = (N, ArrayViewD<'a, f32>)>,
    metadata: Option<(&str, String)>,
) -> Result<Vec<u8>> {
    let tensors = tensors.map(|(name, array)| (name, Tensor::new(array)));
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    safetensors::serialize(tensors, metadata)
        .map_err(|error| Error::format_from(error.to_string(), error))
}

/// An array as a file holds it: little-endian, row-major.
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

/// A file's header, checked, and where its tensors come from.
pub(crate) struct Tensors<S> {
    source: ByteSource<S>,
    /// Where the first tensor's bytes lie.
    data: u64,
    header: Metadata,
}

impl<S: Read + Seek> Tensors<S> {
    pub fn open(mut source: ByteSource<S>) -> Result<Self> {
        let len = source.part("the length of its header", 0, 8)?;
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes asked for"));
        if len > MAX_HEADER {
            return Err(Error::format(format!(
                "its header would take {len} bytes; is it a safetensors file?"
            )));
        }
        let header = source.part("its header", 8, len)?;
        let header = std::str::from_utf8(&header).map_err(|error| {
            Error::format_from(format!("its header is no text: {error}"), error)
        })?;
        check_names(header)?;
        let header: Metadata = serde_json::from_str(header).map_err(in_header)?;
        let (data, tensors) = (8 + len, header.data_len() as u64);
        if data.checked_add(tensors) != Some(source.len()) {
            return Err(Error::format(format!(
                "its header tells of {tensors} bytes of tensors, but there are {}",
                source.len() - data
            )));
        }
        Ok(Self { source, data, header })
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| &info.shape[..])
    }

    /// What stands in front of the names of every GRU in the file.
    fn prefixes(&self) -> Vec<String> {
        const FIRST: [&str; 3] = ["weight_ih_l0", "weight_ih_l0_reverse", "weight_ih"];
        let names = self.header.offset_keys();
        let firsts = names.iter().filter_map(|name| {
            let prefix = FIRST.iter().find_map(|first| name.strip_suffix(first))?;
            // What ends there is a name of its own, not the end of another.
            (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
        });
        let grus = firsts.filter(|prefix| self.first_cell(prefix).is_some());
        let mut prefixes: Vec<_> = grus.map(str::to_owned).collect();
        prefixes.sort();
        prefixes.dedup();
        prefixes
    }

    /// I, H and what the names of the first cell end with, when its shapes are those of three
    /// gates: an LSTM has four, a plain RNN one.
    fn first_cell(&self, prefix: &str) -> Option<(usize, usize, &'static str)> {
        ["_l0", "_l0_reverse"].into_iter().find_map(|cell| {
            let shape = |kind: &str| self.shape(&self.full_name(prefix, &format!("{kind}{cell}")));
            match (shape("weight_ih"), shape("weight_hh")) {
                (Some(&[rows, input]), Some(&[gates, hidden]))
                    if rows == gates && hidden.checked_mul(3) == Some(gates) =>
                {
                    Some((input, hidden, cell))
                }
                _ => None,
            }
        })
    }

    /// The prefix of the GRU that was asked for, or of the only one.
    fn choose(&self, asked: Option<&str>) -> Result<String> {
        let found = self.prefixes();
        let of = |prefix: &str| found.iter().find(|p| p.trim_end_matches('.') == prefix).cloned();
        let chosen = match asked {
            Some(asked) => of(asked.trim_end_matches('.')),
            None if found.len() == 1 => found.first().cloned(),
            None => None,
        };
        chosen.ok_or_else(|| Error::Choice {
            within: "the file".to_owned(),
            of: "GRU",
            asked: asked.map(str::to_owned),
            found,
            by: "prefix",
        })
    }

    /// The name of a parameter in the file. An `nn.GRUCell` has no layers to number.
    fn full_name(&self, prefix: &str, name: &str) -> String {
        let numbered = network_name(prefix, name);
        match name.strip_suffix("_l0") {
            Some(plain) if self.header.info(&numbered).is_none() => format!("{prefix}{plain}"),
            _ => numbered,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.header.offset_keys().len()
    }

    /// What the metadata holds under a key.
    pub fn entry(&self, key: &str) -> Option<&str> {
        Some(self.header.metadata().as_ref()?.get(key)?.as_str())
    }

    /// What a file of our own says of its GRU, and of what its head reads, also where its tensors
    /// were put under a prefix since. A checkpoint's GRUs are all of one configuration.
    fn own(&self) -> Result<Option<(GruConfig, Option<Readout>)>> {
        if let Some(entry) = self.entry(CHECKPOINT_KEY) {
            return read_config(CheckpointMetadata::parse(entry)?.model()?).map(Some);
        }
        let Some(config) = self.entry(CONFIG_KEY) else { return Ok(None) };
        match self.prefixes().len() {
            1 => read_config(config).map(Some),
            count => Err(Error::format(format!(
                "its metadata tells of one GRU, but it holds {count}: which of them is not known"
            ))),
        }
    }

    /// The layout of the network whose GRU is under `prefix`, when its tensors are there.
    pub fn network_layout(
        &self,
        prefix: &str,
        config: &GruConfig,
        readout: Readout,
    ) -> Result<ParamLayout> {
        self.expect_tensors(prefix, config)?;
        let [weight, bias] = [HEAD_WEIGHT, HEAD_BIAS].map(|name| self.full_name(prefix, name));
        let &[outputs] = self.shape(&bias).ok_or_else(|| missing(&bias))? else {
            return Err(Error::format(format!("{} has not one axis", quote(&bias))));
        };
        self.expect_shape(&weight, &[outputs, config.directions() * config.hidden_size])?;
        ParamLayout::with_head(config, Head { outputs, readout })
    }

    /// The parameters under `prefix`, whose tensors are known to be there in the shapes of
    /// `layout`.
    pub fn params(
        &mut self,
        prefix: &str,
        layout: ParamLayout,
        allow_non_finite: bool,
    ) -> Result<Params> {
        let mut params = Params::zeros_of(layout)?;
        for entry in params.layout().clone().entries() {
            let array = self.tensor(&self.full_name(prefix, &entry.name))?;
            if !allow_non_finite {
                check_finite(&entry.name, array.iter())?;
            }
            params.set(&entry.name, array.view())?;
        }
        Ok(params)
    }

    /// The `nn.GRU` that has these tensors.
    fn infer(&self, prefix: &str) -> Result<GruConfig> {
        let has = |tensor: &str| self.shape(&self.full_name(prefix, tensor)).is_some();
        let first = self.first_cell(prefix);
        let (input, hidden, cell) = first.expect("what was chosen has its first cell");
        let bias = match ["ih", "hh"].map(|side| has(&format!("bias_{side}{cell}"))) {
            [true, true] => Bias::Two,
            [false, false] => Bias::None,
            [ih, _] => {
                let (there, missing) = if ih { ("ih", "hh") } else { ("hh", "ih") };
                return Err(Error::format(format!(
                    "there is bias_{there}{cell} but no bias_{missing}{cell}; PyTorch has both or none, \
                     and where its one bias acts cannot be told"
                )));
            }
        };
        let direction = match [cell == "_l0_reverse", has("weight_ih_l0_reverse")] {
            [true, _] => Direction::Reverse,
            [false, true] => Direction::Both,
            [false, false] => Direction::Forward,
        };
        let end = cell.trim_start_matches("_l0");
        let mut layers = 1;
        while has(&format!("weight_ih_l{layers}{end}")) {
            layers += 1;
        }
        let config = GruConfig::pytorch(input, hidden).with_bias(bias);
        Ok(config.with_layers(layers).with_direction(direction))
    }

    /// `Ok` when the tensors are those of `config`: before anything of its size is allocated.
    fn expect_tensors(&self, prefix: &str, config: &GruConfig) -> Result<()> {
        config.validate()?;
        let mut known = HashSet::new();
        for (name, expected) in config.tensors() {
            let name = self.full_name(prefix, &name);
            self.expect_shape(&name, &expected)?;
            known.insert(name);
        }
        // A projection or a further layer would change what the GRU computes.
        let unknown = self.header.offset_keys().into_iter().find(|name| {
            let kind = name.strip_prefix(prefix).unwrap_or("");
            let ours = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"];
            ours.iter().any(|ours| kind.starts_with(ours)) && !known.contains(name)
        });
        match unknown {
            None => Ok(()),
            Some(name) => Err(Error::format(format!("a {config} has no tensor {}", quote(&name)))),
        }
    }

    fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        match self.shape(name) {
            None => Err(missing(name)),
            Some(got) if got == expected => Ok(()),
            Some(got) => Err(Error::format(format!(
                "{} has shape {got:?}, expected {expected:?}",
                quote(name)
            ))),
        }
    }

    fn tensor(&mut self, name: &str) -> Result<ArrayD<f32>> {
        let info = self.header.info(name).ok_or_else(|| missing(name))?.clone();
        let (first, end) = info.data_offsets;
        let what = quote(name);
        let bytes = self.source.part(&what, self.data + first as u64, (end - first) as u64)?;
        let numbers: Vec<f32> = match info.dtype {
            Dtype::F32 => arrays(&bytes).map(f32::from_le_bytes).collect(),
            Dtype::F64 => arrays(&bytes).map(|b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::F16 => widen_f16(&bytes),
            Dtype::BF16 => widen_bf16(&bytes),
            other => {
                let reason = format!("{what} is of {other:?}; expected F32, F64, F16 or BF16");
                return Err(Error::format(reason));
            }
        };
        Ok(ArrayD::from_shape_vec(IxDyn(&info.shape), numbers).expect("the header was checked"))
    }
}

fn missing(name: &str) -> Error {
    Error::format(format!("there is no tensor {}", quote(name)))
}

fn in_header(error: serde_json::Error) -> Error {
    Error::format_from(format!("its header: {}", quote(&error.to_string())), error)
}

/// What the crate `safetensors` does not refuse: names that come twice.
fn check_names(header: &str) -> Result<()> {
    let mut parser = serde_json::Deserializer::from_str(header);
    parser.deserialize_map(UniqueNames).and_then(|()| parser.end()).map_err(in_header)
}

struct UniqueNames;

impl<'de> Visitor<'de> for UniqueNames {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if let Some(name) = seen.replace(name) {
                return Err(serde::de::Error::custom(format!("`{name}` comes twice")));
            }
        }
        Ok(())
    }
}
