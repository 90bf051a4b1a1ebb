//! A plan as text, like a database's EXPLAIN.

use std::fmt;

use super::{Dispatch, Plan, Role, Stage};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(f, "\nbuffers")?;
        for buffer in &self.buffers {
            let role = match buffer.role {
                Role::Input => "input",
                Role::Parameters => "parameters",
                Role::Output => "output",
                Role::InputOutput => "in, out",
                Role::Scratch => "scratch",
                Role::Zeros => "zeros",
            };
            let (len, bytes) = (buffer.len, format_si(buffer.bytes() as f64, "B"));
            let (name, axes, element) = (&buffer.name, &buffer.axes, buffer.element);
            writeln!(f, "  {name:<12} {axes:<16} {role:<10} {len:>12} {element} {bytes:>10}")?;
        }
        let (name, bytes) = ("arguments", format_si(self.argument_bytes() as f64, "B"));
        writeln!(f, "  {name:<72} {bytes:>10}")?;
        for (name, stages) in [("forward", &self.forward), ("backward", &self.backward)] {
            if !stages.is_empty() {
                writeln!(f, "\n{name}")?;
                stages.iter().try_for_each(|stage| write_stage(f, stage))?;
            }
        }
        let dispatches = self.forward_dispatches() + self.backward_dispatches();
        let (mut flops, mut moved) = (0.0, 0.0);
        for stage in self.forward.iter().chain(&self.backward) {
            let (body, times) = stage.dispatches();
            flops += body.iter().map(|d| d.flops).sum::<u64>() as f64 * times as f64;
            moved += body.iter().map(|d| d.bytes).sum::<u64>() as f64 * times as f64;
        }
        let (flops, moved) = (format_si(flops, "FLOP"), format_si(moved, "B"));
        let held = format_si(self.bytes() as f64, "B");
        let pipelines = self.pipelines();
        writeln!(
            f,
            "\ntotal: {dispatches} dispatches of {pipelines} pipelines, {flops}, at least {moved} \
             moved, {held} held"
        )
    }
}

fn write_stage(f: &mut fmt::Formatter<'_>, stage: &Stage) -> fmt::Result {
    let (body, times) = stage.dispatches();
    let indent = match stage {
        Stage::Once(_) => "  ",
        Stage::Steps { first, last, .. } => {
            let rest = if first > last { "down to" } else { "to" };
            // The reverse direction counts its own steps, from the last time on.
            let both = body.iter().all(|dispatch| dispatch.workgroups[2] == 2);
            let both = if both { ", in both directions at once" } else { "" };
            writeln!(f, "  for each of {times} steps, {first} {rest} {last}{both}")?;
            "    "
        }
    };
    body.iter().try_for_each(|dispatch| write_dispatch(f, indent, dispatch))
}

fn write_dispatch(f: &mut fmt::Formatter<'_>, indent: &str, dispatch: &Dispatch) -> fmt::Result {
    let [x, y, z] = dispatch.workgroups;
    let name = dispatch.kernel_name();
    let label = &dispatch.label;
    let groups = if z == 1 { format!("{x}×{y} groups") } else { format!("{x}×{y}×{z} groups") };
    let flops = format_si(dispatch.flops as f64, "FLOP");
    let bytes = format_si(dispatch.bytes as f64, "B");
    let width = 48 - indent.len();
    writeln!(f, "{indent}{name:<13} {label:<width$} {groups:>16} {flops:>12} {bytes:>10}")
}

/// Formats an integer amount with three significant digits and a decimal prefix: `12.3 MFLOP`.
fn format_si(value: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let mut scaled = value;
    let mut prefix = 0;
    while scaled >= 999.5 && prefix + 1 < prefixes.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    let scaled = if prefix == 0 { format!("{scaled:.0}") } else { format_sig3(scaled) };
    format!("{scaled} {}{unit}", prefixes[prefix])
}

/// Formats a measured number with three significant digits, and all digits before the point:
/// `0.123`, `12.3`, `1230`.
fn format_sig3(value: f64) -> String {
    let decimals = match value.abs() {
        v if v < 0.0995 => 4,
        v if v < 0.995 => 3,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{format_si, format_sig3};

    #[test]
    fn amounts_have_three_figures_and_a_prefix() {
        for (value, expected) in [
            (0.0, "0 B"),
            (5.0, "5 B"),
            (999.0, "999 B"),
            (999.6, "1.00 kB"),
            (1234.0, "1.23 kB"),
            (65_536.0, "65.5 kB"),
            (999.6e6, "1.00 GB"),
            (3.2e21, "3200 EB"),
        ] {
            assert_eq!(format_si(value, "B"), expected, "{value}");
        }
        for (value, expected) in [
            (0.01234, "0.0123"),
            (0.1234, "0.123"),
            (9.996, "10.0"),
            (1234.5, "1234"),
            (-1.5, "-1.50"),
        ] {
            assert_eq!(format_sig3(value), expected, "{value}");
        }
        // Every number has a text.
        for value in [f64::NAN, f64::NEG_INFINITY, -0.0, f64::MAX, f64::MIN_POSITIVE] {
            assert!(!format_si(value, "B").is_empty() && !format_sig3(value).is_empty());
        }
    }
}
