//! A training loop without `Trainer`, on the adding problem (Hochreiter and Schmidhuber 1997). Each
//! of 30 steps has a number and a mark; two steps are marked. The target is the sum of their
//! numbers. Always predicting 1 has a mean squared error of 1/6.
//!
//! ```sh
//! cargo run --release --example own_loop
//! ```

use gru_wgpu::{
    Clip, Device, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer, ParamLayout,
    Params, Result,
};
use ndarray::{Array2, Array3};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

const STEPS: usize = 30;
const ROWS: usize = 64;

/// Returns x `[30, 64, 2]` and the sums `[64, 1]`.
fn batch(rng: &mut ChaCha8Rng) -> (Array3<f32>, Array2<f32>) {
    let mut x = Array3::zeros((STEPS, ROWS, 2));
    x.slice_mut(ndarray::s![.., .., 0]).mapv_inplace(|_: f32| rng.random_range(0.0..1.0));
    let mut sums = Array2::zeros((ROWS, 1));
    for row in 0..ROWS {
        for half in [0..STEPS / 2, STEPS / 2..STEPS] {
            let step = rng.random_range(half);
            x[[step, row, 1]] = 1.0;
            sums[[row, 0]] += x[[step, row, 0]];
        }
    }
    (x, sums)
}

fn main() -> Result<()> {
    let layout = ParamLayout::with_head(&GruConfig::pytorch(2, 32), Head::last(1))?;
    let params = Params::init_of(layout, Init::Orthogonal, 1)?;
    let training = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 5e-3);
    let mut learner = Learner::new(params, training.with_clip(Clip::Norm(1.0)), &Device::cpu())?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..12 {
        for _ in 0..50 {
            let (x, sums) = batch(&mut rng);
            learner.step(&x, sums.view())?; // queued; `metrics` returns the result
        }
        let metrics = learner.metrics()?; // waits; one entry for each queued update
        let mean = metrics.iter().map(|update| update.loss).sum::<f32>() / metrics.len() as f32;
        println!("after {:3} steps: mean squared error {mean:.4}", learner.updates());
    }
    let (x, sums) = batch(&mut rng);
    let predicted = learner.into_network()?.forward(&x)?; // [64, 1]
    println!("new sequence: predicted {:.3}, sum {:.3}", predicted[[0, 0]], sums[[0, 0]]);
    Ok(())
}
