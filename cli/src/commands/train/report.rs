//! The report at the end of a run of `gru train`.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use gru_wgpu::{BestNetwork, Device, StopReason};
use indicatif::HumanDuration;
use serde_json::json;

use super::classes::ClassMetrics;
use super::sequences::SequenceRun;
use crate::commands::training_run::Outcome;
use crate::rundir::folder::RunDir;
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
    let classes = ClassMetrics::all(run, &best.params, device)?;
    match format {
        Format::Json => write_json(run, outcome, &best, &classes, folder, device, out)?,
        Format::Table { all_classes } => {
            write_table(run, &best, out)?;
            ClassMetrics::print_table(&classes, all_classes, out)?;
        }
    }
    if outcome.unsaved.is_none() {
        ClassMetrics::write_all(&classes, &folder.classes())?;
    }
    Ok(())
}

fn write_json(
    run: &SequenceRun,
    outcome: &mut Outcome,
    best: &BestNetwork,
    classes: &[ClassMetrics],
    folder: &RunDir,
    device: &Device,
    out: &mut impl Write,
) -> Result<()> {
    let SequenceRun { config, examples, majority } = run;
    let is_early = outcome.ended == StopReason::EarlyStopping;
    let object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": device.to_string(),
        "task": config.task,
        "run": folder.path().to_string_lossy(),
        "sequences": { "train": examples.train.len(), "valid": examples.valid.len() },
        "classes": config.columns.classes,
        "words": config.words().collect::<BTreeMap<_, _>>(),
        "parameters": config.layout()?.parameter_count(),
        "epochs": outcome.trainer.progress().epoch,
        "updates": outcome.trainer.learner().updates(),
        "ended": if is_early { "early" } else { "whole" },
        "seconds": outcome.seconds,
        "best_epoch": best.epoch + 1,
        "accuracy": best.validation.accuracy(),
        "loss": best.validation.loss,
        "per_class": classes,
        "majority": {
            "class": majority.class,
            "accuracy": majority.accuracy,
            "loss": majority.loss,
        },
    });
    writeln!(out, "{object}")?;
    Ok(())
}

/// Prints the network's accuracy and loss beside those of the baseline.
fn write_table(run: &SequenceRun, best: &BestNetwork, out: &mut impl Write) -> Result<()> {
    let (count, sequences) = (best.validation.counted, run.examples.valid.len());
    writeln!(out, "held out: {sequences} sequences, {count} labels")?;
    let header = ["", "accuracy", "loss"].map(str::to_owned).to_vec();
    let mut table = TextTable::new(header);
    let mut row = |name: String, accuracy: f64, loss: f64| {
        table.row(vec![name, format!("{accuracy:.4}"), format!("{loss:.4}")]);
    };
    let accuracy = best.validation.accuracy().unwrap_or(f64::NAN);
    row(format!("GRU after epoch {}", best.epoch + 1), accuracy, best.validation.loss);
    let majority = &run.majority;
    let name = format!("most frequent class, {}", quote(&majority.class));
    row(name, majority.accuracy, majority.loss);
    write!(out, "{table}")?;
    Ok(())
}
