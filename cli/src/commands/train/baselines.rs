//! [`Baselines`]: predictions that need no model.

use anyhow::{Result, ensure};

use crate::data::errors::NumberErrors;
use crate::data::example_set::{ExampleSet, Label};
use crate::data::features::{NumericLabel, SequenceTask};

/// The errors of the baselines on the validation set.
pub enum Baselines {
    Classes(MajorityBaseline),
    Numbers(NumberBaselines),
}

/// A baseline that knows only the class frequencies of the training set.
pub struct MajorityBaseline {
    pub class: String,
    /// The accuracy of always predicting the most frequent class.
    pub accuracy: f64,
    /// The cross-entropy of the class frequencies, each class counted once more than it occurs.
    pub loss: f64,
}

/// The baselines of labels that are numbers.
pub struct NumberBaselines {
    /// Always the mean of the training set.
    pub mean: NumberErrors,
    /// The label before: that of the row or window before in the sequence. With one label a
    /// sequence, that of the held-out sequence before, if they are in the order of time. Labels
    /// without one before do not count; `None` if none has one.
    pub last: Option<NumberErrors>,
    /// The loss of the mean.
    pub loss: f64,
}

/// What is known about the labels before those of the validation set.
#[derive(Clone, Copy, Debug)]
pub struct LabelOrder {
    /// The label before the first one.
    pub last_before: Option<f64>,
    /// True if the sequences are in the order of time.
    pub is_latest: bool,
}

impl MajorityBaseline {
    pub fn new(task: SequenceTask<'_>, train: &ExampleSet, valid: &ExampleSet) -> Result<Self> {
        let classes = &task.columns.classes;
        let [trained, held_out] = [train, valid].map(|set| frequencies(task, set));
        let [all, count] = [&trained, &held_out].map(|counts| counts.iter().sum::<usize>());
        ensure!(count > 0, "no sequence that is held out has a label");
        let present = trained.iter().filter(|&&count| count > 0).count();
        ensure!(
            present > 1,
            "the training set has {present} class and needs two; hold out other sequences with another --seed, or fewer \
             with a smaller --holdout"
        );
        let most = (0..classes.len()).rev().max_by_key(|&class| trained[class]);
        let most = most.expect("there are two classes or more");
        let frequency = |class: usize| (trained[class] + 1) as f64 / (all + classes.len()) as f64;
        let loss =
            held_out.iter().enumerate().map(|(class, &n)| -(n as f64) * frequency(class).ln());
        Ok(Self {
            class: classes[most].clone(),
            accuracy: held_out[most] as f64 / count as f64,
            loss: loss.sum::<f64>() / count as f64,
        })
    }
}

/// Counts each class.
fn frequencies(task: SequenceTask<'_>, set: &ExampleSet) -> Vec<usize> {
    let mut counts = vec![0; task.columns.classes.len()];
    for label in set.labels(task.per).into_iter().flatten() {
        if let Label::Class(class) = label {
            counts[class] += 1;
        }
    }
    counts
}

impl NumberBaselines {
    /// Computes the errors of the labels of `valid`, which have this scale.
    pub fn new(
        numeric: &NumericLabel,
        task: SequenceTask<'_>,
        valid: &ExampleSet,
        LabelOrder { last_before, is_latest }: LabelOrder,
    ) -> Result<Self> {
        let number = |label: &Label| match label {
            Label::Number(scaled) => numeric.label(*scaled),
            Label::Class(_) => unreachable!("the labels are numbers"),
        };
        let mut sequences = valid.labels(task.per);
        if !task.has_several() && is_latest {
            // With one label a sequence, the label before is that of another sequence.
            sequences = vec![sequences.concat()];
        }
        let sequences: Vec<Vec<f64>> =
            sequences.iter().map(|labels| labels.iter().map(number).collect()).collect();
        let all = || sequences.iter().flatten().copied();
        ensure!(
            all().next().is_some(),
            "nothing that is held out has a label; hold out more with --holdout, or name another file with --valid"
        );
        let mean = numeric.mean;
        let mut first = last_before;
        let before: Vec<_> = sequences
            .iter()
            .flat_map(|labels| {
                let all: Vec<_> = first.take().into_iter().chain(labels.iter().copied()).collect();
                all.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
            })
            .collect();
        let last = (!before.is_empty()).then(|| NumberErrors::of(before));
        let of_mean = NumberErrors::of(all().map(|label| (mean, label)));
        let loss = (of_mean.rmse / numeric.deviation).powi(2);
        Ok(Self { mean: of_mean, last, loss })
    }
}

#[cfg(test)]
mod tests {
    use gru_wgpu::{Example, Target};
    use ndarray::Array2;

    use super::*;
    use crate::data::features::{LabelColumns, Per, Task};

    #[test]
    fn the_label_before_stays_in_its_sequence() {
        let numeric = NumericLabel { per: Per::Row, mean: 10.0, deviation: 2.0 };
        let columns = LabelColumns {
            sequence: None,
            label: "y".to_owned(),
            classes: vec![],
            numeric: Some(numeric),
        };
        let baselines = |per, valid: Vec<Example>, last_before, is_latest| {
            let task = SequenceTask { task: Task::Regress, columns: &columns, per, windows: None };
            let order = LabelOrder { last_before, is_latest };
            NumberBaselines::new(&numeric, task, &ExampleSet::Whole(valid), order).unwrap()
        };
        let rows = |numbers: &[f32]| {
            let scaled =
                Array2::from_shape_fn((numbers.len(), 1), |(t, _)| (numbers[t] - 10.0) / 2.0);
            Example::new(Array2::zeros((numbers.len(), 1)), Target::Series(scaled))
        };
        let valid = || vec![rows(&[10.0, 13.0, 13.0]), rows(&[8.0, 12.0])];
        let NumberBaselines { mean, last, loss } = baselines(Per::Row, valid(), None, false);
        assert_eq!(mean.mae, (0.0 + 3.0 + 3.0 + 2.0 + 2.0) / 5.0);
        assert_eq!(last.unwrap().mae, (3.0 + 0.0 + 4.0) / 3.0);
        assert!((loss - (9.0 + 9.0 + 4.0 + 4.0) / 5.0 / 4.0).abs() < 1e-12);
        // The end of a recording is held out: the row before its first is known.
        let NumberBaselines { last, .. } = baselines(Per::Row, valid(), Some(9.0), true);
        assert_eq!(last.unwrap().mae, (1.0 + 3.0 + 0.0 + 4.0) / 4.0);
        let one = |number: f32| {
            Example::new(Array2::zeros((2, 1)), Target::Values(vec![(number - 10.0) / 2.0]))
        };
        let valid = || vec![one(9.0), one(12.0), one(12.0)];
        let NumberBaselines { last, .. } = baselines(Per::Sequence, valid(), None, true);
        assert_eq!(last.unwrap().mae, (3.0 + 0.0) / 2.0);
        // Drawn sequences have no order.
        let NumberBaselines { last, .. } = baselines(Per::Sequence, valid(), None, false);
        assert_eq!(last, None);
    }
}
