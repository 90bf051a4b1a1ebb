//! The metrics of each class: `classes.csv`, and the table at the end of a run.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use gru_wgpu::{Device, Network, Params};
use ndarray::ArrayView1;
use serde::Serialize;

use super::sequences::SequenceRun;
use crate::data::example_set::Label;
use crate::ui::files::write_file;
use crate::ui::output::{TextTable, quote};

/// The largest classes that the table shows by default.
const LARGEST_SHOWN: usize = 10;

/// The classes with the lowest recall that the table shows in addition.
const WORST_SHOWN: usize = 3;

/// The metrics of a class on the validation set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassMetrics {
    class: String,
    /// Labels of the class.
    count: usize,
    /// Correctly predicted labels.
    correct: usize,
    /// correct / predictions of the class, if there are any.
    precision: Option<f64>,
    /// correct / count, if there are labels.
    recall: Option<f64>,
}

impl ClassMetrics {
    /// Returns the metrics of every class, sorted by name.
    pub fn all(run: &SequenceRun, params: &Params, device: &Device) -> Result<Vec<Self>> {
        let names = &run.config.columns.classes;
        let (mut count, mut predicted, mut correct) =
            (vec![0; names.len()], vec![0; names.len()], vec![0; names.len()]);
        let (network, predictor) = (Network::new(params.clone(), device)?, run.config.predictor());
        run.examples.valid.for_each_output(&network, predictor, |label, outputs| {
            let Label::Class(target) = label else { return };
            let class = argmax(outputs);
            count[target] += 1;
            predicted[class] += 1;
            correct[class] += usize::from(class == target);
        })?;
        let fraction = |part: usize, all: usize| (all > 0).then(|| part as f64 / all as f64);
        let class = |(at, name): (usize, &String)| Self {
            class: name.clone(),
            count: count[at],
            correct: correct[at],
            precision: fraction(correct[at], predicted[at]),
            recall: fraction(correct[at], count[at]),
        };
        Ok(names.iter().enumerate().map(class).collect())
    }

    pub fn write_all(classes: &[Self], path: &Path) -> Result<()> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        classes.iter().try_for_each(|class| csv.serialize(class))?;
        let csv = csv.into_inner().map_err(|error| error.into_error())?;
        write_file(path, &csv)
    }

    /// Prints the ten largest classes and the three of the others with the lowest recall, or with
    /// `all` every class.
    pub fn print_table(classes: &[Self], all: bool, out: &mut impl Write) -> Result<()> {
        let (largest, worst) =
            if all { (classes.iter().collect(), vec![]) } else { select(classes) };
        let mut table = TextTable::new(
            ["class", "labels", "correct", "precision", "recall"].map(str::to_owned).into(),
        );
        let format = |fraction: Option<f64>| {
            fraction.map_or_else(|| "–".to_owned(), |fraction| format!("{fraction:.4}"))
        };
        for Self { class, count, correct, precision, recall } in largest.iter().chain(&worst) {
            let [count, correct] = [count, correct].map(usize::to_string);
            table.row(vec![quote(class), count, correct, format(*precision), format(*recall)]);
        }
        write!(out, "\n{table}")?;
        let left_out = classes.len() - largest.len() - worst.len();
        if left_out > 0 {
            let worst = match worst.len() {
                0 => String::new(),
                worst => format!(" and the worst {worst} of the others"),
            };
            let largest = largest.len();
            writeln!(
                out,
                "the {largest} largest classes{worst}; {left_out} more with --verbose and in classes.csv"
            )?;
        }
        Ok(())
    }
}

/// Returns the largest classes, and of the others those with the lowest recall. Classes without
/// labels have no recall.
fn select(classes: &[ClassMetrics]) -> (Vec<&ClassMetrics>, Vec<&ClassMetrics>) {
    let mut sorted: Vec<_> = classes.iter().collect();
    if sorted.len() <= LARGEST_SHOWN + WORST_SHOWN {
        return (sorted, vec![]);
    }
    sorted.sort_by_key(|class| std::cmp::Reverse(class.count));
    let mut worst = sorted.split_off(LARGEST_SHOWN);
    worst.retain(|class| class.recall.is_some());
    worst.sort_by(|a, b| a.recall.partial_cmp(&b.recall).expect("recall is finite"));
    worst.truncate(WORST_SHOWN);
    (sorted, worst)
}

/// Returns the most probable class of a row of outputs, or the first of several.
pub fn argmax(outputs: ArrayView1<'_, f32>) -> usize {
    let mut class = 0;
    for (at, &output) in outputs.iter().enumerate() {
        if output > outputs[class] {
            class = at;
        }
    }
    class
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` labels each; class `i` has a recall of (i mod 7) / 7.
    fn classes(counts: impl Iterator<Item = usize>) -> Vec<ClassMetrics> {
        let class = |(i, count): (usize, usize)| ClassMetrics {
            class: format!("c{i:02}"),
            count,
            correct: 0,
            precision: None,
            recall: (count > 0).then(|| (i % 7) as f64 / 7.0),
        };
        counts.enumerate().map(class).collect()
    }

    fn printed(classes: &[ClassMetrics], all: bool) -> Vec<String> {
        let mut out = Vec::new();
        ClassMetrics::print_table(classes, all, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows = text.lines().filter_map(|line| line.trim().strip_prefix('`'));
        rows.map(|row| row[..3].to_owned()).collect()
    }

    #[test]
    fn few_classes_are_all_shown() {
        let classes = classes((0..13).map(|i| 20 - i));
        assert_eq!(printed(&classes, false).len(), 13);
    }

    #[test]
    fn of_many_classes_the_largest_and_the_worst_are_shown() {
        // Classes 10 and later are smaller; the last has no labels, so no recall.
        let classes = classes((0..24).map(|i| 23 - i));
        let shown = printed(&classes, false);
        let largest = ["c00", "c01", "c02", "c03", "c04", "c05", "c06", "c07", "c08", "c09"];
        assert_eq!(shown[..10], largest);
        assert_eq!(shown[10..], ["c14", "c21", "c15"]); // recall 0, 0, 1/7
        assert_eq!(printed(&classes, true).len(), 24);
    }

    #[test]
    fn the_table_says_what_it_leaves_out() {
        let mut out = Vec::new();
        ClassMetrics::print_table(&classes((0..24).map(|i| 24 - i)), false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with(
            "the 10 largest classes and the worst 3 of the others; 11 more with --verbose and in classes.csv\n"
        ));
    }
}
