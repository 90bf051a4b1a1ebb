//! One row per WGSL kernel: its source, bindings, constants, arguments and workgroup.
//!
//! This is the Rust mirror of `shaders/`. `kernels/tests.rs` holds every line of it against the
//! WGSL by naga's reflection, so the two cannot drift apart.

use crate::spec::element::ElementType;

/// Loop iterations that a kernel asks of one invocation at most on lavapipe, which ends every loop,
/// without an error, once all loops of an invocation have used up 65,535 iterations together.
/// Longer sums and sequences are cut into dispatches.
pub const LOOP_BUDGET: usize = 65_535;

/// How a kernel uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// The same of vec4: what is bound must be whole quads.
    ReadQuads,
    /// `var<storage, read_write>`
    ReadWrite,
}

/// A storage binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in WGSL.
    pub name: &'static str,
    pub access: Access,
    /// What the kernel takes the buffer's elements for.
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

    /// Bytes that the kernel reads or writes at once: the least that can be bound.
    pub fn min_size(&self) -> u64 {
        match self.access {
            Access::Read | Access::ReadWrite => self.element.size(),
            Access::ReadQuads => self.element.bytes(4),
        }
    }
}

/// A kernel as the schedule and the executor see it. Binding 0 is always `Args`, the others follow
/// from 1 in the order of `bindings`.
///
/// `Args` is a read-only storage binding at a dynamic offset, not a uniform: Mesa's lavapipe
/// compiles a kernel anew for each value of a uniform that its branches depend on.
#[derive(Debug)]
pub struct Kernel {
    /// The file's name in `shaders/`, without its ending.
    pub name: &'static str,
    /// `common.wgsl` and the kernel's own file. The entry point is `main`.
    pub source: &'static str,
    /// The bindings besides `Args`, in order.
    pub bindings: &'static [Binding],
    /// The members of `Args`, each a u32, in order.
    pub args: &'static [&'static str],
    /// The override constants, each a bool or a u32.
    pub constants: &'static [&'static str],
    /// What a workgroup takes and makes, by the constants' values.
    pub workgroup: fn(&[u32]) -> Workgroup,
}

impl Kernel {
    /// Storage buffers that the kernel binds, `Args` included.
    pub fn storage_buffers(&self) -> usize {
        1 + self.bindings.len()
    }

    /// Bytes of `Args`.
    pub fn args_size(&self) -> u64 {
        ElementType::U32.bytes(self.args.len())
    }

    /// Which of its arguments is called `name`.
    pub fn argument(&self, name: &str) -> Option<usize> {
        self.args.iter().position(|&arg| arg == name)
    }
}

/// What a workgroup of a kernel takes and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workgroup {
    /// Its threads.
    pub threads: u64,
    /// Bytes of its own memory.
    pub bytes: u64,
    /// Columns and rows of the output that it makes.
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

/// A kernel's `Args` or constants: a struct of u32 with the names of its fields.
macro_rules! args {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: u32),* }

        impl $name {
            /// The fields' names, in order.
            #[allow(dead_code, reason = "of constants, whose names in WGSL are written out")]
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// The fields, in order.
            pub fn as_u32s(&self) -> &[u32] {
                bytemuck::cast_slice(std::slice::from_ref(self))
            }
        }
    };
}

mod products;
mod recurrence;
mod training;

#[cfg(test)]
mod tests;

pub use products::{COLUMN_SUM, ColumnSumArgs, MATMUL, MatmulArgs, MatmulConstants};
pub use recurrence::{BACKWARD, FORWARD, StepArgs, StepConstants};
pub use training::{
    GRADIENT_NORM, GradientNormArgs, LOSS, LossArgs, LossConstants, OPTIMIZER, OptimizerArgs,
    loss_kind,
};

/// Every kernel.
#[cfg(test)]
static ALL: [&Kernel; 7] =
    [&MATMUL, &COLUMN_SUM, &FORWARD, &BACKWARD, &LOSS, &GRADIENT_NORM, &OPTIMIZER];
