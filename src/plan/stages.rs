//! One short function a stage: which kernel, over what, how often.

use std::ops::Range;

use super::products::{Operand, RowBias, column_sum, matmul, padded_outputs, product, tiles};
use super::{
    BufferId, Buffers, Dispatch, Mode, Plan, Role, RunBuffers, Slice, Stage, TrainingBuffers,
};
use crate::config::{Reset, Shape, Update};
use crate::error::Result;
use crate::kernels::{BACKWARD_STEP, BackwardStepArgs, FORWARD_STEP, ForwardStepArgs, Kernel};
use crate::params::ParamLayout;

/// The whole schedule of a run.
pub(super) fn plan_run(layout: &ParamLayout, shape: Shape, mode: Mode) -> Result<Plan> {
    let planner = Planner::new(layout, shape, mode);
    // Before the stages are made: it bounds how many pieces a product is cut into.
    planner.buffers.check_indices()?;
    let (forward, backward) = match mode {
        Mode::Inference => (planner.forward(), Vec::new()),
        Mode::Training => (planner.forward(), planner.backward()),
    };
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

/// The gates whose recurrent products a dispatch makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gates {
    /// r, z and n together, where the reset gate acts after the product.
    All,
    /// r and z, before the candidate's product can start.
    ResetUpdate,
    /// n, from `r ⊙ h`.
    Candidate,
}

impl Gates {
    fn count(self) -> usize {
        match self {
            Gates::All => 3,
            Gates::ResetUpdate => 2,
            Gates::Candidate => 1,
        }
    }
}

/// What every stage of a run draws on.
struct Planner<'a> {
    layout: &'a ParamLayout,
    shape: Shape,
    buffers: Buffers,
    run: RunBuffers,
    /// `[T, B, 4H]`: r, z, n, past; in backward their gradients.
    gates: BufferId,
    /// `[3H]` of zeros: the hidden bias of a model without one.
    zeros: BufferId,
}

impl<'a> Planner<'a> {
    fn new(layout: &'a ParamLayout, shape: Shape, mode: Mode) -> Self {
        let Shape { steps, batch, input, hidden } = shape;
        let rows = steps * batch;
        let mut buffers = Buffers::default();
        let x = buffers.add("x", "[T, B, I]", rows * input, Role::Input);
        let params = buffers.add("params", "flat", layout.flat_len(), Role::Parameters);
        let zeros = buffers.add("zeros", "[3H]", 3 * hidden, Role::Zeros);
        let gates = buffers.add("gates", "[T, B, 4H]", rows * 4 * hidden, Role::Scratch);
        let h = buffers.add("h", "[T+1, B, H]", (steps + 1) * batch * hidden, Role::Output);
        let training = (mode == Mode::Training).then(|| TrainingBuffers {
            dy: buffers.add("dy", "[T, B, H]", rows * hidden, Role::Input),
            carry: buffers.add("carry", "[B, H]", batch * hidden, Role::Output),
            dx: buffers.add("dx", "[T, B, I]", rows * input, Role::Output),
            dparams: buffers.add("dparams", "flat", layout.flat_len(), Role::Output),
        });
        let run = RunBuffers { x, h, params, training };
        Self { layout, shape, buffers, run, gates, zeros }
    }

    fn forward(&self) -> Vec<Stage> {
        let mut stages = self.input_product();
        let body = match self.layout.config().reset {
            Reset::After => vec![self.forward_step(Gates::All)],
            Reset::Before => {
                vec![self.forward_step(Gates::ResetUpdate), self.forward_step(Gates::Candidate)]
            }
        };
        stages.push(Stage::Steps { first: 0, last: self.shape.steps - 1, body });
        stages
    }

    fn backward(&self) -> Vec<Stage> {
        let t = self.run.training.expect("a training plan");
        let (state, reset) = match self.layout.config().reset {
            Reset::After => (Gates::All, None),
            Reset::Before => (Gates::ResetUpdate, Some(Gates::Candidate)),
        };
        let mut body = vec![self.backward_step(&t, state)];
        body.extend(reset.map(|gates| self.backward_step(&t, gates)));
        let first_state = Dispatch { label: "dh0", ..self.backward_step(&t, state) };
        let mut stages =
            vec![Stage::Steps { first: self.shape.steps, last: 1, body }, Stage::Once(first_state)];
        stages.extend(self.input_gradient(&t));
        stages.extend(self.weight_ih_gradient(&t));
        stages.extend(self.weight_hh_gradient(&t));
        stages.extend(self.bias_gradients(&t));
        stages
    }

    /// The input's part of all gates of all steps, outside the loop.
    fn input_product(&self) -> Vec<Stage> {
        let ranges = self.layout.cell();
        let Shape { steps, batch, input, hidden } = self.shape;
        let bias = ranges.bias_ih.map(|range| self.parameter(self.run.params, range));
        matmul(
            "gates[r z n] = x · W_ihᵀ + b_ih",
            [steps * batch, 3 * hidden, input],
            Operand::plain(self.buffers.whole(self.run.x), 0, input),
            Operand::transposed(self.parameter(self.run.params, ranges.weight_ih), 0, input),
            bias.map_or(self.no_bias(), RowBias::Add),
            Operand::plain(self.buffers.whole(self.gates), 0, 4 * hidden),
        )
    }

    fn forward_step(&self, gates: Gates) -> Dispatch {
        let ranges = self.layout.cell();
        let Shape { batch, hidden, .. } = self.shape;
        let bias = ranges.bias_hh.map(|range| self.parameter(self.run.params, range));
        let args = ForwardStepArgs { batch: batch as u32, hidden: hidden as u32, step: 0 };
        let slices = hidden.div_ceil(16) as u64;
        Dispatch {
            label: match gates {
                Gates::All => "r, z, n from h; h'",
                Gates::ResetUpdate => "r, z from h; r ⊙ h",
                Gates::Candidate => "n from r ⊙ h; h'",
            },
            bindings: vec![
                self.parameter(self.run.params, ranges.weight_hh),
                bias.unwrap_or(self.buffers.whole(self.zeros)),
                self.buffers.whole(self.gates),
                self.buffers.whole(self.run.h),
            ],
            // Weights, biases, h, and the columns of gates read and written.
            bytes: 4 * product([gates.count(), hidden + 1 + 3 * batch, hidden]),
            // A slice takes 16 products, a turn of its own and 4 stagings a gate.
            iterations: slices * (17 + 4 * gates.count() as u64),
            ..self.step(&FORWARD_STEP, gates, bytemuck::cast_slice(&[args]))
        }
    }

    fn backward_step(&self, t: &TrainingBuffers, gates: Gates) -> Dispatch {
        let ranges = self.layout.cell();
        let Shape { steps, batch, hidden, .. } = self.shape;
        let args = BackwardStepArgs {
            steps: steps as u32,
            batch: batch as u32,
            hidden: hidden as u32,
            step: 0,
        };
        let slices = (gates.count() * hidden).div_ceil(16) as u64;
        Dispatch {
            label: match gates {
                Gates::All => "dh; da_r, da_z, da_n, dpast",
                Gates::ResetUpdate => "dh; da_z, da_n",
                Gates::Candidate => "d(r ⊙ h); da_r",
            },
            bindings: vec![
                self.parameter(self.run.params, ranges.weight_hh),
                self.buffers.whole(self.run.h),
                self.buffers.whole(t.dy),
                self.buffers.whole(self.gates),
                self.buffers.whole(t.carry),
            ],
            // Weights, the columns of gates read and written, h, dy, and carry twice.
            bytes: 4 * product([gates.count() * (hidden + 3 * batch) + 4 * batch, hidden]),
            // A slice takes 16 products, a turn of its own and 4 stagings.
            iterations: slices * (17 + 4),
            ..self.step(&BACKWARD_STEP, gates, bytemuck::cast_slice(&[args]))
        }
    }

    /// What the two step kernels have in common.
    fn step(&self, kernel: &'static Kernel, gates: Gates, args: &[u32]) -> Dispatch {
        let Shape { batch, hidden, .. } = self.shape;
        let z_keeps = self.layout.config().update == Update::Keeps;
        let rz = gates != Gates::Candidate;
        let n = gates != Gates::ResetUpdate;
        Dispatch {
            label: "",
            kernel,
            constants: vec![rz, n, z_keeps],
            bindings: Vec::new(),
            args: args.to_vec(),
            workgroups: tiles(kernel, hidden, batch),
            flops: 2 * product([gates.count(), batch, hidden, hidden]),
            padded_flops: padded_outputs(kernel, hidden, batch)
                * 2
                * product([gates.count(), hidden]),
            bytes: 0,
            iterations: 0,
        }
    }

    fn input_gradient(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let Shape { steps, batch, input, hidden } = self.shape;
        let weight = self.parameter(self.run.params, self.layout.cell().weight_ih);
        matmul(
            "dx = da · W_ih",
            [steps * batch, input, 3 * hidden],
            Operand::plain(self.buffers.whole(self.gates), 0, 4 * hidden),
            Operand::plain(weight, 0, input),
            self.no_bias(),
            Operand::plain(self.buffers.whole(t.dx), 0, input),
        )
    }

    fn weight_ih_gradient(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let Shape { steps, batch, input, hidden } = self.shape;
        matmul(
            "dW_ih = daᵀ · x",
            [3 * hidden, input, steps * batch],
            Operand::transposed(self.buffers.whole(self.gates), 0, 4 * hidden),
            Operand::plain(self.buffers.whole(self.run.x), 0, input),
            self.no_bias(),
            Operand::plain(self.parameter(t.dparams, self.layout.cell().weight_ih), 0, input),
        )
    }

    /// The r and z rows from h; the n rows from h with the gradient of `W_hn h` (reset after), or
    /// from `r ⊙ h` with that of n's pre-activation (reset before).
    fn weight_hh_gradient(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let rows = steps * batch;
        let gates = self.buffers.whole(self.gates);
        let column = |first| Operand::transposed(gates, first, 4 * hidden);
        // Only the states before each step: the first T of T + 1.
        let h = Operand::plain(self.buffers.whole(self.run.h), 0, hidden);
        let (label, dn, past) = match self.layout.config().reset {
            Reset::After => ("dW_hn = dpastᵀ · h", column(3 * hidden), h),
            Reset::Before => {
                let past = Operand::plain(gates, 3 * hidden, 4 * hidden);
                ("dW_hn = da_nᵀ · (r ⊙ h)", column(2 * hidden), past)
            }
        };
        let weight = self.parameter(t.dparams, self.layout.cell().weight_hh);
        let rz = matmul(
            "dW_hr, dW_hz = da_rzᵀ · h",
            [2 * hidden, hidden, rows],
            column(0),
            h,
            self.no_bias(),
            Operand::plain(weight, 0, hidden),
        );
        let n = matmul(
            label,
            [hidden, hidden, rows],
            dn,
            past,
            self.no_bias(),
            Operand::plain(weight, 2 * hidden * hidden, hidden),
        );
        [rz, n].concat()
    }

    fn bias_gradients(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let hidden = self.shape.hidden;
        let ranges = self.layout.cell();
        let mut stages = Vec::new();
        if let Some(range) = ranges.bias_ih {
            let out = self.parameter(t.dparams, range);
            stages.extend(self.gate_sum("db_ih = Σ da", 0..3 * hidden, out, 0));
        }
        if let Some(range) = ranges.bias_hh {
            let out = self.parameter(t.dparams, range);
            match self.layout.config().reset {
                Reset::After => {
                    let past = 3 * hidden..4 * hidden;
                    stages.extend(self.gate_sum("db_hr, db_hz = Σ da_rz", 0..2 * hidden, out, 0));
                    stages.extend(self.gate_sum("db_hn = Σ dpast", past, out, 2 * hidden));
                }
                Reset::Before => {
                    stages.extend(self.gate_sum("db_hh = Σ da", 0..3 * hidden, out, 0));
                }
            }
        }
        stages
    }

    /// Sums `columns` of gates over all steps and rows into `out` from its element `to`.
    fn gate_sum(
        &self,
        label: &'static str,
        columns: Range<usize>,
        out: Slice,
        to: usize,
    ) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let gates = self.buffers.whole(self.gates);
        column_sum(label, steps * batch, columns, gates, 4 * hidden, out, to)
    }

    fn no_bias(&self) -> RowBias {
        RowBias::Absent { placeholder: self.buffers.whole(self.zeros) }
    }

    /// A named range of a buffer that is laid out as the parameters.
    fn parameter(&self, buffer: BufferId, range: Range<usize>) -> Slice {
        Slice { buffer, first: range.start, len: range.len() }
    }
}
