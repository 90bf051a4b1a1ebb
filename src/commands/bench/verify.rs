//! The numbers before the time: the job's own run against the f64 reference.

use std::fmt;

use anyhow::{Result, ensure};
use gru_wgpu::check::TOLERANCE;
use gru_wgpu::{Batch, Gru, Output, reference};
use ndarray::{Array3, ArrayView, Axis, Dimension, s};

use super::job::Job;

/// Work that the reference, plain loops on one thread, is given: a second or two.
const REFERENCE_FLOP: f64 = 2e9;

/// Which part of a run was compared, and how close it came.
#[derive(Clone, Debug)]
pub struct Verified {
    pub steps: usize,
    pub rows: usize,
    /// The largest share of the tolerance that a difference took.
    pub share: f64,
    whole: bool,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, rows, share, whole } = self;
        write!(f, "within {:.1} % of the tolerance", 100.0 * share)?;
        if !whole {
            write!(f, " in the first {steps} steps of {rows} rows of the run")?;
        }
        Ok(())
    }
}

/// The part of a run that the reference has time for. The device runs all of it: rows know nothing of
/// one another, earlier steps nothing of later ones, and where dy is 0 gradients get nothing.
struct Part {
    steps: usize,
    rows: Vec<usize>,
}

impl Part {
    fn new(job: &Job) -> Self {
        let (steps, batch) = (job.shape.steps, job.shape.batch);
        let cells = steps as f64 * batch as f64;
        let most = (REFERENCE_FLOP / (job.flop() / cells)).clamp(1.0, cells) as usize;
        // The reverse direction starts at the end.
        let steps =
            if job.shape.directions == 1 { steps.min(most.div_ceil(batch.min(2))) } else { steps };
        let rows = batch.min((most / steps).max(1));
        // From the first to the last.
        let rows = (0..rows).map(|i| i * (batch - 1) / (rows - 1).max(1)).collect();
        Self { steps, rows }
    }

    fn of<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        array.slice(s![..self.steps, .., ..]).select(Axis(1), &self.rows)
    }
}

/// Holds the job's run against the reference.
///
/// # Errors
/// When a number is out of bounds, and what the device reports.
pub fn verify(job: &Job, gru: &Gru, x: &Array3<f32>) -> Result<Verified> {
    let part = Part::new(job);
    let whole = part.steps == job.shape.steps && part.rows.len() == job.shape.batch;
    let mut comparison = Comparison { share: 0.0 };
    let part_x = part.of(x).mapv(f64::from);
    let params = gru.params().cast::<f64>();
    if job.trains() {
        let scale = 1.0 / ((part.steps * part.rows.len()) as f32).sqrt();
        let dense = job.dy(scale)?;
        let mut dy = Array3::zeros(dense.dim());
        for &row in &part.rows {
            let place = s![..part.steps, row, ..];
            dy.slice_mut(place).assign(&dense.slice(place));
        }
        let (output, tape) = gru.forward_train(x)?;
        let gradients = gru.backward(tape, Some(dy.view()), None)?;

        let trace = reference::forward_train(&params, Batch::new(part_x.view()))?;
        let part_dy = part.of(&dy).mapv(f64::from);
        let dy = Some(part_dy.view());
        let expected = reference::backward(&params, part_x.view(), &trace, dy, None)?;
        comparison.outputs(&part, &output, &trace, whole)?;
        comparison.compare("dx", &part.of(&gradients.x).view(), &expected.x.view())?;
        let sum = |array: &Array3<f32>| array.iter().map(|v| f64::from(v.abs())).sum::<f64>();
        let elsewhere = sum(&gradients.x) - sum(&part.of(&gradients.x));
        ensure!(
            elsewhere.abs() <= 1e-9 * sum(&gradients.x),
            "dx is not 0 where nothing reaches it"
        );
        for ((name, got), (_, expected)) in gradients.params.iter().zip(expected.params.iter()) {
            comparison.compare(&format!("d{name}"), &got, &expected)?;
        }
    } else {
        let output = gru.forward(x)?;
        let trace = reference::forward(&params, Batch::new(part_x.view()))?;
        comparison.outputs(&part, &output, &trace, whole)?;
    }
    Ok(Verified { steps: part.steps, rows: part.rows.len(), share: comparison.share, whole })
}

struct Comparison {
    share: f64,
}

impl Comparison {
    fn outputs(
        &mut self,
        part: &Part,
        output: &Output,
        trace: &reference::Trace<f64>,
        whole: bool,
    ) -> Result<()> {
        self.compare("y", &part.of(&output.y).view(), &trace.y().view())?;
        if whole {
            self.compare("h_n", &output.h_n.view(), &trace.h_n().view())?;
        }
        let finite = output.y.iter().chain(&output.h_n).all(|value| value.is_finite());
        ensure!(finite, "y or h_n has numbers that are infinite or NaN");
        Ok(())
    }

    fn compare<D: Dimension>(
        &mut self,
        name: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
    ) -> Result<()> {
        // Sums of many terms are as exact as the largest of them.
        let scale = expected.iter().fold(1.0, |largest, value| f64::max(largest, value.abs()));
        for (&got, &expected) in got.iter().zip(expected) {
            let share = TOLERANCE.share(f64::from(got) / scale, expected / scale);
            ensure!(
                share <= 1.0,
                "wrong numbers: {name} has {got:e} where the reference has {expected:e}, {share:.0} × \
                 the tolerance; nothing was timed"
            );
            self.share = self.share.max(share);
        }
        Ok(())
    }
}
