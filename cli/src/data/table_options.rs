//! [`TableArgs`]: the options that say how the text of a table is read.

use anyhow::{Context, Result, bail, ensure};

use crate::data::csv_table::CsvOptions;
use crate::data::numbers::{NumberFormat, THOUSANDS};
use crate::ui::arguments::yes_or_no;

/// How the text of a table is read.
#[derive(clap::Args, Clone, Debug)]
pub struct TableArgs {
    #[arg(long, value_parser = delimiter)]
    delimiter: Option<u8>,
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
        let Self { delimiter, decimal, thousands, header } = *self;
        ensure!(
            decimal.is_none() || decimal != thousands,
            "--decimal and --thousands name the same mark"
        );
        let missing = missing.into_iter().collect();
        Ok(CsvOptions { delimiter, decimal, thousands, header, missing })
    }
}

/// Checks that a table's characters in config.toml are valid on the command line.
pub fn check_marks(character: char, numbers: NumberFormat) -> Result<()> {
    let text = |character: char| character.to_string();
    delimiter(&text(character)).context("data.delimiter")?;
    decimal(&text(numbers.decimal)).context("data.decimal")?;
    if let Some(mark) = numbers.thousands {
        thousands(&text(mark)).context("data.thousands")?;
        ensure!(mark != numbers.decimal, "data.decimal and data.thousands are the same mark");
    }
    Ok(())
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
        "," | ";" | "|" | ":" | " " | "\t" => Ok(text.as_bytes()[0]),
        _ => bail!("expected one of , ; | : or a space, or `tab`"),
    }
}
