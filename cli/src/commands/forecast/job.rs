//! What is trained on what, and what it is held against.

use anyhow::{Result, bail, ensure};
use gru_wgpu::{Checkpoint, LearnerConfig};

use super::config::{Config, Data, Sizes};
use crate::data::series::Series;
use crate::data::windows::{Windows, origins};
use crate::rundir::checkpoints::{check_same, is_of};
use crate::rundir::overrides::{PaceArguments, Paced};
use crate::ui::output::{log, quote, quote_path, some_of};

pub struct Job {
    pub config: Config,
    pub series: Series,
    pub parts: Parts,
}

impl Job {
    /// The windows that it is cut into.
    pub fn windows(&self) -> Windows<'_> {
        let Sizes { input, horizon, .. } = self.config.windows;
        Windows::scaled(&self.series.columns, input, horizon, self.config.scales())
    }

    /// How it is trained.
    pub fn learner_config(&self) -> LearnerConfig {
        self.config.training.learner_config(self.parts.training.len())
    }

    /// Makes what is left of a run be trained as `given` says, and the rest as its settings do, which are to
    /// be those of its checkpoint, or were before a change that is noted.
    ///
    /// # Errors
    /// When the configuration is not the checkpoint's, or the epochs are over.
    pub fn go_on(&mut self, last: Checkpoint, given: &PaceArguments) -> Result<Checkpoint> {
        self.check_same(&last)?;
        let Config { training, changes, .. } = &mut self.config;
        let now = given.on(training.pace());
        training.go_on(changes, last, self.parts.training.len(), now)
    }

    /// `Ok` when the configuration is that of a checkpoint.
    fn check_same(&self, checkpoint: &Checkpoint) -> Result<()> {
        let Self { config, parts, .. } = self;
        let is_same = config.training.are_of(checkpoint, &config.changes, parts.training.len());
        check_same(&[
            ("[data], [windows] or [[columns]]", is_of(checkpoint, &self.data())),
            ("[model]", *checkpoint.state.params.layout() == config.layout()?),
            ("[training]", is_same),
        ])
    }

    /// What a checkpoint notes of the series that is trained and tested on, wherever it is.
    pub fn data(&self) -> String {
        let Config { data, windows, columns, .. } = &self.config;
        let Data { csv: _, delimiter, header, missing, fingerprint } = data;
        format!("{:?}", (fingerprint, delimiter, header, missing, windows, columns))
    }

    /// Some windows, in words: by the row of the file, its names not counted, that each has to forecast first.
    pub fn names(&self, origins: &[usize]) -> String {
        some_of(origins.iter().map(|origin| (origin + 1).to_string()))
    }

    /// Says what is about to be done.
    pub fn announce(&self) {
        let Self { config, series, parts } = self;
        let (rows, filled) = (series.values().len(), series.filled);
        let shown = quote_path(&config.data.csv);
        log(format_args!(
            "{shown}: {} {}, {rows} rows, {filled} missing ones interpolated",
            if series.names.len() == 1 { "column" } else { "columns" },
            series.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
        ));
        let Sizes { input, horizon, .. } = config.windows;
        let (training, testing) = (parts.training.len(), parts.testing.len());
        log(format_args!(
            "{input} rows in, {horizon} out: {training} windows to train on, {testing} held out"
        ));
    }
}

/// Where the held-out part starts, and the origins of the windows on either side.
pub struct Parts {
    pub split: usize,
    pub training: Vec<usize>,
    pub testing: Vec<usize>,
}

impl Parts {
    /// Of a series of so many rows.
    pub fn new(sizes: &Sizes, len: usize) -> Result<Self> {
        let Sizes { input, horizon, season, holdout } = *sizes;
        let split = ((1.0 - holdout) * len as f64).round() as usize;
        let training: Vec<_> = origins(input, horizon, 0, split).collect();
        let testing: Vec<_> = origins(input, horizon, split, len).collect();
        if training.is_empty() || testing.is_empty() {
            bail!(
                "{} rows are too few: the first {split} must hold a window of {input} + {horizon} \
                 rows (--input, --horizon), and the {} held out (--holdout) at least {horizon}",
                len,
                len - split
            );
        }
        ensure!(
            season < testing[0],
            "a season of {season} rows (--season) leaves nothing before the held-out part, which \
             starts after {} rows",
            testing[0]
        );
        Ok(Self { split, training, testing })
    }
}
