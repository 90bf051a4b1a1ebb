//! [`Planner`]: what every stage of a run draws on, the buffers and where things lie in them.

use std::ops::Range;

use super::products::Operand;
use super::{BufferId, Buffers, Mode, Role, RunBuffers, Slice, TrainingBuffers};
use crate::config::Shape;
use crate::params::ParamLayout;

/// What every stage of a run draws on.
pub(super) struct Planner<'a> {
    pub layout: &'a ParamLayout,
    pub shape: Shape,
    pub buffers: Buffers,
    pub run: RunBuffers,
    /// `[D, T, B, 4H]`, a layer each: r, z, n, past; in backward their gradients.
    pub gates: Vec<BufferId>,
    /// `[3H]` of zeros: the hidden bias of a model without one.
    pub zeros: BufferId,
}

/// A rectangle of a layer's input: the columns of x, or the half that one direction of the layer
/// below put out.
pub(super) struct InputPart {
    pub rows: Operand,
    pub columns: Range<usize>,
}

impl<'a> Planner<'a> {
    pub fn new(layout: &'a ParamLayout, shape: Shape, mode: Mode) -> Self {
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
        let (mut gates, mut h) = (Vec::new(), Vec::new());
        for layer in 0..shape.layers {
            let gates_axes = axes("[T, B, 4H]", "[2, T, B, 4H]");
            let len = directions * rows * 4 * hidden;
            gates.push(buffers.add(&name("gates", layer), gates_axes, len, Role::Scratch));
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
        Self { layout, shape, buffers, run, gates, zeros }
    }

    /// A layer's input, in as many parts as buffers hold it.
    pub fn input_parts(&self, layer: usize) -> Vec<InputPart> {
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
    pub fn states(&self, layer: usize, direction: usize, first: usize) -> Operand {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let row = direction * (steps + 1) + first;
        Operand::plain(self.buffers.whole(self.run.h[layer]), row * batch * hidden, hidden)
    }

    pub fn gates(&self, layer: usize) -> Slice {
        self.buffers.whole(self.gates[layer])
    }

    /// Where a direction's gates start, from their column `column`.
    pub fn gates_at(&self, direction: usize, column: usize) -> usize {
        let Shape { steps, batch, hidden, .. } = self.shape;
        direction * steps * batch * 4 * hidden + column
    }

    /// A named range of a buffer that is laid out as the parameters.
    pub fn parameter(&self, buffer: BufferId, range: Range<usize>) -> Slice {
        Slice { buffer, first: range.start, len: range.len() }
    }

    /// What a dispatch of a layer does, and of which where there are several.
    pub fn label(&self, layer: usize, what: &str) -> String {
        match self.shape.layers {
            1 => what.to_owned(),
            _ => format!("l{layer}: {what}"),
        }
    }

    /// The same for one direction.
    pub fn cell_label(&self, layer: usize, direction: usize, what: &str) -> String {
        let reverse = if direction == 1 { "reverse: " } else { "" };
        self.label(layer, &format!("{reverse}{what}"))
    }
}
