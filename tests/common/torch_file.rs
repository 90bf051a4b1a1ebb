//! Writes files of `torch.save` piece by piece, so that tests and the fuzz target can write wrong
//! ones. A value is the bytes of the pickle that makes it.

#![allow(dead_code, reason = "a fuzz target uses a part of it")]

/// Returns a text.
pub fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Returns a whole number.
pub fn int(number: i64) -> Vec<u8> {
    [b"\x8A\x08", &number.to_le_bytes()[..]].concat()
}

/// Returns a tuple.
pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

/// Returns a tuple of whole numbers.
pub fn ints(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().map(|&number| int(number)).collect::<Vec<_>>())
}

/// Returns a class or function.
pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// Returns what a function returns for arguments, which are a tuple.
pub fn call(module: &str, name: &str, arguments: &[Vec<u8>]) -> Vec<u8> {
    [global(module, name), tuple(arguments), b"R".to_vec()].concat()
}

/// Returns a storage of `len` elements.
pub fn storage(class: &str, key: &str, len: i64) -> Vec<u8> {
    let id = [text("storage"), global("torch", class), text(key), text("cpu"), int(len)];
    [tuple(&id), b"Q".to_vec()].concat()
}

/// Returns a tensor.
pub fn tensor(storage: Vec<u8>, first: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let arguments =
        [storage, int(first), ints(shape), ints(strides), b"\x89".to_vec(), b"N".to_vec()];
    call("torch._utils", "_rebuild_tensor_v2", &arguments)
}

/// Returns a dictionary.
pub fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = items.iter().map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", &items.concat()[..], b"u"].concat()
}

/// Returns the pickle of a value.
pub fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// Returns a file of torch 1.6 or later. The storages have the keys 0, 1, and so on.
pub fn zip_file(pickle: Vec<u8>, storages: &[Vec<u8>]) -> Vec<u8> {
    let mut entries = vec![("m/data.pkl".to_owned(), pickle)];
    entries.push(("m/byteorder".to_owned(), b"little".to_vec()));
    for (key, bytes) in storages.iter().enumerate() {
        entries.push((format!("m/data/{key}"), bytes.clone()));
    }
    zip(&entries)
}

/// Returns an older file. A storage is its number of elements and its bytes.
pub fn old_file(object: &[u8], storages: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let magic = b"\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19";
    let keys: Vec<_> = (0..storages.len()).map(|key| text(&key.to_string())).collect();
    let keys = [b"](", &keys.concat()[..], b"e"].concat();
    let system = dict(&[(text("little_endian"), b"\x88".to_vec())]);
    let mut file = [pickle(magic), pickle(&int(1001)), pickle(&system)].concat();
    file.extend([object, &pickle(&keys)].concat());
    for (len, bytes) in storages {
        file.extend(len.to_le_bytes());
        file.extend(bytes);
    }
    file
}

/// Returns a zip archive of entries as they are.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = file.len() as u32;
        let mut common = Vec::new();
        // The version, flags, method, time and date; then the checksum.
        common.extend([10, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        common.extend(crc32(bytes).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\x0A\x00", &common[..], &[0; 10]].concat());
        directory.extend([&offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([(directory.len() as u32).to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| bit(crc)))
}
