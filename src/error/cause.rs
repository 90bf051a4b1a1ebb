//! [`Cause`]: the error behind an [`Error`](crate::Error).

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The error that caused an [`Error`](crate::Error): the [`std::io::Error`] of a file, for example,
/// or wgpu's error of a device. [`source`](std::error::Error::source) returns it.
///
/// Clones share the error. Two causes are equal if their messages are equal.
///
/// ```
/// use std::error::Error as _;
/// use gru_wgpu::{Cause, Error};
///
/// let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
/// let reason = format!("cannot be opened: {denied}");
/// let error = Error::Io { path: "`x.npy`".into(), reason, source: Some(Cause::new(denied)) };
/// let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
/// assert_eq!(source.unwrap().kind(), std::io::ErrorKind::PermissionDenied);
/// ```
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync + 'static>);

impl Cause {
    /// Wraps `error`.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }
}

// `Cause` does not implement `Error`, so that `source()` returns the wrapped error, which the
// caller can downcast.
impl Deref for Cause {
    type Target = dyn Error + Send + Sync + 'static;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}
