//! The delimiter of a table, judged over its lines.

use crate::data::numbers::OddNumber;

/// The delimiters that are judged, the most usual first.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The rows that are judged.
const ROWS: usize = 200;

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
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .from_reader(text.as_bytes());
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
}
