//! Models by hand: what ONNX allows and no exporter of `tests/models.rs` writes.
#![cfg(feature = "onnx")]

#[path = "common/proto.rs"]
mod proto;

use gru_wgpu::formats::onnx::{self, Given};
use gru_wgpu::{Activation, Error, Layout};
use ndarray::array;
use proto::{attribute, bytes, float, graph, int, model, node, tensor, zeros};

fn read(model: &[u8]) -> onnx::Model {
    onnx::read(model, &onnx::Options::new()).unwrap()
}

/// A TensorProto of these floats.
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
fn held_states_go_by_the_layout() {
    let read = |layout: i64, dims: &[i64], values: &[f32]| {
        let h0 = floats("h0", dims, values);
        let attributes = [attribute("layout", int(3, layout))];
        let gru = node("GRU", &["x", "W", "R", "", "", "h0"], &["y"], &attributes);
        onnx::read(&model(&[gru], &[weights(), vec![h0]].concat()), &onnx::Options::new())
    };
    let numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let expected = Given::Constant(array![[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]);
    let time_major = read(0, &[1, 3, 2], &numbers).unwrap();
    assert_eq!((time_major.h0, time_major.layout), (expected.clone(), Layout::TimeMajor));
    let batch_first = read(1, &[3, 1, 2], &numbers).unwrap();
    assert_eq!((batch_first.h0, batch_first.layout), (expected, Layout::BatchFirst));
    // Zeros serve any batch, as nothing does.
    assert_eq!(read(0, &[1, 3, 2], &[0.0; 6]).unwrap().h0, Given::Nothing);
    let error = read(0, &[3, 1, 2], &numbers).unwrap_err().to_string();
    assert!(error.contains("its initial_h: its [D, B, H] has shape [3, 1, 2], expected [1, 1, 2]"));
    let error = read(0, &[6], &numbers).unwrap_err().to_string();
    assert!(error.contains("its initial_h: its shape is [6]; expected three axes"), "{error}");
}

#[test]
fn held_lengths_are_given() {
    let lengths = |data_type: i64, data: Vec<u8>| tensor("n", &[2], data_type, data);
    let read = |lengths: Vec<u8>| {
        let gru = node("GRU", &["x", "W", "R", "", "n"], &["y"], &[]);
        let model = model(&[gru], &[weights(), vec![lengths]].concat());
        onnx::read(&model, &onnx::Options::new()).map(|model| model.lengths)
    };
    let expected = Given::Constant(vec![3, 0]);
    // In a field of their own, and raw.
    assert_eq!(read(lengths(6, [int(5, 3), int(5, 0)].concat())).unwrap(), expected);
    assert_eq!(read(lengths(6, bytes(9, &[3, 0, 0, 0, 0, 0, 0, 0]))).unwrap(), expected);
    assert_eq!(read(lengths(7, [int(7, 3), int(7, 0)].concat())).unwrap(), expected);
    let error = read(lengths(7, [int(7, 3), int(7, -1)].concat())).unwrap_err().to_string();
    assert!(error.contains("its sequence_lens: it holds the length -1"), "{error}");
    let error = read(lengths(1, bytes(9, &[0; 8]))).unwrap_err().to_string();
    assert!(error.contains("its numbers are not whole"), "{error}");
}

/// Numbers in each place that a tensor may have them.
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

/// α and β belong to the functions that have some, in their order.
#[test]
fn activations_take_what_is_theirs() {
    let read = |names: &[&str], alphas: &[f32], betas: &[f32]| {
        let names = names.iter().flat_map(|name| bytes(9, name.as_bytes())).collect();
        let all = |values: &[f32]| values.iter().flat_map(|&value| float(7, value)).collect();
        let attributes = [
            attribute("activations", names),
            attribute("activation_alpha", all(alphas)),
            attribute("activation_beta", all(betas)),
        ];
        let gru = node("GRU", &["x", "W", "R"], &["y"], &attributes);
        let model = onnx::read(&model(&[gru], &weights()), &onnx::Options::new())?;
        let config = model.params.layout().config().clone();
        Ok::<_, Error>([config.gate_activation, config.candidate_activation])
    };
    use Activation::{HardSigmoid, Identity, Relu, Sigmoid, Tanh};
    assert_eq!(read(&["Sigmoid", "Relu"], &[], &[]).unwrap(), [Sigmoid, Relu]);
    assert_eq!(read(&["SIGMOID", "tanh"], &[], &[]).unwrap(), [Sigmoid, Tanh]);
    assert_eq!(read(&["HardSigmoid", "Tanh"], &[], &[]).unwrap(), [HardSigmoid, Tanh]);
    assert_eq!(
        read(&["HardSigmoid", "Affine"], &[0.2, 1.0], &[0.5, 0.0]).unwrap(),
        [HardSigmoid, Identity]
    );
    assert_eq!(read(&["Sigmoid", "ScaledTanh"], &[1.0], &[1.0]).unwrap(), [Sigmoid, Tanh]);
    for (names, alphas, betas) in [
        (["HardSigmoid", "Affine"], &[1.0, 0.2][..], &[0.0, 0.5][..]),
        (["Sigmoid", "ScaledTanh"], &[1.7159], &[0.6667]),
        (["HardSigmoid", "Tanh"], &[0.2], &[0.6]),
        // ONNX does not say what they are where they are not given.
        (["HardSigmoid", "Affine"], &[], &[]),
        (["Sigmoid", "ScaledTanh"], &[], &[]),
        (["Sigmoid", "LeakyRelu"], &[0.1], &[]),
    ] {
        let error = read(&names, alphas, betas).unwrap_err().to_string();
        assert!(error.ends_with("is not supported"), "{error}");
    }
}

/// GRUs that read each other in a circle are each alone; those that a third one follows, too.
#[test]
fn stacks_are_layers_that_only_follow_each_other() {
    let gru = |x: &str, y: &str| node("GRU", &[x, "W", "R"], &[y], &[]);
    let squeeze = |from: &str, to: &str| node("Squeeze", &[from, "one"], &[to], &[]);
    let one = tensor("one", &[1], 7, bytes(9, &1i64.to_le_bytes()));
    let weights = [zeros("W", &[1, 3, 1]), zeros("R", &[1, 3, 1]), one];
    let listed =
        |nodes: &[Vec<u8>]| match onnx::read(&model(nodes, &weights), &onnx::Options::new()) {
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
    // What lies between must only rearrange.
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
    // Rows as steps.
    assert_eq!(listed(&turned([1, 0, 2])), ["a", "d"]);
    for order in [[0, 0, 2], [0, 1, 3], [-1, 1, 2]] {
        assert_eq!(listed(&turned(order)), ["a", "d"]);
    }
}

/// Layers of one stack have the same lengths, and read what the one below puts out, not its last state.
#[test]
fn other_layers_are_each_alone() {
    let one = tensor("one", &[1], 7, bytes(9, &1i64.to_le_bytes()));
    let weights = [zeros("W", &[1, 3, 1]), zeros("R", &[1, 3, 1]), one];
    let squeeze = |from: &str, to: &str| node("Squeeze", &[from, "one"], &[to], &[]);
    let layers = |nodes: &[Vec<u8>]| onnx::read(&model(nodes, &weights), &onnx::Options::new());
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
