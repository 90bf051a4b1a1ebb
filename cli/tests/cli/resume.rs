//! Runs of `gru train` that end early and resume.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use gru_wgpu::Checkpoint;

use crate::common::program::{assert_refused, end_after_an_epoch, gru, text};
use crate::common::sequences::{folder_with, json, labelled, metric, succeeded, table, train};

/// Starts the program and waits for a line on stderr with this start. The lines after it can be
/// read.
fn start(path: &Path, arguments: &[&str], line: &str) -> (Child, Lines<BufReader<ChildStderr>>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
    command
        .current_dir(path)
        .env_remove("GRU_DEVICE")
        .env("GRU_PIPELINE_CACHE", "none")
        .args(arguments);
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = lines.by_ref().find(|said| said.as_ref().unwrap().starts_with(line));
    assert!(found.is_some(), "{arguments:?} never said {line}");
    (child, lines)
}

fn signal(child: &Child, name: &str) {
    let kill = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}

fn resume<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--resume", run, "--device", "cpu"], more].concat()
}

/// Stops runs after their first epoch, by Ctrl-C and by a kill, resumes them, and compares them
/// with a run that was not stopped.
#[cfg(unix)]
#[test]
fn an_interrupted_run_resumes_to_the_same_bytes() {
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
    for (word, status) in [("INT", Some(130)), ("KILL", None)] {
        let (got, rest) = end_after_an_epoch(path, &arguments(word), word);
        assert_eq!(got, status, "{word}: {rest:?}");
        if word == "INT" {
            let last = rest.last().unwrap();
            assert!(last.contains("resume with `gru train --resume INT`"), "{rest:?}");
            let words: Vec<_> = last.split(' ').collect();
            let (updates, epochs): (usize, _) = (words[2].parse().unwrap(), words[4]);
            if updates % 27 > 0 {
                let said = ["epochs and has started the next"];
                assert_refused(path, &resume(word, &["--epochs", epochs]), &said);
            }
        }
        let run = path.join(word);
        let done = metric(&run, "epoch").len();
        assert!(done < 12, "{word}: it was too late");

        succeeded(path, &["train", "--resume", word, "--device", "cpu"]);
        assert!(bytes(&whole) == bytes(&run), "{word}: the models differ");
        for name in ["updates", "learning_rate", "train_loss", "valid_loss", "valid_accuracy"] {
            assert_eq!(metric(&whole, name), metric(&run, name), "{word}: {name}");
        }
    }
    // Nothing is left to train, and the output is the same again.
    let again = json(path, &["train", "--resume", "INT", "--device", "cpu", "--json"]);
    assert_eq!(again["updates"], 27 * 12);
    assert!(bytes(&whole) == bytes(&path.join("INT")));

    // It resumes with the settings it started with, or is refused.
    let config = path.join("INT").join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    for (part, from, to) in [
        (
            "[model], before GRU 3→6, reset after, z keeps, two biases, 2 layers, both directions, dropout 0.3,",
            "direction = \"both\"",
            "direction = \"forward\"",
        ),
        ("training.seed, 1 before,", "seed = 1", "seed = 2"),
        ("[data] or [windows]", "holdout = 0.1", "holdout = 0.2"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let message = format!("`INT/config.toml`: {part} has changed since the run started");
        assert_refused(path, &["train", "--resume", "INT", "--device", "cpu"], &[&message]);
    }
}

/// The learning rate changes, then diverges, then is good again.
#[test]
fn a_run_resumes_with_other_settings_and_records_the_old_ones() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "2"]));
    let run = path.join("run");
    let config = || fs::read_to_string(run.join("config.toml")).unwrap();
    let (last, before) =
        (run.join("checkpoint.safetensors"), run.join("checkpoint.safetensors.before"));
    fs::write(&before, "the one before").unwrap();
    let good = fs::read(&last).unwrap();

    // A run that diverges before its first checkpoint keeps the ones it resumed from.
    let wild = ["--learning-rate", "1e38", "--clip", "none", "--epochs", "5"];
    let told = "the checkpoints in `run` are still those that the run resumed from";
    assert_refused(path, &resume("run", &wild), &["diverged: loss", told]);
    assert_refused(path, &resume("run", &[]), &["diverged: loss", told]);
    assert_eq!(fs::read_to_string(&before).unwrap(), "the one before");
    assert!(good == fs::read(&last).unwrap());

    let tame = ["--learning-rate", "0.02", "--clip", "value:0.5", "--patience", "9"];
    let (_, told) = succeeded(path, &resume("run", &tame));
    assert!(told.contains("--clip value:0.5 (none before), --patience 9 (none before)"), "{told}");
    assert_eq!(metric(&run, "epoch"), [1.0, 2.0, 3.0, 4.0, 5.0]);
    let noted = config();
    let part_of = |config: &str, at: usize| config.split("[[changes]]").nth(at).unwrap().to_owned();
    let part = |at: usize| part_of(&noted, at);
    assert_eq!(noted.matches("[[changes]]").count(), 1, "{noted}");
    for (at, words) in [
        (0, ["epochs = 5\n", "learning_rate = 0.02\n", "clip = \"value:0.5\"\n", "patience = 9\n"]),
        (1, ["epochs = 2\n", "learning_rate = 0.03\n", "clip = \"norm:1\"\n", "updates = 18\n"]),
    ] {
        words.iter().for_each(|word| assert!(part(at).contains(word), "{word} in {at}: {noted}"));
    }
    // Early stopping can be turned off again.
    succeeded(path, &resume("run", &["--patience", "none"]));
    assert!(!part_of(&config(), 0).contains("patience"), "{}", config());
    succeeded(path, &resume("run", &["--patience", "9"]));
    fs::write(run.join("config.toml"), &noted).unwrap();

    // A run that was killed before its first checkpoint continues with the new settings too.
    let model = fs::read(run.join("model.safetensors")).unwrap();
    fs::write(&last, &good).unwrap();
    succeeded(path, &resume("run", &["--learning-rate", "0.02"]));
    assert!(model == fs::read(run.join("model.safetensors")).unwrap());
    assert_eq!(noted, config());
    // If the last checkpoint is missing, the one before it is used.
    fs::remove_file(&last).unwrap();
    let (_, told) = succeeded(path, &resume("run", &[]));
    assert!(told.contains("using the previous checkpoint"), "{told}");

    // If both are damaged, the error says how for each.
    let [kept, cut] = [&last, &before].map(|file| fs::read(file).unwrap());
    fs::write(&last, "no checkpoint").unwrap();
    fs::write(&before, &cut[..cut.len() - 1]).unwrap();
    let words = [
        "error: `run/checkpoint.safetensors`: ",
        "; `run/checkpoint.safetensors.before`: ",
        "no other checkpoint to resume from",
    ];
    assert_refused(path, &resume("run", &[]), &words);
    fs::write(&last, kept).unwrap();
    fs::write(&before, cut).unwrap();

    assert_refused(
        path,
        &resume("run", &["--epochs", "4"]),
        &["has finished 5 epochs; expected --epochs of at least 5, got 4"],
    );
    for (option, value) in
        [("--batch", "8"), ("--seed", "2"), ("--hidden", "8"), ("--task", "label")]
    {
        let output = gru(path, &resume("run", &[option, value]));
        assert_eq!(output.status.code(), Some(2), "{option}: {}", text(&output.stderr));
    }
    fs::write(run.join("config.toml"), noted.replace("_rate = 0.02", "_rate = 0.01")).unwrap();
    assert_refused(
        path,
        &resume("run", &[]),
        &["`run/config.toml`: training.learning_rate, 0.02 before, has changed"],
    );
}

#[test]
fn a_run_resumes_without_its_metrics() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "3"]));
    let metrics = path.join("run/metrics.csv");
    let whole = fs::read_to_string(&metrics).unwrap();
    let last = whole.trim_end().rfind('\n').unwrap();
    for (content, left) in [
        (None, vec![]),
        (Some(""), vec![]),
        (Some(&whole[..last + 4]), vec![1.0, 2.0]),
        (Some("not,what\nit,was\n"), vec![]),
    ] {
        match content {
            Some(content) => fs::write(&metrics, content).unwrap(),
            None => fs::remove_file(&metrics).unwrap(),
        }
        let epochs = (4 + left.len()).to_string();
        let checkpoint = path.join("run/checkpoint.safetensors");
        let config = path.join("run/config.toml");
        let kept = [&checkpoint, &config].map(|file| fs::read(file).unwrap());
        let (_, told) = succeeded(path, &resume("run", &["--epochs", &epochs]));
        let has = format!("metrics.csv` has only {} of the 3 finished epochs", left.len());
        assert!(told.contains(&has), "{content:?}: {told}");
        let expected: Vec<_> = left.into_iter().chain([4.0]).collect();
        assert_eq!(metric(&path.join("run"), "epoch")[..expected.len()], expected, "{content:?}");
        fs::write(checkpoint, &kept[0]).unwrap();
        fs::write(config, &kept[1]).unwrap();
    }
}

#[test]
fn moved_data_are_given_again_and_must_be_the_same() {
    let files = [
        ("train.csv", &*table(0..40)),
        ("valid.csv", &table(40..60)),
        ("other.csv", &table(0..41)),
    ];
    let directory = folder_with(&files);
    let path = directory.path();
    let short = ["--valid", "valid.csv", "--epochs", "1"];
    succeeded(path, &train("train.csv", "classify", &short));
    fs::create_dir(path.join("moved")).unwrap();
    for name in ["train.csv", "valid.csv"] {
        fs::rename(path.join(name), path.join("moved").join(name)).unwrap();
    }
    let words =
        ["cannot open `", "train.csv`", "if the data has moved, give its new path after --resume"];
    assert_refused(path, &resume("run", &[]), &words);
    let valid = ["--valid", "moved/valid.csv"];
    for (train, words) in [
        ("other.csv", "other.csv` or `"),
        ("moved/valid.csv", "valid.csv` has changed since the run started"),
        ("none.csv", "cannot open `none.csv`"),
    ] {
        assert_refused(path, &resume("run", &[&valid[..], &[train]].concat()), &[words]);
    }
    succeeded(path, &resume("run", &["moved/train.csv", "--valid", "moved/valid.csv"]));
    // Their new location is recorded.
    succeeded(path, &resume("run", &["--epochs", "2"]));
    let one = ["--epochs", "1", "--run", "one"];
    succeeded(path, &train("other.csv", "classify", &one));
    assert_refused(path, &resume("one", &valid), &["holds out sequences of its training file"]);
}

#[cfg(unix)]
#[test]
fn one_run_at_a_time_writes_to_a_folder() {
    let directory = folder_with(&[("train.csv", &labelled(0..60))]);
    let path = directory.path();
    let long = ["--epochs", "100000", "--batch", "2"];
    let (mut child, _lines) = start(path, &train("train.csv", "label", &long), "epoch ");
    let message = "another run is writing to `run`";
    assert_refused(path, &resume("run", &[]), &[message]);
    assert_refused(path, &train("train.csv", "label", &["--force"]), &[message]);
    // Reading is allowed.
    succeeded(path, &["predict", "run", "train.csv", "--device", "cpu", "--output", "said.csv"]);
    signal(&child, "KILL");
    child.wait().unwrap();

    // Only the file that it was writing is removed.
    let run = path.join("run");
    for name in [".tmpAb3dEf", ".tmp", ".tmpAb3dEfg", "notes.txt"] {
        fs::write(run.join(name), "a part").unwrap();
    }
    let (mut child, _lines) = start(path, &resume("run", &[]), "epoch ");
    signal(&child, "KILL");
    child.wait().unwrap();
    for (name, stays) in
        [(".tmpAb3dEf", false), (".tmp", true), (".tmpAb3dEfg", true), ("notes.txt", true)]
    {
        assert_eq!(run.join(name).exists(), stays, "{name}");
    }
}

/// Files that a killed run may leave before config.toml exists do not count as a run.
#[test]
fn leftovers_of_a_killed_start_are_ignored() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    fs::create_dir(path.join("run")).unwrap();
    for name in [".lock", ".tmpAb3dEf"] {
        fs::write(path.join("run").join(name), "").unwrap();
    }
    succeeded(path, &train("train.csv", "classify", &["--epochs", "1"]));
    assert!(!path.join("run/.tmpAb3dEf").exists());
}

/// An epoch has eight slow updates; the run does not wait for the last one.
#[cfg(unix)]
#[test]
fn a_run_with_slow_updates_stops_between_two_of_them() {
    let directory = folder_with(&[("train.csv", &labelled(0..40))]);
    let path = directory.path();
    let slow = ["--hidden", "256", "--layers", "2", "--epochs", "2", "--holdout", "0.2"];
    let (mut child, lines) = start(path, &train("train.csv", "label", &slow), "training ");
    signal(&child, "INT");
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let said = rest.last().unwrap();
    let updates: usize = said.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(said.starts_with("interrupted after") && updates < 8, "{rest:?}");
}

/// Kills runs at random moments, GRU_KILLS times, and compares the results with a run that was not
/// killed. GRU_DEVICE chooses the device.
#[cfg(unix)]
#[test]
fn runs_killed_many_times_end_with_the_same_bytes() {
    use rand::RngExt;
    use std::time::Duration;

    let kills: usize = std::env::var("GRU_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let device = std::env::var("GRU_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let directory = folder_with(&[("train.csv", &labelled(0..60))]);
    let path = directory.path();
    let on_device = ["--device", &device];
    let begin = |run| {
        let model = ["--layers", "2", "--dropout", "0.3", "--run", run, "--force"];
        let often = ["--epochs", "8", "--batch", "2", "--checkpoint-every", "1"];
        [&train("train.csv", "label", &model)[..], &often, &on_device].concat()
    };
    let go_on = [&resume("killed", &["--checkpoint-every", "1"])[..], &on_device].concat();
    let since = std::time::Instant::now();
    succeeded(path, &begin("whole"));
    let longest = since.elapsed().max(Duration::from_millis(100));
    let (whole, killed) = (path.join("whole"), path.join("killed"));
    let check = || {
        let model = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
        assert!(model(&whole) == model(&killed), "the models differ");
        for name in ["updates", "learning_rate", "train_loss", "valid_loss", "valid_accuracy"] {
            assert_eq!(metric(&whole, name), metric(&killed, name), "{name}");
        }
        let names = fs::read_dir(&killed).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.starts_with(".tmp")), "{names:?}");
    };
    let has_begun = || killed.join("checkpoint.safetensors").exists();
    let mut random = crate::common::rng(7);
    let (mut done, mut ended, mut afresh) = (0, 0, 0);
    while done < kills {
        let arguments = if has_begun() { go_on.clone() } else { begin("killed") };
        afresh += usize::from(!has_begun());
        let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
        command.current_dir(path).args(&arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(longest.mul_f64(random.random_range(0.0..0.6)));
        // It may have ended already.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            None => done += 1,
            Some(0) => {
                ended += 1;
                check();
                fs::remove_dir_all(&killed).unwrap();
            }
            Some(code) => panic!("{arguments:?}: {code}: {}", text(&output.stderr)),
        }
    }
    if has_begun() {
        succeeded(path, &go_on);
        check();
    }
    println!("{done} kills on {device}, {afresh} beginnings, {} ends", ended + 1);
}

/// A folder has the name of the checkpoint. Like a full disk, this may be temporary.
#[cfg(unix)]
#[test]
fn a_failed_checkpoint_write_does_not_end_the_run() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "2"]));
    let last = path.join("run/checkpoint.safetensors");
    fs::remove_file(&last).unwrap();
    fs::create_dir(&last).unwrap();
    let output = gru(path, &resume("run", &["--epochs", "4", "--checkpoint-every", "1"]));
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let warning = "warning: the run continues, but was not saved: `run/checkpoint.safetensors` ";
    assert!(told.matches(warning).count() > 2 && !told.contains("all is in"), "{told}");
    let error = "error: the run was not saved: `run/checkpoint.safetensors` ";
    assert!(told.lines().last().unwrap().starts_with(error), "{told}");
    // The result is printed nevertheless.
    assert!(text(&output.stdout).contains("GRU after epoch "), "{}", text(&output.stdout));

    // When there is space again the run is saved, and the final status is success.
    let (mut child, lines) = start(path, &resume("run", &["--epochs", "300"]), "warning: the run");
    fs::remove_dir(&last).unwrap();
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
    assert!(rest.last().unwrap().contains("300 of 300 epochs; all files are in `run`"), "{rest:?}");
    succeeded(path, &resume("run", &[]));
}

/// A learning rate that makes the run diverge: the error names the checkpoints to resume from, the
/// outdated results are removed, and a failed write is reported once.
#[test]
fn a_bad_change_of_settings_is_reported() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "2"]));
    let run = path.join("run");
    assert!(run.join("classes.csv").exists());
    let kept = ["checkpoint.safetensors", "config.toml"].map(|name| run.join(name));
    let good = kept.each_ref().map(|file| fs::read(file).unwrap());
    let wild = ["--learning-rate", "1e3", "--epochs", "60", "--clip", "none"];
    let words = ["diverged", "replace it by the previous one, checkpoint.safetensors.before"];
    assert_refused(path, &resume("run", &wild), &words);
    assert!(!run.join("classes.csv").exists());
    assert!(good[0] == fs::read(run.join("checkpoint.safetensors.before")).unwrap());

    kept.iter().zip(&good).for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
    fs::remove_file(run.join("metrics.csv")).unwrap();
    fs::create_dir(run.join("metrics.csv")).unwrap();
    let output = gru(path, &resume("run", &["--epochs", "9"]));
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(told.matches("warning: the run continues, but was not saved").count(), 1, "{told}");
}

/// Another model of the same shape is noticed, by the fingerprint in the checkpoint's notes.
#[test]
fn predict_refuses_a_model_that_the_run_did_not_write() {
    let series: String = (0..160).map(|i| format!("{:.4}\n", f64::from(i).sin())).collect();
    let files = [("train.csv", &*table(0..40)), ("series.csv", &format!("value\n{series}"))];
    let directory = folder_with(&files);
    let path = directory.path();
    fn begin<'a>(command: &str, run: &'a str, seed: &'a str) -> Vec<&'a str> {
        let sizes = ["--input", "16", "--horizon", "5", "--season", "8", "--epochs", "2"];
        let forecast = ["forecast", "series.csv", "--run", run, "--device", "cpu", "--seed", seed];
        match command {
            "train" => train("train.csv", "classify", &["--run", run, "--seed", seed]),
            _ => [&forecast[..], &sizes].concat(),
        }
    }
    for (command, csv) in [("train", "train.csv"), ("forecast", "series.csv")] {
        let [run, other] = &["it", "other"].map(|name| format!("{command} {name}"));
        succeeded(path, &begin(command, run, "1"));
        succeeded(path, &begin(command, other, "2"));
        let at = |name: &str| path.join(run).join(name);
        let (model, checkpoint) = (at("model.safetensors"), at("checkpoint.safetensors"));
        let [own, saved] = [&model, &checkpoint].map(|file| fs::read(file).unwrap());
        let predict = ["predict", run, csv, "--device", "cpu"];
        let (expected, _) = succeeded(path, &predict);

        fs::copy(path.join(other).join("model.safetensors"), &model).unwrap();
        let wrong = format!(
            "`{run}/model.safetensors` is not the model of the run's last checkpoint: the file was replaced, or"
        );
        let again = format!("`gru {command} --resume '{run}'` writes it again, or delete the file");
        assert_refused(path, &predict, &[&wrong, &again]);
        // Both ways out work.
        succeeded(path, &[command, "--resume", run, "--device", "cpu"]);
        assert!(own == fs::read(&model).unwrap(), "{command}");
        fs::copy(path.join(other).join("model.safetensors"), &model).unwrap();
        assert_refused(path, &predict, &[&wrong]);
        fs::remove_file(&model).unwrap();
        assert_eq!(succeeded(path, &predict).0, expected, "{command}");

        // Without an intact checkpoint, or with one of an earlier version, nothing is compared.
        fs::copy(path.join(other).join("model.safetensors"), &model).unwrap();
        let mut earlier = Checkpoint::from_bytes(&saved).unwrap();
        assert!(earlier.notes.remove("model").is_some(), "{command}");
        for bytes in [&earlier.to_bytes().unwrap()[..], &saved[..99], &[]] {
            fs::write(&checkpoint, bytes).unwrap();
            assert_ne!(succeeded(path, &predict).0, expected, "{command}");
        }
        fs::remove_file(&checkpoint).unwrap();
        succeeded(path, &predict);
    }
}

/// While a run saves, its model is newer than its checkpoint for a moment.
#[cfg(unix)]
#[test]
fn predict_takes_the_model_in_the_checkpoint_of_a_run_that_is_saving() {
    let directory = folder_with(&[("train.csv", &labelled(0..60))]);
    let path = directory.path();
    let other = ["--epochs", "1", "--run", "other", "--seed", "2"];
    succeeded(path, &train("train.csv", "label", &other));
    let long = ["--epochs", "100000", "--batch", "2"];
    let (mut child, _lines) = start(path, &train("train.csv", "label", &long), "epoch ");
    while !path.join("run/checkpoint.safetensors").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let predict = ["predict", "run", "train.csv", "--device", "cpu"];
    let (expected, _) = succeeded(path, &predict);
    fs::copy(path.join("other/model.safetensors"), path.join("run/model.safetensors")).unwrap();
    let (rows, told) = succeeded(path, &predict);
    let words = "a run is writing to `run/model.safetensors`; using the model in the checkpoint";
    assert!(rows == expected && told.contains(words), "{told}");
    signal(&child, "KILL");
    child.wait().unwrap();
    assert_refused(path, &predict, &["is not the model of the run's last checkpoint"]);
}

/// Messages name commands that a shell runs, whatever the folder's name is.
#[cfg(unix)]
#[test]
fn commands_in_messages_work_when_they_are_copied() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    let shell = |command: &str| {
        let program = env!("CARGO_BIN_EXE_gru");
        let command = command.replacen("gru ", &format!("{program} "), 1) + " --device cpu";
        Command::new("sh").args(["-c", &command]).current_dir(path).output().unwrap()
    };
    for run in ["-r", "-- it's \"a\" run $(x)", "plain"] {
        let named = format!("--run={run}");
        succeeded(path, &train("train.csv", "classify", &[&named, "--epochs", "1"]));
        let refused = gru(path, &train("train.csv", "classify", &[&named]));
        let message = text(&refused.stderr);
        let options = message.split("continue it with `").nth(1).unwrap();
        let options = options.split("`, replace").next().unwrap();
        let told = shell(&format!("gru train {options}"));
        assert!(told.status.success(), "{run}: {options}: {}", text(&told.stderr));

        let model = path.join(run).join("model.safetensors");
        fs::remove_file(&model).unwrap();
        let at = path.join(run);
        let predict = ["predict", at.to_str().unwrap(), "train.csv", "--device", "cpu"];
        assert!(succeeded(path, &predict).1.contains("--resume"), "{run}");
        let told = shell(&format!("gru predict {} train.csv", &options["--resume ".len()..]));
        let message = text(&told.stderr);
        let command = message.split("checkpoint. `").nth(1).unwrap();
        let told = shell(command.split("` writes").next().unwrap());
        assert!(told.status.success() && model.exists(), "{run}: {message}");
    }
}

/// The last checkpoint also contains the model.
#[test]
fn predict_works_after_the_model_file_was_deleted() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "3"]));
    let series: String = (0..160).map(|i| format!("{:.4}\n", f64::from(i).sin())).collect();
    fs::write(path.join("series.csv"), format!("value\n{series}")).unwrap();
    let sizes = ["--input", "16", "--horizon", "5", "--season", "8", "--epochs", "2"];
    let forecast = ["forecast", "series.csv", "--run", "series", "--device", "cpu"];
    succeeded(path, &[&forecast[..], &sizes].concat());
    for (command, run, csv) in [("train", "run", "train.csv"), ("forecast", "series", "series.csv")]
    {
        let predict = ["predict", run, csv, "--device", "cpu"];
        let (expected, _) = succeeded(path, &predict);
        let model = path.join(run).join("model.safetensors");
        let bytes = fs::read(&model).unwrap();
        fs::remove_file(&model).unwrap();
        let (rows, told) = succeeded(path, &predict);
        assert_eq!(rows, expected, "{command}");
        let missing =
            format!("`{run}/model.safetensors` is missing; using the model in the checkpoint");
        let again = format!("`gru {command} --resume {run}` writes the file again");
        assert!(told.contains(&missing) && told.contains(&again), "{told}");
        succeeded(path, &[command, "--resume", run, "--device", "cpu"]);
        assert!(bytes == fs::read(&model).unwrap(), "{command}");

        fs::remove_file(&model).unwrap();
        for name in ["checkpoint.safetensors", "checkpoint.safetensors.before"] {
            let _ = fs::remove_file(path.join(run).join(name));
        }
        let epochs = if command == "train" { 3 } else { 2 };
        let lost = format!(
            "model.safetensors and the checkpoints of `{run}` are missing, although {epochs} epochs have \
             finished; train again with --force"
        );
        assert_refused(path, &predict, &[&lost]);
        assert_refused(path, &[command, "--resume", run, "--device", "cpu"], &[&lost]);
        fs::remove_file(path.join(run).join("metrics.csv")).unwrap();
        let words = [&*format!("`{run}` holds no model yet: no epoch has finished")];
        assert_refused(path, &predict, &words);
    }
}

/// Neither the data nor the files of a run, under any name.
#[test]
fn train_and_predict_never_overwrite_inputs_or_run_files() {
    let directory = folder_with(&[("train.csv", &table(0..40)), ("tt.csv", &table(40..60))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "1"]));
    fs::hard_link(path.join("tt.csv"), path.join("hard.csv")).unwrap();
    let mut names = vec!["tt.csv", "./tt.csv", "run/../tt.csv", "hard.csv"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("tt.csv", path.join("soft.csv")).unwrap();
        std::os::unix::fs::symlink("run/metrics.csv", path.join("kept.csv")).unwrap();
        names.extend(["soft.csv", "kept.csv"]);
    }
    names.extend(["run/metrics.csv", "run/classes.csv"]);
    let files = ["tt.csv", "run/metrics.csv", "run/classes.csv", "run/config.toml"];
    let read = || files.map(|name| fs::read(path.join(name)).unwrap());
    let before = read();
    for name in names {
        let predict = ["predict", "run", "tt.csv", "--device", "cpu", "--output", name];
        let said = match name {
            "hard.csv" => "--output `hard.csv` is the same file as the input `tt.csv`",
            "kept.csv" => "run/metrics.csv`, which the run in `",
            _ => "it would be overwritten",
        };
        assert_refused(path, &predict, &[said]);
        assert!(before == read(), "{name}");
    }
    succeeded(path, &["predict", "run", "tt.csv", "--device", "cpu", "--output", "run/new.csv"]);
    fs::remove_file(path.join("run/new.csv")).unwrap();

    // A run's own data, which a new run in its folder would remove before reading them.
    let words = ["`run/classes.csv` is a file of the run in `run`; it would be overwritten"];
    let again = ["--force", "--run", "run"];
    assert_refused(path, &train("run/classes.csv", "classify", &again), &words);
    let valid = [&again[..], &["--valid", "run/classes.csv"]].concat();
    assert_refused(path, &train("train.csv", "classify", &valid), &words);
    let forecast = ["forecast", "run/classes.csv", "--device", "cpu"];
    assert_refused(path, &[&forecast[..], &again].concat(), &words);
    assert!(before == read());
    fs::rename(path.join("train.csv"), path.join("run/classes.csv")).unwrap();
    let words = ["run/classes.csv` is a file of the run in `run`; it would be overwritten"];
    assert_refused(path, &resume("run", &["run/classes.csv"]), &words);
    assert!(fs::read(path.join("run/classes.csv")).unwrap() == table(0..40).into_bytes());

    // A prediction does not overwrite the files that the run needs to resume.
    fs::write(path.join("train.csv"), table(0..40)).unwrap();
    let predict = ["predict", "run", "tt.csv", "--device", "cpu", "--output", "train.csv"];
    assert_refused(
        path,
        &predict,
        &["--output `train.csv` is the same", "the run needs to resume"],
    );

    // Pictures that would replace their own data, or another run's.
    fs::rename(path.join("run/classes.csv"), path.join("forecast.svg")).unwrap();
    let forecast = ["forecast", "forecast.svg", "--device", "cpu"];
    assert_refused(path, &forecast, &["is the same file as the input `forecast.svg`"]);
    let forecast = ["forecast", "tt.csv", "--device", "cpu", "--output", "run"];
    assert_refused(
        path,
        &forecast,
        &["`run/forecast.svg` is a file of the run in `run`", "--output FOLDER", "--run FOLDER"],
    );
}

/// Data with the name of a file that a run removes from its folder, in a new run and in a resumed
/// one.
#[test]
fn data_with_the_name_of_a_temporary_file_are_refused() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    fs::create_dir(path.join("it")).unwrap();
    let data = path.join("it/.tmpabc123");
    fs::copy(path.join("train.csv"), &data).unwrap();
    let words = ["`it/.tmpabc123` is named like a temporary file of the run in `it`"];
    assert_refused(path, &train("it/.tmpabc123", "classify", &["--run", "it"]), &words);
    let valid = ["--run", "it", "--valid", "it/.tmpabc123"];
    assert_refused(path, &train("train.csv", "classify", &valid), &words);
    assert!(data.exists());
    succeeded(path, &train("train.csv", "classify", &["--run", "it", "--epochs", "1"]));
    assert!(!data.exists());
    fs::copy(path.join("train.csv"), &data).unwrap();
    let words = ["is named like a temporary file"];
    assert_refused(path, &resume("it", &["it/.tmpabc123"]), &words);
    assert!(data.exists());
}

/// A folder with a config.toml of another program.
#[test]
fn a_folder_with_other_files_is_refused() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    fs::create_dir(path.join("hugo")).unwrap();
    let files = ["config.toml", "metrics.csv", "model.safetensors"]
        .map(|name| path.join("hugo").join(name));
    for file in &files {
        fs::write(file, "title = \"a page\"\n").unwrap();
    }
    for more in [&["--run", "hugo"][..], &["--run", "hugo", "--force"]] {
        let words = ["`hugo` is not a run folder: its config.toml does not belong to a run"];
        assert_refused(path, &train("train.csv", "classify", more), &words);
    }
    for file in &files {
        assert_eq!(fs::read_to_string(file).unwrap(), "title = \"a page\"\n");
    }
}

/// Files elsewhere that a run's files link to.
#[cfg(unix)]
#[test]
fn a_run_does_not_write_through_links() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "2"]));
    let names =
        ["checkpoint.safetensors", "config.toml", "curves.svg", "metrics.csv", "model.safetensors"];
    let link = |name: &str| {
        let (own, other) = (path.join("run").join(name), path.join("elsewhere").join(name));
        fs::rename(&own, &other).unwrap();
        std::os::unix::fs::symlink(&other, &own).unwrap();
    };
    fs::create_dir(path.join("elsewhere")).unwrap();
    for arguments in [
        resume("run", &["--epochs", "4"]),
        train("train.csv", "classify", &["--epochs", "1", "--force"]),
    ] {
        names.iter().for_each(|name| link(name));
        let _ = fs::remove_file(path.join("run/classes.csv"));
        std::os::unix::fs::symlink("../nowhere.csv", path.join("run/classes.csv")).unwrap();
        let read = || names.map(|name| fs::read(path.join("elsewhere").join(name)).unwrap());
        let before = read();
        succeeded(path, &arguments);
        assert!(before == read(), "{arguments:?} wrote through a link");
        for name in names.iter().chain(&["classes.csv"]) {
            let file = path.join("run").join(name);
            assert!(file.is_file() && !file.is_symlink(), "{arguments:?}: {name}");
        }
        assert!(!path.join("nowhere.csv").exists());
    }
}
