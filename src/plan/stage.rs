//! What a plan does: dispatches of kernels, one after another or in a loop over steps.

use super::BufferSlice;
use crate::kernels::Kernel;

/// One dispatch of one kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dispatch {
    /// What it computes, for people: `gates[r z n] = x · W_ihᵀ + b_ih`.
    pub label: String,
    pub(crate) kernel: &'static Kernel,
    /// Values of the kernel's override constants, in its order; a bool is 0 or 1.
    pub(crate) constants: Vec<u32>,
    /// What each storage binding gets, in the kernel's order.
    pub(crate) bindings: Vec<BufferSlice>,
    /// The kernel's arguments, in its order. A loop sets the one named `step`.
    pub(crate) args: Vec<u32>,
    /// Workgroups along x, y, z.
    pub workgroups: [u64; 3],
    /// Multiplications and additions of its products (elementwise work not counted).
    pub flops: u64,
    /// The same with those that its threads make for tiles' padding.
    pub padded_flops: u64,
    /// Bytes it must move at least, each element once.
    pub bytes: u64,
    /// An upper bound of the loop iterations of one invocation.
    pub iterations: u64,
}

impl Dispatch {
    /// The name of its kernel, which is that of the file in `shaders/`.
    pub fn kernel_name(&self) -> &'static str {
        self.kernel.name
    }

    /// What its storage bindings get, in the kernel's order.
    pub fn bindings(&self) -> &[BufferSlice] {
        &self.bindings
    }

    /// Steps, or states of a backward pass, that a kernel of the recurrence takes one after
    /// another; `None` of any other kernel.
    pub fn recurrent_steps(&self) -> Option<usize> {
        self.kernel.argument("count").map(|count| self.args[count] as usize)
    }
}

/// A stage of a schedule.
#[derive(Clone, Debug)]
pub enum Stage {
    /// One dispatch.
    Once(Dispatch),
    /// `body` for each step from `first` to `last`, both included, upwards or downwards.
    Steps {
        /// The first step (forward) or state (backward).
        first: usize,
        /// The last one.
        last: usize,
        /// What is dispatched for each, in order.
        body: Vec<Dispatch>,
    },
}

impl Stage {
    /// The stage's dispatches, each as it stands in the schedule, and how often each runs.
    pub fn dispatches(&self) -> (&[Dispatch], usize) {
        match self {
            Stage::Once(dispatch) => (std::slice::from_ref(dispatch), 1),
            Stage::Steps { first, last, body } => (body, first.abs_diff(*last) + 1),
        }
    }

    /// The steps that the stage runs its dispatches for, in order.
    pub(crate) fn steps(&self) -> Box<dyn Iterator<Item = Option<u32>>> {
        match *self {
            Stage::Once(_) => Box::new(std::iter::once(None)),
            Stage::Steps { first, last, .. } if first <= last => {
                Box::new((first..=last).map(|t| Some(t as u32)))
            }
            Stage::Steps { first, last, .. } => {
                Box::new((last..=first).rev().map(|t| Some(t as u32)))
            }
        }
    }
}
