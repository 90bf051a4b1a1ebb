//! ONNX: the GRU nodes of any model, and a GRU as a model.
//!
//! ```no_run
//! use gru_wgpu::{Batch, Device, Gru, formats::onnx};
//! # use ndarray::Array3;
//!
//! # fn main() -> gru_wgpu::Result<()> {
//! let model = onnx::load("denoiser.onnx", &onnx::OnnxOptions::new())?; // its only GRU, or stack of them
//! let gru = Gru::with_params(model.params, &Device::auto())?;
//! # let x = Array3::zeros((1, 1, 1));
//! let y = gru.forward(&x)?.y; // [T, B, D·H], whatever the node's own layout
//!
//! onnx::save("gru.onnx", gru.params(), &onnx::Inputs::new().with_h0(true))?; // ONNX Runtime runs it
//! # Ok(())
//! # }
//! ```
//!
//! Of the operator GRU up to opset 22 everything is read but `clip`, activations that
//! [`Activation`] does not have, and different ones in the two directions, which are refused by
//! name. W, R and B must be in the model: initialisers, constants or external data in the model's
//! folder, as they are or cut, joined and rearranged by nodes, as exporters leave them. Only the
//! model's outermost graph is looked at.
//!
//! GRU nodes are layers of one stack where all that lies between them is sure to bring each number
//! of one's Y to its time, row and feature of the next one's X, where they have the same lengths,
//! and where none starts from another one's states.
//!
//! [`Activation`]: crate::Activation

mod constants;
mod graph;
mod grus;
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
use self::write::{expressed, with_z_negated};
use super::files::{self, ByteSource};
use super::metadata::read_config;
use crate::error::{Error, Result};
use crate::formats::cell::Cell;
use crate::spec::config::{Bias, GruConfig, Layout, Update};
use crate::spec::params::Params;

pub use self::node::OptionalInput;
pub use self::write::{Inputs, save, write};

/// Which GRU to take out of a model, and how strictly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnnxOptions {
    /// The node's name, or `first..last` for a part of a stack; an unnamed node goes by its first
    /// output. Without it the model must hold a single GRU, or a single stack of them.
    pub node: Option<String>,
    /// Whether weights that are infinite or NaN are taken.
    pub allow_non_finite: bool,
}

impl OnnxOptions {
    /// The model's only GRU, of finite weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// The GRU of this name, or of these names: `first..last`; the only one where it is `None`.
    #[must_use]
    pub fn with_node<'a>(self, node: impl Into<Option<&'a str>>) -> Self {
        Self { node: node.into().map(str::to_owned), ..self }
    }

    /// The same, taking weights that are infinite or NaN or not.
    #[must_use]
    pub fn with_non_finite(self, allow_non_finite: bool) -> Self {
        Self { allow_non_finite, ..self }
    }
}

/// A GRU out of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxModel {
    /// Its parameters, gates stacked r, z, n as everywhere in this crate.
    pub params: Params,
    /// The names of its nodes, one a layer.
    pub nodes: Vec<String>,
    /// The order of the axes T and B of the first node's X. It says how the model's other nodes
    /// hold the data; a [`Batch`](crate::Batch) may have either.
    pub layout: Layout,
    /// The states `[L·D, B, H]` that it starts from: `initial_h`. Zeros are [`OptionalInput::Nothing`].
    pub h0: OptionalInput<Array3<f32>>,
    /// The length of each row: `sequence_lens`.
    pub lengths: OptionalInput<Vec<usize>>,
    /// The files besides the model's own that something was read from.
    pub external_data: Vec<PathBuf>,
}

/// Reads a GRU: a node, or several whose outputs are each other's inputs as one stack of layers.
///
/// # Errors
/// [`Error::Io`]; [`Error::Choice`] when there is no GRU or several, with what there is;
/// [`Error::Format`] when the file is no model, or the GRU cannot be used, with the reason.
pub fn load(path: impl AsRef<Path>, options: &OnnxOptions) -> Result<OnnxModel> {
    let path = path.as_ref();
    files::open(path, |source| parse(source, Some(path), |graph| read_graph(graph, options)))
}

/// As [`load`], from a stream. There is no folder for external data then.
///
/// # Errors
/// As [`load`], but for [`Error::Io`].
pub fn read(from: impl Read + Seek, options: &OnnxOptions) -> Result<OnnxModel> {
    parse(ByteSource::new(from)?, None, |graph| read_graph(graph, options))
}

/// The names of a model's GRUs, as [`OnnxOptions::with_node`] takes them: of a node, or
/// `first..last` of several that are layers of one stack.
///
/// # Errors
/// As [`load`].
pub fn names(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    files::open(path, |source| parse(source, Some(path), stack_names))
}

/// As [`names`], from a stream.
///
/// # Errors
/// As [`read`].
pub fn read_names(from: impl Read + Seek) -> Result<Vec<String>> {
    parse(ByteSource::new(from)?, None, stack_names)
}

/// Has `read` look into the graph of a model that lies at `path`, if anywhere.
fn parse<S: Read + Seek, T>(
    mut source: ByteSource<S>,
    path: Option<&Path>,
    read: impl FnOnce(&ConstantFolding<'_>) -> Result<T>,
) -> Result<T> {
    let len = source.len();
    if len > MAX_MODEL {
        let reason = format!("it has {len} bytes; a model ends at {MAX_MODEL}");
        return Err(Error::format(reason));
    }
    let bytes = source.part("the model", 0, len)?;
    read(&ConstantFolding::of(&Graph::parse(bytes.into(), path)?))
}

fn stack_names(constants: &ConstantFolding<'_>) -> Result<Vec<String>> {
    Ok(GruNodes::of(constants)?.stack_names())
}

fn read_graph(constants: &ConstantFolding<'_>, options: &OnnxOptions) -> Result<OnnxModel> {
    let grus = GruNodes::of(constants)?;
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
    let own = constants.graph.config_text.as_deref();
    let params = match own.and_then(|text| own_params(text, &config, &cells)) {
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
    })
}

/// A model of our own, as it was before it was put in ONNX's terms. `None` when the metadata tells
/// of another model than the nodes are: then somebody changed it, and the nodes count.
fn own_params(text: &str, config: &GruConfig, cells: &[Cell]) -> Option<Params> {
    let (own, _) = read_config(text).ok()?;
    if expressed(&own).ok()? != *config {
        return None;
    }
    let cells: Vec<_> = match own.update {
        Update::Keeps => cells.to_vec(),
        Update::Overwrites => cells.iter().map(with_z_negated).collect(),
    };
    Params::from_cells(&own, &cells).ok()
}

/// The first states of all layers, from those of each.
fn joined_h0(
    of_layers: Vec<OptionalInput<Array3<f32>>>,
    config: &GruConfig,
) -> Result<OptionalInput<Array3<f32>>> {
    let mut batch = None;
    let mut words = Vec::new();
    for given in &of_layers {
        match given {
            OptionalInput::Nothing => {}
            OptionalInput::Constant(h0) if batch.is_none_or(|batch| batch == h0.dim().1) => {
                batch = Some(h0.dim().1);
            }
            OptionalInput::Constant(_) => {
                let reason = "its layers' initial_h are of different batches".to_owned();
                return Err(Error::format(reason));
            }
            OptionalInput::AtRun(of_layer) if words.contains(&of_layer.as_str()) => {}
            OptionalInput::AtRun(of_layer) => words.push(of_layer.as_str()),
        }
    }
    if !words.is_empty() {
        return Ok(OptionalInput::AtRun(words.join(", ")));
    }
    let Some(batch) = batch else { return Ok(OptionalInput::Nothing) };
    let zeros = Array3::zeros([config.directions(), batch, config.hidden_size]);
    let layers: Vec<_> = of_layers
        .iter()
        .map(|given| if let OptionalInput::Constant(h0) = given { h0.view() } else { zeros.view() })
        .collect();
    Ok(OptionalInput::Constant(concatenate(Axis(0), &layers).expect("all of one batch and width")))
}
