//! Tables from bytes, for the fuzz target of the tables and for the test that reads what it kept.
//! The first bytes choose the command, its options and the encoding; the others become the file.

#![allow(clippy::cast_possible_truncation, reason = "bytes are cut on purpose")]

use std::fmt::Write;

/// A table file, and how it is read.
pub struct TableInput {
    /// `train` or `forecast`.
    pub command: &'static str,
    /// The further arguments of that command.
    pub arguments: Vec<String>,
    pub file: Vec<u8>,
}

/// Cells that readers judge: numbers, marks, missing values, words, quotes, time stamps.
#[rustfmt::skip]
const CELLS: [&str; 72] = [
    "", "0", "1", "2", "-1", "3.5", "1,5", "1.234", "1.234,5", "1,234.5", "1 234,5", "1'234.5",
    "12,34,567", "1e300", "-1e300", "1e308", "1e-320", "1e999", "nan", "inf", "-inf", "NA", "n/a",
    "null", "None", "-99", "€5", "5 %", "$1", "(1)", "0x10", "+1", "1_000", "007",
    "9007199254740993", "1.7976931348623157e308", "a", "b", "a ", "x y", "\"a\"", "\"a,b\"",
    "\"a\nb\"", "\"", "id", "time", "value", "label", "é", "\u{a0}", "\u{feff}", "日付", "\0",
    "2020-01-01", "2020-01-02", "2020-02-29", "2021-02-29", "31.12.2020", "1/2/2020", "13/02/2020",
    "2020-01-01T00:00:00", "2020-01-01 00:00:00.001", "2020-01-01T00:00:00+02:00",
    "2020-01-01T24:00:00Z", "0001-01-01", "9999-12-31", "20200101", "2020-13-01", "2020",
    "1577836800", "12:30", "2020-01",
];

const DELIMITERS: [&str; 7] = [",", ";", "\t", "|", ":", " ", ","];
const LINE_ENDS: [&str; 4] = ["\n", "\r\n", "\n\n", "\r"];

/// Reads bytes one by one; zeros after their end.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> usize {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first.into()
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next() % of.len()]
    }
}

impl TableInput {
    pub fn of(bytes: &[u8]) -> Self {
        let mut bytes = Bytes(bytes);
        let command = bytes.one_of(&["forecast", "train"]);
        let arguments = arguments(command, &mut bytes);
        let make = bytes.one_of(&[raw, tokens, grid]);
        let encode = bytes.one_of(&[utf8, utf8, with_mark, utf16_le, utf16_be, cut]);
        let text = make(&mut bytes);
        Self { command, arguments, file: encode(text) }
    }
}

fn arguments(command: &str, bytes: &mut Bytes<'_>) -> Vec<String> {
    const COLUMNS: [&str; 8] = ["", "1", "2", "3", "#4", "value", "2,3", "1,2"];
    let mut arguments = Vec::new();
    let mut option = |name: &str, value: &str| {
        if !value.is_empty() {
            arguments.push(format!("--{name}={value}"));
        }
    };
    option("delimiter", bytes.one_of(&["", "", ",", ";", "tab", "|", ":", " "]));
    option("decimal", bytes.one_of(&["", "", ".", ","]));
    option("thousands", bytes.one_of(&["", "", ",", ".", "'", "space"]));
    option("header", bytes.one_of(&["", "", "yes", "no"]));
    option("missing", bytes.one_of(&["", "", "NA", "-99", "a"]));
    if command == "forecast" {
        option("column", bytes.one_of(&COLUMNS));
        option("series", bytes.one_of(&["", "", "1", "2", "id"]));
        let sizes = bytes.next();
        option("input", ["1", "3", "8", "99999999999"][sizes % 4]);
        option("horizon", ["1", "2", "5", "99999999999"][sizes / 4 % 4]);
        option("season", ["1", "2", "4", "99999999999"][sizes / 16 % 4]);
    } else {
        let task = bytes.next();
        let task_name = ["classify", "label", "regress", "regress"][task % 4];
        option("task", task_name);
        let window = ["", "1", "3", "99999999999"][task / 4 % 4];
        option("window", window);
        if !window.is_empty() {
            option("stride", ["", "1", "2", "99999999999"][task / 16 % 4]);
        }
        if task_name == "regress" {
            option("per", ["", "", "row", "sequence"][task / 64]);
        }
        option("sequence", bytes.one_of(&["", "none", "1", "2", "id"]));
        option("label", bytes.one_of(&["", "", "3", "label"]));
        option("features", bytes.one_of(&COLUMNS));
        option("categorical", bytes.one_of(&COLUMNS));
        option("time", bytes.one_of(&["", "", "none", "1", "2", "time"]));
        option("holdout", bytes.one_of(&["", "0.5", "0.999"]));
    }
    arguments
}

/// The bytes themselves.
fn raw(bytes: &mut Bytes<'_>) -> Vec<u8> {
    bytes.0.to_vec()
}

/// A cell, a delimiter or the end of a line for each byte.
fn tokens(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let token = |&byte: &u8| match usize::from(byte) {
        byte if byte < CELLS.len() => CELLS[byte],
        byte if byte.is_multiple_of(3) => LINE_ENDS[byte / 3 % 3],
        byte => DELIMITERS[byte % DELIMITERS.len()],
    };
    bytes.0.iter().map(token).collect::<String>().into()
}

/// A table with a kind for each column, and then some cells replaced.
fn grid(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let columns = 1 + bytes.next() % 5;
    let rows = bytes.next();
    let (delimiter, end) = (bytes.one_of(&DELIMITERS), bytes.one_of(&LINE_ENDS));
    let has_header = bytes.next().is_multiple_of(2);
    let kinds: Vec<_> = (0..columns).map(|_| (bytes.next(), bytes.next())).collect();
    let cell = |row: usize, (kind, step): (usize, usize)| generated(kind, step, row);
    let mut table: Vec<Vec<String>> =
        (0..rows).map(|row| kinds.iter().map(|&kind| cell(row, kind)).collect()).collect();
    if has_header {
        let names = ["id", "time", "value", "label", "value"];
        table.insert(0, names[..columns].iter().map(|&name| name.to_owned()).collect());
    }
    while !bytes.0.is_empty() && !table.is_empty() {
        let (row, column) = (bytes.next() % table.len(), bytes.next() % columns);
        table[row][column] = bytes.one_of(&CELLS).to_owned();
    }
    let lines = table.iter().map(|row| row.join(delimiter) + end);
    lines.collect::<String>().into()
}

/// Returns the cell of a row in a generated column.
fn generated(kind: usize, step: usize, row: usize) -> String {
    let mut cell = String::new();
    let days = row * (1 + step % 40);
    let (y, m, d) = date(days);
    let seconds = row * step % 86400;
    let (h, min, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match kind % 16 {
        0 => write!(cell, "{}", row * step % 97),
        1 => write!(cell, "{}.{}", row * step % 7, row % 100),
        2 => write!(cell, "{},{:02}", row * step % 7, row % 100),
        3 => write!(cell, "{},{:03}.{}", row, row * step % 1000, step),
        4 => write!(cell, "{}.{:03}", row, row * step % 1000),
        5 => write!(cell, "s{}", row / (1 + step % 30)),
        6 => write!(cell, "{}", ["a", "b", "c"][row / (1 + step % 8) % 3]),
        7 => write!(cell, "{}", row % (1 + step % 8)),
        8 => write!(cell, "{y:04}-{m:02}-{d:02}"),
        9 => write!(cell, "{d:02}.{m:02}.{y:04}"),
        10 => write!(cell, "{m}/{d}/{y:04}"),
        11 => write!(cell, "{y:04}-{m:02}-{d:02}T{h:02}:{min:02}:{s:02}"),
        12 => write!(cell, "2020-03-01 {h:02}:{min:02}:{s:02}.{:03}", row % 1000),
        13 => write!(cell, "{y:04}{m:02}{d:02}"),
        14 => write!(cell, "{y:04}-{m:02}"),
        _ => write!(cell, "{}", 1990 + row * (step % 3)),
    }
    .expect("a string takes any text");
    cell
}

/// Returns the date some days after 2019-12-25, in months of 28 to 31 days.
fn date(mut days: usize) -> (usize, usize, usize) {
    days += 358;
    let (mut year, mut month) = (2019, 1);
    let is_leap = |year: usize| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    loop {
        let length = match month {
            2 if is_leap(year) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if days < length {
            return (year, month, days + 1);
        }
        days -= length;
        (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    }
}

fn utf8(text: Vec<u8>) -> Vec<u8> {
    text
}

fn with_mark(text: Vec<u8>) -> Vec<u8> {
    [b"\xef\xbb\xbf", &text[..]].concat()
}

fn utf16(text: &[u8], to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let text = format!("\u{feff}{}", String::from_utf8_lossy(text));
    text.encode_utf16().flat_map(to_bytes).collect()
}

fn utf16_le(text: Vec<u8>) -> Vec<u8> {
    utf16(&text, u16::to_le_bytes)
}

fn utf16_be(text: Vec<u8>) -> Vec<u8> {
    utf16(&text, u16::to_be_bytes)
}

/// UTF-16 whose last character is cut.
fn cut(text: Vec<u8>) -> Vec<u8> {
    let mut text = utf16(&text, u16::to_le_bytes);
    text.pop();
    text
}
