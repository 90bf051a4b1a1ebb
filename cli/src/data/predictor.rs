//! [`Predictor`]: runs a network over sequences, whole or in windows.

use std::ops::Range;

use gru_wgpu::{Batch, Network};
use ndarray::{Array2, Array3, s};

use crate::data::features::{Per, SequenceTask, WindowSettings};

/// How a network reads sequences.
#[derive(Clone, Copy, Debug)]
pub struct Predictor {
    per: Per,
    windows: Option<WindowSettings>,
    /// Sequences or windows per batch.
    batch: usize,
}

/// The outputs for a sequence.
pub struct SequenceOutputs {
    /// The row of the sequence that each output belongs to: the last row that it was computed from.
    pub rows: Vec<usize>,
    /// One row of outputs for each of `rows`.
    pub outputs: Array2<f32>,
}

impl Predictor {
    pub fn new(task: SequenceTask<'_>, batch: usize) -> Self {
        Self { per: task.per, windows: task.windows, batch }
    }

    /// Returns the number of sequences or windows per batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the outputs for sequences `[T, I]`.
    pub fn outputs(
        &self,
        network: &Network,
        sequences: &[Array2<f32>],
    ) -> gru_wgpu::Result<Vec<SequenceOutputs>> {
        let outputs = match (self.per, self.windows) {
            (Per::Sequence, Some(windows)) => return self.windows(network, sequences, windows),
            (Per::Row, Some(windows)) => self.carried(network, sequences, windows.window)?,
            (_, None) => network.forward_each(sequences, self.batch)?,
        };
        let of_sequence = |(x, outputs): (&Array2<f32>, Array2<f32>)| {
            // The outputs are those of the last rows: all of them, or one.
            let rows = x.nrows() - outputs.nrows()..x.nrows();
            SequenceOutputs { rows: rows.collect(), outputs }
        };
        Ok(sequences.iter().zip(outputs).map(of_sequence).collect())
    }

    /// Reads `window` rows at a time and carries the states, so that long sequences take little
    /// memory.
    fn carried(
        &self,
        network: &Network,
        sequences: &[Array2<f32>],
        window: usize,
    ) -> gru_wgpu::Result<Vec<Array2<f32>>> {
        let width = network.head().outputs;
        let mut all: Vec<_> = sequences.iter().map(|x| Array2::zeros((x.nrows(), width))).collect();
        for (sequences, all) in sequences.chunks(self.batch).zip(all.chunks_mut(self.batch)) {
            let longest = sequences.iter().map(Array2::nrows).max().unwrap_or(0);
            let window = window.min(longest);
            let mut state = None;
            for start in (0..longest).step_by(window) {
                let rows = |x: &Array2<f32>| start.min(x.nrows())..(start + window).min(x.nrows());
                let pieces: Vec<_> = sequences.iter().map(|x| (x, rows(x))).collect();
                let (x, lengths) = stack(&pieces, window);
                let batch = Batch::new(x.view()).with_lengths(&lengths);
                let (outputs, last) = network.forward_from(state.as_ref(), batch)?;
                for (at, ((_, rows), all)) in pieces.iter().zip(&mut *all).enumerate() {
                    let of_piece = outputs.slice(s![..lengths[at], at, ..]);
                    all.slice_mut(s![rows.clone(), ..]).assign(&of_piece);
                }
                state = Some(last);
            }
        }
        Ok(all)
    }

    /// Reads each window from zeros.
    fn windows(
        &self,
        network: &Network,
        sequences: &[Array2<f32>],
        windows: WindowSettings,
    ) -> gru_wgpu::Result<Vec<SequenceOutputs>> {
        let cut = |x: &Array2<f32>| Ok(windows.cut(self.per, x.nrows())?.collect::<Vec<_>>());
        let cuts = sequences.iter().map(cut).collect::<gru_wgpu::Result<Vec<_>>>()?;
        let mut all: Vec<_> = cuts.iter().map(|_| Vec::new()).collect();
        let places = cuts.iter().enumerate();
        let places = places.flat_map(|(at, cuts)| cuts.iter().map(move |rows| (at, rows.clone())));
        for places in places.collect::<Vec<_>>().chunks(self.batch) {
            let pieces: Vec<_> =
                places.iter().map(|(at, rows)| (&sequences[*at], rows.clone())).collect();
            let longest = pieces.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0);
            let (x, lengths) = stack(&pieces, longest);
            let outputs = network.forward(Batch::new(x.view()).with_lengths(&lengths))?;
            for ((at, _), outputs) in places.iter().zip(outputs.outer_iter()) {
                all[*at].extend(outputs.iter().copied());
            }
        }
        let of_sequence = |(cuts, outputs): (Vec<Range<usize>>, Vec<f32>)| SequenceOutputs {
            rows: cuts.iter().map(|rows| rows.end - 1).collect(),
            outputs: Array2::from_shape_vec((cuts.len(), network.head().outputs), outputs)
                .expect("one row of outputs per window"),
        };
        Ok(cuts.into_iter().zip(all).map(of_sequence).collect())
    }
}

/// Stacks pieces of sequences to `[steps, B, I]`, padded with zeros. Returns their lengths too.
fn stack(pieces: &[(&Array2<f32>, Range<usize>)], steps: usize) -> (Array3<f32>, Vec<usize>) {
    let inputs = pieces.first().map_or(0, |(x, _)| x.ncols());
    let mut stacked = Array3::zeros((steps, pieces.len(), inputs));
    for (at, (x, rows)) in pieces.iter().enumerate() {
        stacked.slice_mut(s![..rows.len(), at, ..]).assign(&x.slice(s![rows.clone(), ..]));
    }
    (stacked, pieces.iter().map(|(_, rows)| rows.len()).collect())
}
