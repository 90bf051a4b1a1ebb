//! `--limits`: no spills, and no kernel past its budget.

use crate::blocks::HotBlock;
use crate::budgets::{BUDGETS, Budget};
use crate::report::{Report, Row};

/// Returns a line for each number that exceeds what is allowed: kernel, plan, the limit, the value.
pub fn exceeded(report: &Report) -> Vec<String> {
    report.kernels.iter().flat_map(|row| exceeded_by(row, BUDGETS)).collect()
}

fn exceeded_by(row: &Row, budgets: &[Budget]) -> Vec<String> {
    let budget = budget(row, budgets);
    let mut lines = spills(row, budget.map_or(0, |budget| budget.spilled_bytes));
    match budget {
        Some(budget) => lines.extend(over_budget(row, budget)),
        // A kernel from files has none.
        None if row.used_by.is_empty() => {}
        None => {
            lines.push("no budget; add a row to benches/kernel_stats/src/budgets.rs".to_owned())
        }
    }
    let (kernel, constants, users) = (&row.kernel, row.constants(), row.users());
    let of = if users.is_empty() { "" } else { " of " };
    lines.iter().map(|line| format!("{kernel} [{constants}]{of}{users}: {line}")).collect()
}

/// Spills, and arrays in memory instead of registers.
fn spills(row: &Row, nvidia_spilled: u32) -> Vec<String> {
    let mut checks = vec![];
    if let Some(amd) = &row.amd {
        checks.extend([
            at_most("AMD spilled VGPRs", amd.spilled_vgprs, 0),
            at_most("AMD spilled SGPRs", amd.spilled_sgprs, 0),
            at_most("AMD bytes of scratch", amd.scratch_bytes, 0),
        ]);
    }
    if let Some(nvidia) = &row.nvidia {
        let allowed = u64::from(nvidia_spilled);
        checks.extend([
            at_most("sm_90 spilled bytes", nvidia.spilled_bytes.into(), allowed),
            // Spills are on the stack, in units of 8 bytes.
            at_most("sm_90 bytes of stack", nvidia.stack_bytes.into(), allowed.next_multiple_of(8)),
        ]);
    }
    checks.into_iter().flatten().collect()
}

/// Registers, and the share of multiply-adds.
fn over_budget(row: &Row, budget: &Budget) -> Vec<String> {
    let mut checks = vec![];
    if let Some(amd) = &row.amd {
        checks.extend([
            at_most("AMD VGPRs", amd.vgprs, budget.vgprs),
            percent("AMD", amd.hot_block.as_ref(), budget.amd_percent),
        ]);
    }
    if let Some(nvidia) = &row.nvidia {
        checks.extend([
            at_most("sm_90 registers", nvidia.registers.into(), budget.registers.into()),
            percent("sm_90", nvidia.hot_block.as_ref(), budget.nvidia_percent),
        ]);
    }
    checks.into_iter().flatten().collect()
}

/// Returns the first budget that is meant for a kernel.
fn budget<'a>(row: &Row, budgets: &'a [Budget]) -> Option<&'a Budget> {
    let is = |&(name, value): &(&str, u32)| {
        row.constants.get(name).and_then(serde_json::Value::as_f64) == Some(f64::from(value))
    };
    budgets.iter().find(|budget| budget.kernel == row.kernel && budget.when.iter().all(is))
}

fn at_most(what: &str, got: u64, allowed: u64) -> Option<String> {
    (got > allowed).then(|| format!("{what}: at most {allowed}, got {got}"))
}

/// Checks the share of multiply-adds, in whole percent as it is printed.
fn percent(compiler: &str, hot: Option<&HotBlock>, allowed: u32) -> Option<String> {
    let got = hot.map_or(0.0, HotBlock::percent).round();
    (got < f64::from(allowed)).then(|| {
        format!("{compiler} multiply-adds in the hot block: at least {allowed} %, got {got} %")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Constant;
    use crate::kernels::Kernel;
    use crate::nvidia::NvidiaStats;
    use crate::radv::RadvStats;

    fn row(name: &str, constants: &[(&str, f64)]) -> Row {
        let kernel = Kernel {
            name: name.to_owned(),
            source: String::new(),
            constants: constants.iter().map(|&(c, v)| Constant(c.to_owned(), v)).collect(),
            formula: String::new(),
            used_by: vec!["7,3,5,97 own".to_owned(), "7,3,5,97 pytorch".to_owned()],
        };
        Row::new(&kernel, 64, 0)
    }

    /// Statistics within any budget.
    fn amd() -> RadvStats {
        let hot_block = HotBlock {
            name: "BB1".into(),
            instructions: 100,
            multiply_adds: 99,
            memory: [].into(),
        };
        RadvStats {
            vgprs: 1,
            sgprs: 1,
            spilled_vgprs: 0,
            spilled_sgprs: 0,
            scratch_bytes: 0,
            instructions: 1,
            code_bytes: 4,
            latency: 1,
            inverse_throughput: 1,
            wave_size: 64,
            waves_per_simd: 16,
            hot_block: Some(hot_block),
        }
    }

    #[test]
    fn every_excess_names_kernel_plan_limit_and_value() {
        let budgets = [Budget::new("matmul", &[], [80, 75], [118, 4, 83])];
        let mut row = Row { amd: Some(amd()), ..row("matmul", &[("DEPTH", 16.0)]) };
        assert_eq!(exceeded_by(&row, &budgets), [""; 0]);
        let mut stats = RadvStats { vgprs: 81, spilled_sgprs: 3, scratch_bytes: 16, ..amd() };
        stats.hot_block.as_mut().unwrap().multiply_adds = 7;
        row.amd = Some(stats);
        row.nvidia = Some(NvidiaStats {
            registers: 119,
            spilled_bytes: 8,
            stack_bytes: 16,
            instructions: 1,
            code_bytes: 16,
            warps_per_multiprocessor: 8,
            hot_block: None,
        });
        let expected = [
            "AMD spilled SGPRs: at most 0, got 3",
            "AMD bytes of scratch: at most 0, got 16",
            "sm_90 spilled bytes: at most 4, got 8",
            "sm_90 bytes of stack: at most 8, got 16",
            "AMD VGPRs: at most 80, got 81",
            "AMD multiply-adds in the hot block: at least 75 %, got 7 %",
            "sm_90 registers: at most 118, got 119",
            "sm_90 multiply-adds in the hot block: at least 83 %, got 0 %",
        ];
        let what = "matmul [DEPTH=16] of 7,3,5,97 own and 1 more: ";
        let expected = expected.map(|words| format!("{what}{words}"));
        assert_eq!(exceeded_by(&row, &budgets), expected);
    }

    #[test]
    fn a_kernel_without_a_budget_is_named() {
        let lines = exceeded_by(&row("new_kernel", &[]), BUDGETS);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("new_kernel [] of 7,3,5,97 own and 1 more: no budget; add"));
        // One from files needs none, but may not spill.
        let own = Row { used_by: vec![], ..row("own", &[]) };
        assert_eq!(exceeded_by(&own, BUDGETS), [""; 0]);
        let spills = Row { amd: Some(RadvStats { spilled_vgprs: 1, ..amd() }), ..own };
        assert_eq!(exceeded_by(&spills, BUDGETS), ["own []: AMD spilled VGPRs: at most 0, got 1"]);
    }

    #[test]
    fn the_first_budget_whose_constants_match_holds() {
        let of = |when, vgprs| Budget { kernel: "forward", when, vgprs, ..BUDGETS[0] };
        let budgets = [of(&[("RESIDENT", 1), ("ROWS", 4)], 1), of(&[("RESIDENT", 1)], 2)];
        let found = |constants: &[(&str, f64)]| {
            budget(&row("forward", constants), &budgets).map(|budget| budget.vgprs)
        };
        assert_eq!(found(&[("RESIDENT", 1.0), ("ROWS", 4.0)]), Some(1));
        assert_eq!(found(&[("RESIDENT", 1.0), ("ROWS", 8.0)]), Some(2));
        assert_eq!(found(&[("RESIDENT", 0.0), ("ROWS", 4.0)]), None);
        assert_eq!(found(&[]), None);
    }
}
