//! [`TimeFormat`]: the forms in which people write time stamps.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta};

/// How a day is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DayFormat {
    /// In the syntax of `chrono`.
    chrono: &'static str,
    shown: &'static str,
}

const fn day(chrono: &'static str, shown: &'static str) -> DayFormat {
    DayFormat { chrono, shown }
}

/// The usual forms. Where two read the same cells, the earlier one is preferred.
const DAYS: [DayFormat; 19] = [
    day("%Y-%m-%d", "YYYY-MM-DD"),
    day("%Y/%m/%d", "YYYY/MM/DD"),
    day("%Y.%m.%d", "YYYY.MM.DD"),
    day("%Y%m%d", "YYYYMMDD"),
    day("%d.%m.%Y", "DD.MM.YYYY"),
    day("%d.%m.%y", "DD.MM.YY"),
    day("%d/%m/%Y", "DD/MM/YYYY"),
    day("%m/%d/%Y", "MM/DD/YYYY"),
    day("%d/%m/%y", "DD/MM/YY"),
    day("%m/%d/%y", "MM/DD/YY"),
    day("%d-%m-%Y", "DD-MM-YYYY"),
    day("%m-%d-%Y", "MM-DD-YYYY"),
    day("%d-%m-%y", "DD-MM-YY"),
    day("%m-%d-%y", "MM-DD-YY"),
    day("%d-%b-%Y", "DD-Mon-YYYY"),
    day("%d-%b-%y", "DD-Mon-YY"),
    // %B takes short names, too.
    day("%d %B %Y", "DD Month YYYY"),
    day("%B %d %Y", "Month DD YYYY"),
    day("%B %d, %Y", "Month DD, YYYY"),
];

impl DayFormat {
    /// Splits a cell into the day and the time after it, at a space or a `T` between digits.
    fn split(self, cell: &str) -> (&str, Option<&str>) {
        let spaces = self.chrono.matches(' ').count();
        let is_digit = |at: usize| cell.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
        let is_end = |&(at, c): &(usize, char)| {
            c == ' ' || (c == 'T' && at > 0 && is_digit(at - 1) && is_digit(at + 1))
        };
        match cell.char_indices().filter(is_end).nth(spaces) {
            Some((at, _)) => (&cell[..at], Some(&cell[at + 1..])),
            None => (cell, None),
        }
    }
}

/// How a time stamp is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TimeFormat {
    /// A day, or a day with a time and perhaps an offset from UTC.
    Day(DayFormat),
    /// A month, YYYY-MM.
    Month,
    /// A time of day.
    Time,
    /// Units since 1970, as many a second.
    Epoch(i64),
}

/// The units of an epoch: seconds, milliseconds, microseconds, nanoseconds.
const EPOCHS: [i64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];

/// The seconds since 1970 that an epoch may have: from 1990 to 2100. Other numbers are data.
const EPOCH_SECONDS: std::ops::Range<i64> = 631_152_000..4_102_444_800;

impl TimeFormat {
    /// Returns all forms, the preferred ones first.
    pub fn all() -> impl Iterator<Item = Self> {
        let days = DAYS.into_iter().map(Self::Day);
        days.chain([Self::Month, Self::Time]).chain(EPOCHS.map(Self::Epoch))
    }

    /// Returns the form for messages.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Day(DayFormat { shown, .. }) => shown,
            Self::Month => "YYYY-MM",
            Self::Time => "HH:MM",
            Self::Epoch(1) => "seconds since 1970",
            Self::Epoch(1_000) => "milliseconds since 1970",
            Self::Epoch(1_000_000) => "microseconds since 1970",
            Self::Epoch(_) => "nanoseconds since 1970",
        }
    }

    /// Returns the time of a cell, in UTC if the cell has an offset.
    pub fn parse(self, cell: &str) -> Option<NaiveDateTime> {
        match self {
            Self::Day(format) => {
                let (day, rest) = format.split(cell);
                // chrono takes 1-2-3 for a day of the year 1 or 3, and any length of YYYYMMDD.
                let mut numbers =
                    day.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
                let is_sound = match format.chrono {
                    "%Y%m%d" => day.len() == 8,
                    chrono if chrono.contains("%Y") => numbers.any(|n| n.len() == 4),
                    _ => numbers.all(|n| n.len() <= 2) && day.len() >= 6,
                };
                let day =
                    is_sound.then(|| NaiveDate::parse_from_str(day, format.chrono).ok())??;
                rest.map_or(Some(day.and_time(NaiveTime::MIN)), |rest| time_on(day, rest.trim()))
            }
            Self::Month => {
                let is_month = cell.len() == 7 && cell.as_bytes()[4] == b'-';
                let day = is_month.then(|| format!("{cell}-01"))?;
                NaiveDate::parse_from_str(&day, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)
            }
            Self::Time => {
                let time = time_of_day(cell).filter(|_| cell.contains(':'))?;
                Some(NaiveDate::from_ymd_opt(1970, 1, 1)?.and_time(time))
            }
            Self::Epoch(units) => {
                let count: i64 = cell.parse().ok()?;
                let (seconds, rest) = (count.div_euclid(units), count.rem_euclid(units));
                let nanoseconds = u32::try_from(rest * (1_000_000_000 / units)).ok()?;
                let time = DateTime::from_timestamp(seconds, nanoseconds)?;
                EPOCH_SECONDS.contains(&seconds).then(|| time.naive_utc())
            }
        }
    }
}

/// Returns true if a cell is a day, alone or with a time.
pub fn is_date(cell: &str) -> bool {
    // Cheap, because every cell is asked.
    cell.contains(|c: char| c.is_ascii_digit())
        && cell.len() >= 6
        && DAYS.into_iter().any(|format| TimeFormat::Day(format).parse(cell).is_some())
}

/// Returns a time of day, to the fraction of a second, on the 24-hour or the 12-hour clock.
fn time_of_day(text: &str) -> Option<NaiveTime> {
    const TIMES: [&str; 5] = ["%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%H%M%S"];
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let text = &*match text.contains(['.', ',']) {
        true => text.replace("a.m.", "AM").replace("p.m.", "PM").replace(',', ".").into(),
        false => std::borrow::Cow::from(text),
    };
    TIMES.iter().find_map(|format| NaiveTime::parse_from_str(text, format).ok())
}

/// Returns a time on a day, in UTC if the time has an offset: `Z`, `UTC`, `+01:00` or `+0100`.
fn time_on(day: NaiveDate, text: &str) -> Option<NaiveDateTime> {
    if let Some(time) = time_of_day(text) {
        return Some(day.and_time(time));
    }
    if let Some(time) = text.strip_suffix("UTC").or(text.strip_suffix('Z')) {
        return Some(day.and_time(time_of_day(time.trim())?));
    }
    let (time, offset) = text.split_at(text.rfind(['+', '-'])?);
    let digits: String = offset[1..].chars().filter(|&c| c != ':').collect();
    let digits = if digits.len() == 2 { format!("{digits}00") } else { digits };
    let is_sound = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let digits = is_sound.then_some(digits)?;
    let minutes: i64 = digits[..2].parse::<i64>().ok()? * 60 + digits[2..].parse::<i64>().ok()?;
    let minutes = if offset.starts_with('+') { minutes } else { -minutes };
    let local = day.and_time(time_of_day(time.trim())?);
    local.checked_sub_signed(TimeDelta::minutes(minutes))
}

/// Describes a duration in its largest whole unit.
pub fn duration(time: TimeDelta) -> String {
    let seconds = time.num_milliseconds() as f64 / 1e3;
    let units = [(86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")];
    let (length, unit) =
        units.into_iter().find(|&(length, _)| seconds >= length).unwrap_or((1.0, "seconds"));
    let count = seconds / length;
    let text = format!("{count:.1}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let unit = if text == "1" { &unit[..unit.len() - 1] } else { unit };
    format!("{text} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let seconds = TimeDelta::seconds;
        for (time, expected) in [
            (seconds(86_400), "1 day"),
            (seconds(3 * 86_400), "3 days"),
            (seconds(5_400), "1.5 hours"),
            (seconds(60), "1 minute"),
            (seconds(30), "30 seconds"),
            (TimeDelta::milliseconds(500), "0.5 seconds"),
        ] {
            assert_eq!(duration(time), expected);
        }
    }
}
