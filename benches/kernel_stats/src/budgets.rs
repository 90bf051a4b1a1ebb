//! What `--limits` allows each kernel. On AMD no register may spill.
//!
//! A budget is what the kernel takes today at the shapes that `.ci/run` lists, with and without
//! `--extras`. Lower it when a kernel improves; raise it only with a reason in the commit. A kernel
//! without a row fails. `kernel_stats … --limits` names each excess, so a new row can start with zeros.

/// What the kernels of a family may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Values that its constants have. The first budget of the table that matches holds.
    pub when: &'static [(&'static str, u32)],
    /// The most vector registers on [`Budget::FAMILY`].
    pub vgprs: u64,
    /// The least multiply-adds per 100 instructions in the hot block there.
    pub amd_percent: u32,
    /// The most registers on sm_90.
    pub registers: u32,
    /// The most spilled bytes there. The aim is 0.
    pub spilled_bytes: u32,
    /// The least multiply-adds per 100 instructions in the hot block there.
    pub nvidia_percent: u32,
}

impl Budget {
    /// The AMD GPU that the budgets are for.
    pub const FAMILY: &'static str = "navi21";

    /// Makes a budget: kernel and constants; of navi21 VGPRs and percent; of sm_90 registers, spilled
    /// bytes and percent.
    pub const fn new(
        kernel: &'static str,
        when: &'static [(&'static str, u32)],
        [vgprs, amd_percent]: [u32; 2],
        [registers, spilled_bytes, nvidia_percent]: [u32; 3],
    ) -> Self {
        let vgprs = vgprs as u64;
        Self { kernel, when, vgprs, amd_percent, registers, spilled_bytes, nvidia_percent }
    }
}

/// A whole sequence a dispatch.
const SEQUENCE: &[(&str, u32)] = &[("RESIDENT", 1), ("RESET_BEFORE", 0)];
const SEQUENCE_RESET_BEFORE: &[(&str, u32)] = &[("RESIDENT", 1), ("RESET_BEFORE", 1)];
/// One step a dispatch.
const STEP: &[(&str, u32)] = &[("RESIDENT", 0), ("RESET_BEFORE", 0)];
const STEP_RESET_BEFORE: &[(&str, u32)] = &[("RESIDENT", 0), ("RESET_BEFORE", 1)];
const SMALL_TILE: &[(&str, u32)] = &[("N_QUADS", 1)];

/// The budgets: kernel and family; of navi21 VGPRs and percent, the worse of Mesa 22.3 and 25.0; of
/// sm_90 registers, spilled bytes and percent, by CUDA 13.5.
#[rustfmt::skip]
pub const BUDGETS: &[Budget] = &[
    Budget::new("matmul", SMALL_TILE, [80, 73], [92, 0, 78]),
    Budget::new("matmul", &[], [112, 74], [118, 0, 83]),
    Budget::new("column_sum", &[], [8, 0], [23, 0, 0]),
    Budget::new("forward", SEQUENCE, [120, 63], [168, 0, 74]),
    Budget::new("forward", SEQUENCE_RESET_BEFORE, [96, 59], [166, 0, 73]),
    Budget::new("forward", STEP, [120, 63], [128, 4, 76]),
    Budget::new("forward", STEP_RESET_BEFORE, [80, 51], [127, 16, 69]),
    Budget::new("backward", SEQUENCE, [56, 42], [108, 56, 52]),
    Budget::new("backward", SEQUENCE_RESET_BEFORE, [56, 42], [98, 92, 54]),
    Budget::new("backward", STEP, [56, 42], [114, 0, 50]),
    Budget::new("backward", STEP_RESET_BEFORE, [56, 42], [104, 72, 51]),
    Budget::new("forward_scalar", SEQUENCE, [128, 46], [199, 4, 45]),
    Budget::new("forward_scalar", SEQUENCE_RESET_BEFORE, [96, 43], [227, 0, 42]),
    Budget::new("forward_scalar", STEP, [128, 46], [168, 0, 44]),
    Budget::new("forward_scalar", STEP_RESET_BEFORE, [80, 37], [96, 32, 41]),
    Budget::new("backward_scalar", SEQUENCE, [64, 36], [111, 28, 40]),
    Budget::new("backward_scalar", SEQUENCE_RESET_BEFORE, [64, 36], [96, 204, 42]),
    Budget::new("backward_scalar", STEP, [56, 36], [80, 56, 43]),
    Budget::new("backward_scalar", STEP_RESET_BEFORE, [56, 36], [96, 68, 41]),
];
