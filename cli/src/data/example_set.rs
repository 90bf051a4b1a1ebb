//! [`ExampleSet`]: the sequences of a training or validation set, whole or cut into windows.

use std::ops::Range;

use anyhow::Result;
use gru_wgpu::{Dataset, Example, Network, SequenceWindows, Target};
use ndarray::ArrayView1;

use crate::data::features::{Per, SequenceTask, WindowSettings};
use crate::data::predictor::Predictor;

/// The sequences of a training or validation set.
pub enum ExampleSet {
    Whole(Vec<Example>),
    Windows(SequenceWindows),
}

/// The label of a sequence, a window or a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    Class(usize),
    /// The scaled number.
    Number(f32),
}

impl WindowSettings {
    /// Cuts a sequence of `rows` rows into windows whose label is that of their last row, as
    /// [`SequenceWindows::last_step`] does. The last one ends at the last row.
    pub fn cut(self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let Self { window, stride } = self;
        let room = rows.saturating_sub(window);
        let starts = (room % stride..=room).step_by(stride);
        starts.map(move |start| start..start.saturating_add(window).min(rows))
    }
}

impl ExampleSet {
    /// Makes a set of sequences, cut into windows if the task has some. The windows of a validation
    /// set whose states are carried do not overlap.
    pub fn new(
        sequences: Vec<Example>,
        task: SequenceTask<'_>,
        is_validation: bool,
    ) -> Result<Self> {
        let Some(WindowSettings { window, stride }) = task.windows else {
            return Ok(Self::Whole(sequences));
        };
        Ok(Self::Windows(match task.per {
            Per::Row if is_validation => SequenceWindows::every_step(sequences, window, window)?,
            Per::Row => SequenceWindows::every_step(sequences, window, stride)?,
            Per::Sequence => SequenceWindows::last_step(sequences, window, stride)?,
        }))
    }

    pub fn data(&self) -> &dyn Dataset {
        match self {
            Self::Whole(sequences) => sequences,
            Self::Windows(windows) => windows,
        }
    }

    pub fn sequences(&self) -> &[Example] {
        match self {
            Self::Whole(sequences) => sequences,
            Self::Windows(windows) => windows.sequences(),
        }
    }

    /// Returns the index of an example's sequence, and its rows if it is a window.
    pub fn place(&self, example: usize) -> (usize, Option<Range<usize>>) {
        match self {
            Self::Whole(_) => (example, None),
            Self::Windows(windows) => {
                let (sequence, rows) = windows.window(example);
                (sequence, Some(rows))
            }
        }
    }

    /// Returns the labels that count, by sequence, in the order of the rows.
    pub fn labels(&self, task: SequenceTask<'_>) -> Vec<Vec<Label>> {
        let of_sequence = |sequence: &Example| -> Vec<Label> {
            let rows = sequence.x.nrows();
            let label = |row: usize| label_at(sequence, row);
            match (task.per, task.windows) {
                (Per::Row, _) => (0..rows).filter_map(label).collect(),
                (Per::Sequence, None) => label(rows - 1).into_iter().collect(),
                (Per::Sequence, Some(windows)) => {
                    windows.cut(rows).filter_map(|rows| label(rows.end - 1)).collect()
                }
            }
        };
        self.sequences().iter().map(of_sequence).collect()
    }

    /// Calls `each` with every label that counts and the network's outputs for it.
    pub fn for_each_output(
        &self,
        network: &Network,
        predictor: Predictor,
        mut each: impl FnMut(Label, ArrayView1<'_, f32>),
    ) -> Result<()> {
        for sequences in self.sequences().chunks(predictor.batch()) {
            let inputs: Vec<_> = sequences.iter().map(|one| one.x.clone()).collect();
            let outputs = predictor.outputs(network, &inputs)?;
            for (one, outputs) in sequences.iter().zip(&outputs) {
                for (&row, outputs) in outputs.rows.iter().zip(outputs.outputs.rows()) {
                    label_at(one, row).into_iter().for_each(|label| each(label, outputs));
                }
            }
        }
        Ok(())
    }
}

/// Returns the label of a row, or of the whole sequence, if it counts.
fn label_at(sequence: &Example, row: usize) -> Option<Label> {
    if sequence.mask.as_ref().is_some_and(|mask| !mask[row]) {
        return None;
    }
    let class = |class: i32| usize::try_from(class).ok().map(Label::Class);
    match &sequence.target {
        Target::Class(one) => class(*one),
        Target::Classes(all) => class(all[row]),
        Target::Values(values) => Some(Label::Number(values[0])),
        Target::Series(values) => Some(Label::Number(values[[row, 0]])),
        _ => unreachable!("tables have classes or numbers"),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn windows_are_cut_as_those_of_training() {
        for (rows, window, stride) in [(17, 5, 2), (5, 5, 1), (3, 5, 2), (18, 5, 7), (6, 5, 5)] {
            let x = Array2::zeros((rows, 1));
            let sequence = Example::new(x, Target::Classes(vec![0; rows]));
            let windows = SequenceWindows::last_step(vec![sequence], window, stride).unwrap();
            let expected: Vec<_> = (0..windows.len()).map(|at| windows.window(at).1).collect();
            let got: Vec<_> = WindowSettings { window, stride }.cut(rows).collect();
            assert_eq!(got, expected);
        }
    }
}
