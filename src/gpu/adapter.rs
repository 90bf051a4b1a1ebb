//! The adapters of this machine, and [`AdapterInfo`]: what this library tells of one.

use std::fmt;

use crate::kernels::LOOP_BUDGET;
use crate::plan::Limits;

/// An adapter of this machine, open or not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// The API that it is driven by.
    pub backend: Backend,
    /// What kind of hardware it is, if any.
    pub kind: AdapterKind,
    /// The driver's name and version.
    pub driver: String,
    /// Its limits, as far as a plan has to keep them.
    pub limits: Limits,
    /// Its optional features that matter to compute.
    pub features: Vec<AdapterFeature>,
}

impl AdapterInfo {
    /// Whether it computes on the CPU. Such an adapter is never called a GPU.
    pub fn is_software(&self) -> bool {
        self.kind == AdapterKind::Software
    }
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.kind, self.backend)
    }
}

/// The API that an adapter is driven by.
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
    /// A browser's WebGPU.
    BrowserWebGpu,
    /// wgpu's own that computes nothing.
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
    /// `Vulkan`, `Metal`, `DirectX 12`, …
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

/// What kind of hardware an adapter is, if any. Lesser ones are taken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    DiscreteGpu,
    /// A GPU that shares the CPU's memory.
    IntegratedGpu,
    /// A GPU that a virtual machine is given.
    VirtualGpu,
    /// The driver does not say. Counts as hardware.
    Unknown,
    /// The CPU, such as Mesa's lavapipe or Windows' WARP.
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
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `unknown` or `software`.
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
    /// Half precision in shaders.
    ShaderF16,
    /// Operations over a subgroup.
    Subgroup,
    /// Timestamps around compute passes.
    TimestampQuery,
    /// Small arguments without a buffer.
    Immediates,
}

impl AdapterFeature {
    const ALL: [Self; 4] =
        [Self::ShaderF16, Self::Subgroup, Self::TimestampQuery, Self::Immediates];

    fn in_wgpu(self) -> wgpu::Features {
        match self {
            Self::ShaderF16 => wgpu::Features::SHADER_F16,
            Self::Subgroup => wgpu::Features::SUBGROUP,
            Self::TimestampQuery => wgpu::Features::TIMESTAMP_QUERY,
            Self::Immediates => wgpu::Features::IMMEDIATES,
        }
    }
}

impl fmt::Display for AdapterFeature {
    /// As wgpu names it: `SHADER_F16`, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ShaderF16 => "SHADER_F16",
            Self::Subgroup => "SUBGROUP",
            Self::TimestampQuery => "TIMESTAMP_QUERY",
            Self::Immediates => "IMMEDIATES",
        })
    }
}

/// Every adapter of this machine, the best kind first, and as wgpu lists them within a kind.
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

/// What this library tells of an adapter.
pub(crate) fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let features = adapter.features();
    let has = |feature: &AdapterFeature| features.contains(feature.in_wgpu());
    AdapterInfo {
        backend: info.backend.into(),
        kind: info.device_type.into(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        limits: plan_limits(&info, &adapter.limits()),
        features: AdapterFeature::ALL.into_iter().filter(has).collect(),
        name: info.name,
    }
}

/// An adapter's or a device's limits as a plan reads them.
pub(crate) fn plan_limits(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> Limits {
    // lavapipe ends loops after LOOP_BUDGET iterations without an error.
    let counts_loops = info.name.contains("llvmpipe") || info.driver.contains("llvmpipe");
    Limits {
        max_buffer_size: limits.max_buffer_size,
        max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage.into(),
        max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension.into(),
        max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup.into(),
        max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size.into(),
        max_loop_iterations: if counts_loops { LOOP_BUDGET as u64 } else { u64::MAX },
    }
}

/// [`Device::needed_limits`](crate::Device::needed_limits).
pub(crate) fn needed_limits() -> wgpu::Limits {
    let of_webgpu = wgpu::Limits::default();
    wgpu::Limits {
        max_texture_dimension_1d: 0,
        max_texture_dimension_2d: 0,
        max_texture_dimension_3d: 0,
        max_texture_array_layers: 0,
        max_bind_groups: 1,
        max_bind_groups_plus_vertex_buffers: 1,
        max_bindings_per_bind_group: of_webgpu.max_storage_buffers_per_shader_stage,
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
        ..of_webgpu
    }
}
