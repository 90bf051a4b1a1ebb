//! What an adapter allows, as plain numbers.

use super::{BufferSpec, Plan, Role, Stage};
use crate::error::{Error, Result};
use crate::kernels::LOOP_BUDGET;

/// Every binding starts at a multiple of this many bytes of its buffer: the largest offset
/// alignment that WebGPU lets a device ask for.
pub(crate) const BINDING_ALIGNMENT: u64 = 256;

/// Bytes between two dispatches' arguments in the buffer that holds them.
pub(crate) const ARGS_BLOCK: u64 = BINDING_ALIGNMENT;

/// The limits of an adapter that a plan has to keep, under WebGPU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one buffer.
    pub max_buffer_size: u64,
    /// Bytes of one buffer that a kernel can see at once.
    pub max_storage_buffer_binding_size: u64,
    /// Buffers that a kernel can see at once.
    pub max_storage_buffers_per_shader_stage: u64,
    /// Workgroups of a dispatch along x, y or z.
    pub max_compute_workgroups_per_dimension: u64,
    /// Threads of a workgroup.
    pub max_compute_invocations_per_workgroup: u64,
    /// Bytes of a workgroup's own memory.
    pub max_compute_workgroup_storage_size: u64,
    /// Not WebGPU's: loop iterations that one invocation can make. 65,535 on lavapipe, which past
    /// it ends loops without an error; unlimited elsewhere.
    pub max_loop_iterations: u64,
}

impl Limits {
    /// What every WebGPU implementation allows.
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
        // The parameters are to tell of first, which no shorter sequence makes smaller, and then
        // the largest.
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
                (
                    "loop iterations of one invocation",
                    dispatch.iterations,
                    self.max_loop_iterations,
                ),
            ] {
                within(what, limit, asked, allowed)?;
            }
        }
        Ok(())
    }
}

/// `Ok` when every element of the buffers has an index in u32, as the kernels count.
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
