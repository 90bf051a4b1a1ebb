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
/// [`Device::with_pipeline_cache`](crate::Device::with_pipeline_cache). Only GPUs have one.
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
        // Tried now, so that the caller learns of it before the first pipeline is compiled. It also
        // tells who this process' user is.
        let mut user = None;
        let probe = write_beside(&file, |part| {
            user = owner(&part.metadata()?);
            Ok(())
        });
        let unwritable = probe.and_then(fs::remove_file).err().map(write_error);
        let (data, error) = match read(&file, user) {
            Ok(bytes) => (bytes.and_then(|bytes| decode(bytes, key)), unwritable),
            Err(error) => (None, Some(format!("cannot be read: {error}"))),
        };
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

/// Reads a whole file of `user`. Returns `None` if there is none, or if it is too large.
fn read(file: &Path, user: Option<u32>) -> io::Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    // A pipe would block.
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check_private("the folder", &fs::metadata(folder_of(file))?, user)?;
    check_private("the file", &metadata, user)?;
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
    remove_abandoned(file);
    // Two processes may have the same id, in two containers.
    let random = RandomState::new().hash_one(std::process::id());
    let part = file.with_extension(format!("{random:016x}.part"));
    let written = options.open(&part).and_then(|mut to| {
        check_private("the folder", &fs::metadata(folder)?, owner(&to.metadata()?))?;
        write(&mut to)
    });
    written.inspect_err(|_| drop(fs::remove_file(&part)))?;
    Ok(part)
}

fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Checks that only `user` and root may write to a file or folder: a driver trusts the data. A user
/// who is not known, because the process cannot write to the folder, trusts root alone.
fn check_private(what: &str, metadata: &fs::Metadata, user: Option<u32>) -> io::Result<()> {
    let is_foreign = |owner| owner != 0 && Some(owner) != user;
    let reason = if owner(metadata).is_some_and(is_foreign) {
        "belongs to another user"
    } else if others_may_write(metadata) {
        "may be written by other users"
    } else {
        return Ok(());
    };
    Err(io::Error::other(format!("{what} {reason}; use a private folder")))
}

/// Returns the owner of a file, and so the user of the process that created it; `None` where files
/// have no such number.
#[cfg(unix)]
fn owner(metadata: &fs::Metadata) -> Option<u32> {
    Some(std::os::unix::fs::MetadataExt::uid(metadata))
}

#[cfg(not(unix))]
fn owner(_: &fs::Metadata) -> Option<u32> {
    None
}

/// True if the group or everyone may write. Not known outside Unix.
#[cfg(unix)]
fn others_may_write(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::mode(metadata) & 0o022 != 0
}

#[cfg(not(unix))]
fn others_may_write(_: &fs::Metadata) -> bool {
    false
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
mod tests;
