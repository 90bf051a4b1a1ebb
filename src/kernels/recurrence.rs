//! The kernels of the recurrence.

use bytemuck::{Pod, Zeroable};

use super::{Binding, Kernel, Workgroup};
use crate::spec::element::ElementType;
use crate::spec::element::ElementType::{F32, U32};

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
        /// The fraction of its state that a unit keeps at inference, an f32.
        zone_fraction,
        /// How many steps this dispatch takes.
        count,
        /// The first of them (backward: the state whose gradient is made first), each direction's
        /// own, set by the loop.
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
        /// Split-K lanes: threads along k.
        split_k,
        /// Rows of a thread, four each.
        row_quads,
        /// Of k, four each, that the workgroup's memory holds.
        depth_quads,
        /// Sums of each unit and row that the workgroup's memory holds.
        accumulators,
        /// 1: operands stay in the workgroup's memory from step to step: it makes all units.
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
    "SPLIT_K",
    "ROW_QUADS",
    "DEPTH_QUADS",
    "ACCUMULATORS",
    "RESIDENT",
];

/// The arrays of `shaders/step.wgsl`: operands of k and each lane's sums, four rows to a vec4;
/// accumulators of each unit and row.
fn step_workgroup(constants: &[u32]) -> Workgroup {
    let constants: [u32; STEP_CONSTANTS.len()] = constants.try_into().expect("one a name");
    let StepConstants { unit_quads, split_k, row_quads, depth_quads, accumulators, .. } =
        bytemuck::cast(constants);
    let [units, lanes, rows, depth, accumulators] =
        [unit_quads, split_k, row_quads, depth_quads, accumulators].map(u64::from);
    let threads = units * lanes;
    let bytes = ElementType::F32.size() * 16 * rows * (depth + threads + accumulators * units);
    Workgroup { threads, bytes, tile: [4 * unit_quads, 4 * row_quads] }
}

/// Steps forward: recurrent products and elementwise update.
pub static FORWARD: Kernel = Kernel {
    name: "forward",
    source: kernel_source!("step", "forward"),
    bindings: &[
        Binding::read_quads("weight_hh", F32),
        Binding::read("step_flags", U32),
        Binding::read_write("gates", F32),
        Binding::read("bias_hh", F32),
        Binding::read_write("h", F32),
        Binding::read_write("states", F32),
        Binding::read_write("y", F32),
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
        Binding::read_quads("weight_hh", F32),
        Binding::read("step_flags", U32),
        Binding::read_write("gates", F32),
        Binding::read("h", F32),
        Binding::read("dy", F32),
        Binding::read_write("dstates", F32),
    ],
    args: StepArgs::FIELDS,
    constants: STEP_CONSTANTS,
    workgroup: step_workgroup,
};
