//! A stream's step makes no GPU resources.

use super::*;
use crate::gpu::context::Gpu;
use crate::model::device::test_device;
use crate::spec::config::GruConfig;
use crate::spec::element::ElementType::F32;
use crate::spec::params::Init;

/// Counts the live resources and memory allocations of a device.
fn count_resources(gpu: &Gpu) -> [isize; 6] {
    let counters = gpu.device().get_internal_counters().hal;
    [
        counters.buffers.read(),
        counters.bind_groups.read(),
        counters.bind_group_layouts.read(),
        counters.compute_pipelines.read(),
        counters.shader_modules.read(),
        counters.memory_allocations.read(),
    ]
}

#[test]
fn a_step_makes_no_buffer_no_bind_group_and_no_pipeline() {
    let (device, gpu) = test_device();
    let config = GruConfig::new(3, 5).with_layers(2);
    let gru = Gru::new(config, Init::Uniform, 1, &device).unwrap();
    let mut stream = gru.stream(4, &[1, 3]).unwrap();
    stream.set_reset_state(Array3::ones((2, 4, 5)).view()).unwrap();
    let mut y = Array3::zeros((3, 4, 5));
    let x = Array3::ones((3, 4, 3));
    let mut run_step = |steps: usize, row: usize| {
        stream.reset_row(row).unwrap();
        let x = x.slice(s![..steps, .., ..]);
        gru.step(&mut stream, x, y.slice_mut(s![..steps, .., ..])).unwrap();
    };
    // The first step uploads the parameters.
    run_step(1, 0);
    gpu.wait().unwrap();
    let (made, before) = (gpu.created(), count_resources(&gpu));
    assert!(before[0] > 0 && before[3] > 0, "{before:?}");
    for step in 0..100 {
        run_step(if step % 2 == 0 { 1 } else { 3 }, step % 4);
        // A step adds no live resource, and makes none that it drops again.
        assert_eq!((gpu.created(), count_resources(&gpu)), (made, before), "step {step}");
    }
}

#[test]
fn encoding_a_step_makes_no_resources() {
    let (device, gpu) = test_device();
    let gru = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &device).unwrap();
    let [x, y] = [("x", 12), ("y", 20)].map(|(name, len)| gpu.buffer(name, F32.bytes(len)));
    let buffers = Buffers::new(x.as_entire_buffer_binding(), y.as_entire_buffer_binding());
    let mut stream = gru.stream_over(4, &[1], &buffers).unwrap();
    let mut run_step = || {
        stream.reset_row(2).unwrap();
        let mut encoder = gpu.encoder("test");
        gru.encode_step(&mut stream, 1, &mut encoder).unwrap();
        gpu.submit(encoder.finish());
        gpu.wait().unwrap();
    };
    run_step();
    let (made, before) = (gpu.created(), count_resources(&gpu));
    for _ in 0..100 {
        run_step();
        assert_eq!((gpu.created(), count_resources(&gpu)), (made, before));
    }
}
