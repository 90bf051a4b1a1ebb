//! Compares every line of `src/kernels/` with the WGSL, by naga's reflection. Needs no GPU.

use std::collections::HashMap;

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ScalarKind, StorageAccess, TypeInner};

use super::*;
use crate::plan::{DeviceCaps, Limits, Mode, Plan};
use crate::{Activation, GruConfig, Recurrence, RunOptions, step_flag};

fn modules() -> Vec<(&'static Kernel, Module)> {
    let parse = |kernel: &'static Kernel| {
        let module = naga::front::wgsl::parse_str(kernel.source)
            .unwrap_or_else(|error| panic!("{}", error.emit_to_string(kernel.source)));
        (kernel, module)
    };
    ALL.map(parse).into()
}

/// A new constant needs a reason, because every set of values compiles another pipeline.
#[test]
fn the_table_has_every_constant() {
    let docs = include_str!("mod.rs");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("//! | ")).collect::<Vec<_>>();
    for kernel in ALL {
        for constant in kernel.constants {
            let states = |row: &&&str| {
                let cells: Vec<_> = row.split(" | ").collect();
                cells[0].contains(&format!("`{constant}`"))
                    && cells[1].contains(&format!("`{}`", kernel.file))
            };
            let count = rows.iter().filter(states).count();
            assert_eq!(count, 1, "{constant} of {}", kernel.name);
        }
    }
}

/// All of WebGPU without any optional capability.
#[test]
fn every_kernel_is_valid_wgsl_without_extensions() {
    for (kernel, module) in modules() {
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        if let Err(error) = validator.validate(&module) {
            panic!("{}: {}", kernel.name, error.emit_to_string(kernel.source));
        }
    }
}

/// Where a device has immediates.
#[test]
fn every_kernel_can_have_its_arguments_as_immediates() {
    for kernel in ALL {
        assert_eq!(kernel.source.matches(ARGS_BINDING).count(), 1, "{}", kernel.name);
        assert!(kernel.args_size() <= MAX_ARGS_SIZE, "{}: {}", kernel.name, kernel.args_size());
        let source = kernel.source_in(ArgsSpace::Immediate);
        let module = naga::front::wgsl::parse_str(&source).unwrap();
        let spaces = module.global_variables.iter().map(|(_, variable)| variable.space);
        assert_eq!(spaces.filter(|&s| s == AddressSpace::Immediate).count(), 1, "{}", kernel.name);
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::IMMEDIATES);
        if let Err(error) = validator.validate(&module) {
            panic!("{}: {}", kernel.name, error.emit_to_string(&source));
        }
    }
}

/// Kernels are compiled without wgpu's guard against endless loops, so each loop must end: a `for`
/// whose counter is changed only in its head, upwards by a stride or downwards by halves.
#[test]
fn every_loop_is_counted() {
    let mut loops = 0;
    for kernel in ALL {
        let lines = kernel.source.lines().map(|line| line.split("//").next().unwrap().trim());
        let lines: Vec<_> = lines.collect();
        for (i, line) in lines.iter().enumerate() {
            let word = line.split(' ').next().unwrap();
            assert!(!["loop", "while"].contains(&word), "{}: {line}", kernel.name);
            if word == "for" {
                loops += 1;
                assert!(is_counted(line, body(&lines[i..])), "{}: {line}", kernel.name);
            }
        }
    }
    assert!(loops > 20, "{loops}");
}

/// Returns the lines between the first line's brace and its closing brace.
fn body<'a>(lines: &'a [&'a str]) -> &'a [&'a str] {
    let count = |line: &str, brace| line.matches(brace).count() as isize;
    let depths = lines.iter().scan(0, |depth, line| {
        *depth += count(line, '{') - count(line, '}');
        Some(*depth)
    });
    let end = depths.take_while(|&depth| depth > 0).count();
    &lines[1..end]
}

fn is_counted(head: &str, body: &[&str]) -> bool {
    let [start, condition, change] = head.split("; ").collect::<Vec<_>>()[..] else {
        return false;
    };
    let start = start.strip_prefix("for (var ").and_then(|start| start.split_once(" = "));
    let Some((name, _)) = start else {
        return false;
    };
    let upwards = condition.starts_with(&format!("{name} < "))
        && (change == format!("{name}++) {{") || change.starts_with(&format!("{name} += ")));
    let halves = condition == format!("{name} > 0u") && change == format!("{name} /= 2u) {{");
    let writes = |line: &&str| {
        let rest = line.strip_prefix(name).map_or("", str::trim_start);
        let how = ["= ", "+=", "-=", "*=", "/=", "++", "--"];
        how.iter().any(|how| rest.starts_with(how))
    };
    (upwards || halves) && !body.iter().any(writes)
}

/// A file with an entry point is a kernel, or several; any other file is included in one.
#[test]
fn every_shader_is_used() {
    for kernel in ALL {
        assert_eq!(kernel.source.matches("@compute").count(), 1, "{}", kernel.name);
    }
    for file in std::fs::read_dir("shaders").unwrap() {
        let path = file.unwrap().path();
        let (name, text) = (path.file_name().unwrap(), std::fs::read_to_string(&path).unwrap());
        let users: Vec<_> =
            ALL.iter().filter(|kernel| kernel.source.contains(&text)).map(|k| k.file).collect();
        assert!(!users.is_empty(), "{name:?} is part of no kernel");
        if text.contains("@compute") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            assert!(users.iter().all(|&file| file == stem), "{name:?}: {users:?}");
        }
    }
}

/// Returns each kernel with the constants that plans of all kinds give it.
fn variants() -> Vec<(&'static Kernel, Vec<u32>)> {
    let software = DeviceCaps::new(Limits::WEBGPU_DEFAULT, true);
    let roomy = Limits { max_compute_workgroup_storage_size: 48 << 10, ..Limits::WEBGPU_DEFAULT };
    let mut found: Vec<(&'static Kernel, Vec<u32>)> = Vec::new();
    for caps in [DeviceCaps::WEBGPU, software, DeviceCaps::new(roomy, false)] {
        for (i, h, b) in [(1, 1, 1), (3, 7, 5), (17, 33, 40), (64, 256, 4), (5, 300, 33)] {
            for config in GruConfig::all_variants(i, h) {
                for recurrence in [Recurrence::Auto, Recurrence::Step] {
                    let options = RunOptions::default().with_recurrence(recurrence);
                    let shape = config.shape(3, b).unwrap();
                    let mode = Mode::Training;
                    let plan = Plan::with_options(&config, shape, mode, options, &caps).unwrap();
                    for stage in plan.forward().iter().chain(plan.backward()) {
                        for dispatch in stage.dispatches().0 {
                            let variant = (dispatch.kernel, dispatch.constants.clone());
                            let same = |known: &(&'static Kernel, Vec<u32>)| {
                                known.0.name == variant.0.name && known.1 == variant.1
                            };
                            if !found.iter().any(same) {
                                found.push(variant);
                            }
                        }
                    }
                }
            }
        }
    }
    found
}

#[test]
fn a_workgroup_has_the_stated_threads_and_memory() {
    let modules = modules();
    let variants = variants();
    assert!(variants.len() > 50, "{}", variants.len());
    for (kernel, constants) in variants {
        let (_, module) = modules.iter().find(|(known, _)| known.name == kernel.name).unwrap();
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        let info = validator.validate(module).unwrap();
        let values: HashMap<_, _> = kernel
            .constants
            .iter()
            .map(|&name| name.to_owned())
            .zip(constants.iter().map(|&value| f64::from(value)))
            .collect();
        let entry = Some((naga::ShaderStage::Compute, "main"));
        let values = values.into_iter().collect();
        let (module, _) =
            naga::back::pipeline_constants::process_overrides(module, &info, entry, &values)
                .unwrap();
        assert_eq!(module.entry_points.len(), 1, "{}", kernel.name);
        let size = module.entry_points[0].workgroup_size;
        let bytes = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
            .map(|(_, variable)| u64::from(module.types[variable.ty].inner.size(module.to_ctx())))
            .sum::<u64>();
        let workgroup = (kernel.workgroup)(&constants);
        let found = (size.iter().copied().map(u64::from).product::<u64>(), bytes);
        assert_eq!(found, (workgroup.threads, workgroup.bytes), "{} {constants:?}", kernel.name);
    }
}

#[test]
fn bindings_have_the_stated_names_order_access_and_elements() {
    for (kernel, module) in modules() {
        let mut found: Vec<(u32, String, Access, ElementType)> = Vec::new();
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = variable.binding else { continue };
            assert_eq!(binding.group, 0, "{}", kernel.name);
            let AddressSpace::Storage { access } = variable.space else {
                panic!("{}: {:?} is in {:?}", kernel.name, variable.name, variable.space);
            };
            // step.wgsl copies its arguments to a variable called args.
            let name = variable.name.clone().unwrap().replace("arguments", "args");
            let (scalar, count) = match module.types[variable.ty].inner {
                TypeInner::Array { base, .. } => match module.types[base].inner {
                    TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => (scalar, 1),
                    TypeInner::Vector { size, scalar } => (scalar, size as u32),
                    ref other => panic!("{}: {name} is an array of {other:?}", kernel.name),
                },
                // Another test checks the members of Args.
                _ => (naga::Scalar::U32, 1),
            };
            let element = match (scalar.kind, scalar.width) {
                (ScalarKind::Float, 4) => ElementType::F32,
                (ScalarKind::Float, 2) => ElementType::F16,
                (ScalarKind::Uint, 4) => ElementType::U32,
                other => panic!("{}: {name} has elements of {other:?}", kernel.name),
            };
            let access = match (access.contains(StorageAccess::STORE), count) {
                (true, 1) => Access::ReadWrite,
                (false, 1) => Access::Read,
                (false, 4) => Access::ReadQuads,
                (true, 4) => Access::ReadWriteQuads,
                other => panic!("{}: {name} is {other:?}", kernel.name),
            };
            found.push((binding.binding, name, access, element));
        }
        found.sort_by_key(|&(binding, ..)| binding);
        assert_eq!(found.len(), kernel.storage_buffers(), "{}", kernel.name);
        let stated: Vec<_> = (0..)
            .zip(std::iter::once(&Binding::read("args", ElementType::U32)).chain(kernel.bindings))
            .map(|(at, &Binding { name, access, element })| (at, name.to_owned(), access, element))
            .collect();
        assert_eq!(found, stated, "{}", kernel.name);
    }
}

#[test]
fn args_are_u32_in_the_stated_order() {
    for (kernel, module) in modules() {
        let (_, args) = module
            .global_variables
            .iter()
            .find(|(_, variable)| variable.name.as_deref() == Some("args"))
            .unwrap();
        let TypeInner::Struct { members, .. } = &module.types[args.ty].inner else {
            panic!("{}: args is no struct", kernel.name);
        };
        let found: Vec<_> = members.iter().map(|m| (m.offset, m.name.clone().unwrap())).collect();
        let stated: Vec<_> =
            (0..).zip(kernel.args).map(|(i, &name)| (4 * i, name.to_owned())).collect();
        assert_eq!(found, stated, "{}", kernel.name);
        for member in members {
            let scalar = module.types[member.ty].inner.scalar().unwrap();
            assert_eq!((scalar.kind, scalar.width), (ScalarKind::Uint, 4), "{}", kernel.name);
        }
    }
}

#[test]
fn override_constants_have_the_stated_names() {
    for (kernel, module) in modules() {
        let mut found: Vec<_> = module
            .overrides
            .iter()
            // The constants used in array sizes have no name.
            .filter_map(|(_, o)| {
                let scalar = module.types[o.ty].inner.scalar().unwrap();
                assert!(
                    matches!(scalar.kind, ScalarKind::Bool | ScalarKind::Uint),
                    "{}",
                    kernel.name
                );
                o.name.clone()
            })
            .collect();
        // naga's order is that of their use.
        let mut stated = kernel.constants.to_vec();
        found.sort();
        stated.sort();
        assert_eq!(found, stated, "{}", kernel.name);
    }
}

fn constant(module: &Module, name: &str) -> Option<u32> {
    let (_, found) = module.constants.iter().find(|(_, c)| c.name.as_deref() == Some(name))?;
    match module.global_expressions[found.init] {
        naga::Expression::Literal(naga::Literal::U32(value)) => Some(value),
        ref other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn activations_have_the_stated_codes() {
    for (kernel, module) in
        modules().iter().filter(|(kernel, _)| kernel.constants.contains(&"GATE"))
    {
        for activation in Activation::ALL {
            let name = activation.name().to_uppercase().replace('-', "_");
            let code = Some(activation.code());
            assert_eq!(constant(module, &name), code, "{name} of {}", kernel.name);
        }
    }
}

#[test]
fn step_flags_have_the_stated_bits() {
    for (kernel, module) in modules() {
        if !kernel.bindings.iter().any(|binding| binding.name == "step_flags") {
            continue;
        }
        for (name, bit) in [
            ("Z_KEEPS", step_mode::Z_KEEPS),
            ("KEEPS_GATES", step_mode::KEEPS_GATES),
            ("REVERSE_FIRST", step_mode::REVERSE_FIRST),
            ("PADDING", step_flag::PADDING),
            ("RESTART", step_flag::RESTART),
            ("RESTART_REVERSE", step_flag::RESTART_REVERSE),
        ] {
            assert_eq!(constant(&module, name), Some(bit), "{name} of {}", kernel.name);
        }
    }
}

/// The other kernels' sizes are override constants, which the plan sets.
#[test]
fn the_sizes_are_the_shaders_constants() {
    let modules = modules();
    let find = |name| modules.iter().find(|(kernel, _)| kernel.name == name).unwrap();
    let (_, module) = find("column_sum");
    assert_eq!(constant(module, "THREADS"), Some(COLUMN_SUM_THREADS as u32));
    assert_eq!(constant(module, "BLOCK"), Some(COLUMN_SUM_BLOCK as u32));
    let (_, module) = find("matmul_blocks");
    assert_eq!(constant(module, "BLOCK"), Some(BLOCKS_DEPTH as u32));
    let (kernel, module) = find("matmul_large");
    assert_eq!([constant(module, "TILE").unwrap(); 2], (kernel.workgroup)(&[0]).tile);
    assert_eq!(constant(module, "DEPTH"), Some(LARGE_DEPTH as u32));
}
