//! The schedule of an update: the norm of the gradient, a check that all parameters stay finite,
//! then the optimizer.

use super::ElementType::{F32, U32};
use super::limits::check_indices;
use super::products::MAX_WORKGROUPS;
use super::{BufferId, BufferList, BufferSlice, DeviceCaps, Dispatch, Plan, Role, Stage};
use crate::error::Result;
use crate::kernels::{GRADIENT_NORM, GradientNormArgs, Kernel, OPTIMIZER, OptimizerArgs};
use crate::spec::optimizer::{Clip, UpdateConstants};

/// The number of updates whose reports the device keeps until the host reads them.
pub(crate) const SLOTS: usize = 64;

/// The number of u32 words of a report, and of the header before the first report. A report holds
/// the loss, the norm and the largest magnitude as bits of f32, the index of the element with that
/// magnitude, and 1 if the update was stopped.
pub(crate) const REPORT: usize = 5;

/// The number of the gradient's elements for each workgroup of the norm.
const PART: usize = 16_384;

/// The number of u32 words that `shaders/optimizer.wgsl` reads for an update.
const NUMBERS: usize = 11;

/// The buffers of an update by meaning. All except the last three belong to the learner or the
/// model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpdateBuffers {
    /// The parameters.
    pub params: BufferId,
    /// The gradient of the parameters.
    pub gradient: BufferId,
    /// `[1]`
    pub loss: BufferId,
    /// The optimizer's first moments.
    pub first_moment: BufferId,
    /// The optimizer's second moments.
    pub second_moment: BufferId,
    /// The [`numbers`] of the update.
    pub update: BufferId,
    /// u32 words: 1 to stop, then one report per slot.
    pub reports: BufferId,
}

/// Returns the kernel's input for an update whose report goes to `slot`: `slot` itself, then the
/// bits of f32 numbers.
pub(crate) fn numbers(slot: usize, clip: Clip, c: &UpdateConstants) -> [u32; NUMBERS] {
    let bound = match clip {
        Clip::None => 0.0,
        Clip::Norm(bound) | Clip::Value(bound) => bound,
    };
    [
        slot as u32,
        bound.to_bits(),
        c.rate.to_bits(),
        c.keep1.to_bits(),
        c.take1.to_bits(),
        c.keep2.to_bits(),
        c.take2.to_bits(),
        c.correction2.to_bits(),
        c.epsilon.to_bits(),
        c.coupled.to_bits(),
        c.decoupled.to_bits(),
    ]
}

impl Plan {
    /// Makes the schedule of an update of `length` parameters, with Adam or without second moments.
    pub(crate) fn of_update(
        length: usize,
        adam: bool,
        clip: Clip,
        caps: &DeviceCaps,
    ) -> Result<(Self, UpdateBuffers)> {
        let mut buffers = BufferList::default();
        let mut flat = |name: &str, role| buffers.add(name, "flat", F32, length, role);
        let params = flat("params", Role::Parameters);
        let gradient = flat("dparams", Role::Scratch);
        let first_moment = flat("first_moment", Role::InputOutput);
        let second_moment = flat("second_moment", Role::InputOutput);
        let parts = length.div_ceil(PART).min(MAX_WORKGROUPS);
        let update = UpdateBuffers {
            params,
            gradient,
            loss: buffers.add("loss", "[1]", F32, 1, Role::Scratch),
            first_moment,
            second_moment,
            update: buffers.add("update", "numbers", U32, NUMBERS, Role::Input),
            reports: buffers.add(
                "reports",
                "[1 + slots, 5]",
                U32,
                REPORT * (1 + SLOTS),
                Role::InputOutput,
            ),
        };
        let partials = buffers.add("partials", "[parts, 3]", U32, 3 * parts, Role::Scratch);
        check_indices(buffers.specs())?;
        let whole = |ids: &[BufferId]| ids.iter().map(|&id| buffers.whole(id)).collect::<Vec<_>>();
        let of_norm =
            whole(&[update.gradient, update.loss, update.update, partials, update.reports]);
        let moved = [params, gradient, first_moment, second_moment, update.update, update.reports];
        let moved = whole(&moved);
        let stages = vec![
            gradient_norm("Σ g², max |g|", false, length, parts, of_norm.clone()),
            gradient_norm("norm, report", true, parts, 1, of_norm),
            optimize(true, length, adam, clip, moved.clone()),
            optimize(false, length, adam, clip, moved),
        ];
        Ok((Self::of_stages("update", buffers.into_specs(), stages, caps), update))
    }
}

/// Returns the dispatch that reduces `length` elements to `parts` partial results, or `length`
/// partial results to the norm if `finish` is set.
fn gradient_norm(
    label: &str,
    finish: bool,
    length: usize,
    parts: usize,
    bindings: Vec<BufferSlice>,
) -> Stage {
    let part = length.div_ceil(parts);
    let args = GradientNormArgs { length: length as u32, part: part as u32, slots: SLOTS as u32 };
    let groups = [length.div_ceil(part) as u64, 1, 1];
    let iterations = part.div_ceil(256) + 9;
    let args = args.as_u32s();
    dispatch(label, &GRADIENT_NORM, vec![finish.into()], bindings, args, groups, iterations)
}

/// Returns the dispatch that updates the parameters, or that only checks that all would stay finite
/// if `checks` is set.
fn optimize(
    checks: bool,
    length: usize,
    adam: bool,
    clip: Clip,
    bindings: Vec<BufferSlice>,
) -> Stage {
    let groups = length.div_ceil(256).min(MAX_WORKGROUPS);
    let threads = 256 * groups;
    let args =
        OptimizerArgs { length: length as u32, threads: threads as u32, slots: SLOTS as u32 };
    let kind = match clip {
        Clip::None => 0,
        Clip::Norm(_) => 1,
        Clip::Value(_) => 2,
    };
    let constants = vec![adam.into(), kind, checks.into()];
    let groups = [groups as u64, 1, 1];
    let label = match (checks, adam) {
        (true, _) => "check that all stays finite",
        (false, true) => "θ, m, v by Adam",
        (false, false) => "θ, m by gradient descent",
    };
    let iterations = length.div_ceil(threads);
    dispatch(label, &OPTIMIZER, constants, bindings, args.as_u32s(), groups, iterations)
}

fn dispatch(
    label: &str,
    kernel: &'static Kernel,
    constants: Vec<u32>,
    bindings: Vec<BufferSlice>,
    args: &[u32],
    workgroups: [u64; 3],
    iterations: usize,
) -> Stage {
    Stage::Once(Dispatch {
        label: label.to_owned(),
        kernel,
        constants,
        bytes: bindings.iter().map(BufferSlice::bytes).sum(),
        bindings,
        args: args.to_vec(),
        workgroups,
        flops: 0,
        padded_flops: 0,
        iterations: iterations as u64,
    })
}
