//! What is known of each kernel, and how it is printed: as text, as a table in Markdown, as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::arguments::Constant;
use crate::blocks::HotBlock;
use crate::kernels::Kernel;
use crate::nvidia::{ARCHITECTURE, NvidiaStats};
use crate::radv::RadvStats;

/// What the program prints: for a terminal, as Markdown or, by serde, as JSON.
pub trait Printed: Serialize {
    /// Returns the text for a terminal.
    fn text(&self) -> String;
    /// Returns a table.
    fn markdown(&self) -> String;
}

/// Returns a table in Markdown.
pub fn markdown_table(columns: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}|\n", vec!["---"; columns.len()].join("|"));
    line(columns) + &rule + &rows.map(|cells| line(&cells)).collect::<String>()
}

/// The statistics of all kernels.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The AMD GPU, if it was asked for.
    pub amd: Option<String>,
    /// This machine's GPU, if its driver was asked for.
    pub driver: Option<String>,
    /// NVIDIA's architecture, if its compiler is there.
    pub nvidia: Option<&'static str>,
    pub kernels: Vec<Row>,
}

/// What a driver tells of a kernel, by the driver's own names.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct DriverStats(serde_json::Map<String, serde_json::Value>);

impl From<Vec<(String, f64)>> for DriverStats {
    fn from(statistics: Vec<(String, f64)>) -> Self {
        // A whole number that f64 has exactly is printed as one.
        let number = |value: f64| match value as i64 {
            whole if whole as f64 == value && whole.abs() < 1 << 53 => whole.into(),
            _ => value.into(),
        };
        Self(statistics.into_iter().map(|(name, value)| (name, number(value))).collect())
    }
}

impl DriverStats {
    fn text(&self) -> String {
        let words: Vec<_> = self.0.iter().map(|(name, value)| format!("{name} {value}")).collect();
        words.join(", ")
    }
}

/// The statistics of a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub kernel: String,
    pub constants: serde_json::Map<String, serde_json::Value>,
    pub formula: String,
    pub used_by: Vec<String>,
    pub threads: u32,
    pub workgroup_bytes: u32,
    pub amd: Option<RadvStats>,
    pub driver: Option<DriverStats>,
    pub nvidia: Option<NvidiaStats>,
    /// Why NVIDIA's compiler has no statistics, if it was there.
    pub nvidia_error: Option<String>,
}

impl Row {
    /// Makes a row without statistics.
    pub fn new(kernel: &Kernel, threads: u32, workgroup_bytes: u32) -> Self {
        let constant = |constant: &Constant| (constant.0.clone(), constant.1.into());
        Self {
            kernel: kernel.name.clone(),
            constants: kernel.constants.iter().map(constant).collect(),
            formula: kernel.formula.clone(),
            used_by: kernel.used_by.clone(),
            threads,
            workgroup_bytes,
            amd: None,
            driver: None,
            nvidia: None,
            nvidia_error: None,
        }
    }

    /// Returns the constants that are not 0.
    pub fn constants(&self) -> String {
        let constants = self.constants.iter().filter_map(|(name, value)| {
            let value = value.as_f64().filter(|&value| value != 0.0)?;
            Some(format!("{name}={value}"))
        });
        constants.collect::<Vec<_>>().join(" ")
    }

    /// Returns the first plan that uses the kernel, and how many others do.
    pub fn users(&self) -> String {
        match &self.used_by[..] {
            [] => String::new(),
            [only] => only.clone(),
            [first, others @ ..] => format!("{first} and {} more", others.len()),
        }
    }

    fn text(&self, report: &Report) -> String {
        let mut text = format!("{}  {}\n", self.kernel, self.constants());
        let mut line = |words: String| {
            let _ = writeln!(text, "    {words}");
        };
        if !self.used_by.is_empty() {
            line(format!("{}: {}", self.users(), self.formula));
        }
        let (threads, bytes) = (self.threads, self.workgroup_bytes);
        line(format!("{threads} threads, {bytes} bytes of workgroup memory"));
        if let (Some(amd), Some(gpu)) = (&self.amd, &report.amd) {
            line(format!("{gpu}: {}", amd.text()));
        }
        if let (Some(driver), Some(gpu)) = (&self.driver, &report.driver) {
            line(format!("{gpu}: {}", driver.text()));
        }
        if let Some(nvidia) = &self.nvidia {
            line(format!("{ARCHITECTURE}: {}", nvidia.text()));
        }
        if let Some(error) = &self.nvidia_error {
            line(format!("{ARCHITECTURE}: {error}"));
        }
        text
    }

    fn cells(&self, report: &Report) -> Vec<String> {
        let mut cells = vec![
            self.kernel.clone(),
            // The constants would make the table too wide to read.
            if self.formula.is_empty() { self.constants() } else { self.formula.clone() },
            self.users(),
            self.threads.to_string(),
            self.workgroup_bytes.to_string(),
        ];
        if report.amd.is_some() {
            cells.extend(match &self.amd {
                Some(amd) => amd.cells(),
                None => vec!["–".to_owned(); 1 + AMD_COLUMNS.len()],
            });
        }
        if report.driver.is_some() {
            cells.push(self.driver.as_ref().map_or("–".to_owned(), DriverStats::text));
        }
        if report.nvidia.is_some() {
            cells.extend(match &self.nvidia {
                Some(nvidia) => nvidia.cells(),
                None => vec!["–".to_owned(); 1 + NVIDIA_COLUMNS.len()],
            });
        }
        cells
    }
}

const COLUMNS: [&str; 5] = ["kernel", "computes", "plan", "threads", "workgroup memory, B"];

/// After the registers.
const AMD_COLUMNS: [&str; 8] = [
    "spilled",
    "scratch, B",
    "instructions",
    "code, B",
    "latency",
    "inverse throughput",
    "waves a SIMD",
    "multiply-adds in the hot block",
];

/// After the registers.
const NVIDIA_COLUMNS: [&str; 5] = [
    "spilled, B",
    "stack, B",
    "instructions",
    "warps a multiprocessor",
    "multiply-adds in the hot block",
];

impl Printed for Report {
    fn text(&self) -> String {
        self.kernels.iter().map(|row| row.text(self)).collect::<Vec<_>>().join("\n")
    }

    fn markdown(&self) -> String {
        let mut columns: Vec<_> = COLUMNS.map(str::to_owned).into();
        if let Some(gpu) = &self.amd {
            columns.push(format!("{gpu} VGPRs"));
            columns.extend(AMD_COLUMNS.map(str::to_owned));
        }
        columns.extend(self.driver.as_ref().map(|gpu| format!("{gpu}, by its driver")));
        if let Some(gpu) = &self.nvidia {
            columns.push(format!("{gpu} registers"));
            columns.extend(NVIDIA_COLUMNS.map(str::to_owned));
        }
        let rows = self.kernels.iter().map(|row| row.cells(self));
        markdown_table(&columns, rows)
    }
}

impl RadvStats {
    fn text(&self) -> String {
        format!(
            "{} VGPRs, {} spilled, {} bytes of scratch, {} instructions, {} bytes, latency {}, inverse throughput {}, \
             {} waves of {} a SIMD; hot block {}",
            self.vgprs,
            self.spilled_vgprs + self.spilled_sgprs,
            self.scratch_bytes,
            self.instructions,
            self.code_bytes,
            self.latency,
            self.inverse_throughput,
            self.waves_per_simd,
            self.wave_size,
            describe(self.hot_block.as_ref()),
        )
    }

    fn cells(&self) -> Vec<String> {
        let numbers = [
            self.vgprs,
            self.spilled_vgprs + self.spilled_sgprs,
            self.scratch_bytes,
            self.instructions,
            self.code_bytes,
            self.latency,
            self.inverse_throughput,
            self.waves_per_simd,
        ];
        let mut cells: Vec<_> = numbers.iter().map(u64::to_string).collect();
        cells.push(percent(self.hot_block.as_ref()));
        cells
    }
}

impl NvidiaStats {
    fn text(&self) -> String {
        format!(
            "{} registers, {} bytes spilled, {} bytes of stack, {} instructions, {} bytes, {} warps a \
             multiprocessor; hot block {}",
            self.registers,
            self.spilled_bytes,
            self.stack_bytes,
            self.instructions,
            self.code_bytes,
            self.warps_per_multiprocessor,
            describe(self.hot_block.as_ref()),
        )
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.registers.to_string(),
            self.spilled_bytes.to_string(),
            self.stack_bytes.to_string(),
            self.instructions.to_string(),
            self.warps_per_multiprocessor.to_string(),
            percent(self.hot_block.as_ref()),
        ]
    }
}

fn describe(hot: Option<&HotBlock>) -> String {
    match hot {
        Some(hot) => format!("{:.0} % multiply-adds of {}", hot.percent(), hot.describe()),
        None => "none: no multiply-adds".to_owned(),
    }
}

fn percent(hot: Option<&HotBlock>) -> String {
    hot.map_or("–".to_owned(), |hot| format!("{:.0} % of {}", hot.percent(), hot.instructions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot() -> Option<HotBlock> {
        let memory = [("ds_read_b128".to_owned(), 4), ("s_load_dword".to_owned(), 1)].into();
        Some(HotBlock { name: "BB7".to_owned(), instructions: 85, multiply_adds: 64, memory })
    }

    fn report() -> Report {
        let kernel = Kernel {
            name: "forward".to_owned(),
            source: String::new(),
            constants: vec![Constant("ROWS".to_owned(), 4.0), Constant("NOISE".to_owned(), 0.0)],
            formula: "h'".to_owned(),
            used_by: ["7,3,5,97 own", "9,3,5,97 own"].map(str::to_owned).into(),
        };
        let amd = RadvStats {
            vgprs: 80,
            sgprs: 128,
            spilled_vgprs: 1,
            spilled_sgprs: 2,
            scratch_bytes: 16,
            instructions: 685,
            code_bytes: 3452,
            latency: 58368,
            inverse_throughput: 19456,
            wave_size: 64,
            waves_per_simd: 8,
            hot_block: hot(),
        };
        let nvidia = NvidiaStats {
            registers: 118,
            spilled_bytes: 4,
            stack_bytes: 8,
            instructions: 1155,
            code_bytes: 18480,
            warps_per_multiprocessor: 16,
            hot_block: None,
        };
        let row = Row { amd: Some(amd), nvidia: Some(nvidia), ..Row::new(&kernel, 224, 21_504) };
        let error = Some("not translated".to_owned());
        let failed =
            Row { nvidia: None, nvidia_error: error, formula: String::new(), ..row.clone() };
        let amd = Some("navi21".to_owned());
        Report { amd, driver: None, nvidia: Some("sm_90"), kernels: vec![row, failed] }
    }

    #[test]
    fn a_table_has_a_cell_for_each_column() {
        let table = report().markdown();
        let lines: Vec<_> = table.lines().collect();
        let cells = |line: &str| line.matches('|').count();
        assert!(lines.iter().all(|line| cells(line) == cells(lines[0])), "{table}");
        assert_eq!(
            lines[2],
            "| forward | h' | 7,3,5,97 own and 1 more | 224 | 21504 | 80 | 3 | 16 | 685 | 3452 | 58368 \
             | 19456 | 8 | 75 % of 85 | 118 | 4 | 8 | 1155 | 16 | – |"
        );
        assert!(lines[3].starts_with("| forward | ROWS=4 | "), "{table}");
        assert!(lines[3].ends_with("| 75 % of 85 | – | – | – | – | – | – |"), "{table}");
        // Columns of a compiler that is not there are left out.
        let report = Report { nvidia: None, ..report() };
        assert_eq!(cells(report.markdown().lines().nth(2).unwrap()), cells(lines[0]) - 6);
    }

    #[test]
    fn a_driver_has_a_column_of_its_own_and_a_line() {
        let of = |row: Row| {
            let stats = vec![("Register Count".to_owned(), 168.0), ("Share".to_owned(), 0.5)];
            Row { amd: None, nvidia: None, driver: Some(stats.into()), ..row }
        };
        let Report { mut kernels, .. } = report();
        kernels.truncate(1);
        let kernels = kernels.into_iter().map(of).collect();
        let report = Report { amd: None, driver: Some("a GPU".to_owned()), nvidia: None, kernels };
        let words = "Register Count 168, Share 0.5";
        assert!(report.text().contains(&format!("    a GPU: {words}\n")), "{}", report.text());
        let table = report.markdown();
        assert!(table.contains("| a GPU, by its driver |\n"), "{table}");
        assert!(table.contains(&format!("| {words} |\n")), "{table}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["kernels"][0]["driver"]["Register Count"], 168);
    }

    #[test]
    fn the_text_has_a_line_for_each_compiler() {
        let text = report().text();
        for line in [
            "forward  ROWS=4",
            "    7,3,5,97 own and 1 more: h'",
            "    224 threads, 21504 bytes of workgroup memory",
            "    navi21: 80 VGPRs, 3 spilled, 16 bytes of scratch, 685 instructions, 3452 bytes, \
             latency 58368, inverse throughput 19456, 8 waves of 64 a SIMD; hot block 75 % \
             multiply-adds of 85 instructions, 4 ds_read_b128, 1 s_load_dword",
            "    sm_90: 118 registers, 4 bytes spilled, 8 bytes of stack, 1155 instructions, 18480 \
             bytes, 16 warps a multiprocessor; hot block none: no multiply-adds",
            "    sm_90: not translated",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
    }
}
