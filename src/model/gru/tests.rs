//! Runs with gates of a few steps at a time, lost devices, kept memory.

use ndarray::Array3;

use super::*;
use crate::model::device::{test_device, test_device_with_bindings, test_device_with_hardware_exp};
use crate::plan::BufferSpec;
use crate::spec::config::{Direction, Layout, Reset};
use crate::spec::options::Recurrence;

#[test]
fn every_call_reports_a_lost_device() {
    let (device, gpu) = test_device();
    let gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &device).unwrap();
    let x = Array3::ones((4, 2, 2));
    let (_, tape) = gru.forward_train(x.view()).unwrap();
    let state = tape.state().unwrap();
    let mut stream = gru.stream(2, &[4]).unwrap();
    let mut y = Array3::zeros((4, 2, 3));
    gpu.device().destroy();
    let dh_n = Array3::ones((1, 2, 3));
    let lost = |error: Error| {
        assert!(matches!(error, Error::DeviceLost(_)), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    };
    lost(gru.backward(tape, None, Some(dh_n.view())).unwrap_err());
    for _ in 0..2 {
        lost(gru.forward(x.view()).unwrap_err());
        lost(gru.forward_train(x.view()).map(|_| ()).unwrap_err());
        lost(gru.forward_from(&state, x.view()).unwrap_err());
        lost(state.to_array().unwrap_err());
        lost(gru.step(&mut stream, x.view(), y.view_mut()).unwrap_err());
        lost(stream.state().unwrap_err());
        lost(gru.stream(2, &[4]).unwrap_err());
        lost(Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &device).unwrap_err());
    }
}

#[test]
fn an_error_is_reported_to_the_thread_that_caused_it() {
    let (device, gpu) = test_device();
    let gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &device).unwrap();
    let x = Array3::ones((4, 2, 2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                let error = gpu.guard(|| {
                    gpu.create_buffer(&wgpu::BufferDescriptor {
                        label: None,
                        size: 4,
                        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE,
                        mapped_at_creation: false,
                    });
                    Ok(())
                });
                let error = pollster::block_on(error);
                assert!(matches!(error, Err(Error::Gpu { .. })), "{error:?}");
            }
        });
        scope.spawn(|| {
            for _ in 0..20 {
                gru.forward(x.view()).expect("no error of another thread");
            }
        });
    });
}

/// The gates of a step take about 800 bytes, and a binding has room for 5 to 20 steps.
#[test]
fn inference_with_gates_of_a_few_steps_at_a_time_gives_the_same_numbers() {
    let device = test_device_with_bindings(16 << 10);
    for (direction, layers) in [
        (Direction::Forward, 1),
        (Direction::Forward, 3),
        (Direction::Reverse, 2),
        (Direction::Both, 1),
    ] {
        for reset in [Reset::After, Reset::Before] {
            for layout in [Layout::TimeMajor, Layout::BatchFirst] {
                for &recurrence in Recurrence::ALL {
                    let config = GruConfig::pytorch(3, 7).with_reset(reset);
                    let config = config.with_layers(layers).with_direction(direction);
                    let shape = config.shape(41, 7).unwrap().with_layout(layout);
                    let [gru, cpu] = [&device, &Device::cpu()]
                        .map(|device| Gru::new(config.clone(), Init::Uniform, 5, device).unwrap());
                    let gru = gru.with_options(RunOptions::default().with_recurrence(recurrence));
                    let plan = gru.plan(shape, Mode::Inference).unwrap();
                    let gates = plan.buffer("gates").unwrap();
                    let all = shape.directions * 41 * 7 * 4 * 7;
                    assert!(plan.buffers()[gates.index()].len < all, "the gates of all steps fit");
                    let x = Array3::from_shape_fn(shape.x(), |(i, j, k)| {
                        ((5 * i + 3 * j + 7 * k) % 11) as f32 * 0.2 - 1.0
                    });
                    let lengths = [41, 40, 1, 0, 20, 21, 39];
                    let batch = Batch { layout, ..Batch::new(x.view()).with_lengths(&lengths) };
                    let [got, expected] = [&gru, &cpu].map(|gru| gru.forward(batch).unwrap());
                    let case = format!("{config}, {layout:?}, {recurrence}");
                    for (got, expected) in [(got.y, expected.y), (got.h_n, expected.h_n)] {
                        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
                        assert!(got.iter().zip(&expected).all(close), "{case}");
                    }
                }
            }
        }
    }
}

/// On a GPU: seven and eight blocks of weights a thread, one and two rows a workgroup; steps with
/// row groups, of more rows than a workgroup has; and the device's own `exp`.
#[test]
fn the_large_tiles_of_a_gpu_agree_with_the_reference() {
    let device = test_device_with_hardware_exp();
    for (hidden, batch, recurrence) in [
        (97, 131, Recurrence::Persistent),
        (128, 2, Recurrence::Persistent),
        (130, 35, Recurrence::Step),
        (132, 3, Recurrence::Step),
    ] {
        let config = GruConfig::pytorch(2, hidden);
        let x = Array3::from_shape_fn((9, batch, 2), |(i, j, k)| {
            ((5 * i + 3 * j + 7 * k) % 11) as f32 * 0.2 - 1.0
        });
        let [got, expected] = [&device, &Device::cpu()].map(|device| {
            let gru = Gru::new(config.clone(), Init::Uniform, 5, device).unwrap();
            let gru = gru.with_options(RunOptions::default().with_recurrence(recurrence));
            let (output, tape) = gru.forward_train(x.view()).unwrap();
            let gradients = gru.backward(tape, Some(output.y.view()), None).unwrap();
            (output.y, gradients.x, gradients.params.as_slice().to_vec())
        });
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5 + 1e-4 * b.abs();
        let case = format!("H {hidden}, B {batch}, {recurrence}");
        assert!(got.0.iter().zip(&expected.0).all(close), "y: {case}");
        assert!(got.1.iter().zip(&expected.1).all(close), "dx: {case}");
        assert!(got.2.iter().zip(&expected.2).all(close), "dW: {case}");
    }
}

/// With the same bindings a layer has two or three buffers of gates, which the backward pass reads,
/// or one buffer with recomputed gates.
#[test]
fn training_with_gates_of_a_few_steps_at_a_time_gives_the_same_numbers() {
    let device = test_device_with_bindings(16 << 10);
    for (direction, layers) in
        [(Direction::Forward, 2), (Direction::Reverse, 1), (Direction::Both, 2)]
    {
        for (reset, layout, recurrence, recompute) in [
            (Reset::After, Layout::TimeMajor, Recurrence::Sequence, false),
            (Reset::Before, Layout::BatchFirst, Recurrence::Sequence, false),
            (Reset::Before, Layout::TimeMajor, Recurrence::Step, false),
            (Reset::After, Layout::BatchFirst, Recurrence::Step, true),
            (Reset::After, Layout::TimeMajor, Recurrence::Persistent, false),
            (Reset::Before, Layout::BatchFirst, Recurrence::Persistent, true),
        ] {
            let config = GruConfig::pytorch(3, 7).with_reset(reset);
            let config = config.with_layers(layers).with_direction(direction);
            let shape = config.shape(41, 7).unwrap().with_layout(layout);
            let options = RunOptions::default().with_recurrence(recurrence);
            let [gru, cpu] = [&device, &Device::cpu()].map(|device| {
                let gru = Gru::new(config.clone(), Init::Uniform, 5, device).unwrap();
                gru.with_options(options.with_recompute(recompute))
            });
            let plan = gru.plan(shape, Mode::Training).unwrap();
            let is_gates = |b: &&BufferSpec| b.name.starts_with("gates");
            let (buffers, all) = (plan.buffers(), shape.directions * 41 * 7 * 4 * 7);
            assert!(
                buffers.iter().filter(is_gates).all(|b| b.len < all),
                "the gates of all steps fit"
            );
            assert_eq!(buffers.iter().filter(is_gates).count() == 1, recompute);
            let numbers = |shape: [usize; 3]| {
                Array3::from_shape_fn(shape, |(i, j, k)| {
                    ((5 * i + 3 * j + 7 * k) % 11) as f32 * 0.2 - 1.0
                })
            };
            let (x, dy, dh_n) = (numbers(shape.x()), numbers(shape.y()), numbers(shape.state()));
            let lengths = [41, 40, 1, 0, 20, 21, 39];
            let batch = Batch { layout, ..Batch::new(x.view()).with_lengths(&lengths) };
            let [got, expected] = [&gru, &cpu].map(|gru| {
                let (output, tape) = gru.forward_train(batch).unwrap();
                let grads = gru.backward(tape, Some(dy.view()), Some(dh_n.view())).unwrap();
                let arrays = [output.y, output.h_n, grads.x, grads.h0];
                let arrays = arrays.into_iter().flatten();
                arrays.chain(grads.params.as_slice().iter().copied()).collect::<Vec<f32>>()
            });
            let case = format!("{config}, {layout:?}, {recurrence}, {recompute}");
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4 * (1.0 + b.abs());
            assert!(got.iter().zip(&expected).all(close), "{case}");
        }
    }
}

/// `cpu/tests.rs` tests that the old contents of the memory do not change the results.
#[test]
fn a_training_run_reuses_the_memory_of_the_last_run_of_its_shape() {
    let config = GruConfig::pytorch(3, 5).with_layers(2).with_zoneout(0.2);
    let new = || Gru::new(config.clone(), Init::Uniform, 1, &Device::cpu()).unwrap();
    let run = |gru: &Gru, steps: usize, value: f32| {
        let x = Array3::from_elem((steps, 4, 3), value);
        let lengths = [steps, 0, 1, steps - 1];
        let batch = Batch::new(x.view()).with_lengths(&lengths).with_seed(3);
        let (output, tape) = gru.forward_train(batch).unwrap();
        assert!(lock(&gru.cached_trace).is_none(), "the tape holds the memory");
        let dh_n = Array3::ones((2, 4, 5));
        (output, gru.backward(tape, None, Some(dh_n.view())).unwrap())
    };
    let kept = |gru: &Gru| lock(&gru.cached_trace).as_ref().map(cpu::CpuTrace::shape);
    let gru = new();
    assert_eq!(kept(&gru), None);
    for (steps, value) in [(7, 0.5), (7, f32::NAN), (7, 0.5), (6, 0.1), (7, 0.5)] {
        let got = run(&gru, steps, value);
        assert_eq!(kept(&gru), Some(config.shape(steps, 4).unwrap()));
        if !value.is_nan() {
            assert_eq!(got, run(&new(), steps, value), "{steps} {value}");
        }
    }
    // With two tapes at once, the model keeps the memory of one.
    let x = Array3::ones((7, 4, 3));
    let tapes = [1, 2].map(|seed| gru.forward_train(Batch::new(x.view()).with_seed(seed)));
    for tape in tapes {
        let dh_n = Array3::ones((2, 4, 5));
        gru.backward(tape.unwrap().1, None, Some(dh_n.view())).unwrap();
    }
    assert_eq!(kept(&gru), Some(config.shape(7, 4).unwrap()));
    // Dropping a tape frees its memory.
    drop(gru.forward_train(Batch::new(x.view()).with_seed(1)).unwrap());
    assert_eq!(kept(&gru), None);
}

#[test]
fn parameters_of_another_configuration_are_refused() {
    let mut gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, &Device::cpu()).unwrap();
    let x = Array3::ones((4, 2, 2));
    *gru.params_mut() = Params::zeros(&GruConfig::new(2, 4)).unwrap();
    let error = gru.forward(x.view()).unwrap_err();
    assert!(matches!(error, Error::ParameterLayout { .. }), "{error}");
    *gru.params_mut() = Params::zeros(&GruConfig::new(2, 3)).unwrap();
    assert_eq!(gru.forward(x.view()).unwrap().h_n, Array3::<f32>::zeros((1, 2, 3)));
}
