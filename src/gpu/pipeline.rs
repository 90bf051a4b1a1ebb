//! Compute pipelines: one for each kernel and set of override constants, compiled at first use.

use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::kernels::{Access, Kernel};
use crate::lock::lock;

impl Gpu {
    /// Returns the pipeline of a kernel with these override constants, and compiles it at its first
    /// use on this device. Pipelines are kept as long as the device: compilation is slow, and wgpu
    /// leaks the memory of a dropped pipeline.
    ///
    /// # Errors
    /// The driver's compilation error. The next call tries again.
    pub async fn pipeline(
        &self,
        kernel: &'static Kernel,
        constants: &[u32],
    ) -> Result<wgpu::ComputePipeline> {
        let key = (kernel.name, constants.to_vec());
        let cached = lock(self.pipelines()).get(&key).cloned();
        if let Some(pipeline) = cached {
            return Ok(pipeline);
        }
        let pipeline = self.guard(|| Ok(self.compile(kernel, constants))).await?;
        // If another thread was faster, its pipeline is kept.
        Ok(lock(self.pipelines()).entry(key).or_insert(pipeline).clone())
    }

    fn compile(&self, kernel: &'static Kernel, constants: &[u32]) -> wgpu::ComputePipeline {
        self.count_creation();
        let device = self.device();
        let label = format!("gru.{}", kernel.name);
        let args = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: true },
                has_dynamic_offset: true,
                min_binding_size: wgpu::BufferSize::new(kernel.args_size()),
            },
            count: None,
        };
        let storage = kernel.bindings.iter().zip(1..).map(|(bound, binding)| {
            let read_only = bound.access != Access::ReadWrite;
            wgpu::BindGroupLayoutEntry {
                binding,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: wgpu::BufferSize::new(bound.min_size()),
                },
                ..args
            }
        });
        let entries: Vec<_> = std::iter::once(args).chain(storage).collect();
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(kernel.source.into()),
        };
        // Loop bounding adds a counter to every loop, which keeps compilers from unrolling it. That
        // costs up to a third of a kernel's time.
        let mut checks = wgpu::ShaderRuntimeChecks::checked();
        checks.force_loop_bounding = false;
        // SAFETY: the only check turned off is the one that loops end. All loops end. The sources
        // are this crate's own. Each loop is a `for` whose counter is written by the loop header
        // alone. The counter grows by a stride of at least 1 (a constant, or a product of workgroup
        // sizes, which are not 0) up to a bound that does not change during the loop. The bound is
        // below 2³¹ plus a stride, because no binding has that many elements, so no counter wraps.
        // Memory accesses stay checked. `kernels/tests.rs` tests that the sources have this form.
        #[allow(unsafe_code, reason = "the sources are this crate's own")]
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let constants: Vec<_> =
            kernel.constants.iter().zip(constants).map(|(&c, &v)| (c, f64::from(v))).collect();
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes each element of its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        })
    }
}
