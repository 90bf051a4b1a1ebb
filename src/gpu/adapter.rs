//! [`AdapterInfo`]: what this library tells of an adapter.

use std::fmt;

use crate::plan::Limits;

/// An adapter of this machine, open or not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// `Vulkan`, `Metal` or `DirectX 12`.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `unknown`.
    pub kind: &'static str,
    /// Whether it computes on the CPU. Such an adapter is never called a GPU.
    pub software: bool,
    /// The driver's name and version.
    pub driver: String,
    /// Its limits, as far as a plan has to keep them.
    pub limits: Limits,
    /// Optional features of interest to compute that it has, as wgpu names them.
    pub features: Vec<&'static str>,
    /// Lower is taken first.
    pub(crate) rank: u32,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.kind, self.backend)
    }
}
