//! Where a file of PyTorch holds its pickle and its storages.

use std::collections::HashMap;
use std::io::{Read, Seek};

use zip::CompressionMethod;

use super::pickle::{self, Pickle, Storage};
use crate::error::{Error, Result, quote};
use crate::formats::files::ByteSource;
use crate::formats::numbers::FloatType;
use crate::formats::zip_archive;

/// What a zip archive starts with: the header of its first entry.
const ZIP: [u8; 4] = *b"PK\x03\x04";

/// A range of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub start: u64,
    pub len: u64,
}

/// The storages of a file by their key.
pub(super) type Storages = HashMap<String, Range>;

/// Reads the pickle of a file and finds its storages.
pub(super) fn open<S: Read + Seek>(source: &mut ByteSource<S>) -> Result<(Pickle, Storages)> {
    let start = source.read_at("its start", 0, source.len().min(ZIP.len() as u64))?;
    if start == ZIP { open_zip(source) } else { open_old(source, &start) }
}

/// Opens a file of torch 1.6 or later: a zip archive with an entry for the pickle and one for each
/// storage.
fn open_zip<S: Read + Seek>(source: &mut ByteSource<S>) -> Result<(Pickle, Storages)> {
    let mut entries = zip_entries(source)?;
    let mut pickles = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    // A package of PyTorch holds the pickles of its models in folders below.
    let root = pickles.by_ref().filter(|root| root.is_empty() || root.ends_with('/'));
    let root = root.min_by_key(|root| root.matches('/').count()).map(str::to_owned);
    let Some(root) = root else { return Err(no_pickle(&entries)) };
    let order = format!("{root}byteorder");
    if let Some(&Range { start, len }) = entries.get(&order) {
        let order = source.read_at("its byte order", start, len.min(16))?;
        if order != b"little" {
            return Err(big_endian());
        }
    }
    let Range { start, len } = entries[&format!("{root}data.pkl")];
    let pickle = pickle::read(&mut source.stream("its pickle", start, len)?)?;
    let folder = format!("{root}data/");
    let in_folder = |(name, range): (String, Range)| {
        name.strip_prefix(&folder).map(|key| (key.to_owned(), range))
    };
    Ok((pickle, entries.drain().filter_map(in_folder).collect()))
}

/// Returns the range of every entry that is stored as it is.
fn zip_entries<S: Read + Seek>(source: &mut ByteSource<S>) -> Result<Storages> {
    let file_len = source.len();
    let mut archive = zip_archive::open(source.inner())?;
    let mut entries = HashMap::new();
    for at in 0..archive.len() {
        let entry = archive.by_index_raw(at).map_err(zip_archive::invalid)?;
        let (name, start, len) = (entry.name(), entry.data_start(), entry.compressed_size());
        let is_inside = start.checked_add(len).is_some_and(|end| end <= file_len);
        if !is_inside {
            return Err(Error::format(format!(
                "its entry {} takes {len} bytes at offset {start}, but the file has {file_len}; is \
                 it cut short?",
                quote(name)
            )));
        }
        let is_plain = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
        if is_plain && entry.size() == len {
            entries.insert(name.to_owned(), Range { start, len });
        } else if name.ends_with("data.pkl") {
            return Err(Error::format(format!(
                "its entry {} is compressed or encrypted; PyTorch stores entries as they are",
                quote(name)
            )));
        }
    }
    Ok(entries)
}

/// Says what an archive without a pickle holds.
fn no_pickle(entries: &Storages) -> Error {
    let has = |end: &str| entries.keys().any(|name| name.ends_with(end));
    let found = if has(".npy") {
        "the arrays of an .npz file"
    } else if has("model.weights.h5") || has("config.json") {
        "a model of Keras"
    } else {
        "no file of PyTorch"
    };
    Error::format(format!(
        "it is a zip archive with {found}; expected an entry `data.pkl`, as torch.save writes it"
    ))
}

/// Opens a file of torch before 1.6: pickles of a magic number, a version, the system, the object
/// and the storages' keys, then the storages in the order of the keys.
fn open_old<S: Read + Seek>(
    source: &mut ByteSource<S>,
    start: &[u8],
) -> Result<(Pickle, Storages)> {
    // Protocol 2 and later start with 0x80, the earlier ones with the magic number's digits.
    if !(start.first() == Some(&0x80) || start.starts_with(b"L119")) {
        return Err(Error::format(
            "it is not a file of torch.save: it starts neither as a zip archive nor as a pickle"
                .to_owned(),
        ));
    }
    let len = source.len();
    let mut stream = source.stream("its pickle", 0, len)?;
    if !pickle::read(&mut stream)?.is_magic() {
        return Err(Error::format(
            "it is a pickle, but not one of torch.save; in Python: torch.save(model.state_dict(), \
             \"model.pt\")"
                .to_owned(),
        ));
    }
    pickle::read(&mut stream)?;
    if pickle::read(&mut stream)?.flag("little_endian") == Some(false) {
        return Err(big_endian());
    }
    let pickle = pickle::read(&mut stream)?;
    let keys = pickle::read(&mut stream)?;
    let mut at = len - stream.left();
    let described = pickle.storages()?;
    let keys = keys.texts().ok_or_else(|| {
        Error::format("its list of storages holds something else than keys".to_owned())
    })?;
    let mut storages = Storages::new();
    for key in keys {
        let Some(storage) = described.get(key) else {
            return Err(Error::format(format!(
                "its storage {} belongs to no tensor; the file is damaged",
                quote(key)
            )));
        };
        // The number of elements stands before them.
        let size = element_size(storage).and_then(|size| storage.len.checked_mul(size));
        let end = size.and_then(|size| at.checked_add(8)?.checked_add(size));
        let Some(end) = end.filter(|&end| end <= len) else {
            return Err(Error::format(format!(
                "its storage {} has {} elements of {} at offset {at}, but the file has {len} \
                 bytes; is it cut short?",
                quote(key),
                storage.len,
                quote(storage.class)
            )));
        };
        let count = source.read_at("the length of a storage", at, 8)?;
        let count = u64::from_le_bytes(count.try_into().expect("eight bytes were read"));
        if count != storage.len {
            return Err(Error::format(format!(
                "its storage {} has {count} elements, but its pickle says {}",
                quote(key),
                storage.len
            )));
        }
        let range = Range { start: at + 8, len: end - at - 8 };
        if storages.insert(key.to_owned(), range).is_some() {
            return Err(Error::format(format!("its storage {} comes twice", quote(key))));
        }
        at = end;
    }
    drop(described);
    Ok((pickle, storages))
}

fn big_endian() -> Error {
    Error::format(
        "its numbers are big-endian; load and save it again on a little-endian computer".to_owned(),
    )
}

/// Returns the size of a storage's elements in bytes, or `None` for a class that PyTorch lacks.
fn element_size(storage: &Storage<'_>) -> Option<u64> {
    Some(match storage.class {
        "ComplexDoubleStorage" => 16,
        "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
        "FloatStorage" | "IntStorage" | "QInt32Storage" => 4,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        "ByteStorage" | "CharStorage" | "BoolStorage" | "QInt8Storage" | "QUInt8Storage"
        | "QUInt4x2Storage" | "QUInt2x4Storage" | "UntypedStorage" => 1,
        _ => return None,
    })
}

/// Returns the type of a tensor's numbers and their size in bytes, or the name of another type.
pub(super) fn float_type(tensor: &pickle::Tensor<'_>) -> Result<(FloatType, u64), String> {
    match tensor.dtype.unwrap_or(tensor.storage.class) {
        "FloatStorage" | "float32" => Ok((FloatType::F32, 4)),
        "DoubleStorage" | "float64" => Ok((FloatType::F64, 8)),
        "HalfStorage" | "float16" => Ok((FloatType::F16, 2)),
        "BFloat16Storage" | "bfloat16" => Ok((FloatType::Bf16, 2)),
        other => Err(quote(other)),
    }
}
