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
    /// The validation table. `None` if sequences of `train` are held out.
    valid: Option<SequenceTable>,
    pub rows: SplitRows,
}

/// The rows of each sequence in the training set and the validation set.
pub struct SplitRows {
    pub train: Vec<Range<usize>>,
    valid: Vec<Range<usize>>,
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
            let [of_train, of_valid] = [&train, &valid].map(|table| table.sequences.clone());
            let rows = SplitRows { train: of_train, valid: of_valid, warm_up: 0, is_latest: false };
            return Ok(Self { train, valid: Some(valid), rows });
        }
        let holdout = HoldOut { fraction: source.holdout.unwrap_or_default(), seed };
        let rows = match (task.windows, &train.sequences[..]) {
            (Some(windows), [only]) => SplitRows::end(only, &train, &holdout, task.per, windows)?,
            _ => {
                let latest = axis.and_then(|axis| holdout.latest(&train, &axis));
                if let (Some(_), Some(columns)) = (&latest, &source.time) {
                    log(format_args!(
                        "the sequences that start last, by column {}, are held out; --time none draws them",
                        quote(columns)
                    ));
                }
                SplitRows::sequences(&train, &holdout, task, latest)?
            }
        };
        Ok(Self { train, valid: None, rows })
    }

    /// Converts the sequences to examples and drops the tables, whose text takes much more memory
    /// than the numbers.
    pub fn into_examples(
        self,
        task: SequenceTask<'_>,
        features: &[Feature],
    ) -> Result<SequenceExamples> {
        let Self { train: table, valid, rows } = self;
        let SplitRows { warm_up, is_latest, .. } = rows;
        let train = examples(task, features, &table, &rows.train, 0)?;
        let valid = valid.as_ref().unwrap_or(&table);
        let last_before = last_label(valid, task, &rows.valid, warm_up)?;
        let valid = examples(task, features, valid, &rows.valid, warm_up)?;
        let names = rows.train.iter().map(|rows| table.name(rows).to_owned()).collect();
        let (train, valid) =
            (ExampleSet::new(train, task, false)?, ExampleSet::new(valid, task, true)?);
        Ok(SequenceExamples { train, names, valid, last_before, is_latest })
    }
}

impl SplitRows {
    /// Splits `only`, the only sequence of a table: its end is held out.
    fn end(
        only: &Range<usize>,
        table: &SequenceTable,
        holdout: &HoldOut,
        per: Per,
        WindowSettings { window, .. }: WindowSettings,
    ) -> Result<Self> {
        ensure!(
            only.len() > 1,
            "{} has one row, so no rows can be held out; expected a row per time step",
            table.shown
        );
        let border = only.end - holdout.count(only.len());
        let lines = [border, only.end - 1].map(|row| table.csv.row(row).line);
        log(format_args!("{}: lines {} to {} are held out", table.shown, lines[0], lines[1]));
        let before = match per {
            Per::Row => window,
            // The first window that counts ends at the first row that is held out.
            Per::Sequence => window - 1,
        };
        let warm_up = before.min(border - only.start);
        let (rest, held_out) = (only.start..border, border - warm_up..only.end);
        Ok(Self { train: vec![rest], valid: vec![held_out], warm_up, is_latest: true })
    }

    /// Holds out whole sequences: those of `latest`, or else drawn ones.
    fn sequences(
        table: &SequenceTable,
        holdout: &HoldOut,
        task: SequenceTask<'_>,
        latest: Option<(Vec<usize>, Vec<usize>)>,
    ) -> Result<Self> {
        let is_latest = latest.is_some();
        let (rest, held_out) = match latest {
            Some(split) => split,
            None if task.task == Task::Classify && !task.has_several() => {
                holdout.by_class(table, task)?
            }
            None => holdout.of_all(table)?,
        };
        let of = |order: &[usize]| order.iter().map(|&at| table.sequences[at].clone()).collect();
        Ok(Self { train: of(&rest), valid: of(&held_out), warm_up: 0, is_latest })
    }
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
