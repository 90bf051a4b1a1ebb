//! The folder of a run: its files, and what they may not overwrite.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gru_wgpu::Checkpoint;
use gru_wgpu::formats::write_whole;

use super::output::{check_directory, note, quote_path};

pub struct Folder(PathBuf);

impl Folder {
    /// A folder for a new run: one that is not there yet, an empty one, or with `force` another run's.
    pub fn claim(path: &Path, force: bool) -> Result<Self> {
        let (folder, shown) = (Self(path.to_owned()), quote_path(path));
        if fs::symlink_metadata(path).is_err() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            check_directory(parent.unwrap_or(Path::new(".")))?;
            return Ok(folder);
        }
        check_directory(path)?;
        let mut entries = fs::read_dir(path).with_context(|| format!("cannot read {shown}"))?;
        let is_run = folder.config().exists();
        ensure!(
            force || !is_run,
            "{shown} holds a run already: --resume {shown} goes on with it, --force starts anew in its \
             place, --run puts this one elsewhere"
        );
        ensure!(
            is_run || entries.next().is_none(),
            "{shown} is not empty, and what it holds is no run"
        );
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

    /// Makes it where it is not there, and takes an earlier run's files away.
    pub fn clear(&self) -> Result<()> {
        let shown = || format!("cannot make the folder {}", quote_path(&self.0));
        fs::create_dir_all(&self.0).with_context(shown)?;
        let (training, pictures) = (
            [self.checkpoint(), self.before(), self.model(), self.metrics()],
            [self.curves(), self.forecast()],
        );
        for file in training.iter().chain(&pictures).filter(|file| file.exists()) {
            fs::remove_file(file).with_context(|| format!("cannot remove {}", quote_path(file)))?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// The checkpoint before the last one.
    pub fn before(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors.before")
    }

    pub fn model(&self) -> PathBuf {
        self.0.join("model.safetensors")
    }

    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.csv")
    }

    pub fn curves(&self) -> PathBuf {
        self.0.join("curves.svg")
    }

    /// Of a run of `gru forecast`.
    pub fn forecast(&self) -> PathBuf {
        self.0.join("forecast.svg")
    }

    /// The last checkpoint that can be read.
    pub fn read_checkpoint(&self) -> Result<Checkpoint> {
        let (path, shown) = (self.checkpoint(), quote_path(&self.0));
        ensure!(
            path.exists() || self.before().exists(),
            "{shown} holds no checkpoint yet; start the run again with --force"
        );
        let (checkpoint, refused) = Checkpoint::read_last(&path)?;
        if let Some(error) = refused {
            note(format_args!("{error}; the checkpoint before it is taken"));
        }
        Ok(checkpoint)
    }
}

/// What an epoch came to: a row of `metrics.csv`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: usize,
    /// Since the start.
    pub updates: u64,
    /// Of the last of them.
    pub learning_rate: f64,
    pub train_loss: f32,
    pub valid_loss: f64,
    /// Where there are classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// Of training, since the start.
    pub seconds: f64,
}

impl Epoch {
    pub fn write_all(epochs: &[Self], path: &Path) -> Result<()> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        epochs.iter().try_for_each(|epoch| csv.serialize(epoch))?;
        let csv = csv.into_inner().context("the metrics do not go into a file")?;
        Ok(write_whole(path, |to| to.write_all(&csv))?)
    }

    /// Those of the first `count` epochs.
    pub fn read(path: &Path, count: usize) -> Result<Vec<Self>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let shown = || format!("cannot read {}", quote_path(path));
        let mut csv = csv::Reader::from_path(path).with_context(shown)?;
        let epochs: Vec<_> =
            csv.deserialize().take(count).collect::<Result<_, _>>().with_context(shown)?;
        ensure!(
            epochs.len() == count,
            "{}: it has {} rows, expected {count}",
            shown(),
            epochs.len()
        );
        Ok(epochs)
    }
}
