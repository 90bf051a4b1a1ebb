//! Times the parts of a run with criterion: the products, one step, a sequence, training. Runs on
//! the CPU and on an adapter: the one that GRU_DEVICE names, otherwise a hardware GPU, otherwise a
//! software adapter. `gru bench` compares devices and shapes. This benchmark compares two versions
//! of the code:
//!
//! ```sh
//! cargo bench -- --save-baseline before
//! cargo bench -- --baseline before
//! ```

use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use gru_wgpu::{Device, DeviceKind, Gru, GruConfig, Init};
use ndarray::Array3;

/// `[T, B, I, H]`, small enough for a software adapter.
const SMALL: [usize; 4] = [16, 8, 64, 64];
const LARGE: [usize; 4] = [64, 32, 128, 256];

/// Returns each device with its name in the results.
fn devices() -> Vec<(&'static str, Device)> {
    let word = std::env::var("GRU_DEVICE").ok().filter(|word| !word.is_empty());
    let adapter = match word {
        Some(word) => word.parse::<DeviceKind>().and_then(DeviceKind::open),
        None => Device::gpu().or_else(|_| Device::software()),
    };
    let adapter = adapter.ok().filter(Device::is_adapter).map(|device| {
        let software = device.adapter().is_some_and(|adapter| adapter.is_software());
        (if software { "software adapter" } else { "gpu" }, device)
    });
    std::iter::once(("cpu", Device::cpu())).chain(adapter).collect()
}

/// A model and its inputs, run repeatedly.
struct BenchCase {
    gru: Gru,
    x: Array3<f32>,
    dy: Array3<f32>,
    name: String,
    /// Multiplications and additions of the forward pass.
    flop: u64,
}

impl BenchCase {
    fn new(device: &(&str, Device), [steps, batch, input, hidden]: [usize; 4]) -> Self {
        let config = GruConfig::pytorch(input, hidden);
        let wave = |(t, b, i): (usize, usize, usize)| ((t + 2 * b + 3 * i) as f32).sin();
        Self {
            gru: Gru::new(config, Init::Uniform, 1, &device.1).expect("a model"),
            x: Array3::from_shape_fn((steps, batch, input), wave),
            dy: Array3::from_shape_fn((steps, batch, hidden), wave),
            name: format!("{}/T{steps} B{batch} I{input} H{hidden}", device.0),
            flop: (6 * steps * batch * hidden * (input + hidden)) as u64,
        }
    }

    fn time(&self, train: bool) -> Duration {
        let dy = train.then(|| self.dy.view());
        self.gru.time(&self.x, dy).expect("a run").compute()
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    group
}

/// Times the input product by the device's own clock, in training with its three gradients. The
/// shape is one step of many rows, in which the input product is 97 % of the work.
fn products(criterion: &mut Criterion) {
    for (name, train) in [("products/forward", false), ("products/training", true)] {
        let mut group = group(criterion, name);
        for device in devices() {
            let case = BenchCase::new(&device, [1, 256, 512, 16]);
            group.throughput(Throughput::Elements(case.flop * if train { 3 } else { 1 }));
            case.time(train);
            group.bench_function(&case.name, |bencher| {
                bencher.iter_custom(|count| (0..count).map(|_| case.time(train)).sum());
            });
        }
    }
}

/// Times one step of a stream, from arrays to arrays.
fn step(criterion: &mut Criterion) {
    let mut group = group(criterion, "step");
    for device in devices() {
        for shape in [[1, 1, 64, 128], [1, 32, 128, 256]] {
            let case = BenchCase::new(&device, shape);
            let mut stream = case.gru.stream(shape[1], &[1]).expect("a stream");
            let mut y = case.dy.clone();
            group.throughput(Throughput::Elements(case.flop));
            group.bench_function(&case.name, |bencher| {
                bencher.iter(|| case.gru.step(&mut stream, case.x.view(), y.view_mut()));
            });
        }
    }
}

/// Times a forward pass, from arrays to arrays.
fn sequence(criterion: &mut Criterion) {
    let mut group = group(criterion, "sequence");
    for device in devices() {
        for shape in [SMALL, LARGE] {
            let case = BenchCase::new(&device, shape);
            group.throughput(Throughput::Elements(case.flop));
            group.bench_function(&case.name, |bencher| bencher.iter(|| case.gru.forward(&case.x)));
        }
    }
}

/// Times forward and backward, from arrays to arrays.
fn training(criterion: &mut Criterion) {
    let mut group = group(criterion, "training");
    for device in devices() {
        for shape in [SMALL, LARGE] {
            let case = BenchCase::new(&device, shape);
            group.throughput(Throughput::Elements(3 * case.flop));
            group.bench_function(&case.name, |bencher| {
                bencher.iter(|| {
                    let (_, tape) = case.gru.forward_train(&case.x)?;
                    case.gru.backward(tape, Some(case.dy.view()), None)
                });
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    products(&mut criterion);
    step(&mut criterion);
    sequence(&mut criterion);
    training(&mut criterion);
    criterion.final_summary();
}
