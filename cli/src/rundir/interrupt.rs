//! Ctrl-C handling, and how often a run checks for it. The first Ctrl-C ends a run where it can
//! resume, the second exits at once.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::rundir::folder::RunDir;
use crate::ui::output::{log, shell_word};

/// Exit status after an interrupt: 128 + SIGINT, as in shells.
pub const STATUS: u8 = 130;

/// A flag that Ctrl-C sets.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Installs the Ctrl-C handler.
    pub fn listen() -> Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&requested);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                process::exit(STATUS.into());
            }
            log(format_args!(
                "stopping after the current updates (press Ctrl-C again to exit at once)"
            ));
        })?;
        Ok(Self(requested))
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Logs that a run of `command` was interrupted, and how to resume it if it was saved in a folder.
pub fn report_interrupted(
    command: &str,
    saved: Option<&RunDir>,
    updates: u64,
    (epochs, all): (usize, usize),
) -> ExitCode {
    let how = saved.map_or_else(String::new, |folder| {
        format!("; resume with `{command} --resume {}`", shell_word(folder.path()))
    });
    log(format_args!("interrupted after {updates} updates, {epochs} of {all} epochs{how}"));
    ExitCode::from(STATUS)
}

/// Target time between two checks.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// Maximum number of updates between two checks.
const MAX_UPDATES: f64 = 16.0;

/// Decides how often a run checks for an interrupt or a due checkpoint. The first check comes after
/// one update, because the duration of an update is not known yet.
pub struct CheckTimer(Instant);

impl CheckTimer {
    /// Starts the timer at a check.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the number of updates until the next check, at least 1, given that `updates` were
    /// made since the last check.
    pub fn until_next(&self, updates: usize) -> usize {
        let each = self.0.elapsed().as_secs_f64() / updates.max(1) as f64;
        (CHECK_EVERY.as_secs_f64() / each.max(1e-9)).clamp(1.0, MAX_UPDATES) as usize
    }
}
