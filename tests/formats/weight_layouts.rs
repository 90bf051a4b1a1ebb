//! The layouts of Keras, Flax, MLX and ONNX in files of named arrays: files of these frameworks,
//! round trips of every definition, and files that must be refused.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use crate::common::{assert_close, devices, random3, within};
use crate::hostile::{bounded, refused};
use gru_wgpu::check::TOLERANCE;
use gru_wgpu::formats::{StateDictOptions, WeightLayout, npz, safetensors};
use gru_wgpu::{
    Activation, Activations, Bias, Direction, Error, Gru, GruConfig, Init, Params, Reset, Update,
    reference,
};
use ndarray::{ArrayD, Ix3, IxDyn};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/layouts").join(name)
}

/// Reads a file of `tests/data/layouts.py`.
fn load(file: &str, options: &StateDictOptions) -> Result<Params, Error> {
    match file.ends_with(".npz") {
        true => npz::load(path(file), options),
        false => safetensors::load(path(file), options),
    }
}

/// Compares a GRU of a file with what its framework computes, on every device.
fn check(file: &str, expected: &str, prefix: &str, options: StateDictOptions) {
    let params = load(file, &options.with_prefix(prefix)).unwrap();
    let arrays = npz::load_arrays(path(&format!("{expected}.expected.npz")), ["x", prefix]);
    let [x, y] = arrays.unwrap().map(|array| array.into_dimensionality::<Ix3>().unwrap());
    for device in devices() {
        let gru = Gru::with_params(params.clone(), &device).unwrap();
        let got = gru.forward(&x).unwrap().y;
        let worst = (&got - &y).iter().fold(0f32, |worst, error| worst.max(error.abs()));
        println!("{file:<16} {prefix:<24} {worst:.1e}  {device}");
        let [got, expected] = [&got, &y].map(|array| array.mapv(f64::from));
        assert_close(&format!("y of {file}, {prefix}"), &got, &expected, TOLERANCE);
    }
}

#[test]
fn models_of_keras() {
    let options = StateDictOptions::new();
    let cells = "cells/stacked_rnn_cells/gru_cell,cells/stacked_rnn_cells/gru_cell_1";
    for prefix in ["encoder", "both", "first,second", "first", cells] {
        check("keras.npz", "keras", prefix, options.clone());
    }
    for (prefix, reset) in [("plain", Reset::After), ("old", Reset::Before)] {
        check("keras.npz", "keras", prefix, options.clone().with_reset(reset));
        let message = refused(load("keras.npz", &options.clone().with_prefix(prefix)));
        assert!(message.contains("do not tell whether the reset gate acts"), "{message}");
    }
    // Also by its two directions, or one of them.
    let with = |prefix: &str| load("keras.npz", &options.clone().with_prefix(prefix)).unwrap();
    let both = with("both");
    assert_eq!(with("both/forward_inner+both/backward_inner"), both);
    let reverse = with("both/backward_inner/gru_cell/");
    assert_eq!(reverse, with("both/backward_inner"));
    assert_eq!(reverse.to_cells()[0], both.to_cells()[1]);
    // The only GRU of a file, under the names of TensorFlow.
    assert_eq!(load("keras_old.npz", &options).unwrap(), both);
    let found = ["both/", "cells/stacked_rnn_cells/gru_cell/"];
    let found =
        [&found[..], &["cells/stacked_rnn_cells/gru_cell_1/", "encoder/", "first/"]].concat();
    let found = [&found[..], &["old/", "plain/", "second/"]].concat();
    assert_eq!(npz::prefixes(path("keras.npz")).unwrap(), found);
}

#[test]
fn models_of_flax_and_mlx() {
    let options = StateDictOptions::new();
    for prefix in ["GRUCell_0", "GRUCell_0,GRUCell_1", "GRUCell_2+GRUCell_3"] {
        check("flax.npz", "flax", prefix, options.clone());
    }
    for prefix in ["layers.0.cell", "layers.0.cell,layers.1.cell"] {
        check("nnx.npz", "nnx", prefix, options.clone());
    }
    for file in ["mlx.npz", "mlx.safetensors"] {
        for prefix in ["layers.0", "layers.0,layers.1", "plain"] {
            check(file, "mlx", prefix, options.clone());
        }
    }
    // LSTMs, MGUs and plain RNNs have similar names and are none.
    let cells = ["GRUCell_0/", "GRUCell_1/", "GRUCell_2/", "GRUCell_3/"];
    assert_eq!(npz::prefixes(path("flax.npz")).unwrap(), cells);
    assert_eq!(npz::prefixes(path("nnx.npz")).unwrap(), ["layers.0.cell.", "layers.1.cell."]);
    assert_eq!(npz::prefixes(path("mlx.npz")).unwrap(), ["layers.0.", "layers.1.", "plain."]);
    let layout = |file: &str, prefix: &str| {
        npz::layout(path(file), &options.clone().with_prefix(prefix)).unwrap()
    };
    assert_eq!(layout("keras.npz", "first,second"), WeightLayout::Keras);
    assert_eq!(layout("flax.npz", "GRUCell_1"), WeightLayout::Flax);
    assert_eq!(layout("nnx.npz", "layers.0.cell"), WeightLayout::Flax);
    assert_eq!(layout("mlx.npz", "plain"), WeightLayout::Mlx);
}

/// Returns every variant × direction × 1 and 3 layers, and other activations.
fn configs() -> Vec<GruConfig> {
    let mut configs = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse, Direction::Both] {
        for layers in [1, 3] {
            let variants = GruConfig::all_variants(3, 5).into_iter();
            configs.extend(variants.map(|c| c.with_direction(direction).with_layers(layers)));
        }
    }
    for gate in Activation::ALL {
        let config = GruConfig::new(2, 3).with_activations(gate, Activation::Relu);
        let reverse = Activations { gate: Activation::HARD_SIGMOID_ONNX, ..config.activations };
        configs.push(config.clone());
        let both = config.with_direction(Direction::Both);
        configs.push(both.with_reverse_activations(Some(reverse)));
    }
    configs.push(GruConfig::pytorch(2, 3).with_clip(Some(0.7)));
    configs.push(GruConfig::pytorch(1, 1).with_layers(2).with_dropout(0.25));
    configs.push(GruConfig::pytorch(2, 1).with_zoneout(0.25));
    configs
}

/// True if a framework can express a definition.
fn is_expressible(layout: WeightLayout, config: &GruConfig) -> bool {
    let gates = [Some(config.activations), config.reverse_activations].into_iter().flatten();
    let is_symmetric = gates.map(|of| of.gate).all(|gate| match gate {
        Activation::Sigmoid => true,
        Activation::HardSigmoid { beta, .. } | Activation::Affine { beta, .. } => beta == 0.5,
        _ => false,
    });
    let is_plain = config.activations == GruConfig::new(1, 1).activations
        && config.reverse_activations.is_none();
    let has_reset =
        config.reset == Reset::After || matches!(layout, WeightLayout::Keras | WeightLayout::Onnx);
    layout == WeightLayout::Pytorch
        || config.zoneout == 0.0
            && (config.clip.is_none() || layout == WeightLayout::Onnx)
            && has_reset
            && (is_symmetric || config.update == Update::Keeps)
            && (is_plain || layout != WeightLayout::Mlx)
}

/// True if two biases of a definition become one.
fn merges(layout: WeightLayout, config: &GruConfig) -> bool {
    config.bias == Bias::Two
        && match layout {
            WeightLayout::Pytorch | WeightLayout::Onnx => false,
            WeightLayout::Keras => config.reset == Reset::Before,
            _ => true,
        }
}

fn bits(params: &Params) -> Vec<u32> {
    params.as_slice().iter().map(|number| number.to_bits()).collect()
}

type Write = fn(&Params, WeightLayout) -> Result<Vec<u8>, Error>;
type Read = fn(&[u8], &StateDictOptions) -> Result<Params, Error>;

fn write_npz(params: &Params, layout: WeightLayout) -> Result<Vec<u8>, Error> {
    let mut file = Cursor::new(Vec::new());
    npz::write(&mut file, params, layout)?;
    Ok(file.into_inner())
}

fn read_npz(bytes: &[u8], options: &StateDictOptions) -> Result<Params, Error> {
    bounded(bytes.len(), || npz::read(Cursor::new(bytes), options))
}

fn write_safetensors(params: &Params, layout: WeightLayout) -> Result<Vec<u8>, Error> {
    let mut file = Vec::new();
    safetensors::write_as(&mut file, params, layout)?;
    Ok(file)
}

fn read_safetensors(bytes: &[u8], options: &StateDictOptions) -> Result<Params, Error> {
    bounded(bytes.len(), || safetensors::read(Cursor::new(bytes), options))
}

const CONTAINERS: [(Write, Read); 2] =
    [(write_npz, read_npz), (write_safetensors, read_safetensors)];

/// A model that a layout can express is read again bit for bit, or to rounding where two biases
/// become one. Any other is refused.
#[test]
fn every_definition_round_trips_in_every_layout() {
    let options = StateDictOptions::new();
    for layout in WeightLayout::ALL {
        let (mut exact, mut rounded, mut refusals) = (0, 0, 0);
        for (seed, config) in (0..).zip(configs()) {
            let mut params = Params::init(&config, Init::Uniform, seed).unwrap();
            params.as_mut_slice()[0] = -0.0;
            for (write, read) in CONTAINERS {
                if !is_expressible(layout, &config) {
                    let error = write(&params, layout).unwrap_err();
                    assert!(matches!(error, Error::Conflict { .. }), "{layout}, {config}: {error}");
                    refusals += 1;
                    continue;
                }
                let file = write(&params, layout).unwrap();
                let back = read(&file, &options).unwrap();
                assert_eq!(back.layout().config(), &config, "{layout}");
                assert_eq!(read(&file, &options.clone().with_layout(layout)).unwrap(), back);
                if merges(layout, &config) {
                    let x = random3([4, 2, config.input_size], 1).mapv(f64::from);
                    let y = |params: &Params| reference::forward(&params.cast::<f64>(), &x);
                    let [got, expected] = [&back, &params].map(|params| y(params).unwrap().y());
                    assert_close(&format!("y, {layout}, {config}"), &got, &expected, within(1e-6));
                    rounded += 1;
                } else {
                    assert_eq!(bits(&back), bits(&params), "{layout}, {config}");
                    exact += 1;
                }
                // What was read is written as the same bits.
                assert!(write(&back, layout).unwrap() == file, "{layout}, {config}");
            }
        }
        println!("{layout}: {exact} exact, {rounded} to rounding, {refusals} refused");
        assert!(exact > 20);
    }
}

/// A written file without its definition is what the framework itself would have written.
#[test]
fn written_arrays_are_those_of_the_framework() {
    for layout in WeightLayout::ALL {
        for update in [Update::Keeps, Update::Overwrites] {
            let config = GruConfig::pytorch(3, 5).with_layers(2).with_update(update);
            let params = Params::init(&config, Init::Uniform, 1).unwrap();
            let file = write_safetensors(&params, layout).unwrap();
            // Of the same length, but not our key.
            let at = file.windows(15).position(|word| word == b"gru_wgpu.config").unwrap();
            let mut foreign = file.clone();
            foreign[at..at + 8].copy_from_slice(b"another_");
            let prefix = match layout {
                WeightLayout::Pytorch => "",
                WeightLayout::Keras => "gru,gru_1",
                WeightLayout::Flax => "GRUCell_0,GRUCell_1",
                _ => "layers.0,layers.1",
            };
            let reset = (layout == WeightLayout::Onnx).then_some(Reset::After);
            let options = StateDictOptions::new().with_prefix(prefix).with_reset(reset);
            let back = read_safetensors(&foreign, &options).unwrap();
            assert_eq!(back.layout().config().update, Update::Keeps);
            if layout == WeightLayout::Pytorch && update == Update::Overwrites {
                continue; // Only the metadata can tell.
            }
            let x = random3([4, 2, 3], 1).mapv(f64::from);
            let y = |params: &Params| reference::forward(&params.cast::<f64>(), &x).unwrap().y();
            assert_close(&format!("y, {layout}"), &y(&back), &y(&params), within(1e-6));
        }
    }
}

/// Returns an archive of arrays of these shapes, all of the number 1/2.
fn archive(arrays: &[(&str, &[usize])]) -> Vec<u8> {
    let arrays: Vec<_> = arrays
        .iter()
        .map(|&(name, shape)| (name.to_owned(), ArrayD::from_elem(IxDyn(shape), 0.5f32)))
        .collect();
    let mut file = Cursor::new(Vec::new());
    let views = arrays.iter().map(|(name, array)| (name.clone(), array.view()));
    npz::write_arrays(&mut file, views).unwrap();
    file.into_inner()
}

type Arrays = Vec<(&'static str, &'static [usize])>;

const KERAS: [(&str, &[usize]); 3] =
    [("g/kernel", &[3, 15]), ("g/recurrent_kernel", &[5, 15]), ("g/bias", &[2, 15])];
const MLX: [(&str, &[usize]); 4] =
    [("g.Wx", &[15, 3]), ("g.Wh", &[15, 5]), ("g.b", &[15]), ("g.bhn", &[5])];
const ONNX: [(&str, &[usize]); 3] = [("W", &[1, 15, 3]), ("R", &[1, 15, 5]), ("B", &[1, 30])];
const LINEN: [(&str, &[usize]); 10] = [
    ("ir/kernel", &[3, 5]),
    ("iz/kernel", &[3, 5]),
    ("in/kernel", &[3, 5]),
    ("hr/kernel", &[5, 5]),
    ("hz/kernel", &[5, 5]),
    ("hn/kernel", &[5, 5]),
    ("ir/bias", &[5]),
    ("iz/bias", &[5]),
    ("in/bias", &[5]),
    ("hn/bias", &[5]),
];

#[test]
fn arrays_that_could_be_misread_are_refused() {
    let with = |base: &[(&'static str, &'static [usize])], more: &Arrays| -> Arrays {
        let kept = base.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name));
        // A changed array without axes and without numbers is left out.
        kept.chain(more.iter().filter(|(_, shape)| *shape != [usize::MAX])).copied().collect()
    };
    const GONE: &[usize] = &[usize::MAX];
    let options = StateDictOptions::new().with_reset(None);
    for whole in [&KERAS[..], &MLX, &LINEN] {
        read_npz(&archive(whole), &options).unwrap();
    }
    let onnx = options.clone().with_reset(Reset::Before);
    read_npz(&archive(&ONNX), &onnx).unwrap();
    let cases: Vec<(&str, Arrays, &str)> = vec![
        (
            "Keras: axes of PyTorch",
            with(&KERAS, &vec![("g/recurrent_kernel", &[15, 5])]),
            "the recurrent kernel [U, 3U] has shape [15, 5]",
        ),
        (
            "Keras: a kernel of PyTorch",
            with(&KERAS, &vec![("g/kernel", &[15, 3])]),
            "expected [15, 15]",
        ),
        (
            "Keras: no kernel",
            with(&KERAS, &vec![("g/kernel", GONE)]),
            "there is no array `g/kernel`",
        ),
        ("Keras: three biases", with(&KERAS, &vec![("g/bias", &[3, 15])]), "expected [2, 15]"),
        (
            "Keras: a bias of three axes",
            with(&KERAS, &vec![("g/bias", &[1, 2, 15])]),
            "expected [2, 3U] or [3U]",
        ),
        (
            "Keras: no bias",
            with(&KERAS, &vec![("g/bias", GONE)]),
            "do not tell whether the reset gate",
        ),
        (
            "Keras: two names",
            with(&KERAS, &vec![("g/kernel:0", &[3, 15])]),
            "have the same meaning",
        ),
        ("Keras: more", with(&KERAS, &vec![("g/gamma", &[15])]), "unexpected array `g/gamma`"),
        (
            "Keras: an LSTM",
            vec![("g/kernel", &[3, 20]), ("g/recurrent_kernel", &[5, 20])],
            "holds no GRU",
        ),
        (
            "Keras: no units",
            vec![("g/kernel", &[3, 0]), ("g/recurrent_kernel", &[0, 0]), ("g/bias", &[0])],
            "hidden size H is 0",
        ),
        (
            "Keras: no inputs",
            vec![("g/kernel", &[0, 3]), ("g/recurrent_kernel", &[1, 3]), ("g/bias", &[3])],
            "input size I is 0",
        ),
        ("MLX: other axes", with(&MLX, &vec![("g.Wh", &[5, 15])]), "Wh [3H, H] has shape [5, 15]"),
        ("MLX: one bias", with(&MLX, &vec![("g.bhn", GONE)]), "expected all of the biases b, bhn"),
        ("MLX: no Wh", with(&MLX, &vec![("g.Wh", GONE)]), "there is no array `g.Wh`"),
        ("MLX: an odd bias", with(&MLX, &vec![("g.b", &[5])]), "b [3H] has shape [5]"),
        ("ONNX: the reset gate", ONNX.to_vec(), "do not tell whether the reset gate"),
        (
            "ONNX: three directions",
            vec![("W", &[3, 15, 3]), ("R", &[3, 15, 5])],
            "expected D, 1 or 2",
        ),
        ("ONNX: two and one", with(&ONNX, &vec![("R", &[2, 15, 5])]), "expected D, 1 or 2"),
        ("Linen: no hz", with(&LINEN, &vec![("hz/kernel", GONE)]), "there is no array `hz/kernel`"),
        (
            "Linen: a bias of hr",
            with(&LINEN, &vec![("hr/bias", &[5])]),
            "unexpected array `hr/bias`",
        ),
        (
            "Linen: three biases",
            with(&LINEN, &vec![("hn/bias", GONE)]),
            "expected all of the biases",
        ),
        ("Linen: turned", with(&LINEN, &vec![("iz/kernel", &[5, 3])]), "has shape [5, 3]"),
        (
            "Linen: both separators",
            with(&LINEN, &vec![("ir.kernel", &[3, 5])]),
            "have the same meaning",
        ),
        (
            "two GRUs",
            [&KERAS[..], &[("W", &[1, 15, 3][..]), ("R", &[1, 15, 5])]].concat(),
            "``, `g/`",
        ),
        (
            "two layouts",
            [&KERAS[..], &[("g/Wx", &[15, 3][..]), ("g/Wh", &[15, 5])]].concat(),
            "Keras and MLX fit",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, arrays, reason) in cases {
        let message = refused(read_npz(&archive(&arrays), &options));
        if !message.contains(reason) {
            wrong.push(format!("{what}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The option decides between two that fit, and never against the arrays.
    let two = [&KERAS[..], &[("g/Wx", &[15, 3][..]), ("g/Wh", &[15, 5])]].concat();
    let chosen = read_npz(&archive(&two), &options.clone().with_layout(WeightLayout::Mlx)).unwrap();
    assert_eq!(chosen.layout().config().bias, Bias::None);
    let message =
        refused(read_npz(&archive(&KERAS), &options.clone().with_layout(WeightLayout::Flax)));
    assert!(message.contains("holds no GRU in the layout of Flax"), "{message}");
    let message = refused(read_npz(&archive(&KERAS), &onnx));
    assert!(message.contains("acts after the product, as its tensors tell"), "{message}");
}

/// The definition of a written file must fit its arrays.
#[test]
fn files_that_were_changed_since_are_refused() {
    let options = StateDictOptions::new();
    let config = GruConfig::new(3, 5).with_layers(2);
    let params = Params::init(&config, Init::Uniform, 1).unwrap();
    let file = write_npz(&params, WeightLayout::Keras).unwrap();
    let replaced = |from: &str, to: &str| {
        let mut file = file.clone();
        let mut count = 0;
        for at in 0..file.len() - from.len() {
            if file[at..].starts_with(from.as_bytes()) {
                file[at..at + from.len()].copy_from_slice(to.as_bytes());
                count += 1;
            }
        }
        assert!(count > 0, "{from}");
        file
    };
    for (from, to, reason) in [
        ("layers=2", "layers=1", "describes one GRU"),
        ("layers=2", "layers=3", "describes one GRU"),
        ("hidden=5", "hidden=6", "has shape [15, 3], expected [18, 3]"),
        ("reset=before", "reset=after ", "but its tensors have other biases"),
        ("bias=one", "bias=non", "has `non` for `bias`"),
        ("gru_1/", "gru_x/", "describes one GRU"),
    ] {
        let message = refused(read_npz(&replaced(from, to), &options));
        assert!(message.contains(reason), "{from} → {to}: {message}");
    }
    for (prefix, is_there) in [("", true), ("gru", false), ("gru,gru_1", false)] {
        let read = read_npz(&file, &options.clone().with_prefix(prefix));
        assert_eq!(read.is_ok(), is_there, "{prefix}: {read:?}");
    }
    // Under another prefix, in safetensors, it is the same.
    let file = write_safetensors(&params, WeightLayout::Keras).unwrap();
    let (_, header) = ::safetensors::SafeTensors::read_metadata(&file).unwrap();
    let tensors = ::safetensors::SafeTensors::deserialize(&file).unwrap();
    // A bias that is gone is not zero.
    let kept = tensors.iter().filter(|(name, _)| !name.ends_with("bias"));
    let kept = ::safetensors::serialize(kept, header.metadata().clone()).unwrap();
    let message = refused(read_safetensors(&kept, &options));
    assert!(message.contains("but its tensors have other biases"), "{message}");
    let moved = tensors.iter().map(|(name, view)| (format!("model/{name}"), view));
    let moved = ::safetensors::serialize(moved, header.metadata().clone()).unwrap();
    for prefix in [None, Some("model"), Some("model/")] {
        let back = read_safetensors(&moved, &options.clone().with_prefix(prefix)).unwrap();
        assert_eq!(back, params);
    }
    refused(read_safetensors(&moved, &options.clone().with_prefix("other")));
}
