//! CSV files as cells of text, each row with its line.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use chrono::NaiveDate;

use crate::ui::output::{log, quote, quote_path};

/// Cells that mean "no value", whatever their case.
const MISSING: [&str; 5] = ["", "na", "n/a", "null", "none"];

/// Values beyond this are refused: their differences, and the pictures' margins, would overflow.
const LARGEST: f64 = 1e300;

/// How to read a file.
#[derive(Clone)]
pub struct CsvOptions {
    /// What stands between cells.
    pub delimiter: u8,
    /// More cells that mean "no value".
    pub missing: Vec<String>,
    /// Whether the first row names the columns; judged by its looks when `None`.
    pub header: Option<bool>,
}

impl CsvOptions {
    fn is_missing(&self, cell: &str) -> bool {
        MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word))
            || self.missing.iter().any(|word| cell == word)
    }
}

/// A CSV file, cells as text.
pub struct CsvTable {
    reading: CsvOptions,
    pub names: Vec<String>,
    /// Whether the file names its columns. They are numbered otherwise.
    pub has_header: bool,
    /// At least one.
    pub rows: Vec<CsvRow>,
}

pub struct CsvRow {
    pub line: u64,
    cells: Vec<String>,
}

impl CsvRow {
    pub fn cell(&self, column: usize) -> &str {
        self.cells.get(column).map_or("", |cell| cell.trim())
    }
}

impl CsvTable {
    pub fn read(path: &Path, reading: CsvOptions) -> Result<Self> {
        let shown = quote_path(path);
        let bytes = std::fs::read(path).with_context(|| format!("cannot open {shown}"))?;
        let text = std::str::from_utf8(&bytes)
            .with_context(|| format!("cannot read {shown}: it is not UTF-8 text"))?;
        let text = text.trim_start_matches('\u{feff}');
        let delimiter = char::from(reading.delimiter);
        let mut rows = if text.contains([delimiter, '"']) {
            csv_rows(text, reading.delimiter).with_context(|| format!("cannot read {shown}"))?
        } else {
            // One column: an empty line is a missing value, which a CSV reader would skip.
            let row = |(line, cell): (u64, &str)| CsvRow { line, cells: vec![cell.to_owned()] };
            (1..).zip(text.trim_end().lines()).map(row).collect()
        };
        ensure!(!rows.is_empty(), "{shown} is empty; expected a CSV file");
        let has_header = reading.header.unwrap_or_else(|| {
            let (has_header, is_sure) = has_header(&rows, &reading);
            if !is_sure {
                let (taken, other) = if has_header { ("names", "no") } else { ("values", "yes") };
                log(format_args!(
                    "{shown}: the first row is taken for {taken}; --header {other} says otherwise"
                ));
            }
            has_header
        });
        let names = if has_header {
            rows.remove(0).cells.iter().map(|c| c.trim().to_owned()).collect()
        } else {
            (1..=rows[0].cells.len()).map(|i| i.to_string()).collect()
        };
        ensure!(!rows.is_empty(), "{shown} has a header and no rows");
        Ok(Self { reading, names, has_header, rows })
    }

    /// A column by its name, or by its number from 1, as `3` or `#3`.
    pub fn find(&self, wanted: &str) -> Result<usize> {
        let columns = 0..self.names.len();
        let named: Vec<_> = columns.filter(|&column| self.names[column] == wanted).collect();
        match named[..] {
            [column] => Ok(column),
            [] => match wanted.strip_prefix('#').unwrap_or(wanted).parse::<usize>() {
                Ok(number) if (1..=self.names.len()).contains(&number) => Ok(number - 1),
                _ => bail!("no column is named {}; the file has {}", quote(wanted), self.listed()),
            },
            _ => bail!(
                "{} columns are named {}; say which by its number: {}",
                named.len(),
                quote(wanted),
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
        self.reading.is_missing(cell)
    }

    /// Whether the first cell of a column that is not missing is a number.
    pub fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().map(|row| row.cell(column));
        let first = cells.find(|cell| !self.is_missing(cell));
        first.is_some_and(|cell| cell.parse::<f64>().is_ok())
    }

    /// Whether more than half of a column's cells that are not missing are numbers.
    pub fn is_mostly_numeric(&self, column: usize) -> bool {
        let cells = self.rows.iter().map(|row| row.cell(column));
        let (mut numbers, mut all) = (0, 0);
        for cell in cells.filter(|cell| !self.is_missing(cell)) {
            all += 1;
            numbers += usize::from(cell.parse::<f64>().is_ok());
        }
        2 * numbers > all
    }

    /// Whether words that mean "no value" were named.
    pub fn names_missing(&self) -> bool {
        !self.reading.missing.is_empty()
    }

    /// The number in a row's column, `None` where it is missing. `advice` says what may be done about a
    /// word.
    pub fn number(&self, row: &CsvRow, column: usize, advice: &str) -> Result<Option<f64>> {
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
        self.rows.iter().map(|row| date(row.cell(column))).collect()
    }
}

/// The rows of a CSV text, each with the line it starts on.
fn csv_rows(text: &str, delimiter: u8) -> Result<Vec<CsvRow>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .from_reader(text.as_bytes());
    let (mut counted, mut line) = (0, 1);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record?;
        // The reader's own count stops before empty lines; a row starts after them.
        let start = record.position().map_or(0, |position| position.byte() as usize);
        let start = text[start..].find(|c| c != '\n' && c != '\r').map_or(start, |at| start + at);
        line += text[counted..start].matches('\n').count() as u64;
        counted = start;
        rows.push(CsvRow { line, cells: record.iter().map(str::to_owned).collect() });
    }
    Ok(rows)
}

/// What a column says of whether its first cell is a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looks {
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

impl Looks {
    fn of(rows: &[CsvRow], column: usize, reading: &CsvOptions) -> Self {
        let is_value = |cell: &str| cell.parse::<f64>().is_ok() || date(cell).is_some();
        let first = rows[0].cell(column);
        if reading.is_missing(first) || is_value(first) {
            return Self::None;
        }
        let below = rows[1..].iter().map(|row| row.cell(column));
        let mut below = below.filter(|cell| !reading.is_missing(cell));
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

/// Whether the first row names the columns, and whether that is sure. It does where it holds a word above numbers
/// or dates, words alone, or words none of which comes again in their columns, one of them above words that do.
fn has_header(rows: &[CsvRow], reading: &CsvOptions) -> (bool, bool) {
    let columns: Vec<_> =
        (0..rows[0].cells.len()).map(|column| Looks::of(rows, column, reading)).collect();
    let any = |looks| columns.contains(&looks);
    match () {
        () if any(Looks::AboveNumbers) => (true, !any(Looks::Again)),
        // A name may be one of its column's words by chance.
        () if !any(Looks::None) && any(Looks::Again) => (any(Looks::AboveRepeated), false),
        () if !any(Looks::None) => (true, true),
        () if any(Looks::Again) => (false, !any(Looks::AboveRepeated)),
        () if any(Looks::AboveRepeated) => (true, false),
        () => (false, !counts_up(&rows[0])),
    }
}

/// Whether a row's cells after the first count up as programs call columns without names.
fn counts_up(row: &CsvRow) -> bool {
    let cells = row.cells.iter().skip(1);
    let numbers: Option<Vec<u32>> = cells.map(|cell| cell.trim().parse().ok()).collect();
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
    let day = cell.trim().split(['T', ' ']).next()?;
    ["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"]
        .iter()
        .filter(|format| day.len() == if **format == "%Y%m%d" { 8 } else { 10 })
        .find_map(|format| NaiveDate::parse_from_str(day, format).ok())
}

/// A path that leads there from everywhere.
pub fn whole(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot open {}", quote_path(path)))
}

/// `Ok` when the files of a run that goes on are byte for byte those that it was started with.
pub fn check_fingerprint(paths: [Option<&Path>; 2], before: &str) -> Result<()> {
    let found = fingerprint(paths);
    let found = found.context("where the data have moved, name them after --resume FOLDER")?;
    let shown: Vec<_> = paths.into_iter().flatten().map(quote_path).collect();
    ensure!(
        found == before,
        "{} is not what the run was started with; a run goes on with the same data",
        shown.join(" or ")
    );
    Ok(())
}

/// Of files' bytes: FNV-1a, 64 bits. Enough to see that a file was changed by mistake.
pub fn fingerprint<P: AsRef<Path>>(paths: [Option<P>; 2]) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for path in paths.iter().flatten().map(AsRef::as_ref) {
        let bytes = std::fs::read(path);
        let bytes = bytes.with_context(|| format!("cannot open {}", quote_path(path)))?;
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{hash:016x}"))
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
            let reading = CsvOptions { delimiter: b',', missing: Vec::new(), header: None };
            let rows = csv_rows(text, b',').unwrap();
            assert_eq!(has_header(&rows, &reading), expected, "{text}");
        }
    }
}
