//! The ids of the buffers that a caller writes, reads or binds.

use std::ops::Range;

use super::BufferId;
use crate::spec::config::Shape;

/// The buffers of a run. Sequences have their axes T and B in the shape's layout.
#[derive(Clone, Debug)]
pub(crate) struct RunBuffers {
    /// `[T, B, I]`
    pub x: BufferId,
    /// `[T, B]` of u32: bits of [`step_flag`](mod@crate::step_flag). In training four more elements
    /// follow, the seed of the random draws.
    pub step_flags: BufferId,
    /// `[3, L·D, B, H]`: the first states, the reset states and the last states.
    pub states: BufferId,
    /// `[T, B, D·H]`
    pub y: BufferId,
    /// The flat parameters.
    pub params: BufferId,
    /// Only in training.
    pub training: Option<TrainingBuffers>,
    /// Only in runs of a network.
    pub head: Option<HeadBuffers>,
}

/// The buffers of a backward pass.
#[derive(Clone, Debug)]
pub(crate) struct TrainingBuffers {
    /// `[T, B, D·H]`
    pub dy: BufferId,
    /// The gradients of `states`, in the same layout. The input is dh_n. The outputs are dh0 and
    /// the gradient of the reset states.
    pub dstates: BufferId,
    /// The gradient of each layer's input: `[T, B, I]`, then `[T, B, D·H]`. If only the gradient of
    /// the parameters is needed, x has none.
    pub dx: Vec<Option<BufferId>>,
    /// The gradient of the parameters, in their layout.
    pub dparams: BufferId,
}

/// The buffers of a linear head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadBuffers {
    /// `[rows, C]`: the outputs. A training loss replaces them with their gradient.
    pub outputs: BufferId,
    /// Only with a loss.
    pub loss: Option<LossBuffers>,
}

/// The buffers of a loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossBuffers {
    /// `[rows, C]` of f32 or `[rows]` of u32.
    pub targets: BufferId,
    /// `[rows]`: the weight of each row.
    pub weights: BufferId,
    /// `[rows]`: each row's loss. In evaluation `[rows, 2]`, with 1 if the row is correct.
    pub each: BufferId,
    /// `[1]`: the sum of losses, to which a run adds. In evaluation `[2]`: loss and number of
    /// correct rows, which a run overwrites.
    pub sum: BufferId,
}

/// A third of `states`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateSlot {
    First,
    Reset,
    Last,
}

impl StateSlot {
    /// Returns the slot's range of elements in a run of `shape`.
    pub fn range(self, shape: Shape) -> Range<usize> {
        let len = shape.state().iter().product::<usize>();
        self as usize * len..(self as usize + 1) * len
    }
}
