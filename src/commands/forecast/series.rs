//! A numeric column of a CSV file as an evenly spaced series.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chrono::{Datelike, NaiveDate};

use gru_wgpu::formats::quote;

use crate::commands::output::{note, quote_path};

/// Cells that mean "no value", whatever their case.
const MISSING: [&str; 5] = ["", "na", "n/a", "null", "none"];

/// How to read the file.
pub struct Options<'a> {
    /// The column's name, or its number from 1; the last numeric one when `None`.
    pub column: Option<&'a str>,
    /// What stands between cells.
    pub delimiter: u8,
    /// One more cell that means "no value".
    pub missing: Option<&'a str>,
    /// Whether the first row names the columns; judged by its looks when `None`.
    pub header: Option<bool>,
}

/// Values beyond this are refused: their differences, and the pictures' margins, would overflow.
const LARGEST: f64 = 1e300;

/// A column of numbers, evenly spaced.
pub struct Series {
    /// The column's name.
    pub name: String,
    /// The values, gaps filled by straight lines.
    pub values: Vec<f64>,
    /// How many were missing.
    pub filled: usize,
    /// Each row's date as a fractional year, where a column holds dates.
    pub years: Option<Vec<f64>>,
}

impl Series {
    /// Reads a column of the file at `path`.
    pub fn read(path: &Path, options: &Options) -> Result<Self> {
        let table = Table::read(path, options)?;
        let column = table.column(options)?;
        let name = table.names[column].clone();
        let mut values = Vec::with_capacity(table.rows.len());
        for row in &table.rows {
            values.push(row.number(column, &name, options.missing)?);
        }
        let filled = values.iter().filter(|v| v.is_none()).count();
        let Some(values) = interpolate(&values) else {
            bail!("column {} of {} holds no number", quote(&name), quote_path(path));
        };
        let dates = (0..table.names.len()).filter(|&c| c != column).find_map(|c| table.dates(c));
        let years = match dates {
            Some(dates) => table.years(&dates)?,
            None => None,
        };
        Ok(Self { name: printable(&name), values, filled, years })
    }

    /// What to call a season of so many rows: a year where the dates say so.
    pub fn season_name(&self, season: usize) -> &'static str {
        let span = self.years.as_ref().and_then(|years| Some(years.get(season)? - years[0]));
        match span {
            Some(span) if (span - 1.0).abs() < 0.03 => "year",
            _ => "season",
        }
    }
}

/// A CSV file, cells as text.
struct Table {
    names: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    line: u64,
    cells: Vec<String>,
}

impl Row {
    fn cell(&self, column: usize) -> &str {
        self.cells.get(column).map_or("", |cell| cell.trim())
    }

    /// The number in `column`, `None` where it is missing.
    fn number(&self, column: usize, name: &str, missing: Option<&str>) -> Result<Option<f64>> {
        let cell = self.cell(column);
        if is_missing(cell, missing) {
            return Ok(None);
        }
        match cell.parse::<f64>() {
            Ok(value) if value.abs() <= LARGEST => Ok(Some(value)),
            Ok(value) if value.is_finite() => {
                bail!("line {}: {} is larger than {LARGEST:e}", self.line, quote(cell))
            }
            _ => bail!(
                "line {}: {} in column {} is not a finite number (leave the cell empty where a value \
                 is missing, or name the word that means so with --missing)",
                self.line,
                quote(cell),
                quote(name)
            ),
        }
    }
}

fn is_missing(cell: &str, extra: Option<&str>) -> bool {
    MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word)) || Some(cell) == extra
}

impl Table {
    fn read(path: &Path, options: &Options) -> Result<Self> {
        let shown = quote_path(path);
        let bytes = std::fs::read(path).with_context(|| format!("cannot open {shown}"))?;
        let text = std::str::from_utf8(&bytes)
            .with_context(|| format!("cannot read {shown}: it is not UTF-8 text"))?;
        let text = text.trim_start_matches('\u{feff}');
        let delimiter = char::from(options.delimiter);
        let mut rows = if text.contains([delimiter, '"']) {
            csv_rows(text, options.delimiter).with_context(|| format!("cannot read {shown}"))?
        } else {
            // One column: an empty line is a missing value, which a CSV reader would skip.
            let row = |(line, cell): (u64, &str)| Row { line, cells: vec![cell.to_owned()] };
            (1..).zip(text.trim_end().lines()).map(row).collect()
        };
        ensure!(!rows.is_empty(), "{shown} is empty; expected a CSV file with a numeric column");
        let names = if options.header.unwrap_or_else(|| has_header(&rows, options)) {
            rows.remove(0).cells.iter().map(|c| c.trim().to_owned()).collect()
        } else {
            (1..=rows[0].cells.len()).map(|i| i.to_string()).collect()
        };
        ensure!(!rows.is_empty(), "{shown} has a header and no rows");
        Ok(Self { names, rows })
    }

    /// Which column the options mean.
    fn column(&self, options: &Options) -> Result<usize> {
        let columns = 0..self.names.len();
        let Some(wanted) = options.column else {
            return columns
                .rev()
                .find(|&column| self.is_numeric(column, options) && self.dates(column).is_none())
                .with_context(|| self.no_numeric_column());
        };
        let named: Vec<_> = columns.filter(|&column| self.names[column] == wanted).collect();
        match named[..] {
            [column] => Ok(column),
            [] => match wanted.parse::<usize>() {
                Ok(number) if (1..=self.names.len()).contains(&number) => Ok(number - 1),
                _ => bail!("no column is named {}; the file has {}", quote(wanted), self.listed()),
            },
            _ => bail!(
                "{} columns are named {}; say which by its number: {}",
                named.len(),
                quote(wanted),
                named.iter().map(|c| (c + 1).to_string()).collect::<Vec<_>>().join(" or ")
            ),
        }
    }

    fn listed(&self) -> String {
        self.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
    }

    fn no_numeric_column(&self) -> String {
        let hint = match &self.names[..] {
            [name] if name.contains([';', '\t', '|']) => "; is another --delimiter meant?",
            _ => "",
        };
        format!("none of the columns {} starts with a number{hint}", self.listed())
    }

    fn is_numeric(&self, column: usize, options: &Options) -> bool {
        self.first_value(column, options).is_some_and(|cell| cell.parse::<f64>().is_ok())
    }

    /// The first cell of a column that is not missing.
    fn first_value(&self, column: usize, options: &Options) -> Option<&str> {
        let mut cells = self.rows.iter().map(|row| row.cell(column));
        cells.find(|cell| !is_missing(cell, options.missing))
    }

    /// A column of dates, `None` unless every cell is one.
    fn dates(&self, column: usize) -> Option<Vec<NaiveDate>> {
        self.rows.iter().map(|row| date(row.cell(column))).collect()
    }

    /// Dates as fractional years; `None` where rows share a day, so that they are no axis. Refuses
    /// dates that run backwards, and tells of gaps.
    fn years(&self, dates: &[NaiveDate]) -> Result<Option<Vec<f64>>> {
        let mut days: Vec<i64> =
            dates.windows(2).map(|pair| (pair[1] - pair[0]).num_days()).collect();
        if let Some(row) = days.iter().position(|&days| days < 0) {
            let (line, date, before) = (self.rows[row + 1].line, dates[row + 1], dates[row]);
            bail!("line {line}: {date} comes after {before}; rows must run forwards in time");
        }
        if days.contains(&0) {
            return Ok(None);
        }
        days.sort_unstable();
        let usual = days.get(days.len() / 2).copied().unwrap_or(0);
        let gaps = days.iter().filter(|&&gap| 2 * gap > 3 * usual).count();
        if gaps > 0 {
            let longest = days.last().copied().unwrap_or(0);
            note(format_args!(
                "note: {gaps} gaps between dates, up to {longest} days where {usual} are usual; rows \
                 are taken as evenly spaced"
            ));
        }
        let year = |d: &NaiveDate| f64::from(d.year()) + f64::from(d.ordinal0()) / 365.25;
        Ok(Some(dates.iter().map(year).collect()))
    }
}

/// The rows of a CSV text, each with the line it starts on.
fn csv_rows(text: &str, delimiter: u8) -> Result<Vec<Row>> {
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
        rows.push(Row { line, cells: record.iter().map(str::to_owned).collect() });
    }
    Ok(rows)
}

/// Whether the first row names the columns: it holds a word where numbers follow, or words alone.
fn has_header(rows: &[Row], options: &Options) -> bool {
    let missing = |cell: &str| is_missing(cell, options.missing);
    let is_number = |cell: &str| cell.parse::<f64>().is_ok();
    let is_word = |cell: &str| !missing(cell) && !is_number(cell) && date(cell).is_none();
    let first = &rows[0];
    let mut columns = 0..first.cells.len();
    let below = |column: usize| {
        rows[1..].iter().map(move |row| row.cell(column)).find(|cell| !missing(cell))
    };
    columns.clone().any(|c| is_word(first.cell(c)) && below(c).is_some_and(is_number))
        || columns.all(|c| is_word(first.cell(c)))
}

/// A name without what a terminal or an SVG file could not hold.
fn printable(name: &str) -> String {
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

/// Fills gaps by straight lines, and those at the ends with the nearest value. `None` when there is
/// no value at all.
fn interpolate(values: &[Option<f64>]) -> Option<Vec<f64>> {
    let known: Vec<(usize, f64)> =
        values.iter().enumerate().filter_map(|(i, v)| v.map(|v| (i, v))).collect();
    let (&(first, first_value), &(last, last_value)) = (known.first()?, known.last()?);
    let mut filled = vec![first_value; first];
    for pair in known.windows(2) {
        let [(i, a), (j, b)] = pair else { unreachable!("windows of two") };
        let slope = (b - a) / (j - i) as f64;
        filled.extend((0..j - i).map(|k| a + slope * k as f64));
    }
    filled.extend(vec![last_value; values.len() - last]);
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, column: Option<&str>) -> Result<Series> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        Series::read(
            file.path(),
            &Options { column, delimiter: b',', missing: Some("-99"), header: None },
        )
    }

    fn error(text: &str, column: Option<&str>) -> String {
        format!("{:#}", read(text, column).err().expect("an error"))
    }

    #[test]
    fn gaps_are_filled_by_straight_lines() {
        let series = read(
            "d,v\n20200101,\n20200102,1\n20200103,NA\n20200104,-99\n20200105,4\n20200106,\n",
            None,
        );
        let series = series.unwrap();
        assert_eq!(series.values, [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!((series.name.as_str(), series.filled), ("v", 4));
        assert_eq!(series.years.as_ref().unwrap()[0], 2020.0);
        assert_eq!((series.season_name(5), series.season_name(999)), ("season", "season"));
    }

    #[test]
    fn columns_go_by_name_number_or_default() {
        let text = "\u{feff}a,b,c\n1,2,x\n3,4,y\n";
        assert_eq!(read(text, None).unwrap().values, [2.0, 4.0]);
        assert_eq!(read(text, Some("a")).unwrap().values, [1.0, 3.0]);
        assert_eq!(read(text, Some("2")).unwrap().name, "b");
        assert_eq!(read("1,2\n3,4\n", None).unwrap().name, "2");
        assert_eq!(read("5\n6\n", None).unwrap().values, [5.0, 6.0]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        assert!(error("a,b\n1,2\n3,four\n", None).contains("line 3: `four` in column `b`"));
        for odd in ["NaN", "inf", "1e999", "1,5"] {
            let text = format!("a\n1\n2\n\"{odd}\"\n");
            assert!(error(&text, None).starts_with(&format!("line 4: `{odd}`")), "{odd}");
        }
        assert!(error("a,b\n1,2\n", Some("z")).contains("the file has `a`, `b`"));
        assert!(error("a,b\n1,2\n", Some("3")).contains("the file has `a`, `b`"));
        assert!(error("a,b\n1,2\n3\n", None).contains("cannot read"));
        assert!(error("a,b\nx,y\n", None).contains("starts with a number"));
        assert!(error("a\n\"\"\nNA\n", Some("a")).contains("holds no number"));
        assert!(error("", None).contains("is empty"));
        assert!(error("a,b\n", None).contains("no rows"));
        assert!(error("v,v\n1,2\n", Some("v")).contains("by its number: 1 or 2"));
        assert!(error("day;v\n1;2\n", None).contains("--delimiter"));
        let text = "d,v\n2020-01-02,1\n2020-01-01,2\n";
        assert_eq!(
            error(text, None),
            "line 3: 2020-01-01 comes after 2020-01-02; rows must run forwards in time"
        );
    }

    #[test]
    fn a_message_stays_on_one_line_whatever_a_cell_holds() {
        for odd in ["\"a\nerror: b\"", "\"\u{1b}[31m\"", &"x".repeat(500)] {
            let message = error(&format!("v\n1\n{odd}\n"), None);
            assert!(!message.contains(char::is_control) && message.len() < 300, "{message:?}");
            let message = error(&format!("{odd},v\n1,2\n"), Some("none"));
            assert!(!message.contains(char::is_control) && message.len() < 300, "{message:?}");
        }
        let series = read("\"a\u{1b}\nb\"\n1\n", None).unwrap();
        assert_eq!(series.name, "a  b");
    }

    #[test]
    fn an_empty_line_of_a_single_column_is_a_missing_value() {
        let series = read("v\n1\n\n\n4\n", None).unwrap();
        assert_eq!((series.values, series.filled), (vec![1.0, 2.0, 3.0, 4.0], 2));
        assert_eq!(read("v,w\r\n1,1\r\n\r\n4,4\r\n", None).unwrap().values, [1.0, 4.0]);
        assert!(error("v,w\n\n1,1\n\n4,x\n", None).starts_with("line 5: `x`"));
        assert!(error("v\n1\n\nx\n", None).starts_with("line 4: `x`"));
        assert!(error("v,w\n\"1\",\"1\"\n\"a\nb\",1\n1,x", None).starts_with("line 5: `x`"));
    }

    #[test]
    fn missing_values_do_not_hide_a_header() {
        let series = read(",value\n0,-99\n1,5\n2,7\n", None).unwrap();
        assert_eq!((series.name.as_str(), series.values), ("value", vec![5.0, 5.0, 7.0]));
        assert_eq!(
            read(",value\n2020-01-01,-99\n2020-01-02,5\n", None).unwrap().values,
            [5.0, 5.0]
        );
        assert_eq!(read("-99\n1\n2\n", None).unwrap().values, [1.0, 1.0, 2.0]);
    }

    #[test]
    fn values_that_would_overflow_are_refused() {
        assert!(error("v\n1\n-2e300\n", None).starts_with("line 3: `-2e300` is larger than"));
    }

    #[test]
    fn a_first_row_of_data_is_not_taken_for_a_header() {
        assert_eq!(read("1/1/2020,0.5\n1/2/2020,0.7\n", None).unwrap().values, [0.5, 0.7]);
        assert_eq!(read("a\n1\n", None).unwrap().values, [1.0]);
    }

    #[test]
    fn a_column_of_dates_is_not_the_default_and_need_not_be_an_axis() {
        let series = read("v,date\n1,20200101\n2,20200102\n", None).unwrap();
        assert_eq!((series.name.as_str(), series.values), ("v", vec![1.0, 2.0]));
        assert!(
            read("t,v\n2020-01-01T00:00,1\n2020-01-01T01:00,2\n", None).unwrap().years.is_none()
        );
    }
}
