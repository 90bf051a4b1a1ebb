//! One row per WGSL kernel: its source, bindings, constants, arguments and workgroup.
//!
//! This is the Rust mirror of `shaders/`. `kernels/tests.rs` compares every line with the WGSL by
//! naga's reflection.
//!
//! # Constants and arguments
//!
//! The driver compiles a pipeline for each set of override constants that a run uses, for up to a
//! second on a software adapter. So a value is an argument, unless one of these reasons makes it a
//! constant. Everything else (definition, biases, padding, directions, layout, sizes, the operands'
//! transposes) is an argument, and models of one shape and the same activations share their
//! pipelines. A kernel that loads
//! four numbers at a time has a second row for rows that do not start at a multiple of four
//! (`_scalar`): WGSL gives a binding one type.
//!
//! | constant | kernels | why it is not an argument |
//! |---|---|---|
//! | `UNIT_QUADS`, `SPLIT_K`, `ROW_GROUPS` | `forward`, `backward` | a workgroup's threads |
//! | `DEPTH_QUADS`, `PRODUCTS` | `forward`, `backward` | sizes of workgroup memory |
//! | `ROWS` | `forward`, `backward` | sums in registers; sizes of workgroup memory |
//! | `RESIDENT` | `forward`, `backward` | barriers: operands stay from step to step |
//! | `PARTS`, `ROWS`, `THREADS`, `UNIT_QUADS` | `persistent_forward`, `persistent_backward` | a workgroup's threads; sizes of workgroup memory |
//! | `BLOCKS` | `persistent_forward`, `persistent_backward` | weights in registers |
//! | `RESET_BEFORE` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | two products one after the other, or three at once |
//! | `GATES_RZ`, `GATE_N` | `forward`, `backward` | with reset before, a step's two dispatches: sums in registers, barriers |
//! | `NOISE` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | random draws: half of a step's code |
//! | `GATE`, `GATE_ALPHA`, `GATE_BETA`, `CANDIDATE`, `CANDIDATE_ALPHA`, `CANDIDATE_BETA` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | all activations together are half of a step's code, and their numbers do not fit immediates |
//! | `CLIPS`, `GATE_LEAST`, `GATE_MOST`, `CANDIDATE_LEAST`, `CANDIDATE_MOST` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | with the activations |
//! | `REVERSE_DIFFERS`, `REVERSE_GATE`, `REVERSE_GATE_ALPHA`, `REVERSE_GATE_BETA`, `REVERSE_GATE_LEAST`, `REVERSE_GATE_MOST` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | with the activations |
//! | `REVERSE_CANDIDATE`, `REVERSE_CANDIDATE_ALPHA`, `REVERSE_CANDIDATE_BETA`, `REVERSE_CANDIDATE_LEAST`, `REVERSE_CANDIDATE_MOST` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | with the activations |
//! | `HARDWARE_EXP` | `forward`, `backward`, `persistent_forward`, `persistent_backward` | the code of an exponential |
//! | `M_THREADS`, `N_THREADS` | `matmul` | a workgroup's threads; sizes of workgroup memory |
//! | `N_QUADS` | `matmul` | sums in registers |
//! | `SIDE` | `matmul_blocks` | sums in registers |
//! | `DEPTH` | `matmul` | sizes of workgroup memory; an unrolled loop |
//! | `RUNS` | `matmul`, `matmul_large`, `matmul_blocks` | integer divisions for every load |
//! | `LOSS`, `DIFFERENTIATE` | `loss` | different sums, and barriers between them |
//! | `LANES` | `loss` | the number of barriers |
//! | `FINISH` | `gradient_norm` | reads numbers, or partial results of three kinds |
//! | `ADAM`, `CLIP`, `CHECK` | `optimizer` | loads of moments and of the gradient's norm |

use std::borrow::Cow;

use crate::spec::element::ElementType;

/// The most loop iterations that a kernel makes in one invocation on lavapipe. lavapipe silently
/// ends all loops of an invocation after 65,535 iterations in total. Longer sums and sequences are
/// split into several dispatches.
pub const LOOP_BUDGET: usize = 65_535;

/// How a kernel accesses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read>` of vec4: the bound range must be whole quads.
    ReadQuads,
    /// `var<storage, read_write>`
    ReadWrite,
    /// `var<storage, read_write>` of vec4.
    ReadWriteQuads,
}

/// A storage binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in WGSL.
    pub name: &'static str,
    pub access: Access,
    /// The element type that the kernel reads.
    pub element: ElementType,
}

impl Binding {
    const fn read(name: &'static str, element: ElementType) -> Self {
        Self { name, access: Access::Read, element }
    }

    const fn read_quads(name: &'static str, element: ElementType) -> Self {
        Self { name, access: Access::ReadQuads, element }
    }

    const fn read_write(name: &'static str, element: ElementType) -> Self {
        Self { name, access: Access::ReadWrite, element }
    }

    const fn read_write_quads(name: &'static str, element: ElementType) -> Self {
        Self { name, access: Access::ReadWriteQuads, element }
    }

    /// Returns true if the kernel writes the binding.
    pub fn is_written(&self) -> bool {
        matches!(self.access, Access::ReadWrite | Access::ReadWriteQuads)
    }

    /// Returns true if the kernel accesses four elements at once.
    pub fn is_quads(&self) -> bool {
        matches!(self.access, Access::ReadQuads | Access::ReadWriteQuads)
    }

    /// Returns the bytes that the kernel reads or writes at once, the smallest range that can be
    /// bound.
    pub fn min_size(&self) -> u64 {
        if self.is_quads() { self.element.bytes(4) } else { self.element.size() }
    }
}

/// A kernel's interface to the schedule and the executor. Binding 0 is always `Args`; the others
/// follow from 1 in the order of `bindings`.
///
/// `Args` is a read-only storage binding at a dynamic offset, or immediates where [`ArgsSpace`] says
/// so. It is not a uniform: Mesa's lavapipe compiles a kernel again for each value of a uniform that
/// its branches depend on.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel's own name.
    pub name: &'static str,
    /// The name of the file in `shaders/` that has the entry point, without its extension.
    pub file: &'static str,
    /// The source: `common.wgsl`, the files that the kernel shares with others, and its own. The
    /// entry point is `main`.
    pub source: &'static str,
    /// The bindings after `Args`, in order.
    pub bindings: &'static [Binding],
    /// The members of `Args`, each a u32, in order.
    pub args: &'static [&'static str],
    /// The override constants, each a bool or a u32.
    pub constants: &'static [&'static str],
    /// Returns the workgroup's resources and its tile, from the constants' values.
    pub workgroup: fn(&[u32]) -> Workgroup,
}

/// The address space of a kernel's `Args`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgsSpace {
    /// A storage buffer, as in `shaders/`. Every device has it.
    Storage,
    /// wgpu's immediates, which the command buffer holds: a kernel need not load them before it can
    /// start, and they take no registers.
    Immediate,
}

/// The most bytes of a kernel's `Args`. Vulkan and DirectX guarantee as many for immediates.
pub const MAX_ARGS_SIZE: u64 = 128;

const ARGS_BINDING: &str = "@group(0) @binding(0) var<storage, read>";

impl Kernel {
    /// Returns the source with `Args` in `space`.
    pub fn source_in(&self, space: ArgsSpace) -> Cow<'static, str> {
        match space {
            ArgsSpace::Storage => self.source.into(),
            ArgsSpace::Immediate => self.source.replace(ARGS_BINDING, "var<immediate>").into(),
        }
    }

    /// Returns the number of storage buffers that the kernel binds, including `Args`.
    pub fn storage_buffers(&self) -> usize {
        1 + self.bindings.len()
    }

    /// Returns the bytes of `Args`.
    pub fn args_size(&self) -> u64 {
        ElementType::U32.bytes(self.args.len())
    }

    /// Returns the index of the argument `name`.
    pub fn argument(&self, name: &str) -> Option<usize> {
        self.args.iter().position(|&arg| arg == name)
    }
}

/// The resources that a kernel's workgroup uses, and its tile of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workgroup {
    /// Threads.
    pub threads: u64,
    /// Bytes of workgroup memory.
    pub bytes: u64,
    /// Columns and rows of the output that the workgroup computes.
    pub tile: [u32; 2],
}

macro_rules! kernel_source {
    ($($file:literal),+) => {
        concat!(
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/common.wgsl")),
            $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file, ".wgsl"))),+
        )
    };
}

/// Defines a kernel's `Args` or constants: a struct of u32 fields with their names.
macro_rules! args {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: u32),* }

        impl $name {
            /// The names of the fields, in order.
            #[allow(dead_code, reason = "unused for constants, whose WGSL names are listed by hand")]
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// Returns the fields, in order.
            pub fn as_u32s(&self) -> &[u32] {
                bytemuck::cast_slice(std::slice::from_ref(self))
            }
        }
    };
}

mod activations;
mod products;
mod recurrence;
mod training;

#[cfg(test)]
mod tests;

pub use activations::ActivationConstants;
pub use products::{
    BLOCKS_DEPTH, BLOCKS_THREADS, COLUMN_SUM, COLUMN_SUM_BLOCK, COLUMN_SUM_LANES,
    COLUMN_SUM_THREADS, ColumnSumArgs, LARGE_DEPTH, LARGE_SIDE, MATMUL, MATMUL_BLOCKS,
    MATMUL_BLOCKS_SCALAR, MATMUL_LARGE, MATMUL_LARGE_SCALAR, MatmulArgs, MatmulConstants,
};
pub use recurrence::{
    BACKWARD, BACKWARD_LANES, BACKWARD_LANES_SCALAR, BACKWARD_SCALAR, FORWARD, FORWARD_LANES,
    FORWARD_LANES_SCALAR, FORWARD_SCALAR, MAX_BLOCKS, PERSISTENT_BACKWARD,
    PERSISTENT_BACKWARD_SCALAR, PERSISTENT_FORWARD, PERSISTENT_FORWARD_SCALAR, PersistentConstants,
    StepArgs, StepConstants, step_mode,
};
pub use training::{
    GRADIENT_NORM, GradientNormArgs, LOSS, LossArgs, LossConstants, OPTIMIZER, OptimizerArgs,
    loss_kind,
};

/// Every kernel.
#[cfg(test)]
static ALL: [&Kernel; 21] = [
    &MATMUL,
    &MATMUL_LARGE,
    &MATMUL_LARGE_SCALAR,
    &MATMUL_BLOCKS,
    &MATMUL_BLOCKS_SCALAR,
    &COLUMN_SUM,
    &FORWARD,
    &FORWARD_SCALAR,
    &FORWARD_LANES,
    &FORWARD_LANES_SCALAR,
    &BACKWARD,
    &BACKWARD_SCALAR,
    &BACKWARD_LANES,
    &BACKWARD_LANES_SCALAR,
    &PERSISTENT_FORWARD,
    &PERSISTENT_FORWARD_SCALAR,
    &PERSISTENT_BACKWARD,
    &PERSISTENT_BACKWARD_SCALAR,
    &LOSS,
    &GRADIENT_NORM,
    &OPTIMIZER,
];
