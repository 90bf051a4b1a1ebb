//! A numeric column of a CSV file as an evenly spaced series.

use std::path::Path;

use anyhow::{Context, Result, bail};
use chrono::{Datelike, NaiveDate};

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
}

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
        let table = Table::read(path, options.delimiter)?;
        let column = table.column(options)?;
        let name = table.names[column].clone();
        let mut values = Vec::with_capacity(table.rows.len());
        for row in &table.rows {
            values.push(row.number(column, &name, options.missing)?);
        }
        let filled = values.iter().filter(|v| v.is_none()).count();
        let Some(values) = interpolate(&values) else {
            bail!("column `{name}` of {} holds no number", path.display());
        };
        let years = (0..table.names.len()).filter(|&c| c != column).find_map(|c| table.years(c));
        Ok(Self { name, values, filled, years })
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
            Ok(value) if value.is_finite() => Ok(Some(value)),
            _ => bail!(
                "line {}: `{cell}` in column `{name}` is not a finite number (leave the cell empty \
                 where a value is missing, or name the word that means so with --missing)",
                self.line
            ),
        }
    }
}

fn is_missing(cell: &str, extra: Option<&str>) -> bool {
    MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word)) || Some(cell) == extra
}

impl Table {
    fn read(path: &Path, delimiter: u8) -> Result<Self> {
        let shown = path.display();
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .from_path(path)
            .with_context(|| format!("cannot open {shown}"))?;
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.with_context(|| format!("cannot read {shown}"))?;
            let line = record.position().map_or(0, csv::Position::line);
            let cells = record.iter().map(|c| c.trim_start_matches('\u{feff}').to_owned());
            rows.push(Row { line, cells: cells.collect() });
        }
        if rows.is_empty() {
            bail!("{shown} is empty; expected a CSV file with a numeric column");
        }
        // A first row with a word in it is a header.
        let is_word =
            |cell: &String| !is_missing(cell.trim(), None) && cell.trim().parse::<f64>().is_err();
        let names = if rows[0].cells.iter().any(|cell| is_word(cell) && date(cell).is_none()) {
            rows.remove(0).cells.iter().map(|c| c.trim().to_owned()).collect()
        } else {
            (1..=rows[0].cells.len()).map(|i| i.to_string()).collect()
        };
        if rows.is_empty() {
            bail!("{shown} has a header and no rows");
        }
        Ok(Self { names, rows })
    }

    /// Which column the options mean.
    fn column(&self, options: &Options) -> Result<usize> {
        let listed = || self.names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        match options.column {
            Some(wanted) => {
                let by_name = self.names.iter().position(|name| name == wanted);
                let number =
                    wanted.parse::<usize>().ok().filter(|n| (1..=self.names.len()).contains(n));
                by_name.or(number.map(|n| n - 1)).with_context(|| {
                    format!("no column is named `{wanted}`; the file has {}", listed())
                })
            }
            None => (0..self.names.len())
                .rev()
                .find(|&column| {
                    self.first_value(column, options).is_some_and(|c| c.parse::<f64>().is_ok())
                })
                .with_context(|| format!("none of the columns {} starts with a number", listed())),
        }
    }

    /// The first cell of a column that is not missing.
    fn first_value(&self, column: usize, options: &Options) -> Option<&str> {
        let mut cells = self.rows.iter().map(|row| row.cell(column));
        cells.find(|cell| !is_missing(cell, options.missing))
    }

    /// A column of dates as fractional years, `None` unless every cell is one.
    fn years(&self, column: usize) -> Option<Vec<f64>> {
        let year = |row: &Row| {
            let date = date(row.cell(column))?;
            Some(f64::from(date.year()) + f64::from(date.ordinal0()) / 365.25)
        };
        self.rows.iter().map(year).collect()
    }
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
        Series::read(file.path(), &Options { column, delimiter: b',', missing: Some("-99") })
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
    }
}
