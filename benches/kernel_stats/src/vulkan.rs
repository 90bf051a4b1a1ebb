//! A Vulkan driver that compiles pipelines and tells its statistics of them
//! (VK_KHR_pipeline_executable_properties). The only file with unsafe code.

#![allow(unsafe_code, reason = "Vulkan is a C interface; each block says why its call is valid")]

use std::ffi::CStr;

use ash::{ext, khr, vk};

use crate::compile::{Compiled, StorageBinding};
use crate::error::{Error, Result};

/// An open Vulkan device.
pub struct Driver {
    statistics: khr::pipeline_executable_properties::Device,
    device: ash::Device,
    instance: ash::Instance,
    name: String,
    // Last, so that the library stays loaded until the others are dropped.
    _entry: ash::Entry,
}

/// What the driver tells of a compiled kernel.
#[derive(Clone, Debug, Default)]
pub struct Executable {
    /// The threads of a subgroup.
    pub subgroup_size: u32,
    /// Statistics by name, as the driver orders them.
    pub statistics: Vec<(String, f64)>,
    /// The driver's representations of the code by name, such as its assembly.
    pub representations: Vec<(String, String)>,
}

impl Driver {
    /// Opens the first device that the Vulkan loader finds whose driver tells statistics, a GPU with
    /// memory of its own before others, with the features that wgpu uses.
    pub fn open() -> Result<Self> {
        // SAFETY: the loader is the system's Vulkan library, whose initialization has no conditions.
        let entry = unsafe { ash::Entry::load() }?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: `info` and what it points to live until the call returns; it names no extension.
        let instance = unsafe { entry.create_instance(&info, None) }
            .map_err(Error::vulkan("vkCreateInstance"))?;
        match open_device(&instance) {
            Ok((name, device)) => {
                let statistics =
                    khr::pipeline_executable_properties::Device::new(&instance, &device);
                Ok(Self { statistics, device, instance, name, _entry: entry })
            }
            Err(error) => {
                // SAFETY: the instance is live, and no device was made of it.
                unsafe { instance.destroy_instance(None) };
                Err(error)
            }
        }
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compiles a kernel, and returns what the driver tells of it.
    pub fn compile(&self, kernel: &Compiled) -> Result<Executable> {
        let pipeline = Pipeline::new(self, kernel)?;
        let info = vk::PipelineInfoKHR::default().pipeline(pipeline.pipeline);
        // SAFETY: the pipeline is live and of this device, whose pipelineExecutableInfo is enabled.
        let properties = unsafe { self.statistics.get_pipeline_executable_properties(&info) }
            .map_err(Error::vulkan("vkGetPipelineExecutablePropertiesKHR"))?;
        // A driver may tell nothing of a pipeline.
        let Some(first) = properties.first() else { return Ok(Executable::default()) };
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline.pipeline);
        Ok(Executable {
            subgroup_size: first.subgroup_size,
            statistics: self.statistics(&info)?,
            representations: self.representations(&info)?,
        })
    }

    fn statistics(&self, info: &vk::PipelineExecutableInfoKHR<'_>) -> Result<Vec<(String, f64)>> {
        // SAFETY: the pipeline in `info` is live, was made by this device with CAPTURE_STATISTICS, and
        // has the executable 0: `compile` asked.
        let statistics = unsafe { self.statistics.get_pipeline_executable_statistics(info) }
            .map_err(Error::vulkan("vkGetPipelineExecutableStatisticsKHR"))?;
        let number = |statistic: &vk::PipelineExecutableStatisticKHR<'_>| {
            use vk::PipelineExecutableStatisticFormatKHR as Format;
            let value = statistic.value;
            // SAFETY: the driver wrote the member of the union that `format` names.
            let value = unsafe {
                match statistic.format {
                    Format::BOOL32 => f64::from(value.b32),
                    Format::INT64 => value.i64 as f64,
                    Format::FLOAT64 => value.f64,
                    _ => value.u64 as f64,
                }
            };
            (text(statistic.name_as_c_str()), value)
        };
        Ok(statistics.iter().map(number).collect())
    }

    fn representations(
        &self,
        info: &vk::PipelineExecutableInfoKHR<'_>,
    ) -> Result<Vec<(String, String)>> {
        let call = "vkGetPipelineExecutableInternalRepresentationsKHR";
        // SAFETY: as in `statistics`; the pipeline was made with CAPTURE_INTERNAL_REPRESENTATIONS.
        // The structs' `p_data` are null, so that the driver only writes names and sizes.
        let mut found =
            unsafe { self.statistics.get_pipeline_executable_internal_representations(info) }
                .map_err(Error::vulkan(call))?;
        let mut buffers: Vec<Vec<u8>> =
            found.iter().map(|found| vec![0; found.data_size]).collect();
        for (found, buffer) in found.iter_mut().zip(&mut buffers) {
            found.p_data = buffer.as_mut_ptr().cast();
        }
        let mut count = found.len() as u32;
        let get = self.statistics.fp().get_pipeline_executable_internal_representations_khr;
        // SAFETY: as above. `found` has `count` structs, and each `p_data` points to `data_size`
        // bytes that live, and that nothing else accesses, until the call returns.
        unsafe { get(self.device.handle(), info, &mut count, found.as_mut_ptr()) }
            .result()
            .map_err(Error::vulkan(call))?;
        let texts = found.iter().zip(&buffers).map(|(found, buffer)| {
            let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
            let code = String::from_utf8_lossy(&buffer[..end]).into_owned();
            (text(found.name_as_c_str()), code)
        });
        Ok(texts.collect())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: a pipeline borrows its driver, so every object of the device is destroyed, and no
        // other call runs. Nothing uses device or instance afterwards.
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

/// Returns a name that the driver wrote; empty if it is not terminated.
fn text(name: std::result::Result<&CStr, std::ffi::FromBytesUntilNulError>) -> String {
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Opens the device of an instance that [`Driver::open`] describes.
fn open_device(instance: &ash::Instance) -> Result<(String, ash::Device)> {
    // SAFETY: the instance is live.
    let devices = unsafe { instance.enumerate_physical_devices() }
        .map_err(Error::vulkan("vkEnumeratePhysicalDevices"))?;
    // SAFETY: the devices are of this live instance.
    let properties =
        |&device: &vk::PhysicalDevice| unsafe { instance.get_physical_device_properties(device) };
    let mut able = Vec::new();
    for &device in &devices {
        if has_extension(instance, device, khr::pipeline_executable_properties::NAME)? {
            able.push(device);
        }
    }
    able.sort_by_key(|d| properties(d).device_type != vk::PhysicalDeviceType::DISCRETE_GPU);
    let name = |device| text(properties(device).device_name_as_c_str());
    let &physical = able
        .first()
        .ok_or_else(|| Error::NoStatistics { got: devices.iter().map(name).collect() })?;
    let properties = properties(&physical);
    let has_matrices = has_extension(instance, physical, khr::cooperative_matrix::NAME)?;
    let has_f16 = has_f16(instance, physical);

    // What wgpu enables for the library, and what a kernel in f16 or with matrices needs.
    let mut extensions = vec![khr::pipeline_executable_properties::NAME, ext::robustness2::NAME];
    let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
        .pipeline_executable_info(true);
    let mut robustness =
        vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
    let mut vulkan11 =
        vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(has_f16);
    let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default()
        .shader_float16(has_f16)
        .vulkan_memory_model(true)
        .vulkan_memory_model_device_scope(true);
    let mut matrices =
        vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
    let features = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
    let priorities = [1.0];
    let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priorities)];
    let mut info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queue)
        .enabled_features(&features)
        .push_next(&mut executables)
        .push_next(&mut robustness)
        .push_next(&mut vulkan11)
        .push_next(&mut vulkan12);
    if has_matrices {
        extensions.push(khr::cooperative_matrix::NAME);
        info = info.push_next(&mut matrices);
    }
    let extensions: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let info = info.enabled_extension_names(&extensions);
    // SAFETY: `info` and all that it points to live until the call returns. Queue family 0 exists on
    // every device. The driver refuses an extension or a feature that it does not have.
    let device = unsafe { instance.create_device(physical, &info, None) }
        .map_err(Error::vulkan("vkCreateDevice"))?;
    Ok((text(properties.device_name_as_c_str()), device))
}

/// Returns whether a device computes in f16 and has f16 in storage buffers.
fn has_f16(instance: &ash::Instance, physical: vk::PhysicalDevice) -> bool {
    let mut vulkan11 = vk::PhysicalDeviceVulkan11Features::default();
    let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut features =
        vk::PhysicalDeviceFeatures2::default().push_next(&mut vulkan11).push_next(&mut vulkan12);
    // SAFETY: `physical` is a device of this live instance, of Vulkan 1.2 or newer, and the structs
    // of the chain live until the call returns.
    unsafe { instance.get_physical_device_features2(physical, &mut features) };
    vulkan12.shader_float16 == vk::TRUE && vulkan11.storage_buffer16_bit_access == vk::TRUE
}

fn has_extension(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    name: &CStr,
) -> Result<bool> {
    // SAFETY: `physical` is a device of this live instance.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }
        .map_err(Error::vulkan("vkEnumerateDeviceExtensionProperties"))?;
    Ok(extensions.iter().any(|extension| extension.extension_name_as_c_str() == Ok(name)))
}

/// A compute pipeline and what it was made of. Handles that were not made yet are null, which
/// Vulkan allows to destroy.
struct Pipeline<'a> {
    driver: &'a Driver,
    module: vk::ShaderModule,
    bindings: vk::DescriptorSetLayout,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
}

impl<'a> Pipeline<'a> {
    fn new(driver: &'a Driver, kernel: &Compiled) -> Result<Self> {
        let mut made = Self {
            driver,
            module: vk::ShaderModule::null(),
            bindings: vk::DescriptorSetLayout::null(),
            layout: vk::PipelineLayout::null(),
            pipeline: vk::Pipeline::null(),
        };
        made.create_module(&kernel.spirv)?;
        made.create_bindings(&kernel.bindings)?;
        made.create_layout(kernel.immediate_bytes)?;
        made.create_pipeline()?;
        Ok(made)
    }

    fn create_module(&mut self, spirv: &[u32]) -> Result<()> {
        let info = vk::ShaderModuleCreateInfo::default().code(spirv);
        // SAFETY: the device is live. naga wrote the SPIR-V from a module that it had validated.
        self.module = unsafe { self.driver.device.create_shader_module(&info, None) }
            .map_err(Error::vulkan("vkCreateShaderModule"))?;
        Ok(())
    }

    fn create_bindings(&mut self, bindings: &[StorageBinding]) -> Result<()> {
        let binding = |binding: &StorageBinding| {
            let kind = match binding.dynamic {
                true => vk::DescriptorType::STORAGE_BUFFER_DYNAMIC,
                false => vk::DescriptorType::STORAGE_BUFFER,
            };
            vk::DescriptorSetLayoutBinding::default()
                .binding(binding.index)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = bindings.iter().map(binding).collect();
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        // SAFETY: the device is live, and `info` and its bindings live until the call returns. naga's
        // validation lets no two bindings of an entry point have one index.
        self.bindings = unsafe { self.driver.device.create_descriptor_set_layout(&info, None) }
            .map_err(Error::vulkan("vkCreateDescriptorSetLayout"))?;
        Ok(())
    }

    fn create_layout(&mut self, immediate_bytes: u32) -> Result<()> {
        let sets = [self.bindings];
        let ranges = [vk::PushConstantRange::default()
            .stage_flags(vk::ShaderStageFlags::COMPUTE)
            .size(immediate_bytes)];
        let ranges = if immediate_bytes > 0 { &ranges[..] } else { &[] };
        let info =
            vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(ranges);
        // SAFETY: the device is live, and so is the set layout, which is of this device. `info` and
        // what it points to live until the call returns.
        self.layout = unsafe { self.driver.device.create_pipeline_layout(&info, None) }
            .map_err(Error::vulkan("vkCreatePipelineLayout"))?;
        Ok(())
    }

    fn create_pipeline(&mut self) -> Result<()> {
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(self.module)
            .name(c"main");
        let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layout).flags(
            vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
        );
        // SAFETY: module and layout are live and of this device. The layout has every storage
        // binding and the immediates of the module, whose entry point is `main`.
        let created = unsafe {
            let device = &self.driver.device;
            device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
        };
        let created =
            created.map_err(|(_, result)| Error::vulkan("vkCreateComputePipelines")(result))?;
        self.pipeline = created[0];
        Ok(())
    }
}

impl Drop for Pipeline<'_> {
    fn drop(&mut self) {
        let device = &self.driver.device;
        // SAFETY: each handle is null or was made by this live device, nothing was ever submitted
        // that uses it, and nothing uses it after this.
        unsafe {
            device.destroy_pipeline(self.pipeline, None);
            device.destroy_pipeline_layout(self.layout, None);
            device.destroy_descriptor_set_layout(self.bindings, None);
            device.destroy_shader_module(self.module, None);
        }
    }
}
