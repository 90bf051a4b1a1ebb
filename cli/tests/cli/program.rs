//! `gru forecast`, `check` and `info`, and what all commands share: usage, errors and devices.

use std::process::Command;

use crate::common::program::{assert_refused, gru, text};
use tempfile::TempDir;

/// Writes a series: a wave with eight rows per season on a slope, 160 rows, two cells missing.
fn series(directory: &TempDir) -> &'static str {
    let mut csv = "day,other,value\n".to_owned();
    for i in 0..160 {
        let value = (f64::from(i) * std::f64::consts::TAU / 8.0).sin() + 0.01 * f64::from(i);
        let cell = if [3, 77].contains(&i) { String::new() } else { format!("{value:.4}") };
        csv += &format!("row {i},{i},{cell}\n");
    }
    std::fs::write(directory.path().join("series.csv"), csv).unwrap();
    "series.csv"
}

const SMALL: [&str; 12] = [
    "--input",
    "16",
    "--horizon",
    "5",
    "--season",
    "8",
    "--hidden",
    "7",
    "--epochs",
    "3",
    "--batch",
    "17",
];

fn forecast<'a>(csv: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["forecast", csv], &SMALL[..], more].concat()
}

#[test]
fn forecast_prints_a_table_and_writes_two_plots() {
    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let output = gru(directory.path(), &forecast(csv, &["--device", "cpu"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    for row in ["GRU", "last value", "a season before", "a season before plus drift"] {
        assert!(stdout.lines().any(|line| line.trim().starts_with(row)), "{row}: {stdout}");
    }
    assert!(stderr.contains("column `value`, 160 rows, 2 missing ones interpolated"), "{stderr}");
    for name in ["forecast.svg", "loss.svg"] {
        let svg = std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
    }
    // The same seed gives the same numbers and pictures, another seed gives others.
    let picture = std::fs::read(directory.path().join("forecast.svg")).unwrap();
    let again = gru(directory.path(), &forecast(csv, &["--device", "cpu"]));
    assert_eq!(text(&again.stdout), stdout);
    assert_eq!(std::fs::read(directory.path().join("forecast.svg")).unwrap(), picture);
    let other = gru(directory.path(), &forecast(csv, &["--device", "cpu", "--seed", "2"]));
    assert_ne!(text(&other.stdout), stdout);
    // No other file is left behind.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    // A picture that cannot be written is refused before the training.
    let picture = directory.path().join("loss.svg");
    std::fs::remove_file(&picture).unwrap();
    std::fs::create_dir(&picture).unwrap();
    let refused = ["loss.svg` is not a regular file: --output FOLDER puts it elsewhere"];
    assert_refused(directory.path(), &forecast(csv, &["--device", "cpu"]), &refused);
    #[cfg(unix)]
    {
        std::fs::remove_dir(&picture).unwrap();
        std::os::unix::fs::symlink("nowhere.svg", &picture).unwrap();
        assert_refused(directory.path(), &forecast(csv, &["--device", "cpu"]), &refused);
    }
}

#[test]
fn forecast_accepts_more_input_columns() {
    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let run = |columns: &str| {
        let output =
            gru(directory.path(), &forecast(csv, &["--device", "cpu", "--column", columns]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (alone, beside) = (run("value"), run("value,2"));
    assert!(beside.1.contains("columns `value`, `other`, 160 rows, 2 missing"), "{}", beside.1);
    // The baselines use only the series, and the model has 3 · 7 more parameters per input.
    let row = |stdout: &str, name: &str| {
        let row = stdout.lines().find(|line| line.trim().starts_with(name));
        row.unwrap().to_owned()
    };
    assert_eq!(row(&alone.0, "last value"), row(&beside.0, "last value"));
    assert_ne!(row(&alone.0, "GRU"), row(&beside.0, "GRU"));
    assert!(alone.1.contains("training 229 parameters"), "{}", alone.1);
    assert!(beside.1.contains("training 250 parameters"), "{}", beside.1);
    let twice = forecast(csv, &["--column", "value,other,3"]);
    assert_refused(directory.path(), &twice, &["column `3` is listed twice"]);
}

/// Runs the program, which must succeed. Returns its stdout and stderr.
fn succeeded(directory: &TempDir, arguments: &[&str]) -> (String, String) {
    let output = gru(directory.path(), arguments);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (text(&output.stdout), stderr)
}

#[test]
fn a_forecast_run_prints_the_same_and_predict_reads_its_folder() {
    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let columns = ["--device", "cpu", "--column", "value,other"];
    let (plain, _) = succeeded(&directory, &forecast(csv, &columns));
    let (kept, told) =
        succeeded(&directory, &forecast(csv, &[&columns[..], &["--run", "it"]].concat()));
    assert_eq!(plain, kept);
    assert!(told.contains("held out 0."), "{told}");
    let run = directory.path().join("it");
    let read = |name: &str| std::fs::read(run.join(name)).unwrap();
    assert!(read("forecast.svg") == std::fs::read(directory.path().join("forecast.svg")).unwrap());
    assert!(read("curves.svg").starts_with(b"<svg") && !run.join("loss.svg").exists());
    let metrics = text(&read("metrics.csv"));
    let header = "epoch,updates,learning_rate,train_loss,valid_loss,seconds";
    assert!(metrics.starts_with(header) && metrics.lines().count() == 4, "{metrics}");
    let (_, told) = succeeded(&directory, &["convert", "it/model.safetensors", "gru.npz"]);
    assert!(told.contains("GRU 2→7"), "{told}");

    // Forecasts the same rows, and rows a thousand higher, with its columns in other places, as
    // many as a window has.
    let cells = std::fs::read_to_string(directory.path().join(csv)).unwrap();
    let mut moved = "value,more,other\n".to_owned();
    for row in cells.lines().skip(161 - 16) {
        let [_, other, value] = row.split(',').collect::<Vec<_>>()[..] else { panic!("{row}") };
        moved += &format!("{},x,{other}\n", value.parse::<f64>().unwrap() + 1000.0);
    }
    std::fs::write(directory.path().join("moved.csv"), moved).unwrap();
    let predicted = |csv: &str| -> Vec<f64> {
        let (said, _) = succeeded(&directory, &["predict", "it", csv, "--device", "cpu"]);
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("ahead,predicted"));
        let cells = lines
            .zip(1..)
            .map(|(line, ahead)| line.strip_prefix(&format!("{ahead},")).unwrap().parse().unwrap());
        cells.collect()
    };
    let (same, moved) = (predicted(csv), predicted("moved.csv"));
    assert_eq!((same.len(), moved.len()), (5, 5));
    for (a, b) in same.iter().zip(&moved) {
        assert!((a + 1000.0 - b).abs() < 1e-4, "{same:?}, {moved:?}");
    }
    // The scale is the run's own, not the file's.
    let config = text(&read("config.toml"));
    let scale = config.lines().find(|line| line.starts_with("scales = ")).unwrap();
    let number = scale.trim_start_matches("scales = [").split([',', ']']).next().unwrap();
    let twice: f64 = 2.0 * number.parse::<f64>().unwrap();
    std::fs::write(run.join("config.toml"), config.replacen(number, &twice.to_string(), 1))
        .unwrap();
    assert!(predicted(csv).iter().zip(&same).all(|(a, b)| a != b));
}

/// Stops runs after their first epoch, by Ctrl-C and by a kill, resumes them, and compares them
/// with a run that was not stopped.
#[cfg(unix)]
#[test]
fn an_interrupted_forecast_run_resumes_to_the_same_bytes() {
    use crate::common::program::end_after_an_epoch;

    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let arguments = |run| {
        let often = ["--epochs", "12", "--batch", "2", "--checkpoint-every", "1"];
        [&forecast(csv, &["--device", "cpu", "--run", run])[..], &often].concat()
    };
    let (whole, _) = succeeded(&directory, &arguments("whole"));
    let read =
        |run: &str, name: &str| std::fs::read(directory.path().join(run).join(name)).unwrap();
    // All columns except the seconds.
    let metrics = |run: &str| -> Vec<String> {
        let lines = text(&read(run, "metrics.csv"));
        lines.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect()
    };
    for (signal, status) in [("INT", Some(130)), ("KILL", None)] {
        let (got, rest) = end_after_an_epoch(directory.path(), &arguments(signal), signal);
        assert_eq!(got, status, "{signal}: {rest:?}");
        if signal == "INT" {
            assert!(
                rest.last().unwrap().contains("resume with `gru forecast --resume INT`"),
                "{rest:?}"
            );
        }
        assert!(metrics(signal).len() < 13, "{signal}: it was too late");
        let resume = ["forecast", "--resume", signal, "--device", "cpu"];
        assert_eq!(succeeded(&directory, &resume).0, whole, "{signal}");
        for name in ["model.safetensors", "forecast.svg", "curves.svg"] {
            assert!(read(signal, name) == read("whole", name), "{signal}: {name}");
        }
        assert_eq!(metrics(signal), metrics("whole"), "{signal}");
        // Nothing is left to train, and the output is the same again.
        assert_eq!(succeeded(&directory, &resume).0, whole, "{signal}");
    }

    // A file that cannot be written does not stop the run, but is an error at the end.
    std::fs::remove_file(directory.path().join("KILL/curves.svg")).unwrap();
    std::fs::create_dir(directory.path().join("KILL/curves.svg")).unwrap();
    let resume = ["forecast", "--resume", "KILL", "--epochs", "14", "--device", "cpu"];
    let output = gru(directory.path(), &resume);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(text(&output.stdout).contains("held-out RMSE"), "{}", text(&output.stdout));
    let warning = "warning: the run continues, but was not saved: `KILL/curves.svg` ";
    assert!(told.matches(warning).count() == 1 && !told.contains("all is in"), "{told}");
    let error = "error: the run was not saved: `KILL/curves.svg` ";
    assert!(told.lines().last().unwrap().starts_with(error), "{told}");

    // It resumes with the settings it started with, or is refused.
    let config = text(&read("INT", "config.toml"));
    for (part, from, to) in [
        ("[windows]", "input = 16", "input = 17"),
        ("[model]", "hidden = 7", "hidden = 8"),
        ("training.seed, 1 before,", "seed = 1", "seed = 2"),
        ("training.clip, norm:1 before,", "clip = \"norm:1\"", "clip = \"norm:2\""),
    ] {
        assert!(config.contains(from), "{config}");
        std::fs::write(directory.path().join("INT/config.toml"), config.replace(from, to)).unwrap();
        let words = ["`INT/config.toml`: ", part, "has changed since the run started"];
        assert_refused(directory.path(), &["forecast", "--resume", "INT"], &words);
    }
}

#[test]
fn a_forecast_run_folder_is_not_overwritten_or_mixed_up() {
    let directory = TempDir::new().unwrap();
    let (csv, path) = (series(&directory), directory.path());
    let kept = ["--device", "cpu", "--run", "it"];
    succeeded(&directory, &forecast(csv, &kept));
    assert_refused(path, &forecast(csv, &kept), &["`it` already holds a run", "--force"]);
    succeeded(&directory, &forecast(csv, &[&kept[..], &["--force"]].concat()));
    for (file, content, word) in [
        (
            "short.csv",
            "value\n1\n2\n",
            "short.csv`: 2 rows are too few: the model forecasts from the last 16",
        ),
        ("others.csv", "a,b\n1,2\n", "there is no column `value`"),
    ] {
        std::fs::write(path.join(file), content).unwrap();
        assert_refused(path, &["predict", "it", file, "--device", "cpu"], &[word]);
    }
    // The last finite state is kept in every case.
    let wild = ["--run", "wild", "--learning-rate", "1e38", "--clip", "1e30", "--device", "cpu"];
    let words = [
        "error: update 1 (epoch 1, batch 1 of 7: the windows before rows ",
        ", 9 more) diverged: loss",
        "largest gradient element",
        "the last good update is saved in `wild`",
        "try a lower --learning-rate or --clip with --resume",
    ];
    assert_refused(path, &forecast(csv, &wild), &words);
    assert!(path.join("wild/checkpoint.safetensors").is_file());

    let words = ["--probabilities needs a run of `gru train`, but `it` is a run of `gru forecast`"];
    assert_refused(path, &["predict", "it", csv, "--probabilities"], &words);
    let words = ["config.toml` belongs to a run of `gru forecast`, not of `gru train`"];
    assert_refused(path, &["train", "--resume", "it"], &words);

    let config = std::fs::read_to_string(path.join("it/config.toml")).unwrap();
    for (from, to, word) in [
        (
            "task = \"forecast\"",
            "task = \"label\"",
            "belongs to a run of `gru train`, not of `gru ",
        ),
        ("hidden = 7", "hidden = \"7\"", "model.hidden: invalid type: string"),
        ("hidden = 7", "hidden = 0", "model.hidden = 0: expected a whole number of at least 1"),
        ("hidden = 7", "hidden = 8", "[model], before GRU 1→7, reset before"),
        ("input = 16", "input = 0", "windows.input = 0: expected a whole number of at least 1"),
        ("input = 16", "input = 999", "[windows]: "),
        ("holdout = 0.2", "holdout = 1.5", "windows.holdout = 1.5: expected a number between 0"),
        ("scales = [", "scales = [-", "expected a finite number above 0"),
        ("scales = [", "scales = [1.0, ", "series.scales: expected 1 numbers, one for each of"),
        ("[[series]]", "[[series]]\nname = \"a\"", "series.name: expected none, because"),
        ("epochs = 3", "epochs = 0", "training.epochs = 0: expected a whole number of at least 1"),
        ("delimiter = \",\"", "delimiter = \"λ\"", "data.format.delimiter: expected one of"),
        ("learning_rate = 0.01", "learning_rate = nan", "training.learning_rate = NaN: expected"),
    ] {
        assert!(config.contains(from), "{config}");
        std::fs::write(path.join("it/config.toml"), config.replace(from, to)).unwrap();
        assert_refused(
            path,
            &["forecast", "--resume", "it", "--device", "cpu"],
            &["`it/config.toml`", word],
        );
    }
    std::fs::write(path.join("it/config.toml"), &config).unwrap();
    // No epoch is left to train, and none is recorded.
    std::fs::remove_file(path.join("it/metrics.csv")).unwrap();
    let (_, told) = succeeded(&directory, &["forecast", "--resume", "it", "--device", "cpu"]);
    assert!(told.contains("trained in ") && !told.contains("NaN"), "{told}");
    std::fs::write(path.join(csv), "value\n1\n2\n").unwrap();
    let words = ["series.csv` has changed since the run started"];
    assert_refused(path, &["forecast", "--resume", "it"], &words);
}

/// Like a run of `gru train`: which settings may change, what is recorded, and where the data are.
#[test]
fn a_forecast_run_resumes_with_other_settings_and_moved_data() {
    let directory = TempDir::new().unwrap();
    let (csv, path) = (series(&directory), directory.path());
    let resume = |more: &[&'static str]| {
        [&["forecast", "--resume", "it", "--device", "cpu"][..], more].concat()
    };
    let read = |name: &str| std::fs::read(path.join("it").join(name)).unwrap();
    succeeded(&directory, &forecast(csv, &["--device", "cpu", "--run", "it"]));
    let (good, config) = (read("checkpoint.safetensors"), read("config.toml"));
    let wild = ["--epochs", "6", "--learning-rate", "1e38", "--clip", "none"];
    let told = "the checkpoints in `it` are still those that the run resumed from";
    assert_refused(path, &resume(&wild), &["diverged: loss", told]);
    assert!(good == read("checkpoint.safetensors"));

    let (_, told) = succeeded(&directory, &resume(&["--learning-rate", "0.002", "--clip", "0.5"]));
    assert!(told.contains("--learning-rate 0.002 (1"), "{told}");
    assert!(told.contains("--clip norm:0.5 (none before)"), "{told}");
    assert_eq!(text(&read("metrics.csv")).lines().count(), 7);
    let noted = text(&read("config.toml"));
    let parts: Vec<_> = noted.split("[[changes]]").collect();
    assert_eq!(parts.len(), 2, "{noted}");
    for (part, words) in parts.iter().zip([
        ["epochs = 6\n", "learning_rate = 0.002\n", "clip = \"norm:0.5\"\n"],
        ["epochs = 3\n", "learning_rate = 0.01\n", "clip = \"norm:1\"\n"],
    ]) {
        words.iter().for_each(|word| assert!(part.contains(word), "{word}: {noted}"));
    }
    assert_refused(
        path,
        &resume(&["--epochs", "5"]),
        &["has finished 6 epochs; expected --epochs of at least 6, got 5"],
    );

    // A run from the start with the second learning rate would give other bits.
    let model = read("model.safetensors");
    std::fs::write(path.join("it/checkpoint.safetensors"), good).unwrap();
    std::fs::write(path.join("it/config.toml"), config).unwrap();
    std::fs::create_dir(path.join("moved")).unwrap();
    std::fs::rename(path.join(csv), path.join("moved/there.csv")).unwrap();
    std::fs::write(path.join("other.csv"), "value\n1\n2\n").unwrap();
    let tame = ["--epochs", "6", "--learning-rate", "0.002", "--clip", "0.5"];
    let at = |csv: &'static str| resume(&[&tame[..], &[csv]].concat());
    let words =
        ["cannot open `", "series.csv`", "if the data has moved, give its new path after --resume"];
    assert_refused(path, &resume(&tame), &words);
    let words = ["other.csv` has changed since the run started"];
    assert_refused(path, &at("other.csv"), &words);
    succeeded(&directory, &at("moved/there.csv"));
    assert!(model == read("model.safetensors"));
    // Their new location is recorded.
    succeeded(&directory, &resume(&[]));
}

/// Cells that are not numbers are refused, and outliers are reported.
#[test]
fn forecasts_that_are_not_finite_are_reported() {
    use gru_wgpu::formats::safetensors;

    let directory = TempDir::new().unwrap();
    let (csv, path) = (series(&directory), directory.path());
    succeeded(&directory, &forecast(csv, &["--device", "cpu", "--run", "it"]));
    let arguments = ["predict", "it", csv, "--device", "cpu", "--output", "p.csv"];
    assert!(!succeeded(&directory, &arguments).1.contains("warning"));
    std::fs::remove_file(path.join("p.csv")).unwrap();
    let model = path.join("it/model.safetensors");
    let mut params =
        safetensors::load_network(&model, &safetensors::SafetensorsOptions::new()).unwrap();
    params.get_mut("head.bias").unwrap().fill(-1e20);
    safetensors::save_network(&model, &params).unwrap();
    // The checkpoint knows the hash of another model.
    std::fs::remove_file(path.join("it/checkpoint.safetensors")).unwrap();
    let (_, told) = succeeded(&directory, &arguments);
    let warning = "warning: the model forecasts changes of up to 1e20 times the usual change";
    assert!(told.contains(warning), "{told}");
    std::fs::remove_file(path.join("p.csv")).unwrap();

    let config = std::fs::read_to_string(path.join("it/config.toml")).unwrap();
    let scale = config.lines().find(|line| line.starts_with("scales = ")).unwrap();
    std::fs::write(path.join("it/config.toml"), config.replacen(scale, "scales = [1e300]", 1))
        .unwrap();
    assert_refused(path, &arguments, &["the forecasts are not finite"]);
    assert!(!path.join("p.csv").exists());
}

#[test]
fn forecast_runs_the_same_job_on_an_adapter() {
    let software = crate::common::adapter().adapter().unwrap().is_software();
    let word = if software { "software" } else { "gpu" };
    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let error = |device: &str| -> f64 {
        let output = gru(directory.path(), &forecast(csv, &["--device", device]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let stdout = text(&output.stdout);
        let row = stdout.lines().find(|line| line.trim().starts_with("GRU")).unwrap();
        row.split_whitespace().last().unwrap().parse().unwrap()
    };
    let (cpu, adapter) = (error("cpu"), error(word));
    assert!((cpu - adapter).abs() < 0.01 * cpu, "cpu {cpu}, {word} {adapter}");
}

#[test]
fn bad_input_prints_one_line_with_the_expected_value() {
    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let write = |name: &str, content: &[u8]| {
        std::fs::write(directory.path().join(name), content).unwrap();
    };
    write("word.csv", b"a,b\n1,2\n3,four\n");
    write("nan.csv", b"a,b\n1,2\n3,NaN\n");
    write("ragged.csv", b"a,b\n1,2\n3\n");
    write("empty.csv", b"");
    write("words.csv", b"a,b\nx,y\n");
    write("binary.csv", &[0xff, 0xfe, 0, b'\n', 0x80]);
    let cases: &[(Vec<&str>, &[&str])] = &[
        (forecast("none.csv", &[]), &["cannot open `none.csv`"]),
        (forecast("a\n\u{1b}[31mb.csv", &[]), &["cannot open `a\\n\\u{1b}[31mb.csv`"]),
        (forecast(".", &[]), &["."]),
        (forecast("word.csv", &[]), &["line 3", "`four`", "column `b`"]),
        (forecast("nan.csv", &[]), &["line 3", "`NaN`", "--missing"]),
        (forecast("ragged.csv", &[]), &["ragged.csv"]),
        (forecast("empty.csv", &[]), &["is empty", "expected a CSV file"]),
        (forecast("words.csv", &[]), &["`a`, `b`", "number"]),
        (forecast("binary.csv", &[]), &["binary.csv"]),
        (forecast(csv, &["--column", "nope"]), &["`nope`", "`day`, `other`, `value`"]),
        (forecast(csv, &["--column", "day"]), &["line 2", "`row 0`"]),
        (forecast(csv, &["--output", "nowhere"]), &["nowhere", "does not exist"]),
        (forecast(csv, &["--device", "tpu"]), &["`tpu`", "expected auto, cpu, gpu, software"]),
        (vec!["forecast", csv], &["160 rows", "104 + 52", "--input"]),
        (
            vec!["forecast", csv, "--input", "9", "--horizon", "3", "--season", "999"],
            &["999", "--season"],
        ),
        (vec!["check", "--device", ""], &["unknown device ``"]),
        (vec!["info", "--device", "tpu"], &["`tpu`", "expected auto, cpu, gpu, software"]),
        (forecast(csv, &["--output", csv]), &["is not a directory"]),
        (forecast(csv, &["--hidden", "1000000"]), &["out of memory"]),
        (forecast(csv, &["--hidden", "18446744073709551615"]), &["the size overflows"]),
        (forecast(csv, &["--batch", "18446744073709551615", "--horizon", "9999999"]), &["too few"]),
    ];
    for (arguments, words) in cases {
        let mut arguments = arguments.clone();
        if !arguments.contains(&"--device") {
            arguments.extend(["--device", "cpu"]);
        }
        assert_refused(directory.path(), &arguments, words);
    }
    assert!(!directory.path().join("forecast.svg").exists());
}

/// Squares of such values overflow. An infinite axis would never be drawn.
#[test]
fn huge_and_tiny_values_are_forecast_and_plotted() {
    let directory = TempDir::new().unwrap();
    for (name, unit) in [("huge.csv", "e200"), ("tiny.csv", "e-200"), ("flat.csv", "e-400")] {
        let rows: String = (0..120).map(|i| format!("{}.5{unit}\n", i % 7)).collect();
        std::fs::write(directory.path().join(name), format!("v\n{rows}")).unwrap();
        let output = gru(directory.path(), &forecast(name, &["--device", "cpu"]));
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    }
}

#[test]
fn wrong_usage_gives_status_two() {
    let directory = TempDir::new().unwrap();
    for arguments in [
        &["forecast"][..],
        &["nonsense"],
        &["forecast", "a.csv", "--epochs", "0"],
        &["forecast", "a.csv", "--hidden", "-1"],
        &["forecast", "a.csv", "--holdout", "1"],
        &["forecast", "a.csv", "--learning-rate", "NaN"],
        &["forecast", "a.csv", "--delimiter", "ab"],
        &["forecast", "a.csv", "--header", "perhaps"],
        &["forecast", "a.csv", "--run", "it", "--output", "."],
        &["forecast", "a.csv", "--checkpoint-every", "5"],
        &["forecast", "a.csv", "--force"],
        &["forecast", "--resume", "it", "--batch", "9"],
        &["check", "a.onnx", "extra"],
    ] {
        let output = gru(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn check_passes_on_the_cpu() {
    let directory = TempDir::new().unwrap();
    let output = gru(directory.path(), &["check", "--device", "cpu"]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stderr.contains("training: 137 of 137 cases, "), "{stderr}");
    assert!(stdout.contains("all 104 results are within bounds"), "{stdout}");
    assert!(stdout.contains("no kernel was checked"), "{stdout}");
}

#[test]
fn the_device_option_overrides_gru_device() {
    let directory = TempDir::new().unwrap();
    let info = |variable: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
        let command = command.current_dir(&directory).env("GRU_DEVICE", variable).arg("info");
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert!(info("cpu", &[]).1.contains("--device cpu takes: cpu"));
    assert!(info("", &[]).1.contains("--device auto takes: "));
    assert!(info("nonsense", &["--device", "cpu"]).1.contains("--device cpu takes: cpu"));
    // A missing device is reported next to the existing ones.
    let broken = info("gpu", &["--json"]);
    assert!(broken.1.contains("\"error\"") || broken.1.contains("\"reason\""), "{broken:?}");
    let (status, _, stderr) = info("nonsense", &[]);
    assert_eq!((status, stderr.lines().count()), (Some(1), 1), "{stderr}");
    // The message names what it is about.
    assert!(stderr.contains("GRU_DEVICE: unknown device `nonsense`"), "{stderr}");
    assert!(info("cpu,cpu", &[]).2.contains("GRU_DEVICE names the device cpu twice"));
    assert!(info("cpu", &["--device", "tpu"]).2.contains("--device: unknown device `tpu`"));
}

/// A closed reader ends the program quietly; a full disk is an error, not a panic.
#[cfg(target_os = "linux")]
#[test]
fn a_failing_write_to_stdout_does_not_panic() {
    use std::process::Stdio;
    let directory = TempDir::new().unwrap();
    let csv = series(&directory);
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for arguments in [
        vec!["check", "--device", "cpu"],
        vec!["info"],
        vec!["info", "--json"],
        vec!["bench", "--device", "cpu", "--shape", "2,1,1,1", "--repeats", "1"],
        forecast(csv, &["--device", "cpu"]),
    ] {
        let run = |stdout: Stdio, stderr: Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
            let command = command.current_dir(&directory).args(&arguments);
            let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
            let output = child.wait_with_output().unwrap();
            (output.status.code(), text(&output.stderr))
        };
        let (status, stderr) = run(full(), Stdio::piped());
        assert_eq!(status, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.lines().last().unwrap().starts_with("error: "), "{arguments:?}: {stderr}");
        let (status, stderr) = run(closed(), Stdio::piped());
        assert_eq!(status, Some(0), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("error: "), "{arguments:?}: {stderr}");
        assert_eq!(run(Stdio::null(), full()).0, Some(0), "{arguments:?}");
    }
    // The pictures were written before the table failed.
    assert!(directory.path().join("forecast.svg").exists());
}

/// An error of the library has its cause as its source. The program prints the cause once.
#[test]
fn an_error_prints_each_cause_once() {
    let directory = TempDir::new().unwrap();
    let output = gru(directory.path(), &["convert", "missing.safetensors", "out.onnx"]);
    let stderr = text(&output.stderr);
    assert_eq!(stderr.matches("os error 2").count(), 1, "{stderr}");
}

/// `{error:#}` would print the cause of a library's error twice; `ui::output::causes` prints it
/// once.
#[test]
fn no_source_prints_causes_with_the_alternate_format() {
    let files =
        crate::common::files_in(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for path in &files {
        let source = std::fs::read_to_string(path).unwrap();
        assert!(!source.contains(":#}"), "{}", path.display());
    }
    assert!(files.len() > 40, "{} files", files.len());
}

#[test]
fn info_lists_adapters_and_what_auto_takes() {
    let directory = TempDir::new().unwrap();
    let plain = text(&gru(directory.path(), &["info"]).stdout);
    assert!(plain.contains("--device auto takes: "), "{plain}");
    let json = gru(directory.path(), &["info", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    for (index, adapter) in json["adapters"].as_array().unwrap().iter().enumerate() {
        // The value of `--device` for this adapter.
        let word = match adapter["software"].as_bool().unwrap() {
            true => "software".to_owned(),
            false => format!("gpu:{index}"),
        };
        assert_eq!(adapter["device"], word);
        assert!(plain.contains(adapter["name"].as_str().unwrap()), "{plain}");
        assert!(adapter["limits"]["max_buffer_size"].as_u64().unwrap() >= 256 << 20);
    }
    assert!(json["device"]["reason"].is_string());
    // An index that no machine has is refused, with the existing adapters.
    let refused = text(&gru(directory.path(), &["info", "--device", "gpu:4000"]).stdout);
    assert!(refused.contains("--device gpu:4000 takes none: there is no gpu:4000 ("), "{refused}");
    let csv = series(&directory);
    assert_refused(directory.path(), &forecast(csv, &["--device", "gpu:4000"]), &["no gpu:4000"]);
    let huge = ["info", "--device", "gpu:99999999999999999999"];
    assert_refused(directory.path(), &huge, &["is too large; the first GPU is gpu:0"]);
    let adapters = json["adapters"].as_array().unwrap();
    if !adapters.is_empty() && adapters.iter().all(|adapter| adapter["software"] == true) {
        assert!(refused.contains("use Device::software (--device software)"), "{refused}");
    }
    assert_refused(directory.path(), &forecast(csv, &["--device", "gpu:-1"]), &["`gpu:-1`"]);
    // Auto never takes a software adapter.
    assert!(!json["device"]["device"].as_str().unwrap().contains("software"));
}
