//! WGSL to SPIR-V with naga, as wgpu-hal 30 does it for Vulkan, and to MSL for the way to CUDA.

use naga::back::{msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy, Layouter};
use naga::valid::{
    Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
};
use naga::{AddressSpace, Module, ShaderStage, TypeInner};

use crate::arguments::Checks;
use crate::error::{Error, Result};
use crate::kernels::Kernel;

/// A kernel as the drivers' compilers take it.
#[derive(Debug)]
pub struct Compiled {
    pub spirv: Vec<u32>,
    pub msl: String,
    /// The storage bindings, in ascending order.
    pub bindings: Vec<StorageBinding>,
    /// The bytes of immediates (push constants).
    pub immediate_bytes: u32,
    /// The threads of a workgroup.
    pub threads: u32,
    /// The bytes of workgroup memory.
    pub workgroup_bytes: u32,
}

/// A storage buffer that a kernel binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageBinding {
    pub index: u32,
    /// True for a struct: the arguments, which the library binds at a dynamic offset.
    pub dynamic: bool,
}

/// Compiles a kernel.
pub fn compile(kernel: &Kernel, checks: Checks) -> Result<Compiled> {
    let refused = |reason: String| Error::Wgsl { kernel: kernel.name.clone(), reason };
    let source = &kernel.source;
    let module = naga::front::wgsl::parse_str(source)
        .map_err(|error| refused(error.emit_to_string(source)))?;
    check_constants(kernel, &module)?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(ShaderStages::all())
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|error| refused(error.emit_to_string(source)))?;
    let constants: naga::back::PipelineConstants =
        kernel.constants.iter().map(|constant| (constant.0.clone(), constant.1)).collect();
    let entry_point = Some((ShaderStage::Compute, "main"));
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, entry_point, &constants)
            .map_err(|error| refused(error.to_string()))?;
    let spirv = write_spirv(&module, &info, checks).map_err(|e| refused(e.to_string()))?;
    let msl = write_msl(&module, &info, checks).map_err(|e| refused(e.to_string()))?;
    let (workgroup_bytes, immediate_bytes) =
        memory(&module, &info).map_err(|error| refused(error.to_string()))?;
    let [x, y, z] = module.entry_points[0].workgroup_size;
    let threads = x * y * z;
    Ok(Compiled {
        spirv,
        msl,
        bindings: bindings(&module),
        immediate_bytes,
        threads,
        workgroup_bytes,
    })
}

/// Refuses a constant that the kernel does not have: naga would ignore it.
fn check_constants(kernel: &Kernel, module: &Module) -> Result<()> {
    let known: Vec<&str> =
        module.overrides.iter().filter_map(|(_, known)| known.name.as_deref()).collect();
    match kernel.constants.iter().find(|constant| !known.contains(&constant.0.as_str())) {
        None => Ok(()),
        Some(unknown) => Err(Error::UnknownConstant {
            kernel: kernel.name.clone(),
            name: unknown.0.clone(),
            known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
        }),
    }
}

/// wgpu-hal's policies on a driver with robustBufferAccess2, which checks buffers itself.
fn policies(checks: Checks) -> BoundsCheckPolicies {
    BoundsCheckPolicies {
        index: match checks {
            Checks::Checked => BoundsCheckPolicy::Restrict,
            Checks::Unchecked => BoundsCheckPolicy::Unchecked,
        },
        buffer: BoundsCheckPolicy::Unchecked,
        image_load: BoundsCheckPolicy::Unchecked,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

/// `compile_stage` of wgpu-hal's vulkan/device.rs over the options of its vulkan/adapter.rs, with
/// what the library's `gpu/pipeline.rs` asks for: no loop bounds, workgroup memory not zeroed.
fn write_spirv(
    module: &Module,
    info: &ModuleInfo,
    checks: Checks,
) -> std::result::Result<Vec<u32>, spv::Error> {
    let options = spv::Options {
        // RADV's version of Vulkan is 1.3 or newer.
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: policies(checks),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: checks == Checks::Checked,
        ..Default::default()
    };
    let pipeline =
        spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".to_owned() };
    spv::write_vec(module, info, &options, Some(&pipeline))
}

fn write_msl(
    module: &Module,
    info: &ModuleInfo,
    checks: Checks,
) -> std::result::Result<String, msl::Error> {
    let options = msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        bounds_check_policies: policies(checks),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: checks == Checks::Checked,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, "main".to_owned())),
        ..Default::default()
    };
    msl::write_string(module, info, &options, &pipeline).map(|(text, _)| text)
}

/// Returns the bytes of workgroup memory and of immediates that the entry point uses.
fn memory(
    module: &Module,
    info: &ModuleInfo,
) -> std::result::Result<(u32, u32), naga::proc::LayoutError> {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx())?;
    let entry_point = info.get_entry_point(0);
    let bytes = |space: AddressSpace| {
        let used = module.global_variables.iter().filter(|(handle, variable)| {
            variable.space == space && !entry_point[*handle].is_empty()
        });
        used.map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(4)).sum()
    };
    Ok((bytes(AddressSpace::WorkGroup), bytes(AddressSpace::Immediate)))
}

fn bindings(module: &Module) -> Vec<StorageBinding> {
    let variables = module.global_variables.iter().map(|(_, variable)| variable);
    let storage = variables.filter(|v| matches!(v.space, AddressSpace::Storage { .. }));
    let mut bindings: Vec<_> = storage
        .filter_map(|variable| {
            let index = variable.binding.as_ref()?.binding;
            let dynamic = matches!(module.types[variable.ty].inner, TypeInner::Struct { .. });
            Some(StorageBinding { index, dynamic })
        })
        .collect();
    bindings.sort_unstable_by_key(|binding| binding.index);
    bindings
}
