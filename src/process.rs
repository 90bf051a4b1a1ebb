//! [`ProcessGuard`]: the process that something belongs to. After a fork the child has copies of its
//! parent's handles and none of its threads: a call that waits for one would wait for ever.

use crate::error::{Error, Result};

/// The process that something was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessGuard(u32);

impl ProcessGuard {
    /// This process.
    pub fn here() -> Self {
        // A browser has no processes, and nothing there forks.
        Self(if cfg!(target_family = "wasm") { 0 } else { std::process::id() })
    }

    /// Whether this is another process, forked from the guard's.
    pub fn is_forked(self) -> bool {
        self != Self::here()
    }

    /// `Ok` in the guard's process alone.
    ///
    /// # Errors
    /// [`Error::Forked`]; `what` belongs to the guard's process.
    pub fn check(self, what: &'static str) -> Result<()> {
        match Self::here() {
            here if here == self => Ok(()),
            Self(here) => Err(Error::Forked { what, parent: self.0, here }),
        }
    }
}
