//! `forward_step` and `backward_step` against their twins, on states and gates made at random.

use super::{Findings, random, variant_words};
use crate::config::GruConfig;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::params::{Init, Params};
use crate::plan::{Mode, Plan, Stage};
use crate::reference::Cell;
use crate::runner::{Pass, Session};

/// Two, so that each kernel also reads what it wrote.
const STEPS: usize = 2;

/// The contents of a run's buffers, as the kernels and their twins change them in place.
#[derive(Clone)]
struct Contents<F> {
    /// `[STEPS, B, 4H]`
    gates: Vec<F>,
    /// `[STEPS + 1, B, H]`
    h: Vec<F>,
    /// `[STEPS, B, H]`
    dy: Vec<F>,
    /// `[B, H]`
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
    let hidden = config.hidden_size;
    let state = batch * hidden;
    let params = Params::init(config, Init::Uniform, seed)?;
    let mut start = Contents {
        gates: random(STEPS * 4 * state, 1.0, seed + 1),
        h: random((STEPS + 1) * state, 1.0, seed + 2),
        dy: random(STEPS * state, 1.0, seed + 3),
        carry: random(state, 1.0, seed + 4),
    };
    // What the steps have yet to write.
    start.h[state..].fill(f32::NAN);

    let params64 = params.cast();
    let cell = Cell::new(&params64);
    let mut forward = start.map(f64::from);
    forward_twin(&cell, hidden, &mut forward);
    let mut backward = forward.clone();
    backward_twin(&cell, hidden, &mut backward);

    let plan = Plan::new(config, config.shape(STEPS, batch)?, Mode::Training)?;
    let (sizes, variant) = (format!("B {batch}, H {hidden}"), variant_words(config));
    for (kernel, stages, input, expected) in [
        ("forward_step", plan.forward(), start, forward.clone()),
        ("backward_step", plan.backward(), forward.map(|v| v as f32), backward),
    ] {
        let got = run(gpu, &plan, kernel, stages, &params, &input)?;
        let subject = format!("{kernel}, {variant}");
        findings.compare_slices(&subject, &sizes, &got.gates, &expected.gates);
        findings.compare_slices(&subject, &sizes, &got.h, &expected.h);
        findings.compare_slices(&subject, &sizes, &got.carry, &expected.carry);
    }
    Ok(())
}

fn forward_twin(cell: &Cell<f64>, hidden: usize, c: &mut Contents<f64>) {
    let state = c.carry.len();
    for (row, gates) in c.gates.chunks_exact_mut(4 * hidden).enumerate() {
        let (past, next) = c.h.split_at_mut((row / (state / hidden) + 1) * state);
        let next = &mut next[row * hidden % state..][..hidden];
        cell.step(&past[row * hidden..][..hidden], gates, next);
    }
}

fn backward_twin(cell: &Cell<f64>, hidden: usize, c: &mut Contents<f64>) {
    let state = c.carry.len();
    for (row, gates) in c.gates.chunks_exact_mut(4 * hidden).enumerate().rev() {
        let dh = &mut c.carry[row * hidden % state..][..hidden];
        dh.iter_mut().zip(&c.dy[row * hidden..]).for_each(|(dh, dy)| *dh += dy);
        cell.step_backward(&c.h[row * hidden..][..hidden], gates, dh);
    }
}

/// Runs the stages of one kernel out of a whole schedule.
fn run(
    gpu: &Gpu,
    plan: &Plan,
    kernel: &str,
    stages: &[Stage],
    params: &Params,
    input: &Contents<f32>,
) -> Result<Contents<f32>> {
    let of_kernel = |stage: &&Stage| stage.dispatches().0.iter().all(|d| d.kernel.name == kernel);
    let stages = stages.iter().filter(of_kernel).cloned().collect();
    let plan = Plan::of_stages(kernel, plan.buffers().to_vec(), stages);
    let ids = ["params", "gates", "h", "dy", "carry"]
        .map(|name| plan.buffer(name).expect("a training plan has it"));
    let contents = [params.as_slice(), &input.gates, &input.h, &input.dy, &input.carry];
    let mut session = Session::new(gpu, plan, None)?;
    for (id, data) in ids.into_iter().zip(contents) {
        session.write(id, 0, data.len(), Some(data))?;
    }
    session.run(Pass::Forward)?;
    let parts: Vec<_> =
        ids.into_iter().zip(contents).skip(1).map(|(id, data)| (id, 0..data.len())).collect();
    let [gates, h, dy, carry] = session.read(&parts)?.try_into().expect("four parts asked for");
    Ok(Contents { gates, h, dy, carry })
}
