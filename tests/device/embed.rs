//! The library inside a program that has its own wgpu device, buffers and command encoder.

use std::sync::{Arc, Mutex};

use crate::common::random3;
use gru_wgpu::wgpu::{self, BufferUsages as Usage};
use gru_wgpu::{Batch, Buffers, Device, Direction, Error, Gru, GruConfig, Init, Layout};
use ndarray::{Array2, Array3, s};

/// A program with its own device, with WebGPU's default limits. It panics at any error that it does
/// not expect.
struct Program {
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    lost: Arc<Mutex<Option<String>>>,
}

impl Program {
    fn new() -> Self {
        let (adapter, device, queue) = crate::common::open_wgpu(|_| wgpu::Limits::default());
        device.on_uncaptured_error(Arc::new(|error| panic!("uncaptured: {error}")));
        let lost = Arc::new(Mutex::new(None));
        let told = Arc::clone(&lost);
        device.set_device_lost_callback(move |_, why| *told.lock().unwrap() = Some(why));
        Self { adapter, device, queue, lost }
    }

    fn shared(&self) -> Device {
        Device::from_wgpu(&self.adapter, &self.device, &self.queue).unwrap()
    }

    fn buffer(&self, numbers: usize, usage: Usage) -> wgpu::Buffer {
        let usage = usage | Usage::COPY_SRC | Usage::COPY_DST;
        let size = 4 * numbers as u64;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.device.create_buffer(&descriptor)
    }

    fn write<T: bytemuck::Pod>(&self, buffer: &wgpu::Buffer, first: usize, numbers: &[T]) {
        self.queue.write_buffer(buffer, 4 * first as u64, bytemuck::cast_slice(numbers));
    }

    fn read(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let size = buffer.size();
        let usage = Usage::MAP_READ | Usage::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let staging = self.device.create_buffer(&descriptor);
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        bytemuck::cast_slice(&staging.slice(..).get_mapped_range().unwrap()).to_vec()
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&Default::default())
    }
}

/// Binds a part of a buffer, from this f32 on.
fn part(buffer: &wgpu::Buffer, first: usize) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: 4 * first as u64, size: None }
}

#[test]
fn a_forward_pass_is_encoded_into_the_callers_encoder() {
    let program = Program::new();
    let shared = program.shared();
    assert!(shared.is_adapter());
    let [t, b, i, h] = [4, 3, 7, 5];
    let config = GruConfig::new(i, h).with_layers(2).with_direction(Direction::Both);
    let gru = Gru::new(config.clone(), Init::Uniform, 1, &shared).unwrap();
    let time_major = config.shape(t, b).unwrap();
    let lengths = [4, 0, 3];
    for (layout, everything) in [(Layout::TimeMajor, true), (Layout::BatchFirst, false)] {
        let shape = time_major.with_layout(layout);
        let states: usize = shape.state().iter().product();
        let x = random3(shape.x(), 1);
        let [h0, fresh] = [2, 3].map(|seed| random3(shape.state(), seed));
        let mut resets = Array2::from_elem((t, b), false);
        resets[[2, 0]] = true;
        resets[[1, 2]] = true;

        // x and y in separate parts of one buffer; the others at the start of buffers that are too
        // large.
        let xy = program.buffer(64 + x.len() + 1024, Usage::STORAGE);
        let y_first = (64 + x.len()).next_multiple_of(64);
        program.write(&xy, 64, x.as_slice().unwrap());
        let of_states = [&h0, &fresh].map(|state| {
            let buffer = program.buffer(states + 3, Usage::empty());
            program.write(&buffer, 3, state.as_slice().unwrap());
            buffer
        });
        let h_n = program.buffer(states + 1, Usage::empty());
        let marks_buffer = program.buffer(t * b, Usage::STORAGE);

        let mut batch = Batch::new(x.view()).with_layout(layout);
        let mut buffers = Buffers::new(part(&xy, 64), part(&xy, y_first));
        if everything {
            batch = batch.with_h0(h0.view()).with_reset_state(fresh.view());
            batch = batch.with_lengths(&lengths).with_resets(resets.view());
            let step_flags = batch.step_flags().unwrap();
            program.write(&marks_buffer, 0, step_flags.as_slice().unwrap());
            buffers = buffers
                .with_h0(part(&of_states[0], 3))
                .with_reset_state(part(&of_states[1], 3))
                .with_h_n(part(&h_n, 1))
                .with_step_flags(marks_buffer.as_entire_buffer_binding());
        }
        let expected = gru.forward(batch).unwrap();
        let mut pass = gru.forward_pass(shape, &buffers).unwrap();
        assert_eq!(pass.shape(), shape);
        assert!(pass.flops() > 0);
        // Twice, so that leftovers of the first run would show.
        for _ in 0..2 {
            let mut encoder = program.encoder();
            gru.encode(&mut pass, &mut encoder).unwrap();
            program.queue.submit([encoder.finish()]);
            let y = &program.read(&xy)[y_first..][..expected.y.len()];
            assert_eq!(y, expected.y.as_slice().unwrap(), "{layout:?}");
            if everything {
                assert_eq!(&program.read(&h_n)[1..], expected.h_n.as_slice().unwrap());
            }
        }
        // The elements before the slice are unchanged.
        assert_eq!(program.read(&xy)[..64], [0.0; 64]);
    }
}

#[test]
fn the_next_encoding_uses_changed_parameters() {
    let program = Program::new();
    let mut gru = Gru::new(GruConfig::pytorch(3, 5), Init::Uniform, 1, &program.shared()).unwrap();
    let x = random3([4, 2, 3], 1);
    let [x_buffer, y_buffer] = [24, 40].map(|len| program.buffer(len, Usage::STORAGE));
    program.write(&x_buffer, 0, x.as_slice().unwrap());
    let buffers = Buffers::new(part(&x_buffer, 0), part(&y_buffer, 0));
    let mut pass = gru.forward_pass(gru.config().shape(4, 2).unwrap(), &buffers).unwrap();
    for bias in [0.1, 0.9] {
        gru.params_mut().get_mut("bias_ih_l0").unwrap().fill(bias);
        let mut encoder = program.encoder();
        gru.encode(&mut pass, &mut encoder).unwrap();
        program.queue.submit([encoder.finish()]);
        assert_eq!(program.read(&y_buffer), gru.forward(&x).unwrap().y.as_slice().unwrap());
    }
}

#[test]
fn stream_steps_are_encoded_into_the_callers_encoder() {
    let program = Program::new();
    let gru =
        Gru::new(GruConfig::pytorch(3, 5).with_layers(2), Init::Uniform, 1, &program.shared());
    let gru = gru.unwrap();
    let (t, b) = (6, 4);
    let x = random3([t, b, 3], 1);
    let mut resets = Array2::from_elem((t, b), false);
    resets[[3, 1]] = true;
    let expected = gru.forward(Batch::new(x.view()).with_resets(resets.view())).unwrap().y;
    let [x_buffer, y_buffer] =
        [2 * b * 3, 2 * b * 5].map(|len| program.buffer(len, Usage::STORAGE));
    let all_x = program.buffer(x.len(), Usage::empty());
    let all_y = program.buffer(expected.len(), Usage::empty());
    program.write(&all_x, 0, x.as_slice().unwrap());
    let buffers = Buffers::new(part(&x_buffer, 0), part(&y_buffer, 0));
    let mut stream = gru.stream_over(b, &[1, 2], &buffers).unwrap();
    // All in one encoder, and so in one submit: chunks of 1, 2, 1 and 2 steps.
    let mut encoder = program.encoder();
    let mut first = 0;
    for steps in [1, 2, 1, 2] {
        if first == 3 {
            stream.reset_row(1).unwrap();
        }
        let [x_at, x_len] = [first, steps].map(|n| 4 * (n * b * 3) as u64);
        let [y_at, y_len] = [first, steps].map(|n| 4 * (n * b * 5) as u64);
        encoder.copy_buffer_to_buffer(&all_x, x_at, &x_buffer, 0, x_len);
        gru.encode_step(&mut stream, steps, &mut encoder).unwrap();
        encoder.copy_buffer_to_buffer(&y_buffer, 0, &all_y, y_at, y_len);
        first += steps;
    }
    program.queue.submit([encoder.finish()]);
    assert_eq!(program.read(&all_y), expected.as_slice().unwrap());
    let last = expected.slice(s![t - 1, .., ..]);
    assert_eq!(stream.state().unwrap().slice(s![1, .., ..]), last);
}

/// Step flags that the caller writes, also on the device, reset rows inside a chunk.
#[test]
fn reset_flags_return_a_stream_to_its_reset_state() {
    let program = Program::new();
    let gru = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &program.shared()).unwrap();
    let (x, fresh) = (random3([4, 2, 3], 1), random3([1, 2, 5], 2));
    let mut resets = Array2::from_elem((4, 2), false);
    resets[[2, 1]] = true;
    let batch = Batch::new(x.view()).with_resets(resets.view()).with_reset_state(fresh.view());
    let [x_buffer, y_buffer, step_flags] =
        [24, 40, 8].map(|len| program.buffer(len, Usage::STORAGE));
    program.write(&x_buffer, 0, x.as_slice().unwrap());
    program.write(&step_flags, 0, batch.step_flags().unwrap().as_slice().unwrap());
    let buffers =
        Buffers::new(part(&x_buffer, 0), part(&y_buffer, 0)).with_step_flags(part(&step_flags, 0));
    let mut stream = gru.stream_over(2, &[4], &buffers).unwrap();
    stream.set_reset_state(fresh.view()).unwrap();
    let mut encoder = program.encoder();
    gru.encode_step(&mut stream, 4, &mut encoder).unwrap();
    program.queue.submit([encoder.finish()]);
    assert_eq!(program.read(&y_buffer), gru.forward(batch).unwrap().y.as_slice().unwrap());
}

#[test]
fn unsuitable_buffers_are_refused_with_the_reason() {
    let program = Program::new();
    let gru = Gru::new(GruConfig::pytorch(3, 5), Init::Uniform, 1, &program.shared()).unwrap();
    let shape = gru.config().shape(4, 2).unwrap();
    let good = program.buffer(200, Usage::STORAGE);
    let (y, plain) = (program.buffer(200, Usage::STORAGE), program.buffer(200, Usage::empty()));
    let unreadable = program.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 400,
        usage: Usage::STORAGE,
        mapped_at_creation: false,
    });
    let all = || Buffers::new(part(&good, 0), part(&y, 0));
    let sized = wgpu::BufferBinding { size: wgpu::BufferSize::new(156), ..part(&y, 0) };
    for (buffers, expected) in [
        (
            Buffers::new(part(&plain, 0), part(&y, 0)),
            "the buffer for x has usage COPY_SRC | COPY_DST, expected usage STORAGE",
        ),
        (
            Buffers::new(part(&good, 1), part(&y, 0)),
            "the buffer for x has the offset 4, expected a multiple of 256",
        ),
        (
            Buffers::new(part(&good, 0), part(&y, 192)),
            "the buffer for y has 32 bytes, expected at least 160",
        ),
        (
            Buffers::new(part(&good, 0), part(&y, 1 << 40)),
            "the buffer for y has 0 bytes, expected at least 160",
        ),
        (
            Buffers::new(part(&good, 0), sized),
            "the buffer for y has 156 bytes, expected at least 160",
        ),
        (
            all().with_step_flags(part(&y, 64)),
            "step flags and y in one buffer cannot be combined: a kernel reads the step flags while it writes y; use two buffers",
        ),
        (
            all().with_step_flags(part(&plain, 0)),
            "the buffer for step flags has usage COPY_SRC | COPY_DST, expected usage STORAGE",
        ),
        (
            all().with_h0(part(&unreadable, 0)),
            "the buffer for h0 has usage STORAGE, expected usage COPY_SRC",
        ),
        (
            all().with_reset_state(part(&plain, 199)),
            "the buffer for the reset state has 4 bytes, expected at least 40",
        ),
        (
            all().with_h_n(part(&unreadable, 0)),
            "the buffer for h_n has usage STORAGE, expected usage COPY_DST",
        ),
        (
            all().with_h_n(wgpu::BufferBinding { offset: 2, ..part(&plain, 0) }),
            "the buffer for h_n has the offset 2, expected a multiple of 4",
        ),
    ] {
        let error = gru.forward_pass(shape, &buffers).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    // A stream needs the same buffers except for the states.
    let error = gru.stream_over(2, &[4], &Buffers::new(part(&plain, 0), part(&y, 0))).unwrap_err();
    assert!(matches!(error, Error::Buffer { what: "x", .. }), "{error}");
    let error = gru.stream_over(2, &[4], &all().with_h0(part(&plain, 0))).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");

    // Another model's pass and stream, a model on the CPU, a stream over arrays.
    let other = Gru::new(GruConfig::pytorch(3, 5), Init::Uniform, 1, &program.shared()).unwrap();
    let mut pass = gru.forward_pass(shape, &all()).unwrap();
    let mut stream = gru.stream_over(2, &[4], &all()).unwrap();
    let mut encoder = program.encoder();
    for error in
        [other.encode(&mut pass, &mut encoder), other.encode_step(&mut stream, 4, &mut encoder)]
    {
        assert!(matches!(error, Err(Error::OtherModel { .. })), "{error:?}");
    }
    let error = gru.encode_step(&mut stream, 3, &mut encoder).unwrap_err();
    assert_eq!(error, Error::Chunk { steps: 3, known: vec![4] });
    let (x, mut to) = (Array3::ones((4, 2, 3)), Array3::zeros((4, 2, 5)));
    let error = gru.step(&mut stream, x.view(), to.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    let mut over_arrays = gru.stream(2, &[4]).unwrap();
    let error = gru.encode_step(&mut over_arrays, 4, &mut encoder).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    let on_cpu = Gru::new(GruConfig::pytorch(3, 5), Init::Uniform, 1, &Device::cpu()).unwrap();
    for error in [
        on_cpu.forward_pass(shape, &all()).map(|_| ()),
        on_cpu.stream_over(2, &[4], &all()).map(|_| ()),
        on_cpu.encode_step(&mut on_cpu.stream(2, &[4]).unwrap(), 4, &mut encoder),
    ] {
        assert!(matches!(error, Err(Error::Conflict { .. })), "{error:?}");
    }
    // Nothing of the refused calls is in the encoder.
    program.queue.submit([encoder.finish()]);
    let mut shape = shape;
    shape.hidden = 6;
    assert!(matches!(gru.forward_pass(shape, &all()).unwrap_err(), Error::Shape { .. }));
}

/// The caller's callbacks stay in place, and both sides learn of the loss.
#[test]
fn a_lost_device_of_the_caller_is_reported_as_lost() {
    let program = Program::new();
    let shared = program.shared();
    let gru = Gru::new(GruConfig::pytorch(3, 5), Init::Uniform, 1, &shared).unwrap();
    let x = random3([4, 2, 3], 1);
    let (_, tape) = gru.forward_train(&x).unwrap();
    let mut stream = gru.stream(2, &[1]).unwrap();
    program.device.destroy();
    let mut y = Array3::zeros((1, 2, 5));
    let lost = |error: Error| assert!(matches!(error, Error::DeviceLost(_)), "{error}");
    lost(gru.forward(&x).unwrap_err());
    lost(gru.backward(tape, None, Some(Array3::ones((1, 2, 5)).view())).unwrap_err());
    for _ in 0..2 {
        lost(gru.step(&mut stream, x.slice(s![..1, .., ..]), y.view_mut()).unwrap_err());
    }
    assert!(program.lost.lock().unwrap().is_some(), "the program's callback was not called");
}
