//! Compute pipelines: one for each kernel and set of override constants, compiled at first use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::once::OncePerKey;
use crate::gpu::pipeline_cache::PipelineCache;
use crate::kernels::{Access, Kernel};
use crate::lock::lock;
use crate::plan::Dispatch;

/// A pipeline's kernel and the values of its override constants.
pub(crate) type PipelineKey = (&'static str, Vec<u32>);

/// A pipeline to compile.
type MissingPipeline = (PipelineKey, &'static Kernel);

/// The pipelines that a device has, and what they are made of.
///
/// Pipelines are kept as long as the device: compilation is slow, and wgpu leaks the memory of a
/// dropped pipeline.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    pipelines: OncePerKey<PipelineKey, wgpu::ComputePipeline>,
    /// By kernel. Its pipelines share them, so that its source is parsed once.
    modules: OncePerKey<&'static str, KernelModule>,
    /// The driver's cache, which outlives the process.
    cache: Mutex<Option<Arc<PipelineCache>>>,
}

/// The parts of a pipeline that do not depend on the override constants.
#[derive(Clone, Debug)]
struct KernelModule {
    module: wgpu::ShaderModule,
    layout: wgpu::PipelineLayout,
}

impl Pipelines {
    /// The cache that pipelines are compiled with.
    pub fn cache(&self) -> Option<Arc<PipelineCache>> {
        lock(&self.cache).clone()
    }

    /// Compiles further pipelines with this cache.
    pub fn set_cache(&self, cache: PipelineCache) {
        *lock(&self.cache) = Some(Arc::new(cache));
    }
}

impl Gpu {
    /// Returns the pipelines of these dispatches. Compiles those that the device does not have yet,
    /// on all cores, and stores them in the pipeline cache.
    ///
    /// # Errors
    /// The driver's compilation error. The next call tries again.
    pub async fn pipelines(
        &self,
        dispatches: impl Iterator<Item = &Dispatch>,
    ) -> Result<HashMap<PipelineKey, wgpu::ComputePipeline>> {
        // A fork copies locks that another thread of the parent may hold.
        self.check_process()?;
        let store = self.pipeline_store();
        let (mut compiled, mut missing) = (HashMap::new(), Vec::<MissingPipeline>::new());
        for Dispatch { kernel, constants, .. } in dispatches {
            let key = (kernel.name, constants.clone());
            if compiled.contains_key(&key) || missing.iter().any(|(other, _)| *other == key) {
                continue;
            }
            match store.pipelines.get(&key) {
                Some(pipeline) => drop(compiled.insert(key, pipeline)),
                None => missing.push((key, kernel)),
            }
        }
        if missing.is_empty() {
            return Ok(compiled);
        }
        self.compile_all(&missing).await?;
        if let Some(cache) = store.cache() {
            cache.save();
        }
        let get = |key| store.pipelines.get(&key).map(|pipeline| (key, pipeline));
        compiled.extend(missing.into_iter().filter_map(|(key, _)| get(key)));
        Ok(compiled)
    }

    /// Compiles pipelines side by side. Mesa's lavapipe gains little: it compiles most of a
    /// pipeline at its first dispatch.
    #[cfg(not(target_arch = "wasm32"))]
    async fn compile_all(&self, missing: &[MissingPipeline]) -> Result<()> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use std::thread;

        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((key, kernel)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.compile_once(key, kernel).inspect_err(|_| {
                    // The other threads stop too.
                    next.store(missing.len(), Ordering::Relaxed);
                })?;
            }
            Ok(())
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        // Not rayon: while one of its threads waits for a pipeline that another thread compiles, it
        // may start a caller's job that needs the same pipeline, and never return.
        thread::scope(|scope| {
            let helper = || thread::Builder::new().name("gru-compile".to_owned());
            // A thread that the system does not start is missing, and the others do its work.
            let helpers: Vec<_> = (1..cores.min(missing.len()))
                .map_while(|_| helper().spawn_scoped(scope, work).ok())
                .collect();
            let own = work();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            helpers.into_iter().map(join).fold(own, Result::and)
        })
    }

    /// Compiles a pipeline, unless another thread has compiled it or is compiling it. The error
    /// scopes are this thread's.
    #[cfg(not(target_arch = "wasm32"))]
    fn compile_once(&self, key: &PipelineKey, kernel: &'static Kernel) -> Result<()> {
        let Pipelines { pipelines, modules, .. } = self.pipeline_store();
        let compile = || {
            let module = modules.get_or_make(&kernel.name, || {
                pollster::block_on(self.guard(|| Ok(self.create_module(kernel))))
            })?;
            pollster::block_on(self.guard(|| Ok(self.compile(kernel, &module, &key.1))))
        };
        pipelines.get_or_make(key, compile).map(|_| ())
    }

    /// Compiles pipelines one after the other. A browser has one thread, which must not wait while
    /// it holds a lock, so two calls at the same time may compile a pipeline twice.
    #[cfg(target_arch = "wasm32")]
    async fn compile_all(&self, missing: &[MissingPipeline]) -> Result<()> {
        let Pipelines { pipelines, modules, .. } = self.pipeline_store();
        for (key, kernel) in missing {
            let module = match modules.get(&kernel.name) {
                Some(module) => module,
                None => {
                    let module = self.guard(|| Ok(self.create_module(kernel))).await?;
                    modules.get_or_make(&kernel.name, || Ok(module))?
                }
            };
            let pipeline = self.guard(|| Ok(self.compile(kernel, &module, &key.1))).await?;
            pipelines.get_or_make(key, || Ok(pipeline))?;
        }
        Ok(())
    }

    fn create_module(&self, kernel: &'static Kernel) -> KernelModule {
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
        KernelModule { module, layout }
    }

    fn compile(
        &self,
        kernel: &'static Kernel,
        KernelModule { module, layout }: &KernelModule,
        constants: &[u32],
    ) -> wgpu::ComputePipeline {
        self.count_creation();
        let constants: Vec<_> =
            kernel.constants.iter().zip(constants).map(|(&c, &v)| (c, f64::from(v))).collect();
        let cache = self.pipeline_store().cache();
        self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&format!("gru.{}", kernel.name)),
            layout: Some(layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes each element of its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: cache.as_deref().map(PipelineCache::driver_cache),
        })
    }

    /// Returns the kernels of the pipelines that the device has, and their constants.
    #[cfg(test)]
    pub fn compiled(&self) -> Vec<PipelineKey> {
        let mut compiled = self.pipeline_store().pipelines.keys();
        compiled.sort();
        compiled
    }
}
