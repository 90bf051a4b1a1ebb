//! The schedule and its limits. This needs no GPU.

use gru_wgpu::plan::{DeviceCaps, Dispatch, Limits, Mode, Plan, Stage};
use gru_wgpu::{Direction, Error, GruConfig, Layout, ParamLayout, Recurrence, Reset, RunOptions};

/// Returns a plan with one or two dispatches per step.
fn plan(config: &GruConfig, steps: usize, batch: usize, mode: Mode) -> Plan {
    plan_by(Recurrence::Step, config, steps, batch, mode)
}

fn plan_by(
    recurrence: Recurrence,
    config: &GruConfig,
    steps: usize,
    batch: usize,
    mode: Mode,
) -> Plan {
    let options = RunOptions::default().with_recurrence(recurrence);
    let shape = config.shape(steps, batch).unwrap();
    Plan::with_options(config, shape, mode, options, &DeviceCaps::WEBGPU).unwrap()
}

/// Returns the FLOPs of stages without those that add up the parts of products.
fn flops(stages: &[Stage]) -> u64 {
    let adds_parts = |d: &&Dispatch| d.kernel_name() == "column_sum" && !d.label.starts_with("db");
    stages
        .iter()
        .map(Stage::dispatches)
        .map(|(body, times)| {
            let each = body.iter().filter(|d| !adds_parts(d)).map(|d| d.flops);
            each.sum::<u64>() * times as u64
        })
        .sum()
}

#[test]
fn a_step_is_one_dispatch_with_reset_after_and_two_with_reset_before() {
    for (reset, each) in [(Reset::After, 1), (Reset::Before, 2)] {
        let config = GruConfig::new(8, 32).with_reset(reset);
        let plan = plan(&config, 104, 64, Mode::Training);
        assert_eq!(plan.forward_dispatches(), 1 + 104 * each);
        // dh0; dx, dW_ih, two for dW_hh and the bias, each in parts that are added up.
        assert_eq!(plan.backward_dispatches(), 104 * each + 1 + 5 * 2);
    }
}

/// Forward 6·T·B·H·(I + H); backward twice that. The first state backward has no product after it
/// and the last has one before it, so the number of products is the same.
#[test]
fn the_work_is_the_work_of_the_equations() {
    let (t, b, i, h) = (7, 5, 3, 11);
    for config in GruConfig::all_variants(i, h) {
        let plan = plan(&config, t, b, Mode::Training);
        let forward = (6 * t * b * h * (i + h)) as u64;
        assert_eq!(flops(plan.forward()), forward, "{config}");
        // The additions of the bias sums, and the first state's dispatch, which multiplies nothing.
        let sums = match config.bias {
            gru_wgpu::Bias::None => 0,
            gru_wgpu::Bias::One => 3 * t * b * h,
            gru_wgpu::Bias::Two => 6 * t * b * h,
        } as u64;
        let idle = match config.reset {
            Reset::After => 6 * b * h * h,
            Reset::Before => 4 * b * h * h,
        } as u64;
        assert_eq!(flops(plan.backward()), 2 * forward + sums + idle, "{config}");
    }
}

/// The directions of a layer share each step's dispatches; layers run one after another.
#[test]
fn both_directions_of_a_layer_share_their_dispatches() {
    let (t, b, i, h) = (7, 5, 3, 11);
    for (reset, each) in [(Reset::After, 1), (Reset::Before, 2)] {
        let config = GruConfig::pytorch(i, h).with_reset(reset);
        let plan =
            plan(&config.with_layers(3).with_direction(Direction::Both), t, b, Mode::Training);
        // An input product for each direction of each layer.
        assert_eq!(plan.forward_dispatches(), 3 * 2 + 3 * t * each);
        let cell = |d: usize| (3 * 2 * h * (d + h) * t * b) as u64;
        assert_eq!(flops(plan.forward()), 2 * (cell(i) + 2 * cell(2 * h)));
        for stage in plan.forward().iter().chain(plan.backward()) {
            let Stage::Steps { body, .. } = stage else { continue };
            assert!(body.iter().all(|dispatch| dispatch.workgroups == [3, 1, 2]));
        }
    }
}

#[test]
fn inference_plans_no_gradient_buffers() {
    let config = GruConfig::pytorch(3, 5);
    let inference = plan(&config, 4, 2, Mode::Inference);
    let training = plan(&config, 4, 2, Mode::Training);
    assert!(inference.backward().is_empty());
    assert!(inference.buffer("dy").is_none() && training.buffer("dy").is_some());
    assert!(inference.bytes() < training.bytes());
}

#[test]
fn every_binding_is_inside_its_buffer_and_aligned() {
    let directions = [Direction::Forward, Direction::Both, Direction::Reverse];
    for (i, config) in (0..).zip(GruConfig::all_variants(7, 17)) {
        let config = config.with_layers(1 + i % 2).with_direction(directions[i % 3]);
        let plan = plan(&config, 5, 3, Mode::Training);
        for stage in plan.forward().iter().chain(plan.backward()) {
            for dispatch in stage.dispatches().0 {
                for slice in dispatch.bindings() {
                    let spec = &plan.buffers()[slice.buffer.index()];
                    assert!(slice.first % 64 == 0 && slice.len > 0, "{config}: {}", spec.name);
                    assert!(slice.first + slice.len <= spec.len, "{config}: {}", spec.name);
                }
            }
        }
    }
}

/// Up to H 128, or 256 on a software adapter, a workgroup runs whole sequences if its memory suffices.
/// Above, or if forced, one dispatch per step.
#[test]
fn whole_sequences_run_in_one_dispatch_if_they_fit() {
    let of = |kib: u64, software| {
        let limits =
            Limits { max_compute_workgroup_storage_size: kib << 10, ..Limits::WEBGPU_DEFAULT };
        DeviceCaps::new(limits, software)
    };
    for (h, b, machine, recurrence, by_device) in [
        (1, 5, DeviceCaps::WEBGPU, Recurrence::Auto, true),
        (128, 5, DeviceCaps::WEBGPU, Recurrence::Auto, true),
        (129, 5, DeviceCaps::WEBGPU, Recurrence::Auto, false),
        (256, 128, of(32, false), Recurrence::Auto, false),
        (256, 5, of(32, true), Recurrence::Auto, true),
        (257, 5, of(32, true), Recurrence::Auto, false),
        (128, 5, of(8, false), Recurrence::Auto, false),
        (64, 5, of(8, false), Recurrence::Auto, true),
        (64, 5, of(16, true), Recurrence::Auto, true),
        (64, 5, DeviceCaps::WEBGPU, Recurrence::Step, false),
        (64, 5, DeviceCaps::WEBGPU, Recurrence::Sequence, true),
    ] {
        for config in GruConfig::all_variants(3, h) {
            let options = RunOptions::default().with_recurrence(recurrence);
            let shape = config.shape(50, b).unwrap();
            let plan = Plan::with_options(&config, shape, Mode::Training, options, &machine);
            let plan = plan.unwrap();
            let walks = |stage: &Stage| matches!(stage, Stage::Steps { .. });
            let host = plan.forward().iter().chain(plan.backward()).any(walks);
            assert_eq!(host, !by_device, "H {h}, {recurrence}, {config}");
        }
    }
    let config = GruConfig::pytorch(3, 5000);
    let options = RunOptions::default().with_recurrence(Recurrence::Sequence);
    let shape = config.shape(2, 2).unwrap();
    match Plan::with_options(&config, shape, Mode::Inference, options, &DeviceCaps::WEBGPU) {
        Err(Error::Limit { limit, asked, allowed, .. }) => {
            assert_eq!((limit, asked), ("max_compute_invocations_per_workgroup", 1252));
            assert_eq!(allowed, 256);
        }
        other => panic!("{other:?}"),
    }
}

/// For any length, no dispatch runs more steps than its loops and its work allow; together they run
/// every step and every state once.
#[test]
fn long_sequences_are_split() {
    // A state between two buffers of gates is processed for both.
    let machine = DeviceCaps::new(GENEROUS, true);
    for (t, b, h) in [(40_001, 1, 3), (9_999, 33, 64), (700, 70, 128)] {
        for config in GruConfig::all_variants(2, h) {
            let shape = config.shape(t, b).unwrap();
            let options = RunOptions::default();
            let mode = Mode::Training;
            let plan = Plan::with_options(&config, shape, mode, options, &machine).unwrap();
            let mut taken = [0, 0];
            for stage in plan.forward().iter().chain(plan.backward()) {
                for dispatch in stage.dispatches().0 {
                    assert!(dispatch.iterations <= 65_535, "{config}: {}", dispatch.label);
                    assert!(dispatch.padded_flops <= 1_100_000_000, "{config}: {}", dispatch.label);
                    let pass = ["forward", "backward"];
                    let pass = pass.iter().position(|&name| name == dispatch.kernel_name());
                    if let Some(pass) = pass {
                        taken[pass] += dispatch.recurrent_steps().unwrap();
                    }
                }
            }
            assert_eq!(taken, [t, t + 1], "{config}");
        }
    }
}

/// Only what must last is kept: the gates of an inference run come span by span if all are too
/// many.
#[test]
fn inference_never_binds_more_gates_than_an_adapter_allows() {
    for (t, b, h, direction) in
        [(1500, 32, 2816, Direction::Forward), (3001, 17, 1024, Direction::Both)]
    {
        let config = GruConfig::pytorch(8, h).with_direction(direction);
        let plan = plan(&config, t, b, Mode::Inference);
        let gates = &plan.buffers()[plan.buffer("gates").unwrap().index()];
        assert!(gates.bytes() <= 128 << 20, "{}", gates.len);
        let steps = |stage: &Stage| match stage {
            Stage::Steps { first, last, .. } => last + 1 - first,
            Stage::Once(_) => 0,
        };
        assert_eq!(plan.forward().iter().map(steps).sum::<usize>(), t);
        assert!(plan.forward().len() > 4, "{}", plan.forward().len());
    }
}

/// x and dx are always needed.
#[test]
fn recomputing_gates_halves_memory_and_adds_a_third_of_the_work() {
    for config in GruConfig::all_variants(1, 128) {
        let plan = |recompute: bool| {
            let options = RunOptions::default().with_recompute(recompute);
            let shape = config.shape(512, 64).unwrap();
            let mode = Mode::Training;
            Plan::with_options(&config, shape, mode, options, &DeviceCaps::WEBGPU).unwrap()
        };
        let (kept, again) = (plan(false), plan(true));
        let share = again.bytes() as f64 / kept.bytes() as f64;
        assert!(share < 0.52, "{config}: {share}");
        assert_eq!(again.forward_flops(), kept.forward_flops());
        let more = again.backward_flops() - kept.backward_flops();
        let share = more as f64 / kept.forward_flops() as f64;
        // Each span except the last runs forward again.
        assert!((0.85..1.0).contains(&share), "{config}: {share}");
    }
}

/// Limits that allow everything except what a test is about.
const GENEROUS: Limits = Limits {
    max_buffer_size: u64::MAX,
    max_storage_buffer_binding_size: u64::MAX,
    ..Limits::WEBGPU_DEFAULT
};

#[test]
fn each_limit_error_names_the_limit_the_request_and_the_maximum() {
    let default = Limits::WEBGPU_DEFAULT;
    let cases = [
        // 4 · 300 · 300 · 1024 · 4 bytes of gates.
        (default, [300, 300, 1, 1024], "max_buffer_size", 1_474_560_000),
        // 200 · 200 · 1024 · 4 bytes of h: fits a buffer, not a binding.
        (default, [200, 200, 1, 1024], "max_storage_buffer_binding_size", 163_840_000),
        // 3 · 3400² · 4 bytes of weight_hh.
        (default, [1, 1, 1, 3400], "max_storage_buffer_binding_size", 138_720_000),
        // 256 bytes of arguments for 20 million steps forward, as many backward, and 45 more, of
        // gates in three buffers.
        (GENEROUS, [20_000_000, 1, 1, 1], "max_buffer_size", 10_240_011_520),
        // A step forward sums H products, four at a time in 16 lanes, and stages them.
        (
            Limits { max_loop_iterations: 2000, ..GENEROUS },
            [1, 1, 1, 16_000],
            "max_loop_iterations",
            3652,
        ),
        // The input product has 1200 columns, in tiles of 256 by so few rows.
        (
            Limits { max_compute_workgroups_per_dimension: 3, ..GENEROUS },
            [1, 1, 1, 400],
            "max_compute_workgroups_per_dimension",
            5,
        ),
        (
            Limits { max_storage_buffers_per_shader_stage: 4, ..GENEROUS },
            [2, 2, 2, 2],
            "max_storage_buffers_per_shader_stage",
            5,
        ),
        (
            Limits { max_compute_invocations_per_workgroup: 32, ..GENEROUS },
            [2, 2, 2, 2],
            "max_compute_invocations_per_workgroup",
            256,
        ),
        (
            Limits { max_compute_workgroup_storage_size: 1024, ..GENEROUS },
            [2, 2, 2, 2],
            "max_compute_workgroup_storage_size",
            6400,
        ),
    ];
    for (limits, [t, b, i, h], expected, size) in cases {
        let plan = plan(&GruConfig::pytorch(i, h), t, b, Mode::Training);
        match plan.check(&limits) {
            Err(Error::Limit { limit, asked, allowed, .. }) => {
                assert_eq!((limit, asked), (expected, size), "T {t}, B {b}, I {i}, H {h}");
                assert!(asked > allowed);
            }
            other => panic!("T {t}, B {b}, I {i}, H {h}: {other:?}, expected {expected}"),
        }
    }
}

/// A shorter run would not help.
#[test]
fn parameters_too_large_for_a_buffer_are_reported_first() {
    let plan = plan(&GruConfig::pytorch(1, 6000), 300, 300, Mode::Training);
    let Err(Error::Limit { what, limit, asked, .. }) = plan.check(&Limits::WEBGPU_DEFAULT) else {
        panic!("gates of 8.6 GB fit")
    };
    assert_eq!((what.as_str(), limit), ("the buffer params flat", "max_buffer_size"));
    assert!(asked / 4 >= 3 * 6000 * 6000 && asked / 4 < 3 * 6000 * 6010, "{asked}");
}

/// Long sums and tall products are split so that any adapter's loops and grids hold them.
#[test]
fn long_sums_and_tall_products_are_split() {
    for ([t, b, i, h], cut) in [
        ([3, 1_000_000, 1, 1], "dW_ih = daᵀ · x"),
        ([1500, 64, 1, 8], "dW_ih = daᵀ · x"),
        ([1, 1, 30_000_000, 2], "dx = da · W_ih"),
        ([1, 1, 30_000_000, 2], "gates[r z n] = x · W_ihᵀ + b_ih"),
        ([1, 4096, 1, 4096], "r, z from h; r ⊙ h"), // 275 GFLOP a step
        ([1, 1_048_577, 1, 1], "n from r ⊙ h; h'"),
        ([500, 96, 2048, 2048], "gates[r z n] = x · W_ihᵀ + b_ih"), // 1.2 TFLOP
        ([9, 1_000_000, 1, 1], "db_ih = Σ da"),
    ] {
        let plan = plan(&GruConfig::new(i, h), t, b, Mode::Training);
        plan.check(&GENEROUS).unwrap();
        let mut chunks = 0;
        for stage in plan.forward().iter().chain(plan.backward()) {
            for dispatch in stage.dispatches().0 {
                assert!(dispatch.iterations <= 65_535, "{}", dispatch.label);
                assert!(dispatch.workgroups.iter().all(|&n| n <= 65_535), "{}", dispatch.label);
                assert!(dispatch.padded_flops >= dispatch.flops, "{}", dispatch.label);
                assert!(dispatch.padded_flops <= 33_000_000_000, "{}", dispatch.label);
                chunks += usize::from(dispatch.label == cut);
            }
        }
        assert!(chunks > 1, "T {t}, B {b}, I {i}, H {h}: {cut} is in {chunks} piece");
    }
}

#[test]
fn impossible_sizes_are_refused_when_the_shape_is_made() {
    let config = GruConfig::new(3, 5);
    for (t, b) in [(0, 1), (1, 0)] {
        assert!(matches!(config.shape(t, b), Err(Error::ZeroSize { .. })));
    }
    for config in [GruConfig::new(0, 1), GruConfig::new(1, 0), GruConfig::new(1, 1).with_layers(0)]
    {
        assert!(matches!(config.shape(1, 1), Err(Error::ZeroSize { .. })));
    }
    for (config, t, b) in [
        (GruConfig::new(1, usize::MAX / 2), 1, 1),
        (GruConfig::new(usize::MAX, 1), 1, 1),
        (GruConfig::new(1, 1), usize::MAX, 1),
        (GruConfig::new(1, 1), 1 << 40, 1 << 40),
        (GruConfig::new(1, 1 << 28), 1 << 30, 1), // the gates alone
        (GruConfig::new(1, 1).with_layers(1 << 60), 1, 1),
    ] {
        assert!(matches!(config.shape(t, b), Err(Error::Overflow { .. })), "{config}");
    }
}

/// The gates that training keeps, at the longest of DeepBench's shapes and the largest binding:
/// 2.16 GB in two buffers.
#[test]
fn gates_larger_than_a_binding_use_several_buffers() {
    let limits = Limits {
        max_buffer_size: 1 << 40,
        max_storage_buffer_binding_size: (2 << 30) - 4,
        ..Limits::WEBGPU_DEFAULT
    };
    let machine = DeviceCaps::new(limits, false);
    let config = GruConfig::pytorch(2816, 2816);
    let shape = config.shape(1500, 32).unwrap();
    let plan = Plan::with_options(&config, shape, Mode::Training, RunOptions::default(), &machine);
    let plan = plan.unwrap();
    plan.check(&limits).unwrap();
    for name in ["gates_s0", "gates_s1"] {
        let gates = &plan.buffers()[plan.buffer(name).unwrap().index()];
        assert_eq!((gates.axes.as_str(), gates.len), ("[750, B, 4H]", 750 * 32 * 4 * 2816));
    }
    assert!(plan.buffer("gates").is_none() && plan.buffer("gates_s2").is_none());
    // No additional work: gates that are kept are not computed again.
    let forward = 6 * 1500 * 32 * 2816 * (2816 + 2816);
    assert_eq!(plan.forward_flops(), forward);
    assert!(plan.backward_flops() < 2 * forward + forward / 100);
}

/// More layers than any model has, refused before a list of them is made.
#[test]
fn absurd_layer_counts_are_refused_at_once() {
    for layers in [1025, 100_000_000] {
        let config = GruConfig::new(1, 1).with_layers(layers);
        let error = ParamLayout::new(&config).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error}");
        let expected = format!("the number of layers L is {layers}; expected at most 1024");
        assert_eq!(error.to_string(), expected);
    }
    assert!(ParamLayout::new(&GruConfig::new(1, 1).with_layers(1024)).is_ok());
}

/// Sizes that fit the address space but no kernel's index are refused at once.
#[test]
fn sizes_past_a_32_bit_index_are_refused_before_planning() {
    for (i, h, t, b) in
        [(1, 1, 1 << 57, 1), (1, 1, 1, 1 << 56), (1 << 40, 1, 1, 1), (1, 1 << 17, 1, 1)]
    {
        let config = GruConfig::new(i, h);
        let error = Plan::new(&config, config.shape(t, b).unwrap(), Mode::Training).unwrap_err();
        let Error::Limit { asked, allowed, .. } = error else { panic!("{error}") };
        assert!(asked > allowed && allowed == u64::from(u32::MAX), "{asked}");
    }
}

#[test]
fn a_plan_reads_like_a_schedule() {
    let text = plan(&GruConfig::new(8, 32), 104, 64, Mode::Training).to_string();
    for line in [
        "training, GRU 8→32, reset before, z overwrites, one bias; T 104, B 64, I 8, H 32",
        "  gates        [T, B, 4H]       scratch          851968 f32    3.41 MB",
        "  for each of 104 steps, 0 to 103",
        "  for each of 104 steps, 104 down to 1",
        "    forward       r, z from h; r ⊙ h                                 8×2 groups    262 kFLOP    57.6 kB",
        "  matmul        dW_hn = da_nᵀ · (r ⊙ h)                          1×1×416 groups   13.6 MFLOP    3.41 MB",
        "total: 428 dispatches of 7 pipelines, 156 MFLOP, at least 61.3 MB moved, 10.0 MB held",
    ] {
        assert!(text.contains(&format!("{line}\n")), "`{line}` is not in\n{text}");
    }
    let config = GruConfig::pytorch(8, 32).with_layers(2).with_direction(Direction::Both);
    let config = config.with_dropout(0.1).with_zoneout(0.2);
    let shape = config.shape(104, 64).unwrap().with_layout(Layout::BatchFirst);
    let options = RunOptions::default().with_recurrence(Recurrence::Step);
    let plan = Plan::with_options(&config, shape, Mode::Training, options, &DeviceCaps::WEBGPU);
    let text = plan.unwrap().to_string();
    for line in [
        "training, GRU 8→32, reset after, z keeps, two biases, 2 layers, both directions, dropout 0.1, \
         zoneout 0.2; T 104, B 64, I 8, H 32, L 2, D 2, batch first",
        "  step_flags   [T, B] + seed    input              6660 u32    26.6 kB",
        "  h_l1         [2, B, T, H]     scratch          425984 f32    1.70 MB",
        "  matmul        l1: reverse: gates[r z n] = x · W_ihᵀ + b_ih       2×104 groups   81.8 MFLOP    4.28 MB",
        "  for each of 104 steps, 0 to 103, in both directions at once",
        "    forward       l0: r, z, n from h; h'; zoneout; dropout         8×2×2 groups    786 kFLOP     189 kB",
        "    forward       l1: r, z, n from h; h'; zoneout                  8×2×2 groups    786 kFLOP     189 kB",
    ] {
        assert!(text.contains(&format!("{line}\n")), "`{line}` is not in\n{text}");
    }
}
