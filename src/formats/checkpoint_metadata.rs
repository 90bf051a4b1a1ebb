//! The metadata entry of a checkpoint: a checksum in hexadecimal, a space, and an object of JSON.
//!
//! What the object holds is the checkpoint's own business, but for `version` and `model`: readers
//! of networks take a checkpoint's file too, and need to know what the tensors belong to.

use serde_json::{Map, Value};

use crate::error::{Error, Result, quote};

/// The metadata entry that makes a file a checkpoint.
pub(crate) const CHECKPOINT_KEY: &str = "gru_wgpu.checkpoint";

/// The version of what is written here. A change of meaning is another number.
pub(crate) const VERSION: u64 = 1;

/// The entry, taken apart.
pub(crate) struct CheckpointMetadata {
    /// Over the JSON and the tensors.
    pub checksum: u64,
    /// The JSON as it stands in the file.
    pub json: String,
    /// The same, parsed.
    pub values: Map<String, Value>,
}

impl CheckpointMetadata {
    /// # Errors
    /// [`Error::Format`] when it is not of this form or of another version.
    pub fn parse(entry: &str) -> Result<Self> {
        let (checksum, json) = entry.split_once(' ').ok_or_else(|| wrong("has no checksum"))?;
        let checksum =
            parse_checksum(checksum).ok_or_else(|| wrong("has no checksum of 16 digits"))?;
        let values: Map<_, _> = serde_json::from_str(json).map_err(|error| {
            Error::format_from(
                wrong(&format!("is no JSON: {}", quote(&error.to_string()))).to_string(),
                error,
            )
        })?;
        match values.get("version") {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(version) => {
                let version = quote(&version.to_string());
                return Err(wrong(&format!(
                    "is of version {version}; this program reads version {VERSION}"
                )));
            }
            None => return Err(wrong("has no version")),
        }
        Ok(Self { checksum, json: json.to_owned(), values })
    }

    /// The text under a key.
    ///
    /// # Errors
    /// [`Error::Format`] when there is none.
    pub fn text(&self, key: &str) -> Result<&str> {
        let text = self.values.get(key).and_then(Value::as_str);
        text.ok_or_else(|| wrong(&format!("lacks `{key}`")))
    }

    /// The configuration of its networks, as
    /// [`write_config`](super::metadata::write_config) writes it.
    ///
    /// # Errors
    /// [`Error::Format`] when there is none.
    pub fn model(&self) -> Result<&str> {
        self.text("model")
    }
}

/// A checksum as it is written: 16 hexadecimal digits, the letters small. Any other spelling of the
/// same number is a file that was changed.
fn parse_checksum(text: &str) -> Option<u64> {
    let checksum = u64::from_str_radix(text, 16).ok()?;
    (write_checksum(checksum) == text).then_some(checksum)
}

/// A checksum as text.
pub(crate) fn write_checksum(checksum: u64) -> String {
    format!("{checksum:016x}")
}

/// What is wrong with the entry.
pub(crate) fn wrong(what: &str) -> Error {
    Error::format(format!("its metadata {CHECKPOINT_KEY} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_has_one_spelling() {
        let entry = |checksum: &str| {
            CheckpointMetadata::parse(&format!("{checksum} {{\"version\":{VERSION}}}"))
        };
        assert_eq!(entry("00000000deadbeef").unwrap().checksum, 0xdead_beef);
        for odd in ["00000000DEADBEEF", "deadbeef", "+0000000deadbeef", "000000000deadbeef", ""] {
            assert!(entry(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn broken_json_is_refused_with_its_cause() {
        use std::error::Error as _;
        let error = CheckpointMetadata::parse("00000000deadbeef {").err().unwrap();
        assert!(error.to_string().contains("is no JSON"), "{error}");
        assert!(error.source().unwrap().is::<serde_json::Error>());
    }
}
