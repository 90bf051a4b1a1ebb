//! How training goes, while it goes: a bar on a terminal, a line an epoch elsewhere.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::ui::output::log;

pub struct ProgressDisplay {
    bar: ProgressBar,
    start: Instant,
    epochs: usize,
    unit: &'static str,
    epoch: usize,
    /// Examples since the start: what an earlier run did is not among them.
    done: usize,
    /// Of the epoch, the examples, and of their losses the sum and its weight.
    seen: usize,
    loss: (f64, usize),
    /// What was said of the last epoch.
    told: String,
}

impl ProgressDisplay {
    /// Over so many examples, called `unit`, in so many epochs.
    pub fn new(total: u64, epochs: usize, unit: &'static str) -> Result<Self> {
        let bar = ProgressBar::new(total);
        let style = "{prefix} {bar:20} {percent:>3} %  {msg}  {per_sec:>14}  {eta} left";
        bar.set_style(ProgressStyle::with_template(style)?.with_key(
            "per_sec",
            move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // A bar cannot report that its text would not format.
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
            told: String::new(),
        })
    }

    /// Where an earlier run stood: in `epoch`, of whose `all` examples so many are done, with the sum of
    /// their losses and its weight.
    pub fn start_at(&mut self, epoch: usize, seen: usize, all: usize, loss: (f64, usize)) {
        (self.epoch, self.seen, self.loss) = (epoch, seen, loss);
        self.bar.set_position((epoch as u64).saturating_mul(all as u64) + seen as u64);
        self.bar.reset_eta();
        self.start = Instant::now();
        self.show();
    }

    /// Where it stands.
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
        self.bar.set_message(format!("{loss}{}", self.told));
    }

    fn prefix(&self) -> String {
        format!("epoch {:>3}/{}", (self.epoch + 1).min(self.epochs), self.epochs)
    }

    fn loss(&self) -> f64 {
        self.loss.0 / self.loss.1.max(1) as f64
    }

    /// What else is to be said of the epoch that is over: beside the bar, or on a line where there is none.
    pub fn end_epoch(&mut self, more: &str) {
        self.told = more.to_owned();
        self.show();
        if self.bar.is_hidden() {
            let rate = self.done as f64 / self.start.elapsed().as_secs_f64();
            let (prefix, loss, unit) = (self.prefix(), self.loss(), self.unit);
            log(format_args!("{prefix}  loss {loss:.5}{more}  {rate:.0} {unit}/s"));
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
