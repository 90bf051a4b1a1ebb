//! [`Gpu`]: an open adapter with its device, queue and pipelines, and the handling of their errors.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Cause, Error, Result};
use crate::gpu::adapter::{AdapterInfo, describe, device_caps};
use crate::gpu::device_lost::DeviceLostDetector;
use crate::gpu::pipeline_store::Pipelines;
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::poller::{PolledDevice, Poller};
use crate::gpu::report::one_line;
use crate::gpu::staging::StagingPool;
use crate::gpu::throttle::SubmitThrottle;
use crate::gpu::wait::{Deadline, Oneshot};
use crate::lock::lock;
use crate::plan::{DeviceCaps, Limits};
use crate::process::ProcessGuard;

/// The features that a device is opened with if the adapter supports them. Timestamps cost nothing
/// until a pass writes one, and a pipeline cache nothing until there is one.
const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::IMMEDIATES);

/// Wraps a wgpu error as an error's source. In a browser a wgpu error is not `Send`, so it has to
/// be dropped.
#[cfg(not(target_arch = "wasm32"))]
fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Option<Cause> {
    Some(Cause::new(error))
}

#[cfg(target_arch = "wasm32")]
fn cause(_: impl std::error::Error) -> Option<Cause> {
    None
}

/// An open adapter. Clones share the device.
#[derive(Clone)]
pub(crate) struct Gpu {
    inner: Arc<GpuShared>,
    /// The time limit of one wait for the device; `None` for no limit.
    wait_limit: Option<Duration>,
}

/// The state that the clones of a [`Gpu`] share.
struct GpuShared {
    adapter: wgpu::Adapter,
    info: AdapterInfo,
    caps: DeviceCaps,
    /// The process that opened the device, or passed it to this library.
    process: ProcessGuard,
    device: wgpu::Device,
    queue: wgpu::Queue,
    lost: DeviceLostDetector,
    #[cfg(not(target_arch = "wasm32"))]
    poller: Poller,
    throttle: Mutex<SubmitThrottle>,
    pipelines: Pipelines,
    staging: StagingPool,
    #[cfg(test)]
    created: std::sync::atomic::AtomicUsize,
}

impl Gpu {
    /// Opens `adapter` with all its limits and those of [`FEATURES`] that it supports.
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
            source: cause(error),
        })?;
        let lost = DeviceLostDetector::by_callback(&device);
        // Every call is made inside `guard`, whose scopes catch its errors. Other errors belong to
        // no call, so they are dropped. (Without a handler, wgpu would panic.)
        device.on_uncaptured_error(Arc::new(|_: wgpu::Error| {}));
        Ok(Self::new(adapter, device, queue, lost))
    }

    /// Wraps a device that the caller opened. Leaves the device's callbacks to the caller.
    ///
    /// # Errors
    /// [`Error::OpenDevice`] if the adapter does not support compute shaders.
    pub fn adopt(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let flags = adapter.get_downlevel_capabilities().flags;
        if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
            return Err(Error::OpenDevice {
                adapter: adapter.get_info().name,
                reason: "the adapter does not support compute shaders".to_owned(),
                source: None,
            });
        }
        let lost = DeviceLostDetector::by_probe(&device);
        Ok(Self::new(adapter, device, queue, lost))
    }

    fn new(
        adapter: wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        lost: DeviceLostDetector,
    ) -> Self {
        let caps = device_caps(&adapter.get_info(), &device.limits(), device.features());
        let info = AdapterInfo { limits: caps.limits, ..describe(&adapter) };
        let inner = GpuShared {
            adapter,
            info,
            caps,
            process: ProcessGuard::here(),
            device,
            queue,
            lost,
            #[cfg(not(target_arch = "wasm32"))]
            poller: Poller::default(),
            throttle: Mutex::default(),
            pipelines: Pipelines::default(),
            staging: StagingPool::default(),
            #[cfg(test)]
            created: Default::default(),
        };
        Self { inner: Arc::new(inner), wait_limit: None }
    }

    /// Sets the time limit of each wait.
    pub fn with_wait_limit(self, limit: Duration) -> Self {
        Self { wait_limit: Some(limit), ..self }
    }

    /// Returns a weak handle: a function that returns the device while it is open, and does not
    /// keep it open.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn downgrade(&self) -> impl Fn() -> Option<Self> + Send + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().map(|inner| Self { inner, wait_limit: None })
    }

    /// True if both are clones of the same open device.
    pub fn is_same_device(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Calls `work` at once, inside error scopes. Returns a future of the first error that wgpu
    /// reported during `work`, or of the result of `work`. The future is ready at once, except in a
    /// browser.
    ///
    /// Error scopes belong to a thread, so threads that share the device each get their own errors.
    ///
    /// The loss of a device that the caller opened is not detected here, but by waits and reads of
    /// results; see [`Self::check_lost`].
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
            // On a lost device, wgpu's calls succeed, but later steps of `work` may fail.
            match result {
                Ok(value) => self.inner.lost.check_known().map(|()| value),
                Err(error) => Err(self.check_lost().err().unwrap_or(error)),
            }
        }
    }

    /// Works like [`Self::guard`] for callers that cannot await. In a browser, which reports errors
    /// later, the errors of wgpu are discarded.
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

    /// Converts an error of wgpu. Checks for a lost device first: after a loss, calls fail with all
    /// kinds of errors.
    fn classify(&self, error: wgpu::Error) -> Error {
        // The poll lets wgpu call the callback of a lost device even if no other thread polls.
        let polled = self.poll(wgpu::PollType::Poll);
        if let Err(lost @ Error::DeviceLost(_)) = polled.and_then(|()| self.check_lost()) {
            return lost;
        }
        let reason = one_line(&match &error {
            // wgpu's own message is only `Out of Memory`.
            wgpu::Error::OutOfMemory { source } => source.to_string(),
            other => other.to_string(),
        });
        match error {
            wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { reason, source: cause(error) },
            other => Error::Gpu { reason, source: cause(other) },
        }
    }

    /// Frees the memory of dropped resources that no queued work uses.
    pub fn free_dropped(&self) -> Result<()> {
        self.poll(wgpu::PollType::Poll)?;
        self.check_lost()
    }

    /// Returns the deadline of a wait that starts now. `what` names the awaited thing.
    pub fn deadline(&self, what: &'static str) -> Deadline {
        Deadline::new(what, self.wait_limit)
    }

    /// True if waits have a time limit.
    pub fn is_limited(&self) -> bool {
        self.wait_limit.is_some()
    }

    /// Blocks until all queued work is done, without a time limit.
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())?;
        self.check_lost()?;
        self.throttle().record_done();
        Ok(())
    }

    /// Polls the device once, which calls the callbacks that are due. If `may_block` is true, first
    /// blocks until all queued work is done.
    ///
    /// wgpu's own wait with a timeout cannot be used: it panics if the timeout ends just as another
    /// thread learns that the work is done (`Device::maintain` of wgpu-core 30, "If the queue is
    /// empty").
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn poll_once(&self, may_block: bool) -> Result<()> {
        if may_block {
            return self.poll_until(None);
        }
        self.poll(wgpu::PollType::Poll)?;
        self.inner.lost.check_known()
    }

    /// Polls the device once, after blocking until a submit is done, or all queued work if `None`.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn poll_until(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.poll(wgpu::PollType::Wait { submission_index, timeout: None })?;
        self.inner.lost.check_known()
    }

    /// Lets the polling thread poll the device until `oneshot` has a value. A browser polls by
    /// itself.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system cannot start the thread.
    pub fn poll_for(&self, oneshot: &Arc<Oneshot>, deadline: Deadline) -> Result<()> {
        #[cfg(not(target_arch = "wasm32"))]
        return self.inner.poller.wait(self.downgrade(), oneshot, deadline);
        #[cfg(target_arch = "wasm32")]
        return Ok(drop((oneshot, deadline)));
    }

    /// Marks the device as lost, after a result could not be read, and returns the error.
    pub fn mark_lost(&self, reason: &str) -> Error {
        self.inner.lost.mark_lost(reason)
    }

    /// Checks that the device is not lost. For a device that the caller opened, this maps a buffer.
    /// Call it in waits, after errors and when creating objects, not in calls that a program makes
    /// every frame.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check_lost(&self) -> Result<()> {
        self.inner.lost.check(&self.inner.device)
    }

    /// Checks that this process opened the device, rather than a parent that it was forked from.
    pub fn check_process(&self) -> Result<()> {
        self.inner.process.check("the open device")
    }

    fn poll(&self, kind: wgpu::PollType) -> Result<()> {
        self.check_process()?;
        let polled = self.inner.lost.catch(|| self.inner.device.poll(kind))?;
        polled.map(|_| ()).map_err(|error| Error::Gpu {
            reason: one_line(&error.to_string()),
            source: Some(Cause::new(error)),
        })
    }

    /// Opens the same adapter again with these limits and no optional features.
    pub async fn reopen(&self, limits: wgpu::Limits) -> Result<Self> {
        self.check_process()?;
        let none = wgpu::Features::empty();
        let gpu = Self::open_with(self.inner.adapter.clone(), limits, none).await?;
        Ok(Self { wait_limit: self.wait_limit, ..gpu })
    }

    /// Opens the adapter again, with other capabilities for planning.
    #[cfg(test)]
    pub async fn reopen_with_caps(
        &self,
        change: impl FnOnce(DeviceCaps) -> DeviceCaps,
    ) -> Result<Self> {
        let GpuShared { adapter, device, .. } = &*self.inner;
        let mut gpu = Self::open_with(adapter.clone(), device.limits(), device.features()).await?;
        let shared = Arc::get_mut(&mut gpu.inner).expect("nothing else holds it");
        shared.caps = change(shared.caps);
        Ok(gpu)
    }

    /// Describes the adapter, with the limits that the device was opened with.
    pub fn describe(&self) -> AdapterInfo {
        self.inner.info.clone()
    }

    pub fn limits(&self) -> &Limits {
        &self.inner.caps.limits
    }

    /// Returns the device's capabilities, for planning.
    pub fn caps(&self) -> DeviceCaps {
        self.inner.caps
    }

    /// Returns the nanoseconds per timestamp tick, or `None` if the device has no timestamps.
    pub fn timestamp_period(&self) -> Option<f64> {
        let has = self.inner.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        has.then(|| f64::from(self.inner.queue.get_timestamp_period()))
    }

    /// Locks and returns the submit throttle.
    pub fn throttle(&self) -> MutexGuard<'_, SubmitThrottle> {
        lock(&self.inner.throttle)
    }

    /// Returns the pipelines compiled so far.
    pub(super) fn pipeline_store(&self) -> &Pipelines {
        &self.inner.pipelines
    }

    /// Returns the idle staging buffers.
    pub fn staging_pool(&self) -> &StagingPool {
        &self.inner.staging
    }

    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Creates a zeroed buffer of `size` bytes that kernels can bind, and that can be copied from
    /// and to.
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
    pub(super) fn count_creation(&self) {}

    #[cfg(test)]
    pub(super) fn count_creation(&self) {
        self.inner.created.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns the number of buffers, bind groups and pipelines created so far.
    #[cfg(test)]
    pub fn created(&self) -> usize {
        self.inner.created.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Returns wgpu's description of the adapter.
    pub fn adapter_info(&self) -> wgpu::AdapterInfo {
        self.inner.adapter.get_info()
    }

    /// Submits a command buffer.
    pub fn submit(&self, commands: wgpu::CommandBuffer) {
        self.inner.queue.submit([commands]);
    }

    /// Creates a command encoder.
    pub fn encoder(&self, name: &str) -> wgpu::CommandEncoder {
        let label = format!("gru.{name}");
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some(&label) };
        self.inner.device.create_command_encoder(&descriptor)
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl PolledDevice for Gpu {
    fn poll_once(&self, may_block: bool) -> Result<()> {
        self.poll_once(may_block)
    }

    fn check_lost(&self) -> Result<()> {
        self.check_lost()
    }
}

impl Drop for GpuShared {
    fn drop(&mut self) {
        if self.process.is_forked() {
            // A forked child must not close its parent's device: closing waits for the driver's
            // threads, which do not exist in the child. Nor must it close the poller: its thread
            // does not exist here either, and may have held the lock during the fork. Nor must it free
            // the device's objects.
            let pipelines = std::mem::take(&mut self.pipelines);
            let staging = std::mem::take(&mut self.staging);
            std::mem::forget((self.adapter.clone(), self.device.clone(), self.queue.clone()));
            std::mem::forget((pipelines, staging));
        } else {
            #[cfg(not(target_arch = "wasm32"))]
            self.poller.close();
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
    use crate::model::device::{Device, test_device};
    use crate::model::gru::Gru;
    use crate::model::interop::Buffers;
    use crate::spec::config::GruConfig;
    use crate::spec::element::ElementType::F32;
    use crate::spec::params::Init;

    /// The loss of a device that the caller opened is detected by mapping a buffer. Calls that a
    /// program makes every frame must not pay for that.
    #[test]
    fn encoding_commands_does_not_probe_for_a_lost_device() {
        let (_, own) = test_device();
        let [device, queue] = [(); 2].map(|()| own.clone());
        let (device, queue) = (device.device().clone(), queue.queue().clone());
        let shared = Device::from_wgpu(&own.inner.adapter, &device, &queue).unwrap();
        let gru = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &shared).unwrap();
        let gpu = gru.session_pool().unwrap().gpu();
        let [x, y] = [("x", 12), ("y", 20)].map(|(name, len)| gpu.buffer(name, F32.bytes(len)));
        let buffers = Buffers::new(x.as_entire_buffer_binding(), y.as_entire_buffer_binding());
        let shape = gru.config().shape(1, 4).unwrap();
        let mut pass = gru.forward_pass(shape, &buffers).unwrap();
        let mut stream = gru.stream_over(4, &[1], &buffers).unwrap();
        let x = ndarray::Array3::ones((1, 4, 3));
        gru.forward(&x).unwrap();
        let probes = || gpu.inner.lost.probes();

        let before = probes();
        for _ in 0..10 {
            let mut encoder = gpu.encoder("test");
            gru.encode_step(&mut stream, 1, &mut encoder).unwrap();
            gru.encode(&mut pass, &mut encoder).unwrap();
            gpu.submit(encoder.finish());
        }
        assert_eq!(probes(), before);
        // A call that returns results probes once.
        gru.forward(&x).unwrap();
        assert_eq!(probes(), before + 1);
        device.destroy();
        assert!(matches!(gru.forward(&x), Err(Error::DeviceLost(_))));
        let mut encoder = gpu.encoder("test");
        let encoded = gru.encode_step(&mut stream, 1, &mut encoder);
        assert!(matches!(encoded, Err(Error::DeviceLost(_))), "{encoded:?}");
    }

    #[test]
    fn errors_keep_the_wgpu_error_as_their_source() {
        use std::error::Error as _;

        let (_, gpu) = test_device();
        let limits = wgpu::Limits { max_buffer_size: u64::MAX, ..wgpu::Limits::default() };
        let error = pollster::block_on(gpu.reopen(limits)).unwrap_err();
        assert!(matches!(error, Error::OpenDevice { .. }), "{error}");
        assert!(error.source().is_some_and(|source| source.is::<wgpu::RequestDeviceError>()));
        let wrong_usage = || {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 4,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
            Ok(())
        };
        let error = pollster::block_on(gpu.guard(wrong_usage)).unwrap_err();
        assert!(matches!(error, Error::Gpu { .. }), "{error}");
        assert!(error.source().is_some_and(|source| source.is::<wgpu::Error>()));
    }

    /// wgpu panics if a driver reports a loss during a poll. The test cannot make a driver do that,
    /// but a callback can panic in the same call.
    #[test]
    fn a_panic_during_a_poll_is_a_lost_device() {
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
    fn device_caps_report_the_features_that_a_device_was_opened_with() {
        let (_, gpu) = test_device();
        let info = gpu.inner.adapter.get_info();
        let caps = |features| device_caps(&info, &gpu.device().limits(), features);
        let none = caps(wgpu::Features::empty());
        let plain = DeviceCaps::new(*gpu.limits(), gpu.describe().is_software());
        let DeviceCaps { cores, lanes, dispatch_cost, discrete, .. } = none;
        let plain = plain.with_discrete(discrete);
        let plain = plain.with_cores(cores).with_lanes(lanes).with_dispatch_cost(dispatch_cost);
        let DeviceCaps { large_tile_flops, thread_weights, .. } = none;
        let plain = plain.with_large_tile_flops(large_tile_flops);
        let plain = plain.with_thread_weights(thread_weights);
        assert_eq!(none, plain);
        let some = caps(wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP);
        assert_eq!((some.f16, some.cooperative_matrices), (true, false));
        let sizes = some.subgroups.unwrap();
        assert_eq!((sizes.min, sizes.max), (info.subgroup_min_size, info.subgroup_max_size));
        assert_eq!(gpu.caps(), caps(gpu.device().features()));
    }
}
