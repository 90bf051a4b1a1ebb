//! One short function a stage: which kernel, over what, how often.

use super::{
    BufferId, BufferSpec, Dispatch, Mode, Plan, Role, RunBuffers, Slice, Stage, TrainingBuffers,
};
use crate::config::{Reset, Shape, Update};
use crate::kernels::{
    BACKWARD_STEP, BackwardStepArgs, COLUMN_SUM, ColumnSumArgs, FORWARD_STEP, ForwardStepArgs,
    Kernel, MATMUL, MatmulArgs,
};
use crate::params::ParamLayout;

/// Workgroups a dispatch may have along one axis: WebGPU's default, which every adapter allows.
const MAX_WORKGROUPS: usize = 65_535;

/// Depth of one product's sum in one dispatch. Every 16 of it cost a slice of 16 iterations and four
/// more around them, so this stays below [`crate::kernels::LOOP_BUDGET`].
const MATMUL_MAX_DEPTH: usize = 32_768;

/// Rows that one dispatch sums, 16 lanes taking turns.
const COLUMN_SUM_MAX_ROWS: usize = 16 * 32_768;

/// The whole schedule of a run.
pub(super) fn plan_run(layout: &ParamLayout, shape: Shape, mode: Mode) -> Plan {
    let planner = Planner::new(layout, shape, mode);
    let (forward, backward) = match mode {
        Mode::Inference => (planner.forward(), Vec::new()),
        Mode::Training => (planner.forward(), planner.backward()),
    };
    let title = match mode {
        Mode::Inference => "inference",
        Mode::Training => "training",
    };
    Plan {
        title: format!("{title}, {}; {shape}", layout.config()),
        buffers: planner.buffers.specs,
        forward,
        backward,
        run: Some(planner.run),
    }
}

/// The buffers asked for so far.
#[derive(Default)]
pub(crate) struct Buffers {
    specs: Vec<BufferSpec>,
}

impl Buffers {
    pub fn add(
        &mut self,
        name: &'static str,
        axes: &'static str,
        len: usize,
        role: Role,
    ) -> BufferId {
        self.specs.push(BufferSpec { name, axes, len, role });
        BufferId(self.specs.len() - 1)
    }

    pub fn whole(&self, buffer: BufferId) -> Slice {
        Slice { buffer, first: 0, len: self.specs[buffer.0].len }
    }

    pub fn into_specs(self) -> Vec<BufferSpec> {
        self.specs
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
        let step = |rz, n| self.forward_step(rz, n);
        let body = match self.layout.config().reset {
            Reset::After => vec![step(true, true)],
            Reset::Before => vec![step(true, false), step(false, true)],
        };
        stages.push(Stage::Steps { first: 0, last: self.shape.steps - 1, body });
        stages
    }

    fn backward(&self) -> Vec<Stage> {
        let t = self.run.training.expect("a training plan");
        let after = self.layout.config().reset == Reset::After;
        let mut body = vec![self.backward_step(&t, true, after)];
        if !after {
            body.push(self.backward_step(&t, false, true));
        }
        let mut stages = vec![
            Stage::Steps { first: self.shape.steps, last: 1, body },
            Stage::Once(Dispatch { label: "dh0", ..self.backward_step(&t, true, after) }),
        ];
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
            bias.ok_or(self.buffers.whole(self.zeros)),
            Operand::plain(self.buffers.whole(self.gates), 0, 4 * hidden),
        )
    }

    fn forward_step(&self, gates_rz: bool, gate_n: bool) -> Dispatch {
        let ranges = self.layout.cell();
        let Shape { batch, hidden, .. } = self.shape;
        let bias = ranges.bias_hh.map(|range| self.parameter(self.run.params, range));
        let gates = 2 * u64::from(gates_rz) + u64::from(gate_n);
        let slices = hidden.div_ceil(16) as u64;
        Dispatch {
            label: match (gates_rz, gate_n) {
                (true, true) => "r, z, n from h; h'",
                (true, false) => "r, z from h; r ⊙ h",
                _ => "n from r ⊙ h; h'",
            },
            bindings: vec![
                self.parameter(self.run.params, ranges.weight_hh),
                bias.unwrap_or(self.buffers.whole(self.zeros)),
                self.buffers.whole(self.gates),
                self.buffers.whole(self.run.h),
            ],
            // Weights, h, and the columns of gates read and written.
            bytes: 4 * (gates * hidden as u64 + 2 + 3 * gates * batch as u64) * hidden as u64,
            // 16 products, one slice of its own and 4 stagings a gate.
            iterations: slices * (17 + 4 * gates),
            ..self.step_dispatch(
                &FORWARD_STEP,
                gates_rz,
                gate_n,
                bytemuck::cast_slice(&[ForwardStepArgs {
                    batch: batch as u32,
                    hidden: hidden as u32,
                    step: 0,
                }]),
            )
        }
    }

    fn backward_step(&self, t: &TrainingBuffers, gates_rz: bool, gate_n: bool) -> Dispatch {
        let ranges = self.layout.cell();
        let Shape { steps, batch, hidden, .. } = self.shape;
        let gates = 2 * u64::from(gates_rz) + u64::from(gate_n);
        let slices = (gates as usize * hidden).div_ceil(16) as u64;
        Dispatch {
            label: match (gates_rz, gate_n) {
                (true, true) => "dh; da_r, da_z, da_n, dpast",
                (true, false) => "dh; da_z, da_n",
                _ => "d(r ⊙ h); da_r",
            },
            bindings: vec![
                self.parameter(self.run.params, ranges.weight_hh),
                self.buffers.whole(self.run.h),
                self.buffers.whole(t.dy),
                self.buffers.whole(self.gates),
                self.buffers.whole(t.carry),
            ],
            bytes: 4 * (gates * hidden as u64 + (3 * gates + 4) * batch as u64) * hidden as u64,
            iterations: slices * (17 + 4),
            ..self.step_dispatch(
                &BACKWARD_STEP,
                gates_rz,
                gate_n,
                bytemuck::cast_slice(&[BackwardStepArgs {
                    steps: steps as u32,
                    batch: batch as u32,
                    hidden: hidden as u32,
                    step: 0,
                }]),
            )
        }
    }

    /// What the two step kernels have in common.
    fn step_dispatch(
        &self,
        kernel: &'static Kernel,
        gates_rz: bool,
        gate_n: bool,
        args: &[u32],
    ) -> Dispatch {
        let Shape { batch, hidden, .. } = self.shape;
        let keeps = self.layout.config().update == Update::Keeps;
        let gates = 2 * u64::from(gates_rz) + u64::from(gate_n);
        Dispatch {
            label: "",
            kernel,
            constants: vec![gates_rz, gate_n, keeps],
            bindings: Vec::new(),
            args: args.to_vec(),
            workgroups: tiles(kernel, hidden, batch),
            flops: 2 * gates * (batch * hidden) as u64 * hidden as u64,
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
            Err(self.buffers.whole(self.zeros)),
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
            Err(self.buffers.whole(self.zeros)),
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
        let zeros = Err(self.buffers.whole(self.zeros));
        let rz = matmul(
            "dW_hr, dW_hz = da_rzᵀ · h",
            [2 * hidden, hidden, rows],
            column(0),
            h,
            zeros,
            Operand::plain(weight, 0, hidden),
        );
        let n = matmul(
            label,
            [hidden, hidden, rows],
            dn,
            past,
            zeros,
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
        columns: std::ops::Range<usize>,
        out: Slice,
        to: usize,
    ) -> Vec<Stage> {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let gates = self.buffers.whole(self.gates);
        column_sum(label, steps * batch, columns, gates, 4 * hidden, out, to)
    }

    /// A named range of a buffer that is laid out as the parameters.
    fn parameter(&self, buffer: BufferId, range: std::ops::Range<usize>) -> Slice {
        Slice { buffer, first: range.start, len: range.len() }
    }
}

/// A matrix inside a bound slice.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    slice: Slice,
    first: usize,
    stride: usize,
    transposed: bool,
}

impl Operand {
    /// Rows of the matrix are rows in memory, `stride` apart, from element `first` of the slice.
    pub fn plain(slice: Slice, first: usize, stride: usize) -> Self {
        Self { slice, first, stride, transposed: false }
    }

    /// Rows in memory are the matrix's columns.
    pub fn transposed(slice: Slice, first: usize, stride: usize) -> Self {
        Self { slice, first, stride, transposed: true }
    }

    /// The index of the matrix's element (row, column).
    fn index(&self, row: usize, column: usize) -> u32 {
        let (major, minor) = if self.transposed { (column, row) } else { (row, column) };
        (self.first + major * self.stride + minor) as u32
    }
}

/// `c [m, n] = a [m, k] · b [k, n] (+ bias)`: one dispatch, or several where the output has more
/// tiles along an axis, or the sum more terms, than one may have. `bias` is `Err` of any slice to
/// bind in its place where there is none.
pub(crate) fn matmul(
    label: &'static str,
    [m, n, k]: [usize; 3],
    a: Operand,
    b: Operand,
    bias: Result<Slice, Slice>,
    c: Operand,
) -> Vec<Stage> {
    let [tile_n, tile_m] = MATMUL.tile.map(|t| t as usize * MAX_WORKGROUPS);
    let mut stages = Vec::new();
    for (m0, m) in chunks(m, tile_m) {
        for (n0, n) in chunks(n, tile_n) {
            for (k0, k) in chunks(k, MATMUL_MAX_DEPTH) {
                let args = MatmulArgs {
                    m: m as u32,
                    n: n as u32,
                    k: k as u32,
                    a_first: a.index(m0, k0),
                    a_stride: a.stride as u32,
                    b_first: b.index(k0, n0),
                    b_stride: b.stride as u32,
                    c_first: c.index(m0, n0),
                    c_stride: c.stride as u32,
                    bias_first: n0 as u32,
                    add_bias: u32::from(bias.is_ok() && k0 == 0),
                    accumulate: u32::from(k0 > 0),
                };
                stages.push(Stage::Once(Dispatch {
                    label,
                    kernel: &MATMUL,
                    constants: vec![a.transposed, b.transposed],
                    bindings: vec![
                        a.slice,
                        b.slice,
                        bias.unwrap_or_else(|placeholder| placeholder),
                        c.slice,
                    ],
                    args: bytemuck::cast_slice(&[args]).to_vec(),
                    workgroups: tiles(&MATMUL, n, m),
                    flops: 2 * (m * n) as u64 * k as u64,
                    bytes: 4 * (m as u64 * k as u64 + n as u64 * k as u64 + (m * n) as u64),
                    iterations: k.div_ceil(16) as u64 * (17 + 2),
                }));
            }
        }
    }
    stages
}

/// `out[to..] = Σ over rows` of `columns` of `a`, whose rows are `stride` apart.
pub(crate) fn column_sum(
    label: &'static str,
    rows: usize,
    columns: std::ops::Range<usize>,
    a: Slice,
    stride: usize,
    out: Slice,
    to: usize,
) -> Vec<Stage> {
    let width = columns.len();
    chunks(rows, COLUMN_SUM_MAX_ROWS)
        .map(|(row0, rows)| {
            let args = ColumnSumArgs {
                rows: rows as u32,
                columns: width as u32,
                first: (row0 * stride + columns.start) as u32,
                stride: stride as u32,
                out_first: to as u32,
                accumulate: u32::from(row0 > 0),
            };
            Stage::Once(Dispatch {
                label,
                kernel: &COLUMN_SUM,
                constants: Vec::new(),
                bindings: vec![a, out],
                args: bytemuck::cast_slice(&[args]).to_vec(),
                workgroups: tiles(&COLUMN_SUM, width, 1),
                flops: (rows * width) as u64,
                bytes: 4 * (rows * width + width) as u64,
                iterations: rows.div_ceil(16) as u64 + 5,
            })
        })
        .collect()
}

/// Workgroups that cover `columns` × `rows` outputs.
fn tiles(kernel: &Kernel, columns: usize, rows: usize) -> [u64; 3] {
    let [tile_columns, tile_rows] = kernel.tile.map(|t| t as usize);
    [columns.div_ceil(tile_columns) as u64, rows.div_ceil(tile_rows) as u64, 1]
}

/// `0..total` in pieces of at most `most`: (start, length).
fn chunks(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(most).map(move |start| (start, most.min(total - start)))
}
