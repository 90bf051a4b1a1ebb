//! Words and numbers of the command line that several commands take.

use std::num::IntErrorKind;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use gru_wgpu::{Direction, GruConfig, Reset};
use ndarray::NdFloat;

/// Where the reset gate acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetWord {
    After,
    Before,
}

impl ResetWord {
    /// A GRU of these sizes: PyTorch's definition, or this project's own.
    pub fn config(self, input: usize, hidden: usize) -> GruConfig {
        match self {
            Self::After => GruConfig::pytorch(input, hidden),
            Self::Before => GruConfig::new(input, hidden).with_reset(Reset::Before),
        }
    }
}

/// Which way a sequence is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectionWord {
    Forward,
    Reverse,
    Both,
}

impl From<DirectionWord> for Direction {
    fn from(word: DirectionWord) -> Self {
        match word {
            DirectionWord::Forward => Self::Forward,
            DirectionWord::Reverse => Self::Reverse,
            DirectionWord::Both => Self::Both,
        }
    }
}

/// A size or a number of times.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(size) if size > 0 => Ok(size),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
            Err(format!("`{text}` is too large a number"))
        }
        _ => Err(format!("`{text}` is no whole number of at least 1")),
    }
}

pub fn positive<F: NdFloat + std::str::FromStr>(text: &str) -> Result<F> {
    match text.parse::<F>() {
        Ok(value) if value.is_finite() && value > F::zero() => Ok(value),
        _ => bail!("expected a finite number above 0"),
    }
}

/// A share that leaves something.
pub fn share(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => bail!("expected a number between 0 and 1"),
    }
}

/// The same, or nothing.
pub fn share_or_zero<F: NdFloat + std::str::FromStr>(text: &str) -> Result<F> {
    match text.parse::<F>() {
        Ok(value) if (F::zero()..F::one()).contains(&value) => Ok(value),
        _ => bail!("expected a number of at least 0 and below 1"),
    }
}

pub fn at_least_zero(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => bail!("expected a finite number of at least 0"),
    }
}

pub fn yes_or_no(text: &str) -> Result<bool> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => bail!("expected yes or no"),
    }
}

/// `Ok` when a configuration's delimiter is one that the command line takes.
pub fn check_delimiter(noted: char) -> Result<()> {
    delimiter(noted.encode_utf8(&mut [0; 4])).context("data.delimiter").map(drop)
}

/// What stands between the cells of a CSV file.
pub fn delimiter(text: &str) -> Result<u8> {
    match text {
        "\\t" | "tab" => Ok(b'\t'),
        "," | ";" | "|" | ":" | " " | "\t" => Ok(text.as_bytes()[0]),
        _ => bail!("expected one of , ; | : or a space, or `tab`"),
    }
}
