//! `config.toml` of a run. Comments stand above its tables, and errors name the line.

use std::fmt::Debug;
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

    /// Table headers of the file, with the comment above the first of each.
    const COMMENTS: &'static [(&'static str, &'static str)];

    /// Checks that every value is valid. Errors start with the key.
    fn check(&self) -> Result<()>;

    /// Writes the file atomically.
    fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).context("cannot write the settings as TOML")?;
        let command = Self::COMMAND;
        let mut comments = Self::COMMENTS.to_vec();
        let mut commented = format!(
            "# A run of `{command}`. `gru predict` and `{command} --resume` read this file.\n"
        );
        for line in text.lines() {
            if let Some(at) = comments.iter().position(|(head, _)| *head == line) {
                let (_, comment) = comments.remove(at);
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

/// Checks that a value of the file is valid for `parse`, the parser of the option with its meaning.
pub fn check_value<T>(
    key: &str,
    value: impl Debug,
    parse: impl FnOnce(&str) -> Result<T>,
) -> Result<()> {
    let value = format!("{value:?}");
    parse(&value).with_context(|| format!("{key} = {value}")).map(drop)
}

/// Checks that a size or a count is at least 1.
pub fn check_size(key: &str, size: usize) -> Result<()> {
    ensure!(size > 0, "{key} = {size}: expected a whole number of at least 1");
    Ok(())
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text[..at].matches('\n').count() + 1;
        let key = key_at(text, line);
        let key = if key.is_empty() { key } else { format!("{key}: ") };
        // A number such as 1e300 comes with all its digits.
        let shorten = |word: &str| match word.char_indices().nth(60) {
            Some((at, _)) if word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
                format!("{}…", &word[..at])
            }
            _ => word.to_owned(),
        };
        let message = error.message().replace('\n', " ");
        let mut message = message.split('`').map(shorten).collect::<Vec<_>>().join("`");
        for (of_rust, word) in [
            ("expected usize", "expected a whole number"),
            ("expected u64", "expected a whole number of at least 0"),
            ("expected f64", "expected a number"),
            ("expected f32", "expected a number"),
            ("wanted string or table", "expected a string"),
        ] {
            message = message.replace(of_rust, word);
        }
        anyhow!("{}, line {line}: {key}{message}", quote_path(path))
    })
}

/// Returns the key on a line (from 1) or on the last line before it that has one, after the name of
/// its table: `model.hidden`. Returns only the table's name on the line of its header.
fn key_at(text: &str, line: usize) -> String {
    let is_key = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut table, mut key) = ("", "");
    for line in text.lines().take(line).map(str::trim) {
        let header = line.trim_start_matches('[').trim_end_matches(']');
        match line.split_once('=').map(|(key, _)| key.trim()) {
            _ if line.starts_with('[') && header.split('.').all(is_key) => {
                (table, key) = (header, "")
            }
            Some(name) if is_key(name) => key = name,
            _ => {}
        }
    }
    let words: Vec<_> = [table, key].into_iter().filter(|word| !word.is_empty()).collect();
    words.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_line() {
        let text = "# a = 1\nversion = \"1\"\n\n[data] \nclasses = [\n  \"b = 1\",\n]\n[[changes]]\nclip = 1\n[a.b]\n";
        let keys: Vec<_> = (1..=10).map(|line| key_at(text, line)).collect();
        let list = "data.classes";
        assert_eq!(
            keys,
            ["", "version", "version", "data", list, list, list, "changes", "changes.clip", "a.b"]
        );
        assert_eq!(key_at("", 1), "");
    }
}
