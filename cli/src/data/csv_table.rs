//! [`CsvTable`]: a CSV file as a table of text, with the line number of each row.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::data::dialect::{Dialect, separator_line};
use crate::data::numbers::{MarksSeen, NumberFormat, OddNumber};
use crate::data::{dialect, text, timestamps};
use crate::ui::output::{log, quote, quote_path};
use crate::ui::progress::ReadingDisplay;

/// Cells that stand for a missing value, in upper or lower case.
const MISSING: [&str; 5] = ["", "na", "n/a", "null", "none"];

/// The largest accepted magnitude. Beyond it, differences of values and plot margins would
/// overflow.
const MAX_MAGNITUDE: f64 = 1e300;

/// The options for reading a CSV file. What is `None` is judged from the file, and logged if it is
/// not what most files have.
#[derive(Clone, Default)]
pub struct CsvOptions {
    /// The delimiter between cells.
    pub delimiter: Option<u8>,
    /// The quote around cells: `"` or `'`.
    pub quote: Option<char>,
    /// The decimal mark, a point or a comma.
    pub decimal: Option<char>,
    /// The mark between groups of three digits.
    pub thousands: Option<char>,
    /// True if the first row is a header.
    pub header: Option<bool>,
    /// More cells that stand for a missing value, from `--missing`.
    pub missing: Vec<String>,
}

impl CsvOptions {
    fn is_missing(&self, cell: &str) -> bool {
        MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word))
            || self.missing.iter().any(|word| cell == word)
    }
}

/// A CSV file with its cells as text.
pub struct CsvTable {
    options: CsvOptions,
    pub delimiter: u8,
    pub numbers: NumberFormat,
    /// The columns whose points may be decimal marks or stand between thousands.
    ambiguous: Vec<bool>,
    pub names: Vec<String>,
    /// True if the file has a header. Without one the names are the column numbers, from 1.
    pub has_header: bool,
    cells: CellTexts,
}

/// The cells of a file, trimmed, in one buffer. A file can have millions of cells, and one `String`
/// per cell would take several times the memory of the text.
#[derive(Default)]
struct CellTexts {
    /// Cells per row.
    columns: usize,
    text: String,
    /// End of each cell in `text`, row by row. A cell starts where the previous one ends.
    ends: Vec<usize>,
    /// Line number of each row.
    lines: Vec<u64>,
    /// Header rows: 1 with a header, else 0.
    header_rows: usize,
}

/// One row of a [`CsvTable`].
#[derive(Clone, Copy)]
pub struct CsvRow<'a> {
    /// The line on which the row starts, from 1.
    pub line: u64,
    cells: &'a CellTexts,
    /// Index of its first cell.
    first: usize,
}

impl<'a> CsvRow<'a> {
    /// Returns a cell, trimmed.
    pub fn cell(&self, column: usize) -> &'a str {
        debug_assert!(column < self.cells.columns, "the column is out of range");
        let cell = self.first + column;
        let start = cell.checked_sub(1).map_or(0, |before| self.cells.ends[before]);
        &self.cells.text[start..self.cells.ends[cell]]
    }

    fn cells(self) -> impl Iterator<Item = &'a str> {
        (0..self.cells.columns).map(move |column| self.cell(column))
    }
}

impl CellTexts {
    /// Parses text that contains the delimiter or quotes and starts in line `first_line`. Calls
    /// `reach` with the bytes read so far from time to time.
    fn parse(text: &str, dialect: Dialect, first_line: u64, reach: impl Fn(usize)) -> Result<Self> {
        /// The rows between two calls of `reach`.
        const ROWS: usize = 4096;
        let mut reader = dialect.reader(text);
        let (mut counted, mut line) = (0, first_line);
        let mut cells = Self { text: String::with_capacity(text.len()), ..Self::default() };
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record)? {
            // The reader's position is before any empty lines; the row starts after them.
            let start = record.position().map_or(0, |position| position.byte() as usize);
            let start =
                text[start..].find(|c| c != '\n' && c != '\r').map_or(start, |at| start + at);
            line += text[counted..start].matches('\n').count() as u64;
            counted = start;
            cells.push(line, record.iter());
            if cells.lines.len().is_multiple_of(ROWS) {
                reach(start);
            }
        }
        Ok(cells)
    }

    /// Parses text with a single column. An empty line is a missing value here, but a CSV reader
    /// would skip it.
    fn parse_column(text: &str, first_line: u64) -> Self {
        let mut cells = Self::default();
        for (line, cell) in (first_line..).zip(text.trim_end().lines()) {
            cells.push(line, [cell].into_iter());
        }
        cells
    }

    /// Appends a row. All rows have the same number of cells.
    fn push<'a>(&mut self, line: u64, row: impl Iterator<Item = &'a str>) {
        for cell in row {
            self.text.push_str(cell.trim());
            self.ends.push(self.text.len());
        }
        self.lines.push(line);
        self.columns = self.ends.len() / self.lines.len();
    }

    /// Returns true if all rows have two cells of digits, the second of one or two: `20,1`.
    fn may_be_decimals(&self) -> bool {
        let is_digits = |cell: &str| !cell.is_empty() && cell.bytes().all(|b| b.is_ascii_digit());
        self.columns == 2
            && self.rows(0..self.len()).all(|row| {
                is_digits(row.cell(0)) && is_digits(row.cell(1)) && row.cell(1).len() <= 2
            })
    }

    /// Returns the number of rows, without the header.
    fn len(&self) -> usize {
        self.lines.len() - self.header_rows
    }

    /// Returns row `index`, from 0 after the header.
    fn row(&self, index: usize) -> CsvRow<'_> {
        let row = self.header_rows + index;
        CsvRow { line: self.lines[row], cells: self, first: row * self.columns }
    }

    fn rows(&self, rows: Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        rows.map(|index| self.row(index))
    }
}

impl CsvTable {
    /// Reads a CSV file.
    ///
    /// # Errors
    /// If the file cannot be opened, is neither UTF-8 nor UTF-16, has rows of different lengths, or
    /// has no rows after the header.
    pub fn read(path: &Path, options: CsvOptions) -> Result<Self> {
        let shown = quote_path(path);
        let bytes = std::fs::read(path).with_context(|| format!("cannot open {shown}"))?;
        let text = text::decode(bytes).with_context(|| format!("cannot read {shown}"))?;
        let (said, table) = separator_line(&text);
        let first_line = if said.is_some() { 2 } else { 1 };
        let dialect = judge_dialect(table, &options, said, &shown);
        let delimiter = dialect.delimiter;
        let mut cells = match table.contains([char::from(delimiter), char::from(dialect.quote)]) {
            true => parse_showing(table, dialect, first_line, &shown).with_context(|| {
                format!(
                    "cannot read {shown} with the delimiter {}; --delimiter names another one (between cells \
                     with a decimal comma it is often `;`)",
                    quote(char::from(delimiter).encode_utf8(&mut [0; 4]))
                )
            })?,
            false => CellTexts::parse_column(table, first_line),
        };
        drop(text);
        ensure!(cells.len() > 0, "{shown} is empty; expected a CSV file");
        let (numbers, ambiguous) = judge_numbers(&cells, &options, &shown);
        let has_header = options.header.unwrap_or_else(|| {
            let (has_header, is_sure) = has_header(&cells, &options, numbers);
            if !is_sure {
                let (taken, other) = if has_header { ("header", "no") } else { ("data", "yes") };
                log(format_args!(
                    "{shown}: using the first row as {taken}; pass --header {other} if that is wrong"
                ));
            }
            has_header
        });
        let names = match has_header {
            true => cells.row(0).cells().map(str::to_owned).collect(),
            false => (1..=cells.columns).map(|i| i.to_string()).collect(),
        };
        cells.header_rows = usize::from(has_header);
        ensure!(cells.len() > 0, "{shown} has a header but no rows");
        if options.delimiter.is_none() && !has_header && cells.may_be_decimals() {
            log(format_args!(
                "{shown}: the rows have two columns; pass --delimiter ';' if they are numbers with a decimal comma"
            ));
        }
        Ok(Self { options, delimiter, numbers, ambiguous, names, has_header, cells })
    }

    /// Returns row `index`, from 0 after the header.
    pub fn row(&self, index: usize) -> CsvRow<'_> {
        self.cells.row(index)
    }

    /// Returns all rows, at least one.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.rows_in(0..self.cells.len())
    }

    /// Returns a range of rows.
    pub fn rows_in(&self, rows: Range<usize>) -> impl ExactSizeIterator<Item = CsvRow<'_>> + Clone {
        self.cells.rows(rows)
    }

    /// Returns the index of a column, given its name or its number from 1, as `3` or `#3`.
    pub fn find(&self, name: &str) -> Result<usize> {
        let columns = 0..self.names.len();
        let named: Vec<_> = columns.filter(|&column| self.names[column] == name).collect();
        match named[..] {
            [column] => Ok(column),
            [] => match name.strip_prefix('#').unwrap_or(name).parse::<usize>() {
                Ok(number) if (1..=self.names.len()).contains(&number) => Ok(number - 1),
                _ => bail!(
                    "there is no column {}; the file has the columns {}",
                    quote(name),
                    self.column_list()
                ),
            },
            _ => bail!(
                "{} columns are named {}; choose one by its number: {}",
                named.len(),
                quote(name),
                named.iter().map(|c| format!("#{}", c + 1)).collect::<Vec<_>>().join(" or ")
            ),
        }
    }

    /// Returns a key with which [`Self::find`] finds a column: its name, or its number if the name
    /// is not unique.
    pub fn column_key(&self, column: usize) -> String {
        let name = &self.names[column];
        let number = column + 1;
        let is_found = |key: &String| self.find(key).is_ok_and(|found| found == column);
        // A name may look like the number of another column, so check each key.
        let keys = [name.clone(), format!("#{number}"), number.to_string()];
        keys.into_iter().find(is_found).unwrap_or_else(|| name.clone())
    }

    /// Returns the indices of the columns in a comma-separated list. A single column may have
    /// commas in its name.
    pub fn find_all(&self, list: &str) -> Result<Vec<usize>> {
        if self.names.iter().any(|name| name == list) || !list.contains(',') {
            return Ok(vec![self.find(list)?]);
        }
        let mut columns = Vec::new();
        for name in list.split(',').map(str::trim) {
            let column = self.find(name)?;
            ensure!(!columns.contains(&column), "column {} is listed twice", quote(name));
            columns.push(column);
        }
        Ok(columns)
    }

    /// Returns the names of the columns, for messages.
    pub fn column_list(&self) -> String {
        self.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
    }

    /// Returns a hint for messages if the file seems to use another delimiter.
    pub fn delimiter_hint(&self) -> &'static str {
        match &self.names[..] {
            [name] if name.contains([',', ';', '\t', '|']) => {
                "; set --delimiter if the file uses another one"
            }
            _ => "",
        }
    }

    /// Returns the cell that names the `what` of a row, such as its series.
    ///
    /// # Errors
    /// If it is empty.
    pub fn name_cell<'a>(&self, row: CsvRow<'a>, column: usize, what: &str) -> Result<&'a str> {
        let name = row.cell(column);
        ensure!(
            !name.is_empty(),
            "line {}: the {what} column {} is empty",
            row.line,
            quote(&self.names[column])
        );
        Ok(name)
    }

    /// Returns true if a cell stands for a missing value.
    pub fn is_missing(&self, cell: &str) -> bool {
        self.options.is_missing(cell)
    }

    /// Returns true if the first value of a column that is not missing is a number.
    pub fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows().map(|row| row.cell(column));
        let first = cells.find(|cell| !self.is_missing(cell));
        first.is_some_and(|cell| self.is_number(cell))
    }

    /// Returns true if a cell is a number, or looks like one of another format.
    fn is_number(&self, cell: &str) -> bool {
        self.numbers.parse(cell).is_some() || OddNumber::of(cell).is_some()
    }

    /// Returns true if more than half of a column's values that are not missing are numbers. Those
    /// of another format count: read as words, they would be misread without a warning.
    pub fn is_mostly_numeric(&self, column: usize) -> bool {
        let cells = self.rows().map(|row| row.cell(column));
        let (mut numbers, mut all) = (0, 0);
        for cell in cells.filter(|cell| !self.is_missing(cell)) {
            all += 1;
            numbers += usize::from(self.is_number(cell));
        }
        2 * numbers > all
    }

    /// Returns true if `--missing` was given.
    pub fn has_missing_option(&self) -> bool {
        !self.options.missing.is_empty()
    }

    /// Returns the quote that was given, `None` if it is judged.
    pub fn quote_option(&self) -> Option<char> {
        self.options.quote
    }

    /// Returns the further words for a missing value.
    pub fn missing_words(&self) -> &[String] {
        &self.options.missing
    }

    /// Returns the number in a cell, or `None` if it is missing. `advice` becomes part of the error
    /// about a cell that is not a number.
    pub fn number(&self, row: CsvRow<'_>, column: usize, advice: &str) -> Result<Option<f64>> {
        let cell = row.cell(column);
        if self.is_missing(cell) {
            return Ok(None);
        }
        let place = || {
            format!("line {}: {} in column {}", row.line, quote(cell), quote(&self.names[column]))
        };
        ensure!(
            !(self.ambiguous[column] && cell.contains('.')),
            "{} may have a decimal point, or a point between thousands, because no cell of the column shows which; \
             pass --decimal . or --thousands .",
            place()
        );
        match self.numbers.parse(cell) {
            Some(value) if value.abs() <= MAX_MAGNITUDE => Ok(Some(value)),
            Some(value) if value.is_finite() => {
                bail!("{} is larger than {MAX_MAGNITUDE:e}", place())
            }
            _ => bail!("{} {}", place(), self.not_a_number(cell, advice)),
        }
    }

    /// Says why a cell is no number.
    fn not_a_number(&self, cell: &str, advice: &str) -> String {
        let format = self.numbers.describe().unwrap_or_else(|| "a decimal point".to_owned());
        let is_decided = self.options.decimal.is_some();
        match OddNumber::of(cell) {
            Some(OddNumber::Sign(sign)) => format!(
                "has the sign `{sign}`; expected a number alone: remove the signs from the column"
            ),
            Some(OddNumber::Form) => {
                "is written in a form that is not read; expected a number such as -1234.5"
                    .to_owned()
            }
            Some(OddNumber::Marks) if is_decided => {
                format!(
                    "is not a number with {format}, which was given or is that of the run's data"
                )
            }
            Some(OddNumber::Marks) => format!(
                "is not a number with {format}; if all numbers of the file are written like it, pass their decimal \
                 mark with --decimal and the mark between thousands with --thousands"
            ),
            None => format!("is not a finite number ({advice})"),
        }
    }
}

/// Parses a text and shows the progress.
fn parse_showing(text: &str, dialect: Dialect, first_line: u64, shown: &str) -> Result<CellTexts> {
    let display = ReadingDisplay::new(shown, text.len());
    CellTexts::parse(text, dialect, first_line, |bytes| display.reach(bytes))
}

/// Judges the quote, and the delimiter unless it is known: a comma if the text has none. Logs any
/// other.
fn judge_dialect(text: &str, options: &CsvOptions, said: Option<u8>, shown: &str) -> Dialect {
    let known = options.delimiter.or(said);
    let quoted = |character: u8| quote(char::from(character).encode_utf8(&mut [0; 4]));
    let is_value = |cell: &str| cell.parse::<f64>().is_ok() || timestamps::is_date(cell);
    let delimiter = known.or_else(|| dialect::judge(text, is_value)).unwrap_or(b',');
    if delimiter != b',' && known.is_none() {
        log(format_args!("{shown}: the delimiter is {} (--delimiter)", quoted(delimiter)));
    }
    if let Some(quote) = options.quote {
        return Dialect { delimiter, quote: quote as u8 };
    }
    let dialect = Dialect::with_delimiter(text, delimiter);
    if dialect.quote != b'"' {
        log(format_args!("{shown}: cells are quoted by {} (--quote)", quoted(dialect.quote)));
    }
    dialect
}

/// Judges the marks in the numbers of all columns. Logs marks other than a decimal point. Returns
/// also which columns have points that may be decimal marks or stand between thousands.
fn judge_numbers(
    cells: &CellTexts,
    options: &CsvOptions,
    shown: &str,
) -> (NumberFormat, Vec<bool>) {
    if let Some(decimal) = options.decimal {
        let numbers = NumberFormat { decimal, thousands: options.thousands };
        return (numbers, vec![false; cells.columns]);
    }
    let of = |column| MarksSeen::of(cells.rows(0..cells.len()).map(|row| row.cell(column)));
    let columns: Vec<_> = (0..cells.columns).map(of).collect();
    let mut all = MarksSeen::default();
    columns.iter().for_each(|column| all.extend(column));
    let numbers = all.judge(options.thousands);
    let is_judged = options.thousands.is_none();
    if let Some(marks) = numbers.describe().filter(|_| is_judged) {
        let shows = columns.iter().position(MarksSeen::shows_marks).unwrap_or_default() + 1;
        log(format_args!(
            "{shown}: the numbers have {marks}, as column {shows} shows (--decimal, --thousands)"
        ));
    }
    let is_plain = numbers == NumberFormat::default();
    (numbers, columns.iter().map(|column| is_plain && column.is_ambiguous()).collect())
}

/// What a column shows about whether its first cell is a header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeaderHint {
    /// The first cell is a value or missing, so it shows nothing.
    None,
    /// The first cell is a word that occurs again below.
    Repeated,
    /// The first cell is a word that occurs once, and the words below rarely repeat.
    Unique,
    /// The first cell is a word that occurs once, above words that repeat.
    AboveRepeated,
    /// The first cell is a word above numbers or dates.
    AboveNumbers,
}

impl HeaderHint {
    fn of(cells: &CellTexts, column: usize, options: &CsvOptions, numbers: NumberFormat) -> Self {
        let is_value = |cell: &str| {
            numbers.parse(cell).is_some()
                || OddNumber::of(cell).is_some()
                || timestamps::is_date(cell)
        };
        let first = cells.row(0).cell(column);
        if options.is_missing(first) || is_value(first) {
            return Self::None;
        }
        let below = cells.rows(1..cells.len()).map(|row| row.cell(column));
        let mut below = below.filter(|cell| !options.is_missing(cell));
        let Some(next) = below.next() else { return Self::Unique };
        let (mut words, mut count) = (HashSet::from([next]), 1);
        for cell in below {
            words.insert(cell);
            count += 1;
        }
        match () {
            () if words.contains(first) => Self::Repeated,
            () if is_value(next) => Self::AboveNumbers,
            () if 2 * words.len() <= count => Self::AboveRepeated,
            () => Self::Unique,
        }
    }
}

/// Detects whether the first row is a header, and whether that is certain. It is a header if it has
/// a word above numbers or dates, if all its cells are words, or if none of its words occurs again
/// in its column and one of them stands above words that repeat.
fn has_header(cells: &CellTexts, options: &CsvOptions, numbers: NumberFormat) -> (bool, bool) {
    let columns: Vec<_> =
        (0..cells.columns).map(|column| HeaderHint::of(cells, column, options, numbers)).collect();
    let any = |looks| columns.contains(&looks);
    match () {
        () if any(HeaderHint::AboveNumbers) => (true, !any(HeaderHint::Repeated)),
        // A column name may occur among its column's words by chance.
        () if !any(HeaderHint::None) && any(HeaderHint::Repeated) => {
            (any(HeaderHint::AboveRepeated), false)
        }
        () if !any(HeaderHint::None) => (true, true),
        () if any(HeaderHint::Repeated) => (false, !any(HeaderHint::AboveRepeated)),
        () if any(HeaderHint::AboveRepeated) => (true, false),
        () => (false, !counts_up(cells.row(0))),
    }
}

/// Returns true if a row's cells after the first count up, as some programs number unnamed columns.
fn counts_up(row: CsvRow<'_>) -> bool {
    let cells = row.cells().skip(1);
    let numbers: Option<Vec<u32>> = cells.map(|cell| cell.parse().ok()).collect();
    numbers.is_some_and(|numbers| {
        let is_next = |pair: &[u32]| pair[0].checked_add(1) == Some(pair[1]);
        numbers.len() > 1 && numbers[0] <= 2 && numbers.windows(2).all(is_next)
    })
}

/// Replaces characters that a terminal or an SVG file cannot show by spaces.
pub fn printable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAS: Dialect = Dialect { delimiter: b',', quote: b'"' };

    #[test]
    fn headers_are_detected() {
        for (text, expected) in [
            ("id,level,class\na,1,up\na,2,up\nb,3,up", (true, true)),
            ("date,1,2,3\n2020-01-01,4,5,6\n2020-01-02,4,5,6", (true, true)),
            ("id,sign,class\na,go,up\na,stop,up", (true, true)),
            ("value\n1\n2", (true, true)),
            // Column names that are numbers, next to words that occur once.
            ("id,1,2,class\na,1,2,up\na,3,4,up\nb,5,6,down\nb,5,6,down", (true, false)),
            ("a,1,2,up\na,3,4,up\nb,5,6,down\nb,5,6,down", (false, true)),
            ("s,1,2,up\na,3,4,up\na,5,6,down\nb,5,6,down\nb,5,6,up", (false, false)),
            ("row 0,1\nrow 1,2\nrow 2,3", (false, true)),
            ("a,go,up\na,stop,up\nb,go,down", (false, false)),
            ("word,class\nword,up\nother,down\nmore,up\nyet,down", (true, false)),
            // A word for a missing number may be a column name, unless it occurs again.
            ("a,?,up\na,3,up\nb,4,up", (true, false)),
            ("a,?,up\na,3,up\nb,?,up", (false, false)),
            (",0,1\n0,1.5,2\n1,2.5,2", (false, false)),
            ("0,1,2\n7,1.5,2\n7,2.5,2", (false, false)),
            ("4,5\n7,1.5", (false, true)),
        ] {
            let cells = CellTexts::parse(text, COMMAS, 1, |_| ()).unwrap();
            let got = has_header(&cells, &CsvOptions::default(), NumberFormat::default());
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn rows_have_line_numbers_and_cells_are_trimmed() {
        let read = |cells: CellTexts| -> Vec<(u64, Vec<String>)> {
            let rows = cells.rows(0..cells.len());
            rows.map(|row| (row.line, row.cells().map(str::to_owned).collect())).collect()
        };
        let row = |line: u64, cells: &[&str]| (line, cells.iter().map(|&c| c.to_owned()).collect());
        let several = CellTexts::parse("\na,\"x\n, y\"\n\n b , \n", COMMAS, 1, |_| ()).unwrap();
        assert_eq!(read(several), [row(2, &["a", "x\n, y"]), row(5, &["b", ""])]);
        let column = CellTexts::parse_column("v\n\n 1 \n\n", 1);
        assert_eq!(read(column), [row(1, &["v"]), row(2, &[""]), row(3, &["1"])]);
        assert_eq!(CellTexts::parse_column("", 1).len(), 0);
    }
}
