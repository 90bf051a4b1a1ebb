//! Compares the workload's run with the f64 reference, before any time is measured.

use std::fmt;

use anyhow::{Result, ensure};
use gru_wgpu::check::TOLERANCE;
use gru_wgpu::{Batch, Gradients, Gru, Output, reference};
use ndarray::{Array3, ArrayView, Axis, Dimension, s};

use super::workload::Workload;

/// The most FLOPs for the reference, which is plain loops on one thread: a second or two.
const REFERENCE_FLOP: f64 = 2e9;

/// The tolerance of a gradient, relative to the root mean square of its array: this, plus [`SUM`]
/// times the square root of the T·B terms of a parameter's gradient, because the rounding errors of
/// a running sum grow like that.
///
/// Measured on an x86 CPU and on lavapipe, at up to 64,000 terms, 3 layers, both directions and
/// both kinds of reset, the largest differences were 1e-6 with few terms, and 0.6e-7 to 1.6e-7 ·
/// √(T·B) with many (the biases on the CPU); dx and dh0 stay below 3e-6. So a correct run uses up
/// to a third of the tolerance, which leaves room for adapters with the least exact `exp` that WGSL
/// allows. A wrong term, gate or index gives 1e-2 and more.
const GRADIENT: f64 = 4e-5;
const SUM: f64 = 4e-7;

/// The most states for the reference, at small sizes: it keeps about 100 bytes per state.
const REFERENCE_STATES: f64 = 4e6;

/// The part of a run that was compared, and its largest error.
#[derive(Clone, Debug)]
pub struct Verified {
    pub steps: usize,
    pub rows: usize,
    /// The largest difference, as a fraction of its tolerance.
    pub error: f64,
    /// The names of the compared arrays: y, h_n; in training dx, dh0 and every parameter's
    /// gradient.
    pub results: Vec<String>,
    /// The part of the run that was compared.
    coverage: Coverage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coverage {
    Whole,
    Rows,
    Steps,
}

impl Verified {
    /// The reason why only a part is compared.
    pub const WHY: &str = "more would take the reference too long";

    /// Returns true if the whole run was compared.
    pub fn is_whole(&self) -> bool {
        self.coverage == Coverage::Whole
    }

    /// Describes the compared arrays, with the number of parameters.
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
        let Self { steps, rows, error, coverage, .. } = self;
        write!(f, "{} within {:.1} % of the tolerance", self.subjects(), 100.0 * error)?;
        let why = Self::WHY;
        match coverage {
            Coverage::Whole => Ok(()),
            Coverage::Rows => write!(f, ", in {rows} rows of the run; {why}"),
            Coverage::Steps => {
                let last = ", y and h_n in the last ones too";
                write!(f, ", in the first {steps} steps of {rows} rows of the run{last}; {why}")
            }
        }
    }
}

/// The part of a run that the reference has time for. The device runs all of it: rows are
/// independent, steps do not depend on later steps, and steps and rows with a dy of 0 add nothing
/// to the gradients.
struct ReferenceSubset {
    steps: usize,
    rows: Vec<usize>,
    coverage: Coverage,
}

impl ReferenceSubset {
    /// Returns the largest subset within this work and this number of states.
    fn new(workload: &Workload, flop: f64, states: f64) -> Self {
        let (all_steps, batch) = (workload.shape.steps, workload.shape.batch);
        let cells = all_steps as f64 * batch as f64;
        let most = (flop * cells / workload.flop()).min(states / workload.states_per_cell());
        let most = most.clamp(1.0, cells) as usize;
        // The reverse direction starts at the end.
        let steps = match workload.shape.directions {
            1 => all_steps.min((most / batch.min(2)).max(1)),
            _ => all_steps,
        };
        let rows = batch.min((most / steps).max(1));
        let coverage = match (steps < all_steps, rows < batch) {
            (true, _) => Coverage::Steps,
            (false, true) => Coverage::Rows,
            (false, false) => Coverage::Whole,
        };
        // From the first to the last.
        let rows = (0..rows).map(|i| i * (batch - 1) / (rows - 1).max(1)).collect();
        Self { steps, rows, coverage }
    }

    /// Returns T·B of the subset: the terms of a parameter's gradient.
    fn cells(&self) -> f64 {
        (self.steps * self.rows.len()) as f64
    }

    /// Returns the first steps of the rows.
    fn of<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        array.slice(s![..self.steps, .., ..]).select(Axis(1), &self.rows)
    }

    /// Returns the same number of the last steps.
    fn last_of<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        let first = array.len_of(Axis(0)) - self.steps;
        array.slice(s![first.., .., ..]).select(Axis(1), &self.rows)
    }

    /// Returns the rows of an array `[L·D, B, H]`.
    fn of_states<F: Clone>(&self, array: &Array3<F>) -> Array3<F> {
        array.select(Axis(1), &self.rows)
    }
}

/// Compares the workload's run with the reference.
///
/// # Errors
/// If a number is outside its tolerance, and the device's errors.
pub fn verify(workload: &Workload, gru: &Gru, x: &Array3<f32>) -> Result<Verified> {
    verify_subset(
        workload,
        gru,
        x,
        &ReferenceSubset::new(workload, REFERENCE_FLOP, REFERENCE_STATES),
    )
}

fn verify_subset(
    workload: &Workload,
    gru: &Gru,
    x: &Array3<f32>,
    subset: &ReferenceSubset,
) -> Result<Verified> {
    let mut comparison = Comparison::default();
    let params = gru.params().cast::<f64>();
    let subset_x = subset.of(x).mapv(f64::from);
    let output = if workload.trains() {
        let dy = subset_of_dy(workload, subset)?;
        let (output, tape) = gru.forward_train(x)?;
        let gradients = gru.backward(tape, Some(dy.view()), None)?;

        let trace = reference::forward_train(&params, Batch::new(subset_x.view()))?;
        let subset_dy = subset.of(&dy).mapv(f64::from);
        let dy = Some(subset_dy.view());
        let expected = reference::backward(&params, subset_x.view(), &trace, dy, None)?;
        comparison.outputs(subset, &output, &trace)?;
        comparison.gradients(subset, &gradients, &expected)?;
        output
    } else {
        let output = gru.forward(x)?;
        let trace = reference::forward(&params, Batch::new(subset_x.view()))?;
        comparison.outputs(subset, &output, &trace)?;
        output
    };
    if subset.coverage == Coverage::Steps {
        comparison.last_steps(workload, gru, subset, x, &output)?;
    }
    let Comparison { error, results } = comparison;
    Ok(Verified {
        steps: subset.steps,
        rows: subset.rows.len(),
        error,
        results,
        coverage: subset.coverage,
    })
}

/// Returns dy in the subset, 0 elsewhere.
fn subset_of_dy(workload: &Workload, subset: &ReferenceSubset) -> Result<Array3<f32>> {
    let mut dy = workload.dy()?;
    dy.slice_mut(s![subset.steps.., .., ..]).fill(0.0);
    let mut rows = subset.rows.iter().peekable();
    for (row, mut of_row) in dy.axis_iter_mut(Axis(1)).enumerate() {
        if rows.next_if_eq(&&row).is_none() {
            of_row.fill(0.0);
        }
    }
    Ok(dy)
}

#[derive(Default)]
struct Comparison {
    error: f64,
    results: Vec<String>,
}

impl Comparison {
    fn outputs(
        &mut self,
        subset: &ReferenceSubset,
        output: &Output,
        trace: &reference::Trace<f64>,
    ) -> Result<()> {
        self.state("y", &subset.of(&output.y), &trace.y())?;
        if subset.coverage != Coverage::Steps {
            self.state("h_n", &subset.of_states(&output.h_n), &trace.h_n())?;
        }
        let finite = output.y.iter().chain(&output.h_n).all(|value| value.is_finite());
        ensure!(finite, "y or h_n has numbers that are infinite or NaN");
        Ok(())
    }

    /// Compares the last steps. They start from the device's own states before them, the last
    /// states of rows of that length.
    fn last_steps(
        &mut self,
        workload: &Workload,
        gru: &Gru,
        subset: &ReferenceSubset,
        x: &Array3<f32>,
        output: &Output,
    ) -> Result<()> {
        let lengths = vec![workload.shape.steps - subset.steps; workload.shape.batch];
        let batch = Batch::new(x.view()).with_lengths(&lengths);
        let before =
            if workload.trains() { gru.forward_train(batch)?.0 } else { gru.forward(batch)? };
        let h0 = subset.of_states(&before.h_n).mapv(f64::from);
        let subset_x = subset.last_of(x).mapv(f64::from);
        let batch = Batch::new(subset_x.view()).with_h0(h0.view());
        let trace = reference::forward(&gru.params().cast::<f64>(), batch)?;
        self.state("y", &subset.last_of(&output.y), &trace.y())?;
        self.state("h_n", &subset.of_states(&output.h_n), &trace.h_n())
    }

    fn gradients(
        &mut self,
        subset: &ReferenceSubset,
        got: &Gradients,
        expected: &Gradients<f64>,
    ) -> Result<()> {
        self.gradient(subset, "dx", &subset.of(&got.x).view(), &expected.x.view())?;
        self.gradient(subset, "dh0", &subset.of_states(&got.h0).view(), &expected.h0.view())?;
        let whole = sum(&got.x) + sum(&got.h0);
        let elsewhere = whole - sum(&subset.of(&got.x)) - sum(&subset.of_states(&got.h0));
        ensure!(elsewhere.abs() <= 1e-9 * whole, "dx or dh0 is not 0 where nothing reaches it");
        for ((name, got), (_, expected)) in got.params.iter().zip(expected.params.iter()) {
            self.gradient(subset, &format!("d{name}"), &got, &expected)?;
        }
        Ok(())
    }

    /// Compares states, which are in ±1, or sums of a few.
    fn state(&mut self, name: &str, got: &Array3<f32>, expected: &Array3<f64>) -> Result<()> {
        let error = |got, expected| TOLERANCE.fraction(got, expected);
        self.compare(name, &got.view(), &expected.view(), error)
    }

    fn gradient<D: Dimension>(
        &mut self,
        subset: &ReferenceSubset,
        name: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
    ) -> Result<()> {
        let squares: f64 = expected.iter().map(|value| value * value).sum();
        let rms = (squares / expected.len() as f64).sqrt();
        let allowed = rms * (GRADIENT + SUM * subset.cells().sqrt());
        self.compare(name, got, expected, |got, expected| match (got - expected).abs() {
            // The tolerance is 0 if all numbers are 0, as before the first step.
            0.0 => 0.0,
            difference => difference / allowed,
        })
    }

    fn compare<D: Dimension>(
        &mut self,
        name: &str,
        got: &ArrayView<'_, f32, D>,
        expected: &ArrayView<'_, f64, D>,
        error: impl Fn(f64, f64) -> f64,
    ) -> Result<()> {
        for (&got, &expected) in got.iter().zip(expected) {
            let error = error(f64::from(got), expected);
            // NaN is not within the tolerance.
            let within = error <= 1.0;
            ensure!(
                within,
                "wrong numbers: {name} has {got:e} where the reference has {expected:e}, {error:.0} × \
                 the tolerance; nothing was timed"
            );
            self.error = self.error.max(error);
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

    /// Verifies a workload of two layers, with this fraction of its work for the reference.
    fn verified(direction: Direction, mode: Mode, fraction: f64) -> Result<Verified> {
        let config = GruConfig::pytorch(3, 5).with_layers(2).with_direction(direction);
        let workload = Workload::new(config, [12, 4], mode, RunOptions::default())?;
        let gru = workload.model(&Device::cpu())?;
        let subset = ReferenceSubset::new(&workload, workload.flop() * fraction, f64::INFINITY);
        verify_subset(&workload, &gru, &workload.x()?, &subset)
    }

    #[test]
    fn every_result_is_compared_in_a_part_too() {
        for mode in [Mode::Inference, Mode::Training] {
            for (direction, fraction, coverage, size) in [
                (Direction::Forward, 1.0, Coverage::Whole, [12, 4]),
                (Direction::Forward, 0.8, Coverage::Rows, [12, 3]),
                (Direction::Forward, 0.2, Coverage::Steps, [4, 2]),
                (Direction::Both, 0.2, Coverage::Rows, [12, 1]),
            ] {
                let verified = verified(direction, mode, fraction).unwrap();
                let mut results = verified.results.clone();
                results.sort();
                results.dedup();
                let cells = if direction == Direction::Both { 4 } else { 2 };
                let expected = if mode == Mode::Training { 4 + 4 * cells } else { 2 };
                assert_eq!(results.len(), expected, "{verified}");
                assert_eq!((verified.coverage, [verified.steps, verified.rows]), (coverage, size));
                assert!(verified.error > 0.0 && verified.error < 1.0, "{verified}");
                let says = verified.to_string();
                assert_eq!(says.ends_with(Verified::WHY), coverage != Coverage::Whole, "{says}");
            }
        }
    }

    #[test]
    fn small_states_are_bounded_by_their_number() {
        let workload = Workload::new(
            GruConfig::pytorch(1, 1),
            [100_000, 1000],
            Mode::Training,
            RunOptions::default(),
        );
        let subset = ReferenceSubset::new(&workload.unwrap(), REFERENCE_FLOP, REFERENCE_STATES);
        assert!(subset.cells() <= REFERENCE_STATES && subset.coverage == Coverage::Rows);
        assert_eq!(subset.rows.last(), Some(&999));
    }

    #[test]
    fn a_gradient_is_held_to_its_own_size() {
        let subset = ReferenceSubset { steps: 1, rows: vec![0], coverage: Coverage::Whole };
        let compare = |got: [f32; 2], expected: [f64; 2]| {
            let mut comparison = Comparison::default();
            let (got, expected) = (ArrayView1::from(&got), ArrayView1::from(&expected));
            comparison.gradient(&subset, "dx", &got, &expected).map(|()| comparison.error)
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
