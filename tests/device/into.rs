//! Results in the caller's arrays: `forward_into` and its like.

use crate::common::{devices, open_wgpu, random3};
use gru_wgpu::plan::Mode;
use gru_wgpu::{
    Batch, Device, Direction, Error, Gradients, Gru, GruConfig, Init, Layout, Output, OutputMut,
    wgpu,
};
use ndarray::{Array3, ShapeBuilder, s};

/// A device that binds 16 KiB, so that a run of [`SIZES`] is split into chunks.
fn chunking_device() -> Device {
    let (adapter, device, queue) = open_wgpu(|_| wgpu::Limits {
        max_storage_buffer_binding_size: 16 << 10,
        ..wgpu::Limits::default()
    });
    Device::from_wgpu(&adapter, &device, &queue).unwrap()
}

/// T and B of the tests' runs.
const SIZES: [usize; 2] = [61, 11];

/// Returns models of odd sizes: layers, directions and layouts.
fn models(device: &Device) -> Vec<(Gru, Layout)> {
    let cases = [
        (1, Direction::Forward, Layout::TimeMajor),
        (2, Direction::Reverse, Layout::BatchFirst),
        (2, Direction::Both, Layout::TimeMajor),
        (1, Direction::Both, Layout::BatchFirst),
    ];
    let model = |(layers, direction, layout)| {
        let config = GruConfig::pytorch(3, 7).with_layers(layers).with_direction(direction);
        (Gru::new(config, Init::Uniform, 5, device).unwrap(), layout)
    };
    cases.into_iter().map(model).collect()
}

fn nan(shape: [usize; 3]) -> Array3<f32> {
    Array3::from_elem(shape, f32::NAN)
}

/// The CPU, the adapter in one chunk, and the adapter in several chunks. The arrays held NaN
/// before.
#[test]
fn into_gives_the_bits_of_the_calls_that_return_arrays() {
    let [cpu, adapter] = devices();
    for device in [cpu, adapter, chunking_device()] {
        for (gru, layout) in models(&device) {
            let case = format!("{}, {layout:?}, {device}", gru.config());
            let shape = gru.config().shape(SIZES[0], SIZES[1]).unwrap().with_layout(layout);
            let lengths: Vec<_> = (0..SIZES[1]).map(|row| [61, 0, 1, 30, 50][row % 5]).collect();
            let (x, h0) = (random3(shape.x(), 0), random3(shape.state(), 1));
            let batch = Batch::new(x.view()).with_layout(layout).with_lengths(&lengths);
            let from = batch.with_h0(h0.view());
            let (mut y, mut h_n) = (nan(shape.y()), nan(shape.state()));

            let expected = gru.forward(from).unwrap();
            gru.forward_into(from, OutputMut::new(y.view_mut(), h_n.view_mut())).unwrap();
            assert_eq!((&y, &h_n), (&expected.y, &expected.h_n), "{case}");

            let (expected, tape) = gru.forward_train(from).unwrap();
            let state = tape.state().unwrap();
            let mut out = Output::clone(&expected);
            out.y.fill(f32::NAN);
            let again = gru.forward_train_into(from, &mut out).unwrap();
            assert_eq!(out, expected, "{case}");

            let dy = random3(shape.y(), 2);
            let grads = gru.backward(tape, Some(dy.view()), None).unwrap();
            let mut into = Gradients::clone(&grads);
            into.params.as_mut_slice().fill(f32::NAN);
            [&mut into.x, &mut into.h0, &mut into.reset_state]
                .into_iter()
                .for_each(|array| array.fill(f32::NAN));
            gru.backward_into(again, Some(dy.view()), None, &mut into).unwrap();
            assert_eq!(into, grads, "{case}");

            let expected = gru.forward_from(&state, batch).unwrap();
            gru.forward_from_into(&state, batch, &mut out).unwrap();
            assert_eq!(out, expected, "{case}");
            let (expected, _) = gru.forward_train_from(&state, batch).unwrap();
            out.h_n.fill(f32::NAN);
            let _ = gru.forward_train_from_into(&state, batch, &mut out).unwrap();
            assert_eq!(out, expected, "{case}");
            out.y.fill(f32::NAN);
            let run = gru.forward_into_async(from, &mut out);
            pollster::block_on(run).unwrap();
            assert_eq!((out.y, out.h_n), (y, h_n), "{case}");
        }
    }
}

#[test]
fn the_runs_of_the_small_device_are_split() {
    for (gru, layout) in models(&chunking_device()) {
        let shape = gru.config().shape(SIZES[0], SIZES[1]).unwrap().with_layout(layout);
        for mode in [Mode::Inference, Mode::Training] {
            assert!(gru.chunks(shape, mode).unwrap().len() > 1, "{}, {mode:?}", gru.config());
        }
    }
}

/// Views of larger arrays, transposed arrays and reversed axes: only their elements are written.
#[test]
fn arrays_of_any_strides_are_written_and_nothing_beside_them() {
    let [cpu, adapter] = devices();
    for device in [cpu, adapter, chunking_device()] {
        let (gru, _) = models(&device).remove(0);
        let shape = gru.config().shape(SIZES[0], SIZES[1]).unwrap();
        let [t, b, h] = shape.y();
        let x = random3(shape.x(), 0);
        let expected = gru.forward(&x).unwrap();
        let mut h_n = nan(shape.state());
        let mut check = |what: &str, whole: Array3<f32>, view: fn(&mut Array3<f32>) -> View<'_>| {
            let mut whole = whole;
            let len = whole.len();
            let y = view(&mut whole);
            assert_eq!(y.dim(), (t, b, h), "{what}");
            gru.forward_into(&x, OutputMut::new(y, h_n.view_mut())).unwrap();
            assert_eq!(view(&mut whole), expected.y, "{what} on {device}");
            assert_eq!(h_n, expected.h_n, "{what} on {device}");
            let untouched = whole.iter().filter(|number| number.is_nan()).count();
            assert_eq!(untouched, len - t * b * h, "{what} on {device}");
        };
        check("steps", nan([t + 5, b, h]), |y| y.slice_mut(s![2..63, .., ..]));
        check("rows", nan([t, b + 5, h]), |y| y.slice_mut(s![.., 4..15, ..]));
        check("columns", nan([t, b, h + 5]), |y| y.slice_mut(s![.., .., 1..8]));
        check("swapped axes", nan([b, t, h]), |y| y.view_mut().permuted_axes([1, 0, 2]));
        check("backwards", nan([t, b, h]), |y| y.slice_mut(s![..;-1, ..;-1, ..]));
        check("every second column", nan([t, b, 2 * h]), |y| y.slice_mut(s![.., .., ..;2]));
        check("columns first", nan([h, t, b]), |y| y.view_mut().permuted_axes([1, 2, 0]));
        check("backwards rows", nan([t, b, h]), |y| y.slice_mut(s![.., .., ..;-1]));
        check("Fortran order", Array3::from_elem((t, b, h).f(), f32::NAN), |y| y.view_mut());
    }
}

type View<'a> = ndarray::ArrayViewMut3<'a, f32>;

#[test]
fn wrong_shapes_are_refused_before_anything_runs() {
    for device in devices() {
        let (gru, _) = models(&device).remove(0);
        let shape = gru.config().shape(4, 3).unwrap();
        let x = random3(shape.x(), 0);
        let (out, tape) = gru.forward_train(&x).unwrap();
        let dy = out.y.view();
        let grads = gru.backward(tape, Some(dy), None).unwrap();
        let wrong = |[a, b, c]: [usize; 3]| [[a + 1, b, c], [b, a, c], [a, b, c - 1]];
        let is_shape = |error: Error| assert!(matches!(error, Error::Shape { .. }), "{error}");
        for y in wrong(shape.y()) {
            let (mut y, mut h_n) = (nan(y), nan(shape.state()));
            let output = OutputMut::new(y.view_mut(), h_n.view_mut());
            is_shape(gru.forward_into(&x, output).unwrap_err());
            let output = OutputMut::new(y.view_mut(), h_n.view_mut());
            is_shape(gru.forward_train_into(&x, output).unwrap_err());
            assert!(y.iter().chain(&h_n).all(|number| number.is_nan()), "{device}");
        }
        for h_n in wrong(shape.state()) {
            let (mut y, mut h_n) = (nan(shape.y()), nan(h_n));
            let output = OutputMut::new(y.view_mut(), h_n.view_mut());
            is_shape(gru.forward_into(&x, output).unwrap_err());
            assert!(y.iter().all(|number| number.is_nan()), "{device}");
        }
        let fields: [fn(&mut Gradients) -> &mut Array3<f32>; 3] =
            [|grads| &mut grads.x, |grads| &mut grads.h0, |grads| &mut grads.reset_state];
        for field in fields {
            let mut into = Gradients::clone(&grads);
            *field(&mut into) = nan([9, 3, 7]);
            let before = into.params.clone();
            let (_, tape) = gru.forward_train(&x).unwrap();
            is_shape(gru.backward_into(tape, Some(dy), None, &mut into).unwrap_err());
            assert_eq!(into.params, before);
        }
        let mut other = Gradients::clone(&grads);
        let config = GruConfig::pytorch(3, 6);
        other.params = Gru::new(config, Init::Uniform, 1, &device).unwrap().params().clone();
        let (_, tape) = gru.forward_train(&x).unwrap();
        let refused = gru.backward_into(tape, Some(dy), None, &mut other);
        assert!(matches!(refused, Err(Error::ParameterLayout { .. })), "{refused:?}");
    }
}
