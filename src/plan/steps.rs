//! The dispatches of the recurrence: steps of all rows and both directions of a layer.

use super::planner::{Planner, StepRange};
use super::products::{MAX_WORKGROUPS, product, split};
use super::tiles::{RecurrenceKernel, StepVariant};
use super::{BufferSlice, Dispatch, Mode, Pass, Stage, StateSlot, TrainingBuffers};
use crate::kernels::{ActivationConstants, StepArgs, step_mode};
use crate::spec::config::{Reset, Shape, Update};
use crate::spec::noise::{self, Zoneout};
use crate::spec::params::CellRanges;

/// The gates whose recurrent products a dispatch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gates {
    /// r, z and n.
    All,
    /// r and z, before the candidate's product can start.
    ResetUpdate,
    /// n, from `r ⊙ h`.
    Candidate,
}

impl Gates {
    fn count(self) -> usize {
        match self {
            Gates::All => 3,
            Gates::ResetUpdate => 2,
            Gates::Candidate => 1,
        }
    }
}

impl Planner<'_> {
    /// Returns the stages of all forward steps of a span: one or two dispatches per step, or one
    /// dispatch for many steps.
    pub(super) fn forward_steps(&self, layer: usize, span: StepRange) -> Vec<Stage> {
        match self.recurrence.forward.runs_sequences() {
            true => {
                let dispatch =
                    |(step, count)| self.forward_step(layer, Gates::All, span, step, count);
                let most = self.steps_a_dispatch(Pass::Forward);
                let steps = split(span.steps, most).map(|(at, count)| (span.first + at, count));
                steps.flat_map(dispatch).map(Stage::Once).collect()
            }
            false => {
                let gates = match self.layout.config().reset {
                    Reset::After => &[Gates::All][..],
                    Reset::Before => &[Gates::ResetUpdate, Gates::Candidate],
                };
                let step = |&gates| self.forward_step(layer, gates, span, span.first, 1);
                let body = gates.iter().flat_map(step).collect();
                vec![Stage::Steps { first: span.first, last: span.end() - 1, body }]
            }
        }
    }

    /// Returns the stages of all backward steps of a span, from its end to its start: one or two
    /// dispatches per state, or one dispatch for many states.
    pub(super) fn backward_steps(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        span: StepRange,
    ) -> Vec<Stage> {
        match self.recurrence.backward.runs_sequences() {
            true => {
                let dispatch =
                    |(state, count)| self.backward_step(t, layer, Gates::All, span, state, count);
                let most = self.steps_a_dispatch(Pass::Backward);
                let states =
                    split(span.steps + 1, most).map(|(at, count)| (span.end() - at, count));
                states.flat_map(dispatch).map(Stage::Once).collect()
            }
            false => {
                let (state, reset) = match self.layout.config().reset {
                    Reset::After => (Gates::All, None),
                    Reset::Before => (Gates::ResetUpdate, Some(Gates::Candidate)),
                };
                let step = |gates| self.backward_step(t, layer, gates, span, span.end(), 1);
                let body = std::iter::once(state).chain(reset).flat_map(step).collect();
                let steps = Stage::Steps { first: span.end(), last: span.first + 1, body };
                let last = self.backward_step(t, layer, state, span, span.first, 1).into_iter();
                let label = self.label(layer, if span.first == 0 { "dh0" } else { "dh" });
                let last =
                    last.map(|dispatch| Stage::Once(Dispatch { label: label.clone(), ..dispatch }));
                std::iter::once(steps).chain(last).collect()
            }
        }
    }

    /// Returns the dispatches of `count` steps, starting at `step`: one dispatch, or one for each
    /// group of batch rows.
    fn forward_step(
        &self,
        layer: usize,
        gates: Gates,
        span: StepRange,
        step: usize,
        count: usize,
    ) -> Vec<Dispatch> {
        let Shape { hidden, directions, .. } = self.shape;
        let (weight, _) = self.of_both(layer, |cell| Some(&cell.weight_hh));
        let (bias, bias_apart) = self.of_both(layer, |cell| cell.bias_hh.as_ref());
        // The elements that a unit of a row reads and writes: columns of gates, h and the next h,
        // y.
        let (label, moved) = match gates {
            Gates::All => ("r, z, n from h; h'", 3 + 4 + 2 + 1),
            Gates::ResetUpdate => ("r, z from h; r ⊙ h", 2 + 3 + 1),
            Gates::Candidate => ("n from r ⊙ h; h'", 3 + 1 + 2 + 1),
        };
        let part = |(row_first, rows): (usize, usize)| {
            let args = StepArgs {
                bias_apart: bias_apart as u32,
                count: count as u32,
                step: step as u32,
                ..self.step_args(layer, row_first, span)
            };
            // Plus weights and biases.
            let moved = gates.count() * (hidden + 1) + moved * rows * count;
            Dispatch {
                label: self.step_label(Pass::Forward, layer, gates, label, [step, count]),
                bindings: vec![
                    weight.expect("every cell has its weight_hh"),
                    self.buffers.whole(self.run.step_flags),
                    self.gates_of(layer, span),
                    bias.unwrap_or(self.buffers.whole(self.zeros)),
                    self.buffers.whole(self.layers[layer].h),
                    self.buffers.whole(self.run.states),
                    self.buffers.whole(self.layers[layer].y),
                ],
                bytes: self.element.size() * product([directions, moved, hidden]),
                ..self.step(Pass::Forward, layer, gates, rows, &args)
            }
        };
        self.parts(Pass::Forward, gates).map(part).collect()
    }

    /// Returns the dispatches of `count` states, from `state` downwards: one dispatch, or one for
    /// each group of batch rows.
    fn backward_step(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        gates: Gates,
        span: StepRange,
        state: usize,
        count: usize,
    ) -> Vec<Dispatch> {
        let Shape { hidden, directions, .. } = self.shape;
        let (weight, _) = self.of_both(layer, |cell| Some(&cell.weight_hh));
        let label = match (gates, self.layout.config().reset) {
            (Gates::All, Reset::After) => "dh; da_r, da_z, da_n, dpast",
            (Gates::All, Reset::Before) => "dh; da_r, da_z, da_n",
            (Gates::ResetUpdate, _) => "dh; da_z, da_n",
            (Gates::Candidate, _) => "d(r ⊙ h); da_r",
        };
        // This layer's dy is the gradient of the next layer's input.
        let dy = t.dx.get(layer + 1).copied().flatten().unwrap_or(t.dy);
        let part = |(row_first, rows): (usize, usize)| {
            let args = StepArgs {
                count: count as u32,
                step: state as u32,
                ..self.step_args(layer, row_first, span)
            };
            // Weights, the columns of gates read and written, h, dy, and the carried gradient
            // twice.
            let moved = gates.count() * (hidden + 3 * rows * count) + 4 * rows * count;
            Dispatch {
                label: self.step_label(Pass::Backward, layer, gates, label, [state, count]),
                bindings: vec![
                    weight.expect("every cell has its weight_hh"),
                    self.buffers.whole(self.run.step_flags),
                    self.gates_of(layer, span),
                    self.buffers.whole(self.layers[layer].h),
                    self.buffers.whole(dy),
                    self.buffers.whole(t.dstates),
                ],
                bytes: self.element.size() * product([directions, moved, hidden]),
                ..self.step(Pass::Backward, layer, gates, rows, &args)
            }
        };
        self.parts(Pass::Backward, gates).map(part).collect()
    }

    /// Returns the arguments that both kernels share.
    fn step_args(&self, layer: usize, row_first: usize, span: StepRange) -> StepArgs {
        let Shape { steps, batch, hidden, directions, .. } = self.shape;
        let config = self.layout.config();
        let [of_sequences, of_h, of_gates] =
            [steps, self.h_times(), span.steps].map(|times| self.strides(times));
        let (_, weight_apart) = self.of_both(layer, |cell| Some(&cell.weight_hh));
        let state = |section: StateSlot| self.states_at(layer, section as usize) as u32;
        let dropout = if self.drops(layer) { config.dropout } else { 0.0 };
        StepArgs {
            steps: steps as u32,
            batch: batch as u32,
            hidden: hidden as u32,
            directions: directions as u32,
            row_first: row_first as u32,
            time_stride: of_sequences.time as u32,
            row_stride: of_sequences.row as u32,
            h_times: self.h_times() as u32,
            h_time_stride: of_h.time as u32,
            h_row_stride: of_h.row as u32,
            gates_times: span.steps as u32,
            gates_first: span.first as u32,
            gates_room: self.gates.times as u32,
            gates_time_stride: of_gates.time as u32,
            gates_row_stride: of_gates.row as u32,
            weight_apart: weight_apart as u32,
            bias_apart: 0,
            first_state: state(StateSlot::First),
            reset_state: state(StateSlot::Reset),
            last_state: state(StateSlot::Last),
            layer: layer as u32,
            modes: self.step_modes(),
            drop_below: noise::threshold(dropout),
            drop_scale: noise::kept_scale(dropout).to_bits(),
            zoneout: Zoneout::of(config, self.mode).code(),
            zone_below: noise::threshold(config.zoneout),
            zone_fraction: config.zoneout.to_bits(),
            draw_rounds: if self.draws() { noise::ROUNDS } else { 0 },
            count: 0,
            step: 0,
        }
    }

    fn step_modes(&self) -> u32 {
        let config = self.layout.config();
        let modes = [
            (config.update == Update::Keeps, step_mode::Z_KEEPS),
            (self.mode == Mode::Training, step_mode::KEEPS_GATES),
            (config.direction.is_reverse(0), step_mode::REVERSE_FIRST),
        ];
        modes.into_iter().map(|(has, mode)| if has { mode } else { 0 }).sum()
    }

    /// Returns true if a run draws random numbers for dropout or zoneout.
    fn draws(&self) -> bool {
        self.mode == Mode::Training && self.layout.config().draws()
    }

    /// Returns true if a layer has dropout or zoneout in this run.
    fn has_noise(&self, layer: usize) -> bool {
        self.layout.config().zoneout > 0.0 || self.drops(layer)
    }

    fn drops(&self, layer: usize) -> bool {
        let dropout = self.layout.config().dropout > 0.0;
        self.mode == Mode::Training && dropout && layer + 1 < self.shape.layers
    }

    /// Returns the label of a dispatch, with zoneout of h' and dropout of y, and its range of steps
    /// or states if it runs several.
    fn step_label(
        &self,
        pass: Pass,
        layer: usize,
        gates: Gates,
        what: &str,
        [first, count]: [usize; 2],
    ) -> String {
        let mut label = self.label(layer, what);
        if gates != Gates::ResetUpdate {
            let zones = self.layout.config().zoneout > 0.0;
            for (does, what) in [(zones, "; zoneout"), (self.drops(layer), "; dropout")] {
                label.push_str(if does { what } else { "" });
            }
        }
        match (self.recurrence.of(pass).runs_sequences(), pass) {
            (false, _) => label,
            (true, Pass::Forward) => format!("{first} to {}: {label}", first + count - 1),
            (true, Pass::Backward) => format!("{first} down to {}: {label}", first + 1 - count),
        }
    }

    /// Returns the multiplications and additions of a workgroup's rows in one step, including
    /// padding.
    fn padded_flops(&self, kernel: RecurrenceKernel, gates: Gates) -> u64 {
        let Shape { hidden, directions, .. } = self.shape;
        let units = hidden.next_multiple_of(kernel.units());
        2 * product([directions, gates.count(), kernel.rows(), units, hidden])
    }

    /// Splits the batch rows into dispatches. Each has as many rows as the limits of work and
    /// workgroups allow.
    fn parts(&self, pass: Pass, gates: Gates) -> impl Iterator<Item = (usize, usize)> + use<> {
        let kernel = self.recurrence.of(pass);
        let flops = self.padded_flops(kernel, gates).max(1);
        let groups = (self.caps.dispatch_flops() / flops).clamp(1, MAX_WORKGROUPS as u64);
        split(self.shape.batch, kernel.rows() * groups as usize)
    }

    /// Returns the number of steps that a workgroup may run in one dispatch,
    /// limited by its loops and its work.
    fn steps_a_dispatch(&self, pass: Pass) -> usize {
        let kernel = self.recurrence.of(pass);
        let iterations = self.iterations(pass, Gates::All, 1);
        let by_loops = self.caps.limits.max_loop_iterations / iterations;
        let groups = self.shape.batch.div_ceil(kernel.rows()) as u64;
        let flops = self.padded_flops(kernel, Gates::All).max(1);
        let by_work = self.caps.dispatch_flops() / (flops * groups);
        // A workgroup uses a small part of the device.
        let by_group = self.caps.group_flops() / flops;
        by_loops.min(by_work).min(by_group).clamp(1, self.shape.steps as u64 + 1) as usize
    }

    /// Returns an upper bound on the loop iterations of one thread in `count` steps.
    fn iterations(&self, pass: Pass, gates: Gates, count: usize) -> u64 {
        let draws = if self.draws() { 2 * (noise::ROUNDS as usize + 1) } else { 0 };
        let kernel = self.recurrence.of(pass);
        kernel.iterations(pass, self.shape.hidden, gates.count(), draws, count)
    }

    /// Returns the fields that dispatches of both kernels have in common; others are empty.
    fn step(
        &self,
        pass: Pass,
        layer: usize,
        gates: Gates,
        rows: usize,
        args: &StepArgs,
    ) -> Dispatch {
        let Shape { hidden, directions, .. } = self.shape;
        let config = self.layout.config();
        let kernel = self.recurrence.of(pass);
        let variant = StepVariant {
            rz: gates != Gates::Candidate,
            n: gates != Gates::ResetUpdate,
            reset_before: config.reset == Reset::Before,
            noise: self.has_noise(layer),
            hardware_exp: self.caps.hardware_exp,
            activations: ActivationConstants::new(config),
        };
        let groups = rows.div_ceil(kernel.rows());
        let count = args.count as usize;
        Dispatch {
            label: String::new(),
            kernel: kernel.kernel(pass, hidden),
            constants: kernel.constants(variant),
            bindings: Vec::new(),
            args: args.as_u32s().to_vec(),
            workgroups: [hidden.div_ceil(kernel.units()) as u64, groups as u64, directions as u64],
            flops: 2 * product([directions, gates.count(), rows, hidden, hidden]) * count as u64,
            padded_flops: self.padded_flops(kernel, gates) * product([groups, count]),
            bytes: 0,
            iterations: self.iterations(pass, gates, count),
        }
    }

    /// Returns the slice of a parameter for all directions of a layer, and the distance between
    /// directions.
    fn of_both(
        &self,
        layer: usize,
        pick: impl Fn(&CellRanges) -> Option<&std::ops::Range<usize>>,
    ) -> (Option<BufferSlice>, usize) {
        let cells: Vec<_> =
            (0..self.shape.directions).map(|d| self.layout.cell(layer, d)).collect();
        let (first, last) = (&cells[0], &cells[cells.len() - 1]);
        let (Some(first), Some(last)) = (pick(first), pick(last)) else { return (None, 0) };
        // Weights are read four at a time; parameters start and end at multiples of more than that.
        let end = last.end.next_multiple_of(4);
        let slice = self.parameter(self.run.params, first.start..end);
        (Some(slice), last.start - first.start)
    }
}
