//! What a run says when it ends.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use gru_wgpu::{Best, Device, StopReason};
use indicatif::HumanDuration;
use serde_json::json;

use super::classes::Class;
use super::job::Job;
use super::runner::Outcome;
use crate::rundir::folder::RunDir;
use crate::rundir::interrupt;
use crate::ui::output::{TextTable, log, quote, quote_path};

impl Outcome {
    /// Prints a table, or one JSON object; of a run that was interrupted, how it goes on.
    pub fn report(
        &self,
        job: &Job,
        folder: &RunDir,
        device: &Device,
        json: bool,
        out: &mut impl Write,
    ) -> Result<ExitCode> {
        let (epochs, all) = (self.epochs, job.config.training.epochs);
        if self.ended == StopReason::Requested {
            let saved = self.unsaved.is_none().then_some(folder);
            return Ok(interrupt::told("gru train", saved, self.updates, (epochs, all)));
        }
        let time = HumanDuration(std::time::Duration::from_secs_f64(self.seconds));
        let kept = match self.unsaved {
            None => format!("; all is in {}", quote_path(folder.path())),
            Some(_) => String::new(),
        };
        let early = if self.ended == StopReason::EarlyStopping { ", ended early" } else { "" };
        log(format_args!("trained in {time}, {epochs} of {all} epochs{early}{kept}"));
        let best = self.best.as_ref().context("no epoch is over")?;
        let classes = Class::all(job, &best.params, device)?;
        match json {
            true => self.write_json(job, best, &classes, folder, device, out)?,
            false => {
                write_table(job, best, out)?;
                Class::print_all(&classes, out)?;
            }
        }
        if self.unsaved.is_none() {
            Class::write_all(&classes, &folder.classes())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn write_json(
        &self,
        job: &Job,
        best: &Best,
        classes: &[Class],
        folder: &RunDir,
        device: &Device,
        out: &mut impl Write,
    ) -> Result<()> {
        let majority = &job.majority;
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": device.to_string(),
            "task": job.config.task,
            "run": folder.path().to_string_lossy(),
            "sequences": { "train": job.train.len(), "valid": job.valid.len() },
            "classes": job.config.columns.classes,
            "words": job.config.words().collect::<BTreeMap<_, _>>(),
            "parameters": job.config.layout()?.parameter_count(),
            "epochs": self.epochs,
            "updates": self.updates,
            "ended": if self.ended == StopReason::EarlyStopping { "early" } else { "whole" },
            "seconds": self.seconds,
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
}

/// How the network does beside one that knows but the frequencies.
fn write_table(job: &Job, best: &Best, out: &mut impl Write) -> Result<()> {
    let (count, sequences) = (best.validation.counted, job.valid.len());
    writeln!(out, "held out: {sequences} sequences, {count} labels")?;
    let header = ["", "accuracy", "loss"].map(str::to_owned).to_vec();
    let mut table = TextTable::new(header);
    let mut row = |name: String, accuracy: f64, loss: f64| {
        table.row(vec![name, format!("{accuracy:.4}"), format!("{loss:.4}")]);
    };
    let accuracy = best.validation.accuracy().unwrap_or(f64::NAN);
    row(format!("GRU after epoch {}", best.epoch + 1), accuracy, best.validation.loss);
    let majority = &job.majority;
    let name = format!("most frequent class, {}", quote(&majority.class));
    row(name, majority.accuracy, majority.loss);
    write!(out, "{table}")?;
    Ok(())
}
