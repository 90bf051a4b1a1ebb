//! `metrics.csv` of a run: one row per epoch.

use std::path::Path;

use anyhow::{Context, Result};

use crate::ui::files::write_file;
use crate::ui::output::{log, quote_path};

/// The row of one epoch in `metrics.csv`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EpochMetrics {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Updates since the start of the run.
    pub updates: u64,
    /// Learning rate of the last update.
    pub learning_rate: f64,
    pub train_loss: f32,
    pub valid_loss: f64,
    /// `None` if the targets are not classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// Seconds of training since the start of the run.
    pub seconds: f64,
}

impl EpochMetrics {
    pub fn write_all(epochs: &[Self], path: &Path) -> Result<()> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        epochs.iter().try_for_each(|epoch| csv.serialize(epoch))?;
        let csv = csv.into_inner().context("cannot write the metrics as CSV")?;
        write_file(path, &csv)
    }

    /// Returns the number of finished epochs in the file, or 0 if the file is missing.
    pub fn count(path: &Path) -> usize {
        let Ok(mut csv) = csv::ReaderBuilder::new().flexible(true).from_path(path) else {
            return 0;
        };
        csv.deserialize::<Self>().flatten().map(|row| row.epoch).max().unwrap_or(0)
    }

    /// Reads the rows of the first `count` epochs. Logs a note if some of them are missing; the run
    /// continues without them.
    pub fn read(path: &Path, count: usize) -> Vec<Self> {
        let mut epochs: Vec<Self> = Vec::new();
        if let Ok(mut csv) = csv::ReaderBuilder::new().flexible(true).from_path(path) {
            for epoch in csv.deserialize::<Self>().flatten() {
                let next = epochs.last().map_or(1, |last| last.epoch + 1);
                if (next..=count).contains(&epoch.epoch) {
                    epochs.push(epoch);
                }
            }
        }
        if epochs.len() < count {
            log(format_args!(
                "{} has only {} of the {count} finished epochs; the others are missing from its curves",
                quote_path(path),
                epochs.len()
            ));
        }
        epochs
    }
}
