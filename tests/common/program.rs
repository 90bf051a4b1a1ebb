//! The program `gru`, as a user calls it.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in a directory.
pub fn gru(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
    command.current_dir(directory).env_remove("GRU_DEVICE").args(arguments);
    command.output().unwrap()
}

/// What was printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Status 1, nothing on stdout, one line `error: …` on stderr that holds all of `words`, no panic.
pub fn assert_refused(directory: &Path, arguments: &[&str], words: &[&str]) {
    let output = gru(directory, arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().last(), errors.first().copied(), "{arguments:?}: {stderr}");
    for word in words {
        assert!(errors[0].contains(word), "{arguments:?}: `{word}` is not in {stderr}");
    }
}
