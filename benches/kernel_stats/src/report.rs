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
    /// NVIDIA's architecture, if its compiler is there.
    pub nvidia: Option<&'static str>,
    pub kernels: Vec<Row>,
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
const NVIDIA_COLUMNS: [&str; 4] =
    ["spilled, B", "instructions", "warps a multiprocessor", "multiply-adds in the hot block"];

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
