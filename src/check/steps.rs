//! `forward_step` and `backward_step` against their twins, on states and gates made at random.

use super::{Findings, case_words, random, variant_words};
use crate::config::{GruConfig, Shape};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::params::{Init, Params};
use crate::plan::{Dispatch, Mode, Plan, Stage};
use crate::reference::{self, Cell};
use crate::session::{Pass, Session};

/// Two, so that each kernel also reads what it wrote.
const STEPS: usize = 2;

/// The contents of a run's buffers, as the kernels and their twins change them in place.
#[derive(Clone)]
struct Contents<F> {
    /// `[D, STEPS, B, 4H]`
    gates: Vec<F>,
    /// `[D, STEPS + 1, B, H]`
    h: Vec<F>,
    /// `[STEPS, B, D·H]`
    dy: Vec<F>,
    /// `[D, B, H]`
    carry: Vec<F>,
}

impl<F: Copy> Contents<F> {
    fn map<G>(&self, convert: impl Fn(F) -> G + Copy) -> Contents<G> {
        let each = |values: &[F]| values.iter().map(|&v| convert(v)).collect();
        Contents {
            gates: each(&self.gates),
            h: each(&self.h),
            dy: each(&self.dy),
            carry: each(&self.carry),
        }
    }
}

pub(super) fn check(
    gpu: &Gpu,
    config: &GruConfig,
    batch: usize,
    seed: u64,
    findings: &mut Findings,
) -> Result<()> {
    let shape = config.shape(STEPS, batch)?;
    let state = batch * shape.hidden;
    let params = Params::init(config, Init::Uniform, seed)?;
    let mut start = Contents {
        gates: random(shape.directions * STEPS * 4 * state, 1.0, seed + 1),
        h: random(shape.directions * (STEPS + 1) * state, 1.0, seed + 2),
        dy: random(shape.directions * STEPS * state, 1.0, seed + 3),
        carry: random(shape.directions * state, 1.0, seed + 4),
    };
    // What the steps have yet to write: all but each direction's first state.
    for (direction, h) in start.h.chunks_exact_mut((STEPS + 1) * state).enumerate() {
        let first = reference::before(0, direction, STEPS) * state;
        h[..first].fill(f32::NAN);
        h[first + state..].fill(f32::NAN);
    }

    // A length of 0, 1 or 2 for each row.
    let lengths: Vec<usize> = (0..batch).map(|row| STEPS - row % (STEPS + 1)).collect();
    let params64 = params.cast();
    let mut forward = start.map(f64::from);
    let mut backward = forward.clone();
    for direction in 0..shape.directions {
        let cell = Cell::new(&params64, 0, direction);
        forward_twin(&cell, direction, shape, &lengths, &mut forward);
    }
    backward.gates.clone_from(&forward.gates);
    backward.h.clone_from(&forward.h);
    for direction in 0..shape.directions {
        let cell = Cell::new(&params64, 0, direction);
        backward_twin(&cell, direction, shape, &lengths, &mut backward);
    }

    let plan = Plan::new(config, shape, Mode::Training)?;
    let (sizes, variant) = (case_words(config, shape), variant_words(config));
    for (kernel, stages, input, expected) in [
        ("forward_step", plan.forward(), start, forward.clone()),
        ("backward_step", plan.backward(), forward.map(|v| v as f32), backward),
    ] {
        let got = run(gpu, &plan, kernel, stages, (&params, &lengths), &input)?;
        let subject = format!("{kernel}, {variant}");
        findings.compare_slices(&subject, &sizes, &got.gates, &expected.gates);
        findings.compare_slices(&subject, &sizes, &got.h, &expected.h);
        findings.compare_slices(&subject, &sizes, &got.carry, &expected.carry);
    }
    Ok(())
}

fn forward_twin(
    cell: &Cell<f64>,
    direction: usize,
    shape: Shape,
    lengths: &[usize],
    c: &mut Contents<f64>,
) {
    let Shape { batch, hidden, .. } = shape;
    let mut next = vec![0.0; hidden];
    for step in 0..STEPS {
        let time = reference::time(step, direction, STEPS);
        let [before, after] =
            [reference::before, reference::after].map(|f| f(step, direction, STEPS));
        for (b, &length) in lengths.iter().enumerate() {
            let state = |row: usize| ((direction * (STEPS + 1) + row) * batch + b) * hidden;
            let gates = ((direction * STEPS + time) * batch + b) * 4 * hidden;
            let gates = &mut c.gates[gates..][..4 * hidden];
            let past = &c.h[state(before)..][..hidden];
            if time < length {
                cell.step(past, gates, &mut next);
            } else {
                gates.fill(0.0);
                next.copy_from_slice(past);
            }
            c.h[state(after)..][..hidden].copy_from_slice(&next);
        }
    }
}

fn backward_twin(
    cell: &Cell<f64>,
    direction: usize,
    shape: Shape,
    lengths: &[usize],
    c: &mut Contents<f64>,
) {
    let Shape { batch, hidden, directions, .. } = shape;
    for step in (0..STEPS).rev() {
        let time = reference::time(step, direction, STEPS);
        let before = reference::before(step, direction, STEPS);
        for (b, &length) in lengths.iter().enumerate() {
            if time >= length {
                continue;
            }
            let dh = &mut c.carry[(direction * batch + b) * hidden..][..hidden];
            let dy = &c.dy[((time * batch + b) * directions + direction) * hidden..];
            dh.iter_mut().zip(dy).for_each(|(dh, dy)| *dh += dy);
            let gates = ((direction * STEPS + time) * batch + b) * 4 * hidden;
            let gates = &mut c.gates[gates..][..4 * hidden];
            let h = ((direction * (STEPS + 1) + before) * batch + b) * hidden;
            cell.step_backward(&c.h[h..][..hidden], gates, dh);
        }
    }
}

/// The first tile of rows in a dispatch of its own, as a batch is cut that is too much for one.
fn in_two_parts(stage: Stage) -> Stage {
    let cut = |dispatch: Dispatch| {
        let [x, y, z] = dispatch.workgroups;
        if y == 1 {
            return vec![dispatch];
        }
        let row_first = dispatch.kernel.args.iter().position(|&name| name == "row_first");
        let row_first = row_first.expect("a step kernel takes its rows");
        let mut rest = Dispatch { workgroups: [x, y - 1, z], ..dispatch.clone() };
        rest.args[row_first] += dispatch.kernel.tile[1];
        vec![Dispatch { workgroups: [x, 1, z], ..dispatch }, rest]
    };
    match stage {
        // Two dispatches need a loop to stand in, if only of one step.
        Stage::Once(dispatch) => Stage::Steps { first: 0, last: 0, body: cut(dispatch) },
        Stage::Steps { first, last, body } => {
            Stage::Steps { first, last, body: body.into_iter().flat_map(cut).collect() }
        }
    }
}

/// Runs the stages of one kernel out of a whole schedule.
fn run(
    gpu: &Gpu,
    plan: &Plan,
    kernel: &str,
    stages: &[Stage],
    (params, lengths): (&Params, &[usize]),
    input: &Contents<f32>,
) -> Result<Contents<f32>> {
    let of_kernel = |stage: &&Stage| stage.dispatches().0.iter().all(|d| d.kernel.name == kernel);
    let stages = stages.iter().filter(of_kernel).cloned().map(in_two_parts).collect();
    let plan = Plan::of_stages(kernel, plan.buffers().to_vec(), stages);
    let ids = ["params", "gates", "h", "dy", "carry"]
        .map(|name| plan.buffer(name).expect("a training plan has it"));
    let contents = [params.as_slice(), &input.gates, &input.h, &input.dy, &input.carry];
    let mut session = Session::new(gpu, plan, None)?;
    for (id, data) in ids.into_iter().zip(contents) {
        session.write(id, 0, data.len(), Some(data))?;
    }
    let lengths: Vec<u32> = lengths.iter().map(|&length| length as u32).collect();
    let id = session.plan().buffer("lengths").expect("every plan of a run has it");
    session.write(id, 0, lengths.len(), Some(bytemuck::cast_slice(&lengths)))?;
    session.run(Pass::Forward)?;
    let parts: Vec<_> =
        ids.into_iter().zip(contents).skip(1).map(|(id, data)| (id, 0..data.len())).collect();
    let [gates, h, dy, carry] = session.read(&parts)?.try_into().expect("four parts asked for");
    Ok(Contents { gates, h, dy, carry })
}
