//! [`Limits`]: the limits of an adapter, as plain numbers.

use super::{BufferSpec, Plan, Role, Stage};
use crate::error::{Error, Result};
use crate::kernels::LOOP_BUDGET;

/// The alignment in bytes of every binding's start: the largest offset alignment that WebGPU allows
/// a device to require.
pub(crate) const BINDING_ALIGNMENT: u64 = 256;

/// The distance in bytes between the arguments of two dispatches.
pub(crate) const ARGS_BLOCK: u64 = BINDING_ALIGNMENT;

/// The limits of an adapter that a plan must respect, under WebGPU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest size of a buffer, in bytes.
    pub max_buffer_size: u64,
    /// The largest range of a buffer that one binding can cover, in bytes.
    pub max_storage_buffer_binding_size: u64,
    /// The largest number of storage buffers that a kernel can bind.
    pub max_storage_buffers_per_shader_stage: u64,
    /// The largest number of workgroups of a dispatch along each of x, y and z.
    pub max_compute_workgroups_per_dimension: u64,
    /// The largest number of threads of a workgroup.
    pub max_compute_invocations_per_workgroup: u64,
    /// The largest amount of workgroup memory, in bytes.
    pub max_compute_workgroup_storage_size: u64,
    /// The largest number of loop iterations of one invocation; not a limit of WebGPU. 65,535 on
    /// lavapipe, which silently ends loops after that; unlimited elsewhere.
    pub max_loop_iterations: u64,
}

impl Limits {
    /// WebGPU's default limits, which every implementation supports.
    pub const WEBGPU_DEFAULT: Self = Self {
        max_buffer_size: 256 << 20,
        max_storage_buffer_binding_size: 128 << 20,
        max_storage_buffers_per_shader_stage: 8,
        max_compute_workgroups_per_dimension: 65_535,
        max_compute_invocations_per_workgroup: 256,
        max_compute_workgroup_storage_size: 16 << 10,
        max_loop_iterations: LOOP_BUDGET as u64,
    };

    pub(super) fn allow(&self, plan: &Plan) -> Result<()> {
        // Report the parameters first, because a shorter sequence does not make them smaller, then
        // the largest buffer.
        let parameters = plan.buffers().iter().find(|buffer| buffer.role == Role::Parameters);
        let largest = plan.buffers().iter().max_by_key(|buffer| buffer.bytes());
        for buffer in parameters.into_iter().chain(largest) {
            let what = || format!("the buffer {} {}", buffer.name, buffer.axes);
            within(what, "max_buffer_size", buffer.bytes(), self.max_buffer_size)?;
        }
        let bytes = plan.argument_bytes();
        let what = || format!("the arguments of {} dispatches", bytes / ARGS_BLOCK);
        let allowed = self.max_buffer_size.min(u64::from(u32::MAX)); // offsets are u32
        within(what, "max_buffer_size", bytes, allowed)?;
        for stage in plan.forward().iter().chain(plan.backward()) {
            self.allow_stage(plan, stage)?;
        }
        Ok(())
    }

    fn allow_stage(&self, plan: &Plan, stage: &Stage) -> Result<()> {
        for dispatch in stage.dispatches().0 {
            let kernel = dispatch.kernel;
            for slice in &dispatch.bindings {
                let buffer = plan.spec(slice.buffer);
                within(
                    || format!("binding {} {}", buffer.name, buffer.axes),
                    "max_storage_buffer_binding_size",
                    slice.bytes(),
                    self.max_storage_buffer_binding_size,
                )?;
            }
            let what = || format!("kernel {} ({})", kernel.name, dispatch.label);
            let workgroup = (kernel.workgroup)(&dispatch.constants);
            let widest = dispatch.workgroups.into_iter().max().unwrap_or(0);
            for (limit, asked, allowed) in [
                (
                    "max_storage_buffers_per_shader_stage",
                    kernel.storage_buffers() as u64,
                    self.max_storage_buffers_per_shader_stage,
                ),
                (
                    "max_compute_workgroups_per_dimension",
                    widest,
                    self.max_compute_workgroups_per_dimension,
                ),
                (
                    "max_compute_invocations_per_workgroup",
                    workgroup.threads,
                    self.max_compute_invocations_per_workgroup,
                ),
                (
                    "max_compute_workgroup_storage_size",
                    workgroup.bytes,
                    self.max_compute_workgroup_storage_size,
                ),
                ("max_loop_iterations", dispatch.iterations, self.max_loop_iterations),
            ] {
                within(what, limit, asked, allowed)?;
            }
        }
        Ok(())
    }
}

/// Checks that the kernels' u32 indices can address every element.
pub(super) fn check_indices(buffers: &[BufferSpec]) -> Result<()> {
    let (limit, allowed) = ("the largest index in u32", u64::from(u32::MAX));
    buffers.iter().try_for_each(|spec| {
        let what = || format!("the buffer {} {}", spec.name, spec.axes);
        within(what, limit, spec.len as u64, allowed)
    })
}

pub(super) fn within(
    what: impl FnOnce() -> String,
    limit: &'static str,
    asked: u64,
    allowed: u64,
) -> Result<()> {
    if asked <= allowed {
        return Ok(());
    }
    Err(Error::Limit { what: what(), limit, asked, allowed })
}
