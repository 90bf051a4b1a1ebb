//! Checks which files a command may write: not its inputs, not a run's files, and none twice.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::ui::output::{check_output, quote_path};

/// The names of the files that a run keeps in its folder.
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

/// The output files of a command, with their names on the command line.
#[derive(Debug, Default)]
pub struct OutputFiles(Vec<(String, FileId)>);

impl OutputFiles {
    /// Checks that each output can be written as a file of its kind (`npy`, `csv`), and is not
    /// another output, an input, or a run's file. Call it before any work. An output is the name of
    /// its argument, its path, and its kind.
    pub fn check<'a>(
        outputs: impl IntoIterator<Item = (&'a str, &'a Path, &'a str)>,
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let mut checked = Self::default();
        for (argument, output, kind) in outputs {
            check_output(output, kind)?;
            checked.add(argument, output)?;
        }
        inputs.into_iter().try_for_each(|input| checked.check_input(input))?;
        Ok(checked)
    }

    fn add(&mut self, argument: &str, output: &Path) -> Result<()> {
        let shown = format!("{argument} {}", quote_path(output));
        if let Some(other) = self.find(output) {
            bail!("{shown} is the same file as {other}; it would be overwritten");
        }
        let target = output.canonicalize().unwrap_or_else(|_| output.to_owned());
        let folder = parent_of(&target);
        if run_file::ALL.iter().any(|name| target.file_name() == Some(name.as_ref()))
            && is_run(folder)
        {
            let run = quote_path(folder);
            ensure!(
                target.file_name() != output.file_name(),
                "{shown} is a file of the run in {run}; it would be overwritten"
            );
            let kept = quote_path(&target);
            bail!("{shown} is the same file as {kept}, which the run in {run} keeps");
        }
        self.0.push((shown, FileId::of(output)));
        Ok(())
    }

    /// Checks that `input` is not an output, under any name.
    pub fn check_input(&self, input: &Path) -> Result<()> {
        self.find(input).map_or(Ok(()), |output| {
            let input = quote_path(input);
            bail!("{output} is the same file as the input {input}; it would be overwritten")
        })
    }

    /// Checks that a file that a run `needs` (in words) is not an output, under any name.
    pub fn check_kept(&self, file: &Path, needs: &str) -> Result<()> {
        self.find(file).map_or(Ok(()), |output| {
            bail!("{output} is the same file as {}, which {needs}", quote_path(file))
        })
    }

    /// Returns the output that is this file, as the user named it.
    fn find(&self, file: &Path) -> Option<&str> {
        let id = FileId::of(file);
        self.0.iter().find(|(_, output)| *output == id).map(|(shown, _)| &**shown)
    }
}

/// Returns true if `file` is one of the files that a run keeps in `folder`, under any name.
pub fn is_kept(folder: &Path, file: &Path) -> bool {
    let id = FileId::of(file);
    run_file::ALL.iter().any(|name| FileId::of(&folder.join(name)) == id)
}

/// The first line of a run's config.toml, up to the name of the command.
pub const CONFIG_START: &str = "# A run of `gru ";

/// Returns true if a folder belongs to a run: its config.toml starts like a run's, or holds the
/// settings of one. Damaged files of a run still count.
pub fn is_run(folder: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct ConfigHeader {
        version: String,
        task: String,
    }
    let Ok(text) = fs::read_to_string(folder.join(run_file::CONFIG)) else { return false };
    let is_ours = |head: ConfigHeader| {
        !head.version.is_empty() && ["classify", "label", "forecast"].contains(&&*head.task)
    };
    text.starts_with(CONFIG_START) || toml::from_str(&text).is_ok_and(is_ours)
}

/// The identity of a file, independent of its name.
#[derive(Debug, PartialEq, Eq)]
enum FileId {
    /// An existing file: its hard and symbolic links have the same identity.
    #[cfg(unix)]
    Inode { device: u64, inode: u64 },
    /// A file that does not exist yet: its canonical folder and its name. On a system without
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

/// Returns the folder of a path, `.` if it has none.
pub fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(result: Result<impl std::fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    /// Makes a folder that holds `x.csv`, a folder `sub` and a run.
    fn scene() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sub")).unwrap();
        fs::create_dir_all(folder.path().join("run")).unwrap();
        fs::write(folder.path().join("x.csv"), "x").unwrap();
        fs::write(folder.path().join("run").join(run_file::CONFIG), CONFIG_START).unwrap();
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
            let message = refusal(OutputFiles::check([("--output", &*output, "csv")], [&*input]));
            assert!(
                message.contains(&format!("{name}` is the same file as the input `"))
                    && message.contains("x.csv`; it would be overwritten"),
                "{name}: {message}"
            );
        }
        OutputFiles::check([("OUTPUT", &*at("y.csv"), "csv")], [&*input]).unwrap();
    }

    #[test]
    fn two_outputs_that_do_not_exist_yet_are_told_apart() {
        let folder = scene();
        let at = |name: &str| folder.path().join(name);
        for other in ["y.csv", "sub/../y.csv"] {
            let (first, second) = (at("y.csv"), at(other));
            let message =
                refusal(OutputFiles::check([("-a", &*first, "csv"), ("-b", &*second, "csv")], []));
            assert!(message.contains("y.csv` is the same file as -a `"), "{other}: {message}");
        }
        let outputs = [("-a", &*at("y.csv"), "csv"), ("-b", &*at("sub/y.csv"), "csv")];
        OutputFiles::check(outputs, []).unwrap();
    }

    #[test]
    fn what_a_run_keeps_is_no_output() {
        let folder = scene();
        let at = |name: &str| folder.path().join(name);
        for name in ["run/metrics.csv", "run/../run/classes.csv", "sub/../run/metrics.csv"] {
            let message = refusal(OutputFiles::check([("-o", &*at(name), "csv")], []));
            assert!(message.contains("is a file of the run in `"), "{name}: {message}");
        }
        #[cfg(unix)]
        {
            fs::write(at("run/metrics.csv"), "").unwrap();
            std::os::unix::fs::symlink("run/metrics.csv", at("link.csv")).unwrap();
            let message = refusal(OutputFiles::check([("-o", &*at("link.csv"), "csv")], []));
            assert!(message.contains("link.csv` is the same file as `"), "{message}");
            assert!(message.contains("run/metrics.csv`, which the run in `"), "{message}");
        }
        // Other names in the folder, and the same names elsewhere, are free.
        for name in ["run/predicted.csv", "sub/metrics.csv"] {
            OutputFiles::check([("-o", &*at(name), "csv")], []).unwrap();
        }
        assert!(is_kept(&at("run"), &at("sub/../run/config.toml")));
        assert!(!is_kept(&at("run"), &at("x.csv")));
    }

    #[test]
    fn a_config_of_something_else_makes_no_run() {
        let folder = scene();
        let run = folder.path().join("run");
        for (config, expected) in [
            ("", false),
            ("baseURL = \"https://example.org/\"\ntask = \"serve\"\nversion = \"1\"\n", false),
            ("task = \"label\"\n", false),
            ("version = \"0.1.0\"\ntask = \"label\"\n[data]\n", true),
            ("# A run of `gru train`.\nbroken [", true),
        ] {
            fs::write(run.join(run_file::CONFIG), config).unwrap();
            assert_eq!(is_run(&run), expected, "{config}");
            let metrics = run.join("metrics.csv");
            assert_eq!(OutputFiles::check([("-o", &*metrics, "csv")], []).is_err(), expected);
        }
    }
}
