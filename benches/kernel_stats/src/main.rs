//! `kernel_stats`: what GPU compilers make of the kernels of any plan, without a GPU.
//!
//! A kernel's way: `kernels` (of plans, or from files) → `compile` (naga) → `radv` over `vulkan`,
//! and `nvidia` over `cuda` → `isa` and `sass` (`blocks`) → `report` and `limits`.

mod arguments;
mod blocks;
mod budgets;
mod compile;
mod cuda;
mod dispatches;
mod error;
mod isa;
mod kernels;
mod limits;
mod nvidia;
mod radv;
mod report;
mod sass;
mod vulkan;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

use arguments::Arguments;
use budgets::Budget;
use compile::Compiled;
use error::{Error, Result};
use kernels::Kernel;
use nvidia::{ARCHITECTURE, Toolkit};
use radv::{Environment, Radv};
use report::{Printed, Report, Row};
use vulkan::Driver;

/// The word for no AMD GPU.
const NO_FAMILY: &str = "none";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.shapes.is_empty() && arguments.wgsl.is_empty() {
        return Err(Error::NothingToDo);
    }
    if arguments.dispatches {
        print(arguments, &dispatches::Schedules::of(arguments)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.limits && ![Budget::FAMILY, NO_FAMILY].contains(&arguments.family.as_str()) {
        let got = arguments.family.clone();
        return Err(Error::BudgetFamily { expected: Budget::FAMILY, got });
    }
    if arguments.family != NO_FAMILY && !arguments.driver {
        let environment = radv::environment(&arguments.family, arguments.icd.as_deref())?;
        if environment.iter().any(|(name, value)| std::env::var_os(name).as_ref() != Some(value)) {
            return run_with(environment, &arguments.family);
        }
    }
    let compilers = Compilers::open(arguments)?;
    let report = compilers.report(&kernels::kernels(arguments)?, arguments)?;
    print(arguments, &report)?;
    let exceeded = if arguments.limits { limits::exceeded(&report) } else { vec![] };
    exceeded.iter().for_each(|line| eprintln!("error: {line}"));
    Ok(if exceeded.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs this program once more with these environment variables, which configure the driver. RADV
/// aborts the process if it does not know a family; so it is another one.
fn run_with(environment: Environment, family: &str) -> Result<ExitCode> {
    let program = std::env::current_exe().map_err(Error::io("this program's path"))?;
    let status = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .envs(environment)
        .status()
        .map_err(Error::io(program.display().to_string()))?;
    let code = status.code().ok_or_else(|| Error::Aborted { family: family.to_owned() })?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Prints in the form that the arguments ask for.
fn print(arguments: &Arguments, what: &impl Printed) -> Result<()> {
    let text = if arguments.json {
        // Maps with text as keys, and no number that JSON lacks.
        serde_json::to_string(what).expect("plain data") + "\n"
    } else if arguments.markdown {
        what.markdown()
    } else {
        what.text()
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(Error::io("stdout"))
}

/// The compilers that are asked for and there.
struct Compilers {
    radv: Option<Radv>,
    /// This machine's GPU.
    driver: Option<Driver>,
    nvidia: Option<Toolkit>,
}

impl Compilers {
    fn open(arguments: &Arguments) -> Result<Self> {
        let family = arguments.family.as_str();
        let without_radv = arguments.driver || family == NO_FAMILY;
        let radv = if without_radv { None } else { Some(Radv::open(family)?) };
        let driver = if arguments.driver { Some(Driver::open()?) } else { None };
        let nvidia = Toolkit::find(&arguments.nvidia)?;
        if nvidia.is_none() && arguments.nvidia == arguments::Nvidia::Auto {
            eprintln!("NVIDIA is left out: there is no nvcc in PATH (see --help)");
        }
        Ok(Self { radv, driver, nvidia })
    }

    fn report(&self, kernels: &[Kernel], arguments: &Arguments) -> Result<Report> {
        let temporary = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        let folder = arguments.dump.as_deref().unwrap_or(temporary.path());
        std::fs::create_dir_all(folder).map_err(Error::io(folder.display().to_string()))?;
        let row = |(number, kernel): (usize, &Kernel)| {
            let base = folder.join(format!("{number:02}_{}", kernel.name));
            self.row(kernel, &compile::compile(kernel, arguments.checks)?, &base)
        };
        Ok(Report {
            amd: self.radv.is_some().then(|| arguments.family.clone()),
            driver: self.driver.as_ref().map(|driver| driver.name().to_owned()),
            nvidia: self.nvidia.is_some().then_some(ARCHITECTURE),
            kernels: kernels.iter().enumerate().map(row).collect::<Result<_>>()?,
        })
    }

    /// Compiles a kernel. Writes files with the name `base` and endings of their own.
    fn row(&self, kernel: &Kernel, compiled: &Compiled, base: &Path) -> Result<Row> {
        let mut row = Row::new(kernel, compiled.threads, compiled.workgroup_bytes);
        let bytes: Vec<u8> = compiled.spirv.iter().flat_map(|word| word.to_le_bytes()).collect();
        dump(base, "spv", &bytes)?;
        dump(base, "metal", compiled.msl.as_bytes())?;
        if let Some(radv) = &self.radv {
            let (stats, executable) = radv.compile(compiled)?;
            row.amd = Some(stats);
            for (name, text) in executable.representations {
                let ending: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
                dump(base, &format!("{ending}.txt"), text.as_bytes())?;
            }
        }
        if let Some(driver) = &self.driver {
            row.driver = Some(driver.compile(compiled)?.statistics.into());
        }
        if let Some(toolkit) = &self.nvidia {
            match toolkit.compile(compiled, base) {
                Ok(stats) => row.nvidia = Some(stats),
                Err(error) => row.nvidia_error = Some(error.to_string()),
            }
        }
        Ok(row)
    }
}

fn dump(base: &Path, ending: &str, bytes: &[u8]) -> Result<()> {
    let mut path = base.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    let path = PathBuf::from(path);
    std::fs::write(&path, bytes).map_err(Error::io(path.display().to_string()))
}
