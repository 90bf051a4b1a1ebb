//! Ctrl-C: the first asks a run to end where it can go on from, the second ends it at once. And how
//! often a run checks for it.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::rundir::folder::RunDir;
use crate::ui::output::{log, shell_word};

/// The exit status of what was interrupted, as shells have it.
pub const STATUS: u8 = 130;

pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&requested);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                process::exit(STATUS.into());
            }
            log(format_args!("ending after the updates under way (Ctrl-C again: at once)"));
        })?;
        Ok(Self(requested))
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Says that a run of `command` was interrupted, and how it goes on where it was saved in a folder.
pub fn report_interrupted(
    command: &str,
    saved: Option<&RunDir>,
    updates: u64,
    (epochs, all): (usize, usize),
) -> ExitCode {
    let how = saved.map_or_else(String::new, |folder| {
        format!("; `{command} --resume {}` goes on", shell_word(folder.path()))
    });
    log(format_args!("interrupted after {updates} updates, {epochs} of {all} epochs{how}"));
    ExitCode::from(STATUS)
}

/// Between two checks: this long, and no more than so many updates.
const CHECK_EVERY: Duration = Duration::from_millis(250);
const MOST_UPDATES: f64 = 16.0;

/// Paces the checks of a run for an interrupt or a due checkpoint. The first is to come after one
/// update: nobody knows yet how long it takes.
pub struct CheckTimer(Instant);

impl CheckTimer {
    /// Starts at a check.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// How many updates to make until the next check, after so many since this one: one at least.
    pub fn until_next(&self, updates: usize) -> usize {
        let each = self.0.elapsed().as_secs_f64() / updates.max(1) as f64;
        (CHECK_EVERY.as_secs_f64() / each.max(1e-9)).clamp(1.0, MOST_UPDATES) as usize
    }
}
