//! [`CheckpointWriter`]: writes a run's checkpoints. Also checks whether a run can resume from one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gru_wgpu::{Checkpoint, Device, Progress};

use crate::rundir::folder::RunDir;
use crate::ui::output::{causes, log, quote, quote_path, warn};

/// The interval between two checkpoints.
#[derive(Clone, Copy, Debug)]
pub enum CheckpointInterval {
    Updates(u64),
    Time(Duration),
}

/// Parses an interval: `500` (updates), `90s`, `10m` or `2h`.
pub fn interval(text: &str) -> Result<CheckpointInterval> {
    let expected = "expected a number of updates such as 500, or a time such as 90s, 10m or 2h";
    let (number, seconds) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], Some(1)),
        Some((at, 'm')) => (&text[..at], Some(60)),
        Some((at, 'h')) => (&text[..at], Some(3600)),
        _ => (text, None),
    };
    let number: u64 = number.parse().ok().filter(|&number| number > 0).context(expected)?;
    Ok(match seconds {
        None => CheckpointInterval::Updates(number),
        Some(unit) => CheckpointInterval::Time(Duration::from_secs(number.saturating_mul(unit))),
    })
}

/// Keys of a checkpoint's notes: the data, the device, and the seconds of training.
const DATA: &str = "data";
const DEVICE: &str = "device";
const SECONDS: &str = "seconds";

/// Writes a run's checkpoints.
pub struct CheckpointWriter<'a> {
    folder: &'a RunDir,
    interval: CheckpointInterval,
    device: String,
    /// Identifies the training and validation data, to compare when the run resumes.
    data: String,
    /// Seconds of training before this session.
    earlier: f64,
    /// The time and the number of updates at the last checkpoint or at the start of this session.
    saved: (Instant, u64),
    /// The number of updates and the progress of the folder's last checkpoint, if there is one.
    last: Option<(u64, Progress)>,
    /// True after this session has written a checkpoint, or found an identical one in the folder.
    has_saved: bool,
    /// True after a warning that files cannot be written.
    has_warned: bool,
}

impl<'a> CheckpointWriter<'a> {
    /// Creates a writer for a new run, or for one that resumes from `checkpoint`. Logs a note if
    /// that checkpoint was made on another device.
    pub fn new(
        folder: &'a RunDir,
        interval: CheckpointInterval,
        data: String,
        device: &Device,
        checkpoint: Option<&Checkpoint>,
    ) -> Self {
        let note_of = |key: &str| checkpoint?.notes.get(key);
        let earlier = note_of(SECONDS).and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
        let device = device.to_string();
        if let Some(other) = note_of(DEVICE).filter(|other| **other != device) {
            log(format_args!(
                "the run was trained on {} before; results may differ in the last bits",
                quote(other)
            ));
        }
        let last = checkpoint.map(position_of);
        let saved = (Instant::now(), 0);
        let (has_saved, has_warned) = (false, false);
        Self { folder, interval, device, data, earlier, saved, last, has_saved, has_warned }
    }

    pub fn folder(&self) -> &'a RunDir {
        self.folder
    }

    /// Starts measuring the interval. `updates` updates were made before.
    pub fn start(&mut self, updates: u64) {
        self.saved = (Instant::now(), updates);
    }

    /// Returns true if a checkpoint is due after `updates` updates. The first one of a session is
    /// due after its first epoch at the latest. If writing fails, the next attempt is at the next
    /// due time.
    pub fn is_due(&mut self, updates: u64, is_epoch_over: bool) -> bool {
        let (time, before) = self.saved;
        let is_time = match self.interval {
            CheckpointInterval::Updates(count) => updates - before >= count,
            CheckpointInterval::Time(time_between) => time.elapsed() >= time_between,
        };
        if is_time {
            self.saved = (Instant::now(), updates);
            self.has_warned = false;
        }
        is_time || (is_epoch_over && !self.has_saved)
    }

    /// Turns a failure to write files into a warning, so that the run continues. Warns once until a
    /// write succeeds or the next checkpoint is due.
    ///
    /// # Errors
    /// Returns any other error.
    pub fn tolerate(&mut self, saved: Result<()>) -> Result<()> {
        let Some(why) = unsaved(saved)? else { return Ok(()) };
        if !self.has_warned {
            warn(format_args!("the run continues, but was not saved: {}", causes(&why)));
            self.has_warned = true;
        }
        Ok(())
    }

    /// Returns the seconds of training of the whole run. `elapsed` is the time of this session.
    pub fn seconds(&self, elapsed: Duration) -> f64 {
        self.earlier + elapsed.as_secs_f64()
    }

    /// Describes the existing checkpoints for the message of a run that diverged.
    pub fn kept(&self) -> Option<String> {
        let shown = quote_path(self.folder.path());
        match (self.has_saved, self.last) {
            // After a bad change of settings the last checkpoint may be finite and still useless.
            (true, _) if self.folder.previous_checkpoint().exists() => Some(format!(
                "the last checkpoint before that is in {shown}; if it is useless, replace it by the previous one, \
                 checkpoint.safetensors.before"
            )),
            (true, _) => Some(format!("the last checkpoint before that is in {shown}")),
            (false, Some(_)) => Some(format!(
                "the checkpoints in {shown} are still those that the run resumed from"
            )),
            (false, None) => None,
        }
    }

    /// Writes a checkpoint, unless the last one has the same position. Writing that one again would
    /// replace the previous checkpoint by a copy.
    pub fn write(&mut self, mut checkpoint: Checkpoint, elapsed: Duration) -> Result<()> {
        let position = position_of(&checkpoint);
        if self.last != Some(position) {
            checkpoint.notes.insert(DEVICE.to_owned(), self.device.clone());
            checkpoint.notes.insert(SECONDS.to_owned(), self.seconds(elapsed).to_string());
            checkpoint.notes.insert(DATA.to_owned(), self.data.clone());
            if !self.has_saved {
                self.folder.remove_results();
            }
            checkpoint.save(self.folder.checkpoint())?;
            self.last = Some(position);
        }
        (self.has_saved, self.has_warned) = (true, false);
        self.saved = (Instant::now(), position.0);
        Ok(())
    }
}

/// Returns the reason if files of a run could not be written, which does not harm the run itself.
/// Any other error stays an error.
pub fn unsaved(saved: Result<()>) -> Result<Option<anyhow::Error>> {
    let Err(error) = saved else { return Ok(None) };
    let of_library = error.chain().find_map(|cause| cause.downcast_ref::<gru_wgpu::Error>());
    let is_io = match of_library {
        // Other library errors can have a system error as their source too.
        Some(error) => matches!(error, gru_wgpu::Error::Io { .. }),
        None => error.root_cause().is::<std::io::Error>(),
    };
    if is_io { Ok(Some(error)) } else { Err(error) }
}

/// Keeps a checkpoint from which a diverged run can resume, and describes it. Existing checkpoints,
/// described by `kept`, stay: the later state may be finite but useless, and must not replace them.
/// Without any, calls `save`.
pub fn keep_good(
    folder: &RunDir,
    kept: Option<String>,
    save: impl FnOnce() -> Result<()>,
) -> String {
    kept.unwrap_or_else(|| match save() {
        Ok(()) => format!("the last good update is saved in {}", quote_path(folder.path())),
        Err(error) => format!("the updates before it could not be saved: {}", causes(&error)),
    })
}

/// Describes the error that ended a run. `made_from` describes the examples of a diverged update,
/// `kept` the checkpoint to resume from if the run has a folder.
pub fn explain(error: &gru_wgpu::Error, made_from: &str, kept: Option<&str>) -> anyhow::Error {
    let kept = kept.map_or_else(String::new, |kept| format!("; {kept}"));
    let gru_wgpu::Error::Diverged { step, loss, norm, largest, parameter, .. } = error else {
        return anyhow!("{error}{kept}");
    };
    let from = if made_from.is_empty() { String::new() } else { format!(" ({made_from})") };
    let outcome = match loss.is_finite() && norm.is_finite() {
        true => ", and the updated parameters would not be finite",
        false => "",
    };
    let resumed = if kept.is_empty() { "" } else { " with --resume" };
    anyhow!(
        "update {}{from} diverged: loss {loss}, gradient norm {norm}, largest gradient element {largest} in \
         {parameter}{outcome}{kept}; try a lower --learning-rate or --clip{resumed}",
        step + 1
    )
}

/// Returns the number of updates and the progress of a checkpoint.
fn position_of(checkpoint: &Checkpoint) -> (u64, Progress) {
    (checkpoint.state.moments.steps, checkpoint.progress)
}

/// Returns true if the checkpoint's run used this data.
pub fn is_of(checkpoint: &Checkpoint, data: &str) -> bool {
    checkpoint.notes.get(DATA).is_none_or(|noted| noted == data)
}

/// Checks that the tables of a folder's configuration are the same as in its checkpoint.
pub fn check_same(folder: &RunDir, tables: &[(&str, bool)]) -> Result<()> {
    let shown = quote_path(&folder.config());
    for (what, is_same) in tables {
        ensure!(
            is_same,
            "{shown}: {what} has changed since the run started; restore it, because a run resumes only with its own \
             settings"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Other library errors may have a system error as their source. They still end the run.
    #[test]
    fn only_files_that_cannot_be_written_are_tolerated() {
        let system = || io::Error::other("no space left");
        let path = "/nowhere/checkpoint.safetensors";
        let missing = || Checkpoint::load(path).expect_err("no file");
        assert!(matches!(missing(), gru_wgpu::Error::Io { .. }));
        for error in [anyhow!(missing()), anyhow!(missing()).context("a"), anyhow!(system())] {
            assert!(unsaved(Err(error)).unwrap().is_some());
        }
        assert!(unsaved(Err(anyhow!(system()).context("a"))).unwrap().is_some());
        let lost = gru_wgpu::Error::DeviceLost("unplugged".to_owned());
        let source = Some(gru_wgpu::Cause::new(system()));
        let full = gru_wgpu::Error::OutOfMemory { reason: "no memory".to_owned(), source };
        for error in [anyhow!(lost), anyhow!(full), anyhow!("something else")] {
            assert!(unsaved(Err(error)).is_err());
        }
    }
}
