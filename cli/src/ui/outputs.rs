//! Which files a command may write: none that it reads, none that a run keeps, none twice.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::ui::output::{check_output, quote_path};

/// The names of the files that a run keeps in its folder. A folder with a [`CONFIG`](run_file::CONFIG) is
/// a run's.
pub mod run_file {
    pub const CONFIG: &str = "config.toml";
    pub const CHECKPOINT: &str = "checkpoint.safetensors";
    /// The checkpoint before the last one.
    pub const CHECKPOINT_BEFORE: &str = "checkpoint.safetensors.before";
    pub const MODEL: &str = "model.safetensors";
    pub const METRICS: &str = "metrics.csv";
    pub const CURVES: &str = "curves.svg";
    pub const CLASSES: &str = "classes.csv";
    pub const FORECAST: &str = "forecast.svg";

    pub const ALL: [&str; 8] =
        [CONFIG, CHECKPOINT, CHECKPOINT_BEFORE, MODEL, METRICS, CURVES, CLASSES, FORECAST];
}

/// The files that a command is going to write.
#[derive(Debug, Default)]
pub struct Outputs(Vec<FileId>);

impl Outputs {
    /// `Ok` when each output can be written as a file of its kind (`npy`, `csv`), is no other output and
    /// no input, and no file of a run. To be called before any work is done.
    pub fn check<'a>(
        outputs: impl IntoIterator<Item = (&'a Path, &'a str)>,
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let mut checked = Self::default();
        for (output, kind) in outputs {
            check_output(output, kind)?;
            checked.add(output)?;
        }
        inputs.into_iter().try_for_each(|input| checked.check_input(input))?;
        Ok(checked)
    }

    /// Adds an output of any kind.
    pub fn add(&mut self, output: &Path) -> Result<()> {
        self.check_input(output)?;
        let run = run_of(output);
        ensure!(
            run.is_none(),
            "{} is a file of the run in {}; it would be overwritten",
            quote_path(output),
            quote_path(&run.unwrap_or_default())
        );
        self.0.push(FileId::of(output));
        Ok(())
    }

    /// The files that a run keeps in its own folder.
    pub fn of_run(folder: &Path) -> Self {
        Self(run_file::ALL.iter().map(|name| FileId::of(&folder.join(name))).collect())
    }

    /// `Ok` when `input` is none of the outputs, by whatever name.
    pub fn check_input(&self, input: &Path) -> Result<()> {
        ensure!(
            !self.contains(input),
            "{} is named twice; it would be overwritten",
            quote_path(input)
        );
        Ok(())
    }

    /// Whether a file is one of them, by whatever name.
    pub fn contains(&self, file: &Path) -> bool {
        self.0.contains(&FileId::of(file))
    }
}

/// The run's folder, where `path` is one of the files that a run keeps.
fn run_of(path: &Path) -> Option<PathBuf> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_run_file = run_file::ALL.iter().any(|name| target.file_name() == Some(name.as_ref()));
    let folder = parent_of(&target);
    (is_run_file && folder.join(run_file::CONFIG).is_file()).then(|| folder.to_owned())
}

/// A file, whatever name it goes by.
#[derive(Debug, PartialEq, Eq)]
enum FileId {
    /// An existing file: the links to it, hard or symbolic, have the same.
    #[cfg(unix)]
    Inode { device: u64, inode: u64 },
    /// A file that does not exist yet: its canonical folder and its name. Where the system tells no
    /// inodes, an existing file's canonical path.
    Path(PathBuf),
}

impl FileId {
    fn of(path: &Path) -> Self {
        #[cfg(unix)]
        if let Ok(metadata) = fs::metadata(path) {
            use std::os::unix::fs::MetadataExt;
            return Self::Inode { device: metadata.dev(), inode: metadata.ino() };
        }
        Self::Path(fs::canonicalize(path).unwrap_or_else(|_| {
            let folder = parent_of(path);
            let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
            folder.join(path.file_name().unwrap_or_default())
        }))
    }
}

/// The folder that a path is in, `.` where it does not say.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(result: Result<impl std::fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    /// A folder that holds `x.csv`, a folder `sub` and a run.
    fn scene() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sub")).unwrap();
        fs::create_dir_all(folder.path().join("run")).unwrap();
        fs::write(folder.path().join("x.csv"), "x").unwrap();
        fs::write(folder.path().join("run").join(run_file::CONFIG), "").unwrap();
        folder
    }

    #[test]
    fn an_input_is_no_output_by_any_name() {
        let folder = scene();
        let at = |name: &str| folder.path().join(name);
        let mut names = vec!["x.csv", "./x.csv", "sub/../x.csv"];
        if cfg!(unix) {
            fs::hard_link(at("x.csv"), at("hard.csv")).unwrap();
            names.push("hard.csv");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("x.csv", at("soft.csv")).unwrap();
            std::os::unix::fs::symlink(".", at("around")).unwrap();
            names.extend(["soft.csv", "around/x.csv"]);
        }
        let input = at("x.csv");
        for name in names {
            let output = at(name);
            let said = refusal(Outputs::check([(&*output, "csv")], [&*input]));
            assert!(
                said.contains("x.csv` is named twice; it would be overwritten"),
                "{name}: {said}"
            );
        }
        Outputs::check([(&*at("y.csv"), "csv")], [&*input]).unwrap();
    }

    #[test]
    fn two_outputs_that_do_not_exist_yet_are_told_apart() {
        let folder = scene();
        let at = |name: &str| folder.path().join(name);
        for other in ["y.csv", "sub/../y.csv"] {
            let (first, second) = (at("y.csv"), at(other));
            let said = refusal(Outputs::check([(&*first, "csv"), (&*second, "csv")], []));
            assert!(said.contains("is named twice"), "{other}: {said}");
        }
        Outputs::check([(&*at("y.csv"), "csv"), (&*at("sub/y.csv"), "csv")], []).unwrap();
    }

    #[test]
    fn what_a_run_keeps_is_no_output() {
        let folder = scene();
        let at = |name: &str| folder.path().join(name);
        for name in ["run/metrics.csv", "run/../run/classes.csv", "sub/../run/metrics.csv"] {
            let said = refusal(Outputs::check([(&*at(name), "csv")], []));
            assert!(said.contains("is a file of the run in `"), "{name}: {said}");
        }
        #[cfg(unix)]
        {
            fs::write(at("run/metrics.csv"), "").unwrap();
            std::os::unix::fs::symlink("run/metrics.csv", at("link.csv")).unwrap();
            let said = refusal(Outputs::check([(&*at("link.csv"), "csv")], []));
            assert!(said.contains("is a file of the run in `"), "{said}");
        }
        // Other names there, and the same name elsewhere, are free.
        for name in ["run/predicted.csv", "sub/metrics.csv"] {
            Outputs::check([(&*at(name), "csv")], []).unwrap();
        }
        assert!(Outputs::of_run(&at("run")).contains(&at("sub/../run/config.toml")));
        assert!(!Outputs::of_run(&at("run")).contains(&at("x.csv")));
    }
}
