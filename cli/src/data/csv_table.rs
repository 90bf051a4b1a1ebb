//! CSV files as a table of text, with the line of each row.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chrono::NaiveDate;

use crate::ui::output::{log, quote, quote_path};

/// Cells that mean "no value", whatever their case.
const MISSING: [&str; 5] = ["", "na", "n/a", "null", "none"];

/// Values beyond this are refused: their differences, and the pictures' margins, would overflow.
const LARGEST: f64 = 1e300;

/// How to read a CSV file.
#[derive(Clone)]
pub struct CsvOptions {
    /// The character between cells.
    pub delimiter: u8,
    /// More cells that mean "no value".
    pub missing: Vec<String>,
    /// Whether the first row names the columns. `None` decides by its looks.
    pub header: Option<bool>,
}

impl CsvOptions {
    fn is_missing(&self, cell: &str) -> bool {
        MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word))
            || self.missing.iter().any(|word| cell == word)
    }
}

/// A CSV file, its cells as text.
pub struct CsvTable {
    options: CsvOptions,
    pub names: Vec<String>,
    /// Whether the file names its columns. They are numbered otherwise.
    pub has_header: bool,
    cells: CellTexts,
}

/// The cells of a file without the white space around them, in one buffer: a file has millions of
/// cells, and a `String` for each takes several times their text.
#[derive(Default)]
struct CellTexts {
    /// Cells of each row.
    columns: usize,
    text: String,
    /// Where each cell ends in `text`, row by row. It starts where the one before it ends.
    ends: Vec<usize>,
    /// The line of each row.
    lines: Vec<u64>,
    /// Rows before the first one with values: 1 with a header.
    header_rows: usize,
}

/// A row of a [`CsvTable`].
#[derive(Clone, Copy)]
pub struct CsvRow<'a> {
    /// The line that the row starts on.
    pub line: u64,
    cells: &'a CellTexts,
    /// The number of its first cell.
    first: usize,
}

impl<'a> CsvRow<'a> {
    /// A cell without the white space around it.
    pub fn cell(&self, column: usize) -> &'a str {
        debug_assert!(column < self.cells.columns, "a cell of another row");
        let cell = self.first + column;
        let start = cell.checked_sub(1).map_or(0, |before| self.cells.ends[before]);
        &self.cells.text[start..self.cells.ends[cell]]
    }

    fn cells(self) -> impl Iterator<Item = &'a str> {
        (0..self.cells.columns).map(move |column| self.cell(column))
    }
}

impl CellTexts {
    /// Of a text in which at least one row has several cells, or quotes.
    fn parse(text: &str, delimiter: u8) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .from_reader(text.as_bytes());
        let (mut counted, mut line) = (0, 1);
        let mut cells = Self { text: String::with_capacity(text.len()), ..Self::default() };
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record)? {
            // The reader's own count stops before empty lines; a row starts after them.
            let start = record.position().map_or(0, |position| position.byte() as usize);
            let start =
                text[start..].find(|c| c != '\n' && c != '\r').map_or(start, |at| start + at);
            line += text[counted..start].matches('\n').count() as u64;
            counted = start;
            cells.push(line, record.iter());
        }
        Ok(cells)
    }

    /// Of a text that is one column: an empty line is a missing value, which a CSV reader would
    /// skip.
    fn parse_column(text: &str) -> Self {
        let mut cells = Self::default();
        for (line, cell) in (1..).zip(text.trim_end().lines()) {
            cells.push(line, [cell].into_iter());
        }
        cells
    }

    /// Adds a row. All rows have the same number of cells.
    fn push<'a>(&mut self, line: u64, row: impl Iterator<Item = &'a str>) {
        for cell in row {
            self.text.push_str(cell.trim());
            self.ends.push(self.text.len());
        }
        self.lines.push(line);
        self.columns = self.ends.len() / self.lines.len();
    }

    /// The number of rows with values.
    fn len(&self) -> usize {
        self.lines.len() - self.header_rows
    }

    /// A row with values, from 0.
    fn row(&self, index: usize) -> CsvRow<'_> {
        let row = self.header_rows + index;
        CsvRow { line: self.lines[row], cells: self, first: row * self.columns }
    }

    fn rows(&self, rows: Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        rows.map(|index| self.row(index))
    }
}

impl CsvTable {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be opened, is not UTF-8 text, has rows of different lengths, or no row of
    /// values.
    pub fn read(path: &Path, options: CsvOptions) -> Result<Self> {
        let shown = quote_path(path);
        let bytes = std::fs::read(path).with_context(|| format!("cannot open {shown}"))?;
        let text = std::str::from_utf8(&bytes)
            .with_context(|| format!("cannot read {shown}: it is not UTF-8 text"))?;
        let text = text.trim_start_matches('\u{feff}');
        let mut cells = match text.contains([char::from(options.delimiter), '"']) {
            true => CellTexts::parse(text, options.delimiter)
                .with_context(|| format!("cannot read {shown}"))?,
            false => CellTexts::parse_column(text),
        };
        ensure!(cells.len() > 0, "{shown} is empty; expected a CSV file");
        let has_header = options.header.unwrap_or_else(|| {
            let (has_header, is_sure) = has_header(&cells, &options);
            if !is_sure {
                let (taken, other) = if has_header { ("names", "no") } else { ("values", "yes") };
                log(format_args!(
                    "{shown}: the first row is taken for {taken}; --header {other} says otherwise"
                ));
            }
            has_header
        });
        let names = match has_header {
            true => cells.row(0).cells().map(str::to_owned).collect(),
            false => (1..=cells.columns).map(|i| i.to_string()).collect(),
        };
        cells.header_rows = usize::from(has_header);
        ensure!(cells.len() > 0, "{shown} has a header and no rows");
        Ok(Self { options, names, has_header, cells })
    }

    /// A row, from 0.
    pub fn row(&self, index: usize) -> CsvRow<'_> {
        self.cells.row(index)
    }

    /// All rows, at least one.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.rows_in(0..self.cells.len())
    }

    /// Some of the rows.
    pub fn rows_in(&self, rows: Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.cells.rows(rows)
    }

    /// A column by its name, or by its number from 1, as `3` or `#3`.
    pub fn find(&self, name: &str) -> Result<usize> {
        let columns = 0..self.names.len();
        let named: Vec<_> = columns.filter(|&column| self.names[column] == name).collect();
        match named[..] {
            [column] => Ok(column),
            [] => match name.strip_prefix('#').unwrap_or(name).parse::<usize>() {
                Ok(number) if (1..=self.names.len()).contains(&number) => Ok(number - 1),
                _ => bail!("no column is named {}; the file has {}", quote(name), self.listed()),
            },
            _ => bail!(
                "{} columns are named {}; say which by its number: {}",
                named.len(),
                quote(name),
                named.iter().map(|c| format!("#{}", c + 1)).collect::<Vec<_>>().join(" or ")
            ),
        }
    }

    /// What [`Self::find`] finds a column by: its name, or where several have that name its number.
    pub fn reference(&self, column: usize) -> String {
        let name = &self.names[column];
        let number = column + 1;
        let is_found = |word: &String| self.find(word).is_ok_and(|found| found == column);
        // Other columns may have such names.
        let words = [name.clone(), format!("#{number}"), number.to_string()];
        words.into_iter().find(is_found).unwrap_or_else(|| name.clone())
    }

    /// The columns that `words` names: a single one, whose name may have commas in it, or several.
    pub fn find_all(&self, words: &str) -> Result<Vec<usize>> {
        if self.names.iter().any(|name| name == words) || !words.contains(',') {
            return Ok(vec![self.find(words)?]);
        }
        let mut columns = Vec::new();
        for word in words.split(',').map(str::trim) {
            let column = self.find(word)?;
            ensure!(!columns.contains(&column), "column {} is named twice", quote(word));
            columns.push(column);
        }
        Ok(columns)
    }

    /// The names of its columns, for a message.
    pub fn listed(&self) -> String {
        self.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
    }

    /// Where there is but one column: what may be wrong.
    pub fn hint(&self) -> &'static str {
        match &self.names[..] {
            [name] if name.contains([';', '\t', '|']) => "; is another --delimiter meant?",
            _ => "",
        }
    }

    pub fn is_missing(&self, cell: &str) -> bool {
        self.options.is_missing(cell)
    }

    /// Whether the first cell of a column that is not missing is a number.
    pub fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows().map(|row| row.cell(column));
        let first = cells.find(|cell| !self.is_missing(cell));
        first.is_some_and(|cell| cell.parse::<f64>().is_ok())
    }

    /// Whether more than half of a column's cells that are not missing are numbers.
    pub fn is_mostly_numeric(&self, column: usize) -> bool {
        let cells = self.rows().map(|row| row.cell(column));
        let (mut numbers, mut all) = (0, 0);
        for cell in cells.filter(|cell| !self.is_missing(cell)) {
            all += 1;
            numbers += usize::from(cell.parse::<f64>().is_ok());
        }
        2 * numbers > all
    }

    /// Whether more words that mean "no value" were given.
    pub fn names_missing(&self) -> bool {
        !self.options.missing.is_empty()
    }

    /// The number in a row's column, `None` where it is missing. `advice` says what may be done
    /// about a word.
    pub fn number(&self, row: CsvRow<'_>, column: usize, advice: &str) -> Result<Option<f64>> {
        let cell = row.cell(column);
        if self.is_missing(cell) {
            return Ok(None);
        }
        match cell.parse::<f64>() {
            Ok(value) if value.abs() <= LARGEST => Ok(Some(value)),
            Ok(value) if value.is_finite() => {
                bail!(
                    "line {}: {} in column {} is larger than {LARGEST:e}",
                    row.line,
                    quote(cell),
                    quote(&self.names[column])
                )
            }
            _ => bail!(
                "line {}: {} in column {} is not a finite number ({advice})",
                row.line,
                quote(cell),
                quote(&self.names[column])
            ),
        }
    }

    /// A column of dates, `None` unless every cell is one.
    pub fn dates(&self, column: usize) -> Option<Vec<NaiveDate>> {
        self.rows().map(|row| date(row.cell(column))).collect()
    }
}

/// What a column says of whether its first cell is a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeaderHint {
    /// Nothing: no word stands there.
    None,
    /// It is a word that comes again below.
    Again,
    /// It is a word, and what is below are others that do not come again either.
    Alone,
    /// It is a word that does not come again, and those below do.
    AboveRepeated,
    /// It is a word above numbers or dates.
    AboveNumbers,
}

impl HeaderHint {
    fn of(cells: &CellTexts, column: usize, options: &CsvOptions) -> Self {
        let is_value = |cell: &str| cell.parse::<f64>().is_ok() || date(cell).is_some();
        let first = cells.row(0).cell(column);
        if options.is_missing(first) || is_value(first) {
            return Self::None;
        }
        let below = cells.rows(1..cells.len()).map(|row| row.cell(column));
        let mut below = below.filter(|cell| !options.is_missing(cell));
        let Some(next) = below.next() else { return Self::Alone };
        let (mut words, mut count) = (HashSet::from([next]), 1);
        for cell in below {
            words.insert(cell);
            count += 1;
        }
        match () {
            () if words.contains(first) => Self::Again,
            () if is_value(next) => Self::AboveNumbers,
            () if 2 * words.len() <= count => Self::AboveRepeated,
            () => Self::Alone,
        }
    }
}

/// Whether the first row names the columns, and whether that is sure. It does where it holds a word
/// above numbers or dates, words alone, or words none of which comes again in their columns, one of
/// them above words that do.
fn has_header(cells: &CellTexts, options: &CsvOptions) -> (bool, bool) {
    let columns: Vec<_> =
        (0..cells.columns).map(|column| HeaderHint::of(cells, column, options)).collect();
    let any = |looks| columns.contains(&looks);
    match () {
        () if any(HeaderHint::AboveNumbers) => (true, !any(HeaderHint::Again)),
        // A name may be one of its column's words by chance.
        () if !any(HeaderHint::None) && any(HeaderHint::Again) => {
            (any(HeaderHint::AboveRepeated), false)
        }
        () if !any(HeaderHint::None) => (true, true),
        () if any(HeaderHint::Again) => (false, !any(HeaderHint::AboveRepeated)),
        () if any(HeaderHint::AboveRepeated) => (true, false),
        () => (false, !counts_up(cells.row(0))),
    }
}

/// Whether a row's cells after the first count up as programs call columns without names.
fn counts_up(row: CsvRow<'_>) -> bool {
    let cells = row.cells().skip(1);
    let numbers: Option<Vec<u32>> = cells.map(|cell| cell.parse().ok()).collect();
    numbers.is_some_and(|numbers| {
        let is_next = |pair: &[u32]| pair[0].checked_add(1) == Some(pair[1]);
        numbers.len() > 1 && numbers[0] <= 2 && numbers.windows(2).all(is_next)
    })
}

/// A name without what a terminal or an SVG file could not hold.
pub fn printable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c })
        .collect()
}

/// A date as YYYY-MM-DD, YYYY/MM/DD or YYYYMMDD, anything after a `T` or a space left out.
fn date(cell: &str) -> Option<NaiveDate> {
    let day = cell.split(['T', ' ']).next()?;
    ["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"]
        .iter()
        .filter(|format| day.len() == if **format == "%Y%m%d" { 8 } else { 10 })
        .find_map(|format| NaiveDate::parse_from_str(day, format).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_by_their_looks() {
        for (text, expected) in [
            ("id,level,class\na,1,up\na,2,up\nb,3,up", (true, true)),
            ("date,1,2,3\n2020-01-01,4,5,6\n2020-01-02,4,5,6", (true, true)),
            ("id,sign,class\na,go,up\na,stop,up", (true, true)),
            ("value\n1\n2", (true, true)),
            // Names that are numbers, beside words that come but once.
            ("id,1,2,class\na,1,2,up\na,3,4,up\nb,5,6,down\nb,5,6,down", (true, false)),
            ("a,1,2,up\na,3,4,up\nb,5,6,down\nb,5,6,down", (false, true)),
            ("s,1,2,up\na,3,4,up\na,5,6,down\nb,5,6,down\nb,5,6,up", (false, false)),
            ("row 0,1\nrow 1,2\nrow 2,3", (false, true)),
            ("a,go,up\na,stop,up\nb,go,down", (false, false)),
            ("word,class\nword,up\nother,down\nmore,up\nyet,down", (true, false)),
            // A word for a missing number may be a name, and what is no name comes again.
            ("a,?,up\na,3,up\nb,4,up", (true, false)),
            ("a,?,up\na,3,up\nb,?,up", (false, false)),
            (",0,1\n0,1.5,2\n1,2.5,2", (false, false)),
            ("0,1,2\n7,1.5,2\n7,2.5,2", (false, false)),
            ("4,5\n7,1.5", (false, true)),
        ] {
            let options = CsvOptions { delimiter: b',', missing: Vec::new(), header: None };
            let cells = CellTexts::parse(text, b',').unwrap();
            assert_eq!(has_header(&cells, &options), expected, "{text}");
        }
    }

    #[test]
    fn rows_know_their_line_and_cells_lose_white_space() {
        let read = |cells: CellTexts| -> Vec<(u64, Vec<String>)> {
            let rows = cells.rows(0..cells.len());
            rows.map(|row| (row.line, row.cells().map(str::to_owned).collect())).collect()
        };
        let row = |line: u64, cells: &[&str]| (line, cells.iter().map(|&c| c.to_owned()).collect());
        let several = CellTexts::parse("\na,\"x\n, y\"\n\n b , \n", b',').unwrap();
        assert_eq!(read(several), [row(2, &["a", "x\n, y"]), row(5, &["b", ""])]);
        let column = CellTexts::parse_column("v\n\n 1 \n\n");
        assert_eq!(read(column), [row(1, &["v"]), row(2, &[""]), row(3, &["1"])]);
        assert_eq!(CellTexts::parse_column("").len(), 0);
    }
}
