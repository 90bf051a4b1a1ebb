//! [`SequenceTable`]: sequences in a long-format table. Each row is a time step, and the rows of a
//! sequence are in one block.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use gru_wgpu::Target;
use ndarray::Array2;

use crate::data::csv_table::{CsvOptions, CsvRow, CsvTable};
use crate::data::features::{Feature, Task};
use crate::data::time_axis::TimeAxis;
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

/// The class index that the loss and the accuracy ignore.
const NO_CLASS: i32 = -100;

/// A CSV table whose rows are the time steps of sequences.
pub struct SequenceTable {
    /// The quoted path, for messages.
    pub shown: String,
    pub csv: CsvTable,
    /// Index of the sequence column, which names the sequence of each row.
    pub sequence: usize,
    /// Rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    pub advice: CellAdvice,
}

impl SequenceTable {
    /// Reads a file. The column `sequence`, by default the first, names the sequence of each row.
    pub fn read(path: &Path, options: CsvOptions, sequence: Option<&str>) -> Result<Self> {
        let shown = quote_path(path);
        let csv = CsvTable::read(path, options)?;
        let found = sequence.map_or(Ok(0), |name| csv.find(name));
        let sequence = found.with_context(|| shown.clone())?;
        let sequences = sequences(&csv, sequence).with_context(|| shown.clone())?;
        Ok(Self { shown, csv, sequence, sequences, advice: CellAdvice::TRAIN })
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
                let others = (0..count).filter(|&c| c != self.sequence && c != label);
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
            "{}; expected a sequence column, feature columns and a label column",
            listed()
        );
        ensure!(
            label != self.sequence,
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

    /// Returns the column with the time stamps of the rows: the one named `time`, or by default the
    /// first column of time stamps; `None` if there is none or `time` is `none`.
    ///
    /// # Errors
    /// If the rows of a sequence are not in the order of time.
    pub fn time_axis(&self, time: Option<&str>) -> Result<Option<(usize, TimeAxis)>> {
        let column = match time {
            Some("none") => None,
            Some(name) => Some(self.find(name)?),
            None => {
                let mut all = (0..self.csv.names.len()).filter(|&column| column != self.sequence);
                all.find(|&column| TimeAxis::is_in(&self.csv, column))
            }
        };
        let Some(column) = column else { return Ok(None) };
        let axis = TimeAxis::of_sequences(&self.csv, column, &self.sequences);
        let axis = axis.with_context(|| self.shown.clone())?;
        Ok(axis.map(|axis| (column, axis)))
    }

    /// Returns the name of a sequence.
    pub fn name(&self, rows: &Range<usize>) -> &str {
        self.csv.row(rows.start).cell(self.sequence)
    }

    fn rows(&self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.csv.rows_in(rows.clone())
    }

    /// Describes how these columns become model inputs, based on the given sequences. A column is
    /// categorical if it is in `categorical` or if at most half of its cells are numbers.
    pub fn features(
        &self,
        columns: &[usize],
        categorical: &[usize],
        sequences: &[Range<usize>],
    ) -> Result<Vec<Feature>> {
        let feature = |&column: &usize| {
            let rows = sequences.iter().flat_map(|sequence| self.rows(sequence));
            match categorical.contains(&column) || !self.csv.is_mostly_numeric(column) {
                true => self.categorical(column, rows),
                false => self.numeric(column, rows),
            }
        };
        columns.iter().map(feature).collect::<Result<_>>().with_context(|| self.shown.clone())
    }

    fn numeric<'a>(
        &self,
        column: usize,
        rows: impl Iterator<Item = CsvRow<'a>>,
    ) -> Result<Feature> {
        let values = rows.map(|row| self.value(row, column));
        let values: Vec<_> = values.filter_map(Result::transpose).collect::<Result<_>>()?;
        let name = quote(&self.csv.names[column]);
        ensure!(!values.is_empty(), "column {name} has no number in the training set");
        // Divide by the largest value, so that squares do not overflow.
        let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        let unit = if largest > 0.0 { largest } else { 1.0 };
        let count = values.len() as f64;
        let mean = values.iter().map(|value| value / unit).sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value / unit - mean).powi(2)).sum();
        let deviation = unit * (squares / count).sqrt();
        // A constant column (up to rounding) is not scaled.
        let deviation = if deviation > 1e-12 * largest { deviation } else { 1.0 };
        let column = self.csv.column_key(column);
        Ok(Feature::Numeric { column, mean: unit * mean, deviation })
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

    /// Returns the different labels, sorted. Words such as `none`, which mean a missing value in
    /// other columns, are valid labels. An empty cell is no label.
    pub fn classes(&self, label: usize) -> Result<Vec<String>> {
        let words: BTreeSet<_> = self.csv.rows().map(|row| row.cell(label)).collect();
        let classes: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let column = quote(&self.csv.names[label]);
        match classes[..] {
            [] => bail!("{}: the label column {column} is empty", self.shown),
            [one] => bail!(
                "{}: every label in column {column} is {}; expected at least two different labels",
                self.shown,
                quote(one)
            ),
            _ => {}
        }
        for class in classes.iter().filter(|class| self.csv.is_missing(class)) {
            let class = quote(class);
            log(format_args!(
                "{class} in column {column} is used as a class; leave a cell empty if it has no label"
            ));
        }
        Ok(classes.into_iter().map(str::to_owned).collect())
    }

    /// Refuses labels that look like numbers to predict rather than classes.
    pub fn check_classes(&self, label: usize, classes: &[String]) -> Result<()> {
        const MAX_NUMERIC_CLASSES: usize = 20;
        let is_fraction = |class: &&String| {
            let value = self.csv.numbers.parse(class);
            value.is_some_and(|value| value.is_finite() && value.fract() != 0.0)
        };
        let (fractions, all) = (classes.iter().filter(is_fraction).count(), classes.len());
        ensure!(
            all <= MAX_NUMERIC_CLASSES || 10 * fractions < 9 * all,
            "{}: the label column {column} has {all} different labels, {fractions} of them numbers with a \
             fraction; `gru train` learns classes, `gru forecast` predicts numbers of a series (pass \
             --categorical {column} to use each label as a class)",
            self.shown,
            column = quote(&self.csv.names[label])
        );
        Ok(())
    }

    /// Returns the labels of a sequence: one for the sequence, or one per row, with `\"\"` for no
    /// label.
    pub fn labels(&self, task: Task, label: usize, sequence: &Range<usize>) -> Result<Vec<&str>> {
        let rows = self.rows(sequence);
        match task {
            Task::Label => Ok(rows.map(|row| row.cell(label)).collect()),
            Task::Classify => {
                let first = self.csv.row(sequence.start).cell(label);
                let other = rows.clone().find(|row| row.cell(label) != first);
                match other {
                    None => Ok(vec![first]),
                    Some(other) => bail!(
                        "{}: line {}: the label of sequence {} changes from {} to {}; --task classify needs \
                         the same label in all rows of a sequence, --task label takes one per row",
                        self.shown,
                        other.line,
                        quote(self.name(sequence)),
                        quote(first),
                        quote(other.cell(label))
                    ),
                }
            }
        }
    }

    /// Returns the labels of a sequence as a training target.
    pub fn target(
        &self,
        task: Task,
        label: usize,
        classes: &[String],
        sequence: &Range<usize>,
    ) -> Result<Target> {
        let labels = self.labels(task, label, sequence)?;
        let mut targets = labels.iter().zip(self.rows(sequence)).map(|(&word, row)| {
            if word.is_empty() && task == Task::Label {
                return Ok(NO_CLASS);
            }
            let found = classes.binary_search_by(|class| class.as_str().cmp(word));
            found.map(|class| class as i32).map_err(|_| match word {
                "" => anyhow!("{}: line {}: the label is empty", self.shown, row.line),
                _ => anyhow!(
                    "{}: line {}: label {} does not occur in the training data",
                    self.shown,
                    row.line,
                    quote(word)
                ),
            })
        });
        match task {
            Task::Classify => targets.next().expect("one label per sequence").map(Target::Class),
            Task::Label => targets.collect::<Result<_>>().map(Target::Classes),
        }
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
