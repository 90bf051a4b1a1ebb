//! What `--limits` allows each kernel. Spilled registers of AMD are never allowed.
//!
//! A budget is what the kernel takes today. Lower it when a kernel improves; raise it only with a
//! reason in the commit.

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

    const fn new(
        kernel: &'static str,
        when: &'static [(&'static str, u32)],
        [vgprs, amd_percent]: [u32; 2],
        [registers, spilled_bytes, nvidia_percent]: [u32; 3],
    ) -> Self {
        let vgprs = vgprs as u64;
        Self { kernel, when, vgprs, amd_percent, registers, spilled_bytes, nvidia_percent }
    }
}

const SEQUENCE: &[(&str, u32)] = &[("RESIDENT", 1)];
const STEP: &[(&str, u32)] = &[("RESIDENT", 0)];

/// The budgets: kernel and family; navi21 VGPRs and percent; sm_90 registers, spilled bytes and
/// percent.
pub const BUDGETS: &[Budget] = &[
    Budget::new("matmul", &[], [80, 75], [118, 0, 83]),
    Budget::new("column_sum", &[], [8, 0], [23, 0, 0]),
    Budget::new("forward", SEQUENCE, [128, 1], [168, 300, 1]),
    Budget::new("forward", STEP, [128, 1], [168, 300, 1]),
    Budget::new("backward", SEQUENCE, [128, 1], [168, 300, 1]),
    Budget::new("backward", STEP, [128, 1], [168, 300, 1]),
    Budget::new("forward_scalar", SEQUENCE, [128, 1], [255, 300, 1]),
    Budget::new("forward_scalar", STEP, [128, 1], [255, 300, 1]),
    Budget::new("backward_scalar", SEQUENCE, [128, 1], [168, 300, 1]),
    Budget::new("backward_scalar", STEP, [128, 1], [168, 300, 1]),
];
