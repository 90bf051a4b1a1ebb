//! How exact results are: errors against the reference in f64, as ratios to PyTorch's own errors in
//! f32 on the same inputs. `tests/data/errors.py` computed PyTorch's.
//!
//! `cargo test --release --lib exactness -- --nocapture` prints all ratios.

use ndarray::{Array3, ArrayView3};
use serde_json::Value;

use super::*;
use crate::model::device::{test_device, test_device_as_gpu};
use crate::reference;
use crate::spec::config::Direction;
use crate::spec::options::Recurrence;

/// The kinds of results, in the order of [`errors`].
const KINDS: [&str; 8] =
    ["y", "h_n", "dx", "dh0", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"];

/// The largest ratio to PyTorch's error. The aim is 1; but an error that is measured over some
/// hundred numbers is off by a tenth by chance.
const CPU_LIMIT: f64 = 1.1;

/// Adapters have as short sums. On a GPU the driver's `exp` adds its own error.
const ADAPTER_LIMIT: f64 = 1.25;

/// The hashes of the arrays of a case.
const PARAMS: u32 = 0;
const X: u32 = 1;
const H0: u32 = 2;
const DY: u32 = 3;
const DH_N: u32 = 4;

/// Returns numbers in [-scale, scale) from a hash of their index: `numbers` of the script.
fn numbers(seed: u32, array: u32, count: usize, scale: f32) -> Vec<f32> {
    let first = (seed * 8 + array + 1).wrapping_mul(0x9e37_79b9);
    let number = |i: usize| {
        let mut word = first.wrapping_add(i as u32);
        for (shift, factor) in [(16, 0x21f0_aaad), (15, 0xd35a_2d97)] {
            word = (word ^ (word >> shift)).wrapping_mul(factor);
        }
        word ^= word >> 15;
        ((word >> 8) as f32 / 8_388_608.0 - 1.0) * scale
    };
    (0..count).map(number).collect()
}

struct Case {
    name: String,
    /// T, B, I, H
    sizes: [usize; 4],
    config: GruConfig,
    /// The largest magnitude of a parameter.
    scale: f32,
    seeds: u32,
    /// PyTorch's errors, by [`KINDS`].
    errors: [f64; KINDS.len()],
    /// The root mean squares of the values themselves.
    values: [f64; KINDS.len()],
}

/// The inputs of a case and the results of the reference.
struct Data {
    params: Params,
    x: Array3<f32>,
    h0: Array3<f32>,
    dy: Array3<f32>,
    dh_n: Array3<f32>,
    expected: Vec<Vec<f64>>,
}

impl Case {
    fn all() -> Vec<Self> {
        let text = include_str!("../../../tests/data/pytorch_errors.json");
        let json: Vec<Value> = serde_json::from_str(text).unwrap();
        json.iter().map(Self::parse).collect()
    }

    fn parse(json: &Value) -> Self {
        let number = |key: &str| json[key].as_u64().unwrap() as usize;
        let by_kind = |key: &str| KINDS.map(|kind| json[key][kind].as_f64().unwrap());
        let sizes = [0, 1, 2, 3].map(|i| json["sizes"][i].as_u64().unwrap() as usize);
        let direction = [Direction::Forward, Direction::Both][number("directions") - 1];
        let config = GruConfig::pytorch(sizes[2], sizes[3]).with_layers(number("layers"));
        Self {
            name: json["name"].as_str().unwrap().to_owned(),
            sizes,
            config: config.with_direction(direction),
            scale: json["scale"].as_f64().unwrap() as f32,
            seeds: number("seeds") as u32,
            errors: by_kind("errors"),
            values: by_kind("values"),
        }
    }

    fn data(&self, seed: u32) -> Data {
        let [steps, batch, input, hidden] = self.sizes;
        let cells = self.config.layers * self.config.directions();
        let mut params = Params::zeros(&self.config).unwrap();
        let entries = params.layout().entries().to_vec();
        let lens: Vec<usize> = entries.iter().map(|entry| entry.range.len()).collect();
        let mut values = numbers(seed, PARAMS, lens.iter().sum(), self.scale).into_iter();
        for entry in entries {
            params.as_mut_slice()[entry.range].fill_with(|| values.next().unwrap());
        }
        let array = |which: u32, shape: [usize; 3]| {
            let values = numbers(seed, which, shape.iter().product(), 1.0);
            Array3::from_shape_vec(shape, values).unwrap()
        };
        let (x, h0) = (array(X, [steps, batch, input]), array(H0, [cells, batch, hidden]));
        let dy = array(DY, [steps, batch, self.config.directions() * hidden]);
        let dh_n = array(DH_N, [cells, batch, hidden]);
        let expected = reference_results(&params, &x, &h0, &dy, &dh_n);
        Data { params, x, h0, dy, dh_n, expected }
    }
}

fn reference_results(
    params: &Params,
    x: &Array3<f32>,
    h0: &Array3<f32>,
    dy: &Array3<f32>,
    dh_n: &Array3<f32>,
) -> Vec<Vec<f64>> {
    let params = params.cast::<f64>();
    let [x, h0, dy, dh_n] = [x, h0, dy, dh_n].map(|array| array.mapv(f64::from));
    let batch = Batch::new(x.view()).with_h0(h0.view());
    let trace = reference::forward_train(&params, batch).unwrap();
    let (dy, dh_n) = (Some(dy.view()), Some(dh_n.view()));
    let gradients = reference::backward(&params, x.view(), &trace, dy, dh_n).unwrap();
    by_kind(trace.y().view(), trace.h_n().view(), &gradients)
}

fn by_kind<F: ndarray::NdFloat>(
    y: ArrayView3<'_, F>,
    h_n: ArrayView3<'_, F>,
    gradients: &Gradients<F>,
) -> Vec<Vec<F>> {
    let of = |array: ArrayView3<'_, F>| array.iter().copied().collect();
    let mut kinds = vec![of(y), of(h_n), of(gradients.x.view()), of(gradients.h0.view())];
    for kind in &KINDS[4..] {
        let is_kind = |name: &str| name.starts_with(&kind[1..]);
        let parameters = gradients.params.iter().filter(|(name, _)| is_kind(name));
        kinds.push(parameters.flat_map(|(_, values)| values.into_iter().copied()).collect());
    }
    kinds
}

/// Sums of squares by kind.
#[derive(Default)]
struct Squares([f64; KINDS.len()], [usize; KINDS.len()]);

impl Squares {
    fn add(&mut self, kind: usize, numbers: impl Iterator<Item = f64>) {
        for number in numbers {
            self.0[kind] += number * number;
            self.1[kind] += 1;
        }
    }

    fn root_means(&self) -> [f64; KINDS.len()] {
        std::array::from_fn(|kind| (self.0[kind] / self.1[kind] as f64).sqrt())
    }
}

/// Returns our errors over PyTorch's, by kind.
fn ratios(case: &Case, data: &[Data], device: &Device, options: RunOptions) -> [f64; KINDS.len()] {
    let mut errors = Squares::default();
    for Data { params, x, h0, dy, dh_n, expected } in data {
        let gru = Gru::with_params(params.clone(), device).unwrap().with_options(options);
        let batch = Batch::new(x.view()).with_h0(h0.view());
        let (output, tape) = gru.forward_train(batch).unwrap();
        let gradients = gru.backward(tape, Some(dy.view()), Some(dh_n.view())).unwrap();
        let got = by_kind(output.y.view(), output.h_n.view(), &gradients);
        for (kind, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.len(), expected.len(), "{}", KINDS[kind]);
            let pairs = got.iter().zip(expected);
            errors.add(kind, pairs.map(|(&got, expected)| f64::from(got) - expected));
        }
    }
    let errors = errors.root_means();
    std::array::from_fn(|kind| errors[kind] / case.errors[kind])
}

#[test]
fn errors_are_no_larger_than_those_of_pytorch() {
    let (adapter, _) = test_device();
    let (as_gpu, _) = test_device_as_gpu();
    let mut failures = Vec::new();
    println!("{:24}{:24}{}", "", "", KINDS.map(|kind| format!("{kind:>11}")).concat());
    for case in Case::all() {
        let data: Vec<Data> = (0..case.seeds).map(|seed| case.data(seed)).collect();
        let mut values = Squares::default();
        for data in &data {
            for (kind, expected) in data.expected.iter().enumerate() {
                values.add(kind, expected.iter().copied());
            }
        }
        for (kind, (ours, theirs)) in values.root_means().iter().zip(case.values).enumerate() {
            let is_same = (ours / theirs - 1.0).abs() < 1e-6;
            assert!(is_same, "{}, {}: {ours}, PyTorch has {theirs}", case.name, KINDS[kind]);
        }
        let default = RunOptions::default();
        let paths = [
            ("CPU", Device::cpu(), default),
            ("CPU, gates recomputed", Device::cpu(), default.with_recompute(true)),
            ("adapter", adapter.clone(), default),
            ("adapter, steps", adapter.clone(), default.with_recurrence(Recurrence::Step)),
            ("GPU plan", as_gpu.clone(), default),
            ("GPU plan, steps", as_gpu.clone(), default.with_recurrence(Recurrence::Step)),
        ];
        for (path, device, options) in &paths {
            let ratios = ratios(&case, &data, device, *options);
            let line = format!("{:24}{path:24}", case.name)
                + &ratios.map(|ratio| format!("{ratio:11.2}")).concat();
            println!("{line}");
            let limit = if device.is_adapter() { ADAPTER_LIMIT } else { CPU_LIMIT };
            if !ratios.iter().all(|&ratio| ratio <= limit) {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "less exact than PyTorch:\n{}", failures.join("\n"));
}
