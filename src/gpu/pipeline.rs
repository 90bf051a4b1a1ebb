//! Compute pipelines: one for each kernel and set of override constants, compiled at first use.

use std::collections::HashMap;
use std::path::Path;

use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::pipeline_cache::{PipelineCache, PipelineCacheStatus};
use crate::gpu::pipeline_store::{KernelModule, PipelineKey, Pipelines};
use crate::kernels::{ArgsSpace, Kernel};
use crate::plan::Dispatch;

/// A pipeline to compile.
type MissingPipeline = (PipelineKey, &'static Kernel);

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

    /// Compiles pipelines side by side. Software adapters gain nothing: lavapipe compiles at the
    /// first dispatch, and SwiftShader compiles under a lock.
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
        let (space, args_size) = (self.caps().args_space(), kernel.args_size());
        let args = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: true },
                has_dynamic_offset: true,
                min_binding_size: wgpu::BufferSize::new(args_size),
            },
            count: None,
        };
        let storage = kernel.bindings.iter().zip(1..).map(|(bound, binding)| {
            let read_only = !bound.is_written();
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
        let (args_binding, immediate_size) = match space {
            ArgsSpace::Storage => (Some(args), 0),
            ArgsSpace::Immediate => (None, args_size as u32),
        };
        let entries: Vec<_> = args_binding.into_iter().chain(storage).collect();
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size,
        });
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(kernel.source_in(space)),
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

    /// Compiles further pipelines with the driver's cache in a file of `folder`, and keeps them
    /// there. Does nothing if the device was opened without pipeline caches.
    pub fn use_pipeline_cache(&self, folder: &Path) {
        if self.device().features().contains(wgpu::Features::PIPELINE_CACHE) {
            let create = |data: Option<&[u8]>| self.create_pipeline_cache(data);
            let cache = PipelineCache::open(&self.adapter_info(), folder, create);
            cache.into_iter().for_each(|cache| self.pipeline_store().set_cache(cache));
        }
    }

    /// Describes the pipeline cache, if there is one.
    pub fn pipeline_cache(&self) -> Option<PipelineCacheStatus> {
        self.pipeline_store().cache().map(|cache| cache.status())
    }

    /// Creates the driver's cache. Returns `None` if the driver has no memory, or if wgpu finds that
    /// `data` are of another adapter, driver or version.
    fn create_pipeline_cache(&self, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("gru.pipelines"),
            data,
            // Without data the call is made once more. An error tells the caller that they were not
            // used.
            fallback: false,
        };
        let mut cache = None;
        let create = || {
            // SAFETY: the data must be what `get_data` returned on the same adapter. `pipeline_cache` gives
            // only whole data with the checksum that it computed of what `get_data` returned,
            // and with the key of this driver's version; wgpu compares adapter and driver version
            // again, and the driver its own identifier. So no accident gets here: no damage, no other
            // driver's file. A file made on purpose could. On Unix `check_private` refuses a folder
            // and a file that anyone but the user and root may write to; elsewhere, who can write
            // to the user's folders can change the user's programs too.
            #[allow(unsafe_code, reason = "the proof is above")]
            let created = unsafe { self.device().create_pipeline_cache(&descriptor) };
            cache = Some(created);
        };
        self.guard_now(create).ok()?;
        cache
    }

    /// Returns the kernels of the pipelines that the device has, and their constants.
    #[cfg(test)]
    pub fn compiled(&self) -> Vec<PipelineKey> {
        let mut compiled = self.pipeline_store().pipelines.keys();
        compiled.sort();
        compiled
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ndarray::Array3;

    use super::*;
    use crate::clock::Instant;
    use crate::gpu::session::Session;
    use crate::model::device::test_device;
    use crate::model::gru::Gru;
    use crate::model::network::Network;
    use crate::plan::{Mode, Pass, Plan, Stage};
    use crate::spec::config::GruConfig;
    use crate::spec::head::Head;
    use crate::spec::loss::Loss;
    use crate::spec::optimizer::Optimizer;
    use crate::spec::options::RunOptions;
    use crate::spec::params::{Init, ParamLayout, Params};
    use crate::training::learner::{Learner, LearnerConfig};

    fn kernels(gpu: &Gpu) -> BTreeSet<&'static str> {
        gpu.compiled().into_iter().map(|(kernel, _)| kernel).collect()
    }

    /// Returns the shader modules and the pipelines of the device. wgpu has some of its own.
    fn count(gpu: &Gpu) -> [isize; 2] {
        let counters = gpu.device().get_internal_counters().hal;
        [counters.shader_modules.read(), counters.compute_pipelines.read()]
    }

    fn pipelines_of(plan: &Plan) -> Vec<PipelineKey> {
        let stages = plan.forward().iter().chain(plan.backward());
        let dispatches = stages.flat_map(|stage| stage.dispatches().0);
        let keys = dispatches.map(|dispatch| (dispatch.kernel.name, dispatch.constants.clone()));
        keys.collect::<BTreeSet<_>>().into_iter().collect()
    }

    #[test]
    fn a_run_compiles_the_pipelines_of_its_plan_and_no_others() {
        let (device, gpu) = test_device();
        let config = GruConfig::pytorch(3, 5).with_layers(2);
        let gru = Gru::new(config, Init::Uniform, 1, &device).unwrap();
        assert_eq!(gpu.compiled(), []);
        let [own_modules, own_pipelines] = count(&gpu);
        let x = Array3::ones((4, 2, 3));
        let shape = gru.config().shape(4, 2).unwrap();
        gru.forward(&x).unwrap();
        let forward = gpu.compiled();
        assert_eq!(forward, pipelines_of(&gru.plan(shape, Mode::Inference).unwrap()));
        assert!(!kernels(&gpu).contains("backward_scalar"));
        // Neither another call nor another model of this kind compiles again.
        let before = count(&gpu);
        gru.forward(&x).unwrap();
        let other = Gru::new(gru.config().clone(), Init::Uniform, 2, &device).unwrap();
        other.forward(&x).unwrap();
        assert_eq!((gpu.compiled(), count(&gpu)), (forward.clone(), before));

        let (_, tape) = gru.forward_train(&x).unwrap();
        gru.backward(tape, Some(Array3::ones((4, 2, 5)).view()), None).unwrap();
        let trained = pipelines_of(&gru.plan(shape, Mode::Training).unwrap());
        let both: BTreeSet<_> = forward.into_iter().chain(trained).collect();
        assert_eq!(gpu.compiled(), both.into_iter().collect::<Vec<_>>());
        // One module for all pipelines of a kernel.
        let [modules, pipelines] = count(&gpu);
        assert_eq!(modules - own_modules, kernels(&gpu).len() as isize);
        assert_eq!(pipelines - own_pipelines, gpu.compiled().len() as isize);
    }

    #[test]
    fn losses_and_optimizers_are_compiled_only_where_they_are_used() {
        let (device, gpu) = test_device();
        let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 5), Head::last(2)).unwrap();
        let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
        let (x, targets) = (Array3::ones((4, 2, 3)), [0, 1]);
        let network = Network::new(params.clone(), &device).unwrap();
        assert_eq!(gpu.compiled(), []);
        network.forward(&x).unwrap();
        let [forward, product] = match gpu.caps().software {
            true => ["forward_scalar", "matmul_blocks_scalar"],
            false => ["forward_scalar", "matmul"],
        };
        assert_eq!(kernels(&gpu), [forward, product].into());
        network.evaluate(&Loss::cross_entropy(), &x, &targets[..]).unwrap();
        assert_eq!(kernels(&gpu), ["column_sum", forward, "loss", product].into());
        let config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
        let mut learner = Learner::new(params, config, &device).unwrap();
        let update = ["column_sum", forward, "gradient_norm", "loss", product, "optimizer"];
        assert_eq!(kernels(&gpu), update.into());
        learner.step(&x, &targets[..]).unwrap();
        assert!(kernels(&gpu).contains("backward_scalar"));
    }

    /// Threads that need the same pipelines at the same time compile each once.
    #[test]
    fn threads_compile_a_pipeline_once() {
        let (_, gpu) = test_device();
        let config = GruConfig::pytorch(3, 5).with_layers(2);
        let plan = Plan::new(&config, config.shape(4, 2).unwrap(), Mode::Training).unwrap();
        let dispatches = || plan.forward().iter().flat_map(|stage| stage.dispatches().0);
        let made = gpu.created();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let compile = || pollster::block_on(gpu.pipelines(dispatches())).unwrap();
                scope.spawn(move || assert!(compile().len() > 1));
            }
        });
        // Nothing else is created here.
        assert_eq!(gpu.created() - made, gpu.compiled().len());
    }

    /// Errors of a compilation on another thread reach the caller, and the next call tries again.
    #[test]
    fn a_failed_compilation_is_an_error() {
        static BROKEN: Kernel = Kernel { source: "@compute fn main() {}", ..KERNEL };
        const KERNEL: Kernel = Kernel {
            name: "broken",
            file: "broken",
            source: "",
            bindings: &[],
            args: &["length"],
            constants: &["variant"],
            workgroup: |_| unreachable!("it has no plan"),
        };
        let (_, gpu) = test_device();
        let missing: Vec<_> = (0..4).map(|variant| (("broken", vec![variant]), &BROKEN)).collect();
        for _ in 0..2 {
            let error = pollster::block_on(gpu.compile_all(&missing)).unwrap_err();
            assert!(matches!(error, crate::Error::Gpu { .. }), "{error}");
            assert_eq!(gpu.compiled(), []);
        }
    }

    /// Prints what each pipeline of a training step costs: its creation, and its first dispatch
    /// beyond the second. Use an empty shader cache (`MESA_SHADER_CACHE_DISABLE=true`).
    #[test]
    #[ignore = "prints times; benches/NOTES.md has the command"]
    fn compile_times() {
        let (_, gpu) = test_device();
        for ([steps, batch, input, hidden], zoneout) in
            [([16, 8, 64, 64], 0.0), ([16, 1, 63, 65], 0.0), ([16, 8, 64, 64], 0.1)]
        {
            let config = GruConfig::pytorch(input, hidden).with_zoneout(zoneout);
            let shape = config.shape(steps, batch).unwrap();
            let (mode, options) = (Mode::Training, RunOptions::default());
            let plan = Plan::with_options(&config, shape, mode, options, &gpu.caps()).unwrap();
            println!("{shape}, zoneout {zoneout}: {} pipelines", plan.pipelines());
            let mut seen = BTreeSet::new();
            for stage in plan.forward().iter().chain(plan.backward()) {
                let dispatch = &stage.dispatches().0[0];
                if seen.insert((dispatch.kernel.name, dispatch.constants.clone())) {
                    let (create, compile) = compile_time(&gpu, &plan, stage);
                    println!("  {:<22} {create:.2} s + {compile:.2} s", dispatch.kernel.name);
                }
            }
        }
    }

    /// Returns the seconds of a stage's creation, and of its first run beyond the second.
    fn compile_time(gpu: &Gpu, plan: &Plan, stage: &Stage) -> (f64, f64) {
        let (buffers, stages) = (plan.buffers().to_vec(), vec![stage.clone()]);
        let plan = Plan::of_stages("one stage", buffers, stages, &gpu.caps());
        let start = Instant::now();
        let mut session = pollster::block_on(Session::new(gpu, plan, &[])).unwrap();
        let create = start.elapsed();
        let mut run = || {
            let start = Instant::now();
            pollster::block_on(session.run(Pass::Forward)).unwrap();
            gpu.wait().unwrap();
            start.elapsed().as_secs_f64()
        };
        let (first, second) = (run(), run());
        (create.as_secs_f64(), first - second)
    }
}
