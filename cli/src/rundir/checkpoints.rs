//! When a run's checkpoint is written, what it notes, and whether a run may go on from it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gru_wgpu::{Checkpoint, Device, Progress};

use crate::rundir::folder::RunDir;
use crate::ui::output::{causes, log, quote, quote_path, warn};

/// How often a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub enum CheckpointInterval {
    Updates(u64),
    Time(Duration),
}

/// `500`, `90s`, `10m` or `2h`.
pub fn interval(text: &str) -> Result<CheckpointInterval> {
    let expected =
        "expected a number of updates, or of seconds, minutes or hours as in 90s, 10m or 2h";
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

/// What a checkpoint notes: the data, the device, and the seconds that training took.
const DATA: &str = "data";
const DEVICE: &str = "device";
const SECONDS: &str = "seconds";

/// Writes a run's checkpoints.
pub struct CheckpointWriter<'a> {
    folder: &'a RunDir,
    interval: CheckpointInterval,
    device: String,
    /// What it is trained and validated on, to be held against another time's.
    data: String,
    /// Seconds of training before this part.
    earlier: f64,
    /// When the last checkpoint was written, or this part begun, and after how many updates.
    saved: (Instant, u64),
    /// After how many updates, and where, the folder's last checkpoint was taken, if there is one.
    last: Option<(u64, Progress)>,
    /// Whether this part has come to where that was or further.
    has_saved: bool,
    /// Whether it was said that files cannot be written.
    has_warned: bool,
}

impl<'a> CheckpointWriter<'a> {
    /// Of a new run, or of one that goes on from `checkpoint`: says so where that was on another
    /// device.
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
                "it was trained on {} before; the last bits will be others",
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

    /// Training begins, or goes on after so many updates.
    pub fn start(&mut self, updates: u64) {
        self.saved = (Instant::now(), updates);
    }

    /// Whether it is time for a checkpoint after so many updates: soon for the first of this part,
    /// however seldom they are asked for. Where it cannot be written it is tried again when the
    /// next is due.
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

    /// Has a run go on though its files could not be written, and says so: once until they are, or
    /// until the next checkpoint is due.
    ///
    /// # Errors
    /// What else went wrong.
    pub fn tolerate(&mut self, saved: Result<()>) -> Result<()> {
        let Some(why) = unsaved(saved)? else { return Ok(()) };
        if !self.has_warned {
            warn(format_args!("the run goes on, but was not saved: {}", causes(&why)));
            self.has_warned = true;
        }
        Ok(())
    }

    /// Seconds of training, of which this part took so long.
    pub fn seconds(&self, elapsed: Duration) -> f64 {
        self.earlier + elapsed.as_secs_f64()
    }

    /// What to say of the checkpoints that are there when a run diverges.
    pub fn kept(&self) -> Option<String> {
        let shown = quote_path(self.folder.path());
        match (self.has_saved, self.last) {
            // After a bad change of settings the last one may be finite and ruined all the same.
            (true, _) if self.folder.before().exists() => Some(format!(
                "the last checkpoint before that is in {shown}, and the one before it, \
                 checkpoint.safetensors.before, too, to be put in its place where the last is of no use"
            )),
            (true, _) => Some(format!("the last checkpoint before that is in {shown}")),
            (false, Some(_)) => {
                Some(format!("the checkpoints in {shown} stay those that it went on from"))
            }
            (false, None) => None,
        }
    }

    /// Writes a checkpoint, when what it goes on from is there. One of where the last one was taken
    /// is not written again: the one before that is worth more.
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

/// Why files of a run could not be written, if so: the run itself is as good as before. What else
/// went wrong is an error.
pub fn unsaved(saved: Result<()>) -> Result<Option<anyhow::Error>> {
    let Err(error) = saved else { return Ok(None) };
    let of_library = error.chain().find_map(|cause| cause.downcast_ref::<gru_wgpu::Error>());
    let is_io = match of_library {
        // Its other errors keep the system's error as their source, too.
        Some(error) => matches!(error, gru_wgpu::Error::Io { .. }),
        None => error.root_cause().is::<std::io::Error>(),
    };
    if is_io { Ok(Some(error)) } else { Err(error) }
}

/// Keeps what a run that diverged can be gone on from, and says what that is: the checkpoints that
/// are there, of which `kept` tells, or else what `save` writes. They stay: what it came to since
/// may be finite and of no use, and would take their place.
pub fn keep_good(
    folder: &RunDir,
    kept: Option<String>,
    save: impl FnOnce() -> Result<()>,
) -> String {
    kept.unwrap_or_else(|| match save() {
        Ok(()) => format!("what was good until then is in {}", quote_path(folder.path())),
        Err(error) => format!("and the updates before it were not saved: {}", causes(&error)),
    })
}

/// What ended a run, in words. Of an update that diverged `made_from` tells what it was made from.
/// `kept` tells what there is to go on from, where the run has a folder.
pub fn explain(error: &gru_wgpu::Error, made_from: &str, kept: Option<&str>) -> anyhow::Error {
    let kept = kept.map_or_else(String::new, |kept| format!("; {kept}"));
    let gru_wgpu::Error::Diverged { step, loss, norm, largest, parameter, .. } = error else {
        return anyhow!("{error}{kept}");
    };
    let from = if made_from.is_empty() { String::new() } else { format!(" ({made_from})") };
    let outcome = match loss.is_finite() && norm.is_finite() {
        true => ", and what it would make of the parameters is not finite",
        false => "",
    };
    let resumed = if kept.is_empty() { "" } else { ", with --resume, too" };
    anyhow!(
        "update {}{from} diverged: loss {loss}, the gradient's norm {norm}, its largest element {largest} in \
         {parameter}{outcome}{kept}; a lower --learning-rate or --clip may help{resumed}",
        step + 1
    )
}

/// After how many updates, and where.
fn position_of(checkpoint: &Checkpoint) -> (u64, Progress) {
    (checkpoint.state.moments.steps, checkpoint.progress)
}

/// Whether a checkpoint's run was on this data.
pub fn is_of(checkpoint: &Checkpoint, data: &str) -> bool {
    checkpoint.notes.get(DATA).is_none_or(|noted| noted == data)
}

/// `Ok` when the tables of a folder's configuration are all those of its checkpoint.
pub fn check_same(tables: &[(&str, bool)]) -> Result<()> {
    for (what, is_same) in tables {
        ensure!(
            is_same,
            "{what} in config.toml is not what the run was started with; a run goes on with its own settings"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Other errors of the library may come from the system, too, and end the run all the same.
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
