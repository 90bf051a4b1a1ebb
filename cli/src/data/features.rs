//! What a model learns from a table of sequences: its labels, its features, and how cells become
//! numbers.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One class a sequence.
    Classify,
    /// A class a row.
    Label,
}

/// The columns of the sequences' names and of the labels: by their names, or by their numbers where
/// the file has no names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelColumns {
    pub sequence: String,
    pub label: String,
    /// The labels' words, sorted. The model's outputs are in this order.
    pub classes: Vec<String>,
}

/// A column that the model sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Feature {
    /// One input: (cell - mean) / deviation, 0 where the number is missing.
    Number { column: String, mean: f64, deviation: f64 },
    /// An input a word, 1 where the cell is it and 0 elsewhere. Sorted.
    Words { column: String, words: Vec<String> },
}

impl Feature {
    pub fn column(&self) -> &str {
        match self {
            Self::Number { column, .. } | Self::Words { column, .. } => column,
        }
    }

    /// How many inputs it is.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Number { .. } => 1,
            Self::Words { words, .. } => words.len(),
        }
    }
}
