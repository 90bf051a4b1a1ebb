//! Runs on adapters span by span, lost devices, kept memory.

use ndarray::Array3;

use super::*;
use crate::model::device::{test_device, test_device_with_bindings};
use crate::plan::BufferSpec;
use crate::spec::config::{Direction, Layout, Reset};
use crate::spec::options::Recurrence;

#[test]
fn a_lost_device_is_said_to_be_lost_by_every_call() {
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
fn an_error_goes_to_the_thread_that_caused_it() {
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
                gru.forward(x.view()).expect("another thread's error");
            }
        });
    });
}

/// Some 800 bytes of gates a step, and room for 5 to 20 of them.
#[test]
fn inference_span_by_span_gives_the_same_numbers() {
    let device = test_device_with_bindings(16 << 10);
    for (direction, layers) in [
        (Direction::Forward, 1),
        (Direction::Forward, 3),
        (Direction::Reverse, 2),
        (Direction::Both, 1),
    ] {
        for reset in [Reset::After, Reset::Before] {
            for layout in [Layout::TimeMajor, Layout::BatchFirst] {
                for recurrence in [Recurrence::Sequence, Recurrence::Step] {
                    let config = GruConfig::pytorch(3, 7).with_reset(reset);
                    let config = config.with_layers(layers).with_direction(direction);
                    let shape = config.shape(41, 7).unwrap().with_layout(layout);
                    let [gru, cpu] = [&device, &Device::cpu()]
                        .map(|device| Gru::new(config.clone(), Init::Uniform, 5, device).unwrap());
                    let gru = gru.with_options(RunOptions::default().with_recurrence(recurrence));
                    let plan = gru.plan(shape, Mode::Inference).unwrap();
                    let gates = plan.buffer("gates").unwrap();
                    let all = shape.directions * 41 * 7 * 4 * 7;
                    assert!(plan.buffers()[gates.index()].len < all, "all at once");
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

/// The same bindings: two or three buffers of gates a layer, kept for the backward pass or made
/// again.
#[test]
fn training_span_by_span_gives_the_same_numbers() {
    let device = test_device_with_bindings(16 << 10);
    for (direction, layers) in
        [(Direction::Forward, 2), (Direction::Reverse, 1), (Direction::Both, 2)]
    {
        for (reset, layout, recurrence, recompute) in [
            (Reset::After, Layout::TimeMajor, Recurrence::Sequence, false),
            (Reset::Before, Layout::BatchFirst, Recurrence::Sequence, false),
            (Reset::Before, Layout::TimeMajor, Recurrence::Step, false),
            (Reset::After, Layout::BatchFirst, Recurrence::Step, true),
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
            let of_gates = |b: &&BufferSpec| b.name.starts_with("gates");
            let (buffers, all) = (plan.buffers(), shape.directions * 41 * 7 * 4 * 7);
            assert!(buffers.iter().filter(of_gates).all(|b| b.len < all), "all at once");
            assert_eq!(buffers.iter().filter(of_gates).count() == 1, recompute);
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

/// That what stood there counts for nothing is tested in `cpu/tests.rs`.
#[test]
fn the_memory_of_one_training_run_is_kept_for_the_next_of_its_shape() {
    let config = GruConfig::pytorch(3, 5).with_layers(2).with_zoneout(0.2);
    let new = || Gru::new(config.clone(), Init::Uniform, 1, &Device::cpu()).unwrap();
    let run = |gru: &Gru, steps: usize, value: f32| {
        let x = Array3::from_elem((steps, 4, 3), value);
        let lengths = [steps, 0, 1, steps - 1];
        let batch = Batch::new(x.view()).with_lengths(&lengths).with_seed(3);
        let (output, tape) = gru.forward_train(batch).unwrap();
        assert!(lock(&gru.cached_trace).is_none(), "a tape holds the memory, or nobody");
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
    // Two tapes at once: the memory of one of them is kept.
    let x = Array3::ones((7, 4, 3));
    let tapes = [1, 2].map(|seed| gru.forward_train(Batch::new(x.view()).with_seed(seed)));
    for tape in tapes {
        let dh_n = Array3::ones((2, 4, 5));
        gru.backward(tape.unwrap().1, None, Some(dh_n.view())).unwrap();
    }
    assert_eq!(kept(&gru), Some(config.shape(7, 4).unwrap()));
    // A tape that is dropped takes its memory along.
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
