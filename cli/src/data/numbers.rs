//! [`NumberFormat`]: the marks in the numbers of a table, judged over its cells.

/// Marks that may stand between groups of three digits. A space stands for every kind of space.
pub const THOUSANDS: [char; 4] = [',', '.', '\'', ' '];

/// Kinds of spaces in numbers.
const SPACES: [char; 3] = [' ', '\u{a0}', '\u{202f}'];

/// Signs of currencies and percentages. Numbers with one are refused: whether 5 % is 5 or 0.05 is
/// the user's to say.
const SIGNS: [&str; 14] =
    ["$", "€", "£", "¥", "₹", "%", "EUR", "USD", "GBP", "CHF", "JPY", "SEK", "NOK", "DKK"];

/// The marks in numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NumberFormat {
    /// The decimal mark, a point or a comma.
    pub decimal: char,
    /// The mark between groups of three digits.
    pub thousands: Option<char>,
}

impl Default for NumberFormat {
    fn default() -> Self {
        Self { decimal: '.', thousands: None }
    }
}

impl NumberFormat {
    /// Returns the number in a cell.
    pub fn parse(self, cell: &str) -> Option<f64> {
        if self == Self::default() {
            return cell.parse().ok();
        }
        let (whole, fraction) = cell.split_at(cell.find(self.decimal).unwrap_or(cell.len()));
        let mut plain = match self.thousands.and_then(|mark| ungrouped(whole, mark)) {
            Some(plain) => plain,
            // A mark that is neither is none.
            None if whole.contains(['.', ',']) => return None,
            None => whole.to_owned(),
        };
        if let Some(digits) = fraction.strip_prefix(self.decimal) {
            if digits.contains(['.', ',']) {
                return None;
            }
            plain.push('.');
            plain.push_str(digits);
        }
        plain.parse().ok()
    }

    /// Describes marks other than a decimal point alone, for messages.
    pub fn describe(self) -> Option<String> {
        let thousands = self.thousands.map(|mark| format!("{mark:?} between thousands"));
        let decimal = (self.decimal == ',').then(|| "a decimal comma".to_owned());
        let all: Vec<_> = decimal.into_iter().chain(thousands).collect();
        (!all.is_empty()).then(|| all.join(" and "))
    }
}

/// Removes the marks between groups of three digits. Returns `None` if there are none, if a group
/// has another length, or if the first begins with 0.
fn ungrouped(whole: &str, mark: char) -> Option<String> {
    let is_mark = |c: char| c == mark || (mark == ' ' && SPACES.contains(&c));
    let mut groups = whole.split(is_mark);
    let first = groups.next()?;
    let digits = first.trim_start_matches(['+', '-']);
    let is_group = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
    let is_sound = (1..=3).contains(&digits.len())
        && is_group(digits)
        && !digits.starts_with('0')
        && groups.clone().next().is_some()
        && groups.all(|group| group.len() == 3 && is_group(group));
    is_sound.then(|| whole.replace(is_mark, ""))
}

/// The marks that the cells of a column, or of all columns, leave no doubt about.
#[derive(Clone, Default)]
pub struct MarksSeen {
    decimal_point: usize,
    decimal_comma: usize,
    thousands: Vec<char>,
    /// Cells such as `1.234`, which may be 1234.
    grouped_point: usize,
    /// Cells without a mark.
    whole: usize,
}

impl MarksSeen {
    pub fn of<'a>(cells: impl Iterator<Item = &'a str>) -> Self {
        let mut seen = Self::default();
        cells.for_each(|cell| seen.add(cell));
        seen
    }

    /// Adds what another column shows.
    pub fn extend(&mut self, other: &Self) {
        self.decimal_point += other.decimal_point;
        self.decimal_comma += other.decimal_comma;
        let new = other.thousands.iter().filter(|mark| !self.thousands.contains(mark));
        let new: Vec<_> = new.copied().collect();
        self.thousands.extend(new);
    }

    /// Returns true if there are marks other than a decimal point.
    pub fn shows_marks(&self) -> bool {
        self.decimal_comma > 0 || !self.thousands.is_empty()
    }

    /// Returns true if the points of a column may be decimal marks or stand between thousands:
    /// `600` beside `1.399`.
    pub fn is_ambiguous(&self) -> bool {
        self.grouped_point > 0 && self.whole > 0 && self.decimal_point == 0
    }

    /// Returns the marks. `thousands` is what the user has said.
    pub fn judge(&self, thousands: Option<char>) -> NumberFormat {
        let is_comma = match thousands {
            Some(mark) if [',', '.'].contains(&mark) => mark == '.',
            _ => self.decimal_comma > 0 && self.decimal_point == 0,
        };
        let decimal = if is_comma { ',' } else { '.' };
        let judged = match self.thousands[..] {
            [mark] if mark != decimal => Some(mark),
            _ => None,
        };
        NumberFormat { decimal, thousands: thousands.or(judged) }
    }

    fn add(&mut self, cell: &str) {
        let digits = cell.strip_prefix(['+', '-']).unwrap_or(cell);
        let is_mark = |c: char| THOUSANDS.contains(&c) || SPACES.contains(&c);
        let mut marks = digits.chars().filter(|c| !c.is_ascii_digit());
        match (marks.next(), marks.next()) {
            (None, _) => self.whole += usize::from(!digits.is_empty()),
            // Most numbers, and each cell is asked.
            (Some(mark @ ('.' | ',')), None) => {
                let is_grouped = ungrouped(digits, mark).is_some();
                match is_grouped {
                    // 1,234 may be either. 0,234 and 1234,567 may not.
                    true => self.grouped_point += usize::from(mark == '.'),
                    false if digits.len() > 1 => self.decimal(mark),
                    false => {}
                }
            }
            _ if digits.contains(|c: char| !c.is_ascii_digit() && !is_mark(c)) => {}
            _ => self.add_grouped(cell),
        }
    }

    /// Adds a cell that has several marks, or one that is no decimal mark.
    fn add_grouped(&mut self, cell: &str) {
        for decimal in ['.', ','] {
            for mark in THOUSANDS.into_iter().filter(|&mark| mark != decimal) {
                let whole = &cell[..cell.find(decimal).unwrap_or(cell.len())];
                let is_number =
                    NumberFormat { decimal, thousands: Some(mark) }.parse(cell).is_some();
                if !is_number || ungrouped(whole, mark).is_none() {
                    continue;
                }
                if cell.contains(decimal) {
                    self.decimal(decimal);
                }
                if !self.thousands.contains(&mark) {
                    self.thousands.push(mark);
                }
            }
        }
    }

    fn decimal(&mut self, mark: char) {
        *if mark == '.' { &mut self.decimal_point } else { &mut self.decimal_comma } += 1;
    }
}

/// What looks like a number, but is none in its table's format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OddNumber {
    /// It has a sign of a currency or a percentage.
    Sign(&'static str),
    /// It has marks of another format.
    Marks,
    /// It has another sign for minus, or other groups of digits.
    Form,
}

impl OddNumber {
    /// Returns what is odd about a cell that looks like a number.
    pub fn of(cell: &str) -> Option<Self> {
        if !cell.contains(|c: char| c.is_ascii_digit()) {
            return None;
        }
        if let Some(sign) = SIGNS.into_iter().find(|sign| cell.contains(sign)) {
            let number = cell.replacen(sign, "", 1);
            return (is_number(number.trim()) || Self::of_form(number.trim()))
                .then_some(Self::Sign(sign));
        }
        match () {
            () if is_number(cell) => Some(Self::Marks),
            () if Self::of_form(cell) => Some(Self::Form),
            () => None,
        }
    }

    /// Returns true for `(12.3)`, `12.3-`, `−12.3`, `1’234` and `12,34,567`.
    fn of_form(cell: &str) -> bool {
        let bracketed = cell.strip_prefix('(').and_then(|cell| cell.strip_suffix(')'));
        let after = cell.strip_suffix('-').filter(|cell| !cell.starts_with('-'));
        let number = bracketed.or(after).unwrap_or(cell);
        let number = number.replace('\u{2212}', "-").replace('\u{2019}', "'");
        let is_indian = || {
            let (whole, fraction) = number.split_once('.').unwrap_or((&number, "0"));
            let mut groups = whole.split(',').rev();
            let is_digits = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
            whole.contains(',')
                && [whole.replace(',', "").as_str(), fraction].into_iter().all(is_digits)
                && groups.next().is_some_and(|last| last.len() == 3)
                && groups.all(|group| (1..=2).contains(&group.len()))
        };
        (number != cell && is_number(&number)) || is_indian()
    }
}

/// Returns true for a number in any format.
fn is_number(cell: &str) -> bool {
    let formats = ['.', ','].into_iter().flat_map(|decimal| {
        let marks = THOUSANDS.into_iter().filter(move |&mark| mark != decimal).map(Some);
        marks.chain([None]).map(move |thousands| NumberFormat { decimal, thousands })
    });
    cell.starts_with(|c: char| c.is_ascii_digit() || "+-.,".contains(c))
        && formats.into_iter().any(|format| format.parse(cell).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GERMAN: NumberFormat = NumberFormat { decimal: ',', thousands: Some('.') };

    #[test]
    fn numbers_are_read_in_their_format() {
        let parse = |format: NumberFormat, cell| format.parse(cell);
        for (cell, expected) in [
            ("1,5", Some(1.5)),
            ("-1.234,5", Some(-1234.5)),
            ("1.234.567", Some(1_234_567.0)),
            ("1e3", Some(1000.0)),
            (",5", Some(0.5)),
            ("1.5", None),
            ("1.2345", None),
            ("1234.567", None),
            ("0.224", None),
            (".123", None),
            ("1,234.5", None),
            ("1,2,3", None),
            ("1..234", None),
            ("", None),
        ] {
            assert_eq!(parse(GERMAN, cell), expected, "{cell}");
        }
        let swiss = NumberFormat { decimal: '.', thousands: Some('\'') };
        assert_eq!((parse(swiss, "1'234.5"), parse(swiss, "1,5")), (Some(1234.5), None));
        let comma = NumberFormat { decimal: ',', thousands: None };
        assert_eq!((parse(comma, "1,234"), parse(comma, "1.5")), (Some(1.234), None));
        assert_eq!(parse(NumberFormat::default(), "1,5"), None);
        // Every kind of space is the same mark.
        let spaced = NumberFormat { decimal: ',', thousands: Some(' ') };
        assert_eq!(parse(spaced, "1\u{a0}234\u{202f}567,5"), Some(1_234_567.5));
    }

    #[test]
    fn marks_are_judged_over_cells() {
        for (cells, expected) in [
            (&["1.5", "2"][..], ('.', None)),
            (&["20,0", "1,234"], (',', None)),
            (&["0,234", "1,234"], (',', None)),
            (&["1.234,5", "2"], (',', Some('.'))),
            (&["1,234.5", "2"], ('.', Some(','))),
            (&["1,234,567", "2.5"], ('.', Some(','))),
            (&["1 234", "2,5"], (',', Some(' '))),
            (&["1\u{a0}234", "1\u{202f}234", "2,5"], (',', Some(' '))),
            (&["1'234.50"], ('.', Some('\''))),
            // Either, so the cells are refused where they are used.
            (&["1,234", "5,678"], ('.', None)),
            (&["20,5", "20.5"], ('.', None)),
            (&["a", "1.2.3", "01.02.2024", "12:30", "1,2,3", "-"], ('.', None)),
        ] {
            let judged = MarksSeen::of(cells.iter().copied()).judge(None);
            assert_eq!((judged.decimal, judged.thousands), expected, "{cells:?}");
        }
        let said = MarksSeen::of(["1,234"].into_iter()).judge(Some(','));
        assert_eq!(said, NumberFormat { decimal: '.', thousands: Some(',') });
        let said = MarksSeen::of(["1.234"].into_iter()).judge(Some('.'));
        assert_eq!(said, GERMAN);
    }

    #[test]
    fn points_beside_whole_numbers_may_be_thousands() {
        let is_ambiguous = |cells: &[&str]| MarksSeen::of(cells.iter().copied()).is_ambiguous();
        assert!(is_ambiguous(&["600", "1.399", "3.900"]));
        assert!(!is_ambiguous(&["0.600", "1.399", "3.900"]));
        assert!(!is_ambiguous(&["1.399", "3.900"]));
        assert!(!is_ambiguous(&["600", "1.399", "3.9"]));
    }

    #[test]
    fn numbers_in_other_formats_are_noticed() {
        use OddNumber::{Form, Marks, Sign};
        for (cell, expected) in [
            ("20,8", Some(Marks)),
            ("1.234,5", Some(Marks)),
            ("$1,200", Some(Sign("$"))),
            ("12.5 %", Some(Sign("%"))),
            ("€ 5", Some(Sign("€"))),
            ("9.3 EUR", Some(Sign("EUR"))),
            ("(20.1)", Some(Form)),
            ("20.1-", Some(Form)),
            ("\u{2212}5.1", Some(Form)),
            ("1\u{2019}234", Some(Form)),
            ("12,34,567.5", Some(Form)),
            ("1.2.3", None),
            ("1,2,3", None),
            ("01.02.2024", None),
            ("2024-01-02", None),
            ("10-20", None),
            ("%", None),
            ("abc", None),
            ("EUR", None),
            ("nan", None),
            ("", None),
        ] {
            assert_eq!(OddNumber::of(cell), expected, "{cell}");
        }
    }
}
