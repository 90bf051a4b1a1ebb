//! One row per WGSL kernel: its source, bindings, constants, arguments and tile.
//!
//! This is the Rust mirror of `shaders/`. `tests/kernels.rs` holds every line of it against the WGSL
//! by naga's reflection, so the two cannot drift apart.

use bytemuck::{Pod, Zeroable};

/// Loop iterations that a kernel asks of one invocation at most on lavapipe, which ends every loop,
/// without an error, once all loops of an invocation have used up 65,535 iterations together. Longer sums
/// and sequences are cut into dispatches.
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
    /// What a workgroup takes and makes, by the constants' values.
    pub workgroup: fn(&[u32]) -> Workgroup,
}

/// What a workgroup of a kernel takes and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workgroup {
    /// Its threads.
    pub threads: u32,
    /// Bytes of its own memory.
    pub bytes: u32,
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

mod training;

pub(crate) use training::loss_kind;
pub use training::{
    GRADIENT_NORM, GradientNormArgs, LOSS, LossArgs, LossConstants, OPTIMIZER, OptimizerArgs,
};

args! {
    /// Arguments of [`MATMUL`].
    MatmulArgs {
        /// Rows of C.
        m,
        /// Columns of C.
        n,
        /// Length of the sum.
        k,
        /// As much of it as a workgroup takes.
        k_part,
        /// Index of A's first element.
        a_first,
        /// Distance between A's rows.
        a_stride,
        /// Which row of its first run A's first element stands before.
        a_row,
        /// Rows of a run of A.
        a_run,
        /// Distance between A's runs.
        a_skip,
        /// Index of B's first element.
        b_first,
        /// Distance between B's rows.
        b_stride,
        /// Which row of its first run B's first element stands before.
        b_row,
        /// Rows of a run of B.
        b_run,
        /// Distance between B's runs.
        b_skip,
        /// Index of C's first element.
        c_first,
        /// Distance between C's rows.
        c_stride,
        /// Which row of its first run C's first element stands before.
        c_row,
        /// Rows of a run of C.
        c_run,
        /// Distance between C's runs.
        c_skip,
        /// Distance between the parts' C.
        part_apart,
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
        /// As many of them as a workgroup takes.
        rows_part,
        /// Columns, each with a sum of its own.
        columns,
        /// Index of the first element.
        first,
        /// Distance between rows.
        stride,
        /// Index of the first sum in the output.
        out_first,
        /// Distance between the parts' sums.
        part_apart,
        /// 1: add to what the output holds.
        accumulate,
    }
}

args! {
    /// Arguments of [`FORWARD`] and of [`BACKWARD`].
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
        /// Rows of x and y from a step to the next.
        time_stride,
        /// Rows of x and y from a batch row to the next.
        row_stride,
        /// States of each batch row that h holds.
        h_times,
        /// Rows of h from a step to the next.
        h_time_stride,
        /// Rows of h from a batch row to the next.
        h_row_stride,
        /// The direction's own step that gates starts at.
        gates_first,
        /// How many steps from there on it holds.
        gates_times,
        /// How many it has room for.
        gates_room,
        /// Rows of gates from a step to the next.
        gates_time_stride,
        /// Rows of gates from a batch row to the next.
        gates_row_stride,
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
        /// How many steps this dispatch takes.
        count,
        /// The first of them (backward: the state whose gradient is made first), each direction's own, set
        /// by the loop.
        step,
    }
}

args! {
    /// [`FORWARD`]'s and [`BACKWARD`]'s override constants, in the order of their names in WGSL.
    StepConstants {
        /// 1: make r and z.
        gates_rz,
        /// 1: make n.
        gate_n,
        /// 1: n needs every r first.
        reset_before,
        /// 1: z keeps the past.
        z_keeps,
        /// The code of r's and z's activation.
        gate_activation,
        /// The code of n's.
        candidate_activation,
        /// 1: what is put out goes through dropout.
        dropout,
        /// The code of what zoneout does.
        zoneout,
        /// 1: gates are for a backward pass.
        keeps,
        /// 1: H is a multiple of 4.
        aligned,
        /// Threads along the units, four units each.
        unit_quads,
        /// Threads along k.
        lanes,
        /// Rows of a thread, four each.
        row_quads,
        /// Of k, four each, that the workgroup's memory holds.
        depth_quads,
        /// Numbers of each unit and row that the workgroup's memory holds.
        totals,
        /// 1: the workgroup makes all units, for any number of steps.
        resident,
    }
}

const STEP_CONSTANTS: &[&str] = &[
    "GATES_RZ",
    "GATE_N",
    "RESET_BEFORE",
    "Z_KEEPS",
    "GATE_ACTIVATION",
    "CANDIDATE_ACTIVATION",
    "DROPOUT",
    "ZONEOUT",
    "KEEPS",
    "ALIGNED",
    "UNIT_QUADS",
    "LANES",
    "ROW_QUADS",
    "DEPTH_QUADS",
    "TOTALS",
    "RESIDENT",
];

/// The arrays of `shaders/step.wgsl`: operands of k, and a thread's share of a product, four rows to a vec4;
/// and totals of each unit and row.
fn step_workgroup(constants: &[u32]) -> Workgroup {
    let constants: [u32; STEP_CONSTANTS.len()] = constants.try_into().expect("one a name");
    let StepConstants { unit_quads, lanes, row_quads, depth_quads, totals, .. } =
        bytemuck::cast(constants);
    let threads = unit_quads * lanes;
    let bytes = 4 * 16 * row_quads * (depth_quads + threads + totals * unit_quads);
    Workgroup { threads, bytes, tile: [4 * unit_quads, 4 * row_quads] }
}

impl Access {
    /// Bytes of an element.
    pub fn element(self) -> u64 {
        if self == Self::ReadQuads { 16 } else { 4 }
    }
}

impl Kernel {
    /// Storage buffers that the kernel binds, `Args` included.
    pub fn storage_buffers(&self) -> usize {
        1 + self.bindings.len()
    }
}

args! {
    /// [`MATMUL`]'s override constants, in the order of their names in WGSL.
    MatmulConstants {
        /// 1: A's rows in memory are its columns.
        a_transposed,
        /// 1: B's rows in memory are its columns.
        b_transposed,
        /// 1: rows come in runs.
        runs,
        /// Threads along C's rows.
        m_threads,
        /// Threads along C's columns.
        n_threads,
        /// Rows of a thread, four each.
        m_quads,
        /// Columns of a thread, four each.
        n_quads,
        /// Of k at once.
        depth,
        /// 1: operands go through the workgroup's memory.
        staged,
    }
}

const MATMUL_CONSTANTS: &[&str] = &[
    "A_TRANSPOSED",
    "B_TRANSPOSED",
    "RUNS",
    "M_THREADS",
    "N_THREADS",
    "M_QUADS",
    "N_QUADS",
    "DEPTH",
    "STAGED",
];

/// The three arrays of `shaders/matmul.wgsl`: slices of A and B and the threads' blocks, all of vec4.
fn matmul_workgroup(constants: &[u32]) -> Workgroup {
    let constants: [u32; MATMUL_CONSTANTS.len()] = constants.try_into().expect("one a name");
    let MatmulConstants { m_threads, n_threads, m_quads, n_quads, depth, .. } =
        bytemuck::cast(constants);
    let threads = m_threads * n_threads;
    let slices = depth * (m_quads * m_threads + 1 + n_quads * n_threads + 1);
    let tile = [4 * n_quads * n_threads, 4 * m_quads * m_threads];
    Workgroup { threads, bytes: 16 * (slices + 4 * threads), tile }
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
    constants: MATMUL_CONSTANTS,
    workgroup: matmul_workgroup,
};

/// Sums over rows: the biases' gradients.
pub static COLUMN_SUM: Kernel = Kernel {
    name: "column_sum",
    source: kernel_source!("column_sum"),
    bindings: &[("a", Access::Read), ("out", Access::ReadWrite)],
    args: ColumnSumArgs::FIELDS,
    constants: &[],
    workgroup: |_| Workgroup { threads: 256, bytes: 16 * 16 * 4, tile: [16, 1] },
};

/// Steps forward: recurrent products and elementwise update.
pub static FORWARD: Kernel = Kernel {
    name: "forward",
    source: kernel_source!("step", "forward"),
    bindings: &[
        ("weight_hh", Access::ReadQuads),
        ("step_flags", Access::Read),
        ("gates", Access::ReadWrite),
        ("bias_hh", Access::Read),
        ("h", Access::ReadWrite),
        ("states", Access::ReadWrite),
        ("y", Access::ReadWrite),
    ],
    args: StepArgs::FIELDS,
    constants: STEP_CONSTANTS,
    workgroup: step_workgroup,
};

/// States backward: recurrent products of the gradients and the elementwise gradients.
pub static BACKWARD: Kernel = Kernel {
    name: "backward",
    source: kernel_source!("step", "backward"),
    bindings: &[
        ("weight_hh", Access::ReadQuads),
        ("step_flags", Access::Read),
        ("gates", Access::ReadWrite),
        ("h", Access::Read),
        ("dy", Access::Read),
        ("dstates", Access::ReadWrite),
    ],
    args: StepArgs::FIELDS,
    constants: STEP_CONSTANTS,
    workgroup: step_workgroup,
};

/// Every kernel.
pub static ALL: [&Kernel; 7] =
    [&MATMUL, &COLUMN_SUM, &FORWARD, &BACKWARD, &LOSS, &GRADIENT_NORM, &OPTIMIZER];
