//! The report at the end of a run of `gru train`.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use gru_wgpu::{BestNetwork, Device, Network, Params, StopReason};
use indicatif::HumanDuration;
use serde_json::{Value, json};

use super::baselines::{Baselines, MajorityBaseline, NumberBaselines};
use super::classes::ClassMetrics;
use super::sequences::SequenceRun;
use crate::commands::training_run::Outcome;
use crate::data::errors::NumberErrors;
use crate::data::example_set::Label;
use crate::rundir::folder::RunDir;
use crate::ui::numbers::format_sig3;
use crate::ui::output::{TextTable, log, quote, quote_path};

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    Json,
    /// Tables with some of the classes, or with all.
    Table {
        all_classes: bool,
    },
}

impl Format {
    pub fn new(json: bool, verbose: bool) -> Self {
        if json { Self::Json } else { Self::Table { all_classes: verbose } }
    }
}

/// Prints tables, or one JSON object, and writes classes.csv.
pub fn report(
    run: &SequenceRun,
    outcome: &mut Outcome,
    folder: &RunDir,
    device: &Device,
    format: Format,
    out: &mut impl Write,
) -> Result<()> {
    let (epochs, all) = (outcome.trainer.progress().epoch, outcome.trainer.config().epochs);
    let time = HumanDuration(std::time::Duration::from_secs_f64(outcome.seconds));
    let kept = match outcome.unsaved {
        None => format!("; all files are in {}", quote_path(folder.path())),
        Some(_) => String::new(),
    };
    let early = if outcome.ended == StopReason::EarlyStopping { ", ended early" } else { "" };
    log(format_args!("trained in {time}, {epochs} of {all} epochs{early}{kept}"));
    let best = outcome.trainer.best().cloned().context("no epoch is over")?;
    match &run.baselines {
        Baselines::Classes(majority) => {
            let classes = ClassMetrics::all(run, &best.params, device)?;
            match format {
                Format::Json => {
                    let results = class_results(run, &best, &classes, majority);
                    write_json(run, outcome, &best, results, folder, device, out)?;
                }
                Format::Table { all_classes } => {
                    write_accuracy(run, &best, majority, out)?;
                    ClassMetrics::print_table(&classes, all_classes, out)?;
                }
            }
            if outcome.unsaved.is_none() {
                ClassMetrics::write_all(&classes, &folder.classes())?;
            }
        }
        Baselines::Numbers(baselines) => {
            let errors = number_errors(run, &best.params, device)?;
            match format {
                Format::Json => {
                    let results = number_results(run, &errors, baselines);
                    write_json(run, outcome, &best, results, folder, device, out)?;
                }
                Format::Table { .. } => write_errors(run, &best, &errors, baselines, out)?,
            }
        }
    }
    Ok(())
}

/// Prints the values that every run has, and `results`.
fn write_json(
    run: &SequenceRun,
    outcome: &mut Outcome,
    best: &BestNetwork,
    results: Value,
    folder: &RunDir,
    device: &Device,
    out: &mut impl Write,
) -> Result<()> {
    let SequenceRun { config, examples, .. } = run;
    let is_early = outcome.ended == StopReason::EarlyStopping;
    let [train, valid] = [&examples.train, &examples.valid].map(|set| set.sequences().len());
    let mut object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": device.to_string(),
        "task": config.task,
        "run": folder.path().to_string_lossy(),
        "sequences": { "train": train, "valid": valid },
        "words": config.words().collect::<BTreeMap<_, _>>(),
        "parameters": config.layout()?.parameter_count(),
        "epochs": outcome.trainer.progress().epoch,
        "updates": outcome.trainer.learner().updates(),
        "ended": if is_early { "early" } else { "whole" },
        "seconds": outcome.seconds,
        "best_epoch": best.epoch + 1,
        "loss": best.validation.loss,
    });
    let (Value::Object(all), Value::Object(results)) = (&mut object, results) else {
        unreachable!("both are objects")
    };
    all.extend(results);
    writeln!(out, "{object}")?;
    Ok(())
}

fn class_results(
    run: &SequenceRun,
    best: &BestNetwork,
    classes: &[ClassMetrics],
    majority: &MajorityBaseline,
) -> Value {
    json!({
        "classes": run.config.columns.classes,
        "accuracy": best.validation.accuracy(),
        "per_class": classes,
        "majority": {
            "class": majority.class,
            "accuracy": majority.accuracy,
            "loss": majority.loss,
        },
    })
}

fn number_results(run: &SequenceRun, errors: &NumberErrors, baselines: &NumberBaselines) -> Value {
    json!({
        "per": run.config.task_of_sequences().per,
        "rmse": errors.rmse,
        "mae": errors.mae,
        "baselines": { "last": baselines.last, "mean": baselines.mean },
    })
}

/// Returns the network's errors on the validation set.
fn number_errors(run: &SequenceRun, params: &Params, device: &Device) -> Result<NumberErrors> {
    let numeric = run.config.columns.numeric.context("the labels are numbers")?;
    let (network, predictor) = (Network::new(params.clone(), device)?, run.config.predictor());
    let mut pairs = Vec::new();
    run.examples.valid.for_each_output(&network, predictor, |label, outputs| {
        if let Label::Number(scaled) = label {
            pairs.push((numeric.label(outputs[0]), numeric.label(scaled)));
        }
    })?;
    Ok(NumberErrors::of(pairs))
}

fn write_held_out(run: &SequenceRun, best: &BestNetwork, out: &mut impl Write) -> Result<()> {
    let (count, sequences) = (best.validation.counted, run.examples.valid.sequences().len());
    let plural = if sequences == 1 { "" } else { "s" };
    writeln!(out, "held out: {sequences} sequence{plural}, {count} labels")?;
    Ok(())
}

/// Prints the network's accuracy and loss beside those of the baseline.
fn write_accuracy(
    run: &SequenceRun,
    best: &BestNetwork,
    majority: &MajorityBaseline,
    out: &mut impl Write,
) -> Result<()> {
    write_held_out(run, best, out)?;
    let header = ["", "accuracy", "loss"].map(str::to_owned).to_vec();
    let mut table = TextTable::new(header);
    let mut row = |name: String, accuracy: f64, loss: f64| {
        table.row(vec![name, format!("{accuracy:.4}"), format!("{loss:.4}")]);
    };
    let accuracy = best.validation.accuracy().unwrap_or(f64::NAN);
    row(format!("GRU after epoch {}", best.epoch + 1), accuracy, best.validation.loss);
    let name = format!("most frequent class, {}", quote(&majority.class));
    row(name, majority.accuracy, majority.loss);
    write!(out, "{table}")?;
    Ok(())
}

/// Prints the network's errors beside those of the baselines, in the unit of the labels.
fn write_errors(
    run: &SequenceRun,
    best: &BestNetwork,
    errors: &NumberErrors,
    baselines: &NumberBaselines,
    out: &mut impl Write,
) -> Result<()> {
    write_held_out(run, best, out)?;
    let label = quote(&run.config.columns.label);
    writeln!(out, "root mean squared and mean absolute error, in the unit of {label}")?;
    let mut table = TextTable::new(["", "RMSE", "MAE"].map(str::to_owned).to_vec());
    for (name, errors) in [
        (format!("GRU after epoch {}", best.epoch + 1), Some(errors)),
        ("the label before".to_owned(), baselines.last.as_ref()),
        ("mean of the training labels".to_owned(), Some(&baselines.mean)),
    ] {
        let Some(errors) = errors else { continue };
        table.row(vec![name, format_sig3(errors.rmse), format_sig3(errors.mae)]);
    }
    write!(out, "{table}")?;
    Ok(())
}
