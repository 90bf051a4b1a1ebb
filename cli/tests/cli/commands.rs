//! `gru run`, `grad`, `convert` and `check MODEL`.

use std::path::Path;

use crate::common::program::{assert_refused, gru, text};
use crate::common::{assert_close, within};
use crate::scene::Scene;
use gru_wgpu::formats::{npy, npz, safetensors};
use gru_wgpu::{Gradients, Init, Params};
use ndarray::{Array1, Array3, Ix3};
use tempfile::TempDir;

/// Returns the values of `--device` for the CPU and for the adapter of the tests.
fn device_words() -> [&'static str; 2] {
    let software = crate::common::adapter().adapter().unwrap().is_software();
    ["cpu", if software { "software" } else { "gpu" }]
}

#[test]
fn run_writes_what_the_library_computes() {
    let scene = Scene::new();
    let expected = scene.gru.forward(scene.batch()).unwrap();
    for device in device_words() {
        for model in ["model.safetensors", "model.onnx"] {
            let stderr = scene.run(&[
                "run",
                model,
                "--input",
                "x.npy",
                "--h0",
                "h0.npy",
                "--lengths",
                "n.npy",
                "--output",
                "y.npy",
                "--hn",
                "hn.npy",
                "--device",
                device,
            ]);
            assert!(
                stderr.contains("model: GRU 4→5, reset after, z keeps, two biases, 2 layers, both")
            );
            assert!(stderr.contains("wrote `y.npy` [6, 3, 10]"), "{stderr}");
            assert_close("y", &scene.array("y.npy"), &expected.y, within(2e-6));
            assert_close("hn", &scene.array("hn.npy"), &expected.h_n, within(2e-6));
            scene.run(&[
                "run",
                model,
                "--input",
                "xb.npy",
                "--h0",
                "h0.npy",
                "--lengths",
                "n.npy",
                "--output",
                "yb.npy",
                "--batch-first",
                "--device",
                device,
            ]);
            assert_close(
                "yb",
                &scene.array("yb.npy").permuted_axes([1, 0, 2]),
                &expected.y,
                within(2e-6),
            );
        }
    }
    // From zeros, every row of length T.
    scene.run(&["run", "model.onnx", "--input", "x.npy", "--output", "y.npy", "--device", "cpu"]);
    assert_close("y", &scene.array("y.npy"), &scene.gru.forward(&scene.x).unwrap().y, within(2e-6));
}

#[test]
fn no_steps_and_no_rows_give_empty_arrays() {
    let scene = Scene::new();
    let save = |name: &str, array: &Array3<f32>| {
        npy::save(scene.path().join(name), array.view()).unwrap();
    };
    for device in device_words() {
        for (steps, rows, h0) in [(0, 3, scene.h0.clone()), (6, 0, Array3::zeros((4, 0, 5)))] {
            save("x0.npy", &Array3::zeros((steps, rows, 4)));
            save("first.npy", &h0);
            let to = ["--output", "y0.npy", "--hn", "hn0.npy", "--device", device];
            let run = ["run", "model.onnx", "--input", "x0.npy", "--h0", "first.npy"];
            scene.run(&[&run[..], &to].concat());
            assert_eq!(scene.array("y0.npy").dim(), (steps, rows, 10), "{device}");
            assert_eq!(scene.array("hn0.npy"), h0, "{device}");
        }
    }
}

/// Files of torch.save, and files whose name is that of another format.
#[test]
fn model_files_are_recognised_by_their_content() {
    let scene = Scene::new();
    let run = |model: &str, prefix: &[&str]| {
        let run = ["run", model, "--input", "t.npy", "--output", "y.npy", "--device", "cpu"];
        scene.run(&[&run[..], prefix].concat())
    };
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/pytorch");
    let copy = |from: &str, to: &str| {
        std::fs::copy(data.join(from), scene.path().join(to)).unwrap();
    };
    copy("x.npy", "t.npy");
    copy("zip.encoder.gru.npy", "expected.npy");
    let expected = scene.array("expected.npy");
    for (file, name, words) in [
        ("zip.pt", "zip.pt", ""),
        ("old.pt", "last.ckpt", ""),
        ("lightning.pt", "model.weights", ""),
        ("zip.pt", "zip.onnx", "`zip.onnx`: the content is a file of torch.save"),
    ] {
        copy(file, name);
        let stderr = run(name, &[]);
        assert_close("y", &scene.array("y.npy"), &expected, within(1e-6));
        assert!(stderr.contains(words), "{stderr}");
        assert_eq!(stderr.contains("the content is"), !words.is_empty(), "{stderr}");
    }
    scene.run(&["convert", "last.ckpt", "--prefix", "encoder.gru", "t.safetensors"]);
    std::fs::rename(scene.path().join("t.safetensors"), scene.path().join("t.bin")).unwrap();
    assert!(run("t.bin", &[]).contains("the content is a safetensors file"));
    assert_close("y", &scene.array("y.npy"), &expected, within(1e-6));
    copy("cells.pt", "cells.pt");
    copy("cells.layers.npy", "layers.npy");
    run("cells.pt", &["--prefix", "cell0,cell1"]);
    assert_close("y", &scene.array("y.npy"), &scene.array("layers.npy"), within(1e-6));
}

fn load_gradients(scene: &Scene, name: &str) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(scene.path().join(name)).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, tensor)| {
        (name.to_owned(), bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()))
    });
    tensors.collect()
}

fn assert_gradients(got: &[(String, Vec<f32>)], expected: &Gradients) {
    assert_eq!(got.len(), expected.params.layout().entries().len() + 2);
    for (name, got) in got {
        let expected: Vec<f32> = match name.as_str() {
            "input" => expected.x.iter().copied().collect(),
            "h0" => expected.h0.iter().copied().collect(),
            name => expected.params.get(name).unwrap().iter().copied().collect(),
        };
        assert_close("gradients", got.as_slice(), expected.as_slice(), within(1e-5));
    }
}

#[test]
fn grad_writes_every_gradient_under_its_name() {
    let scene = Scene::new();
    let backward = |dh_n: Option<&Array3<f32>>| {
        let (_, tape) = scene.gru.forward_train(scene.batch()).unwrap();
        scene.gru.backward(tape, Some(scene.dy.view()), dh_n.map(|d| d.view())).unwrap()
    };
    for device in device_words() {
        let common = [
            "--h0",
            "h0.npy",
            "--lengths",
            "n.npy",
            "--output",
            "g.safetensors",
            "--device",
            device,
        ];
        let run = |more: &[&str]| scene.run(&[&["grad"], more, &common].concat());
        run(&["model.onnx", "--input", "x.npy", "--dy", "dy.npy", "--hn", "hn.npy"]);
        assert_gradients(&load_gradients(&scene, "g.safetensors"), &backward(None));
        assert_close(
            "hn",
            &scene.array("hn.npy"),
            &scene.gru.forward(scene.batch()).unwrap().h_n,
            within(2e-6),
        );
        run(&["model.safetensors", "--input", "x.npy", "--dy", "dy.npy", "--dhn", "h0.npy"]);
        assert_gradients(&load_gradients(&scene, "g.safetensors"), &backward(Some(&scene.h0)));
    }
    scene.run(&[
        "grad",
        "model.onnx",
        "--input",
        "xb.npy",
        "--dy",
        "dyb.npy",
        "--batch-first",
        "--h0",
        "h0.npy",
        "--lengths",
        "n.npy",
        "--output",
        "gb.safetensors",
        "--device",
        "cpu",
    ]);
    let mut expected = backward(None);
    expected.x = expected.x.permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    assert_gradients(&load_gradients(&scene, "gb.safetensors"), &expected);
}

/// A model with dropout needs a seed, and the same seed gives the same draws.
#[test]
fn grad_of_a_model_with_dropout_takes_a_seed() {
    let scene = Scene::new();
    let config = scene.gru.config().clone().with_dropout(0.5);
    let params = Params::init(&config, Init::Uniform, 1).unwrap();
    safetensors::save(scene.path().join("drops.safetensors"), &params).unwrap();
    let arguments = [
        "grad",
        "drops.safetensors",
        "--input",
        "x.npy",
        "--dy",
        "dy.npy",
        "--output",
        "g.safetensors",
        "--device",
        "cpu",
    ];
    assert_refused(scene.path(), &arguments, &["random numbers", "--seed"]);
    let seeded = |seed| {
        scene.run(&[&arguments[..], &["--seed", seed]].concat());
        std::fs::read(scene.path().join("g.safetensors")).unwrap()
    };
    assert_eq!(seeded("7"), seeded("7"));
    assert_ne!(seeded("7"), seeded("8"));
}

#[test]
fn convert_round_trips() {
    let scene = Scene::new();
    let original = std::fs::read(scene.path().join("model.safetensors")).unwrap();
    scene.run(&["convert", "model.safetensors", "a.onnx", "--with-h0", "--with-lengths"]);
    let stderr = scene.run(&["convert", "a.onnx", "b.safetensors"]);
    assert!(stderr.contains("nodes: `gru_l0`, `gru_l1`"), "{stderr}");
    assert_eq!(std::fs::read(scene.path().join("b.safetensors")).unwrap(), original);
    scene.run(&["convert", "a.onnx", "c.npz"]);
    // The program names the inputs that the model expects and their defaults.
    let stderr =
        scene.run(&["run", "a.onnx", "--input", "x.npy", "--output", "y.npy", "--device", "cpu"]);
    assert!(stderr.contains("h0: the model takes it from the input `h0`; using zeros"), "{stderr}");
    assert!(stderr.contains("using zeros (set it with --h0)"), "{stderr}");
    assert!(
        stderr.contains("lengths: the model takes it from the input `lengths`; using length T"),
        "{stderr}"
    );
}

/// A model becomes the same model again through the files of every layout, and each file runs.
#[test]
fn layouts_convert_both_ways() {
    let scene = Scene::new();
    let original = safetensors::load(
        scene.path().join("model.safetensors"),
        &safetensors::SafetensorsOptions::new(),
    );
    let run = |model: &str| {
        scene.run(&["run", model, "--input", "x.npy", "--output", "y.npy", "--device", "cpu"]);
        scene.array("y.npy")
    };
    let y = run("model.safetensors");
    for (layout, name) in [
        ("pytorch", "PyTorch"),
        ("keras", "Keras"),
        ("flax", "Flax"),
        ("mlx", "MLX"),
        ("onnx", "ONNX"),
    ] {
        for file in ["a.npz", "a.safetensors"] {
            scene.run(&["convert", "model.safetensors", file, "--output-layout", layout]);
            let stderr = scene.run(&["convert", file, "back.safetensors"]);
            let is_logged = stderr.contains(&format!("layout: {name}"));
            assert_eq!(is_logged, layout != "pytorch", "{stderr}");
            let back = safetensors::load(
                scene.path().join("back.safetensors"),
                &safetensors::SafetensorsOptions::new(),
            );
            if !["flax", "mlx"].contains(&layout) {
                assert_eq!(back, original, "{layout}");
            }
            assert_close(&format!("y, {layout}"), &run(file), &y, within(1e-6));
        }
    }
}

/// The message has what writes an .npz file in Python; `tests/against_frameworks.py` runs it.
#[test]
fn files_of_keras_say_how_to_write_an_npz() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let archive = [&b"PK\x03\x04"[..], &[0; 22], &[13, 0, 0, 0], b"metadata.json"].concat();
    std::fs::write(path.join("m.keras"), archive).unwrap();
    for name in ["m.weights.h5", "m.h5"] {
        std::fs::write(path.join(name), b"\x89HDF\r\n\x1a\n").unwrap();
    }
    let load = |file: &str| format!("model = keras.saving.load_model(\"{file}\", compile=False)");
    let weights = "model.load_weights(\"m.weights.h5\")".to_owned();
    for (file, load) in
        [("m.keras", load("m.keras")), ("m.h5", load("m.h5")), ("m.weights.h5", weights)]
    {
        let save = "numpy.savez(\"m.npz\", **{w.path: w.numpy() for w in model.weights})";
        assert_refused(path, &["check", file], &["is a file of Keras", &load, save]);
    }
}

/// Errors about a size in a file name the file.
#[test]
fn sizes_that_do_not_work_name_their_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    // A GRU of these sizes with zeros for weights.
    let model = |name: &str, inputs: u64, hidden: u64| {
        let shapes = [
            ("weight_ih_l0", vec![3 * hidden, inputs]),
            ("weight_hh_l0", vec![3 * hidden, hidden]),
            ("bias_ih_l0", vec![3 * hidden]),
            ("bias_hh_l0", vec![3 * hidden]),
        ];
        let mut end = 0;
        let tensors = shapes.map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<u64>();
            format!(
                r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            )
        });
        let header = format!("{{{}}}", tensors.join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + if end < 9999 { end as usize } else { 0 }, 0);
        std::fs::write(path.join(name), bytes).unwrap();
    };
    model("good.safetensors", 3, 4);
    model("no_inputs.safetensors", 0, 4);
    model("no_hidden.safetensors", 3, 0);
    model("huge.safetensors", 3, 1 << 28);
    for name in ["no_inputs", "no_hidden", "huge"] {
        let file = &format!("{name}.safetensors");
        let words = [&*format!("error: `{file}`: ")];
        let run = ["run", file, "--input", "x.npy", "--output", "y.npy", "--device", "cpu"];
        npy::save(path.join("x.npy"), Array3::zeros([5, 2, 3]).view()).unwrap();
        assert_refused(path, &run, &words);
        assert_refused(path, &["convert", file, "y.onnx"], &words);
        assert_refused(path, &["check", file, "--device", "cpu"], &words);
    }
    let array = |name: &str, shape: [usize; 3]| {
        npy::save(path.join(name), Array3::zeros(shape).view()).unwrap();
    };
    array("wide.npy", [5, 2, 7]);
    array("h0.npy", [1, 3, 4]);
    let large = "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 2, 3)}\n";
    let header = [b"\x93NUMPY\x01\x00\x4f\x00", large.as_bytes()].concat();
    assert_eq!(large.len(), 0x4f);
    std::fs::write(path.join("large.npy"), header).unwrap();
    let run = ["good.safetensors", "--device", "cpu", "--input"];
    let good = "error: `good.safetensors`, `";
    for (more, words) in [
        (&["large.npy"][..], ["error: `large.npy`: ", "shape"]),
        (&["wide.npy"], [good, "`wide.npy`: x [T, B, I] has shape [5, 2, 7]"]),
        (&["x.npy", "--h0", "h0.npy"], [good, "`x.npy`, `h0.npy`: h0 [L·D, B, H] has shape"]),
    ] {
        let run = [&["run"], &run[..], more, &["--output", "y.npy"]].concat();
        assert_refused(path, &run, &words);
    }
    for (dy, words) in [
        ("large.npy", ["error: `large.npy`: ", "shape"]),
        ("wide.npy", [good, "`x.npy`, `wide.npy`: dy [T, B, D·H] has shape [5, 2, 7]"]),
    ] {
        let more = ["x.npy", "--dy", dy, "--output", "y.safetensors"];
        assert_refused(path, &[&["grad"], &run[..], &more].concat(), &words);
    }
}

#[test]
fn numbers_of_other_types_are_converted_with_a_note() {
    let scene = Scene::new();
    let wide = scene.x.mapv(f64::from);
    ndarray_npy::write_npy(scene.path().join("wide.npy"), &wide).unwrap();
    let run = |input: &str| {
        scene.run(&["run", "model.onnx", "--input", input, "--output", "y.npy", "--device", "cpu"])
    };
    let note = "`wide.npy`: float64, converted to float32";
    assert!(run("wide.npy").contains(note));
    let from_wide = scene.array("y.npy");
    assert!(!run("x.npy").contains("converted"));
    assert_eq!(scene.array("y.npy"), from_wide);
    // Fortran order.
    let turned = Array3::from_shape_fn(ndarray::ShapeBuilder::f((6, 3, 4)), |at| scene.x[at]);
    ndarray_npy::write_npy(scene.path().join("turned.npy"), &turned).unwrap();
    run("turned.npy");
    assert_eq!(scene.array("y.npy"), from_wide);
}

#[test]
fn check_takes_a_model() {
    let scene = Scene::new();
    for device in device_words() {
        let output = gru(scene.path(), &["check", "model.onnx", "--device", device]);
        let stdout = text(&output.stdout);
        assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
        assert!(stdout.contains("all 9 results are within bounds"), "{stdout}");
        assert!(stdout.contains("dweight_hh"), "{stdout}");
    }
    assert_refused(scene.path(), &["check", "--node", "a"], &["need a MODEL"]);
}

/// For any bad input, no file is written and no file is lost.
#[test]
fn wrong_input_is_reported_and_writes_no_file() {
    let scene = Scene::new();
    let path = scene.path();
    let write = |name: &str, bytes: &[u8]| std::fs::write(path.join(name), bytes).unwrap();
    write("no.npy", b"numbers");
    write("no.onnx", b"a model");
    write("no.safetensors", b"this is no model");
    write("no.pt", b"this is no model");
    let arrays = [("a".to_owned(), scene.x.view().into_dyn())];
    npz::save_arrays(path.join("arrays.pt"), arrays).unwrap();
    npy::save(path.join("two.npy"), scene.x.index_axis(ndarray::Axis(0), 0)).unwrap();
    ndarray_npy::write_npy(path.join("long.npy"), &Array1::from(vec![7i32, 1, 2])).unwrap();
    ndarray_npy::write_npy(path.join("below.npy"), &Array1::from(vec![-1i64, 1, 2])).unwrap();
    std::fs::create_dir(path.join("folder")).unwrap();
    let speech =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/torch_speech.safetensors");
    std::fs::copy(speech, path.join("speech.safetensors")).unwrap();
    let files = scene.files();
    let run = |model: &'static str, input: &'static str| {
        vec!["run", model, "--input", input, "--output", "y.npy", "--device", "cpu"]
    };
    let with = |more: &[&'static str]| [&run("model.onnx", "x.npy")[..], more].concat();
    let dy = |dy: &'static str| {
        vec![
            "grad",
            "model.onnx",
            "--input",
            "x.npy",
            "--dy",
            dy,
            "--output",
            "g.safetensors",
            "--device",
            "cpu",
        ]
    };
    for (arguments, words) in [
        (
            run("model.txt", "x.npy"),
            &["`model.txt` is not recognised as a model file", "torch.save"][..],
        ),
        (run("x.npy", "x.npy"), &["`x.npy` is an array of NumPy; give the model first"]),
        (run("no.pt", "x.npy"), &["`no.pt`: it is not a file of torch.save"]),
        (run("arrays.pt", "x.npy"), &["`arrays.pt`: the file holds no GRU"]),
        (run("missing.onnx", "x.npy"), &["`missing.onnx` cannot be opened: No such file"]),
        (run("no.onnx", "x.npy"), &["`no.onnx`: it is not a valid ONNX model"]),
        (run("no.safetensors", "x.npy"), &["`no.safetensors`: ", "is it a safetensors file?"]),
        (
            run("speech.safetensors", "x.npy"),
            &[
                "`speech.safetensors`: the file holds 3 GRUs; choose one by its prefix: `decoder.`, `encoder.gru.`, `small.`",
            ],
        ),
        (
            run("model.onnx", "no.npy"),
            &["`no.npy`: it does not start with the magic bytes of .npy"],
        ),
        (run("model.onnx", "two.npy"), &["`two.npy`: its shape is [3, 4]; expected 3 axes"]),
        (run("model.onnx", "h0.npy"), &["x [T, B, I] has shape [4, 3, 5], expected [4, 3, 4]"]),
        (with(&["--h0", "x.npy"]), &["h0 [L·D, B, H] has shape [6, 3, 4], expected [4, 3, 5]"]),
        (
            with(&["--lengths", "x.npy"]),
            &["`x.npy`: its dtype is `<f4`; expected lengths of int32 or int64"],
        ),
        (with(&["--lengths", "long.npy"]), &["the length of row 0 is 7, but x has 6 steps"]),
        (with(&["--lengths", "below.npy"]), &["`below.npy`: it holds the length -1"]),
        (
            with(&["--node", "gru_l7"]),
            &[
                "`model.onnx`: its graph holds no GRU `gru_l7`; choose one by its node: `gru_l0..gru_l1`",
            ],
        ),
        (with(&["--prefix", "a"]), &["--prefix is for PyTorch, safetensors and .npz files"]),
        (with(&["--hn", "y.npy"]), &["--hn `y.npy` is the same file as --output `y.npy`"]),
        (with(&["--hn", "./folder/../y.npy"]), &["is the same file as --output"]),
        (with(&["--hn", "x.npy"]), &["is the same file as the input `x.npy`"]),
        (with(&["--hn", "model.onnx"]), &["`model.onnx` must have the extension .npy"]),
        (with(&["--hn", "folder"]), &["`folder` must have the extension .npy"]),
        (with(&["--hn", "nowhere/hn.npy"]), &["`nowhere` does not exist"]),
        (
            [&run("model.safetensors", "x.npy")[..], &["--node", "a"]].concat(),
            &["--node is for ONNX models"],
        ),
        (dy("x.npy"), &["dy [T, B, D·H] has shape [6, 3, 4], expected [6, 3, 10]"]),
        (
            vec!["convert", "model.onnx", "model.txt"],
            &["`model.txt` must have the extension .safetensors, .onnx or .npz"],
        ),
        (
            vec!["convert", "model.onnx", "a.npz", "--with-h0"],
            &["--with-h0 and --with-lengths are for .onnx files"],
        ),
        (
            vec!["convert", "model.safetensors", "a.onnx", "--output-layout", "keras"],
            &["--output-layout is for .npz and .safetensors files"],
        ),
        (with(&["--layout", "onnx"]), &["an ONNX model says all of it"]),
        (with(&["--reset", "after"]), &["an ONNX model says all of it"]),
        (
            vec!["convert", "model.safetensors", "a.npz", "--reset", "before"],
            &["`model.safetensors`: the reset gate of its GRU acts after the product"],
        ),
        (
            vec!["convert", "model.safetensors", "a.npz", "--layout", "mlx"],
            &["`model.safetensors`: the file holds no GRU in the layout of MLX"],
        ),
        (vec!["convert", "model.onnx", "model.onnx"], &["OUTPUT `model.onnx` is the same file"]),
    ] {
        assert_refused(path, &arguments, words);
        assert_eq!(scene.files(), files, "{arguments:?}");
    }
}

/// A constant initial state in the model is used. One for another number of rows is an error.
#[test]
fn a_constant_state_of_the_model_is_used() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    let directory = TempDir::new().unwrap();
    let model = models.join("onnx_after.onnx");
    let model = model.to_str().unwrap();
    let load = |name| {
        let [array] =
            gru_wgpu::formats::npz::load_arrays(models.join("onnx_after.expected.npz"), [name])
                .unwrap();
        array.into_dimensionality::<Ix3>().unwrap()
    };
    npy::save(directory.path().join("x.npy"), load("x").view()).unwrap();
    let arguments = ["run", model, "--input", "x.npy", "--output", "y.npy", "--device", "cpu"];
    let output = gru(directory.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("h0: using the value stored in the model"));
    let (y, _) = npy::load_as::<Ix3>(directory.path().join("y.npy")).unwrap();
    assert_close("y", &y, &load("y"), within(2e-6));
    npy::save(directory.path().join("x.npy"), Array3::<f32>::zeros((6, 2, 3)).view()).unwrap();
    let words = "the model stores h0 for 3 rows, but `x.npy` has 2; give others with --h0";
    assert_refused(directory.path(), &arguments, &[words]);
}
