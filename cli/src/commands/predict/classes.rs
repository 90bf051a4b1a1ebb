//! Predictions that are classes: the file, and the accuracy.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use ndarray::ArrayView1;

use super::table::PredictedTable;
use crate::commands::train::classes::argmax;
use crate::data::predictor::SequenceOutputs;
use crate::ui::output::{log, quote, some_of};

/// The predictions for a sequence.
pub struct SequenceClasses<'a> {
    rows: &'a [usize],
    classes: Vec<PredictedClass>,
}

struct PredictedClass {
    /// The most probable class, or the first of several.
    class: usize,
    /// The probability of each class.
    probabilities: Vec<f64>,
}

impl<'a> SequenceClasses<'a> {
    pub fn of(SequenceOutputs { rows, outputs }: &'a SequenceOutputs) -> Self {
        Self { rows, classes: outputs.rows().into_iter().map(PredictedClass::of).collect() }
    }
}

impl PredictedClass {
    /// Computes probabilities by softmax.
    fn of(row: ArrayView1<'_, f32>) -> Self {
        let class = argmax(row);
        let exponentials = row.iter().map(|&output| f64::from(output - row[class]).exp());
        let mut probabilities: Vec<_> = exponentials.collect();
        let sum: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|probability| *probability /= sum);
        Self { class, probabilities }
    }
}

/// How many labels of a file the predictions match.
#[derive(Default)]
struct LabelCounts<'a> {
    right: usize,
    all: usize,
    /// Labels that are no class of the run, and how often each occurs.
    unseen: BTreeMap<&'a str, usize>,
    /// With one prediction per sequence, the sequences with several labels. They are not counted.
    changing: Vec<&'a Range<usize>>,
}

impl PredictedTable<'_> {
    pub fn classes_to_csv(
        &self,
        predictions: &[SequenceClasses<'_>],
        with_all: bool,
    ) -> Result<Vec<u8>> {
        let classes = &self.config.columns.classes;
        let mut header = ["predicted", "probability"].map(str::to_owned).to_vec();
        if with_all {
            header.extend(classes.iter().map(|class| format!("probability:{class}")));
        }
        let sequences = predictions.iter().map(|of| (of.rows, &of.classes));
        self.to_csv(header, sequences, |predictions, at| {
            let PredictedClass { class, probabilities } = &predictions[at];
            let all = if with_all { &probabilities[..] } else { &[] };
            let probabilities = [probabilities[*class]].into_iter().chain(all.iter().copied());
            let probabilities = probabilities.map(|probability| format!("{probability:.6}"));
            std::iter::once(classes[*class].clone()).chain(probabilities).collect()
        })
    }

    /// Counts the labels of the file. A label that training did not see counts as wrong.
    fn count_labels(&self, predictions: &[SequenceClasses<'_>]) -> LabelCounts<'_> {
        let classes = &self.config.columns.classes;
        let mut counts = LabelCounts::default();
        let Some(reader) = &self.labels else { return counts };
        for (sequence, SequenceClasses { rows, classes: predicted }) in
            self.table.sequences.iter().zip(predictions)
        {
            let Ok(labels) = reader.cells(sequence) else {
                counts.changing.push(sequence);
                continue;
            };
            let label = |&row: &usize| if labels.len() == 1 { labels[0] } else { labels[row] };
            let labelled = rows.iter().map(label).zip(predicted);
            for (label, prediction) in labelled.filter(|(label, _)| !label.is_empty()) {
                counts.all += 1;
                counts.right += usize::from(classes[prediction.class] == label);
                if !classes.iter().any(|class| class == label) {
                    *counts.unseen.entry(label).or_default() += 1;
                }
            }
        }
        counts
    }

    /// If the file has labels, prints the accuracy.
    pub fn report_accuracy(&self, predictions: &[SequenceClasses<'_>]) -> Result<()> {
        let (shown, name) = (&self.table.shown, quote(&self.config.columns.label));
        let LabelCounts { right, all, unseen, changing } = self.count_labels(predictions);
        if !changing.is_empty() {
            let names = some_of(changing.iter().map(|sequence| quote(self.table.name(sequence))));
            log(format_args!(
                "{shown}: the label in column {name} changes inside sequences {names}; the accuracy leaves them out"
            ));
        }
        let count: usize = unseen.values().sum();
        let words = some_of(unseen.keys().map(|word| quote(word)));
        if count > 0 && count == all {
            let classes = some_of(self.config.columns.classes.iter().map(|class| quote(class)));
            log(format_args!(
                "{shown}: no label in column {name} is a class of the run, so there is no accuracy; the labels are \
                 {words}, the classes {classes}"
            ));
            return Ok(());
        }
        if count > 0 {
            log(format_args!(
                "{shown}: {count} of {all} labels in column {name} are no class of the run and count as wrong: {words}"
            ));
        }
        if all > 0 {
            let accuracy = f64::from(u32::try_from(right)?) / f64::from(u32::try_from(all)?);
            log(format_args!("accuracy {accuracy:.4}: {right} of {all} labels in column {name}"));
        }
        Ok(())
    }
}
