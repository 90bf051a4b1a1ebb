//! What `--limits` allows each kernel. On AMD no register may spill.
//!
//! A budget is what the kernel takes today at the shapes that `.ci/run` lists, with and without
//! `--noise`. Lower it when a kernel improves; raise it only with a reason in the commit. A kernel
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
/// The weights in registers.
const RESET_AFTER: &[(&str, u32)] = &[("RESET_BEFORE", 0)];
const RESET_BEFORE: &[(&str, u32)] = &[("RESET_BEFORE", 1)];

/// The budgets: kernel and family; of navi21 VGPRs and percent, the worse of Mesa 22.3 and 25.0; of
/// sm_90 registers, spilled bytes and percent, by CUDA 13.5.
#[rustfmt::skip]
pub const BUDGETS: &[Budget] = &[
    // For products with too few results to fill a GPU, so 12 warps a multiprocessor are enough.
    Budget::new("matmul", &[], [112, 72], [162, 0, 77]),
    Budget::new("matmul_large", &[], [128, 87], [126, 0, 88]),
    Budget::new("matmul_large_scalar", &[], [128, 86], [127, 0, 86]),
    Budget::new("column_sum", &[], [16, 0], [23, 0, 1]),
    Budget::new("persistent_forward", RESET_AFTER, [168, 56], [168, 12, 66]),
    Budget::new("persistent_forward", RESET_BEFORE, [168, 56], [168, 20, 71]),
    Budget::new("persistent_backward", RESET_AFTER, [176, 54], [168, 0, 66]),
    Budget::new("persistent_backward", RESET_BEFORE, [176, 54], [168, 0, 64]),
    Budget::new("persistent_forward_scalar", RESET_AFTER, [152, 40], [166, 0, 88]),
    Budget::new("persistent_forward_scalar", RESET_BEFORE, [152, 44], [168, 0, 88]),
    Budget::new("persistent_backward_scalar", RESET_AFTER, [160, 26], [168, 12, 88]),
    Budget::new("persistent_backward_scalar", RESET_BEFORE, [160, 29], [168, 16, 88]),
    Budget::new("forward_lanes", STEP, [208, 70], [254, 4, 76]),
    Budget::new("forward_lanes", STEP_RESET_BEFORE, [176, 56], [242, 28, 66]),
    Budget::new("forward_lanes", SEQUENCE, [128, 71], [128, 12, 77]),
    Budget::new("forward_lanes", SEQUENCE_RESET_BEFORE, [96, 68], [128, 0, 74]),
    Budget::new("backward_lanes", STEP, [176, 55], [234, 20, 73]),
    Budget::new("backward_lanes", STEP_RESET_BEFORE, [176, 55], [230, 20, 68]),
    Budget::new("backward_lanes", SEQUENCE, [56, 55], [64, 12, 59]),
    Budget::new("backward_lanes", SEQUENCE_RESET_BEFORE, [56, 55], [122, 36, 63]),
    Budget::new("forward_lanes_scalar", STEP, [216, 47], [255, 0, 46]),
    Budget::new("forward_lanes_scalar", STEP_RESET_BEFORE, [176, 37], [255, 0, 38]),
    Budget::new("forward_lanes_scalar", SEQUENCE, [128, 48], [128, 8, 45]),
    Budget::new("forward_lanes_scalar", SEQUENCE_RESET_BEFORE, [96, 45], [168, 0, 42]),
    Budget::new("backward_lanes_scalar", STEP, [168, 43], [240, 0, 51]),
    Budget::new("backward_lanes_scalar", STEP_RESET_BEFORE, [168, 43], [230, 0, 51]),
    Budget::new("backward_lanes_scalar", SEQUENCE, [64, 43], [96, 36, 43]),
    Budget::new("backward_lanes_scalar", SEQUENCE_RESET_BEFORE, [64, 43], [128, 0, 46]),
];
