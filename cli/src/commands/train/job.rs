//! What is trained on what, and what it is held against.

use std::ops::Range;

use anyhow::{Result, ensure};
use gru_wgpu::{Checkpoint, Device, Example, LearnerConfig, Target};

use super::Tables;
use super::config::{Config, Data, Task, TrainPace};
use crate::data::table::SequenceTable;
use crate::rundir::checkpoints::{check_same, is_of};
use crate::rundir::overrides::Paced;
use crate::ui::output::{log, quote, some_of};

/// What is trained on what.
pub struct Job {
    pub config: Config,
    pub train: Vec<Example>,
    /// What the sequences to train on are called.
    names: Vec<String>,
    pub valid: Vec<Example>,
    pub majority: Majority,
}

/// How one does that knows but the classes' frequencies in the training part.
pub struct Majority {
    pub class: String,
    /// On the held-out part, when the most frequent class is always said.
    pub accuracy: f64,
    /// The cross-entropy there of the frequencies, each class counted once more than it came.
    pub loss: f64,
}

impl Job {
    pub fn new(config: Config, tables: &Tables) -> Result<Self> {
        let Tables { train, train_sequences, valid, valid_sequences } = tables;
        let trained = examples(&config, train, train_sequences)?;
        let valid = examples(&config, valid.as_ref().unwrap_or(train), valid_sequences)?;
        let majority = Majority::new(&config.columns.classes, &trained, &valid)?;
        let names = train_sequences.iter().map(|rows| train.name(rows).to_owned()).collect();
        Ok(Self { config, train: trained, names, valid, majority })
    }

    /// How it is trained.
    pub fn learner_config(&self) -> LearnerConfig {
        self.config.training.learner_config(self.train.len())
    }

    /// Makes what is left of a run be trained as `given` says, and the rest as its settings do, which are to
    /// be those of its checkpoint, or were before a change that is noted.
    ///
    /// # Errors
    /// When the configuration is not the checkpoint's, or the epochs are over.
    pub fn go_on(&mut self, last: Checkpoint, given: &TrainPace) -> Result<Checkpoint> {
        self.check_same(&last)?;
        let Config { training, changes, .. } = &mut self.config;
        let now = given.on(training.pace());
        training.go_on(changes, last, self.train.len(), now)
    }

    /// `Ok` when the configuration is that of a checkpoint.
    fn check_same(&self, checkpoint: &Checkpoint) -> Result<()> {
        let Self { config, train, .. } = self;
        let is_same = config.training.are_of(checkpoint, &config.changes, train.len());
        check_same(&[
            ("[data]", is_of(checkpoint, &self.data())),
            ("[model]", *checkpoint.state.params.layout() == config.layout()?),
            ("[training]", is_same),
        ])
    }

    /// What a checkpoint notes of the sequences that are trained and validated on, wherever they are.
    pub fn data(&self) -> String {
        let Data { holdout, delimiter, header, missing, fingerprint, .. } = &self.config.data;
        let missing = match &missing[..] {
            [] => String::new(),
            words => format!(" missing={words:?}"),
        };
        format!(
            "{fingerprint} holdout={holdout:?} delimiter={delimiter:?} header={header}{missing}"
        )
    }

    /// Some training sequences, in words.
    pub fn names(&self, examples: &[usize]) -> String {
        some_of(examples.iter().map(|&example| quote(&self.names[example])))
    }

    /// Says what is about to be done.
    pub fn announce(&self, device: &Device) -> Result<()> {
        let Config { columns, features, task, .. } = &self.config;
        let inputs: usize = features.iter().map(|feature| feature.inputs()).sum();
        let (train, valid) = (self.train.len(), self.valid.len());
        let each = match task {
            Task::Classify => "sequence",
            Task::Label => "row",
        };
        log(format_args!(
            "sequences: {train} to train on, {valid} held out; inputs: {inputs}; classes of {}, one a {each}: {}",
            quote(&columns.label),
            columns.classes.len()
        ));
        for (column, words) in self.config.words() {
            let column = quote(column);
            log(format_args!("column {column} is read as words, of which there are {words}"));
        }
        let parameters = self.config.layout()?.parameter_count();
        log(format_args!("training {parameters} parameters on {device}"));
        Ok(())
    }
}

fn examples(
    config: &Config,
    table: &SequenceTable,
    sequences: &[Range<usize>],
) -> Result<Vec<Example>> {
    let Config { task, columns, features, .. } = config;
    let label = table.find(&columns.label)?;
    let inputs = table.inputs(features, sequences)?;
    let example = |(x, sequence)| {
        Ok(Example::new(x, table.target(*task, label, &columns.classes, sequence)?))
    };
    inputs.into_iter().zip(sequences).map(example).collect()
}

impl Majority {
    fn new(classes: &[String], train: &[Example], valid: &[Example]) -> Result<Self> {
        let [trained, held_out] = [train, valid].map(|examples| frequencies(classes, examples));
        let [all, count] = [&trained, &held_out].map(|counts| counts.iter().sum::<usize>());
        ensure!(count > 0, "no sequence that is held out has a label");
        let present = trained.iter().filter(|&&count| count > 0).count();
        ensure!(
            present > 1,
            "the training part has labels of {present} class, and needs two; another --seed or a smaller \
             --holdout holds out others"
        );
        let most = (0..classes.len()).rev().max_by_key(|&class| trained[class]);
        let most = most.expect("there are two classes or more");
        let share = |class: usize| (trained[class] + 1) as f64 / (all + classes.len()) as f64;
        let loss = held_out.iter().enumerate().map(|(class, &n)| -(n as f64) * share(class).ln());
        Ok(Self {
            class: classes[most].clone(),
            accuracy: held_out[most] as f64 / count as f64,
            loss: loss.sum::<f64>() / count as f64,
        })
    }
}

/// How often each class comes.
fn frequencies(classes: &[String], examples: &[Example]) -> Vec<usize> {
    let mut counts = vec![0; classes.len()];
    let mut count = |class: i32| {
        if let Some(count) = usize::try_from(class).ok().and_then(|class| counts.get_mut(class)) {
            *count += 1;
        }
    };
    for example in examples {
        match &example.target {
            Target::Class(class) => count(*class),
            Target::Classes(all) => all.iter().for_each(|&class| count(class)),
            _ => unreachable!("tables have classes"),
        }
    }
    counts
}
