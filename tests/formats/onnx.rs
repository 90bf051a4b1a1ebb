//! ONNX models written by hand: valid graphs that no exporter in `models.rs` writes.

use crate::common::proto::{attribute, bytes, float, graph, int, model, node, tensor, zeros};
use gru_wgpu::formats::onnx::{self, OptionalInput};
use gru_wgpu::{Activation, Error, Layout};
use ndarray::array;
use std::io::Cursor;

fn read(model: &[u8]) -> onnx::OnnxModel {
    onnx::read(Cursor::new(model), &onnx::OnnxOptions::new()).unwrap()
}

/// Encodes a TensorProto of these floats.
fn floats(name: &str, dims: &[i64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, dims, 1, bytes(9, &raw))
}

/// W of I 1, R of H 2.
fn weights() -> Vec<Vec<u8>> {
    vec![zeros("W", &[1, 6, 1]), zeros("R", &[1, 6, 2])]
}

/// An initial state by its layout: `[D, B, H]` or `[B, D, H]`.
#[test]
fn constant_states_follow_the_layout() {
    let read = |layout: i64, dims: &[i64], values: &[f32]| {
        let h0 = floats("h0", dims, values);
        let attributes = [attribute("layout", int(3, layout))];
        let gru = node("GRU", &["x", "W", "R", "", "", "h0"], &["y"], &attributes);
        onnx::read(
            Cursor::new(&model(&[gru], &[weights(), vec![h0]].concat())),
            &onnx::OnnxOptions::new(),
        )
    };
    let numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let expected = OptionalInput::Constant(array![[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]);
    let time_major = read(0, &[1, 3, 2], &numbers).unwrap();
    assert_eq!((time_major.h0, time_major.layout), (expected.clone(), Layout::TimeMajor));
    let batch_first = read(1, &[3, 1, 2], &numbers).unwrap();
    assert_eq!((batch_first.h0, batch_first.layout), (expected, Layout::BatchFirst));
    // Zeros fit any batch, as does no state.
    assert_eq!(read(0, &[1, 3, 2], &[0.0; 6]).unwrap().h0, OptionalInput::Nothing);
    let error = read(0, &[3, 1, 2], &numbers).unwrap_err().to_string();
    assert!(
        error
            .contains("its initial_h: the array [D, B, H] has shape [3, 1, 2], expected [1, 1, 2]")
    );
    let error = read(0, &[6], &numbers).unwrap_err().to_string();
    assert!(error.contains("its initial_h: its shape is [6]; expected three axes"), "{error}");
}

#[test]
fn constant_lengths_are_returned() {
    let lengths = |data_type: i64, data: Vec<u8>| tensor("n", &[2], data_type, data);
    let read = |lengths: Vec<u8>| {
        let gru = node("GRU", &["x", "W", "R", "", "n"], &["y"], &[]);
        let model = model(&[gru], &[weights(), vec![lengths]].concat());
        onnx::read(Cursor::new(&model), &onnx::OnnxOptions::new()).map(|model| model.lengths)
    };
    let expected = OptionalInput::Constant(vec![3, 0]);
    // In the field for the type, and as raw bytes.
    assert_eq!(read(lengths(6, [int(5, 3), int(5, 0)].concat())).unwrap(), expected);
    assert_eq!(read(lengths(6, bytes(9, &[3, 0, 0, 0, 0, 0, 0, 0]))).unwrap(), expected);
    assert_eq!(read(lengths(7, [int(7, 3), int(7, 0)].concat())).unwrap(), expected);
    let error = read(lengths(7, [int(7, 3), int(7, -1)].concat())).unwrap_err().to_string();
    assert!(error.contains("its sequence_lens: it holds the length -1"), "{error}");
    let error = read(lengths(1, bytes(9, &[0; 8]))).unwrap_err().to_string();
    assert!(error.contains("its elements are floats; expected integers"), "{error}");
}

/// Numbers in each field where a tensor may store them.
#[test]
fn weights_of_every_type() {
    let half = half::f16::from_f32(0.1).to_bits();
    let brain = half::bf16::from_f32(0.1).to_bits();
    let repeated = |bytes: &[u8]| bytes.repeat(6);
    let varints = |bits: u16| repeated(&int(5, bits.into()));
    let double = repeated(&[vec![10 << 3 | 1], 0.1f64.to_le_bytes().to_vec()].concat());
    for (what, data_type, data, expected) in [
        ("raw", 1, bytes(9, &repeated(&0.1f32.to_le_bytes())), 0.1),
        ("floats", 1, repeated(&float(4, 0.1)), 0.1),
        ("packed floats", 1, bytes(4, &repeated(&0.1f32.to_le_bytes())), 0.1),
        ("raw doubles", 11, bytes(9, &repeated(&0.1f64.to_le_bytes())), 0.1),
        ("doubles", 11, double, 0.1),
        (
            "raw halves",
            10,
            bytes(9, &repeated(&half.to_le_bytes())),
            half::f16::from_bits(half).to_f32(),
        ),
        ("halves", 10, varints(half), half::f16::from_bits(half).to_f32()),
        (
            "raw bfloat16",
            16,
            bytes(9, &repeated(&brain.to_le_bytes())),
            half::bf16::from_bits(brain).to_f32(),
        ),
        ("bfloat16", 16, varints(brain), half::bf16::from_bits(brain).to_f32()),
    ] {
        let w = tensor("W", &[1, 6, 1], data_type, data);
        let gru = node("GRU", &["x", "W", "R"], &["y"], &[]);
        let model = read(&model(&[gru], &[w, zeros("R", &[1, 6, 2])]));
        let w = model.params.get("weight_ih_l0").unwrap().to_owned();
        assert!(w.iter().all(|&w| w == expected), "{what}: {w}");
    }
}

/// A weight is found behind copies, in a constant, and as the default of an input.
#[test]
fn weights_in_every_place() {
    let gru = || node("GRU", &["x", "W", "R"], &["y"], &[]);
    let [w, r] = [zeros("", &[1, 6, 1]), zeros("R", &[1, 6, 2])];
    let constant = node("Constant", &[], &["c"], &[attribute("value", bytes(5, &w))]);
    let copies = [node("Identity", &["c"], &["b"], &[]), node("Identity", &["b"], &["W"], &[])];
    read(&model(&[&[gru(), constant][..], &copies].concat(), &[r]));
    let value_info = bytes(1, b"W");
    read(&bytes(7, &[graph(&[gru()], &weights()), bytes(11, &value_info)].concat()));
}

/// α and β belong, in order, to the functions that have them.
#[test]
fn activations_take_their_own_alpha_and_beta() {
    let read = |names: &[&str], alphas: &[f32], betas: &[f32]| {
        let names = names.iter().flat_map(|name| bytes(9, name.as_bytes())).collect();
        let all = |values: &[f32]| values.iter().flat_map(|&value| float(7, value)).collect();
        let attributes = [
            attribute("activations", names),
            attribute("activation_alpha", all(alphas)),
            attribute("activation_beta", all(betas)),
        ];
        let gru = node("GRU", &["x", "W", "R"], &["y"], &attributes);
        let model = onnx::read(Cursor::new(&model(&[gru], &weights())), &onnx::OnnxOptions::new())?;
        let config = model.params.layout().config().clone();
        Ok::<_, Error>([config.activations.gate, config.activations.candidate])
    };
    use Activation::{Affine, Elu, HardSigmoid, LeakyRelu, Relu, ScaledTanh, Sigmoid, Softplus};
    use Activation::{Softsign, Tanh, ThresholdedRelu};
    assert_eq!(read(&["Sigmoid", "Relu"], &[], &[]).unwrap(), [Sigmoid, Relu]);
    assert_eq!(read(&["SIGMOID", "tanh"], &[], &[]).unwrap(), [Sigmoid, Tanh]);
    assert_eq!(read(&["Softsign", "SoftPlus"], &[], &[]).unwrap(), [Softsign, Softplus]);
    assert_eq!(
        read(&["HardSigmoid", "LeakyRelu"], &[], &[]).unwrap(),
        [HardSigmoid { alpha: 0.2, beta: 0.5 }, LeakyRelu { alpha: 0.01 }]
    );
    assert_eq!(
        read(&["HardSigmoid", "Affine"], &[0.3, 2.0], &[0.4, 0.1]).unwrap(),
        [HardSigmoid { alpha: 0.3, beta: 0.4 }, Affine { alpha: 2.0, beta: 0.1 }]
    );
    // A function takes only the numbers that it has.
    assert_eq!(
        read(&["LeakyRelu", "ScaledTanh"], &[0.3, 2.0], &[0.4]).unwrap(),
        [LeakyRelu { alpha: 0.3 }, ScaledTanh { alpha: 2.0, beta: 0.4 }]
    );
    assert_eq!(
        read(&["ThresholdedRelu", "Elu"], &[0.3], &[0.4]).unwrap(),
        [ThresholdedRelu { alpha: 0.3 }, Elu { alpha: 1.0 }]
    );
    for (names, alphas, betas, expected) in [
        (["HardSigmoid", "Affine"], &[][..], &[][..], "Affine needs an activation_alpha and an"),
        (["Sigmoid", "ScaledTanh"], &[1.0], &[], "ScaledTanh needs"),
        (["Sigmoid", "ThresholdedRelu"], &[], &[], "ThresholdedRelu needs an activation_alpha: "),
        (["Sigmoid", "LeakyRelu"], &[-0.1], &[], "leaky-relu(-0.1)"),
        (["Sigmoid", "Elu"], &[f32::NAN], &[], "elu(NaN)"),
        (["Sigmoid", "Softmax"], &[], &[], "the activation `Softmax` is not supported"),
    ] {
        let error = read(&names, alphas, betas).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// GRUs that read each other in a circle are separate; so are those that a third GRU also reads.
#[test]
fn a_stack_is_layers_connected_only_to_each_other() {
    let gru = |x: &str, y: &str| node("GRU", &[x, "W", "R"], &[y], &[]);
    let squeeze = |from: &str, to: &str| node("Squeeze", &[from, "one"], &[to], &[]);
    let one = tensor("one", &[1], 7, bytes(9, &1i64.to_le_bytes()));
    let weights = [zeros("W", &[1, 3, 1]), zeros("R", &[1, 3, 1]), one];
    let listed = |nodes: &[Vec<u8>]| match onnx::read(
        Cursor::new(&model(nodes, &weights)),
        &onnx::OnnxOptions::new(),
    ) {
        Ok(model) => vec![format!("{} layers", model.nodes.len())],
        Err(Error::Choice { found, .. }) => found,
        Err(error) => panic!("{error}"),
    };
    let chain = [gru("x", "a"), squeeze("a", "b"), gru("b", "c")];
    assert_eq!(listed(&chain), ["2 layers"]);
    let circle = [gru("d", "a"), squeeze("a", "b"), gru("b", "c"), squeeze("c", "d")];
    assert_eq!(listed(&circle), ["a", "c"]);
    let own = [gru("b", "a"), squeeze("a", "b")];
    assert_eq!(listed(&own), ["1 layers"]);
    let fork = [&chain[..], &[gru("b", "e")]].concat();
    assert_eq!(listed(&fork), ["a", "c", "e"]);
    // Nodes between the layers may only rearrange.
    for op in ["Relu", "Dropout", "Identity"] {
        let way = [gru("x", "a"), squeeze("a", "b"), node(op, &["b"], &["c"], &[]), gru("c", "d")];
        let expected = if op == "Relu" { vec!["a", "d"] } else { vec!["2 layers"] };
        assert_eq!(listed(&way), expected, "{op}");
    }
    let turned = |order: [i64; 3]| {
        let order = attribute("perm", order.iter().flat_map(|&axis| int(8, axis)).collect());
        [
            gru("x", "a"),
            squeeze("a", "b"),
            node("Transpose", &["b"], &["c"], &[order]),
            gru("c", "d"),
        ]
    };
    assert_eq!(listed(&turned([0, 1, 2])), ["2 layers"]);
    // Rows become steps.
    assert_eq!(listed(&turned([1, 0, 2])), ["a", "d"]);
    for order in [[0, 0, 2], [0, 1, 3], [-1, 1, 2]] {
        assert_eq!(listed(&turned(order)), ["a", "d"]);
    }
}

/// Layers of one stack have the same lengths, and read the output of the one below, not its last
/// state.
#[test]
fn other_connections_make_separate_models() {
    let one = tensor("one", &[1], 7, bytes(9, &1i64.to_le_bytes()));
    let weights = [zeros("W", &[1, 3, 1]), zeros("R", &[1, 3, 1]), one];
    let squeeze = |from: &str, to: &str| node("Squeeze", &[from, "one"], &[to], &[]);
    let layers = |nodes: &[Vec<u8>]| {
        onnx::read(Cursor::new(&model(nodes, &weights)), &onnx::OnnxOptions::new())
    };
    let gru = |x: &str, lengths: &str, y: &[&str]| node("GRU", &[x, "W", "R", "", lengths], y, &[]);
    let stack = |first: &str, second: &str| {
        let input = node("Shape", &["y"], &[second], &[]);
        layers(&[gru("x", first, &["y"]), squeeze("y", "b"), gru("b", second, &["z"]), input])
    };
    assert_eq!(stack("n", "n").unwrap().nodes.len(), 2);
    assert!(matches!(stack("", "n").unwrap_err(), Error::Choice { .. }));
    // From the last state, and from a mask.
    let last = [gru("x", "", &["y", "h"]), squeeze("h", "b"), gru("b", "", &["z"])];
    assert!(matches!(layers(&last).unwrap_err(), Error::Choice { .. }));
    let mask = node("Dropout", &["b"], &["c", "mask"], &[]);
    let masked = [gru("x", "", &["y"]), squeeze("y", "b"), mask, gru("mask", "", &["z"])];
    assert!(matches!(layers(&masked).unwrap_err(), Error::Choice { .. }));
}

/// An integer tensor.
fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, &[values.len() as i64], 7, bytes(9, &raw))
}

/// Returns the names of the GRUs in a model, or the number of layers if it has one.
fn listed(model: &[u8]) -> Vec<String> {
    match onnx::read(Cursor::new(model), &onnx::OnnxOptions::new()) {
        Ok(model) => vec![format!("{} layers", model.nodes.len())],
        Err(Error::Choice { found, .. }) => found,
        Err(error) => panic!("{error}"),
    }
}

/// Returns two GRUs of H 1, `a` and `c`; the second one reads `b`. Adds these nodes and tensors.
fn two_layers(more: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    let layers =
        [node("GRU", &["x", "W", "R"], &["a"], &[]), node("GRU", &["b", "W", "R"], &["c"], &[])];
    let weights = [zeros("W", &[1, 3, 1]), zeros("R", &[1, 3, 1]), integers("one", &[1])];
    model(&[&layers, more].concat(), &[&weights, tensors].concat())
}

fn squeeze(from: &str, to: &str) -> Vec<u8> {
    node("Squeeze", &[from, "one"], &[to], &[])
}

/// Operators of another domain may do anything.
#[test]
fn operators_of_other_domains_are_refused() {
    let foreign = |node: Vec<u8>| [node, bytes(7, b"com.acme")].concat();
    let own = |node: Vec<u8>| [node, bytes(7, b"ai.onnx")].concat();
    assert_eq!(listed(&two_layers(&[own(squeeze("a", "b"))], &[])), ["2 layers"]);
    assert_eq!(listed(&two_layers(&[foreign(squeeze("a", "b"))], &[])), ["a", "c"]);
    let copy = node("Identity", &["s"], &["b"], &[]);
    let way = |copy: Vec<u8>| two_layers(&[squeeze("a", "s"), copy], &[]);
    assert_eq!(listed(&way(copy.clone())), ["2 layers"]);
    assert_eq!(listed(&way(foreign(copy))), ["a", "c"]);
    let gru = foreign(node("GRU", &["x", "W", "R"], &["y"], &[]));
    assert_eq!(listed(&model(&[gru], &weights())), [""; 0]);
    let constant = foreign(node(
        "Constant",
        &[],
        &["W"],
        &[attribute("value", bytes(5, &zeros("", &[1, 6, 1])))],
    ));
    let gru = node("GRU", &["x", "W", "R"], &["y"], &[]);
    let error = onnx::read(
        Cursor::new(&model(&[gru, constant], &[zeros("R", &[1, 6, 2])])),
        &onnx::OnnxOptions::new(),
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("its W depends on `W`, the output of a node `Constant`")
    );
}

/// Sizes in a Reshape, and sizes that the model declares for the reshaped value: [T, D, B, H].
#[test]
fn declared_sizes_are_known_sizes() {
    let dimension = |size: i64| bytes(1, &int(1, size));
    let told = |sizes: [i64; 4]| {
        let shape: Vec<u8> = sizes.into_iter().flat_map(dimension).collect();
        let tensor_type = bytes(1, &[int(1, 1), bytes(2, &shape)].concat());
        bytes(13, &[bytes(1, b"a"), bytes(2, &tensor_type)].concat())
    };
    let way = |sizes: Option<[i64; 4]>, shape: [i64; 3]| {
        let reshape = node("Reshape", &["a", "shape"], &["b"], &[]);
        let model = two_layers(&[reshape], &[integers("shape", &shape)]);
        let graph = &model[model.len() - graph_length(&model)..];
        bytes(7, &[graph.to_vec(), sizes.map(told).unwrap_or_default()].concat())
    };
    assert_eq!(listed(&way(Some([5, 1, 3, 1]), [5, 3, 1])), ["2 layers"]);
    assert_eq!(listed(&way(Some([5, 1, 3, 1]), [5, 3, -1])), ["2 layers"]);
    assert_eq!(listed(&way(Some([5, 1, 3, 1]), [3, 5, 1])), ["a", "c"]);
    assert_eq!(listed(&way(Some([5, 1, 3, 1]), [1, 15, 1])), ["a", "c"]);
    assert_eq!(listed(&way(None, [5, 3, 1])), ["a", "c"]);
    assert_eq!(listed(&way(None, [0, -1, 1])), ["2 layers"]);
}

/// Of a model that is one field.
fn graph_length(model: &[u8]) -> usize {
    let head = 2 + model[1..].iter().position(|byte| byte & 0x80 == 0).unwrap();
    model.len() - head
}

/// Conditions for a stack, other than the connection between the layers.
#[test]
fn stacks_share_their_lengths_and_start_from_no_gru() {
    let weights = [zeros("W", &[1, 3, 1]), zeros("R", &[1, 3, 1]), integers("one", &[1])];
    let gru = |x: &str, lengths: &str, h0: &str, y: &[&str]| {
        node("GRU", &[x, "W", "R", "", lengths, h0], y, &[])
    };
    let layers = |lengths: [&str; 2], h0: &str, more: &[Vec<u8>]| {
        let layers = [
            gru("x", lengths[0], "", &["a", "h"]),
            squeeze("a", "b"),
            gru("b", lengths[1], h0, &["c"]),
        ];
        let lengths = [("n", [3, 2]), ("m", [3, 2]), ("k", [3, 1])];
        let lengths = lengths.map(|(name, values)| integers(name, &values));
        let zeros = floats("zeros", &[1, 2, 1], &[0.0; 2]);
        let tensors = [&weights[..], &lengths, &[zeros]].concat();
        listed(&model(&[&layers, more].concat(), &tensors))
    };
    assert_eq!(layers(["", ""], "", &[]), ["2 layers"]);
    // The same lengths by name, by value, and different ones.
    assert_eq!(layers(["n", "n"], "", &[]), ["2 layers"]);
    assert_eq!(layers(["n", "m"], "", &[]), ["2 layers"]);
    assert_eq!(layers(["n", "k"], "", &[]), ["a", "c"]);
    assert_eq!(layers(["n", ""], "", &[]), ["a", "c"]);
    // A decoder starts from its encoder's last state, on any path.
    assert_eq!(layers(["", ""], "zeros", &[]), ["2 layers"]);
    assert_eq!(layers(["", ""], "h", &[]), ["a", "c"]);
    let tanh = node("Tanh", &["h"], &["t"], &[]);
    assert_eq!(layers(["", ""], "t", &[tanh]), ["a", "c"]);
    // A nested graph reads it too.
    let nested = node("If", &["x"], &["t"], &[]);
    assert_eq!(layers(["", ""], "t", &[nested]), ["a", "c"]);
    // The number of rows is not a state.
    let expand = [node("Shape", &["h"], &["s"], &[]), node("Expand", &["zeros", "s"], &["t"], &[])];
    assert_eq!(layers(["", ""], "t", &expand), ["2 layers"]);
}

/// A dropout with a constant training mode drops; one in inference mode does not.
#[test]
fn dropout_is_the_identity_at_inference() {
    let way = |training: u8| {
        let flag = tensor("flag", &[], 9, bytes(9, &[training]));
        let dropout = node("Dropout", &["s", "", "flag"], &["b"], &[]);
        listed(&two_layers(&[squeeze("a", "s"), dropout], &[flag]))
    };
    assert_eq!(way(0), ["2 layers"]);
    assert_eq!(way(1), ["a", "c"]);
}

/// Errors in a node that is not needed, or in one GRU, do not prevent the others from being read.
#[test]
fn errors_in_unrequested_nodes_are_ignored() {
    let odd = node(
        "Constant",
        &[],
        &["axes"],
        &[attribute("value_ints", [int(8, 1), int(20, 7)].concat())],
    );
    let way = node("Squeeze", &["a", "axes"], &["b"], &[]);
    assert_eq!(listed(&two_layers(&[odd, way], &[])), ["2 layers"]);
    let text = node("Constant", &[], &["axes"], &[attribute("value_string", bytes(4, b"one"))]);
    let way = node("Squeeze", &["a", "axes"], &["b"], &[]);
    let whole = two_layers(&[text, way], &[]);
    assert_eq!(listed(&whole), ["a", "c"]);
    onnx::read(Cursor::new(&whole), &onnx::OnnxOptions::new().with_node("c")).unwrap();
    let clipped = node("GRU", &["x", "W", "R"], &["d"], &[attribute("clip", float(2, -1.0))]);
    let whole = two_layers(&[squeeze("a", "b"), clipped], &[]);
    assert_eq!(listed(&whole), ["a..c", "d"]);
    assert_eq!(
        onnx::read(Cursor::new(&whole), &onnx::OnnxOptions::new().with_node("a..c"))
            .unwrap()
            .nodes
            .len(),
        2
    );
    let error = onnx::read(Cursor::new(&whole), &onnx::OnnxOptions::new().with_node("d"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("the GRU node `d`: the clip is -1"), "{error}");
}

/// An attribute of another type than in ONNX would be read as 0.
#[test]
fn attributes_have_their_types_and_are_unique() {
    let read = |attributes: &[Vec<u8>]| {
        let gru = node("GRU", &["x", "W", "R"], &["y"], attributes);
        onnx::read(Cursor::new(&model(&[gru], &weights())), &onnx::OnnxOptions::new())
    };
    let after = |value: Vec<u8>, kind: i64| {
        attribute("linear_before_reset", [value, int(20, kind)].concat())
    };
    let model = read(&[after(int(3, 1), 2)]).unwrap();
    assert_eq!(model.params.layout().config().reset, gru_wgpu::Reset::After);
    let error = read(&[after(float(2, 1.0), 1)]).unwrap_err().to_string();
    assert!(error.contains("its attribute `linear_before_reset` has the ONNX type 1, expected 2"));
    let error = read(&[after(int(3, 1), 2), after(int(3, 0), 2)]).unwrap_err().to_string();
    assert!(error.contains("it has the attribute `linear_before_reset` twice"), "{error}");
    // Without activations, the defaults apply.
    read(&[attribute("activations", int(20, 8))]).unwrap();
}

/// W `[1, 6, 1]` computed by nodes from stored numbers: 0 to 5 in some order.
#[test]
fn weights_that_nodes_rearrange() {
    let ascending: Vec<f32> = (0..6u8).map(f32::from).collect();
    let ints = |name: &str, values: &[i64]| {
        attribute(name, values.iter().flat_map(|&value| int(8, value)).collect())
    };
    let read = |held: Vec<u8>, nodes: &[Vec<u8>], more: &[Vec<u8>]| {
        let gru = node("GRU", &["x", "W", "R"], &["y"], &[]);
        let tensors = [&[held, zeros("R", &[1, 6, 2])], more].concat();
        let model = onnx::read(
            Cursor::new(&model(&[&[gru][..], nodes].concat(), &tensors)),
            &onnx::OnnxOptions::new(),
        )?;
        // Back from r, z, n to ONNX's z, r, h.
        let (w, _, _) = model.params.to_cells()[0].to_onnx();
        Ok::<_, Error>(w.into_raw_vec_and_offset().0)
    };
    let flat = || floats("f", &[6], &ascending);
    let unsqueeze = |from: &str| node("Unsqueeze", &[from, "ends"], &["W"], &[]);
    let ends = || integers("ends", &[0, 2]);
    let identity: Vec<f32> = ascending.clone();
    // Unsqueeze with an operand, and with an attribute as before opset 13.
    assert_eq!(read(flat(), &[unsqueeze("f")], &[ends()]).unwrap(), identity);
    let old = node("Unsqueeze", &["f"], &["W"], &[ints("axes", &[0, -1])]);
    assert_eq!(read(flat(), &[old], &[]).unwrap(), identity);
    // Split in three and joined in another order; ends past the end, indices from the end.
    let slice = |first: &str, last: &str, to: &str| node("Slice", &["f", first, last], &[to], &[]);
    let cuts = [slice("two", "four", "r"), slice("zero", "two", "z"), slice("minus2", "max", "n")];
    let joined = node("Concat", &["z", "n", "r"], &["c"], &[attribute("axis", int(3, 0))]);
    let places = [
        integers("zero", &[0]),
        integers("two", &[2]),
        integers("four", &[4]),
        integers("minus2", &[-2]),
        integers("max", &[i64::MAX]),
        ends(),
    ];
    let nodes = [&cuts[..], &[joined.clone(), unsqueeze("c")]].concat();
    assert_eq!(read(flat(), &nodes, &places).unwrap(), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0]);
    // The same with a Split, even and with given sizes.
    let even = node("Split", &["f"], &["z", "r", "n"], &[]);
    let nodes = [even, joined.clone(), unsqueeze("c")];
    assert_eq!(read(flat(), &nodes, &[ends()]).unwrap(), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0]);
    let sizes = integers("sizes", &[1, 3, 2]);
    let uneven = node("Split", &["f", "sizes"], &["z", "r", "n"], &[]);
    let nodes = [uneven, joined, unsqueeze("c")];
    assert_eq!(read(flat(), &nodes, &[sizes, ends()]).unwrap(), [0.0, 4.0, 5.0, 1.0, 2.0, 3.0]);
    // Transposed, reshaped, squeezed.
    let turned = node("Transpose", &["f"], &["t"], &[ints("perm", &[1, 0])]);
    let reshape = node("Reshape", &["t", "shape"], &["W"], &[]);
    let nodes = [turned, reshape];
    let shape = integers("shape", &[1, -1, 1]);
    let held = floats("f", &[2, 3], &ascending);
    assert_eq!(read(held, &nodes, &[shape]).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    let squeezed = node("Squeeze", &["f", "first"], &["W"], &[]);
    let held = floats("f", &[1, 1, 6, 1], &ascending);
    assert_eq!(read(held, &[squeezed], &[integers("first", &[0])]).unwrap(), identity);
    // From half precision, and rounded to it.
    let cast = |to: i64| node("Cast", &["f"], &["W"], &[attribute("to", int(3, to))]);
    let held = floats("f", &[1, 6, 1], &[0.1; 6]);
    assert_eq!(read(held.clone(), &[cast(1)], &[]).unwrap(), [0.1; 6]);
    assert_eq!(read(held, &[cast(10)], &[]).unwrap(), [half::f16::from_f32(0.1).to_f32(); 6]);
    // The error names the place of the wrong node.
    let bad = node("Slice", &["f", "zero", "ends"], &["W"], &[]);
    let error = read(flat(), &[bad], &[integers("zero", &[0]), ends()]).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "its W: `W`: its starts, ends and axes have different lengths, or a step is not 1"
        ),
        "{error}"
    );
    // Parts of other shapes.
    for dims in [&[][..], &[1, 6], &[1, 6, 1, 1]] {
        let part = floats("p", dims, &ascending[..dims.iter().product::<i64>() as usize]);
        let joined = node("Concat", &["f", "p"], &["W"], &[attribute("axis", int(3, 0))]);
        let error = read(flat(), &[joined], &[part]).unwrap_err().to_string();
        assert!(
            error.ends_with("the inputs to concatenate have shapes that do not fit"),
            "{error}"
        );
    }
    let scaled = node("Mul", &["f", "f"], &["W"], &[]);
    let error = read(flat(), &[scaled], &[]).unwrap_err().to_string();
    assert!(error.ends_with("weights that are multiplied are not supported"), "{error}");
}

/// Zeros that are expanded to the batch count as no state.
#[test]
fn expanded_zeros_count_as_no_state() {
    let read = |value: f32| {
        let zero = floats("zero", &[1], &[value]);
        let nodes = [
            node("GRU", &["x", "W", "R", "", "", "h0"], &["y"], &[]),
            node("Shape", &["x"], &["s"], &[]),
            node("Expand", &["zero", "s"], &["e"], &[]),
            node("Slice", &["e", "n", "n"], &["h0"], &[]),
        ];
        let tensors = [weights(), vec![zero, integers("n", &[1])]].concat();
        onnx::read(Cursor::new(&model(&nodes, &tensors)), &onnx::OnnxOptions::new())
            .map(|model| model.h0)
    };
    assert_eq!(read(0.0).unwrap(), OptionalInput::Nothing);
    assert!(
        matches!(read(1.0).unwrap(), OptionalInput::AtRun(words) if words == "the shape of `x`")
    );
}

/// A Reshape that would move numbers, or whose sizes are ambiguous, ends a stack.
#[test]
fn ambiguous_reshapes_end_a_stack() {
    let way = |shape: &[i64], attributes: &[Vec<u8>]| {
        let reshape = node("Reshape", &["a", "shape"], &["b"], attributes);
        listed(&two_layers(&[reshape], &[integers("shape", shape)]))
    };
    // Of [T, 1, B, H]: T stays, and −1 becomes B.
    assert_eq!(way(&[0, -1, 1], &[]), ["2 layers"]);
    // The second size is 1, not B.
    assert_eq!(way(&[0, 0, -1], &[]), ["a", "c"]);
    assert_eq!(way(&[-1, -1, 1], &[]), ["a", "c"]);
    assert_eq!(way(&[0, -1], &[]), ["a", "c"]);
    assert_eq!(way(&[0, -1, 1, 1], &[]), ["a", "c"]);
    // Computed sizes: an input that is not connected keeps its index, and a boolean is not a size.
    let computed = |nodes: &[Vec<u8>]| {
        let reshape = node("Reshape", &["t", "shape"], &["b"], &[]);
        let order =
            attribute("perm", [0, 2, 1, 3].into_iter().flat_map(|axis| int(8, axis)).collect());
        let turned = node("Transpose", &["a"], &["t"], &[order]);
        let shape = node("Shape", &["t"], &["s"], &[]);
        let rest = integers("rest", &[1]);
        let tensors =
            [rest, integers("zero", &[0]), integers("two", &[2]), integers("minus", &[-1])];
        let join = node("Concat", &["tb", "rest"], &["shape"], &[attribute("axis", int(3, 0))]);
        listed(&two_layers(&[&[reshape, turned, shape, join], nodes].concat(), &tensors))
    };
    let slice = |inputs: &[&str]| computed(&[node("Slice", inputs, &["tb"], &[])]);
    assert_eq!(slice(&["s", "zero", "two"]), ["2 layers"]);
    assert_eq!(slice(&["s", "zero", "two", "", "one"]), ["2 layers"]);
    assert_eq!(slice(&["s", "zero", "two", "", "minus"]), ["a", "c"]);
    let cast = |to: i64| {
        let cut = node("Slice", &["s", "zero", "two"], &["cut"], &[]);
        computed(&[cut, node("Cast", &["cut"], &["tb"], &[attribute("to", int(3, to))])])
    };
    assert_eq!(cast(7), ["2 layers"]);
    assert_eq!(cast(9), ["a", "c"]);
    // With `allowzero`, 0 is an ordinary size.
    assert_eq!(way(&[0, -1, 1], &[attribute("allowzero", int(3, 1))]), ["a", "c"]);
}

/// A state counts as zeros only if all of it is zero.
#[test]
fn joined_and_shaped_zeros_are_zeros() {
    let read = |values: [f32; 2], fill: f32| {
        let tensors = [
            floats("one", &[1, 1, 2], &[values[0]; 2]),
            floats("other", &[1, 1, 2], &[values[1]; 2]),
        ];
        let fill = attribute("value", bytes(5, &floats("", &[1], &[fill])));
        let nodes = [
            node("GRU", &["x", "W", "R", "", "", "h0"], &["y"], &[]),
            node("Shape", &["x"], &["s"], &[]),
            node("ConstantOfShape", &["s"], &["filled"], &[fill]),
            node("Concat", &["one", "other", "filled"], &["h0"], &[attribute("axis", int(3, 1))]),
        ];
        let tensors = [&weights()[..], &tensors].concat();
        onnx::read(Cursor::new(&model(&nodes, &tensors)), &onnx::OnnxOptions::new()).unwrap().h0
    };
    assert_eq!(read([0.0, 0.0], 0.0), OptionalInput::Nothing);
    assert!(matches!(read([0.0, 1.0], 0.0), OptionalInput::AtRun(_)));
    assert!(matches!(read([0.0, 0.0], 1.0), OptionalInput::AtRun(_)));
}

/// Axes in any order, and an operand with several axes.
#[test]
fn inserted_and_removed_axes_are_followed() {
    let read = |op: &str, axes: &[i64], dims: &[i64]| {
        let gru = node("GRU", &["x", "W", "R"], &["y"], &[]);
        let held = floats("f", dims, &[0.5; 6]);
        let rearranged = node(op, &["f", "axes"], &["W"], &[]);
        let tensors = [held, integers("axes", axes), zeros("R", &[1, 6, 2])];
        onnx::read(Cursor::new(&model(&[gru, rearranged], &tensors)), &onnx::OnnxOptions::new())
            .map(|_| ())
    };
    read("Unsqueeze", &[2, 0], &[6]).unwrap();
    read("Unsqueeze", &[0, 2], &[6]).unwrap();
    read("Squeeze", &[3, 0], &[1, 1, 6, 1, 1]).unwrap();
    for (op, axes, dims, expected) in [
        ("Unsqueeze", &[0, 3][..], &[6][..], "axis 3 does not exist in an array of 3 axes"),
        ("Unsqueeze", &[0, 0], &[6], "axis 0 is given twice"),
        ("Unsqueeze", &[0; 20], &[6], "it has 21 axes; expected at most 8"),
        ("Squeeze", &[2], &[1, 1, 6, 1], "axis 2 to squeeze has size 6, expected 1"),
        ("Squeeze", &[0, 0], &[1, 1, 6, 1], "axis 0 is given twice"),
        ("Squeeze", &[9], &[1, 1, 6, 1], "axis 9 does not exist in an array of 4 axes"),
    ] {
        let error = read(op, axes, dims).unwrap_err().to_string();
        assert!(error.contains(expected), "{op} {axes:?}: {error}");
    }
}

/// Encodes a FunctionProto.
fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: &[Vec<u8>]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|name| bytes(4, name.as_bytes())).collect();
    let outputs = outputs.iter().flat_map(|name| bytes(5, name.as_bytes())).collect();
    let nodes = nodes.iter().flat_map(|node| bytes(7, node)).collect();
    [bytes(1, name.as_bytes()), inputs, outputs, nodes, bytes(10, b"my")].concat()
}

/// Encodes a node that calls a function.
fn call(
    name: &str,
    of: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[Vec<u8>],
) -> Vec<u8> {
    [node(of, inputs, outputs, attributes), bytes(3, name.as_bytes()), bytes(7, b"my")].concat()
}

/// Encodes a node with a name.
fn named(name: &str, node: Vec<u8>) -> Vec<u8> {
    [node, bytes(3, name.as_bytes())].concat()
}

/// An attribute of a function's node that has the value of the call's attribute.
fn referring(name: &str, to: &str) -> Vec<u8> {
    attribute(name, [int(20, 2), bytes(21, to.as_bytes())].concat())
}

fn with_functions(model: Vec<u8>, functions: &[Vec<u8>]) -> Vec<u8> {
    let functions: Vec<u8> = functions.iter().flat_map(|one| bytes(25, one)).collect();
    [model, functions].concat()
}

/// GRUs in functions are named by the call. Two layers in two calls are a stack.
#[test]
fn grus_in_functions_are_read() {
    let gru = named(
        "gru",
        node("GRU", &["a", "w", "r"], &["y"], &[referring("linear_before_reset", "after")]),
    );
    let encoder = function("Encoder", &["a", "w", "r"], &["y"], &[gru]);
    // A function that calls a function, and computes a weight.
    let inner = call("inner", "Encoder", &["a", "w1", "r"], &["y"], &[referring("after", "outer")]);
    let identity = node("Identity", &["w"], &["w1"], &[]);
    let outer = function("Outer", &["a", "w", "r"], &["y"], &[identity, inner]);
    let squeeze = node("Squeeze", &["y1", "one"], &["x2"], &[]);
    let after = |value: i64| attribute("after", int(3, value));
    let nodes = [
        call("first", "Encoder", &["x", "W", "R"], &["y1"], &[after(1)]),
        squeeze,
        call("second", "Outer", &["x2", "W2", "R"], &["y2"], &[attribute("outer", int(3, 1))]),
    ];
    let tensors = [weights(), vec![zeros("W2", &[1, 6, 2]), integers("one", &[1])]].concat();
    let model = with_functions(model(&nodes, &tensors), &[encoder.clone(), outer]);
    let read = read(&model);
    assert_eq!(read.nodes, ["first/gru", "second/inner/gru"]);
    let config = read.params.layout().config();
    assert_eq!((config.layers, config.reset), (2, gru_wgpu::Reset::After));
    // Without the attribute the default holds; a second call is another GRU.
    let nodes = [
        call("first", "Encoder", &["x", "W", "R"], &["y1"], &[]),
        call("", "Encoder", &["x", "W", "R"], &["other"], &[]),
    ];
    let model = with_functions(crate::common::proto::model(&nodes, &weights()), &[encoder]);
    let names = onnx::read_names(Cursor::new(&model)).unwrap();
    assert_eq!(names, ["first/gru", "other/gru"]);
    let options = onnx::OnnxOptions::new().with_node("other/gru");
    let read = onnx::read(Cursor::new(&model), &options).unwrap();
    assert_eq!(read.params.layout().config().reset, gru_wgpu::Reset::Before);
}

/// GRUs in the branches of an If, with weights inside and outside.
#[test]
fn grus_in_inner_graphs_are_read_under_their_path() {
    let body = |weight: Vec<u8>, gru: Vec<u8>| bytes(6, &graph(&[gru], &[weight]));
    let then_gru = named("gru", node("GRU", &["x", "W", "R"], &["y"], &[]));
    let else_gru = node("GRU", &["x", "W", "R2"], &["y"], &[]);
    let branches = [
        attribute("then_branch", body(floats("W", &[1, 6, 1], &[1.0; 6]), then_gru)),
        attribute("else_branch", body(zeros("R2", &[1, 6, 2]), else_gru)),
    ];
    let nodes = [named("choice", node("If", &["c"], &["out"], &branches))];
    let model = model(&nodes, &weights());
    let names = onnx::read_names(Cursor::new(&model)).unwrap();
    assert_eq!(names, ["choice/then_branch/gru", "choice/else_branch/y"]);
    let weight = |node: &str| {
        let options = onnx::OnnxOptions::new().with_node(node);
        let model = onnx::read(Cursor::new(&model), &options).unwrap();
        model.params.to_cells()[0].to_onnx().0[[0, 0]]
    };
    // The inner W hides the outer one.
    assert_eq!((weight(&names[0]), weight(&names[1])), (1.0, 0.0));
}

#[test]
fn functions_without_end_are_refused() {
    let refused = |functions: &[Vec<u8>]| {
        let calls = [call("c", "F0", &["x"], &["y"], &[])];
        let model = with_functions(model(&calls, &weights()), functions);
        onnx::read(Cursor::new(&model), &onnx::OnnxOptions::new()).unwrap_err().to_string()
    };
    let itself = function("F0", &["x"], &["y"], &[call("", "F0", &["x"], &["y"], &[])]);
    assert!(refused(&[itself]).contains("is nested in more than 16 functions"));
    // Each function calls the next one twelve times.
    let many: Vec<_> = (0..12)
        .map(|at| {
            let next = format!("F{}", at + 1);
            let calls: Vec<_> =
                (0..12).map(|i| call("", &next, &["x"], &[&format!("y{i}")], &[])).collect();
            function(&format!("F{at}"), &["x"], &["y0"], &calls)
        })
        .collect();
    let message = refused(&many);
    assert!(message.contains("times the size of the model"), "{message}");
}

/// Weights of 8 bits, with one scale, and with one for each gate's row.
#[test]
fn quantized_weights_are_read() {
    let signed = |name: &str, dims: &[i64], values: &[i8]| {
        let raw: Vec<u8> = values.iter().map(|&value| value as u8).collect();
        tensor(name, dims, 3, bytes(9, &raw))
    };
    let read = |scale: Vec<u8>, zero: Option<Vec<u8>>, axis: i64| {
        let inputs = if zero.is_some() { vec!["q", "s", "z"] } else { vec!["q", "s"] };
        let nodes = [
            node("GRU", &["x", "W", "R"], &["y"], &[]),
            node("DequantizeLinear", &inputs, &["W"], &[attribute("axis", int(3, axis))]),
        ];
        let held = signed("q", &[1, 6, 1], &[-128, -1, 0, 1, 2, 127]);
        let tensors = [vec![held, zeros("R", &[1, 6, 2]), scale], zero.into_iter().collect()];
        let model =
            onnx::read(Cursor::new(&model(&nodes, &tensors.concat())), &onnx::OnnxOptions::new())?;
        let (w, _, _) = model.params.to_cells()[0].to_onnx();
        Ok::<_, Error>(w.into_raw_vec_and_offset().0)
    };
    let one = || floats("s", &[], &[0.5]);
    assert_eq!(read(one(), None, 1).unwrap(), [-64.0, -0.5, 0.0, 0.5, 1.0, 63.5]);
    let zero = signed("z", &[], &[-1]);
    assert_eq!(read(one(), Some(zero), 1).unwrap(), [-63.5, 0.0, 0.5, 1.0, 1.5, 64.0]);
    let scales = floats("s", &[6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let zeros = signed("z", &[6], &[0, 0, 1, 0, 0, 127]);
    assert_eq!(
        read(scales.clone(), Some(zeros), -2).unwrap(),
        [-128.0, -2.0, -3.0, 4.0, 10.0, 0.0]
    );
    let message = read(scales, None, 0).unwrap_err().to_string();
    assert!(message.contains("does not fit x; expected 1 numbers"), "{message}");
}

/// A state that is expanded from a constant, or filled with one, is a constant.
#[test]
fn states_of_expanded_constants_are_constants() {
    let read = |nodes: &[Vec<u8>], more: &[Vec<u8>]| {
        let gru = node("GRU", &["x", "W", "R", "", "", "h0"], &["y"], &[]);
        let nodes = [&[gru], nodes].concat();
        let model = model(&nodes, &[&weights()[..], more].concat());
        onnx::read(Cursor::new(&model), &onnx::OnnxOptions::new()).map(|model| model.h0)
    };
    let expand = node("Expand", &["one", "shape"], &["h0"], &[]);
    let one = floats("one", &[2], &[1.0, 2.0]);
    let shape = integers("shape", &[1, 3, 1]);
    let expected = array![[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]];
    assert_eq!(
        read(std::slice::from_ref(&expand), &[one.clone(), shape]).unwrap(),
        OptionalInput::Constant(expected)
    );
    let value = attribute("value", bytes(5, &floats("", &[1], &[0.25])));
    let filled = node("ConstantOfShape", &["shape"], &["h0"], &[value]);
    let expected = OptionalInput::Constant(ndarray::Array3::from_elem((1, 3, 2), 0.25));
    assert_eq!(
        read(std::slice::from_ref(&filled), &[integers("shape", &[1, 3, 2])]).unwrap(),
        expected
    );
    // Shapes that do not fit, or would take all memory, are refused.
    let message =
        read(std::slice::from_ref(&expand), &[one.clone(), integers("shape", &[1, 3, 5])]);
    assert!(message.unwrap_err().to_string().contains("cannot be expanded to [1, 3, 5]"));
    for node in [expand, filled] {
        let shape = integers("shape", &[1 << 20, 1 << 20, 1]);
        let message = read(&[node], &[one.clone(), shape]).unwrap_err().to_string();
        assert!(message.contains("times the size of the model's files"), "{message}");
    }
}

/// PyTorch computes reset after the product; its exporters have lost the attribute.
#[test]
fn reset_before_in_a_file_of_pytorch_is_noted() {
    let gru = |after: i64| {
        let attributes = [attribute("linear_before_reset", int(3, after))];
        node("GRU", &["x", "W", "R"], &["y"], &attributes)
    };
    let read = |after: i64, producer: &str| {
        let model = [bytes(2, producer.as_bytes()), model(&[gru(after)], &weights())].concat();
        read(&model).notes
    };
    assert!(read(0, "pytorch")[0].contains("linear_before_reset"));
    assert!(read(1, "pytorch").is_empty() && read(0, "keras").is_empty());
}
