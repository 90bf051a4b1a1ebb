//! The commands of the program, one file or folder each.

pub mod bench;
pub mod check;
pub mod convert;
pub mod forecast;
pub mod grad;
pub mod info;
pub mod predict;
pub mod run;
pub mod train;
mod training_run;

use std::path::Path;

use anyhow::{Result, bail};
use clap::{Args, Command};
use gru_wgpu::{Dataset, TargetArray, TrainingBatch};

use training_run::TrainingRun;

/// Reads a table as `gru train` or `gru forecast` does. Returns the inputs and the numeric targets
/// of the first and the last training example.
pub fn read_table(command: &str, table: &Path, arguments: &[String]) -> Result<Vec<f32>> {
    match command {
        "train" => ends(&parse::<train::TrainArgs>(table, arguments)?.start(table)?),
        "forecast" => {
            ends(&parse::<forecast::ForecastArgs>(table, arguments)?.start(table, false)?)
        }
        _ => bail!("expected train or forecast"),
    }
}

fn parse<T: Args>(table: &Path, arguments: &[String]) -> Result<T> {
    let command = T::augment_args(Command::new("gru").no_binary_name(true));
    let table = table.as_os_str().to_owned();
    let arguments = [table].into_iter().chain(arguments.iter().map(Into::into));
    Ok(T::from_arg_matches(&command.try_get_matches_from(arguments)?)?)
}

fn ends(run: &impl TrainingRun) -> Result<Vec<f32>> {
    let examples = run.train();
    let ends = if examples.is_empty() { vec![] } else { vec![0, examples.len() - 1] };
    let batches = ends.into_iter().map(|example| examples.batch(&[example]));
    let mut numbers = Vec::new();
    for batch in batches {
        let TrainingBatch { x, targets, .. } = batch?;
        numbers.extend(x);
        let targets = match targets {
            TargetArray::Masked { targets, .. } => *targets,
            targets => targets,
        };
        if let TargetArray::Values(values) = targets {
            numbers.extend(values);
        }
    }
    Ok(numbers)
}
