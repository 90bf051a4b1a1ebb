//! A series cut into windows, each told relative to its own last value.

use anyhow::{Result, ensure};
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
    pub fn new(series: &'a [f64], training: usize, input: usize, horizon: usize) -> Result<Self> {
        let mut windows = Self { series, input, horizon, scale: 1.0 };
        let changes = || {
            windows.origins(0, training).flat_map(|origin| {
                let last = series[origin - 1];
                series[origin..origin + horizon].iter().map(move |value| value - last)
            })
        };
        // As shares of the largest, so that squares neither overflow nor vanish.
        let largest = changes().map(f64::abs).fold(0.0, f64::max);
        ensure!(largest.is_finite(), "the series' values are too far apart for a 64-bit number");
        if largest > 0.0 {
            let squares: f64 = changes().map(|change| (change / largest).powi(2)).sum();
            windows.scale = largest * (squares / changes().count() as f64).sqrt();
        } // A constant series has no scale; 1 does.
        Ok(windows)
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
    fn the_scale_is_the_usual_change_whatever_the_unit() {
        for unit in [1.0, 1e300, 1e-300] {
            let series: Vec<f64> = [0.0, 3.0, -1.0, 3.0, 0.0].map(|v| v * unit).to_vec();
            let scale = Windows::new(&series, 5, 1, 1).expect("finite changes").scale;
            let expected = unit * ((9.0 + 16.0 + 16.0 + 9.0) / 4.0f64).sqrt();
            assert!((scale / expected - 1.0).abs() < 1e-12, "{scale}");
        }
        assert_eq!(Windows::new(&[7.0; 5], 5, 1, 1).expect("constant").scale, 1.0);
        assert!(Windows::new(&[1.7e308, -1.7e308], 2, 1, 1).is_err());
    }

    #[test]
    fn windows_never_reach_past_their_part() {
        let series: Vec<f64> = (0..20).map(f64::from).collect();
        let windows = Windows::new(&series, 12, 4, 3).expect("a slope");
        assert_eq!(windows.origins(0, 12), 4..10); // targets 9, 10, 11 are the last
        assert_eq!(windows.origins(12, 20), 12..18);
        assert!(windows.origins(0, 6).is_empty() && windows.origins(0, 1).is_empty());
        let x = windows.inputs(&[4, 17]);
        assert_eq!((x.dim(), x[[3, 0, 0]], x[[3, 1, 0]]), ((4, 2, 1), 0.0, 0.0));
        let y = windows.targets(&[17]);
        assert!((windows.absolute(17, y[[0, 2]]) - 19.0).abs() < 1e-6);
    }
}
