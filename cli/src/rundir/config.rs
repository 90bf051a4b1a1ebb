//! `config.toml` of a run. Comments stand above its tables, and errors name the line.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ui::files::write_file;
use crate::ui::output::quote_path;

/// The commands whose runs have a `config.toml`.
pub const TRAIN: &str = "gru train";
pub const FORECAST: &str = "gru forecast";

/// All settings of a run, as `gru predict` and `--resume` read them. The data stays in its own
/// files.
pub trait RunConfig: Serialize + DeserializeOwned {
    /// The command that created the run.
    const COMMAND: &'static str;

    /// Table headers of the file in order, with the comment above each.
    const COMMENTS: &'static [(&'static str, &'static str)];

    /// Checks that every number is in its valid range.
    fn check(&self) -> Result<()>;

    /// Writes the file atomically.
    fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).context("cannot write the settings as TOML")?;
        let command = Self::COMMAND;
        let mut comments = Self::COMMENTS.iter().peekable();
        let mut commented = format!(
            "# A run of `{command}`. `gru predict` and `{command} --resume` read this file.\n"
        );
        for line in text.lines() {
            if let Some((_, comment)) = comments.next_if(|(head, _)| *head == line) {
                commented += &format!("# {comment}\n");
            }
            commented += &format!("{line}\n");
        }
        write_file(path, commented.as_bytes())
    }

    /// Reads and checks the file.
    fn read(path: &Path) -> Result<Self> {
        let (shown, text) = (quote_path(path), read_text(path)?);
        let (own, command) = (command_of(path, &text)?, Self::COMMAND);
        ensure!(own == command, "{shown} belongs to a run of `{own}`, not of `{command}`");
        let config: Self = parse(path, &text)?;
        config.check().with_context(|| shown)?;
        Ok(config)
    }
}

/// Returns true if the file belongs to a run of `gru forecast`, false if to one of `gru train`.
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
