//! The kernels of the recurrence.

use bytemuck::{Pod, Zeroable};

use super::activations::with_activations;
use super::{Binding, Kernel, Workgroup};
use crate::spec::element::ElementType;
use crate::spec::element::ElementType::{F32, U32};

args! {
    /// Arguments of all kernels of the recurrence.
    StepArgs {
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
        /// Distance in rows of x and y from one step to the next.
        time_stride,
        /// Distance in rows of x and y from one batch row to the next.
        row_stride,
        /// The number of states per batch row that h holds.
        h_times,
        /// Distance in rows of h from one step to the next.
        h_time_stride,
        /// Distance in rows of h from one batch row to the next.
        h_row_stride,
        /// The step, in the direction's own order, at which gates starts.
        gates_first,
        /// The number of steps from there on that gates holds.
        gates_times,
        /// The number of steps that gates has room for.
        gates_room,
        /// Distance in rows of gates from one step to the next.
        gates_time_stride,
        /// Distance in rows of gates from one batch row to the next.
        gates_row_stride,
        /// Distance in elements from a recurrent weight to the other direction's.
        weight_apart,
        /// Distance in elements from a hidden bias to the other direction's.
        bias_apart,
        /// Index of the layer's first states `[D, B, H]` (backward: of their gradients).
        first_state,
        /// Index of the layer's reset states.
        reset_state,
        /// Index of the layer's last states.
        last_state,
        /// The layer's index, for the random draws.
        layer,
        /// Bits of [`step_mode`].
        modes,
        /// An output is dropped if its draw is below this.
        drop_below,
        /// Factor of the outputs that are not dropped, an f32.
        drop_scale,
        /// The code of zoneout's mode.
        zoneout,
        /// A unit keeps its state if its draw is below this.
        zone_below,
        /// The fraction of its state that a unit keeps in inference, an f32.
        zone_fraction,
        /// The rounds of a random draw; 0 if nothing is drawn.
        draw_rounds,
        /// The number of steps in this dispatch.
        count,
        /// The first step, in the direction's own order (backward: the state whose gradient is
        /// computed first). The loop sets it.
        step,
    }
}

/// The bits of [`StepArgs::modes`].
pub mod step_mode {
    /// z keeps the state; otherwise z overwrites it.
    pub const Z_KEEPS: u32 = 1;
    /// The gates are kept for a backward pass.
    pub const KEEPS_GATES: u32 = 2;
    /// The first direction runs from the last time to the first.
    pub const REVERSE_FIRST: u32 = 4;
}

args! {
    /// The override constants of [`FORWARD`] and [`BACKWARD`], in the order of their names in WGSL.
    /// [`ActivationConstants`](super::ActivationConstants) follow them.
    StepConstants {
        /// 1: reset before the product, so n needs every r first.
        reset_before,
        /// 1: dropout and zoneout follow the arguments; 0: neither.
        noise,
        /// 1: exponentials by the adapter's own exp; 0: in plain arithmetic.
        hardware_exp,
        /// 1: computes r and z.
        gates_rz,
        /// 1: computes n.
        gate_n,
        /// Threads along the units, one quad of units each.
        unit_quads,
        /// Split-K lanes: threads along k.
        split_k,
        /// Threads along the batch rows.
        row_groups,
        /// Batch rows per thread: 1, 4 or 8.
        rows,
        /// Quads along k that workgroup memory holds.
        depth_quads,
        /// The products that a pass has.
        products,
        /// 1: operands stay in workgroup memory from step to step, because the workgroup computes
        /// all units.
        resident,
    }
}

const STEP_CONSTANTS: [&str; 12] = [
    "RESET_BEFORE",
    "NOISE",
    "HARDWARE_EXP",
    "GATES_RZ",
    "GATE_N",
    "UNIT_QUADS",
    "SPLIT_K",
    "ROW_GROUPS",
    "ROWS",
    "DEPTH_QUADS",
    "PRODUCTS",
    "RESIDENT",
];

args! {
    /// The override constants of [`PERSISTENT_FORWARD`] and [`PERSISTENT_BACKWARD`], in the order
    /// of their names in WGSL. [`ActivationConstants`](super::ActivationConstants) follow them.
    PersistentConstants {
        /// 1: reset before the product, so n needs every r first.
        reset_before,
        /// 1: dropout and zoneout follow the arguments; 0: neither.
        noise,
        /// 1: exponentials by the adapter's own exp; 0: in plain arithmetic.
        hardware_exp,
        /// Quads of hidden units: all of them.
        unit_quads,
        /// Threads along the k of a gate.
        parts,
        /// Blocks of 4 × 4 weights of a thread.
        blocks,
        /// Batch rows of a workgroup.
        rows,
        /// Threads of a workgroup.
        threads,
    }
}

const PERSISTENT_CONSTANTS: [&str; 8] =
    ["RESET_BEFORE", "NOISE", "HARDWARE_EXP", "UNIT_QUADS", "PARTS", "BLOCKS", "ROWS", "THREADS"];

/// The most blocks of weights of a thread of the persistent kernels.
pub const MAX_BLOCKS: usize = 8;

/// The arrays of `shaders/persistent.wgsl`: the operands of `operand_gates` gates, 36 numbers for
/// each part of a gate; partial sums, four units to a vec4.
fn persistent_workgroup(constants: &[u32], operand_gates: u64) -> Workgroup {
    let PersistentConstants { unit_quads, parts, rows, threads, .. } = own_constants(constants);
    let tile = [4 * unit_quads, rows];
    let [unit_quads, parts, rows, threads] = [unit_quads, parts, rows, threads].map(u64::from);
    let bytes = ElementType::F32.size() * rows * parts * (36 * operand_gates + 4 * 3 * unit_quads);
    Workgroup { threads, bytes, tile }
}

/// Returns a kernel's own constants, in front of those of its activations.
fn own_constants<C: Pod>(constants: &[u32]) -> C {
    *bytemuck::from_bytes(&bytemuck::cast_slice(constants)[..size_of::<C>()])
}

/// The arrays of `shaders/single_lane.wgsl`: operands, four k to a vec4; the next operands of
/// `operand_gates` gates; products, four units to a vec4.
fn single_lane_workgroup(constants: &[u32], operand_gates: u64) -> Workgroup {
    let StepConstants { unit_quads, rows, depth_quads, products, .. } = own_constants(constants);
    let tile = [4 * unit_quads, rows];
    let [units, rows, depth, products] = [unit_quads, rows, depth_quads, products].map(u64::from);
    let bytes = ElementType::F32.size() * 4 * rows * (depth + (operand_gates + products) * units);
    Workgroup { threads: units, bytes, tile }
}

/// The arrays of `shaders/lanes.wgsl`: operands, four k each; each lane's sums, four units to a
/// vec4; both with an unused quad per row if there are row groups; the products of each unit and row.
fn lanes_workgroup(constants: &[u32]) -> Workgroup {
    let StepConstants { unit_quads, split_k, row_groups, rows, depth_quads, products, .. } =
        own_constants(constants);
    let tile = [4 * unit_quads, rows * row_groups];
    let [units, lanes, groups, rows, depth, products] =
        [unit_quads, split_k, row_groups, rows, depth_quads, products].map(u64::from);
    let padding = groups.div_ceil(8).min(groups - 1);
    let quads = depth + lanes * units + 2 * padding + products * units;
    let bytes = ElementType::F32.size() * 4 * rows * groups * quads;
    Workgroup { threads: groups * units * lanes, bytes, tile }
}

/// The source of a kernel that loads the weights at every step.
macro_rules! step_source {
    ($weights:literal, $lanes:literal, $shared:literal, $kernel:literal) => {
        kernel_source!($weights, "recurrence", $shared, "step", $lanes, $kernel, "activations")
    };
}

/// The source of a kernel that holds the weights in registers.
macro_rules! persistent_source {
    ($weights:literal, $shared:literal, $kernel:literal) => {
        kernel_source!($weights, "recurrence", $shared, "persistent", $kernel, "activations")
    };
}

/// Returns the bindings of forward steps, whose weights are bound as numbers or as quads.
const fn forward_bindings(weight_hh: Binding) -> [Binding; 7] {
    [
        weight_hh,
        Binding::read("step_flags", U32),
        Binding::read_write("gates", F32),
        Binding::read("bias_hh", F32),
        Binding::read_write("h", F32),
        Binding::read_write("states", F32),
        Binding::read_write("y", F32),
    ]
}

/// Forward steps: recurrent products and elementwise update. The rows of the weights start at whole
/// quads: H is a multiple of 4.
pub static FORWARD: Kernel = Kernel {
    name: "forward",
    file: "forward",
    source: step_source!("weight_quads", "single_lane", "forward_shared", "forward"),
    bindings: &forward_bindings(Binding::read_quads("weight_hh", F32)),
    args: StepArgs::FIELDS,
    constants: &with_activations::<12, 34>(STEP_CONSTANTS),
    workgroup: |constants| single_lane_workgroup(constants, 1),
};

/// [`FORWARD`] for any H.
pub static FORWARD_SCALAR: Kernel = Kernel {
    name: "forward_scalar",
    source: step_source!("weight_scalars", "single_lane", "forward_shared", "forward"),
    bindings: &forward_bindings(Binding::read("weight_hh", F32)),
    ..FORWARD
};

/// [`FORWARD`] with split-K lanes.
pub static FORWARD_LANES: Kernel = Kernel {
    name: "forward_lanes",
    source: step_source!("weight_quads", "lanes", "forward_shared", "forward"),
    workgroup: lanes_workgroup,
    ..FORWARD
};

/// [`FORWARD_SCALAR`] with split-K lanes.
pub static FORWARD_LANES_SCALAR: Kernel = Kernel {
    name: "forward_lanes_scalar",
    source: step_source!("weight_scalars", "lanes", "forward_shared", "forward"),
    workgroup: lanes_workgroup,
    ..FORWARD_SCALAR
};

/// Forward steps with the recurrent weights in registers. H is a multiple of 4.
pub static PERSISTENT_FORWARD: Kernel = Kernel {
    name: "persistent_forward",
    file: "persistent_forward",
    source: persistent_source!("weight_quads", "forward_shared", "persistent_forward"),
    constants: &with_activations::<8, 30>(PERSISTENT_CONSTANTS),
    workgroup: |constants| persistent_workgroup(constants, 1),
    ..FORWARD
};

/// [`PERSISTENT_FORWARD`] for any H.
pub static PERSISTENT_FORWARD_SCALAR: Kernel = Kernel {
    name: "persistent_forward_scalar",
    source: persistent_source!("weight_scalars", "forward_shared", "persistent_forward"),
    bindings: FORWARD_SCALAR.bindings,
    ..PERSISTENT_FORWARD
};

/// Returns the bindings of backward steps, whose weights are bound as numbers or as quads.
const fn backward_bindings(weight_hh: Binding) -> [Binding; 6] {
    [
        weight_hh,
        Binding::read("step_flags", U32),
        Binding::read_write("gates", F32),
        Binding::read("h", F32),
        Binding::read("dy", F32),
        Binding::read_write("dstates", F32),
    ]
}

/// Backward steps: recurrent products of the gradients, and the elementwise gradients. H is a
/// multiple of 4.
pub static BACKWARD: Kernel = Kernel {
    name: "backward",
    file: "backward",
    source: step_source!("weight_quads", "single_lane", "backward_shared", "backward"),
    bindings: &backward_bindings(Binding::read_quads("weight_hh", F32)),
    args: StepArgs::FIELDS,
    constants: &with_activations::<12, 34>(STEP_CONSTANTS),
    workgroup: |constants| single_lane_workgroup(constants, 3),
};

/// [`BACKWARD`] for any H.
pub static BACKWARD_SCALAR: Kernel = Kernel {
    name: "backward_scalar",
    source: step_source!("weight_scalars", "single_lane", "backward_shared", "backward"),
    bindings: &backward_bindings(Binding::read("weight_hh", F32)),
    ..BACKWARD
};

/// [`BACKWARD`] with split-K lanes.
pub static BACKWARD_LANES: Kernel = Kernel {
    name: "backward_lanes",
    source: step_source!("weight_quads", "lanes", "backward_shared", "backward"),
    workgroup: lanes_workgroup,
    ..BACKWARD
};

/// [`BACKWARD_SCALAR`] with split-K lanes.
pub static BACKWARD_LANES_SCALAR: Kernel = Kernel {
    name: "backward_lanes_scalar",
    source: step_source!("weight_scalars", "lanes", "backward_shared", "backward"),
    workgroup: lanes_workgroup,
    ..BACKWARD_SCALAR
};

/// Backward steps with the recurrent weights in registers. H is a multiple of 4.
pub static PERSISTENT_BACKWARD: Kernel = Kernel {
    name: "persistent_backward",
    file: "persistent_backward",
    source: persistent_source!("weight_quads", "backward_shared", "persistent_backward"),
    constants: &with_activations::<8, 30>(PERSISTENT_CONSTANTS),
    workgroup: |constants| persistent_workgroup(constants, 3),
    ..BACKWARD
};

/// [`PERSISTENT_BACKWARD`] for any H.
pub static PERSISTENT_BACKWARD_SCALAR: Kernel = Kernel {
    name: "persistent_backward_scalar",
    source: persistent_source!("weight_scalars", "backward_shared", "persistent_backward"),
    bindings: BACKWARD_SCALAR.bindings,
    ..PERSISTENT_BACKWARD
};
