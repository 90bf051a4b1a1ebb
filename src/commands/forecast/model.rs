//! The forecaster: a GRU over the window and a linear head on its last state.

use anyhow::{Context, Result, bail, ensure};
use gru_wgpu::{Adam, Device, Gru, Init, clip_global_norm};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::windows::{Windows, gru_config};

/// How to train.
pub struct Training {
    pub hidden: usize,
    pub epochs: usize,
    pub batch: usize,
    pub learning_rate: f32,
    pub clip: f32,
    pub seed: u64,
}

/// A GRU and a linear head: all of a window's targets at once from the last state.
pub struct Forecaster {
    gru: Gru,
    /// `[horizon, H]`, then `[horizon]`: weight and bias.
    head: Vec<f32>,
}

impl Forecaster {
    /// With fresh parameters: the head's uniform in ±1/√H, as PyTorch's `nn.Linear`.
    pub fn new(training: &Training, horizon: usize, device: &Device) -> Result<Self> {
        let hidden = training.hidden;
        let gru = Gru::new(gru_config(hidden), Init::Uniform, training.seed, device)?;
        let mut rng = ChaCha8Rng::seed_from_u64(training.seed ^ HEAD_STREAM);
        let bound = 1.0 / (hidden as f32).sqrt();
        let numbers = hidden.checked_add(1).and_then(|n| n.checked_mul(horizon));
        let numbers = numbers.context("the head's size overflows; lower --hidden or --horizon")?;
        let head = (0..numbers).map(|_| rng.random_range(-bound..bound)).collect();
        Ok(Self { gru, head })
    }

    /// How many numbers it learns.
    pub fn parameter_count(&self) -> usize {
        self.gru.params().layout().parameter_count() + self.head.len()
    }

    /// Trains on the windows at `origins` for the mean squared error. `progress` hears of every
    /// batch: the epoch, how many windows it held and its loss. Returns each epoch's mean loss.
    pub fn train(
        &mut self,
        windows: &Windows,
        origins: &[usize],
        training: &Training,
        mut progress: impl FnMut(usize, usize, f32),
    ) -> Result<Vec<f32>> {
        let mut origins = origins.to_vec();
        let mut rng = ChaCha8Rng::seed_from_u64(training.seed ^ ORDER_STREAM);
        let mut adams = [self.gru.params().as_slice().len(), self.head.len()]
            .map(|len| Adam::new(len, training.learning_rate));
        let batches = origins.len().div_ceil(training.batch);
        let total = training.epochs as f32 * batches as f32;
        let mut losses = Vec::new();
        for epoch in 0..training.epochs {
            origins.shuffle(&mut rng);
            let mut sum = 0.0;
            for (i, batch) in origins.chunks(training.batch).enumerate() {
                // Half a cosine from the full rate to 0.
                let done = (epoch as f32 * batches as f32 + i as f32) / total;
                let rate =
                    training.learning_rate * 0.5 * (1.0 + (std::f32::consts::PI * done).cos());
                adams.iter_mut().for_each(|adam| adam.learning_rate = rate);
                let loss = self.train_batch(windows, batch, training.clip, &mut adams)?;
                if !loss.is_finite() {
                    bail!("the loss is {loss} in epoch {}; try a lower --learning-rate", epoch + 1);
                }
                sum += loss * batch.len() as f32;
                progress(epoch, batch.len(), loss);
            }
            losses.push(sum / origins.len() as f32);
        }
        Ok(losses)
    }

    fn train_batch(
        &mut self,
        windows: &Windows,
        origins: &[usize],
        clip: f32,
        [adam_gru, adam_head]: &mut [Adam; 2],
    ) -> Result<f32> {
        let targets = windows.targets(origins);
        let (output, tape) = self.gru.forward_train(windows.inputs(origins).view())?;
        let h = output.h_n.index_axis(Axis(0), 0);
        let mut error = self.head(h);
        error -= &targets;
        let count = error.len() as f32;
        let loss = error.iter().map(|e| e * e).sum::<f32>() / count;

        let dprediction = error * (2.0 / count);
        let (weight, _) = self.head_parts(targets.ncols());
        let dh = dprediction.dot(&weight).insert_axis(Axis(0));
        let mut grads = self.gru.backward(tape, None, Some(dh.view()))?;
        let dweight = dprediction.t().dot(&h);
        let mut dhead: Vec<f32> = dweight.iter().copied().collect();
        dhead.extend(dprediction.sum_axis(Axis(0)));

        let norm = clip_global_norm(&mut [grads.params.as_mut_slice(), &mut dhead], clip);
        ensure!(norm.is_finite(), "the gradient's norm is {norm}; try a lower --learning-rate");
        adam_gru.step(self.gru.params_mut().as_mut_slice(), grads.params.as_slice())?;
        adam_head.step(&mut self.head, &dhead)?;
        Ok(loss)
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
            let output = self.gru.forward(windows.inputs(origins).view())?;
            let relative = self.head(output.h_n.index_axis(Axis(0), 0));
            for ((b, k), &value) in relative.indexed_iter() {
                rows[[b, k]] = windows.absolute(origins[b], value);
            }
        }
        Ok(forecasts)
    }

    /// The head on states `[B, H]`: `[B, horizon]`.
    fn head(&self, h: ArrayView2<'_, f32>) -> Array2<f32> {
        let horizon = self.head.len() / (h.ncols() + 1);
        let (weight, bias) = self.head_parts(horizon);
        h.dot(&weight.t()) + bias
    }

    fn head_parts(&self, horizon: usize) -> (ArrayView2<'_, f32>, ArrayView1<'_, f32>) {
        let hidden = self.gru.config().hidden_size;
        let (weight, bias) = self.head.split_at(horizon * hidden);
        let weight =
            ArrayView2::from_shape((horizon, hidden), weight).expect("made with this shape");
        (weight, ArrayView1::from(bias))
    }
}

/// Told apart from the GRU's own random numbers, which the seed itself gives.
const HEAD_STREAM: u64 = 0x6865_6164;
const ORDER_STREAM: u64 = 0x6f72_6465;

#[cfg(test)]
mod tests {
    use super::*;

    /// On a wave the loss falls far, and by the GRU's learning, not the head's alone.
    #[test]
    fn training_lowers_the_loss_and_moves_both_parts() {
        let series: Vec<f64> = (0..200).map(|i| (f64::from(i) * 0.7).sin()).collect();
        let windows = Windows::new(&series, 200, 12, 3).expect("a wave");
        let origins: Vec<usize> = windows.origins(0, 200).collect();
        let training =
            Training { hidden: 6, epochs: 8, batch: 16, learning_rate: 0.02, clip: 1.0, seed: 5 };
        let mut model = Forecaster::new(&training, 3, &Device::cpu()).expect("a small model");
        let (gru, head) = (model.gru.params().clone(), model.head.clone());
        let mut heard = 0;
        let progress = |_, windows, _| heard += windows;
        let losses = model.train(&windows, &origins, &training, progress).expect("trains");
        assert_eq!((losses.len(), heard), (8, 8 * origins.len()));
        assert!(losses[7] < 0.2 * losses[0], "{losses:?}");
        let moved =
            |now: &[f32], then: &[f32]| now.iter().zip(then).filter(|(a, b)| a != b).count();
        let numbers = gru.layout().parameter_count();
        assert_eq!(moved(model.gru.params().as_slice(), gru.as_slice()), numbers);
        assert_eq!(moved(&model.head, &head), head.len());
    }
}
