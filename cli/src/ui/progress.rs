//! Progress of reading: a bar on a terminal. Progress of training: a bar on a terminal, one line per
//! epoch elsewhere.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::ui::output::log;

/// Shows how much of a file has been read, on a terminal. Removed when it is dropped.
pub struct ReadingDisplay(ProgressBar);

impl ReadingDisplay {
    /// Makes a display for a file of `bytes` bytes, whose quoted name is `shown`.
    pub fn new(shown: &str, bytes: usize) -> Self {
        let bar = ProgressBar::new(bytes as u64);
        let style = "reading {msg} {bar:20} {percent:>3} %  {eta} left";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
        bar.set_message(shown.to_owned());
        Self(bar)
    }

    /// Advances to this many bytes.
    pub fn reach(&self, bytes: usize) {
        self.0.set_position(bytes as u64);
    }
}

impl Drop for ReadingDisplay {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Shows the progress of training.
pub struct ProgressDisplay {
    bar: ProgressBar,
    start: Instant,
    epochs: usize,
    unit: &'static str,
    epoch: usize,
    /// Examples since the start of this process, without those before a resume.
    done: usize,
    /// Examples of this epoch so far, and the sum and total weight of their losses.
    seen: usize,
    loss: (f64, usize),
    /// The text shown for the last complete epoch.
    last_epoch: String,
}

impl ProgressDisplay {
    /// Makes a display for `total` examples, called `unit`, in `epochs` epochs.
    pub fn new(total: u64, epochs: usize, unit: &'static str) -> Result<Self> {
        let bar = ProgressBar::new(total);
        let style = "{prefix} {bar:20} {percent:>3} %  {msg}  {per_sec:>14}  {eta} left";
        bar.set_style(ProgressStyle::with_template(style)?.with_key(
            "per_sec",
            move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // A bar cannot report a formatting error.
                let _ = write!(out, "{:.0} {unit}/s", state.per_sec());
            },
        ));
        let start = Instant::now();
        Ok(Self {
            bar,
            start,
            epochs,
            unit,
            epoch: 0,
            done: 0,
            seen: 0,
            loss: (0.0, 0),
            last_epoch: String::new(),
        })
    }

    /// Starts where an earlier run stopped: in `epoch`, after `seen` of its `all` examples, with
    /// the sum and total weight of their losses.
    pub fn start_at(&mut self, epoch: usize, seen: usize, all: usize, loss: (f64, usize)) {
        (self.epoch, self.seen, self.loss) = (epoch, seen, loss);
        self.bar.set_position((epoch as u64).saturating_mul(all as u64) + seen as u64);
        self.bar.reset_eta();
        self.start = Instant::now();
        self.show();
    }

    /// Advances to `seen` examples of `epoch`.
    pub fn reach(&mut self, epoch: usize, seen: usize, loss: (f64, usize)) {
        let before = if epoch == self.epoch { self.seen } else { 0 };
        (self.epoch, self.seen, self.loss) = (epoch, seen, loss);
        self.done += seen - before;
        self.show();
        self.bar.inc((seen - before) as u64);
    }

    fn show(&self) {
        self.bar.set_prefix(self.prefix());
        let loss = if self.loss.1 > 0 { format!("loss {:.5}", self.loss()) } else { String::new() };
        self.bar.set_message(format!("{loss}{}", self.last_epoch));
    }

    fn prefix(&self) -> String {
        format!("epoch {:>3}/{}", (self.epoch + 1).min(self.epochs), self.epochs)
    }

    fn loss(&self) -> f64 {
        self.loss.0 / self.loss.1.max(1) as f64
    }

    /// Shows `more` about the completed epoch: beside the bar, or on its own line without a bar.
    pub fn end_epoch(&mut self, more: &str) {
        self.last_epoch = more.to_owned();
        self.show();
        if self.bar.is_hidden() {
            let rate = self.done as f64 / self.start.elapsed().as_secs_f64();
            let (prefix, loss, unit) = (self.prefix(), self.loss(), self.unit);
            log(format_args!("{prefix}  loss {loss:.5}{more}  {rate:.0} {unit}/s"));
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Returns the time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
