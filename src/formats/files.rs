//! Reading parts of a file by arithmetic that was checked, and files that appear whole or not at
//! all.
//!
//! [`open`] and [`write_whole`] are where the formats meet the file system: what takes a path calls
//! one of them around what takes a stream.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Cause, Error, Result, quote};

/// `doing` is what could not be done, as `opened`.
fn io_error(path: &Path, doing: &str, error: io::Error) -> Error {
    let reason = format!("cannot be {doing}: {error}");
    Error::Io { path: quote(&path.to_string_lossy()), reason, source: Some(Cause::new(error)) }
}

/// Opens a file to be read by `read`, and names it in what `read` finds wrong with its contents.
pub(crate) fn open<T>(path: &Path, read: impl FnOnce(ByteSource<File>) -> Result<T>) -> Result<T> {
    let name = quote(&path.to_string_lossy());
    // Looked at first: to open a pipe is to wait for its other end, and a device may have no end.
    let metadata = std::fs::metadata(path).map_err(|error| io_error(path, "opened", error))?;
    if !metadata.is_file() {
        let reason = "is not a regular file".to_owned();
        return Err(Error::Io { path: name, reason, source: None });
    }
    let file = File::open(path).map_err(|error| io_error(path, "opened", error))?;
    let wrong = |error| match error {
        Error::Choice { within, of, asked, found, by } => {
            Error::Choice { within: format!("{name}: {within}"), of, asked, found, by }
        }
        other => other.within(&name),
    };
    ByteSource::named(name.clone(), file).and_then(read).map_err(wrong)
}

/// Bytes to read by their places, and how many there are.
pub(crate) struct ByteSource<S> {
    source: S,
    len: u64,
    /// The file, quoted, or what stands for it.
    name: String,
}

impl<S: Read + Seek> ByteSource<S> {
    pub fn new(source: S) -> Result<Self> {
        Self::named("the stream".to_owned(), source)
    }

    fn named(name: String, mut source: S) -> Result<Self> {
        match source.seek(SeekFrom::End(0)) {
            Ok(len) => Ok(Self { source, len, name }),
            Err(error) => Err(Error::Io {
                path: name,
                reason: format!("has no length that can be found: {error}"),
                source: Some(Cause::new(error)),
            }),
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes from `first` on, called `what` where there are not as many.
    #[cfg(any(feature = "onnx", feature = "safetensors"))]
    pub fn part(&mut self, what: &str, first: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.part_into(what, first, len, |len| {
            bytes.resize(len, 0);
            &mut bytes
        })?;
        Ok(bytes)
    }

    /// The same into the memory that `room` has for so many bytes. It is not asked for more than
    /// there are in the source.
    pub fn part_into<'a>(
        &mut self,
        what: &str,
        first: u64,
        len: u64,
        room: impl FnOnce(usize) -> &'a mut [u8],
    ) -> Result<()> {
        let all = self.len;
        let there = first.checked_add(len).is_some_and(|end| end <= all);
        let Some(len) = usize::try_from(len).ok().filter(|_| there) else {
            return Err(Error::format(format!(
                "{what} would take {len} bytes from byte {first} on, but there are {all}"
            )));
        };
        let read = self.source.seek(SeekFrom::Start(first));
        let read = read.and_then(|_| self.source.read_exact(room(len)));
        read.map_err(|error| Error::Io {
            path: self.name.clone(),
            reason: format!("cannot be read, {what}: {error}"),
            source: Some(Cause::new(error)),
        })
    }

    /// What the bytes are read from, wherever it stands.
    #[cfg(feature = "npy")]
    pub fn into_inner(self) -> S {
        self.source
    }
}

/// `Ok` when no number is infinite or NaN.
pub(super) fn check_finite<'a>(name: &str, numbers: impl Iterator<Item = &'a f32>) -> Result<()> {
    let odd = numbers.enumerate().find(|(_, number)| !number.is_finite());
    odd.map_or(Ok(()), |(at, number)| {
        Err(Error::format(format!(
            "element {at} of {} is {number}, which is refused unless asked for",
            quote(name)
        )))
    })
}

/// Has `write` fill a stream, through a buffer.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_stream<W: Write>(
    to: W,
    write: impl FnOnce(&mut io::BufWriter<W>) -> io::Result<()>,
) -> Result<()> {
    let mut buffered = io::BufWriter::new(to);
    let written = write(&mut buffered).and_then(|()| buffered.flush());
    written.map_err(|error| Error::Io {
        path: "the stream".to_owned(),
        reason: format!("cannot be written: {error}"),
        source: Some(Cause::new(error)),
    })
}

/// Has `write` fill a file beside `path`, flushes it to the disk and gives it its name: `path`
/// appears whole or not at all. Where `path` is a link, the file behind it is replaced.
///
/// # Errors
/// [`Error::Io`], also where `path` is something else than a file: a folder, a pipe, a device.
pub(crate) fn write_whole(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut io::BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    replace_whole(path.as_ref(), write, |_| Ok(()))
}

/// The same, with `keep` called on the place of the file that is about to be replaced, if there is
/// one.
pub(crate) fn replace_whole(
    path: &Path,
    write: impl FnOnce(&mut io::BufWriter<&mut File>) -> io::Result<()>,
    keep: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<()> {
    let write = || -> io::Result<()> {
        let target = target_of(path)?;
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // A temporary file is its owner's alone; this one is to become as readable as any other.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(directory)?;
        let mut buffered = io::BufWriter::new(file.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        file.as_file().sync_all()?;
        if target.exists() {
            keep(&target)?;
        }
        file.persist(&target).map_err(|error| error.error)?;
        // The name lasts once its directory is on the disk, too. The file is there whether or not
        // this directory may be opened for that.
        #[cfg(unix)]
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
        Ok(())
    };
    write().map_err(|error| io_error(path, "written", error))
}

/// The file that a path leads to, whether or not it is there yet.
pub(crate) fn target_of(path: &Path) -> io::Result<PathBuf> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    let target = if metadata.is_symlink() { path.canonicalize()? } else { path.to_owned() };
    match std::fs::metadata(&target)?.is_file() {
        true => Ok(target),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten bytes that can be counted, or not even that, and never read.
    struct Broken {
        counts: bool,
    }

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }

    impl Seek for Broken {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            if self.counts { Ok(10) } else { Err(io::ErrorKind::ConnectionReset.into()) }
        }
    }

    #[test]
    fn a_stream_that_breaks_is_an_error_of_io_with_its_cause() {
        use std::error::Error as _;
        let read = |counts| {
            let mut bytes = [0; 4];
            let mut source = ByteSource::new(Broken { counts })?;
            source.part_into("the header", 0, 4, |_| &mut bytes)
        };
        for counts in [true, false] {
            let error = read(counts).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(cause.unwrap().kind(), io::ErrorKind::ConnectionReset);
            assert!(error.to_string().starts_with("the stream "), "{error}");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_and_keeps_what_was_there() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("kept");
        std::fs::write(&path, "before").unwrap();
        let failed = write_whole(&path, |to| {
            to.write_all(b"half")?;
            Err(io::Error::other("full"))
        });
        let error = failed.unwrap_err().to_string();
        assert!(error.contains("cannot be written: full"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
