//! [`DeviceCaps`]: what a plan knows of a device.

use std::ops::RangeInclusive;

use super::Limits;

/// What a plan knows of the device that it is made for: what it was opened with, not all that its
/// adapter may have.
///
/// The rules that choose kernels and tiles read nothing else, so that a plan for any device can be
/// made and tested on any other.
///
/// ```
/// use gru_wgpu::plan::{DeviceCaps, Limits};
///
/// let caps = DeviceCaps::new(Limits::WEBGPU_DEFAULT, false).with_f16(true).with_subgroups(32, 32);
/// assert_eq!(caps.subgroups.map(|sizes| sizes.min), Some(32));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceCaps {
    /// Its limits.
    pub limits: Limits,
    /// Whether it computes on the CPU: a few threads, to which a load costs as much as some
    /// multiplications.
    pub software: bool,
    /// Whether kernels can compute with f16: WGSL's `enable f16`. No plan asks for it yet.
    pub f16: bool,
    /// The sizes of its subgroups, where kernels can use them: WGSL's `enable subgroups`. No plan
    /// asks for them yet.
    pub subgroups: Option<SubgroupSizes>,
    /// Whether kernels can multiply matrices that a subgroup holds together. No plan asks for it
    /// yet.
    pub cooperative_matrices: bool,
}

/// How many threads a subgroup may have on a device, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubgroupSizes {
    /// The smallest.
    pub min: u32,
    /// The largest.
    pub max: u32,
}

impl SubgroupSizes {
    /// From the smallest to the largest.
    pub const fn range(self) -> RangeInclusive<u32> {
        self.min..=self.max
    }
}

impl DeviceCaps {
    /// A GPU that has what every WebGPU implementation has, and no more.
    pub const WEBGPU: Self = Self::new(Limits::WEBGPU_DEFAULT, false);

    /// A device of these limits, in software or not, without optional features.
    pub const fn new(limits: Limits, software: bool) -> Self {
        Self { limits, software, f16: false, subgroups: None, cooperative_matrices: false }
    }

    /// The same with kernels that compute with f16, or without.
    #[must_use]
    pub const fn with_f16(self, f16: bool) -> Self {
        Self { f16, ..self }
    }

    /// The same with subgroups of `min` to `max` threads.
    #[must_use]
    pub const fn with_subgroups(self, min: u32, max: u32) -> Self {
        Self { subgroups: Some(SubgroupSizes { min, max }), ..self }
    }

    /// The same with cooperative matrices, or without.
    #[must_use]
    pub const fn with_cooperative_matrices(self, cooperative_matrices: bool) -> Self {
        Self { cooperative_matrices, ..self }
    }

    /// Work of one dispatch, and about that of one submit, so that none takes long: a sixth of a
    /// second at 200 GFLOP/s, a slow GPU's rate, or at the 3 to 8 GFLOP/s of a software adapter.
    /// (Windows ends a submit, and loses the device, after 2 seconds.)
    pub(crate) const fn dispatch_flops(&self) -> u64 {
        if self.software { 1_000_000_000 } else { 32_000_000_000 }
    }

    /// Work of one workgroup, which has a small part of the device to itself.
    pub(crate) const fn group_flops(&self) -> u64 {
        if self.software { 500_000_000 } else { 2_000_000_000 }
    }
}
