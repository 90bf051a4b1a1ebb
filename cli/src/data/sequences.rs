//! The training set and the validation set of a run, from one table or two.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use gru_wgpu::Example;
use serde::{Deserialize, Serialize};

use crate::data::csv_table::CsvOptions;
use crate::data::features::{Feature, LabelColumns, Task};
use crate::data::fingerprint::{canonical, check_fingerprint};
use crate::data::holdout::HoldOut;
use crate::data::numbers::{NumberFormat, point};
use crate::data::table::SequenceTable;

/// The files of the sequences, their CSV options, and the fraction to hold out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceSource {
    pub train: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Fraction of the sequences to hold out. `None` with a validation file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<f64>,
    /// The column with the time stamps by which the latest sequences are held out. `None` if they
    /// are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    pub delimiter: char,
    #[serde(default = "point")]
    pub decimal: char,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thousands: Option<char>,
    pub header: bool,
    /// Cells that stand for a missing value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Fingerprint of the files' bytes.
    pub fingerprint: String,
}

impl SequenceSource {
    /// Returns the CSV options for its files and for files to predict.
    pub fn options(&self) -> CsvOptions {
        CsvOptions::decided(self.delimiter, self.numbers(), self.header, self.missing.clone())
    }

    /// Returns the marks in numbers.
    pub fn numbers(&self) -> NumberFormat {
        NumberFormat { decimal: self.decimal, thousands: self.thousands }
    }

    /// Returns the paths of the files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.train), self.valid.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Sets the new paths of files that have moved.
    ///
    /// # Errors
    /// If `valid` is given but the run has no validation file, or if the bytes differ.
    pub fn set_paths(&mut self, train: Option<&Path>, valid: Option<&Path>) -> Result<()> {
        if let Some(path) = train {
            self.train = canonical(path)?;
        }
        match (valid, &mut self.valid) {
            (Some(path), Some(before)) => *before = canonical(path)?,
            (Some(_), None) => bail!(
                "the run holds out sequences of its training file and has no validation file; leave out --valid"
            ),
            (None, _) => {}
        }
        check_fingerprint([Some(&self.train), self.valid.as_deref()], &self.fingerprint)
    }
}

/// The tables, and the rows of each sequence in the training set and the validation set.
pub struct SequenceSplit {
    pub train: SequenceTable,
    pub train_sequences: Vec<Range<usize>>,
    /// The validation table. `None` if sequences of `train` are held out.
    valid: Option<SequenceTable>,
    valid_sequences: Vec<Range<usize>>,
}

impl SequenceSplit {
    /// Reads the files and splits them. `seed` draws the held-out sequences.
    pub fn read(
        source: &SequenceSource,
        task: Task,
        columns: &LabelColumns,
        seed: u64,
    ) -> Result<Self> {
        let train = SequenceTable::read(&source.train, source.options(), Some(&columns.sequence))?;
        Self::new(train, source, task, columns, seed)
    }

    /// Splits a table that is already in memory.
    pub fn new(
        train: SequenceTable,
        source: &SequenceSource,
        task: Task,
        columns: &LabelColumns,
        seed: u64,
    ) -> Result<Self> {
        if let Some(path) = &source.valid {
            let valid = SequenceTable::read(path, source.options(), Some(&columns.sequence))?;
            let (train_sequences, valid_sequences) =
                (train.sequences.clone(), valid.sequences.clone());
            return Ok(Self { train, train_sequences, valid: Some(valid), valid_sequences });
        }
        let fraction = source.holdout.unwrap_or_default();
        let holdout = HoldOut { fraction, seed };
        let axis = match &source.time {
            Some(column) => train.time_axis(Some(column))?,
            None => None,
        };
        let latest = axis.and_then(|(_, axis)| holdout.latest(&train, &axis));
        let (rest, held_out) = match (latest, task) {
            (Some(split), _) => split,
            (None, Task::Classify) => holdout.by_class(&train, columns)?,
            (None, Task::Label) => holdout.of_all(&train)?,
        };
        let of = |order: &[usize]| order.iter().map(|&at| train.sequences[at].clone()).collect();
        let (train_sequences, valid_sequences) = (of(&rest), of(&held_out));
        Ok(Self { train, train_sequences, valid: None, valid_sequences })
    }

    /// Converts the sequences to examples and drops the tables, whose text takes much more memory
    /// than the numbers.
    pub fn into_examples(
        self,
        task: Task,
        columns: &LabelColumns,
        features: &[Feature],
    ) -> Result<SequenceExamples> {
        let Self { train: table, train_sequences, valid, valid_sequences } = self;
        let train = examples(task, columns, features, &table, &train_sequences)?;
        let valid = valid.as_ref().unwrap_or(&table);
        let valid = examples(task, columns, features, valid, &valid_sequences)?;
        let names = train_sequences.iter().map(|rows| table.name(rows).to_owned()).collect();
        Ok(SequenceExamples { train, names, valid })
    }
}

/// The training set and the validation set.
pub struct SequenceExamples {
    pub train: Vec<Example>,
    /// Names of the training sequences.
    pub names: Vec<String>,
    pub valid: Vec<Example>,
}

fn examples(
    task: Task,
    columns: &LabelColumns,
    features: &[Feature],
    table: &SequenceTable,
    sequences: &[Range<usize>],
) -> Result<Vec<Example>> {
    let label = table.find(&columns.label)?;
    let inputs = table.inputs(features, sequences)?;
    let example =
        |(x, sequence)| Ok(Example::new(x, table.target(task, label, &columns.classes, sequence)?));
    inputs.into_iter().zip(sequences).map(example).collect()
}
