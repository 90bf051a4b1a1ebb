//! [`RunTarget`]: where a run's files go, and what it goes on from.

use std::path::Path;

use anyhow::Result;
use gru_wgpu::{Checkpoint, Dataset};

use super::kind::TrainingRun;
use crate::rundir::checkpoints::{check_same, is_of};
use crate::rundir::folder::{RunDir, RunLock};
use crate::rundir::settings::{ResumableSettings, TrainingSettings};

/// Where a run's files go, and what it goes on from.
pub struct RunTarget {
    folder: Option<RunDir>,
    checkpoint: Option<Checkpoint>,
    lock: FolderLock,
}

/// When a folder is locked.
pub enum FolderLock {
    /// At once: the run goes on from what is there.
    Now(RunLock),
    /// When all that can be refused was refused; with `force` another run's files are taken away
    /// then.
    AtStart { force: bool },
}

impl RunTarget {
    /// None: nothing is kept.
    pub fn none() -> Self {
        Self { folder: None, checkpoint: None, lock: FolderLock::AtStart { force: false } }
    }

    /// The folder of a new run that reads these files.
    pub fn new<'a>(
        path: &Path,
        force: bool,
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let folder = RunDir::claim(path, force)?;
        folder.check_inputs(inputs)?;
        let lock = FolderLock::AtStart { force };
        Ok(Self { folder: Some(folder), checkpoint: None, lock })
    }

    /// A run in a folder that goes on: `read` reads its configuration and data, `apply` changes its
    /// settings.
    pub fn resume<R: TrainingRun>(
        path: &Path,
        read: impl FnOnce(&RunDir) -> Result<R>,
        apply: impl FnOnce(ResumableSettings) -> ResumableSettings,
    ) -> Result<(Self, R)> {
        let folder = RunDir::open(path)?;
        let lock = FolderLock::Now(folder.lock()?);
        let mut run = read(&folder)?;
        let checkpoint = resume(&mut run, folder.read_checkpoint()?, apply)?;
        folder.clean()?;
        Ok((Self { folder: Some(folder), checkpoint: Some(checkpoint), lock }, run))
    }

    pub fn into_parts(self) -> (Option<RunDir>, Option<Checkpoint>, FolderLock) {
        (self.folder, self.checkpoint, self.lock)
    }
}

impl FolderLock {
    /// The lock of the folder that the run writes to from now on.
    pub fn take(self, folder: Option<&RunDir>) -> Result<Option<RunLock>> {
        match self {
            Self::Now(lock) => Ok(Some(lock)),
            Self::AtStart { force } => folder.map(|folder| folder.take(force)).transpose(),
        }
    }
}

/// Has what is left of a run be trained with the settings that `apply` makes of its own, which must
/// be those of its checkpoint, or must have been before a change that is noted.
///
/// # Errors
/// When the configuration is not the checkpoint's, or the epochs are over.
fn resume(
    run: &mut impl TrainingRun,
    last: Checkpoint,
    apply: impl FnOnce(ResumableSettings) -> ResumableSettings,
) -> Result<Checkpoint> {
    check_config(run, &last)?;
    let examples = run.train().len();
    let (settings, changes) = run.settings_mut();
    let now = apply(settings.resumable());
    settings.resume(changes, last, examples, now)
}

fn check_config<R: TrainingRun>(run: &mut R, checkpoint: &Checkpoint) -> Result<()> {
    let examples = run.train().len();
    let (settings, changes) = run.settings_mut();
    let is_same = settings.match_checkpoint(checkpoint, changes, examples);
    check_same(&[
        (R::DATA_TABLES, is_of(checkpoint, &run.data_note())),
        ("[model]", *checkpoint.state.params.layout() == run.layout()?),
        ("[training]", is_same),
    ])
}
