//! `--dispatches`: the dispatches of training plans, and how full each makes a large GPU.

use gru_wgpu::plan::{Dispatch, Mode, Plan};
use serde::Serialize;

use crate::arguments::Arguments;
use crate::error::Result;
use crate::kernels;
use crate::report::{Printed, markdown_table};

/// The multiprocessors of an H200.
const MULTIPROCESSORS: u64 = 132;

/// The schedules of several plans.
#[derive(Debug, Serialize)]
pub struct Schedules {
    plans: Vec<Schedule>,
}

/// The distinct dispatches of a plan.
#[derive(Debug, Serialize)]
struct Schedule {
    plan: String,
    dispatches: Vec<Row>,
}

/// Equal dispatches of a plan.
#[derive(Debug, Serialize)]
struct Row {
    times: usize,
    #[serde(flatten)]
    dispatch: Work,
}

/// One dispatch.
#[derive(Debug, PartialEq, Serialize)]
struct Work {
    kernel: &'static str,
    formula: String,
    workgroups: [u64; 3],
    /// Threads of a workgroup.
    threads: u64,
    /// Warps of 32 threads per multiprocessor, if they spread evenly.
    warps: f64,
    /// Of one dispatch.
    gflop: f64,
}

impl Schedules {
    /// Returns the schedules of the training plans that the arguments ask for.
    pub fn of(arguments: &Arguments) -> Result<Self> {
        let mut plans = vec![];
        for &sizes in &arguments.shapes {
            for &definition in &arguments.definition {
                let plan = kernels::plan(arguments, sizes, definition, Mode::Training)?;
                let name = format!("{sizes} {}", definition.name());
                plans.push(Schedule { plan: name, dispatches: rows(&plan) });
            }
        }
        Ok(Self { plans })
    }
}

fn rows(plan: &Plan) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![];
    for stage in plan.forward().iter().chain(plan.backward()) {
        let (dispatches, times) = stage.dispatches();
        for dispatch in dispatches.iter().map(Work::of) {
            match rows.iter_mut().find(|row| row.dispatch == dispatch) {
                Some(row) => row.times += times,
                None => rows.push(Row { times, dispatch }),
            }
        }
    }
    rows
}

impl Work {
    fn of(dispatch: &Dispatch) -> Self {
        let threads = dispatch.threads();
        let warps = dispatch.workgroups.iter().product::<u64>() * threads.div_ceil(32);
        Self {
            kernel: dispatch.kernel_name(),
            formula: dispatch.label.clone(),
            workgroups: dispatch.workgroups,
            threads,
            warps: warps as f64 / MULTIPROCESSORS as f64,
            gflop: dispatch.flops as f64 / 1e9,
        }
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let Work { kernel, formula, workgroups: [x, y, z], threads, warps, gflop } = &self.dispatch;
        vec![
            self.times.to_string(),
            (*kernel).to_owned(),
            formula.clone(),
            format!("{x} × {y} × {z}"),
            threads.to_string(),
            format!("{warps:.1}"),
            format!("{gflop:.3}"),
        ]
    }
}

const COLUMNS: [&str; 7] =
    ["times", "kernel", "formula", "workgroups", "threads", "warps a multiprocessor", "GFLOP"];

impl Printed for Schedules {
    fn text(&self) -> String {
        let plan = |Schedule { plan, dispatches }: &Schedule| {
            let line = |row: &Row| {
                let cells: [String; COLUMNS.len()] =
                    row.cells().try_into().expect("a cell for each column");
                let [times, kernel, formula, workgroups, threads, warps, gflop] = cells;
                format!(
                    "{times:>6} x {kernel:<16} {formula:<48} {workgroups:>16} of {threads:>4} \
                     threads {warps:>8} warps/SM {gflop:>8} GFLOP\n"
                )
            };
            format!("{plan}\n{}", dispatches.iter().map(line).collect::<String>())
        };
        self.plans.iter().map(plan).collect::<Vec<_>>().join("\n")
    }

    fn markdown(&self) -> String {
        let columns: Vec<_> =
            ["plan"].into_iter().chain(COLUMNS).map(|column| column.to_owned()).collect();
        let rows = self.plans.iter().flat_map(|Schedule { plan, dispatches }| {
            dispatches.iter().map(|row| [vec![plan.clone()], row.cells()].concat())
        });
        markdown_table(&columns, rows)
    }
}
