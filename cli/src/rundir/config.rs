//! `config.toml` of a run: written with comments above its tables, read with the line of what is
//! wrong.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ui::files::write_file;
use crate::ui::output::quote_path;

/// The commands whose runs have a `config.toml`.
pub const TRAIN: &str = "gru train";
pub const FORECAST: &str = "gru forecast";

/// All that a run is made of but its data: what `gru predict` and `--resume` need.
pub trait RunConfig: Serialize + DeserializeOwned {
    /// The command whose run it is.
    const COMMAND: &'static str;

    /// Heads of the file in order, and the comment above each.
    const COMMENTS: &'static [(&'static str, &'static str)];

    /// `Ok` when every number makes sense.
    fn check(&self) -> Result<()>;

    /// Writes it, whole or not at all.
    fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).context("the settings do not go into a TOML file")?;
        let command = Self::COMMAND;
        let mut comments = Self::COMMENTS.iter().peekable();
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

    /// Reads and checks it.
    fn read(path: &Path) -> Result<Self> {
        let (shown, text) = (quote_path(path), read_text(path)?);
        let (own, command) = (command_of(path, &text)?, Self::COMMAND);
        ensure!(own == command, "{shown} is that of a run of `{own}`, not of `{command}`");
        let config: Self = parse(path, &text)?;
        config.check().with_context(|| shown)?;
        Ok(config)
    }
}

/// Whether it is that of a run of `gru forecast`, not of `gru train`.
pub fn is_forecast(path: &Path) -> Result<bool> {
    Ok(command_of(path, &read_text(path)?)? == FORECAST)
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", quote_path(path)))
}

fn command_of(path: &Path, text: &str) -> Result<&'static str> {
    #[derive(Deserialize)]
    struct TaskOnly {
        task: String,
    }
    Ok(if parse::<TaskOnly>(path, text)?.task == "forecast" { FORECAST } else { TRAIN })
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        anyhow!("{}, line {line}: {}", quote_path(path), error.message().replace('\n', " "))
    })
}
