//! Fuzzes the ONNX reader with models whose nodes are nearly a GRU or a stack of GRUs.
#![no_main]

#[path = "../../common/proto.rs"]
mod proto;

use arbitrary::Arbitrary;
use gru_wgpu::formats::onnx;
use libfuzzer_sys::fuzz_target;
use proto::{attribute, bytes, float, int, model, node, tensor};
use std::io::Cursor;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    File(&'a [u8]),
    Made(Vec<Node<'a>>, Vec<Tensor<'a>>),
    Stack(Stack, Vec<Node<'a>>, Vec<Tensor<'a>>),
    Metadata(Stack, &'a str),
    /// A stack inside functions and inner graphs, one around the other.
    Nested(Stack, Vec<Nesting>, Vec<Node<'a>>, Vec<Tensor<'a>>),
}

/// How nodes are nested.
#[derive(Arbitrary, Debug)]
enum Nesting {
    /// In a function that is called this many times, and perhaps calls itself.
    Function(u8, bool),
    /// In a branch of an If.
    Branch,
    /// In the body of a Loop.
    Body,
}

#[derive(Arbitrary, Debug)]
struct Node<'a> {
    op: u8,
    inputs: Vec<u8>,
    outputs: Vec<u8>,
    attributes: Vec<Attribute<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Attribute<'a> {
    Text(u8, &'a str),
    Word(u8, u8),
    Words(u8, Vec<u8>),
    Int(u8, i64),
    Small(u8, i8),
    Ints(u8, Vec<i8>),
    Float(u8, f32),
    Floats(u8, Vec<f32>),
    Tensor(u8, Tensor<'a>),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Tensor<'a> {
    name: u8,
    dims: Vec<Dim>,
    data_type: u8,
    data: Data<'a>,
}

#[derive(Arbitrary, Debug)]
enum Dim {
    Small(u8),
    Any(i64),
}

#[derive(Arbitrary, Debug)]
enum Data<'a> {
    /// The number of bytes that the shape takes, all of this value.
    Fitting(u8),
    Raw(&'a [u8]),
    Floats(Vec<f32>),
    Words(Vec<i32>),
    Longs(Vec<i64>),
    External(&'a str, &'a str, u64),
}

/// A stack of GRU layers.
#[derive(Arbitrary, Debug)]
struct Stack {
    /// True to pass the weights through nodes that split and join them.
    rearranged: bool,
    input: u8,
    hidden: u8,
    layers: u8,
    both: bool,
    bias: bool,
    /// Selects the nodes between two layers: Squeeze, or Transpose and Reshape.
    joint: u8,
    attributes: u8,
}

const OPS: [&str; 19] = [
    "GRU",
    "Constant",
    "Identity",
    "Squeeze",
    "Transpose",
    "Reshape",
    "Dropout",
    "Slice",
    "Concat",
    "Unsqueeze",
    "Split",
    "Cast",
    "Mul",
    "Shape",
    "Expand",
    "ConstantOfShape",
    "DequantizeLinear",
    "F0",
    "F1",
];
const VALUES: [&str; 16] = [
    "", "x", "W0", "R0", "B0", "Y0", "y0", "t0", "W1", "R1", "B1", "Y1", "y1", "one", "shape", "h0",
];
const ATTRIBUTES: [&str; 20] = [
    "direction",
    "linear_before_reset",
    "layout",
    "hidden_size",
    "activations",
    "activation_alpha",
    "activation_beta",
    "clip",
    "perm",
    "axes",
    "value",
    "value_ints",
    "axis",
    "starts",
    "ends",
    "split",
    "to",
    "start",
    "end",
    "allowzero",
];
const WORDS: [&str; 14] = [
    "forward",
    "reverse",
    "bidirectional",
    "Sigmoid",
    "Tanh",
    "relu",
    "HardSigmoid",
    "Affine",
    "ScaledTanh",
    "Elu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Softsign",
    "Softplus",
];
const TYPES: [i64; 8] = [1, 10, 11, 16, 7, 6, 9, 3];

fn pick<T: Copy>(choices: &[T], at: u8) -> T {
    choices[at as usize % choices.len()]
}

fn encoded(of: &Attribute<'_>) -> Vec<u8> {
    let name = |at: u8| pick(&ATTRIBUTES, at);
    match of {
        Attribute::Text(at, text) => attribute(name(*at), bytes(4, text.as_bytes())),
        Attribute::Word(at, word) => attribute(name(*at), bytes(4, pick(&WORDS, *word).as_bytes())),
        Attribute::Words(at, words) => {
            let words =
                words.iter().take(5).flat_map(|&word| bytes(9, pick(&WORDS, word).as_bytes()));
            attribute(name(*at), words.collect())
        }
        Attribute::Int(at, value) => attribute(name(*at), int(3, *value)),
        Attribute::Small(at, value) => attribute(name(*at), int(3, (*value).into())),
        Attribute::Ints(at, values) => {
            attribute(name(*at), values.iter().flat_map(|&value| int(8, value.into())).collect())
        }
        Attribute::Float(at, value) => attribute(name(*at), float(2, *value)),
        Attribute::Floats(at, values) => {
            attribute(name(*at), values.iter().flat_map(|&value| float(7, value)).collect())
        }
        Attribute::Tensor(at, value) => attribute(name(*at), bytes(5, &tensor_of(value))),
        Attribute::Raw(raw) => raw.to_vec(),
    }
}

fn node_of(of: &Node<'_>) -> Vec<u8> {
    let names =
        |places: &[u8]| places.iter().take(7).map(|&at| pick(&VALUES, at)).collect::<Vec<_>>();
    let attributes: Vec<_> = of.attributes.iter().take(8).map(encoded).collect();
    node(pick(&OPS, of.op), &names(&of.inputs), &names(&of.outputs), &attributes)
}

fn tensor_of(of: &Tensor<'_>) -> Vec<u8> {
    let dim = |dim: &Dim| match *dim {
        Dim::Small(size) => i64::from(size % 13),
        Dim::Any(size) => size,
    };
    let dims: Vec<_> = of.dims.iter().take(9).map(dim).collect();
    let data_type = pick(&TYPES, of.data_type);
    let data = match &of.data {
        Data::Fitting(value) => {
            let width = match data_type {
                11 | 7 => 8,
                1 | 6 => 4,
                _ => 2,
            };
            let count = dims.iter().fold(1i64, |count, &dim| count.saturating_mul(dim));
            bytes(9, &vec![*value; count.clamp(0, 1 << 14) as usize * width])
        }
        Data::Raw(raw) => bytes(9, raw),
        Data::Floats(values) => values.iter().flat_map(|&value| float(4, value)).collect(),
        Data::Words(values) => values.iter().flat_map(|&value| int(5, value.into())).collect(),
        Data::Longs(values) => values.iter().flat_map(|&value| int(7, value)).collect(),
        Data::External(location, key, value) => {
            let entry = |key: &str, value: &str| {
                bytes(13, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat())
            };
            let (location, more) = (entry("location", location), entry(key, &value.to_string()));
            [int(14, 1), location, more].concat()
        }
    };
    tensor(pick(&VALUES, of.name), &dims, data_type, data)
}

fn stack(of: &Stack) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (hidden, d) = (i64::from(of.hidden % 4), if of.both { 2 } else { 1 });
    let floats = |name: &str, dims: &[i64]| {
        let count: i64 = dims.iter().product();
        tensor(name, dims, 1, bytes(9, &vec![0x3C; 4 * count as usize]))
    };
    let integers = |name: &str, values: &[i64]| {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        tensor(name, &[values.len() as i64], 7, bytes(9, &data))
    };
    let mut nodes = Vec::new();
    let mut tensors = vec![integers("one", &[1]), integers("shape", &[0, 0, -1])];
    let mut x = "x".to_owned();
    let direction: &[u8] = if of.both { b"bidirectional" } else { b"forward" };
    let attributes = [
        attribute("direction", bytes(4, direction)),
        attribute("linear_before_reset", int(3, (of.attributes & 1).into())),
        attribute("layout", int(3, (of.attributes >> 1 & 1).into())),
        attribute("hidden_size", int(3, hidden)),
    ];
    for layer in 0..i64::from(of.layers % 3) {
        let [w, r, b, all, turned, y] =
            ["W", "R", "B", "Y", "t", "y"].map(|name| format!("{name}{layer}"));
        let wide = if layer == 0 { i64::from(of.input % 4) } else { hidden * d };
        tensors.extend([floats(&w, &[d, 3 * hidden, wide]), floats(&r, &[d, 3 * hidden, hidden])]);
        let mut inputs = vec![x.as_str(), &w, &r];
        if of.bias {
            tensors.push(floats(&b, &[d, 6 * hidden]));
            inputs.push(&b);
        }
        let (joined, cut) = (format!("{w}j"), format!("{w}c"));
        if of.rearranged {
            let axis = attribute("axis", int(3, 1));
            let parts = [format!("{w}0"), format!("{w}1"), format!("{w}2")];
            let [z, r, n] = parts.each_ref().map(String::as_str);
            nodes.push(node("Split", &[&w], &[z, r, n], std::slice::from_ref(&axis)));
            nodes.push(node("Concat", &[r, z, n], &[&joined], &[axis]));
            nodes.push(node("Cast", &[&joined], &[&cut], &[attribute("to", int(3, 1))]));
            inputs[1] = &cut;
        }
        nodes.push(node("GRU", &inputs, &[&all], &attributes));
        let order =
            attribute("perm", [0, 2, 1, 3].into_iter().flat_map(|axis| int(8, axis)).collect());
        match of.joint % 3 {
            0 => nodes.push(node("Squeeze", &[&all, "one"], &[&y], &[])),
            _ => {
                nodes.push(node("Transpose", &[&all], &[&turned], &[order]));
                nodes.push(node("Reshape", &[&turned, "shape"], &[&y], &[]));
            }
        }
        x = y;
    }
    (nodes, tensors)
}

/// Puts nodes and tensors into functions and inner graphs. Returns the model.
fn nested(mut nodes: Vec<Vec<u8>>, mut tensors: Vec<Vec<u8>>, around: &[Nesting]) -> Vec<u8> {
    let mut functions = Vec::new();
    for (at, nesting) in around.iter().enumerate() {
        let name = format!("F{at}");
        let call = || node(&name, &["x", "W0", "R0", "B0", "one"], &["y0"], &[]);
        match nesting {
            Nesting::Function(count, is_recursive) => {
                nodes.extend(is_recursive.then(call));
                let formals =
                    ["x", "W0", "R0", "B0", "one"].map(|value| bytes(4, value.as_bytes()));
                let body: Vec<u8> = nodes.iter().flat_map(|node| bytes(7, node)).collect();
                let function = [bytes(1, name.as_bytes()), formals.concat(), bytes(5, b"y0"), body];
                functions.extend(bytes(25, &function.concat()));
                nodes = (0..1 + count % 4).map(|_| call()).collect();
            }
            Nesting::Branch => {
                let graph = bytes(6, &proto::graph(&nodes, &tensors));
                nodes = vec![node("If", &["c"], &["y0"], &[attribute("then_branch", graph)])];
                tensors.clear();
            }
            Nesting::Body => {
                let graph = bytes(6, &proto::graph(&nodes, &[]));
                nodes = vec![node("Loop", &["m", ""], &["y0"], &[attribute("body", graph)])];
            }
        }
    }
    [model(&nodes, &tensors), functions].concat()
}

fn made(input: &Input<'_>) -> Vec<u8> {
    match input {
        Input::File(file) => file.to_vec(),
        Input::Made(nodes, tensors) => {
            let nodes: Vec<_> = nodes.iter().take(12).map(node_of).collect();
            let tensors: Vec<_> = tensors.iter().take(12).map(tensor_of).collect();
            model(&nodes, &tensors)
        }
        Input::Stack(of, more_nodes, more_tensors) => {
            let (mut nodes, mut tensors) = stack(of);
            nodes.extend(more_nodes.iter().take(4).map(node_of));
            tensors.extend(more_tensors.iter().take(4).map(tensor_of));
            model(&nodes, &tensors)
        }
        Input::Nested(of, around, more_nodes, more_tensors) => {
            let (mut nodes, mut tensors) = stack(of);
            nodes.extend(more_nodes.iter().take(4).map(node_of));
            tensors.extend(more_tensors.iter().take(4).map(tensor_of));
            nested(nodes, tensors, &around[..around.len().min(4)])
        }
        Input::Metadata(of, words) => {
            let (nodes, tensors) = stack(of);
            let entry = [bytes(1, b"gru_wgpu.config"), bytes(2, words.as_bytes())].concat();
            [model(&nodes, &tensors), bytes(14, &entry)].concat()
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let file = made(&input);
    // Writes a seed file for tests/formats/fuzzed.rs.
    if let Ok(path) = std::env::var("FUZZ_WRITE_FILE") {
        std::fs::write(path, &file).unwrap();
    }
    for node in [None, Some("Y0"), Some("Y0..Y1")] {
        let options = onnx::OnnxOptions::new().with_node(node);
        if let Ok(read) = onnx::read(Cursor::new(&file), &options) {
            assert!(read.params.as_slice().iter().all(|number| number.is_finite()));
            let config = read.params.layout().config();
            assert_eq!(read.nodes.len(), config.layers);
            // A model that was read can be written, unless ONNX cannot express it, and read again.
            let mut written = Vec::new();
            if onnx::write(&mut written, &read.params, &onnx::Inputs::new()).is_ok() {
                let again = onnx::read(Cursor::new(&written), &onnx::OnnxOptions::new()).unwrap();
                assert_eq!(again.params, read.params);
            }
        }
    }
});
