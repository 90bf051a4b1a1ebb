//! The stages of a linear head and of a loss of its outputs.

use super::planner::Planner;
use super::products::{Columns, Epilogue, MAX_WORKGROUPS, Operand};
use super::{Buffers, Dispatch, HeadBuffers, LossBuffers, Purpose, Role, Slice, Stage};
use super::{Mode, TrainingBuffers};
use crate::kernels::{LOSS, LossArgs, LossConstants, loss_kind};
use crate::spec::config::Shape;
use crate::spec::head::{Head, Readout};
use crate::spec::loss::Loss;
use crate::spec::params::ParamLayout;

/// Where one piece of a head's features lies: all of them, or those of one direction.
struct Features {
    place: Operand,
    /// Their gradient's.
    gradient: Option<Operand>,
    /// The first one's column of the head's weight.
    column: usize,
    width: usize,
}

impl Planner<'_> {
    pub fn add_head(
        buffers: &mut Buffers,
        layout: &ParamLayout,
        shape: Shape,
        purpose: Purpose,
    ) -> Option<HeadBuffers> {
        let loss = match purpose {
            Purpose::States => return None,
            Purpose::Outputs => None,
            Purpose::Loss(loss) | Purpose::Evaluation(loss) => Some(loss),
        };
        let head = layout.head().expect("a network's layout has a head");
        let rows = head.rows(shape);
        let axes = match head.readout {
            Readout::EveryStep => "T, B",
            Readout::LastState => "B",
        };
        let all = format!("[{axes}, C]");
        let len = rows * head.outputs;
        let outputs = buffers.add("outputs", all.as_str(), len, Role::Output);
        let loss = loss.map(|loss| {
            let (target_axes, len) = match loss {
                Loss::CrossEntropy { .. } => (format!("[{axes}]"), rows),
                Loss::MeanSquared | Loss::Huber { .. } => (all, len),
            };
            // Besides each row's loss, whether it is correct.
            let (rows_axes, columns) = match purpose {
                Purpose::Evaluation(_) => (format!("[{axes}, 2]"), 2),
                _ => (format!("[{axes}]"), 1),
            };
            let axes = format!("[{axes}]");
            LossBuffers {
                targets: buffers.add("targets", target_axes, len, Role::Input),
                weights: buffers.add("weights", axes.as_str(), rows, Role::Input),
                each: buffers.add("losses", rows_axes, columns * rows, Role::Scratch),
                sum: buffers.add("loss", format!("[{columns}]"), columns, Role::Output),
            }
        });
        Some(HeadBuffers { outputs, loss })
    }

    /// The head's outputs, of a run that is asked for them.
    pub fn outputs(&self) -> Vec<Stage> {
        let Some(HeadBuffers { outputs, .. }) = self.run.head else { return Vec::new() };
        let head = self.head();
        let [weight, bias] = self.head_parameters(self.run.params);
        let rows = head.rows(self.shape);
        let to = Operand::plain(self.buffers.whole(outputs), 0, head.outputs);
        let product = |features: Features| {
            let start = if features.column == 0 { Epilogue::Bias(bias) } else { Epilogue::Present };
            self.products.matmul(
                "outputs = features · Wᵀ + b",
                [rows, head.outputs, features.width],
                features.place,
                Operand::transposed(weight, features.column, self.features_width()),
                start,
                to,
            )
        };
        self.features(head).into_iter().flat_map(product).collect()
    }

    /// The loss, and how many rows are correct.
    pub fn evaluation(&self) -> Vec<Stage> {
        let Purpose::Evaluation(loss) = self.purpose else { return Vec::new() };
        let HeadBuffers { outputs, loss: buffers } = self.run.head.expect("a loss is of outputs");
        let buffers = buffers.expect("a loss has its buffers");
        let head = self.head();
        let rows = head.rows(self.shape);
        let slice = self.buffers.whole(buffers.each);
        let each = Columns { slice, rows, stride: 2, range: 0..2 };
        let sum = self.buffers.whole(buffers.sum);
        let sums = self.products.column_sum("loss, correct rows", &each, sum, 0, false);
        let loss = self.loss(loss, head, self.buffers.whole(outputs), buffers);
        std::iter::once(loss).chain(sums).collect()
    }

    /// The loss, and what flows from it into the head's parameters and the GRU.
    pub fn head_backward(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let Purpose::Loss(loss) = self.purpose else { return Vec::new() };
        let HeadBuffers { outputs, loss: buffers } = self.run.head.expect("a loss is of outputs");
        let buffers = buffers.expect("a loss has its buffers");
        let head = self.head();
        let rows = head.rows(self.shape);
        let doutputs = self.buffers.whole(outputs);
        let mut stages = vec![self.loss(loss, head, doutputs, buffers)];
        let each =
            Columns { slice: self.buffers.whole(buffers.each), rows, stride: 1, range: 0..1 };
        let sum = self.buffers.whole(buffers.sum);
        stages.extend(self.products.column_sum("loss", &each, sum, 0, true));

        let [weight, _] = self.head_parameters(self.run.params);
        let [dweight, dbias] = self.head_parameters(t.dparams);
        let width = self.features_width();
        for features in self.features(head) {
            stages.extend(self.products.matmul(
                "dW = doutputsᵀ · features",
                [head.outputs, features.width, rows],
                Operand::transposed(doutputs, 0, head.outputs),
                features.place,
                Epilogue::Present,
                Operand::plain(dweight, features.column, width),
            ));
            stages.extend(self.products.matmul(
                "dfeatures = doutputs · W",
                [rows, features.width, head.outputs],
                Operand::plain(doutputs, 0, head.outputs),
                Operand::plain(weight, features.column, width),
                Epilogue::Zero,
                features.gradient.expect("of a training run"),
            ));
        }
        let columns =
            Columns { slice: doutputs, rows, stride: head.outputs, range: 0..head.outputs };
        stages.extend(self.products.column_sum("db = Σ doutputs", &columns, dbias, 0, true));
        stages
    }

    fn loss(&self, loss: Loss, head: Head, outputs: Slice, buffers: LossBuffers) -> Stage {
        let rows = head.rows(self.shape);
        let delta = match loss {
            Loss::Huber { delta } => delta,
            Loss::MeanSquared | Loss::CrossEntropy { .. } => 0.0,
        };
        let args =
            LossArgs { rows: rows as u32, width: head.outputs as u32, delta: delta.to_bits() };
        // A thread takes four outputs or more, where there are as many.
        let lanes = head.outputs.div_ceil(4).next_power_of_two().min(64);
        let differentiates = matches!(self.purpose, Purpose::Loss(_));
        let constants = LossConstants {
            loss: loss_kind(&loss),
            lanes: lanes as u32,
            differentiate: differentiates.into(),
        };
        let constants = bytemuck::cast_slice(&[constants]).to_vec();
        let [_, rows_each] = (LOSS.workgroup)(&constants).tile.map(|side| side as usize);
        let targets = self.buffers.whole(buffers.targets);
        Stage::Once(Dispatch {
            label: if differentiates { "doutputs = ∂loss/∂outputs" } else { "losses" }.to_owned(),
            kernel: &LOSS,
            constants,
            bindings: vec![
                outputs,
                targets,
                self.buffers.whole(buffers.weights),
                self.buffers.whole(buffers.each),
            ],
            args: bytemuck::cast_slice(&[args]).to_vec(),
            workgroups: over_two_axes(rows.div_ceil(rows_each)),
            flops: 0,
            padded_flops: 0,
            bytes: 4 * (2 * outputs.len + targets.len + 2 * rows) as u64,
            iterations: (3 * head.outputs.div_ceil(lanes) + 3 * 6 + 5) as u64,
        })
    }

    fn head(&self) -> Head {
        self.layout.head().expect("a network's layout has a head")
    }

    /// The head's weight and bias in a buffer that is laid out as the parameters.
    fn head_parameters(&self, buffer: super::BufferId) -> [Slice; 2] {
        self.layout.head_ranges().map(|range| self.parameter(buffer, range))
    }

    fn features_width(&self) -> usize {
        self.shape.directions * self.shape.hidden
    }

    /// What the head reads.
    fn features(&self, head: Head) -> Vec<Features> {
        let Shape { batch, hidden, layers, directions, .. } = self.shape;
        let training = self.run.training.as_ref().filter(|_| self.mode == Mode::Training);
        match head.readout {
            Readout::EveryStep => {
                let width = self.features_width();
                let whole = |id| Operand::plain(self.buffers.whole(id), 0, width);
                let gradient = training.map(|t| whole(t.dy));
                vec![Features { place: whole(self.run.y), gradient, column: 0, width }]
            }
            Readout::LastState => {
                let of = |direction| {
                    let first = self.states_at(layers - 1, 2) + direction * batch * hidden;
                    let last = |id| Operand::plain(self.buffers.whole(id), first, hidden);
                    Features {
                        place: last(self.run.states),
                        gradient: training.map(|t| last(t.dstates)),
                        column: direction * hidden,
                        width: hidden,
                    }
                };
                (0..directions).map(of).collect()
            }
        }
    }
}

/// So many workgroups over x and y, the last ones of which may be too many.
pub(super) fn over_two_axes(groups: usize) -> [u64; 3] {
    let x = groups.min(MAX_WORKGROUPS);
    [x as u64, groups.div_ceil(x) as u64, 1]
}
