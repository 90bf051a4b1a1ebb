//! Sequences in steps or chunks equal one run over the whole sequence, on every device.

use crate::common::{devices, random3};
use gru_wgpu::{Batch, Direction, Error, Gru, GruConfig, Init, Stream};
use ndarray::{Array2, Array3, Axis, concatenate, s};

const T: usize = 7;
const B: usize = 19; // more than a tile

fn config() -> GruConfig {
    GruConfig::pytorch(3, 5).with_layers(2).with_zoneout(0.25)
}

fn gru(device: &gru_wgpu::Device) -> Gru {
    Gru::new(config(), Init::Uniform, 1, device).unwrap()
}

/// Runs `x` in chunks of these lengths.
fn take(gru: &Gru, stream: &mut Stream, x: &Array3<f32>, chunks: &[usize]) -> Array3<f32> {
    let (mut first, mut ys) = (0, Vec::new());
    for &steps in chunks {
        let mut y = Array3::from_elem((steps, B, 5), f32::NAN);
        gru.step(stream, x.slice(s![first..first + steps, .., ..]), y.view_mut()).unwrap();
        first += steps;
        ys.push(y);
    }
    assert_eq!(first, x.dim().0);
    concatenate(Axis(0), &ys.iter().map(|y| y.view()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn chunks_of_any_prepared_length_equal_one_run() {
    let x = random3([T, B, 3], 2);
    for device in devices() {
        let gru = gru(&device);
        let whole = gru.forward(&x).unwrap();
        for chunks in [&[1; T][..], &[3, 1, 3], &[1, 3, 3], &[3, 3, 1]] {
            let mut stream = gru.stream(B, &[1, 3]).unwrap();
            assert_eq!((stream.rows(), stream.chunks()), (B, &[1, 3][..]));
            assert_eq!(take(&gru, &mut stream, &x, chunks), whole.y, "{chunks:?} on {device}");
            assert_eq!(stream.state().unwrap(), whole.h_n, "{chunks:?} on {device}");
        }
    }
}

#[test]
fn rows_are_reset_one_by_one() {
    let x = random3([T, B, 3], 2);
    let fresh = random3([2, B, 5], 3);
    for device in devices() {
        let gru = gru(&device);
        // The same resets in one run.
        let mut resets = Array2::from_elem((T, B), false);
        for (t, row) in [(0, 4), (2, 0), (2, 1), (2, 17), (2, 18), (5, 0), (6, 9)] {
            resets[[t, row]] = true;
        }
        for fresh in [None, Some(fresh.view())] {
            let batch = Batch::new(x.view()).with_resets(resets.view()).with_reset_state(fresh);
            let expected = gru.forward(batch).unwrap();
            let mut stream = gru.stream(B, &[1]).unwrap();
            if let Some(fresh) = fresh {
                stream.set_reset_state(fresh).unwrap();
            }
            for t in 0..T {
                for row in (0..B).filter(|&row| resets[[t, row]]) {
                    stream.reset_row(row).unwrap();
                }
                let mut y = Array3::zeros((1, B, 5));
                gru.step(&mut stream, x.slice(s![t..t + 1, .., ..]), y.view_mut()).unwrap();
                let expected = expected.y.slice(s![t..t + 1, .., ..]);
                assert_eq!(y, expected, "step {t} on {device}");
            }
            // Reset all rows: the states show it before the next step.
            stream.reset();
            let zeros = Array3::zeros((2, B, 5));
            let now = fresh.map_or(zeros, |fresh| fresh.to_owned());
            assert_eq!(stream.state().unwrap(), now, "{device}");
        }
    }
}

#[test]
fn states_can_be_read_and_restored() {
    let x = random3([T, B, 3], 2);
    for device in devices() {
        let gru = gru(&device);
        let mut stream = gru.stream(B, &[T]).unwrap();
        let first = take(&gru, &mut stream, &x, &[T]);
        let state = stream.state().unwrap();
        let second = take(&gru, &mut stream, &x, &[T]);
        assert_ne!(first, second);
        stream.reset_row(3).unwrap(); // forgotten
        stream.set_state(state.view()).unwrap();
        assert_eq!(take(&gru, &mut stream, &x, &[T]), second, "{device}");
        stream.set_state(Array3::zeros((2, B, 5)).view()).unwrap();
        assert_eq!(take(&gru, &mut stream, &x, &[T]), first, "{device}");
    }
}

#[test]
fn a_step_uses_the_current_parameters() {
    let x = random3([1, B, 3], 2);
    for device in devices() {
        let mut gru = gru(&device);
        let mut stream = gru.stream(B, &[1]).unwrap();
        take(&gru, &mut stream, &x, &[1]);
        gru.params_mut().get_mut("bias_ih_l0").unwrap().fill(0.7);
        stream.reset();
        assert_eq!(take(&gru, &mut stream, &x, &[1]), gru.forward(&x).unwrap().y, "{device}");
    }
}

/// Arrays of any strides, as inputs and outputs.
#[test]
fn stream_views_of_any_strides_equal_their_copies() {
    let x = random3([3, B, 1], 2); // [I, B, T] of one step
    for device in devices() {
        let gru = gru(&device);
        let mut stream = gru.stream(B, &[1]).unwrap();
        let mut y = Array3::zeros((5, B, 1));
        let view = x.view().permuted_axes([2, 1, 0]);
        gru.step(&mut stream, view, y.view_mut().permuted_axes([2, 1, 0])).unwrap();
        let plain = view.as_standard_layout().into_owned();
        assert_eq!(y.permuted_axes([2, 1, 0]), gru.forward(&plain).unwrap().y, "{device}");
    }
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    for device in devices() {
        let gru = gru(&device);
        let error = gru.stream(0, &[1]).unwrap_err();
        assert_eq!(error, Error::ZeroSize { what: "the batch size B" });
        assert_eq!(
            gru.stream(1, &[0]).unwrap_err(),
            Error::ZeroSize { what: "the number of steps T" }
        );
        assert!(matches!(gru.stream(1, &[]).unwrap_err(), Error::ZeroSize { .. }));
        for direction in [Direction::Both, Direction::Reverse] {
            let config = config().with_direction(direction);
            let reverse = Gru::new(config, Init::Uniform, 1, &device).unwrap();
            let error = reverse.stream(1, &[1]).unwrap_err().to_string();
            assert!(
                error.starts_with("a stream and a reverse direction cannot be combined"),
                "{error}"
            );
        }

        let mut stream = gru.stream(2, &[1, 3]).unwrap();
        let mut step = |gru: &Gru, x: [usize; 3], y: [usize; 3]| {
            let (x, mut y) = (Array3::<f32>::ones(x), Array3::<f32>::zeros(y));
            gru.step(&mut stream, x.view(), y.view_mut()).unwrap_err().to_string()
        };
        for (got, expected) in [
            (
                step(&gru, [2, 2, 3], [2, 2, 5]),
                "the chunk has 2 steps, but the stream was made for chunks of [1, 3] steps; list all chunk \
                 lengths in Gru::stream",
            ),
            (
                step(&gru, [1, 3, 3], [1, 3, 5]),
                "x [T, B, I] has shape [1, 3, 3], expected [1, 2, 3]",
            ),
            (
                step(&gru, [3, 2, 3], [1, 2, 5]),
                "y [T, B, H] has shape [1, 2, 5], expected [3, 2, 5]",
            ),
            (
                step(&self::gru(&device), [1, 2, 3], [1, 2, 5]),
                "this stream was made by another model; use it with the model that made it",
            ),
        ] {
            assert_eq!(got, expected, "{device}");
        }
        assert_eq!(
            stream.reset_row(2).unwrap_err().to_string(),
            "there is no row 2; the stream has 2 rows, counted from 0"
        );
        let wrong = Array3::zeros((2, 3, 5));
        for error in [stream.set_state(wrong.view()), stream.set_reset_state(wrong.view())] {
            assert!(matches!(error, Err(Error::Shape { .. })), "{error:?}");
        }
        assert_eq!(stream.state().unwrap(), Array3::<f32>::zeros((2, 2, 5)));
        let mut y = Array3::zeros((1, 2, 5));
        gru.step(&mut stream, Array3::ones((1, 2, 3)).view(), y.view_mut()).unwrap();
    }
}
