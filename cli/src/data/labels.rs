//! [`LabelReader`]: reads the labels of sequences, which become the targets of training.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail, ensure};
use gru_wgpu::{Example, Target};
use ndarray::Array2;

use crate::data::csv_table::CsvRow;
use crate::data::features::{NumericLabel, Per, Scale, SequenceTask, Task, mean_and_deviation};
use crate::data::table::SequenceTable;
use crate::ui::output::{log, quote};

/// The class index that the loss and the accuracy ignore.
const NO_CLASS: i32 = -100;

/// The advice about a label that is not a number.
const NOT_A_NUMBER: &str = "--task regress learns labels that are numbers: fix this cell, leave it empty if the row has no \
                            label, or learn classes with --task classify or label";

/// Reads the labels of a table's sequences.
pub struct LabelReader<'a> {
    table: &'a SequenceTable,
    task: SequenceTask<'a>,
    /// Index of the label column.
    column: usize,
}

impl<'a> LabelReader<'a> {
    /// Finds the label column. Errors name the file.
    pub fn new(table: &'a SequenceTable, task: SequenceTask<'a>) -> Result<Self> {
        Ok(Self { table, task, column: table.find(&task.columns.label)? })
    }

    /// Returns the label cells of a sequence: one for the sequence, or one per row if each row's
    /// label is read. An empty cell is no label; a sequence has the label of those of its rows that
    /// have one.
    pub fn cells(&self, sequence: &Range<usize>) -> Result<Vec<&'a str>> {
        let rows = self.table.rows(sequence);
        if self.task.has_several() {
            return Ok(rows.map(|row| row.cell(self.column)).collect());
        }
        let (first, other) = labels_of(self.table, self.column, sequence, self.is_numeric());
        let Some(other) = other else {
            return Ok(vec![first.map_or("", |row| row.cell(self.column))]);
        };
        let (with, without) = match self.task.task {
            Task::Regress => ("--per sequence", "--per row"),
            _ => ("--task classify", "--task label"),
        };
        bail!(
            "{}: line {}: the label of sequence {} changes from {} to {}; {with} needs the same label in all rows of a \
             sequence, {without} takes one per row",
            self.table.shown,
            other.line,
            quote(self.table.name(sequence)),
            quote(first.map_or("", |row| row.cell(self.column))),
            quote(other.cell(self.column))
        )
    }

    fn is_numeric(&self) -> bool {
        self.task.task == Task::Regress
    }

    /// Returns the class of a sequence.
    pub fn class(&self, sequence: &Range<usize>) -> Result<usize> {
        let cell = self.cells(sequence)?[0];
        let row = self.table.csv.row(sequence.start);
        self.class_of(row, cell)?.with_context(|| self.describe_empty(row))
    }

    /// Returns the training example of a sequence with the inputs x `[T, I]`. The labels of its
    /// first `warm_up` rows do not count.
    pub fn example(
        &self,
        x: Array2<f32>,
        sequence: &Range<usize>,
        warm_up: usize,
    ) -> Result<Example> {
        let counts = |at: usize| at >= warm_up;
        let each_row = self.task.has_several();
        if let Some(numeric) = &self.task.columns.numeric {
            let numbers = self.labels(sequence)?;
            let scaled = |number: &Option<f64>| number.map_or(0.0, |n| numeric.output(n));
            let scaled: Vec<f32> = numbers.iter().map(scaled).collect();
            let row = self.table.csv.row(sequence.start);
            if let Some(at) = scaled.iter().position(|number| !number.is_finite()) {
                bail!(self.describe_too_far(self.table.csv.row(sequence.start + at)));
            }
            if !each_row {
                ensure!(numbers[0].is_some(), self.describe_empty(row));
                return Ok(Example::new(x, Target::Values(scaled)));
            }
            let mask = (0..).zip(&numbers).map(|(at, number)| counts(at) && number.is_some());
            let mask = mask.collect();
            let scaled = Array2::from_shape_vec((numbers.len(), 1), scaled);
            let target = Target::Series(scaled.expect("one number per row"));
            return Ok(Example::new(x, target).with_mask(Some(mask)));
        }
        if !each_row {
            return Ok(Example::new(x, Target::Class(self.class(sequence)? as i32)));
        }
        let (cells, rows) = (self.cells(sequence)?, self.table.rows(sequence));
        let class = |((at, &cell), row): ((usize, &&str), CsvRow<'_>)| {
            let class = self.class_of(row, cell)?.filter(|_| counts(at));
            Ok(class.map_or(NO_CLASS, |class| class as i32))
        };
        let classes = cells.iter().enumerate().zip(rows).map(class).collect::<Result<_>>()?;
        Ok(Example::new(x, Target::Classes(classes)))
    }

    /// Returns the class of a cell, `None` if it is empty.
    fn class_of(&self, row: CsvRow<'_>, cell: &str) -> Result<Option<usize>> {
        if cell.is_empty() {
            return Ok(None);
        }
        let found = self.task.columns.classes.binary_search_by(|class| class.as_str().cmp(cell));
        let unknown = |_| {
            anyhow!(
                "{}: line {}: label {} does not occur in the training data",
                self.table.shown,
                row.line,
                quote(cell)
            )
        };
        found.map(Some).map_err(unknown)
    }

    /// Returns the number of a row's label, `None` if the row has none.
    fn number(&self, row: CsvRow<'_>) -> Result<Option<f64>> {
        let number = self.table.csv.number(row, self.column, NOT_A_NUMBER);
        number.with_context(|| self.table.shown.clone())
    }

    /// Returns the labels of a sequence that are numbers: one for the sequence, or one per row, as
    /// [`Self::cells`] does.
    pub fn labels(&self, sequence: &Range<usize>) -> Result<Vec<Option<f64>>> {
        if self.task.has_several() {
            return self.table.rows(sequence).map(|row| self.number(row)).collect();
        }
        self.cells(sequence)?; // refuses several labels
        let (first, _) = labels_of(self.table, self.column, sequence, true);
        Ok(vec![first.map(|row| self.number(row)).transpose()?.flatten()])
    }

    /// Returns the scale of the labels of the training set.
    pub fn numeric(&self, sequences: &[Range<usize>], scale: Scale) -> Result<NumericLabel> {
        let labels = sequences.iter().map(|sequence| self.labels(sequence));
        let labels = labels.collect::<Result<Vec<_>>>()?;
        let numbers: Vec<_> = labels.into_iter().flatten().flatten().collect();
        let (shown, column) = (&self.table.shown, quote(&self.task.columns.label));
        let first = numbers.first().with_context(|| {
            format!("{shown}: the label column {column} has no number in the training set")
        })?;
        ensure!(
            numbers.iter().any(|number| number != first),
            "{shown}: every label of the training set in column {column} is {first}; expected at least two different \
             labels"
        );
        let (mean, _) = mean_and_deviation(&numbers);
        let largest = numbers.iter().fold(0.0, |largest: f64, number| largest.max(number.abs()));
        let spread = numbers.iter().map(|number| (number - mean).abs()).fold(0.0, f64::max);
        // An f64 has sixteen digits.
        ensure!(
            spread > 1e-10 * largest,
            "{shown}: the labels of the training set in column {column} differ from their mean, {mean}, by at most \
             {spread:e}, less than their precision; subtract their mean first"
        );
        let (mean, deviation) = scale.of(&numbers);
        Ok(NumericLabel { per: self.task.per, mean, deviation })
    }

    fn describe_empty(&self, row: CsvRow<'_>) -> String {
        format!("{}: line {}: the label is empty", self.table.shown, row.line)
    }

    fn describe_too_far(&self, row: CsvRow<'_>) -> String {
        format!(
            "{}: line {}: the label {} is too far from those of the training set",
            self.table.shown,
            row.line,
            quote(row.cell(self.column))
        )
    }
}

impl NumericLabel {
    /// Returns the model's output for a label.
    fn output(&self, label: f64) -> f32 {
        ((label - self.mean) / self.deviation) as f32
    }
}

/// Returns the first row of a sequence that has a label, and the first with another one. With
/// `is_numeric`, 1 and 1.0 are the same label.
fn labels_of<'a>(
    table: &'a SequenceTable,
    label: usize,
    sequence: &Range<usize>,
    is_numeric: bool,
) -> (Option<CsvRow<'a>>, Option<CsvRow<'a>>) {
    let mut labelled = table.rows(sequence).filter(|row| match is_numeric {
        true => !table.csv.is_missing(row.cell(label)),
        false => !row.cell(label).is_empty(),
    });
    let Some(first) = labelled.next() else { return (None, None) };
    let number = |row: CsvRow<'_>| table.csv.numbers.parse(row.cell(label));
    let is_same = |row: &CsvRow<'_>| {
        row.cell(label) == first.cell(label)
            || is_numeric && number(*row).is_some_and(|value| number(first) == Some(value))
    };
    (Some(first), labelled.find(|row| !is_same(row)))
}

/// Returns `Per::Row` if the label, a number, changes inside a sequence.
pub fn judge_per(table: &SequenceTable, label: usize) -> Per {
    let changes = |sequence: &Range<usize>| labels_of(table, label, sequence, true).1.is_some();
    if table.sequences.iter().any(changes) { Per::Row } else { Per::Sequence }
}

/// Returns the different labels, sorted. Words such as `none`, which mean a missing value in other
/// columns, are valid labels. An empty cell is no label.
pub fn classes(table: &SequenceTable, label: usize) -> Result<Vec<String>> {
    let words: BTreeSet<_> = table.csv.rows().map(|row| row.cell(label)).collect();
    let classes: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let column = quote(&table.csv.names[label]);
    match classes[..] {
        [] => bail!("{}: the label column {column} is empty", table.shown),
        [one] => bail!(
            "{}: every label in column {column} is {}; expected at least two different labels",
            table.shown,
            quote(one)
        ),
        _ => {}
    }
    for class in classes.iter().filter(|class| table.csv.is_missing(class)) {
        let class = quote(class);
        log(format_args!(
            "{class} in column {column} is used as a class; leave a cell empty if it has no label"
        ));
    }
    Ok(classes.into_iter().map(str::to_owned).collect())
}

/// Refuses labels that look like numbers to predict rather than classes.
pub fn check_classes(table: &SequenceTable, label: usize, classes: &[String]) -> Result<()> {
    const MAX_NUMERIC_CLASSES: usize = 20;
    let is_fraction = |class: &&String| {
        let value = table.csv.numbers.parse(class);
        value.is_some_and(|value| value.is_finite() && value.fract() != 0.0)
    };
    let (fractions, all) = (classes.iter().filter(is_fraction).count(), classes.len());
    ensure!(
        all <= MAX_NUMERIC_CLASSES || 10 * fractions < 9 * all,
        "{}: the label column {column} has {all} different labels, {fractions} of them numbers with a fraction; learn \
         numbers with --task regress (`gru forecast` forecasts a series), or pass --categorical {column} to use each label as a class",
        table.shown,
        column = quote(&table.csv.names[label])
    );
    Ok(())
}
