//! Wrong calls give one typed error with what was expected and what came, on every device.

mod common;

use common::devices;
use gru_wgpu::{Batch, Bias, Device, Error, Gru, GruConfig, Init, Params};
use ndarray::Array3;

fn zeros(shape: [usize; 3]) -> Array3<f32> {
    Array3::zeros(shape)
}

#[test]
fn arrays_of_another_shape_are_refused_by_name() {
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
            (
                forward([0, 2, 3], [1, 2, 5]),
                "the number of steps T is 0; every size must be at least 1",
            ),
            (forward([4, 0, 3], [1, 0, 5]), "the batch B is 0; every size must be at least 1"),
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
        let (_, tape) = gru.forward_train(x.view()).unwrap();
        assert_eq!(gru.backward(tape, None, None).unwrap_err(), Error::NoGradient);
        // The model works on.
        gru.forward(x.view()).unwrap();
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
    // Before memory is taken for parameters that no adapter could bind.
    let error = Gru::new(GruConfig::new(1, 1 << 20), Init::Uniform, 1, common::adapter());
    assert!(matches!(error.unwrap_err(), Error::Limit { .. }));
}

#[test]
fn names_and_devices_that_do_not_exist_are_refused() {
    let params = Params::<f32>::zeros(&GruConfig::new(2, 3).with_bias(Bias::None)).unwrap();
    assert_eq!(
        params.get("bias_ih_l0").unwrap_err().to_string(),
        "no parameter is named `bias_ih_l0`; this model has weight_ih_l0, weight_hh_l0"
    );
    let error = "cuda".parse::<Device>().unwrap_err();
    assert_eq!(error.to_string(), "unknown device `cuda`; expected auto, cpu, gpu or software");
}

#[test]
fn the_types_may_cross_threads() {
    fn check<T: Send + Sync>() {}
    check::<Gru>();
    check::<gru_wgpu::Tape>();
    check::<Device>();
    check::<Params>();
    check::<Error>();
}
