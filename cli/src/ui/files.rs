//! Writing files atomically: a file is complete or not there.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::ui::output::quote_path;

/// Writes `contents` to a temporary file beside `path`, flushes it to the disk and renames it, so
/// that `path` is complete or not there. If `path` is a link, the file behind it is replaced.
///
/// # Errors
/// If the file cannot be written, or if `path` is not a regular file: a directory, a pipe, a
/// device.
pub fn write_file(path: impl AsRef<Path>, contents: &[u8]) -> Result<()> {
    let path = path.as_ref();
    replace(path, contents).with_context(|| format!("{} cannot be written", quote_path(path)))
}

fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_beside(&link_target(path)?, contents)
}

/// Replaces a symbolic link by a copy of its file. The file does not change.
pub fn replace_link(link: &Path) -> Result<()> {
    let replaced = link_target(link).and_then(std::fs::read);
    let replaced = replaced.and_then(|contents| write_beside(link, &contents));
    replaced.with_context(|| format!("the link {} cannot be replaced", quote_path(link)))
}

/// Writes a temporary file beside `target` and renames it, replacing a link too.
fn write_beside(target: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // By default only the owner may read a temporary file. This one gets the permissions of an
    // ordinary file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(directory)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(target).map_err(|error| error.error)?;
    // The new name survives a crash once its directory is on the disk. The file is complete even if
    // the directory cannot be opened for that.
    #[cfg(unix)]
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

/// Returns the file that `path` leads to, whether or not it exists.
fn link_target(path: &Path) -> io::Result<PathBuf> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    let target = if metadata.is_symlink() { path.canonicalize()? } else { path.to_owned() };
    match std::fs::metadata(&target)?.is_file() {
        true => Ok(target),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::{replace_link, write_file};
    use crate::ui::output::causes;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("a.csv");
        for contents in ["first", "second"] {
            write_file(&path, contents.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
        }
        let folder = directory.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let error = causes(&write_file(&folder, b"x").unwrap_err());
        assert!(error.ends_with("folder` cannot be written: it is not a regular file"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_by_a_copy() {
        let directory = tempfile::TempDir::new().unwrap();
        let [file, link] = ["real.csv", "link.csv"].map(|name| directory.path().join(name));
        std::fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink("real.csv", &link).unwrap();
        replace_link(&link).unwrap();
        assert!(!link.is_symlink());
        write_file(&link, b"after").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "before");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_behind_a_link_is_replaced() {
        let directory = tempfile::TempDir::new().unwrap();
        let [file, link] = ["real.csv", "link.csv"].map(|name| directory.path().join(name));
        std::fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_file(&link, b"after").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "after");
    }
}
