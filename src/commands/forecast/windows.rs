//! A series cut into windows, each told relative to its own last value.

use gru_wgpu::GruConfig;
use ndarray::{Array2, Array3};

/// Windows of a series: `input` values in, `horizon` values to be forecast. A window is named by its
/// origin, the index of its first target.
pub struct Windows<'a> {
    pub series: &'a [f64],
    pub input: usize,
    pub horizon: usize,
    /// What a change of 1 means to the model: the usual size of a target's distance from the last
    /// value, over the training part.
    pub scale: f64,
}

/// Features of an input step: just the value.
pub const FEATURES: usize = 1;

impl<'a> Windows<'a> {
    /// Windows scaled to the first `training` values of `series`.
    pub fn new(series: &'a [f64], training: usize, input: usize, horizon: usize) -> Self {
        let mut windows = Self { series, input, horizon, scale: 1.0 };
        let (mut squares, mut count) = (0.0, 0);
        for origin in windows.origins(0, training) {
            let last = series[origin - 1];
            squares +=
                series[origin..origin + horizon].iter().map(|v| (v - last).powi(2)).sum::<f64>();
            count += horizon;
        }
        let scale = (squares / f64::from(count.max(1) as u32)).sqrt();
        // A constant series has no scale; any does.
        windows.scale = if scale > 0.0 { scale } else { 1.0 };
        windows
    }

    /// The origins of all windows whose targets lie in `first..end`.
    pub fn origins(&self, first: usize, end: usize) -> std::ops::Range<usize> {
        first.max(self.input)..(end + 1).saturating_sub(self.horizon)
    }

    /// What the model sees: `[T, B, FEATURES]`, relative to each window's last value.
    pub fn inputs(&self, origins: &[usize]) -> Array3<f32> {
        Array3::from_shape_fn((self.input, origins.len(), FEATURES), |(t, b, _)| {
            let origin = origins[b];
            self.relative(origin, self.series[origin - self.input + t])
        })
    }

    /// What it should say: `[B, horizon]`, relative likewise.
    pub fn targets(&self, origins: &[usize]) -> Array2<f32> {
        Array2::from_shape_fn((origins.len(), self.horizon), |(b, k)| {
            self.relative(origins[b], self.series[origins[b] + k])
        })
    }

    fn relative(&self, origin: usize, value: f64) -> f32 {
        ((value - self.series[origin - 1]) / self.scale) as f32
    }

    /// The model's word for a window, back in the series' units.
    pub fn absolute(&self, origin: usize, relative: f32) -> f64 {
        self.series[origin - 1] + f64::from(relative) * self.scale
    }
}

/// The forecaster's GRU.
pub fn gru_config(hidden: usize) -> GruConfig {
    GruConfig::new(FEATURES, hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_never_reach_past_their_part() {
        let series: Vec<f64> = (0..20).map(f64::from).collect();
        let windows = Windows::new(&series, 12, 4, 3);
        assert_eq!(windows.origins(0, 12), 4..10); // targets 9, 10, 11 are the last
        assert_eq!(windows.origins(12, 20), 12..18);
        assert!(windows.origins(0, 6).is_empty() && windows.origins(0, 1).is_empty());
        let x = windows.inputs(&[4, 17]);
        assert_eq!((x.dim(), x[[3, 0, 0]], x[[3, 1, 0]]), ((4, 2, 1), 0.0, 0.0));
        let y = windows.targets(&[17]);
        assert!((windows.absolute(17, y[[0, 2]]) - 19.0).abs() < 1e-6);
    }
}
