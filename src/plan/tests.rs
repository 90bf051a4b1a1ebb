//! Checks every dispatch of every plan against its kernel's interface.

use super::*;
use crate::spec::config::{Direction, Layout};
use crate::spec::head::Head;
use crate::spec::optimizer::Clip;

/// Returns plans of all kinds: each variant, with its head and loss in training, and updates.
fn plans() -> Vec<Plan> {
    let caps = DeviceCaps::WEBGPU;
    let options = RunOptions::default();
    let directions = [Direction::Forward, Direction::Both, Direction::Reverse];
    let mut plans = Vec::new();
    for (i, config) in GruConfig::all_variants(7, 17).into_iter().enumerate() {
        let config = config.with_layers(1 + i % 2).with_direction(directions[i % 3]);
        let shape = config.shape(5, 3).unwrap();
        for mode in [Mode::Inference, Mode::Training] {
            plans.push(Plan::with_options(&config, shape, mode, options, &caps).unwrap());
        }
        let head = if i % 2 == 0 { Head::every_step(4) } else { Head::last(4) };
        let layout = ParamLayout::with_head(&config, head).unwrap();
        let of = |mode, purpose| Plan::of_run(&layout, shape, mode, options, purpose, &caps);
        plans.push(of(Mode::Inference, RunPurpose::Outputs).unwrap());
        for loss in [Loss::MeanSquared, Loss::cross_entropy()] {
            plans.push(of(Mode::Training, RunPurpose::Loss(loss)).unwrap());
        }
    }
    plans.extend(
        [true, false].map(|adam| Plan::of_update(1000, adam, Clip::None, &caps).unwrap().0),
    );
    plans
}

fn dispatches(plan: &Plan) -> impl Iterator<Item = &Dispatch> {
    plan.forward().iter().chain(plan.backward()).flat_map(|stage| stage.dispatches().0)
}

#[test]
fn a_dispatch_gives_its_kernel_all_that_it_takes() {
    for plan in &plans() {
        for dispatch in dispatches(plan) {
            let kernel = dispatch.kernel;
            assert_eq!(dispatch.bindings.len(), kernel.bindings.len());
            assert_eq!(dispatch.args.len(), kernel.args.len());
            assert_eq!(dispatch.constants.len(), kernel.constants.len());
            assert!(kernel.args_size() <= ARGS_BLOCK, "{}", kernel.name);
        }
    }
}

/// A kernel that read f16 as f32, or flags as numbers, would compute nonsense without an error.
/// A tool that compiles one pipeline for each shader compiles those that a run does.
#[test]
fn dispatches_share_a_shader_as_they_share_a_pipeline() {
    for plan in &plans() {
        let shaders: HashSet<_> =
            dispatches(plan).map(|dispatch| dispatch.shader(&DeviceCaps::WEBGPU)).collect();
        assert_eq!(shaders.len(), plan.pipelines(), "{plan}");
        for dispatch in dispatches(plan) {
            let (name, values) = dispatch.pipeline();
            let shader = dispatch.shader(&DeviceCaps::WEBGPU);
            let constants: Vec<u32> = shader.constants.iter().map(|&(_, value)| value).collect();
            assert_eq!((shader.name, &constants[..]), (name, values));
            assert_eq!(shader.threads, (dispatch.kernel.workgroup)(values).threads);
        }
    }
}

#[test]
fn what_is_bound_has_the_elements_that_the_kernel_reads() {
    let mut u32s = 0;
    for plan in &plans() {
        for dispatch in dispatches(plan) {
            for (slice, binding) in dispatch.bindings.iter().zip(dispatch.kernel.bindings) {
                let spec = plan.spec(slice.buffer);
                let what = format!("{} of {}, {plan}", binding.name, dispatch.kernel_name());
                assert_eq!(slice.element, spec.element, "{what}");
                assert!(slice.bytes() >= binding.min_size(), "{what}");
                assert!(slice.offset().is_multiple_of(BINDING_ALIGNMENT), "{what}");
                if binding.is_quads() {
                    assert!(slice.bytes().is_multiple_of(binding.min_size()), "{what}");
                }
                // The loss reads numbers as their bits, from the binding that also takes classes.
                if (dispatch.kernel_name(), binding.name) != ("loss", "targets") {
                    assert_eq!(slice.element, binding.element, "{what}");
                }
                u32s += usize::from(slice.element == ElementType::U32);
            }
        }
    }
    assert!(u32s > 100, "{u32s}");
}

#[test]
fn flags_classes_and_reports_are_u32_and_numbers_are_f32() {
    for plan in &plans() {
        for spec in plan.buffers() {
            let is_classes = spec.name == "targets" && !spec.axes.ends_with("C]");
            let of_update =
                plan.run.is_none() && ["update", "partials", "reports"].contains(&&*spec.name);
            let is_u32 = spec.name == "step_flags" || is_classes || of_update;
            let expected = if is_u32 { ElementType::U32 } else { ElementType::F32 };
            assert_eq!(spec.element, expected, "{} of {plan}", spec.name);
        }
    }
}

#[test]
fn bytes_are_those_of_the_elements() {
    for (element, size) in [(ElementType::F32, 4), (ElementType::F16, 2), (ElementType::U32, 4)] {
        let mut buffers = BufferList::default();
        let id = buffers.add("numbers", "[1000]", element, 1000, Role::Scratch);
        let slice = buffers.slice(id, 128..228);
        assert_eq!((slice.offset(), slice.bytes()), (128 * size, 100 * size));
        let spec = &buffers.specs()[0];
        assert_eq!((spec.bytes(), spec.byte_range(&(3..10))), (1000 * size, (3 * size, 7 * size)));
    }
}

/// 64 elements are 256 bytes of f32, but only 128 bytes of f16.
#[test]
fn slices_are_aligned_in_bytes() {
    for (element, first, is_aligned) in [
        (ElementType::F32, 64, true),
        (ElementType::U32, 64, true),
        (ElementType::F32, 32, false),
        (ElementType::F16, 64, false),
        (ElementType::F16, 128, true),
    ] {
        let mut buffers = BufferList::default();
        let id = buffers.add("numbers", "[1000]", element, 1000, Role::Scratch);
        let slice = std::panic::catch_unwind(|| buffers.slice(id, first..first + 1));
        assert_eq!(slice.is_ok(), is_aligned, "{element} from {first}");
    }
}

const SOFTWARE: DeviceCaps = DeviceCaps::new(Limits::WEBGPU_DEFAULT, true).with_cores(2);

/// A pipeline costs a user up to a second of compilation before the first result. More pipelines
/// than these need a reason in the table of `kernels/mod.rs`.
#[test]
fn a_run_needs_few_pipelines() {
    for (caps, [steps, batch, input, hidden], forward, training) in [
        (SOFTWARE, [16, 8, 64, 64], 2, 4),
        (SOFTWARE, [64, 32, 128, 256], 2, 4),
        (SOFTWARE, [24, 6, 48, 80], 2, 4),
        (SOFTWARE, [40, 1, 7, 97], 2, 4),
        (DeviceCaps::WEBGPU, [16, 8, 64, 64], 2, 4),
        (DeviceCaps::WEBGPU, [512, 256, 128, 128], 2, 4),
        (DeviceCaps::WEBGPU, [40, 1, 7, 97], 2, 5),
        (DeviceCaps::WEBGPU, [100, 32, 1, 300], 2, 6),
    ] {
        let config = GruConfig::pytorch(input, hidden);
        let shape = config.shape(steps, batch).unwrap();
        let got = [Mode::Inference, Mode::Training].map(|mode| {
            let options = RunOptions::default();
            Plan::with_options(&config, shape, mode, options, &caps).unwrap().pipelines()
        });
        assert_eq!(got, [forward, training], "{shape}, software: {}", caps.software);
    }
}

/// Returns every configuration of one layer's shape: definitions, biases, noise, directions.
fn definitions(input: usize, hidden: usize) -> Vec<GruConfig> {
    let mut found = Vec::new();
    for config in GruConfig::all_variants(input, hidden) {
        for direction in [Direction::Forward, Direction::Both, Direction::Reverse] {
            for (dropout, zoneout) in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (0.5, 0.1)] {
                let config = config.clone().with_direction(direction).with_layers(2);
                found.push(config.with_dropout(dropout).with_zoneout(zoneout));
            }
        }
    }
    found
}

#[test]
fn all_definitions_of_a_shape_share_few_pipelines() {
    for (caps, hidden, expected) in [
        (SOFTWARE, 64, 18),
        (SOFTWARE, 97, 15),
        (DeviceCaps::WEBGPU, 64, 10),
        (DeviceCaps::WEBGPU, 300, 14),
    ] {
        let mut pipelines = HashSet::new();
        let definitions = definitions(24, hidden);
        for config in &definitions {
            for layout in [Layout::TimeMajor, Layout::BatchFirst] {
                for mode in [Mode::Inference, Mode::Training] {
                    let shape = config.shape(8, 6).unwrap().with_layout(layout);
                    let options = RunOptions::default();
                    let plan = Plan::with_options(config, shape, mode, options, &caps).unwrap();
                    let keys = dispatches(&plan).map(Dispatch::pipeline);
                    pipelines.extend(keys.map(|(kernel, constants)| (kernel, constants.to_vec())));
                }
            }
        }
        assert!(definitions.len() > 140, "{}", definitions.len());
        assert_eq!(pipelines.len(), expected, "H {hidden}, software: {}", caps.software);
    }
}

/// A GPU like an H200: 48 KiB of workgroup memory, bindings of 2 GiB.
const LARGE_GPU: DeviceCaps = DeviceCaps::new(
    Limits {
        max_buffer_size: 1 << 40,
        max_storage_buffer_binding_size: (1 << 31) - 4,
        max_compute_invocations_per_workgroup: 1024,
        max_compute_workgroup_storage_size: 48 << 10,
        max_loop_iterations: u64::MAX,
        ..Limits::WEBGPU_DEFAULT
    },
    false,
)
.with_discrete(true);

fn training_plan(config: &GruConfig, [steps, batch]: [usize; 2], caps: &DeviceCaps) -> Plan {
    let shape = config.shape(steps, batch).unwrap();
    Plan::with_options(config, shape, Mode::Training, RunOptions::default(), caps).unwrap()
}

/// A multiprocessor with fewer than eight warps waits for memory most of the time. The steps of the
/// recurrence are as small as the batch makes them.
#[test]
fn products_of_large_models_fill_a_large_gpu() {
    const MULTIPROCESSORS: u64 = 132;
    const WARP: u64 = 32;
    for ([steps, batch], sizes) in [([1500, 32], [1024, 1024]), ([512, 256], [256, 256])] {
        for config in [GruConfig::pytorch(sizes[0], sizes[1]), GruConfig::new(sizes[0], sizes[1])] {
            let plan = training_plan(&config, [steps, batch], &LARGE_GPU);
            let steps = |dispatch: &&Dispatch| dispatch.recurrent_steps().is_none();
            for dispatch in dispatches(&plan).filter(steps) {
                let threads = (dispatch.kernel.workgroup)(&dispatch.constants).threads;
                let warps = dispatch.workgroups.iter().product::<u64>() * threads.div_ceil(WARP);
                let what = format!("{warps} warps of {} in {plan}", dispatch.label);
                assert!(warps >= 8 * MULTIPROCESSORS, "{what}");
            }
        }
    }
}

/// One dispatch for dW_ih with db_ih, one or two for dW_hh with db_hh, and one that adds up their
/// parts.
#[test]
fn gradients_of_a_cell_take_few_dispatches() {
    for ([steps, batch], sizes) in [([1500, 32], [1024, 1024]), ([512, 256], [256, 256])] {
        let own = GruConfig::new(sizes[0], sizes[1]);
        for (config, expected) in [(GruConfig::pytorch(sizes[0], sizes[1]), 3), (own, 4)] {
            let plan = training_plan(&config, [steps, batch], &LARGE_GPU);
            let is_gradient = |d: &&Dispatch| d.label.contains("dW") || d.label.contains("db");
            let gradients: Vec<_> = dispatches(&plan).filter(is_gradient).collect();
            assert_eq!(gradients.len(), expected, "{plan}");
            let sums = gradients.iter().filter(|d| d.kernel_name() == "column_sum").count();
            assert_eq!(sums, 1, "{plan}");
        }
    }
}

/// The sums of the parts write every parameter's gradient once, and no padding.
#[test]
fn sums_of_parts_cover_the_gradient() {
    for config in GruConfig::all_variants(100, 130) {
        let config = config.with_layers(2).with_direction(Direction::Both);
        let plan = training_plan(&config, [300, 64], &LARGE_GPU);
        let dparams = plan.run_buffers().training.as_ref().unwrap().dparams;
        let mut written: Vec<_> = dispatches(&plan)
            .filter(|dispatch| dispatch.kernel_name() == "column_sum")
            .filter(|dispatch| dispatch.bindings[1].buffer == dparams)
            .flat_map(|dispatch| {
                let arg = |name| dispatch.args[dispatch.kernel.argument(name).unwrap()] as usize;
                let first = dispatch.bindings[1].first + arg("out_first");
                first..first + arg("columns")
            })
            .collect();
        written.sort_unstable();
        let layout = ParamLayout::new(&config).unwrap();
        let entries = layout.entries().iter().flat_map(|entry| entry.range.clone());
        assert!(written.into_iter().eq(entries), "{plan}");
    }
}

/// The results of a product's parts would otherwise be larger than everything else.
#[test]
fn partial_results_are_bounded() {
    for (hidden, batch) in [(128, 512), (256, 256), (1000, 32), (1024, 32), (3000, 16)] {
        let plan = training_plan(&GruConfig::pytorch(hidden, hidden), [500, batch], &LARGE_GPU);
        if let Some(partials) = plan.buffer("partials") {
            assert!(plan.spec(partials).bytes() <= 128 << 20, "H {hidden}: {plan}");
        }
    }
    let caps = DeviceCaps::new(
        Limits { max_storage_buffer_binding_size: 32 << 20, ..Limits::WEBGPU_DEFAULT },
        false,
    );
    let plan = training_plan(&GruConfig::pytorch(512, 512), [100, 32], &caps);
    plan.check(&caps.limits).unwrap();
}
