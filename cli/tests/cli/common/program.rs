//! Runs the program `gru`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program in a directory and waits for it.
pub fn gru(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
    command
        .current_dir(directory)
        .env_remove("GRU_DEVICE")
        .env("GRU_PIPELINE_CACHE", "none")
        .args(arguments);
    command.output().unwrap()
}

/// Converts the program's output to text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Checks that the program was refused: status 1, nothing on stdout, one line `error: …` on stderr
/// that contains all of `words`, no panic.
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

/// Runs the program in a directory until it reports an epoch, then sends it a signal (a name that
/// `kill -s` takes). Returns its exit status, and its stderr after that epoch.
#[cfg(unix)]
pub fn end_after_an_epoch(
    directory: &Path,
    arguments: &[&str],
    signal: &str,
) -> (Option<i32>, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
    command
        .current_dir(directory)
        .env_remove("GRU_DEVICE")
        .env("GRU_PIPELINE_CACHE", "none")
        .args(arguments)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.by_ref().find(|line| line.as_ref().unwrap().starts_with("epoch "));
    assert!(first.is_some());
    let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let rest = lines.map(Result::unwrap).collect();
    (child.wait().unwrap().code(), rest)
}
