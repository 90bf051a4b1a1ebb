//! [`DeviceCaps`]: the capabilities of a device that a plan depends on.

use std::ops::RangeInclusive;

use super::Limits;
use crate::kernels::ArgsSpace;

/// The capabilities of a device that a plan depends on. These are the capabilities that the device
/// was opened with; its adapter may have more.
///
/// The rules that choose kernels and tiles read nothing else, so a plan for any device can be made
/// and tested on any other.
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
    /// The device's limits.
    pub limits: Limits,
    /// True if the device computes on the CPU: it has few threads, and a load costs as much as
    /// several multiplications.
    pub software: bool,
    /// True if the device is a GPU with memory of its own: its slowest are several times as fast as
    /// the slowest GPU that shares a processor's memory.
    pub discrete: bool,
    /// The number of CPU cores that a software adapter computes on. Not used for other devices.
    pub cores: usize,
    /// The threads that a core of a software adapter computes at once, in the lanes of its vectors.
    /// Not used for other devices.
    pub lanes: usize,
    /// The FLOPs that a core computes in the time that a software adapter takes to start a dispatch
    /// and to wait for it. Faster processors do both faster, so this depends on the driver more than
    /// on the processor. Not used for other devices.
    pub dispatch_cost: usize,
    /// The FLOPs of a forward pass from which a software adapter uses large tiles for its products.
    /// They are faster, but take longer to compile, and how much longer depends on the driver. Not
    /// used for other devices.
    pub large_tile_flops: u64,
    /// The recurrent weights that a thread of a large workgroup can hold in registers beside its
    /// other values. Drivers do not report it: 128 on NVIDIA and AMD's RDNA, 80 on AMD's GCN,
    /// otherwise 32. A software adapter has 128, which it keeps in memory.
    pub thread_weights: usize,
    /// True if the device has an instruction for exponentials. A software adapter has polynomials,
    /// less exact than the kernels' own.
    pub hardware_exp: bool,
    /// True if kernels have their arguments as immediates: WGSL's `var<immediate>`, in the command
    /// buffer. Otherwise they load them from a storage buffer.
    pub immediates: bool,
    /// True if kernels can compute in f16: WGSL's `enable f16`. No plan uses it yet.
    pub f16: bool,
    /// The sizes of subgroups, if kernels can use them: WGSL's `enable subgroups`. No plan uses
    /// them yet.
    pub subgroups: Option<SubgroupSizes>,
    /// True if kernels can use cooperative matrices, which a subgroup multiplies together. No plan
    /// uses them yet.
    pub cooperative_matrices: bool,
}

/// The number of threads that a subgroup may have on a device, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubgroupSizes {
    /// The smallest size.
    pub min: u32,
    /// The largest size.
    pub max: u32,
}

impl SubgroupSizes {
    /// Returns the range from the smallest to the largest size.
    pub const fn range(self) -> RangeInclusive<u32> {
        self.min..=self.max
    }
}

impl DeviceCaps {
    /// The capabilities that every WebGPU implementation has.
    pub const WEBGPU: Self = Self::new(Limits::WEBGPU_DEFAULT, false);

    /// [`Self::dispatch_cost`] of lavapipe, which hands each dispatch to its threads: 60 µs at 4
    /// GFLOP/s.
    pub(crate) const LAVAPIPE_DISPATCH: usize = 250_000;

    /// [`Self::dispatch_cost`] of SwiftShader: 50 µs at 1 GFLOP/s.
    pub(crate) const SWIFTSHADER_DISPATCH: usize = 50_000;

    /// [`Self::large_tile_flops`] of lavapipe. In a run of this size the large tile saves 2 to 4 ms,
    /// and it compiles 0.2 to 0.5 s longer: about a hundred runs repay it.
    pub(crate) const LAVAPIPE_LARGE_TILE: u64 = 20_000_000;

    /// [`Self::large_tile_flops`] of SwiftShader, which compiles the large tile in 0.1 s.
    pub(crate) const SWIFTSHADER_LARGE_TILE: u64 = 0;

    /// Makes the capabilities of a device with these limits and no optional features.
    pub const fn new(limits: Limits, software: bool) -> Self {
        Self {
            limits,
            software,
            discrete: false,
            cores: 1,
            lanes: 8,
            dispatch_cost: Self::LAVAPIPE_DISPATCH,
            large_tile_flops: Self::LAVAPIPE_LARGE_TILE,
            thread_weights: if software { 128 } else { 32 },
            hardware_exp: !software,
            immediates: false,
            f16: false,
            subgroups: None,
            cooperative_matrices: false,
        }
    }

    /// Sets whether the device is a GPU with memory of its own.
    #[must_use]
    pub const fn with_discrete(self, discrete: bool) -> Self {
        Self { discrete, ..self }
    }

    /// Sets the number of CPU cores that a software adapter computes on.
    #[must_use]
    pub const fn with_cores(self, cores: usize) -> Self {
        Self { cores, ..self }
    }

    /// Returns the cores of a software adapter, at least one, and no more than any device has.
    pub(crate) fn usable_cores(&self) -> usize {
        self.cores.clamp(1, 1 << 16)
    }

    /// Returns the lanes of a software adapter, at least one, and no more than any processor has.
    pub(crate) fn usable_lanes(&self) -> usize {
        self.lanes.clamp(1, 64)
    }

    /// Sets the threads that a core of a software adapter computes at once.
    #[must_use]
    pub const fn with_lanes(self, lanes: usize) -> Self {
        Self { lanes, ..self }
    }

    /// Sets the FLOPs that a core computes in the time of a dispatch.
    #[must_use]
    pub const fn with_dispatch_cost(self, dispatch_cost: usize) -> Self {
        Self { dispatch_cost, ..self }
    }

    /// Sets the FLOPs of a forward pass from which a software adapter uses large tiles.
    #[must_use]
    pub const fn with_large_tile_flops(self, large_tile_flops: u64) -> Self {
        Self { large_tile_flops, ..self }
    }

    /// Sets the recurrent weights that a thread of a large workgroup can hold in registers.
    #[must_use]
    pub const fn with_thread_weights(self, thread_weights: usize) -> Self {
        Self { thread_weights, ..self }
    }

    /// Sets whether the device has an instruction for exponentials.
    #[must_use]
    pub const fn with_hardware_exp(self, hardware_exp: bool) -> Self {
        Self { hardware_exp, ..self }
    }

    /// Sets whether kernels have their arguments as immediates.
    #[must_use]
    pub const fn with_immediates(self, immediates: bool) -> Self {
        Self { immediates, ..self }
    }

    /// Sets whether kernels can compute in f16.
    #[must_use]
    pub const fn with_f16(self, f16: bool) -> Self {
        Self { f16, ..self }
    }

    /// Sets the sizes of subgroups, from `min` to `max` threads.
    #[must_use]
    pub const fn with_subgroups(self, min: u32, max: u32) -> Self {
        Self { subgroups: Some(SubgroupSizes { min, max }), ..self }
    }

    /// Sets whether kernels can use cooperative matrices.
    #[must_use]
    pub const fn with_cooperative_matrices(self, cooperative_matrices: bool) -> Self {
        Self { cooperative_matrices, ..self }
    }

    /// Returns where kernels have their arguments.
    pub(crate) const fn args_space(&self) -> ArgsSpace {
        if self.immediates { ArgsSpace::Immediate } else { ArgsSpace::Storage }
    }

    /// Returns the largest number of FLOPs of one dispatch, and approximately of one submit. It
    /// keeps each short: a sixth of a second at 200 GFLOP/s, the rate of a slow GPU, or at the 3 to
    /// 8 GFLOP/s of a software adapter. (Windows ends a submit, and loses the device, after 2
    /// seconds.)
    pub(crate) const fn dispatch_flops(&self) -> u64 {
        if self.software { 1_000_000_000 } else { 32_000_000_000 }
    }

    /// Returns the largest number of FLOPs of one dispatch of a product. A product runs faster than
    /// a recurrence, and its dispatches must be large to fill a large GPU: half a second at 640
    /// GFLOP/s. A plan is made before anything is measured, so the measured pace cannot set it. A
    /// discrete GPU that makes less than 160 GFLOP/s would need more than Windows' 2 seconds for a
    /// product of this size.
    pub(crate) const fn product_flops(&self) -> u64 {
        if self.discrete { 320_000_000_000 } else { self.dispatch_flops() }
    }

    /// Returns the largest number of FLOPs of one workgroup, which uses a small part of the device.
    pub(crate) const fn group_flops(&self) -> u64 {
        if self.software { 500_000_000 } else { 2_000_000_000 }
    }
}
