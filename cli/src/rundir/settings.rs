//! The settings that a run may change when it resumes: epochs, learning rate, clipping and
//! patience.

use anyhow::{Context, Result, ensure};
use gru_wgpu::{Checkpoint, LearnerConfig, TrainerConfig};
use serde::{Deserialize, Serialize};

use crate::rundir::config::{check_size, check_value};
use crate::ui::arguments::{at_least_one, positive};
use crate::ui::output::log;
use crate::ui::training_options::ClipArg;

/// The settings that a run may change when it resumes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResumableSettings {
    pub epochs: usize,
    pub learning_rate: f64,
    pub clip: ClipArg,
    /// Epochs without improvement before early stopping. `None` without early stopping.
    pub patience: Option<usize>,
}

impl ResumableSettings {
    /// Checks the values in a table of config.toml.
    fn check(&self, table: &str) -> Result<()> {
        let Self { epochs, learning_rate, clip: _, patience } = *self;
        check_size(&format!("{table}.epochs"), epochs)?;
        check_value(&format!("{table}.learning_rate"), learning_rate, positive::<f64>)?;
        patience.map_or(Ok(()), |patience| check_size(&format!("{table}.patience"), patience))
    }
}

/// [`ResumableSettings`] on the command line. With --resume they apply to the rest of the run.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ResumeOverrides {
    /// Passes over the training set [default: 40, gru forecast: 30].
    #[arg(long, value_parser = at_least_one)]
    epochs: Option<usize>,
    /// Peak learning rate [default: 0.003, gru forecast: 0.01].
    #[arg(long, value_parser = positive::<f64>)]
    learning_rate: Option<f64>,
    /// Gradient clipping: norm:X (or just X) scales the gradient down to norm X, value:X clips each
    /// element to ±X, none turns it off [default: norm:1].
    #[arg(long)]
    clip: Option<ClipArg>,
}

impl ResumeOverrides {
    /// Returns `before` with the settings given on the command line replaced.
    pub fn apply_to(&self, before: ResumableSettings) -> ResumableSettings {
        ResumableSettings {
            epochs: self.epochs.unwrap_or(before.epochs),
            learning_rate: self.learning_rate.unwrap_or(before.learning_rate),
            clip: self.clip.unwrap_or(before.clip),
            ..before
        }
    }
}

/// Earlier settings of a run, up to the update at which it resumed with others: one `[[changes]]`
/// entry in its config.toml.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsChange {
    /// Number of updates made before the change.
    updates: u64,
    epochs: usize,
    learning_rate: f64,
    clip: ClipArg,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patience: Option<usize>,
}

/// The table header in config.toml and the comment above it.
pub const COMMENT: (&str, &str) = (
    "[[changes]]",
    "Earlier values in [training], used for the first `updates` updates, before the run resumed with other settings.",
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

/// The training settings of a run.
pub trait TrainingSettings: Clone {
    /// Returns the settings that may change when the run resumes.
    fn resumable(&self) -> ResumableSettings;

    /// Replaces those settings.
    fn with_resumable(&self, settings: ResumableSettings) -> Self;

    /// Returns the seed of the initial parameters.
    fn seed(&self) -> u64;

    fn trainer_config(&self) -> TrainerConfig;

    /// Checks the values that may change when the run resumes, and those of `changes`, in
    /// config.toml. Then asks the library whether it accepts the settings.
    fn check_resumable(&self, changes: &[SettingsChange]) -> Result<()> {
        self.resumable().check("training")?;
        changes.iter().try_for_each(|change| change.settings().check("changes"))?;
        self.trainer_config().validate().context("training")?;
        self.learner_config(1).validate().context("training")
    }

    /// Returns the learner's configuration for a training set with this many updates an epoch.
    fn learner_config(&self, updates: u64) -> LearnerConfig;

    /// Returns true if a checkpoint was made with these settings, or with those from before one of
    /// the changes.
    fn match_checkpoint(
        &self,
        checkpoint: &Checkpoint,
        changes: &[SettingsChange],
        updates: u64,
    ) -> bool {
        let earlier = changes.iter().map(|change| self.with_resumable(change.settings()));
        earlier.chain([self.clone()]).any(|settings| {
            checkpoint.trainer_config == settings.trainer_config()
                && checkpoint.learner_config == settings.learner_config(updates)
        })
    }

    /// Returns the first key whose value is not that of the checkpoint, and that one where it is
    /// known.
    fn changed_key(&self, checkpoint: &Checkpoint, updates: u64) -> String {
        let (before, now) = (&checkpoint.trainer_config, self.trainer_config());
        let (learner, own) = (&checkpoint.learner_config, self.learner_config(updates));
        let keys = [
            ("epochs", now.epochs != before.epochs, before.epochs.to_string()),
            ("batch", now.batch != before.batch, before.batch.to_string()),
            ("seed", now.seed != before.seed, before.seed.to_string()),
            ("patience", now.patience != before.patience, String::new()),
            (
                "learning_rate",
                own.learning_rate != learner.learning_rate,
                learner.learning_rate.to_string(),
            ),
            ("loss", own.loss != learner.loss, String::new()),
            ("clip", own.clip != learner.clip, ClipArg(learner.clip).to_string()),
            (
                "accumulate",
                own.accumulation != learner.accumulation,
                learner.accumulation.to_string(),
            ),
            (
                "optimizer, momentum or weight_decay",
                own.optimizer != learner.optimizer,
                String::new(),
            ),
            ("schedule or warmup", own.schedule != learner.schedule, String::new()),
        ];
        let changed = keys.into_iter().find(|(_, is_changed, _)| *is_changed);
        match changed {
            Some((key, _, before)) if before.is_empty() => format!("training.{key}"),
            Some((key, _, before)) => format!("training.{key}, {before} before,"),
            None => "training".to_owned(),
        }
    }

    /// Resumes a run from the checkpoint `last` with the settings `now`. Adds the earlier settings
    /// to `changes` and logs the differences.
    ///
    /// # Errors
    /// If the run has already started more epochs than `now` allows.
    fn resume(
        &mut self,
        changes: &mut Vec<SettingsChange>,
        mut last: Checkpoint,
        updates: u64,
        now: ResumableSettings,
    ) -> Result<Checkpoint> {
        check_epochs(&last, now.epochs)?;
        let before = self.resumable();
        if now != before {
            let made = last.state.moments.steps;
            // If no checkpoint was saved since the last change, that change's settings were never
            // used: keep the earlier ones on record.
            if changes.last().is_none_or(|change| change.updates != made) {
                changes.push(SettingsChange::new(made, before));
            }
            log(format_args!("resuming with {}", changed(before, now)));
        }
        *self = self.with_resumable(now);
        last.learner_config = self.learner_config(updates);
        last.trainer_config = self.trainer_config();
        Ok(last)
    }
}

/// Checks that the run has not started more epochs than `epochs`.
fn check_epochs(last: &Checkpoint, epochs: usize) -> Result<()> {
    let (finished, has_started) = (last.progress.epoch, last.progress.batch > 0);
    let next = if has_started { " and has started the next" } else { "" };
    let started = finished + usize::from(has_started);
    ensure!(
        started <= epochs,
        "the run has finished {finished} epochs{next}; expected --epochs of at least {started}, got {epochs}"
    );
    Ok(())
}

/// Describes the options that differ.
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
