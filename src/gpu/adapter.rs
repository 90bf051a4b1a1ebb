//! The adapters of this computer, and [`AdapterInfo`], their description.

use std::fmt;

use crate::kernels::{LOOP_BUDGET, MAX_ARGS_SIZE};
use crate::plan::{DeviceCaps, Limits};

/// A description of an adapter of this computer, open or not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// The adapter's name, as the driver reports it.
    pub name: String,
    /// The graphics API that wgpu uses for the adapter.
    pub backend: Backend,
    /// The kind of hardware, or software.
    pub kind: AdapterKind,
    /// The driver's name and version.
    pub driver: String,
    /// The limits that a plan must respect.
    pub limits: Limits,
    /// The supported optional features that matter to compute.
    pub features: Vec<AdapterFeature>,
}

impl AdapterInfo {
    /// Returns true if the adapter computes on the CPU. This library never calls such an adapter a
    /// GPU.
    pub fn is_software(&self) -> bool {
        self.kind == AdapterKind::Software
    }
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.kind, self.backend)
    }
}

/// A graphics API through which wgpu uses an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// DirectX 12.
    DirectX12,
    /// OpenGL, OpenGL ES or WebGL.
    Gl,
    /// WebGPU in a browser.
    BrowserWebGpu,
    /// wgpu's test backend, which computes nothing.
    Noop,
}

impl From<wgpu::Backend> for Backend {
    fn from(backend: wgpu::Backend) -> Self {
        match backend {
            wgpu::Backend::Vulkan => Self::Vulkan,
            wgpu::Backend::Metal => Self::Metal,
            wgpu::Backend::Dx12 => Self::DirectX12,
            wgpu::Backend::Gl => Self::Gl,
            wgpu::Backend::BrowserWebGpu => Self::BrowserWebGpu,
            wgpu::Backend::Noop => Self::Noop,
        }
    }
}

impl fmt::Display for Backend {
    /// Writes `Vulkan`, `Metal`, `DirectX 12`, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vulkan => "Vulkan",
            Self::Metal => "Metal",
            Self::DirectX12 => "DirectX 12",
            Self::Gl => "Gl",
            Self::BrowserWebGpu => "BrowserWebGpu",
            Self::Noop => "Noop",
        })
    }
}

/// The kind of hardware of an adapter. Kinds are ordered by preference, the preferred
/// kind first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AdapterKind {
    /// A GPU with its own memory.
    DiscreteGpu,
    /// A GPU that shares the CPU's memory.
    IntegratedGpu,
    /// A GPU inside a virtual machine.
    VirtualGpu,
    /// Not reported by the driver. Counts as hardware.
    Unknown,
    /// A software adapter, which computes on the CPU: Mesa's lavapipe, Windows' WARP.
    Software,
}

impl From<wgpu::DeviceType> for AdapterKind {
    fn from(kind: wgpu::DeviceType) -> Self {
        match kind {
            wgpu::DeviceType::DiscreteGpu => Self::DiscreteGpu,
            wgpu::DeviceType::IntegratedGpu => Self::IntegratedGpu,
            wgpu::DeviceType::VirtualGpu => Self::VirtualGpu,
            wgpu::DeviceType::Other => Self::Unknown,
            wgpu::DeviceType::Cpu => Self::Software,
        }
    }
}

impl fmt::Display for AdapterKind {
    /// Writes `discrete GPU`, `integrated GPU`, `virtual GPU`, `unknown` or `software`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::DiscreteGpu => "discrete GPU",
            Self::IntegratedGpu => "integrated GPU",
            Self::VirtualGpu => "virtual GPU",
            Self::Unknown => "unknown",
            Self::Software => "software",
        })
    }
}

/// An optional feature of an adapter that matters to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AdapterFeature {
    /// Half-precision floats (f16) in shaders.
    ShaderF16,
    /// Subgroup operations.
    Subgroup,
    /// Timestamps at the beginning and end of compute passes.
    TimestampQuery,
    /// Immediates: small arguments without a buffer (push constants).
    Immediates,
    /// Compiled pipelines that can be kept in a file:
    /// [`Device::with_pipeline_cache`](crate::Device::with_pipeline_cache).
    PipelineCache,
}

impl AdapterFeature {
    const ALL: [Self; 5] = [
        Self::ShaderF16,
        Self::Subgroup,
        Self::TimestampQuery,
        Self::Immediates,
        Self::PipelineCache,
    ];

    fn to_wgpu(self) -> wgpu::Features {
        match self {
            Self::ShaderF16 => wgpu::Features::SHADER_F16,
            Self::Subgroup => wgpu::Features::SUBGROUP,
            Self::TimestampQuery => wgpu::Features::TIMESTAMP_QUERY,
            Self::Immediates => wgpu::Features::IMMEDIATES,
            Self::PipelineCache => wgpu::Features::PIPELINE_CACHE,
        }
    }
}

impl fmt::Display for AdapterFeature {
    /// Writes wgpu's name: `SHADER_F16`, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ShaderF16 => "SHADER_F16",
            Self::Subgroup => "SUBGROUP",
            Self::TimestampQuery => "TIMESTAMP_QUERY",
            Self::Immediates => "IMMEDIATES",
            Self::PipelineCache => "PIPELINE_CACHE",
        })
    }
}

/// Lists the adapters of this computer, the best kind first, in wgpu's order within a kind.
pub(crate) async fn adapters() -> Vec<(AdapterInfo, wgpu::Adapter)> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Instance::enabled_backend_features(),
        ..descriptor
    });
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let mut adapters: Vec<_> =
        adapters.into_iter().map(|adapter| (describe(&adapter), adapter)).collect();
    adapters.sort_by_key(|(info, _)| info.kind);
    adapters
}

/// Describes an adapter.
pub(crate) fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let features = adapter.features();
    let has = |feature: &AdapterFeature| features.contains(feature.to_wgpu());
    AdapterInfo {
        backend: info.backend.into(),
        kind: info.device_type.into(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        limits: plan_limits(&info, &adapter.limits()),
        features: AdapterFeature::ALL.into_iter().filter(has).collect(),
        name: info.name,
    }
}

/// Returns the limits of an adapter or device that a plan must respect.
fn plan_limits(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> Limits {
    // lavapipe silently stops loops after LOOP_BUDGET iterations.
    let limits_loops = info.name.contains("llvmpipe") || info.driver.contains("llvmpipe");
    Limits {
        max_buffer_size: limits.max_buffer_size,
        max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage.into(),
        max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension.into(),
        // All workgroups are along x.
        max_compute_invocations_per_workgroup: limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x)
            .into(),
        max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size.into(),
        max_loop_iterations: if limits_loops { LOOP_BUDGET as u64 } else { u64::MAX },
    }
}

/// Returns the capabilities that a device was opened with, for planning. A kernel can use an
/// optional feature only if devices are also opened with that feature.
pub(crate) fn device_caps(
    info: &wgpu::AdapterInfo,
    limits: &wgpu::Limits,
    features: wgpu::Features,
) -> DeviceCaps {
    let software = info.device_type == wgpu::DeviceType::Cpu;
    // lavapipe compiles a kernel again for values of immediates that its branches depend on.
    let immediates = features.contains(wgpu::Features::IMMEDIATES)
        && u64::from(limits.max_immediate_size) >= MAX_ARGS_SIZE
        && !software;
    let (dispatch_cost, large_tile_flops) = match info.name.contains("SwiftShader") {
        true => (DeviceCaps::SWIFTSHADER_DISPATCH, DeviceCaps::SWIFTSHADER_LARGE_TILE),
        false => (DeviceCaps::LAVAPIPE_DISPATCH, DeviceCaps::LAVAPIPE_LARGE_TILE),
    };
    let caps = DeviceCaps::new(plan_limits(info, limits), software)
        .with_discrete(info.device_type == wgpu::DeviceType::DiscreteGpu)
        .with_cores(cores())
        .with_lanes(info.subgroup_min_size.clamp(4, 16) as usize)
        .with_dispatch_cost(dispatch_cost)
        .with_large_tile_flops(large_tile_flops)
        .with_thread_weights(thread_weights(info, software))
        .with_immediates(immediates)
        .with_f16(features.contains(wgpu::Features::SHADER_F16))
        .with_cooperative_matrices(
            features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        );
    match features.contains(wgpu::Features::SUBGROUP) {
        true => caps.with_subgroups(info.subgroup_min_size, info.subgroup_max_size),
        false => caps,
    }
}

/// Returns [`DeviceCaps::thread_weights`]. A multiprocessor of NVIDIA has 65,536 registers, 170 for
/// each of 384 threads, and AMD's RDNA has more. AMD's GCN, whose waves have 64 threads, has as many
/// as NVIDIA, but six waves on four SIMDs leave a thread 128: RADV spills none with 80 weights.
fn thread_weights(info: &wgpu::AdapterInfo, software: bool) -> usize {
    const AMD: u32 = 0x1002;
    const NVIDIA: u32 = 0x10de;
    match info.vendor {
        NVIDIA => 128,
        AMD if info.subgroup_min_size == 32 => 128,
        AMD => 80,
        _ => DeviceCaps::new(Limits::WEBGPU_DEFAULT, software).thread_weights,
    }
}

/// Returns the number of CPU cores that this process may use.
fn cores() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(target_arch = "wasm32")]
    return 1;
}

/// Returns the limits that this library needs at least; see
/// [`Device::needed_limits`](crate::Device::needed_limits).
pub(crate) fn needed_limits() -> wgpu::Limits {
    let webgpu = wgpu::Limits::default();
    wgpu::Limits {
        max_texture_dimension_1d: 0,
        max_texture_dimension_2d: 0,
        max_texture_dimension_3d: 0,
        max_texture_array_layers: 0,
        max_bind_groups: 1,
        max_bind_groups_plus_vertex_buffers: 1,
        max_bindings_per_bind_group: webgpu.max_storage_buffers_per_shader_stage,
        max_dynamic_uniform_buffers_per_pipeline_layout: 0,
        max_dynamic_storage_buffers_per_pipeline_layout: 1,
        max_sampled_textures_per_shader_stage: 0,
        max_samplers_per_shader_stage: 0,
        max_storage_textures_per_shader_stage: 0,
        max_uniform_buffers_per_shader_stage: 0,
        max_uniform_buffer_binding_size: 0,
        max_storage_buffer_binding_size: 32 << 20,
        max_vertex_buffers: 0,
        max_buffer_size: 64 << 20,
        max_vertex_attributes: 0,
        max_vertex_buffer_array_stride: 0,
        max_inter_stage_shader_variables: 0,
        max_color_attachments: 0,
        max_color_attachment_bytes_per_sample: 0,
        max_compute_workgroup_size_y: 16,
        max_compute_workgroup_size_z: 1,
        ..webgpu
    }
}
