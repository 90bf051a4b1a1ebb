//! One short function a stage: which kernel, over what, how often.

use std::ops::Range;

use super::planner::Planner;
use super::products::{Columns, Operand, Start};
use super::{Machine, Mode, Plan, Stage, TrainingBuffers};
use crate::config::{Reset, Shape};
use crate::error::Result;
use crate::options::Options;
use crate::params::ParamLayout;

/// The whole schedule of a run.
pub(super) fn plan_run(
    layout: &ParamLayout,
    shape: Shape,
    mode: Mode,
    options: Options,
    machine: &Machine,
) -> Result<Plan> {
    let mut planner = Planner::new(layout, shape, mode, options, machine)?;
    // Before the stages are made: it bounds how many pieces a product is cut into.
    planner.buffers.check_indices()?;
    let forward = planner.forward();
    let backward = planner.run.training.as_ref().map(|t| planner.backward(t)).unwrap_or_default();
    planner.buffers.add_partials(&planner.products);
    planner.buffers.check_indices()?;
    let title = match mode {
        Mode::Inference => "inference",
        Mode::Training => "training",
    };
    Ok(Plan {
        title: format!("{title}, {}; {shape}", layout.config()),
        buffers: planner.buffers.into_specs(),
        forward,
        backward,
        run: Some(planner.run),
        carries: false,
        submit_flops: machine.dispatch_flops(),
    })
}

impl Planner<'_> {
    fn forward(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        for layer in 0..self.shape.layers {
            for direction in 0..self.shape.directions {
                stages.extend(self.input_product(layer, direction));
            }
            stages.extend(self.forward_steps(layer, self.whole()));
        }
        stages
    }

    fn backward(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let mut stages = Vec::new();
        for layer in (0..self.shape.layers).rev() {
            stages.extend(self.backward_steps(t, layer, self.whole()));
            for direction in 0..self.shape.directions {
                stages.extend(self.input_gradient(t, layer, direction));
                stages.extend(self.weight_ih_gradient(t, layer, direction));
                stages.extend(self.weight_hh_gradient(t, layer, direction));
                stages.extend(self.bias_gradients(t, layer, direction));
            }
        }
        stages
    }

    /// The input's part of all gates of all steps, outside the loop.
    fn input_product(&self, layer: usize, direction: usize) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let ranges = self.layout.cell(layer, direction);
        let weight = self.parameter(self.run.params, ranges.weight_ih);
        let bias = ranges.bias_ih.map(|range| self.parameter(self.run.params, range));
        let width = self.layout.config().layer_input_size(layer);
        self.products.matmul(
            &self.cell_label(layer, direction, "gates[r z n] = x · W_ihᵀ + b_ih"),
            [steps * batch, 3 * hidden, width],
            self.input(layer),
            Operand::transposed(weight, 0, width),
            bias.map_or(Start::Zero, Start::Bias),
            Operand::plain(self.gates(layer), self.gates_at(direction, 0), 4 * hidden),
        )
    }

    fn input_gradient(&self, t: &TrainingBuffers, layer: usize, direction: usize) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let width = self.layout.config().layer_input_size(layer);
        let weight = self.parameter(self.run.params, self.layout.cell(layer, direction).weight_ih);
        self.products.matmul(
            &self.cell_label(layer, direction, "dx = da · W_ih"),
            [steps * batch, width, 3 * hidden],
            Operand::plain(self.gates(layer), self.gates_at(direction, 0), 4 * hidden),
            Operand::plain(weight, 0, width),
            if direction == 0 { Start::Zero } else { Start::Present },
            Operand::plain(self.buffers.whole(t.dx[layer]), 0, width),
        )
    }

    fn weight_ih_gradient(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        direction: usize,
    ) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let width = self.layout.config().layer_input_size(layer);
        let weight = self.parameter(t.dparams, self.layout.cell(layer, direction).weight_ih);
        self.products.matmul(
            &self.cell_label(layer, direction, "dW_ih = daᵀ · x"),
            [3 * hidden, width, steps * batch],
            Operand::transposed(self.gates(layer), self.gates_at(direction, 0), 4 * hidden),
            self.input(layer),
            Start::Zero,
            Operand::plain(weight, 0, width),
        )
    }

    /// The r and z rows from h; the n rows from h with the gradient of `W_hn h` (reset after), or
    /// from `r ⊙ h` with that of n's pre-activation (reset before).
    fn weight_hh_gradient(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        direction: usize,
    ) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let rows = steps * batch;
        let gates = self.gates(layer);
        let column =
            |gate| Operand::transposed(gates, self.gates_at(direction, gate * hidden), 4 * hidden);
        let h = self.states(layer, direction);
        let (label, dn, past) = match self.layout.config().reset {
            Reset::After => ("dW_hn = dpastᵀ · h", column(3), h),
            Reset::Before => {
                let first = self.gates_at(direction, 3 * hidden);
                let past = Operand::plain(gates, first, 4 * hidden);
                ("dW_hn = da_nᵀ · (r ⊙ h)", column(2), past)
            }
        };
        let weight = self.parameter(t.dparams, self.layout.cell(layer, direction).weight_hh);
        let rz = self.products.matmul(
            &self.cell_label(layer, direction, "dW_hr, dW_hz = da_rzᵀ · h"),
            [2 * hidden, hidden, rows],
            column(0),
            h,
            Start::Zero,
            Operand::plain(weight, 0, hidden),
        );
        let n = self.products.matmul(
            &self.cell_label(layer, direction, label),
            [hidden, hidden, rows],
            dn,
            past,
            Start::Zero,
            Operand::plain(weight, 2 * hidden * hidden, hidden),
        );
        [rz, n].concat()
    }

    fn bias_gradients(&self, t: &TrainingBuffers, layer: usize, direction: usize) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let ranges = self.layout.cell(layer, direction);
        // Sums gates `first..first + count` into those of a bias from its gate `to`.
        let sum = |label: &str, first: usize, count: usize, range: &Range<usize>, to: usize| {
            let from = self.gates_at(direction, first * hidden);
            let columns = Columns {
                slice: self.gates(layer),
                rows: steps * batch,
                stride: 4 * hidden,
                range: from..from + count * hidden,
            };
            let out = self.parameter(t.dparams, range.clone());
            let label = self.cell_label(layer, direction, label);
            self.products.column_sum(&label, &columns, out, to * hidden)
        };
        let mut stages = Vec::new();
        if let Some(range) = &ranges.bias_ih {
            stages.extend(sum("db_ih = Σ da", 0, 3, range, 0));
        }
        match (&ranges.bias_hh, self.layout.config().reset) {
            (None, _) => {}
            (Some(range), Reset::Before) => stages.extend(sum("db_hh = Σ da", 0, 3, range, 0)),
            (Some(range), Reset::After) => {
                stages.extend(sum("db_hr, db_hz = Σ da_rz", 0, 2, range, 0));
                stages.extend(sum("db_hn = Σ dpast", 3, 1, range, 2));
            }
        }
        stages
    }
}
