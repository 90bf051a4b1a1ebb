//! [`Windows`]: windows of a series, with values relative to the last input value of each window.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use gru_wgpu::{DataFingerprint, Dataset, TrainingBatch};
use ndarray::{Array2, Array3, ArrayD, Axis, Ix2};
use serde::{Deserialize, Serialize};

use crate::ui::arguments::{at_least_one, fraction};
use crate::ui::output::warn;

/// Warn about forecasts further than this many usual changes from the last value.
const FAR: f64 = 1e6;

/// The sizes of the windows of a series.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSizes {
    /// Input rows of a window.
    #[arg(long, default_value_t = 104, value_parser = at_least_one)]
    pub input: usize,
    /// Rows to forecast.
    #[arg(long, default_value_t = 52, value_parser = at_least_one)]
    pub horizon: usize,
    /// Rows of a season, for the baselines.
    #[arg(long, default_value_t = 52, value_parser = at_least_one)]
    pub season: usize,
    /// Fraction of the series to hold out, at its end.
    #[arg(long, default_value_t = 0.2, value_parser = fraction)]
    pub holdout: f64,
}

/// The split of a series into training rows and held-out rows, with the origins of the windows in
/// each.
pub struct WindowSplit {
    /// The first held-out row.
    pub row: usize,
    pub training: Vec<usize>,
    pub testing: Vec<usize>,
}

impl WindowSplit {
    /// Splits a series of `rows` rows.
    pub fn new(sizes: &WindowSizes, rows: usize) -> Result<Self> {
        let WindowSizes { input, horizon, season, holdout } = *sizes;
        let row = ((1.0 - holdout) * rows as f64).round() as usize;
        let training: Vec<_> = origins(input, horizon, 0, row).collect();
        let testing: Vec<_> = origins(input, horizon, row, rows).collect();
        if training.is_empty() || testing.is_empty() {
            bail!(
                "{rows} rows are too few: the first {row} must hold a window of {input} + {horizon} \
                 rows (--input, --horizon), and the last {}, held out by --holdout, at least {horizon}",
                rows - row
            );
        }
        ensure!(
            season < testing[0],
            "a season of {season} rows (--season) is too long; expected fewer than the {} rows before the first \
             held-out forecast",
            testing[0]
        );
        Ok(Self { row, training, testing })
    }
}

/// Windows of a series: `input` rows of every column are the inputs, the next `horizon` values of
/// the first column are the targets. A window is identified by its origin, the row of its first
/// target.
pub struct Windows<'a> {
    /// The target column, then the other input columns, all of the same length.
    pub columns: &'a [Vec<f64>],
    pub input: usize,
    pub horizon: usize,
    /// Scale of each column: the root mean square, over the training rows, of the changes from the
    /// last value before an origin to the `horizon` values after it.
    pub scales: Vec<f64>,
}

impl<'a> Windows<'a> {
    /// Creates windows with scales from the first `training` values of each column.
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

    /// Creates windows with these scales.
    pub fn scaled(columns: &'a [Vec<f64>], input: usize, horizon: usize, scales: Vec<f64>) -> Self {
        Self { columns, input, horizon, scales }
    }

    /// Checks that every model input is finite. A value that is no target of a training window does
    /// not count for the scale, and may be too far from the others.
    pub fn check_inputs(&self) -> Result<()> {
        for (column, scale) in self.columns.iter().zip(&self.scales) {
            let low = column.iter().copied().fold(f64::INFINITY, f64::min);
            let high = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let range = (high / scale - low / scale) as f32;
            ensure!(
                range.is_finite(),
                "the values lie between {low:e} and {high:e}, too far apart for their usual change of {scale:.1e}; \
                 fix the value that is out of range, or pass its text to --missing"
            );
        }
        Ok(())
    }

    /// Returns the model inputs `[T, B, I]`, relative to each window's last values and scaled.
    pub fn inputs(&self, origins: &[usize]) -> Array3<f32> {
        let shape = (self.input, origins.len(), self.columns.len());
        Array3::from_shape_fn(shape, |(t, b, i)| {
            self.relative(i, origins[b], origins[b] - self.input + t)
        })
    }

    fn relative(&self, column: usize, origin: usize, row: usize) -> f32 {
        let values = &self.columns[column];
        ((values[row] - values[origin - 1]) / self.scales[column]) as f32
    }

    /// Converts a model output for a window back to the series' units.
    fn absolute(&self, origin: usize, relative: f32) -> f64 {
        self.columns[0][origin - 1] + f64::from(relative) * self.scales[0]
    }

    /// Checks that forecasts from `origins` are finite. Warns if they are implausibly far from the
    /// last values.
    pub fn check(&self, origins: &[usize], forecasts: &Array2<f64>) -> Result<()> {
        ensure!(
            forecasts.iter().all(|value| value.is_finite()),
            "the forecasts are not finite: the model has diverged, or the rows are far from its training \
             data; try a lower --learning-rate"
        );
        let away = |((b, _), value): ((usize, usize), &f64)| {
            // Scale both first, because their difference may overflow.
            let [value, last] =
                [*value, self.columns[0][origins[b] - 1]].map(|v| v / self.scales[0]);
            (value - last).abs()
        };
        let farthest = forecasts.indexed_iter().map(away).fold(0.0, f64::max);
        if farthest > FAR {
            warn(format_args!(
                "the model forecasts changes of up to {farthest:.0e} times the usual change in its \
                 training data: it has diverged, or the rows are far from that data"
            ));
        }
        Ok(())
    }

    /// Returns forecasts `[windows, horizon]` in the series' units. Calls a model's `forward` with
    /// `batch` windows at a time.
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

/// A window of one of several series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Origin {
    /// Index of the series.
    pub series: usize,
    /// The row of the first target.
    pub row: usize,
}

/// Windows of one or several series as a data set. Batches are built on demand: a list of examples
/// would take the series' memory once for each row of a window.
pub struct WindowSet<'a> {
    /// The windows of each series, all of the same sizes.
    pub windows: Vec<Windows<'a>>,
    pub origins: &'a [Origin],
}

impl WindowSet<'_> {
    /// Returns the sizes of all windows: inputs, targets, columns.
    fn sizes(&self) -> [usize; 3] {
        self.windows
            .first()
            .map_or([0; 3], |first| [first.input, first.horizon, first.columns.len()])
    }
}

impl Dataset for WindowSet<'_> {
    fn len(&self) -> usize {
        self.origins.len()
    }

    fn steps(&self, _: usize) -> usize {
        let [input, ..] = self.sizes();
        input
    }

    fn batch(&self, examples: &[usize]) -> gru_wgpu::Result<TrainingBatch> {
        let [input, horizon, columns] = self.sizes();
        let x = Array3::from_shape_fn((input, examples.len(), columns), |(t, b, i)| {
            let Origin { series, row } = self.origins[examples[b]];
            self.windows[series].relative(i, row, row - input + t)
        });
        let targets = Array2::from_shape_fn((examples.len(), horizon), |(b, k)| {
            let Origin { series, row } = self.origins[examples[b]];
            self.windows[series].relative(0, row, row + k)
        });
        Ok(TrainingBatch::new(x, targets))
    }

    fn fingerprint(&self) -> DataFingerprint {
        let sizes = self.sizes().into_iter().chain([self.windows.len()]);
        let origins = self.origins.iter().flat_map(|origin| [origin.series, origin.row]);
        let sizes = sizes.chain(origins).map(|size| size as u64);
        let numbers = self.windows.iter().flat_map(|Windows { columns, scales, .. }| {
            columns.iter().flatten().chain(scales).map(|number| number.to_bits())
        });
        DataFingerprint::of_numbers(self.len(), sizes.chain(numbers))
    }
}

/// Returns the origins of all windows whose targets are in `first..end`.
pub fn origins(input: usize, horizon: usize, first: usize, end: usize) -> Range<usize> {
    first.max(input)..(end + 1).saturating_sub(horizon)
}

/// Returns the root mean square of the changes from the last value before each origin.
fn scale(values: &[f64], origins: Range<usize>, horizon: usize) -> Result<f64> {
    let changes = || {
        origins.clone().flat_map(|origin| {
            let last = values[origin - 1];
            values[origin..origin + horizon].iter().map(move |value| value - last)
        })
    };
    // Divide by the largest change, so that squares neither overflow nor underflow.
    let largest = changes().map(f64::abs).fold(0.0, f64::max);
    ensure!(
        largest.is_finite(),
        "the differences between the series' values overflow a 64-bit float"
    );
    if largest == 0.0 {
        return Ok(1.0); // Any scale works for a constant series.
    }
    let squares: f64 = changes().map(|change| (change / largest).powi(2)).sum();
    Ok(largest * (squares / changes().count() as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use std::iter::once;
    use std::ops::ControlFlow;

    use gru_wgpu::{
        Device, Event, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer, Order,
        ParamLayout, Params, StopReason, TargetArray, Trainer, TrainerConfig,
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

    /// The first value is in the first window's input, and no target.
    #[test]
    fn inputs_that_are_not_finite_are_refused() {
        for (first, is_good) in [(0.0, true), (-1e30, true), (-1e39, false), (1e300, false)] {
            let columns = [once(first).chain((0..99).map(|i| f64::from(i % 7))).collect()];
            let windows = Windows::new(&columns, 80, 3, 2).expect("finite changes");
            assert_eq!(windows.check_inputs().is_ok(), is_good, "{first}");
            assert_eq!(windows.inputs(&[3]).iter().all(|x| x.is_finite()), is_good, "{first}");
        }
    }

    /// On a sine wave the loss falls far, and the GRU learns as well as the head. A run stopped at
    /// any event resumes from a checkpoint with the same bits.
    #[test]
    fn training_lowers_the_loss_updates_gru_and_head_and_resumes_from_any_event() {
        let columns = [(0..200).map(|i| (f64::from(i) * 0.7).sin()).collect()];
        let origins: Vec<_> = origins(12, 3, 0, 200).map(|row| Origin { series: 0, row }).collect();
        let set = |origins| WindowSet {
            windows: vec![Windows::new(&columns, 200, 12, 3).expect("a wave")],
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
        // The flat buffer has gaps between the parameters.
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

    /// A resumed run refuses another series, other windows and other scales.
    #[test]
    fn different_windows_have_different_fingerprints() {
        let columns = [vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0]];
        let other = [vec![1.0, 2.0, 4.0, 8.0, 16.0, 33.0]];
        let of = |columns, rows: &[usize], input, scale| {
            let windows = vec![Windows::scaled(columns, input, 1, vec![scale])];
            let origins: Vec<_> = rows.iter().map(|&row| Origin { series: 0, row }).collect();
            WindowSet { windows, origins: &origins }.fingerprint()
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
    fn the_scale_is_the_rms_change_in_any_unit() {
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
    fn windows_stay_within_their_rows() {
        let slope = |step: f64| (0..20).map(|i| step * f64::from(i)).collect();
        let columns = [slope(1.0), slope(-7.0)];
        let windows = Windows::new(&columns, 12, 4, 3).expect("linear series");
        assert_eq!(origins(4, 3, 0, 12), 4..10); // targets 9, 10, 11 are the last
        assert_eq!(origins(4, 3, 12, 20), 12..18);
        assert!(origins(4, 3, 0, 6).is_empty() && origins(4, 3, 0, 1).is_empty());
        let x = windows.inputs(&[4, 17]);
        assert_eq!((x.dim(), x[[3, 0, 0]], x[[3, 1, 0]]), ((4, 2, 2), 0.0, 0.0));
        // Each column has its own scale.
        assert_eq!(x[[0, 1, 0]], -x[[0, 1, 1]]);
        let y = windows.relative(0, 17, 19);
        assert!((windows.absolute(17, y) - 19.0).abs() < 1e-6);
        // A batch has windows of several series.
        let steeper = [slope(3.0), slope(1.0)];
        let windows = vec![windows, Windows::scaled(&steeper, 4, 3, vec![1.0, 2.0])];
        let origins = [(0, 4), (1, 9), (0, 17)].map(|(series, row)| Origin { series, row });
        let batch = WindowSet { windows, origins: &origins }.batch(&[2, 1, 0]).expect("known");
        assert_eq!(batch.x.index_axis(Axis(1), 2), x.index_axis(Axis(1), 0));
        assert_eq!(batch.x.index_axis(Axis(1), 0), x.index_axis(Axis(1), 1));
        assert_eq!([0, 1].map(|i| batch.x[[0, 1, i]]), [-9.0, -1.5]);
        let TargetArray::Values(targets) = batch.targets else { panic!("not values") };
        assert_eq!(targets.slice(ndarray::s![1, ..]).to_vec(), [3.0, 6.0, 9.0]);
    }
}
