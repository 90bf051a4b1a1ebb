//! Fingerprints of data files, which show whether a run resumes with the data it started with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::ui::output::quote_path;

/// Returns the canonical path of a file, which is valid from any directory.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot open {}", quote_path(path)))
}

/// Checks that the data files of a run have the same bytes as when it started.
pub fn check_fingerprint(paths: [Option<&Path>; 2], before: &str) -> Result<()> {
    let found = fingerprint(paths);
    let found = found.context("if the data has moved, give its new path after --resume FOLDER")?;
    let shown: Vec<_> = paths.into_iter().flatten().map(quote_path).collect();
    ensure!(
        found == before,
        "{} has changed since the run started; a run can only resume with the same data",
        shown.join(" or ")
    );
    Ok(())
}

/// Returns a hash of the files' bytes (FNV-1a, 64 bits), which detects accidental changes.
pub fn fingerprint<P: AsRef<Path>>(paths: [Option<P>; 2]) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for path in paths.iter().flatten().map(AsRef::as_ref) {
        let bytes = std::fs::read(path);
        let bytes = bytes.with_context(|| format!("cannot open {}", quote_path(path)))?;
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{hash:016x}"))
}
