//! Describes how the columns of a table become labels and model inputs.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One class per sequence.
    Classify,
    /// One class per row.
    Label,
}

/// The sequence column and the label column: their names, or their numbers if the file has no
/// header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelColumns {
    pub sequence: String,
    pub label: String,
    /// The labels, sorted. The model's outputs are in this order.
    pub classes: Vec<String>,
}

/// A column that the model reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Feature {
    /// A numeric column. One input: (cell − mean) / deviation, or 0 for a missing number.
    Numeric { column: String, mean: f64, deviation: f64 },
    /// A categorical column, one-hot: one input per category, 1 for the cell's own and 0 for the
    /// others. The categories are sorted.
    Categorical { column: String, words: Vec<String> },
}

impl Feature {
    pub fn column(&self) -> &str {
        match self {
            Self::Numeric { column, .. } | Self::Categorical { column, .. } => column,
        }
    }

    /// Returns the number of model inputs of the column.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Numeric { .. } => 1,
            Self::Categorical { words, .. } => words.len(),
        }
    }
}
