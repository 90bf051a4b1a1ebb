//! A GRU as an ONNX model.

use std::io::Write;
use std::path::Path;

use ndarray::{Array, ArrayView, Axis, Dimension, stack};
use prost::Message;
use prost::bytes::Bytes;

use super::proto::{
    AttributeProto, Dimension as Size, DimensionProto, GraphProto, MAX_MODEL, ModelProto,
    NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};
use crate::error::{Error, Result};
use crate::formats::cell::Cell;
use crate::formats::files;
use crate::formats::metadata::{CONFIG_KEY, write_config};
use crate::spec::config::{Activation, Bias, Direction, GruConfig, Reset, Update};
use crate::spec::params::Params;

/// The first that has all that is used here, so that old runtimes read it too.
const OPSET: i64 = 14;
const IR_VERSION: i64 = 7;

/// Which inputs a written model has besides `x`. ONNX's are not optional: who runs the model must
/// give each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inputs {
    /// The states `h0 [L·D, B, H]` to start from; zeros otherwise.
    pub h0: bool,
    /// The length of each row, `lengths [B]` of int32; every step otherwise.
    pub lengths: bool,
}

impl Inputs {
    /// `x` alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with `h0`, or without.
    #[must_use]
    pub fn with_h0(self, h0: bool) -> Self {
        Self { h0, ..self }
    }

    /// The same with `lengths`, or without.
    #[must_use]
    pub fn with_lengths(self, lengths: bool) -> Self {
        Self { lengths, ..self }
    }
}

/// Writes a GRU as an ONNX model of opset 14: x `[T, B, I]` to y `[T, B, D·H]` and h_n
/// `[L·D, B, H]`, T and B open.
///
/// In ONNX z keeps. Where it overwrites, its weights are written with their signs turned, which
/// computes the same: 1 − σ(a) = σ(−a). The configuration goes into the metadata, so that
/// [`load`](super::load) gives back the same bits, dropout's probability too, which does nothing in
/// use.
///
/// # Errors
/// [`Error::Io`]; [`Error::Conflict`] for what ONNX has no words for: zoneout, and gates that end
/// in tanh, ReLU or nothing where z overwrites.
pub fn save(path: impl AsRef<Path>, params: &Params, inputs: &Inputs) -> Result<()> {
    let model = encode(params, inputs)?;
    files::write_whole(path, |to| to.write_all(&model))
}

/// As [`save`], to a stream.
///
/// # Errors
/// As [`save`].
pub fn write(to: impl Write, params: &Params, inputs: &Inputs) -> Result<()> {
    let model = encode(params, inputs)?;
    files::write_stream(to, |to| to.write_all(&model))
}

/// The bytes of a model.
fn encode(params: &Params, inputs: &Inputs) -> Result<Vec<u8>> {
    let config = params.layout().config();
    let expressed = expressed(config)?;
    let mut cells = params.to_cells();
    if config.update == Update::Overwrites {
        cells = cells.iter().map(with_z_negated).collect();
    }
    let mut graph = GraphBuilder::new(&expressed, inputs);
    for (layer, cells) in cells.chunks(config.directions()).enumerate() {
        graph.add_layer(layer, cells);
    }
    graph.join_states();
    let value = write_config(config, None);
    let entry = StringStringEntryProto { key: CONFIG_KEY.to_owned(), value };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(bytes(&graph.proto)),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: vec![bytes(&entry)],
    };
    match model.encoded_len() as u64 {
        len if len <= MAX_MODEL => Ok(model.encode_to_vec()),
        len => Err(Error::format(format!(
            "the model would have {len} bytes; ONNX's files end at {}",
            MAX_MODEL
        ))),
    }
}

/// The same model in ONNX's terms, or what it has no words for.
pub(super) fn expressed(config: &GruConfig) -> Result<GruConfig> {
    let refused = |what, why| Err(Error::Conflict { what, why });
    if config.zoneout > 0.0 {
        return refused("zoneout and ONNX", "its GRU has no share of the old state to keep");
    }
    let turns = matches!(config.gate_activation, Activation::Sigmoid | Activation::HardSigmoid);
    if config.update == Update::Overwrites && !turns {
        return refused(
            "gates of this activation, z overwrites and ONNX",
            "in ONNX z keeps, and only a (hard) sigmoid's 1 − f(a) is f(−a)",
        );
    }
    let bias = if config.bias == Bias::None { Bias::None } else { Bias::Two };
    Ok(config.clone().with_update(Update::Keeps).with_bias(bias).with_dropout(0.0))
}

/// The cell with the signs of z's weights and biases turned.
pub(super) fn with_z_negated(cell: &Cell) -> Cell {
    let mut cell = cell.clone();
    let hidden = cell.weight_hh.ncols();
    for weight in [&mut cell.weight_ih, &mut cell.weight_hh] {
        weight.slice_mut(ndarray::s![hidden..2 * hidden, ..]).mapv_inplace(|w| -w);
    }
    for bias in [&mut cell.bias_ih, &mut cell.bias_hh].into_iter().flatten() {
        bias.slice_mut(ndarray::s![hidden..2 * hidden]).mapv_inplace(|b| -b);
    }
    cell
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
        let (known, open) = (
            |size: usize| Size::DimValue(size as i64),
            |name: &str| Size::DimParam(name.to_owned()),
        );
        let (directions, float) = (config.directions(), data_type::FLOAT);
        let states = || vec![known(layers * directions), open("B"), known(hidden)];
        let mut graph_inputs =
            vec![value("x", float, vec![open("T"), open("B"), known(input_size)])];
        if inputs.h0 {
            graph_inputs.push(value("h0", float, states()));
        }
        if inputs.lengths {
            graph_inputs.push(value("lengths", data_type::INT32, vec![open("B")]));
        }
        let y = vec![open("T"), open("B"), known(directions * hidden)];
        let proto = GraphProto {
            name: "gru".to_owned(),
            input: graph_inputs,
            output: vec![value("y", float, y), value("h_n", float, states())],
            ..Default::default()
        };
        let mut graph = Self { config, inputs, proto };
        if directions == 1 {
            graph.hold_integers("direction_axis", &[1]);
        } else {
            graph.hold_integers("joined_shape", &[0, 0, -1]);
        }
        if inputs.h0 && layers > 1 {
            graph.hold_integers("h0_sizes", &vec![directions as i64; layers]);
            let names: Vec<_> = (0..layers).map(|layer| format!("h0_l{layer}")).collect();
            let attributes = [integer("axis", 0)];
            graph.add("Split", "split_h0", &["h0", "h0_sizes"], &names, &attributes);
        }
        graph
    }

    fn add_layer(&mut self, layer: usize, cells: &[Cell]) {
        let is_only = self.config.layers == 1;
        let named = |name: &str| format!("{name}_l{layer}");
        let (mut w, mut r, mut b) = (Vec::new(), Vec::new(), Vec::new());
        for cell in cells {
            let onnx = cell.to_onnx();
            w.push(onnx.0);
            r.push(onnx.1);
            b.extend(onnx.2);
        }
        self.hold(&named("W"), stacked(&w).view());
        self.hold(&named("R"), stacked(&r).view());
        if !b.is_empty() {
            self.hold(&named("B"), stacked(&b).view());
        }
        let x = if layer == 0 { "x".to_owned() } else { format!("y_l{}", layer - 1) };
        let b = if b.is_empty() { String::new() } else { named("B") };
        let lengths = if self.inputs.lengths { "lengths" } else { "" };
        let h0 = match (self.inputs.h0, is_only) {
            (false, _) => String::new(),
            (true, true) => "h0".to_owned(),
            (true, false) => named("h0"),
        };
        let inputs = [x.as_str(), &named("W"), &named("R"), &b, lengths, &h0];
        let h_n = if is_only { "h_n".to_owned() } else { named("h_n") };
        let states = named("states");
        self.add("GRU", &named("gru"), &inputs, &[states.clone(), h_n], &attributes(self.config));
        let y = if layer + 1 == self.config.layers { "y".to_owned() } else { named("y") };
        self.join_directions(layer, &states, y);
    }

    /// `[T, D, B, H]` to `[T, B, D·H]`.
    fn join_directions(&mut self, layer: usize, states: &str, y: String) {
        let named = |name: &str| format!("{name}_l{layer}");
        if self.config.directions() == 1 {
            self.add("Squeeze", &named("squeeze"), &[states, "direction_axis"], &[y], &[]);
            return;
        }
        let turned = named("turned");
        let order =
            AttributeProto { ints: vec![0, 2, 1, 3], ..attribute("perm", attribute_type::INTS) };
        self.add(
            "Transpose",
            &named("transpose"),
            &[states],
            std::slice::from_ref(&turned),
            &[order],
        );
        self.add("Reshape", &named("reshape"), &[&turned, "joined_shape"], &[y], &[]);
    }

    /// The last states of all layers.
    fn join_states(&mut self) {
        if self.config.layers > 1 {
            let names: Vec<_> = (0..self.config.layers).map(|l| format!("h_n_l{l}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            self.add("Concat", "join_h_n", &names, &["h_n".to_owned()], &[integer("axis", 0)]);
        }
    }

    fn add(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        outputs: &[String],
        attributes: &[AttributeProto],
    ) {
        // Trailing inputs that are not connected need not be said.
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

    fn hold<D: Dimension>(&mut self, name: &str, array: ArrayView<'_, f32, D>) {
        let raw = array.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
        self.hold_tensor(name, data_type::FLOAT, array.shape(), raw);
    }

    fn hold_integers(&mut self, name: &str, integers: &[i64]) {
        let raw = integers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.hold_tensor(name, data_type::INT64, &[integers.len()], raw);
    }

    fn hold_tensor(&mut self, name: &str, data_type: i32, shape: &[usize], raw: Vec<u8>) {
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

/// The same of each direction, as `[D, ..]`.
fn stacked<D: Dimension>(each: &[Array<f32, D>]) -> Array<f32, D::Larger>
where
    D::Larger: ndarray::RemoveAxis,
{
    let views: Vec<_> = each.iter().map(|array| array.view()).collect();
    stack(Axis(0), &views).expect("directions are alike")
}

fn attributes(config: &GruConfig) -> Vec<AttributeProto> {
    let direction = match config.direction {
        Direction::Forward => "forward",
        Direction::Reverse => "reverse",
        Direction::Both => "bidirectional",
    };
    let pair = [config.gate_activation, config.candidate_activation];
    let all = pair.repeat(config.directions());
    // α and β of those that have them, in their order.
    let parameters = all.iter().filter_map(|activation| match activation {
        Activation::HardSigmoid => Some((0.2, 0.5)),
        Activation::Identity => Some((1.0, 0.0)),
        Activation::Sigmoid | Activation::Tanh | Activation::Relu => None,
    });
    let (alphas, betas): (Vec<f32>, Vec<f32>) = parameters.unzip();
    let names = all.iter().map(|activation| match activation {
        Activation::Sigmoid => "Sigmoid",
        Activation::Tanh => "Tanh",
        Activation::Relu => "Relu",
        Activation::HardSigmoid => "HardSigmoid",
        Activation::Identity => "Affine",
    });
    let mut attributes = vec![
        integer("hidden_size", config.hidden_size as i64),
        integer("linear_before_reset", i64::from(config.reset == Reset::After)),
        AttributeProto {
            s: Bytes::from_static(direction.as_bytes()),
            ..attribute("direction", attribute_type::STRING)
        },
        AttributeProto {
            strings: names.map(|name| Bytes::from_static(name.as_bytes())).collect(),
            ..attribute("activations", attribute_type::STRINGS)
        },
    ];
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

/// A graph's input or output.
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
