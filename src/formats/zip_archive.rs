//! Opens zip archives: those of PyTorch and of NumPy.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use zip::ZipArchive;

use crate::error::{Error, Result};

/// Opens an archive. Refuses one with a name twice: the crate `zip` keeps the last of several
/// entries with one name, and another reader may take the first.
pub(super) fn open<R: Read + Seek>(mut reader: R) -> Result<ZipArchive<BufReader<R>>> {
    let first = ZipArchive::new(BufReader::new(&mut reader)).map_err(invalid)?;
    let (start, count) = (first.central_directory_start(), first.len());
    drop(first);
    let headers = count_headers(BufReader::new(&mut reader), start);
    if headers.is_ok_and(|headers| headers != count) {
        return Err(Error::format("its zip archive has a name twice".to_owned()));
    }
    ZipArchive::new(BufReader::new(reader)).map_err(invalid)
}

/// Returns the error that a file is not a valid archive.
pub(super) fn invalid(error: zip::result::ZipError) -> Error {
    Error::format_from(format!("it is not a valid zip archive: {error}"), error)
}

/// Returns the number of headers in the central directory, which starts at `first`.
fn count_headers(mut reader: impl Read + Seek, first: u64) -> io::Result<usize> {
    const SIGNATURE: &[u8] = b"PK\x01\x02";
    reader.seek(SeekFrom::Start(first))?;
    let mut count = 0;
    loop {
        let mut header = [0; 46];
        // The end of the directory has at least 22 bytes more.
        reader.read_exact(&mut header[..4])?;
        if header[..4] != *SIGNATURE {
            return Ok(count);
        }
        reader.read_exact(&mut header[4..])?;
        count += 1;
        // The lengths of the name, the extra field and the comment.
        let len = |at| i64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        reader.seek(SeekFrom::Current(len(28) + len(30) + len(32)))?;
    }
}
