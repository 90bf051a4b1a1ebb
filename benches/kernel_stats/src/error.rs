//! [`Error`]: every way in which the program can fail.

use std::path::PathBuf;

/// The program's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the statistics could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to compile.
    #[error("expected a shape T,B,I,H or --wgsl FILE, got neither (see --help)")]
    NothingToDo,
    /// A plan could not be made.
    #[error("the plan of {shape}: {source}")]
    Plan {
        shape: String,
        #[source]
        source: Box<gru_wgpu::Error>,
    },
    /// A file or program of the system.
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// naga refused a kernel.
    #[error("kernel {kernel}: {reason}")]
    Wgsl { kernel: String, reason: String },
    /// An override constant that the kernel does not have.
    #[error("kernel {kernel} has no constant {name}; it has {known}")]
    UnknownConstant { kernel: String, name: String, known: String },
    /// No ICD of RADV.
    #[error(
        "RADV, Mesa's driver for AMD GPUs, was not found in {}; install mesa-vulkan-drivers (Debian, \
         Ubuntu), or give --icd FILE, or --family none to leave AMD out",
        .folders.join(", ")
    )]
    NoRadv { folders: Vec<String> },
    /// RADV did not take the family, or another driver answered.
    #[error("expected RADV's device for {family}, got {got}; RADV_FORCE_FAMILY lists its families")]
    WrongDevice { family: String, got: String },
    /// No device whose driver tells statistics.
    #[error("expected a GPU whose driver gives statistics, got {}", .got.join(", "))]
    NoStatistics { got: Vec<String> },
    /// The driver ended the process.
    #[error("RADV ended the program; if it said \"Unknown family\", it does not know {family}")]
    Aborted { family: String },
    /// The Vulkan library is missing.
    #[error("the Vulkan loader: {0}; install libvulkan1 (Debian, Ubuntu)")]
    Loader(#[from] ash::LoadingError),
    /// A Vulkan call failed.
    #[error("{call}: {result}")]
    Vulkan { call: &'static str, result: ash::vk::Result },
    /// The driver's statistics lack a number.
    #[error("the driver gives no statistic \"{0}\"; it gives {1}")]
    NoStatistic(&'static str, String),
    /// A compiler for NVIDIA that was asked for by its path.
    #[error("nvcc was not found in {}: expected nvcc or bin/nvcc in that folder", .0.display())]
    NoNvcc(PathBuf),
    /// The MSL has a form that the translation into CUDA does not know.
    #[error("not translated into CUDA: {0}")]
    NotTranslated(String),
    /// A tool of NVIDIA's failed.
    #[error("{tool}: {reason}")]
    Tool { tool: String, reason: String },
    /// Budgets are stated for one family.
    #[error("the budgets are for {expected}, got --family {got}")]
    BudgetFamily { expected: &'static str, got: String },
}

impl Error {
    /// Returns a function that makes an error from `source`, which came while doing `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// Returns a function that makes an error from the result of a Vulkan call.
    pub fn vulkan(call: &'static str) -> impl FnOnce(ash::vk::Result) -> Self {
        move |result| Self::Vulkan { call, result }
    }
}
