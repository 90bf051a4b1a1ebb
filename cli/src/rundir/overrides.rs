//! The settings that a run may change where it goes on.

use anyhow::{Result, ensure};
use gru_wgpu::{Checkpoint, LearnerConfig, TrainerConfig};
use serde::{Deserialize, Serialize};

use crate::ui::arguments::{at_least_one, positive};
use crate::ui::output::log;
use crate::ui::training_options::ClipArg;

/// How fast a run trains, and how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub epochs: usize,
    pub learning_rate: f64,
    pub clip: ClipArg,
    /// `None` of a run that does not end early.
    pub patience: Option<usize>,
}

/// What the command line says of it, with --resume for what is left of the run.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct PaceArguments {
    /// Passes over the training part [default: 40, of gru forecast 30].
    #[arg(long, value_name = "TIMES", value_parser = at_least_one)]
    epochs: Option<usize>,
    /// The learning rate at its height [default: 0.003, of gru forecast 0.01].
    #[arg(long, value_name = "RATE", value_parser = positive::<f64>)]
    learning_rate: Option<f64>,
    /// How an update's gradient is bounded: norm:X, all of it scaled together where its norm is larger (X
    /// alone says the same); value:X, each of its elements; none [default: norm:1].
    #[arg(long, value_name = "WORD")]
    clip: Option<ClipArg>,
}

impl PaceArguments {
    /// `before` where they say nothing else.
    pub fn on(&self, before: Pace) -> Pace {
        Pace {
            epochs: self.epochs.unwrap_or(before.epochs),
            learning_rate: self.learning_rate.unwrap_or(before.learning_rate),
            clip: self.clip.unwrap_or(before.clip),
            ..before
        }
    }
}

/// The pace of a run until it went on at another one: `[[changes]]` in its config.toml.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// How many there were by then, since the start.
    updates: u64,
    epochs: usize,
    learning_rate: f64,
    clip: ClipArg,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patience: Option<usize>,
}

/// What is said above them in the file.
pub const COMMENT: (&str, &str) = (
    "[[changes]]",
    "What [training] said for the first so many updates, before the run went on with other settings.",
);

impl Change {
    fn new(updates: u64, pace: Pace) -> Self {
        let Pace { epochs, learning_rate, clip, patience } = pace;
        Self { updates, epochs, learning_rate, clip, patience }
    }

    pub fn pace(&self) -> Pace {
        let Self { epochs, learning_rate, clip, patience, .. } = *self;
        Pace { epochs, learning_rate, clip, patience }
    }
}

/// How a run is trained, at a pace.
pub trait Paced: Clone {
    fn pace(&self) -> Pace;

    /// The same at another pace.
    fn with(&self, pace: Pace) -> Self;

    fn trainer_config(&self) -> TrainerConfig;

    /// Over so many examples.
    fn learner_config(&self, examples: usize) -> LearnerConfig;

    /// Whether these, or what they were before one of the changes, are those of a checkpoint.
    fn are_of(&self, checkpoint: &Checkpoint, changes: &[Change], examples: usize) -> bool {
        let earlier = changes.iter().map(|change| self.with(change.pace()));
        earlier.chain([self.clone()]).any(|settings| {
            checkpoint.trainer_config == settings.trainer_config()
                && checkpoint.learner_config == settings.learner_config(examples)
        })
    }

    /// Has a run over so many examples go on from `last` at the pace `now`: notes in `changes` what it was, and
    /// says what is new.
    ///
    /// # Errors
    /// When its epochs are over.
    fn go_on(
        &mut self,
        changes: &mut Vec<Change>,
        mut last: Checkpoint,
        examples: usize,
        now: Pace,
    ) -> Result<Checkpoint> {
        check_epochs(&last, now.epochs)?;
        let before = self.pace();
        if now != before {
            let updates = last.state.moments.steps;
            // What came to nothing that was saved is not noted: what it changed then is.
            if changes.last().is_none_or(|change| change.updates != updates) {
                changes.push(Change::new(updates, before));
            }
            log(format_args!("it goes on with {}", news(before, now)));
        }
        *self = self.with(now);
        last.learner_config = self.learner_config(examples);
        last.trainer_config = self.trainer_config();
        Ok(last)
    }
}

/// `Ok` unless a run has begun more epochs than so many.
fn check_epochs(last: &Checkpoint, epochs: usize) -> Result<()> {
    let (over, has_begun) = (last.progress.epoch, last.progress.batch > 0);
    let begun = if has_begun { " and the next has begun" } else { "" };
    ensure!(
        over + usize::from(has_begun) <= epochs,
        "{over} epochs are over{begun}, and --epochs {epochs} are all of them"
    );
    Ok(())
}

fn news(before: Pace, now: Pace) -> String {
    let patient =
        |pace: Pace| pace.patience.map_or_else(|| "none".to_owned(), |epochs| epochs.to_string());
    let told = [
        ("--epochs", before.epochs.to_string(), now.epochs.to_string()),
        ("--learning-rate", before.learning_rate.to_string(), now.learning_rate.to_string()),
        ("--clip", before.clip.to_string(), now.clip.to_string()),
        ("--patience", patient(before), patient(now)),
    ];
    let told = told.into_iter().filter(|(_, before, now)| before != now);
    let told: Vec<_> =
        told.map(|(name, before, now)| format!("{name} {now} ({before} before)")).collect();
    told.join(", ")
}
