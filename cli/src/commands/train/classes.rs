//! How a network does on each class: `classes.csv`, and the table at the end of a run.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use gru_wgpu::{Device, Network, Params, Target};
use ndarray::ArrayView1;
use serde::Serialize;

use super::job::Job;
use crate::ui::files::write_file;
use crate::ui::output::{TextTable, quote};

/// Classes of a table on a terminal.
const MOST_SHOWN: usize = 40;

/// How a network does on a class of the held-out part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class {
    class: String,
    /// Labels of it.
    count: usize,
    /// How many of them the network says, too.
    correct: usize,
    /// The share that is right of what it says is of the class, if there is any.
    precision: Option<f64>,
    /// The share of the labels that it says, if there is any.
    recall: Option<f64>,
}

impl Class {
    /// Each of the classes, sorted by their words.
    pub fn all(job: &Job, params: &Params, device: &Device) -> Result<Vec<Self>> {
        let names = &job.config.columns.classes;
        let (mut count, mut said, mut correct) =
            (vec![0; names.len()], vec![0; names.len()], vec![0; names.len()]);
        let (network, batch) = (Network::new(params.clone(), device)?, job.config.training.batch);
        for examples in job.valid.chunks(batch) {
            let inputs: Vec<_> = examples.iter().map(|example| example.x.clone()).collect();
            let outputs = network.forward_each(&inputs, batch)?;
            for (example, outputs) in examples.iter().zip(&outputs) {
                let targets = match &example.target {
                    Target::Class(class) => std::slice::from_ref(class),
                    Target::Classes(classes) => &classes[..],
                    _ => unreachable!("tables have classes"),
                };
                for (&target, row) in targets.iter().zip(outputs.rows()) {
                    // A row without a label counts nowhere.
                    let Ok(target) = usize::try_from(target) else { continue };
                    let class = most_probable(row);
                    count[target] += 1;
                    said[class] += 1;
                    correct[class] += usize::from(class == target);
                }
            }
        }
        let share = |part: usize, all: usize| (all > 0).then(|| part as f64 / all as f64);
        let class = |(at, name): (usize, &String)| Self {
            class: name.clone(),
            count: count[at],
            correct: correct[at],
            precision: share(correct[at], said[at]),
            recall: share(correct[at], count[at]),
        };
        Ok(names.iter().enumerate().map(class).collect())
    }

    pub fn write_all(classes: &[Self], path: &Path) -> Result<()> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        classes.iter().try_for_each(|class| csv.serialize(class))?;
        let csv = csv.into_inner().map_err(|error| error.into_error())?;
        write_file(path, &csv)
    }

    /// Prints them, of many those that come most.
    pub fn print_all(classes: &[Self], out: &mut impl Write) -> Result<()> {
        let mut shown: Vec<_> = classes.iter().collect();
        if classes.len() > MOST_SHOWN {
            shown.sort_by_key(|class| std::cmp::Reverse(class.count));
            shown.truncate(MOST_SHOWN);
        }
        let mut table = TextTable::new(
            ["class", "labels", "correct", "precision", "recall"].map(str::to_owned).into(),
        );
        let figure = |share: Option<f64>| {
            share.map_or_else(|| "–".to_owned(), |share| format!("{share:.4}"))
        };
        for Self { class, count, correct, precision, recall } in shown {
            let [count, correct] = [count, correct].map(usize::to_string);
            table.row(vec![quote(class), count, correct, figure(*precision), figure(*recall)]);
        }
        write!(out, "\n{table}")?;
        if classes.len() > MOST_SHOWN {
            writeln!(out, "and {} more, in classes.csv", classes.len() - MOST_SHOWN)?;
        }
        Ok(())
    }
}

/// The most probable class by a row of outputs, the first of several.
pub fn most_probable(outputs: ArrayView1<'_, f32>) -> usize {
    let mut class = 0;
    for (at, &output) in outputs.iter().enumerate() {
        if output > outputs[class] {
            class = at;
        }
    }
    class
}
