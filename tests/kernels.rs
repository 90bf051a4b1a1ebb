//! Every line of `src/kernels.rs` against the WGSL it mirrors, by naga's reflection. No GPU needed.

use gru_wgpu::kernels::{ALL, Access, Kernel, mark};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ScalarKind, StorageAccess, TypeInner};

fn modules() -> Vec<(&'static Kernel, Module)> {
    let parse = |kernel: &'static Kernel| {
        let module = naga::front::wgsl::parse_str(kernel.source)
            .unwrap_or_else(|error| panic!("{}", error.emit_to_string(kernel.source)));
        (kernel, module)
    };
    ALL.map(parse).into()
}

/// Whole WebGPU without any optional capability.
#[test]
fn every_kernel_is_valid_wgsl_without_extensions() {
    for (kernel, module) in modules() {
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        if let Err(error) = validator.validate(&module) {
            panic!("{}: {}", kernel.name, error.emit_to_string(kernel.source));
        }
    }
}

/// A file with an entry point is a kernel; any other is a part of some.
#[test]
fn every_shader_is_used() {
    let mut kernels: Vec<_> = ALL.iter().map(|kernel| format!("{}.wgsl", kernel.name)).collect();
    for file in std::fs::read_dir("shaders").unwrap() {
        let path = file.unwrap().path();
        let (name, text) = (path.file_name().unwrap(), std::fs::read_to_string(&path).unwrap());
        assert!(ALL.iter().any(|kernel| kernel.source.contains(&text)), "{name:?}");
        if text.contains("@compute") {
            let at = kernels.iter().position(|kernel| name == kernel.as_str());
            kernels.remove(at.unwrap_or_else(|| panic!("{name:?} has no row")));
        }
    }
    assert_eq!(kernels, [""; 0]);
}

#[test]
fn entry_points_have_the_stated_workgroup_size() {
    for (kernel, module) in modules() {
        assert_eq!(module.entry_points.len(), 1, "{}", kernel.name);
        let entry = &module.entry_points[0];
        assert_eq!(entry.name, "main", "{}", kernel.name);
        assert_eq!(entry.workgroup_size, kernel.workgroup_size, "{}", kernel.name);
    }
}

#[test]
fn bindings_have_the_stated_names_order_and_access() {
    for (kernel, module) in modules() {
        let mut found: Vec<(u32, String, Access)> = Vec::new();
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = variable.binding else { continue };
            assert_eq!(binding.group, 0, "{}", kernel.name);
            let AddressSpace::Storage { access } = variable.space else {
                panic!("{}: {:?} is in {:?}", kernel.name, variable.name, variable.space);
            };
            let access = match access.contains(StorageAccess::STORE) {
                true => Access::ReadWrite,
                false => Access::Read,
            };
            found.push((binding.binding, variable.name.clone().unwrap(), access));
        }
        found.sort_by_key(|&(binding, ..)| binding);
        assert_eq!(found.len(), kernel.storage_buffers(), "{}", kernel.name);
        let stated: Vec<_> = (0..)
            .zip(std::iter::once(&("args", Access::Read)).chain(kernel.bindings))
            .map(|(binding, &(name, access))| (binding, name.to_owned(), access))
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
        let found: Vec<_> = module
            .overrides
            .iter()
            .map(|(_, o)| {
                let scalar = module.types[o.ty].inner.scalar().unwrap();
                assert!(
                    matches!(scalar.kind, ScalarKind::Bool | ScalarKind::Uint),
                    "{}",
                    kernel.name
                );
                o.name.clone().unwrap()
            })
            .collect();
        assert_eq!(found, kernel.constants, "{}", kernel.name);
    }
}

#[test]
fn workgroup_memory_is_as_stated() {
    for (kernel, module) in modules() {
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
            .map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx()))
            .sum();
        assert_eq!(bytes, kernel.workgroup_bytes, "{}", kernel.name);
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
    for (_, module) in modules() {
        for activation in gru_wgpu::Activation::ALL {
            let name = activation.to_string().to_uppercase().replace(' ', "_");
            assert_eq!(constant(&module, &name), Some(activation.code()), "{name}");
        }
    }
}

#[test]
fn marks_have_the_stated_bits() {
    for (kernel, module) in modules() {
        if !kernel.bindings.iter().any(|&(name, _)| name == "marks") {
            continue;
        }
        for (name, bit) in [
            ("PADDING", mark::PADDING),
            ("RESTART", mark::RESTART),
            ("RESTART_REVERSE", mark::RESTART_REVERSE),
        ] {
            assert_eq!(constant(&module, name), Some(bit), "{name} of {}", kernel.name);
        }
    }
}

#[test]
fn tiles_are_the_shaders_constants() {
    for (kernel, module) in modules() {
        let constant = |name: &str| constant(&module, name);
        // Columns and rows under the names that the shaders give them.
        let columns = ["TILE", "UNITS", "COLUMNS"].iter().find_map(|name| constant(name));
        let rows = ["TILE", "ROWS"].iter().find_map(|name| constant(name)).unwrap_or(1);
        assert_eq!([columns.unwrap(), rows], kernel.tile, "{}", kernel.name);
    }
}
