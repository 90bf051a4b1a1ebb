//! `gru train`: trains a GRU that predicts classes or numbers of sequences or of their rows, from a
//! CSV table.

mod baselines;
pub mod classes;
pub mod config;
mod curves;
mod init;
mod report;
pub mod sequences;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use gru_wgpu::DeviceKind;

use super::training_run::{self, RunTarget};
use crate::data::csv_table::CsvTable;
use crate::data::features::{LabelColumns, Per, Scale, SequenceTask, Task, WindowSettings};
use crate::data::fingerprint::{canonical, fingerprint};
use crate::data::labels::{self, LabelReader};
use crate::data::sequences::{SequenceSource, SequenceSplit};
use crate::data::table::SequenceTable;
use crate::data::table_options::{TableArgs, TableFormat};
use crate::data::time_axis::TimeAxis;
use crate::rundir::checkpoints::{CheckpointInterval, interval};
use crate::rundir::config::RunConfig;
use crate::rundir::folder::RunDir;
use crate::ui::arguments::{at_least_one, fraction};
use crate::ui::output::{log, quote};
use config::{LossSetting, SequenceModelSettings, TrainConfig, TrainOverrides, TrainSettings};
use init::InitArgs;
use report::Format;
use sequences::SequenceRun;

/// Train a model that predicts classes or numbers for sequences or rows of a CSV file.
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
    init: InitArgs,
    #[arg(long, value_parser = at_least_one)]
    batch: Option<usize>,
    #[command(flatten)]
    settings: TrainSettings,
    #[command(flatten)]
    overrides: TrainOverrides,
    #[arg(long, default_value = "run")]
    run: PathBuf,
    #[arg(long)]
    force: bool,
    #[arg(long,
        conflicts_with_all = ["run", "force", "batch", "SequenceColumnArgs", "TableArgs", "SequenceModelSettings",
            "InitArgs", "TrainSettings"])]
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
    per: Option<Per>,
    #[arg(long)]
    sequence: Option<String>,
    #[arg(long, value_parser = at_least_one)]
    window: Option<usize>,
    #[arg(long, requires = "window", value_parser = at_least_one)]
    stride: Option<usize>,
    #[arg(long)]
    time: Option<String>,
    #[arg(long)]
    label: Option<String>,
    #[arg(long)]
    features: Option<String>,
    #[arg(long)]
    categorical: Option<String>,
    #[arg(long, value_delimiter = ',')]
    missing: Vec<String>,
    #[arg(long, value_enum, default_value_t = Scale::Standard)]
    scale: Scale,
}

const EXAMPLES: &str = "\
Examples:
  gru train data/japanese_vowels_train.csv --task classify --run vowels
  gru train data/phonemes_train.csv --task label --direction both --run phonemes
  gru train machine.csv --task regress --window 200 --run machine";

const DETAILS: &str = "\
The CSV file has one row per time step. The rows of a sequence stand together, in order. Numeric
inputs are scaled by the training set's mean and standard deviation. A categorical column gives
one input per word.

The run's folder gets config.toml, metrics.csv, curves.svg, classes.csv, checkpoint.safetensors
and, from the best epoch on the validation set, model.safetensors. A checkpoint is written after
the first epoch, at intervals (--checkpoint-every), and at Ctrl-C or SIGTERM, which stop the run
within a second or after the current update.

With --task regress the labels are numbers, and the errors are in their unit. Long recordings are
cut with --window. With a label per row, the state is carried from window to window.

The model is a GRU and a linear head on its last state, or on every state for labels per row. `gru
run FOLDER/model.safetensors` runs the GRU. PyTorch loads the file into a module with an nn.GRU
named gru and an nn.Linear named head. Further examples:

  gru train --resume phonemes --epochs 20

  gru train visits.csv --task classify --sequence patient --label outcome \\
      --features age,pulse,ward --categorical ward --valid later.csv \\
      --hidden 128 --layers 2 --dropout 0.2 --patience 5

--json: version, device, task, run, sequences {train, valid}, words {COLUMN: count}, parameters,
epochs, updates, ended (whole or early), seconds, best_epoch and loss. For classes: classes,
accuracy, per_class [{class, count, correct, precision, recall}] on the validation set, and
majority {class, accuracy, loss}: the training set's most frequent class, and the loss of its class
frequencies. For numbers: per, rmse, mae and baselines {last, mean}, each {rmse, mae}. The exit
status after Ctrl-C is 130.";

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
    let split =
        SequenceSplit::read(&config.data, config.task_of_sequences(), config.training.seed)?;
    SequenceRun::new(config, split)
}

impl TrainArgs {
    /// Starts a new run.
    pub fn start(&self, csv: &Path) -> Result<SequenceRun> {
        let given = &self.columns;
        let options = self.table.options(given.missing.clone())?;
        let train = SequenceTable::read(csv, options, |csv| given.sequence_column(csv))?;
        let ChosenColumns { task, per, mut columns, features, categorical } =
            given.choose(&train)?;
        let windows = given.windows();
        if let Some(windows) = windows {
            windows.check(per, self.model.direction)?;
        }
        let data = self.source(csv, &train)?;
        let mut training = self.settings.started_with(&self.overrides)?;
        let of_columns = SequenceTask { task, columns: &columns, per, windows };
        let split = SequenceSplit::new(train, &data, of_columns, training.seed)?;
        training.batch = self.batch.map_or_else(|| default_batch(of_columns, &split), Ok)?;
        if task == Task::Regress {
            let labels = LabelReader::new(&split.train, of_columns)?;
            columns.numeric = Some(labels.numeric(&split.rows.train, given.scale)?);
            training.loss = LossSetting::MeanSquared;
        }
        let rows = &split.rows.train;
        let features = split.train.features(&features, &categorical, rows, given.scale)?;
        let mut config = TrainConfig {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task,
            data,
            columns,
            windows,
            features,
            model: self.model.clone(),
            init: None,
            training,
            changes: Vec::new(),
        };
        let (init, params) = self.init.read(&config.layout()?, config.training.seed)?.unzip();
        config.init = init;
        Ok(SequenceRun { init: params, ..SequenceRun::new(config, split)? })
    }

    /// Describes the files of a new run.
    fn source(&self, csv: &Path, train: &SequenceTable) -> Result<SequenceSource> {
        let Self { columns, valid, .. } = self;
        Ok(SequenceSource {
            train: canonical(csv)?,
            valid: valid.as_deref().map(canonical).transpose()?,
            holdout: valid.is_none().then_some(columns.holdout),
            time: train.time_columns(columns.time.as_deref())?,
            fingerprint: fingerprint([Some(csv), valid.as_deref()])?,
            format: TableFormat::of(&train.csv),
        })
    }
}

/// The rows of a batch of windows whose states are carried: 32, or so many that each reads eight
/// windows or more. Fewer rows carry states further.
fn default_batch(task: SequenceTask<'_>, split: &SequenceSplit) -> Result<usize> {
    const MOST: usize = 32;
    const WINDOWS: usize = 8;
    let Some(windows) = task.carried() else { return Ok(MOST) };
    let count = |rows: &Range<usize>| Ok(windows.cut(task.per, rows.len())?.len());
    let count: usize = split.rows.train.iter().map(count).sum::<gru_wgpu::Result<usize>>()?;
    Ok((count / WINDOWS).clamp(1, MOST))
}

/// The task and the columns of a table.
struct ChosenColumns {
    task: Task,
    per: Per,
    columns: LabelColumns,
    /// Indices of the inputs.
    features: Vec<usize>,
    /// Indices of the columns that are categories, whatever their cells.
    categorical: Vec<usize>,
}

impl SequenceColumnArgs {
    /// Finds the columns in a table. The scale of labels that are numbers follows later, from the
    /// training set.
    fn choose(&self, train: &SequenceTable) -> Result<ChosenColumns> {
        let task = self.task.context("expected a --task")?; // clap has asked for it
        ensure!(
            task == Task::Regress || self.per.is_none(),
            "--per needs --task regress; classify has a class per sequence, label a class per row"
        );
        self.check_sequences(train)?;
        let (label, features) = train.choose(self.label.as_deref(), self.features.as_deref())?;
        let categorical = self.categorical.as_deref().map(|names| train.find_all(names));
        let categorical = categorical.transpose()?.unwrap_or_default();
        let name = |column: usize| train.csv.column_key(column);
        let is_known = |column: &usize| features.contains(column) || *column == label;
        if let Some(&column) = categorical.iter().find(|column| !is_known(column)) {
            let column = quote(&name(column));
            bail!("--categorical names {column}, which is neither a feature nor the label");
        }
        ensure!(
            task != Task::Regress || !categorical.contains(&label),
            "--categorical names the label, but --task regress learns numbers"
        );
        let (per, classes) = match task {
            Task::Regress => {
                (self.per.unwrap_or_else(|| labels::judge_per(train, label)), Vec::new())
            }
            Task::Classify => (Per::Sequence, labels::classes(train, label)?),
            Task::Label => (Per::Row, labels::classes(train, label)?),
        };
        if task != Task::Regress && !categorical.contains(&label) {
            labels::check_classes(train, label, &classes)?;
        }
        let sequence = train.sequence.map(name);
        let columns = LabelColumns { sequence, label: name(label), classes, numeric: None };
        Ok(ChosenColumns { task, per, columns, features, categorical })
    }

    fn windows(&self) -> Option<WindowSettings> {
        let window = self.window?;
        Some(WindowSettings { window, stride: self.stride.unwrap_or(window) })
    }

    /// Returns the column that names the sequence of each row: `--sequence`, by default the first.
    /// Returns `None` for `--sequence none` and, by default, for windows of a file whose first
    /// column has time stamps.
    fn sequence_column(&self, csv: &CsvTable) -> Result<Option<usize>> {
        match self.sequence.as_deref() {
            Some("none") => Ok(None),
            Some(name) => csv.find(name).map(Some),
            None if self.window.is_some() && TimeAxis::is_in(csv, 0) => {
                log(format_args!(
                    "the first column, {}, has time stamps, so the whole file is taken as one sequence; --sequence says \
                     which column names sequences",
                    quote(&csv.names[0])
                ));
                Ok(None)
            }
            None => Ok(Some(0)),
        }
    }

    /// Refuses sequences of one row, which a wrong sequence column gives. Says if the sequence
    /// column has time stamps.
    fn check_sequences(&self, table: &SequenceTable) -> Result<()> {
        let Some(column) = table.sequence else { return Ok(()) };
        let name = quote(&table.csv.names[column]);
        ensure!(
            table.sequences.len() < 2 || table.sequences.iter().any(|rows| rows.len() > 1),
            "{}: the sequence column {name} names another sequence in each row; name the column of the sequences with \
             --sequence, or pass --sequence none and --window if the whole file is one recording",
            table.shown,
        );
        if TimeAxis::is_in(&table.csv, column) {
            log(format_args!(
                "{}: the sequence column {name} has time stamps, and the rows of each are taken as one sequence; \
                 --sequence names another column",
                table.shown
            ));
        }
        Ok(())
    }
}
