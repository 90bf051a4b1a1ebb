//! `gru predict`: predicts with a trained run, on new sequences or after the end of a series.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use gru_wgpu::{DeviceKind, Network};
use ndarray::{Array2, ArrayView1};

use crate::commands::forecast;
use crate::commands::train::classes::argmax;
use crate::commands::train::config::TrainConfig;
use crate::commands::train::sequences::SequenceRun;
use crate::commands::training_run::TrainingRun;
use crate::data::features::Task;
use crate::data::table::{CellAdvice, SequenceTable};
use crate::rundir::config::{self, RunConfig};
use crate::rundir::folder::RunDir;
use crate::ui::device::open;
use crate::ui::files::write_file;
use crate::ui::output::{log, quote, quote_path, some_of};
use crate::ui::outputs::OutputFiles;

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
if the training file had no names. If it also has the label's column, the accuracy is printed on
stderr. Words that the training set does not have match none of the known ones.

Output columns: the sequence's name; with --task label the step, from 1; the most probable class;
its probability; with --probabilities also probability:CLASS for each class. For a run of `gru
forecast --run`: the number of rows after the file's last row, and the value.";

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
    let params = folder.read_model(SequenceRun::KEPT, config::TRAIN)?;
    ensure!(
        *params.layout() == config.layout()?,
        "the model in {shown} does not match its config.toml"
    );
    let table = SequenceTable::read(csv, config.data.options(), Some(&config.columns.sequence))?;
    let table = SequenceTable { advice: CellAdvice::PREDICT, ..table };
    let inputs = table.inputs(&config.features, &table.sequences)?;
    let network = Network::new(params, &open(kind)?)?;
    let outputs = network.forward_each(&inputs, config.training.batch)?;
    check_finite(&table, &outputs)?;
    let predictions: Vec<_> = outputs.iter().map(Prediction::of).collect();
    let text = to_csv(&config, &table, &predictions, *probabilities)?;
    write_output(&text, output.as_deref(), out)?;
    report_accuracy(&config, &table, &predictions)
}

/// Checks that the outputs for each sequence are finite.
fn check_finite(table: &SequenceTable, outputs: &[Array2<f32>]) -> Result<()> {
    let is_bad = |outputs: &Array2<f32>| outputs.iter().any(|output| !output.is_finite());
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

/// The predictions for a sequence: one, or one per step.
struct Prediction(Vec<StepPrediction>);

struct StepPrediction {
    /// The most probable class, or the first of several.
    class: usize,
    /// The probability of each class.
    probabilities: Vec<f64>,
}

impl Prediction {
    fn of(outputs: &Array2<f32>) -> Self {
        Self(outputs.rows().into_iter().map(StepPrediction::of).collect())
    }
}

impl StepPrediction {
    /// Computes probabilities by softmax.
    fn of(row: ArrayView1<'_, f32>) -> Self {
        let class = argmax(row);
        let exponentials = row.iter().map(|&output| f64::from(output - row[class]).exp());
        let mut probabilities: Vec<_> = exponentials.collect();
        let sum: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|probability| *probability /= sum);
        Self { class, probabilities }
    }
}

fn to_csv(
    config: &TrainConfig,
    table: &SequenceTable,
    predictions: &[Prediction],
    with_all: bool,
) -> Result<Vec<u8>> {
    let classes = &config.columns.classes;
    let mut header: Vec<_> = match config.task {
        Task::Classify => vec![],
        Task::Label => vec!["step".to_owned()],
    };
    header.extend(["predicted", "probability"].map(str::to_owned));
    if with_all {
        header.extend(classes.iter().map(|class| format!("probability:{class}")));
    }
    // The column's own name in the file may equal one of the others.
    let name = &table.csv.names[table.sequence];
    let name = if header.contains(name) { "sequence" } else { name };
    header.insert(0, name.to_owned());
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(&header)?;
    for (sequence, Prediction(rows)) in table.sequences.iter().zip(predictions) {
        for (step, StepPrediction { class, probabilities }) in (1..).zip(rows) {
            let mut row = vec![table.name(sequence).to_owned()];
            if config.task == Task::Label {
                row.push(format!("{step}"));
            }
            let all = if with_all { &probabilities[..] } else { &[] };
            let probabilities = [probabilities[*class]].into_iter().chain(all.iter().copied());
            row.push(classes[*class].clone());
            row.extend(probabilities.map(|probability| format!("{probability:.6}")));
            csv.write_record(&row)?;
        }
    }
    Ok(csv.into_inner().map_err(|error| error.into_error())?)
}

/// How many labels of a file the predictions match.
#[derive(Default)]
struct LabelCounts<'a> {
    right: usize,
    all: usize,
    /// Labels that are no class of the run, and how often each occurs.
    unseen: BTreeMap<&'a str, usize>,
    /// With one prediction per sequence, the sequences with several labels. They are not counted.
    changing: Vec<&'a Range<usize>>,
}

impl<'a> LabelCounts<'a> {
    /// Counts the labels of a column. A label that training did not see counts as wrong.
    fn new(
        config: &TrainConfig,
        table: &'a SequenceTable,
        label: usize,
        predictions: &[Prediction],
    ) -> Self {
        let classes = &config.columns.classes;
        let mut counts = Self::default();
        for (sequence, Prediction(rows)) in table.sequences.iter().zip(predictions) {
            let Ok(labels) = table.labels(config.task, label, sequence) else {
                counts.changing.push(sequence);
                continue;
            };
            let labelled = labels.into_iter().zip(rows).filter(|(label, _)| !label.is_empty());
            for (label, prediction) in labelled {
                counts.all += 1;
                counts.right += usize::from(classes[prediction.class] == label);
                if !classes.iter().any(|class| class == label) {
                    *counts.unseen.entry(label).or_default() += 1;
                }
            }
        }
        counts
    }
}

/// If the file has labels, prints the accuracy.
fn report_accuracy(
    config: &TrainConfig,
    table: &SequenceTable,
    predictions: &[Prediction],
) -> Result<()> {
    let Ok(label) = table.csv.find(&config.columns.label) else { return Ok(()) };
    let (shown, name) = (&table.shown, quote(&config.columns.label));
    let counts = LabelCounts::new(config, table, label, predictions);
    let LabelCounts { right, all, unseen, changing } = &counts;
    if !changing.is_empty() {
        let names = some_of(changing.iter().map(|sequence| quote(table.name(sequence))));
        log(format_args!(
            "{shown}: the label in column {name} changes inside sequences {names}; the accuracy leaves them out"
        ));
    }
    let count: usize = unseen.values().sum();
    let words = some_of(unseen.keys().map(|word| quote(word)));
    if count > 0 && count == *all {
        let classes = some_of(config.columns.classes.iter().map(|class| quote(class)));
        log(format_args!(
            "{shown}: no label in column {name} is a class of the run, so there is no accuracy; the labels are \
             {words}, the classes {classes}"
        ));
        return Ok(());
    }
    if count > 0 {
        log(format_args!(
            "{shown}: {count} of {all} labels in column {name} are no class of the run and count as wrong: {words}"
        ));
    }
    if *all > 0 {
        let accuracy = f64::from(u32::try_from(*right)?) / f64::from(u32::try_from(*all)?);
        log(format_args!("accuracy {accuracy:.4}: {right} of {all} labels in column {name}"));
    }
    Ok(())
}
