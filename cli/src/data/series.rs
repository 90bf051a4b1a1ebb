//! [`SeriesTable`]: numeric columns of a CSV file as evenly spaced time series.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::csv_table::{CsvOptions, CsvTable, printable};
use crate::data::table_options::TableFormat;
use crate::data::time_axis::{TimeAxis, TimeColumn};
use crate::ui::output::{log, quote, quote_path};

/// Advice for a cell that is not a number.
const ADVICE: &str = "if the value is missing, leave the cell empty or pass its text to --missing";

/// The file of a series and its CSV options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesSource {
    pub csv: PathBuf,
    /// Keys of the input columns. The first is the target.
    pub columns: Vec<String>,
    /// The key of the column that names the series of each row, if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    /// Fingerprint of the file's bytes.
    pub fingerprint: String,
    pub format: TableFormat,
}

/// The series of a file.
pub struct SeriesTable {
    /// Names of the columns that are read, the target first.
    pub names: Vec<String>,
    /// Keys that find the columns again: names, or numbers if a name is not unique.
    pub keys: Vec<String>,
    /// The key of the column that names the series of each row. `None` if the file has one series.
    pub series_column: Option<String>,
    /// How the file was read.
    pub format: TableFormat,
    /// The series, at least one, in the order in which they begin.
    pub series: Vec<Series>,
}

/// Evenly spaced numeric columns. The first is the target, the others are more inputs.
pub struct Series {
    /// The series' name in its column. `None` if the file has one series.
    pub label: Option<String>,
    /// Values of each column, all of the same length. Missing values are interpolated.
    pub columns: Vec<Vec<f64>>,
    /// Number of missing values.
    pub filled: usize,
    /// Time of each row as a fractional year, if a column holds days.
    pub years: Option<Vec<f64>>,
}

impl SeriesTable {
    /// Reads columns of a CSV file. `columns` lists names or numbers from 1, separated by commas,
    /// the target first. `None` selects the last numeric column. `series` is the column that names
    /// the series of each row.
    pub fn read(
        path: &Path,
        columns: Option<&str>,
        series: Option<&str>,
        options: CsvOptions,
    ) -> Result<Self> {
        Self::read_columns(path, series, options, |csv, series| match columns {
            Some(words) => csv.find_all(words),
            None => Ok(vec![last_numeric(csv, series)?]),
        })
    }

    /// Reads the columns that `choose` returns, the target first. It is called with the index of
    /// the column `series`.
    pub fn read_columns(
        path: &Path,
        series: Option<&str>,
        options: CsvOptions,
        choose: impl FnOnce(&CsvTable, Option<usize>) -> Result<Vec<usize>>,
    ) -> Result<Self> {
        let csv = CsvTable::read(path, options)?;
        let shown = || quote_path(path);
        let column = series.map(|name| csv.find(name)).transpose().with_context(shown)?;
        let chosen = choose(&csv, column).with_context(shown)?;
        let is_chosen = column.is_some_and(|column| chosen.contains(&column));
        ensure!(!is_chosen, "{}: --column and --series name the same column", shown());
        let groups = match column {
            Some(column) => groups(&csv, column).with_context(shown)?,
            None => vec![(None, (0..csv.rows().len()).collect())],
        };
        let (labels, rows): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        let others: Vec<_> = (0..csv.names.len())
            .filter(|other| !chosen.contains(other) && Some(*other) != column)
            .collect();
        let times = TimeColumn::all(&csv, others.iter().copied(), &rows);
        let mut notes = Vec::new();
        let read = |(label, rows): (Option<String>, &Vec<usize>)| {
            let mut own = Vec::new();
            let series = Series::read(&csv, (&chosen, &times), label.clone(), rows, &mut own);
            let series = with_series(label.as_deref(), series);
            notes.extend((!own.is_empty()).then_some((label, own)));
            series
        };
        let series = labels.into_iter().zip(&rows).map(read).collect::<Result<_>>();
        let series = series.with_context(shown)?;
        // A single column has no place for time stamps.
        if !others.is_empty() {
            log_notes(&notes);
        }
        let names = chosen.iter().map(|&column| csv.names[column].clone()).collect();
        let keys = chosen.iter().map(|&column| csv.column_key(column)).collect();
        let series_column = column.map(|column| csv.column_key(column));
        let format = TableFormat::of(&csv);
        Ok(Self { names, keys, series_column, format, series })
    }

    /// Returns the name of the target column.
    pub fn name(&self) -> String {
        printable(&self.names[0])
    }

    /// Returns the name of the target column, with the series' name if there are several.
    pub fn title(&self, series: &Series) -> String {
        match &series.label {
            Some(label) => format!("{}, {}", self.name(), printable(label)),
            None => self.name(),
        }
    }
}

impl Series {
    /// Reads the columns `chosen` of some rows, and their times from one of `times`.
    fn read(
        csv: &CsvTable,
        (chosen, times): (&[usize], &[TimeColumn]),
        label: Option<String>,
        rows: &[usize],
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let (mut columns, mut filled) = (Vec::new(), 0);
        for &column in chosen {
            let cells = rows.iter().map(|&row| csv.number(csv.row(row), column, ADVICE));
            let values = cells.collect::<Result<Vec<_>>>()?;
            filled += values.iter().filter(|value| value.is_none()).count();
            let name = quote(&csv.names[column]);
            let Some(whole) = interpolate(&values) else {
                bail!("column {name} holds no number");
            };
            columns.push(whole);
        }
        let axis = TimeAxis::find(csv, times, rows, notes)?;
        Ok(Self { label, columns, filled, years: axis.and_then(|axis| axis.years()) })
    }

    /// Returns the series' name, quoted, for messages: ` of series \`A\``, or nothing.
    pub fn of_series(&self) -> String {
        self.label.as_ref().map_or_else(String::new, |label| format!(" of series {}", quote(label)))
    }

    /// Returns the values of the target column.
    pub fn values(&self) -> &[f64] {
        &self.columns[0]
    }

    /// Returns the word for a season of this many rows: `year` if the dates show one, else
    /// `season`.
    pub fn season_name(&self, season: usize) -> &'static str {
        let span = self.years.as_ref().and_then(|years| Some(years.get(season)? - years[0]));
        match span {
            Some(span) if (span - 1.0).abs() < 0.03 => "year",
            _ => "season",
        }
    }
}

/// Names the series, if there are several, in an error.
pub fn with_series<T>(label: Option<&str>, result: Result<T>) -> Result<T> {
    match label {
        Some(label) => result.with_context(|| format!("series {}", quote(label))),
        None => result,
    }
}

/// Logs the notes on the first series that has some, and how many others have some.
fn log_notes(notes: &[(Option<String>, Vec<String>)]) {
    let Some((whose, first)) = notes.first() else { return };
    let whose =
        whose.as_ref().map_or_else(String::new, |label| format!("series {}: ", quote(label)));
    for note in first {
        log(format_args!("note: {whose}{note}"));
    }
    if notes.len() > 1 {
        log(format_args!("note: the like holds for {} other series", notes.len() - 1));
    }
}

/// Returns the name and the rows of each series, in the order in which they begin.
fn groups(csv: &CsvTable, column: usize) -> Result<Vec<(Option<String>, Vec<usize>)>> {
    let mut groups: Vec<(Option<String>, Vec<usize>)> = Vec::new();
    let mut indices = HashMap::new();
    for (at, row) in csv.rows().enumerate() {
        let name = csv.name_cell(row, column, "series")?;
        let index = *indices.entry(name).or_insert_with(|| {
            groups.push((Some(name.to_owned()), Vec::new()));
            groups.len() - 1
        });
        groups[index].1.push(at);
    }
    Ok(groups)
}

/// Returns the last numeric column other than `except`.
fn last_numeric(csv: &CsvTable, except: Option<usize>) -> Result<usize> {
    let mut columns = (0..csv.names.len()).rev().filter(|&column| Some(column) != except);
    let found = columns.find(|&column| csv.is_numeric(column) && !TimeAxis::is_in(csv, column));
    found.with_context(|| {
        format!(
            "expected a numeric column, but none of {} starts with a number{}",
            csv.column_list(),
            csv.delimiter_hint()
        )
    })
}

/// Fills missing values by linear interpolation, and at both ends with the nearest value. Returns
/// `None` if all values are missing.
fn interpolate(values: &[Option<f64>]) -> Option<Vec<f64>> {
    let known: Vec<(usize, f64)> =
        values.iter().enumerate().filter_map(|(i, v)| v.map(|v| (i, v))).collect();
    let (&(first, first_value), &(last, last_value)) = (known.first()?, known.last()?);
    let mut filled = vec![first_value; first];
    for pair in known.windows(2) {
        let [(i, a), (j, b)] = pair else { unreachable!("windows of two") };
        let difference = (b - a) / (j - i) as f64;
        filled.extend((0..j - i).map(|k| a + difference * k as f64));
    }
    filled.extend(vec![last_value; values.len() - last]);
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with one series.
    struct One(SeriesTable);

    impl std::ops::Deref for One {
        type Target = Series;

        fn deref(&self) -> &Series {
            &self.0.series[0]
        }
    }

    impl One {
        fn name(&self) -> String {
            self.0.name()
        }
    }

    fn read(text: &str, column: Option<&str>) -> Result<One> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let options = CsvOptions { missing: vec!["-99".to_owned()], ..CsvOptions::default() };
        SeriesTable::read(file.path(), column, None, options).map(One)
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
        assert!(error(text, Some("a,1")).contains("column `1` is listed twice"));
    }

    #[test]
    fn missing_values_are_interpolated_linearly() {
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
    fn columns_are_found_by_name_number_or_default() {
        let text = "\u{feff}a,b,c\n1,2,x\n3,4,y\n";
        assert_eq!(read(text, None).unwrap().values(), [2.0, 4.0]);
        assert_eq!(read(text, Some("a")).unwrap().values(), [1.0, 3.0]);
        assert_eq!(read(text, Some("2")).unwrap().name(), "b");
        assert_eq!(read("1,2\n3,4\n", None).unwrap().name(), "2");
        assert_eq!(read("5\n6\n", None).unwrap().values(), [5.0, 6.0]);
    }

    #[test]
    fn errors_name_the_line() {
        assert!(error("a,b\n1,2\n3,four\n", None).contains("line 3: `four` in column `b`"));
        for odd in ["NaN", "inf", "1e999", "1,234", "$5"] {
            let text = format!("a\n1\n2\n\"{odd}\"\n");
            assert!(error(&text, None).contains(&format!(": line 4: `{odd}`")), "{odd}");
        }
        assert!(error("a,b\n1,2\n", Some("z")).contains("the file has the columns `a`, `b`"));
        assert!(error("a,b\n1,2\n", Some("3")).contains("the file has the columns `a`, `b`"));
        assert!(error("a,b\n1,2\n3\n", None).contains("cannot read"));
        assert!(error("a,b\nx,y\n", None).contains("starts with a number"));
        assert!(error("a\n\"\"\nNA\n", Some("a")).contains("holds no number"));
        assert!(error("", None).contains("is empty"));
        assert!(error("a,b\n", None).contains("no rows"));
        assert!(error("v,v\n1,2\n", Some("v")).contains("by its number: #1 or #2"));
        assert!(error("day:v\na:2\n", None).contains("none of `day:v` starts with a number"));
    }

    #[test]
    fn messages_stay_on_one_line_for_any_cell() {
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
        let series = read("t,v\n2020-01-01T00:00,1\n2020-01-01T12:00,2\n", None).unwrap();
        let years = series.years.as_ref().unwrap();
        assert!((years[1] - years[0] - 0.5 / 365.25).abs() < 1e-9, "{years:?}");
    }

    /// Tables with bytes changed, removed, repeated and inserted: each is read or refused.
    #[test]
    fn no_table_makes_the_reader_panic() {
        use rand::rngs::SmallRng;
        use rand::{RngExt, SeedableRng};
        const TABLES: [&str; 6] = [
            "date,sales\n2024-03-04T05:06:07+01:00,1.5\n2024-03-05T05:06:07Z,2\n",
            "Datum;Umsatz, EUR\n04.03.24;1.234,5\n05.03.24;20,5 €\n",
            "time\tv\n1700000000\t1'234\n1700000060\t1 234,5\n",
            "t|v\n5:06 PM|\"a\nb\"\n17:07|1,234\n",
            "\u{feff}id,x\ns0,\"20,8\"\ns0,%\n",
            "2024-03,-\n2024-04,+1.234.567\n",
        ];
        const INSERTED: [&str; 10] = ["\"", ",", ";", ".", "\n", "-", "ß", "\u{202f}", "9", "T"];
        let mut random = SmallRng::seed_from_u64(7);
        let file = tempfile::NamedTempFile::new().unwrap();
        for i in 0..3_000 {
            let mut bytes = TABLES[i % TABLES.len()].as_bytes().to_vec();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..4) {
                    0 => bytes[at] = random.random(),
                    1 => _ = bytes.drain(at..bytes.len().min(at + 3)),
                    2 => bytes.extend_from_within(at..),
                    _ => {
                        let word = INSERTED[random.random_range(0..INSERTED.len())];
                        bytes.splice(at..at, word.bytes());
                    }
                }
                if bytes.is_empty() {
                    break;
                }
            }
            std::fs::write(file.path(), &bytes).unwrap();
            let Ok(csv) = CsvTable::read(file.path(), CsvOptions::default()) else { continue };
            let all: Vec<_> = (0..csv.names.len()).collect();
            let rows: Vec<_> = (0..csv.rows().len()).collect();
            let groups = std::slice::from_ref(&rows);
            let times = TimeColumn::all(&csv, all.iter().copied(), groups);
            let axis = TimeAxis::find(&csv, &times, &rows, &mut Vec::new());
            _ = axis.map(|axis| axis.map(|axis| axis.years()));
            for column in all {
                csv.rows().for_each(|row| _ = csv.number(row, column, ""));
                _ = csv.is_mostly_numeric(column);
            }
        }
    }
}
