//! A numeric column of a CSV file as an evenly spaced series, and others beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chrono::{Datelike, NaiveDate};
use serde::{Deserialize, Serialize};

use crate::data::csv_table::{CsvOptions, CsvTable, printable};
use crate::ui::output::{log, quote, quote_path};

/// What to do about a cell that is no number.
const ADVICE: &str = "leave the cell empty where a value is missing, or name the word that means so with \
                      --missing";

/// The file of a series, and how it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesSource {
    pub csv: PathBuf,
    pub delimiter: char,
    pub header: bool,
    /// A word that means a missing value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Of the file's bytes.
    pub fingerprint: String,
}

impl SeriesSource {
    /// How its file is read, and those to be predicted from.
    pub fn options(&self) -> CsvOptions {
        let Self { delimiter, header, missing, .. } = self;
        let delimiter = *delimiter as u8;
        CsvOptions { delimiter, missing: missing.iter().cloned().collect(), header: Some(*header) }
    }
}

/// Columns of numbers, evenly spaced.
pub struct Series {
    /// The names of the columns, that of the series itself first.
    pub names: Vec<String>,
    /// What they are found by: their names, or their numbers.
    pub keys: Vec<String>,
    /// Whether the file names its columns.
    pub has_header: bool,
    /// Their values, gaps filled by straight lines: of each as many.
    pub columns: Vec<Vec<f64>>,
    /// How many were missing.
    pub filled: usize,
    /// Each row's date as a fractional year, where a column holds dates.
    pub years: Option<Vec<f64>>,
}

impl Series {
    /// Reads columns of the file at `path`: by names or numbers from 1, between commas, the first
    /// of which is the series itself; the last numeric one when `None`.
    pub fn read(path: &Path, columns: Option<&str>, options: CsvOptions) -> Result<Self> {
        Self::read_columns(path, options, |csv| match columns {
            Some(words) => csv.find_all(words),
            None => Ok(vec![last_numeric(csv)?]),
        })
    }

    /// Reads the columns that `choose` chooses, the series itself first.
    pub fn read_columns(
        path: &Path,
        options: CsvOptions,
        choose: impl FnOnce(&CsvTable) -> Result<Vec<usize>>,
    ) -> Result<Self> {
        let csv = CsvTable::read(path, options)?;
        let chosen = choose(&csv)?;
        let (mut columns, mut filled) = (Vec::new(), 0);
        for &column in &chosen {
            let cells = csv.rows().map(|row| csv.number(row, column, ADVICE));
            let values: Result<Vec<_>> = cells.collect();
            let values = values.with_context(|| quote_path(path))?;
            filled += values.iter().filter(|value| value.is_none()).count();
            let name = quote(&csv.names[column]);
            let Some(whole) = interpolate(&values) else {
                bail!("column {name} of {} holds no number", quote_path(path));
            };
            columns.push(whole);
        }
        let mut others = (0..csv.names.len()).filter(|column| !chosen.contains(column));
        let dates = others.find_map(|column| csv.dates(column));
        let years = match dates {
            Some(dates) => years(&csv, &dates)?,
            None => None,
        };
        let names = chosen.iter().map(|&column| csv.names[column].clone()).collect();
        let keys = chosen.iter().map(|&column| csv.reference(column)).collect();
        Ok(Self { names, keys, has_header: csv.has_header, columns, filled, years })
    }

    /// The name of the series itself.
    pub fn name(&self) -> String {
        printable(&self.names[0])
    }

    /// The values of the series itself.
    pub fn values(&self) -> &[f64] {
        &self.columns[0]
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

fn last_numeric(csv: &CsvTable) -> Result<usize> {
    let mut columns = (0..csv.names.len()).rev();
    let found = columns.find(|&column| csv.is_numeric(column) && csv.dates(column).is_none());
    found.with_context(|| {
        format!("none of the columns {} starts with a number{}", csv.listed(), csv.hint())
    })
}

/// Dates as fractional years; `None` where rows share a day, so that they are no axis. Refuses
/// dates that run backwards, and tells of gaps.
fn years(csv: &CsvTable, dates: &[NaiveDate]) -> Result<Option<Vec<f64>>> {
    let mut days: Vec<i64> = dates.windows(2).map(|pair| (pair[1] - pair[0]).num_days()).collect();
    if let Some(row) = days.iter().position(|&days| days < 0) {
        let (line, date, before) = (csv.row(row + 1).line, dates[row + 1], dates[row]);
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
        log(format_args!(
            "note: {gaps} gaps between dates, up to {longest} days where {usual} are usual; rows \
             are taken as evenly spaced"
        ));
    }
    let year = |d: &NaiveDate| f64::from(d.year()) + f64::from(d.ordinal0()) / 365.25;
    Ok(Some(dates.iter().map(year).collect()))
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
            column,
            CsvOptions { delimiter: b',', missing: vec!["-99".to_owned()], header: None },
        )
    }

    fn error(text: &str, column: Option<&str>) -> String {
        crate::ui::output::causes(&read(text, column).err().expect("an error"))
    }

    #[test]
    fn several_columns_come_in_the_order_they_are_named() {
        let text = "a,b,\"c,d\"\n1,2,5\n3,,6\n";
        let series = read(text, Some("b, a")).unwrap();
        assert_eq!((&*series.name(), &series.columns[1][..]), ("b", &[1.0, 3.0][..]));
        assert_eq!((series.values(), series.filled), (&[2.0, 2.0][..], 1));
        assert_eq!(read(text, Some("c,d")).unwrap().values(), [5.0, 6.0]);
        assert!(error(text, Some("a,1")).contains("column `1` is named twice"));
    }

    #[test]
    fn gaps_are_filled_by_straight_lines() {
        let series = read(
            "d,v\n20200101,\n20200102,1\n20200103,NA\n20200104,-99\n20200105,4\n20200106,\n",
            None,
        );
        let series = series.unwrap();
        assert_eq!(series.values(), [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!((&*series.name(), series.filled), ("v", 4));
        assert_eq!(series.years.as_ref().unwrap()[0], 2020.0);
        assert_eq!((series.season_name(5), series.season_name(999)), ("season", "season"));
    }

    #[test]
    fn columns_go_by_name_number_or_default() {
        let text = "\u{feff}a,b,c\n1,2,x\n3,4,y\n";
        assert_eq!(read(text, None).unwrap().values(), [2.0, 4.0]);
        assert_eq!(read(text, Some("a")).unwrap().values(), [1.0, 3.0]);
        assert_eq!(read(text, Some("2")).unwrap().name(), "b");
        assert_eq!(read("1,2\n3,4\n", None).unwrap().name(), "2");
        assert_eq!(read("5\n6\n", None).unwrap().values(), [5.0, 6.0]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        assert!(error("a,b\n1,2\n3,four\n", None).contains("line 3: `four` in column `b`"));
        for odd in ["NaN", "inf", "1e999", "1,5"] {
            let text = format!("a\n1\n2\n\"{odd}\"\n");
            assert!(error(&text, None).contains(&format!(": line 4: `{odd}`")), "{odd}");
        }
        assert!(error("a,b\n1,2\n", Some("z")).contains("the file has `a`, `b`"));
        assert!(error("a,b\n1,2\n", Some("3")).contains("the file has `a`, `b`"));
        assert!(error("a,b\n1,2\n3\n", None).contains("cannot read"));
        assert!(error("a,b\nx,y\n", None).contains("starts with a number"));
        assert!(error("a\n\"\"\nNA\n", Some("a")).contains("holds no number"));
        assert!(error("", None).contains("is empty"));
        assert!(error("a,b\n", None).contains("no rows"));
        assert!(error("v,v\n1,2\n", Some("v")).contains("by its number: #1 or #2"));
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
        assert_eq!(series.name(), "a  b");
    }

    #[test]
    fn an_empty_line_of_a_single_column_is_a_missing_value() {
        let series = read("v\n1\n\n\n4\n", None).unwrap();
        assert_eq!((series.values(), series.filled), (&[1.0, 2.0, 3.0, 4.0][..], 2));
        assert_eq!(read("v,w\r\n1,1\r\n\r\n4,4\r\n", None).unwrap().values(), [1.0, 4.0]);
        assert!(error("v,w\n\n1,1\n\n4,x\n", None).contains(": line 5: `x`"));
        assert!(error("v\n1\n\nx\n", None).contains(": line 4: `x`"));
        assert!(error("v,w\n\"1\",\"1\"\n\"a\nb\",1\n1,x", None).contains(": line 5: `x`"));
    }

    #[test]
    fn missing_values_do_not_hide_a_header() {
        let series = read(",value\n0,-99\n1,5\n2,7\n", None).unwrap();
        assert_eq!((&*series.name(), series.values()), ("value", &[5.0, 5.0, 7.0][..]));
        assert_eq!(
            read(",value\n2020-01-01,-99\n2020-01-02,5\n", None).unwrap().values(),
            [5.0, 5.0]
        );
        assert_eq!(read("-99\n1\n2\n", None).unwrap().values(), [1.0, 1.0, 2.0]);
    }

    #[test]
    fn values_that_would_overflow_are_refused() {
        assert!(
            error("v\n1\n-2e300\n", None)
                .contains(": line 3: `-2e300` in column `v` is larger than")
        );
    }

    #[test]
    fn a_first_row_of_data_is_not_taken_for_a_header() {
        assert_eq!(read("1/1/2020,0.5\n1/2/2020,0.7\n", None).unwrap().values(), [0.5, 0.7]);
        assert_eq!(read("a\n1\n", None).unwrap().values(), [1.0]);
    }

    #[test]
    fn a_column_of_dates_is_not_the_default_and_need_not_be_an_axis() {
        let series = read("v,date\n1,20200101\n2,20200102\n", None).unwrap();
        assert_eq!((&*series.name(), series.values()), ("v", &[1.0, 2.0][..]));
        assert!(
            read("t,v\n2020-01-01T00:00,1\n2020-01-01T01:00,2\n", None).unwrap().years.is_none()
        );
    }
}
