//! Bounds-checked reads from a file, and atomic writes: a file appears complete or not at all.
//!
//! All access of the formats to the file system goes through [`open`] and [`write_whole`]. A
//! function that takes a path wraps its stream version in one of them.

use std::fs::File;
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
use std::io::Write;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
use std::path::PathBuf;

use crate::error::{Cause, Error, Result, quote};

/// Returns the error "cannot be {doing}"; `doing` is a participle, such as `opened`.
fn io_error(path: &Path, doing: &str, error: io::Error) -> Error {
    let reason = format!("cannot be {doing}: {error}");
    Error::Io { path: quote(&path.to_string_lossy()), reason, source: Some(Cause::new(error)) }
}

/// Opens a file and passes it to `read`. Adds the file's name to the errors that `read` returns.
pub(crate) fn open<T>(path: &Path, read: impl FnOnce(ByteSource<File>) -> Result<T>) -> Result<T> {
    let name = quote(&path.to_string_lossy());
    // Check before opening: opening a pipe blocks until the other end opens, and a device may be
    // endless.
    let metadata = std::fs::metadata(path).map_err(|error| io_error(path, "opened", error))?;
    if !metadata.is_file() {
        let reason = "is not a regular file; folders, pipes and devices cannot be read".to_owned();
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

/// A seekable source of bytes with a known length.
pub(crate) struct ByteSource<S> {
    source: S,
    len: u64,
    /// The file's quoted name, or `the stream`, for error messages.
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
                reason: format!("cannot seek to its end: {error}"),
                source: Some(Cause::new(error)),
            }),
        }
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads `len` bytes at the offset `first`. Errors call these bytes `what`.
    #[cfg(any(feature = "onnx", feature = "pytorch", feature = "safetensors"))]
    pub fn read_at(&mut self, what: &str, first: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_at_into(what, first, len, |len| {
            bytes.resize(len, 0);
            &mut bytes
        })?;
        Ok(bytes)
    }

    /// Like [`Self::read_at`], into the buffer that `allocate` returns for a number of bytes. Calls
    /// `allocate` only after a check that the source has that many.
    pub fn read_at_into<'a>(
        &mut self,
        what: &str,
        first: u64,
        len: u64,
        allocate: impl FnOnce(usize) -> &'a mut [u8],
    ) -> Result<()> {
        let total = self.len;
        let is_inside = first.checked_add(len).is_some_and(|end| end <= total);
        let Some(len) = usize::try_from(len).ok().filter(|_| is_inside) else {
            return Err(Error::format(format!(
                "{what} takes {len} bytes at offset {first}, but the file has {total}; is it cut short?"
            )));
        };
        let read = self.source.seek(SeekFrom::Start(first));
        let read = read.and_then(|_| self.source.read_exact(allocate(len)));
        read.map_err(|error| Error::Io {
            path: self.name.clone(),
            reason: format!("cannot be read ({what}): {error}"),
            source: Some(Cause::new(error)),
        })
    }

    /// Returns a reader of the `len` bytes from the offset `first` on. The source must have them.
    #[cfg(feature = "pytorch")]
    pub fn stream(
        &mut self,
        what: &'static str,
        first: u64,
        len: u64,
    ) -> Result<ByteStream<'_, S>> {
        let sought = self.source.seek(SeekFrom::Start(first));
        let reader = io::BufReader::new(&mut self.source);
        let stream = ByteStream { reader, left: len, what, name: &self.name };
        match sought {
            Ok(_) => Ok(stream),
            Err(error) => Err(stream.failed(error)),
        }
    }

    /// Returns the underlying reader, which other code may move.
    #[cfg(feature = "pytorch")]
    pub fn inner(&mut self) -> &mut S {
        &mut self.source
    }

    /// Returns the underlying reader, at its current position.
    #[cfg(feature = "npy")]
    pub fn into_inner(self) -> S {
        self.source
    }
}

/// Reads a range of a source from its start to its end.
#[cfg(feature = "pytorch")]
pub(crate) struct ByteStream<'a, S> {
    reader: io::BufReader<&'a mut S>,
    /// The number of bytes that are left.
    left: u64,
    /// What errors call the bytes.
    what: &'static str,
    /// The file's name.
    name: &'a str,
}

#[cfg(feature = "pytorch")]
impl<S: Read + Seek> ByteStream<'_, S> {
    /// The number of bytes that are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Reads the next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| self.failed(error))?;
        Ok(bytes)
    }

    /// Appends the next `len` bytes to `to`, which the caller has bounded.
    pub fn append(&mut self, len: usize, to: &mut Vec<u8>) -> Result<()> {
        self.take(len as u64)?;
        let start = to.len();
        to.resize(start + len, 0);
        self.reader.read_exact(&mut to[start..]).map_err(|error| self.failed(error))
    }

    /// Skips the next `len` bytes without reading them.
    pub fn skip(&mut self, len: u64) -> Result<()> {
        self.take(len)?;
        // Every file is shorter than 2^63 bytes, and the range is inside the file.
        let sought = self.reader.seek_relative(len as i64);
        sought.map_err(|error| self.failed(error))
    }

    /// Counts the next `len` bytes as read, if there are so many.
    fn take(&mut self, len: u64) -> Result<()> {
        match self.left.checked_sub(len) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Error::format(format!(
                "{} needs {len} more bytes, but {} are left; is the file cut short?",
                self.what, self.left
            ))),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Io {
            path: self.name.to_owned(),
            reason: format!("cannot be read ({}): {error}", self.what),
            source: Some(Cause::new(error)),
        }
    }
}

/// Checks that no number is infinite or NaN.
pub(super) fn check_finite<'a>(name: &str, numbers: impl Iterator<Item = &'a f32>) -> Result<()> {
    let found = numbers.enumerate().find(|(_, number)| !number.is_finite());
    found.map_or(Ok(()), |(at, number)| {
        Err(Error::format(format!(
            "element {at} of {} is {number}; expected a finite number (with_non_finite(true), or \
             --allow-non-finite of the program gru, accepts others)",
            quote(name)
        )))
    })
}

/// Calls `write` with a buffered writer on the stream and flushes it.
///
/// # Errors
/// [`Error::Io`].
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
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

/// Writes a file atomically: `write` fills a temporary file in the same folder, which is flushed to
/// the disk and then renamed to `path`. If `path` is a symbolic link, its target is replaced.
///
/// # Errors
/// [`Error::Io`], also if `path` is not a regular file but a folder, a pipe or a device.
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
pub(crate) fn write_whole(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut io::BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    replace_whole(path.as_ref(), write, |_| Ok(()))
}

/// Like [`write_whole`], but calls `keep` with the path of an existing file before replacing it.
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
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
        // Temporary files are readable by their owner only by default; this one gets the usual
        // mode.
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
        // The new name survives a crash only once the directory is flushed too. Ignore a failure:
        // the file is in place even if the directory cannot be opened.
        #[cfg(unix)]
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
        Ok(())
    };
    write().map_err(|error| io_error(path, "written", error))
}

/// Returns the file that a path leads to, through symbolic links. The file need not exist.
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
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

    /// A reader of ten bytes that fails on every read, and on seeks too unless `seeks` is set.
    struct Broken {
        seeks: bool,
    }

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }

    impl Seek for Broken {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            if self.seeks { Ok(10) } else { Err(io::ErrorKind::ConnectionReset.into()) }
        }
    }

    #[test]
    fn a_broken_stream_gives_an_io_error_with_its_cause() {
        use std::error::Error as _;
        let read = |seeks| {
            let mut bytes = [0; 4];
            let mut source = ByteSource::new(Broken { seeks })?;
            source.read_at_into("the header", 0, 4, |_| &mut bytes)
        };
        for seeks in [true, false] {
            let error = read(seeks).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(cause.unwrap().kind(), io::ErrorKind::ConnectionReset);
            assert!(error.to_string().starts_with("the stream "), "{error}");
        }
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_temporary() {
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
