//! Argument types and parsers that several commands share.

use std::num::IntErrorKind;

use anyhow::{Result, bail};
use clap::ValueEnum;
use gru_wgpu::formats::WeightLayout;
use gru_wgpu::{Direction, GruConfig, Reset};
use ndarray::NdFloat;

/// Where the reset gate acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetArg {
    After,
    Before,
}

impl ResetArg {
    /// Returns a GRU of these sizes: PyTorch's definition, or this library's default.
    pub fn config(self, input: usize, hidden: usize) -> GruConfig {
        match self {
            Self::After => GruConfig::pytorch(input, hidden),
            Self::Before => GruConfig::new(input, hidden).with_reset(Reset::Before),
        }
    }
}

impl From<ResetArg> for Reset {
    fn from(word: ResetArg) -> Self {
        match word {
            ResetArg::After => Self::After,
            ResetArg::Before => Self::Before,
        }
    }
}

/// The framework whose names and axes the arrays of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    Pytorch,
    Keras,
    Flax,
    Mlx,
    Onnx,
}

impl From<LayoutArg> for WeightLayout {
    fn from(word: LayoutArg) -> Self {
        match word {
            LayoutArg::Pytorch => Self::Pytorch,
            LayoutArg::Keras => Self::Keras,
            LayoutArg::Flax => Self::Flax,
            LayoutArg::Mlx => Self::Mlx,
            LayoutArg::Onnx => Self::Onnx,
        }
    }
}

/// The direction in which a sequence is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectionArg {
    Forward,
    Reverse,
    Both,
}

impl From<DirectionArg> for Direction {
    fn from(word: DirectionArg) -> Self {
        match word {
            DirectionArg::Forward => Self::Forward,
            DirectionArg::Reverse => Self::Reverse,
            DirectionArg::Both => Self::Both,
        }
    }
}

/// Parses a size or a count.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(size) if size > 0 => Ok(size),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
            Err(format!("`{text}` is too large"))
        }
        _ => Err(format!("expected a whole number of at least 1, got `{text}`")),
    }
}

/// Parses a finite number above 0.
pub fn positive<F: NdFloat + std::str::FromStr>(text: &str) -> Result<F> {
    match text.parse::<F>() {
        Ok(value) if value.is_finite() && value > F::zero() => Ok(value),
        _ => bail!("expected a finite number above 0"),
    }
}

/// Parses a finite number.
pub fn finite(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => bail!("expected a finite number"),
    }
}

/// Parses a fraction above 0 and below 1.
pub fn fraction(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => bail!("expected a number between 0 and 1"),
    }
}

/// Parses a fraction from 0 to below 1.
pub fn fraction_or_zero<F: NdFloat + std::str::FromStr>(text: &str) -> Result<F> {
    match text.parse::<F>() {
        Ok(value) if (F::zero()..F::one()).contains(&value) => Ok(value),
        _ => bail!("expected a number of at least 0 and below 1"),
    }
}

/// Parses a finite number that is not negative.
pub fn at_least_zero(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => bail!("expected a finite number of at least 0"),
    }
}

/// Parses `yes` or `no`.
pub fn yes_or_no(text: &str) -> Result<bool> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => bail!("expected yes or no"),
    }
}
