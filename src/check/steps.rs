//! Compares the kernels of the recurrence with their references, on random states and gates.

use ndarray::{Array2, Array3, ArrayView3, Axis, NdFloat, s};

use super::{Findings, ModelCase, describe_variant, random3};
use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::session::Session;
use crate::gpu::wait::Wait;
use crate::plan::{Dispatch, Mode, Pass, Plan, Stage};
use crate::reference::{CellTrace, ReferenceCell, StepContext};
use crate::spec::batch::{step_flag, time_major};
use crate::spec::config::{GruConfig, Shape};
use crate::spec::noise::{Noise, draw_seed};
use crate::spec::options::{Recurrence, RunOptions};
use crate::spec::params::{Init, Params};

/// Every family must fit models of at most this H on every device.
const LARGE_HIDDEN: usize = 48;

/// The number of steps: the middle one depends on a step, and another step depends on it.
const STEPS: usize = 3;

/// The contents of a run's buffers, which the kernels and their references change in place. Arrays
/// are time-major in every layout of the run.
#[derive(Clone)]
struct RunContents<F> {
    /// `[STEPS, B, 4H]` for each direction.
    gates: Vec<Array3<F>>,
    /// `[STEPS, B, H]` for each direction.
    h: Vec<Array3<F>>,
    /// `[STEPS, B, D·H]`
    output: Array3<F>,
    /// The first, reset and last states `[D, B, H]`, or their gradients.
    states: [Array3<F>; 3],
}

/// The other inputs of the steps.
struct StepCase<'a> {
    config: &'a GruConfig,
    shape: Shape,
    params: &'a Params,
    step_flags: Array2<u32>,
    seed: u64,
}

/// Checks both kernels in one case.
pub(super) async fn check(
    gpu: &Gpu,
    case: &ModelCase,
    config: &GruConfig,
    seed: u64,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let batch = case.sizes[1];
    let shape = config.shape(STEPS, batch)?.with_layout(case.layout);
    let Shape { hidden, directions, .. } = shape;
    let params = Params::init(config, Init::Uniform, seed)?;
    // Every step flag, none, and both restarts together.
    let flags = [0, step_flag::PADDING, step_flag::RESTART, step_flag::RESTART_REVERSE, 6];
    let step_flags = Array2::from_shape_fn((STEPS, batch), |(t, row)| flags[(2 * t + 3 * row) % 5]);
    let run = StepCase { config, shape, params: &params, step_flags, seed };

    let each = |width, seed| {
        (0..directions as u64).map(|d| random3([STEPS, batch, width], seed + 10 * d)).collect()
    };
    let nan = |shape: [usize; 3]| Array3::from_elem(shape, f32::NAN);
    let state = [directions, batch, hidden];
    // Elements that the steps must write are NaN.
    let start = RunContents {
        gates: each(4 * hidden, seed + 1),
        h: vec![nan([STEPS, batch, hidden]); directions],
        output: nan([STEPS, batch, directions * hidden]),
        states: [random3(state, seed + 2), random3(state, seed + 3), nan(state)],
    };
    let expected = forward_reference(&run, &start);
    let subject = describe_variant(config);
    let sizes = case.describe(config, shape);
    let families = if case.other_options { Recurrence::ALL } else { &[Recurrence::Sequence] };
    // A large model has only the families that fit the device.
    let fits = |&recurrence: &Recurrence| {
        let options = RunOptions::default().with_recurrence(recurrence);
        let plan = Plan::with_options(config, shape, Mode::Training, options, &gpu.caps());
        plan.and_then(|plan| plan.check(gpu.limits())).is_ok()
    };
    let recurrences: Vec<_> = match hidden > LARGE_HIDDEN {
        true => families.iter().copied().filter(fits).collect(),
        false => families.to_vec(),
    };
    for &recurrence in &recurrences {
        let got = run_kernel(gpu, &run, Pass::Forward, recurrence, &start).await?;
        let subject = format!("forward ({recurrence} kernels), {subject}");
        compare(findings, &subject, &sizes, &got, &expected);
    }

    let start = RunContents {
        output: random3([STEPS, batch, directions * hidden], seed + 4),
        states: [nan(state), random3(state, seed + 5), random3(state, seed + 6)],
        ..expected.map(|v| v as f32)
    };
    let expected = backward_reference(&run, &start);
    for &recurrence in &recurrences {
        let mut got = run_kernel(gpu, &run, Pass::Backward, recurrence, &start).await?;
        // The kernel overwrites dh_n with the state gradient that it carries; the reference does
        // not.
        got.states[2] = start.states[2].clone();
        let subject = format!("backward ({recurrence} kernels), {subject}");
        compare(findings, &subject, &sizes, &got, &expected);
    }
    Ok(())
}

fn compare(
    findings: &mut Findings<'_>,
    subject: &str,
    sizes: &str,
    got: &RunContents<f32>,
    expected: &RunContents<f64>,
) {
    fn all<F>(c: &RunContents<F>) -> impl Iterator<Item = &Array3<F>> {
        c.gates.iter().chain(&c.h).chain([&c.output]).chain(&c.states)
    }
    for (got, expected) in all(got).zip(all(expected)) {
        findings.compare(subject, sizes, &got.view(), &expected.view());
    }
}

impl StepCase<'_> {
    /// Calls `run` for each direction.
    fn each_direction(
        &self,
        states: &Array3<f64>,
        mut run: impl FnMut(usize, &ReferenceCell<'_, f64>, &StepContext<'_, f64>),
    ) {
        let params = self.params.cast();
        let noise = Noise::new(self.config, Mode::Training, self.seed);
        for direction in 0..self.shape.directions {
            let context = StepContext {
                layer: 0,
                direction,
                is_reverse: self.config.direction.is_reverse(direction),
                step_flags: self.step_flags.view(),
                noise: &noise,
                reset_state: states.index_axis(Axis(0), direction),
            };
            run(direction, &ReferenceCell::new(&params, 0, direction), &context);
        }
    }
}

/// Returns the contents after the reference of `forward`.
fn forward_reference(case: &StepCase<'_>, start: &RunContents<f32>) -> RunContents<f64> {
    let mut c = start.map(f64::from);
    let Shape { batch, hidden, .. } = case.shape;
    let reset = c.states[1].clone();
    case.each_direction(&reset, |direction, cell, context| {
        let mut trace = CellTrace {
            h: Array3::zeros([STEPS, batch, hidden]),
            gates: c.gates[direction].clone(),
            y: Array3::zeros([STEPS, batch, hidden]),
            last: c.states[0].index_axis(Axis(0), direction).to_owned(),
        };
        cell.forward_steps(context, &mut trace);
        let units = direction * hidden..(direction + 1) * hidden;
        c.output.slice_mut(s![.., .., units]).assign(&trace.y);
        c.states[2].index_axis_mut(Axis(0), direction).assign(&trace.last);
        (c.gates[direction], c.h[direction]) = (trace.gates, trace.h);
    });
    c
}

/// Returns the contents after the reference of `backward`.
fn backward_reference(case: &StepCase<'_>, start: &RunContents<f32>) -> RunContents<f64> {
    let mut c = start.map(f64::from);
    let hidden = case.shape.hidden;
    let [_, dreset, dlast] = &mut c.states;
    let mut carry = dlast.clone();
    case.each_direction(&dreset.clone(), |direction, cell, context| {
        let units = direction * hidden..(direction + 1) * hidden;
        cell.backward_steps(
            context,
            c.h[direction].view(),
            c.output.slice(s![.., .., units]),
            c.gates[direction].view_mut(),
            carry.index_axis_mut(Axis(0), direction),
            dreset.index_axis_mut(Axis(0), direction),
        );
    });
    c.states[0] = carry;
    c
}

impl<F: NdFloat> RunContents<F> {
    fn map<G: NdFloat>(&self, convert: impl Fn(F) -> G) -> RunContents<G> {
        let each = |arrays: &[Array3<F>]| arrays.iter().map(|a| a.mapv(&convert)).collect();
        RunContents {
            gates: each(&self.gates),
            h: each(&self.h),
            output: self.output.mapv(&convert),
            states: [0, 1, 2].map(|i| self.states[i].mapv(&convert)),
        }
    }
}

/// Cuts each dispatch into two, the first for the first tile of rows. A batch too large for one
/// dispatch is cut like this.
fn in_two_dispatches(stage: Stage) -> Stage {
    let cut = |dispatch: Dispatch| {
        let [x, y, z] = dispatch.workgroups;
        if y == 1 {
            return vec![dispatch];
        }
        let row_first = argument(&dispatch, "row_first");
        let mut rest = Dispatch { workgroups: [x, y - 1, z], ..dispatch.clone() };
        rest.args[row_first] += (dispatch.kernel.workgroup)(&dispatch.constants).tile[1];
        vec![Dispatch { workgroups: [x, 1, z], ..dispatch }, rest]
    };
    match stage {
        // Only a loop can hold two dispatches, so it becomes a loop of a single step.
        Stage::Once(dispatch) => {
            let first = dispatch.args[argument(&dispatch, "step")] as usize;
            Stage::Steps { first, last: first, body: cut(dispatch) }
        }
        Stage::Steps { first, last, body } => {
            Stage::Steps { first, last, body: body.into_iter().flat_map(cut).collect() }
        }
    }
}

/// Returns the index of a kernel's argument.
fn argument(dispatch: &Dispatch, name: &str) -> usize {
    dispatch.kernel.argument(name).expect("step kernels have this argument")
}

/// Runs only the steps of one pass and of the first layer from a whole plan.
async fn run_kernel(
    gpu: &Gpu,
    case: &StepCase<'_>,
    pass: Pass,
    recurrence: Recurrence,
    input: &RunContents<f32>,
) -> Result<RunContents<f32>> {
    let &StepCase { config, shape, params, ref step_flags, seed } = case;
    let Shape { layers, directions, batch, .. } = shape;
    let (options, caps) = (RunOptions::default().with_recurrence(recurrence), gpu.caps());
    let whole = Plan::with_options(config, shape, Mode::Training, options, &caps)?;
    let is_step = |stage: &&Stage| {
        stage.dispatches().0.iter().all(|dispatch| {
            dispatch.kernel.argument("layer").is_some_and(|layer| dispatch.args[layer] == 0)
        })
    };
    let stages = match pass {
        Pass::Forward => whole.forward(),
        Pass::Backward => whole.backward(),
    };
    let stages = stages.iter().filter(is_step).cloned().map(in_two_dispatches).collect();
    let plan = Plan::of_stages(pass.name(), whole.buffers().to_vec(), stages, &caps);

    let number = if layers == 1 { "" } else { "_l0" };
    let output = match (pass, layers) {
        (Pass::Forward, 1) => "y",
        (Pass::Forward, _) => "y_l0",
        (Pass::Backward, 1) => "dy",
        (Pass::Backward, _) => "dx_l1",
    };
    let states = match pass {
        Pass::Forward => "states",
        Pass::Backward => "dstates",
    };
    let names = [&format!("gates{number}"), &format!("h{number}"), output, states];
    let [gates, h, output, states] = names.map(|name| plan.buffer(name).expect("a training plan"));
    let [step_flags_id, params_id] =
        ["step_flags", "params"].map(|name| plan.buffer(name).expect("every plan of a run has it"));

    // Concatenated directions, each in the run's layout. The states of other layers are NaN.
    let in_layout = |arrays: &[Array3<f32>]| -> Vec<f32> {
        let each = |array| {
            time_major(ArrayView3::from(array), shape.layout).iter().copied().collect::<Vec<_>>()
        };
        arrays.iter().flat_map(each).collect()
    };
    let of_layers = |state: &Array3<f32>| -> Vec<f32> {
        state.iter().copied().chain(vec![f32::NAN; (layers - 1) * state.len()]).collect()
    };
    let contents = [
        (gates, in_layout(&input.gates)),
        (h, in_layout(&input.h)),
        (output, in_layout(std::slice::from_ref(&input.output))),
        (states, input.states.iter().flat_map(of_layers).collect()),
    ];
    let mut session = Session::new(gpu, plan, &[]).await?;
    session.write(params_id, 0, params.as_slice(), Wait::Async).await?;
    let flags: Vec<u32> = step_flags.iter().copied().chain(draw_seed(seed, [0, 0])).collect();
    session.write(step_flags_id, 0, &flags, Wait::Async).await?;
    for (id, data) in &contents {
        session.write(*id, 0, data, Wait::Async).await?;
    }
    session.run(Pass::Forward).await?;
    let parts: Vec<_> = contents.iter().map(|(id, data)| (*id, 0..data.len())).collect();
    let [gates, h, output, states] =
        session.read(&parts, Wait::Async).await?.try_into().expect("four ranges were requested");

    let [first, second] = shape.layout.order(STEPS, batch);
    let by_time = |data: &[f32]| {
        let array = ArrayView3::from_shape([first, second, data.len() / (STEPS * batch)], data);
        time_major(array.expect("the length is the product of the shape"), shape.layout).to_owned()
    };
    let each = |data: &[f32]| data.chunks(data.len() / directions).map(by_time).collect();
    let section = |i: usize| {
        let state = &input.states[i];
        let data = &states[i * layers * state.len()..][..state.len()];
        Array3::from_shape_vec(state.dim(), data.to_vec())
            .expect("the length is the product of the shape")
    };
    Ok(RunContents {
        gates: each(&gates),
        h: each(&h),
        output: by_time(&output),
        states: [0, 1, 2].map(section),
    })
}
