//! The folder of a run: its files, and which files it must not overwrite.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fs4::TryLockError;
use gru_wgpu::formats::safetensors;
use gru_wgpu::{Checkpoint, Params};

use crate::rundir::epochs::EpochMetrics;
use crate::ui::files::replace_link;
use crate::ui::output::{causes, check_directory, log, quote_path, shell_word, warn};
use crate::ui::outputs::{is_kept, is_run, parent_of, run_file};

/// Held by the run that writes to the folder. It stays there: whoever removed it could not know who
/// waits.
const LOCK: &str = ".lock";

pub struct RunDir(PathBuf);

/// Keeps other runs out of a folder until it is dropped, or the program ends in whatever way.
#[must_use]
pub struct RunLock(#[expect(dead_code, reason = "it is held open")] File);

impl RunDir {
    /// A folder for a new run: one that is not there yet, an empty one, or with `force` another
    /// run's.
    pub fn claim(path: &Path, force: bool) -> Result<Self> {
        let (folder, shown) = (Self(path.to_owned()), quote_path(path));
        if fs::symlink_metadata(path).is_err() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            check_directory(parent.unwrap_or(Path::new(".")))?;
            return Ok(folder);
        }
        check_directory(path)?;
        let is_run = is_run(path);
        ensure!(
            force || !is_run,
            "{shown} holds a run already: --resume {shown} goes on with it, --force starts anew in its \
             place, --run puts this one elsewhere"
        );
        let is_empty = fs::read_dir(path)
            .with_context(|| format!("cannot read {shown}"))?
            .all(|entry| entry.is_ok_and(|entry| is_own(&entry.file_name().to_string_lossy())));
        ensure!(
            is_run || !folder.config().exists(),
            "{shown} holds files of something else: its config.toml is not that of a run"
        );
        ensure!(is_run || is_empty, "{shown} is not empty, and what it holds is no run");
        Ok(folder)
    }

    /// The folder of a run.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Self(path.to_owned());
        let shown = quote_path(path);
        ensure!(path.is_dir(), "{shown} is no folder of a run: there is no such folder");
        ensure!(
            folder.config().is_file(),
            "{shown} is no folder of a run: it holds no config.toml"
        );
        Ok(folder)
    }

    /// `Ok` when a run in this folder would overwrite none of the files that it reads.
    pub fn check_inputs<'a>(&self, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
        for input in inputs {
            let (shown, folder) = (quote_path(input), quote_path(&self.0));
            ensure!(
                !is_kept(&self.0, input),
                "{shown} is a file of the run in {folder}; it would be overwritten: copy it elsewhere first"
            );
            ensure!(
                !self.holds_as_temporary(input),
                "{shown} has the name of a temporary file of the run in {folder}; it would be removed: copy \
                 it elsewhere first"
            );
        }
        Ok(())
    }

    /// Whether `file`, or what it links to, is in the folder under a name that [`Self::clean`]
    /// removes.
    fn holds_as_temporary(&self, file: &Path) -> bool {
        let Ok(folder) = self.0.canonicalize() else { return false };
        let is_there = |file: &Path| {
            let name = file.file_name().is_some_and(|name| is_temporary(&name.to_string_lossy()));
            name && parent_of(file).canonicalize().is_ok_and(|parent| parent == folder)
        };
        is_there(file) || file.canonicalize().is_ok_and(|target| is_there(&target))
    }

    /// The files that it keeps, whether or not they are there.
    pub fn files(&self) -> [PathBuf; run_file::ALL.len()] {
        run_file::ALL.map(|name| self.0.join(name))
    }

    /// Keeps other runs out from now on.
    pub fn lock(&self) -> Result<RunLock> {
        let shown = quote_path(&self.0);
        let file = File::options().create(true).truncate(false).write(true).open(self.0.join(LOCK));
        let file = file.with_context(|| format!("cannot write to {shown}"))?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another run is writing to {shown}"),
            // Not every file system has locks.
            Err(TryLockError::Error(error)) => log(format_args!(
                "{shown} cannot be locked ({error}): no other run may write there meanwhile"
            )),
        }
        Ok(RunLock(file))
    }

    /// Prepares a locked folder for what a run writes: removes what a killed run was about to
    /// write, and replaces links, which would lead writes to files elsewhere, by copies of their
    /// files.
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

    /// Makes it where it is not there, keeps others out, and takes an earlier run's files away,
    /// which are there only with `force`.
    pub fn take(&self, force: bool) -> Result<RunLock> {
        let shown = || format!("cannot make the folder {}", quote_path(&self.0));
        fs::create_dir_all(&self.0).with_context(shown)?;
        let lock = self.lock()?;
        // Another run may have come and gone since it was claimed.
        Self::claim(&self.0, force)?;
        // The configuration is replaced in its place: until then the folder is a run's.
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

    /// The checkpoint before the last one.
    pub fn before(&self) -> PathBuf {
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

    /// Of a run of `gru train` that came to its end.
    pub fn classes(&self) -> PathBuf {
        self.0.join(run_file::CLASSES)
    }

    /// Of a run of `gru forecast`.
    pub fn forecast(&self) -> PathBuf {
        self.0.join(run_file::FORECAST)
    }

    /// Takes away what was told of an earlier end of a run that goes on. What cannot be is said.
    pub fn remove_results(&self) {
        for file in [self.forecast(), self.classes()].iter().filter(|file| file.exists()) {
            if let Err(error) = remove(file) {
                warn(format_args!("{}; it tells of the run as it was before", causes(&error)));
            }
        }
    }

    /// The model that the run keeps. Where its file was deleted the last checkpoint has it, too.
    ///
    /// # Errors
    /// Also when no epoch is over.
    pub fn read_model(&self, kept: KeptModel, command: &str) -> Result<Params> {
        let path = self.model();
        if path.exists() {
            return Ok(safetensors::load_network(path, &safetensors::SafetensorsOptions::new())?);
        }
        let shown = quote_path(&self.0);
        let none = || format!("{shown} holds no model yet: none of its epochs is over");
        if !self.has_checkpoint() {
            self.check_not_lost("model.safetensors and the checkpoints")?;
            bail!(none());
        }
        let checkpoint = self.read_checkpoint()?;
        let params = kept.of(&checkpoint).cloned().with_context(none)?;
        log(format_args!(
            "{} is missing: the model is taken from the checkpoint; `{command} --resume {}` writes it \
             again",
            quote_path(&path),
            shell_word(&self.0)
        ));
        Ok(params)
    }

    fn has_checkpoint(&self) -> bool {
        self.checkpoint().exists() || self.before().exists()
    }

    /// `Ok` unless metrics.csv says that epochs are over, after which there were `files`.
    fn check_not_lost(&self, files: &str) -> Result<()> {
        let (over, shown) = (EpochMetrics::count(&self.metrics()), quote_path(&self.0));
        ensure!(
            over == 0,
            "{files} of {shown} are missing, though {over} of its epochs are over; train it again with \
             --force"
        );
        Ok(())
    }

    /// The last checkpoint that can be read.
    pub fn read_checkpoint(&self) -> Result<Checkpoint> {
        let (path, shown) = (self.checkpoint(), quote_path(&self.0));
        if !self.has_checkpoint() {
            self.check_not_lost(match self.model().exists() {
                true => "the checkpoints",
                false => "model.safetensors and the checkpoints",
            })?;
            bail!("{shown} holds no checkpoint yet; start the run again with --force");
        }
        let (checkpoint, refused) =
            Checkpoint::load_last(&path).or_else(|last| match Checkpoint::load(self.before()) {
                Ok(before) => Ok((before, Some(last))),
                Err(before) => Err(anyhow!(
                    "{last}; {before}; there is no other checkpoint to go on from, and --force starts anew"
                )),
            })?;
        if let Some(error) = refused {
            log(format_args!("{error}; the checkpoint before it is taken"));
        }
        Ok(checkpoint)
    }
}

/// Which of its networks a run keeps as its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptModel {
    /// The one that did best on the held-out part.
    Best,
    /// The one after the last update.
    Last,
}

impl KeptModel {
    /// Its parameters; `None` where no epoch was validated.
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

/// What is in a folder without its holding anything.
fn is_own(name: &str) -> bool {
    name == LOCK || is_temporary(name)
}

/// Whether `write_file` may have left it behind where the program was killed: `.tmp` and six
/// letters or digits.
fn is_temporary(name: &str) -> bool {
    name.strip_prefix(".tmp").is_some_and(|rest| {
        rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}
