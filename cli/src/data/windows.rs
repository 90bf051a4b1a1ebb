//! A series cut into windows, each told relative to its own last value.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use gru_wgpu::{DataFingerprint, Dataset, TrainingBatch};
use ndarray::{Array2, Array3, ArrayD, Axis, Ix2};
use serde::{Deserialize, Serialize};

use crate::ui::arguments::{at_least_one, fraction};
use crate::ui::output::warn;

/// A forecast so many usual changes away from the last value is not to be believed.
const FAR: f64 = 1e6;

/// How a series is cut.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSizes {
    /// Rows that a window shows the model.
    #[arg(long, value_name = "ROWS", default_value_t = 104, value_parser = at_least_one)]
    pub input: usize,
    /// Rows to forecast.
    #[arg(long, value_name = "ROWS", default_value_t = 52, value_parser = at_least_one)]
    pub horizon: usize,
    /// Rows of a season, for the baselines.
    #[arg(long, value_name = "ROWS", default_value_t = 52, value_parser = at_least_one)]
    pub season: usize,
    /// The share of the series held out at its end.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = fraction)]
    pub holdout: f64,
}

/// Where the held-out part of a series starts, and the origins of the windows on either side.
pub struct WindowSplit {
    /// The first row of the held-out part.
    pub row: usize,
    pub training: Vec<usize>,
    pub testing: Vec<usize>,
}

impl WindowSplit {
    /// Of a series of so many rows.
    pub fn new(sizes: &WindowSizes, rows: usize) -> Result<Self> {
        let WindowSizes { input, horizon, season, holdout } = *sizes;
        let row = ((1.0 - holdout) * rows as f64).round() as usize;
        let training: Vec<_> = origins(input, horizon, 0, row).collect();
        let testing: Vec<_> = origins(input, horizon, row, rows).collect();
        if training.is_empty() || testing.is_empty() {
            bail!(
                "{rows} rows are too few: the first {row} must hold a window of {input} + {horizon} \
                 rows (--input, --horizon), and the {} held out (--holdout) at least {horizon}",
                rows - row
            );
        }
        ensure!(
            season < testing[0],
            "a season of {season} rows (--season) leaves nothing before the held-out part, which \
             starts after {} rows",
            testing[0]
        );
        Ok(Self { row, training, testing })
    }
}

/// Windows of a series: `input` values of every column in, `horizon` values of the first one to be
/// forecast. A window is named by its origin, the index of its first target.
pub struct Windows<'a> {
    /// The series itself, and what else the model sees: of each as many values.
    pub columns: &'a [Vec<f64>],
    pub input: usize,
    pub horizon: usize,
    /// What a change of 1 means to the model, of each column: the usual size of a value's distance
    /// from that before the origin, up to `horizon` rows later, over the training part.
    pub scales: Vec<f64>,
}

impl<'a> Windows<'a> {
    /// Windows scaled to the first `training` values of each column.
    pub fn new(
        columns: &'a [Vec<f64>],
        training: usize,
        input: usize,
        horizon: usize,
    ) -> Result<Self> {
        let origins = origins(input, horizon, 0, training);
        let scale = |column: &Vec<f64>| scale(column, origins.clone(), horizon);
        let scales = columns.iter().map(scale).collect::<Result<_>>()?;
        Ok(Self::scaled(columns, input, horizon, scales))
    }

    /// Windows of these scales.
    pub fn scaled(columns: &'a [Vec<f64>], input: usize, horizon: usize, scales: Vec<f64>) -> Self {
        Self { columns, input, horizon, scales }
    }

    /// What the model sees: `[T, B, I]`, relative to each window's last values.
    pub fn inputs(&self, origins: &[usize]) -> Array3<f32> {
        let shape = (self.input, origins.len(), self.columns.len());
        Array3::from_shape_fn(shape, |(t, b, i)| {
            self.relative(i, origins[b], origins[b] - self.input + t)
        })
    }

    /// What it should say: `[B, horizon]`, relative likewise.
    pub fn targets(&self, origins: &[usize]) -> Array2<f32> {
        let shape = (origins.len(), self.horizon);
        Array2::from_shape_fn(shape, |(b, k)| self.relative(0, origins[b], origins[b] + k))
    }

    fn relative(&self, column: usize, origin: usize, row: usize) -> f32 {
        let values = &self.columns[column];
        ((values[row] - values[origin - 1]) / self.scales[column]) as f32
    }

    /// The model's word for a window, back in the series' units.
    fn absolute(&self, origin: usize, relative: f32) -> f64 {
        self.columns[0][origin - 1] + f64::from(relative) * self.scales[0]
    }

    /// `Ok` when forecasts from `origins` are numbers; says where they make no sense.
    pub fn check(&self, origins: &[usize], forecasts: &Array2<f64>) -> Result<()> {
        ensure!(
            forecasts.iter().all(|value| value.is_finite()),
            "the model forecasts values that are not finite: it has diverged, or the rows are far from those \
             that it was trained on; try a lower --learning-rate"
        );
        let away = |((b, _), value): ((usize, usize), &f64)| {
            // Each by itself: their difference may be too large for a number.
            let [value, last] =
                [*value, self.columns[0][origins[b] - 1]].map(|v| v / self.scales[0]);
            (value - last).abs()
        };
        let farthest = forecasts.indexed_iter().map(away).fold(0.0, f64::max);
        if farthest > FAR {
            warn(format_args!(
                "the model forecasts changes of up to {farthest:.0e} times the usual one of its \
                 training part: it has diverged, or the rows are far from those that it was trained on"
            ));
        }
        Ok(())
    }

    /// Forecasts `[windows, horizon]` in the series' units by a model's `forward`, `batch` windows
    /// at a time.
    pub fn forecast(
        &self,
        origins: &[usize],
        batch: usize,
        forward: impl Fn(&Array3<f32>) -> gru_wgpu::Result<ArrayD<f32>>,
    ) -> Result<Array2<f64>> {
        let mut forecasts = Array2::zeros((origins.len(), self.horizon));
        for (origins, mut rows) in
            origins.chunks(batch).zip(forecasts.axis_chunks_iter_mut(Axis(0), batch))
        {
            let relative = forward(&self.inputs(origins))?.into_dimensionality::<Ix2>()?;
            for ((b, k), &value) in relative.indexed_iter() {
                rows[[b, k]] = self.absolute(origins[b], value);
            }
        }
        Ok(forecasts)
    }
}

/// Some of a series' windows as examples. They are made batch by batch: as a list of examples they
/// would take the series' memory as many times as a window has rows.
pub struct WindowSet<'a> {
    pub windows: Windows<'a>,
    pub origins: &'a [usize],
}

impl Dataset for WindowSet<'_> {
    fn len(&self) -> usize {
        self.origins.len()
    }

    fn steps(&self, _: usize) -> usize {
        self.windows.input
    }

    fn batch(&self, examples: &[usize]) -> gru_wgpu::Result<TrainingBatch> {
        let origins: Vec<_> = examples.iter().map(|&index| self.origins[index]).collect();
        Ok(TrainingBatch::new(self.windows.inputs(&origins), self.windows.targets(&origins)))
    }

    fn fingerprint(&self) -> DataFingerprint {
        let Windows { columns, input, horizon, scales } = &self.windows;
        let sizes = [columns.len(), *input, *horizon].map(|size| size as u64);
        let origins = self.origins.iter().map(|&origin| origin as u64);
        let numbers = columns.iter().flatten().chain(scales).map(|number| number.to_bits());
        DataFingerprint::of_numbers(self.len(), sizes.into_iter().chain(origins).chain(numbers))
    }
}

/// The origins of all windows whose targets lie in `first..end`.
pub fn origins(input: usize, horizon: usize, first: usize, end: usize) -> Range<usize> {
    first.max(input)..(end + 1).saturating_sub(horizon)
}

/// The usual size of a change from before an origin.
fn scale(values: &[f64], origins: Range<usize>, horizon: usize) -> Result<f64> {
    let changes = || {
        origins.clone().flat_map(|origin| {
            let last = values[origin - 1];
            values[origin..origin + horizon].iter().map(move |value| value - last)
        })
    };
    // As shares of the largest, so that squares neither overflow nor vanish.
    let largest = changes().map(f64::abs).fold(0.0, f64::max);
    ensure!(largest.is_finite(), "the series' values are too far apart for a 64-bit number");
    if largest == 0.0 {
        return Ok(1.0); // A constant series has no scale; 1 does.
    }
    let squares: f64 = changes().map(|change| (change / largest).powi(2)).sum();
    Ok(largest * (squares / changes().count() as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use gru_wgpu::{
        Device, Event, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer, Order,
        ParamLayout, Params, StopReason, Trainer, TrainerConfig,
    };

    use super::*;

    fn trainer() -> Trainer {
        let layout = ParamLayout::with_head(&GruConfig::new(1, 6), Head::last(3)).expect("small");
        let params = Params::init_of(layout, Init::Uniform, 5).expect("small");
        let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.02);
        let learner = Learner::new(params, config, &Device::cpu()).expect("small");
        let config = TrainerConfig::new(8, 4).with_seed(5).with_order(Order::Shuffled);
        Trainer::new(learner, config).expect("small")
    }

    /// On a wave the loss falls far, and by the GRU's learning, not the head's alone. A run that is
    /// ended at any event goes on from a checkpoint to the same bits.
    #[test]
    fn training_lowers_the_loss_moves_both_parts_and_goes_on_from_anywhere() {
        let columns = [(0..200).map(|i| (f64::from(i) * 0.7).sin()).collect()];
        let origins: Vec<usize> = origins(12, 3, 0, 200).collect();
        let set = |origins| WindowSet {
            windows: Windows::new(&columns, 200, 12, 3).expect("a wave"),
            origins,
        };
        let (train, valid) = (set(&origins), set(&[]));
        let mut model = trainer();
        let before = model.checkpoint().expect("on the CPU").state.params;
        let (mut losses, mut events) = (Vec::new(), 0);
        let ended = model.run(&train, &valid, |model, event| {
            events += 1;
            if let Event::Epoch { loss, .. } = event {
                losses.push(*loss);
                assert_eq!(model.progress().examples, 0);
            }
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!((ended.expect("trains"), losses.len()), (StopReason::Completed, 8));
        assert!(losses[7] < 0.2 * losses[0], "{losses:?}");
        let whole = model.checkpoint().expect("on the CPU");
        let params = |of: &Params| of.as_slice().to_vec();
        let (before, after) = (params(&before), params(&whole.state.params));
        // The flat buffer has gaps between its parts.
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert_eq!(moved, whole.state.params.layout().parameter_count());

        for stop in [1, 3, 4, 5, events - 2] {
            let (mut model, mut heard) = (trainer(), 0);
            let ended = model.run(&train, &valid, |_, _| {
                heard += 1;
                Ok(if heard == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            });
            assert_eq!(ended.expect("trains"), StopReason::Requested);
            let checkpoint = model.checkpoint().expect("on the CPU");
            let mut model = Trainer::from_checkpoint(checkpoint, &Device::cpu()).expect("small");
            let go_on = model.run(&train, &valid, |_, _| Ok(ControlFlow::Continue(())));
            assert_eq!(go_on.expect("trains"), StopReason::Completed);
            assert!(model.checkpoint().expect("on the CPU") == whole, "ended at event {stop}");
        }
    }

    /// A run that goes on is refused another series, other windows of it and other scales.
    #[test]
    fn sets_of_other_windows_have_other_fingerprints() {
        let columns = [vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0]];
        let other = [vec![1.0, 2.0, 4.0, 8.0, 16.0, 33.0]];
        let of = |columns, origins, input, scale| {
            let windows = Windows::scaled(columns, input, 1, vec![scale]);
            WindowSet { windows, origins }.fingerprint()
        };
        let same = of(&columns, &[3, 4], 2, 1.0);
        assert_eq!((same, same.count), (of(&columns, &[3, 4], 2, 1.0), 2));
        for another in [
            of(&other, &[3, 4], 2, 1.0),
            of(&columns, &[3, 5], 2, 1.0),
            of(&columns, &[3, 4], 3, 1.0),
            of(&columns, &[3, 4], 2, 2.0),
        ] {
            assert_ne!(another, same);
        }
    }

    #[test]
    fn the_scale_is_the_usual_change_whatever_the_unit() {
        for unit in [1.0, 1e300, 1e-300] {
            let series = [0.0, 3.0, -1.0, 3.0, 0.0].map(|v| v * unit);
            let scale = scale(&series, 1..5, 1).expect("finite changes");
            let expected = unit * ((9.0 + 16.0 + 16.0 + 9.0) / 4.0f64).sqrt();
            assert!((scale / expected - 1.0).abs() < 1e-12, "{scale}");
        }
        assert_eq!(scale(&[7.0; 5], 1..5, 1).expect("constant"), 1.0);
        assert!(scale(&[1.7e308, -1.7e308], 1..2, 1).is_err());
    }

    #[test]
    fn windows_never_reach_past_their_part() {
        let slope = |step: f64| (0..20).map(|i| step * f64::from(i)).collect();
        let columns = [slope(1.0), slope(-7.0)];
        let windows = Windows::new(&columns, 12, 4, 3).expect("slopes");
        assert_eq!(origins(4, 3, 0, 12), 4..10); // targets 9, 10, 11 are the last
        assert_eq!(origins(4, 3, 12, 20), 12..18);
        assert!(origins(4, 3, 0, 6).is_empty() && origins(4, 3, 0, 1).is_empty());
        let x = windows.inputs(&[4, 17]);
        assert_eq!((x.dim(), x[[3, 0, 0]], x[[3, 1, 0]]), ((4, 2, 2), 0.0, 0.0));
        // Each by its own scale.
        assert_eq!(x[[0, 1, 0]], -x[[0, 1, 1]]);
        let y = windows.targets(&[17]);
        assert!((windows.absolute(17, y[[0, 2]]) - 19.0).abs() < 1e-6);
    }
}
