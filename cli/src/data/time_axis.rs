//! [`TimeAxis`]: a column of time stamps. Their form is judged over the column's cells.

use std::cmp::Reverse;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use chrono::{Datelike, NaiveDateTime, NaiveTime, TimeDelta};

use crate::data::csv_table::{CsvRow, CsvTable};
use crate::data::timestamps::{TimeFormat, duration};
use crate::ui::output::quote;

/// The times of a table's rows, in ascending order.
pub struct TimeAxis {
    pub times: Vec<NaiveDateTime>,
    is_time_of_day: bool,
}

/// A fraction of the rows that are not the first at their time, above which a file is taken for one
/// of several series.
const MAX_REPEATED: f64 = 0.1;

impl TimeAxis {
    /// Finds the time axis of some rows among `columns`: the first whose time stamps are in order.
    /// Adds to `notes` if there is none, or if it is uneven.
    ///
    /// # Errors
    /// Those of [`Self::read`] for the first column of days, if no column is in order.
    pub fn find(
        csv: &CsvTable,
        columns: &[TimeColumn],
        rows: &[usize],
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        let mut refused = None;
        for column in columns {
            match Self::read(csv, *column, rows, notes) {
                Ok(axis) => return Ok(Some(axis)),
                // Times of day may be durations.
                Err(_) if column.format == TimeFormat::Time => {}
                Err(error) => _ = refused.get_or_insert(error),
            }
        }
        if refused.is_none() {
            notes.push(
                "no column has time stamps that are known; the rows are taken in the file's order"
                    .to_owned(),
            );
        }
        refused.map_or(Ok(None), Err)
    }

    /// Returns true if most of the first cells of a column are time stamps.
    pub fn is_in(csv: &CsvTable, column: usize) -> bool {
        !formats_of(csv, column).is_empty()
    }

    /// Reads the time stamps of a column in some rows.
    ///
    /// # Errors
    /// If a cell is no time stamp in the format of the others, or if rows are not in ascending
    /// order, or if so many time stamps repeat that the file must hold several series.
    fn read(
        csv: &CsvTable,
        column: TimeColumn,
        rows: &[usize],
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let axis = Self::unordered(csv, column, rows.iter().map(|&row| csv.row(row)))?;
        let name = column.name(csv);
        notes.extend(axis.check_order(&name, column, |at| csv.row(rows[at]))?);
        notes.extend(axis.gaps(&name));
        Ok(axis)
    }

    /// Reads the time stamps of a column whose rows may have any order.
    ///
    /// # Errors
    /// If a cell is no time stamp in the format of the others.
    fn unordered<'a>(
        csv: &CsvTable,
        column: TimeColumn,
        rows: impl ExactSizeIterator<Item = CsvRow<'a>>,
    ) -> Result<Self> {
        let mut times = Vec::with_capacity(rows.len());
        for row in rows {
            times.push(column.time(csv, row)?);
        }
        Ok(Self { times, is_time_of_day: column.format == TimeFormat::Time })
    }

    /// Reads the time stamps of a table's sequences, whose rows they must order. They are in one
    /// column, or in one of days and one of times of day. Returns `None` if there are times of day
    /// only. Adds to `notes` if some repeat or are unevenly spaced. With `is_even`, many that
    /// repeat are refused: the rows must be those of one recording.
    ///
    /// # Errors
    /// If the column has no time stamps, or those of a sequence are not in ascending order, or so
    /// many repeat that a sequence must hold several.
    pub fn of_sequences(
        csv: &CsvTable,
        columns: &[usize],
        sequences: &[Range<usize>],
        is_even: bool,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        let groups: Vec<Vec<usize>> = sequences.iter().map(|rows| rows.clone().collect()).collect();
        let found = match columns {
            [column] => TimeColumn::new(csv, *column, &groups),
            [day, time] => TimeColumn::joined(csv, *day, *time, &groups),
            _ => None,
        };
        let names = || columns.iter().map(|&column| quote(&csv.names[column]));
        let found = found.with_context(|| match columns.len() {
            1 => format!("column {} has no time stamps", names().collect::<String>()),
            _ => format!(
                "{} are not a column of days and one of times of day",
                names().collect::<Vec<_>>().join(" and ")
            ),
        })?;
        let name = found.name(csv);
        let axis = Self::unordered(csv, found, csv.rows())?;
        if axis.is_time_of_day {
            return Ok(None);
        }
        let pairs = || sequences.iter().flat_map(|rows| rows.start + 1..rows.end);
        let cell = |row: usize| found.cell(csv.row(row));
        let mut repeated = Vec::new();
        for row in pairs() {
            let [before, now] = [axis.times[row - 1], axis.times[row]];
            ensure!(
                before <= now,
                "line {}: {} comes after {} in column {name}; expected the rows of a sequence in the order of time, \
                 or --time none",
                csv.row(row).line,
                cell(row),
                cell(row - 1)
            );
            repeated.extend((before == now).then_some(row));
        }
        if let Some(&first) = repeated.first() {
            let (line, count, all) = (csv.row(first).line, repeated.len(), pairs().count());
            ensure!(
                !is_even || count as f64 <= MAX_REPEATED * all as f64,
                "line {line}: {} in column {name} repeats, as do {count} of {all} time stamps; expected one row a time: \
                 if the file holds several sequences, pass the column that names them to --sequence",
                cell(first)
            );
            notes.push(format!(
                "rows of column {name} with the time stamp of the row before: {count}, the first in line {line}"
            ));
        }
        let gaps = pairs().map(|row| axis.times[row] - axis.times[row - 1]);
        notes.extend(uneven(gaps.collect(), &name));
        Ok(Some(axis))
    }

    /// Checks the order of the rows that `row_at` returns. Returns a note if some repeat.
    fn check_order<'a>(
        &self,
        name: &str,
        column: TimeColumn,
        row_at: impl Fn(usize) -> CsvRow<'a>,
    ) -> Result<Option<String>> {
        let pairs = || (1..).zip(self.times.windows(2));
        let cell = |row: usize| column.cell(row_at(row));
        // A new day begins at midnight.
        let is_back = |pair: &[NaiveDateTime]| pair[1] < pair[0] && !self.is_time_of_day;
        if let Some((row, _)) = pairs().find(|(_, pair)| is_back(pair)) {
            let sorted = match self.times.is_sorted_by_key(Reverse) {
                true => "the rows are sorted newest first; sort them oldest first",
                false => {
                    "expected rows sorted by time, oldest first (when summer time ends, local times repeat: write \
                     them in UTC or with their offset)"
                }
            };
            bail!(
                "line {}: {} comes after {} in column {name}; {sorted}",
                row_at(row).line,
                cell(row),
                cell(row - 1)
            );
        }
        let repeated: Vec<_> =
            pairs().filter(|(_, pair)| pair[0] == pair[1]).map(|(row, _)| row).collect();
        let Some(&first) = repeated.first() else { return Ok(None) };
        let (line, cell) = (row_at(first).line, cell(first));
        if repeated.len() as f64 > MAX_REPEATED * self.times.len() as f64 {
            bail!(
                "line {line}: {cell} in column {name} repeats, as do {} of {} time stamps; expected one row a \
                 time: if the file holds several series, pass the column that names them to --series",
                repeated.len(),
                self.times.len()
            );
        }
        Ok(Some(format!(
            "rows of column {name} with the time stamp of the row before: {}, the first is {cell} in line \
             {line}; the rows are treated as evenly spaced",
            repeated.len()
        )))
    }

    /// Returns a note if the time stamps are not evenly spaced.
    fn gaps(&self, name: &str) -> Option<String> {
        uneven(self.times.windows(2).map(|pair| pair[1] - pair[0]).collect(), name)
    }

    /// Returns the times as fractional years, or `None` for times of day.
    pub fn years(&self) -> Option<Vec<f64>> {
        let year = |time: &NaiveDateTime| {
            let seconds = (time.time() - NaiveTime::MIN).num_seconds() as f64;
            f64::from(time.year()) + (f64::from(time.ordinal0()) + seconds / 86_400.0) / 365.25
        };
        (!self.is_time_of_day).then(|| self.times.iter().map(year).collect())
    }
}

/// Returns a note if these steps of a column are not even. Steps of zero do not count.
fn uneven(mut gaps: Vec<TimeDelta>, name: &str) -> Option<String> {
    gaps.retain(|gap| *gap > TimeDelta::zero());
    gaps.sort_unstable();
    let &usual = gaps.get(gaps.len() / 2)?;
    let is_odd = |&&gap: &&TimeDelta| gap * 4 > usual * 5 || gap * 5 < usual * 4;
    let odd = gaps.iter().filter(is_odd).count();
    (odd > 0).then(|| {
        format!(
            "steps in column {name} other than the usual {}: {odd} of {}, from {} to {}; the rows are treated as \
             evenly spaced",
            duration(usual),
            gaps.len(),
            duration(gaps[0]),
            duration(gaps[gaps.len() - 1])
        )
    })
}

/// The rows from whose cells the formats of a column are judged.
const JUDGED: usize = 100;

/// Returns the formats that read the most of a column's first cells, if they read more than half.
fn formats_of(csv: &CsvTable, column: usize) -> Vec<TimeFormat> {
    // Only a name tells the seconds since 1970 from other large numbers.
    let name = csv.names[column].to_lowercase();
    let is_named =
        ["time", "date", "stamp", "epoch", "unix"].iter().any(|word| name.contains(word))
            || ["ts", "t"].contains(&&*name);
    let is_possible = |format: &TimeFormat| is_named || !matches!(format, TimeFormat::Epoch(_));
    let first: Vec<_> = cells(csv, column).take(JUDGED).collect();
    let count =
        |format: TimeFormat| first.iter().filter(|cell| format.parse(cell).is_some()).count();
    let counts: Vec<_> =
        TimeFormat::all().filter(is_possible).map(|format| (format, count(format))).collect();
    let most = counts.iter().map(|&(_, count)| count).max().unwrap_or(0);
    let best = counts.iter().filter(|&&(_, count)| count == most && 2 * most > first.len());
    best.map(|&(format, _)| format).collect()
}

/// A column of time stamps, and their form.
#[derive(Clone, Copy)]
pub struct TimeColumn {
    index: usize,
    format: TimeFormat,
    /// The column with the times of day, if the first has days only.
    time_of_day: Option<usize>,
}

impl TimeColumn {
    /// Judges the form of a column's time stamps. `groups` has the rows of each series. Returns
    /// `None` if the column holds no time stamps.
    pub fn new(csv: &CsvTable, index: usize, groups: &[Vec<usize>]) -> Option<Self> {
        let formats = formats_of(csv, index);
        let time_of_day = None;
        if formats.len() < 2 {
            return formats.first().map(|&format| Self { index, format, time_of_day });
        }
        // 03/04/2024 may be in March or in April: later rows, or their order, tell.
        let format = formats.into_iter().min_by_key(|format| {
            let (mut count, mut longest) = (0, TimeDelta::zero());
            for rows in groups {
                let cells = rows.iter().map(|&row| csv.row(row).cell(index));
                let times: Vec<_> = cells.filter_map(|cell| format.parse(cell)).collect();
                count += times.len();
                let gaps = times.windows(2).map(|pair| (pair[1] - pair[0]).abs());
                longest = gaps.fold(longest, TimeDelta::max);
            }
            (Reverse(count), longest)
        });
        format.map(|format| Self { index, format, time_of_day })
    }

    /// Joins a column of days with one of times of day. Returns `None` if they are not.
    fn joined(csv: &CsvTable, day: usize, time: usize, groups: &[Vec<usize>]) -> Option<Self> {
        let [day, time] = [day, time].map(|column| Self::new(csv, column, groups));
        let (day, time) = (day?, time?);
        let fits = day.has_days_only(csv) && time.format == TimeFormat::Time;
        fits.then_some(Self { time_of_day: Some(time.index), ..day })
    }

    /// Returns the time stamps among `columns`. Days that repeat from row to row are joined with
    /// the first column of times of day.
    pub fn all(
        csv: &CsvTable,
        columns: impl Iterator<Item = usize>,
        groups: &[Vec<usize>],
    ) -> Vec<Self> {
        let mut all: Vec<_> = columns.filter_map(|column| Self::new(csv, column, groups)).collect();
        let Some(time) = all.iter().find(|column| column.format == TimeFormat::Time).copied()
        else {
            return all;
        };
        let repeats = |day: usize| {
            let cell = |row: usize| csv.row(row).cell(day);
            groups.iter().any(|rows| rows.windows(2).any(|pair| cell(pair[0]) == cell(pair[1])))
        };
        let is_open = |day: &&mut Self| day.has_days_only(csv) && repeats(day.index);
        if let Some(day) = all.iter_mut().find(is_open) {
            day.time_of_day = Some(time.index);
            all.retain(|column| column.index != time.index);
        }
        all
    }

    /// Returns the columns, those of days first.
    pub fn columns(self) -> impl Iterator<Item = usize> {
        [Some(self.index), self.time_of_day].into_iter().flatten()
    }

    /// Returns true if the cells have days without a time.
    fn has_days_only(self, csv: &CsvTable) -> bool {
        let is_midnight =
            |cell: &str| self.format.parse(cell).is_none_or(|time| time.time() == NaiveTime::MIN);
        matches!(self.format, TimeFormat::Day(_)) && cells(csv, self.index).all(is_midnight)
    }

    /// Returns the quoted names of the columns.
    fn name(self, csv: &CsvTable) -> String {
        let names = self.columns().map(|column| quote(&csv.names[column]));
        names.collect::<Vec<_>>().join(" and ")
    }

    /// Returns the quoted cells of a row.
    fn cell(self, row: CsvRow<'_>) -> String {
        let cells: Vec<_> = self.columns().map(|column| row.cell(column)).collect();
        quote(&cells.join(" "))
    }

    /// Returns the time of a row.
    ///
    /// # Errors
    /// If a cell is no time stamp in the format of the others.
    fn time(self, csv: &CsvTable, row: CsvRow<'_>) -> Result<NaiveDateTime> {
        let time = parse(csv, row, self.index, self.format)?;
        match self.time_of_day {
            None => Ok(time),
            Some(column) => {
                let of_day = parse(csv, row, column, TimeFormat::Time)?;
                Ok(time.date().and_time(of_day.time()))
            }
        }
    }
}

/// Returns the time of a cell.
fn parse(
    csv: &CsvTable,
    row: CsvRow<'_>,
    column: usize,
    format: TimeFormat,
) -> Result<NaiveDateTime> {
    let name = || quote(&csv.names[column]);
    match (row.cell(column), format.parse(row.cell(column))) {
        (_, Some(time)) => Ok(time),
        ("", None) => bail!(
            "line {}: column {} has no time stamp; expected one in every row, like the others in the format {}",
            row.line,
            name(),
            format.shown()
        ),
        (cell, None) => bail!(
            "line {}: {} in column {} is no time stamp; expected {} as in other rows; remove the row if it is not an \
             observation",
            row.line,
            quote(cell),
            name(),
            format.shown()
        ),
    }
}

/// Returns the cells of a column that are not missing.
fn cells(csv: &CsvTable, column: usize) -> impl Iterator<Item = &str> {
    csv.rows().map(move |row| row.cell(column)).filter(|cell| !csv.is_missing(cell))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::csv_table::CsvOptions;
    use crate::ui::output::causes;

    /// Reads the time stamps of the first column of a table.
    fn read(cells: &[&str]) -> Result<Option<TimeAxis>> {
        let file = tempfile::NamedTempFile::new()?;
        let rows = cells.iter().map(|cell| format!("\"{cell}\";1\n"));
        std::fs::write(file.path(), format!("time;v\n{}", rows.collect::<String>()))?;
        let options = CsvOptions { delimiter: Some(b';'), ..CsvOptions::default() };
        let csv = CsvTable::read(file.path(), options)?;
        let rows: Vec<_> = (0..csv.rows().len()).collect();
        let column = TimeColumn::new(&csv, 0, std::slice::from_ref(&rows));
        column.map(|column| TimeAxis::read(&csv, column, &rows, &mut Vec::new())).transpose()
    }

    fn times(cells: &[&str]) -> Vec<String> {
        let axis = read(cells).unwrap().expect("time stamps");
        axis.times.iter().map(|time| time.format("%Y-%m-%d %H:%M:%S%.f").to_string()).collect()
    }

    fn error(cells: &[&str]) -> String {
        causes(&read(cells).err().expect("an error"))
    }

    #[test]
    fn the_usual_forms_are_read() {
        for (cell, expected) in [
            ("2024-03-04", "2024-03-04 00:00:00"),
            ("2024/03/04 5:06", "2024-03-04 05:06:00"),
            ("20240304", "2024-03-04 00:00:00"),
            ("2024-03-04T05:06:07", "2024-03-04 05:06:07"),
            ("2024-03-04 05:06:07.25", "2024-03-04 05:06:07.250"),
            ("2024-03-04T05:06:07Z", "2024-03-04 05:06:07"),
            ("2024-03-04 05:06 UTC", "2024-03-04 05:06:00"),
            ("2024-03-04T05:06:07+01:00", "2024-03-04 04:06:07"),
            ("2024-03-04T05:06:07-0330", "2024-03-04 08:36:07"),
            ("2024-03-04 05:06:07+02", "2024-03-04 03:06:07"),
            ("14.03.2024", "2024-03-14 00:00:00"),
            ("14.03.24 07:30", "2024-03-14 07:30:00"),
            ("14/03/2024", "2024-03-14 00:00:00"),
            ("3/14/2024 1:30 PM", "2024-03-14 13:30:00"),
            ("3/14/24", "2024-03-14 00:00:00"),
            ("14-Mar-2024", "2024-03-14 00:00:00"),
            ("01-OCT-2024", "2024-10-01 00:00:00"),
            ("14-03-24", "2024-03-14 00:00:00"),
            ("2024.03.14", "2024-03-14 00:00:00"),
            ("14 March 2024 5:06", "2024-03-14 05:06:00"),
            ("Mar 14 2024", "2024-03-14 00:00:00"),
            ("Oct 14, 2024", "2024-10-14 00:00:00"),
            ("20240314T050607", "2024-03-14 05:06:07"),
            ("2024-03-14 05:06:07,25", "2024-03-14 05:06:07.250"),
            ("14/03/2024 3:00 p.m.", "2024-03-14 15:00:00"),
            ("2024-03", "2024-03-01 00:00:00"),
            ("05:06", "1970-01-01 05:06:00"),
            ("1700000000", "2023-11-14 22:13:20"),
            ("1700000000123", "2023-11-14 22:13:20.123"),
            ("1700000000123456", "2023-11-14 22:13:20.123456"),
        ] {
            assert_eq!(times(&[cell]), [expected], "{cell}");
        }
        for cell in
            ["12", "1.5", "2024-13-01", "2024", "abc", "", "25:00", "1-2-3", "1.2.3", "31.02.2024"]
        {
            assert!(read(&[cell]).unwrap().is_none(), "{cell}");
        }
    }

    #[test]
    fn days_and_months_are_told_apart_by_their_order() {
        assert_eq!(times(&["30/03/2024", "31/03/2024", "01/04/2024"])[2], "2024-04-01 00:00:00");
        assert_eq!(times(&["03/30/2024", "03/31/2024", "04/01/2024"])[2], "2024-04-01 00:00:00");
        // Only the even spacing tells these apart.
        assert_eq!(times(&["01/04/2024", "02/04/2024", "03/04/2024"])[2], "2024-04-03 00:00:00");
        assert_eq!(times(&["04/01/2024", "04/02/2024", "04/03/2024"])[2], "2024-04-03 00:00:00");
    }

    /// The jump from one series to the next says nothing.
    #[test]
    fn the_form_is_judged_within_each_series() {
        let month = |at: usize| format!("01/{:02}/{}\n", at % 12 + 1, 2024 + at / 12);
        let months: Vec<_> = (0..24).map(month).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("v,time\n1,{0}2,{0}", months.join("1,").as_str());
        std::fs::write(file.path(), text).unwrap();
        let csv = CsvTable::read(file.path(), CsvOptions::default()).unwrap();
        let groups = [(0..24).collect(), (24..48).collect::<Vec<_>>()];
        let column = TimeColumn::new(&csv, 1, &groups).unwrap();
        let axis = TimeAxis::read(&csv, column, &groups[1], &mut Vec::new()).unwrap();
        assert_eq!(axis.times[1].format("%Y-%m-%d").to_string(), "2024-02-01");
    }

    #[test]
    fn cells_that_are_no_time_stamps_are_named() {
        let message = error(&["2024-01-01", "2024-01-02", "Total"]);
        assert!(message.contains("line 4: `Total` in column `time` is no time stamp"), "{message}");
        assert!(message.contains("YYYY-MM-DD"), "{message}");
        let message = error(&["2024-01-01", "", "2024-01-03", "2024-01-04"]);
        assert!(message.contains("line 3: column `time` has no time stamp"), "{message}");
    }

    #[test]
    fn the_order_is_checked_to_the_second() {
        let message = error(&["2024-01-01 02:00", "2024-01-01 01:00", "2024-01-01 03:00"]);
        assert!(message.contains("line 3: `2024-01-01 01:00` comes after"), "{message}");
        let message = error(&["05.04.2024", "04.04.2024", "03.04.2024"]);
        assert!(message.contains("newest first; sort them oldest first"), "{message}");
        // One hour is twice in the local time, not with offsets.
        let summer = ["2024-10-27T02:30+02:00", "2024-10-27T02:00+01:00", "2024-10-27T02:30+01:00"];
        assert_eq!(times(&summer).len(), 3);
        // Times of day begin again each day.
        assert_eq!(times(&["23:00", "00:00", "01:00"]).len(), 3);
    }

    #[test]
    fn days_that_repeat_are_joined_with_times_of_day() {
        let read = |text: &str| -> Result<TimeAxis> {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), text)?;
            let csv = CsvTable::read(file.path(), CsvOptions::default())?;
            let rows: Vec<_> = (0..csv.rows().len()).collect();
            let columns = TimeColumn::all(&csv, 0..2, std::slice::from_ref(&rows));
            let axis = TimeAxis::find(&csv, &columns, &rows, &mut Vec::new())?;
            axis.context("no time stamps")
        };
        let text = "date,time,v\n01.02.2024,22:30,1\n01.02.2024,23:30,2\n02.02.2024,00:30,3\n";
        let axis = read(text).unwrap();
        let shown = |at: usize| axis.times[at].format("%Y-%m-%d %H:%M").to_string();
        assert_eq!([shown(0), shown(2)], ["2024-02-01 22:30", "2024-02-02 00:30"]);
        let message = causes(&read(&text.replace("23:30", "21:30")).err().unwrap());
        assert!(message.contains("line 3: `01.02.2024 21:30` comes after"), "{message}");
        assert!(message.contains("in column `date` and `time`"), "{message}");
        let message = causes(&read(&text.replace("23:30", "late")).err().unwrap());
        assert!(message.contains("line 3: `late` in column `time` is no time stamp"), "{message}");
        // Times of day beside days that do not repeat are something else.
        let axis = read("date,time,v\n2024-02-01,22:30,1\n2024-02-02,21:30,2\n").unwrap();
        assert_eq!(axis.times[1].time(), NaiveTime::MIN);
    }

    #[test]
    fn repeated_time_stamps_are_several_series_if_they_are_many() {
        let message = error(&["2024-01-01", "2024-01-01", "2024-01-02", "2024-01-02"]);
        assert!(message.contains("line 3: `2024-01-01` in column `time` repeats, as do 2 of 4"));
        let mut hours: Vec<_> = (0..20).map(|hour| format!("2024-01-01 {hour:02}:00")).collect();
        hours[5] = hours[4].clone();
        let hours: Vec<_> = hours.iter().map(String::as_str).collect();
        assert_eq!(times(&hours).len(), 20);
    }
}
