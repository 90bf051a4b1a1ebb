//! The kernels to compile: those of plans, or one from files.

use std::path::PathBuf;

use gru_wgpu::RunOptions;
use gru_wgpu::plan::{Mode, Plan, Shader};

use crate::arguments::{Arguments, Constant, Definition, Sizes};
use crate::error::{Error, Result};

/// A kernel with the values of its override constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The kernel's name.
    pub name: String,
    /// The WGSL source; the entry point is `main`.
    pub source: String,
    /// The values of the override constants.
    pub constants: Vec<Constant>,
    /// What the kernel computes in its first plan.
    pub formula: String,
    /// The plans that use it: shapes and definitions.
    pub used_by: Vec<String>,
}

/// Returns the distinct kernels that the arguments ask for, in the order of their first use.
pub fn kernels(arguments: &Arguments) -> Result<Vec<Kernel>> {
    let (mut kernels, caps) = (Vec::new(), arguments.device.caps());
    if !arguments.wgsl.is_empty() {
        kernels.push(from_files(&arguments.wgsl, &arguments.constants)?);
    }
    for &sizes in &arguments.shapes {
        for &definition in &arguments.definition {
            let noise = if arguments.noise { " noise" } else { "" };
            let user = format!("{sizes} {}{noise}", definition.name());
            for mode in [Mode::Inference, Mode::Training] {
                let plan = plan(arguments, sizes, definition, mode)?;
                plan.forward().iter().chain(plan.backward()).for_each(|stage| {
                    let shaders = stage.dispatches().0.iter().map(|d| (d, d.shader(&caps)));
                    shaders.for_each(|(d, shader)| add(&mut kernels, shader, &d.label, &user));
                });
            }
        }
    }
    Ok(kernels)
}

/// Makes the plan of a shape.
pub fn plan(arguments: &Arguments, sizes: Sizes, of: Definition, mode: Mode) -> Result<Plan> {
    let [steps, batch, input, hidden] = sizes.0;
    let zoneout = if arguments.noise { 0.1 } else { 0.0 };
    let config = of.config(input, hidden).with_zoneout(zoneout);
    let options = RunOptions::default().with_recurrence(arguments.kernel);
    let caps = arguments.device.caps();
    let plan = config.shape(steps, batch).and_then(|shape| {
        let plan = Plan::with_options(&config, shape, mode, options, &caps)?;
        plan.check(&caps.limits).map(|()| plan)
    });
    plan.map_err(|source| Error::Plan { shape: sizes.to_string(), source: Box::new(source) })
}

/// Adds the kernel of a dispatch with this formula, or its user if the kernel is there already.
fn add(kernels: &mut Vec<Kernel>, shader: Shader, formula: &str, user: &str) {
    let constant = |&(name, value): &(&str, u32)| Constant(name.to_owned(), f64::from(value));
    let constants: Vec<_> = shader.constants.iter().map(constant).collect();
    let same = |kernel: &&mut Kernel| kernel.name == shader.name && kernel.constants == constants;
    match kernels.iter_mut().find(same) {
        Some(kernel) if kernel.used_by.iter().any(|other| other == user) => {}
        Some(kernel) => kernel.used_by.push(user.to_owned()),
        None => kernels.push(Kernel {
            name: shader.name.to_owned(),
            source: shader.source.into_owned(),
            constants,
            formula: formula.to_owned(),
            used_by: vec![user.to_owned()],
        }),
    }
}

/// Reads a kernel from files, joined in their order. It has the last file's name.
fn from_files(files: &[PathBuf], constants: &[Constant]) -> Result<Kernel> {
    let read = |file: &PathBuf| {
        std::fs::read_to_string(file).map_err(Error::io(file.display().to_string()))
    };
    let source = files.iter().map(read).collect::<Result<String>>()?;
    let last = files.last().and_then(|file| file.file_stem());
    Ok(Kernel {
        name: last.unwrap_or_default().to_string_lossy().into_owned(),
        source,
        constants: constants.to_vec(),
        formula: String::new(),
        used_by: vec![],
    })
}
