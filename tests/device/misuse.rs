//! Every public function, called wrongly: with wrong shapes, with objects of another device, with
//! empty and with huge arguments, with NaN, in the wrong order. Each call returns an error or a
//! result; none panics.
//!
//! The test compares the table with the sources and fails if a public function has no row.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use crate::common::{adapter, open_adapter, random3};
use gru_wgpu::formats::{self, Cell, npy, npz, onnx, pytorch, safetensors};
use gru_wgpu::plan::{self, DeviceCaps, Limits, Mode, Plan};
use gru_wgpu::{
    Activation, Activations, Batch, Bias, Buffers, Checkpoint, Clip, DataFingerprint,
    DataFingerprints, Device, DeviceKind, Direction, Error, Evaluation, Example, Gru, GruConfig,
    Head, Init, Layout, Learner, LearnerConfig, Loss, Network, Optimizer, OptimizerState, Order,
    OutputMut, ParamLayout, Params, Readout, Recurrence, Reset, RunOptions, Schedule,
    SequenceWindows, Shape, Target, TargetArray, Targets, Trainer, TrainerConfig, TrainingBatch,
    Update, check, reference, wgpu,
};
use ndarray::{Array1, Array2, Array3, ArrayD, ArrayView3, IxDyn, s};
use pollster::block_on;

/// The expected result of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    /// A result: the call is correct.
    Fine,
    /// An error.
    Refused,
    /// Either: the call must return.
    Back,
}
use Wanted::{Back, Fine, Refused};

#[derive(Default)]
struct Table {
    functions: BTreeSet<String>,
    text: String,
    rows: usize,
    panics: usize,
    wrong: usize,
}

impl Table {
    /// Adds a call of these functions, separated by blanks.
    fn row<T>(
        &mut self,
        names: &str,
        case: &str,
        wanted: Wanted,
        call: impl FnOnce() -> Result<T, Error>,
    ) {
        let outcome = catch_unwind(AssertUnwindSafe(|| call().map(drop)));
        let good = match &outcome {
            Err(_) => false,
            Ok(Ok(())) => wanted != Refused,
            Ok(Err(_)) => wanted != Fine,
        };
        let words = match &outcome {
            Err(_) => "PANIC".to_owned(),
            Ok(Ok(())) => "a result".to_owned(),
            Ok(Err(error)) => error.to_string(),
        };
        self.functions.extend(names.split_whitespace().map(str::to_owned));
        self.rows += 1;
        self.panics += usize::from(outcome.is_err());
        self.wrong += usize::from(!good);
        let mark = if good { ' ' } else { '!' };
        writeln!(self.text, "{mark} {names} | {case} | wanted {wanted:?} | {words}").unwrap();
    }

    /// Adds a call of a function that cannot fail.
    fn plain<T>(&mut self, names: &str, case: &str, call: impl FnOnce() -> T) {
        self.row(names, case, Fine, || Ok(call()));
    }
}

const HUGE: usize = usize::MAX;

fn config() -> GruConfig {
    GruConfig::pytorch(3, 5)
}

fn zeros(shape: [usize; 3]) -> Array3<f32> {
    Array3::zeros(shape)
}

fn headed(head: Head) -> Params {
    Params::init_of(ParamLayout::with_head(&config(), head).unwrap(), Init::Uniform, 1).unwrap()
}

fn training() -> LearnerConfig {
    LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01)
}

/// Configurations, shapes, layouts, parameters: everything that needs no device.
fn values(t: &mut Table) {
    for size in [0, 1, HUGE] {
        let wrong = GruConfig::new(size, size).with_layers(size);
        t.plain("GruConfig::new GruConfig::pytorch GruConfig::with_layers", "any size", || {
            GruConfig::pytorch(size, size).with_layers(size)
        });
        t.plain(
            "GruConfig::directions GruConfig::layer_input_size",
            "of any size and layer",
            || (wrong.directions(), wrong.layer_input_size(0), wrong.layer_input_size(HUGE)),
        );
        t.row(
            "GruConfig::validate",
            "sizes of 0 or too large",
            if size == 1 { Fine } else { Refused },
            || wrong.validate(),
        );
        t.row(
            "GruConfig::shape",
            "sizes of 0 or too large",
            if size == 1 { Fine } else { Refused },
            || config().shape(size, size),
        );
        t.plain("GruConfig::all_variants", "any size", || GruConfig::all_variants(size, size));
        t.plain("Head::every_step Head::last", "any size", || {
            (Head::every_step(size), Head::last(size))
        });
        t.row("ParamLayout::with_head", "outputs", if size == 1 { Fine } else { Refused }, || {
            ParamLayout::with_head(&config(), Head::last(size))
        });
        let bad = if size == 1 { Fine } else { Refused };
        t.row("ParamLayout::new", "sizes of 0 or too large", bad, || ParamLayout::new(&wrong));
        t.row("Params::zeros", "sizes of 0 or too large", bad, || Params::<f32>::zeros(&wrong));
        t.row("Params::init", "sizes of 0 or too large", bad, || {
            Params::init(&wrong, Init::Uniform, 1)
        });
    }
    let large = GruConfig::new(1, 1 << 27);
    t.row("Params::zeros_of Params::init_of", "no memory for it", Refused, || {
        let layout = ParamLayout::new(&large)?;
        Params::<f32>::zeros_of(layout.clone())?;
        Params::init_of(layout, Init::Orthogonal, 1)
    });
    t.plain("GruConfig::with_reset GruConfig::with_update GruConfig::with_bias", "each", || {
        config().with_reset(Reset::Before).with_update(Update::Keeps).with_bias(Bias::None)
    });
    t.plain(
        "GruConfig::with_direction Direction::count Direction::is_reverse",
        "no such way",
        || {
            (
                config().with_direction(Direction::Both),
                Direction::Both.count(),
                Direction::Both.is_reverse(HUGE),
            )
        },
    );
    t.plain("GruConfig::with_activations Activation::code", "each", || {
        Activation::ALL.map(|a| (config().with_activations(a, a), a.code()))
    });
    for alpha in [f32::NAN, f32::INFINITY, -1.0] {
        let leaky = Activation::LeakyRelu { alpha };
        t.row("GruConfig::with_activations", "no valid α", Refused, || {
            config().with_activations(Activation::Sigmoid, leaky).validate()
        });
        t.row("GruConfig::with_reverse_activations", "no valid α", Refused, || {
            let reverse = Activations { gate: leaky, candidate: Activation::Tanh };
            let config = config().with_direction(Direction::Both);
            config.with_reverse_activations(Some(reverse)).validate()
        });
        t.row("GruConfig::with_clip", "no bound", Refused, || {
            config().with_clip(Some(alpha)).validate()
        });
    }
    t.row("GruConfig::with_reverse_activations", "of one direction", Refused, || {
        config().with_reverse_activations(Some(Activations::default())).validate()
    });
    for p in [f32::NAN, f32::INFINITY, -1.0, 1.0] {
        t.row("GruConfig::with_dropout", "no probability", Refused, || {
            config().with_layers(2).with_dropout(p).validate()
        });
        t.row("GruConfig::with_zoneout", "no probability", Refused, || {
            config().with_zoneout(p).validate()
        });
    }
    // A shape's fields are public.
    let mut shape = config().shape(2, 2).unwrap();
    (shape.steps, shape.batch) = (0, 0);
    t.plain("Shape::x Shape::y Shape::state Shape::with_layout", "of nothing", || {
        let shape = shape.with_layout(Layout::BatchFirst);
        (shape.x(), shape.y(), shape.state())
    });

    let layout = ParamLayout::new(&config()).unwrap();
    t.plain(
        "ParamLayout::config ParamLayout::head ParamLayout::entries ParamLayout::flat_len \
         ParamLayout::parameter_count",
        "of no head",
        || {
            (
                layout.config().clone(),
                layout.head(),
                layout.entries().len(),
                layout.flat_len(),
                layout.parameter_count(),
            )
        },
    );
    t.row("ParamLayout::entry", "no such name", Refused, || layout.entry("").cloned());
    let mut params = Params::init(&config(), Init::Uniform, 1).unwrap();
    t.row("Params::get", "no such name", Refused, || params.get("weight").map(|_| ()));
    t.row("Params::get_mut", "no such name", Refused, || {
        params.clone().get_mut("weight").map(|_| ())
    });
    for shape in [&[][..], &[0], &[15], &[5, 15], &[15, 5, 1]] {
        t.row("Params::set", "another shape", Refused, || {
            params.set("weight_hh_l0", ArrayD::zeros(IxDyn(shape)).view())
        });
    }
    t.plain(
        "Params::layout Params::as_slice Params::as_mut_slice Params::iter Params::cast",
        "NaN",
        || {
            params.as_mut_slice().fill(f32::NAN);
            (
                params.layout().flat_len(),
                params.as_slice().len(),
                params.iter().count(),
                params.cast::<f64>(),
            )
        },
    );
    t.plain("RunOptions::with_recurrence RunOptions::with_recompute", "each", || {
        RunOptions::default().with_recurrence(Recurrence::Sequence).with_recompute(true)
    });
}

/// Batches, the reference, the check's tolerance.
fn batches(t: &mut Table) {
    let x = zeros([4, 2, 3]);
    let empty = zeros([0, 0, 0]);
    let no_resets = Array2::from_elem((0, 0), true);
    t.plain(
        "Batch::new Batch::batch_first Batch::with_layout Batch::with_seed Batch::reborrow",
        "of nothing",
        || {
            let _ = Batch::new(empty.view());
            let batch =
                Batch::batch_first(empty.view()).with_layout(Layout::TimeMajor).with_seed(u64::MAX);
            batch.reborrow().seed
        },
    );
    for lengths in [&[][..], &[4], &[5, 5], &[HUGE, 0]] {
        t.row("Batch::step_flags Batch::with_lengths", "lengths that do not fit", Refused, || {
            Batch::new(x.view()).with_lengths(lengths).step_flags()
        });
    }
    t.row("Batch::with_resets", "of another shape", Refused, || {
        Batch::new(x.view()).with_resets(no_resets.view()).step_flags()
    });
    let params = Params::init(&config(), Init::Uniform, 1).unwrap();
    let wrong = [
        Batch::new(empty.view()),
        Batch::new(x.view()).with_h0(empty.view()),
        Batch::new(x.view()).with_reset_state(x.view()),
        Batch::batch_first(x.view()).with_lengths(&[4, 4]),
    ];
    for batch in wrong {
        t.row(
            "Batch::with_h0 Batch::with_reset_state reference::forward",
            "shapes",
            Refused,
            || reference::forward(&params, batch),
        );
        t.row("reference::forward_train", "shapes", Refused, || {
            reference::forward_train(&params, batch)
        });
    }
    let trace = reference::forward_train(&params, x.view()).unwrap();
    t.plain("reference::Trace::y reference::Trace::h_n", "of zeros", || (trace.y(), trace.h_n()));
    let other = Params::init(&GruConfig::new(3, 4), Init::Uniform, 1).unwrap();
    let (dy, dh_n) = (zeros([4, 2, 5]), zeros([1, 2, 5]));
    for (what, params, x, dy, dh_n) in [
        ("no gradient", &params, x.view(), None, None),
        ("x", &params, empty.view(), Some(dy.view()), None),
        ("dy", &params, x.view(), Some(dh_n.view()), None),
        ("dh_n", &params, x.view(), None, Some(dy.view())),
        ("parameters", &other, x.view(), Some(dy.view()), None),
    ] {
        t.row("reference::backward", what, Refused, || {
            reference::backward(params, x, &trace, dy, dh_n)
        });
    }
    let mut broken = trace.clone();
    broken.cells.clear();
    t.row("reference::backward", "a trace of no cells", Refused, || {
        reference::backward(&params, x.view(), &broken, Some(dy.view()), None)
    });
    t.plain("check::Tolerance::fraction", "NaN and infinity", || {
        let tolerance = check::TOLERANCE;
        [f64::NAN, f64::INFINITY].map(|v| {
            (tolerance.fraction(v, v), tolerance.fraction(0.0, v), tolerance.fraction(v, 0.0))
        })
    });
}

/// Optimizers, schedules, losses: invalid settings.
fn settings(t: &mut Table) {
    t.row("OptimizerState::zeros", "no memory for it", Refused, || OptimizerState::zeros(HUGE / 8));
    t.plain("Optimizer::sgd Optimizer::adam", "as they are", || {
        (Optimizer::sgd(), Optimizer::adam())
    });
    for decay in [f64::NAN, f64::INFINITY, -1.0] {
        t.row("Optimizer::adamw Optimizer::validate", "no decay", Refused, || {
            Optimizer::adamw(decay).validate()
        });
        t.row("LearnerConfig::validate", "no learning rate", Refused, || {
            LearnerConfig::new(Loss::MeanSquared, Optimizer::sgd(), decay).validate()
        });
        t.row("LearnerConfig::with_clip", "no bound", Refused, || {
            training().with_clip(Clip::Norm(decay as f32)).validate()
        });
    }
    let mut moments = OptimizerState::zeros(2).unwrap();
    for (params, gradient) in [(1, 2), (2, 1), (0, 0)] {
        t.row("Optimizer::step", "lengths", Refused, || {
            Optimizer::adam().step(0.1, &mut vec![0.0; params], &vec![0.0; gradient], &mut moments)
        });
    }
    t.row("Optimizer::step", "NaN and the last of all counts", Back, || {
        moments.steps = u64::MAX - 1;
        Optimizer::adam().step(f64::NAN, &mut [f32::NAN; 2], &[f32::INFINITY; 2], &mut moments)
    });
    for updates in [0, 1, u64::MAX] {
        t.plain("Schedule::cosine Schedule::factor", "any step", || {
            let schedule = Schedule::cosine(updates);
            [0, 1, updates, u64::MAX].map(|step| schedule.factor(step))
        });
        t.plain("LearnerConfig::rate", "any step", || {
            training().with_schedule(Schedule::cosine(updates)).rate(u64::MAX)
        });
    }
    t.plain("LearnerConfig::new LearnerConfig::with_schedule Loss::cross_entropy", "NaN", || {
        LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), f64::NAN)
            .with_schedule(Schedule::default())
    });
    t.row("LearnerConfig::with_accumulation", "none", Refused, || {
        training().with_accumulation(0).validate()
    });
    t.row("LearnerConfig::with_accumulation", "no end of them", Back, || {
        training().with_accumulation(HUGE).validate()
    });
    for (epochs, batch) in [(0, 1), (1, 0)] {
        t.row("TrainerConfig::new TrainerConfig::validate", "nothing", Back, || {
            TrainerConfig::new(epochs, batch).validate()
        });
        t.plain("TrainerConfig::updates", "of nothing and of much", || {
            let config = TrainerConfig::new(epochs, batch);
            let one = vec![Example::new(Array2::zeros((1, 1)), Target::Class(0))];
            let (none, loss) = (&one[..0], Loss::cross_entropy());
            (
                config.updates(none, &loss, 0),
                config.updates(&one, &loss, HUGE),
                TrainerConfig::new(HUGE, HUGE).updates(&one, &loss, 1),
            )
        });
    }
    t.plain("TrainerConfig::with_seed TrainerConfig::with_patience", "0", || {
        TrainerConfig::new(1, 1).with_seed(0).with_patience(0)
    });
    t.plain("Evaluation::accuracy Evaluation::is_better_than", "of nothing", || {
        let none = Evaluation::default();
        (none.accuracy(), none.is_better_than(&none))
    });
}

/// Plans.
fn plans(t: &mut Table) {
    let shape = config().shape(2, 2).unwrap();
    t.row("plan::Plan::new", "the shape of another configuration", Refused, || {
        Plan::new(&GruConfig::new(4, 5), shape, Mode::Training)
    });
    let change = |change: fn(&mut Shape)| {
        let mut shape = shape;
        change(&mut shape);
        shape
    };
    for (what, shape) in [
        ("no steps", change(|s| s.steps = 0)),
        ("too many steps", change(|s| s.steps = HUGE)),
        ("too many for an index", change(|s| s.steps = 1 << 31)),
        ("other layers", change(|s| s.layers = HUGE)),
        ("other directions", change(|s| s.directions = 0)),
    ] {
        for mode in [Mode::Inference, Mode::Training] {
            for recompute in [false, true] {
                let options = RunOptions::default().with_recompute(recompute);
                t.row("plan::Plan::with_options plan::DeviceCaps::new", what, Refused, || {
                    let machine = DeviceCaps::new(Limits::WEBGPU_DEFAULT, true);
                    Plan::with_options(&config(), shape, mode, options, &machine)
                });
            }
        }
    }
    let none = Limits {
        max_buffer_size: 0,
        max_storage_buffer_binding_size: 0,
        max_storage_buffers_per_shader_stage: 0,
        max_compute_workgroups_per_dimension: 0,
        max_compute_invocations_per_workgroup: 0,
        max_compute_workgroup_storage_size: 0,
        max_loop_iterations: 0,
    };
    for recurrence in [Recurrence::Auto, Recurrence::Step, Recurrence::Sequence] {
        t.row("plan::Plan::check", "a device of no limits", Refused, || {
            let options = RunOptions::default().with_recurrence(recurrence);
            let plan = Plan::with_options(
                &config(),
                shape,
                Mode::Training,
                options,
                &DeviceCaps::new(none, false),
            )?;
            plan.check(&none)
        });
    }
    let plan = Plan::new(&config(), shape, Mode::Inference).unwrap();
    t.plain("plan::Plan::buffer plan::BufferId::index", "no such name", || {
        (plan.buffer("").is_none(), plan.buffer("x").map(plan::BufferId::index))
    });
    t.plain(
        "plan::Plan::buffers plan::Plan::forward plan::Plan::backward plan::Plan::forward_dispatches \
         plan::Plan::backward_dispatches plan::Plan::forward_flops plan::Plan::backward_flops plan::Plan::bytes \
         plan::Plan::argument_bytes plan::Stage::dispatches",
        "of no backward pass",
        || {
            let stages: usize = plan.forward().iter().chain(plan.backward()).map(|s| s.dispatches().1).sum();
            let counts = (plan.buffers().len(), plan.forward_dispatches(), plan.backward_dispatches());
            (stages, counts, plan.forward_flops(), plan.backward_flops(), plan.bytes(), plan.argument_bytes())
        },
    );
    let caps = DeviceCaps::WEBGPU.with_subgroups(u32::MAX, 0);
    t.plain(
        "plan::DeviceCaps::with_f16 plan::DeviceCaps::with_subgroups plan::SubgroupSizes::range \
         plan::DeviceCaps::with_cooperative_matrices plan::DeviceCaps::with_cores plan::DeviceCaps::with_lanes \
         plan::DeviceCaps::with_dispatch_cost plan::DeviceCaps::with_large_tile_flops plan::Plan::pipelines \
         plan::DeviceCaps::with_immediates plan::DeviceCaps::with_hardware_exp plan::DeviceCaps::with_thread_weights plan::DeviceCaps::with_discrete \
         plan::ElementType::size plan::ElementType::bytes",
        "sizes that make no sense",
        || {
            for (software, size) in [(true, 0), (true, usize::MAX), (false, 0), (false, usize::MAX)] {
                let odd = DeviceCaps::new(caps.limits, software).with_cores(size).with_lanes(size);
                let odd = odd.with_dispatch_cost(size).with_large_tile_flops(size as u64);
                let odd = odd.with_thread_weights(size).with_immediates(size == 0);
                let odd = odd.with_hardware_exp(size == 0);
                for shape in [config().shape(1, 1).unwrap(), config().shape(9, 40).unwrap()] {
                    let options = RunOptions::default();
                    Plan::with_options(&config(), shape, Mode::Training, options, &odd).unwrap().pipelines();
                }
            }
            let caps = caps.with_f16(true).with_cooperative_matrices(true);
            let bytes = plan::ElementType::F16.bytes(HUGE / 8) + plan::ElementType::U32.size();
            (caps.subgroups.map(|sizes| sizes.range().count()), bytes)
        },
    );
    t.plain(
        "plan::BufferSpec::bytes plan::BufferSlice::bytes plan::BufferSlice::offset plan::Dispatch::bindings \
         plan::Dispatch::kernel_name plan::Dispatch::recurrent_steps plan::Dispatch::shader plan::Dispatch::args \
         plan::Dispatch::threads",
        "of every dispatch",
        || {
            let dispatches = plan.forward().iter().flat_map(|stage| stage.dispatches().0);
            let each = dispatches.map(|dispatch| {
                let bound = dispatch.bindings().iter().map(|slice| slice.offset() + slice.bytes());
                let shader = dispatch.shader(&caps).constants.len() as u64;
                let args = dispatch.args().count() as u64;
                let sizes = shader + args + dispatch.threads() + bound.sum::<u64>();
                (dispatch.kernel_name(), dispatch.recurrent_steps(), sizes)
            });
            (each.count(), plan.buffers().iter().map(plan::BufferSpec::bytes).sum::<u64>())
        },
    );
}

fn devices(t: &mut Table) {
    t.plain("Device::auto Device::auto_async Device::cpu", "as they are", || {
        (Device::auto(), block_on(Device::auto_async()), Device::cpu())
    });
    t.row("Device::gpu Device::gpu_async", "where there may be none", Back, || {
        Device::gpu().and(block_on(Device::gpu_async()))
    });
    t.row("Device::gpu_at Device::gpu_at_async", "one that no machine has", Refused, || {
        Device::gpu_at(usize::MAX).and(block_on(Device::gpu_at_async(usize::MAX)))
    });
    t.plain("Device::all Device::all_async", "as they are", || {
        (Device::all(), block_on(Device::all_async()))
    });
    t.row("Device::software Device::software_async", "where there may be none", Back, || {
        Device::software().and(block_on(Device::software_async()))
    });
    t.row("DeviceKind::open DeviceKind::open_async", "where there may be none", Back, || {
        DeviceKind::Gpu.open().and(block_on(DeviceKind::Gpu.open_async()))
    });
    t.plain("Device::needed_limits Device::with_wait_limit", "no time at all", || {
        (Device::needed_limits(), Device::cpu().with_wait_limit(Duration::ZERO))
    });
    t.plain("Device::with_pipeline_cache Device::pipeline_cache", "no folder", || {
        let nowhere = |device: Device| device.with_pipeline_cache("\0").pipeline_cache();
        (nowhere(Device::cpu()), nowhere(open_adapter()))
    });
    t.row(
        "Device::with_default_limits Device::with_default_limits_async",
        "of the CPU",
        Fine,
        || {
            Device::cpu()
                .with_default_limits()
                .and(block_on(Device::cpu().with_default_limits_async()))
        },
    );
    t.plain(
        "Device::adapters Device::adapters_async Device::reason Device::is_adapter Device::adapter \
         Device::caps AdapterInfo::is_software",
        "all",
        || {
            let cpu = Device::cpu();
            (
                Device::adapters(),
                block_on(Device::adapters_async()),
                cpu.reason().len(),
                cpu.is_adapter(),
                cpu.caps(),
                cpu.adapter().map(|adapter| adapter.is_software()),
            )
        },
    );
    for word in [
        "",
        "CPU",
        "cpu ",
        "gpu\0",
        "gpu:",
        "gpu:-1",
        "gpu:+1",
        "gpu:1 ",
        "gpu:99999999999999999999",
    ] {
        t.row("", "a word for a device", Refused, || word.parse::<DeviceKind>());
        t.row("", "a word for a recurrence", Refused, || word.parse::<Recurrence>());
    }
}

/// Models: wrong arrays, wrong tapes, states and streams, in the wrong order.
fn models(t: &mut Table, device: &Device, elsewhere: &Device) {
    let gru = Gru::new(config(), Init::Uniform, 1, device).unwrap();
    let other = Gru::new(config(), Init::Uniform, 1, device).unwrap();
    let x = random3([4, 2, 3], 1);
    let empty = zeros([0, 0, 0]);
    let one = ndarray::arr0(0.5_f32);
    for config in [GruConfig::new(0, 5), GruConfig::new(5, HUGE), config().with_zoneout(f32::NAN)] {
        t.row("Gru::new", "an impossible configuration", Refused, || {
            Gru::new(config.clone(), Init::Uniform, 1, device)
        });
        t.row("Gru::new_async", "an impossible configuration", Refused, || {
            block_on(Gru::new_async(config, Init::Uniform, 1, device))
        });
    }
    t.row("Gru::with_params Gru::with_params_async", "NaN", Fine, || {
        let mut params = gru.params().clone();
        params.as_mut_slice().fill(f32::NAN);
        block_on(Gru::with_params_async(params.clone(), device))?;
        Gru::with_params(params, device)?.forward(&x)
    });
    let broadcast = |shape: (usize, usize, usize)| one.broadcast(shape).unwrap();
    let batches: [(&str, Batch<'_>); 8] = [
        ("nothing", Batch::new(empty.view())),
        ("no steps of other features", Batch::new(broadcast((0, 2, 4)))),
        ("other features", Batch::new(broadcast((4, 2, 4)))),
        ("no end of steps", Batch::new(broadcast((1 << 40, 1 << 10, 3)))),
        ("h0 of another shape", Batch::new(x.view()).with_h0(x.view())),
        ("a reset state of another shape", Batch::new(x.view()).with_reset_state(empty.view())),
        ("lengths past the steps", Batch::new(x.view()).with_lengths(&[4, HUGE])),
        ("lengths of other rows", Batch::new(x.view()).with_lengths(&[])),
    ];
    let (output, tape) = gru.forward_train(&x).unwrap();
    let state = tape.state().unwrap();
    let out = || output.clone();
    for (what, batch) in batches {
        t.row("Gru::forward", what, Refused, || gru.forward(batch));
        t.row("Gru::forward_async", what, Refused, || block_on(gru.forward_async(batch)));
        t.row("Gru::forward_train", what, Refused, || gru.forward_train(batch));
        t.row("Gru::forward_train_async", what, Refused, || {
            block_on(gru.forward_train_async(batch))
        });
        t.row("Gru::forward_from", what, Refused, || gru.forward_from(&state, batch));
        t.row("Gru::forward_from_async", what, Refused, || {
            block_on(gru.forward_from_async(&state, batch))
        });
        t.row("Gru::forward_train_from", what, Refused, || gru.forward_train_from(&state, batch));
        t.row("Gru::forward_train_from_async", what, Refused, || {
            block_on(gru.forward_train_from_async(&state, batch))
        });
        t.row("Gru::forward_into", what, Refused, || gru.forward_into(batch, &mut out()));
        t.row("Gru::forward_into_async", what, Refused, || {
            block_on(gru.forward_into_async(batch, &mut out()))
        });
        t.row("Gru::forward_train_into", what, Refused, || {
            gru.forward_train_into(batch, &mut out())
        });
        t.row("Gru::forward_train_into_async", what, Refused, || {
            block_on(gru.forward_train_into_async(batch, &mut out()))
        });
        t.row("Gru::forward_from_into", what, Refused, || {
            gru.forward_from_into(&state, batch, &mut out())
        });
        t.row("Gru::forward_from_into_async", what, Refused, || {
            block_on(gru.forward_from_into_async(&state, batch, &mut out()))
        });
        t.row("Gru::forward_train_from_into", what, Refused, || {
            gru.forward_train_from_into(&state, batch, &mut out())
        });
        t.row("Gru::forward_train_from_into_async", what, Refused, || {
            block_on(gru.forward_train_from_into_async(&state, batch, &mut out()))
        });
        t.row("Gru::time", what, Refused, || gru.time(batch, None));
        t.row("Gru::time_async", what, Refused, || block_on(gru.time_async(batch, None)));
        t.row("Gru::profile", what, Refused, || gru.profile(batch, None));
        t.row("Gru::profile_async", what, Refused, || block_on(gru.profile_async(batch, None)));
    }
    let no_steps = Batch::new(broadcast((0, 2, 3)));
    t.row("Gru::time", "no steps", Refused, || gru.time(no_steps, None));
    t.row("Gru::profile", "no steps", Refused, || gru.profile(no_steps, None));
    t.row("Gru::forward Gru::forward_train Gru::backward", "no steps", Fine, || {
        let (out, tape) = gru.forward_train(no_steps)?;
        gru.backward(tape, Some(out.y.view()), None)?;
        gru.forward_into(no_steps, &mut gru.forward(no_steps)?)
    });
    t.row("Gru::time Gru::profile", "dy of another shape", Refused, || {
        gru.profile(&x, Some(x.view()))?;
        gru.time(&x, Some(x.view()))
    });
    t.row(
        "Profile::compute Profile::total KernelTime::gflops KernelTime::gbytes",
        "of one step",
        Fine,
        || {
            let profile = gru.profile(&x, None)?;
            let rates: f64 = profile.kernels.iter().map(|k| k.gflops() + k.gbytes()).sum();
            Ok((profile.compute(), profile.total(), rates))
        },
    );
    let foreign = Gru::new(config(), Init::Uniform, 1, elsewhere).unwrap();
    t.row(
        "Gru::forward_from Gru::forward_train_from",
        "a state of another device",
        Refused,
        || {
            foreign.forward_train_from(&state, &x).map(drop)?;
            foreign.forward_from(&state, &x)
        },
    );
    t.row(
        "Tape::state Tape::state_async State::shape State::to_array State::to_array_async",
        "each",
        Fine,
        || {
            let again = block_on(tape.state_async())?;
            Ok((again.shape(), block_on(again.to_array_async())?, again.to_array()?))
        },
    );
    let nan = Array3::from_elem((4, 2, 5), f32::NAN);
    type Given<'a> = Option<ArrayView3<'a, f32>>;
    let wrong: [(&str, Given<'_>, Given<'_>); 4] = [
        ("no gradient", None, None),
        ("dy of another shape", Some(x.view()), None),
        ("dh_n of another shape", None, Some(x.view())),
        ("dy of nothing", Some(empty.view()), None),
    ];
    let gradients = || {
        let (out, tape) = gru.forward_train(&x).unwrap();
        gru.backward(tape, Some(out.y.view()), None).unwrap()
    };
    for (what, dy, dh_n) in wrong {
        let tape = || gru.forward_train(&x).map(|(_, tape)| tape);
        t.row("Gru::backward", what, Refused, || gru.backward(tape()?, dy, dh_n));
        t.row("Gru::backward_async", what, Refused, || {
            block_on(gru.backward_async(tape()?, dy, dh_n))
        });
        t.row("Gru::backward_into", what, Refused, || {
            gru.backward_into(tape()?, dy, dh_n, &mut gradients())
        });
        t.row("Gru::backward_into_async", what, Refused, || {
            block_on(gru.backward_into_async(tape()?, dy, dh_n, &mut gradients()))
        });
    }
    t.row("Gru::forward_into OutputMut::new", "arrays of another shape", Refused, || {
        let (mut y, mut h_n) = (nan.clone(), nan.clone());
        gru.forward_into(&x, OutputMut::new(y.slice_mut(s![1.., .., ..]), h_n.view_mut()))
    });
    t.row("Gru::backward_into", "gradients of another model", Refused, || {
        let (_, tape) = gru.forward_train(&x)?;
        let wider = Gru::new(GruConfig::new(1, 1), Init::Uniform, 1, device)?;
        let (out, wider_tape) = wider.forward_train(&Array3::ones((1, 1, 1)))?;
        let mut gradients = wider.backward(wider_tape, Some(out.y.view()), None)?;
        gru.backward_into(tape, Some(output.y.view()), None, &mut gradients)
    });
    t.row("Gru::backward", "another model's tape", Refused, || {
        other.backward(tape, Some(output.y.view()), None)
    });
    t.row("Gru::backward", "NaN", Fine, || {
        let (_, tape) = gru.forward_train(&x)?;
        gru.backward(tape, Some(nan.view()), None)
    });
    t.row("Gru::params_mut", "between forward and backward", Refused, || {
        let mut gru = Gru::new(config(), Init::Uniform, 1, device)?;
        let (output, tape) = gru.forward_train(&x)?;
        gru.params_mut();
        gru.backward(tape, Some(output.y.view()), None)
    });
    t.row("Gru::params_mut", "parameters of another configuration", Refused, || {
        let mut gru = Gru::new(config(), Init::Uniform, 1, device)?;
        *gru.params_mut() = Params::zeros(&GruConfig::new(1, 1))?;
        gru.forward(&x)
    });
    let mut shape = gru.config().shape(2, 2).unwrap();
    shape.hidden = HUGE;
    t.row("Gru::plan", "a shape of another model", Refused, || gru.plan(shape, Mode::Training));
    t.row("Gru::chunks", "a shape of another model", Refused, || gru.chunks(shape, Mode::Training));
    t.row("Gru::to Gru::to_async", "where it is already", Fine, || {
        gru.to(device).and(block_on(gru.to_async(device)))
    });
    t.plain("Gru::config Gru::device Gru::params Gru::options Gru::with_options", "each", || {
        let options = gru.options().with_recurrence(Recurrence::Step);
        let gru = Gru::new(config(), Init::Uniform, 1, device).unwrap().with_options(options);
        (gru.config().clone(), gru.device().clone(), gru.params().clone())
    });
    streams(t, device, &gru, &other);
    // It still works afterwards.
    t.row("Gru::forward", "after all errors", Fine, || {
        assert_eq!(gru.forward(&x)?, output);
        Ok(())
    });
}

fn streams(t: &mut Table, device: &Device, gru: &Gru, other: &Gru) {
    let wrong: [(&str, usize, &[usize]); 5] = [
        ("no rows", 0, &[1]),
        ("no chunks", 2, &[]),
        ("chunks of nothing", 2, &[1, 0]),
        ("no end of rows", HUGE, &[1]),
        ("no end of steps", 2, &[HUGE]),
    ];
    for (what, rows, chunks) in wrong {
        t.row("Gru::stream", what, Refused, || gru.stream(rows, chunks));
        t.row("Gru::stream_async", what, Refused, || block_on(gru.stream_async(rows, chunks)));
    }
    for direction in [Direction::Reverse, Direction::Both] {
        t.row("Gru::stream", "a reverse direction", Refused, || {
            Gru::new(config().with_direction(direction), Init::Uniform, 1, device)?.stream(1, &[1])
        });
    }
    let mut stream = gru.stream(2, &[1, 3]).unwrap();
    let step = |gru: &Gru, stream: &mut _, x: [usize; 3], y: [usize; 3]| {
        gru.step(stream, zeros(x).view(), zeros(y).view_mut())?;
        Ok(())
    };
    for (what, x, y) in [
        ("a chunk it was not made for", [2, 2, 3], [2, 2, 5]),
        ("x of nothing", [0, 0, 0], [1, 2, 5]),
        ("x of other rows", [1, 3, 3], [1, 2, 5]),
        ("y of another shape", [1, 2, 3], [1, 2, 3]),
    ] {
        t.row("Gru::step", what, Refused, || step(gru, &mut stream, x, y));
        t.row("Gru::step_async", what, Refused, || {
            block_on(gru.step_async(&mut stream, zeros(x).view(), zeros(y).view_mut()))
        });
    }
    t.row("Gru::step", "another model's stream", Refused, || {
        step(other, &mut stream, [1, 2, 3], [1, 2, 5])
    });
    t.row("Stream::reset_row", "no such row", Refused, || stream.reset_row(HUGE));
    for shape in [[0, 0, 0], [1, 2, 4], [2, 1, 5]] {
        let given = zeros(shape);
        t.row("Stream::set_state", "another shape", Refused, || stream.set_state(given.view()));
        t.row("Stream::set_state_async", "another shape", Refused, || {
            block_on(stream.set_state_async(given.view()))
        });
        t.row("Stream::set_reset_state", "another shape", Refused, || {
            stream.set_reset_state(given.view())
        });
        t.row("Stream::set_reset_state_async", "another shape", Refused, || {
            block_on(stream.set_reset_state_async(given.view()))
        });
    }
    t.row(
        "Stream::rows Stream::chunks Stream::reset Stream::state Stream::state_async",
        "after all errors",
        Fine,
        || {
            stream.reset();
            let before = (
                stream.rows(),
                stream.chunks().len(),
                stream.state()?,
                block_on(stream.state_async())?,
            );
            step(gru, &mut stream, [3, 2, 3], [3, 2, 5])?;
            Ok(before)
        },
    );
}

/// The caller's own device and buffers. The CPU refuses all of it.
fn embedding(t: &mut Table) {
    let name = adapter().adapter().unwrap().name;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let own = adapters.into_iter().find(|adapter| adapter.get_info().name == name).unwrap();
    let (device, queue) = block_on(own.request_device(&Default::default())).unwrap();
    let mut ours = None;
    t.row("Device::from_wgpu", "a device of few limits", Fine, || {
        ours = Some(Device::from_wgpu(&own, &device, &queue)?);
        Ok(())
    });
    let gru = Gru::new(config(), Init::Uniform, 1, &ours.unwrap()).unwrap();
    let on_cpu = Gru::new(config(), Init::Uniform, 1, &Device::cpu()).unwrap();
    let shape = config().shape(4, 2).unwrap();
    let buffer = |len: u64, usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * len,
            usage,
            mapped_at_creation: false,
        })
    };
    use wgpu::BufferUsages as Usage;
    let [x, y, small] =
        [24, 40, 1].map(|len| buffer(len, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST));
    let unusable = buffer(40, Usage::COPY_DST);
    let good = || Buffers::new(x.as_entire_buffer_binding(), y.as_entire_buffer_binding());
    let past = wgpu::BufferBinding { buffer: &x, offset: 1 << 40, size: None };
    let askew = wgpu::BufferBinding { buffer: &x, offset: 4, size: None };
    let cases = [
        (
            "x too small",
            Buffers::new(small.as_entire_buffer_binding(), y.as_entire_buffer_binding()),
        ),
        (
            "y of no use",
            Buffers::new(x.as_entire_buffer_binding(), unusable.as_entire_buffer_binding()),
        ),
        ("x past its end", Buffers::new(past, y.as_entire_buffer_binding())),
        ("x askew", Buffers::new(askew, y.as_entire_buffer_binding())),
        ("step_flags in y", good().with_step_flags(y.as_entire_buffer_binding())),
        ("h0 too small", good().with_h0(small.as_entire_buffer_binding())),
        ("a reset state too small", good().with_reset_state(small.as_entire_buffer_binding())),
        ("h_n too small", good().with_h_n(small.as_entire_buffer_binding())),
    ];
    for (what, buffers) in &cases {
        let names = "Gru::forward_pass Buffers::new Buffers::with_step_flags Buffers::with_h0 Buffers::with_reset_state \
                     Buffers::with_h_n";
        t.row(names, what, Refused, || gru.forward_pass(shape, buffers));
        t.row("Gru::forward_pass_async", what, Refused, || {
            block_on(gru.forward_pass_async(shape, buffers))
        });
        t.row("Gru::stream_over", what, Refused, || gru.stream_over(2, &[4], buffers));
        t.row("Gru::stream_over_async", what, Refused, || {
            block_on(gru.stream_over_async(2, &[4], buffers))
        });
    }
    let mut shapeless = shape;
    shapeless.steps = 0;
    t.row("Gru::forward_pass", "no steps", Refused, || gru.forward_pass(shapeless, &good()));
    t.row("Gru::forward_pass Gru::stream_over", "on the CPU", Refused, || {
        on_cpu.stream_over(2, &[4], &good()).map(drop)?;
        on_cpu.forward_pass(shape, &good())
    });
    let other = Gru::with_params(gru.params().clone(), gru.device()).unwrap();
    let mut pass = gru.forward_pass(shape, &good()).unwrap();
    let mut over = gru.stream_over(2, &[4], &good()).unwrap();
    let mut plain = gru.stream(2, &[4]).unwrap();
    let mut encoder = device.create_command_encoder(&Default::default());
    t.row("Gru::encode", "another model's pass", Refused, || other.encode(&mut pass, &mut encoder));
    t.row("Gru::encode_step", "another model's stream", Refused, || {
        other.encode_step(&mut over, 4, &mut encoder)
    });
    t.row("Gru::encode_step", "no such chunk", Refused, || {
        gru.encode_step(&mut over, 0, &mut encoder)
    });
    t.row("Gru::encode_step", "a stream over arrays", Refused, || {
        gru.encode_step(&mut plain, 4, &mut encoder)
    });
    t.row("Gru::step", "a stream over buffers", Refused, || {
        gru.step(&mut over, zeros([4, 2, 3]).view(), zeros([4, 2, 5]).view_mut())
    });
    t.row("Gru::encode ForwardPass::shape ForwardPass::flops", "after all errors", Fine, || {
        gru.encode(&mut pass, &mut encoder)?;
        Ok((pass.shape(), pass.flops()))
    });
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

/// Networks, learners, trainers.
fn learning(t: &mut Table, device: &Device) {
    let x = random3([4, 2, 3], 1);
    let empty = zeros([0, 0, 0]);
    let bare = Params::init(&config(), Init::Uniform, 1).unwrap();
    t.row("Network::new", "parameters without a head", Refused, || {
        Network::new(bare.clone(), device)
    });
    t.row("Network::new_async", "parameters without a head", Refused, || {
        block_on(Network::new_async(bare.clone(), device))
    });
    t.row("Learner::new", "parameters without a head", Refused, || {
        Learner::new(bare.clone(), training(), device)
    });
    t.row("Learner::new_async", "settings that make no sense", Refused, || {
        block_on(Learner::new_async(headed(Head::last(2)), training().with_accumulation(0), device))
    });
    let network = Network::new(headed(Head::last(2)), device).unwrap();
    t.plain("Network::gru Network::head Network::params Network::with_options", "each", || {
        let network = Network::new(headed(Head::last(2)), device)
            .unwrap()
            .with_options(RunOptions::default());
        (network.gru().options(), network.head(), network.params().clone())
    });
    t.row("Network::forward", "nothing", Refused, || network.forward(&empty));
    t.row("Network::forward_async", "nothing", Refused, || block_on(network.forward_async(&empty)));
    let sequence = |steps, inputs| Array2::<f32>::zeros((steps, inputs));
    for (what, sequences, batch, wanted) in [
        ("no sequences", vec![], 2, Fine),
        ("a sequence of nothing", vec![sequence(2, 3), sequence(0, 3)], 2, Refused),
        ("other inputs", vec![sequence(2, 4)], 2, Refused),
        ("none at a time", vec![sequence(2, 3)], 0, Back),
        ("all at a time", vec![sequence(2, 3)], HUGE, Fine),
    ] {
        t.row("Network::forward_each", what, wanted, || network.forward_each(&sequences, batch));
        t.row("Network::forward_each_async", what, wanted, || {
            block_on(network.forward_each_async(&sequences, batch))
        });
    }
    let mut learner = Learner::new(headed(Head::last(2)), training(), device).unwrap();
    let values = Array2::<f32>::zeros((2, 2));
    for (what, classes) in [
        ("too few targets", &[0][..]),
        ("no targets", &[]),
        ("no such class", &[0, 2]),
        ("a class below 0", &[0, i32::MIN]),
        ("none that counts", &[-100, -100]),
    ] {
        t.row("Learner::step", what, Refused, || learner.step(&x, classes));
        t.row("Learner::step_async", what, Refused, || block_on(learner.step_async(&x, classes)));
        t.row("Learner::accumulate Learner::accumulate_async", what, Refused, || {
            block_on(learner.accumulate_async(&x, classes))?;
            learner.accumulate(&x, classes)
        });
        t.row("Learner::step_with_loss Learner::step_with_loss_async", what, Refused, || {
            block_on(learner.step_with_loss_async(&x, classes))?;
            learner.step_with_loss(&x, classes)
        });
        t.row("Learner::evaluate", what, Refused, || learner.evaluate(&x, classes));
        t.row("Learner::evaluate_async", what, Refused, || {
            block_on(learner.evaluate_async(&x, classes))
        });
        t.row("Network::evaluate_async", what, Refused, || {
            block_on(network.evaluate_async(&Loss::cross_entropy(), &x, classes))
        });
        t.row("Network::evaluate", what, Refused, || {
            network.evaluate(&Loss::cross_entropy(), &x, classes)
        });
    }
    t.row("Learner::step", "values of a loss of classes", Refused, || {
        learner.step(&x, values.view())
    });
    t.row("Learner::step", "nothing", Refused, || learner.step(&empty, &[][..]));
    t.row(
        "Network::forward_from Network::forward_from_async Network::advance Network::advance_async",
        "of no state, then of one of another size",
        Refused,
        || {
            let (_, state) = network.forward_from(None, &x)?;
            let state = block_on(network.advance_async(Some(&state), &x))?;
            let other = Array3::ones((4, 5, 3));
            block_on(network.forward_from_async(Some(&state), &other)).map(drop)?;
            network.advance(Some(&state), &other)
        },
    );
    t.row(
        "Learner::step_from Learner::step_from_async Network::evaluate_from Network::evaluate_from_async",
        "values of a loss of classes",
        Refused,
        || {
            let loss = Loss::cross_entropy();
            block_on(learner.step_from_async(None, &x, values.view())).map(drop)?;
            learner.step_from(None, &x, values.view()).map(drop)?;
            block_on(network.evaluate_from_async(&loss, None, &x, values.view())).map(drop)?;
            network.evaluate_from(&loss, None, &x, values.view())
        },
    );
    t.row("Targets::with_mask", "of another shape", Refused, || {
        let mask = ndarray::ArrayD::from_elem(vec![1, 2, 3], true);
        learner.step(&x, Targets::from(&[0, 1][..]).with_mask(mask.view()))
    });
    t.row("Learner::forward Learner::forward_async", "nothing", Refused, || {
        block_on(learner.forward_async(&empty)).map(drop)?;
        learner.forward(&empty)
    });
    t.row("Learner::apply Learner::apply_async", "of no batch", Fine, || {
        learner.apply()?;
        block_on(learner.apply_async())
    });
    let mut gradient = learner.gradient().unwrap();
    t.row("Learner::gradient Learner::gradient_async", "of no batch", Fine, || {
        block_on(learner.gradient_async())
    });
    let mut another = Learner::new(headed(Head::last(3)), training(), device).unwrap();
    let of_another = another.gradient().unwrap();
    t.row("LossGradient::add", "of another model", Refused, || gradient.add(&of_another));
    t.row("Learner::set_gradient Learner::set_gradient_async", "of another model", Refused, || {
        block_on(learner.set_gradient_async(&of_another))?;
        learner.set_gradient(&of_another)
    });
    t.row(
        "Learner::metrics Learner::metrics_async Learner::updates Learner::config",
        "of none",
        Fine,
        || {
            let reports = (learner.metrics()?, block_on(learner.metrics_async())?);
            Ok((reports, learner.updates(), *learner.config()))
        },
    );
    t.row("Learner::step Network::evaluate Network::forward", "no end of steps", Refused, || {
        let (one, two) = (ndarray::arr0(0.5), ndarray::arr0(1));
        let x = one.broadcast((1 << 40, 1 << 10, 3)).unwrap();
        let targets = two.broadcast((1 << 40, 1 << 10)).unwrap();
        let mut learner = Learner::new(headed(Head::every_step(2)), training(), device)?;
        let stepped = learner.step(x, targets);
        let network = learner.into_network()?;
        let evaluated = network.evaluate(&Loss::cross_entropy(), x, targets);
        stepped.and(evaluated.map(|_| ())).and(network.forward(x).map(|_| ()))
    });
    t.row("Learner::step Learner::metrics", "NaN", Refused, || {
        let mut learner = Learner::new(headed(Head::last(2)), training(), device)?;
        learner.step(&Array3::from_elem((4, 2, 3), f32::NAN), &[0, 1][..])?;
        learner.metrics()
    });
    for (first, second) in [(0, 0), (1, 1), (HUGE, 0)] {
        t.row(
            "Learner::resume Learner::resume_async",
            "moments of another layout",
            Refused,
            || {
                let mut state = learner.state()?;
                state.moments.first.truncate(first);
                state.moments.second.truncate(second);
                block_on(Learner::resume_async(state.clone(), training(), device)).map(drop)?;
                Learner::resume(state, training(), device)
            },
        );
    }
    t.row(
        "Learner::state Learner::state_async Learner::params Learner::params_async \
         Learner::with_options",
        "after all errors",
        Fine,
        || {
            let params = (learner.params()?, block_on(learner.params_async())?);
            assert_eq!(params.0, params.1);
            let state = (learner.state()?, block_on(learner.state_async())?);
            let _ = Learner::resume(state.0.clone(), training(), device)?
                .with_options(RunOptions::default());
            Ok(state)
        },
    );
    t.row("Learner::into_network Learner::into_network_async", "of no update", Fine, || {
        let state = learner.state()?;
        block_on(Learner::resume(state, training(), device)?.into_network_async())?;
        learner.into_network()
    });
    trainers(t, device);
}

fn trainers(t: &mut Table, device: &Device) {
    let learner = || Learner::new(headed(Head::last(2)), training(), device);
    let trainer = || Trainer::new(learner()?, TrainerConfig::new(2, 2));
    let go_on = |_: &mut Trainer, _: &gru_wgpu::Event<'_>| Ok(ControlFlow::Continue(()));
    for (epochs, batch) in [(0, 2), (2, 0), (0, 0)] {
        t.row("Trainer::new", "a config of nothing", Back, || {
            Trainer::new(learner()?, TrainerConfig::new(epochs, batch))
        });
    }
    let good = || Example::new(Array2::ones((3, 3)), Target::Class(1));
    for (what, example) in [
        ("no steps", Example::new(Array2::ones((0, 3)), Target::Class(1))),
        ("other inputs", Example::new(Array2::ones((3, 4)), Target::Class(1))),
        ("no such class", Example::new(Array2::ones((3, 3)), Target::Class(9))),
        ("a target for each step", Example::new(Array2::ones((3, 3)), Target::Classes(vec![1; 3]))),
        ("no values", Example::new(Array2::ones((3, 3)), Target::Values(vec![]))),
    ] {
        t.row("Trainer::run Example::new", what, Refused, || {
            trainer()?.run(&[good(), example.clone()], &[], go_on)
        });
        t.row("Trainer::run", what, Refused, || {
            trainer()?.run(&[good()], std::slice::from_ref(&example), go_on)
        });
        t.row("Trainer::evaluate", what, Refused, || trainer()?.evaluate(&[example]));
    }
    t.row("Trainer::run", "no examples", Refused, || trainer()?.run(&[], &[], go_on));
    t.row("Example::with_mask", "of another length", Refused, || {
        let steps = Example::new(Array2::ones((3, 3)), Target::Classes(vec![1; 3]));
        trainer()?.run(&[steps.with_mask(vec![true])], &[], go_on)
    });
    t.row("TargetArray::with_mask TargetArray::view", "of another shape", Refused, || {
        let targets = TargetArray::from(Array2::<f32>::ones((2, 1)));
        let targets = targets.with_mask(Array2::from_elem((9, 9), true));
        learner()?.step(&Array3::ones((3, 2, 3)), targets.view())
    });
    t.row(
        "SequenceWindows::every_step SequenceWindows::last_step SequenceWindows::sequences \
         SequenceWindows::window SequenceWindows::cut",
        "nothing, and one target for all steps",
        Refused,
        || {
            let one = || vec![good()];
            for (window, stride) in [(0, 1), (1, 0), (1, 2)] {
                assert!(SequenceWindows::every_step(one(), window, stride).is_err());
                assert!(SequenceWindows::cut(3, window, stride, Readout::EveryStep).is_err());
            }
            for readout in [Readout::EveryStep, Readout::LastState] {
                for len in [0, HUGE] {
                    let whole = std::iter::once(0..len);
                    assert!(SequenceWindows::cut(len, HUGE, HUGE, readout)?.eq(whole));
                }
                let mut many = SequenceWindows::cut(HUGE, 1, 1, readout)?;
                assert_eq!((many.len(), many.next()), (HUGE, Some(0..1)));
            }
            let windows = SequenceWindows::last_step(one(), HUGE, HUGE)?;
            assert_eq!((windows.sequences().len(), windows.window(0)), (1, (0, 0..3)));
            let none = SequenceWindows::every_step(Vec::new(), HUGE, HUGE)?;
            assert!(trainer()?.run(&none, &none, go_on).is_err());
            trainer()?.run(&windows, &windows, go_on)
        },
    );
    t.row("Trainer::with_carried", "states that fit nothing", Back, || {
        let states = Array3::from_elem((0, 7, 1), f32::NAN);
        trainer()?.with_carried(states).run(&[good()], &[], go_on)
    });
    t.row("Trainer::evaluate", "no examples", Back, || trainer()?.evaluate(&[]));
    t.row("Trainer::run", "NaN", Refused, || {
        trainer()?.run(
            &[Example::new(Array2::from_elem((3, 3), f32::NAN), Target::Class(1))],
            &[],
            go_on,
        )
    });
    t.row("Trainer::run", "a listener that fails", Refused, || {
        trainer()?.run(&[good()], &[], |_, _| Err(Error::NoExamples))
    });
    t.row("Trainer::resume", "a position past the end", Back, || {
        let mut position = trainer()?.progress();
        (position.epoch, position.batch) = (HUGE, HUGE);
        Trainer::resume(learner()?, TrainerConfig::new(2, 2), position, None)?.run(
            &[good()],
            &[],
            go_on,
        )
    });
    t.row(
        "Trainer::learner Trainer::config Trainer::progress Trainer::best",
        "of nothing",
        Fine,
        || {
            let mut trainer = trainer()?;
            let at = (*trainer.config(), trainer.progress(), trainer.best().is_some());
            Ok((trainer.learner().updates(), at))
        },
    );
    t.row(
        "DataFingerprint::of Trainer::data Trainer::with_data",
        "other examples",
        Refused,
        || {
            let none = DataFingerprint::of(&[]);
            let mut other =
                trainer()?.with_data(Some(DataFingerprints { train: none, valid: none }));
            assert!(other.data().is_some());
            other.run(&[good()], &[], go_on)
        },
    );
    t.row("Trainer::metrics_every", "never", Fine, || {
        let mut trainer = trainer()?;
        trainer.metrics_every(0);
        trainer.run(&[good()], &[], go_on)
    });
    t.row("Learner::checkpoint", "a position past the end", Back, || {
        let mut position = trainer()?.progress();
        (position.epoch, position.batch) = (HUGE, HUGE);
        learner()?.checkpoint(TrainerConfig::new(2, 2), position)
    });
    t.row("Trainer::into_network", "before a run", Fine, || trainer()?.into_network(device));
    t.row("Trainer::checkpoint Trainer::from_checkpoint", "of nothing", Fine, || {
        Trainer::from_checkpoint(trainer()?.checkpoint()?, device)
    });
    t.row(
        "Trainer::run_async Trainer::evaluate_async Trainer::checkpoint_async \
         Trainer::from_checkpoint_async Trainer::into_network_async Learner::checkpoint_async \
         TrainerConfig::with_order Progress::mean_loss",
        "one example, shuffled",
        Fine,
        || {
            let config = TrainerConfig::new(2, 2).with_order(Order::Shuffled);
            let mut trainer = Trainer::new(learner()?, config)?;
            let listen =
                async |_: &mut Trainer, _: &gru_wgpu::Event<'_>| Ok(ControlFlow::Continue(()));
            block_on(trainer.run_async(&[good()], &[good()], listen))?;
            block_on(trainer.evaluate_async(&[good()]))?;
            assert!(!trainer.progress().mean_loss().is_nan());
            let progress = trainer.progress();
            block_on(trainer.learner().checkpoint_async(config, progress))?;
            let checkpoint = block_on(trainer.checkpoint_async())?;
            let again = block_on(Trainer::from_checkpoint_async(checkpoint, device))?;
            block_on(again.into_network_async(device))
        },
    );
    t.row(
        "TrainingBatch::new TrainingBatch::with_h0 TrainingBatch::with_layout \
         TrainingBatch::with_lengths TrainingBatch::with_resets TrainingBatch::with_reset_state \
         TrainingBatch::batch TrainingBatch::targets",
        "nothing of it fits",
        Refused,
        || {
            let batch = TrainingBatch::new(Array3::ones((3, 2, 3)), Array2::<f32>::ones((0, 9)))
                .with_h0(Array3::ones((1, 1, 1)))
                .with_layout(gru_wgpu::Layout::BatchFirst)
                .with_lengths(vec![HUGE])
                .with_resets(Array2::from_elem((0, 0), true))
                .with_reset_state(Array3::ones((0, 0, 0)));
            learner()?.step(batch.batch(), batch.targets())
        },
    );
    t.row("Checkpoint::to_bytes Checkpoint::from_bytes", "bytes cut short", Refused, || {
        let bytes = trainer()?.checkpoint()?.to_bytes()?;
        Checkpoint::from_bytes(&bytes)?;
        Checkpoint::from_bytes(&bytes[..bytes.len() - 1])
    });
    let folder = tempfile::tempdir().unwrap();
    t.row("Checkpoint::save", "no such folder", Refused, || {
        trainer()?.checkpoint()?.save(folder.path().join("none/checkpoint"))
    });
    t.row("Checkpoint::write", "a stream without room", Refused, || {
        trainer()?.checkpoint()?.write(&mut [0_u8; 9][..])
    });
}

/// Files that do not exist, are no files, or are empty or too short.
fn files(t: &mut Table) {
    let folder = tempfile::tempdir().unwrap();
    let (missing, short) = (folder.path().join("missing"), folder.path().join("short"));
    std::fs::write(&short, [0_u8; 9]).unwrap();
    let params = Params::init(&config(), Init::Uniform, 1).unwrap();
    for path in [&missing, &short, &folder.path().to_owned()] {
        let what = "a file that is none";
        t.row("Checkpoint::load Checkpoint::load_last", what, Refused, || {
            Checkpoint::load(path).map(drop).and(Checkpoint::load_last(path).map(drop))
        });
        t.row("Checkpoint::load_notes", what, Refused, || Checkpoint::load_notes(path));
        t.row("formats::npy::load", what, Refused, || npy::load(path));
        t.row("formats::npy::load_as", what, Refused, || npy::load_as::<ndarray::Ix3>(path));
        t.row("formats::npy::load_lengths", what, Refused, || npy::load_lengths(path));
        t.row("formats::npz::load", what, Refused, || {
            npz::load(path, &formats::StateDictOptions::new())
        });
        t.row("formats::npz::prefixes", what, Refused, || npz::prefixes(path));
        t.row("formats::npz::layout", what, Refused, || {
            npz::layout(path, &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::layout", what, Refused, || {
            safetensors::layout(path, &formats::StateDictOptions::new())
        });
        t.row("formats::pytorch::layout", what, Refused, || {
            pytorch::layout(path, &formats::StateDictOptions::new())
        });
        t.row("formats::npz::load_arrays", what, Refused, || npz::load_arrays(path, ["a", "b"]));
        t.row("formats::onnx::load", what, Refused, || onnx::load(path, &onnx::OnnxOptions::new()));
        t.row("formats::onnx::names", what, Refused, || onnx::names(path));
        t.row("formats::safetensors::load", what, Refused, || {
            safetensors::load(path, &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::load_network", what, Refused, || {
            safetensors::load_network(path, &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::prefixes", what, Refused, || safetensors::prefixes(path));
        t.row("formats::pytorch::load", what, Refused, || {
            pytorch::load(path, &formats::StateDictOptions::new())
        });
        t.row("formats::pytorch::prefixes", what, Refused, || pytorch::prefixes(path));
        let names = "formats::pytorch::load_network formats::StateDictOptions::with_head \
                     formats::StateDictOptions::with_head_name \
                     formats::StateDictOptions::with_activations";
        t.row(names, what, Refused, || {
            let options = formats::StateDictOptions::new().with_head(Head::last(HUGE));
            let options = options.with_head_name("").with_activations(Activations::default());
            pytorch::load_network(path, &options)
        });
        t.row("formats::pytorch::head_name", what, Refused, || {
            pytorch::head_name(path, &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::head_name", what, Refused, || {
            safetensors::head_name(path, &formats::StateDictOptions::new())
        });
    }
    for bytes in [vec![], vec![0; 9], vec![255; 64]] {
        let what = "bytes that are no file";
        t.row("Checkpoint::read", what, Refused, || Checkpoint::read(Cursor::new(&bytes)));
        t.row("formats::npy::read", what, Refused, || npy::read(Cursor::new(&bytes)));
        t.row("formats::npy::read_as", what, Refused, || {
            npy::read_as::<ndarray::Ix3>(Cursor::new(&bytes))
        });
        t.row("formats::npy::read_lengths", what, Refused, || {
            npy::read_lengths(Cursor::new(&bytes))
        });
        t.row("formats::npz::read", what, Refused, || {
            npz::read(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::npz::read_prefixes", what, Refused, || {
            npz::read_prefixes(Cursor::new(&bytes))
        });
        t.row("formats::npz::read_layout", what, Refused, || {
            npz::read_layout(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::read_layout", what, Refused, || {
            safetensors::read_layout(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::pytorch::read_layout", what, Refused, || {
            pytorch::read_layout(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::npz::read_arrays", what, Refused, || {
            npz::read_arrays(Cursor::new(&bytes), ["a", "b"])
        });
        t.row("formats::onnx::read_names", what, Refused, || onnx::read_names(Cursor::new(&bytes)));
        t.row("formats::safetensors::read_prefixes", what, Refused, || {
            safetensors::read_prefixes(Cursor::new(&bytes))
        });
        t.row("formats::pytorch::read", what, Refused, || {
            pytorch::read(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::pytorch::read_head_name", what, Refused, || {
            pytorch::read_head_name(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::read_head_name", what, Refused, || {
            safetensors::read_head_name(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::pytorch::read_network", what, Refused, || {
            pytorch::read_network(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::pytorch::read_prefixes", what, Refused, || {
            pytorch::read_prefixes(Cursor::new(&bytes))
        });
        t.row("formats::onnx::read", what, Refused, || {
            onnx::read(Cursor::new(&bytes), &onnx::OnnxOptions::new())
        });
        t.row("formats::safetensors::read", what, Refused, || {
            safetensors::read(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
        t.row("formats::safetensors::read_network", what, Refused, || {
            safetensors::read_network(Cursor::new(&bytes), &formats::StateDictOptions::new())
        });
    }
    t.plain(
        "formats::onnx::OnnxOptions::new \
         formats::onnx::OnnxOptions::with_node formats::onnx::OnnxOptions::with_non_finite \
         formats::StateDictOptions::new formats::StateDictOptions::with_prefix \
         formats::StateDictOptions::with_non_finite formats::StateDictOptions::with_layout \
         formats::StateDictOptions::with_reset",
        "odd names",
        || {
            let dict = formats::StateDictOptions::new().with_prefix("").with_non_finite(true);
            let dict = dict.with_layout(formats::WeightLayout::Keras).with_reset(Reset::Before);
            let onnx = onnx::OnnxOptions::new().with_node("\0").with_non_finite(true);
            (onnx, dict)
        },
    );
    t.plain(
        "formats::onnx::Inputs::new formats::onnx::Inputs::with_h0 formats::onnx::Inputs::with_lengths",
        "each",
        || onnx::Inputs::new().with_h0(true).with_lengths(true),
    );
    let inputs = onnx::Inputs::new();
    let nowhere = folder.path().join("none").join("file");
    let array = Array3::<f32>::zeros((0, 0, 0));
    t.row("formats::npy::save", "no such folder", Refused, || npy::save(&nowhere, array.view()));
    t.row("formats::npz::save", "no such folder", Refused, || {
        npz::save(&nowhere, &params, formats::WeightLayout::Keras)
    });
    t.row("formats::safetensors::save_as", "no such folder", Refused, || {
        safetensors::save_as(&nowhere, &params, formats::WeightLayout::Keras)
    });
    t.row("formats::npz::save_arrays", "no such folder", Refused, || {
        npz::save_arrays(&nowhere, [])
    });
    t.row("formats::npz::save_arrays", "nothing", Back, || {
        npz::save_arrays(folder.path().join("n.npz"), [])
    });
    t.row("formats::onnx::save", "no such folder", Refused, || {
        onnx::save(&nowhere, &params, &inputs)
    });
    t.row("formats::onnx::write", "of one unit", Fine, || {
        onnx::write(Vec::new(), &Params::zeros(&GruConfig::new(1, 1))?, &inputs)
    });
    t.row("formats::npy::write", "nothing", Fine, || npy::write(Vec::new(), array.view()));
    let before = GruConfig::new(1, 1);
    t.row("formats::npz::write", "a definition that MLX lacks", Refused, || {
        npz::write(Cursor::new(Vec::new()), &Params::zeros(&before)?, formats::WeightLayout::Mlx)
    });
    t.row("formats::safetensors::write_as", "a definition that MLX lacks", Refused, || {
        safetensors::write_as(Vec::new(), &Params::zeros(&before)?, formats::WeightLayout::Mlx)
    });
    t.row("formats::npz::write_arrays", "nothing", Fine, || {
        npz::write_arrays(Cursor::new(Vec::new()), [])
    });
    t.row("formats::safetensors::write", "of one unit", Fine, || {
        safetensors::write(Vec::new(), &Params::zeros(&GruConfig::new(1, 1))?)
    });
    t.row("formats::safetensors::write_network", "no head", Refused, || {
        safetensors::write_network(Vec::new(), &params)
    });
    t.row("formats::safetensors::save", "no such folder", Refused, || {
        safetensors::save(&nowhere, &params)
    });
    t.row("formats::safetensors::save_network", "no head", Refused, || {
        safetensors::save_network(folder.path().join("h"), &params)
    });
    t.row(
        "formats::safetensors::save_gradients formats::safetensors::write_gradients",
        "no such folder",
        Refused,
        || {
            let trace = reference::forward_train(&params, zeros([1, 1, 3]).view())?;
            let gradients = reference::backward(
                &params,
                zeros([1, 1, 3]).view(),
                &trace,
                Some(zeros([1, 1, 5]).view()),
                None,
            )?;
            safetensors::write_gradients(Vec::new(), &gradients)?;
            safetensors::save_gradients(&nowhere, &gradients)
        },
    );
    cells(t);
}

/// Other frameworks' layouts.
fn cells(t: &mut Table) {
    let matrix = |rows, columns| Array2::<f32>::zeros((rows, columns));
    let vector = |len| Array1::<f32>::zeros(len);
    for (rows, columns) in [(0, 0), (15, 4), (14, 5), (5, 14)] {
        let (w, b) = (matrix(rows, columns), vector(rows + 1));
        t.row("formats::Cell::from_keras", "shapes", Back, || {
            Cell::from_keras(w.view(), w.view(), Some(b.view().into_dyn()))
        });
        t.row("formats::Cell::from_onnx", "shapes", Refused, || {
            Cell::from_onnx(w.view(), w.view(), Some(b.view()))
        });
        t.row("formats::Cell::from_mlx", "shapes", Refused, || {
            Cell::from_mlx(w.view(), w.view(), Some(b.view()), Some(b.view()))
        });
        t.row("formats::Cell::from_flax", "shapes", Refused, || {
            Cell::from_flax(&formats::FlaxCell {
                input_kernels: [matrix(rows, columns), matrix(1, 1), matrix(2, 2)],
                input_biases: None,
                recurrent_kernels: [matrix(1, 1), matrix(1, 2), matrix(3, 3)],
                hn_bias: Some(vector(7)),
            })
        });
    }
    let params = Params::init(&config(), Init::Uniform, 1).unwrap();
    let mut all = params.to_cells();
    t.plain(
        "Params::to_cells formats::Cell::to_keras formats::Cell::to_onnx formats::Cell::to_mlx formats::Cell::to_flax",
        "good ones",
        || (all[0].to_keras(Reset::Before), all[0].to_onnx(), all[0].to_mlx(), all[0].to_flax()),
    );
    t.row("Params::from_cells", "no cells", Refused, || Params::from_cells(&config(), &[]));
    all[0].bias_hh = Some(vector(1));
    t.row("Params::from_cells", "a bias of another length", Refused, || {
        Params::from_cells(&config(), &all)
    });
}

/// The checks take any device.
fn checks(t: &mut Table) {
    let params = Params::init(&config(), Init::Uniform, 1).unwrap();
    let cpu = Device::cpu();
    for section in [check::Section::Kernels, check::Section::Flows, check::Section::Training] {
        t.row("check::Section::run check::Section::run_async", "a CPU", Fine, || {
            section.run(&cpu).and(block_on(section.run_async(&cpu)))
        });
    }
    t.row(
        "check::run_with_progress check::run_with_progress_async",
        "a caller who ignores it",
        Fine,
        || {
            block_on(check::run_with_progress_async(&cpu, |_| ()))?;
            check::run_with_progress(&cpu, |_| ())
        },
    );
    t.row(
        "check::model check::model_async check::Finding::passed",
        "parameters that are NaN",
        Fine,
        || {
            let mut params = params.clone();
            params.as_mut_slice().fill(f32::NAN);
            block_on(check::model_async(&cpu, &params))?;
            Ok(check::model(&cpu, &params)?.iter().all(check::Finding::passed))
        },
    );
    // All sections, which take long: the tests of the adapter run them.
    t.functions.extend(["check::run", "check::run_async"].map(str::to_owned));
}

/// Returns the public functions in the sources: `Type::name`, with the module before it if the
/// module is public.
fn public_functions() -> BTreeSet<String> {
    /// The files of public modules that have public items, and their public paths.
    const MODULES: [(&str, &str); 18] = [
        ("check/mod", "check::"),
        ("plan/mod", "plan::"),
        ("plan/display", "plan::"),
        ("plan/buffers", "plan::"),
        ("plan/caps", "plan::"),
        ("plan/limits", "plan::"),
        ("plan/stage", "plan::"),
        ("spec/element", "plan::"),
        ("reference", "reference::"),
        ("formats/cell", "formats::"),
        ("formats/npy", "formats::npy::"),
        ("formats/npz", "formats::npz::"),
        ("formats/onnx/mod", "formats::onnx::"),
        ("formats/onnx/node", "formats::onnx::"),
        ("formats/onnx/write", "formats::onnx::"),
        ("formats/pytorch/mod", "formats::pytorch::"),
        ("formats/safetensors", "formats::safetensors::"),
        ("formats/state_dict", "formats::"),
    ];
    /// Declarations of types that are not public.
    const KEPT: [&str; 5] =
        ["struct ", "enum ", "pub(crate) struct ", "pub(crate) enum ", "pub(super) struct "];
    /// The private modules whose types lib.rs exports.
    const PRIVATE: [&str; 4] = ["spec", "gpu", "model", "training"];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let exported = exported(&std::fs::read_to_string(source.join("lib.rs")).unwrap());
    let mut found = BTreeSet::<String>::new();
    let mut add = |file: &Path, module: Option<&str>| {
        let text = std::fs::read_to_string(file).unwrap();
        let text = text.split("mod tests {").next().unwrap();
        let is_declared = |kinds: &[&str], name: &str| {
            text.lines().any(|line| {
                let name_on = kinds.iter().find_map(|kind| line.strip_prefix(kind));
                name_on.is_some_and(|rest| identifier(rest) == name)
            })
        };
        let mut of = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("impl") {
                let rest = rest
                    .split_once('>')
                    .filter(|_| rest.starts_with('<'))
                    .map_or(rest, |(_, after)| after);
                let name = identifier(rest.trim_start());
                // A private type may have the name of an exported one.
                let is_kept = is_declared(&KEPT, &name);
                of = match module {
                    _ if is_kept => None,
                    _ if exported.contains(&name) => Some(name),
                    Some(module) if is_declared(&["pub struct ", "pub enum "], &name) => {
                        Some(format!("{module}{name}"))
                    }
                    _ => None,
                };
            }
            let function = line
                .trim_start()
                .strip_prefix("pub ")
                .map(|rest| rest.trim_start_matches("const ").trim_start_matches("async "));
            let Some(function) = function.and_then(|rest| rest.strip_prefix("fn ")) else {
                continue;
            };
            let name = identifier(function);
            // `pub fn forward, forward_async(` declares both.
            let twin = function[name.len()..].starts_with(", ").then(|| format!("{name}_async"));
            for name in std::iter::once(name).chain(twin) {
                match (line.starts_with("    "), &of, module) {
                    (true, Some(of), _) => drop(found.insert(format!("{of}::{name}"))),
                    (false, _, Some(module)) => drop(found.insert(format!("{module}{name}"))),
                    _ => {}
                }
            }
        }
    };
    for (file, module) in MODULES {
        add(&source.join(file).with_extension("rs"), Some(module));
    }
    for folder in PRIVATE {
        crate::common::files_in(&source.join(folder)).iter().for_each(|path| add(path, None));
    }
    found
}

/// Returns the letters, digits and underscores at the start of a text.
fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Returns the names in the `pub use` lines of lib.rs.
fn exported(text: &str) -> BTreeSet<String> {
    let uses = text.split("pub use ").skip(1).map(|rest| rest.split(';').next().unwrap());
    uses.flat_map(|names| names.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn no_public_function_panics_on_wrong_calls() {
    // Panics of this test's thread are counted, not printed. Other tests run at the same time.
    let (own, print) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != own {
            print(panic);
        }
    }));
    let mut table = Table::default();
    values(&mut table);
    batches(&mut table);
    settings(&mut table);
    plans(&mut table);
    devices(&mut table);
    let on = [Device::cpu(), adapter().clone()];
    models(&mut table, &on[0], &on[1]);
    models(&mut table, &on[1], &on[0]);
    embedding(&mut table);
    for device in &on {
        learning(&mut table, device);
    }
    files(&mut table);
    checks(&mut table);
    drop(std::panic::take_hook());
    let Table { functions, text, rows, panics, wrong } = table;
    println!("{rows} calls of {} functions, {panics} panics", functions.len());
    assert_eq!((panics, wrong), (0, 0), "panics, and calls that came to something else:\n{text}");
    let public = public_functions();
    let missing: Vec<_> = public.difference(&functions).collect();
    assert!(missing.is_empty(), "public functions without a row: {missing:#?}");
    let unknown: Vec<_> = functions.difference(&public).collect();
    assert!(unknown.is_empty(), "rows of functions that are not there: {unknown:#?}");
}
