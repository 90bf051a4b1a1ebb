//! The kernels for losses and updates.

use bytemuck::{Pod, Zeroable};

use super::{Binding, Kernel, Workgroup};
use crate::spec::element::ElementType::{F32, U32};
use crate::spec::loss::Loss;

args! {
    /// Arguments of [`LOSS`].
    LossArgs {
        /// Rows of outputs.
        rows,
        /// C, the outputs of a row.
        width,
        /// Huber's δ, an f32.
        delta,
    }
}

args! {
    /// The override constants of [`LOSS`], in the order of their names in WGSL.
    LossConstants {
        /// The code of the loss.
        loss,
        /// Threads per row.
        lanes,
        /// 1: the gradient replaces the outputs. 0: the outputs stay, and correct rows are counted.
        differentiate,
    }
}

/// Returns the shader's code of a loss.
pub fn loss_kind(loss: &Loss) -> u32 {
    match loss {
        Loss::MeanSquared => 0,
        Loss::Huber { .. } => 1,
        Loss::CrossEntropy { .. } => 2,
    }
}

fn loss_workgroup(constants: &[u32]) -> Workgroup {
    Workgroup { threads: 64, bytes: F32.bytes(64), tile: [1, 64 / constants[1]] }
}

/// The loss of each row of outputs. Replaces the outputs by their gradients, or counts the correct
/// rows.
pub static LOSS: Kernel = Kernel {
    name: "loss",
    file: "loss",
    source: kernel_source!("loss"),
    bindings: &[
        Binding::read_write("outputs", F32),
        Binding::read("targets", U32), // bits of f32 unless targets are classes
        Binding::read("weights", F32),
        Binding::read_write("losses", F32),
    ],
    args: LossArgs::FIELDS,
    constants: &["LOSS", "LANES", "DIFFERENTIATE"],
    workgroup: loss_workgroup,
};

args! {
    /// Arguments of [`GRADIENT_NORM`].
    GradientNormArgs {
        /// Elements of the gradient, or the number of partial results.
        length,
        /// Elements per workgroup.
        part,
        /// Updates that `reports` has slots for.
        slots,
    }
}

/// The norm of a gradient and its largest element: partial results first, then their combination.
pub static GRADIENT_NORM: Kernel = Kernel {
    name: "gradient_norm",
    file: "gradient_norm",
    source: kernel_source!("gradient_norm"),
    bindings: &[
        Binding::read("gradient", F32),
        Binding::read("loss", F32),
        Binding::read("update", U32),
        Binding::read_write("partials", U32),
        Binding::read_write("reports", U32),
    ],
    args: GradientNormArgs::FIELDS,
    constants: &["FINISH"],
    workgroup: |_| Workgroup { threads: 256, bytes: F32.size() * 3 * 256, tile: [1, 1] },
};

args! {
    /// Arguments of [`OPTIMIZER`].
    OptimizerArgs {
        /// Parameters, padding included.
        length,
        /// Threads in all workgroups.
        threads,
        /// Updates that `reports` has slots for.
        slots,
    }
}

/// One update of all parameters, or a check that all of them stay finite.
pub static OPTIMIZER: Kernel = Kernel {
    name: "optimizer",
    file: "optimizer",
    source: kernel_source!("optimizer"),
    bindings: &[
        Binding::read_write("params", F32),
        Binding::read("gradient", F32),
        Binding::read_write("first_moment", F32),
        Binding::read_write("second_moment", F32),
        Binding::read("update", U32),
        Binding::read_write("reports", U32),
    ],
    args: OptimizerArgs::FIELDS,
    constants: &["ADAM", "CLIP", "CHECK"],
    workgroup: |_| Workgroup { threads: 256, bytes: 0, tile: [256, 1] },
};
