//! ONNX: reads the GRU nodes of any model, and writes a GRU as a model.
//!
//! ```no_run
//! use gru_wgpu::{Batch, Device, Gru, formats::onnx};
//! # use ndarray::Array3;
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! let options = onnx::OnnxOptions::new(); // the model's only GRU or stack of GRUs
//! let model = onnx::load("denoiser.onnx", &options)?;
//! let gru = Gru::with_params(model.params, &Device::auto())?;
//! # let x = Array3::zeros((1, 1, 1));
//! let y = gru.forward(&x)?.y; // [T, B, D·H], for any layout of the node
//!
//! // ONNX Runtime runs this file:
//! onnx::save("gru.onnx", gru.params(), &onnx::Inputs::new().with_h0(true))?;
//! # Ok(())
//! # }
//! ```
//!
//! The reader supports every attribute of the operator GRU up to opset 22. It refuses an activation
//! that needs numbers and has none, and a negative α of the ReLU-like functions
//! ([`Activation`] says why). W, R and B must be constants of the model: initializers, Constant
//! nodes, or external data in the model's folder. Nodes may slice, concatenate, rearrange, expand and
//! dequantize them, as exporters do. GRUs in functions and in the inner graphs of If, Loop and Scan
//! are read too, under the path to them: `call/gru`, `node/then_branch/gru`.
//!
//! GRU nodes are layers of one stack under three conditions. The nodes between them provably move
//! every element of one Y to the same time step, row and feature of the next X. The GRUs have the
//! same lengths. No GRU starts from the states of another.
//!
//! [`Activation`]: crate::Activation

mod activations;
mod constants;
mod graph;
mod grus;
mod inline;
mod node;
mod operations;
mod proto;
mod sizes;
mod stack;
mod tensor;
mod write;

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use ndarray::{Array3, Axis, concatenate};

use self::constants::ConstantFolding;
use self::graph::Graph;
use self::grus::GruNodes;
use self::proto::MAX_MODEL;
use self::write::onnx_config;
use super::files::{self, ByteSource};
use super::metadata::read_config;
use crate::error::{Error, Result};
use crate::formats::cell::Cell;
use crate::spec::config::{Bias, GruConfig, Layout, Reset, Update};
use crate::spec::params::Params;

pub use self::node::OptionalInput;
pub use self::write::{Inputs, save, write};

/// Options for reading a GRU from an ONNX model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnnxOptions {
    /// The name of the GRU node, or `first..last` for consecutive layers of a stack. The name of an
    /// unnamed node is its first output. With `None` the model must hold exactly one GRU or stack.
    pub node: Option<String>,
    /// True to accept weights and initial states that are infinite or NaN.
    pub allow_non_finite: bool,
}

impl OnnxOptions {
    /// Returns the default options: the model's only GRU, with finite weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the node's name, or `first..last`. `None` means the model's only GRU.
    #[must_use]
    pub fn with_node<'a>(self, node: impl Into<Option<&'a str>>) -> Self {
        Self { node: node.into().map(str::to_owned), ..self }
    }

    /// Sets whether weights that are infinite or NaN are accepted.
    #[must_use]
    pub fn with_non_finite(self, allow_non_finite: bool) -> Self {
        Self { allow_non_finite, ..self }
    }
}

/// A GRU read from an ONNX model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxModel {
    /// The parameters, gates stacked r, z, n as everywhere in this crate.
    pub params: Params,
    /// The names of the GRU nodes, one for each layer.
    pub nodes: Vec<String>,
    /// The order of the axes T and B of the first node's X, and so the layout of the data around
    /// the GRU in the model. A [`Batch`](crate::Batch) may have either layout.
    pub layout: Layout,
    /// The first states `initial_h`, `[L·D, B, H]`; [`OptionalInput::Nothing`] for zeros.
    pub h0: OptionalInput<Array3<f32>>,
    /// The row lengths `sequence_lens`, `[B]`.
    pub lengths: OptionalInput<Vec<usize>>,
    /// The files of external data that were read.
    pub external_data: Vec<PathBuf>,
    /// What is odd about the model, for its user to read.
    pub notes: Vec<String>,
}

/// Reads a GRU: one node, or a stack of nodes in which each reads the output of the one before.
///
/// # Errors
/// [`Error::Io`]; [`Error::Choice`] if the model holds no GRU, several, or not the one that the
/// options name; [`Error::Format`] if the file is not an ONNX model or the GRU cannot be used.
pub fn load(path: impl AsRef<Path>, options: &OnnxOptions) -> Result<OnnxModel> {
    let path = path.as_ref();
    files::open(path, |source| parse(source, Some(path), |graph| read_graph(graph, options)))
}

/// Like [`load`], from a stream. A stream has no folder, so external data cannot be read.
///
/// # Errors
/// The errors of [`load`].
pub fn read(from: impl Read + Seek, options: &OnnxOptions) -> Result<OnnxModel> {
    parse(ByteSource::new(from)?, None, |graph| read_graph(graph, options))
}

/// Returns the names of a model's GRUs, in the form that [`OnnxOptions::with_node`] takes: a node's
/// name, or `first..last` for a stack.
///
/// # Errors
/// The errors of [`load`].
pub fn names(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    files::open(path, |source| parse(source, Some(path), stack_names))
}

/// Like [`names`], from a stream.
///
/// # Errors
/// The errors of [`load`].
pub fn read_names(from: impl Read + Seek) -> Result<Vec<String>> {
    parse(ByteSource::new(from)?, None, stack_names)
}

/// Parses a model and passes its graph to `read`. `path` is the model's file, if it has one.
fn parse<S: Read + Seek, T>(
    mut source: ByteSource<S>,
    path: Option<&Path>,
    read: impl FnOnce(&ConstantFolding<'_>) -> Result<T>,
) -> Result<T> {
    let len = source.len();
    if len > MAX_MODEL {
        let reason = format!("it has {len} bytes; expected an ONNX model of at most {MAX_MODEL}");
        return Err(Error::format(reason));
    }
    let bytes = source.read_at("the model", 0, len)?;
    read(&ConstantFolding::new(&Graph::parse(bytes.into(), path)?))
}

fn stack_names(constants: &ConstantFolding<'_>) -> Result<Vec<String>> {
    Ok(GruNodes::read(constants)?.stack_names())
}

fn read_graph(constants: &ConstantFolding<'_>, options: &OnnxOptions) -> Result<OnnxModel> {
    let grus = GruNodes::read(constants)?;
    let chosen = grus.choose(options.node.as_deref())?;
    let nodes: Result<Vec<_>, &Error> = chosen.iter().map(|&i| grus.nodes[i].as_ref()).collect();
    let nodes = nodes.map_err(Error::clone)?;
    let allow_non_finite = options.allow_non_finite;
    let mut cells = Vec::new();
    for node in &nodes {
        cells.extend(node.cells(constants, allow_non_finite)?);
    }
    let first = nodes[0];
    let bias = if cells.iter().any(|cell| cell.bias_ih.is_some()) { Bias::Two } else { Bias::None };
    let config = first.config.clone().with_layers(nodes.len()).with_bias(bias);
    let stored = constants.graph.config_text.as_deref();
    let params = match stored.and_then(|text| stored_params(text, &config, &cells)) {
        Some(params) => params,
        None => Params::from_cells(&config, &cells)?,
    };
    let h0 =
        nodes.iter().map(|node| node.h0(constants, allow_non_finite)).collect::<Result<_>>()?;
    Ok(OnnxModel {
        params,
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        layout: first.layout,
        h0: joined_h0(h0, &config)?,
        lengths: first.lengths(constants)?,
        external_data: constants.graph.storage.files(),
        notes: notes(&constants.graph.producer, &config),
    })
}

/// Returns what is odd about a model of this configuration that `producer` wrote.
fn notes(producer: &str, config: &GruConfig) -> Vec<String> {
    let is_odd = producer == "pytorch" && config.reset == Reset::Before;
    let note = "the reset gate acts before the product, as the file says (linear_before_reset is 0), but PyTorch, \
                which wrote it, computes it after the product";
    is_odd.then(|| note.to_owned()).into_iter().collect()
}

/// Returns the parameters of a model written by this crate, in the configuration they had before
/// the conversion to ONNX. Returns `None` if the metadata does not match the nodes: the model was
/// edited since, and the nodes take precedence.
fn stored_params(text: &str, config: &GruConfig, cells: &[Cell]) -> Option<Params> {
    let (stored, _) = read_config(text).ok()?;
    if onnx_config(&stored).ok()? != *config {
        return None;
    }
    let mut cells = cells.to_vec();
    if stored.update == Update::Overwrites {
        cells.iter_mut().for_each(Cell::negate_z);
    }
    Params::from_cells(&stored, &cells).ok()
}

/// Concatenates the first states of the layers. If any of them is known only at run time, returns
/// the names of the sources of all such states.
fn joined_h0(
    per_layer: Vec<OptionalInput<Array3<f32>>>,
    config: &GruConfig,
) -> Result<OptionalInput<Array3<f32>>> {
    let mut batch = None;
    let mut sources = Vec::new();
    for layer in &per_layer {
        match layer {
            OptionalInput::Nothing => {}
            OptionalInput::Constant(h0) if batch.is_none_or(|batch| batch == h0.dim().1) => {
                batch = Some(h0.dim().1);
            }
            OptionalInput::Constant(_) => {
                let reason = "the initial_h of the layers have different batch sizes".to_owned();
                return Err(Error::format(reason));
            }
            OptionalInput::AtRun(source) if sources.contains(&source.as_str()) => {}
            OptionalInput::AtRun(source) => sources.push(source.as_str()),
        }
    }
    if !sources.is_empty() {
        return Ok(OptionalInput::AtRun(sources.join(", ")));
    }
    let Some(batch) = batch else { return Ok(OptionalInput::Nothing) };
    let zeros = Array3::zeros([config.directions(), batch, config.hidden_size]);
    let layers: Vec<_> = per_layer
        .iter()
        .map(|layer| if let OptionalInput::Constant(h0) = layer { h0.view() } else { zeros.view() })
        .collect();
    Ok(OptionalInput::Constant(
        concatenate(Axis(0), &layers).expect("all layers have one batch size and width"),
    ))
}
