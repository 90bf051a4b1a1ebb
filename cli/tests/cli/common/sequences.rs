//! CSV tables of sequences, and `gru train` on them.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::program::{gru, text};

/// Returns sequences of 2 to 6 rows with a number that is high in class `up` and low in class
/// `down`, and a word that tells if the next row is the last one.
pub fn table(sequences: std::ops::Range<usize>) -> String {
    let mut csv = "id,level,sign,class\n".to_owned();
    for i in sequences {
        let steps = 2 + i * 7 % 5;
        let class = if i % 3 == 0 { "up" } else { "down" };
        for t in 0..steps {
            let noise = ((i * 31 + t * 17) as f64).sin();
            let level = 50.0 + noise + if i % 3 == 0 { 1.0 } else { -1.0 };
            let sign = if t + 2 == steps { "stop" } else { "go" };
            writeln!(csv, "s{i},{level:.4},{sign},{class}").unwrap();
        }
    }
    csv
}

/// Returns the same with a label per row: the row after a `stop` is `end`. Some rows have no label.
pub fn labelled(sequences: std::ops::Range<usize>) -> String {
    let mut after_stop = false;
    let label = |(at, line): (usize, &str)| {
        let cells: Vec<_> = line.split(',').collect();
        let label = match (at, after_stop) {
            (0, _) => "part",
            (at, _) if at % 11 == 5 => "",
            (_, true) => "end",
            (_, false) => "inner",
        };
        after_stop = cells[2] == "stop";
        format!("{},{},{},{label}\n", cells[0], cells[1], cells[2])
    };
    table(sequences).lines().enumerate().map(label).collect()
}

pub fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

pub const SMALL: [&str; 8] =
    ["--hidden", "6", "--batch", "4", "--epochs", "6", "--learning-rate", "0.03"];

pub fn train<'a>(csv: &'a str, task: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", csv, "--task", task, "--device", "cpu"], &SMALL[..], more].concat()
}

pub fn succeeded(directory: &Path, arguments: &[&str]) -> (String, String) {
    let output = gru(directory, arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

pub fn json(directory: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeded(directory, arguments).0).unwrap()
}

/// Returns a column of metrics.csv.
pub fn metric(run: &Path, name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let at = text.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(at).unwrap().parse().unwrap()).collect()
}
