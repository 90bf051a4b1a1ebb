//! The stages of a run, one function for each: its kernel, its operands and its size.

use std::ops::Range;

use super::limits::check_indices;
use super::planner::{Planner, StepRange};
use super::products::{Epilogue, Operand, Product, WeightGradient};
use super::{BufferId, DeviceCaps, Mode, Plan, RunPurpose, Stage, TrainingBuffers, limits};
use crate::error::Result;
use crate::spec::config::{Reset, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

impl Plan {
    /// Makes the schedule of a run. `layout`'s configuration made the shape.
    pub(crate) fn of_run(
        layout: &ParamLayout,
        shape: Shape,
        mode: Mode,
        options: RunOptions,
        purpose: RunPurpose,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        if let (RunPurpose::Evaluation(_), Some(head)) = (purpose, layout.head()) {
            let (limit, allowed) = ("the largest row count in f32", 1 << f32::MANTISSA_DIGITS);
            let what = || format!("the outputs of {shape}");
            limits::within(what, limit, head.rows(shape) as u64, allowed)?;
        }
        let mut planner = Planner::new(layout, shape, mode, options, purpose, caps)?;
        // Before the stages are made: this bounds the number of dispatches of a product.
        check_indices(planner.buffers.specs())?;
        let forward = planner.forward();
        let training = planner.run.training.as_ref();
        let backward = training.map(|t| planner.backward(t)).unwrap_or_default();
        let accumulators = training.map(|t| planner.accumulators(t)).unwrap_or_default();
        planner.products.add_partials(&mut planner.buffers);
        check_indices(planner.buffers.specs())?;
        let title = match (mode, planner.gates.kept) {
            (Mode::Inference, _) => "inference",
            (Mode::Training, true) => "training",
            (Mode::Training, false) => "training, gates recomputed",
        };
        Ok(Self {
            title: format!("{title}, {}; {shape}", layout.config()),
            buffers: planner.buffers.into_specs(),
            forward,
            backward,
            accumulators,
            run: Some(planner.run),
            carries: false,
            submit_flops: caps.dispatch_flops(),
            immediates: caps.immediates,
        })
    }
}

impl Planner<'_> {
    fn forward(&self) -> Vec<Stage> {
        (0..self.shape.layers)
            .flat_map(|layer| self.spans().flat_map(move |span| self.layer(layer, span)))
            .chain(self.outputs())
            .chain(self.evaluation())
            .collect()
    }

    /// Returns the stages of a layer for a span of steps, in all directions.
    fn layer(&self, layer: usize, span: StepRange) -> Vec<Stage> {
        let directions = 0..self.shape.directions;
        let products = directions.flat_map(|direction| self.input_product(layer, direction, span));
        products.chain(self.forward_steps(layer, span)).collect()
    }

    fn backward(&self, t: &TrainingBuffers) -> Vec<Stage> {
        let mut stages = self.head_backward(t);
        for layer in (0..self.shape.layers).rev() {
            for span in self.spans().rev() {
                // The gates of the last layer's last steps are still in memory.
                let kept = layer + 1 == self.shape.layers && span.end() == self.shape.steps;
                if !kept && !self.gates.kept {
                    stages.extend(self.layer(layer, span));
                }
                stages.extend(self.backward_steps(t, layer, span));
                for direction in 0..self.shape.directions {
                    stages.extend(self.input_gradient(t, layer, direction, span));
                    stages.extend(self.weight_gradients(t, layer, direction, span));
                }
            }
        }
        stages
    }

    /// Returns the buffers that a backward pass only adds to. They must be zero before it, because
    /// the spans of the two directions reach a step's dx at different times.
    fn accumulators(&self, t: &TrainingBuffers) -> Vec<BufferId> {
        let adds = self.shape.directions > 1 && self.gates.times < self.shape.steps;
        if adds { t.dx.iter().copied().flatten().collect() } else { Vec::new() }
    }

    /// Returns the epilogue of the parameters' gradients of a span. The first span of the backward
    /// pass overwrites the gradients, unless the gradients of several batches are accumulated.
    /// Other spans add to them.
    fn epilogue(&self, span: StepRange) -> Epilogue {
        let first = span.end() == self.shape.steps && !matches!(self.purpose, RunPurpose::Loss(_));
        if first { Epilogue::Zero } else { Epilogue::Present }
    }

    /// Returns the input product for the gates of a span's steps, outside the loop.
    fn input_product(&self, layer: usize, direction: usize, span: StepRange) -> Vec<Stage> {
        let Shape { batch, hidden, .. } = self.shape;
        let ranges = self.layout.cell(layer, direction);
        let weight = self.parameter(self.run.params, ranges.weight_ih);
        let bias = ranges.bias_ih.map(|range| self.parameter(self.run.params, range));
        let width = self.layout.config().layer_input_size(layer);
        self.products.matmul(&Product {
            label: self.cell_label(layer, direction, "gates[r z n] = x · W_ihᵀ + b_ih"),
            mnk: [span.steps * batch, 3 * hidden, width],
            a: self.rows((self.input(layer), 0), width, direction, span),
            b: Operand::transposed(weight, 0, width),
            epilogue: bias.map_or(Epilogue::Zero, Epilogue::Bias),
            c: Operand::plain(self.gates_of(layer, span), self.gates_at(direction, 0), 4 * hidden),
        })
    }

    fn input_gradient(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        direction: usize,
        span: StepRange,
    ) -> Vec<Stage> {
        let Some(dx) = t.dx[layer] else { return Vec::new() };
        let Shape { batch, hidden, .. } = self.shape;
        let width = self.layout.config().layer_input_size(layer);
        let weight = self.parameter(self.run.params, self.layout.cell(layer, direction).weight_ih);
        let present = direction > 0 || !self.accumulators(t).is_empty();
        self.products.matmul(&Product {
            label: self.cell_label(layer, direction, "dx = da · W_ih"),
            mnk: [span.steps * batch, width, 3 * hidden],
            a: Operand::plain(self.gates_of(layer, span), self.gates_at(direction, 0), 4 * hidden),
            b: Operand::plain(weight, 0, width),
            epilogue: if present { Epilogue::Present } else { Epilogue::Zero },
            c: self.rows((self.buffers.whole(dx), 0), width, direction, span),
        })
    }

    /// Returns the products for dW_ih and dW_hh, with the gradients of the biases beside them. The
    /// rows of r and z of dW_hh are products with h. The rows of n are products of h and the gradient
    /// of `W_hn h` (reset after), or of `r ⊙ h` and the gradient of n's pre-activation (reset
    /// before).
    fn weight_gradients(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        direction: usize,
        span: StepRange,
    ) -> Vec<Stage> {
        let Shape { batch, hidden, .. } = self.shape;
        let width = self.layout.config().layer_input_size(layer);
        let gates = self.gates_of(layer, span);
        let from = |gate| self.gates_at(direction, gate * hidden);
        let da = |gate| Operand::transposed(gates, from(gate), 4 * hidden);
        let x = self.rows((self.input(layer), 0), width, direction, span);
        let h = self.states(layer, direction, span);
        let ([label_n, label_dn], dn, past) = match self.layout.config().reset {
            Reset::After => (["dW_hn = dpastᵀ · h", "db_hn = Σ dpast"], da(3), h),
            Reset::Before => {
                let past = Operand::plain(gates, from(3), 4 * hidden);
                (["dW_hn = da_nᵀ · (r ⊙ h)", "db_hn = Σ da_n"], da(2), past)
            }
        };
        let ranges = self.layout.cell(layer, direction);
        let parameter = |range: &Range<usize>| self.parameter(t.dparams, range.clone());
        let bias = |range: &Option<Range<usize>>, gate| {
            range.as_ref().map(|range| (parameter(range), gate * hidden))
        };
        let [dw_ih, dw_hh] = [&ranges.weight_ih, &ranges.weight_hh].map(parameter);
        let label = |what: &str| self.cell_label(layer, direction, what);
        let gradient = |[what, sums]: [&str; 2], [m, n]: [usize; 2], a, b, (slice, first), bias| {
            let c = Operand::plain(slice, first, n);
            let (mnk, epilogue) = ([m, n, span.steps * batch], self.epilogue(span));
            let product = Product { label: label(what), mnk, a, b, epilogue, c };
            WeightGradient { product, bias, bias_label: label(sums) }
        };
        let labels_ih = ["dW_ih = daᵀ · x", "db_ih = Σ da"];
        let labels_rz = ["dW_hr, dW_hz = da_rzᵀ · h", "db_hr, db_hz = Σ da_rz"];
        let n_first = 2 * hidden * hidden;
        let [bias_ih, bias_rz, bias_n] =
            [bias(&ranges.bias_ih, 0), bias(&ranges.bias_hh, 0), bias(&ranges.bias_hh, 2)];
        self.products.weight_gradients(
            &label("dW, db = Σ parts"),
            &[
                gradient(labels_ih, [3 * hidden, width], da(0), x, (dw_ih, 0), bias_ih),
                gradient(labels_rz, [2 * hidden, hidden], da(0), h, (dw_hh, 0), bias_rz),
                gradient([label_n, label_dn], [hidden; 2], dn, past, (dw_hh, n_first), bias_n),
            ],
        )
    }
}
