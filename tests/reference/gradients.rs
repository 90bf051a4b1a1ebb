//! Every gradient of the reference against central differences, in f64, for every variant.
//!
//! With a step of 1e-5 the truncation error is of order 1e-10 (the third derivatives are of order
//! 1) and the rounding error 1e-16 / 1e-5 = 1e-11. A wrong term would be of order 1e-2.

use crate::common::random3;
use gru_wgpu::{Activation, Activations, Batch, Direction, GruConfig, Init, Params, reference};
use ndarray::{Array2, Array3};

const STEP: f64 = 1e-5;
const ALLOWED: f64 = 1e-8;

struct Problem {
    params: Params<f64>,
    x: Array3<f64>,
    h0: Array3<f64>,
    dy: Array3<f64>,
    dh_n: Array3<f64>,
    reset_state: Array3<f64>,
    resets: Array2<bool>,
    lengths: Vec<usize>,
}

impl Problem {
    fn forward(&self) -> reference::Trace<f64> {
        let batch = Batch::new(self.x.view())
            .with_h0(self.h0.view())
            .with_lengths(&self.lengths)
            .with_resets(self.resets.view())
            .with_reset_state(self.reset_state.view())
            .with_seed(5);
        reference::forward_train(&self.params, batch).unwrap()
    }

    /// Returns a scalar whose gradients are those of a backward pass from dy and dh_n.
    fn loss(&self) -> f64 {
        let trace = self.forward();
        (&self.dy * &trace.y()).sum() + (&self.dh_n * &trace.h_n()).sum()
    }

    /// Returns the central difference with respect to the number that `pick` selects.
    fn central_difference(&mut self, pick: impl Fn(&mut Self) -> &mut f64) -> f64 {
        let value = *pick(self);
        *pick(self) = value + STEP;
        let above = self.loss();
        *pick(self) = value - STEP;
        let below = self.loss();
        *pick(self) = value;
        (above - below) / (2.0 * STEP)
    }
}

#[test]
fn every_gradient_agrees_with_central_differences() {
    for ([steps, batch, input, hidden, layers], direction) in [
        ([1, 1, 1, 1, 1], Direction::Forward),
        ([3, 2, 3, 5, 1], Direction::Forward),
        ([3, 1, 2, 2, 2], Direction::Both),
        ([2, 2, 1, 2, 3], Direction::Forward),
        ([3, 2, 2, 3, 2], Direction::Reverse),
    ] {
        for (seed, config) in (0..).zip(GruConfig::all_variants(input, hidden)) {
            let config = config.with_layers(layers).with_direction(direction);
            let (gate, candidate) = match steps {
                1 => (Activation::Tanh, Activation::IDENTITY),
                2 => (Activation::HARD_SIGMOID_ONNX, Activation::Relu),
                _ => (Activation::Sigmoid, Activation::Tanh),
            };
            // A clip that some of the pre-activations reach.
            let clip = (steps == 2).then_some(0.9);
            let reverse = Activations {
                gate: Activation::Softsign,
                candidate: Activation::Elu { alpha: 0.7 },
            };
            let config = config.with_clip(clip);
            let config = config
                .with_activations(gate, candidate)
                .with_reverse_activations((direction == Direction::Both).then_some(reverse))
                .with_dropout(if layers > 1 { 0.4 } else { 0.0 })
                .with_zoneout(if seed % 2 == 1 { 0.3 } else { 0.0 });
            let shape = config.shape(steps, batch).unwrap();
            let state = shape.state();
            let [x, h0, dy, dh_n, reset_state] =
                [(shape.x(), 1), (state, 2), (shape.y(), 3), (state, 4), (state, 5)]
                    .map(|(shape, i)| random3(shape, 10 * seed + i).mapv(f64::from));
            // A reset in the middle of the first row, and one at the start of the last row.
            let mut resets = Array2::from_elem((steps, batch), false);
            resets[[steps / 2, 0]] = true;
            resets[[0, batch - 1]] = true;
            let params = Params::init(&config, Init::Uniform, seed).unwrap().cast();
            // The last row of a larger batch is one step shorter.
            let mut lengths = vec![steps; batch];
            lengths[batch - 1] -= usize::from(batch > 1);
            let mut problem = Problem { params, x, h0, dy, dh_n, reset_state, resets, lengths };
            let p = &problem;
            let trace = p.forward();
            let (dy, dh_n) = (Some(p.dy.view()), Some(p.dh_n.view()));
            let grads = reference::backward(&p.params, p.x.view(), &trace, dy, dh_n).unwrap();

            let mut wrong = Vec::new();
            let mut compare = |name: &str, i: usize, got: f64, central_difference: f64| {
                if (got - central_difference).abs() > ALLOWED {
                    wrong.push(format!(
                        "  d{name}[{i}]: {got}, central difference {central_difference}"
                    ));
                }
            };
            for entry in problem.params.layout().clone().entries() {
                for i in entry.range.clone() {
                    let central_difference =
                        problem.central_difference(|p| &mut p.params.as_mut_slice()[i]);
                    let got = grads.params.as_slice()[i];
                    compare(&entry.name, i - entry.range.start, got, central_difference);
                }
            }
            for i in 0..problem.x.len() {
                let central_difference =
                    problem.central_difference(|p| &mut p.x.as_slice_mut().unwrap()[i]);
                compare("x", i, grads.x.as_slice().unwrap()[i], central_difference);
            }
            for i in 0..problem.h0.len() {
                let central_difference =
                    problem.central_difference(|p| &mut p.h0.as_slice_mut().unwrap()[i]);
                compare("h0", i, grads.h0.as_slice().unwrap()[i], central_difference);
                let central_difference =
                    problem.central_difference(|p| &mut p.reset_state.as_slice_mut().unwrap()[i]);
                compare(
                    "reset_state",
                    i,
                    grads.reset_state.as_slice().unwrap()[i],
                    central_difference,
                );
            }
            assert!(wrong.is_empty(), "{config}, {shape}:\n{}", wrong.join("\n"));
        }
    }
}

#[test]
fn an_absent_gradient_counts_as_zeros() {
    let config = GruConfig::pytorch(2, 3);
    let shape = config.shape(4, 2).unwrap();
    let params: Params<f64> = Params::init(&config, Init::Orthogonal, 1).unwrap().cast();
    let x = random3(shape.x(), 2).mapv(f64::from);
    let trace = reference::forward(&params, x.view()).unwrap();
    let (dy, dh_n) =
        (random3(shape.y(), 3).mapv(f64::from), random3(shape.state(), 4).mapv(f64::from));
    let run = |dy: &Array3<f64>, dh_n: &Array3<f64>| {
        reference::backward(&params, x.view(), &trace, Some(dy.view()), Some(dh_n.view())).unwrap()
    };
    let only = |dy: Option<&Array3<f64>>, dh_n: Option<&Array3<f64>>| {
        let (dy, dh_n) = (dy.map(|d| d.view()), dh_n.map(|d| d.view()));
        reference::backward(&params, x.view(), &trace, dy, dh_n).unwrap()
    };
    assert_eq!(only(Some(&dy), None), run(&dy, &Array3::zeros(shape.state())));
    assert_eq!(only(None, Some(&dh_n)), run(&Array3::zeros(shape.y()), &dh_n));
}
