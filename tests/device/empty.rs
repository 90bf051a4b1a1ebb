//! Runs of no steps or no rows: empty arrays, and the last states are the first.

use crate::common::{adapter, random3};
use gru_wgpu::{
    Batch, Device, Direction, Error, Gru, GruConfig, Head, Init, Learner, LearnerConfig, Loss,
    Network, Optimizer, ParamLayout, Params, Targets, reference,
};
use ndarray::{Array2, Array3};

/// T and B of the empty runs.
const EMPTY: [[usize; 2]; 3] = [[0, 3], [5, 0], [0, 0]];

fn devices() -> [Device; 2] {
    [Device::cpu(), adapter().clone()]
}

fn config() -> GruConfig {
    GruConfig::pytorch(3, 5).with_layers(2).with_direction(Direction::Both)
}

#[test]
fn forward_and_backward() {
    for device in devices() {
        let gru = Gru::new(config(), Init::Uniform, 1, &device).unwrap();
        for [steps, rows] in EMPTY {
            let x = Array3::zeros((steps, rows, 3));
            let [h0, dh_n] = [1, 2].map(|seed| random3([4, rows, 5], seed));
            let batch = || Batch::new(x.view()).with_h0(h0.view());
            let out = gru.forward(batch()).unwrap();
            assert_eq!((out.y.dim(), &out.h_n), ((steps, rows, 10), &h0), "{device}");
            let mut given = out.clone();
            given.h_n.fill(7.0);
            gru.forward_into(batch(), &mut given).unwrap();
            assert_eq!(given.h_n, h0, "{device}");
            assert_eq!(gru.forward(&x).unwrap().h_n, Array3::<f32>::zeros(h0.dim()), "{device}");

            let trace = reference::forward(gru.params(), batch()).unwrap();
            assert_eq!((trace.y().dim(), trace.h_n()), ((steps, rows, 10), h0.clone()));

            let (out, tape) = gru.forward_train(batch()).unwrap();
            assert_eq!(out.h_n, h0, "{device}");
            let state = tape.state().unwrap();
            assert_eq!(state.to_array().unwrap(), h0, "{device}");
            let dy = Array3::zeros(out.y.dim());
            let grads = gru.backward(tape, Some(dy.view()), Some(dh_n.view())).unwrap();
            assert!(grads.params.as_slice().iter().all(|&d| d == 0.0), "{device}");
            assert_eq!((grads.x.dim(), &grads.h0), (x.dim(), &dh_n), "{device}");
            assert_eq!(grads.reset_state, Array3::<f32>::zeros(h0.dim()), "{device}");

            // A state of an empty run starts another run, empty or not.
            assert_eq!(gru.forward_from(&state, &x).unwrap().h_n, h0, "{device}");
            if rows > 0 {
                let x = random3([2, rows, 3], 3);
                let expected = gru.forward(Batch::new(x.view()).with_h0(h0.view())).unwrap();
                assert_eq!(gru.forward_from(&state, &x).unwrap(), expected, "{device}");
            }
            let wrong = Array3::zeros((4, rows + 1, 5));
            let error = gru.forward(Batch::new(x.view()).with_h0(wrong.view())).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{device}: {error}");
        }
    }
}

#[test]
fn networks_apply_their_head_to_the_first_state() {
    for device in devices() {
        for (head, axes) in [(Head::last(2), 1), (Head::every_step(2), 2)] {
            let config = GruConfig::pytorch(3, 5);
            let layout = ParamLayout::with_head(&config, head).unwrap();
            let network =
                Network::new(Params::init_of(layout, Init::Uniform, 1).unwrap(), &device).unwrap();
            for [steps, rows] in EMPTY {
                let x = Array3::zeros((steps, rows, 3));
                let h0 = random3([1, rows, 5], 4);
                let outputs = network.forward(Batch::new(x.view()).with_h0(h0.view())).unwrap();
                let expected = if axes == 1 { vec![rows, 2] } else { vec![steps, rows, 2] };
                assert_eq!(outputs.shape(), expected, "{device}");
                if axes == 1 && rows > 0 {
                    let weight = network.params().get("head.weight").unwrap().to_owned();
                    let weight: Array2<f32> = weight.into_dimensionality().unwrap();
                    let bias = network.params().get("head.bias").unwrap().to_owned();
                    let expected = h0.index_axis(ndarray::Axis(0), 0).dot(&weight.t()) + bias;
                    let error = (&outputs - &expected).mapv(f32::abs);
                    assert!(error.iter().all(|&error| error < 1e-6), "{device}: {error}");
                }
                let (_, state) =
                    network.forward_from(None, Batch::new(x.view()).with_h0(h0.view())).unwrap();
                assert_eq!(state.to_array().unwrap(), h0, "{device}");
                let state = network.advance(Some(&state), &x).unwrap();
                assert_eq!(state.to_array().unwrap(), h0, "{device}");
            }
        }
    }
}

/// The mean loss of no targets is undefined.
#[test]
fn a_loss_of_nothing_is_refused() {
    for device in devices() {
        let config = GruConfig::pytorch(3, 5);
        let layout = ParamLayout::with_head(&config, Head::every_step(2)).unwrap();
        let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
        let learning = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
        let mut learner = Learner::new(params, learning, &device).unwrap();
        for [steps, rows] in EMPTY {
            let (x, targets) = (Array3::zeros((steps, rows, 3)), Array3::zeros((steps, rows, 2)));
            let targets = Targets::Values(targets.view().into_dyn());
            let error = learner.step(&x, targets.clone()).unwrap_err();
            assert!(matches!(error, Error::ZeroSize { .. }), "{device}: {error}");
            let error = learner.evaluate(&x, targets);
            assert!(matches!(error, Err(Error::ZeroSize { .. })), "{device}: {error:?}");
        }
    }
}
