//! [`Gpu`]: an open adapter with its device, queue and pipelines, and the handling of their errors.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Cause, Error, Result};
use crate::gpu::adapter::{AdapterInfo, describe, device_caps};
use crate::gpu::device_lost::DeviceLostDetector;
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::poller::{PolledDevice, Poller};
use crate::gpu::report::one_line;
use crate::gpu::throttle::SubmitThrottle;
use crate::gpu::wait::{Deadline, Oneshot};
use crate::lock::lock;
use crate::plan::{DeviceCaps, Limits};
use crate::process::ProcessGuard;

/// The features that a device is opened with, if the adapter has them. Timestamps cost nothing
/// until a pass writes one.
const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY;

/// Stores an error of wgpu as the cause of ours. In a browser such an error cannot leave its
/// thread.
#[cfg(not(target_arch = "wasm32"))]
fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Option<Cause> {
    Some(Cause::new(error))
}

#[cfg(target_arch = "wasm32")]
fn cause(_: impl std::error::Error) -> Option<Cause> {
    None
}

/// An open adapter. Clones share it.
#[derive(Clone)]
pub(crate) struct Gpu {
    inner: Arc<GpuShared>,
    /// The longest time that one wait may take.
    wait_limit: Option<Duration>,
}

/// The compiled kernels of a device, by name and override constants.
type Pipelines = HashMap<(&'static str, Vec<u32>), wgpu::ComputePipeline>;

/// The state that the clones of a [`Gpu`] share.
struct GpuShared {
    adapter: wgpu::Adapter,
    info: AdapterInfo,
    caps: DeviceCaps,
    /// The process that opened or adopted the device.
    process: ProcessGuard,
    device: wgpu::Device,
    queue: wgpu::Queue,
    lost: DeviceLostDetector,
    #[cfg(not(target_arch = "wasm32"))]
    poller: Poller,
    throttle: Mutex<SubmitThrottle>,
    pipelines: Mutex<Pipelines>,
    #[cfg(test)]
    created: std::sync::atomic::AtomicUsize,
}

impl Gpu {
    /// Opens `adapter` with all of its limits, and those of its features that this library uses.
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
        // Every call runs inside `guard`, whose error scopes catch its errors. An error that still
        // arrives here belongs to no call. wgpu panics if there is no handler.
        device.on_uncaptured_error(Arc::new(|_: wgpu::Error| {}));
        Ok(Self::new(adapter, device, queue, lost))
    }

    /// Adopts a device that the caller opened. The caller keeps its callbacks.
    pub fn adopt(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let flags = adapter.get_downlevel_capabilities().flags;
        if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
            return Err(Error::OpenDevice {
                adapter: adapter.get_info().name,
                reason: "it has no compute shaders".to_owned(),
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
            pipelines: Mutex::default(),
            #[cfg(test)]
            created: Default::default(),
        };
        Self { inner: Arc::new(inner), wait_limit: None }
    }

    /// Limits the time that one wait may take.
    pub fn with_wait_limit(self, limit: Duration) -> Self {
        Self { wait_limit: Some(limit), ..self }
    }

    /// Returns a function that returns the device while it is open. The function does not keep the
    /// device open.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn while_open(&self) -> impl Fn() -> Option<Self> + Send + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().map(|inner| Self { inner, wait_limit: None })
    }

    /// Returns true if both are the same open device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Calls `work` immediately. The returned future gives the first error that wgpu reports during
    /// the call, or the error that `work` returns. (Only in a browser does the future take time.)
    ///
    /// Error scopes belong to a thread, so threads that share the device each get their own errors.
    ///
    /// On a device that the caller opened, a loss shows only in waits and results; see
    /// [`Self::check_lost`].
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
            // On a lost device wgpu's calls do not fail, but calls that use their results may.
            match result {
                Ok(value) => self.inner.lost.check_known().map(|()| value),
                Err(error) => Err(self.check_lost().err().unwrap_or(error)),
            }
        }
    }

    /// Like [`Self::guard`], for calls that cannot wait. In a browser, which reports errors later,
    /// errors are lost.
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

    /// Classifies an error of wgpu. After a device loss, calls fail with errors of any kind.
    fn classify(&self, error: wgpu::Error) -> Error {
        // Polls once, so that the device-lost callback runs even if nobody else polls.
        let polled = self.poll(wgpu::PollType::Poll);
        if let Err(lost @ Error::DeviceLost(_)) = polled.and_then(|()| self.check_lost()) {
            return lost;
        }
        let source = |error: &wgpu::Error| match error {
            // wgpu's own text is only `Out of Memory`.
            wgpu::Error::OutOfMemory { source } => one_line(&source.to_string()),
            other => one_line(&other.to_string()),
        };
        let reason = source(&error);
        match error {
            wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { reason, source: cause(error) },
            other => Error::Gpu { reason, source: cause(other) },
        }
    }

    /// Frees resources that were dropped and are no longer in use.
    pub fn collect(&self) -> Result<()> {
        self.poll(wgpu::PollType::Poll)?;
        self.check_lost()
    }

    /// Returns the deadline of a wait that starts now.
    pub fn deadline(&self, what: &'static str) -> Deadline {
        Deadline::new(what, self.wait_limit)
    }

    /// Returns true if waits have a limit.
    pub fn is_limited(&self) -> bool {
        self.wait_limit.is_some()
    }

    /// Waits for all queued work, without a limit.
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())?;
        self.check_lost()?;
        self.throttle().done();
        Ok(())
    }

    /// Runs the callbacks that are due. With `blocks` it first waits for all queued work.
    ///
    /// wgpu's own wait with a timeout cannot be used. It panics if it times out just as another
    /// thread learns that the work is done (`Device::maintain` of wgpu-core 30, "If the queue is
    /// empty").
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn poll_once(&self, blocks: bool) -> Result<()> {
        self.poll(match blocks {
            true => wgpu::PollType::wait_indefinitely(),
            false => wgpu::PollType::Poll,
        })?;
        self.inner.lost.check_known()
    }

    /// Polls the device for the task that awaits `oneshot`. In a browser the browser polls.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system cannot start a thread.
    pub fn poll_for(&self, oneshot: &Arc<Oneshot>, deadline: Deadline) -> Result<()> {
        #[cfg(not(target_arch = "wasm32"))]
        return self.inner.poller.wait(self.while_open(), oneshot, deadline);
        #[cfg(target_arch = "wasm32")]
        return Ok(drop((oneshot, deadline)));
    }

    /// Records a device loss that a missing result has shown.
    pub fn lose(&self, reason: &str) -> Error {
        self.inner.lost.lose(reason)
    }

    /// Returns an error if the device is lost. On a device that the caller opened this maps a
    /// buffer, so call it in waits, in constructors and after errors, but not every frame.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check_lost(&self) -> Result<()> {
        self.inner.lost.check(&self.inner.device)
    }

    /// Returns an error if this process was forked from the one that opened the device.
    pub fn check_process(&self) -> Result<()> {
        self.inner.process.check("the open device")
    }

    /// Polls the device.
    fn poll(&self, kind: wgpu::PollType) -> Result<()> {
        self.check_process()?;
        let polled = self.inner.lost.catch(|| self.inner.device.poll(kind))?;
        polled.map(|_| ()).map_err(|error| Error::Gpu {
            reason: one_line(&error.to_string()),
            source: Some(Cause::new(error)),
        })
    }

    /// Opens the same adapter again with these limits and no optional feature.
    pub async fn reopen(&self, limits: wgpu::Limits) -> Result<Self> {
        self.check_process()?;
        let none = wgpu::Features::empty();
        let gpu = Self::open_with(self.inner.adapter.clone(), limits, none).await?;
        Ok(Self { wait_limit: self.wait_limit, ..gpu })
    }

    /// Describes the adapter, with the limits that the device was opened with.
    pub fn describe(&self) -> AdapterInfo {
        self.inner.info.clone()
    }

    pub fn limits(&self) -> &Limits {
        &self.inner.caps.limits
    }

    /// Returns what a plan needs to know about the device.
    pub fn caps(&self) -> DeviceCaps {
        self.inner.caps
    }

    /// Returns the nanoseconds per tick of the adapter's timestamps, or `None` without timestamps.
    pub fn tick(&self) -> Option<f64> {
        let has = self.inner.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        has.then(|| f64::from(self.inner.queue.get_timestamp_period()))
    }

    /// Returns the throttle, which measures how long submits take.
    pub fn throttle(&self) -> MutexGuard<'_, SubmitThrottle> {
        lock(&self.inner.throttle)
    }

    /// Returns the kernels compiled so far.
    pub fn pipelines(&self) -> &Mutex<Pipelines> {
        &self.inner.pipelines
    }

    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Creates a zeroed buffer of `size` bytes for kernels and for copies in both directions.
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

    /// Submits commands to the queue.
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
    fn poll_once(&self, blocks: bool) -> Result<()> {
        self.poll_once(blocks)
    }

    fn check_lost(&self) -> Result<()> {
        self.check_lost()
    }
}

impl Drop for GpuShared {
    fn drop(&mut self) {
        if self.process.is_forked() {
            // A forked child leaves the device to its parent: closing it would wait for the
            // driver's threads. The poller's thread does not exist in the child either, but may
            // have left its lock taken.
            std::mem::forget((self.adapter.clone(), self.device.clone(), self.queue.clone()));
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

    /// On a device that the caller opened, checking for a loss maps a buffer. Calls that a program
    /// makes every frame must not do that.
    #[test]
    fn commands_are_encoded_without_asking_whether_the_device_is_lost() {
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
        let probed = || gpu.inner.lost.probed();

        let before = probed();
        for _ in 0..10 {
            let mut encoder = gpu.encoder("test");
            gru.encode_step(&mut stream, 1, &mut encoder).unwrap();
            gru.encode(&mut pass, &mut encoder).unwrap();
            gpu.submit(encoder.finish());
        }
        assert_eq!(probed(), before);
        // A call that returns results checks once.
        gru.forward(&x).unwrap();
        assert_eq!(probed(), before + 1);
        device.destroy();
        assert!(matches!(gru.forward(&x), Err(Error::DeviceLost(_))));
        let mut encoder = gpu.encoder("test");
        let encoded = gru.encode_step(&mut stream, 1, &mut encoder);
        assert!(matches!(encoded, Err(Error::DeviceLost(_))), "{encoded:?}");
    }

    #[test]
    fn errors_keep_what_wgpu_reported() {
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

    /// wgpu panics if the driver reports a loss during a poll. No driver here can be made to; a
    /// callback that panics in the same call stands in for it.
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
        assert_eq!(none, DeviceCaps::new(*gpu.limits(), gpu.describe().is_software()));
        let some = of(wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP);
        assert_eq!((some.f16, some.cooperative_matrices), (true, false));
        let sizes = some.subgroups.unwrap();
        assert_eq!((sizes.min, sizes.max), (info.subgroup_min_size, info.subgroup_max_size));
        assert_eq!(gpu.caps(), of(gpu.device().features()));
    }
}
