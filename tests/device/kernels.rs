//! The kernels, alone and together, compared with the reference. Needs an adapter.

use crate::common::{adapter, assert_close, open_adapter, random3, within};
use gru_wgpu::check::{Finding, Section};
use gru_wgpu::{
    Batch, Bias, Device, Direction, Error, Gru, GruConfig, Init, Params, Reset, Update,
};
use ndarray::{Array3, ArrayView3, Axis, s};

fn assert_all_passed(findings: &[Finding], subjects: usize) {
    assert_eq!(findings.len(), subjects, "subjects checked");
    let wrong: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.passed())
        .map(|f| format!("  {}: {:e} off at {}", f.subject, f.error, f.worst))
        .collect();
    assert!(wrong.is_empty(), "on {}:\n{}", adapter(), wrong.join("\n"));
}

/// This test and the next one open a device each: both compile many kernels, few of them the same,
/// and lavapipe compiles on one thread per device.
#[test]
fn every_kernel_agrees_with_its_reference_at_odd_sizes() {
    // Four products, the gradients of weights, a sum, and the recurrence forward and backward, by
    // three kernel families, for each of 12 variants.
    let findings = Section::Kernels.run(&open_adapter()).unwrap();
    assert_all_passed(&findings, 4 + 2 + 2 * 3 * 12);
}

#[test]
fn every_variant_agrees_with_the_reference_at_odd_sizes() {
    // y, h_n, dx, dh0, dreset_state and both weights for each of 12 variants; one bias for eight of
    // them, another for four.
    let findings = Section::Models.run(&open_adapter()).unwrap();
    assert_all_passed(&findings, 7 * 12 + 8 + 4);
}

#[test]
fn streams_chunks_and_encoded_passes_agree_with_the_reference() {
    // y and states of a stream, y and gradients in chunks, y and h_n of an encoded pass.
    assert_all_passed(&Section::Flows.run(adapter()).unwrap(), 6);
}

#[test]
fn training_matches_the_reference() {
    assert_all_passed(&Section::Training.run(adapter()).unwrap(), 4);
    assert_all_passed(&Section::Training.run(&Device::cpu()).unwrap(), 4);
}

#[test]
fn the_default_limits_of_webgpu_are_enough() {
    let device = adapter().with_default_limits().unwrap();
    let limits = device.adapter().unwrap().limits;
    assert_eq!(limits.max_storage_buffer_binding_size, 128 << 20);
    assert_eq!(limits.max_buffer_size, 256 << 20);
    let config = GruConfig::new(7, 17);
    let gru = Gru::new(config.clone(), Init::Uniform, 1, &device).unwrap();
    let reference = Gru::new(config, Init::Uniform, 1, &Device::cpu()).unwrap();
    let x = random3([5, 3, 7], 2);
    let [got, expected] = [&gru, &reference].map(|gru| {
        let (output, tape) = gru.forward_train(x.view()).unwrap();
        gru.backward(tape, None, Some(output.h_n.view())).unwrap()
    });
    assert_close("gradients", got.params.as_slice(), expected.params.as_slice(), within(1e-5));
}

fn pytorch(input: usize, hidden: usize) -> Gru {
    Gru::new(GruConfig::pytorch(input, hidden), Init::Uniform, 3, adapter()).unwrap()
}

#[test]
fn two_runs_give_the_same_bits() {
    let x = random3([13, 19, 11], 1);
    let dy = random3([13, 19, 37], 2);
    let run = || {
        let gru = pytorch(11, 37); // buffers of its own
        let (output, tape) = gru.forward_train(x.view()).unwrap();
        (output, gru.backward(tape, Some(dy.view()), None).unwrap())
    };
    assert_eq!(run(), run());
}

#[test]
fn tapes_are_independent_and_shapes_may_alternate() {
    let gru = pytorch(3, 5);
    let shapes = [[4, 2, 3], [1, 7, 3], [6, 1, 3]];
    let alone: Vec<_> = shapes
        .iter()
        .map(|&shape| {
            let x = random3(shape, 1);
            let (output, tape) = gru.forward_train(x.view()).unwrap();
            gru.backward(tape, Some(output.y.view()), None).unwrap()
        })
        .collect();
    // The same with all tapes, and two of one shape, alive at once; dropped in another order.
    let mut tapes: Vec<_> = shapes
        .iter()
        .chain(&shapes[..1])
        .map(|&shape| gru.forward_train(random3(shape, 1).view()).unwrap())
        .collect();
    for i in [2, 0, 1, 3] {
        let (output, tape) = std::mem::replace(
            &mut tapes[i],
            gru.forward_train(random3([1, 1, 3], 0).view()).unwrap(),
        );
        let grads = gru.backward(tape, Some(output.y.view()), None).unwrap();
        assert_eq!(grads, alone[i % 3], "shape {:?}", shapes[i % 3]);
    }
}

#[test]
fn changed_parameters_are_used_at_the_next_run() {
    let mut gru = pytorch(3, 5);
    let x = random3([4, 2, 3], 1);
    let before = gru.forward(x.view()).unwrap();
    gru.params_mut().get_mut("bias_ih_l0").unwrap().fill(0.7);
    let after = gru.forward(x.view()).unwrap();
    assert_ne!(before, after);
    let fresh = Gru::with_params(gru.params().clone(), adapter()).unwrap();
    assert_eq!(fresh.forward(x.view()).unwrap(), after);
}

#[test]
fn a_tape_serves_only_the_parameters_that_recorded_it() {
    for device in crate::common::devices() {
        let mut gru = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &device).unwrap();
        let other = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &device).unwrap();
        let x = random3([4, 2, 3], 1);
        let dh = random3([1, 2, 5], 2);
        let (_, tape) = gru.forward_train(x.view()).unwrap();
        let error = other.backward(tape, None, Some(dh.view())).unwrap_err();
        assert!(matches!(error, Error::Tape(_)), "{error}");
        let (_, tape) = gru.forward_train(x.view()).unwrap();
        gru.params_mut();
        let error = gru.backward(tape, None, Some(dh.view())).unwrap_err();
        assert!(matches!(error, Error::Tape(_)), "{error}");
    }
}

#[test]
fn views_of_any_strides_equal_their_copies() {
    let config = GruConfig::pytorch(3, 5).with_direction(Direction::Both);
    let shape = config.shape(4, 2).unwrap();
    let copy = |view: ArrayView3<f32>| {
        Array3::from_shape_vec(view.dim(), view.iter().copied().collect()).unwrap()
    };
    for device in crate::common::devices() {
        let gru = Gru::new(config.clone(), Init::Uniform, 3, &device).unwrap();
        let run = |[x, h0, dy, dh_n]: [ArrayView3<f32>; 4]| {
            let (output, tape) = gru.forward_train(Batch::new(x).with_h0(h0)).unwrap();
            (output, gru.backward(tape, Some(dy), Some(dh_n)).unwrap())
        };
        // Arrays with their axes in another memory order, and reversed.
        let arrays = [shape.x(), shape.state(), shape.y(), shape.state()];
        for order in [[0, 2, 1], [1, 0, 2], [2, 1, 0]] {
            let stored = arrays.map(|shape| random3(order.map(|axis| shape[axis]), 1));
            let mut views = [0, 1, 2, 3].map(|i| stored[i].view());
            for view in &mut views {
                let mut back = [0; 3];
                order.iter().enumerate().for_each(|(i, &axis)| back[axis] = i);
                *view = view.permuted_axes(back).slice_move(s![..;-1, .., ..;-1]);
            }
            let copies = views.map(copy);
            assert_eq!(run(views), run([0, 1, 2, 3].map(|i| copies[i].view())), "{device}");
        }
    }
}

#[test]
fn rows_do_not_influence_each_other() {
    let gru = pytorch(3, 17);
    let x = random3([6, 18, 3], 1);
    let whole = gru.forward(x.view()).unwrap();
    for b in [0, 15, 16, 17] {
        let alone = gru.forward(x.slice(s![.., b..b + 1, ..])).unwrap();
        assert_eq!(alone.y.index_axis(Axis(1), 0), whole.y.index_axis(Axis(1), b), "row {b}");
    }
}

#[test]
fn huge_preactivations_give_no_nan() {
    for reset in [Reset::Before, Reset::After] {
        for sign in [1e4, -1e4] {
            let config = GruConfig::new(2, 5).with_reset(reset).with_bias(Bias::Two);
            let mut params = Params::init(&config, Init::Uniform, 1).unwrap();
            params.get_mut("bias_ih_l0").unwrap().fill(sign);
            params.get_mut("weight_hh_l0").unwrap().fill(-sign);
            for device in crate::common::devices() {
                let gru = Gru::with_params(params.clone(), &device).unwrap();
                let x = random3([5, 3, 2], 2);
                let (output, tape) = gru.forward_train(x.view()).unwrap();
                let grads = gru.backward(tape, Some(output.y.view()), None).unwrap();
                let all = output.y.iter().chain(&grads.x).chain(&grads.h0);
                let finite = all.chain(grads.params.as_slice()).all(|v| v.is_finite());
                assert!(finite, "{reset:?}, {sign}, {device}");
            }
        }
    }
}

/// Evaluates the activations over the whole range of f32, through a GRU of one unit whose state is
/// the candidate: z overwrites with z = 1, so h' = tanh(x).
#[test]
fn activations_are_accurate_over_the_whole_range() {
    let config = GruConfig::new(1, 1).with_update(Update::Overwrites);
    let mut params = Params::<f32>::zeros(&config).unwrap();
    params.set("weight_ih_l0", ndarray::array![[0.0], [0.0], [1.0]].into_dyn().view()).unwrap();
    params.set("bias_ih_l0", ndarray::array![0.0, 1e4, 0.0].into_dyn().view()).unwrap();
    let points: Vec<f32> = (0..401)
        .map(|i| (i as f32 - 200.0) / 20.0)
        .chain([1e-30, 1e-7, 1e-3, 0.6249, 0.625, 0.6251, 44.5, 88.0, 89.0, 1e4, 3e38])
        .flat_map(|v| [v, -v])
        .collect();
    let x = Array3::from_shape_vec((1, points.len(), 1), points.clone()).unwrap();
    let gru = Gru::with_params(params.clone(), adapter()).unwrap();
    let tanh = gru.forward(x.view()).unwrap().y;
    for (&x, &y) in points.iter().zip(&tanh) {
        let expected = f64::from(x).tanh();
        let error = (f64::from(y) - expected).abs();
        assert!(error <= 1e-6 * expected.abs(), "tanh({x}) is {y}, expected {expected}");
    }
    // h' = (1 − z)·0 + z·1 = σ(x) with the candidate driven to 1.
    params.set("weight_ih_l0", ndarray::array![[0.0], [1.0], [0.0]].into_dyn().view()).unwrap();
    params.set("bias_ih_l0", ndarray::array![0.0, 0.0, 1e4].into_dyn().view()).unwrap();
    let gru = Gru::with_params(params, adapter()).unwrap();
    let sigmoid = gru.forward(x.view()).unwrap().y;
    for (&x, &y) in points.iter().zip(&sigmoid) {
        let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
        let error = (f64::from(y) - expected).abs();
        // exp may be off by 3 + 2|x| units in the last place, and below 1e-38 f32 may flush to 0.
        let units = 8.0 + 2.0 * f64::from(x.abs()).min(100.0);
        let allowed = units * f64::from(f32::EPSILON) * expected + 1e-37;
        assert!(error <= allowed, "σ({x}) is {y}, expected {expected}");
    }
}

#[test]
fn threads_may_share_a_model() {
    let gru = pytorch(3, 5);
    let x = random3([4, 2, 3], 1);
    let expected = gru.forward(x.view()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let (output, tape) = gru.forward_train(x.view()).unwrap();
                    assert_eq!(output, expected);
                    gru.backward(tape, Some(output.y.view()), None).unwrap();
                }
            });
        }
    });
}

#[test]
fn work_past_a_limit_is_refused_and_names_the_limit() {
    // Two directions cannot be split into steps, and one row cannot be split into rows.
    let config = GruConfig::pytorch(1, 1).with_direction(Direction::Both);
    let gru = Gru::new(config, Init::Uniform, 1, adapter()).unwrap();
    let limits = adapter().adapter().unwrap().limits;
    // A view of one element repeated: nothing of this size is ever allocated.
    let steps = limits.max_storage_buffer_binding_size as usize / 8 + 1;
    let one = ndarray::arr0(0.5);
    let x = one.broadcast((steps, 1, 1)).unwrap();
    match gru.forward(x).unwrap_err() {
        Error::Limit { limit, asked, allowed, .. } => {
            // On an adapter with one limit for both, the whole buffer is too large.
            let expected = match limits.max_buffer_size > limits.max_storage_buffer_binding_size {
                true => ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
                false => ("max_buffer_size", limits.max_buffer_size),
            };
            assert_eq!((limit, allowed), expected);
            assert_eq!(asked, 8 * steps as u64);
        }
        other => panic!("{other}"),
    }
    // The model still works.
    gru.forward(Array3::ones((2, 1, 1)).view()).unwrap();
}
