//! The numbers before the time: the job's own run against the f64 reference.

use std::fmt;

use anyhow::{Result, ensure};
use gru_wgpu::check::TOLERANCE;
use gru_wgpu::{Batch, Gradients, Gru, Output, reference};
use ndarray::{Array3, ArrayView, Axis, Dimension, s};

use super::workload::Workload;

/// Work that the reference, plain loops on one thread, is given: a second or two.
const REFERENCE_FLOP: f64 = 2e9;

/// What a gradient's difference may be, of the root mean square of its array: this, and [`SUM`] times the
/// square root of the T·B terms of a parameter's gradient, as the rounding errors of a running sum grow.
///
/// Measured on an x86 CPU and on lavapipe, at up to 64,000 terms, 3 layers, both directions and both kinds
/// of reset, the largest differences were 1e-6 of it where there are few terms and 0.6e-7 to 1.6e-7 · √(T·B)
/// where there are many (the biases of the CPU); dx and dh0 stay below 3e-6. So a correct run takes up to a
/// third of this, which leaves room for adapters whose `exp` is as wide as WGSL lets it be. A wrong term,
/// gate or index makes 1e-2 and more.
const GRADIENT: f64 = 4e-5;
const SUM: f64 = 4e-7;

/// States that it is given at most, at small sizes: it keeps some 100 bytes of each.
const REFERENCE_STATES: f64 = 4e6;

/// Which part of a run was compared, and how close it came.
#[derive(Clone, Debug)]
pub struct Verified {
    pub steps: usize,
    pub rows: usize,
    /// The largest share of the tolerance that a difference took.
    pub share: f64,
    /// What was compared, by name: y, h_n; in training dx, dh0 and every parameter's gradient.
    pub results: Vec<String>,
    /// How much of the whole run that is.
    cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Whole,
    Rows,
    Steps,
}

impl Verified {
    /// Why it can be a part.
    pub const WHY: &str = "more would take the reference too long";

    /// Whether all of the run was compared.
    pub fn is_whole(&self) -> bool {
        self.cut == Cut::Whole
    }

    /// What was compared, in words: the parameters are counted.
    pub fn subjects(&self) -> String {
        let named = ["y", "h_n", "dx", "dh0"];
        let others = self.results.iter().filter(|name| !named.contains(&name.as_str())).count();
        match others {
            0 => named[..2].join(" and "),
            count => format!("{} and the gradients of {count} parameters", named.join(", ")),
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, rows, share, cut, .. } = self;
        write!(f, "{} within {:.1} % of the tolerance", self.subjects(), 100.0 * share)?;
        let why = Self::WHY;
        match cut {
            Cut::Whole => Ok(()),
            Cut::Rows => write!(f, ", in {rows} rows of the run; {why}"),
            Cut::Steps => {
                let last = ", y and h_n in the last ones too";
                write!(f, ", in the first {steps} steps of {rows} rows of the run{last}; {why}")
            }
        }
    }
}

/// The part of a run that the reference has time for. The device runs all of it: rows know nothing of
/// one another, earlier steps nothing of later ones, and where dy is 0 gradients get nothing.
struct Part {
    steps: usize,
    rows: Vec<usize>,
    cut: Cut,
}

impl Part {
    /// As much as this work and these states allow.
    fn new(job: &Workload, flop: f64, states: f64) -> Self {
        let (all_steps, batch) = (job.shape.steps, job.shape.batch);
        let cells = all_steps as f64 * batch as f64;
        let most = (flop * cells / job.flop()).min(states / job.states_of_a_cell());
        let most = most.clamp(1.0, cells) as usize;
        // The reverse direction starts at the end.
        let steps = match job.shape.directions {
            1 => all_steps.min((most / batch.min(2)).max(1)),
            _ => all_steps,
        };
        let rows = batch.min((most / steps).max(1));
        let cut = match (steps < all_steps, rows < batch) {
            (true, _) => Cut::Steps,
            (false, true) => Cut::Rows,
            (false, false) => Cut::Whole,
        };
        // From the first to the last.
        let rows = (0..rows).map(|i| i * (batch - 1) / (rows - 1).max(1)).collect();
        Self { steps, rows, cut }
    }

    /// T·B of it: the terms of a parameter's gradient.
    fn cells(&self) -> f64 {
        (self.steps * self.rows.len()) as f64
    }

    /// The first steps of the rows.
    fn of<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        array.slice(s![..self.steps, .., ..]).select(Axis(1), &self.rows)
    }

    /// As many of the last steps.
    fn last_of<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        let first = array.len_of(Axis(0)) - self.steps;
        array.slice(s![first.., .., ..]).select(Axis(1), &self.rows)
    }

    /// Of an array `[L·D, B, H]`.
    fn of_states<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        array.select(Axis(1), &self.rows)
    }
}

/// Holds the job's run against the reference.
///
/// # Errors
/// When a number is out of bounds, and what the device reports.
pub fn verify(job: &Workload, gru: &Gru, x: &Array3<f32>) -> Result<Verified> {
    verify_part(job, gru, x, &Part::new(job, REFERENCE_FLOP, REFERENCE_STATES))
}

fn verify_part(job: &Workload, gru: &Gru, x: &Array3<f32>, part: &Part) -> Result<Verified> {
    let mut comparison = Comparison::default();
    let params = gru.params().cast::<f64>();
    let part_x = part.of(x).mapv(f64::from);
    let output = if job.trains() {
        let dy = part_of_dy(job, part)?;
        let (output, tape) = gru.forward_train(x)?;
        let gradients = gru.backward(tape, Some(dy.view()), None)?;

        let trace = reference::forward_train(&params, Batch::new(part_x.view()))?;
        let part_dy = part.of(&dy).mapv(f64::from);
        let dy = Some(part_dy.view());
        let expected = reference::backward(&params, part_x.view(), &trace, dy, None)?;
        comparison.outputs(part, &output, &trace)?;
        comparison.gradients(part, &gradients, &expected)?;
        output
    } else {
        let output = gru.forward(x)?;
        let trace = reference::forward(&params, Batch::new(part_x.view()))?;
        comparison.outputs(part, &output, &trace)?;
        output
    };
    if part.cut == Cut::Steps {
        comparison.last_steps(job, gru, part, x, &output)?;
    }
    let Comparison { share, results } = comparison;
    Ok(Verified { steps: part.steps, rows: part.rows.len(), share, results, cut: part.cut })
}

/// dy in the part, 0 elsewhere.
fn part_of_dy(job: &Workload, part: &Part) -> Result<Array3<f32>> {
    let mut dy = job.dy()?;
    dy.slice_mut(s![part.steps.., .., ..]).fill(0.0);
    let mut rows = part.rows.iter().peekable();
    for (row, mut of_row) in dy.axis_iter_mut(Axis(1)).enumerate() {
        if rows.next_if_eq(&&row).is_none() {
            of_row.fill(0.0);
        }
    }
    Ok(dy)
}

#[derive(Default)]
struct Comparison {
    share: f64,
    results: Vec<String>,
}

impl Comparison {
    fn outputs(
        &mut self,
        part: &Part,
        output: &Output,
        trace: &reference::Trace<f64>,
    ) -> Result<()> {
        self.state("y", &part.of(&output.y), &trace.y())?;
        if part.cut != Cut::Steps {
            self.state("h_n", &part.of_states(&output.h_n), &trace.h_n())?;
        }
        let finite = output.y.iter().chain(&output.h_n).all(|value| value.is_finite());
        ensure!(finite, "y or h_n has numbers that are infinite or NaN");
        Ok(())
    }

    /// The last steps, from where the device itself is before them: there its rows, cut to that
    /// length, end.
    fn last_steps(
        &mut self,
        job: &Workload,
        gru: &Gru,
        part: &Part,
        x: &Array3<f32>,
        output: &Output,
    ) -> Result<()> {
        let lengths = vec![job.shape.steps - part.steps; job.shape.batch];
        let batch = Batch::new(x.view()).with_lengths(&lengths);
        let before = if job.trains() { gru.forward_train(batch)?.0 } else { gru.forward(batch)? };
        let h0 = part.of_states(&before.h_n).mapv(f64::from);
        let part_x = part.last_of(x).mapv(f64::from);
        let batch = Batch::new(part_x.view()).with_h0(h0.view());
        let trace = reference::forward(&gru.params().cast::<f64>(), batch)?;
        self.state("y", &part.last_of(&output.y), &trace.y())?;
        self.state("h_n", &part.of_states(&output.h_n), &trace.h_n())
    }

    fn gradients(&mut self, part: &Part, got: &Gradients, expected: &Gradients<f64>) -> Result<()> {
        self.gradient(part, "dx", &part.of(&got.x).view(), &expected.x.view())?;
        self.gradient(part, "dh0", &part.of_states(&got.h0).view(), &expected.h0.view())?;
        let whole = sum(&got.x) + sum(&got.h0);
        let elsewhere = whole - sum(&part.of(&got.x)) - sum(&part.of_states(&got.h0));
        ensure!(elsewhere.abs() <= 1e-9 * whole, "dx or dh0 is not 0 where nothing reaches it");
        for ((name, got), (_, expected)) in got.params.iter().zip(expected.params.iter()) {
            self.gradient(part, &format!("d{name}"), &got, &expected)?;
        }
        Ok(())
    }

    /// Of states, which are in ±1 or sums of few of them.
    fn state(&mut self, name: &str, got: &Array3<f32>, expected: &Array3<f64>) -> Result<()> {
        let share = |got, expected| TOLERANCE.fraction(got, expected);
        self.compare(name, &got.view(), &expected.view(), share)
    }

    fn gradient<D: Dimension>(
        &mut self,
        part: &Part,
        name: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
    ) -> Result<()> {
        let squares: f64 = expected.iter().map(|value| value * value).sum();
        let rms = (squares / expected.len() as f64).sqrt();
        let allowed = rms * (GRADIENT + SUM * part.cells().sqrt());
        self.compare(name, got, expected, |got, expected| match (got - expected).abs() {
            // Also where all are 0: no state comes before the first step.
            0.0 => 0.0,
            difference => difference / allowed,
        })
    }

    fn compare<D: Dimension>(
        &mut self,
        name: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
        share: impl Fn(f64, f64) -> f64,
    ) -> Result<()> {
        for (&got, &expected) in got.iter().zip(expected) {
            let share = share(f64::from(got), expected);
            // NaN is not.
            let within = share <= 1.0;
            ensure!(
                within,
                "wrong numbers: {name} has {got:e} where the reference has {expected:e}, {share:.0} × \
                 the tolerance; nothing was timed"
            );
            self.share = self.share.max(share);
        }
        if !self.results.iter().any(|known| known == name) {
            self.results.push(name.to_owned());
        }
        Ok(())
    }
}

fn sum(array: &Array3<f32>) -> f64 {
    array.iter().map(|v| f64::from(v.abs())).sum()
}

#[cfg(test)]
mod tests {
    use gru_wgpu::plan::Mode;
    use gru_wgpu::{Device, Direction, GruConfig, RunOptions};
    use ndarray::ArrayView1;

    use super::*;

    /// A job of two layers, the share of its work that the reference is given, and what comes out.
    fn verified(direction: Direction, mode: Mode, share: f64) -> Result<Verified> {
        let config = GruConfig::pytorch(3, 5).with_layers(2).with_direction(direction);
        let job = Workload::new(config, [12, 4], mode, RunOptions::default())?;
        let gru = job.model(&Device::cpu())?;
        let part = Part::new(&job, job.flop() * share, f64::INFINITY);
        verify_part(&job, &gru, &job.x()?, &part)
    }

    #[test]
    fn every_result_is_compared_in_a_part_too() {
        for mode in [Mode::Inference, Mode::Training] {
            for (direction, share, cut, size) in [
                (Direction::Forward, 1.0, Cut::Whole, [12, 4]),
                (Direction::Forward, 0.8, Cut::Rows, [12, 3]),
                (Direction::Forward, 0.2, Cut::Steps, [4, 2]),
                (Direction::Both, 0.2, Cut::Rows, [12, 1]),
            ] {
                let verified = verified(direction, mode, share).unwrap();
                let mut results = verified.results.clone();
                results.sort();
                results.dedup();
                let cells = if direction == Direction::Both { 4 } else { 2 };
                let expected = if mode == Mode::Training { 4 + 4 * cells } else { 2 };
                assert_eq!(results.len(), expected, "{verified}");
                assert_eq!((verified.cut, [verified.steps, verified.rows]), (cut, size));
                assert!(verified.share > 0.0 && verified.share < 1.0, "{verified}");
                let says = verified.to_string();
                assert_eq!(says.ends_with(Verified::WHY), cut != Cut::Whole, "{says}");
            }
        }
    }

    #[test]
    fn small_states_are_bounded_by_their_number() {
        let job = Workload::new(
            GruConfig::pytorch(1, 1),
            [100_000, 1000],
            Mode::Training,
            RunOptions::default(),
        );
        let part = Part::new(&job.unwrap(), REFERENCE_FLOP, REFERENCE_STATES);
        assert!(part.cells() <= REFERENCE_STATES && part.cut == Cut::Rows);
        assert_eq!(part.rows.last(), Some(&999));
    }

    #[test]
    fn a_gradient_is_held_to_its_own_size() {
        let part = Part { steps: 1, rows: vec![0], cut: Cut::Whole };
        let compare = |got: [f32; 2], expected: [f64; 2]| {
            let mut comparison = Comparison::default();
            let (got, expected) = (ArrayView1::from(&got), ArrayView1::from(&expected));
            comparison.gradient(&part, "dx", &got, &expected).map(|()| comparison.share)
        };
        for scale in [1e-6, 1.0, 1e3] {
            let near = compare([scale, 1.00001 * scale], [scale, scale].map(f64::from));
            assert!((0.1..0.9).contains(&near.unwrap()), "{scale}");
            for wrong in [1.0002 * scale, 0.0, -scale, f32::NAN, f32::INFINITY] {
                let error = compare([scale, wrong], [scale, scale].map(f64::from)).unwrap_err();
                assert!(error.to_string().contains("wrong numbers: dx has "), "{error}");
            }
        }
        assert_eq!(compare([0.0, -0.0], [0.0, 0.0]).unwrap(), 0.0);
        assert!(compare([0.0, 1e-30], [0.0, 0.0]).is_err());
    }
}
