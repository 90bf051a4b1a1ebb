//! [`TableArgs`]: the options that say how the text of a table is read.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::csv_table::{CsvOptions, CsvTable};
use crate::data::dialect::KNOWN;
use crate::data::numbers::{NumberFormat, THOUSANDS};
use crate::ui::arguments::yes_or_no;

/// How the text of a table is read.
#[derive(clap::Args, Clone, Debug)]
pub struct TableArgs {
    #[arg(long, value_parser = delimiter)]
    delimiter: Option<u8>,
    #[arg(long, value_parser = quote_mark)]
    quote: Option<char>,
    #[arg(long, value_parser = decimal)]
    decimal: Option<char>,
    #[arg(long, value_parser = thousands)]
    thousands: Option<char>,
    #[arg(long, value_parser = yes_or_no)]
    header: Option<bool>,
}

impl TableArgs {
    /// Returns the options, with these further words for a missing value.
    ///
    /// # Errors
    /// If one character has two meanings.
    pub fn options(&self, missing: impl IntoIterator<Item = String>) -> Result<CsvOptions> {
        let Self { delimiter, quote, decimal, thousands, header } = *self;
        ensure!(
            decimal.is_none() || decimal != thousands,
            "--decimal and --thousands name the same mark"
        );
        let missing = missing.into_iter().collect();
        Ok(CsvOptions { delimiter, quote, decimal, thousands, header, missing })
    }
}

/// How the text of a run's tables is read: what was given, or judged on the first of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableFormat {
    pub delimiter: char,
    /// `None` if it is judged on each table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<char>,
    pub decimal: char,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thousands: Option<char>,
    pub header: bool,
    /// Further words for a missing value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl TableFormat {
    /// Returns how a table was read.
    pub fn of(csv: &CsvTable) -> Self {
        let NumberFormat { decimal, thousands } = csv.numbers;
        Self {
            delimiter: char::from(csv.delimiter),
            quote: csv.quote_option(),
            decimal,
            thousands,
            header: csv.has_header,
            missing: csv.missing_words().to_vec(),
        }
    }

    /// Returns options that leave nothing to judge.
    pub fn options(&self) -> CsvOptions {
        CsvOptions {
            delimiter: Some(self.delimiter as u8),
            quote: self.quote,
            decimal: Some(self.decimal),
            thousands: self.thousands,
            header: Some(self.header),
            missing: self.missing.clone(),
        }
    }

    /// Checks that the characters in config.toml are valid on the command line.
    pub fn check(&self) -> Result<()> {
        let text = |character: char| character.to_string();
        delimiter(&text(self.delimiter)).context("data.format.delimiter")?;
        let quote = self.quote.map(|quote| quote_mark(&text(quote)));
        quote.transpose().context("data.format.quote")?;
        decimal(&text(self.decimal)).context("data.format.decimal")?;
        if let Some(mark) = self.thousands {
            thousands(&text(mark)).context("data.format.thousands")?;
            ensure!(
                mark != self.decimal,
                "data.format.thousands: expected another mark than data.format.decimal"
            );
        }
        Ok(())
    }
}

/// Parses the quote around cells.
fn quote_mark(text: &str) -> Result<char> {
    match text {
        "\"" => Ok('"'),
        "'" => Ok('\''),
        _ => bail!("expected \" or '"),
    }
}

/// Parses a decimal mark.
fn decimal(text: &str) -> Result<char> {
    match text {
        "." => Ok('.'),
        "," => Ok(','),
        _ => bail!("expected a point or a comma"),
    }
}

/// Parses the mark between groups of three digits.
fn thousands(text: &str) -> Result<char> {
    let mut characters = text.chars();
    match (text, characters.next(), characters.next()) {
        ("space", ..) => Ok(' '),
        (_, Some(mark), None) if THOUSANDS.contains(&mark) => Ok(mark),
        _ => bail!("expected a comma, a point, an apostrophe, or `space`"),
    }
}

/// Parses the delimiter of a CSV file.
fn delimiter(text: &str) -> Result<u8> {
    match text {
        "\\t" | "tab" => Ok(b'\t'),
        _ if text.len() == 1 && KNOWN.contains(&text.as_bytes()[0]) => Ok(text.as_bytes()[0]),
        _ => bail!("expected one of , ; | : or a space, or `tab`"),
    }
}
