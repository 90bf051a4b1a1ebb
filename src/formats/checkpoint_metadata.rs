//! The metadata entry of a checkpoint: a checksum in hexadecimal, a space, and a JSON object.
//!
//! This module reads only `version` and `model` of the object. Functions that read networks also
//! read checkpoint files and need the configuration in `model`; the checkpoint reads the rest.

use serde_json::{Map, Value};

use crate::error::{Error, Result, quote};

/// The key of the metadata entry that marks a file as a checkpoint.
pub(crate) const CHECKPOINT_KEY: &str = "gru_wgpu.checkpoint";

/// The version of the entry's format. It changes whenever the meaning of the entry changes.
pub(crate) const VERSION: u64 = 1;

/// A parsed metadata entry.
pub(crate) struct CheckpointMetadata {
    /// The checksum of the JSON and the tensors.
    pub checksum: u64,
    /// The JSON text as in the file.
    pub json: String,
    /// The parsed JSON object.
    pub values: Map<String, Value>,
}

impl CheckpointMetadata {
    /// Parses an entry.
    ///
    /// # Errors
    /// [`Error::Format`] if the entry does not have this form or has another version.
    pub fn parse(entry: &str) -> Result<Self> {
        let (checksum, json) = entry.split_once(' ').ok_or_else(|| wrong("has no checksum"))?;
        let checksum = parse_checksum(checksum)
            .ok_or_else(|| wrong("has no checksum of 16 hexadecimal digits"))?;
        let values: Map<_, _> = serde_json::from_str(json).map_err(|error| {
            Error::format_from(
                wrong(&format!("is not valid JSON: {}", quote(&error.to_string()))).to_string(),
                error,
            )
        })?;
        match values.get("version") {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(version) => {
                let version = quote(&version.to_string());
                return Err(wrong(&format!(
                    "is of version {version}; this library reads version {VERSION}"
                )));
            }
            None => return Err(wrong("has no version")),
        }
        Ok(Self { checksum, json: json.to_owned(), values })
    }

    /// Returns the text under a key.
    ///
    /// # Errors
    /// [`Error::Format`] if the key is missing or holds no text.
    pub fn text(&self, key: &str) -> Result<&str> {
        let text = self.values.get(key).and_then(Value::as_str);
        text.ok_or_else(|| wrong(&format!("lacks `{key}`")))
    }

    /// Returns the configuration of the networks, in the form that
    /// [`write_config`](super::metadata::write_config) writes.
    ///
    /// # Errors
    /// [`Error::Format`] if there is none.
    pub fn model(&self) -> Result<&str> {
        self.text("model")
    }
}

/// Parses a checksum: exactly 16 lowercase hexadecimal digits. Any other spelling of the same
/// number means that the file was changed.
fn parse_checksum(text: &str) -> Option<u64> {
    let checksum = u64::from_str_radix(text, 16).ok()?;
    (write_checksum(checksum) == text).then_some(checksum)
}

/// Formats a checksum as text.
pub(crate) fn write_checksum(checksum: u64) -> String {
    format!("{checksum:016x}")
}

/// Returns an error about the entry; `reason` completes "its metadata gru_wgpu.checkpoint …".
pub(crate) fn wrong(reason: &str) -> Error {
    Error::format(format!("its metadata {CHECKPOINT_KEY} {reason}"))
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
        assert!(error.to_string().contains("is not valid JSON"), "{error}");
        assert!(error.source().unwrap().is::<serde_json::Error>());
    }
}
