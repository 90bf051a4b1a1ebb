//! [`ProcessGuard`]: detects use of a resource in a forked child process.
//!
//! After a fork the child has copies of its parent's handles but none of its parent's threads. A
//! call that waits for such a thread would never return.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The id of the process that created a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessGuard(u32);

impl ProcessGuard {
    /// Returns a guard for the current process.
    pub fn here() -> Self {
        // A browser has no processes and no fork.
        Self(if cfg!(target_family = "wasm") { 0 } else { std::process::id() })
    }

    /// True if the current process is a forked child of the guard's process.
    pub fn is_forked(self) -> bool {
        self != Self::here()
    }

    /// Checks that the current process is the guard's. `what` names the resource in the error.
    ///
    /// # Errors
    /// [`Error::Forked`] in any other process.
    pub fn check(self, what: &'static str) -> Result<()> {
        match Self::here() {
            here if here == self => Ok(()),
            Self(here) => Err(Error::Forked { what, parent: self.0, here }),
        }
    }
}

/// Returns the guard of rayon's thread pool: of the process in which this library first used it.
/// The threads exist only there. (A fork after only the caller's own code used rayon is not
/// detected.)
pub(crate) fn thread_pool() -> ProcessGuard {
    static FIRST_USE: OnceLock<ProcessGuard> = OnceLock::new();
    *FIRST_USE.get_or_init(ProcessGuard::here)
}
