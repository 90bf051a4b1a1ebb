//! The metadata entry of a checkpoint: a checksum in hexadecimal, a space, and an object of JSON.
//!
//! What the object holds is the checkpoint's own business, but for `version` and `model`: readers of
//! networks take a checkpoint's file too, and need to know what the tensors belong to.

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
            u64::from_str_radix(checksum, 16).map_err(|_| wrong("has no checksum of 16 digits"))?;
        let values: Map<_, _> = serde_json::from_str(json)
            .map_err(|error| wrong(&format!("is no JSON: {}", quote(&error.to_string()))))?;
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

/// What is wrong with the entry.
pub(crate) fn wrong(what: &str) -> Error {
    Error::Format(format!("its metadata {CHECKPOINT_KEY} {what}"))
}
