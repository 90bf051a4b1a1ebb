//! `gru predict`: predicts with a trained run, on new sequences or after the end of a series.

mod classes;
mod numbers;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use gru_wgpu::{DeviceKind, Network};

use crate::commands::forecast;
use crate::commands::train::config::TrainConfig;
use crate::commands::train::sequences::SequenceRun;
use crate::commands::training_run::TrainingRun;
use crate::data::labels::LabelReader;
use crate::data::predictor::SequenceOutputs;
use crate::data::table::{CellAdvice, SequenceTable};
use crate::rundir::config::{self, RunConfig};
use crate::rundir::folder::RunDir;
use crate::ui::device::open;
use crate::ui::files::write_file;
use crate::ui::output::{log, quote, quote_path};
use crate::ui::outputs::OutputFiles;
use classes::SequenceClasses;
use table::PredictedTable;

/// Predict with a model trained by `gru train` or `gru forecast`.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct PredictArgs {
    /// The run's folder.
    #[arg(value_name = "FOLDER")]
    run: PathBuf,
    /// The CSV file with the sequences, or with the series.
    csv: PathBuf,
    #[arg(long)]
    output: Option<PathBuf>,
    #[arg(long)]
    probabilities: bool,
}

const EXAMPLES: &str = "\
Examples:
  gru predict vowels data/japanese_vowels_test.csv --output speakers.csv
  gru predict phonemes data/phonemes_test.csv --probabilities
  gru predict co2 newer.csv";

const DETAILS: &str = "\
The CSV file needs the columns that the model was trained on, by name in any order, or by number
if the training file had no names. If it also has the label's column, the accuracy or the errors
are printed on stderr. Words that the training set does not have match none of the known ones.

Output columns: the sequence's name; for a prediction per row or per window the step, from 1; the
most probable class; its probability; with --probabilities also probability:CLASS for each class.
For labels that are numbers: the number instead. For a run of `gru forecast --run`: the number of
rows after the file's last row, and the value.";

/// Runs the command.
pub fn run(arguments: &PredictArgs, kind: DeviceKind, out: &mut impl Write) -> Result<()> {
    let PredictArgs { run, csv, output, probabilities } = arguments;
    let outputs = output.iter().map(|output| ("--output", &**output, "csv"));
    let outputs = OutputFiles::check(outputs, [&**csv])?;
    let (folder, shown) = (RunDir::open(run)?, quote_path(run));
    let keeps = "the run keeps";
    folder.files().iter().try_for_each(|file| outputs.check_kept(file, keeps))?;
    if config::is_forecast(&folder.config())? {
        ensure!(
            !probabilities,
            "--probabilities needs a run of `gru train`, but {shown} is a run of `gru forecast`"
        );
        return write_output(
            &forecast::predict::forecast(&folder, csv, &outputs, kind)?,
            output.as_deref(),
            out,
        );
    }
    let config = TrainConfig::read(&folder.config())?;
    config.data.files().try_for_each(|file| outputs.check_kept(file, "the run needs to resume"))?;
    ensure!(
        !probabilities || config.columns.numeric.is_none(),
        "--probabilities needs a run that learned classes, but {shown} learned numbers"
    );
    let params = folder.read_model(SequenceRun::KEPT, config::TRAIN)?;
    folder.check_layout(&params, &config.layout()?)?;
    let table = read_table(csv, &config)?;
    let inputs = table.inputs(&config.features, &table.sequences)?;
    let network = Network::new(params, &open(kind)?)?;
    let outputs = config.predictor().outputs(&network, &inputs)?;
    check_finite(&table, &outputs)?;
    let labels = table.csv.find(&config.columns.label).ok();
    let labels = labels.map(|_| LabelReader::new(&table, config.task_of_sequences()));
    let predicted = PredictedTable { config: &config, table: &table, labels: labels.transpose()? };
    match config.columns.numeric {
        Some(numeric) => {
            write_output(&predicted.numbers_to_csv(&outputs, numeric)?, output.as_deref(), out)?;
            predicted.report_errors(&outputs, numeric)
        }
        None => {
            let classes: Vec<_> = outputs.iter().map(SequenceClasses::of).collect();
            let text = predicted.classes_to_csv(&classes, *probabilities)?;
            write_output(&text, output.as_deref(), out)?;
            predicted.report_accuracy(&classes)
        }
    }
}

/// Reads the sequences to predict, and checks the order of their time stamps if there are any.
fn read_table(csv: &Path, config: &TrainConfig) -> Result<SequenceTable> {
    let sequence = config.columns.sequence.as_deref();
    let table = SequenceTable::read_with(csv, config.data.format.options(), sequence)?;
    let table = table.with_advice(CellAdvice::PREDICT);
    let time = config.data.time.as_deref().filter(|names| table.find_all(names).is_ok());
    if let Some(columns) = time {
        table.time_axis(columns, config.windows.is_some())?;
    }
    Ok(table)
}

/// Checks that the outputs for each sequence are finite.
fn check_finite(table: &SequenceTable, outputs: &[SequenceOutputs]) -> Result<()> {
    let is_bad = |of: &SequenceOutputs| of.outputs.iter().any(|output| !output.is_finite());
    let bad = table.sequences.iter().zip(outputs).find(|(_, outputs)| is_bad(outputs));
    bad.map_or(Ok(()), |(sequence, _)| {
        bail!(
            "the predictions for sequence {} in {} are not finite: the model has diverged, or the sequence is far from \
             those that it was trained on",
            quote(table.name(sequence)),
            table.shown
        )
    })
}

/// Writes to the file, or to stdout.
fn write_output(text: &[u8], output: Option<&Path>, out: &mut impl Write) -> Result<()> {
    match output {
        Some(path) => {
            write_file(path, text)?;
            log(format_args!("wrote {}", quote_path(path)));
        }
        None => out.write_all(text)?,
    }
    Ok(())
}
