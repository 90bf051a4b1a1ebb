//! The stages of a linear head and of a loss on its outputs.

use super::planner::Planner;
use super::products::{ColumnSum, Epilogue, Operand, Product, over_two_axes};
use super::{
    BufferSlice, Dispatch, HeadBuffers, LossBuffers, Mode, RunPurpose, Stage, TrainingBuffers,
};
use crate::kernels::{LOSS, LossArgs, LossConstants, loss_kind};
use crate::spec::config::Shape;
use crate::spec::head::{Head, Readout};
use crate::spec::loss::Loss;

/// The features that a head reads: all features, or the features of one direction.
struct Features {
    values: Operand,
    /// Their gradient.
    gradient: Option<Operand>,
    /// The column of the head's weight for the first feature.
    column: usize,
    width: usize,
}

impl Planner<'_> {
    /// Returns the stages that compute the head's outputs.
    pub fn outputs(&self) -> Vec<Stage> {
        let Some(HeadBuffers { outputs, .. }) = self.run.head else { return Vec::new() };
        let head = self.head();
        let [weight, bias] = self.head_parameters(self.run.params);
        let rows = head.rows(self.shape);
        let to = Operand::plain(self.buffers.whole(outputs), 0, head.outputs);
        let product = |features: Features| {
            let epilogue =
                if features.column == 0 { Epilogue::Bias(bias) } else { Epilogue::Present };
            self.products.matmul(&Product {
                label: "outputs = features · Wᵀ + b".to_owned(),
                mnk: [rows, head.outputs, features.width],
                a: features.values,
                b: Operand::transposed(weight, features.column, self.features_width()),
                epilogue,
                c: to,
            })
        };
        self.features(head).into_iter().flat_map(product).collect()
    }

    /// Returns the stages that compute the loss and count the correct rows.
    pub fn evaluation(&self) -> Vec<Stage> {
        let RunPurpose::Evaluation(loss) = self.purpose else { return Vec::new() };
        let HeadBuffers { outputs, loss: buffers } = self.run.head.expect("a loss needs a head");
        let buffers = buffers.expect("a loss has its buffers");
        let head = self.head();
        let rows = head.rows(self.shape);
        let slice = self.buffers.whole(buffers.each);
        let each = ColumnSum { slice, rows, stride: 2, range: 0..2 };
        let sum = self.buffers.whole(buffers.sum);
        let sums = self.products.column_sum("loss, correct rows", &each, sum, 0, false);
        let loss = self.loss(loss, head, self.buffers.whole(outputs), buffers);
        std::iter::once(loss).chain(sums).collect()
    }

    /// Returns the stages that compute the loss and its gradients with respect to the head's
    /// parameters and the GRU's states.
    pub fn head_backward(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let RunPurpose::Loss(loss) = self.purpose else { return Vec::new() };
        let HeadBuffers { outputs, loss: buffers } = self.run.head.expect("a loss needs a head");
        let buffers = buffers.expect("a loss has its buffers");
        let head = self.head();
        let rows = head.rows(self.shape);
        let doutputs = self.buffers.whole(outputs);
        let mut stages = vec![self.loss(loss, head, doutputs, buffers)];
        let each =
            ColumnSum { slice: self.buffers.whole(buffers.each), rows, stride: 1, range: 0..1 };
        let sum = self.buffers.whole(buffers.sum);
        stages.extend(self.products.column_sum("loss", &each, sum, 0, true));

        let [weight, _] = self.head_parameters(self.run.params);
        let [dweight, dbias] = self.head_parameters(t.dparams);
        let width = self.features_width();
        for features in self.features(head) {
            stages.extend(self.products.matmul(&Product {
                label: "dW = doutputsᵀ · features".to_owned(),
                mnk: [head.outputs, features.width, rows],
                a: Operand::transposed(doutputs, 0, head.outputs),
                b: features.values,
                epilogue: Epilogue::Present,
                c: Operand::plain(dweight, features.column, width),
            }));
            stages.extend(self.products.matmul(&Product {
                label: "dfeatures = doutputs · W".to_owned(),
                mnk: [rows, features.width, head.outputs],
                a: Operand::plain(doutputs, 0, head.outputs),
                b: Operand::plain(weight, features.column, width),
                epilogue: Epilogue::Zero,
                c: features.gradient.expect("a training run has gradients"),
            }));
        }
        let columns =
            ColumnSum { slice: doutputs, rows, stride: head.outputs, range: 0..head.outputs };
        stages.extend(self.products.column_sum("db = Σ doutputs", &columns, dbias, 0, true));
        stages
    }

    fn loss(&self, loss: Loss, head: Head, outputs: BufferSlice, buffers: LossBuffers) -> Stage {
        let rows = head.rows(self.shape);
        let delta = match loss {
            Loss::Huber { delta } => delta,
            Loss::MeanSquared | Loss::CrossEntropy { .. } => 0.0,
        };
        let args =
            LossArgs { rows: rows as u32, width: head.outputs as u32, delta: delta.to_bits() };
        // A thread computes at least four outputs, if the head has that many.
        let lanes = head.outputs.div_ceil(4).next_power_of_two().min(64);
        let differentiates = matches!(self.purpose, RunPurpose::Loss(_));
        let constants = LossConstants {
            loss: loss_kind(&loss),
            lanes: lanes as u32,
            differentiate: differentiates.into(),
        };
        let constants = constants.as_u32s().to_vec();
        let [_, rows_each] = (LOSS.workgroup)(&constants).tile.map(|side| side as usize);
        let [targets, weights, losses] = [buffers.targets, buffers.weights, buffers.each]
            .map(|buffer| self.buffers.whole(buffer));
        Stage::Once(Dispatch {
            label: if differentiates { "doutputs = ∂loss/∂outputs" } else { "losses" }.to_owned(),
            kernel: &LOSS,
            constants,
            bindings: vec![outputs, targets, weights, losses],
            args: args.as_u32s().to_vec(),
            workgroups: over_two_axes(rows.div_ceil(rows_each)),
            flops: 0,
            padded_flops: 0,
            bytes: 2 * outputs.bytes() + targets.bytes() + weights.bytes() + losses.bytes(),
            iterations: (3 * head.outputs.div_ceil(lanes) + 3 * 6 + 5) as u64,
        })
    }

    fn head(&self) -> Head {
        self.layout.head().expect("a network's layout has a head")
    }

    /// Returns the head's weight and bias in a buffer with the layout of the parameters.
    fn head_parameters(&self, buffer: super::BufferId) -> [BufferSlice; 2] {
        self.layout.head_ranges().map(|range| self.parameter(buffer, range))
    }

    fn features_width(&self) -> usize {
        self.shape.directions * self.shape.hidden
    }

    /// Returns the features that the head reads.
    fn features(&self, head: Head) -> Vec<Features> {
        let Shape { batch, hidden, layers, directions, .. } = self.shape;
        let training = self.run.training.as_ref().filter(|_| self.mode == Mode::Training);
        match head.readout {
            Readout::EveryStep => {
                let width = self.features_width();
                let whole = |id| Operand::plain(self.buffers.whole(id), 0, width);
                let gradient = training.map(|t| whole(t.dy));
                vec![Features { values: whole(self.run.y), gradient, column: 0, width }]
            }
            Readout::LastState => {
                let of = |direction| {
                    let first = self.states_at(layers - 1, 2) + direction * batch * hidden;
                    let last = |id| Operand::plain(self.buffers.whole(id), first, hidden);
                    Features {
                        values: last(self.run.states),
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
