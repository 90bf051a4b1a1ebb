//! One open adapter: device, queue, pipelines, and what can go wrong with them.

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

/// Features that a device is opened with where the adapter has them. Timestamps cost nothing until
/// a pass writes one.
const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY;

/// An error of wgpu to be kept. In a browser such an error cannot leave its thread.
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
    /// How long one wait for it may last.
    wait_limit: Option<Duration>,
}

/// A device's compiled kernels, by name and override constants.
type Pipelines = HashMap<(&'static str, Vec<u32>), wgpu::ComputePipeline>;

/// What the clones of a [`Gpu`] share.
struct GpuShared {
    adapter: wgpu::Adapter,
    info: AdapterInfo,
    caps: DeviceCaps,
    /// Where it was opened, or adopted.
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
            source: cause(error),
        })?;
        let lost = DeviceLostDetector::by_callback(&device);
        // Every call is made inside `guard`, whose scopes catch its errors. One that still comes
        // here belongs to no call (wgpu panics where there is no handler).
        device.on_uncaptured_error(Arc::new(|_: wgpu::Error| {}));
        Ok(Self::new(adapter, device, queue, lost))
    }

    /// A device that somebody else opened. Its callbacks are theirs.
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

    /// The same, with waits of at most so long.
    pub fn with_wait_limit(self, limit: Duration) -> Self {
        Self { wait_limit: Some(limit), ..self }
    }

    /// Gives the device while it is open, without keeping it so.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn while_open(&self) -> impl Fn() -> Option<Self> + Send + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().map(|inner| Self { inner, wait_limit: None })
    }

    /// Whether both are the same open device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Calls `work` at once, and gives in time the first error that wgpu reports during it, or that
    /// `work` returns. (Only a browser takes time for it.)
    ///
    /// Scopes belong to a thread, so where threads share the device each gets its own errors.
    ///
    /// Of a device that somebody else opened, a loss shows in waits and results; see
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
            // On a lost device wgpu's calls do not fail, but what is made of their results may.
            match result {
                Ok(value) => self.inner.lost.check_known().map(|()| value),
                Err(error) => Err(self.check_lost().err().unwrap_or(error)),
            }
        }
    }

    /// As [`Self::guard`], for work that cannot be waited for. In a browser, which takes its time
    /// to tell of errors, they go unheard.
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
        // Polls once, so that the callback of a lost device is called even if nobody else polls.
        let polled = self.poll(wgpu::PollType::Poll);
        if let Err(lost @ Error::DeviceLost(_)) = polled.and_then(|()| self.check_lost()) {
            return lost;
        }
        let source = |error: &wgpu::Error| match error {
            // wgpu's own words are no more than `Out of Memory`.
            wgpu::Error::OutOfMemory { source } => one_line(&source.to_string()),
            other => one_line(&other.to_string()),
        };
        let reason = source(&error);
        match error {
            wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { reason, source: cause(error) },
            other => Error::Gpu { reason, source: cause(other) },
        }
    }

    /// Frees what was dropped and is no longer in use.
    pub fn collect(&self) -> Result<()> {
        self.poll(wgpu::PollType::Poll)?;
        self.check_lost()
    }

    /// For a wait that starts now.
    pub fn deadline(&self, what: &'static str) -> Deadline {
        Deadline::new(what, self.wait_limit)
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

    /// Has the callbacks called that are due: after all work queued where the call may block, or
    /// else at once.
    ///
    /// wgpu's own wait with a limit is of no use: it panics where it runs out just as another
    /// thread hears that the work is done (`Device::maintain` of wgpu-core 30, "If the queue is
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

    /// Polls the device for whoever awaits `oneshot`. A browser does by itself.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system starts no thread.
    pub fn poll_for(&self, oneshot: &Arc<Oneshot>, deadline: Deadline) -> Result<()> {
        #[cfg(not(target_arch = "wasm32"))]
        return self.inner.poller.wait(self.while_open(), oneshot, deadline);
        #[cfg(target_arch = "wasm32")]
        return Ok(drop((oneshot, deadline)));
    }

    /// Remembers a loss that showed in a result which did not arrive.
    pub fn lose(&self, reason: &str) -> Error {
        self.inner.lost.lose(reason)
    }

    /// `Ok` unless the device is lost. Where somebody else opened it, this maps a buffer, so it is
    /// for waits, for what is made once, and after errors; not for what a caller does every frame.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check_lost(&self) -> Result<()> {
        self.inner.lost.check(&self.inner.device)
    }

    /// `Ok` unless this process was forked from the one that opened the device.
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

    /// The kernels compiled so far.
    pub fn pipelines(&self) -> &Mutex<Pipelines> {
        &self.inner.pipelines
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
    pub(super) fn count_creation(&self) {}

    #[cfg(test)]
    pub(super) fn count_creation(&self) {
        self.inner.created.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Buffers, bind groups and pipelines made so far.
    #[cfg(test)]
    pub fn created(&self) -> usize {
        self.inner.created.load(std::sync::atomic::Ordering::Relaxed)
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
            // driver's threads. The poller's thread is not here either, but may have left its lock
            // taken.
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

    /// A device that somebody else opened is asked whether it is lost by mapping a buffer. What a
    /// program does every frame does not pay for that.
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
        // A call that gives results asks once.
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

    /// wgpu panics where a driver tells it of a loss while it is polled. No driver here can be made
    /// to; a callback can, in the same call.
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
