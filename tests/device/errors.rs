//! Wrong calls give one typed error with the expected and the actual value, on every device.

use std::error::Error as _;

use crate::common::devices;
use gru_wgpu::{Batch, Bias, Device, DeviceKind, Error, Gru, GruConfig, Init, Params};
use ndarray::{Array2, Array3, s};

fn zeros(shape: [usize; 3]) -> Array3<f32> {
    Array3::zeros(shape)
}

#[test]
fn arrays_of_a_wrong_shape_are_refused_by_name() {
    for device in devices() {
        let gru = Gru::new(GruConfig::pytorch(3, 5), Init::Uniform, 1, &device).unwrap();
        let x = zeros([4, 2, 3]);
        let forward = |x: [usize; 3], h0: [usize; 3]| {
            let (x, h0) = (zeros(x), zeros(h0));
            let train =
                gru.forward_train(Batch::new(x.view()).with_h0(h0.view())).map(|_| ()).unwrap_err();
            let error = gru.forward(Batch::new(x.view()).with_h0(h0.view())).unwrap_err();
            assert_eq!(error, train);
            error.to_string()
        };
        let backward = |dy: [usize; 3], dh_n: [usize; 3]| {
            let (_, tape) = gru.forward_train(x.view()).unwrap();
            let (dy, dh_n) = (zeros(dy), zeros(dh_n));
            gru.backward(tape, Some(dy.view()), Some(dh_n.view())).unwrap_err().to_string()
        };
        for (got, expected) in [
            (forward([4, 2, 4], [1, 2, 5]), "x [T, B, I] has shape [4, 2, 4], expected [4, 2, 3]"),
            (
                forward([4, 2, 3], [1, 3, 5]),
                "h0 [L·D, B, H] has shape [1, 3, 5], expected [1, 2, 5]",
            ),
            (
                forward([4, 2, 3], [2, 2, 5]),
                "h0 [L·D, B, H] has shape [2, 2, 5], expected [1, 2, 5]",
            ),
            (forward([0, 2, 4], [1, 2, 5]), "x [T, B, I] has shape [0, 2, 4], expected [0, 2, 3]"),
            (
                forward([4, 0, 3], [1, 1, 5]),
                "h0 [L·D, B, H] has shape [1, 1, 5], expected [1, 0, 5]",
            ),
            (
                backward([4, 2, 4], [1, 2, 5]),
                "dy [T, B, D·H] has shape [4, 2, 4], expected [4, 2, 5]",
            ),
            (
                backward([4, 2, 5], [1, 2, 4]),
                "dh_n [L·D, B, H] has shape [1, 2, 4], expected [1, 2, 5]",
            ),
        ] {
            assert_eq!(got, expected, "{device}");
        }
        for (lengths, expected) in [
            (&[4][..], "lengths [B] has shape [1], expected [2]"),
            (&[4, 5], "the length of row 1 is 5, but x has 4 steps"),
        ] {
            let run = Batch::new(x.view()).with_lengths(lengths);
            assert_eq!(gru.forward(run).unwrap_err().to_string(), expected);
            assert_eq!(gru.forward_train(run).unwrap_err().to_string(), expected);
        }
        let resets = Array2::from_elem((4, 2), true);
        for (run, expected) in [
            (
                Batch::new(x.view()).with_resets(resets.t()),
                "resets [T, B] has shape [2, 4], expected [4, 2]",
            ),
            (
                Batch::batch_first(x.view()).with_resets(resets.t()),
                "resets [B, T] has shape [2, 4], expected [4, 2]",
            ),
            (
                Batch::new(x.view()).with_reset_state(x.view()),
                "the reset state [L·D, B, H] has shape [4, 2, 3], expected [1, 2, 5]",
            ),
            (
                Batch::batch_first(x.slice(s![.., .., ..2])),
                "x [B, T, I] has shape [4, 2, 2], expected [4, 2, 3]",
            ),
        ] {
            assert_eq!(gru.forward(run).unwrap_err().to_string(), expected, "{device}");
            assert_eq!(gru.forward_train(run).unwrap_err().to_string(), expected, "{device}");
        }
        let (_, tape) = gru.forward_train(Batch::batch_first(x.view())).unwrap();
        let dy = zeros([2, 4, 5]);
        assert_eq!(
            gru.backward(tape, Some(dy.view()), None).unwrap_err().to_string(),
            "dy [B, T, D·H] has shape [2, 4, 5], expected [4, 2, 5]",
        );
        let (_, tape) = gru.forward_train(x.view()).unwrap();
        assert_eq!(gru.backward(tape, None, None).unwrap_err(), Error::NoGradient);
        // The model still works.
        gru.forward(x.view()).unwrap();
    }
}

#[test]
fn a_state_is_refused_by_a_model_it_does_not_fit() {
    for device in devices() {
        let make = |layers: usize, device: &Device| {
            let config = GruConfig::pytorch(3, 5).with_layers(layers);
            Gru::new(config, Init::Uniform, 1, device).unwrap()
        };
        let gru = make(1, &device);
        let x = zeros([4, 2, 3]);
        let (output, tape) = gru.forward_train(&x).unwrap();
        let state = tape.state().unwrap();
        let errors = |gru: &Gru, batch: Batch<'_>| {
            let error = gru.forward_from(&state, batch).unwrap_err();
            assert_eq!(gru.forward_train_from(&state, batch).map(|_| ()).unwrap_err(), error);
            error
        };
        let twice = Batch::new(x.view()).with_h0(output.h_n.view());
        let error = errors(&gru, twice).to_string();
        assert!(error.starts_with("a state to start from and an h0 cannot"), "{error}");
        let error = errors(&make(2, &device), (&x).into()).to_string();
        assert_eq!(error, "the state [L·D, B, H] has shape [1, 2, 5], expected [2, 2, 5]");
        // Another device, possibly of the same adapter.
        let other = match device.is_adapter() {
            true => device.with_default_limits().unwrap(),
            false => crate::common::adapter().clone(),
        };
        for other in [&other, &Device::cpu()] {
            if device.is_adapter() || other.is_adapter() {
                let error = errors(&make(1, other), (&x).into());
                assert!(matches!(error, Error::Conflict { .. }), "{error}");
            }
        }
        // Another model on the same device may use the state.
        make(1, &device).forward_from(&state, &x).unwrap();
    }
}

#[test]
fn dropout_and_zoneout_require_a_seed_and_valid_rates() {
    for device in devices() {
        let error = |config| Gru::new(config, Init::Uniform, 1, &device).unwrap_err();
        let stacked = GruConfig::new(3, 5).with_layers(2);
        for p in [1.0, -0.1, f32::NAN, f32::INFINITY] {
            for config in [stacked.clone().with_dropout(p), stacked.clone().with_zoneout(p)] {
                assert!(matches!(error(config), Error::Probability { .. }), "{p}");
            }
        }
        assert_eq!(
            error(GruConfig::new(3, 5).with_dropout(0.5)).to_string(),
            "dropout and a single layer cannot be combined: dropout acts between layers; add layers or set \
             dropout to 0",
        );
        for config in [stacked.clone().with_dropout(0.5), GruConfig::new(3, 5).with_zoneout(0.5)] {
            let gru = Gru::new(config, Init::Uniform, 1, &device).unwrap();
            let x = zeros([4, 2, 3]);
            assert_eq!(gru.forward_train(&x).map(|_| ()).unwrap_err(), Error::NoSeed);
            gru.forward(&x).unwrap();
            gru.forward_train(Batch::new(x.view()).with_seed(0)).map(|_| ()).unwrap();
        }
    }
}

#[test]
fn impossible_models_are_refused() {
    for device in devices() {
        let error = |config| Gru::new(config, Init::Uniform, 1, &device).unwrap_err();
        assert!(matches!(
            error(GruConfig::new(0, 5)),
            Error::ZeroSize { what: "the input size I" }
        ));
        assert!(matches!(
            error(GruConfig::new(5, 0)),
            Error::ZeroSize { what: "the hidden size H" }
        ));
        assert!(matches!(error(GruConfig::new(usize::MAX, 5)), Error::Overflow { .. }));
        assert!(matches!(error(GruConfig::new(5, usize::MAX)), Error::Overflow { .. }));
    }
    // Refused before the memory of parameters that no adapter could bind is allocated.
    let error = Gru::new(GruConfig::new(1, 1 << 20), Init::Uniform, 1, crate::common::adapter());
    assert!(matches!(error.unwrap_err(), Error::Limit { .. }));
}

#[test]
fn names_and_devices_that_do_not_exist_are_refused() {
    let params = Params::<f32>::zeros(&GruConfig::new(2, 3).with_bias(Bias::None)).unwrap();
    assert_eq!(
        params.get("bias_ih_l0").unwrap_err().to_string(),
        "no parameter is named `bias_ih_l0`; this model has weight_ih_l0, weight_hh_l0"
    );
    let error = "cuda".parse::<DeviceKind>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown device `cuda`; expected auto, cpu, gpu, software, or gpu:0, gpu:1, ... for one of several \
         GPUs"
    );
}

#[test]
fn device_kinds_parse_and_adapters_open_by_index() {
    for word in ["auto", "cpu", "gpu", "gpu:0", "gpu:17", "software"] {
        assert_eq!(word.parse::<DeviceKind>().unwrap().to_string(), word);
    }
    let adapters = Device::adapters();
    let gpus = adapters.iter().take_while(|adapter| !adapter.is_software()).count();
    assert!(adapters[gpus..].iter().all(gru_wgpu::AdapterInfo::is_software), "software comes last");
    for (index, adapter) in adapters[..gpus].iter().enumerate() {
        let device = DeviceKind::GpuAt(index).open().unwrap();
        assert_eq!(device.adapter().unwrap().to_string(), adapter.to_string());
    }
    let all = Device::all();
    assert_eq!(all[0].to_string(), "cpu");
    let opened: Vec<_> = all[1..].iter().map(|device| device.adapter().unwrap().name).collect();
    let names: Vec<_> = adapters.iter().map(|adapter| adapter.name.clone()).collect();
    assert_eq!(opened, names);

    let error = Device::gpu_at(gpus).unwrap_err();
    assert_eq!(error, pollster::block_on(Device::gpu_at_async(gpus)).unwrap_err());
    let Error::NoGpuAt { index, found } = &error else { panic!("{error}") };
    assert_eq!((*index, found.len()), (gpus, adapters.len()));
    let told = error.to_string();
    assert!(told.starts_with(&format!("there is no gpu:{gpus} (")), "{told}");
    for (index, adapter) in adapters.iter().enumerate() {
        let index = if index < gpus { format!("gpu:{index} = ") } else { String::new() };
        assert!(told.contains(&format!("{index}{adapter}")), "{told}");
    }
}

#[test]
fn errors_keep_their_source() {
    let error = gru_wgpu::formats::npy::load("no such file.npy").unwrap_err();
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    let source = source.expect("the system's error");
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    assert!(error.to_string().ends_with(&source.to_string()), "{error}");
    assert_eq!(error.clone(), error);
    assert!(error.clone().source().is_some());

    // Larger than any address space.
    let error = Params::<f32>::zeros(&GruConfig::new(1 << 20, 1 << 24)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    let source = error.source().map(|source| source.is::<std::collections::TryReserveError>());
    assert_eq!(source, Some(true));

    let error = Params::<f32>::zeros(&GruConfig::new(0, 1)).unwrap_err();
    assert!(error.source().is_none());
}

#[test]
fn public_types_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<Gru>();
    check::<gru_wgpu::Tape>();
    check::<gru_wgpu::State>();
    check::<gru_wgpu::Stream>();
    check::<gru_wgpu::ForwardPass>();
    check::<Device>();
    check::<Params>();
    check::<Error>();
}

/// An error of a parser is the source of the error.
#[test]
fn a_broken_file_has_the_error_of_its_parser_as_its_source() {
    use gru_wgpu::formats::{npy, npz, onnx, safetensors};
    use std::io::Cursor;

    let error = |result: gru_wgpu::Result<()>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        error
    };
    let file = [&4_u64.to_le_bytes()[..], b"{\"a\""].concat();
    let options = safetensors::SafetensorsOptions::new();
    let broken = error(safetensors::read(Cursor::new(file), &options).map(drop));
    assert!(broken.source().unwrap().is::<serde_json::Error>(), "{broken:?}");
    assert_eq!(broken.clone(), broken);
    let file = [&2_u64.to_le_bytes()[..], b"\xff\xfe"].concat();
    let broken = error(safetensors::read(Cursor::new(file), &options).map(drop));
    assert!(broken.source().unwrap().is::<std::str::Utf8Error>(), "{broken:?}");
    let junk = || Cursor::new(vec![255; 64]);
    assert!(error(npz::read_arrays(junk(), ["a"]).map(drop)).source().is_some());
    assert!(error(onnx::read(junk(), &onnx::OnnxOptions::new()).map(drop)).source().is_some());
    // Also through a file's name.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.onnx");
    std::fs::write(&path, [255; 64]).unwrap();
    let broken = error(onnx::load(&path, &onnx::OnnxOptions::new()).map(drop));
    assert!(broken.source().is_some() && broken.to_string().contains("broken.onnx`: "), "{broken}");
    // An error that this library detected has no source.
    assert!(error(npy::read(junk()).map(drop)).source().is_none());
}
