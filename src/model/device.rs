//! [`Device`]: the CPU or an open adapter, where a model runs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::cpu;
use crate::error::{Error, Result};
use crate::gpu::adapter::{self, AdapterInfo};
use crate::gpu::context::Gpu;
use crate::gpu::pipeline_cache::PipelineCacheStatus;
use crate::model::blocking::blocking_and_async;
use crate::plan::DeviceCaps;

/// The [`Device::reason`] of a device that the caller chose.
const REQUESTED: &str = "requested by the caller";

/// A device that models run on: the CPU or an open adapter. Clones are cheap and share the open
/// adapter.
///
/// ```no_run
/// use gru_wgpu::Device;
///
/// let device = Device::auto(); // a hardware GPU, or the CPU if there is none
/// println!("{device}: {}", device.reason());
/// let ci = Device::software()?; // a software adapter, for tests without a GPU
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Device {
    target: DeviceTarget,
    reason: String,
}

#[derive(Clone, Debug)]
pub(crate) enum DeviceTarget {
    Cpu,
    Gpu(Gpu),
}

impl Device {
    blocking_and_async! {
        /// Opens a hardware GPU, or returns the CPU if none opens. Never opens a software adapter.
        /// [`Self::reason`] explains the choice.
        pub fn auto, auto_async() -> Self {
            |_| Self::find_auto()
        }
    }

    async fn find_auto() -> Self {
        match Self::find_gpu().await {
            Ok(device) => Self { reason: "auto prefers a hardware GPU".to_owned(), ..device },
            Err(error) => Self {
                target: DeviceTarget::Cpu,
                reason: format!("auto falls back to the CPU: {error}"),
            },
        }
    }

    /// Returns the CPU.
    pub fn cpu() -> Self {
        Self { target: DeviceTarget::Cpu, reason: REQUESTED.to_owned() }
    }

    blocking_and_async! {
        /// Opens a hardware GPU. Tries discrete GPUs, then integrated GPUs, then virtual GPUs, and
        /// returns the first that opens.
        ///
        /// # Errors
        /// [`Error::NoAdapter`], which lists the adapters found, or [`Error::OpenDevice`] if no
        /// hardware GPU opens.
        pub fn gpu, gpu_async() -> Result<Self> {
            |_| Self::find_gpu()
        }
    }

    async fn find_gpu() -> Result<Self> {
        const HINT: &str = "install the GPU's Vulkan, Metal or DirectX 12 driver";
        Self::open_first("hardware GPU", HINT, |info| !info.is_software()).await
    }

    blocking_and_async! {
        /// Opens the hardware GPU with this index. Indices start at 0 and count the hardware GPUs
        /// in the order of [`Self::adapters`]. A GPU with two drivers, for example Vulkan and
        /// DirectX 12, has an index for each driver.
        ///
        /// ```no_run
        /// use gru_wgpu::Device;
        ///
        /// let [first, second] = [Device::gpu_at(0)?, Device::gpu_at(1)?];
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// [`Error::NoGpuAt`], which lists the adapters found, or [`Error::OpenDevice`].
        pub fn gpu_at, gpu_at_async(index: usize) -> Result<Self> {
            |_| Self::open_gpu_at(index)
        }
    }

    async fn open_gpu_at(index: usize) -> Result<Self> {
        let mut adapters = adapter::adapters().await;
        // Software adapters come last.
        match adapters.get(index) {
            Some((info, _)) if !info.is_software() => {
                Self::open(adapters.swap_remove(index).1).await
            }
            _ => {
                let infos: Vec<_> = adapters.into_iter().map(|(info, _)| info).collect();
                Err(Error::NoGpuAt { index, found: describe_with_index(&infos) })
            }
        }
    }

    blocking_and_async! {
        /// Opens a software adapter such as Mesa's lavapipe, which runs the GPU's kernels on the
        /// CPU.
        ///
        /// # Errors
        /// [`Error::NoAdapter`], which names a package to install, or [`Error::OpenDevice`].
        pub fn software, software_async() -> Result<Self> {
            |_| Self::find_software()
        }
    }

    async fn find_software() -> Result<Self> {
        const HINT: &str = "install Mesa's lavapipe: `apt-get install mesa-vulkan-drivers` on \
            Debian and Ubuntu, `dnf install mesa-vulkan-drivers` on Fedora";
        Self::open_first("software", HINT, |info| info.is_software()).await
    }

    blocking_and_async! {
        /// Returns the CPU and every adapter that opens, hardware and software, in the order of
        /// [`Self::adapters`].
        pub fn all, all_async() -> Vec<Self> {
            |_| Self::open_all()
        }
    }

    async fn open_all() -> Vec<Self> {
        let mut all = vec![Self::cpu()];
        for (_, adapter) in adapter::adapters().await {
            all.extend(Self::open(adapter).await);
        }
        all
    }

    /// Uses a wgpu device that the caller's program owns. The device's limits, features and
    /// callbacks do not change. Work goes to `queue` in the order of the calls.
    ///
    /// The device-lost callback stays the caller's. Even so, calls return [`Error::DeviceLost`]
    /// after a loss: every call that waits, returns results, or makes a model or a stream tests
    /// whether the device still maps a buffer. A call that only records commands, such as
    /// [`Gru::encode`](crate::Gru::encode), notices a loss only if another call has found it.
    ///
    /// If you destroy the device, let no other thread poll it until all calls that run on it have
    /// returned. Otherwise wgpu frees mapped memory that a call is still reading.
    ///
    /// ```no_run
    /// use gru_wgpu::{Device, Gru, GruConfig, Init, wgpu};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    /// let adapter = instance.request_adapter(&Default::default()).await?;
    /// let (device, queue) = adapter.request_device(&Default::default()).await?;
    /// let shared = Device::from_wgpu(&adapter, &device, &queue)?;
    /// let gru = Gru::new_async(GruConfig::pytorch(3, 16), Init::Uniform, 1, &shared).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::OpenDevice`] if the adapter has no compute shaders.
    pub fn from_wgpu(
        adapter: &wgpu::Adapter,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
    ) -> Result<Self> {
        let gpu = Gpu::adopt(adapter.clone(), device.clone(), queue.clone())?;
        Ok(Self { target: DeviceTarget::Gpu(gpu), reason: "provided by the caller".to_owned() })
    }

    /// Limits each wait for the device to `limit`. A longer wait returns [`Error::Timeout`].
    ///
    /// The limit applies to everything made with the returned device and its clones. By default
    /// there is no limit: a wait lasts until the device is done or lost, and drivers end work that
    /// hangs. (Calls never wait for the CPU device.)
    ///
    /// A wait includes all work queued before it. A drop has no time limit, because wgpu frees a
    /// device only when its work is done.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use gru_wgpu::Device;
    ///
    /// let device = Device::gpu()?.with_wait_limit(Duration::from_secs(60));
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    #[must_use]
    pub fn with_wait_limit(self, limit: Duration) -> Self {
        let target = match self.target {
            DeviceTarget::Cpu => DeviceTarget::Cpu,
            DeviceTarget::Gpu(gpu) => DeviceTarget::Gpu(gpu.with_wait_limit(limit)),
        };
        Self { target, ..self }
    }

    /// Keeps compiled pipelines in a file of `folder`, so that the next process need not compile
    /// them again. Call it before you create models: pipelines that the device already has are not
    /// added. Applies to the device and to all its clones; a second call changes the folder.
    ///
    /// Does nothing on the CPU, on software adapters, which would store no pipelines in it, and on
    /// adapters without the feature [`PipelineCache`](crate::AdapterFeature::PipelineCache), which
    /// in wgpu 30 only Vulkan's have. A device of [`Self::from_wgpu`] must have been opened with it.
    /// Mesa's lavapipe has a cache of its own (MESA_SHADER_CACHE_DIR).
    ///
    /// The folder is created for the user alone, on the first call. It has one file for each
    /// adapter, driver and version of this crate, and the file is written whenever pipelines were
    /// compiled. A file that is damaged, too large or of another version of the driver is ignored
    /// and replaced. Processes may share the folder. A driver trusts the file, so no one else may
    /// write to it: on Unix, a folder or file that belongs to another user than this one and root,
    /// or that its group or others may write to, is refused.
    ///
    /// ```no_run
    /// use gru_wgpu::Device;
    ///
    /// let device = Device::gpu()?.with_pipeline_cache("/home/me/.cache/my-program");
    /// if let Some(error) = device.pipeline_cache().and_then(|cache| cache.error) {
    ///     eprintln!("pipelines are not kept: {error}");
    /// }
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    ///
    /// # Errors
    /// None: the device works without the file. [`PipelineCacheStatus::error`] has the reason why
    /// the file cannot be read or written.
    #[must_use]
    pub fn with_pipeline_cache(self, folder: impl Into<PathBuf>) -> Self {
        match &self.target {
            DeviceTarget::Gpu(gpu) if !gpu.caps().software => {
                gpu.use_pipeline_cache(&folder.into())
            }
            DeviceTarget::Gpu(_) | DeviceTarget::Cpu => {}
        }
        self
    }

    /// Returns the state of the pipeline cache; `None` without [`Self::with_pipeline_cache`], and
    /// where it does nothing.
    pub fn pipeline_cache(&self) -> Option<PipelineCacheStatus> {
        match &self.target {
            DeviceTarget::Cpu => None,
            DeviceTarget::Gpu(gpu) => gpu.pipeline_cache(),
        }
    }

    blocking_and_async! {
        /// Opens the same adapter again with WebGPU's default limits and no features, as a browser
        /// would. Use it to test that work fits every adapter. The CPU has no limits and does not
        /// change.
        ///
        /// # Errors
        /// [`Error::OpenDevice`].
        pub fn with_default_limits, with_default_limits_async(&self) -> Result<Self> {
            |_| self.reopen_with_default_limits()
        }
    }

    async fn reopen_with_default_limits(&self) -> Result<Self> {
        let target = match &self.target {
            DeviceTarget::Cpu => DeviceTarget::Cpu,
            DeviceTarget::Gpu(gpu) => DeviceTarget::Gpu(gpu.reopen(wgpu::Limits::default()).await?),
        };
        Ok(Self { target, reason: self.reason.clone() })
    }

    async fn open(adapter: wgpu::Adapter) -> Result<Self> {
        let gpu = Gpu::open(adapter).await?;
        Ok(Self { target: DeviceTarget::Gpu(gpu), reason: REQUESTED.to_owned() })
    }

    /// Opens the first adapter that `accepts` returns true for and that opens, in the order of
    /// [`Self::adapters`].
    async fn open_first(
        asked: &'static str,
        hint: &'static str,
        accepts: impl Fn(&AdapterInfo) -> bool,
    ) -> Result<Self> {
        let adapters = adapter::adapters().await;
        let found = adapters.iter().map(|(info, _)| info.to_string()).collect();
        let mut failure = Error::NoAdapter { asked, found, hint };
        for (info, adapter) in adapters {
            if !accepts(&info) {
                continue;
            }
            match Self::open(adapter).await {
                Ok(device) => return Ok(device),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Returns the minimum limits of a device for [`Self::from_wgpu`]. Pass them in a
    /// [`wgpu::DeviceDescriptor`]. No features are needed.
    ///
    /// The limits for storage buffers, workgroups and workgroup memory are WebGPU's defaults, which
    /// every implementation has. Textures, uniforms and drawing are not needed. The buffer size of
    /// 64 MiB and the binding size of 32 MiB suit small models. For larger models raise them to the
    /// sizes that [`Plan::check`](crate::plan::Plan::check) requires, or to the adapter's limits.
    pub fn needed_limits() -> wgpu::Limits {
        adapter::needed_limits()
    }

    blocking_and_async! {
        /// Lists every adapter of this computer without opening any: discrete GPUs, integrated
        /// GPUs, virtual GPUs, then software adapters. A hardware GPU's position in the list is its
        /// index in [`Self::gpu_at`].
        pub fn adapters, adapters_async() -> Vec<AdapterInfo> {
            |_| Self::list_adapters()
        }
    }

    async fn list_adapters() -> Vec<AdapterInfo> {
        adapter::adapters().await.into_iter().map(|(info, _)| info).collect()
    }

    /// Returns the reason why this device was chosen.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Returns true on an adapter, hardware or software, and false on the CPU.
    pub fn is_adapter(&self) -> bool {
        matches!(self.target, DeviceTarget::Gpu(_))
    }

    /// Returns the capabilities that a plan on this device depends on. The CPU has no plans; it
    /// returns those that every WebGPU implementation has.
    ///
    /// ```
    /// use gru_wgpu::plan::{Mode, Plan};
    /// use gru_wgpu::{Device, GruConfig, RunOptions};
    ///
    /// let (config, options) = (GruConfig::pytorch(8, 32), RunOptions::default());
    /// let shape = config.shape(104, 64)?;
    /// let caps = Device::cpu().caps();
    /// let plan = Plan::with_options(&config, shape, Mode::Training, options, &caps)?;
    /// println!("{} pipelines", plan.pipelines());
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    pub fn caps(&self) -> DeviceCaps {
        match &self.target {
            DeviceTarget::Cpu => DeviceCaps::WEBGPU,
            DeviceTarget::Gpu(gpu) => gpu.caps(),
        }
    }

    /// Returns a description of the adapter, `None` on the CPU.
    pub fn adapter(&self) -> Option<AdapterInfo> {
        match &self.target {
            DeviceTarget::Cpu => None,
            DeviceTarget::Gpu(gpu) => Some(gpu.describe()),
        }
    }

    /// Checks that this process is not a forked child of the process that opened the device.
    pub(crate) fn check_process(&self) -> Result<()> {
        match &self.target {
            DeviceTarget::Cpu => cpu::check_process(),
            DeviceTarget::Gpu(gpu) => gpu.check_process(),
        }
    }

    /// Checks that no call has found the adapter lost.
    pub(crate) fn check_lost(&self) -> Result<()> {
        match &self.target {
            DeviceTarget::Cpu => Ok(()),
            DeviceTarget::Gpu(gpu) => gpu.check_lost(),
        }
    }

    pub(crate) fn target(&self) -> &DeviceTarget {
        &self.target
    }
}

impl fmt::Display for Device {
    /// Writes `cpu`, `gpu (NVIDIA H200, Vulkan)` or `software adapter (llvmpipe, Vulkan)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.adapter() {
            None => write!(f, "cpu"),
            Some(info) => {
                let kind = if info.is_software() { "software adapter" } else { "gpu" };
                write!(f, "{kind} ({}, {})", info.name, info.backend)
            }
        }
    }
}

/// Describes the adapters, each hardware GPU with its index.
fn describe_with_index(adapters: &[AdapterInfo]) -> Vec<String> {
    let describe = |(index, info): (usize, &AdapterInfo)| match info.is_software() {
        true => info.to_string(),
        false => format!("gpu:{index} = {info}"),
    };
    adapters.iter().enumerate().map(describe).collect()
}

/// A device choice, spelled as on the command line and in the variable GRU_DEVICE.
///
/// ```
/// use gru_wgpu::{Device, DeviceKind};
///
/// let kind: DeviceKind = "gpu:1".parse()?; // opens nothing
/// assert_eq!(kind, DeviceKind::GpuAt(1));
/// assert_eq!(kind.to_string(), "gpu:1");
/// let device = "cpu".parse::<DeviceKind>()?.open()?;
/// assert_eq!(device.to_string(), "cpu");
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// `auto`: [`Device::auto`].
    Auto,
    /// `cpu`: [`Device::cpu`].
    Cpu,
    /// `gpu`: [`Device::gpu`].
    Gpu,
    /// `gpu:1`: [`Device::gpu_at`] with this index.
    GpuAt(usize),
    /// `software`: [`Device::software`].
    Software,
}

impl DeviceKind {
    blocking_and_async! {
        /// Opens a device of this kind.
        ///
        /// # Errors
        /// The errors of [`Device::gpu`], [`Device::gpu_at`] and [`Device::software`].
        pub fn open, open_async(self) -> Result<Device> {
            |_| self.open_device()
        }
    }

    async fn open_device(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(Device::find_auto().await),
            Self::Cpu => Ok(Device::cpu()),
            Self::Gpu => Device::find_gpu().await,
            Self::GpuAt(index) => Device::open_gpu_at(index).await,
            Self::Software => Device::find_software().await,
        }
    }
}

impl fmt::Display for DeviceKind {
    /// Writes the word that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Gpu => f.pad("gpu"),
            Self::GpuAt(index) => f.pad(&format!("gpu:{index}")),
            Self::Software => f.pad("software"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = Error;

    /// Parses `auto`, `cpu`, `gpu`, `gpu:0` (or another index) or `software`. Opens nothing.
    fn from_str(word: &str) -> Result<Self> {
        let unknown = || Error::UnknownDevice(word.to_owned());
        match word {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            "software" => Ok(Self::Software),
            other => {
                let digits = other.strip_prefix("gpu:").ok_or_else(unknown)?;
                // `parse` would accept a sign.
                let digits = digits.bytes().all(|c| c.is_ascii_digit()).then_some(digits);
                let index = digits.and_then(|digits| digits.parse().ok());
                index.map(Self::GpuAt).ok_or_else(unknown)
            }
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for DeviceKind {
    /// Writes the word of [`Display`](fmt::Display).
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for DeviceKind {
    /// Parses the word with [`FromStr`].
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        word.parse().map_err(serde::de::Error::custom)
    }
}

/// Opens the adapter for unit tests: the one that GRU_DEVICE names, or else a hardware GPU, or else
/// a software adapter.
#[cfg(test)]
pub(crate) fn test_device() -> (Device, Gpu) {
    let word = std::env::var("GRU_DEVICE").ok().filter(|word| !word.is_empty());
    let opened = match word {
        Some(word) => word.parse::<DeviceKind>().and_then(DeviceKind::open),
        None => Device::gpu().or_else(|_| Device::software()),
    };
    let device: Device = opened.expect("this test needs a GPU or a software adapter");
    let DeviceTarget::Gpu(gpu) = device.target().clone() else {
        panic!("GRU_DEVICE={device} is not an adapter; set it to gpu or software for this test");
    };
    // `tests/common` reads the same variable.
    match std::env::var("GRU_LIMITS").unwrap_or_default().as_str() {
        "" => (device, gpu),
        "default" => reopen(&device, &gpu, wgpu::Limits::default()),
        "needed" => reopen(&device, &gpu, Device::needed_limits()),
        other => panic!("GRU_LIMITS={other} is unknown; expected default or needed"),
    }
}

#[cfg(test)]
fn reopen(device: &Device, gpu: &Gpu, limits: wgpu::Limits) -> (Device, Gpu) {
    let gpu = pollster::block_on(gpu.reopen(limits)).expect("every adapter supports lower limits");
    (Device { target: DeviceTarget::Gpu(gpu.clone()), ..device.clone() }, gpu)
}

/// Opens the test adapter with the plans of a large GPU, also if it is a software adapter: its tiles,
/// its kernel families, and arguments as immediates.
#[cfg(test)]
pub(crate) fn test_device_as_gpu() -> (Device, Gpu) {
    test_device_with_caps(|caps| caps)
}

/// Opens the test adapter with the capabilities of a GPU, its own `exp` among them.
#[cfg(test)]
pub(crate) fn test_device_with_hardware_exp() -> Device {
    test_device_with_caps(|caps| caps.with_hardware_exp(true)).0
}

/// Opens the test adapter with the capabilities of a GPU, changed by `change`.
#[cfg(test)]
fn test_device_with_caps(change: impl Fn(DeviceCaps) -> DeviceCaps) -> (Device, Gpu) {
    let (device, gpu) = test_device();
    // GRU_LIMITS may have opened it without immediates.
    let immediates = gpu.device().limits().max_immediate_size > 0;
    let as_gpu = |caps: DeviceCaps| {
        let caps = caps.with_thread_weights(128).with_immediates(immediates);
        change(DeviceCaps { software: false, ..caps })
    };
    let gpu = pollster::block_on(gpu.reopen_with_caps(as_gpu)).expect("it was open before");
    (Device { target: DeviceTarget::Gpu(gpu.clone()), ..device }, gpu)
}

/// Opens the test adapter with storage buffer bindings of at most `bytes` bytes.
#[cfg(test)]
pub(crate) fn test_device_with_bindings(bytes: u64) -> Device {
    let (device, gpu) = test_device();
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..Default::default() };
    reopen(&device, &gpu, limits).0
}
