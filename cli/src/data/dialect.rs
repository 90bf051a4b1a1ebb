//! [`Dialect`]: the delimiter and the quote of a table, judged over its lines.

use crate::data::numbers::OddNumber;

/// How the cells of a table are separated and quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    pub delimiter: u8,
    pub quote: u8,
}

/// The delimiters that are judged, the most usual first.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The rows that are judged.
const ROWS: usize = 200;

impl Dialect {
    /// Judges the quote of a table with this delimiter: `'` if every cell that begins with it also
    /// ends with it in the same line, and none begins with `"`; else `"`.
    pub fn with_delimiter(text: &str, delimiter: u8) -> Self {
        let is_single = text.contains('\'') && {
            let quoted = text.lines().map(|line| single_quoted(line, char::from(delimiter)));
            quoted.sum::<Option<usize>>().is_some_and(|count| count > 0)
        };
        Self { delimiter, quote: if is_single { b'\'' } else { b'"' } }
    }

    /// Returns a reader of rows without a header.
    pub fn reader(self, text: &str) -> csv::Reader<&[u8]> {
        let Self { delimiter, quote } = self;
        let mut builder = csv::ReaderBuilder::new();
        builder.delimiter(delimiter).quote(quote).has_headers(false).from_reader(text.as_bytes())
    }
}

/// Returns the number of cells of a line that are quoted by `'`. Returns `None` if a cell begins
/// with `'` and does not end with it, or begins with `"`.
fn single_quoted(line: &str, delimiter: char) -> Option<usize> {
    let (mut rest, mut count) = (line, 0);
    loop {
        rest = rest.trim_start_matches(' ');
        if rest.starts_with('"') {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('\'') {
            let end = closing_quote(inner)?;
            rest = inner[end + 1..].trim_start_matches(' ');
            if !(rest.is_empty() || rest.starts_with(delimiter)) {
                return None;
            }
            count += 1;
        }
        match rest.find(delimiter) {
            Some(at) => rest = &rest[at + delimiter.len_utf8()..],
            None => return Some(count),
        }
    }
}

/// Returns the place of the quote that ends a cell. Two quotes in a row are one inside it.
fn closing_quote(inner: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + inner[from..].find('\'')?;
        if !inner[at + 1..].starts_with('\'') {
            return Some(at);
        }
        from = at + 2;
    }
}

/// The delimiters that `--delimiter` takes.
pub const KNOWN: [u8; 6] = [b',', b';', b'|', b':', b' ', b'\t'];

/// Splits a first line such as `sep=;`, which spreadsheets write, from the table after it. Returns
/// the delimiter that it names.
pub fn separator_line(text: &str) -> (Option<u8>, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    let line = line.trim_end_matches('\r').trim_matches('"');
    let (name, delimiter) = line.split_at_checked(4).unwrap_or_default();
    match delimiter.as_bytes() {
        [delimiter] if name.eq_ignore_ascii_case("sep=") && KNOWN.contains(delimiter) => {
            (Some(*delimiter), rest)
        }
        _ => (None, text),
    }
}

/// Returns the delimiter of a table, or `None` if its lines hold none. It is the one that gives all
/// rows the same number of cells, at least two; of several, the one that gives the most values
/// (`is_value`), then the most columns.
pub fn judge(text: &str, is_value: impl Fn(&str) -> bool) -> Option<u8> {
    let scores = DELIMITERS.map(|delimiter| Score::of(text, delimiter, &is_value));
    let best = scores.iter().flatten().copied().reduce(|best, score| {
        let (a, b) = (score.values * best.cells, best.values * score.cells);
        if a > b || a == b && score.columns > best.columns { score } else { best }
    });
    best.map(|score| score.delimiter)
}

/// How a text looks with a delimiter.
#[derive(Clone, Copy)]
struct Score {
    delimiter: u8,
    columns: usize,
    cells: usize,
    values: usize,
}

impl Score {
    /// Returns `None` if the rows have different numbers of cells, or one.
    fn of(text: &str, delimiter: u8, is_value: impl Fn(&str) -> bool) -> Option<Self> {
        if !text.contains(char::from(delimiter)) {
            return None;
        }
        let mut reader = Dialect::with_delimiter(text, delimiter).reader(text);
        let mut score = Self { delimiter, columns: 0, cells: 0, values: 0 };
        for record in reader.records().take(ROWS) {
            let record = record.ok()?;
            score.columns = record.len();
            score.cells += record.len();
            let is_value =
                |cell: &&str| is_value(cell.trim()) || OddNumber::of(cell.trim()).is_some();
            score.values += record.iter().filter(is_value).count();
        }
        (score.columns > 1).then_some(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Option<char> {
        let is_value = |cell: &str| {
            cell.parse::<f64>().is_ok() || (cell.len() == 10 && cell.starts_with("2024-"))
        };
        judge(text, is_value).map(char::from)
    }

    #[test]
    fn delimiters_are_judged_over_lines() {
        for (text, expected) in [
            ("a,b\n1,2\n3,4\n", Some(',')),
            ("Datum;Umsatz, EUR\n2024-01-01;20,0\n2024-01-02;22,5\n", Some(';')),
            ("Datum;Umsatz\n2024-01-01;20,0\n2024-01-02;22,5\n", Some(';')),
            ("a\tb, c\n1\t2\n3\t4\n", Some('\t')),
            ("a|b\n1|2\n", Some('|')),
            ("id,\"note; more\"\n1,\"x; y\"\n", Some(',')),
            ("a,b;c\n1,2;3\n", Some(';')),
            ("a,b;c\nx,y;z\n", Some(',')),
            ("v\n1.5\n2.5\n", None),
            // Decimal commas of a single column.
            ("v\n1,5\n2,5\n", None),
            ("id,x,y\n1,2\n", None),
            ("", None),
        ] {
            assert_eq!(judged(text), expected, "{text:?}");
        }
    }

    #[test]
    fn single_quotes_are_judged_by_cells_that_begin_and_end_with_them() {
        for (text, expected) in [
            ("'a','b'\n'x, y','1'\n", '\''),
            ("a,b\n'x',1\n", '\''),
            ("a,b\n\"x\",1\n", '"'),
            ("a,b\n\"it's 'odd'\",'x'\n", '"'),
            ("a,b\n1'234,2\n", '"'),
            ("a,b\n'tis,2\n", '"'),
            // As many cells begin with the quote as end with it, but they are not the same.
            ("town,v\n's-Hertogenbosch,1\nSt. James',2\n", '"'),
            ("a,b\n'tis,the dogs'\n", '\''),
            ("a,b\n'it''s, one',2\n", '\''),
            ("a,b\n'x',1\n'y' z,1\n", '"'),
            ("a,b\n'two\nlines',1\n", '"'),
            ("a,b\n1,2\n", '"'),
        ] {
            let Dialect { quote, .. } = Dialect::with_delimiter(text, b',');
            assert_eq!(char::from(quote), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_may_name_the_delimiter() {
        assert_eq!(separator_line("sep=;\r\na;b\n"), (Some(b';'), "a;b\n"));
        assert_eq!(separator_line("sep= \na b\n"), (Some(b' '), "a b\n"));
        assert_eq!(separator_line("\"SEP=\t\"\na\tb\n"), (Some(b'\t'), "a\tb\n"));
        for text in ["sep=é\na\n", "sep=x\na\n", "sep=\na\n", "sepal,b\n1,2\n", "é\n", ""] {
            assert_eq!(separator_line(text), (None, text));
        }
    }
}
