//! [`Gpu`]: an open adapter, and the time of a compute pass on it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use gru_wgpu::wgpu;

/// The features that the probes use where the adapter has them.
const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY
    .union(wgpu::Features::IMMEDIATES)
    .union(wgpu::Features::MEMORY_DECORATION_COHERENT);

/// The kind of adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Gpu,
    Software,
}

/// An open adapter.
pub struct Gpu {
    pub name: String,
    pub adapter: wgpu::Adapter,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// The first error that the device reported.
    error: Arc<Mutex<Option<String>>>,
}

/// Which of wgpu's runtime checks a kernel is compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Checks {
    /// As the library compiles it: all but the bounds of loops.
    Library,
    /// `ShaderRuntimeChecks::unchecked()`.
    Unchecked,
}

impl Gpu {
    /// Opens the first adapter of a kind, as `gru` orders them: discrete GPUs first.
    pub fn open(kind: Kind) -> Result<Self> {
        let instance =
            wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let is_software = |a: &wgpu::Adapter| a.get_info().device_type == wgpu::DeviceType::Cpu;
        adapters.retain(|adapter| is_software(adapter) == (kind == Kind::Software));
        adapters.sort_by_key(|a| a.get_info().device_type != wgpu::DeviceType::DiscreteGpu);
        let adapter = adapters.into_iter().next().with_context(|| match kind {
            Kind::Gpu => "expected a GPU, found none",
            Kind::Software => "expected a software adapter, found none",
        })?;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: adapter.features() & FEATURES,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let error = Arc::new(Mutex::new(None));
        let first = Arc::clone(&error);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut first = first.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            first.get_or_insert(error.to_string());
        }));
        Ok(Self { name: adapter.get_info().name, adapter, device, queue, error })
    }

    pub fn has(&self, feature: wgpu::Features) -> bool {
        self.device.features().contains(feature)
    }

    /// Returns what measures times: the adapter's timestamps, or the host's clock.
    pub fn clock(&self) -> &'static str {
        if self.has(wgpu::Features::TIMESTAMP_QUERY) { "adapter" } else { "host" }
    }

    /// Fails if the device has reported an error.
    pub fn check(&self) -> Result<()> {
        let error = self.error.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        error.map_or(Ok(()), |error| Err(anyhow!(error)))
    }

    /// Creates a buffer of zeros for a shader. Fails if the device has no memory for it.
    pub fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes.next_multiple_of(4).max(4),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_DST
                | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        self.check().map(|()| buffer)
    }

    /// Creates a buffer with these contents.
    pub fn buffer_of(&self, contents: &[u32]) -> Result<wgpu::Buffer> {
        let buffer = self.buffer(4 * contents.len() as u64)?;
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(contents));
        Ok(buffer)
    }

    pub fn module(&self, source: &str, checks: Checks) -> Result<wgpu::ShaderModule> {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        let runtime_checks = match checks {
            Checks::Unchecked => wgpu::ShaderRuntimeChecks::unchecked(),
            Checks::Library => wgpu::ShaderRuntimeChecks {
                force_loop_bounding: false,
                ..wgpu::ShaderRuntimeChecks::checked()
            },
        };
        // SAFETY: all loops of the probes' kernels and of the library's end, and all their indices
        // are in range for the arguments of a plan. Arguments and constants that a caller of this
        // program sets are that caller's responsibility: it measures, and keeps no result.
        #[allow(unsafe_code, reason = "measuring what the checks cost needs kernels without them")]
        let module =
            unsafe { self.device.create_shader_module_trusted(descriptor, runtime_checks) };
        self.check().map(|()| module)
    }

    pub fn pipeline(
        &self,
        module: &wgpu::ShaderModule,
        layout: Option<&wgpu::PipelineLayout>,
        constants: &[(&str, f64)],
    ) -> Result<wgpu::ComputePipeline> {
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout,
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        self.check().map(|()| pipeline)
    }

    /// Runs compute passes that `encode` fills, the first of which warms up. Returns the median
    /// duration of the others, in µs. `before` encodes what precedes a pass, outside its time.
    pub fn time(
        &self,
        repeats: u32,
        before: impl Fn(&mut wgpu::CommandEncoder),
        encode: impl Fn(&mut wgpu::ComputePass<'_>),
    ) -> Result<f64> {
        let mut times = (0..=repeats)
            .map(|_| self.time_once(&before, &encode))
            .collect::<Result<Vec<f64>>>()?
            .split_off(1);
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    fn time_once(
        &self,
        before: impl Fn(&mut wgpu::CommandEncoder),
        encode: impl Fn(&mut wgpu::ComputePass<'_>),
    ) -> Result<f64> {
        let queries = self.has(wgpu::Features::TIMESTAMP_QUERY).then(|| {
            self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        before(&mut encoder);
        self.queue.submit([encoder.finish()]);
        self.wait()?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let timestamp_writes =
                queries.as_ref().map(|query_set| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                });
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            encode(&mut encoder.begin_compute_pass(&descriptor));
        }
        let resolved = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        if let Some(queries) = &queries {
            encoder.resolve_query_set(queries, 0..2, &resolved, 0);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        self.queue.submit([commands]);
        self.wait()?;
        let passed = start.elapsed().as_secs_f64() * 1e6;
        if queries.is_none() {
            return Ok(passed);
        }
        let halves = self.read(&resolved, 4)?;
        let tick = |i: usize| u64::from(halves[i + 1]) << 32 | u64::from(halves[i]);
        let ticks = tick(2).saturating_sub(tick(0));
        Ok(ticks as f64 * f64::from(self.queue.get_timestamp_period()) / 1e3)
    }

    fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        self.check()
    }

    /// Reads the first `len` u32s of a buffer.
    pub fn read(&self, buffer: &wgpu::Buffer, len: usize) -> Result<Vec<u32>> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * len as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, 4 * len as u64);
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.slice(..).map_async(wgpu::MapMode::Read, move |mapped| {
            // The receiver waits below, unless the wait failed.
            let _ = sender.send(mapped);
        });
        self.wait()?;
        match receiver.try_recv() {
            Ok(mapped) => mapped.context("a download")?,
            Err(_) => bail!("a download did not end"),
        }
        let view = staging.slice(..).get_mapped_range()?;
        Ok(bytemuck::cast_slice(&view).to_vec())
    }

    /// Binds whole buffers or parts of them at the numbers given.
    pub fn bind_group(
        &self,
        layout: &wgpu::BindGroupLayout,
        bindings: &[(u32, wgpu::BufferBinding<'_>)],
    ) -> Result<wgpu::BindGroup> {
        let entries: Vec<_> = bindings
            .iter()
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding: *binding,
                resource: wgpu::BindingResource::Buffer(buffer.clone()),
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        });
        self.check().map(|()| group)
    }
}
