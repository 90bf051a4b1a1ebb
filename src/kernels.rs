//! One row per WGSL kernel: its source, bindings, constants, arguments and tile.
//!
//! This is the Rust mirror of `shaders/`. `tests/kernels.rs` holds every line of it against the WGSL
//! by naga's reflection, so the two cannot drift apart.

use bytemuck::{Pod, Zeroable};

/// Loop iterations that a kernel may ask of one invocation in [`MATMUL`] and [`COLUMN_SUM`]; longer
/// sums are cut into dispatches that accumulate. Mesa's lavapipe ends every loop, without an error,
/// once all loops of an invocation have used up 65,535 iterations together.
pub const LOOP_BUDGET: usize = 65_535;

/// How a kernel uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
}

/// A kernel as the schedule and the executor see it. Binding 0 is always `Args`, the others follow
/// from 1 in the order of `bindings`.
///
/// `Args` is a read-only storage binding at a dynamic offset, not a uniform: Mesa's lavapipe compiles
/// a kernel anew for each value of a uniform that its branches depend on.
#[derive(Debug)]
pub struct Kernel {
    /// The file's name in `shaders/`, without its ending.
    pub name: &'static str,
    /// `common.wgsl` and the kernel's own file. The entry point is `main`.
    pub source: &'static str,
    /// The bindings besides `Args`, in order: WGSL name and access.
    pub bindings: &'static [(&'static str, Access)],
    /// The members of `Args`, each a u32, in order.
    pub args: &'static [&'static str],
    /// The override constants, each a bool or a u32.
    pub constants: &'static [&'static str],
    /// Threads a workgroup, `x · y · z`.
    pub workgroup_size: [u32; 3],
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Columns and rows of its output that a workgroup makes.
    pub tile: [u32; 2],
}

macro_rules! kernel_source {
    ($file:literal) => {
        concat!(
            include_str!("../shaders/common.wgsl"),
            include_str!(concat!("../shaders/", $file, ".wgsl"))
        )
    };
}

/// A kernel's `Args`: a struct of u32 with the names of its fields.
macro_rules! args {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: u32),* }

        impl $name {
            /// The fields' names, in order.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

args! {
    /// Arguments of [`MATMUL`].
    MatmulArgs {
        /// Rows of C.
        m,
        /// Columns of C.
        n,
        /// Length of the sum.
        k,
        /// Index of A's first element.
        a_first,
        /// Distance between A's rows.
        a_stride,
        /// Index of B's first element.
        b_first,
        /// Distance between B's rows.
        b_stride,
        /// Index of C's first element.
        c_first,
        /// Distance between C's rows.
        c_stride,
        /// Index of the bias of C's first column.
        bias_first,
        /// 1: add the bias to every row.
        add_bias,
        /// 1: add to what C holds.
        accumulate,
    }
}

args! {
    /// Arguments of [`COLUMN_SUM`].
    ColumnSumArgs {
        /// Rows to sum.
        rows,
        /// Columns, each with a sum of its own.
        columns,
        /// Index of the first element.
        first,
        /// Distance between rows.
        stride,
        /// Index of the first sum in the output.
        out_first,
        /// 1: add to what the output holds.
        accumulate,
    }
}

args! {
    /// Arguments of [`FORWARD_STEP`].
    ForwardStepArgs {
        /// T.
        steps,
        /// B.
        batch,
        /// H.
        hidden,
        /// The first batch row of this dispatch.
        row_first,
        /// Elements from a recurrent weight to the same one of the reverse direction.
        weight_apart,
        /// Elements from a hidden bias to the same one of the reverse direction.
        bias_apart,
        /// The step, each direction's own, set by the loop.
        step,
    }
}

args! {
    /// Arguments of [`BACKWARD_STEP`].
    BackwardStepArgs {
        /// T.
        steps,
        /// B.
        batch,
        /// H.
        hidden,
        /// D.
        directions,
        /// The first batch row of this dispatch.
        row_first,
        /// Elements from a recurrent weight to the same one of the reverse direction.
        weight_apart,
        /// s, the state whose gradient is made, each direction's own, set by the loop.
        step,
    }
}

impl Kernel {
    /// Storage buffers that the kernel binds, `Args` included.
    pub fn storage_buffers(&self) -> usize {
        1 + self.bindings.len()
    }
}

/// `C = A · B`, either operand transposed, with an optional bias: every large product.
pub static MATMUL: Kernel = Kernel {
    name: "matmul",
    source: kernel_source!("matmul"),
    bindings: &[
        ("a", Access::Read),
        ("b", Access::Read),
        ("bias", Access::Read),
        ("c", Access::ReadWrite),
    ],
    args: MatmulArgs::FIELDS,
    constants: &["A_TRANSPOSED", "B_TRANSPOSED"],
    workgroup_size: [64, 1, 1],
    workgroup_bytes: 2 * 8 * 16 * 16,
    tile: [32, 32],
};

/// Sums over rows: the biases' gradients.
pub static COLUMN_SUM: Kernel = Kernel {
    name: "column_sum",
    source: kernel_source!("column_sum"),
    bindings: &[("a", Access::Read), ("out", Access::ReadWrite)],
    args: ColumnSumArgs::FIELDS,
    constants: &[],
    workgroup_size: [16, 16, 1],
    workgroup_bytes: 16 * 16 * 4,
    tile: [16, 1],
};

/// One step forward: recurrent products and elementwise update.
pub static FORWARD_STEP: Kernel = Kernel {
    name: "forward_step",
    source: kernel_source!("forward_step"),
    bindings: &[
        ("weight_hh", Access::Read),
        ("bias_hh", Access::Read),
        ("gates", Access::ReadWrite),
        ("h", Access::ReadWrite),
        ("lengths", Access::Read),
    ],
    args: ForwardStepArgs::FIELDS,
    constants: &["GATES_RZ", "GATE_N", "Z_KEEPS", "GATE_ACTIVATION", "CANDIDATE_ACTIVATION"],
    workgroup_size: [64, 1, 1],
    workgroup_bytes: 16 * 4 * 16 + 3 * 16 * 17 * 4,
    tile: [16, 16],
};

/// One state backward: recurrent products of the gradients and the elementwise gradients.
pub static BACKWARD_STEP: Kernel = Kernel {
    name: "backward_step",
    source: kernel_source!("backward_step"),
    bindings: &[
        ("weight_hh", Access::Read),
        ("h", Access::Read),
        ("dy", Access::Read),
        ("gates", Access::ReadWrite),
        ("carry", Access::ReadWrite),
        ("lengths", Access::Read),
    ],
    args: BackwardStepArgs::FIELDS,
    constants: &["GATES_RZ", "GATE_N", "Z_KEEPS", "GATE_ACTIVATION", "CANDIDATE_ACTIVATION"],
    workgroup_size: [64, 1, 1],
    workgroup_bytes: 16 * 4 * 16 + 16 * 16 * 4,
    tile: [16, 16],
};

/// Every kernel.
pub static ALL: [&Kernel; 4] = [&MATMUL, &COLUMN_SUM, &FORWARD_STEP, &BACKWARD_STEP];
