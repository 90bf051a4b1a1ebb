//! One open adapter: device, queue, pipelines, and what can go wrong with them.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::adapter::AdapterInfo;
use crate::gpu::throttle::SubmitThrottle;
use crate::kernels::{Access, Kernel, LOOP_BUDGET};
use crate::plan::{DeviceCaps, Limits};
use crate::process::ProcessGuard;

/// Features that a device is opened with where the adapter has them. Timestamps cost nothing until a
/// pass writes one.
const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY;

/// Every adapter of this machine, as wgpu lists them.
pub(crate) async fn adapters() -> Vec<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Instance::enabled_backend_features(),
        ..descriptor
    });
    instance.enumerate_adapters(wgpu::Backends::all()).await
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

/// What this library tells of an adapter.
pub(crate) fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let (rank, kind) = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => (0, "discrete GPU"),
        wgpu::DeviceType::IntegratedGpu => (1, "integrated GPU"),
        wgpu::DeviceType::VirtualGpu => (2, "virtual GPU"),
        wgpu::DeviceType::Other => (3, "unknown"),
        wgpu::DeviceType::Cpu => (4, "software"),
    };
    let features = [
        ("SHADER_F16", wgpu::Features::SHADER_F16),
        ("SUBGROUP", wgpu::Features::SUBGROUP),
        ("TIMESTAMP_QUERY", wgpu::Features::TIMESTAMP_QUERY),
        ("IMMEDIATES", wgpu::Features::IMMEDIATES),
    ];
    let has = adapter.features();
    AdapterInfo {
        backend: match info.backend {
            wgpu::Backend::Dx12 => "DirectX 12".to_owned(),
            other => format!("{other:?}"),
        },
        kind,
        software: info.device_type == wgpu::DeviceType::Cpu,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        limits: plan_limits(&info, &adapter.limits()),
        features: features
            .iter()
            .filter(|(_, f)| has.contains(*f))
            .map(|&(name, _)| name)
            .collect(),
        rank,
        name: info.name,
    }
}

/// An adapter's or a device's limits as a plan reads them.
fn plan_limits(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> Limits {
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

/// What a plan knows of a device: what it was opened with. A kernel that is to use an optional feature needs
/// it in [`FEATURES`] too.
fn device_caps(
    info: &wgpu::AdapterInfo,
    limits: &wgpu::Limits,
    features: wgpu::Features,
) -> DeviceCaps {
    let software = info.device_type == wgpu::DeviceType::Cpu;
    let caps = DeviceCaps::new(plan_limits(info, limits), software)
        .with_f16(features.contains(wgpu::Features::SHADER_F16))
        .with_cooperative_matrices(
            features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        );
    match features.contains(wgpu::Features::SUBGROUP) {
        true => caps.with_subgroups(info.subgroup_min_size, info.subgroup_max_size),
        false => caps,
    }
}

/// wgpu's messages run over several indented lines.
pub(crate) fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// A buffer to see by whether the device still maps any.
fn new_probe(device: &wgpu::Device) -> wgpu::Buffer {
    without_errors(device, || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("gru.probe"),
            size: 4,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        })
    })
}

/// An open adapter. Clones share it.
#[derive(Clone)]
pub(crate) struct Gpu {
    inner: Arc<Inner>,
    /// How long one wait for it may last.
    wait_limit: Option<Duration>,
}

/// A wait, and how long it may go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    what: &'static str,
    /// When it ends, and how long it is.
    end: Option<(Instant, Duration)>,
}

impl Deadline {
    /// How long to wait for a callback before the next look at the device.
    ///
    /// # Errors
    /// [`Error::Timeout`] where there is no more patience.
    fn pause(&self) -> Result<Duration> {
        const LONGEST: Duration = Duration::from_millis(1);
        // Another thread has taken the callback, and is about to call it.
        const ELSEWHERE: Duration = Duration::from_millis(5);
        let Some((end, limit)) = self.end else { return Ok(ELSEWHERE) };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: self.what, limit });
        }
        // The longer it took, the less a moment more matters.
        let gone = limit.saturating_sub(left);
        Ok((gone / 8).clamp(Duration::from_micros(20), LONGEST).min(left))
    }
}

struct Inner {
    adapter: wgpu::Adapter,
    info: AdapterInfo,
    caps: DeviceCaps,
    /// Where it was opened, or adopted.
    home: ProcessGuard,
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// A buffer that is mapped to see whether the device is lost, where somebody else opened it: a loss is
    /// told to them alone.
    probe: Option<Mutex<wgpu::Buffer>>,
    /// Why the device was lost, once it is. It stays lost.
    lost: Arc<Mutex<Option<String>>>,
    throttle: Mutex<SubmitThrottle>,
    pipelines: Mutex<HashMap<PipelineKey, wgpu::ComputePipeline>>,
    #[cfg(test)]
    created: std::sync::atomic::AtomicUsize,
}

type PipelineKey = (&'static str, Vec<u32>);

/// Calls `work`, whose errors nobody hears, a caller's handler of uncaptured ones included.
fn without_errors<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> T {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    // Dropped in reverse order, as they must be.
    let [_first, _second, _third] =
        [Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter));
    work()
}

/// A poisoned lock only means that another thread panicked between two whole updates.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens `adapter` with all that it has of limits and of the features in use here.
    pub async fn open(adapter: wgpu::Adapter) -> Result<Self> {
        let (limits, features) = (adapter.limits(), adapter.features() & FEATURES);
        Self::open_with(adapter, limits, features).await
    }

    async fn open_with(
        adapter: wgpu::Adapter,
        limits: wgpu::Limits,
        features: wgpu::Features,
    ) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("gru.device"),
            required_features: features,
            required_limits: limits,
            ..Default::default()
        };
        let opened = adapter.request_device(&descriptor).await;
        let (device, queue) = opened.map_err(|error| Error::OpenDevice {
            adapter: adapter.get_info().name,
            reason: one_line(&error.to_string()),
        })?;
        let gpu = Self::new(adapter, device, queue, None);
        let reason = Arc::clone(&gpu.inner.lost);
        gpu.inner.device.set_device_lost_callback(move |kind, message| {
            lock(&reason).get_or_insert(one_line(&format!("{kind:?}: {message}")));
        });
        // Every call is made inside `guard`, whose scopes catch its errors. One that still comes here
        // belongs to no call (wgpu panics where there is no handler).
        gpu.inner.device.on_uncaptured_error(Arc::new(|_: wgpu::Error| {}));
        Ok(gpu)
    }

    /// A device that somebody else opened. Its callbacks are theirs.
    pub fn adopt(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let flags = adapter.get_downlevel_capabilities().flags;
        if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
            let reason = "it has no compute shaders".to_owned();
            return Err(Error::OpenDevice { adapter: adapter.get_info().name, reason });
        }
        let probe = new_probe(&device);
        Ok(Self::new(adapter, device, queue, Some(Mutex::new(probe))))
    }

    fn new(
        adapter: wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        probe: Option<Mutex<wgpu::Buffer>>,
    ) -> Self {
        let caps = device_caps(&adapter.get_info(), &device.limits(), device.features());
        let info = AdapterInfo { limits: caps.limits, ..describe(&adapter) };
        let inner = Inner {
            adapter,
            info,
            caps,
            home: ProcessGuard::here(),
            device,
            queue,
            probe,
            lost: Arc::default(),
            throttle: Mutex::default(),
            pipelines: Mutex::default(),
            #[cfg(test)]
            created: Default::default(),
        };
        Self { inner: Arc::new(inner), wait_limit: None }
    }

    /// The same, with waits of at most so long.
    pub fn with_wait_limit(self, limit: Duration) -> Self {
        Self { wait_limit: Some(limit), ..self }
    }

    /// Whether both are the same open device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Calls `work` at once, and gives in time the first error that wgpu reports during it, or that
    /// `work` returns. (Only a browser takes time for it.)
    ///
    /// Scopes belong to a thread, so where threads share the device each gets its own errors.
    pub fn guard<T>(&self, work: impl FnOnce() -> Result<T>) -> impl Future<Output = Result<T>> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let device = &self.inner.device;
        let called = self.check_process().map(|()| {
            let [first, second, third] =
                [Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter));
            let result = work();
            (result, [third, second, first].map(wgpu::ErrorScopeGuard::pop))
        });
        async move {
            let (result, caught) = called?;
            for scope in caught {
                if let Some(error) = scope.await {
                    return Err(self.classify(error));
                }
            }
            self.check_lost()?;
            result
        }
    }

    /// As [`Self::guard`], for work that cannot be waited for. In a browser, which takes its time to tell
    /// of errors, they go unheard.
    pub fn guard_now(&self, work: impl FnOnce()) -> Result<()> {
        let work = || {
            work();
            Ok(())
        };
        let guarded = pin!(self.guard(work));
        match guarded.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// What an error of wgpu means: after a loss, calls fail with all kinds of errors.
    fn classify(&self, error: wgpu::Error) -> Error {
        // Gives a loss that nobody has polled for its chance to be told.
        let polled = self.poll(wgpu::PollType::Poll);
        if let Err(lost @ Error::DeviceLost(_)) = polled.and_then(|()| self.check_lost()) {
            return lost;
        }
        match error {
            wgpu::Error::OutOfMemory { source } => {
                Error::OutOfMemory(one_line(&source.to_string()))
            }
            other => Error::Gpu(one_line(&other.to_string())),
        }
    }

    /// Frees what was dropped and is no longer in use.
    pub fn collect(&self) -> Result<()> {
        self.poll(wgpu::PollType::Poll)?;
        self.check_lost()
    }

    /// A wait for something that begins now.
    pub fn deadline(&self, what: &'static str) -> Deadline {
        // A limit past the clock's end is none.
        let end = |limit| Some((Instant::now().checked_add(limit)?, limit));
        Deadline { what, end: self.wait_limit.and_then(end) }
    }

    /// Whether a wait has a limit.
    pub fn is_limited(&self) -> bool {
        self.wait_limit.is_some()
    }

    /// Waits, without a limit, for all work queued.
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())?;
        self.check_lost()?;
        self.throttle().done();
        Ok(())
    }

    /// Has callbacks called that are due: after all work queued where patience has no end, or else at once.
    /// Says how long to wait for one that was not.
    ///
    /// wgpu's own wait with a limit is of no use: it panics where it runs out just as another thread
    /// hears that the work is done (`Device::maintain` of wgpu-core 30, "If the queue is empty").
    ///
    /// # Errors
    /// [`Error::DeviceLost`], and [`Error::Timeout`] where there is no more patience.
    pub fn poll_once(&self, deadline: &Deadline) -> Result<Duration> {
        self.poll(match deadline.end {
            Some(_) => wgpu::PollType::Poll,
            None => wgpu::PollType::wait_indefinitely(),
        })?;
        self.check_lost()?;
        deadline.pause()
    }

    /// Remembers a loss that showed in a result which did not arrive.
    pub fn lose(&self, reason: &str) -> Error {
        let mut lost = lock(&self.inner.lost);
        Error::DeviceLost(lost.get_or_insert(one_line(reason)).clone())
    }

    /// `Ok` unless the device is known to be lost.
    pub fn check_lost(&self) -> Result<()> {
        if let Some(reason) = lock(&self.inner.lost).clone() {
            return Err(Error::DeviceLost(reason));
        }
        match &self.inner.probe {
            // Where another thread polls meanwhile, wgpu may find the kept buffer still mapped and refuse it; a
            // new one has no past.
            Some(probe)
                if self.refuses_to_map(&lock(probe))
                    && self.refuses_to_map(&new_probe(&self.inner.device)) =>
            {
                Err(self.lose("the caller's device was lost or destroyed"))
            }
            _ => Ok(()),
        }
    }

    /// `Ok` unless this process was forked from the one that opened the device.
    pub fn check_process(&self) -> Result<()> {
        self.inner.home.check("the open device")
    }

    /// Whether mapping a buffer fails at once, which it does on a lost device alone.
    fn refuses_to_map(&self, buffer: &wgpu::Buffer) -> bool {
        let refused = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&refused);
        without_errors(&self.inner.device, || {
            buffer.slice(..).map_async(wgpu::MapMode::Read, move |mapped| {
                told.store(mapped.is_err(), Ordering::Relaxed);
            });
            let refused = refused.load(Ordering::Relaxed);
            // Where it was not refused, this takes it back, which the callback hears as an error.
            buffer.unmap();
            refused
        })
    }

    /// Polls the device.
    ///
    /// wgpu panics where the driver reports a loss to it while it is polled, and has no call that would
    /// return it instead: there is no other way than to catch that.
    fn poll(&self, kind: wgpu::PollType) -> Result<()> {
        self.check_process()?;
        let device = &self.inner.device;
        match std::panic::catch_unwind(AssertUnwindSafe(|| device.poll(kind))) {
            Ok(polled) => {
                polled.map(|_| ()).map_err(|error| Error::Gpu(one_line(&error.to_string())))
            }
            Err(_) => Err(self.lose("the driver failed while it was waited for")),
        }
    }

    /// The same adapter, opened anew with these limits and no feature.
    pub async fn reopen(&self, limits: wgpu::Limits) -> Result<Self> {
        self.check_process()?;
        let none = wgpu::Features::empty();
        let gpu = Self::open_with(self.inner.adapter.clone(), limits, none).await?;
        Ok(Self { wait_limit: self.wait_limit, ..gpu })
    }

    /// The adapter; its limits are those that the device was opened with.
    pub fn describe(&self) -> AdapterInfo {
        self.inner.info.clone()
    }

    pub fn limits(&self) -> &Limits {
        &self.inner.caps.limits
    }

    /// What a plan for it has to know.
    pub fn caps(&self) -> DeviceCaps {
        self.inner.caps
    }

    /// Nanoseconds of a tick of the adapter's clock, where the device can write down its time.
    pub fn tick(&self) -> Option<f64> {
        let has = self.inner.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        has.then(|| f64::from(self.inner.queue.get_timestamp_period()))
    }

    /// How long its submits take.
    pub fn throttle(&self) -> MutexGuard<'_, SubmitThrottle> {
        lock(&self.inner.throttle)
    }

    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// A buffer of `size` bytes, zeroed, that kernels and both copies can use.
    pub fn buffer(&self, name: &str, size: u64) -> wgpu::Buffer {
        use wgpu::BufferUsages as Usage;
        self.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("gru.{name}")),
            size,
            usage: Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC,
            mapped_at_creation: false,
        })
    }

    pub fn create_buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> wgpu::Buffer {
        self.count_creation();
        self.inner.device.create_buffer(descriptor)
    }

    pub fn create_bind_group(&self, descriptor: &wgpu::BindGroupDescriptor<'_>) -> wgpu::BindGroup {
        self.count_creation();
        self.inner.device.create_bind_group(descriptor)
    }

    #[cfg(not(test))]
    fn count_creation(&self) {}

    #[cfg(test)]
    fn count_creation(&self) {
        self.inner.created.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Buffers, bind groups and pipelines made so far.
    #[cfg(test)]
    pub fn created(&self) -> usize {
        self.inner.created.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The compiled kernel with these override constants, compiled at its first use on this device:
    /// a dropped pipeline leaks memory in wgpu, and compiling takes long.
    ///
    /// # Errors
    /// What the driver says of the kernel; it is tried again at the next call.
    pub async fn pipeline(
        &self,
        kernel: &'static Kernel,
        constants: &[u32],
    ) -> Result<wgpu::ComputePipeline> {
        let key = (kernel.name, constants.to_vec());
        let known = lock(&self.inner.pipelines).get(&key).cloned();
        if let Some(pipeline) = known {
            return Ok(pipeline);
        }
        let pipeline = self.guard(|| Ok(self.compile(kernel, constants))).await?;
        // Where another thread was faster, its pipeline stays.
        Ok(lock(&self.inner.pipelines).entry(key).or_insert(pipeline).clone())
    }

    fn compile(&self, kernel: &'static Kernel, constants: &[u32]) -> wgpu::ComputePipeline {
        self.count_creation();
        let device = &self.inner.device;
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
        // With a counter in every loop a compiler does not unroll any: up to a third of a kernel's time.
        let mut checks = wgpu::ShaderRuntimeChecks::checked();
        checks.force_loop_bounding = false;
        // SAFETY: what is not checked is that loops end, and all of them do. The sources are this crate's
        // own; each of their loops is a `for` whose counter nothing else writes, which goes by a stride of
        // at least 1 (a constant, or a product of workgroup sizes, which are not 0) up to a bound that does
        // not change meanwhile. The bound is below 2³¹ plus a stride, for no binding has as many elements,
        // so no counter wraps. Accesses stay checked. (`kernels/tests.rs` holds the sources to the form.)
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

    /// Queues commands.
    pub fn submit(&self, commands: wgpu::CommandBuffer) {
        self.inner.queue.submit([commands]);
    }

    /// A new encoder.
    pub fn encoder(&self, name: &str) -> wgpu::CommandEncoder {
        let label = format!("gru.{name}");
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some(&label) };
        self.inner.device.create_command_encoder(&descriptor)
    }
}

impl Drop for Inner {
    /// A forked child leaves the device to its parent: closing it would wait for the driver's threads.
    fn drop(&mut self) {
        if self.home.is_left() {
            std::mem::forget((self.adapter.clone(), self.device.clone(), self.queue.clone()));
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("adapter", &self.inner.info.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device;
    use crate::model::gru::Gru;
    use crate::spec::config::GruConfig;
    use crate::spec::params::Init;

    /// wgpu panics where a driver tells it of a loss while it is polled. No driver here can be made to;
    /// a callback can, in the same call.
    #[test]
    fn a_panic_inside_a_poll_is_a_lost_device() {
        let (device, gpu) = test_device();
        let gru = Gru::new(GruConfig::new(1, 1), Init::Uniform, 1, &device).unwrap();
        let x = ndarray::Array3::ones((1, 1, 1));
        let expected = gru.forward(&x).unwrap();
        gpu.queue().on_submitted_work_done(|| panic!("as wgpu does"));
        for _ in 0..2 {
            assert!(matches!(gpu.wait(), Err(Error::DeviceLost(_))));
            assert!(matches!(gru.forward(&x), Err(Error::DeviceLost(_))));
        }
        assert_eq!(gru.to(&test_device().0).unwrap().forward(&x).unwrap(), expected);
    }

    #[test]
    fn a_plan_knows_of_the_features_that_a_device_was_opened_with() {
        let (_, gpu) = test_device();
        let info = gpu.inner.adapter.get_info();
        let of = |features| device_caps(&info, &gpu.device().limits(), features);
        let none = of(wgpu::Features::empty());
        assert_eq!(none, DeviceCaps::new(*gpu.limits(), gpu.describe().software));
        let some = of(wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP);
        assert_eq!((some.f16, some.cooperative_matrices), (true, false));
        let sizes = some.subgroups.unwrap();
        assert_eq!((sizes.min, sizes.max), (info.subgroup_min_size, info.subgroup_max_size));
        assert_eq!(gpu.caps(), of(gpu.device().features()));
    }
}
