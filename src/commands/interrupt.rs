//! Ctrl-C: the first asks a run to end where it can go on from, the second ends it at once.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::output::note;

/// The exit status of what was interrupted, as shells have it.
pub const STATUS: u8 = 130;

pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&asked);
        ctrlc::set_handler(move || {
            if heard.swap(true, Ordering::Relaxed) {
                process::exit(STATUS.into());
            }
            note(format_args!("ending after the updates under way (Ctrl-C again: at once)"));
        })?;
        Ok(Self(asked))
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
