//! Measures how much of a gradient is left after many steps backward, in GRUs and in a plain RNN.
//!
//! ```sh
//! cargo run --release --example gradient_flow -- --output gradient_flow.svg
//! ```
//!
//! With "z overwrites" a step is h' = (1 − z) ⊙ h + z ⊙ n, so ∂h'/∂h = (1 − z) + z ∂n/∂h plus the
//! paths through r and z. The first term is a direct path: for any weights it passes on the
//! fraction 1 − z of a gradient. A plain RNN, h' = tanh(W_i x + b + W_h h), has only the product
//! with W_h and the derivative of tanh. It is this GRU's candidate with both gates fixed at 1, and
//! uses its weights.
//!
//! The measured number is ‖∂h_T/∂h_t‖_F / √H: the factor by which the length of a gradient with a
//! random direction at h_T has changed at h_t, as a root mean square. It is exact: the product of
//! all steps' Jacobians. The library's backward pass in f64 computes each Jacobian, one row for
//! each one-hot dh_n.

mod picture;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use gru_wgpu::{Batch, GruConfig, Init, Params, reference};
use ndarray::{Array1, Array2, Array3, ArrayView3, Axis, Ix1, Ix2, s};
use rand::{SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use picture::Curve;

/// Plots how a gradient fades over the steps of GRUs and of a plain RNN.
#[derive(Parser, Debug)]
struct CliArgs {
    /// The SVG file to write.
    #[arg(long, value_name = "FILE.svg", default_value = "gradient_flow.svg")]
    output: PathBuf,
}

const SETUP: Setup = Setup { input: 16, hidden: 64, distance: 100 };
const MODELS: [Model; 5] =
    [Model::Gru(-4.0), Model::Gru(-2.0), Model::Gru(0.0), Model::Gru(2.0), Model::Rnn];
/// Each seed has its own weights and noise.
const SEEDS: std::ops::Range<u64> = 0..8;

#[derive(Clone, Copy)]
struct Setup {
    /// I
    input: usize,
    /// H
    hidden: usize,
    /// The number of steps, counted from the end of a run, that a gradient passes backward.
    distance: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Model {
    /// A GRU of this library's default definition, with this bias in all units' update gate.
    Gru(f64),
    Rnn,
}

fn main() -> Result<()> {
    let arguments = CliArgs::parse();
    let curves: Vec<Curve> = MODELS
        .iter()
        .map(|&model| {
            let runs = SEEDS.into_par_iter().map(|seed| left_by_distance(model, SETUP, seed));
            Ok(Curve::new(model, &runs.collect::<Result<Vec<_>>>()?))
        })
        .collect::<Result<_>>()?;
    print_table(&curves);
    let svg = picture::draw(&curves, SETUP, SEEDS.count())?;
    let file = arguments.output.display();
    fs::write(&arguments.output, svg).with_context(|| format!("cannot write {file}"))?;
    println!("wrote {file}");
    Ok(())
}

fn print_table(curves: &[Curve]) {
    let distances = [1, 10, 30, 100];
    println!("‖∂h_T/∂h_t‖_F / √H, geometric mean of {} seeds, by T − t", SEEDS.count());
    println!("  {:<16}{}", "steps back", distances.map(|d| format!("{d:>10}")).concat());
    for curve in curves {
        let left = distances.map(|d| format!("{:>10.1e}", 10f64.powf(curve.points[d].mean)));
        println!("  {:<16}{}", curve.model.name(), left.concat());
    }
}

impl Model {
    fn name(self) -> String {
        match self {
            Self::Gru(bias) => format!("GRU, z bias {bias:+}").replace("+0", "0").replace('-', "−"),
            Self::Rnn => "plain tanh RNN".to_owned(),
        }
    }
}

/// Returns ‖∂h_T/∂h_t‖_F / √H for T − t from 0 to `setup.distance`.
fn left_by_distance(model: Model, setup: Setup, seed: u64) -> Result<Vec<f64>> {
    let (params, x) = weights_and_noise(setup, seed)?;
    let jacobians = match model {
        Model::Gru(bias) => {
            gru_jacobians(&with_gate_bias(params, 1, bias)?, x.view(), setup.distance)?
        }
        Model::Rnn => rnn_jacobians(&params, x.view(), setup.distance)?,
    };
    Ok(norms_of_products(&jacobians))
}

/// Returns a GRU's parameters, and x `[T, 1, I]`. The recurrent weights are orthogonal, the best
/// start for a plain RNN: then W_h alone does not change a gradient's length. (With
/// [`Init::Uniform`], as in PyTorch, the RNN ends 19 orders of magnitude lower, and the GRU with a
/// bias of −4 a fifth lower.)
fn weights_and_noise(setup: Setup, seed: u64) -> Result<(Params<f64>, Array3<f64>)> {
    // At a bias of −4 a unit averages over about 1 / z = 56 steps: after 200 steps its first state
    // no longer matters.
    let steps = 200 + setup.distance;
    let params = Params::init(&GruConfig::new(setup.input, setup.hidden), Init::Orthogonal, seed)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1); // stream 0 has made the weights
    let noise = || StandardNormal.sample(&mut rng);
    Ok((params.cast(), Array3::from_shape_simple_fn((steps, 1, setup.input), noise)))
}

/// Gate 0 is r, 1 is z, 2 is n.
fn with_gate_bias(mut params: Params<f64>, gate: usize, bias: f64) -> Result<Params<f64>> {
    let hidden = params.layout().config().hidden_size;
    let rows = gate * hidden..(gate + 1) * hidden;
    params.get_mut("bias_ih_l0")?.slice_mut(s![rows]).fill(bias);
    Ok(params)
}

/// Returns ∂h'/∂h of the last `count` steps, `[count, H, H]`.
///
/// All steps are computed together, as rows of a batch with a single step. Each step has H rows,
/// which start from its state; its row i has dh_n 1 at i and 0 elsewhere. The gradient of h0 is
/// then row i of the Jacobian.
fn gru_jacobians(
    params: &Params<f64>,
    x: ArrayView3<'_, f64>,
    count: usize,
) -> Result<Array3<f64>> {
    let trace = reference::forward(params, Batch::new(x))?;
    let h = &trace.cells[0].h; // [T, 1, H]
    let (steps, _, hidden) = h.dim();
    let rows = count * hidden;
    let time = |row| steps - count + row / hidden;
    let x = Array3::from_shape_fn((1, rows, x.dim().2), |(_, row, i)| x[[time(row), 0, i]]);
    let h = Array3::from_shape_fn((1, rows, hidden), |(_, row, j)| h[[time(row), 0, j]]);
    let one_hot = |(_, row, j)| if row % hidden == j { 1.0 } else { 0.0 };
    let dh_n = Array3::from_shape_fn((1, rows, hidden), one_hot);

    let step = reference::forward(params, Batch::new(x.view()).with_h0(h.view()))?;
    let grads = reference::backward(params, x.view(), &step, None, Some(dh_n.view()))?;
    Ok(grads.h0.into_shape_with_order((count, hidden, hidden))?)
}

/// Returns the same for the plain RNN with the candidate's weights: diag(1 − h'²) W_h.
fn rnn_jacobians(
    params: &Params<f64>,
    x: ArrayView3<'_, f64>,
    count: usize,
) -> Result<Array3<f64>> {
    let hidden = params.layout().config().hidden_size;
    let candidate = s![2 * hidden.., ..];
    let w_i = params.get("weight_ih_l0")?.into_dimensionality::<Ix2>()?.slice_move(candidate);
    let w_h = params.get("weight_hh_l0")?.into_dimensionality::<Ix2>()?.slice_move(candidate);
    let b = params.get("bias_ih_l0")?.into_dimensionality::<Ix1>()?.slice_move(s![2 * hidden..]);

    let skipped = x.dim().0 - count;
    let mut h = Array1::zeros(hidden);
    let mut jacobians = Array3::zeros((count, hidden, hidden));
    for (t, x) in x.outer_iter().enumerate() {
        h = (w_i.dot(&x.row(0)) + w_h.dot(&h) + b).mapv(f64::tanh);
        if t >= skipped {
            let derivatives = h.mapv(|h| 1.0 - h * h).insert_axis(Axis(1));
            jacobians.index_axis_mut(Axis(0), t - skipped).assign(&(&w_h * &derivatives));
        }
    }
    Ok(jacobians)
}

/// Returns ‖J_T J_{T−1} … ‖_F / √H for 0, 1, 2, … factors.
fn norms_of_products(jacobians: &Array3<f64>) -> Vec<f64> {
    let hidden = jacobians.dim().1;
    let norm = |m: &Array2<f64>| (m.iter().map(|v| v * v).sum::<f64>() / hidden as f64).sqrt();
    let mut product = Array2::eye(hidden);
    let mut norms = vec![norm(&product)];
    for step in jacobians.outer_iter().rev() {
        product = product.dot(&step);
        norms.push(norm(&product));
    }
    norms
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    const SMALL: Setup = Setup { input: 4, hidden: 12, distance: 100 };

    #[test]
    fn a_step_is_that_of_central_differences() {
        let (params, x) = weights_and_noise(SMALL, 1).unwrap();
        let params = with_gate_bias(params, 1, -1.0).unwrap();
        let last = gru_jacobians(&params, x.view(), 1).unwrap();
        let steps = x.dim().0;
        let before = reference::forward(&params, Batch::new(x.slice(s![..steps - 1, .., ..])));
        let before = before.unwrap().h_n();
        // The error of the difference is of order ε², the rounding error of order 1e-16 / ε.
        let epsilon = 1e-5;
        for j in 0..SMALL.hidden {
            let moved = |by: f64| {
                let mut h0 = before.clone();
                h0[[0, 0, j]] += by;
                let x = x.slice(s![steps - 1.., .., ..]);
                reference::forward(&params, Batch::new(x).with_h0(h0.view())).unwrap().h_n()
            };
            let column = (moved(epsilon) - moved(-epsilon)) / (2.0 * epsilon);
            for i in 0..SMALL.hidden {
                assert_abs_diff_eq!(last[[0, i, j]], column[[0, 0, i]], epsilon = 1e-9);
            }
        }
    }

    #[test]
    fn the_product_is_what_one_backward_pass_over_all_steps_gives() {
        let (params, x) = weights_and_noise(SMALL, 1).unwrap();
        let (count, hidden) = (7, SMALL.hidden);
        let norms = norms_of_products(&gru_jacobians(&params, x.view(), count).unwrap());
        let (before, last) = x.view().split_at(Axis(0), x.dim().0 - count);
        let h = reference::forward(&params, Batch::new(before)).unwrap().h_n();

        // The same row H times.
        let x = last.broadcast((hidden, count, 1, SMALL.input)).unwrap();
        let x = x.index_axis_move(Axis(2), 0).permuted_axes((1, 0, 2));
        let h0 = h.broadcast((1, hidden, hidden)).unwrap();
        let dh_n = Array2::eye(hidden).insert_axis(Axis(0));
        let trace = reference::forward(&params, Batch::new(x).with_h0(h0)).unwrap();
        let grads = reference::backward(&params, x, &trace, None, Some(dh_n.view())).unwrap();
        let norm = (grads.h0.iter().map(|v| v * v).sum::<f64>() / hidden as f64).sqrt();
        assert_abs_diff_eq!(norms[count], norm, epsilon = 1e-12);
    }

    /// σ(1000) is 1 to the last bit, and its derivative 0.
    #[test]
    fn a_plain_rnn_is_the_gru_with_both_gates_at_one() {
        let (params, x) = weights_and_noise(SMALL, 2).unwrap();
        let rnn = rnn_jacobians(&params, x.view(), 10).unwrap();
        let open = with_gate_bias(with_gate_bias(params, 0, 1e3).unwrap(), 1, 1e3).unwrap();
        let gru = gru_jacobians(&open, x.view(), 10).unwrap();
        assert_abs_diff_eq!(rnn.as_slice().unwrap(), gru.as_slice().unwrap(), epsilon = 1e-12);
    }

    #[test]
    fn a_closed_update_gate_keeps_what_a_plain_rnn_loses() {
        let left = |model| left_by_distance(model, SMALL, 3).unwrap();
        let models = MODELS.map(left);
        let at = |d: usize| models.each_ref().map(|left| left[d]);
        for left in at(0) {
            assert_abs_diff_eq!(left, 1.0, epsilon = 1e-12);
        }
        let [closed, nearly, half, open, rnn] = at(100);
        assert!(closed > nearly && nearly > half && half > open, "{:?}", at(100));
        // The direct path alone: 0.982¹⁰⁰ = 0.16.
        assert!(closed > 0.1 && closed > 1e4 * rnn, "{:?}", at(100));
    }
}
