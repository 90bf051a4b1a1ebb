//! [`RunTarget`]: the folder of a run, and the checkpoint that it resumes from.

use std::path::Path;

use anyhow::Result;
use gru_wgpu::Checkpoint;

use super::kind::{TrainingRun, updates_per_epoch};
use crate::rundir::checkpoints::{check_same, is_of};
use crate::rundir::folder::{RunDir, RunLock};
use crate::rundir::settings::{ResumableSettings, TrainingSettings};

/// The folder of a run, and the checkpoint that it resumes from.
pub struct RunTarget {
    folder: Option<RunDir>,
    checkpoint: Option<Checkpoint>,
    lock: FolderLock,
}

/// When a folder is locked.
pub enum FolderLock {
    /// Immediately: the run resumes from the folder's files.
    Now(RunLock),
    /// After everything that can be refused was checked. With `force` another run's files are
    /// removed then.
    AtStart { force: bool },
}

impl RunTarget {
    /// Makes the target of a run without a folder.
    pub fn none() -> Self {
        Self { folder: None, checkpoint: None, lock: FolderLock::AtStart { force: false } }
    }

    /// Makes the target of a new run that reads these files.
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

    /// Makes the target of a resumed run. `read` reads its configuration and data, `apply` changes
    /// its settings.
    pub fn resume<R: TrainingRun>(
        path: &Path,
        read: impl FnOnce(&RunDir) -> Result<R>,
        apply: impl FnOnce(ResumableSettings) -> ResumableSettings,
    ) -> Result<(Self, R)> {
        let folder = RunDir::open(path)?;
        let lock = FolderLock::Now(folder.lock()?);
        let mut run = read(&folder)?;
        let checkpoint = resume(&mut run, &folder, apply)?;
        folder.clean()?;
        Ok((Self { folder: Some(folder), checkpoint: Some(checkpoint), lock }, run))
    }

    pub fn into_parts(self) -> (Option<RunDir>, Option<Checkpoint>, FolderLock) {
        (self.folder, self.checkpoint, self.lock)
    }
}

impl FolderLock {
    /// Locks the folder that the run writes to.
    pub fn take(self, folder: Option<&RunDir>) -> Result<Option<RunLock>> {
        match self {
            Self::Now(lock) => Ok(Some(lock)),
            Self::AtStart { force } => folder.map(|folder| folder.take(force)).transpose(),
        }
    }
}

/// Applies `apply` to the settings for the rest of a run. The run's own settings, or those before a
/// recorded change, must be those of its checkpoint.
///
/// # Errors
/// If the configuration is not the checkpoint's, or no epoch is left.
fn resume(
    run: &mut impl TrainingRun,
    folder: &RunDir,
    apply: impl FnOnce(ResumableSettings) -> ResumableSettings,
) -> Result<Checkpoint> {
    let last = folder.read_checkpoint()?;
    check_config(run, folder, &last)?;
    let updates = updates_per_epoch(run);
    let (settings, changes) = run.settings_mut();
    let now = apply(settings.resumable());
    settings.resume(changes, last, updates, now)
}

fn check_config<R: TrainingRun>(
    run: &mut R,
    folder: &RunDir,
    checkpoint: &Checkpoint,
) -> Result<()> {
    let updates = updates_per_epoch(run);
    let (settings, changes) = run.settings_mut();
    let is_same = settings.match_checkpoint(checkpoint, changes, updates);
    let key = settings.changed_key(checkpoint, updates);
    let (layout, before) = (run.layout()?, checkpoint.state.params.layout());
    let model = format!("[model], before {},", before.config());
    check_same(
        folder,
        &[
            (R::DATA_TABLES, is_of(checkpoint, &run.data_note())),
            (&model, *before == layout),
            (&key, is_same),
        ],
    )
}
