//! `config.toml` of a run: written with words above its parts, read with the line of what is wrong.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ui::files::write_file;
use crate::ui::output::quote_path;

/// The commands whose runs have one.
pub const TRAIN: &str = "gru train";
pub const FORECAST: &str = "gru forecast";

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
    write_file(path, commented.as_bytes())
}

/// Reads what a run of `command` is. What its numbers mean is not looked at.
pub fn read<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T> {
    let (shown, text) = (quote_path(path), text(path)?);
    let own = command_of(path, &text)?;
    ensure!(own == command, "{shown} is that of a run of `{own}`, not of `{command}`");
    parse(path, &text)
}

/// Whether it is that of a run of `gru forecast`, not of `gru train`.
pub fn is_forecast(path: &Path) -> Result<bool> {
    Ok(command_of(path, &text(path)?)? == FORECAST)
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", quote_path(path)))
}

fn command_of(path: &Path, text: &str) -> Result<&'static str> {
    #[derive(Deserialize)]
    struct Only {
        task: String,
    }
    Ok(if parse::<Only>(path, text)?.task == "forecast" { FORECAST } else { TRAIN })
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        anyhow!("{}, line {line}: {}", quote_path(path), error.message().replace('\n', " "))
    })
}
