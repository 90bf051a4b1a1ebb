//! `metrics.csv` of a run: a row an epoch.

use std::path::Path;

use anyhow::{Context, Result};

use crate::ui::files::write_file;
use crate::ui::output::{log, quote_path};

/// An epoch's row in `metrics.csv`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EpochMetrics {
    /// From 1.
    pub epoch: usize,
    /// Since the start.
    pub updates: u64,
    /// Of the last of them.
    pub learning_rate: f64,
    pub train_loss: f32,
    pub valid_loss: f64,
    /// Where there are classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// Of training, since the start.
    pub seconds: f64,
}

impl EpochMetrics {
    pub fn write_all(epochs: &[Self], path: &Path) -> Result<()> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        epochs.iter().try_for_each(|epoch| csv.serialize(epoch))?;
        let csv = csv.into_inner().context("the metrics do not go into a file")?;
        write_file(path, &csv)
    }

    /// How many epochs are over by the file: 0 where it is missing.
    pub fn count(path: &Path) -> usize {
        let Ok(mut csv) = csv::ReaderBuilder::new().flexible(true).from_path(path) else {
            return 0;
        };
        csv.deserialize::<Self>().flatten().map(|row| row.epoch).max().unwrap_or(0)
    }

    /// Those of the first `count` epochs, as far as the file still has them. A run goes on without
    /// the others, and says so.
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
                "{} has {} of the {count} epochs that are over; it goes on without the others",
                quote_path(path),
                epochs.len()
            ));
        }
        epochs
    }
}
