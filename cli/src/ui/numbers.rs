//! Number formats: three significant digits, and SI prefixes.

/// Formats a measured number with three significant digits, and with every digit before the point:
/// `0.123`, `12.3`, `1230`. Very small and very large numbers have an exponent: `1.23e-5`.
pub fn format_sig3(value: f64) -> String {
    let decimals = match value.abs() {
        v if v > 0.0 && !(0.00995..1e9).contains(&v) => return format!("{value:.2e}"),
        v if v < 0.0995 => 4,
        v if v < 0.995 => 3,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// Formats an amount with three significant digits and an SI prefix: `12.3 MFLOP`. Below 1000 it is
/// a whole number.
pub fn format_si(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut scaled = value;
    let mut prefix = 0;
    while scaled >= 999.5 && prefix + 1 < PREFIXES.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    let number = if prefix == 0 { format!("{scaled:.0}") } else { format_sig3(scaled) };
    format!("{number} {}{unit}", PREFIXES[prefix])
}

#[cfg(test)]
mod tests {
    use super::{format_si, format_sig3};

    #[test]
    fn numbers_have_three_significant_digits() {
        for (value, expected) in [
            (0.01234, "0.0123"),
            (0.0, "0.0000"),
            (0.001234, "1.23e-3"),
            (-1.236e-7, "-1.24e-7"),
            (1.236e12, "1.24e12"),
            (0.1234, "0.123"),
            (9.996, "10.0"),
            (1234.5, "1234"),
            (-1.5, "-1.50"),
        ] {
            assert_eq!(format_sig3(value), expected, "{value}");
        }
    }

    #[test]
    fn amounts_have_an_si_prefix() {
        for (value, expected) in [
            (0.0, "0 B"),
            (5.0, "5 B"),
            (999.0, "999 B"),
            (999.6, "1.00 kB"),
            (65_536.0, "65.5 kB"),
            (999.6e6, "1.00 GB"),
            (3.2e21, "3200 EB"),
        ] {
            assert_eq!(format_si(value, "B"), expected, "{value}");
        }
        for value in [f64::NAN, f64::NEG_INFINITY, -0.0, f64::MAX, f64::MIN_POSITIVE] {
            assert!(format_si(value, "B").ends_with('B'), "{value}");
        }
    }
}
