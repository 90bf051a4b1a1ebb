//! [`NumberFormat`]: the marks in the numbers of a table, judged over its cells.

/// Marks that may stand between groups of three digits.
pub const THOUSANDS: [char; 6] = [',', '.', '\'', ' ', '\u{a0}', '\u{202f}'];

/// Signs of currencies and percentages. Numbers with one are refused: whether 5 % is 5 or 0.05 is
/// the user's to say.
const SIGNS: [char; 6] = ['$', '€', '£', '¥', '₹', '%'];

/// The marks in numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NumberFormat {
    /// The decimal mark, a point or a comma.
    pub decimal: char,
    /// The mark between groups of three digits.
    pub thousands: Option<char>,
}

/// The decimal mark of most files.
pub fn point() -> char {
    '.'
}

impl Default for NumberFormat {
    fn default() -> Self {
        Self { decimal: point(), thousands: None }
    }
}

impl NumberFormat {
    /// Returns the number in a cell.
    pub fn parse(self, cell: &str) -> Option<f64> {
        if self == Self::default() {
            return cell.parse().ok();
        }
        let whole_len = cell.find(self.decimal).unwrap_or(cell.len());
        let (whole, fraction) = cell.split_at(whole_len);
        // A point that is not the decimal mark is none.
        let mut plain = match self.thousands {
            Some(mark) if whole.contains(mark) => ungrouped(whole, mark)?,
            _ if whole.contains(['.', ',']) => return None,
            _ => whole.to_owned(),
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

    /// Returns the marks, judged from cells unless the user has said the decimal mark.
    pub fn judge<'a>(
        cells: impl Iterator<Item = &'a str>,
        decimal: Option<char>,
        thousands: Option<char>,
    ) -> Self {
        if let Some(decimal) = decimal {
            return Self { decimal, thousands };
        }
        let mut seen = MarksSeen::default();
        cells.for_each(|cell| seen.add(cell));
        let is_comma = match thousands {
            Some(mark) if [',', '.'].contains(&mark) => mark == '.',
            _ => seen.decimal_comma > 0 && seen.decimal_point == 0,
        };
        let decimal = if is_comma { ',' } else { '.' };
        let judged = match seen.thousands[..] {
            [mark] if mark != decimal => Some(mark),
            _ => None,
        };
        Self { decimal, thousands: thousands.or(judged) }
    }

    /// Describes marks other than a decimal point alone, for messages.
    pub fn describe(self) -> Option<String> {
        let thousands = self.thousands.map(|mark| format!("{mark:?} between thousands"));
        let decimal = (self.decimal == ',').then(|| "a decimal comma".to_owned());
        let all: Vec<_> = decimal.into_iter().chain(thousands).collect();
        (!all.is_empty()).then(|| all.join(" and "))
    }
}

/// Removes the marks between groups of three digits. Returns `None` if a group has another length.
fn ungrouped(whole: &str, mark: char) -> Option<String> {
    let mut groups = whole.split(mark);
    let first = groups.next()?;
    let digits = first.trim_start_matches(['+', '-']);
    let is_group = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
    let is_sound = (1..=3).contains(&digits.len())
        && is_group(digits)
        && groups.all(|group| group.len() == 3 && is_group(group));
    is_sound.then(|| whole.replace(mark, ""))
}

/// The marks that cells leave no doubt about.
#[derive(Default)]
struct MarksSeen {
    decimal_point: usize,
    decimal_comma: usize,
    thousands: Vec<char>,
}

impl MarksSeen {
    fn add(&mut self, cell: &str) {
        let digits = cell.strip_prefix(['+', '-']).unwrap_or(cell);
        let is_other = |c: char| !c.is_ascii_digit() && !THOUSANDS.contains(&c);
        let mut marks = digits.chars().filter(|c| !c.is_ascii_digit());
        match (marks.next(), marks.next()) {
            (None, _) => {}
            // Most numbers, and each cell is asked.
            (Some(mark @ ('.' | ',')), None) => {
                let at = digits.find(mark).unwrap_or_default();
                let is_grouped = (1..=3).contains(&at) && digits.len() - at == 4;
                // 1,234 may be either. 0,234 and 1234,567 may not.
                if digits.len() > 1 && (!is_grouped || digits.starts_with('0')) {
                    self.decimal(mark);
                }
            }
            _ if digits.contains(is_other) => {}
            _ => self.add_grouped(cell),
        }
    }

    /// Adds a cell that has several marks, or one that is no decimal mark.
    fn add_grouped(&mut self, cell: &str) {
        for (decimal, other) in [('.', ','), (',', '.')] {
            for mark in THOUSANDS.into_iter().filter(|&mark| mark != decimal) {
                let grouped = NumberFormat { decimal, thousands: Some(mark) };
                let is_certain = cell.contains(decimal) || cell.matches(mark).count() > 1;
                // A space or an apostrophe is no decimal mark.
                let is_certain = is_certain || (mark != other && decimal == '.');
                if cell.contains(mark) && is_certain && grouped.parse(cell).is_some() {
                    if cell.contains(decimal) {
                        self.decimal(decimal);
                    }
                    if !self.thousands.contains(&mark) {
                        self.thousands.push(mark);
                    }
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
    Sign(char),
    /// It has marks of another format.
    Marks,
}

impl OddNumber {
    /// Returns what is odd about a cell that looks like a number.
    pub fn of(cell: &str) -> Option<Self> {
        let sign = SIGNS.into_iter().find(|&sign| cell.contains(sign));
        let without = cell.replace(SIGNS, "");
        let without = without.trim();
        let formats = ['.', ','].into_iter().flat_map(|decimal| {
            let marks = THOUSANDS.into_iter().filter(move |&mark| mark != decimal).map(Some);
            marks.chain([None]).map(move |thousands| NumberFormat { decimal, thousands })
        });
        let is_number = without.starts_with(|c: char| c.is_ascii_digit() || "+-.,".contains(c))
            && formats.into_iter().any(|format| format.parse(without).is_some());
        is_number.then_some(sign.map_or(Self::Marks, Self::Sign))
    }
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
    }

    #[test]
    fn marks_are_judged_over_cells() {
        let judge = |cells: &[&str]| {
            let NumberFormat { decimal, thousands } =
                NumberFormat::judge(cells.iter().copied(), None, None);
            (decimal, thousands)
        };
        for (cells, expected) in [
            (&["1.5", "2"][..], ('.', None)),
            (&["20,0", "1,234"], (',', None)),
            (&["0,234", "1,234"], (',', None)),
            (&["1.234,5", "2"], (',', Some('.'))),
            (&["1,234.5", "2"], ('.', Some(','))),
            (&["1,234,567", "2.5"], ('.', Some(','))),
            (&["1 234", "2,5"], (',', Some(' '))),
            (&["1'234.50"], ('.', Some('\''))),
            // Either, so the cells are refused where they are used.
            (&["1,234", "5,678"], ('.', None)),
            (&["20,5", "20.5"], ('.', None)),
            (&["a", "1.2.3", "01.02.2024", "12:30", "1,2,3", "-"], ('.', None)),
        ] {
            assert_eq!(judge(cells), expected, "{cells:?}");
        }
        let said = NumberFormat::judge(["1,234"].into_iter(), None, Some(','));
        assert_eq!(said, NumberFormat { decimal: '.', thousands: Some(',') });
        let said = NumberFormat::judge(["1.234"].into_iter(), None, Some('.'));
        assert_eq!(said, GERMAN);
    }

    #[test]
    fn numbers_in_other_formats_are_noticed() {
        for (cell, expected) in [
            ("20,8", Some(OddNumber::Marks)),
            ("1.234,5", Some(OddNumber::Marks)),
            ("$1,200", Some(OddNumber::Sign('$'))),
            ("12.5 %", Some(OddNumber::Sign('%'))),
            ("€ 5", Some(OddNumber::Sign('€'))),
            ("1.2.3", None),
            ("01.02.2024", None),
            ("%", None),
            ("abc", None),
            ("nan", None),
            ("", None),
        ] {
            assert_eq!(OddNumber::of(cell), expected, "{cell}");
        }
    }
}
