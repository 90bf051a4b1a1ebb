//! [`PipelineCache`]: the driver's compiled pipelines in a file, so that the next process need not
//! compile them again.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::fingerprint::Fnv1a;
use crate::lock::lock;

/// The largest cache that is read or written, in bytes. The pipelines of this library take a few
/// MB.
const MAX_BYTES: usize = 64 << 20;

/// The first bytes of a file; the digits are the version of the format.
const MAGIC: [u8; 8] = *b"GRUPLC01";

/// The header: magic, then three little-endian u64: the key, the length and the checksum of the
/// data that follow.
const HEADER: usize = MAGIC.len() + 3 * size_of::<u64>();

/// A temporary file of this age belongs to a process that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The state of a device's pipeline cache; see
/// [`Device::with_pipeline_cache`](crate::Device::with_pipeline_cache).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipelineCacheStatus {
    /// The file. The adapter, the driver and this crate's version give its name.
    pub file: PathBuf,
    /// Bytes that were read from the file and given to the driver when the cache was opened: 0 if
    /// there was no file, or if it was damaged or of another driver's version.
    pub loaded: usize,
    /// Why the file cannot be read or written.
    pub error: Option<String>,
}

/// The driver's cache of a device, and its file.
#[derive(Debug)]
pub(crate) struct PipelineCache {
    driver_cache: wgpu::PipelineCache,
    file: PathBuf,
    /// A hash of the versions that the data depend on.
    key: u64,
    loaded: usize,
    saved: Mutex<Saved>,
}

#[derive(Debug)]
struct Saved {
    /// The checksum of the file's data, as this process read or wrote them last.
    checksum: Option<u64>,
    error: Option<String>,
}

impl PipelineCache {
    /// Opens the cache of an adapter with the data of its file in `folder`. A file that is missing,
    /// damaged or another driver's counts as empty. `create` creates the driver's cache with the
    /// data; returns `None` if the driver does not accept them.
    pub fn open(
        info: &wgpu::AdapterInfo,
        folder: &Path,
        create: impl Fn(Option<&[u8]>) -> Option<wgpu::PipelineCache>,
    ) -> Option<Self> {
        let (file, key) = (folder.join(file_name(info)?), key(info));
        let (data, error) = match read(&file) {
            Ok(bytes) => (bytes.and_then(|bytes| decode(bytes, key)), None),
            Err(error) => (None, Some(format!("cannot be read: {error}"))),
        };
        // Tried now, so that the caller learns of it before the first pipeline is compiled.
        let probe = || write_beside(&file, |_| Ok(())).and_then(fs::remove_file);
        let error = error.or_else(|| probe().err().map(write_error));
        let loaded = data.and_then(|data| Some((create(Some(&data))?, data)));
        let (driver_cache, checksum, loaded) = match loaded {
            Some((cache, data)) => (cache, Some(checksum(&data)), data.len()),
            None => (create(None)?, None, 0),
        };
        let saved = Mutex::new(Saved { checksum, error });
        Some(Self { driver_cache, file, key, loaded, saved })
    }

    pub fn driver_cache(&self) -> &wgpu::PipelineCache {
        &self.driver_cache
    }

    pub fn status(&self) -> PipelineCacheStatus {
        let error = lock(&self.saved).error.clone();
        PipelineCacheStatus { file: self.file.clone(), loaded: self.loaded, error }
    }

    /// Writes the file if it lacks pipelines. Call it after every compilation, because programs are
    /// killed. A failure is kept for [`Self::status`].
    ///
    /// Of two processes the last writer wins. It writes what it has read and what it has compiled,
    /// so the file is complete once a process has compiled nothing that another has written since.
    pub fn save(&self) {
        let mut saved = lock(&self.saved);
        let Some(data) = self.driver_cache.get_data() else { return };
        let checksum = checksum(&data);
        if saved.checksum == Some(checksum) {
            return;
        }
        match write(&self.file, self.key, checksum, &data) {
            Ok(()) => *saved = Saved { checksum: Some(checksum), error: None },
            Err(error) => saved.error = Some(write_error(error)),
        }
    }
}

/// Returns the name of the file for an adapter. Drivers of one adapter, and versions of this crate,
/// have files of their own.
fn file_name(info: &wgpu::AdapterInfo) -> Option<String> {
    let adapter = wgpu::util::pipeline_cache_key(info)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let driver: String = info.driver.chars().filter(|&c| is_plain(c)).take(40).collect();
    Some(format!("{adapter}_{driver}_{}.bin", env!("CARGO_PKG_VERSION")))
}

/// Returns a hash of what outdates a file: a new version of the driver replaces it.
fn key(info: &wgpu::AdapterInfo) -> u64 {
    let text = [&info.name, &info.driver, &info.driver_info, env!("CARGO_PKG_VERSION")].join("\n");
    checksum(text.as_bytes())
}

fn checksum(data: &[u8]) -> u64 {
    let mut hash = Fnv1a::default();
    hash.add(data.len() as u64);
    for chunk in data.chunks(size_of::<u64>()) {
        let mut bytes = [0; size_of::<u64>()];
        bytes[..chunk.len()].copy_from_slice(chunk);
        hash.add(u64::from_le_bytes(bytes));
    }
    hash.0
}

/// Reads a whole file. Returns `None` if there is none, or if it is too large.
fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    // A pipe would block.
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check_private(file)?;
    let mut bytes = Vec::new();
    let most = HEADER + MAX_BYTES;
    File::open(file)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= most).then_some(bytes))
}

/// Returns the data of a file, or `None` if it is not whole or has another key.
fn decode(mut bytes: Vec<u8>, key: u64) -> Option<Vec<u8>> {
    let header = bytes.get(..HEADER)?;
    let expected = encode_header(key, bytes.len() - HEADER, checksum(&bytes[HEADER..]));
    if header != expected {
        return None;
    }
    Some(bytes.split_off(HEADER))
}

fn encode_header(key: u64, len: usize, checksum: u64) -> Vec<u8> {
    let numbers = [key, len as u64, checksum].into_iter().flat_map(u64::to_le_bytes);
    MAGIC.into_iter().chain(numbers).collect()
}

/// Writes the file: first beside it, then with its name, so that it is complete or not there.
fn write(file: &Path, key: u64, checksum: u64, data: &[u8]) -> io::Result<()> {
    if data.len() > MAX_BYTES {
        let reason = format!("the pipelines take {} bytes, more than {MAX_BYTES}", data.len());
        return Err(io::Error::other(reason));
    }
    let part = write_beside(file, |to| {
        to.write_all(&encode_header(key, data.len(), checksum))?;
        to.write_all(data)
    })?;
    fs::rename(&part, file).inspect_err(|_| drop(fs::remove_file(&part)))
}

fn write_error(error: io::Error) -> String {
    format!("cannot be written: {error}")
}

/// Creates a temporary file in the folder of `file`, and the folder itself. Both are for the user
/// alone.
fn write_beside(
    file: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let folder = folder_of(file);
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    builder.create(folder)?;
    check_private(file)?;
    remove_abandoned(file);
    // Two processes may have the same id, in two containers.
    let random = RandomState::new().hash_one(std::process::id());
    let part = file.with_extension(format!("{random:016x}.part"));
    let written = options.open(&part).and_then(|mut to| write(&mut to));
    written.inspect_err(|_| drop(fs::remove_file(&part)))?;
    Ok(part)
}

fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Checks that not everyone may write to the folder of `file`: a driver trusts the data.
fn check_private(file: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder_of(file))?);
        if mode & 0o002 != 0 {
            return Err(io::Error::other("everyone may write to the folder; use a private one"));
        }
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Removes temporary files of processes that were killed while they wrote.
fn remove_abandoned(file: &Path) {
    let Ok(entries) = fs::read_dir(folder_of(file)) else { return };
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        let is_part = name.starts_with(&stem) && name.ends_with(".part");
        if is_part && age.is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device;

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
        let folder = tempfile::TempDir::new().unwrap();
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
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("cache.bin");
        let write = |byte: u8| {
            let data = vec![byte; 100_000 + usize::from(byte)];
            super::write(&file, 1, checksum(&data), &data).unwrap();
        };
        write(0);
        std::thread::scope(|scope| {
            for writer in 1..4 {
                scope.spawn(move || (0..20).for_each(|_| write(writer)));
            }
            for _ in 0..100 {
                let bytes = read(&file).unwrap().unwrap();
                assert!(decode(bytes, 1).is_some());
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn too_much_data_is_not_written() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("cache.bin");
        let error = write(&file, 1, 0, &vec![0; MAX_BYTES + 1]).unwrap_err();
        assert!(error.to_string().contains("more than 67108864"), "{error}");
        assert!(!file.exists());
    }

    #[test]
    fn leftovers_of_killed_processes_are_removed() {
        let folder = tempfile::TempDir::new().unwrap();
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
}
