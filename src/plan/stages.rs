//! One short function a stage: which kernel, over what, how often.

use std::ops::Range;

use super::products::{Operand, Start, column_sum, matmul};
use super::steps::Gates;
use super::{
    BufferId, Buffers, Dispatch, Mode, Plan, Role, RunBuffers, Slice, Stage, TrainingBuffers,
};
use crate::config::{Reset, Shape};
use crate::error::Result;
use crate::params::ParamLayout;

/// The whole schedule of a run.
pub(super) fn plan_run(layout: &ParamLayout, shape: Shape, mode: Mode) -> Result<Plan> {
    let planner = Planner::new(layout, shape, mode);
    // Before the stages are made: it bounds how many pieces a product is cut into.
    planner.buffers.check_indices()?;
    let forward = planner.forward();
    let backward = planner.run.training.as_ref().map(|t| planner.backward(t)).unwrap_or_default();
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
    })
}

/// What every stage of a run draws on.
pub(super) struct Planner<'a> {
    pub layout: &'a ParamLayout,
    pub shape: Shape,
    pub buffers: Buffers,
    pub run: RunBuffers,
    pub layers: Vec<LayerBuffers>,
    /// `[3H]` of zeros: the hidden bias of a model without one.
    pub zeros: BufferId,
}

/// What a layer needs besides the buffers that the host knows.
pub(super) struct LayerBuffers {
    /// `[D, T, B, 4H]`: r, z, n, past; in backward their gradients.
    pub gates: BufferId,
}

/// A rectangle of a layer's input: the columns of x, or the half that one direction of the layer
/// below put out.
struct InputPart {
    rows: Operand,
    columns: Range<usize>,
}

impl<'a> Planner<'a> {
    fn new(layout: &'a ParamLayout, shape: Shape, mode: Mode) -> Self {
        let Shape { steps, batch, input, hidden, directions, .. } = shape;
        let rows = steps * batch;
        let state = batch * hidden;
        // One layer's buffers need no number to tell them apart.
        let name = |what: &str, layer: usize| match shape.layers {
            1 => what.to_owned(),
            _ => format!("{what}_l{layer}"),
        };
        let axes = |one, both| if directions == 1 { one } else { both };
        let mut buffers = Buffers::default();
        let x = buffers.add("x", "[T, B, I]", rows * input, Role::Input);
        let lengths = buffers.add("lengths", "[B]", batch, Role::Input);
        let params = buffers.add("params", "flat", layout.flat_len(), Role::Parameters);
        let zeros = buffers.add("zeros", "[3H]", 3 * hidden, Role::Zeros);
        let (mut layers, mut h) = (Vec::new(), Vec::new());
        for layer in 0..shape.layers {
            let gates_axes = axes("[T, B, 4H]", "[2, T, B, 4H]");
            let len = directions * rows * 4 * hidden;
            let gates = buffers.add(&name("gates", layer), gates_axes, len, Role::Scratch);
            layers.push(LayerBuffers { gates });
            let h_axes = axes("[T+1, B, H]", "[2, T+1, B, H]");
            let len = directions * (steps + 1) * state;
            h.push(buffers.add(&name("h", layer), h_axes, len, Role::Output));
        }
        let training = (mode == Mode::Training).then(|| {
            let width = directions * hidden;
            let y_axes = axes("[T, B, H]", "[T, B, 2H]");
            let dy = buffers.add("dy", y_axes, rows * width, Role::Input);
            let carry = (0..shape.layers).map(|layer| {
                let axes = axes("[B, H]", "[2, B, H]");
                buffers.add(&name("carry", layer), axes, directions * state, Role::Output)
            });
            let carry = carry.collect();
            let dx = (0..shape.layers).map(|layer| match layer {
                0 => buffers.add("dx", "[T, B, I]", rows * input, Role::Output),
                _ => buffers.add(&format!("dx_l{layer}"), y_axes, rows * width, Role::Scratch),
            });
            let dx = dx.collect();
            let dparams = buffers.add("dparams", "flat", layout.flat_len(), Role::Output);
            TrainingBuffers { dy, carry, dx, dparams }
        });
        let run = RunBuffers { x, lengths, h, params, training };
        Self { layout, shape, buffers, run, layers, zeros }
    }

    fn forward(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        for layer in 0..self.shape.layers {
            for direction in 0..self.shape.directions {
                stages.extend(self.input_product(layer, direction));
            }
            let gates = match self.layout.config().reset {
                Reset::After => &[Gates::All][..],
                Reset::Before => &[Gates::ResetUpdate, Gates::Candidate],
            };
            let body = gates.iter().flat_map(|&gates| self.forward_step(layer, gates)).collect();
            stages.push(Stage::Steps { first: 0, last: self.shape.steps - 1, body });
        }
        stages
    }

    fn backward(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let mut stages = Vec::new();
        for layer in (0..self.shape.layers).rev() {
            stages.extend(self.state_gradients(t, layer));
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
        let product = |part: InputPart| {
            let start = match (part.columns.start, bias) {
                (0, Some(bias)) => Start::Bias(bias),
                (0, None) => Start::Zero,
                _ => Start::Present,
            };
            matmul(
                &self.cell_label(layer, direction, "gates[r z n] = x · W_ihᵀ + b_ih"),
                [steps * batch, 3 * hidden, part.columns.len()],
                part.rows,
                Operand::transposed(weight, part.columns.start, width),
                start,
                Operand::plain(self.gates(layer), self.gates_at(direction, 0), 4 * hidden),
            )
        };
        self.input_parts(layer).into_iter().flat_map(product).collect()
    }

    /// Every step backwards, and then what is left of dh at the first state.
    fn state_gradients(&self, t: &TrainingBuffers, layer: usize) -> Vec<Stage> {
        let (state, reset) = match self.layout.config().reset {
            Reset::After => (Gates::All, None),
            Reset::Before => (Gates::ResetUpdate, Some(Gates::Candidate)),
        };
        let mut body = self.backward_step(t, layer, state);
        body.extend(reset.into_iter().flat_map(|gates| self.backward_step(t, layer, gates)));
        let mut stages = vec![Stage::Steps { first: self.shape.steps, last: 1, body }];
        stages.extend(
            self.backward_step(t, layer, state).into_iter().map(|dispatch| {
                Stage::Once(Dispatch { label: self.label(layer, "dh0"), ..dispatch })
            }),
        );
        stages
    }

    fn input_gradient(&self, t: &TrainingBuffers, layer: usize, direction: usize) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let width = self.layout.config().layer_input_size(layer);
        let weight = self.parameter(self.run.params, self.layout.cell(layer, direction).weight_ih);
        matmul(
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
        let product = |part: InputPart| {
            matmul(
                &self.cell_label(layer, direction, "dW_ih = daᵀ · x"),
                [3 * hidden, part.columns.len(), steps * batch],
                Operand::transposed(self.gates(layer), self.gates_at(direction, 0), 4 * hidden),
                part.rows,
                Start::Zero,
                Operand::plain(weight, part.columns.start, width),
            )
        };
        self.input_parts(layer).into_iter().flat_map(product).collect()
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
        // The states before each step: the first T of T + 1, or the last T of the reverse direction.
        let h = self.states(layer, direction, direction);
        let (label, dn, past) = match self.layout.config().reset {
            Reset::After => ("dW_hn = dpastᵀ · h", column(3), h),
            Reset::Before => {
                let first = self.gates_at(direction, 3 * hidden);
                let past = Operand::plain(gates, first, 4 * hidden);
                ("dW_hn = da_nᵀ · (r ⊙ h)", column(2), past)
            }
        };
        let weight = self.parameter(t.dparams, self.layout.cell(layer, direction).weight_hh);
        let rz = matmul(
            &self.cell_label(layer, direction, "dW_hr, dW_hz = da_rzᵀ · h"),
            [2 * hidden, hidden, rows],
            column(0),
            h,
            Start::Zero,
            Operand::plain(weight, 0, hidden),
        );
        let n = matmul(
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
            column_sum(
                &self.cell_label(layer, direction, label),
                steps * batch,
                from..from + count * hidden,
                self.gates(layer),
                4 * hidden,
                self.parameter(t.dparams, range.clone()),
                to * hidden,
            )
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

    /// A layer's input, in as many parts as buffers hold it.
    fn input_parts(&self, layer: usize) -> Vec<InputPart> {
        let Shape { input, hidden, directions, .. } = self.shape;
        if layer == 0 {
            let rows = Operand::plain(self.buffers.whole(self.run.x), 0, input);
            return vec![InputPart { rows, columns: 0..input }];
        }
        let part = |direction| InputPart {
            // The states after each step.
            rows: self.states(layer - 1, direction, 1 - direction),
            columns: direction * hidden..(direction + 1) * hidden,
        };
        (0..directions).map(part).collect()
    }

    /// T of a direction's T + 1 states, from row `first`, as a matrix of T·B rows.
    fn states(&self, layer: usize, direction: usize, first: usize) -> Operand {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let row = direction * (steps + 1) + first;
        Operand::plain(self.buffers.whole(self.run.h[layer]), row * batch * hidden, hidden)
    }

    fn gates(&self, layer: usize) -> Slice {
        self.buffers.whole(self.layers[layer].gates)
    }

    /// Where a direction's gates start, from their column `column`.
    fn gates_at(&self, direction: usize, column: usize) -> usize {
        let Shape { steps, batch, hidden, .. } = self.shape;
        direction * steps * batch * 4 * hidden + column
    }

    /// A named range of a buffer that is laid out as the parameters.
    pub(super) fn parameter(&self, buffer: BufferId, range: Range<usize>) -> Slice {
        Slice { buffer, first: range.start, len: range.len() }
    }

    /// What a dispatch of a layer does, and of which where there are several.
    pub(super) fn label(&self, layer: usize, what: &str) -> String {
        match self.shape.layers {
            1 => what.to_owned(),
            _ => format!("l{layer}: {what}"),
        }
    }

    /// The same for one direction.
    fn cell_label(&self, layer: usize, direction: usize, what: &str) -> String {
        let reverse = if direction == 1 { "reverse: " } else { "" };
        self.label(layer, &format!("{reverse}{what}"))
    }
}
