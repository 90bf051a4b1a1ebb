//! Every format × variant × direction × layers: a saved model loads back bit for bit and computes
//! the same numbers.

use std::io::Cursor;
use std::path::Path;

use crate::common::{assert_close, random3, within};
use gru_wgpu::formats::safetensors::{self, SafetensorsOptions};
use gru_wgpu::formats::{StateDictOptions, WeightLayout, npy, npz, onnx};
use gru_wgpu::{
    Activation, Activations, Device, Direction, Error, Gru, GruConfig, Head, Init, ParamLayout,
    Params, Reset, Update, reference,
};
use ndarray::{Array3, ShapeBuilder, s};
use tempfile::TempDir;

/// Returns every variant × direction × 1 and 3 layers at odd sizes, and the other activations.
fn models() -> Vec<Params> {
    let mut configs = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse, Direction::Both] {
        for layers in [1, 3] {
            let variants = GruConfig::all_variants(3, 5).into_iter();
            configs.extend(variants.map(|c| c.with_direction(direction).with_layers(layers)));
        }
    }
    for gate in [Activation::Sigmoid, Activation::HARD_SIGMOID_PYTORCH] {
        for candidate in Activation::ALL {
            let config = GruConfig::new(2, 3).with_activations(gate, candidate);
            let reverse = Activations { gate: Activation::HARD_SIGMOID_ONNX, candidate };
            configs.push(config.clone());
            configs.push(config.clone().with_clip(Some(0.7)));
            let config = config.with_direction(Direction::Both);
            configs.push(config.with_reverse_activations(Some(reverse)));
        }
    }
    configs.push(GruConfig::pytorch(1, 1).with_layers(2).with_dropout(0.25));
    let init = |(seed, config): (u64, &GruConfig)| {
        let mut params = Params::init(config, Init::Uniform, seed).unwrap();
        // Bits that arithmetic would lose: a negative zero, and the smallest number.
        let mut weight = params.get_mut(&format!("weight_hh{}", first_cell(config))).unwrap();
        weight[[0, 0]] = -0.0;
        let last = weight.shape()[0] - 1;
        weight[[last, 0]] = f32::from_bits(1);
        params
    };
    (0..).zip(&configs).map(init).collect()
}

fn first_cell(config: &GruConfig) -> &'static str {
    if config.direction == Direction::Reverse { "_l0_reverse" } else { "_l0" }
}

fn bits(params: &Params) -> Vec<u32> {
    params.as_slice().iter().map(|number| number.to_bits()).collect()
}

/// Returns the bytes of an ONNX model.
fn onnx_bytes(params: &Params, inputs: &onnx::Inputs) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    onnx::write(&mut bytes, params, inputs)?;
    Ok(bytes)
}

/// Checks that each model is the same after `there_and_back`; and that in memory `write` gives the
/// bytes of the file, and `read` gives the model.
fn check(
    format: &str,
    there_and_back: impl Fn(&Path, &Params) -> Params,
    write: impl Fn(&mut Cursor<Vec<u8>>, &Params) -> Result<(), Error>,
    read: impl Fn(Cursor<&[u8]>, &GruConfig) -> Result<Params, Error>,
) {
    let directory = TempDir::new().unwrap();
    let models = models();
    for (number, params) in models.iter().enumerate() {
        let path = directory.path().join(format!("{number}.{format}"));
        let back = there_and_back(&path, params);
        let config = params.layout().config();
        assert_eq!(back.layout().config(), config, "{format}");
        assert_eq!(bits(&back), bits(params), "{format}, {config}");
        // The same model gives the same file.
        let bytes = std::fs::read(&path).unwrap();
        there_and_back(&path, &back);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{format}, {config}");
        let mut stream = Cursor::new(Vec::new());
        write(&mut stream, params).unwrap();
        assert!(stream.get_ref() == &bytes, "{format}, {config}: another stream than file");
        let back = read(Cursor::new(&bytes), config).unwrap();
        assert_eq!(bits(&back), bits(params), "{format} in memory, {config}");
    }
    println!("{format}: {} models, every bit", models.len());
}

#[test]
fn safetensors_round_trips_bit_for_bit() {
    let options = SafetensorsOptions::new();
    check(
        "safetensors",
        |path, params| {
            safetensors::save(path, params).unwrap();
            safetensors::load(path, &options).unwrap()
        },
        |to, params| safetensors::write(to, params),
        |from, _| safetensors::read(from, &options),
    );
}

/// Our metadata still applies if the tensors get a prefix. If another GRU is added, it is ambiguous
/// and not used.
#[test]
fn metadata_applies_to_a_single_gru() {
    let params = Params::init(&GruConfig::new(3, 5), Init::Uniform, 1).unwrap();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("gru.safetensors");
    safetensors::save(&path, &params).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let under = |prefixes: &[&str]| {
        let tensors: Vec<_> = prefixes
            .iter()
            .flat_map(|prefix| {
                file.iter().map(move |(name, view)| (format!("{prefix}{name}"), view))
            })
            .collect();
        let file = ::safetensors::serialize(tensors, header.metadata().clone()).unwrap();
        safetensors::read(Cursor::new(file), &SafetensorsOptions::new().with_prefix("a"))
    };
    assert_eq!(under(&["a."]).unwrap(), params);
    let error = under(&["a.", "b."]).unwrap_err().to_string();
    assert!(error.starts_with("its metadata describes one GRU, but the file holds 2"), "{error}");
}

#[test]
fn onnx_round_trips_bit_for_bit() {
    for inputs in [onnx::Inputs::new(), onnx::Inputs::new().with_h0(true).with_lengths(true)] {
        let options = onnx::OnnxOptions::new();
        check(
            "onnx",
            |path, params| {
                onnx::save(path, params, &inputs).unwrap();
                let model = onnx::load(path, &options).unwrap();
                let config = params.layout().config();
                assert_eq!(model.nodes.len(), config.layers);
                assert_eq!(matches!(model.h0, onnx::OptionalInput::AtRun(_)), inputs.h0);
                assert_eq!(matches!(model.lengths, onnx::OptionalInput::AtRun(_)), inputs.lengths);
                model.params
            },
            |to, params| onnx::write(to, params, &inputs),
            |from, _| Ok(onnx::read(from, &options)?.params),
        );
    }
}

#[test]
fn npz_round_trips_bit_for_bit() {
    let options = StateDictOptions::new();
    check(
        "npz",
        |path, params| {
            npz::save(path, params, WeightLayout::Pytorch).unwrap();
            npz::load(path, &options).unwrap()
        },
        |to, params| npz::write(to, params, WeightLayout::Pytorch),
        |from, _| npz::read(from, &options),
    );
}

/// Networks, gradients and arrays are the same in memory as in a file; names are read from both.
#[test]
fn path_functions_and_stream_functions_agree() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    let file = || std::fs::read(&path).unwrap();

    let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 5), Head::last(2)).unwrap();
    let network = Params::init_of(layout, Init::Uniform, 1).unwrap();
    let mut bytes = Vec::new();
    safetensors::save_network(&path, &network).unwrap();
    safetensors::write_network(&mut bytes, &network).unwrap();
    assert!(file() == bytes);
    let read = safetensors::read_network(Cursor::new(&bytes), &SafetensorsOptions::new());
    assert_eq!(read.unwrap(), network);
    let prefixes = safetensors::read_prefixes(Cursor::new(&bytes)).unwrap();
    assert_eq!(prefixes, safetensors::prefixes(&path).unwrap());
    let headless = Params::init(&GruConfig::pytorch(3, 5), Init::Uniform, 1).unwrap();
    assert!(matches!(
        safetensors::write_network(Vec::new(), &headless).unwrap_err(),
        Error::Conflict { .. }
    ));

    let x = random3([2, 2, 3], 1);
    let trace = reference::forward_train(&headless, &x).unwrap();
    let dy = random3([2, 2, 5], 2);
    let gradients =
        reference::backward(&headless, x.view(), &trace, Some(dy.view()), None).unwrap();
    let mut bytes = Vec::new();
    safetensors::save_gradients(&path, &gradients).unwrap();
    safetensors::write_gradients(&mut bytes, &gradients).unwrap();
    assert!(file() == bytes);

    let inputs = onnx::Inputs::new();
    onnx::save(&path, &headless, &inputs).unwrap();
    let names = onnx::read_names(Cursor::new(onnx_bytes(&headless, &inputs).unwrap())).unwrap();
    assert_eq!(names, onnx::names(&path).unwrap());

    let arrays = || [("a".to_owned(), x.view().into_dyn()), ("b".to_owned(), dy.view().into_dyn())];
    let mut archive = Cursor::new(Vec::new());
    npz::save_arrays(&path, arrays()).unwrap();
    npz::write_arrays(&mut archive, arrays()).unwrap();
    assert!(&file() == archive.get_ref());
    assert_eq!(
        npz::read_arrays(archive, ["b", "a"]).unwrap(),
        [dy.into_dyn(), x.clone().into_dyn()]
    );

    let mut bytes = Vec::new();
    npy::save(&path, x.view()).unwrap();
    npy::write(&mut bytes, x.view()).unwrap();
    assert!(file() == bytes);
    assert_eq!(npy::read_as::<ndarray::Ix3>(Cursor::new(&bytes)).unwrap().0, x);
    assert!(npy::read_as::<ndarray::Ix2>(Cursor::new(&bytes)).is_err());
    assert!(npy::read_lengths(Cursor::new(&bytes)).is_err());
}

/// A stream that accepts a limited number of bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn writing_to_a_full_stream_is_an_error() {
    let params = Params::init(&GruConfig::pytorch(3, 5), Init::Uniform, 1).unwrap();
    let view = params.get("weight_hh_l0").unwrap();
    for room in [0, 9, 100] {
        for error in [
            safetensors::write(Full(room), &params).unwrap_err(),
            onnx::write(Full(room), &params, &onnx::Inputs::new()).unwrap_err(),
            npy::write(Full(room), view.view()).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::Io { .. }), "{error}");
            assert!(error.to_string().starts_with("the stream cannot be written: "), "{error}");
        }
    }
}

/// Without our metadata the file is an ordinary ONNX model: its nodes compute the same, possibly
/// with other weights.
#[test]
fn written_onnx_nodes_compute_the_same_numbers() {
    for params in models() {
        let config = params.layout().config();
        let bytes = onnx_bytes(&params, &onnx::Inputs::new()).unwrap();
        // Of the same length, but not our key.
        let stripped = replaced(&bytes, b"gru_wgpu.config", b"another_.config");
        let model = onnx::read(Cursor::new(&stripped), &onnx::OnnxOptions::new()).unwrap();
        let other = model.params.layout().config();
        assert_eq!((other.update, other.dropout), (Update::Keeps, 0.0));
        let x = random3([4, 3, config.input_size], 7).mapv(f64::from);
        let y = |params: &Params| reference::forward(&params.cast::<f64>(), &x).unwrap().y();
        let (got, expected) = (y(&model.params), y(&params));
        assert_close("y", &got, &expected, within(1e-12));
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

/// A stack is a sequence of layers; a single node or a part gives its layers.
#[test]
fn parts_of_a_stack_have_their_names() {
    let config = GruConfig::pytorch(3, 5).with_layers(4).with_direction(Direction::Both);
    let params = Params::init(&config, Init::Uniform, 1).unwrap();
    let model = onnx_bytes(&params, &onnx::Inputs::new()).unwrap();
    let read =
        |node: &str| onnx::read(Cursor::new(&model), &onnx::OnnxOptions::new().with_node(node));
    for (node, layers) in [
        ("gru_l0..gru_l3", 0..4),
        ("gru_l1..gru_l2", 1..3),
        ("gru_l3", 3..4),
        ("gru_l0..gru_l0", 0..1),
    ] {
        let part = read(node).unwrap().params;
        assert_eq!(part.layout().config().layers, layers.len());
        assert_eq!(part.to_cells(), params.to_cells()[2 * layers.start..2 * layers.end], "{node}");
    }
    for node in ["gru_l2..gru_l1", "gru_l9", "..", "gru_l0..", ""] {
        let error = read(node).unwrap_err();
        assert!(matches!(error, Error::Choice { .. }), "{node}: {error}");
        assert!(error.to_string().ends_with("choose one by its node: `gru_l0..gru_l3`"), "{error}");
    }
}

#[test]
fn models_that_onnx_cannot_express_are_refused() {
    let encode = |config: GruConfig| {
        let params = Params::init(&config, Init::Uniform, 1).unwrap();
        onnx_bytes(&params, &onnx::Inputs::new()).map(|_| ()).unwrap_err().to_string()
    };
    let error = encode(GruConfig::pytorch(2, 3).with_zoneout(0.1));
    assert!(error.starts_with("zoneout and ONNX cannot be combined"), "{error}");
    let config = GruConfig::new(2, 3).with_activations(Activation::Relu, Activation::Tanh);
    assert!(encode(config.clone()).contains("Update::Overwrites and ONNX"));
    // With z keeps, nothing is converted.
    let keeps = Params::init(&config.with_update(Update::Keeps), Init::Uniform, 1).unwrap();
    onnx_bytes(&keeps, &onnx::Inputs::new()).unwrap();
}

#[test]
fn arrays_of_any_memory_order_round_trip() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("x.npy");
    let x = random3([4, 3, 5], 1);
    let fortran = Array3::from_shape_fn((4, 3, 5).f(), |at| x[at]);
    for view in [x.view(), fortran.view()] {
        npy::save(&path, view).unwrap();
        let (back, numbers) = npy::load_as::<ndarray::Ix3>(&path).unwrap();
        assert_eq!((back, numbers), (x.clone(), npy::NpyElement::F32));
    }
    npy::save(&path, x.slice(s![..;2, .., ..2])).unwrap();
    assert_eq!(npy::load(&path).unwrap().0.shape(), [2, 3, 2]);
    let error = npy::load_as::<ndarray::Ix2>(&path).unwrap_err().to_string();
    assert!(error.ends_with("its shape is [2, 3, 2]; expected 2 axes"), "{error}");
}

#[test]
fn gradients_are_stored_under_their_parameters_names() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("grads.safetensors");
    let config = GruConfig::new(3, 5).with_reset(Reset::After).with_direction(Direction::Both);
    let gru = Gru::new(config, Init::Uniform, 1, &Device::cpu()).unwrap();
    let x = random3([4, 2, 3], 2);
    let (out, tape) = gru.forward_train(&x).unwrap();
    let grads = gru.backward(tape, Some(out.y.view()), None).unwrap();
    safetensors::save_gradients(&path, &grads).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let array = |name: &str| -> Vec<f32> {
        bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data())
    };
    for (name, expected) in grads.params.iter() {
        assert_eq!(array(name), expected.iter().copied().collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(array("input"), grads.x.as_slice().unwrap());
    assert_eq!(array("h0"), grads.h0.as_slice().unwrap());
    assert_eq!(file.len(), grads.params.layout().entries().len() + 2);
}
