//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};
use gru_wgpu::plan::{DeviceCaps, Limits};
use gru_wgpu::{GruConfig, Recurrence};

const EXAMPLES: &str = "\
Examples:
  kernel_stats 512,32,128,128 1500,32,1024,1024
  kernel_stats 512,32,64,64 --definition pytorch,own --checks unchecked --markdown
  kernel_stats --wgsl shaders/common.wgsl,new.wgsl --constants UNIT_QUADS=32,ROWS=2 --dump /tmp/new
  kernel_stats 1500,32,1024,1024 --dispatches";

const DETAILS: &str = "\
Compiles every kernel of the forward and training plans of the shapes, as wgpu would, without a GPU:
for AMD with RADV on its null device, for NVIDIA (sm_90) with nvcc over naga's MSL turned into CUDA.
The second is a proxy, as NVIDIA's Vulkan driver has a front end of its own. These are numbers to
compare kernels by, not times.

With --driver this machine's own GPU compiles the kernels, by its Vulkan driver, and the statistics
are the driver's (VK_KHR_pipeline_executable_properties; NVIDIA's names the registers).

The hot block is the block without a branch that has the most multiply-adds. Its share is the part
of its instructions that multiply and add. Latency and inverse throughput are RADV's estimates, in
cycles of one wave; compare them only between kernels of like structure.

nvcc is taken from PATH, or from --nvidia FOLDER. `pip install nvidia-cuda-nvcc nvidia-nvvm
nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-nvdisasm` brings it; FOLDER may be the environment
that they were installed in.

Exit status: 0; 1 on an error, and with --limits if a kernel spills or exceeds its budget
(src/budgets.rs); 2 for wrong usage.";

/// What GPU compilers make of the kernels of any plan, without a GPU.
#[derive(Parser, Debug)]
#[command(name = "kernel_stats", before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct Arguments {
    /// Shapes: steps, rows of the batch, inputs, hidden units.
    #[arg(value_name = "T,B,I,H")]
    pub shapes: Vec<Sizes>,
    /// Definitions of the GRU: pytorch (reset after), own (reset before).
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pytorch")]
    pub definition: Vec<Definition>,
    /// The kernels that draw zoneout.
    #[arg(long)]
    pub noise: bool,
    /// The recurrence's kernel family, as in `gru bench --kernel`.
    #[arg(long, value_name = "FAMILY", default_value_t = Recurrence::Auto)]
    pub kernel: Recurrence,
    /// The device that the plans are made for.
    #[arg(long, value_enum, default_value_t = Device::H200)]
    pub device: Device,
    /// Index checks: as in the plan's shader module, or none.
    #[arg(long, value_enum, default_value_t = Checks::Checked)]
    pub checks: Checks,
    /// A kernel of your own, entry point main. Several files are joined into one.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub wgsl: Vec<PathBuf>,
    /// Override constants of that kernel.
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', requires = "wgsl")]
    pub constants: Vec<Constant>,
    /// The AMD GPU, in RADV's words (navi21, navi10, vega20, …), or none.
    #[arg(long, value_name = "GPU", default_value = "navi21")]
    pub family: String,
    /// RADV's ICD file, if it is not where Mesa installs it.
    #[arg(long, value_name = "FILE")]
    pub icd: Option<PathBuf>,
    /// Instead of RADV's null device, this machine's GPU: the statistics that its own driver gives.
    #[arg(long, conflicts_with_all = ["family", "icd", "limits"])]
    pub driver: bool,
    /// NVIDIA's compiler: auto, none, or a folder.
    #[arg(long, value_name = "auto|none|FOLDER", default_value = "auto")]
    pub nvidia: Nvidia,
    /// List the dispatches of the training plans instead; compiles nothing.
    #[arg(long, conflicts_with_all = ["wgsl", "limits", "dump"])]
    pub dispatches: bool,
    /// Fail on a spill, and on a kernel past its budget.
    #[arg(long)]
    pub limits: bool,
    /// Write SPIR-V, ISA, MSL, CUDA and SASS into this folder.
    #[arg(long, value_name = "FOLDER")]
    pub dump: Option<PathBuf>,
    /// Print a table in Markdown.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// T, B, I and H.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes(pub [usize; 4]);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Option<Vec<usize>> =
            text.split(',').map(|size| size.trim().parse().ok().filter(|&n| n > 0)).collect();
        let sizes = sizes.and_then(|sizes| sizes.try_into().ok());
        sizes.map(Self).ok_or_else(|| {
            format!("expected four whole numbers of at least 1, T,B,I,H, got `{text}`")
        })
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [t, b, i, h] = self.0;
        write!(f, "{t},{b},{i},{h}")
    }
}

/// A definition of the GRU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Definition {
    Pytorch,
    Own,
}

impl Definition {
    /// Returns a GRU of this definition.
    pub fn config(self, input: usize, hidden: usize) -> GruConfig {
        match self {
            Self::Pytorch => GruConfig::pytorch(input, hidden),
            Self::Own => GruConfig::new(input, hidden),
        }
    }

    /// Returns the word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pytorch => "pytorch",
            Self::Own => "own",
        }
    }
}

/// The device that plans are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A large GPU, with the limits of an H200.
    H200,
    /// WebGPU's default limits.
    Webgpu,
}

impl Device {
    /// Returns the capabilities that the plans are made for.
    pub fn caps(self) -> DeviceCaps {
        match self {
            Self::H200 => DeviceCaps::new(H200, false)
                .with_discrete(true)
                .with_thread_weights(128)
                .with_immediates(true),
            Self::Webgpu => DeviceCaps::WEBGPU,
        }
    }
}

/// The limits that wgpu reports for an H200, as far as plans read them.
const H200: Limits = Limits {
    max_buffer_size: 1 << 40,
    max_storage_buffer_binding_size: 2_147_483_644,
    max_storage_buffers_per_shader_stage: 64,
    max_compute_workgroups_per_dimension: 65_535,
    max_compute_invocations_per_workgroup: 1024,
    max_compute_workgroup_storage_size: 48 << 10,
    max_loop_iterations: u64::MAX,
};

/// Which of wgpu's runtime checks a kernel is compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Checks {
    /// As the library compiles the kernel: checked, but for the bounds of loops.
    Checked,
    /// `ShaderRuntimeChecks::unchecked()`.
    Unchecked,
}

/// An override constant's name and value; a bool is 0 or 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant(pub String, pub f64);

impl FromStr for Constant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = |text: &str| match text {
            "false" => Some(0.0),
            "true" => Some(1.0),
            number => number.parse().ok().filter(|value: &f64| value.is_finite()),
        };
        let constant = text.split_once('=');
        let constant = constant.and_then(|(name, text)| Some(Self(name.to_owned(), value(text)?)));
        constant.ok_or_else(|| format!("expected NAME=VALUE with a number, got `{text}`"))
    }
}

/// Where NVIDIA's compiler is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nvidia {
    /// In PATH or the active Python environment, if at all.
    Auto,
    /// Not used.
    None,
    /// In this folder.
    Folder(PathBuf),
}

impl FromStr for Nvidia {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            folder => Self::Folder(folder.into()),
        })
    }
}
