//! [`Cause`]: the error that another one comes from.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The error that an [`Error`](crate::Error) comes from, as its
/// [`source`](std::error::Error::source) gives it: the [`std::io::Error`] of a file, wgpu's error of
/// a device.
///
/// Clones share it. Two are equal when they read the same.
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
    /// Keeps `error`.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }
}

// Not `Error` itself: whoever asks for a source gets the one that is kept, and can downcast it.
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
