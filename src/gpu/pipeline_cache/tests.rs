use std::process::{Command, Stdio};

use ndarray::Array3;
use tempfile::TempDir;

use super::*;
use crate::gpu::context::Gpu;
use crate::model::device::{Device, test_device};
use crate::model::gru::Gru;
use crate::spec::config::GruConfig;
use crate::spec::params::Init;

/// Names the folder of the processes that share one.
const FOLDER: &str = "GRU_TEST_CACHE_FOLDER";

/// A device with a cache. Software adapters have one here, too: `Device::with_pipeline_cache`
/// leaves them out because their caches are empty, but they have the same files.
struct Cached {
    device: Device,
    gpu: Gpu,
}

impl Cached {
    fn status(&self) -> PipelineCacheStatus {
        self.gpu.pipeline_cache().unwrap()
    }

    /// Computes something with a new model, which compiles pipelines at its first call.
    fn run(&self) {
        let forward = |device: &Device| {
            let gru = Gru::new(GruConfig::new(2, 3), Init::Uniform, 1, device).unwrap();
            gru.forward(&Array3::from_elem((2, 1, 2), 0.5)).unwrap().y
        };
        let (got, expected) = (forward(&self.device), forward(&Device::cpu()));
        assert!((&got - &expected).iter().all(|error| error.abs() < 1e-5), "{got} {expected}");
    }
}

/// Opens a device with its cache in `folder`. Returns `None` on an adapter without such caches.
fn open(folder: &Path) -> Option<Cached> {
    let (device, gpu) = test_device();
    gpu.use_pipeline_cache(folder);
    let has_caches = gpu.device().features().contains(wgpu::Features::PIPELINE_CACHE);
    assert_eq!(gpu.pipeline_cache().is_some(), has_caches);
    has_caches.then_some(Cached { device, gpu })
}

fn encode(key: u64, data: &[u8]) -> Vec<u8> {
    [encode_header(key, data.len(), checksum(data)), data.to_vec()].concat()
}

#[test]
fn only_whole_files_of_the_same_key_are_decoded() {
    let data: Vec<u8> = (0..100).collect();
    let whole = encode(7, &data);
    assert_eq!(whole.len(), HEADER + data.len());
    assert_eq!(decode(whole.clone(), 7), Some(data.clone()));
    assert_eq!(decode(whole.clone(), 8), None);
    for len in 0..whole.len() {
        assert_eq!(decode(whole[..len].to_vec(), 7), None, "{len} bytes");
    }
    for bit in 0..8 * whole.len() {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(damaged, 7), None, "bit {bit}");
    }
    assert_eq!(decode([whole, vec![0]].concat(), 7), None);
    // The padding of the last word is not data.
    assert_ne!(checksum(&[1]), checksum(&[1, 0]));
}

#[test]
fn a_driver_and_its_version_have_their_own_files() {
    let (_, gpu) = test_device();
    let mut info = gpu.adapter_info();
    info.backend = wgpu::Backend::Vulkan;
    let other = |change: &dyn Fn(&mut wgpu::AdapterInfo)| {
        let mut other = info.clone();
        change(&mut other);
        (file_name(&other), key(&other))
    };
    let (file, key) = (file_name(&info), key(&info));
    assert!(file.is_some());
    let update = other(&|info| info.driver_info.push('1'));
    assert!(update.0 == file && update.1 != key);
    assert_ne!(other(&|info| info.driver.push('1')).0, file);
    assert_ne!(other(&|info| info.device += 1).0, file);
    assert_eq!(other(&|info| info.backend = wgpu::Backend::Metal).0, None);
    let strange = other(&|info| info.driver = "../../a b\0/é".repeat(99)).0.unwrap();
    assert!(strange.len() < 128 && !strange.contains(['/', '\0', ' ']), "{strange}");
}

/// wgpu checks what the key cannot know, and refuses it without an error for the caller.
#[test]
fn data_of_another_adapter_are_not_used() {
    let (_, gpu) = test_device();
    let folder = TempDir::new().unwrap();
    let open = || {
        gpu.use_pipeline_cache(folder.path());
        gpu.pipeline_store().cache()
    };
    let Some(cache) = open() else {
        let features = gpu.device().features();
        assert!(!features.contains(wgpu::Features::PIPELINE_CACHE));
        return;
    };
    let mut data = cache.driver_cache.get_data().unwrap();
    let loaded = |data: &[u8]| {
        fs::write(&cache.file, encode(cache.key, data)).unwrap();
        let status = open().unwrap().status();
        assert_eq!(status.error, None);
        status.loaded
    };
    assert_eq!(loaded(&data), data.len());
    // wgpu's header: 8 bytes of magic, version and pointer size, backend, then the adapter.
    data[8 + 4 + 4 + 1 + 3] ^= 1;
    assert_eq!(loaded(&data), 0);
    assert_eq!(loaded(&[]), 0);
    assert_eq!(loaded(&[0; 200]), 0);
}

#[test]
fn readers_never_see_a_part_of_a_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.bin");
    let write = |byte: u8| {
        let data = vec![byte; 100_000 + usize::from(byte)];
        super::write(&file, 1, checksum(&data), &data).unwrap();
    };
    write(0);
    let user = owner(&fs::metadata(&file).unwrap());
    std::thread::scope(|scope| {
        for writer in 1..4 {
            scope.spawn(move || (0..20).for_each(|_| write(writer)));
        }
        for _ in 0..100 {
            let bytes = read(&file, user).unwrap().unwrap();
            assert!(decode(bytes, 1).is_some());
        }
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn too_much_data_is_not_written() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.bin");
    let error = write(&file, 1, 0, &vec![0; MAX_BYTES + 1]).unwrap_err();
    assert!(error.to_string().contains("more than 67108864"), "{error}");
    assert!(!file.exists());
}

#[test]
fn leftovers_of_killed_processes_are_removed() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.bin");
    let [old, new, other] = ["cache.0.part", "cache.1.part", "other.0.part"].map(|name| {
        let path = folder.path().join(name);
        (File::create(&path).unwrap(), path)
    });
    let before = std::time::SystemTime::now() - 2 * ABANDONED;
    [&old, &other].into_iter().for_each(|(file, _)| file.set_modified(before).unwrap());
    write(&file, 1, 0, &[]).unwrap();
    assert_eq!([&old, &new, &other].map(|(_, path)| path.exists()), [false, true, true]);
}

/// Returns the bytes that a new device loads from the folder, and its error.
fn load(folder: &Path) -> (usize, Option<String>) {
    let status = open(folder).unwrap().status();
    (status.loaded, status.error)
}

/// Fills the cache of a new folder. Returns the folder and the file.
fn filled() -> Option<(TempDir, PathBuf)> {
    let folder = TempDir::new().unwrap();
    let device = open(folder.path())?;
    device.run();
    Some((folder, device.status().file))
}

#[test]
fn pipelines_are_kept_for_the_next_device() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("not/there/yet");
    let Some(device) = open(&folder) else { return };
    let status = device.status();
    assert_eq!((status.loaded, &status.error), (0, &None));
    assert!(!status.file.exists(), "a file without pipelines");
    device.run();
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
    // The next device uses it, and its clones share it.
    let second = open(&folder).unwrap();
    second.run();
    assert_eq!(second.gpu.clone().pipeline_cache(), Some(second.status()));
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
        assert_eq!(device.status().loaded, 0);
        device.run();
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
        let status = device.status();
        let error = status.error.clone().unwrap();
        assert!(error.contains(reason), "{error}");
        assert_eq!(status.loaded, 0);
        device.run();
        assert!(device.status().error.is_some());
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

/// A driver trusts the data, so they must not come from a folder such as /tmp, or from a file that
/// others may write.
#[cfg(unix)]
#[test]
fn what_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let Some((folder, file)) = filled() else { return };
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in [0o1777, 0o777, 0o702, 0o720, 0o770] {
        set_mode(folder.path(), mode);
        let (loaded, error) = load(folder.path());
        let error = error.unwrap();
        assert!(loaded == 0 && error.contains("the folder may be written by other"), "{error}");
        open(folder.path()).unwrap().run();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    }
    set_mode(folder.path(), 0o755);
    for mode in [0o602, 0o620, 0o666] {
        set_mode(&file, mode);
        let (loaded, error) = load(folder.path());
        let error = error.unwrap();
        assert!(loaded == 0 && error.contains("the file may be written by other"), "{error}");
    }
    set_mode(&file, 0o644);
    assert!(load(folder.path()).0 > 0);
    // Nothing is written to a folder that is not private.
    fs::remove_file(&file).unwrap();
    set_mode(folder.path(), 0o1777);
    open(folder.path()).unwrap().run();
    assert!(!file.exists());
}

#[cfg(unix)]
#[test]
fn what_belongs_to_another_user_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.bin");
    write(&file, 1, checksum(&[7]), &[7]).unwrap();
    let me = owner(&fs::metadata(&file).unwrap());
    assert_eq!(read(&file, me).unwrap().map(|bytes| bytes.len()), Some(HEADER + 1));
    let refused = |user| {
        let error = read(&file, user).unwrap_err().to_string();
        assert!(error.contains("belongs to another user"), "{error}");
    };
    // Root's files are everyone's.
    if me != Some(0) {
        refused(me.map(|user| user + 1));
        refused(None);
        return;
    }
    // Only root can give files away.
    assert!(read(&file, Some(1)).unwrap().is_some());
    for path in [&*file, folder.path()] {
        std::os::unix::fs::chown(path, Some(1), None).unwrap();
        refused(me);
        refused(None);
        refused(Some(2));
    }
    assert!(read(&file, Some(1)).unwrap().is_some());
    let error = write(&file, 1, 0, &[]).unwrap_err().to_string();
    assert!(error.contains("the folder belongs to another user"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
}

/// Several processes read and write the file at once. None of them finds a part of a file.
#[test]
fn processes_share_a_folder() {
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        for _ in 0..2 {
            let Some(device) = open(&folder) else { return };
            let status = device.status();
            assert_eq!(status.error, None);
            // Written anew each time, while the others read.
            let _ = fs::remove_file(&status.file);
            device.run();
            assert_eq!(device.status().error, None);
        }
        return;
    }
    let folder = TempDir::new().unwrap();
    let start = |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["gpu::pipeline_cache::tests::processes_share_a_folder", "--exact"]);
        command.env(FOLDER, folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(start).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let Some(device) = open(folder.path()) else { return };
    device.run();
    assert!(load(folder.path()).0 > 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
}
