//! The forecaster: a GRU over the window and a linear head on its last state.

use anyhow::Result;
use gru_wgpu::{
    Clip, Device, Head, Init, Learner, Loss, Optimizer, ParamLayout, Params, Schedule, Training,
};
use ndarray::{Array2, Axis, Ix2};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::ChaCha8Rng};

use super::windows::{Windows, gru_config};

/// Batches between two looks at the losses.
const LOOK_EVERY: usize = 16;

/// How to train.
pub struct Recipe {
    pub hidden: usize,
    pub epochs: usize,
    pub batch: usize,
    pub learning_rate: f64,
    pub clip: f32,
    pub seed: u64,
}

/// A GRU and a linear head: all of a window's targets at once from the last state.
pub struct Forecaster {
    learner: Learner,
    parameter_count: usize,
}

impl Forecaster {
    /// With fresh parameters, to be trained on so many of these windows for the mean squared error.
    pub fn new(recipe: &Recipe, windows: &Windows, count: usize, device: &Device) -> Result<Self> {
        let config = gru_config(windows.columns.len(), recipe.hidden);
        let layout = ParamLayout::with_head(&config, Head::last(windows.horizon))?;
        let parameter_count = layout.parameter_count();
        let params = Params::init_of(layout, Init::Uniform, recipe.seed)?;
        let updates = recipe.epochs as u64 * count.div_ceil(recipe.batch) as u64;
        let training = Training::new(Loss::MeanSquared, Optimizer::adam(), recipe.learning_rate)
            .with_schedule(Schedule::cosine(updates))
            .with_clip(Clip::Norm(recipe.clip));
        Ok(Self { learner: Learner::new(params, training, device)?, parameter_count })
    }

    /// How many numbers it learns.
    pub fn parameter_count(&self) -> usize {
        self.parameter_count
    }

    /// Trains on the windows at `origins`. `progress` hears of every batch: the epoch, how many windows it
    /// held and its loss. Returns each epoch's mean loss.
    pub fn train(
        &mut self,
        windows: &Windows,
        origins: &[usize],
        recipe: &Recipe,
        mut progress: impl FnMut(usize, usize, f32),
    ) -> Result<Vec<f32>> {
        let mut origins = origins.to_vec();
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed ^ ORDER_STREAM);
        let mut losses = Vec::new();
        for epoch in 0..recipe.epochs {
            origins.shuffle(&mut rng);
            let mut sum = 0.0;
            for batches in origins.chunks(recipe.batch.saturating_mul(LOOK_EVERY)) {
                for batch in batches.chunks(recipe.batch) {
                    let targets = windows.targets(batch);
                    self.learner.step(&windows.inputs(batch), targets.view())?;
                }
                let reports = self.learner.reports()?;
                for (batch, report) in batches.chunks(recipe.batch).zip(reports) {
                    sum += report.loss * batch.len() as f32;
                    progress(epoch, batch.len(), report.loss);
                }
            }
            losses.push(sum / origins.len() as f32);
        }
        Ok(losses)
    }

    /// Forecasts `[windows, horizon]` in the series' units, `batch` windows at a time.
    pub fn forecast(
        &self,
        windows: &Windows,
        origins: &[usize],
        batch: usize,
    ) -> Result<Array2<f64>> {
        let mut forecasts = Array2::zeros((origins.len(), windows.horizon));
        for (origins, mut rows) in
            origins.chunks(batch).zip(forecasts.axis_chunks_iter_mut(Axis(0), batch))
        {
            let relative = self.learner.forward(&windows.inputs(origins))?;
            let relative = relative.into_dimensionality::<Ix2>()?;
            for ((b, k), &value) in relative.indexed_iter() {
                rows[[b, k]] = windows.absolute(origins[b], value);
            }
        }
        Ok(forecasts)
    }
}

/// Told apart from the parameters' random numbers, which the seed itself gives.
const ORDER_STREAM: u64 = 0x6f72_6465;

#[cfg(test)]
mod tests {
    use super::super::windows::origins;
    use super::*;

    /// On a wave the loss falls far, and by the GRU's learning, not the head's alone.
    #[test]
    fn training_lowers_the_loss_and_moves_both_parts() {
        let columns = [(0..200).map(|i| (f64::from(i) * 0.7).sin()).collect()];
        let windows = Windows::new(&columns, 200, 12, 3).expect("a wave");
        let origins: Vec<usize> = origins(12, 3, 0, 200).collect();
        let recipe =
            Recipe { hidden: 6, epochs: 8, batch: 16, learning_rate: 0.02, clip: 1.0, seed: 5 };
        let mut model = Forecaster::new(&recipe, &windows, origins.len(), &Device::cpu())
            .expect("a small model");
        let before = model.learner.state().expect("on the CPU").params;
        let mut heard = 0;
        let progress = |_, windows, _| heard += windows;
        let losses = model.train(&windows, &origins, &recipe, progress).expect("trains");
        assert_eq!((losses.len(), heard), (8, 8 * origins.len()));
        assert!(losses[7] < 0.2 * losses[0], "{losses:?}");
        let after = model.learner.state().expect("on the CPU").params;
        let moved = after.as_slice().iter().zip(before.as_slice()).filter(|(a, b)| a != b).count();
        assert_eq!(moved, model.parameter_count());
    }
}
