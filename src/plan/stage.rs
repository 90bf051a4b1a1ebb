//! The contents of a schedule: dispatches of kernels, one after another or in a loop over steps.

use std::borrow::Cow;

use super::{BufferSlice, DeviceCaps};
use crate::kernels::Kernel;

/// One dispatch of a kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dispatch {
    /// The formula that the dispatch computes, as text: `gates[r z n] = x · W_ihᵀ + b_ih`.
    pub label: String,
    pub(crate) kernel: &'static Kernel,
    /// The values of the kernel's override constants, in order; a bool is 0 or 1.
    pub(crate) constants: Vec<u32>,
    /// The slice for each storage binding, in the kernel's order.
    pub(crate) bindings: Vec<BufferSlice>,
    /// The kernel's arguments, in order. A loop sets the argument named `step`.
    pub(crate) args: Vec<u32>,
    /// The number of workgroups along x, y and z.
    pub workgroups: [u64; 3],
    /// The multiplications and additions of the dispatch's products, without elementwise work.
    pub flops: u64,
    /// The multiplications and additions including the padding of tiles.
    pub padded_flops: u64,
    /// The bytes that the dispatch must move at least, each element once.
    pub bytes: u64,
    /// An upper bound on the loop iterations of one invocation.
    pub iterations: u64,
}

impl Dispatch {
    /// Returns the kernel's name, which is the name of its file in `shaders/`.
    pub fn kernel_name(&self) -> &'static str {
        self.kernel.file
    }

    /// Returns the key of the compute pipeline that the dispatch needs: its kernel's name, and the
    /// values of the override constants.
    pub(crate) fn pipeline(&self) -> (&'static str, &[u32]) {
        (self.kernel.name, &self.constants)
    }

    /// Returns what the dispatch's compute pipeline is compiled from on a device with these
    /// capabilities. Dispatches with the same shader share a pipeline.
    pub fn shader(&self, caps: &DeviceCaps) -> Shader {
        let Kernel { name, constants, .. } = self.kernel;
        let (source, threads) = (self.kernel.source_in(caps.args_space()), self.threads());
        let constants = constants.iter().copied().zip(self.constants.iter().copied()).collect();
        Shader { name, source, constants, threads }
    }

    /// Returns the threads of a workgroup.
    pub fn threads(&self) -> u64 {
        (self.kernel.workgroup)(&self.constants).threads
    }

    /// Returns the slice for each storage binding, in the kernel's order.
    pub fn bindings(&self) -> &[BufferSlice] {
        &self.bindings
    }

    /// Returns the names and values of the kernel's arguments, in the order of its `Args`, each a
    /// u32. A loop sets the argument named `step`.
    pub fn args(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.kernel.args.iter().copied().zip(self.args.iter().copied())
    }

    /// Returns the number of steps (backward: states) that a recurrence kernel runs one after the
    /// other; `None` for any other kernel.
    pub fn recurrent_steps(&self) -> Option<usize> {
        self.kernel.argument("count").map(|count| self.args[count] as usize)
    }
}

/// What a dispatch's compute pipeline is compiled from, for tools that compile kernels themselves
/// (`benches/kernel_stats`, `benches/gpu_probes`). The entry point is `main`. Workgroup memory is not
/// zeroed, and loops are not bounded: wgpu's `force_loop_bounding` is off.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shader {
    /// The kernel's name. Kernels that differ in the types of their bindings share a file, and so
    /// a [`Dispatch::kernel_name`], but not this name.
    pub name: &'static str,
    /// The WGSL source.
    pub source: Cow<'static, str>,
    /// The names and values of the override constants; a bool is 0 or 1.
    pub constants: Vec<(&'static str, u32)>,
    /// The threads of a workgroup.
    pub threads: u64,
}

/// A stage of a schedule.
#[derive(Clone, Debug)]
pub enum Stage {
    /// One dispatch.
    Once(Dispatch),
    /// A loop that runs `body` for each step from `first` to `last`, both included, upwards or
    /// downwards.
    Steps {
        /// The first step (backward: state).
        first: usize,
        /// The last step (backward: state).
        last: usize,
        /// The dispatches of each step, in order.
        body: Vec<Dispatch>,
    },
}

impl Stage {
    /// Returns the stage's dispatches, and how many times each runs.
    pub fn dispatches(&self) -> (&[Dispatch], usize) {
        match self {
            Stage::Once(dispatch) => (std::slice::from_ref(dispatch), 1),
            Stage::Steps { first, last, body } => (body, first.abs_diff(*last) + 1),
        }
    }

    /// Returns the steps for which the stage runs its dispatches, in order.
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
