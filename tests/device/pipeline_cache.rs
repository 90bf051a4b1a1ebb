//! Which devices keep their compiled pipelines in a folder. `src/gpu/pipeline_cache/tests.rs` tests
//! the files.

use std::fs;

use gru_wgpu::{AdapterFeature, Device, Gru, GruConfig, Init, wgpu};
use tempfile::TempDir;

use crate::common::{self, open_adapter, random3};

/// True if the device has caches. On software adapters they would stay empty.
fn is_supported(device: &Device) -> bool {
    let has_features = std::env::var("GRU_LIMITS").unwrap_or_default().is_empty();
    let adapter = device.adapter().unwrap();
    let is_gpu = has_features && !adapter.is_software();
    is_gpu && adapter.features.contains(&AdapterFeature::PipelineCache)
}

/// Computes something with a new model, which compiles pipelines at its first call on a device.
fn run(device: &Device) {
    let forward = |device: &Device| {
        let gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, device).unwrap();
        gru.forward(&random3([2, 1, 2], 1)).unwrap().y
    };
    let (got, expected) = (forward(device), forward(&Device::cpu()));
    common::assert_close("y", got.view(), expected.view(), common::within(1e-5));
}

/// A GPU's pipelines are in a file once they are compiled. A software adapter leaves the folder
/// alone.
#[test]
fn a_gpu_keeps_its_pipelines() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("not/there/yet");
    let device = open_adapter().with_pipeline_cache(&folder);
    run(&device);
    assert_eq!(device.pipeline_cache().is_some(), is_supported(&device));
    assert_eq!(folder.exists(), is_supported(&device));
    if let Some(status) = device.pipeline_cache() {
        assert_eq!((status.loaded, status.error), (0, None));
        let next = open_adapter().with_pipeline_cache(&folder).pipeline_cache().unwrap();
        assert!(next.loaded > 0 && next.file == status.file, "{next:?}");
    }
}

/// A caller's device is used as it is: with a cache only if its feature is enabled.
#[test]
fn a_callers_device_has_a_cache_only_with_its_feature() {
    let folder = TempDir::new().unwrap();
    let (adapter, device, queue) = common::open_wgpu(|_| wgpu::Limits::default());
    let shared = Device::from_wgpu(&adapter, &device, &queue).unwrap();
    let shared = shared.with_pipeline_cache(folder.path());
    assert_eq!(shared.pipeline_cache(), None);
    run(&shared);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    let features = adapter.features() & wgpu::Features::PIPELINE_CACHE;
    let descriptor = wgpu::DeviceDescriptor { required_features: features, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let shared = Device::from_wgpu(&adapter, &device, &queue).unwrap();
    let shared = shared.with_pipeline_cache(folder.path());
    run(&shared);
    let files = fs::read_dir(folder.path()).unwrap().count();
    let has_cache = !features.is_empty() && !shared.adapter().unwrap().is_software();
    assert_eq!(files, usize::from(has_cache));
}

#[test]
fn the_cpu_has_no_cache() {
    let folder = TempDir::new().unwrap();
    let cpu = Device::cpu().with_pipeline_cache(folder.path());
    run(&cpu);
    assert_eq!(cpu.pipeline_cache(), None);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
