//! Model files written by other frameworks, run on every device and compared with the outputs of
//! those frameworks. `tests/data/models.py` made both.

use std::path::{Path, PathBuf};

use crate::common::{assert_close, devices};
use gru_wgpu::check::TOLERANCE;
use gru_wgpu::formats::onnx::{self, OptionalInput};
use gru_wgpu::formats::{StateDictOptions, npz, safetensors};
use gru_wgpu::{Batch, Bias, Direction, Error, Gru, GruConfig, Layout, Params, Reset};
use ndarray::{Array3, ArrayD, Ix3};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

/// A framework's input and its results.
struct ExpectedFile {
    x: Array3<f32>,
    h0: Option<Array3<f32>>,
    lengths: Option<Vec<usize>>,
    y: Array3<f32>,
    h_n: Array3<f32>,
}

impl ExpectedFile {
    fn load(name: &str) -> Self {
        let path = path(&format!("{name}.expected.npz"));
        let optional = |name| npz::load_arrays(&path, [name]).ok().map(|[array]| array);
        let three = |array: ArrayD<f32>| array.into_dimensionality::<Ix3>().unwrap();
        let [x, y, h_n] = npz::load_arrays(&path, ["x", "y", "h_n"]).unwrap().map(three);
        let lengths = optional("lengths");
        let lengths =
            lengths.map(|lengths| lengths.iter().map(|&length| length as usize).collect());
        Self { x, h0: optional("h0").map(three), lengths, y, h_n }
    }

    /// Compares a model with the expected results on every device.
    fn check(&self, name: &str, params: &Params) {
        let batch = Batch::new(self.x.view()).with_h0(self.h0.as_ref().map(|h0| h0.view()));
        let batch = match &self.lengths {
            Some(lengths) => batch.with_lengths(lengths),
            None => batch,
        };
        for device in devices() {
            let gru = Gru::with_params(params.clone(), &device).unwrap();
            let out = gru.forward(batch).unwrap();
            for (what, got, expected) in [("y", &out.y, &self.y), ("h_n", &out.h_n, &self.h_n)] {
                let [got, expected] = [got, expected].map(|array| array.mapv(f64::from));
                assert_close(&format!("{what} of {name}, {device}"), &got, &expected, TOLERANCE);
                let worst = (got - expected).iter().fold(0.0, |worst, e| f64::max(worst, e.abs()));
                println!("{name:<24} {what:<4} {worst:.1e}  {device}");
            }
        }
    }
}

#[test]
fn grus_of_torch_state_dicts() {
    let load = |file: &str, prefix: &str| {
        let options = safetensors::SafetensorsOptions::new().with_prefix(prefix);
        safetensors::load(path(file), &options).unwrap()
    };
    let params = load("torch_speech.safetensors", "encoder.gru");
    let expected = GruConfig::pytorch(3, 5).with_layers(2).with_direction(Direction::Both);
    assert_eq!(*params.layout().config(), expected);
    ExpectedFile::load("torch_speech.encoder").check("nn.GRU, packed", &params);
    // Also with the dot.
    assert_eq!(load("torch_speech.safetensors", "encoder.gru."), params);
    let params = load("torch_speech.safetensors", "decoder");
    ExpectedFile::load("torch_speech.decoder").check("nn.GRUCell", &params);
    let params = load("torch_speech.safetensors", "small");
    assert_eq!(params.layout().config().bias, Bias::None);
    ExpectedFile::load("torch_speech.small").check("nn.GRU, no bias", &params);
    for name in ["torch_f16", "torch_bf16"] {
        let options = safetensors::SafetensorsOptions::new();
        let file = path(&format!("{name}.safetensors"));
        ExpectedFile::load(name).check(name, &safetensors::load(file, &options).unwrap());
    }
}

/// An LSTM and a plain RNN are not taken for GRUs, although their tensors have similar names.
#[test]
fn several_grus_are_listed() {
    let file = path("torch_speech.safetensors");
    let found = ["decoder.", "encoder.gru.", "small."].map(str::to_owned).to_vec();
    assert_eq!(safetensors::prefixes(&file).unwrap(), found);
    for asked in [None, Some("lstm"), Some("encoder"), Some("")] {
        let options = safetensors::SafetensorsOptions::new().with_prefix(asked);
        let error = safetensors::load(&file, &options).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("`decoder.`, `encoder.gru.`, `small.`"), "{message}");
        assert!(message.contains("torch_speech.safetensors"), "{message}");
        assert!(matches!(&error, Error::Choice { found: listed, .. } if *listed == found));
    }
}

/// torch's exporters make one node per layer. Two GRUs in sequence also give two nodes. Both load
/// as a stack, whether the exporter reorders the gates or leaves that to nodes of the model.
#[test]
fn stacks_of_torch_exports() {
    for exporter in ["old", "new", "old_unfolded", "new_dynamic"] {
        let load = |name: &str| {
            let name = format!("torch_{exporter}_{name}");
            (onnx::load(path(&format!("{name}.onnx")), &onnx::OnnxOptions::new()).unwrap(), name)
        };
        let (model, name) = load("denoiser");
        assert_eq!(*model.params.layout().config(), GruConfig::pytorch(3, 5).with_layers(2));
        assert_eq!(model.nodes.len(), 2);
        // The old exporter expands zeros to the batch, the new one stores zeros for the example
        // batch.
        assert_eq!(model.h0, OptionalInput::Nothing);
        ExpectedFile::load(&name).check(&name, &model.params);
        // A part of the stack, by the names of its nodes.
        let whole = format!("{}..{}", model.nodes[0], model.nodes[1]);
        let file = path(&format!("{name}.onnx"));
        assert_eq!(onnx::names(&file).unwrap(), [whole.as_str()]);
        let with =
            |node: &str| onnx::load(&file, &onnx::OnnxOptions::new().with_node(node)).unwrap();
        assert_eq!(with(&whole), model);
        let second = with(&model.nodes[1]).params;
        assert_eq!(*second.layout().config(), GruConfig::pytorch(5, 5));
        assert_eq!(second.get("weight_hh_l0").unwrap(), model.params.get("weight_hh_l1").unwrap());

        let (model, name) = load("both");
        let expected = GruConfig::pytorch(3, 5).with_layers(2).with_direction(Direction::Both);
        assert_eq!(*model.params.layout().config(), expected);
        assert!(matches!(model.h0, OptionalInput::AtRun(_)), "{:?}", model.h0);
        ExpectedFile::load(&name).check(&name, &model.params);
    }
}

#[test]
fn nodes_of_onnx() {
    for (name, reset, bias) in [
        ("onnx_before", Reset::Before, Bias::Two),
        ("onnx_after", Reset::After, Bias::Two),
        ("onnx_plain", Reset::Before, Bias::None),
        ("onnx_layout", Reset::Before, Bias::None), // in double precision
    ] {
        let model = onnx::load(path(&format!("{name}.onnx")), &onnx::OnnxOptions::new()).unwrap();
        let expected = GruConfig::pytorch(3, 5).with_reset(reset).with_bias(bias);
        assert_eq!(*model.params.layout().config(), expected, "{name}");
        let expected = ExpectedFile::load(name);
        match &expected.h0 {
            Some(h0) => assert_eq!(model.h0, OptionalInput::Constant(h0.clone()), "{name}"),
            None => assert_eq!(model.h0, OptionalInput::Nothing, "{name}"),
        }
        assert_eq!(model.lengths, OptionalInput::Nothing);
        let is_layout = name == "onnx_layout";
        assert_eq!(model.layout == Layout::BatchFirst, is_layout);
        // A node without a name has the name of its output.
        assert_eq!(model.nodes, [if bias == Bias::None { "Y" } else { "the_gru" }]);
        expected.check(name, &model.params);
    }
}

/// The files have a prefix for each direction, as Keras' `Bidirectional` has.
#[test]
fn layers_of_keras() {
    for (after, direction) in [
        (true, Direction::Forward),
        (true, Direction::Both),
        (false, Direction::Forward),
        (false, Direction::Both),
    ] {
        let both = direction == Direction::Both;
        let end = if both { "_both" } else { "" };
        let name = format!("keras_{}{end}", if after { "after" } else { "before" });
        let (reset, bias) =
            if after { (Reset::After, Bias::Two) } else { (Reset::Before, Bias::One) };
        let config = GruConfig::pytorch(3, 5).with_reset(reset).with_bias(bias);
        let options = StateDictOptions::new().with_prefix(both.then_some("forward+backward"));
        let params = npz::load(path(&format!("{name}.npz")), &options).unwrap();
        assert_eq!(*params.layout().config(), config.with_direction(direction), "{name}");
        ExpectedFile::load(&name).check(&name, &params);
    }
}

#[test]
fn layers_of_flax_and_mlx() {
    for name in ["flax", "mlx"] {
        let params = npz::load(path(&format!("{name}.npz")), &StateDictOptions::new()).unwrap();
        assert_eq!(*params.layout().config(), GruConfig::pytorch(3, 5));
        ExpectedFile::load(name).check(name, &params);
    }
}
