//! Where a model runs: the CPU or an open adapter.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::cpu;
use crate::error::{Error, Result};
use crate::gpu::adapter::{self, AdapterInfo};
use crate::gpu::context::Gpu;
use crate::model::blocking::blocking_and_async;

/// Where a model runs. Cheap to clone; clones of a GPU device share the open adapter.
///
/// ```no_run
/// use gru_wgpu::Device;
///
/// let device = Device::auto(); // a hardware GPU, or the CPU where there is none
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
        /// A hardware GPU where there is one that opens, the CPU otherwise; [`Self::reason`] says
        /// why. Never a software adapter.
        pub fn auto, auto_async() -> Self {
            |_| Self::find_auto()
        }
    }

    async fn find_auto() -> Self {
        match Self::find_gpu().await {
            Ok(device) => {
                Self { reason: "auto takes a hardware GPU where there is one".to_owned(), ..device }
            }
            Err(error) => {
                Self { target: DeviceTarget::Cpu, reason: format!("auto takes the CPU: {error}") }
            }
        }
    }

    /// The CPU.
    pub fn cpu() -> Self {
        Self { target: DeviceTarget::Cpu, reason: "asked for by name".to_owned() }
    }

    blocking_and_async! {
        /// The first hardware GPU that opens: discrete before integrated before virtual ones.
        ///
        /// # Errors
        /// [`Error::NoAdapter`], which lists what there is, or [`Error::OpenDevice`] where none
        /// opens.
        pub fn gpu, gpu_async() -> Result<Self> {
            |_| Self::find_gpu()
        }
    }

    async fn find_gpu() -> Result<Self> {
        const HINT: &str = "a GPU needs its Vulkan, Metal or DirectX 12 driver";
        Self::open_first("hardware GPU", HINT, |info| !info.is_software()).await
    }

    blocking_and_async! {
        /// The hardware GPU of this index, from 0: those of [`Self::adapters`] that are not
        /// software, in their order. Of a GPU with two drivers, say Vulkan and DirectX 12, each
        /// driver counts.
        ///
        /// ```no_run
        /// use gru_wgpu::Device;
        ///
        /// let [first, second] = [Device::gpu_at(0)?, Device::gpu_at(1)?];
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// [`Error::NoGpuAt`], which lists what there is, or [`Error::OpenDevice`].
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
                Err(Error::NoGpuAt { index, found: indexed(&infos) })
            }
        }
    }

    blocking_and_async! {
        /// A software adapter such as Mesa's lavapipe: the same kernels, computed on the CPU.
        ///
        /// # Errors
        /// [`Error::NoAdapter`], which says what to install, or [`Error::OpenDevice`].
        pub fn software, software_async() -> Result<Self> {
            |_| Self::find_software()
        }
    }

    async fn find_software() -> Result<Self> {
        const HINT: &str = "Mesa's lavapipe is one: `apt-get install mesa-vulkan-drivers` on \
            Debian and Ubuntu, `dnf install mesa-vulkan-drivers` on Fedora";
        Self::open_first("software", HINT, |info| info.is_software()).await
    }

    blocking_and_async! {
        /// The CPU, and every adapter that opens, hardware and software, in the order of
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

    /// A device that the caller's program already owns. Nothing of it is changed: its limits,
    /// features and callbacks stay the caller's. Work goes to `queue` in the order of the calls.
    ///
    /// A loss is [`Error::DeviceLost`] here too, though the callback that tells of it is the
    /// caller's: every call that waits, gives results or makes a model or a stream finds out
    /// whether the device still maps a buffer. What only records commands, as
    /// [`Gru::encode`](crate::Gru::encode) does, knows of a loss that another call found. Let no
    /// other thread poll a device that you destroyed before the calls under way on it have
    /// returned: wgpu frees memory then that it has given out to be read.
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
    /// [`Error::OpenDevice`] when the adapter has no compute shaders.
    pub fn from_wgpu(
        adapter: &wgpu::Adapter,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
    ) -> Result<Self> {
        let gpu = Gpu::adopt(adapter.clone(), device.clone(), queue.clone())?;
        Ok(Self { target: DeviceTarget::Gpu(gpu), reason: "the caller's own".to_owned() })
    }

    /// The same, with waits for it of at most `limit`: what takes longer is an [`Error::Timeout`].
    /// It holds for what is made with this device and its clones from now on. No limit is set at
    /// first: a wait lasts until the device is done or lost, and drivers themselves end work that
    /// hangs. (The CPU is never waited for.)
    ///
    /// A wait is for everything queued ahead of it too. How long a drop takes has no limit: wgpu
    /// lets go of a device only once it is done.
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

    blocking_and_async! {
        /// The same adapter opened anew with WebGPU's default limits and nothing more, as a browser
        /// would: for testing that work fits everywhere. The CPU has no limits and stays as it is.
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
        Ok(Self { target: DeviceTarget::Gpu(gpu), reason: "asked for by name".to_owned() })
    }

    /// Opens the first adapter that `accepts` and that opens, the best kind of them first.
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

    /// The least that a device of a caller's own has to have, with no feature at all: what a
    /// [`wgpu::DeviceDescriptor`] asks for. Storage buffers, workgroups and their memory as every
    /// WebGPU implementation has them; nothing of textures, uniforms or drawing. The sizes of
    /// buffers, 64 MiB and 32 MiB of one at a time, are for small models: raise them to what
    /// [`Plan::check`](crate::plan::Plan::check) asks for, or to those of the adapter.
    pub fn needed_limits() -> wgpu::Limits {
        adapter::needed_limits()
    }

    blocking_and_async! {
        /// Every adapter of this machine, without opening one: discrete GPUs before integrated
        /// before virtual ones, software adapters last. The hardware GPUs' places are the indices
        /// of [`Self::gpu_at`].
        pub fn adapters, adapters_async() -> Vec<AdapterInfo> {
            |_| Self::list_adapters()
        }
    }

    async fn list_adapters() -> Vec<AdapterInfo> {
        adapter::adapters().await.into_iter().map(|(info, _)| info).collect()
    }

    /// Why this device was taken.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether kernels run on an adapter, be it hardware or software.
    pub fn is_adapter(&self) -> bool {
        matches!(self.target, DeviceTarget::Gpu(_))
    }

    /// The adapter, where there is one.
    pub fn adapter(&self) -> Option<AdapterInfo> {
        match &self.target {
            DeviceTarget::Cpu => None,
            DeviceTarget::Gpu(gpu) => Some(gpu.describe()),
        }
    }

    /// `Ok` unless this process was forked from the one whose device or threads these are.
    pub(crate) fn check_process(&self) -> Result<()> {
        match &self.target {
            DeviceTarget::Cpu => cpu::check_process(),
            DeviceTarget::Gpu(gpu) => gpu.check_process(),
        }
    }

    /// `Ok` unless the adapter is known to be lost.
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
    /// `cpu`, `gpu (NVIDIA H200, Vulkan)` or `software adapter (llvmpipe, Vulkan)`.
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

/// Each GPU after its index, then the other adapters.
fn indexed(adapters: &[AdapterInfo]) -> Vec<String> {
    let describe = |(index, info): (usize, &AdapterInfo)| match info.is_software() {
        true => info.to_string(),
        false => format!("gpu:{index} = {info}"),
    };
    adapters.iter().enumerate().map(describe).collect()
}

/// Which device is asked for, as the command line and the variable GRU_DEVICE spell it.
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
    /// [`Device::auto`], `auto`.
    Auto,
    /// [`Device::cpu`], `cpu`.
    Cpu,
    /// [`Device::gpu`], `gpu`.
    Gpu,
    /// [`Device::gpu_at`] this index, `gpu:1`.
    GpuAt(usize),
    /// [`Device::software`], `software`.
    Software,
}

impl DeviceKind {
    blocking_and_async! {
        /// Opens a device of this kind.
        ///
        /// # Errors
        /// As [`Device::gpu`], [`Device::gpu_at`] and [`Device::software`].
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
    /// As [`FromStr`] takes it.
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

    /// From `auto`, `cpu`, `gpu`, `gpu:0` and so on, or `software`. Opens nothing.
    fn from_str(word: &str) -> Result<Self> {
        let unknown = || Error::UnknownDevice(word.to_owned());
        match word {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            "software" => Ok(Self::Software),
            other => {
                let digits = other.strip_prefix("gpu:").ok_or_else(unknown)?;
                // A sign is no part of an index.
                let digits = digits.bytes().all(|c| c.is_ascii_digit()).then_some(digits);
                let index = digits.and_then(|digits| digits.parse().ok());
                index.map(Self::GpuAt).ok_or_else(unknown)
            }
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for DeviceKind {
    /// As its word.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for DeviceKind {
    /// From its word.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        word.parse().map_err(serde::de::Error::custom)
    }
}

/// The adapter that unit tests run on, open anew: what GRU_DEVICE says, or else a hardware GPU, or
/// else a software adapter.
#[cfg(test)]
pub(crate) fn test_device() -> (Device, Gpu) {
    let word = std::env::var("GRU_DEVICE").ok().filter(|word| !word.is_empty());
    let opened = match word {
        Some(word) => word.parse::<DeviceKind>().and_then(DeviceKind::open),
        None => Device::gpu().or_else(|_| Device::software()),
    };
    let device: Device = opened.expect("this test needs a GPU or a software adapter");
    let DeviceTarget::Gpu(gpu) = device.target().clone() else {
        panic!("GRU_DEVICE={device} is no adapter; this test needs one");
    };
    // As `tests/common` has it.
    match std::env::var("GRU_LIMITS").unwrap_or_default().as_str() {
        "" => (device, gpu),
        "default" => reopened(&device, &gpu, wgpu::Limits::default()),
        "needed" => reopened(&device, &gpu, Device::needed_limits()),
        other => panic!("GRU_LIMITS={other} is neither default nor needed"),
    }
}

#[cfg(test)]
fn reopened(device: &Device, gpu: &Gpu, limits: wgpu::Limits) -> (Device, Gpu) {
    let gpu = pollster::block_on(gpu.reopen(limits)).expect("any adapter can less");
    (Device { target: DeviceTarget::Gpu(gpu.clone()), ..device.clone() }, gpu)
}

/// The same adapter with bindings of so many bytes at most.
#[cfg(test)]
pub(crate) fn test_device_with_bindings(bytes: u64) -> Device {
    let (device, gpu) = test_device();
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..Default::default() };
    reopened(&device, &gpu, limits).0
}
