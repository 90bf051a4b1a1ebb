//! `gru train`: a GRU that classifies or labels sequences, from a long table.

pub mod classes;
pub mod config;
mod curves;
mod report;
pub mod sequences;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gru_wgpu::DeviceKind;

use super::training_run::{self, RunTarget};
use crate::data::csv_table::CsvOptions;
use crate::data::features::{LabelColumns, Task};
use crate::data::fingerprint::{canonical, fingerprint};
use crate::data::sequences::{SequenceSource, SequenceSplit};
use crate::data::table::SequenceTable;
use crate::rundir::checkpoints::{CheckpointInterval, interval};
use crate::rundir::config::RunConfig;
use crate::rundir::folder::RunDir;
use crate::ui::arguments::{delimiter, fraction, yes_or_no};
use crate::ui::output::quote;
use config::{SequenceModelSettings, TrainConfig, TrainOverrides, TrainSettings};
use sequences::SequenceRun;

/// Train a GRU to classify sequences, or to label each of their rows, from a CSV file.
///
/// The file is a long table: a row a step, the rows of a sequence together and in order. Its first
/// column names the sequence, its last one is the label, what stands between is what the model
/// sees; options name others. Numbers are scaled by the training part's mean and deviation, a
/// column of words becomes an input a word. The run's folder gets config.toml, metrics.csv,
/// curves.svg, checkpoint.safetensors and, of the epoch that did best on what was held out,
/// model.safetensors; at the end classes.csv, how that does on each class. A checkpoint is written
/// after the first epoch, every so often, and at Ctrl-C or SIGTERM, which end the run within a
/// second, or with the update under way where that takes longer.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct TrainArgs {
    /// The CSV file to train on; with --resume only where it has moved.
    #[arg(required_unless_present = "resume")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    columns: SequenceColumnArgs,
    /// Another file, to validate on.
    #[arg(long, value_name = "CSV", conflicts_with = "holdout")]
    valid: Option<PathBuf>,
    #[command(flatten)]
    model: SequenceModelSettings,
    #[command(flatten)]
    settings: TrainSettings,
    #[command(flatten)]
    overrides: TrainOverrides,
    /// The run's folder.
    #[arg(long, value_name = "FOLDER", default_value = "run")]
    run: PathBuf,
    /// Start anew in the folder of another run, whose files are lost.
    #[arg(long)]
    force: bool,
    /// Go on with a run that was interrupted, with its own data and settings: on the same device to
    /// the same bits as if it had not been. Of the settings --epochs, --learning-rate, --clip and
    /// --patience may be others from there on; config.toml notes what they were. Where the data
    /// have moved, the CSV file and --valid say where to.
    #[arg(long, value_name = "FOLDER",
        conflicts_with_all = ["run", "force", "SequenceColumnArgs", "SequenceModelSettings", "TrainSettings"])]
    resume: Option<PathBuf>,
    /// Write a checkpoint after so many updates, or with s, m or h behind it after so much time.
    /// Looked at between updates, about four times a second and after every 16.
    #[arg(long, value_name = "UPDATES|TIME", default_value = "10m", value_parser = interval)]
    checkpoint_every: CheckpointInterval,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is learnt from which columns.
#[derive(clap::Args, Debug)]
struct SequenceColumnArgs {
    /// What is learnt: a class for each sequence (classify) or for each row (label). A row without
    /// a label counts in neither the loss nor the accuracy of label.
    #[arg(long, value_name = "classify|label", value_enum, required_unless_present = "resume")]
    task: Option<Task>,
    /// The share of the sequences held out to validate on: with --task classify of those of each
    /// class.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = fraction)]
    holdout: f64,
    /// The column that names a row's sequence, by its name or its number from 1, as 3 or #3
    /// [default: the first].
    #[arg(long, value_name = "COLUMN")]
    sequence: Option<String>,
    /// The column that is to be said [default: the last]. An empty cell is no label; NA, null or
    /// none is a class like any other.
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// The columns that the model sees [default: all others].
    #[arg(long, value_name = "COLUMN,…")]
    features: Option<String>,
    /// Those of them whose numbers are but names [default: those most of whose cells are no
    /// numbers]. The label's column, too, where many different numbers are classes all the same.
    #[arg(long, value_name = "COLUMN,…")]
    categorical: Option<String>,
    /// Words that mean a missing number, besides an empty cell, NA, N/A, null and none. Where any
    /// are named such cells take their column's mean; otherwise they are refused.
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    missing: Vec<String>,
    /// The character between cells.
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = delimiter)]
    delimiter: u8,
    /// Whether the first row names the columns [default: judged by its looks].
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    header: Option<bool>,
}

const HELP: &str = "Examples:
  gru train data/japanese_vowels_train.csv --task classify --run vowels
  gru predict vowels data/japanese_vowels_test.csv --output speakers.csv
  gru train data/phonemes_train.csv --task label --direction both --epochs 10 --run phonemes
  gru train --resume phonemes
  gru train --resume phonemes --epochs 20 --learning-rate 0.001
  gru train visits.csv --task classify --sequence patient --label outcome --features age,pulse,ward \\
      --categorical ward --valid later.csv --hidden 128 --layers 2 --dropout 0.2 --patience 5

The model is a GRU and a linear head on its last state (classify) or on every state (label):
`gru run FOLDER/model.safetensors` runs the GRU, and PyTorch loads it as a module with an nn.GRU called gru
and an nn.Linear called head.

--json: version, device, task, run, sequences {train, valid}, classes, words {COLUMN: how many}, parameters,
epochs, updates, ended (whole or early), seconds, best_epoch, accuracy, loss, per_class [{class, count, correct,
precision, recall}] of the held-out part, and majority {class, accuracy, loss}: of the class that is most frequent
in the training part, and the loss of the classes' frequencies there. The exit status is 130 after Ctrl-C.";

/// Runs the command.
pub fn run(arguments: &TrainArgs, kind: DeviceKind, out: &mut impl Write) -> Result<ExitCode> {
    let TrainArgs { csv, valid, run, force, resume, checkpoint_every, json, .. } = arguments;
    let (csv, valid) = (csv.as_deref(), valid.as_deref());
    let (target, run) = match (resume, csv) {
        (Some(path), csv) => {
            let read = |folder: &RunDir| read_again(folder, csv, valid);
            RunTarget::resume(path, read, |before| arguments.overrides.apply_to(before))?
        }
        (None, Some(csv)) => {
            let target = RunTarget::new(run, *force, [Some(csv), valid].into_iter().flatten())?;
            (target, arguments.start(csv)?)
        }
        (None, None) => bail!("expected a CSV file or --resume"), // clap has asked for one
    };
    training_run::train(&run, target, *checkpoint_every, kind, |outcome, folder, device| {
        let folder = folder.context("a run of `gru train` has a folder")?;
        report::report(&run, outcome, folder, device, *json, out)
    })
}

/// A run as its folder says, on its files or where they have moved to.
fn read_again(folder: &RunDir, csv: Option<&Path>, valid: Option<&Path>) -> Result<SequenceRun> {
    let mut config = TrainConfig::read(&folder.config())?;
    config.data.set_paths(csv, valid)?;
    folder.check_inputs(config.data.files())?;
    let TrainConfig { task, data, columns, training, .. } = &config;
    let split = SequenceSplit::read(data, *task, columns, training.seed)?;
    SequenceRun::new(config, split)
}

impl TrainArgs {
    /// A new run.
    fn start(&self, csv: &Path) -> Result<SequenceRun> {
        let Self { columns: given, valid, .. } = self;
        let SequenceColumnArgs { task, holdout, sequence, label, features, categorical, .. } =
            given;
        let task = task.context("expected a --task")?; // clap has asked for it
        let options = CsvOptions {
            delimiter: given.delimiter,
            missing: given.missing.clone(),
            header: given.header,
        };
        let train = SequenceTable::read(csv, options, sequence.as_deref())?;
        let (label, features) = train.choose(label.as_deref(), features.as_deref())?;
        let categorical = categorical.as_deref().map(|names| train.find_all(names));
        let categorical = categorical.transpose()?.unwrap_or_default();
        let name = |column: usize| train.csv.column_key(column);
        let is_known = |column: &usize| features.contains(column) || *column == label;
        if let Some(&column) = categorical.iter().find(|column| !is_known(column)) {
            let column = quote(&name(column));
            bail!("--categorical names {column}, which is neither a feature nor the label");
        }
        let classes = train.classes(label)?;
        if !categorical.contains(&label) {
            train.check_classes(label, &classes)?;
        }
        let columns = LabelColumns { sequence: name(train.sequence), label: name(label), classes };
        let data = SequenceSource {
            train: canonical(csv)?,
            valid: valid.as_deref().map(canonical).transpose()?,
            holdout: valid.is_none().then_some(*holdout),
            delimiter: given.delimiter.into(),
            header: train.csv.has_header,
            missing: given.missing.clone(),
            fingerprint: fingerprint([Some(csv), valid.as_deref()])?,
        };
        let training = self.settings.started_with(&self.overrides)?;
        let split = SequenceSplit::new(train, &data, task, &columns, training.seed)?;
        let features = split.train.features(&features, &categorical, &split.train_sequences)?;
        let config = TrainConfig {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task,
            data,
            columns,
            features,
            model: self.model.clone(),
            training,
            changes: Vec::new(),
        };
        SequenceRun::new(config, split)
    }
}
