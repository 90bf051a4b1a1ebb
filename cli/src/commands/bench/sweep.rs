//! `--sweep`: the same workload at several sizes of one axis.

use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use crate::ui::numbers::{format_si, format_sig3};
use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::measure::{BenchDevice, Measurement, measure_all};
use super::picture::{LineCrossing, SweepPicture, crossings, draw, rounded};
use super::report;
use super::verify::Verified;
use super::workload::Workload;
use crate::ui::arguments::at_least_one;
use crate::ui::files::write_file;
use crate::ui::output::{TextTable, causes, log, quote_path};

/// The most sizes of a sweep.
const MAX_SIZES: usize = 100;

/// An axis and its sizes, from the smallest up.
#[derive(Clone, Debug)]
pub struct Sweep {
    axis: SweepAxis,
    sizes: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SweepAxis {
    T,
    B,
    H,
}

impl FromStr for Sweep {
    type Err = String;

    /// Parses `T`, `B` or `H`, optionally with sizes after a `=`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (axis, sizes) = match text.split_once('=') {
            None => (text, None),
            Some((axis, sizes)) => (axis, Some(sizes)),
        };
        let axis = match axis {
            "T" | "t" => SweepAxis::T,
            "B" | "b" => SweepAxis::B,
            "H" | "h" => SweepAxis::H,
            other => return Err(format!("`{other}` is no axis; expected T, B or H")),
        };
        let mut sizes = match (sizes, axis) {
            (Some(sizes), _) => {
                sizes.split(',').map(at_least_one).collect::<Result<Vec<_>, _>>()?
            }
            (None, SweepAxis::T) => vec![64, 128, 256, 512, 1024, 2048, 4096],
            (None, SweepAxis::B) => vec![1, 2, 4, 8, 16, 32, 64, 128, 256],
            (None, SweepAxis::H) => vec![16, 32, 64, 128, 256, 512, 1024],
        };
        sizes.sort_unstable();
        sizes.dedup();
        if sizes.len() > MAX_SIZES {
            return Err(format!("{} sizes; at most {MAX_SIZES} can be drawn", sizes.len()));
        }
        Ok(Self { axis, sizes })
    }
}

/// The results of a sweep.
pub struct SweepResult<'a> {
    sweep: &'a Sweep,
    devices: &'a [BenchDevice],
    /// At least one point.
    points: Vec<SweepPoint>,
    failures: Vec<Failure>,
}

/// A size that could not be measured on all devices, and the error.
struct Failure {
    size: usize,
    error: String,
}

/// The measurements at one size.
pub struct SweepPoint {
    pub size: usize,
    pub workload: Workload,
    /// One per device.
    pub rows: Vec<Measurement>,
}

impl Sweep {
    /// Returns every size, with the whole shape.
    pub fn sizes(&self, shape: [usize; 4]) -> impl Iterator<Item = (usize, [usize; 4])> {
        self.sizes.iter().map(move |&size| {
            let mut sizes = shape;
            sizes[match self.axis {
                SweepAxis::T => 0,
                SweepAxis::B => 1,
                SweepAxis::H => 3,
            }] = size;
            (size, sizes)
        })
    }

    /// Returns the axis's name.
    fn axis_name(&self) -> &'static str {
        match self.axis {
            SweepAxis::T => "T, steps",
            SweepAxis::B => "B, batch rows",
            SweepAxis::H => "H, hidden units",
        }
    }

    /// Describes the fixed sizes and the definition.
    fn fixed(&self, workload: &Workload) -> String {
        let (shape, config) = (workload.shape, &workload.config);
        let sizes = [
            ("T", shape.steps, self.axis == SweepAxis::T),
            ("B", shape.batch, self.axis == SweepAxis::B),
            ("I", shape.input, false),
            ("H", shape.hidden, self.axis == SweepAxis::H),
        ];
        let fixed = sizes.iter().filter(|(_, _, swept)| !swept);
        let fixed: Vec<_> = fixed.map(|(name, size, _)| format!("{name} {size}")).collect();
        let config = config.to_string();
        let variant = config.split_once(", ").map_or("", |(_, variant)| variant);
        format!("{}; {variant}", fixed.join(", "))
    }

    /// Measures every device at every size of `workloads`, and reports each on stderr. Continues if
    /// a size fails.
    ///
    /// # Errors
    /// If all of them fail.
    pub fn measure<'a>(
        &'a self,
        workloads: Vec<(usize, Result<Workload>)>,
        devices: &'a [BenchDevice],
        repeats: Option<usize>,
    ) -> Result<SweepResult<'a>> {
        let (mut points, mut failures) = (Vec::new(), Vec::new());
        for (size, workload) in workloads {
            let measured = workload.and_then(|workload| {
                let rows = measure_all(&workload, devices, repeats, false)?;
                Ok(SweepPoint { size, workload, rows })
            });
            match measured {
                Ok(point) => {
                    for row in &point.rows {
                        let (name, median) =
                            (report::device_name(&row.device), format_sig3(row.median));
                        log(format_args!("{:?} {size} on the {name}: {median} ms", self.axis));
                    }
                    points.push(point);
                }
                Err(error) => {
                    let error = causes(&error);
                    log(format_args!("{:?} {size} failed: {error}", self.axis));
                    failures.push(Failure { size, error });
                }
            }
        }
        match (points.is_empty(), failures.first()) {
            (true, Some(Failure { size, error })) => {
                bail!("none of the sizes could be measured; {:?} {size}: {error}", self.axis)
            }
            _ => Ok(SweepResult { sweep: self, devices, points, failures }),
        }
    }
}

impl SweepResult<'_> {
    /// Draws the picture, and prints the tables or the JSON object.
    ///
    /// # Errors
    /// Afterwards, if a size failed.
    pub fn report(&self, path: &Path, as_json: bool, out: &mut impl Write) -> Result<()> {
        let picture = self.picture();
        let svg = draw(&picture)?;
        write_file(path, svg.as_bytes())?;
        log(format_args!("wrote {}", quote_path(path)));
        let crossings = crossings(&picture);
        if as_json {
            writeln!(out, "{}", self.json(&crossings, path))?;
        } else {
            self.write_table(out)?;
            self.write_crossings(&picture, &crossings, out)?;
        }
        if self.failures.is_empty() {
            return Ok(());
        }
        let sizes: Vec<_> = self.failures.iter().map(|failure| failure.size.to_string()).collect();
        let axis = self.sweep.axis;
        bail!("{axis:?} {} could not be measured; the other sizes were", sizes.join(", "))
    }

    /// Returns the first workload: definition and fixed sizes are the same at every point.
    fn workload(&self) -> &Workload {
        &self.points[0].workload
    }

    fn picture(&self) -> SweepPicture {
        let line = |device: usize| {
            let point = |point: &SweepPoint| (point.size as f64, point.rows[device].median);
            self.points.iter().map(point).collect()
        };
        let what = if self.workload().trains() { "Training" } else { "A forward pass of" };
        SweepPicture {
            title: format!("{what} a GRU"),
            subtitle: self.sweep.fixed(self.workload()),
            axis: self.sweep.axis_name(),
            names: self.devices.iter().map(BenchDevice::to_string).collect(),
            lines: (0..self.devices.len()).map(line).collect(),
        }
    }

    fn json(&self, crossings: &[LineCrossing], path: &Path) -> Value {
        let point = |point: &SweepPoint| report::json(&point.workload, &point.rows);
        let failure = |failure: &Failure| json!({ "value": failure.size, "error": failure.error });
        let crossing = |crossing: &LineCrossing| {
            let words = [0, crossing.line].map(|line| report::device_word(&self.devices[line]));
            json!({ "devices": words, "at": crossing.at })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "sweep": format!("{:?}", self.sweep.axis),
            "values": self.points.iter().map(|point| point.size).collect::<Vec<_>>(),
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
            "failed": self.failures.iter().map(failure).collect::<Vec<_>>(),
            "crossings": crossings.iter().map(crossing).collect::<Vec<_>>(),
            "output": path.to_string_lossy(),
        })
    }

    fn write_table(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}; {}", self.workload().mode_name(), self.sweep.fixed(self.workload()))?;
        for (i, device) in self.devices.iter().enumerate() {
            self.write_verified(device, i, out)?;
        }
        let axis = format!("{:?}", self.sweep.axis);
        let header = ["device", &axis, "calls"].into_iter().chain(report::COLUMNS);
        let header = header.chain(["dispatches", "held"]).map(str::to_owned);
        let mut table = TextTable::new(header.collect());
        for SweepPoint { size, workload, rows } in &self.points {
            for row in rows {
                let start =
                    [report::device_name(&row.device), size.to_string(), row.repeats.to_string()];
                let none = || ["–", "–"].map(str::to_owned);
                let planned = row.planned.map_or_else(none, |(dispatches, bytes)| {
                    [dispatches.to_string(), format_si(bytes as f64, "B")]
                });
                let cells = report::cells(workload, row, &rows[0]).into_iter().chain(planned);
                table.row(start.into_iter().chain(cells).collect());
            }
        }
        write!(out, "\n{table}")?;
        for Failure { size, error } in &self.failures {
            writeln!(out, "  {:?} {size} failed: {error}", self.sweep.axis)?;
        }
        report::legend(self.workload(), &self.points[0].rows, out)
    }

    /// Prints the largest error of device `i` over all sizes, and the sizes at which only a part of
    /// the run was compared.
    fn write_verified(&self, device: &BenchDevice, i: usize, out: &mut impl Write) -> Result<()> {
        let all = self.points.iter().map(|point| (point.size, &point.rows[i].verified));
        let worst = 100.0 * all.clone().map(|(_, verified)| verified.error).fold(0.0, f64::max);
        let results = self.points[0].rows[i].verified.subjects();
        write!(out, "{device}: {results} within {worst:.1} % of the tolerance at every size")?;
        let partial = all.filter(|(_, verified)| !verified.is_whole());
        let partial: Vec<_> = partial.map(|(size, _)| size.to_string()).collect();
        if !partial.is_empty() {
            let (axis, sizes) = (self.sweep.axis, partial.join(", "));
            write!(out, "; at {axis:?} {sizes} in a part of the run: {}", Verified::WHY)?;
        }
        writeln!(out)?;
        Ok(())
    }

    fn write_crossings(
        &self,
        picture: &SweepPicture,
        crossings: &[LineCrossing],
        out: &mut impl Write,
    ) -> Result<()> {
        let names: Vec<_> = self.devices.iter().map(report::device_name).collect();
        for (other, name) in names.iter().enumerate().skip(1) {
            let ordered = |faster: bool| if faster { (name, &names[0]) } else { (&names[0], name) };
            let mut here = crossings.iter().filter(|c| c.line == other).peekable();
            if here.peek().is_none() {
                let mut pairs = picture.lines[other].iter().zip(&picture.lines[0]);
                let (fast, slow) = ordered(pairs.any(|(other, first)| other.1 < first.1));
                writeln!(out, "{fast}: faster than {slow} at all of these sizes")?;
            }
            for crossing in here {
                let (axis, at) = (self.sweep.axis, rounded(crossing.at));
                let (fast, slow) = ordered(crossing.faster);
                writeln!(out, "{fast}: faster than {slow} from {axis:?} ≈ {at} on")?;
            }
        }
        Ok(())
    }
}
