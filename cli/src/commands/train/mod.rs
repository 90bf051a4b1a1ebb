//! `gru train`: a GRU that classifies or labels sequences, from a long table.

pub mod classes;
pub mod config;
mod curves;
mod job;
mod report;
mod runner;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gru_wgpu::DeviceKind;

use crate::data::csv_table::CsvOptions;
use crate::data::fingerprint::{check_fingerprint, fingerprint, whole};
use crate::data::holdout::HoldOut;
use crate::data::table::SequenceTable;
use crate::rundir::checkpoints::{Every, every};
use crate::rundir::folder::RunDir;
use crate::rundir::interrupt::Interrupt;
use crate::ui::arguments::{delimiter, fraction, yes_or_no};
use crate::ui::output::{open, quote};
use config::{Columns, Config, Data, Model, Settings, Task, TrainPace};
use job::Job;
use runner::Runner;

/// Train a GRU to classify sequences, or to label each of their rows, from a CSV file.
///
/// The file is a long table: a row a step, the rows of a sequence together and in order. Its first column names
/// the sequence, its last one is the label, what stands between is what the model sees; options name others.
/// Numbers are scaled by the training part's mean and deviation, a column of words becomes an input a word.
/// The run's folder gets config.toml, metrics.csv, curves.svg, checkpoint.safetensors and, of the epoch that
/// did best on what was held out, model.safetensors; at the end classes.csv, how that does on each class. A checkpoint is written after the first
/// epoch, every so often, and at Ctrl-C or SIGTERM, which end the run within a second, or with the update
/// under way where that takes longer.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// The CSV file to train on; with --resume only where it has moved.
    #[arg(required_unless_present = "resume")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    what: What,
    /// Another file, to validate on.
    #[arg(long, value_name = "CSV", conflicts_with = "holdout")]
    valid: Option<PathBuf>,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    pace: TrainPace,
    /// The run's folder.
    #[arg(long, value_name = "FOLDER", default_value = "run")]
    run: PathBuf,
    /// Start anew in the folder of another run, whose files are lost.
    #[arg(long)]
    force: bool,
    /// Go on with a run that was interrupted, with its own data and settings: on the same device to the same
    /// bits as if it had not been. Of the settings --epochs, --learning-rate, --clip and --patience may be
    /// others from there on; config.toml notes what they were. Where the data have moved, the CSV file and
    /// --valid say where to.
    #[arg(long, value_name = "FOLDER",
        conflicts_with_all = ["run", "force", "What", "Model", "Settings"])]
    resume: Option<PathBuf>,
    /// Write a checkpoint after so many updates, or with s, m or h behind it after so much time. Looked at
    /// between updates, about four times a second and after every 16.
    #[arg(long, value_name = "UPDATES|TIME", default_value = "10m", value_parser = every)]
    checkpoint_every: Every,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is learnt from which columns.
#[derive(clap::Args, Debug)]
struct What {
    /// What is learnt: a class for each sequence (classify) or for each row (label). A row without a label
    /// counts in neither the loss nor the accuracy of label.
    #[arg(long, value_name = "classify|label", value_enum, required_unless_present = "resume")]
    task: Option<Task>,
    /// The share of the sequences held out to validate on: with --task classify of those of each class.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = fraction)]
    holdout: f64,
    /// The column that names a row's sequence, by its name or its number from 1, as 3 or #3 [default: the
    /// first].
    #[arg(long, value_name = "COLUMN")]
    sequence: Option<String>,
    /// The column that is to be said [default: the last]. An empty cell is no label; NA, null or none is a
    /// class like any other.
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// The columns that the model sees [default: all others].
    #[arg(long, value_name = "COLUMN,…")]
    features: Option<String>,
    /// Those of them whose numbers are but names [default: those most of whose cells are no numbers]. The
    /// label's column, too, where many different numbers are classes all the same.
    #[arg(long, value_name = "COLUMN,…")]
    categorical: Option<String>,
    /// Words that mean a missing number, besides an empty cell, NA, N/A, null and none. Where any are named
    /// such cells take their column's mean; otherwise they are refused.
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
pub fn run(arguments: &Arguments, kind: DeviceKind, out: &mut impl Write) -> Result<ExitCode> {
    let Arguments { csv, valid, pace, run, force, resume, checkpoint_every, json, .. } = arguments;
    let (folder, lock, config, tables, checkpoint) = match (resume, csv) {
        (Some(path), csv) => {
            let folder = RunDir::open(path)?;
            let lock = folder.lock()?;
            let mut config = Config::read(&folder.config())?;
            let tables = Tables::read_again(&mut config, csv.as_deref(), valid.as_deref())?;
            let checkpoint = folder.read_checkpoint()?;
            (folder, Some(lock), config, tables, Some(checkpoint))
        }
        (None, Some(csv)) => {
            let folder = RunDir::claim(run, *force)?;
            let (config, tables) = arguments.start(csv)?;
            (folder, None, config, tables, None)
        }
        (None, None) => bail!("expected a CSV file or --resume"), // clap has asked for one
    };
    let mut job = Job::new(config, &tables)?;
    let checkpoint = checkpoint.map(|last| job.go_on(last, pace)).transpose()?;
    let device = open(kind)?;
    let runner = Runner::new(&job, &folder, *checkpoint_every, checkpoint, &device)?;
    let lock = lock.map_or_else(|| folder.take(*force), Ok)?;
    job.config.write(&folder.config())?;
    let interrupt = Interrupt::listen()?;
    job.announce(&device)?;
    let ended = runner.run(&interrupt)?;
    let status = ended.report(&job, &folder, &device, *json, out)?;
    drop(lock);
    ended.unsaved.map_or(Ok(status), |why| Err(why.context("the run was not saved")))
}

impl Arguments {
    /// What a new run is to be.
    fn start(&self, csv: &Path) -> Result<(Config, Tables)> {
        let Self { what, valid, .. } = self;
        let What { task, holdout, sequence, label, features, categorical, .. } = what;
        let task = task.context("expected a --task")?; // clap has asked for it
        let reading = CsvOptions {
            delimiter: what.delimiter,
            missing: what.missing.clone(),
            header: what.header,
        };
        let train = SequenceTable::read(csv, reading, sequence.as_deref())?;
        let (label, features) = train.choose(label.as_deref(), features.as_deref())?;
        let categorical = categorical.as_deref().map(|names| train.find_all(names));
        let categorical = categorical.transpose()?.unwrap_or_default();
        let name = |column: usize| train.sheet.reference(column);
        let is_known = |column: &usize| features.contains(column) || *column == label;
        if let Some(&column) = categorical.iter().find(|column| !is_known(column)) {
            let column = quote(&name(column));
            bail!("--categorical names {column}, which is neither a feature nor the label");
        }
        let classes = train.classes(label)?;
        if !categorical.contains(&label) {
            train.check_classes(label, &classes)?;
        }
        let columns = Columns { sequence: name(train.sequence), label: name(label), classes };
        let data = Data {
            train: whole(csv)?,
            valid: valid.as_deref().map(whole).transpose()?,
            holdout: valid.is_none().then_some(*holdout),
            delimiter: what.delimiter.into(),
            header: train.sheet.has_header,
            missing: what.missing.clone(),
            fingerprint: fingerprint([Some(csv), valid.as_deref()])?,
        };
        let training = self.settings.begun_with(&self.pace)?;
        let seed = training.seed;
        let tables = Tables::split(train, task, &data, &columns, seed)?;
        let features = tables.train.features(&features, &categorical, &tables.train_sequences)?;
        let config = Config {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task,
            data,
            columns,
            features,
            model: self.model.clone(),
            training,
            changes: Vec::new(),
        };
        Ok((config, tables))
    }
}

/// What a run trains on, and what it is validated on.
pub struct Tables {
    pub train: SequenceTable,
    pub train_sequences: Vec<std::ops::Range<usize>>,
    /// `None` where a part of the same table is held out.
    pub valid: Option<SequenceTable>,
    pub valid_sequences: Vec<std::ops::Range<usize>>,
}

impl Tables {
    fn split(
        train: SequenceTable,
        task: Task,
        data: &Data,
        columns: &Columns,
        seed: u64,
    ) -> Result<Self> {
        if let Some(path) = &data.valid {
            let valid = SequenceTable::read(path, data.reading(), Some(&columns.sequence))?;
            let (train_sequences, valid_sequences) =
                (train.sequences.clone(), valid.sequences.clone());
            return Ok(Self { train, train_sequences, valid: Some(valid), valid_sequences });
        }
        let share = data.holdout.unwrap_or_default();
        let held_out = HoldOut { share, seed };
        let (rest, held_out) = match task {
            Task::Classify => held_out.by_class(&train, columns)?,
            Task::Label => held_out.of_all(&train)?,
        };
        let of = |order: &[usize]| order.iter().map(|&at| train.sequences[at].clone()).collect();
        let (train_sequences, valid_sequences) = (of(&rest), of(&held_out));
        Ok(Self { train, train_sequences, valid: None, valid_sequences })
    }

    /// Those that a run was started with, or where they have moved to.
    fn read_again(config: &mut Config, train: Option<&Path>, valid: Option<&Path>) -> Result<Self> {
        let Config { task, data, columns, training, .. } = config;
        if let Some(path) = train {
            data.train = whole(path)?;
        }
        match (valid, &mut data.valid) {
            (Some(path), Some(before)) => *before = whole(path)?,
            (Some(_), None) => bail!("the run holds out a part of its file, and takes no --valid"),
            (None, _) => {}
        }
        check_fingerprint([Some(&data.train), data.valid.as_deref()], &data.fingerprint)?;
        let train = SequenceTable::read(&data.train, data.reading(), Some(&columns.sequence))?;
        Self::split(train, *task, data, columns, training.seed)
    }
}
