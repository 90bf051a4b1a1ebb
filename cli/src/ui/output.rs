//! Output of the commands: messages, quoted text, aligned tables.

use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Formats an error after its contexts. An error of the library names its own causes, so they are
/// not repeated.
pub fn causes(error: &anyhow::Error) -> String {
    let mut messages = Vec::new();
    for cause in error.chain() {
        messages.push(cause.to_string());
        if cause.is::<gru_wgpu::Error>() {
            break;
        }
    }
    messages.join(": ")
}

/// Returns a function that puts a file's name before an error of reading it. The library names the
/// file itself where the format is wrong, but not where a size in it is.
pub fn of_file(path: &Path) -> impl FnOnce(gru_wgpu::Error) -> anyhow::Error {
    use gru_wgpu::Error::{Choice, Format, Io};
    move |error| match error {
        Choice { .. } | Format { .. } | Io { .. } => error.into(),
        other => anyhow::Error::new(other).context(quote_path(path)),
    }
}

/// Prints a line on stderr. A closed stderr does not stop the program.
pub fn log(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a line on stderr that starts with `warning: `.
pub fn warn(line: fmt::Arguments<'_>) {
    log(format_args!("warning: {line}"));
}

/// Quotes a text from a file or the command line for a message: on one line, escaped, and not too
/// long.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut escaped = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            // These are harmless, and `\` is in every path on Windows.
            '\'' | '"' | '\\' => escaped.push(c),
            c => escaped.extend(c.escape_debug()),
        }
    }
    let rest = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("`{escaped}{rest}`")
}

/// Quotes a path for a message.
pub fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// Quotes a path for a shell. A path that begins with a hyphen, which would be read as an option,
/// begins with `./`.
pub fn shell_word(path: &Path) -> String {
    let path = path.to_string_lossy();
    let word = if path.starts_with('-') { format!("./{path}").into() } else { path };
    let is_plain = |c: char| c.is_alphanumeric() || "/\\._-+=:,@%".contains(c);
    match word.chars().all(|c| is_plain(c) && (c != '\\' || cfg!(windows))) {
        true => word.into_owned(),
        false if cfg!(windows) => format!("\"{word}\""),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Returns the first few of these words, and the number of the others.
pub fn some_of(words: impl ExactSizeIterator<Item = String>) -> String {
    const MOST: usize = 8;
    let more = words.len().saturating_sub(MOST);
    let mut shown: Vec<_> = words.take(MOST).collect();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown.join(", ")
}

/// Rows of text in aligned columns: the first column to the left, the others to the right.
pub struct TextTable {
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// An empty table with this header.
    pub fn new(header: Vec<String>) -> Self {
        Self { rows: vec![header] }
    }

    /// Adds a row of as many cells as the header has.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "a row of another width than the header");
        self.rows.push(cells);
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|r| r[column].chars().count()).max();
        let widths: Vec<_> = (0..self.rows[0].len()).map(|c| width(c).unwrap_or(0)).collect();
        for (i, row) in self.rows.iter().enumerate() {
            write!(f, "  {:<width$}", row[0], width = widths[0])?;
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
            if i == 0 {
                let total = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
                writeln!(f, "  {}", "─".repeat(total))?;
            }
        }
        Ok(())
    }
}

/// Checks that files can be created in `directory`.
pub fn check_directory(directory: &Path) -> Result<()> {
    let shown = quote_path(directory);
    ensure!(directory.exists(), "the output directory {shown} does not exist");
    ensure!(directory.is_dir(), "the output directory {shown} is not a directory");
    tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("cannot write to the directory {shown}"))?;
    Ok(())
}

/// Checks that a file with the extension `kind` can be written at `path`, whether or not it exists.
pub fn check_output(path: &Path, kind: &str) -> Result<()> {
    let shown = quote_path(path);
    let is_kind = path.extension().is_some_and(|end| end.eq_ignore_ascii_case(kind));
    ensure!(is_kind, "{shown} must have the extension .{kind}");
    let there = std::fs::symlink_metadata(path).is_ok();
    ensure!(!there || path.is_file(), "{shown} is not a regular file");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    check_directory(directory.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn paths_can_be_pasted() {
        for (path, expected) in [
            ("runs/a-1.5", "runs/a-1.5"),
            ("läufe", "läufe"),
            ("my run", "'my run'"),
            ("it's", r"'it'\''s'"),
            (r"a\b", r"'a\b'"),
            ("$(x)", "'$(x)'"),
            ("-r", "./-r"),
            ("-- my run", "'./-- my run'"),
        ] {
            assert_eq!(shell_word(Path::new(path)), expected);
        }
    }

    #[test]
    fn quoted_text_is_one_short_line() {
        assert_eq!(quote("it's \\ \"é\""), "`it's \\ \"é\"`");
        assert_eq!(quote("a\n\u{1b}[31mb"), "`a\\n\\u{1b}[31mb`");
        assert_eq!(quote(&"ä".repeat(1000)), format!("`{}…`", "ä".repeat(120)));
    }
}
