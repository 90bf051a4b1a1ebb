//! The kernels of losses and updates.

use bytemuck::{Pod, Zeroable};

use super::{Access, Kernel, Workgroup};
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
    /// [`LOSS`]'s override constants, in the order of their names in WGSL.
    LossConstants {
        /// The code of the loss.
        loss,
        /// Threads of a row.
        lanes,
        /// Whether the gradient takes the outputs' place; or else the outputs stay, and rows that are
        /// correct are counted.
        differentiate,
    }
}

/// The code that the shader knows a loss by.
pub(crate) fn loss_kind(loss: &Loss) -> u32 {
    match loss {
        Loss::MeanSquared => 0,
        Loss::Huber { .. } => 1,
        Loss::CrossEntropy { .. } => 2,
    }
}

fn loss_workgroup(constants: &[u32]) -> Workgroup {
    Workgroup { threads: 64, bytes: 64 * 4, tile: [1, 64 / constants[1]] }
}

/// Losses of rows of outputs, and their gradients in the outputs' place, or which rows are correct.
pub static LOSS: Kernel = Kernel {
    name: "loss",
    source: kernel_source!("loss"),
    bindings: &[
        ("outputs", Access::ReadWrite),
        ("targets", Access::Read),
        ("weights", Access::Read),
        ("losses", Access::ReadWrite),
    ],
    args: LossArgs::FIELDS,
    constants: &["LOSS", "LANES", "DIFFERENTIATE"],
    workgroup: loss_workgroup,
};

args! {
    /// Arguments of [`GRADIENT_NORM`].
    GradientNormArgs {
        /// Elements of the gradient, or parts.
        length,
        /// Of a workgroup.
        part,
        /// Updates that `reports` has room for.
        slots,
    }
}

/// The norm of a gradient and its largest element, in parts and then of all together.
pub static GRADIENT_NORM: Kernel = Kernel {
    name: "gradient_norm",
    source: kernel_source!("gradient_norm"),
    bindings: &[
        ("gradient", Access::Read),
        ("loss", Access::Read),
        ("update", Access::Read),
        ("partials", Access::ReadWrite),
        ("reports", Access::ReadWrite),
    ],
    args: GradientNormArgs::FIELDS,
    constants: &["FINISH"],
    workgroup: |_| Workgroup { threads: 256, bytes: 256 * 12, tile: [1, 1] },
};

args! {
    /// Arguments of [`OPTIMIZER`].
    OptimizerArgs {
        /// Parameters, padding included.
        length,
        /// Threads of all workgroups.
        threads,
        /// Updates that `reports` has room for.
        slots,
    }
}

/// One update of all parameters, or a look at what it would make of them.
pub static OPTIMIZER: Kernel = Kernel {
    name: "optimizer",
    source: kernel_source!("optimizer"),
    bindings: &[
        ("params", Access::ReadWrite),
        ("gradient", Access::Read),
        ("first_moment", Access::ReadWrite),
        ("second_moment", Access::ReadWrite),
        ("update", Access::Read),
        ("reports", Access::ReadWrite),
    ],
    args: OptimizerArgs::FIELDS,
    constants: &["ADAM", "CLIP", "CHECK"],
    workgroup: |_| Workgroup { threads: 256, bytes: 0, tile: [256, 1] },
};
