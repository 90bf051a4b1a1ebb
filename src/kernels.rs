//! One row per WGSL kernel: its source, bindings, constants, arguments and tile.
//!
//! This is the Rust mirror of `shaders/`. `tests/kernels.rs` holds every line of it against the WGSL
//! by naga's reflection, so the two cannot drift apart.

use bytemuck::{Pod, Zeroable};

/// Loop iterations that a kernel may ask of one invocation in [`MATMUL`] and [`COLUMN_SUM`]; longer
/// sums are cut into dispatches that accumulate. Mesa's lavapipe ends every loop, without an error,
/// once all loops of an invocation have used up 65,535 iterations together.
pub const LOOP_BUDGET: usize = 65_535;

/// What a step of a row may be marked with, a bit each; `shaders/step.wgsl` has the same.
///
/// [`Batch::marks`](crate::Batch::marks) makes them of lengths and resets. A program that runs a
/// forward pass on its own buffers may write them itself, on the GPU too: `[T, B]`, a u32 each.
pub mod mark {
    /// The row has ended: its state stays as it is, y is 0.
    pub const PADDING: u32 = 1;
    /// The forward direction starts this step from the reset state.
    pub const RESTART: u32 = 2;
    /// The reverse direction starts this step from the reset state.
    pub const RESTART_REVERSE: u32 = 4;
}

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
    ($($file:literal),+) => {
        concat!(
            include_str!("../shaders/common.wgsl"),
            $(include_str!(concat!("../shaders/", $file, ".wgsl"))),+
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
    /// Arguments of [`FORWARD_STEP`] and of [`BACKWARD_STEP`].
    StepArgs {
        /// T.
        steps,
        /// B.
        batch,
        /// H.
        hidden,
        /// D.
        directions,
        /// The directions from this one on run from the last time to the first.
        reverse_from,
        /// The first batch row of this dispatch.
        row_first,
        /// Rows of x, y and gates from a step to the next.
        time_stride,
        /// Rows of x, y and gates from a batch row to the next.
        row_stride,
        /// States of each batch row that h holds.
        h_times,
        /// Rows of h from a step to the next.
        h_time_stride,
        /// Rows of h from a batch row to the next.
        h_row_stride,
        /// Elements from a recurrent weight to the same one of the other direction.
        weight_apart,
        /// Elements from a hidden bias to the same one of the other direction.
        bias_apart,
        /// Index of the layer's first states `[D, B, H]` (backward: of their gradients).
        first_state,
        /// Index of the layer's reset states.
        reset_state,
        /// Index of the layer's last states.
        last_state,
        /// The layer, for draws.
        layer,
        /// Draws below this drop an output.
        drop_below,
        /// What kept outputs are multiplied with, an f32.
        drop_scale,
        /// Draws below this keep a unit's state.
        zone_below,
        /// The share of its state that a unit keeps at inference, an f32.
        zone_share,
        /// The step (backward: the state whose gradient is made), each direction's own, set by the
        /// loop.
        step,
    }
}

/// [`FORWARD_STEP`]'s and [`BACKWARD_STEP`]'s override constants.
const STEP_CONSTANTS: &[&str] = &[
    "GATES_RZ",
    "GATE_N",
    "Z_KEEPS",
    "GATE_ACTIVATION",
    "CANDIDATE_ACTIVATION",
    "DROPOUT",
    "ZONEOUT",
];

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
    source: kernel_source!("step", "forward_step"),
    bindings: &[
        ("weight_hh", Access::Read),
        ("marks", Access::Read),
        ("gates", Access::ReadWrite),
        ("bias_hh", Access::Read),
        ("h", Access::ReadWrite),
        ("states", Access::ReadWrite),
        ("y", Access::ReadWrite),
    ],
    args: StepArgs::FIELDS,
    constants: STEP_CONSTANTS,
    workgroup_size: [64, 1, 1],
    workgroup_bytes: 16 * 4 * 16 + 3 * 16 * 17 * 4,
    tile: [16, 16],
};

/// One state backward: recurrent products of the gradients and the elementwise gradients.
pub static BACKWARD_STEP: Kernel = Kernel {
    name: "backward_step",
    source: kernel_source!("step", "backward_step"),
    bindings: &[
        ("weight_hh", Access::Read),
        ("marks", Access::Read),
        ("gates", Access::ReadWrite),
        ("h", Access::Read),
        ("dy", Access::Read),
        ("dstates", Access::ReadWrite),
    ],
    args: StepArgs::FIELDS,
    constants: STEP_CONSTANTS,
    workgroup_size: [64, 1, 1],
    workgroup_bytes: 16 * 4 * 16 + 16 * 16 * 4,
    tile: [16, 16],
};

/// Every kernel.
pub static ALL: [&Kernel; 4] = [&MATMUL, &COLUMN_SUM, &FORWARD_STEP, &BACKWARD_STEP];
