//! [`SequenceTable`]: sequences in a long-format table. Each row is a time step, and the rows of a
//! sequence are in one block.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ndarray::Array2;

use crate::data::csv_table::{CsvOptions, CsvRow, CsvTable};
use crate::data::features::{Feature, Scale};
use crate::data::time_axis::{TimeAxis, TimeColumn};
use crate::ui::output::{log, quote, quote_path};

/// The advice in error messages about cells that cannot become model inputs.
pub struct CellAdvice {
    /// For a cell of a numeric column that is not a number.
    not_a_number: &'static str,
    /// For a missing value in a numeric column.
    missing_number: &'static str,
    /// For an empty cell in a categorical column.
    empty_category: &'static str,
}

impl CellAdvice {
    const TRAIN: Self = Self {
        not_a_number: "most cells of the column are numbers: fix this cell, pass its text to --missing to use \
                       the column's mean, or pass the column to --categorical if its cells are categories",
        missing_number: ", pass --missing NA to use the column's mean, or exclude the column with --features",
        empty_category: ", or exclude the column with --features",
    };

    /// For prediction, where the trained model fixes the columns.
    pub const PREDICT: Self = Self {
        not_a_number: "the model was trained on numbers in this column: fix this cell, or train again with \
                       --missing to use the column's mean for missing values",
        missing_number: ", or train again with --missing to use the column's mean",
        empty_category: "",
    };
}

/// Maximum number of categories in a categorical column.
const MAX_CATEGORIES: usize = 4096;

/// Maximum bytes of inputs if some columns are categorical. One-hot inputs are a poor encoding for
/// a column with many categories.
const MAX_INPUT_BYTES: usize = 1 << 30;

/// A CSV table whose rows are the time steps of sequences.
pub struct SequenceTable {
    /// The quoted path, for messages.
    pub shown: String,
    /// The file's name without its extension, which names the one sequence of a whole file.
    stem: String,
    pub csv: CsvTable,
    /// Index of the sequence column, which names the sequence of each row. `None` if all rows are
    /// one sequence.
    pub sequence: Option<usize>,
    /// Rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    advice: CellAdvice,
}

impl SequenceTable {
    /// Reads a file. `choose` returns the column that names the sequence of each row, or `None` if
    /// all rows are one sequence.
    pub fn read(
        path: &Path,
        options: CsvOptions,
        choose: impl FnOnce(&CsvTable) -> Result<Option<usize>>,
    ) -> Result<Self> {
        let shown = quote_path(path);
        let csv = CsvTable::read(path, options)?;
        let sequence = choose(&csv).with_context(|| shown.clone())?;
        let sequences = match sequence {
            Some(column) => sequences(&csv, column).with_context(|| shown.clone())?,
            None => std::iter::once(0..csv.rows().len()).collect(),
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let (stem, advice) = (stem.into_owned(), CellAdvice::TRAIN);
        Ok(Self { shown, stem, csv, sequence, sequences, advice })
    }

    /// Reads a file whose sequence column is known; see [`Self::sequence`].
    pub fn read_with(path: &Path, options: CsvOptions, sequence: Option<&str>) -> Result<Self> {
        Self::read(path, options, |csv| sequence.map(|name| csv.find(name)).transpose())
    }

    /// Sets the advice in errors about cells.
    pub fn with_advice(self, advice: CellAdvice) -> Self {
        Self { advice, ..self }
    }

    /// Returns the index of a column by name or number. Errors name the file.
    pub fn find(&self, name: &str) -> Result<usize> {
        self.csv.find(name).with_context(|| self.shown.clone())
    }

    /// Returns the indices of several columns, separated by commas. Errors name the file.
    pub fn find_all(&self, names: &str) -> Result<Vec<usize>> {
        self.csv.find_all(names).with_context(|| self.shown.clone())
    }

    /// Returns the label column and the feature columns. By default the label is the last column,
    /// and the features are all others except the sequence column and columns of time stamps.
    pub fn choose(
        &self,
        label: Option<&str>,
        features: Option<&str>,
    ) -> Result<(usize, Vec<usize>)> {
        let count = self.csv.names.len();
        let label = label.map_or(Ok(count - 1), |name| self.find(name))?;
        let features: Vec<_> = match features {
            Some(names) => self.find_all(names)?,
            None => {
                let others = (0..count).filter(|&c| Some(c) != self.sequence && c != label);
                let (times, others): (Vec<_>, Vec<_>) =
                    others.partition(|&column| TimeAxis::is_in(&self.csv, column));
                for column in times {
                    log(format_args!(
                        "{}: column {} has time stamps and is no input; --features makes it one",
                        self.shown,
                        quote(&self.csv.names[column])
                    ));
                }
                others
            }
        };
        let listed = || {
            format!(
                "{}: the file has the columns {}{}",
                self.shown,
                self.csv.column_list(),
                self.csv.delimiter_hint()
            )
        };
        ensure!(
            !features.is_empty(),
            "{}; expected {}feature columns and a label column",
            listed(),
            if self.sequence.is_some() { "a sequence column, " } else { "" }
        );
        ensure!(
            Some(label) != self.sequence,
            "{}; the label column cannot also be the sequence column",
            listed()
        );
        ensure!(
            !features.contains(&label),
            "{}; the label column cannot also be a feature",
            listed()
        );
        Ok((label, features))
    }

    /// Returns the columns with the time stamps of the rows, as `--time` takes them: those named
    /// `time`, or by default the first column of time stamps, with the times of day if it has days
    /// that repeat. `None` if there are none or `time` is `none`.
    pub fn time_columns(&self, time: Option<&str>) -> Result<Option<String>> {
        let columns = match time {
            Some("none") => return Ok(None),
            Some(names) => self.find_all(names)?,
            None => {
                let columns = 0..self.csv.names.len();
                let columns = columns.filter(|&column| Some(column) != self.sequence);
                let groups: Vec<_> =
                    self.sequences.iter().map(|rows| rows.clone().collect()).collect();
                let all = TimeColumn::all(&self.csv, columns, &groups);
                let Some(first) = all.first() else { return Ok(None) };
                first.columns().collect()
            }
        };
        let keys: Vec<_> = columns.iter().map(|&column| self.csv.column_key(column)).collect();
        Ok(Some(keys.join(",")))
    }

    /// Reads the time stamps of the rows from the columns that [`Self::time_columns`] returned.
    /// Returns `None` if they are times of day only. Logs what is odd about them. With `is_even`,
    /// many that repeat are refused.
    ///
    /// # Errors
    /// If the rows of a sequence are not in the order of time.
    pub fn time_axis(&self, columns: &str, is_even: bool) -> Result<Option<TimeAxis>> {
        let (columns, mut notes) = (self.find_all(columns)?, Vec::new());
        let axis =
            TimeAxis::of_sequences(&self.csv, &columns, &self.sequences, is_even, &mut notes);
        let axis = axis.with_context(|| self.shown.clone())?;
        notes.iter().for_each(|note| log(format_args!("{}: {note}", self.shown)));
        Ok(axis)
    }

    /// Returns the name of a sequence.
    pub fn name(&self, rows: &Range<usize>) -> &str {
        match self.sequence {
            Some(column) => self.csv.row(rows.start).cell(column),
            None => &self.stem,
        }
    }

    pub fn rows(&self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.csv.rows_in(rows.clone())
    }

    /// Describes how these columns become model inputs, based on the given sequences. A column is
    /// categorical if it is in `categorical` or if at most half of its cells are numbers.
    pub fn features(
        &self,
        columns: &[usize],
        categorical: &[usize],
        sequences: &[Range<usize>],
        scale: Scale,
    ) -> Result<Vec<Feature>> {
        let feature = |&column: &usize| {
            let rows = sequences.iter().flat_map(|sequence| self.rows(sequence));
            match categorical.contains(&column) || !self.csv.is_mostly_numeric(column) {
                true => self.categorical(column, rows),
                false => self.numeric(column, rows, scale),
            }
        };
        columns.iter().map(feature).collect::<Result<_>>().with_context(|| self.shown.clone())
    }

    fn numeric<'a>(
        &self,
        column: usize,
        rows: impl Iterator<Item = CsvRow<'a>>,
        scale: Scale,
    ) -> Result<Feature> {
        let values = rows.map(|row| self.value(row, column));
        let values: Vec<_> = values.filter_map(Result::transpose).collect::<Result<_>>()?;
        let name = quote(&self.csv.names[column]);
        ensure!(!values.is_empty(), "column {name} has no number in the training set");
        let (mean, deviation) = scale.of(&values);
        let column = self.csv.column_key(column);
        Ok(Feature::Numeric { column, mean, deviation })
    }

    fn categorical<'a>(
        &self,
        column: usize,
        rows: impl Iterator<Item = CsvRow<'a>>,
    ) -> Result<Feature> {
        let name = &self.csv.names[column];
        let mut words = BTreeSet::new();
        for row in rows {
            words.insert(self.category(row, column)?);
        }
        ensure!(
            words.len() <= MAX_CATEGORIES,
            "column {} has {} categories, more than {MAX_CATEGORIES}; exclude it with --features if it only \
             identifies rows",
            quote(name),
            words.len()
        );
        let words = words.into_iter().map(str::to_owned).collect();
        Ok(Feature::Categorical { column: self.csv.column_key(column), words })
    }

    /// Returns the number in a cell, or `None` if it is missing and missing values are allowed.
    fn value(&self, row: CsvRow<'_>, column: usize) -> Result<Option<f64>> {
        let value = self.csv.number(row, column, self.advice.not_a_number)?;
        ensure!(
            value.is_some() || self.csv.has_missing_option(),
            "{}{}",
            self.describe_empty(row, column),
            self.advice.missing_number
        );
        Ok(value)
    }

    fn category<'a>(&self, row: CsvRow<'a>, column: usize) -> Result<&'a str> {
        match row.cell(column) {
            "" => bail!("{}{}", self.describe_empty(row, column), self.advice.empty_category),
            word => Ok(word),
        }
    }

    fn describe_empty(&self, row: CsvRow<'_>, column: usize) -> String {
        let name = quote(&self.csv.names[column]);
        format!("line {}: the value in column {name} is missing; fill it in", row.line)
    }

    /// Encodes each sequence as model inputs `[T, I]`. Logs the number of unknown categories, which
    /// become all zeros, and of missing numbers.
    pub fn inputs(
        &self,
        features: &[Feature],
        sequences: &[Range<usize>],
    ) -> Result<Vec<Array2<f32>>> {
        let columns = features.iter().map(|feature| self.find(feature.column()));
        let columns: Vec<_> =
            columns.zip(features).map(|(c, f)| Ok((c?, f))).collect::<Result<_>>()?;
        let width = features.iter().map(Feature::inputs).sum();
        self.check_size(features, sequences.iter().map(Range::len).sum(), width)?;
        let mut unknown = UnknownCells::default();
        let encode = |sequence: &Range<usize>| {
            let mut x = Vec::with_capacity(sequence.len() * width);
            for row in self.rows(sequence) {
                for &(column, feature) in &columns {
                    self.encode(row, column, feature, &mut x, &mut unknown)?;
                }
            }
            Ok(Array2::from_shape_vec((sequence.len(), width), x).expect("one row per step"))
        };
        let inputs = sequences.iter().map(encode).collect::<Result<_>>();
        let inputs = inputs.with_context(|| self.shown.clone())?;
        if let Some(first) = unknown.first {
            let count = unknown.count;
            log(format_args!(
                "{}: cells with categories that training did not see: {count}, the first is {first}; they are encoded \
                 as all zeros",
                self.shown
            ));
        }
        if unknown.missing > 0 {
            log(format_args!(
                "{}: missing numbers, replaced by their column's mean: {}",
                self.shown, unknown.missing
            ));
        }
        Ok(inputs)
    }

    /// Checks that `rows` rows of `width` inputs stay below [`MAX_INPUT_BYTES`] if some columns are
    /// categorical.
    fn check_size(&self, features: &[Feature], rows: usize, width: usize) -> Result<()> {
        let categorical =
            features.iter().filter(|feature| matches!(feature, Feature::Categorical { .. }));
        let Some(largest) = categorical.max_by_key(|feature| feature.inputs()) else {
            return Ok(());
        };
        let bytes = rows.saturating_mul(width).saturating_mul(size_of::<f32>());
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        ensure!(
            bytes <= MAX_INPUT_BYTES,
            "{}: {rows} rows of {width} inputs would take {:.1} GiB, more than {} GiB; column {} takes {} of the inputs, \
             one per category; exclude it with --features, or use fewer rows",
            self.shown,
            gib(bytes),
            gib(MAX_INPUT_BYTES),
            quote(largest.column()),
            largest.inputs()
        );
        Ok(())
    }

    fn encode(
        &self,
        row: CsvRow<'_>,
        column: usize,
        feature: &Feature,
        x: &mut Vec<f32>,
        unknown: &mut UnknownCells,
    ) -> Result<()> {
        match feature {
            Feature::Numeric { mean, deviation, .. } => {
                let value = self.value(row, column)?;
                unknown.missing += usize::from(value.is_none());
                let scaled = value.map_or(0.0, |value| ((value - mean) / deviation) as f32);
                ensure!(
                    scaled.is_finite(),
                    "line {}: {} is too far from the training values of column {}",
                    row.line,
                    quote(row.cell(column)),
                    quote(&self.csv.names[column])
                );
                x.push(scaled);
            }
            Feature::Categorical { words, .. } => {
                let word = self.category(row, column)?;
                let first = x.len();
                x.resize(first + words.len(), 0.0);
                match words.binary_search_by(|known| known.as_str().cmp(word)) {
                    Ok(at) => x[first + at] = 1.0,
                    Err(_) => unknown.add(word, row.line),
                }
            }
        }
        Ok(())
    }
}

/// Counts cells without information: categories that training did not see, and missing numbers.
#[derive(Default)]
struct UnknownCells {
    missing: usize,
    count: usize,
    first: Option<String>,
}

impl UnknownCells {
    fn add(&mut self, word: &str, line: u64) {
        self.count += 1;
        self.first.get_or_insert_with(|| format!("{} in line {line}", quote(word)));
    }
}

/// Returns the rows of each sequence.
fn sequences(csv: &CsvTable, column: usize) -> Result<Vec<Range<usize>>> {
    let mut sequences: Vec<Range<usize>> = Vec::new();
    let mut seen = HashSet::new();
    let mut now = "";
    for (at, row) in csv.rows().enumerate() {
        let name = csv.name_cell(row, column, "sequence")?;
        match sequences.last_mut() {
            Some(last) if name == now => last.end = at + 1,
            _ => {
                ensure!(
                    seen.insert(name),
                    "line {}: sequence {} continues after another sequence; expected all its rows in one \
                     block",
                    row.line,
                    quote(name)
                );
                sequences.push(at..at + 1);
                now = name;
            }
        }
    }
    Ok(sequences)
}
