//! The dispatches inside the loops over time: one step of all rows and both directions of a layer.

use super::planner::Planner;
use super::products::{DISPATCH_FLOPS, MAX_WORKGROUPS, chunks, padded_outputs, product, tiles};
use super::{Dispatch, Mode, Slice, States, TrainingBuffers};
use crate::config::{Shape, Update};
use crate::kernels::{BACKWARD_STEP, FORWARD_STEP, Kernel, StepArgs};
use crate::noise::{self, Zoneout};
use crate::params::CellRanges;

/// The gates whose recurrent products a dispatch makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gates {
    /// r, z and n together, where the reset gate acts after the product.
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
    /// One dispatch, or several that each take a part of the batch.
    pub(super) fn forward_step(&self, layer: usize, gates: Gates) -> Vec<Dispatch> {
        let Shape { hidden, directions, .. } = self.shape;
        let (weight, _) = self.of_both(layer, |cell| Some(&cell.weight_hh));
        let (bias, bias_apart) = self.of_both(layer, |cell| cell.bias_hh.as_ref());
        let slices = hidden.div_ceil(16) as u64;
        // What a unit of a row reads and writes: columns of gates, h and its successor, y.
        let (label, moved) = match gates {
            Gates::All => ("r, z, n from h; h'", 3 + 4 + 2 + 1),
            Gates::ResetUpdate => ("r, z from h; r ⊙ h", 2 + 3 + 1),
            Gates::Candidate => ("n from r ⊙ h; h'", 3 + 1 + 2 + 1),
        };
        let part = |(row_first, rows): (usize, usize)| {
            let args =
                StepArgs { bias_apart: bias_apart as u32, ..self.step_args(layer, row_first) };
            Dispatch {
                label: self.step_label(layer, gates, label),
                bindings: vec![
                    weight.expect("every cell has its weight_hh"),
                    self.buffers.whole(self.run.marks),
                    self.gates(layer),
                    bias.unwrap_or(self.buffers.whole(self.zeros)),
                    self.buffers.whole(self.layers[layer].h),
                    self.buffers.whole(self.run.states),
                    self.buffers.whole(self.layers[layer].y),
                ],
                // Weights and biases besides.
                bytes: 4 * product([
                    directions,
                    gates.count() * (hidden + 1) + moved * rows,
                    hidden,
                ]),
                // A slice takes 16 products, a turn of its own and 4 stagings a gate.
                iterations: slices * (17 + 4 * gates.count() as u64) + self.draws(),
                ..self.step(&FORWARD_STEP, layer, gates, rows, &args)
            }
        };
        self.parts(&FORWARD_STEP, gates).map(part).collect()
    }

    /// One dispatch, or several that each take a part of the batch.
    pub(super) fn backward_step(
        &self,
        t: &TrainingBuffers,
        layer: usize,
        gates: Gates,
    ) -> Vec<Dispatch> {
        let Shape { hidden, directions, .. } = self.shape;
        let (weight, _) = self.of_both(layer, |cell| Some(&cell.weight_hh));
        let slices = (gates.count() * hidden).div_ceil(16) as u64;
        let label = match gates {
            Gates::All => "dh; da_r, da_z, da_n, dpast",
            Gates::ResetUpdate => "dh; da_z, da_n",
            Gates::Candidate => "d(r ⊙ h); da_r",
        };
        // What the layer above made of its input is this layer's output.
        let dy = t.dx.get(layer + 1).copied().unwrap_or(t.dy);
        let part = |(row_first, rows): (usize, usize)| {
            let moved = gates.count() * (hidden + 3 * rows) + 4 * rows;
            Dispatch {
                label: self.step_label(layer, gates, label),
                bindings: vec![
                    weight.expect("every cell has its weight_hh"),
                    self.buffers.whole(self.run.marks),
                    self.gates(layer),
                    self.buffers.whole(self.layers[layer].h),
                    self.buffers.whole(dy),
                    self.buffers.whole(t.dstates),
                ],
                // Weights, the columns of gates read and written, h, dy, and carry twice.
                bytes: 4 * product([directions, moved, hidden]),
                // A slice takes 16 products, a turn of its own and 4 stagings.
                iterations: slices * (17 + 4) + self.draws(),
                ..self.step(&BACKWARD_STEP, layer, gates, rows, &self.step_args(layer, row_first))
            }
        };
        self.parts(&BACKWARD_STEP, gates).map(part).collect()
    }

    /// What the two step kernels are told alike. A loop sets the step.
    fn step_args(&self, layer: usize, row_first: usize) -> StepArgs {
        let Shape { steps, batch, hidden, directions, .. } = self.shape;
        let config = self.layout.config();
        let (of_sequences, of_h) = (self.strides(steps), self.strides(self.h_times()));
        let (_, weight_apart) = self.of_both(layer, |cell| Some(&cell.weight_hh));
        let state = |section: States| self.states_at(layer, section as usize) as u32;
        StepArgs {
            steps: steps as u32,
            batch: batch as u32,
            hidden: hidden as u32,
            directions: directions as u32,
            reverse_from: u32::from(!config.direction.is_reverse(0)),
            row_first: row_first as u32,
            time_stride: of_sequences.time as u32,
            row_stride: of_sequences.row as u32,
            h_times: self.h_times() as u32,
            h_time_stride: of_h.time as u32,
            h_row_stride: of_h.row as u32,
            weight_apart: weight_apart as u32,
            bias_apart: 0,
            first_state: state(States::First),
            reset_state: state(States::Reset),
            last_state: state(States::Last),
            layer: layer as u32,
            drop_below: noise::threshold(config.dropout),
            drop_scale: noise::kept_scale(config.dropout).to_bits(),
            zone_below: noise::threshold(config.zoneout),
            zone_share: config.zoneout.to_bits(),
            step: 0,
        }
    }

    /// Loop iterations of the draws of one thread: four rows, two draws each, ten rounds.
    fn draws(&self) -> u64 {
        let draws = self.mode == Mode::Training && self.layout.config().draws();
        if draws { 4 * 2 * 10 } else { 0 }
    }

    fn drops(&self, layer: usize) -> bool {
        let dropout = self.layout.config().dropout > 0.0;
        self.mode == Mode::Training && dropout && layer + 1 < self.shape.layers
    }

    /// What a dispatch does, zoneout of h' and dropout of y included.
    fn step_label(&self, layer: usize, gates: Gates, what: &str) -> String {
        let mut label = self.label(layer, what);
        if gates != Gates::ResetUpdate {
            let zones = self.layout.config().zoneout > 0.0;
            for (does, what) in [(zones, "; zoneout"), (self.drops(layer), "; dropout")] {
                label.push_str(if does { what } else { "" });
            }
        }
        label
    }

    /// The batch in parts that a dispatch may take: as many rows as its work and its grid allow.
    fn parts(&self, kernel: &Kernel, gates: Gates) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Shape { batch, hidden, directions, .. } = self.shape;
        let tile = kernel.tile[1] as usize;
        let flops_a_tile = 2 * product([directions, gates.count(), tile, hidden, hidden]);
        let tiles = (DISPATCH_FLOPS / flops_a_tile.max(1)).clamp(1, MAX_WORKGROUPS as u64);
        chunks(batch, tile * tiles as usize)
    }

    /// What the two step kernels have in common.
    fn step(
        &self,
        kernel: &'static Kernel,
        layer: usize,
        gates: Gates,
        rows: usize,
        args: &StepArgs,
    ) -> Dispatch {
        let Shape { hidden, directions, .. } = self.shape;
        let config = self.layout.config();
        let constants = [
            u32::from(gates != Gates::Candidate),
            u32::from(gates != Gates::ResetUpdate),
            u32::from(config.update == Update::Keeps),
            config.gate_activation.code(),
            config.candidate_activation.code(),
            u32::from(self.drops(layer)),
            Zoneout::of(config, self.mode).code(),
        ];
        let [x, y, _] = tiles(kernel, hidden, rows);
        let padded = padded_outputs(kernel, hidden, rows) * directions as u64;
        Dispatch {
            label: String::new(),
            kernel,
            constants: constants.to_vec(),
            bindings: Vec::new(),
            args: bytemuck::cast_slice(std::slice::from_ref(args)).to_vec(),
            workgroups: [x, y, directions as u64],
            flops: 2 * product([directions, gates.count(), rows, hidden, hidden]),
            padded_flops: padded * 2 * product([gates.count(), hidden]),
            bytes: 0,
            iterations: 0,
        }
    }

    /// A parameter of all directions of a layer as one slice, and how far apart they lie in it.
    fn of_both(
        &self,
        layer: usize,
        pick: impl Fn(&CellRanges) -> Option<&std::ops::Range<usize>>,
    ) -> (Option<Slice>, usize) {
        let cells: Vec<_> =
            (0..self.shape.directions).map(|d| self.layout.cell(layer, d)).collect();
        let (first, last) = (&cells[0], &cells[cells.len() - 1]);
        let (Some(first), Some(last)) = (pick(first), pick(last)) else { return (None, 0) };
        let slice = self.parameter(self.run.params, first.start..last.end);
        (Some(slice), last.start - first.start)
    }
}
