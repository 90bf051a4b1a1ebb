//! [`RunDir`]: the folder of a run, its files and its lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fs4::TryLockError;
use gru_wgpu::formats::safetensors::{self, SafetensorsOptions};
use gru_wgpu::{Checkpoint, DataFingerprint, ParamLayout, Params};

use crate::rundir::epochs::EpochMetrics;
use crate::ui::files::replace_link;
use crate::ui::output::{causes, check_directory, log, of_file, quote_path, shell_word, warn};
use crate::ui::outputs::{is_kept, is_run, parent_of, run_file};

/// The lock file, held by the run that writes to the folder. It is never removed, because another
/// run may already wait for the same file.
const LOCK: &str = ".lock";

/// The folder of a run.
pub struct RunDir(PathBuf);

/// Locks a folder against other runs until it is dropped or the process ends.
#[must_use]
pub struct RunLock(#[expect(dead_code, reason = "the open file holds the lock")] File);

impl RunDir {
    /// Checks that a path can become the folder of a new run: it does not exist, is empty or, with
    /// `force`, holds another run.
    pub fn claim(path: &Path, force: bool) -> Result<Self> {
        let (folder, shown) = (Self(path.to_owned()), quote_path(path));
        if fs::symlink_metadata(path).is_err() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            check_directory(parent.unwrap_or(Path::new(".")))?;
            return Ok(folder);
        }
        check_directory(path)?;
        let is_run = is_run(path);
        let next = match folder.has_checkpoint() {
            true => {
                format!("continue it with `--resume {}`, replace it with --force", shell_word(path))
            }
            false => "it has no checkpoint to resume from: replace it with --force".to_owned(),
        };
        ensure!(
            force || !is_run,
            "{shown} already holds a run; {next}, or choose another folder with --run"
        );
        let is_empty = fs::read_dir(path)
            .with_context(|| format!("cannot read {shown}"))?
            .all(|entry| entry.is_ok_and(|entry| is_own(&entry.file_name().to_string_lossy())));
        ensure!(
            is_run || !folder.config().exists(),
            "{shown} is not a run folder: its config.toml does not belong to a run; choose another folder with --run"
        );
        ensure!(
            is_run || is_empty,
            "{shown} is not empty and holds no run; choose another folder with --run"
        );
        Ok(folder)
    }

    /// Opens the folder of an existing run.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Self(path.to_owned());
        let shown = quote_path(path);
        ensure!(path.is_dir(), "{shown} is not a run folder: it does not exist");
        ensure!(folder.config().is_file(), "{shown} is not a run folder: it has no config.toml");
        Ok(folder)
    }

    /// Checks that a run in this folder can read its input files again, and overwrites none.
    pub fn check_inputs<'a>(&self, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
        for input in inputs {
            let (shown, folder) = (quote_path(input), quote_path(&self.0));
            let is_stream = input.metadata().is_ok_and(|data| !data.is_file() && !data.is_dir());
            ensure!(
                !is_stream,
                "{shown} is a pipe or a device, which can be read only once, but a run reads its data again when it \
                 resumes: save the data to a file first"
            );
            ensure!(
                !is_kept(&self.0, input),
                "{shown} is a file of the run in {folder}; it would be overwritten: copy it elsewhere first"
            );
            ensure!(
                !self.holds_as_temporary(input),
                "{shown} is named like a temporary file of the run in {folder}; it would be removed: copy \
                 it elsewhere first"
            );
        }
        Ok(())
    }

    /// Returns true if `file` or its link target is in the folder under a name that [`Self::clean`]
    /// removes.
    fn holds_as_temporary(&self, file: &Path) -> bool {
        let Ok(folder) = self.0.canonicalize() else { return false };
        let is_there = |file: &Path| {
            let name = file.file_name().is_some_and(|name| is_temporary(&name.to_string_lossy()));
            name && parent_of(file).canonicalize().is_ok_and(|parent| parent == folder)
        };
        is_there(file) || file.canonicalize().is_ok_and(|target| is_there(&target))
    }

    /// Returns the paths of all files of a run, existing or not.
    pub fn files(&self) -> [PathBuf; run_file::ALL.len()] {
        run_file::ALL.map(|name| self.0.join(name))
    }

    /// Locks the folder against other runs.
    pub fn lock(&self) -> Result<RunLock> {
        let shown = quote_path(&self.0);
        let file = File::options().create(true).truncate(false).write(true).open(self.0.join(LOCK));
        let file = file.with_context(|| format!("cannot write to {shown}"))?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another run is writing to {shown}"),
            // Not every file system supports locks.
            Err(TryLockError::Error(error)) => log(format_args!(
                "{shown} cannot be locked ({error}); do not start another run in this folder"
            )),
        }
        Ok(RunLock(file))
    }

    /// Prepares a locked folder for a run. Removes the temporary files of a killed run. Replaces
    /// links by copies of their targets, so that the run does not write to files elsewhere.
    pub fn clean(&self) -> Result<()> {
        let shown = quote_path(&self.0);
        let entries = fs::read_dir(&self.0).with_context(|| format!("cannot read {shown}"))?;
        for entry in entries.flatten() {
            if is_temporary(&entry.file_name().to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
        let mut links = self.files().into_iter().filter(|file| file.is_symlink());
        links.try_for_each(|link| if link.exists() { replace_link(&link) } else { remove(&link) })
    }

    /// Creates the folder if needed, locks it and removes the files of an earlier run. (An earlier
    /// run is present only with `force`.)
    pub fn take(&self, force: bool) -> Result<RunLock> {
        let shown = || format!("cannot create the folder {}", quote_path(&self.0));
        fs::create_dir_all(&self.0).with_context(shown)?;
        let lock = self.lock()?;
        // Another run may have written here between `claim` and `lock`.
        Self::claim(&self.0, force)?;
        // Keep the configuration until it is overwritten, so that the folder stays a run folder.
        let mut files = self.files().into_iter().filter(|file| *file != self.config());
        let is_there = |file: &Path| file.exists() || file.is_symlink();
        files.try_for_each(|file| if is_there(&file) { remove(&file) } else { Ok(()) })?;
        self.clean()?;
        Ok(lock)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn config(&self) -> PathBuf {
        self.0.join(run_file::CONFIG)
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.0.join(run_file::CHECKPOINT)
    }

    /// Returns the path of the checkpoint before the last one.
    pub fn previous_checkpoint(&self) -> PathBuf {
        self.0.join(run_file::CHECKPOINT_BEFORE)
    }

    pub fn model(&self) -> PathBuf {
        self.0.join(run_file::MODEL)
    }

    pub fn metrics(&self) -> PathBuf {
        self.0.join(run_file::METRICS)
    }

    pub fn curves(&self) -> PathBuf {
        self.0.join(run_file::CURVES)
    }

    /// Returns the path of the per-class results, which a finished `gru train` run writes.
    pub fn classes(&self) -> PathBuf {
        self.0.join(run_file::CLASSES)
    }

    /// Returns the path of the forecast, which a `gru forecast` run writes.
    pub fn forecast(&self) -> PathBuf {
        self.0.join(run_file::FORECAST)
    }

    /// Removes the results of an earlier end of a resumed run. Warns about files that cannot be
    /// removed.
    pub fn remove_results(&self) {
        for file in [self.forecast(), self.classes()].iter().filter(|file| file.exists()) {
            if let Err(error) = remove(file) {
                warn(format_args!(
                    "{}; it holds the results from before the run resumed",
                    causes(&error)
                ));
            }
        }
    }

    /// Reads the model that the run keeps, from the last checkpoint if the model's file was
    /// deleted.
    ///
    /// # Errors
    /// Also if no epoch has finished yet, or if the file holds another model.
    pub fn read_model(&self, kept: KeptModel, command: &str) -> Result<Params> {
        let (path, word) = (self.model(), shell_word(&self.0));
        if path.exists() {
            let params = safetensors::load_network(&path, &SafetensorsOptions::new());
            let params = params.map_err(of_file(&path))?;
            if self.is_last_saved(&params) {
                return Ok(params);
            }
            let shown = quote_path(&path);
            // A run that is saving has replaced the model, and replaces the checkpoint next.
            ensure!(
                self.is_locked(),
                "{shown} is not the model of the run's last checkpoint: the file was replaced, or the run was \
                 stopped while it was saving; `{command} --resume {word}` writes it again, or delete the file to use \
                 the model in the checkpoint"
            );
            log(format_args!("a run is writing to {shown}; using the model in the checkpoint"));
            return self.read_saved(kept);
        }
        if !self.has_checkpoint() {
            self.check_not_lost("model.safetensors and the checkpoints")?;
            bail!(self.has_no_model());
        }
        let params = self.read_saved(kept)?;
        log(format_args!(
            "{} is missing; using the model in the checkpoint. `{command} --resume {word}` writes the file \
             again",
            quote_path(&path),
        ));
        Ok(params)
    }

    /// Checks that a model of the run has the layout that its config.toml describes.
    pub fn check_layout(&self, params: &Params, expected: &ParamLayout) -> Result<()> {
        let describe = |layout: &ParamLayout| {
            let outputs = layout.head().map_or(0, |head| head.outputs);
            format!("{} with {outputs} outputs", layout.config())
        };
        ensure!(
            params.layout() == expected,
            "{}: [model] describes {}, but {} holds {}",
            quote_path(&self.config()),
            describe(expected),
            quote_path(&self.model()),
            describe(params.layout())
        );
        Ok(())
    }

    /// Reads the model in the last checkpoint.
    fn read_saved(&self, kept: KeptModel) -> Result<Params> {
        let checkpoint = self.read_checkpoint()?;
        kept.of(&checkpoint).cloned().with_context(|| self.has_no_model())
    }

    fn has_no_model(&self) -> String {
        format!("{} holds no model yet: no epoch has finished", quote_path(&self.0))
    }

    /// Returns false if the last checkpoint was saved with another model than `params`. Without a
    /// checkpoint, or with one of a version that noted no fingerprint, any model is accepted.
    fn is_last_saved(&self, params: &Params) -> bool {
        let notes = Checkpoint::load_notes(self.checkpoint()).unwrap_or_default();
        notes.get(MODEL_NOTE).is_none_or(|saved| *saved == model_fingerprint(params))
    }

    /// Returns true if another process holds the folder's lock.
    fn is_locked(&self) -> bool {
        let file = File::open(self.0.join(LOCK));
        file.is_ok_and(|file| {
            matches!(fs4::FileExt::try_lock_shared(&file), Err(TryLockError::WouldBlock))
        })
    }

    fn has_checkpoint(&self) -> bool {
        self.checkpoint().exists() || self.previous_checkpoint().exists()
    }

    /// Refuses a folder whose metrics.csv has finished epochs but whose `files` are missing.
    fn check_not_lost(&self, files: &str) -> Result<()> {
        let (finished, shown) = (EpochMetrics::count(&self.metrics()), quote_path(&self.0));
        ensure!(
            finished == 0,
            "{files} of {shown} are missing, although {finished} epochs have finished; train again with \
             --force"
        );
        Ok(())
    }

    /// Reads the last checkpoint that is intact.
    pub fn read_checkpoint(&self) -> Result<Checkpoint> {
        let (path, shown) = (self.checkpoint(), quote_path(&self.0));
        if !self.has_checkpoint() {
            self.check_not_lost(match self.model().exists() {
                true => "the checkpoints",
                false => "model.safetensors and the checkpoints",
            })?;
            bail!("{shown} holds no checkpoint yet; start the run from the beginning with --force");
        }
        let (checkpoint, refused) =
            Checkpoint::load_last(&path).or_else(|last| {
                let before = self.previous_checkpoint();
                let previous = Checkpoint::load(&before);
                previous.map(|previous| (previous, Some(last.clone()))).map_err(|previous| {
                    let [last, previous] = [(&path, last), (&before, previous)]
                        .map(|(file, error)| causes(&of_file(file)(error)));
                    anyhow!(
                        "{last}; {previous}; there is no other checkpoint to resume from; start from the beginning with --force"
                    )
                })
            })?;
        if let Some(error) = refused {
            let error = causes(&of_file(&path)(error));
            log(format_args!("{error}; using the previous checkpoint"));
        }
        Ok(checkpoint)
    }
}

/// The key of the kept model's fingerprint in a checkpoint's notes.
pub const MODEL_NOTE: &str = "model";

/// Returns a hash of a model's parameters, which tells it from every other model of the same shape.
pub fn model_fingerprint(params: &Params) -> String {
    let numbers = params.as_slice();
    let bits = numbers.iter().map(|number| number.to_bits().into());
    format!("{:016x}", DataFingerprint::of_numbers(numbers.len(), bits).hash)
}

/// The network that a run keeps as its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptModel {
    /// The network with the best validation result.
    Best,
    /// The network after the last update.
    Last,
}

impl KeptModel {
    /// Returns its parameters, or `None` if the best network is kept and no epoch was validated
    /// yet.
    pub fn of(self, checkpoint: &Checkpoint) -> Option<&Params> {
        match self {
            Self::Best => checkpoint.best.as_ref().map(|best| &best.params),
            Self::Last => Some(&checkpoint.state.params),
        }
    }
}

fn remove(file: &Path) -> Result<()> {
    fs::remove_file(file).with_context(|| format!("cannot remove {}", quote_path(file)))
}

/// Returns true for names that do not count as contents: the lock and temporary files.
fn is_own(name: &str) -> bool {
    name == LOCK || is_temporary(name)
}

/// Returns true for the name of a temporary file of `write_file`, which a killed process leaves
/// behind: `.tmp` and six letters or digits.
fn is_temporary(name: &str) -> bool {
    name.strip_prefix(".tmp").is_some_and(|rest| {
        rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}
