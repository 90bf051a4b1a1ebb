//! Compiled pipelines are kept in a file, and no file and no folder keeps a run from its results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use gru_wgpu::{AdapterFeature, Device, Gru, GruConfig, Init, wgpu};
use tempfile::TempDir;

use crate::common::{self, open_adapter, random3, rerun};

/// Names the folder of the processes that share one.
const FOLDER: &str = "GRU_TEST_CACHE_FOLDER";

fn is_supported(device: &Device) -> bool {
    let has_features = std::env::var("GRU_LIMITS").unwrap_or_default().is_empty();
    let features = device.adapter().unwrap().features;
    has_features && features.contains(&AdapterFeature::PipelineCache)
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

/// Opens a device with its cache in `folder`. Returns `None` on an adapter without such caches,
/// after a check that the device works and leaves the folder alone.
fn open(folder: &Path) -> Option<Device> {
    let names = || fs::read_dir(folder).map_or(0, Iterator::count);
    let before = names();
    let device = open_adapter().with_pipeline_cache(folder);
    assert_eq!(device.pipeline_cache().is_some(), is_supported(&device));
    if !is_supported(&device) {
        run(&device);
        assert_eq!(names(), before);
        return None;
    }
    Some(device)
}

/// Returns the bytes that a new device loads from the folder, and its error.
fn load(folder: &Path) -> (usize, Option<String>) {
    let status = open(folder).unwrap().pipeline_cache().unwrap();
    (status.loaded, status.error)
}

/// Fills the cache of a new folder. Returns the folder and the file.
fn filled() -> Option<(TempDir, PathBuf)> {
    let folder = TempDir::new().unwrap();
    let device = open(folder.path())?;
    run(&device);
    Some((folder, device.pipeline_cache().unwrap().file))
}

#[test]
fn pipelines_are_kept_for_the_next_device() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("not/there/yet");
    let Some(device) = open(&folder) else { return };
    let status = device.pipeline_cache().unwrap();
    assert_eq!((status.loaded, &status.error), (0, &None));
    assert!(!status.file.exists(), "a file without pipelines");
    run(&device);
    // The device is still open: programs are killed.
    assert!(status.file.is_file());
    let written = fs::metadata(&status.file).unwrap();
    let (loaded, error) = load(&folder);
    assert!(loaded > 0 && loaded < written.len() as usize, "{loaded}");
    assert_eq!(error, None);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file is left");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(written.mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    }
    // The next device uses it, and clones share it.
    let second = open(&folder).unwrap();
    run(&second.clone());
    assert_eq!(second.pipeline_cache(), second.clone().pipeline_cache());
    assert_eq!(load(&folder).1, None);
}

#[test]
fn damaged_files_are_ignored_and_replaced() {
    let Some((folder, file)) = filled() else { return };
    let whole = fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let cases = [
        ("cut in the header", whole[..20].to_vec()),
        ("cut in the middle", whole[..whole.len() / 2 + 16].to_vec()),
        ("without its last byte", whole[..whole.len() - 1].to_vec()),
        ("one byte too long", [&whole[..], &[0]].concat()),
        ("another format's", b"{\"pipelines\": []}".repeat(9)),
        ("another version's", flipped(7)),
        ("another driver's", flipped(8)),
        ("of a wrong length", flipped(16)),
        ("of a wrong checksum", flipped(24)),
        ("of a flipped bit", flipped(whole.len() - 1)),
        ("wgpu's own, without a header", whole[32..].to_vec()),
    ];
    for (name, bytes) in cases {
        fs::write(&file, bytes).unwrap();
        assert_eq!(load(folder.path()), (0, None), "a file {name}");
    }
    for bytes in [&[], &flipped(whole.len() - 1)[..]] {
        fs::write(&file, bytes).unwrap();
        let device = open(folder.path()).unwrap();
        assert_eq!(device.pipeline_cache().unwrap().loaded, 0);
        run(&device);
        assert!(load(folder.path()).0 > 0, "{} bytes were not replaced", bytes.len());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A file of 1 TB that takes no space on the disk.
#[cfg(target_os = "linux")]
#[test]
fn a_huge_file_is_not_read() {
    let Some((folder, file)) = filled() else { return };
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(load(folder.path()), (0, None));
}

#[test]
fn what_is_no_file_and_no_folder_is_reported() {
    let Some((folder, file)) = filled() else { return };
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(file.join("kept")).unwrap();
    let fails = |folder: &Path, reason: &str| {
        let device = open(folder).unwrap();
        let status = device.pipeline_cache().unwrap();
        let error = status.error.clone().unwrap();
        assert!(error.contains(reason), "{error}");
        assert_eq!(status.loaded, 0);
        run(&device);
        assert!(device.pipeline_cache().unwrap().error.is_some());
    };
    fails(folder.path(), "not a regular file");
    assert!(file.join("kept").is_dir());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    // Root may write everywhere, but not below a file.
    let blocked = folder.path().join("file");
    fs::write(&blocked, "text").unwrap();
    fails(&blocked, "cannot be");
    fails(&blocked.join("below"), "cannot be");
    assert_eq!(fs::read_to_string(&blocked).unwrap(), "text");
}

/// A driver trusts the data, so they must not come from a folder such as /tmp.
#[cfg(unix)]
#[test]
fn a_folder_that_everyone_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let Some((folder, file)) = filled() else { return };
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let before = fs::read(&file).unwrap();
    let (loaded, error) = load(folder.path());
    assert_eq!(loaded, 0);
    assert!(error.unwrap().contains("everyone may write"));
    fs::remove_file(&file).unwrap();
    run(&open(folder.path()).unwrap());
    assert!(!file.exists());
    fs::write(&file, before).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(load(folder.path()).0 > 0);
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
    assert_eq!(files, if features.is_empty() { 0 } else { 1 });
}

#[test]
fn the_cpu_has_no_cache() {
    let folder = TempDir::new().unwrap();
    let cpu = Device::cpu().with_pipeline_cache(folder.path());
    run(&cpu);
    assert_eq!(cpu.pipeline_cache(), None);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Several processes read and write the file at once. None of them finds a part of a file.
#[test]
fn processes_share_a_folder() {
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        for _ in 0..2 {
            let Some(device) = open(&folder) else { return };
            let status = device.pipeline_cache().unwrap();
            assert_eq!(status.error, None);
            // Written anew each time, while the others read.
            let _ = fs::remove_file(&status.file);
            run(&device);
            assert_eq!(device.pipeline_cache().unwrap().error, None);
        }
        return;
    }
    let folder = TempDir::new().unwrap();
    let start = |_| {
        let mut command = rerun(module_path!(), "processes_share_a_folder");
        command.env(FOLDER, folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(start).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let Some(device) = open(folder.path()) else { return };
    run(&device);
    assert!(load(folder.path()).0 > 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
}
