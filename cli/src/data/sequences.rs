//! The sequences that a run trains on and validates on, from one table or two.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use gru_wgpu::Example;
use serde::{Deserialize, Serialize};

use crate::data::csv_table::CsvOptions;
use crate::data::features::{Feature, LabelColumns, Task};
use crate::data::fingerprint::{canonical, check_fingerprint};
use crate::data::holdout::HoldOut;
use crate::data::table::SequenceTable;

/// The files of the sequences, how they are read, and what is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceSource {
    pub train: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// The fraction of the sequences held out, where there is no other file to validate on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<f64>,
    pub delimiter: char,
    pub header: bool,
    /// Words that mean a missing number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Of the files' bytes.
    pub fingerprint: String,
}

impl SequenceSource {
    /// How its files are read, and those to be predicted.
    pub fn options(&self) -> CsvOptions {
        let Self { delimiter, header, missing, .. } = self;
        CsvOptions { delimiter: *delimiter as u8, missing: missing.clone(), header: Some(*header) }
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.train), self.valid.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }

    /// The same files where they are now.
    ///
    /// # Errors
    /// When there is no file to validate on, and when they are not the same byte for byte.
    pub fn moved(&mut self, train: Option<&Path>, valid: Option<&Path>) -> Result<()> {
        if let Some(path) = train {
            self.train = canonical(path)?;
        }
        match (valid, &mut self.valid) {
            (Some(path), Some(before)) => *before = canonical(path)?,
            (Some(_), None) => bail!("the run holds out a part of its file, and takes no --valid"),
            (None, _) => {}
        }
        check_fingerprint([Some(&self.train), self.valid.as_deref()], &self.fingerprint)
    }
}

/// The rows of the sequences to train on and to validate on.
pub struct SequenceSplit {
    pub train: SequenceTable,
    pub train_sequences: Vec<Range<usize>>,
    /// `None` where a part of the same table is held out.
    valid: Option<SequenceTable>,
    valid_sequences: Vec<Range<usize>>,
}

impl SequenceSplit {
    /// Reads the files and splits them. `seed` draws what is held out.
    pub fn read(
        source: &SequenceSource,
        task: Task,
        columns: &LabelColumns,
        seed: u64,
    ) -> Result<Self> {
        let train = SequenceTable::read(&source.train, source.options(), Some(&columns.sequence))?;
        Self::new(train, source, task, columns, seed)
    }

    /// Splits a table that is read already.
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
        let (rest, held_out) = match task {
            Task::Classify => holdout.by_class(&train, columns)?,
            Task::Label => holdout.of_all(&train)?,
        };
        let of = |order: &[usize]| order.iter().map(|&at| train.sequences[at].clone()).collect();
        let (train_sequences, valid_sequences) = (of(&rest), of(&held_out));
        Ok(Self { train, train_sequences, valid: None, valid_sequences })
    }

    /// The sequences as examples. The tables end here: every cell is text of its own, many times
    /// the numbers that it becomes.
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

/// The sequences to train on and to validate on.
pub struct SequenceExamples {
    pub train: Vec<Example>,
    /// The names of those to train on.
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
