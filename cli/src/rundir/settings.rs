//! The settings that a run may change where it goes on: how long and how fast it trains.

use anyhow::{Result, ensure};
use gru_wgpu::{Checkpoint, LearnerConfig, TrainerConfig};
use serde::{Deserialize, Serialize};

use crate::ui::arguments::{at_least_one, positive};
use crate::ui::output::log;
use crate::ui::training_options::ClipArg;

/// The settings that a run may change where it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResumableSettings {
    pub epochs: usize,
    pub learning_rate: f64,
    pub clip: ClipArg,
    /// `None` of a run that does not end early.
    pub patience: Option<usize>,
}

/// The same on the command line; with --resume for what is left of the run.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ResumeOverrides {
    /// Passes over the training part [default: 40, of gru forecast 30].
    #[arg(long, value_name = "TIMES", value_parser = at_least_one)]
    epochs: Option<usize>,
    /// The learning rate at its height [default: 0.003, of gru forecast 0.01].
    #[arg(long, value_name = "RATE", value_parser = positive::<f64>)]
    learning_rate: Option<f64>,
    /// How an update's gradient is bounded: norm:X, all of it scaled together where its norm is
    /// larger (X alone says the same); value:X, each of its elements; none [default: norm:1].
    #[arg(long, value_name = "WORD")]
    clip: Option<ClipArg>,
}

impl ResumeOverrides {
    /// The given ones in place of those `before`.
    pub fn apply_to(&self, before: ResumableSettings) -> ResumableSettings {
        ResumableSettings {
            epochs: self.epochs.unwrap_or(before.epochs),
            learning_rate: self.learning_rate.unwrap_or(before.learning_rate),
            clip: self.clip.unwrap_or(before.clip),
            ..before
        }
    }
}

/// The settings of a run until it went on with others: `[[changes]]` in its config.toml.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsChange {
    /// Updates by then, since the start.
    updates: u64,
    epochs: usize,
    learning_rate: f64,
    clip: ClipArg,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patience: Option<usize>,
}

/// The comment above them in the file.
pub const COMMENT: (&str, &str) = (
    "[[changes]]",
    "What [training] said for the first so many updates, before the run went on with other settings.",
);

impl SettingsChange {
    fn new(updates: u64, settings: ResumableSettings) -> Self {
        let ResumableSettings { epochs, learning_rate, clip, patience } = settings;
        Self { updates, epochs, learning_rate, clip, patience }
    }

    pub fn settings(&self) -> ResumableSettings {
        let Self { epochs, learning_rate, clip, patience, .. } = *self;
        ResumableSettings { epochs, learning_rate, clip, patience }
    }
}

/// How a run is trained.
pub trait TrainingSettings: Clone {
    /// Those that may change where it goes on.
    fn resumable(&self) -> ResumableSettings;

    /// The same with others of those.
    fn with_resumable(&self, settings: ResumableSettings) -> Self;

    /// The seed of the fresh parameters.
    fn seed(&self) -> u64;

    fn trainer_config(&self) -> TrainerConfig;

    /// Over so many examples.
    fn learner_config(&self, examples: usize) -> LearnerConfig;

    /// Whether these, or what they were before one of the changes, are those of a checkpoint.
    fn match_checkpoint(
        &self,
        checkpoint: &Checkpoint,
        changes: &[SettingsChange],
        examples: usize,
    ) -> bool {
        let earlier = changes.iter().map(|change| self.with_resumable(change.settings()));
        earlier.chain([self.clone()]).any(|settings| {
            checkpoint.trainer_config == settings.trainer_config()
                && checkpoint.learner_config == settings.learner_config(examples)
        })
    }

    /// Has a run over so many examples go on from `last` with the settings `now`: notes in
    /// `changes` what they were, and says what is new.
    ///
    /// # Errors
    /// When its epochs are over.
    fn resume(
        &mut self,
        changes: &mut Vec<SettingsChange>,
        mut last: Checkpoint,
        examples: usize,
        now: ResumableSettings,
    ) -> Result<Checkpoint> {
        check_epochs(&last, now.epochs)?;
        let before = self.resumable();
        if now != before {
            let updates = last.state.moments.steps;
            // A change after which nothing was saved is not noted: the one before it is.
            if changes.last().is_none_or(|change| change.updates != updates) {
                changes.push(SettingsChange::new(updates, before));
            }
            log(format_args!("it goes on with {}", changed(before, now)));
        }
        *self = self.with_resumable(now);
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

/// The options that differ, in words.
fn changed(before: ResumableSettings, now: ResumableSettings) -> String {
    let patience = |of: ResumableSettings| {
        of.patience.map_or_else(|| "none".to_owned(), |epochs| epochs.to_string())
    };
    let options = [
        ("--epochs", before.epochs.to_string(), now.epochs.to_string()),
        ("--learning-rate", before.learning_rate.to_string(), now.learning_rate.to_string()),
        ("--clip", before.clip.to_string(), now.clip.to_string()),
        ("--patience", patience(before), patience(now)),
    ];
    let options = options.into_iter().filter(|(_, before, now)| before != now);
    let options: Vec<_> =
        options.map(|(name, before, now)| format!("{name} {now} ({before} before)")).collect();
    options.join(", ")
}
