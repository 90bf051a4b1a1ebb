//! `gru train`: trains a GRU that classifies or labels sequences, from a CSV table.

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
use crate::data::features::{LabelColumns, Task};
use crate::data::fingerprint::{canonical, fingerprint};
use crate::data::holdout::HoldOut;
use crate::data::sequences::{SequenceSource, SequenceSplit};
use crate::data::table::SequenceTable;
use crate::data::table_options::TableArgs;
use crate::rundir::checkpoints::{CheckpointInterval, interval};
use crate::rundir::config::RunConfig;
use crate::rundir::folder::RunDir;
use crate::ui::arguments::fraction;
use crate::ui::output::{log, quote};
use config::{SequenceModelSettings, TrainConfig, TrainOverrides, TrainSettings};
use report::Format;
use sequences::SequenceRun;

/// Train a model that classifies sequences, or labels their rows, from a CSV file.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct TrainArgs {
    /// The CSV file to train on. With --resume only if it has moved.
    #[arg(required_unless_present = "resume")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    columns: SequenceColumnArgs,
    #[command(flatten)]
    table: TableArgs,
    #[arg(long, conflicts_with = "holdout")]
    valid: Option<PathBuf>,
    #[command(flatten)]
    model: SequenceModelSettings,
    #[command(flatten)]
    settings: TrainSettings,
    #[command(flatten)]
    overrides: TrainOverrides,
    #[arg(long, default_value = "run")]
    run: PathBuf,
    #[arg(long)]
    force: bool,
    #[arg(long,
        conflicts_with_all = ["run", "force", "SequenceColumnArgs", "TableArgs", "SequenceModelSettings",
            "TrainSettings"])]
    resume: Option<PathBuf>,
    #[arg(long, default_value = "10m", value_parser = interval)]
    checkpoint_every: CheckpointInterval,
    #[arg(long)]
    json: bool,
    #[arg(long)]
    verbose: bool,
}

/// The task and its columns.
#[derive(clap::Args, Debug)]
struct SequenceColumnArgs {
    #[arg(long, value_enum, required_unless_present = "resume")]
    task: Option<Task>,
    #[arg(long, default_value_t = 0.1, value_parser = fraction)]
    holdout: f64,
    #[arg(long)]
    sequence: Option<String>,
    #[arg(long, conflicts_with = "valid")]
    time: Option<String>,
    #[arg(long)]
    label: Option<String>,
    #[arg(long)]
    features: Option<String>,
    #[arg(long)]
    categorical: Option<String>,
    #[arg(long, value_delimiter = ',')]
    missing: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  gru train data/japanese_vowels_train.csv --task classify --run vowels
  gru train data/phonemes_train.csv --task label --direction both --run phonemes
  gru train --resume phonemes --epochs 20";

const DETAILS: &str = "\
The CSV file has one row per time step. The rows of a sequence stand together, in order. Numeric
inputs are scaled by the training set's mean and standard deviation. A categorical column gives
one input per word.

The run's folder gets config.toml, metrics.csv, curves.svg, classes.csv, checkpoint.safetensors
and, from the best epoch on the validation set, model.safetensors. A checkpoint is written after
the first epoch, at intervals (--checkpoint-every), and at Ctrl-C or SIGTERM, which stop the run
within a second or after the current update.

The model is a GRU and a linear head on its last state (classify) or on every state (label). `gru
run FOLDER/model.safetensors` runs the GRU. PyTorch loads the file into a module with an nn.GRU
named gru and an nn.Linear named head. A larger example:

  gru train visits.csv --task classify --sequence patient --label outcome \\
      --features age,pulse,ward --categorical ward --valid later.csv \\
      --hidden 128 --layers 2 --dropout 0.2 --patience 5

--json: version, device, task, run, sequences {train, valid}, classes, words {COLUMN: count},
parameters, epochs, updates, ended (whole or early), seconds, best_epoch, accuracy, loss,
per_class [{class, count, correct, precision, recall}] on the validation set, and majority {class,
accuracy, loss}: the training set's most frequent class, and the loss of its class frequencies.
The exit status after Ctrl-C is 130.";

/// Runs the command.
pub fn run(arguments: &TrainArgs, kind: DeviceKind, out: &mut impl Write) -> Result<ExitCode> {
    let TrainArgs { csv, valid, run, force, resume, checkpoint_every, json, verbose, .. } =
        arguments;
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
        report::report(&run, outcome, folder, device, Format::new(*json, *verbose), out)
    })
}

/// Reads a run's configuration and its data, from where they are or have moved to.
fn read_again(folder: &RunDir, csv: Option<&Path>, valid: Option<&Path>) -> Result<SequenceRun> {
    let mut config = TrainConfig::read(&folder.config())?;
    config.data.set_paths(csv, valid)?;
    folder.check_inputs(config.data.files())?;
    let TrainConfig { task, data, columns, training, .. } = &config;
    let split = SequenceSplit::read(data, *task, columns, training.seed)?;
    SequenceRun::new(config, split)
}

impl TrainArgs {
    /// Returns the column by whose time stamps the latest sequences are held out, and logs it.
    fn held_out_by(&self, train: &SequenceTable) -> Result<Option<String>> {
        if self.valid.is_some() {
            return Ok(None);
        }
        let SequenceColumnArgs { time, holdout, .. } = &self.columns;
        let Some((column, axis)) = train.time_axis(time.as_deref())? else { return Ok(None) };
        let holdout = HoldOut { fraction: *holdout, seed: 0 };
        if holdout.latest(train, &axis).is_none() {
            return Ok(None);
        }
        let column = train.csv.column_key(column);
        log(format_args!(
            "the sequences that start last, by column {}, are held out; --time none draws them",
            quote(&column)
        ));
        Ok(Some(column))
    }

    /// Starts a new run.
    fn start(&self, csv: &Path) -> Result<SequenceRun> {
        let Self { columns: given, valid, .. } = self;
        let SequenceColumnArgs { task, holdout, sequence, label, features, categorical, .. } =
            given;
        let task = task.context("expected a --task")?; // clap has asked for it
        let options = self.table.options(given.missing.clone())?;
        let train = SequenceTable::read(csv, options, sequence.as_deref())?;
        let (label, features) = train.choose(label.as_deref(), features.as_deref())?;
        let time = self.held_out_by(&train)?;
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
            time,
            delimiter: char::from(train.csv.delimiter),
            decimal: train.csv.numbers.decimal,
            thousands: train.csv.numbers.thousands,
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
