//! `gru train` and `gru predict`, called as a user calls them.
#![cfg(feature = "cli")]

mod common;

use std::fmt::Write;
use std::path::Path;

use common::program::{assert_refused, gru, text};
use serde_json::Value;
use tempfile::TempDir;

/// Sequences of 2 to 6 rows, with a number that is high in those of class `up` and low in those of `down`,
/// and a word that says whether the next row is the last one.
fn table(sequences: std::ops::Range<usize>) -> String {
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

/// The same with a label a row: the row after a `stop` is the end. Of some rows nothing is known.
fn labelled(sequences: std::ops::Range<usize>) -> String {
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

fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

const SMALL: [&str; 8] =
    ["--hidden", "6", "--batch", "4", "--epochs", "6", "--learning-rate", "0.03"];

fn train<'a>(csv: &'a str, task: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", csv, "--task", task, "--device", "cpu"], &SMALL[..], more].concat()
}

fn succeeded(directory: &Path, arguments: &[&str]) -> (String, String) {
    let output = gru(directory, arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

fn json(directory: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeded(directory, arguments).0).unwrap()
}

/// A column of metrics.csv.
fn metric(run: &Path, name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let at = text.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(at).unwrap().parse().unwrap()).collect()
}

#[test]
fn training_lowers_the_loss_and_leaves_a_folder_that_predict_reads() {
    for (task, train_csv, test_csv) in
        [("classify", table(0..60), table(60..90)), ("label", labelled(0..60), labelled(60..90))]
    {
        let directory = folder_with(&[("train.csv", &train_csv), ("test.csv", &test_csv)]);
        let more = ["--valid", "test.csv", "--run", "it", "--json"];
        let said = json(directory.path(), &train("train.csv", task, &more));
        assert_eq!(said["sequences"], serde_json::json!({ "train": 60, "valid": 30 }));
        assert_eq!((&said["ended"], &said["updates"]), (&"whole".into(), &90.into()));
        let run = directory.path().join("it");
        let mut files: Vec<_> = std::fs::read_dir(&run).unwrap().collect::<Result<_, _>>().unwrap();
        files.sort_by_key(std::fs::DirEntry::file_name);
        let files: Vec<_> =
            files.iter().map(|file| file.file_name().into_string().unwrap()).collect();
        let expected = [
            "checkpoint.safetensors",
            "checkpoint.safetensors.before",
            "config.toml",
            "curves.svg",
            "metrics.csv",
            "model.safetensors",
        ];
        assert_eq!(files, expected);
        let losses = metric(&run, "train_loss");
        assert!(losses.len() == 6 && losses[5] < 0.6 * losses[0], "{task}: {losses:?}");
        let (accuracy, loss) = (said["accuracy"].as_f64().unwrap(), said["loss"].as_f64().unwrap());
        assert!(accuracy > said["majority"]["accuracy"].as_f64().unwrap() + 0.1, "{said}");
        assert!(loss < said["majority"]["loss"].as_f64().unwrap(), "{said}");
        // The best epoch's model is the one that was kept.
        let best = said["best_epoch"].as_u64().unwrap() as usize - 1;
        assert_eq!(metric(&run, "valid_accuracy")[best], accuracy);
        let (_, told) = succeeded(
            directory.path(),
            &["predict", "it", "test.csv", "--output", "p.csv", "--device", "cpu"],
        );
        assert!(told.contains(&format!("accuracy {accuracy:.4}: ")), "{said}: {told}");
        // Its GRU is one for the other commands, too.
        let (_, told) =
            succeeded(directory.path(), &["convert", "it/model.safetensors", "gru.npz"]);
        assert!(told.contains("GRU 3→6"), "{told}");
        let svg = std::fs::read_to_string(run.join("curves.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }
}

#[test]
fn predictions_are_rows_and_need_no_label_and_no_known_word() {
    let directory = folder_with(&[("train.csv", &labelled(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "label", &[]));
    // Columns in another order, one more, no label, a word that training did not see.
    std::fs::write(
        path.join("new.csv"),
        "sign,more,id,level\ngo,x,a,49\nstop,x,a,51\nwait,x,a,51\ngo,x,b,50\n",
    )
    .unwrap();
    let (rows, told) = succeeded(path, &["predict", "run", "new.csv", "--device", "cpu"]);
    let rows: Vec<Vec<_>> = rows.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0], ["id", "step", "predicted", "probability"]);
    let places: Vec<_> = rows[1..].iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(places, [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")]);
    for row in &rows[1..] {
        assert!(["inner", "end"].contains(&row[2]), "{row:?}");
        let probability: f64 = row[3].parse().unwrap();
        assert!((0.5..=1.0).contains(&probability), "{row:?}");
    }
    assert!(
        told.contains(
            "cells with words that training did not see: 1, the first is `wait` in line 4"
        )
    );
    assert!(!told.contains("accuracy"), "{told}");
}

/// Ends runs after their first epoch, by Ctrl-C and without any warning, goes on, and holds them against one
/// that was left alone.
#[cfg(unix)]
#[test]
fn a_run_that_was_interrupted_goes_on_to_the_same_bytes() {
    use common::program::end_after_an_epoch;

    let directory = folder_with(&[("train.csv", &labelled(0..60))]);
    let path = directory.path();
    let arguments = |run| {
        let model = ["--layers", "2", "--dropout", "0.3", "--direction", "both", "--run", run];
        let often = ["--epochs", "12", "--batch", "2", "--checkpoint-every", "1"];
        [&train("train.csv", "label", &model)[..], &often].concat()
    };
    let whole = path.join("whole");
    succeeded(path, &arguments("whole"));
    let bytes = |run: &Path| std::fs::read(run.join("model.safetensors")).unwrap();
    for (signal, status) in [("INT", Some(130)), ("KILL", None)] {
        let (got, rest) = end_after_an_epoch(path, &arguments(signal), signal);
        assert_eq!(got, status, "{signal}: {rest:?}");
        if signal == "INT" {
            let last = rest.last().unwrap();
            assert!(last.contains("`gru train --resume INT` goes on"), "{rest:?}");
        }
        let run = path.join(signal);
        let done = metric(&run, "epoch").len();
        assert!(done < 12, "{signal}: it was too late");

        succeeded(path, &["train", "--resume", signal, "--device", "cpu"]);
        assert!(bytes(&whole) == bytes(&run), "{signal}: the models differ");
        for name in ["updates", "learning_rate", "train_loss", "valid_loss", "valid_accuracy"] {
            assert_eq!(metric(&whole, name), metric(&run, name), "{signal}: {name}");
        }
    }
    // There is nothing left to do, and it says the same again.
    let again = json(path, &["train", "--resume", "INT", "--device", "cpu", "--json"]);
    assert_eq!(again["updates"], 27 * 12);
    assert!(bytes(&whole) == bytes(&path.join("INT")));

    // It goes on as it was begun, or not at all.
    let config = path.join("INT").join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    for (part, from, to) in [
        ("[model]", "direction = \"both\"", "direction = \"forward\""),
        ("[training]", "seed = 1", "seed = 2"),
        ("[data]", "holdout = 0.1", "holdout = 0.2"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let message = format!("{part} in config.toml is not what the run was started with");
        assert_refused(path, &["train", "--resume", "INT", "--device", "cpu"], &[&message]);
    }
}

#[test]
fn a_run_trains_on_an_adapter_as_on_the_cpu() {
    let software = common::adapter().adapter().unwrap().software;
    let word = if software { "software" } else { "gpu" };
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let loss = |device: &str| {
        let more = ["--json", "--run", device, "--epochs", "2", "--device", device];
        json(directory.path(), &train("train.csv", "classify", &more))["loss"].as_f64().unwrap()
    };
    let (cpu, adapter) = (loss("cpu"), loss(word));
    assert!((cpu - adapter).abs() < 1e-3 * cpu, "cpu {cpu}, {word} {adapter}");
}

#[test]
fn what_diverges_is_named_and_what_was_good_is_kept() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let more = ["--learning-rate", "1e38", "--clip", "1e30", "--optimizer", "sgd"];
    let words = ["diverged: loss", "its largest element", "sequences `s", "of 9", "is in `run`"];
    assert_refused(directory.path(), &train("train.csv", "classify", &more), &words);
    assert!(directory.path().join("run/checkpoint.safetensors").is_file());
}

#[test]
fn a_file_without_names_is_read_by_numbers_and_numbers_may_be_words() {
    let headless = table(0..40).split_once('\n').unwrap().1.replace("go", "7").replace("stop", "8");
    let headless = headless.replace(',', ";");
    let directory = folder_with(&[("train.csv", &headless)]);
    let path = directory.path();
    let more = ["--delimiter", ";", "--categorical", "3", "--features", "3,2", "--header", "no"];
    succeeded(path, &train("train.csv", "classify", &more));
    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    assert!(
        config.contains("words = [\"7\", \"8\"]") && config.contains("header = false"),
        "{config}"
    );
    let (_, told) = succeeded(path, &["predict", "run", "train.csv", "--device", "cpu"]);
    assert!(told.contains("accuracy"), "{told}");
}

#[test]
fn what_cannot_be_trained_on_is_refused_in_one_line() {
    let files = [
        ("good.csv", &*table(0..40)),
        ("changes.csv", "id,x,class\na,1,up\na,2,down\nb,1,up\n"),
        ("nan.csv", "id,x,class\na,1,up\na,NaN,up\nb,1,down\n"),
        ("word.csv", "id,x,class\na,1,up\na,many,up\nb,1,down\n"),
        ("hole.csv", "id,x,class\na,1,up\na,,up\nb,1,down\n"),
        ("one.csv", "id,x,class\na,1,up\nb,2,up\n"),
        ("apart.csv", "id,x,class\na,1,up\nb,2,down\na,2,up\n"),
        ("single.csv", "id,x,class\na,1,up\na,2,down\n"),
        ("unlabelled.csv", "id,x,class\na,1,up\nb,2,\nc,2,down\n"),
        ("nameless.csv", "id,x,class\na,1,up\n,2,down\n"),
        ("narrow.csv", "id,class\na,up\nb,down\n"),
        ("strange.csv", "id,level,sign,class\na,1,go,sideways\n"),
        ("empty.csv", ""),
    ];
    let directory = folder_with(&files);
    let path = directory.path();
    let cases: &[(&str, &str, &[&str], &[&str])] = &[
        ("none.csv", "classify", &[], &["cannot open `none.csv`"]),
        ("empty.csv", "classify", &[], &["`empty.csv` is empty"]),
        (
            "changes.csv",
            "classify",
            &[],
            &["`changes.csv`: line 3", "sequence `a`", "from `up` to `down`"],
        ),
        (
            "nan.csv",
            "classify",
            &[],
            &["`nan.csv`: line 3: `NaN` in column `x` is not a finite number"],
        ),
        (
            "word.csv",
            "classify",
            &[],
            &["`word.csv`: line 3: `many` in column `x`", "--categorical"],
        ),
        ("hole.csv", "classify", &[], &["`hole.csv`: line 3: there is no value in column `x`"]),
        ("one.csv", "classify", &[], &["`one.csv`: every label in column `class` is `up`"]),
        (
            "apart.csv",
            "classify",
            &[],
            &["`apart.csv`: line 4: sequence `a` goes on after another one"],
        ),
        ("single.csv", "label", &[], &["`single.csv` holds a single sequence"]),
        ("unlabelled.csv", "classify", &[], &["`unlabelled.csv`: line 3: the label is empty"]),
        ("nameless.csv", "classify", &[], &["`nameless.csv`: line 3: the row names no sequence"]),
        ("narrow.csv", "classify", &[], &["`narrow.csv`: the file has `id`, `class`"]),
        (
            "good.csv",
            "classify",
            &["--label", "klass"],
            &["`good.csv`: no column is named `klass`"],
        ),
        ("good.csv", "classify", &["--label", "id"], &["the label cannot be the sequence's name"]),
        ("good.csv", "classify", &["--features", "class"], &["the label cannot be a feature"]),
        (
            "good.csv",
            "classify",
            &["--features", "sign,3"],
            &["`good.csv`: column `3` is named twice"],
        ),
        ("good.csv", "classify", &["--categorical", "class"], &["`class`, which is no feature"]),
        (
            "good.csv",
            "classify",
            &["--valid", "strange.csv"],
            &["line 2: training saw no label `sideways`"],
        ),
        ("good.csv", "classify", &["--dropout", "0.5"], &["dropout"]),
        ("good.csv", "classify", &["--run", "none/run"], &["directory `none` does not exist"]),
        (
            "good.csv",
            "classify",
            &["--run", "."],
            &["`.` is not empty, and what it holds is no run"],
        ),
    ];
    for (csv, task, more, words) in cases {
        assert_refused(path, &train(csv, task, more), words);
        assert!(!path.join("run").exists(), "{csv} left a folder");
    }
    // What the command line itself forbids is another status.
    for more in [&["--task", "guess"][..], &["--checkpoint-every", "5x"], &["--holdout", "1"]] {
        let output = gru(path, &train("good.csv", "classify", more));
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}

#[test]
fn a_run_in_a_folder_is_not_overwritten_or_mixed_up() {
    let directory = folder_with(&[("train.csv", &table(0..40)), ("other.csv", "id,level\na,1\n")]);
    let path = directory.path();
    let short = ["--epochs", "1"];
    assert_refused(path, &["train", "--resume", "run"], &["there is no such folder"]);
    assert_refused(path, &["predict", "run", "train.csv"], &["there is no such folder"]);
    assert_refused(path, &["predict", ".", "train.csv"], &["it holds no config.toml"]);
    succeeded(path, &train("train.csv", "classify", &short));
    let words = ["`run` holds a run already", "--resume", "--force"];
    assert_refused(path, &train("train.csv", "classify", &short), &words);
    succeeded(path, &train("train.csv", "classify", &["--epochs", "1", "--force"]));
    assert_refused(
        path,
        &["predict", "run", "other.csv"],
        &["`other.csv`: no column is named `sign`"],
    );
    assert_refused(path, &["predict", "run", "train.csv", "--output", "p.txt"], &["a .csv file"]);

    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    let change = |from: &str, to: &str| {
        std::fs::write(path.join("run/config.toml"), config.replace(from, to)).unwrap();
    };
    for (from, to, words) in [
        ("hidden = 6", "hidden = \"six\"", "config.toml`, line"),
        ("hidden = 6", "hidden = 7", "another one than its config.toml says"),
        (
            "classes = [\"down\", \"up\"]",
            "classes = [\"up\", \"down\"]",
            "two words or more, sorted",
        ),
        ("task = \"classify\"", "task = \"classify\"\nmore = 1", "unknown field `more`"),
        ("deviation = ", "deviation = -", "make no scale"),
    ] {
        change(from, to);
        assert_refused(path, &["predict", "run", "train.csv", "--device", "cpu"], &[words]);
    }
    change("", "");
    std::fs::write(path.join("train.csv"), table(0..41)).unwrap();
    assert_refused(
        path,
        &["train", "--resume", "run"],
        &["train.csv` is not what the run was started with"],
    );
}
