//! [`Planner`]: the context of all stages of a run: its buffers and the positions of data in them.

use std::ops::Range;

use super::allocate::{Allocation, ELEMENT, GateStorage, LayerBuffers, h_times};
use super::products::{Operand, ProductPlanner};
use super::tiles::RecurrenceKernels;
use super::{
    BufferId, BufferList, BufferSlice, DeviceCaps, ElementType, Mode, RunBuffers, RunPurpose,
};
use crate::error::Result;
use crate::spec::config::{Layout, Shape};
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

/// The context of all stages of a run: its options, its buffers and its kernels.
pub(super) struct Planner<'a> {
    pub layout: &'a ParamLayout,
    pub shape: Shape,
    pub mode: Mode,
    pub purpose: RunPurpose,
    pub caps: &'a DeviceCaps,
    pub recurrence: RecurrenceKernels,
    /// The element type of states, gates and sequences.
    pub element: ElementType,
    pub gates: GateStorage,
    pub buffers: BufferList,
    pub run: RunBuffers,
    /// One entry per layer; in inference one entry for all.
    pub layers: Vec<LayerBuffers>,
    /// `[3H]` of zeros: the hidden bias of a model that has none.
    pub zeros: BufferId,
    pub products: ProductPlanner<'a>,
}

/// The distances between the rows of a matrix of sequences.
pub(super) struct RowStrides {
    pub time: usize,
    pub row: usize,
}

/// A range of steps in a direction's own order, whose gates are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepRange {
    pub first: usize,
    pub steps: usize,
}

impl StepRange {
    pub fn end(self) -> usize {
        self.first + self.steps
    }
}

/// Returns the FLOPs of a forward pass's products, without the head's.
fn forward_flops(layout: &ParamLayout, shape: Shape) -> u64 {
    let Shape { steps, batch, hidden, layers, directions, .. } = shape;
    let widths = (0..layers).map(|layer| layout.config().layer_input_size(layer) + hidden);
    let factors = [6, steps, batch, directions, hidden, widths.sum()];
    factors.into_iter().fold(1, |flops, factor| flops.saturating_mul(factor as u64))
}

impl<'a> Planner<'a> {
    pub fn new(
        layout: &'a ParamLayout,
        shape: Shape,
        mode: Mode,
        options: RunOptions,
        purpose: RunPurpose,
        caps: &'a DeviceCaps,
    ) -> Result<Self> {
        let gates = GateStorage::choose(shape, mode, options, caps);
        let recurrence = RecurrenceKernels::choose(
            layout.config(),
            [shape.steps, shape.batch],
            options.recurrence,
            caps,
        )?;
        let allocation = Allocation::new(layout, shape, mode, purpose, gates);
        let Allocation { buffers, run, layers, zeros } = allocation;
        let products = ProductPlanner::new(caps, forward_flops(layout, shape), &buffers);
        let element = ELEMENT;
        Ok(Self {
            layout,
            shape,
            mode,
            purpose,
            caps,
            recurrence,
            element,
            gates,
            buffers,
            run,
            layers,
            zeros,
            products,
        })
    }

    /// Splits the steps into spans whose gates fit into a buffer.
    pub fn spans(&self) -> impl DoubleEndedIterator<Item = StepRange> + use<> {
        let (steps, most) = (self.shape.steps, self.gates.times);
        (0..steps.div_ceil(most)).map(move |i| {
            let first = i * most;
            StepRange { first, steps: most.min(steps - first) }
        })
    }

    /// Returns the number of states per batch row that a layer's `h` holds.
    pub fn h_times(&self) -> usize {
        h_times(self.mode, self.shape.steps)
    }

    /// Returns the distances between rows in arrays that hold `times` steps of each batch row.
    pub fn strides(&self, times: usize) -> RowStrides {
        match self.shape.layout {
            Layout::TimeMajor => RowStrides { time: self.shape.batch, row: 1 },
            Layout::BatchFirst => RowStrides { time: 1, row: times },
        }
    }

    /// Returns the index of a layer's `[D, B, H]` in `states`. `section` selects the first (0), the
    /// reset (1) or the last states (2).
    pub fn states_at(&self, layer: usize, section: usize) -> usize {
        let Shape { batch, hidden, directions, layers, .. } = self.shape;
        (section * layers + layer) * directions * batch * hidden
    }

    /// Returns a layer's input. In training the input's gradient has the same shape.
    pub fn input(&self, layer: usize) -> BufferSlice {
        self.buffers.whole(match layer {
            0 => self.run.x,
            _ => self.layers[layer - 1].y,
        })
    }

    /// Returns a span's rows of a sequence `[T, B, width]`, in the run's layout, from element
    /// `first` of the slice.
    pub fn rows(
        &self,
        (slice, first): (BufferSlice, usize),
        width: usize,
        direction: usize,
        span: StepRange,
    ) -> Operand {
        let steps = self.shape.steps;
        let reverse = self.layout.config().direction.is_reverse(direction);
        let time = if reverse { steps - span.end() } else { span.first };
        let all = Operand::plain(slice, first + time * self.strides(steps).time * width, width);
        match self.shape.layout {
            Layout::BatchFirst if span.steps < steps => all.in_runs(span.steps, steps * width),
            Layout::BatchFirst | Layout::TimeMajor => all,
        }
    }

    /// Returns a span's rows of the states that a direction's steps start from, in a training plan.
    pub fn states(&self, layer: usize, direction: usize, span: StepRange) -> Operand {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let first = direction * steps * batch * hidden;
        let h = self.buffers.whole(self.layers[layer].h);
        self.rows((h, first), hidden, direction, span)
    }

    /// Returns the gates of a span's steps.
    pub fn gates_of(&self, layer: usize, span: StepRange) -> BufferSlice {
        let BufferId(first) = self.layers[layer].gates;
        let nth = if self.gates.kept { span.first / self.gates.times } else { 0 };
        self.buffers.whole(BufferId(first + nth))
    }

    /// Returns the index of a direction's gates, from column `column` on.
    pub fn gates_at(&self, direction: usize, column: usize) -> usize {
        let Shape { batch, hidden, .. } = self.shape;
        direction * self.gates.times * batch * 4 * hidden + column
    }

    /// Returns a named range of a buffer with the layout of the parameters.
    pub fn parameter(&self, buffer: BufferId, range: Range<usize>) -> BufferSlice {
        self.buffers.slice(buffer, range)
    }

    /// Returns the label of a layer's dispatch, with the layer's number if there are several.
    pub fn label(&self, layer: usize, what: &str) -> String {
        match self.shape.layers {
            1 => what.to_owned(),
            _ => format!("l{layer}: {what}"),
        }
    }

    /// Returns the label of a dispatch of one direction.
    pub fn cell_label(&self, layer: usize, direction: usize, what: &str) -> String {
        let reverse =
            if self.layout.config().direction.is_reverse(direction) { "reverse: " } else { "" };
        self.label(layer, &format!("{reverse}{what}"))
    }
}
