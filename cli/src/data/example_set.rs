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
    pub fn labels(&self, per: Per) -> Vec<Vec<Label>> {
        let sequences = self.sequences();
        let at = |sequence: &Example, row: usize| label_at(sequence, row);
        match (per, self) {
            (Per::Row, _) => {
                let rows =
                    |one: &Example| (0..one.x.nrows()).filter_map(|row| at(one, row)).collect();
                sequences.iter().map(rows).collect()
            }
            (Per::Sequence, Self::Whole(_)) => {
                let last = |one: &Example| at(one, one.x.nrows() - 1).into_iter().collect();
                sequences.iter().map(last).collect()
            }
            (Per::Sequence, Self::Windows(windows)) => {
                let mut labels = vec![Vec::new(); sequences.len()];
                for (sequence, rows) in (0..windows.len()).map(|at| windows.window(at)) {
                    labels[sequence].extend(at(&sequences[sequence], rows.end - 1));
                }
                labels
            }
        }
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
    fn a_window_has_the_label_of_its_last_row() {
        let sequence = |classes: Vec<i32>| {
            let x = Array2::zeros((classes.len(), 1));
            Example::new(x, Target::Classes(classes))
        };
        // The class -100 does not count.
        let all = vec![sequence((0..8).collect()), sequence(vec![3, 4, -100]), sequence(vec![9])];
        let labels = |set: &ExampleSet, per| {
            let class = |label: &Label| match label {
                Label::Class(class) => *class,
                Label::Number(_) => panic!("the labels are classes"),
            };
            let all = set.labels(per);
            all.iter()
                .map(|labels| labels.iter().map(class).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        let windows = SequenceWindows::last_step(all.clone(), 5, 2).unwrap();
        let windows = ExampleSet::Windows(windows);
        assert_eq!(labels(&windows, Per::Sequence), [vec![5, 7], vec![], vec![9]]);
        let rows = [(0..8).collect(), vec![3, 4], vec![9]];
        assert_eq!(labels(&ExampleSet::Whole(all), Per::Row), rows);
        let all = vec![Example::new(Array2::zeros((3, 1)), Target::Class(6))];
        assert_eq!(labels(&ExampleSet::Whole(all), Per::Sequence), [[6]]);
    }
}
