//! Compares the memory that a plan states with the memory that wgpu counts.

use crate::common::assert_close;
use gru_wgpu::check::Tolerance;
use gru_wgpu::plan::Mode;
use gru_wgpu::{Batch, Device, Direction, Gru, GruConfig, Init, RunOptions, wgpu};
use ndarray::{Array3, ArrayView1, s};

/// Opens the adapter of the tests separately, because its counters can be read only by their owner.
fn open() -> (Device, wgpu::Device) {
    let (adapter, device, queue) = crate::common::open_wgpu(wgpu::Adapter::limits);
    (Device::from_wgpu(&adapter, &device, &queue).unwrap(), device)
}

/// Returns the number of buffers and their bytes.
fn held(device: &wgpu::Device) -> [u64; 2] {
    // Frees what was dropped.
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let counters = device.get_internal_counters().hal;
    [counters.buffers.read(), counters.buffer_memory.read()].map(|count| count as u64)
}

/// x and dx of 17 MB on a device that binds at most 16 MiB.
#[test]
fn a_run_larger_than_a_binding_is_split_into_chunks() {
    let (adapter, device, queue) = crate::common::open_wgpu(|_| wgpu::Limits {
        max_storage_buffer_binding_size: 16 << 20,
        ..Default::default()
    });
    let device = Device::from_wgpu(&adapter, &device, &queue).unwrap();
    let config = GruConfig::pytorch(1700, 1);
    let shape = config.shape(20, 125).unwrap();
    let row = crate::common::random3([1, 1, 1700], 1);
    let x = row.broadcast(shape.x()).unwrap();
    let h0 = crate::common::random3(shape.state(), 2);
    let batch = Batch::new(x).with_h0(h0.view());
    let [got, expected] = [&device, &Device::cpu()].map(|device| {
        let gru = Gru::new(config.clone(), Init::Uniform, 1, device).unwrap();
        let chunks = gru.chunks(shape, Mode::Training).unwrap();
        let half = config.shape(10, 125).unwrap();
        assert_eq!(chunks, if device.is_adapter() { vec![half; 2] } else { vec![shape] });
        let (output, tape) = gru.forward_train(batch).unwrap();
        let grads = gru.backward(tape, Some(output.y.view()), None).unwrap();
        (output, grads)
    });
    let close = |what, got: ArrayView1<'_, f32>, expected: ArrayView1<'_, f32>, atol| {
        assert_close(what, got, expected, Tolerance { atol, rtol: 1e-4 });
    };
    let ((output, grads), (output_on_cpu, grads_on_cpu)) = (got, expected);
    close("y", output.y.flatten().view(), output_on_cpu.y.flatten().view(), 1e-5);
    close("dh0", grads.h0.flatten().view(), grads_on_cpu.h0.flatten().view(), 1e-5);
    // Sums of 2,500 terms.
    close("dparams", grads.params.as_slice().into(), grads_on_cpu.params.as_slice().into(), 1e-3);
    // Compares some of the 4 million numbers of each step.
    for at in (0..20 * 125).step_by(33) {
        let row = s![at / 125, at % 125, ..];
        close("dx", grads.x.slice(row), grads_on_cpu.x.slice(row), 1e-5);
    }
}

#[test]
fn a_plan_predicts_the_memory_of_a_run() {
    let (device, counted) = open();
    // wgpu's own buffers have been freed, and the kernels exist.
    let first = Gru::new(GruConfig::new(1, 1), Init::Uniform, 1, &device).unwrap();
    // A small and a large download: the device keeps their staging buffers.
    for steps in [1, 20_000] {
        first.forward(&Array3::ones((steps, 1, 1))).unwrap();
    }
    drop(first);
    let deep = GruConfig::pytorch(3, 17).with_layers(2).with_direction(Direction::Both);
    for (config, [steps, batch]) in [
        (GruConfig::new(1, 1), [1, 1]),
        (GruConfig::pytorch(5, 33), [64, 7]),
        (GruConfig::pytorch(8, 64), [300, 3]),
        (deep, [9, 5]),
    ] {
        let modes = [(Mode::Inference, false), (Mode::Training, false), (Mode::Training, true)];
        for (mode, recompute) in modes {
            let before = held(&counted);
            let gru = Gru::new(config.clone(), Init::Uniform, 1, &device).unwrap();
            let gru = gru.with_options(RunOptions::default().with_recompute(recompute));
            let x = Array3::ones((steps, batch, config.input_size));
            let shape = config.shape(steps, batch).unwrap();
            let dy = Array3::ones(shape.y());
            match mode {
                Mode::Inference => drop(gru.forward(&x).unwrap()),
                Mode::Training => {
                    let (_, tape) = gru.forward_train(&x).unwrap();
                    gru.backward(tape, Some(dy.view()), None).unwrap();
                }
            }
            let after = held(&counted);
            let [buffers, bytes] = [0, 1].map(|i| after[i] - before[i]);
            let plan = gru.plan(shape, mode).unwrap();
            let what = format!(
                "{config}, {shape}, {mode:?}, {recompute}: {buffers} buffers, {bytes} bytes"
            );
            // The arguments are one more buffer. A buffer takes whole blocks of memory.
            assert_eq!(buffers, plan.buffers().len() as u64 + 1, "{what}");
            let blocks = 256 * buffers;
            assert!(
                (plan.bytes()..=plan.bytes() + blocks).contains(&bytes),
                "{what}, the plan says {}",
                plan.bytes()
            );
            drop(gru);
            assert_eq!(held(&counted), before, "{what}: not all of it was freed");
        }
    }
}

/// Runs in its own process, whose memory is limited once everything is open. (The limit does not
/// cover a GPU's memory.)
#[cfg(target_os = "linux")]
#[test]
fn a_smaller_run_succeeds_after_out_of_memory() {
    use std::process::Command;
    /// The process may grow by this much, less than half of what the large run needs.
    const ROOM: u64 = 1 << 30;
    let adapter = crate::common::adapter().adapter().unwrap();
    // lavapipe 25.0 seems not to report an allocation that fails: wgpu's write to a staging buffer
    // crashes, at an address near null.
    if !adapter.is_software() || adapter.driver.contains("Mesa 25.0") {
        return;
    }
    let name = "a_smaller_run_succeeds_after_out_of_memory";
    if !crate::common::in_own_process(module_path!(), name, &[]) {
        return;
    }
    let gru = Gru::new(
        GruConfig::pytorch(1, 64).with_layers(4),
        Init::Uniform,
        1,
        crate::common::adapter(),
    );
    let gru = gru.unwrap();
    let small = Array3::ones((3, 2, 1));
    let run = || gru.forward_train(&small).unwrap().0;
    let expected = run();
    // Buffers of 128 MB at most, 26 of them.
    let large = Array3::ones((1000, 500, 1));
    let shape = gru.config().shape(1000, 500).unwrap();
    assert!(gru.plan(shape, Mode::Training).unwrap().bytes() > 2 * ROOM);
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let limit = format!("--as={}", 4096 * pages + ROOM);
    let pid = std::process::id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap();
    assert!(limited.success());
    for _ in 0..3 {
        let error = gru.forward_train(&large).unwrap_err();
        assert!(matches!(error, gru_wgpu::Error::OutOfMemory { .. }), "{error:?}");
        assert_eq!(run(), expected);
    }
}
