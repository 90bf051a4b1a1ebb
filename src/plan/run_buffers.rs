//! The buffers of a run, by meaning: what a caller writes, reads and binds.

use std::ops::Range;

use super::BufferId;
use crate::spec::config::Shape;

/// The buffers of a run, by meaning. Sequences have their axes T and B as the shape's layout says.
#[derive(Clone, Debug)]
pub(crate) struct RunBuffers {
    /// `[T, B, I]`
    pub x: BufferId,
    /// `[T, B]` of u32: bits of [`step_flag`](mod@crate::step_flag). While training four more,
    /// what is drawn from.
    pub step_flags: BufferId,
    /// `[3, L·D, B, H]`: the first states, those that resets go back to, and the last.
    pub states: BufferId,
    /// `[T, B, D·H]`
    pub y: BufferId,
    /// The flat parameters.
    pub params: BufferId,
    /// What only training has.
    pub training: Option<TrainingBuffers>,
    /// What only a network's runs have.
    pub head: Option<HeadBuffers>,
}

/// The buffers of a backward pass, by meaning.
#[derive(Clone, Debug)]
pub(crate) struct TrainingBuffers {
    /// `[T, B, D·H]`
    pub dy: BufferId,
    /// The gradients of states, in their places: dh_n in; dh0 and the reset states' out.
    pub dstates: BufferId,
    /// Of each layer's input: `[T, B, I]`, then `[T, B, D·H]`. Where only the parameters' gradient
    /// is asked for, there is none of x.
    pub dx: Vec<Option<BufferId>>,
    /// Laid out as the parameters.
    pub dparams: BufferId,
}

/// The buffers of a linear head, by meaning, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadBuffers {
    /// `[rows, C]`; of a loss, their gradient in the end.
    pub outputs: BufferId,
    /// What a loss needs besides.
    pub loss: Option<LossBuffers>,
}

/// The buffers of a loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossBuffers {
    /// `[rows, C]` of f32 or `[rows]` of u32.
    pub targets: BufferId,
    /// `[rows]`: what each row counts.
    pub weights: BufferId,
    /// `[rows]`: each row's loss. In evaluation `[rows, 2]`, with 1 where the row is correct.
    pub each: BufferId,
    /// `[1]`: added to. In evaluation `[2]`: written.
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
    /// Its elements in a run of `shape`.
    pub fn range(self, shape: Shape) -> Range<usize> {
        let len = shape.state().iter().product::<usize>();
        self as usize * len..(self as usize + 1) * len
    }
}
