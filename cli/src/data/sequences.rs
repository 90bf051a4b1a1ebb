//! The training set and the validation set of a run, from one table or two.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use gru_wgpu::Example;
use serde::{Deserialize, Serialize};

use crate::data::example_set::ExampleSet;
use crate::data::features::{Feature, Per, SequenceTask, Task, WindowSettings};
use crate::data::fingerprint::{canonical, check_fingerprint};
use crate::data::holdout::HoldOut;
use crate::data::labels::LabelReader;
use crate::data::table::SequenceTable;
use crate::data::table_options::TableFormat;
use crate::ui::output::{log, quote};

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
    /// The columns with the time stamps of the rows, which are in order. The latest sequences are
    /// held out. `None` if there are none, or the held-out sequences are to be drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Fingerprint of the files' bytes.
    pub fingerprint: String,
    pub format: TableFormat,
}

impl SequenceSource {
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
    /// The rows at the start of a validation sequence that belong to the training set. The model
    /// reads them, but their labels do not count.
    warm_up: usize,
    /// True if the validation sequences are those that start last, in the order of time.
    is_latest: bool,
}

impl SequenceSplit {
    /// Reads the files and splits them. `seed` draws the held-out sequences.
    pub fn read(source: &SequenceSource, task: SequenceTask<'_>, seed: u64) -> Result<Self> {
        let sequence = task.columns.sequence.as_deref();
        let train = SequenceTable::read_with(&source.train, source.format.options(), sequence)?;
        Self::new(train, source, task, seed)
    }

    /// Splits a table that is already in memory.
    pub fn new(
        train: SequenceTable,
        source: &SequenceSource,
        task: SequenceTask<'_>,
        seed: u64,
    ) -> Result<Self> {
        let is_even = task.windows.is_some();
        let time_axis = |table: &SequenceTable| match &source.time {
            Some(columns) => table.time_axis(columns, is_even),
            None => Ok(None),
        };
        let axis = time_axis(&train)?;
        if let Some(path) = &source.valid {
            let sequence = task.columns.sequence.as_deref();
            let valid = SequenceTable::read_with(path, source.format.options(), sequence)?;
            time_axis(&valid)?;
            let (train_sequences, valid_sequences) =
                (train.sequences.clone(), valid.sequences.clone());
            let (valid, warm_up, is_latest) = (Some(valid), 0, false);
            return Ok(Self { train, train_sequences, valid, valid_sequences, warm_up, is_latest });
        }
        let fraction = source.holdout.unwrap_or_default();
        let holdout = HoldOut { fraction, seed };
        if let (Some(windows), [only]) = (task.windows, &train.sequences[..]) {
            ensure!(
                only.len() > 1,
                "{} has one row, so no rows can be held out; expected a row per time step",
                train.shown
            );
            let (rest, held_out, warm_up) = split_rows(only, &holdout, task.per, windows);
            let lines = [rest.end, only.end - 1].map(|row| train.csv.row(row).line);
            log(format_args!("{}: lines {} to {} are held out", train.shown, lines[0], lines[1]));
            let (train_sequences, valid_sequences) = (vec![rest], vec![held_out]);
            let (valid, is_latest) = (None, true);
            return Ok(Self { train, train_sequences, valid, valid_sequences, warm_up, is_latest });
        }
        let latest = axis.and_then(|axis| holdout.latest(&train, &axis));
        let is_latest = latest.is_some();
        if let (true, Some(columns)) = (is_latest, &source.time) {
            log(format_args!(
                "the sequences that start last, by column {}, are held out; --time none draws them",
                quote(columns)
            ));
        }
        let (rest, held_out) = match latest {
            Some(split) => split,
            None if task.task == Task::Classify && !task.has_several() => {
                holdout.by_class(&train, task)?
            }
            None => holdout.of_all(&train)?,
        };
        let of = |order: &[usize]| order.iter().map(|&at| train.sequences[at].clone()).collect();
        let (train_sequences, valid_sequences) = (of(&rest), of(&held_out));
        let (valid, warm_up) = (None, 0);
        Ok(Self { train, train_sequences, valid, valid_sequences, warm_up, is_latest })
    }

    /// Converts the sequences to examples and drops the tables, whose text takes much more memory
    /// than the numbers.
    pub fn into_examples(
        self,
        task: SequenceTask<'_>,
        features: &[Feature],
    ) -> Result<SequenceExamples> {
        let Self { train: table, train_sequences, valid, valid_sequences, warm_up, is_latest } =
            self;
        let train = examples(task, features, &table, &train_sequences, 0)?;
        let valid = valid.as_ref().unwrap_or(&table);
        let last_before = last_label(valid, task, &valid_sequences, warm_up)?;
        let valid = examples(task, features, valid, &valid_sequences, warm_up)?;
        let names = train_sequences.iter().map(|rows| table.name(rows).to_owned()).collect();
        let (train, valid) =
            (ExampleSet::new(train, task, false)?, ExampleSet::new(valid, task, true)?);
        Ok(SequenceExamples { train, names, valid, last_before, is_latest })
    }
}

/// Splits the only sequence of a table: its end is held out. Returns the rows of both parts, and
/// how many rows of the held-out part are a warm-up.
fn split_rows(
    rows: &Range<usize>,
    holdout: &HoldOut,
    per: Per,
    WindowSettings { window, .. }: WindowSettings,
) -> (Range<usize>, Range<usize>, usize) {
    let border = rows.end - holdout.rows(rows.len());
    let before = match per {
        Per::Row => window,
        // The first window that counts ends at the first row that is held out.
        Per::Sequence => window - 1,
    };
    let warm_up = before.min(border - rows.start);
    (rows.start..border, border - warm_up..rows.end, warm_up)
}

/// The training set and the validation set.
pub struct SequenceExamples {
    pub train: ExampleSet,
    /// Names of the training sequences.
    pub names: Vec<String>,
    pub valid: ExampleSet,
    /// The last label of the warm-up of the validation set, if it is a number.
    pub last_before: Option<f64>,
    /// True if the validation sequences are those that start last, in the order of time.
    pub is_latest: bool,
}

/// Returns the last label of the warm-up of the only validation sequence.
fn last_label(
    table: &SequenceTable,
    task: SequenceTask<'_>,
    sequences: &[Range<usize>],
    warm_up: usize,
) -> Result<Option<f64>> {
    let (Task::Regress, [only], true) = (task.task, sequences, warm_up > 0) else {
        return Ok(None);
    };
    let labels = LabelReader::new(table, task)?.labels(&(only.start..only.start + warm_up))?;
    Ok(labels.into_iter().flatten().next_back())
}

fn examples(
    task: SequenceTask<'_>,
    features: &[Feature],
    table: &SequenceTable,
    sequences: &[Range<usize>],
    warm_up: usize,
) -> Result<Vec<Example>> {
    let labels = LabelReader::new(table, task)?;
    let inputs = table.inputs(features, sequences)?;
    let example = |(x, sequence)| labels.example(x, sequence, warm_up);
    inputs.into_iter().zip(sequences).map(example).collect()
}
