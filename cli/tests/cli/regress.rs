//! `gru train --task regress`, and windows of long recordings.

use std::fmt::Write;
use std::path::Path;

use super::common::program::assert_refused;
use super::common::sequences::{folder_with, json, metric, succeeded, train};

/// Returns recordings of `rows` rows each. The label of a row is a running mean of `x`, in another
/// unit; every ninth row has none.
fn recordings(sequences: std::ops::Range<usize>, rows: usize) -> String {
    let mut csv = "id,x,level\n".to_owned();
    for i in sequences {
        let mut mean = 0.0;
        for t in 0..rows {
            let x = ((i * 31 + t * 17) as f64).sin() + (t as f64 / 15.0 + i as f64).sin();
            mean += 0.3 * (x - mean);
            let label =
                if t % 9 == 4 { String::new() } else { format!("{:.3}", 500.0 + 80.0 * mean) };
            writeln!(csv, "r{i},{x:.4},{label}").unwrap();
        }
    }
    csv
}

/// Returns sequences of 3 to 7 rows whose label is the mean of `x`, in another unit.
fn means(sequences: std::ops::Range<usize>) -> String {
    let mut csv = "id,x,level\n".to_owned();
    for i in sequences {
        let steps = 3 + i * 7 % 5;
        let x: Vec<_> = (0..steps).map(|t| ((i * 31 + t * 17) as f64).sin()).collect();
        let mean = x.iter().sum::<f64>() / steps as f64;
        x.iter().for_each(|x| writeln!(csv, "s{i},{x:.4},{:.3}", -30.0 + 5.0 * mean).unwrap());
    }
    csv
}

/// Returns the RMSE that `gru predict` reports for `test.csv`.
fn predicted_rmse(directory: &Path, run: &str, csv: &str) -> f64 {
    let arguments = ["predict", run, csv, "--output", "p.csv", "--device", "cpu"];
    let (_, said) = succeeded(directory, &arguments);
    let rmse = said.split("RMSE ").nth(1).unwrap().split(',').next().unwrap();
    rmse.parse().unwrap()
}

fn number(object: &serde_json::Value, keys: &[&str]) -> f64 {
    keys.iter().fold(object, |object, &key| &object[key]).as_f64().unwrap()
}

#[test]
fn numbers_are_learned_per_row_and_per_sequence_in_their_unit() {
    for (per, train_csv, test_csv) in [
        ("row", recordings(0..12, 25), recordings(20..24, 25)),
        ("sequence", means(0..80), means(80..110)),
    ] {
        let directory = folder_with(&[("train.csv", &train_csv), ("test.csv", &test_csv)]);
        let directory = directory.path();
        let more = ["--valid", "test.csv", "--run", "it", "--json", "--epochs", "15"];
        let said = json(directory, &train("train.csv", "regress", &more));
        assert_eq!(said["per"], per);
        let rmse = number(&said, &["rmse"]);
        assert!(rmse < 0.5 * number(&said, &["baselines", "mean", "rmse"]), "{said}");
        assert!(number(&said, &["mae"]) < rmse, "{said}");
        let last = said["baselines"]["last"]["rmse"].as_f64();
        // Sequences that are not in the order of time have none before.
        assert_eq!(last.is_some(), per == "row", "{said}");
        // The loss is that of scaled labels.
        let config = std::fs::read_to_string(directory.join("it/config.toml")).unwrap();
        let deviation = config.split("deviation = ").nth(1).unwrap().lines().next().unwrap();
        let deviation: f64 = deviation.parse().unwrap();
        let of_loss = deviation * number(&said, &["loss"]).sqrt();
        assert!((of_loss / rmse - 1.0).abs() < 1e-4, "{said}");
        assert!((predicted_rmse(directory, "it", "test.csv") / rmse - 1.0).abs() < 5e-3, "{said}");
        let predicted = std::fs::read_to_string(directory.join("p.csv")).unwrap();
        let header = if per == "row" { "id,step,predicted" } else { "id,predicted" };
        assert_eq!(predicted.lines().next(), Some(header));
        assert_eq!(predicted.lines().count(), if per == "row" { 101 } else { 31 });
        assert!(!directory.join("it/classes.csv").exists());
        let svg = std::fs::read_to_string(directory.join("it/curves.svg")).unwrap();
        assert!(svg.contains("RMSE") && !svg.contains("accuracy"));
        let (table, _) = succeeded(directory, &train("train.csv", "regress", &["--force"]));
        for words in ["in the unit of `level`", "mean of the training labels"] {
            assert!(table.contains(words), "{table}");
        }
        assert_eq!(table.contains("the label before"), per == "row", "{table}");
    }
}

#[test]
fn windows_of_recordings_carry_their_states_and_resume() {
    let (all, test) = (recordings(0..5, 90), recordings(7..8, 200));
    let directory = folder_with(&[("train.csv", &all), ("test.csv", &test)]);
    let directory = directory.path();
    let with = |more: &[&'static str]| {
        let windows = ["--window", "20", "--valid", "test.csv", "--schedule", "constant"];
        train("train.csv", "regress", &[&windows[..], more].concat())
    };
    let (_, told) = succeeded(directory, &with(&["--run", "whole", "--epochs", "4"]));
    assert!(
        told.contains(
            "windows of 20 rows, 20 apart: 25 to train on, in batches of 4 whose rows read 7"
        ),
        "{told}"
    );
    assert_eq!(metric(&directory.join("whole"), "updates"), [7.0, 14.0, 21.0, 28.0]);
    succeeded(directory, &with(&["--run", "two", "--epochs", "2"]));
    succeeded(directory, &["train", "--resume", "two", "--epochs", "4", "--device", "cpu"]);
    let model = |run: &str| std::fs::read(directory.join(run).join("model.safetensors")).unwrap();
    assert!(model("whole") == model("two"));
    // Predictions of the whole recording: the state passes the borders of windows.
    let said = json(directory, &with(&["--run", "it", "--stride", "5", "--json"]));
    let rmse = number(&said, &["rmse"]);
    assert!(rmse < 0.7 * number(&said, &["baselines", "mean", "rmse"]), "{said}");
    assert!((predicted_rmse(directory, "it", "test.csv") / rmse - 1.0).abs() < 5e-3, "{said}");
    let piecewise = std::fs::read_to_string(directory.join("p.csv")).unwrap();
    let config = directory.join("it/config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[windows]\nwindow = 20\nstride = 5\n", "")).unwrap();
    predicted_rmse(directory, "it", "test.csv");
    let whole = std::fs::read_to_string(directory.join("p.csv")).unwrap();
    for (a, b) in piecewise.lines().zip(whole.lines()).skip(1) {
        let value = |line: &str| line.rsplit(',').next().unwrap().parse::<f64>().unwrap();
        assert!((value(a) - value(b)).abs() < 0.01, "{a} {b}");
    }
}

#[test]
fn a_file_may_be_one_recording_whose_end_is_held_out() {
    let one = recordings(0..1, 240);
    let first = chrono::NaiveDate::from_ymd_opt(2024, 4, 1).unwrap();
    let stamped: String = one
        .lines()
        .enumerate()
        .map(|(at, line)| {
            let rest = line.split_once(',').unwrap().1;
            let day = first + chrono::Days::new(at as u64);
            if at == 0 { format!("date,{rest}\n") } else { format!("{day},{rest}\n") }
        })
        .collect();
    let plain: String =
        one.lines().map(|line| format!("{}\n", line.split_once(',').unwrap().1)).collect();
    let directory = folder_with(&[("stamped.csv", &stamped), ("plain.csv", &plain)]);
    let directory = directory.path();
    let (_, told) = succeeded(directory, &train("stamped.csv", "regress", &["--window", "15"]));
    assert!(told.contains("the first column, `date`, has time stamps"), "{told}");
    let none = ["--window", "15", "--sequence", "none", "--run", "it", "--json"];
    let said = json(directory, &train("plain.csv", "regress", &none));
    assert_eq!(said["sequences"], serde_json::json!({ "train": 1, "valid": 1 }));
    succeeded(directory, &["predict", "it", "plain.csv", "--output", "p.csv", "--device", "cpu"]);
    let predicted = std::fs::read_to_string(directory.join("p.csv")).unwrap();
    assert_eq!(predicted.lines().next(), Some("step,predicted"));
    assert_eq!(predicted.lines().count(), 241);
    // Its rows are no sequences.
    let refused = ["--window", "15", "--sequence", "x", "--run", "other"];
    assert_refused(directory, &train("plain.csv", "regress", &refused), &["--sequence none"]);
}

#[test]
fn windows_with_one_label_have_that_of_their_last_row() {
    let mut csv = "id,x,state\n".to_owned();
    for i in 0..6 {
        for t in 0..40 {
            let state = if t % 16 < 8 { "calm" } else { "storm" };
            let amplitude = if state == "calm" { 0.1 } else { 1.0 };
            let x = amplitude * f64::from(i * 31 + t * 17).sin();
            writeln!(csv, "r{i},{x:.4},{state}").unwrap();
        }
    }
    let directory = folder_with(&[("train.csv", &csv)]);
    let directory = directory.path();
    let windows = ["--window", "5", "--stride", "3", "--run", "it", "--json", "--holdout", "0.2"];
    let said = json(directory, &train("train.csv", "classify", &windows));
    assert_eq!(said["sequences"], serde_json::json!({ "train": 5, "valid": 1 }));
    assert!(number(&said, &["accuracy"]) > 0.8, "{said}");
    let arguments = ["predict", "it", "train.csv", "--output", "p.csv", "--device", "cpu"];
    let (_, told) = succeeded(directory, &arguments);
    // 12 windows of 40 rows.
    assert!(told.contains("of 72 labels in column `state`"), "{told}");
    let predicted = std::fs::read_to_string(directory.join("p.csv")).unwrap();
    let mut lines = predicted.lines();
    assert_eq!(lines.next(), Some("id,step,predicted,probability"));
    let steps: Vec<_> = lines.take(3).map(|line| line.split(',').nth(1).unwrap()).collect();
    assert_eq!(steps, ["7", "10", "13"]);
}

#[test]
fn labels_and_windows_that_do_not_fit_are_refused() {
    let rows = recordings(0..4, 20);
    let odd = format!("{rows}r9,0.5,about\n");
    let constant: String =
        rows.lines().map(|line| format!("{},7\n", line.rsplit_once(',').unwrap().0)).collect();
    let empty = format!("{}s99,1.0,\ns99,2.0,\n", means(0..9));
    let files = [
        ("rows.csv", &rows[..]),
        ("odd.csv", &odd),
        ("constant.csv", &constant),
        ("empty.csv", &empty),
    ];
    let directory = folder_with(&files);
    let cases: [(&str, &str, &[&str], &[&str]); 8] = [
        ("rows.csv", "classify", &["--per", "row"], &["--task regress"]),
        ("rows.csv", "regress", &["--per", "sequence"], &["line ", "changes from", "--per row"]),
        (
            "rows.csv",
            "regress",
            &["--window", "5", "--stride", "6"],
            &["stride of 6", "window of 5", "--stride"],
        ),
        (
            "rows.csv",
            "regress",
            &["--window", "5", "--direction", "both"],
            &["direction forward", "--direction"],
        ),
        ("odd.csv", "regress", &[], &["odd.csv", "line ", "about", "--task classify"]),
        ("constant.csv", "regress", &[], &["constant.csv", "every label", "is 7"]),
        ("empty.csv", "regress", &["--per", "sequence"], &["line ", "the label is empty"]),
        ("rows.csv", "regress", &["--categorical", "level"], &["--categorical", "numbers"]),
    ];
    for (csv, task, more, words) in cases {
        assert_refused(directory.path(), &train(csv, task, more), words);
    }
}

/// Returns a recording with a time stamp every minute.
fn stamped(rows: usize) -> String {
    let first = chrono::NaiveDate::from_ymd_opt(2024, 4, 1).unwrap().and_hms_opt(0, 0, 0).unwrap();
    let row = |(at, line): (usize, &str)| {
        let time = first + chrono::TimeDelta::minutes(at as i64);
        format!("{time},{}\n", line.split_once(',').unwrap().1)
    };
    let text: String = recordings(0..1, rows).lines().skip(1).enumerate().map(row).collect();
    format!("time,x,level\n{text}")
}

/// The order and the spacing of every table that is read are checked.
#[test]
fn recordings_out_of_order_are_refused_and_gaps_are_said() {
    let good = stamped(120);
    let mut lines: Vec<_> = good.lines().collect();
    let header = lines.remove(0);
    let joined = |lines: &[&str]| format!("{header}\n{}\n", lines.join("\n"));
    let reversed: Vec<_> = lines.iter().rev().copied().collect();
    let twice: Vec<_> = lines.iter().flat_map(|line| [*line, *line]).collect();
    let gap = [&lines[..60], &lines[90..]].concat();
    let (reversed, twice, gap) = (joined(&reversed), joined(&twice), joined(&gap));
    let directory = folder_with(&[
        ("good.csv", &good),
        ("reversed.csv", &reversed),
        ("twice.csv", &twice),
        ("gap.csv", &gap),
    ]);
    let directory = directory.path();
    let window = |more: &[&'static str]| [&["--window", "10"], more].concat();
    let (_, told) = succeeded(directory, &train("gap.csv", "regress", &window(&["--run", "gap"])));
    assert!(told.contains("steps in column `time` other than the usual"), "{told}");
    succeeded(directory, &train("good.csv", "regress", &window(&["--run", "it"])));
    let refused = |csv, more: &[&'static str], words: &[&str]| {
        assert_refused(directory, &train(csv, "regress", &window(more)), words);
    };
    refused("reversed.csv", &[], &["reversed.csv", "line 3", "comes after", "--time none"]);
    refused("twice.csv", &[], &["twice.csv", "line 3", "120 of 239 time stamps", "--sequence"]);
    let valid = ["--valid", "reversed.csv"];
    refused("good.csv", &valid, &["reversed.csv", "line 3", "comes after"]);
    let predict = ["predict", "it", "reversed.csv", "--device", "cpu"];
    assert_refused(directory, &predict, &["reversed.csv", "line 3", "comes after"]);
    // Without --window, a column that differs in each row names no sequences.
    assert_refused(
        directory,
        &train("good.csv", "regress", &["--run", "other"]),
        &["another sequence in each row", "--sequence none", "--window"],
    );
}

/// Few rows per batch, so that the state is carried far, unless the user says otherwise.
#[test]
fn the_default_batch_of_carried_windows_has_few_rows() {
    let directory = folder_with(&[("train.csv", &stamped(240))]);
    let said = |more: &[&'static str]| {
        let few = ["train", "train.csv", "--task", "regress", "--device", "cpu", "--epochs", "1"];
        let more = [&["--window", "8", "--hidden", "4", "--force"], more].concat();
        succeeded(directory.path(), &[&few[..], &more].concat()).1
    };
    let told = said(&[]);
    assert!(told.contains("27 to train on, in batches of 3 whose rows read 9"), "{told}");
    let told = said(&["--batch", "9"]);
    assert!(told.contains("in batches of 9 whose rows read 3"), "{told}");
    assert!(told.contains("carried over 3 windows at most"), "{told}");
}

/// A label in one row of each sequence is the sequence's, and 1 and 1.0 are one label.
#[test]
fn a_sequence_has_the_label_of_its_rows_that_have_one() {
    let mut csv = "id,x,level\n".to_owned();
    for i in 0..40 {
        let value = f64::from(i % 7);
        writeln!(csv, "s{i},{value},\ns{i},{},{value}\ns{i},1,{value:.1}", value / 2.0).unwrap();
    }
    let directory = folder_with(&[("train.csv", &csv)]);
    let (_, told) = succeeded(directory.path(), &train("train.csv", "regress", &[]));
    assert!(told.contains("one a sequence"), "{told}");
}

/// Errors of small labels have digits.
#[test]
fn errors_of_small_labels_are_shown() {
    let plain = recordings(0..10, 12);
    let small = plain.lines().map(|line| match line.rsplit_once(',') {
        Some((rest, label)) if !label.is_empty() && label != "level" => {
            format!("{rest},{label}e-9\n")
        }
        _ => format!("{line}\n"),
    });
    let directory = folder_with(&[("train.csv", &small.collect::<String>())]);
    let (table, _) = succeeded(directory.path(), &train("train.csv", "regress", &[]));
    assert!(table.contains("e-8") && !table.contains("0.0000"), "{table}");
}
