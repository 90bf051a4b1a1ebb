//! Sequences in long tables: a row a step, the rows of a sequence together.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use gru_wgpu::Target;
use ndarray::Array2;

use crate::data::csv_table::{CsvOptions, CsvRow, CsvTable};
use crate::data::features::{Feature, Task};
use crate::ui::output::{log, quote, quote_path};

/// What to do about a cell that the model cannot be shown.
pub struct CellAdvice {
    /// One that is no number.
    stray: &'static str,
    /// An empty one among numbers, and one among words.
    missing: &'static str,
    empty: &'static str,
}

impl CellAdvice {
    const TRAIN: Self = Self {
        stray: "most cells of the column are numbers: mend this one, name it with --missing to have the \
                column's mean there, or the column with --categorical where its cells are words",
        missing: ", say --missing NA to have the column's mean there, or leave the column out by --features",
        empty: ", or leave the column out by --features",
    };

    /// Where the model is there, and takes what it was trained on.
    pub const PREDICT: Self = Self {
        stray: "the model was trained on numbers there: mend this one, or train with --missing to have the \
                column's mean where a number is missing",
        missing: ", or train with --missing to have the column's mean there",
        empty: "",
    };
}

/// Words that a column of words may have.
const MOST_WORDS: usize = 4096;

/// Bytes that inputs with columns of words among them may take: an input a word of every row is not
/// what a column of many words is best shown by.
const MOST_BYTES: usize = 1 << 30;

/// What the loss and the accuracy leave out.
const NO_CLASS: i32 = -100;

pub struct SequenceTable {
    /// The file, for messages.
    pub shown: String,
    pub csv: CsvTable,
    /// The column that names the sequences.
    pub sequence: usize,
    /// The rows of each.
    pub sequences: Vec<Range<usize>>,
    pub advice: CellAdvice,
}

impl SequenceTable {
    /// Reads a file, whose column `sequence` (the first where it is `None`) says what belongs
    /// together.
    pub fn read(path: &Path, options: CsvOptions, sequence: Option<&str>) -> Result<Self> {
        let shown = quote_path(path);
        let csv = CsvTable::read(path, options)?;
        let found = sequence.map_or(Ok(0), |name| csv.find(name));
        let sequence = found.with_context(|| shown.clone())?;
        let sequences = sequences(&csv, sequence).with_context(|| shown.clone())?;
        Ok(Self { shown, csv, sequence, sequences, advice: CellAdvice::TRAIN })
    }

    /// A column by name or number; an error names the file.
    pub fn find(&self, name: &str) -> Result<usize> {
        self.csv.find(name).with_context(|| self.shown.clone())
    }

    /// The same of several, between commas.
    pub fn find_all(&self, names: &str) -> Result<Vec<usize>> {
        self.csv.find_all(names).with_context(|| self.shown.clone())
    }

    /// Which columns are features and which one is the label, each `None` where the defaults are
    /// meant: the last is the label, what is left the features.
    pub fn choose(
        &self,
        label: Option<&str>,
        features: Option<&str>,
    ) -> Result<(usize, Vec<usize>)> {
        let count = self.csv.names.len();
        let label = label.map_or(Ok(count - 1), |name| self.find(name))?;
        let features: Vec<_> = match features {
            Some(names) => self.find_all(names)?,
            None => (0..count).filter(|&c| c != self.sequence && c != label).collect(),
        };
        let listed =
            || format!("{}: the file has {}{}", self.shown, self.csv.listed(), self.csv.hint());
        ensure!(
            !features.is_empty(),
            "{}; expected a sequence's name, features and a label",
            listed()
        );
        ensure!(label != self.sequence, "{}; the label cannot be the sequence's name", listed());
        ensure!(!features.contains(&label), "{}; the label cannot be a feature, too", listed());
        Ok((label, features))
    }

    /// What a sequence is called.
    pub fn name(&self, rows: &Range<usize>) -> &str {
        self.csv.row(rows.start).cell(self.sequence)
    }

    fn rows(&self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.csv.rows_in(rows.clone())
    }

    /// How to show the model these columns, judged by some of the sequences. Those named in
    /// `categorical`, and those most of whose cells are no numbers, hold words.
    pub fn features(
        &self,
        columns: &[usize],
        categorical: &[usize],
        sequences: &[Range<usize>],
    ) -> Result<Vec<Feature>> {
        let feature = |&column: &usize| {
            let rows = sequences.iter().flat_map(|sequence| self.rows(sequence));
            match categorical.contains(&column) || !self.csv.is_mostly_numeric(column) {
                true => self.words(column, rows),
                false => self.number(column, rows),
            }
        };
        columns.iter().map(feature).collect::<Result<_>>().with_context(|| self.shown.clone())
    }

    fn number<'a>(&self, column: usize, rows: impl Iterator<Item = CsvRow<'a>>) -> Result<Feature> {
        let values = rows.map(|row| self.value(row, column));
        let values: Vec<_> = values.filter_map(Result::transpose).collect::<Result<_>>()?;
        let name = quote(&self.csv.names[column]);
        ensure!(!values.is_empty(), "column {name} holds no number in the training set");
        // As shares of the largest, so that squares do not overflow.
        let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        let unit = if largest > 0.0 { largest } else { 1.0 };
        let count = values.len() as f64;
        let mean = values.iter().map(|value| value / unit).sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value / unit - mean).powi(2)).sum();
        let deviation = unit * (squares / count).sqrt();
        // What is the same everywhere but for rounding says nothing, and is left at its size.
        let deviation = if deviation > 1e-12 * largest { deviation } else { 1.0 };
        let column = self.csv.reference(column);
        Ok(Feature::Number { column, mean: unit * mean, deviation })
    }

    fn words<'a>(&self, column: usize, rows: impl Iterator<Item = CsvRow<'a>>) -> Result<Feature> {
        let name = &self.csv.names[column];
        let mut words = BTreeSet::new();
        for row in rows {
            words.insert(self.word(row, column)?);
        }
        ensure!(
            words.len() <= MOST_WORDS,
            "column {} holds {} words, more than {MOST_WORDS}; leave it out by --features where it only \
             names its rows",
            quote(name),
            words.len()
        );
        let words = words.into_iter().map(str::to_owned).collect();
        Ok(Feature::Words { column: self.csv.reference(column), words })
    }

    /// `None` where it is missing, and may be.
    fn value(&self, row: CsvRow<'_>, column: usize) -> Result<Option<f64>> {
        let value = self.csv.number(row, column, self.advice.stray)?;
        ensure!(
            value.is_some() || self.csv.names_missing(),
            "{}{}",
            self.empty(row, column),
            self.advice.missing
        );
        Ok(value)
    }

    fn word<'a>(&self, row: CsvRow<'a>, column: usize) -> Result<&'a str> {
        match row.cell(column) {
            "" => bail!("{}{}", self.empty(row, column), self.advice.empty),
            word => Ok(word),
        }
    }

    fn empty(&self, row: CsvRow<'_>, column: usize) -> String {
        let name = quote(&self.csv.names[column]);
        format!("line {}: there is no value in column {name}; fill it in", row.line)
    }

    /// What the model sees of each sequence: `[T, I]`. Words that are not known are all zeros,
    /// which is said.
    pub fn inputs(
        &self,
        features: &[Feature],
        sequences: &[Range<usize>],
    ) -> Result<Vec<Array2<f32>>> {
        let columns = features.iter().map(|feature| self.find(feature.column()));
        let columns: Vec<_> =
            columns.zip(features).map(|(c, f)| Ok((c?, f))).collect::<Result<_>>()?;
        let width = features.iter().map(Feature::inputs).sum();
        self.check_room(features, sequences.iter().map(Range::len).sum(), width)?;
        let mut unknown = UnknownCells::default();
        let encode = |sequence: &Range<usize>| {
            let mut x = Vec::with_capacity(sequence.len() * width);
            for row in self.rows(sequence) {
                for &(column, feature) in &columns {
                    self.encode(row, column, feature, &mut x, &mut unknown)?;
                }
            }
            Ok(Array2::from_shape_vec((sequence.len(), width), x).expect("a row a step"))
        };
        let inputs = sequences.iter().map(encode).collect::<Result<_>>();
        let inputs = inputs.with_context(|| self.shown.clone())?;
        if let Some(first) = unknown.first {
            let count = unknown.count;
            log(format_args!(
                "{}: cells with words that training did not see: {count}, the first is {first}; the model \
                 sees none of its words there",
                self.shown
            ));
        }
        if unknown.missing > 0 {
            log(format_args!(
                "{}: cells without a number, which take their column's mean: {}",
                self.shown, unknown.missing
            ));
        }
        Ok(inputs)
    }

    /// `Ok` when so many rows of inputs, `width` each, take no more memory than words are worth.
    fn check_room(&self, features: &[Feature], rows: usize, width: usize) -> Result<()> {
        let words = features.iter().filter(|feature| matches!(feature, Feature::Words { .. }));
        let Some(most) = words.max_by_key(|feature| feature.inputs()) else { return Ok(()) };
        let bytes = rows.saturating_mul(width).saturating_mul(size_of::<f32>());
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        ensure!(
            bytes <= MOST_BYTES,
            "{}: {rows} rows of {width} inputs would take {:.1} GiB, more than {} GiB; column {} has {} of the inputs, \
             one for each of its words: leave it out by --features, or take fewer rows",
            self.shown,
            gib(bytes),
            gib(MOST_BYTES),
            quote(most.column()),
            most.inputs()
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
            Feature::Number { mean, deviation, .. } => {
                let value = self.value(row, column)?;
                unknown.missing += usize::from(value.is_none());
                let scaled = value.map_or(0.0, |value| ((value - mean) / deviation) as f32);
                ensure!(
                    scaled.is_finite(),
                    "line {}: {} is too far from what training saw in column {}",
                    row.line,
                    quote(row.cell(column)),
                    quote(&self.csv.names[column])
                );
                x.push(scaled);
            }
            Feature::Words { words, .. } => {
                let word = self.word(row, column)?;
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

    /// The words of the labels, sorted. What means "no value" elsewhere is a word here: whoever
    /// asks what a row is may well be told `none`. An empty cell is no label.
    pub fn classes(&self, label: usize) -> Result<Vec<String>> {
        let words: BTreeSet<_> = self.csv.rows().map(|row| row.cell(label)).collect();
        let classes: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let column = quote(&self.csv.names[label]);
        match classes[..] {
            [] => bail!("{}: the label's column {column} is empty", self.shown),
            [one] => bail!(
                "{}: every label in column {column} is {}; there is nothing to tell apart",
                self.shown,
                quote(one)
            ),
            _ => {}
        }
        for class in classes.iter().filter(|class| self.csv.is_missing(class)) {
            let class = quote(class);
            log(format_args!(
                "{class} in column {column} is a class like any other; an empty cell is no label"
            ));
        }
        Ok(classes.into_iter().map(str::to_owned).collect())
    }

    /// `Ok` unless the labels look like numbers to be forecast.
    pub fn check_classes(&self, label: usize, classes: &[String]) -> Result<()> {
        const FEW: usize = 20;
        let is_fraction = |class: &&String| {
            class.parse::<f64>().is_ok_and(|value| value.is_finite() && value.fract() != 0.0)
        };
        let (fractions, all) = (classes.iter().filter(is_fraction).count(), classes.len());
        ensure!(
            all <= FEW || 10 * fractions < 9 * all,
            "{}: the label's column {column} holds {all} different labels, {fractions} of them numbers with a \
             fraction; this learns classes, and `gru forecast` learns numbers of a series (--categorical \
             {column} takes each as a class all the same)",
            self.shown,
            column = quote(&self.csv.names[label])
        );
        Ok(())
    }

    /// The labels of a sequence: one, or one a row, `\"\"` where there is none.
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
                        "{}: line {}: the label of sequence {} changes from {} to {}; with --task classify \
                         it is the same in all rows of a sequence (--task label takes one a row)",
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

    /// The same as the model's targets.
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
                    "{}: line {}: training saw no label {}",
                    self.shown,
                    row.line,
                    quote(word)
                ),
            })
        });
        match task {
            Task::Classify => targets.next().expect("one label a sequence").map(Target::Class),
            Task::Label => targets.collect::<Result<_>>().map(Target::Classes),
        }
    }
}

/// Cells that say nothing: words that were not seen in training, and numbers that are missing.
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

/// The rows of each sequence.
fn sequences(csv: &CsvTable, column: usize) -> Result<Vec<Range<usize>>> {
    let mut sequences: Vec<Range<usize>> = Vec::new();
    let mut seen = HashSet::new();
    let mut now = "";
    for (at, row) in csv.rows().enumerate() {
        let name = row.cell(column);
        ensure!(
            !name.is_empty(),
            "line {}: the row names no sequence in column {}",
            row.line,
            quote(&csv.names[column])
        );
        match sequences.last_mut() {
            Some(last) if name == now => last.end = at + 1,
            _ => {
                ensure!(
                    seen.insert(name),
                    "line {}: sequence {} goes on after another one; the rows of a sequence are to stand \
                     together",
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
