//! Fingerprints of data files: whether a run goes on with the data it was started with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::ui::output::quote_path;

/// The canonical path of a file, which is valid from any directory.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot open {}", quote_path(path)))
}

/// `Ok` when the data files of a run are byte for byte those that it was started with.
pub fn check_fingerprint(paths: [Option<&Path>; 2], before: &str) -> Result<()> {
    let found = fingerprint(paths);
    let found = found.context("where the data have moved, name them after --resume FOLDER")?;
    let shown: Vec<_> = paths.into_iter().flatten().map(quote_path).collect();
    ensure!(
        found == before,
        "{} is not what the run was started with; a run goes on with the same data",
        shown.join(" or ")
    );
    Ok(())
}

/// A hash of the files' bytes: FNV-1a, 64 bits. It shows that a file was changed by mistake.
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
