//! [`Pipelines`]: the pipelines that a device has.

use std::sync::{Arc, Mutex};

use crate::gpu::once::OncePerKey;
use crate::gpu::pipeline_cache::PipelineCache;
use crate::lock::lock;

/// A pipeline's kernel and the values of its override constants.
pub(crate) type PipelineKey = (&'static str, Vec<u32>);

/// The pipelines that a device has, and what they are made of.
///
/// Pipelines are kept as long as the device: compilation is slow, and wgpu leaks the memory of a
/// dropped pipeline.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    pub pipelines: OncePerKey<PipelineKey, wgpu::ComputePipeline>,
    /// By kernel. Its pipelines share them, so that its source is parsed once.
    pub modules: OncePerKey<&'static str, KernelModule>,
    /// The driver's cache, which outlives the process.
    cache: Mutex<Option<Arc<PipelineCache>>>,
}

/// The parts of a pipeline that do not depend on the override constants.
#[derive(Clone, Debug)]
pub(crate) struct KernelModule {
    pub module: wgpu::ShaderModule,
    pub layout: wgpu::PipelineLayout,
}

impl Pipelines {
    /// The cache that pipelines are compiled with.
    pub fn cache(&self) -> Option<Arc<PipelineCache>> {
        lock(&self.cache).clone()
    }

    /// Compiles further pipelines with this cache.
    pub fn set_cache(&self, cache: PipelineCache) {
        *lock(&self.cache) = Some(Arc::new(cache));
    }
}
