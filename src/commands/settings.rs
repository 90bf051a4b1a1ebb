//! `config.toml` of a run: written with words above its parts, read with the line of what is wrong.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use gru_wgpu::formats::write_whole;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::output::quote_path;

/// Writes what a run of `command` is, whole or not at all. `comments`: heads of the file in order, and what is
/// said above each.
pub fn write(
    path: &Path,
    settings: &impl Serialize,
    command: &str,
    comments: &[(&str, &str)],
) -> Result<()> {
    let text = toml::to_string(settings).context("the settings do not go into a TOML file")?;
    let mut comments = comments.iter().peekable();
    let mut commented = format!(
        "# A run of `{command}`. `gru predict` reads it, and `{command} --resume` goes on from it.\n"
    );
    for line in text.lines() {
        if let Some((_, comment)) = comments.next_if(|(head, _)| *head == line) {
            commented += &format!("# {comment}\n");
        }
        commented += &format!("{line}\n");
    }
    Ok(write_whole(path, |to| to.write_all(commented.as_bytes()))?)
}

/// Reads it. What its numbers mean is not looked at.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let shown = quote_path(path);
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        anyhow!("{shown}, line {line}: {}", error.message().replace('\n', " "))
    })
}

/// Whether it is that of a run of `gru forecast`, not of `gru train`.
pub fn is_forecast(path: &Path) -> Result<bool> {
    #[derive(Deserialize)]
    struct Only {
        task: String,
    }
    Ok(read::<Only>(path)?.task == "forecast")
}
