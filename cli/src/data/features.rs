//! Describes how the columns of a table become labels and model inputs, and how its sequences are
//! cut into windows.

use std::ops::Range;

use clap::ValueEnum;
use gru_wgpu::{Readout, SequenceWindows};
use serde::{Deserialize, Serialize};

/// What the model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One class per sequence.
    Classify,
    /// One class per row.
    Label,
    /// A number per sequence or per row.
    Regress,
}

/// What has one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Each sequence. If sequences are cut into windows, each window: the label of its last row.
    Sequence,
    /// Each row.
    Row,
}

/// The sequence column and the label column: their names, or their numbers if the file has no
/// header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelColumns {
    /// `None` if the whole file is one sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<String>,
    pub label: String,
    /// The labels of classes, sorted. The model's outputs are in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// The labels that are numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numeric: Option<NumericLabel>,
}

/// Labels that are numbers. The model's output is (label − mean) / deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumericLabel {
    pub per: Per,
    pub mean: f64,
    pub deviation: f64,
}

impl NumericLabel {
    /// Returns the label of an output.
    pub fn label(&self, output: f32) -> f64 {
        self.mean + self.deviation * f64::from(output)
    }

    /// Returns the text of the label of an output, with six significant digits of the deviation.
    pub fn shown(&self, output: f32) -> String {
        let digits = 5 - self.deviation.log10().floor() as i32;
        let label = self.label(output);
        match digits {
            0..=17 => format!("{label:.*}", digits as usize),
            _ if digits < 0 => format!("{label:.0}"),
            _ => format!("{label:e}"),
        }
    }
}

/// The windows that sequences are cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSettings {
    /// Rows of a window.
    pub window: usize,
    /// Rows between the starts of two windows.
    pub stride: usize,
}

impl WindowSettings {
    /// Returns the rows of the windows that training cuts a sequence of `rows` rows into.
    pub fn cut(
        self,
        per: Per,
        rows: usize,
    ) -> gru_wgpu::Result<impl ExactSizeIterator<Item = Range<usize>>> {
        let readout = match per {
            Per::Sequence => Readout::LastState,
            Per::Row => Readout::EveryStep,
        };
        SequenceWindows::cut(rows, self.window, self.stride, readout)
    }
}

/// What is learned from a table of sequences.
#[derive(Clone, Copy, Debug)]
pub struct SequenceTask<'a> {
    pub task: Task,
    pub columns: &'a LabelColumns,
    /// What has one label.
    pub per: Per,
    pub windows: Option<WindowSettings>,
}

impl SequenceTask<'_> {
    /// Returns true if a sequence has several labels: one for each row or window. The label of each
    /// row is read, because a window may end there.
    pub fn has_several(&self) -> bool {
        self.per == Per::Row || self.windows.is_some()
    }

    /// Returns the word for what has one label.
    pub fn labelled(&self) -> &'static str {
        match (self.per, self.windows) {
            (Per::Row, _) => "row",
            (Per::Sequence, None) => "sequence",
            (Per::Sequence, Some(_)) => "window",
        }
    }

    /// Returns the windows if states are carried from window to window.
    pub fn carried(&self) -> Option<WindowSettings> {
        self.windows.filter(|_| self.per == Per::Row)
    }
}

/// How the numbers of inputs and labels are scaled for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// By the mean and the standard deviation of the training set.
    Standard,
    /// Not at all: mean 0, deviation 1.
    None,
}

impl Scale {
    /// Returns the mean and the deviation that numbers, at least one, are scaled by.
    pub fn of(self, values: &[f64]) -> (f64, f64) {
        match self {
            Self::Standard => mean_and_deviation(values),
            Self::None => (0.0, 1.0),
        }
    }
}

/// Returns the mean and the standard deviation of numbers, at least one. The deviation of equal
/// numbers (up to rounding) is 1.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    // Divide by the largest value, so that squares do not overflow.
    let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let unit = if largest > 0.0 { largest } else { 1.0 };
    let count = values.len() as f64;
    let mean = values.iter().map(|value| value / unit).sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value / unit - mean).powi(2)).sum();
    let deviation = unit * (squares / count).sqrt();
    (unit * mean, if deviation > 1e-12 * largest { deviation } else { 1.0 })
}

/// A column that the model reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
#[serde(expecting = "expected the keys column, mean and deviation, or the keys column and words")]
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

#[cfg(test)]
mod tests {
    use gru_wgpu::{Dataset, Example, Target};
    use ndarray::Array2;

    use super::*;

    #[test]
    fn windows_are_cut_as_those_of_training() {
        for (rows, window, stride) in [(17, 5, 2), (5, 5, 1), (3, 5, 2), (18, 5, 7), (6, 5, 5)] {
            let x = Array2::zeros((rows, 1));
            let sequence = vec![Example::new(x, Target::Classes(vec![0; rows]))];
            let check = |windows: SequenceWindows, per| {
                let expected: Vec<_> = (0..windows.len()).map(|at| windows.window(at).1).collect();
                let got: Vec<_> =
                    WindowSettings { window, stride }.cut(per, rows).unwrap().collect();
                assert_eq!(got, expected);
            };
            let last = SequenceWindows::last_step(sequence.clone(), window, stride);
            check(last.unwrap(), Per::Sequence);
            match SequenceWindows::every_step(sequence, window, stride) {
                Ok(windows) => check(windows, Per::Row),
                Err(_) => assert!(stride > window),
            }
        }
    }
}
