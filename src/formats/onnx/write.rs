//! Writes a GRU as an ONNX model.

use std::io::Write;
use std::path::Path;

use ndarray::{ArrayView, Dimension};
use prost::Message;
use prost::bytes::Bytes;

use super::activations;
use super::proto::{
    AttributeProto, Dimension as Size, DimensionProto, GraphProto, MAX_MODEL, ModelProto,
    NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};
use crate::error::{Error, Result};
use crate::formats::cell::{Cell, can_negate_z, onnx_layer};
use crate::formats::files;
use crate::formats::metadata::{CONFIG_KEY, write_config};
use crate::spec::activation::Activations;
use crate::spec::config::{Bias, Direction, GruConfig, Reset, Update};
use crate::spec::params::Params;

/// The lowest opset with everything that is used here, so that old runtimes read the model too.
const OPSET: i64 = 14;
const IR_VERSION: i64 = 7;

/// The inputs of a written model in addition to `x`. Inputs of an ONNX model are not optional: each
/// must be given to run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inputs {
    /// True for the input `h0 [L·D, B, H]`, the first states. Without it they are zeros.
    pub h0: bool,
    /// True for the input `lengths [B]` of int32, the row lengths. Without it every row has T
    /// steps.
    pub lengths: bool,
}

impl Inputs {
    /// Returns the default: only `x`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the model has the input `h0`.
    #[must_use]
    pub fn with_h0(self, h0: bool) -> Self {
        Self { h0, ..self }
    }

    /// Sets whether the model has the input `lengths`.
    #[must_use]
    pub fn with_lengths(self, lengths: bool) -> Self {
        Self { lengths, ..self }
    }
}

/// Writes a GRU as an ONNX model of opset 14. It maps x `[T, B, I]` to y `[T, B, D·H]` and h_n
/// `[L·D, B, H]`, with dynamic T and B.
///
/// ONNX's update is [`Update::Keeps`]. For [`Update::Overwrites`] the weights and biases of z are
/// written with the opposite sign, which gives the same results: 1 − σ(a) = σ(−a). The metadata
/// holds the configuration, so [`load`](super::load) returns the same bits, and the dropout
/// probability too, which has no effect in inference.
///
/// # Errors
/// [`Error::Io`]; [`Error::Conflict`] for configurations that ONNX cannot express: zoneout, and
/// [`Update::Overwrites`] with a gate function for which 1 − f(a) = f(−a) does not hold (it does
/// for a sigmoid, and for a hard sigmoid with β = 1/2);
/// [`Error::Format`] if the model is larger than an ONNX file can be.
pub fn save(path: impl AsRef<Path>, params: &Params, inputs: &Inputs) -> Result<()> {
    let model = encode(params, inputs)?;
    files::write_whole(path, |to| to.write_all(&model))
}

/// Like [`save`], to a stream.
///
/// # Errors
/// The errors of [`save`].
pub fn write(to: impl Write, params: &Params, inputs: &Inputs) -> Result<()> {
    let model = encode(params, inputs)?;
    files::write_stream(to, |to| to.write_all(&model))
}

/// Returns the bytes of the model.
fn encode(params: &Params, inputs: &Inputs) -> Result<Vec<u8>> {
    let config = params.layout().config();
    let onnx_config = onnx_config(config)?;
    let mut cells = params.to_cells();
    if config.update == Update::Overwrites {
        cells.iter_mut().for_each(Cell::negate_z);
    }
    let mut graph = GraphBuilder::new(&onnx_config, inputs);
    for (layer, cells) in cells.chunks(config.directions()).enumerate() {
        graph.add_layer(layer, cells);
    }
    graph.join_states();
    graph.keep_first_states();
    let value = write_config(config, None);
    let entry = StringStringEntryProto { key: CONFIG_KEY.to_owned(), value };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(bytes(&graph.proto)),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        functions: Vec::new(),
        metadata_props: vec![bytes(&entry)],
    };
    match model.encoded_len() as u64 {
        len if len <= MAX_MODEL => Ok(model.encode_to_vec()),
        len => Err(Error::format(format!(
            "the model takes {len} bytes, but an ONNX file holds at most {MAX_MODEL}"
        ))),
    }
}

/// Returns the configuration of the equivalent ONNX model, or an error if there is none.
pub(super) fn onnx_config(config: &GruConfig) -> Result<GruConfig> {
    let refused = |what, why| Err(Error::Conflict { what, why });
    if config.zoneout > 0.0 {
        return refused(
            "zoneout and ONNX",
            "ONNX's GRU has no zoneout; set it to 0 to export the model",
        );
    }
    if config.update == Update::Overwrites && !can_negate_z(config) {
        return refused(
            "gates of this activation, Update::Overwrites and ONNX",
            "ONNX's update is Update::Keeps, and only gates with 1 − f(a) = f(−a) can be converted, \
             such as a sigmoid",
        );
    }
    let bias = if config.bias == Bias::None { Bias::None } else { Bias::Two };
    Ok(config.clone().with_update(Update::Keeps).with_bias(bias).with_dropout(0.0))
}

/// A graph under construction.
struct GraphBuilder<'a> {
    config: &'a GruConfig,
    inputs: &'a Inputs,
    proto: GraphProto,
}

impl<'a> GraphBuilder<'a> {
    fn new(config: &'a GruConfig, inputs: &'a Inputs) -> Self {
        let GruConfig { input_size, hidden_size: hidden, layers, .. } = *config;
        let (fixed, dynamic) = (
            |size: usize| Size::DimValue(size as i64),
            |name: &str| Size::DimParam(name.to_owned()),
        );
        let (directions, float) = (config.directions(), data_type::FLOAT);
        let states = || vec![fixed(layers * directions), dynamic("B"), fixed(hidden)];
        let mut graph_inputs =
            vec![value("x", float, vec![dynamic("T"), dynamic("B"), fixed(input_size)])];
        if inputs.h0 {
            graph_inputs.push(value("h0", float, states()));
        }
        if inputs.lengths {
            graph_inputs.push(value("lengths", data_type::INT32, vec![dynamic("B")]));
        }
        let y = vec![dynamic("T"), dynamic("B"), fixed(directions * hidden)];
        let proto = GraphProto {
            name: "gru".to_owned(),
            input: graph_inputs,
            output: vec![value("y", float, y), value("h_n", float, states())],
            ..Default::default()
        };
        let mut graph = Self { config, inputs, proto };
        if directions == 1 {
            graph.add_integers("direction_axis", &[1]);
        } else {
            graph.add_integers("joined_shape", &[0, 0, -1]);
        }
        if inputs.h0 && layers > 1 {
            graph.add_integers("h0_sizes", &vec![directions as i64; layers]);
            let names: Vec<_> = (0..layers).map(|layer| format!("h0_l{layer}")).collect();
            let attributes = [integer("axis", 0)];
            graph.add("Split", "split_h0", &["h0", "h0_sizes"], &names, &attributes);
        }
        graph
    }

    /// Adds the weights and nodes of a layer.
    fn add_layer(&mut self, layer: usize, cells: &[Cell]) {
        let is_only = self.config.layers == 1;
        let named = |name: &str| format!("{name}_l{layer}");
        let arrays = onnx_layer(cells);
        for (name, array) in &arrays {
            self.add_floats(&named(name), array.view());
        }
        let x = if layer == 0 { "x".to_owned() } else { format!("y_l{}", layer - 1) };
        let has_bias = arrays.iter().any(|(name, _)| *name == "B");
        let b = if has_bias { named("B") } else { String::new() };
        let lengths = if self.inputs.lengths { "lengths" } else { "" };
        let h0 = match (self.inputs.h0, is_only) {
            (false, _) => String::new(),
            (true, true) => "h0".to_owned(),
            (true, false) => named("h0"),
        };
        let inputs = [x.as_str(), &named("W"), &named("R"), &b, lengths, &h0];
        let h_n = if is_only { self.last_states().to_owned() } else { named("h_n") };
        let states = named("states");
        self.add("GRU", &named("gru"), &inputs, &[states.clone(), h_n], &attributes(self.config));
        let y = if layer + 1 == self.config.layers { "y".to_owned() } else { named("y") };
        self.join_directions(layer, &states, y);
    }

    /// Adds the nodes from Y `[T, D, B, H]` to y `[T, B, D·H]`.
    fn join_directions(&mut self, layer: usize, states: &str, y: String) {
        let named = |name: &str| format!("{name}_l{layer}");
        if self.config.directions() == 1 {
            self.add("Squeeze", &named("squeeze"), &[states, "direction_axis"], &[y], &[]);
            return;
        }
        let transposed = named("turned");
        let order =
            AttributeProto { ints: vec![0, 2, 1, 3], ..attribute("perm", attribute_type::INTS) };
        self.add(
            "Transpose",
            &named("transpose"),
            &[states],
            std::slice::from_ref(&transposed),
            &[order],
        );
        self.add("Reshape", &named("reshape"), &[&transposed, "joined_shape"], &[y], &[]);
    }

    /// Adds the node that joins the last states of all layers.
    fn join_states(&mut self) {
        if self.config.layers > 1 {
            let names: Vec<_> = (0..self.config.layers).map(|l| format!("h_n_l{l}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let joined = [self.last_states().to_owned()];
            self.add("Concat", "join_h_n", &names, &joined, &[integer("axis", 0)]);
        }
    }

    /// True if a row may have length 0 and a first state.
    fn may_keep_first_states(&self) -> bool {
        self.inputs.h0 && self.inputs.lengths
    }

    /// Returns the name of the GRU nodes' last states.
    fn last_states(&self) -> &'static str {
        if self.may_keep_first_states() { "h_n_of_nodes" } else { "h_n" }
    }

    /// Adds the nodes that replace the last state of a row of length 0 by its first state, as this
    /// crate computes it. ONNX does not say what it is; ONNX Runtime gives 0.
    fn keep_first_states(&mut self) {
        if !self.may_keep_first_states() {
            return;
        }
        let zero = 0_i32.to_le_bytes().to_vec();
        self.add_tensor("no_steps", data_type::INT32, &[], zero);
        self.add_integers("row_axes", &[0, 2]);
        let [is_empty, of_states] = ["is_empty", "is_empty_row"].map(str::to_owned);
        self.add("Equal", "find_empty", &["lengths", "no_steps"], &[is_empty], &[]);
        self.add("Unsqueeze", "align_empty", &["is_empty", "row_axes"], &[of_states], &[]);
        let inputs = ["is_empty_row", "h0", self.last_states()];
        self.add("Where", "keep_h0", &inputs, &["h_n".to_owned()], &[]);
    }

    /// Adds a node.
    fn add(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        outputs: &[String],
        attributes: &[AttributeProto],
    ) {
        // Trailing inputs that are not connected can be left out.
        let connected = inputs.iter().rposition(|input| !input.is_empty()).map_or(0, |i| i + 1);
        let node = NodeProto {
            op_type: op.to_owned(),
            name: name.to_owned(),
            input: inputs[..connected].iter().map(|&input| input.to_owned()).collect(),
            output: outputs.to_vec(),
            attribute: attributes.iter().map(bytes).collect(),
            ..Default::default()
        };
        self.proto.node.push(bytes(&node));
    }

    fn add_floats<D: Dimension>(&mut self, name: &str, array: ArrayView<'_, f32, D>) {
        let raw = array.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
        self.add_tensor(name, data_type::FLOAT, array.shape(), raw);
    }

    fn add_integers(&mut self, name: &str, integers: &[i64]) {
        let raw = integers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.add_tensor(name, data_type::INT64, &[integers.len()], raw);
    }

    fn add_tensor(&mut self, name: &str, data_type: i32, shape: &[usize], raw: Vec<u8>) {
        let tensor = TensorProto {
            name: name.to_owned(),
            data_type,
            dims: shape.iter().map(|&size| size as i64).collect(),
            raw_data: raw.into(),
            ..Default::default()
        };
        self.proto.initializer.push(bytes(&tensor));
    }
}

/// Returns the attributes of a layer's GRU node.
fn attributes(config: &GruConfig) -> Vec<AttributeProto> {
    let direction = match config.direction {
        Direction::Forward => "forward",
        Direction::Reverse => "reverse",
        Direction::Both => "bidirectional",
    };
    let reverse = config.reverse_activations.unwrap_or(config.activations);
    let all = [config.activations, reverse].into_iter().take(config.directions());
    let all: Vec<_> = all.flat_map(|Activations { gate, candidate }| [gate, candidate]).collect();
    // Each list has the numbers of the functions that take them, in order.
    let numbers = |i: usize| {
        let numbers = all.iter().filter_map(move |function| function.numbers().get(i).copied());
        numbers.collect::<Vec<_>>()
    };
    let (alphas, betas) = (numbers(0), numbers(1));
    let mut attributes = vec![
        integer("hidden_size", config.hidden_size as i64),
        integer("linear_before_reset", i64::from(config.reset == Reset::After)),
        AttributeProto {
            s: Bytes::from_static(direction.as_bytes()),
            ..attribute("direction", attribute_type::STRING)
        },
        AttributeProto {
            strings: all
                .iter()
                .map(|&function| Bytes::from_static(activations::name(function).as_bytes()))
                .collect(),
            ..attribute("activations", attribute_type::STRINGS)
        },
    ];
    if let Some(clip) = config.clip {
        attributes.push(AttributeProto { f: clip, ..attribute("clip", attribute_type::FLOAT) });
    }
    for (name, floats) in [("activation_alpha", alphas), ("activation_beta", betas)] {
        if !floats.is_empty() {
            attributes.push(AttributeProto { floats, ..attribute(name, attribute_type::FLOATS) });
        }
    }
    attributes
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: kind, ..Default::default() }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: value, ..attribute(name, attribute_type::INT) }
}

/// Returns the description of a graph's input or output.
fn value(name: &str, elem_type: i32, sizes: Vec<Size>) -> Bytes {
    let dim = sizes.into_iter().map(|size| DimensionProto { value: Some(size) }).collect();
    let tensor = TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) };
    bytes(&ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
    })
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}
