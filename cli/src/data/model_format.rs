//! [`ModelFormat`]: the format of a model file, recognised by its content.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Result, bail};

use crate::ui::output::{log, quote_path};

/// The format of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFormat {
    Safetensors,
    Pytorch,
    Npz,
    Onnx,
}

impl ModelFormat {
    /// Recognises a file's format by its content, and by its name if the content tells nothing.
    /// Logs the format if the name is that of another one.
    pub fn of(path: &Path) -> Result<Self> {
        let end = extension(path);
        let named = match end.as_str() {
            "safetensors" => Some(Self::Safetensors),
            "pt" | "pth" | "bin" | "ckpt" => Some(Self::Pytorch),
            "npz" => Some(Self::Npz),
            "onnx" => Some(Self::Onnx),
            _ => None,
        };
        let found = match (Content::of(path), named) {
            (Content::Model(found), _) => found,
            (Content::Array, _) => bail!(
                "{} is an array of NumPy; give the model first and the array with --input",
                quote_path(path)
            ),
            (Content::Keras, _) => bail!(keras_advice(path)),
            (Content::Zip, Some(Self::Npz)) => Self::Npz,
            // The reader says what the archive holds.
            (Content::Zip, _) => Self::Pytorch,
            // The reader says what is wrong with the file, or why it cannot be opened.
            (Content::Unknown, Some(named)) => return Ok(named),
            (Content::Unknown, None) => bail!(
                "{} is not recognised as a model file by its content or its name; expected a file \
                 of torch.save (.pt, .pth, .bin, .ckpt), a .safetensors, .npz or .onnx file",
                quote_path(path)
            ),
        };
        if named.is_some_and(|named| named != found) {
            log(format_args!(
                "{}: the content is {}, although the name ends in .{end}",
                quote_path(path),
                found.name()
            ));
        }
        Ok(found)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "a safetensors file",
            Self::Pytorch => "a file of torch.save",
            Self::Npz => "an .npz archive",
            Self::Onnx => "an ONNX model",
        }
    }
}

/// What the first bytes of a file tell.
enum Content {
    Model(ModelFormat),
    /// An array of NumPy.
    Array,
    /// A model or weights of Keras.
    Keras,
    /// A zip archive whose first entry tells nothing.
    Zip,
    Unknown,
}

impl Content {
    fn of(path: &Path) -> Self {
        // A pipe would wait for its writer.
        let is_file = path.is_file();
        let mut start = Vec::new();
        let read = is_file.then(|| File::open(path)?.take(4096).read_to_end(&mut start));
        match read {
            Some(Ok(_)) => Self::of_start(&start),
            _ => Self::Unknown,
        }
    }

    fn of_start(start: &[u8]) -> Self {
        // The length of a safetensors header is below 100 MB, and the header is a JSON object.
        let has_json = start.get(8) == Some(&b'{') && start[4..8] == [0; 4];
        match start {
            // First: the length may look like the start of the others.
            _ if has_json => Self::Model(ModelFormat::Safetensors),
            [b'P', b'K', 3, 4, ..] => Self::of_zip(start),
            [0x80, 0..=5, ..] => Self::Model(ModelFormat::Pytorch),
            // The digits of torch.save's magic number.
            _ if start.starts_with(b"L1195470371460388") => Self::Model(ModelFormat::Pytorch),
            // The field ir_version, which is below 128 and which every exporter writes first.
            [8, 1..=127, ..] => Self::Model(ModelFormat::Onnx),
            _ if start.starts_with(b"\x93NUMPY") => Self::Array,
            _ if start.starts_with(b"\x89HDF\r\n") => Self::Keras,
            _ => Self::Unknown,
        }
    }

    /// Tells archives apart by the name of their first entry that is no folder.
    fn of_zip(mut start: &[u8]) -> Self {
        loop {
            let (Some(header), true) = (start.get(..30), start.starts_with(b"PK\x03\x04")) else {
                return Self::Zip;
            };
            // The lengths of the name and of the extra field after it.
            let len = |at| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
            let Some(name) = start.get(30..30 + len(26)) else { return Self::Zip };
            let is = |end: &str| name.ends_with(end.as_bytes());
            if is("/") {
                start = start.get(30 + len(26) + len(28)..).unwrap_or_default();
            } else if is(".npy") {
                return Self::Model(ModelFormat::Npz);
            } else if is("metadata.json") || is("config.json") || is("model.weights.h5") {
                return Self::Keras;
            } else {
                return Self::Zip;
            }
        }
    }
}

/// Says how to write the arrays of a file of Keras to an .npz file.
fn keras_advice(path: &Path) -> String {
    let name = path.to_string_lossy();
    let stem = ["keras", "weights.h5", "h5", "hdf5"].into_iter().find_map(|end| {
        let stem = name.strip_suffix(end)?.strip_suffix('.')?;
        Some(stem.to_owned())
    });
    let npz = format!("{}.npz", stem.unwrap_or_else(|| name.clone().into_owned()));
    let load = match name.ends_with(".weights.h5") {
        true => format!("model.load_weights({name:?})"),
        false => {
            format!("import keras, numpy; model = keras.saving.load_model({name:?}, compile=False)")
        }
    };
    let save = format!("numpy.savez({npz:?}, **{{w.path: w.numpy() for w in model.weights}})");
    format!(
        "{} is a file of Keras; write its arrays as an .npz file, in Python: `{load}`, then `{save}`",
        quote_path(path)
    )
}

/// Returns a file name's extension in lower case.
pub fn extension(path: &Path) -> String {
    path.extension().map_or(String::new(), |end| end.to_string_lossy().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of a safetensors header may look like the start of a pickle or of a model.
    #[test]
    fn formats_are_told_apart_by_the_first_bytes() {
        for length in [0x0208_u64, 0x0280, 0x0580, 0x4b50, 24] {
            let start = [&length.to_le_bytes()[..], b"{\"a\""].concat();
            let found = Content::of_start(&start);
            assert!(matches!(found, Content::Model(ModelFormat::Safetensors)), "{length:#x}");
        }
        for (start, expected) in [
            (&b"\x80\x02\x8a\x0al\xfc\x9cF"[..], ModelFormat::Pytorch),
            (b"\x80\x02}q\x00", ModelFormat::Pytorch),
            (b"\x08\x08\x12\x07pytorch", ModelFormat::Onnx),
        ] {
            let found = Content::of_start(start);
            assert!(matches!(found, Content::Model(found) if found == expected), "{start:?}");
        }
        let entry = |name: &str| {
            let len = name.len() as u8;
            [&b"PK\x03\x04"[..], &[0; 22], &[len, 0, 0, 0], name.as_bytes()].concat()
        };
        let found = Content::of_start(&[entry("sequential/"), entry("sequential/W.npy")].concat());
        assert!(matches!(found, Content::Model(ModelFormat::Npz)));
        for name in ["metadata.json", "config.json", "model.weights.h5"] {
            assert!(matches!(Content::of_start(&entry(name)), Content::Keras), "{name}");
        }
        let torch = entry("archive/data.pkl");
        for start in [&torch, &entry("a/"), &torch[..40], &torch[..29]] {
            assert!(matches!(Content::of_start(start), Content::Zip), "{start:?}");
        }
        for start in [&b""[..], b"\x80", b"{}", b"id,x\n"] {
            assert!(matches!(Content::of_start(start), Content::Unknown), "{start:?}");
        }
    }
}
