//! `gru train` and `gru predict`.

use crate::common::program::{assert_refused, gru, text};
use crate::common::sequences::{folder_with, json, labelled, metric, succeeded, table, train};

#[test]
fn training_lowers_the_loss_and_predict_reads_its_folder() {
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
            ".lock",
            "checkpoint.safetensors",
            "checkpoint.safetensors.before",
            "classes.csv",
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
        // The metrics of each class add up to the same.
        let classes = std::fs::read_to_string(run.join("classes.csv")).unwrap();
        let mut lines = classes.lines();
        assert_eq!(lines.next(), Some("class,count,correct,precision,recall"));
        let per_class = said["per_class"].as_array().unwrap();
        let (mut count, mut correct) = (0, 0);
        for (line, class) in lines.zip(per_class) {
            let number = |key: &str| class[key].as_u64().unwrap();
            let row = format!(
                "{},{},{},",
                class["class"].as_str().unwrap(),
                number("count"),
                number("correct")
            );
            assert!(line.starts_with(&row), "{classes}: {said}");
            let recall = number("correct") as f64 / number("count") as f64;
            assert_eq!(class["recall"].as_f64(), Some(recall), "{said}");
            (count, correct) = (count + number("count"), correct + number("correct"));
        }
        assert_eq!((per_class.len(), correct as f64 / count as f64), (2, accuracy), "{said}");
        let (_, told) = succeeded(
            directory.path(),
            &["predict", "it", "test.csv", "--output", "p.csv", "--device", "cpu"],
        );
        assert!(told.contains(&format!("accuracy {accuracy:.4}: ")), "{said}: {told}");
        // Other commands can read its GRU too.
        let (_, told) =
            succeeded(directory.path(), &["convert", "it/model.safetensors", "gru.npz"]);
        assert!(told.contains("GRU 3→6"), "{told}");
        let svg = std::fs::read_to_string(run.join("curves.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }
}

#[test]
fn the_table_shows_the_largest_and_the_worst_classes_and_the_files_have_all() {
    // 15 classes of 4 sequences each, and one of 8.
    let mut many = "id,level,class\n".to_owned();
    for i in 0..68 {
        let class = (i % 17).min(15);
        many += &format!("s{i},{class}.5,c{class:02}\ns{i},{class}.25,c{class:02}\n");
    }
    let few: Vec<_> = many.lines().filter(|line| !line.contains(",c1")).collect();
    let directory =
        folder_with(&[("many.csv", &many), ("valid.csv", &many), ("few.csv", &few.join("\n"))]);
    let printed = |csv: &str, more: &[&str]| {
        let more = [&["--epochs", "1", "--force"], more].concat();
        succeeded(directory.path(), &train(csv, "classify", &more)).0
    };
    let rows = |text: &str| text.lines().filter(|line| line.trim().starts_with("`c")).count();
    let in_file = || {
        let csv = std::fs::read_to_string(directory.path().join("run/classes.csv")).unwrap();
        csv.lines().count() - 1
    };
    let validation = ["--valid", "valid.csv"];

    let text = printed("many.csv", &validation);
    assert_eq!((rows(&text), in_file()), (13, 16), "{text}");
    let note = "the 10 largest classes and the worst 3 of the others; 3 more with --verbose and in classes.csv\n";
    assert!(text.ends_with(note), "{text}");
    let text = printed("many.csv", &[&validation[..], &["--verbose"]].concat());
    assert_eq!((rows(&text), in_file()), (16, 16), "{text}");
    assert!(!text.contains("--verbose"), "{text}");
    let text = printed("many.csv", &[&validation[..], &["--json"]].concat());
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((object["per_class"].as_array().unwrap().len(), in_file()), (16, 16));
    // Of seven held-out sequences at most seven classes have a recall, and those are the largest.
    let text = printed("many.csv", &[]);
    assert_eq!((rows(&text), in_file()), (10, 16), "{text}");
    let note = "the 10 largest classes; 6 more with --verbose and in classes.csv\n";
    assert!(text.ends_with(note), "{text}");
    let text = printed("few.csv", &[]);
    assert_eq!((rows(&text), in_file()), (10, 10), "{text}");
    assert!(!text.contains("--verbose"), "{text}");
}

#[test]
fn predictions_are_rows_without_labels_or_known_words() {
    let directory = folder_with(&[("train.csv", &labelled(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "label", &[]));
    // Columns in another order, an additional column, no label, and a word that is not in the
    // training set.
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
    assert!(told.contains(
        "cells with categories that training did not see: 1, the first is `wait` in line 4"
    ));
    assert!(!told.contains("accuracy"), "{told}");
}

#[test]
fn a_run_trains_on_an_adapter_like_on_the_cpu() {
    let software = crate::common::adapter().adapter().unwrap().is_software();
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
fn divergence_is_reported_and_the_last_finite_state_kept() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let more = ["--learning-rate", "1e38", "--clip", "1e30", "--optimizer", "sgd"];
    let words =
        ["diverged: loss", "largest gradient element", "sequences `s", "of 9", "saved in `run`"];
    assert_refused(directory.path(), &train("train.csv", "classify", &more), &words);
    assert!(directory.path().join("run/checkpoint.safetensors").is_file());
}

#[test]
fn files_without_a_header_use_column_numbers() {
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
fn data_that_cannot_be_trained_on_is_refused_in_one_line() {
    let files = [
        ("good.csv", &*table(0..40)),
        ("changes.csv", "id,x,class\na,1,up\na,2,down\nb,1,up\n"),
        ("first.csv", "id,x,class\na,?,up\na,1,up\nb,2,down\nb,3,down\nc,1,up\nd,1,up\n"),
        ("nan.csv", "id,x,class\na,1,up\na,NaN,up\nb,1,down\nc,1,up\n"),
        ("word.csv", "id,x,class\na,1,up\na,many,up\nb,1,down\nc,1,up\nd,2,up\n"),
        ("hole.csv", "id,x,class\na,1,up\na,,up\nb,1,down\nc,1,up\nd,2,up\n"),
        ("one.csv", "id,x,class\na,1,up\na,1,up\nb,2,up\n"),
        ("apart.csv", "id,x,class\na,1,up\nb,2,down\na,2,up\n"),
        ("each.csv", "id,x,class\na,1,up\na,1,up\nb,2,down\n"),
        ("single.csv", "id,x,class\na,1,up\na,2,down\n"),
        ("unlabelled.csv", "id,x,class\na,1,up\na,1,up\nb,2,\nc,3,down\n"),
        ("nameless.csv", "id,x,class\na,1,up\n,2,down\n"),
        ("narrow.csv", "id,class\na,up\na,up\nb,down\n"),
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
            &["`word.csv`: line 3: `many` in column `x`", "--categorical", "--missing"],
        ),
        (
            "hole.csv",
            "classify",
            &[],
            &["`hole.csv`: line 3: the value in column `x` is missing; fill it in, pass --missing"],
        ),
        // Not detected by the first cell.
        (
            "first.csv",
            "classify",
            &[],
            &["`first.csv`: line 2: `?` in column `x` is not a finite number (most cells"],
        ),
        ("one.csv", "classify", &[], &["`one.csv`: every label in column `class` is `up`"]),
        (
            "apart.csv",
            "classify",
            &[],
            &["`apart.csv`: line 4: sequence `a` continues after another sequence"],
        ),
        ("each.csv", "classify", &[], &["`each.csv` holds a single sequence of each class"]),
        ("single.csv", "label", &[], &["`single.csv` holds a single sequence"]),
        ("unlabelled.csv", "classify", &[], &["`unlabelled.csv`: line 4: the label is empty"]),
        (
            "nameless.csv",
            "classify",
            &[],
            &["`nameless.csv`: line 3: the sequence column `id` is empty"],
        ),
        ("narrow.csv", "classify", &[], &["`narrow.csv`: the file has the columns `id`, `class`"]),
        (
            "good.csv",
            "classify",
            &["--label", "klass"],
            &["`good.csv`: there is no column `klass`"],
        ),
        (
            "good.csv",
            "classify",
            &["--label", "id"],
            &["the label column cannot also be the sequence column"],
        ),
        (
            "good.csv",
            "classify",
            &["--features", "class"],
            &["the label column cannot also be a feature"],
        ),
        (
            "good.csv",
            "classify",
            &["--features", "sign,3"],
            &["`good.csv`: column `3` is listed twice"],
        ),
        (
            "good.csv",
            "classify",
            &["--categorical", "id"],
            &["`id`, which is neither a feature nor"],
        ),
        (
            "good.csv",
            "classify",
            &["--valid", "strange.csv"],
            &["line 2: label `sideways` does not occur in the training data"],
        ),
        ("good.csv", "classify", &["--dropout", "0.5"], &["dropout"]),
        ("good.csv", "classify", &["--run", "none/run"], &["directory `none` does not exist"]),
        ("good.csv", "classify", &["--run", "."], &["`.` is not empty and holds no run"]),
    ];
    for (csv, task, more, words) in cases {
        assert_refused(path, &train(csv, task, more), words);
        assert!(!path.join("run").exists(), "{csv} left a folder");
    }
    // What clap itself refuses has another exit status.
    for more in [&["--task", "guess"][..], &["--checkpoint-every", "5x"], &["--holdout", "1"]] {
        let output = gru(path, &train("good.csv", "classify", more));
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}

/// A column is numeric even if its first cell is missing, and categorical even if its first cell is
/// a number, which a note reports.
#[test]
fn column_types_use_all_cells_and_missing_numbers_become_the_mean() {
    let table = table(0..40);
    let mut lines = table.lines();
    let mut csv = format!("{},code\n", lines.next().unwrap().replace("class", "grade"));
    for (at, line) in lines.enumerate() {
        let level = line.split(',').nth(1).unwrap();
        let level = format!(",{},", if at % 5 == 0 { "?" } else { level });
        let (id, rest) = line.split_once(',').unwrap();
        let (_, rest) = rest.split_once(',').unwrap();
        csv += &format!("{id}{level}{rest},{}\n", ["7", "a7", "b2"][at % 3]);
    }
    let directory = folder_with(&[("train.csv", &csv)]);
    let path = directory.path();
    let label = ["--label", "grade", "--json"];
    let words = ["`train.csv`: line 2: `?` in column `level` is not a finite number", "--missing"];
    assert_refused(path, &train("train.csv", "classify", &label), &words);

    let output =
        gru(path, &train("train.csv", "classify", &[&label[..], &["--missing", "?"]].concat()));
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["words"], serde_json::json!({ "sign": 2, "code": 3 }));
    assert!(told.contains("column `code` is read as words, of which there are 3\n"), "{told}");
    assert!(told.contains("missing numbers, replaced by their column's mean: "), "{told}");

    // Missing cells have the effect of the mean, and are not part of the mean.
    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    assert!(config.contains("missing = [\"?\"]"), "{config}");
    let mean = config.lines().find(|line| line.starts_with("mean = ")).unwrap();
    let mean: f64 = mean["mean = ".len()..].parse().unwrap();
    assert!((48.0..52.0).contains(&mean), "{config}");
    std::fs::write(path.join("mean.csv"), csv.replace(",?,", &format!(",{mean:?},"))).unwrap();
    let predicted = |csv| succeeded(path, &["predict", "run", csv, "--device", "cpu"]).0;
    assert_eq!(predicted("train.csv"), predicted("mean.csv"));
    succeeded(path, &["train", "--resume", "run", "--device", "cpu"]);
    std::fs::write(path.join("run/config.toml"), config.replace("[\"?\"]", "[\"!\"]")).unwrap();
    let words = ["`?` in column `level` is not a finite number"];
    assert_refused(path, &["train", "--resume", "run", "--device", "cpu"], &words);
}

/// Refused before the memory is allocated: this test does not use a GiB.
#[test]
fn word_columns_that_need_too_much_memory_are_refused() {
    let words = |rows: usize, words: usize| {
        let rows =
            (0..rows).map(|i| format!("s{},w{},{},{}\n", i / 4, i % words, i % 3, i / 4 % 2));
        format!("id,word,few,class\n{}", rows.collect::<String>())
    };
    let directory =
        folder_with(&[("rows.csv", &words(80_000, 4000)), ("words.csv", &words(9000, 4200))]);
    let few = ["--categorical", "word,few"];
    for (csv, told) in [
        (
            "rows.csv",
            &[
                "`rows.csv`: 72000 rows of 4003 inputs would take 1.1 GiB, more than 1 GiB; column `word` takes 4000",
            ][..],
        ),
        ("words.csv", &["categories, more than 4096; exclude it with --features"]),
    ] {
        assert_refused(directory.path(), &train(csv, "classify", &few), told);
    }
}

/// One in three sequences is of class `up`, also in the validation set. A class with one sequence
/// is not held out.
#[test]
fn the_validation_set_is_stratified_by_class() {
    let csv = format!("{}once,50,go,else\n", table(0..60));
    let directory = folder_with(&[("train.csv", &csv)]);
    let path = directory.path();
    for seed in ["1", "2", "3"] {
        let more = ["--holdout", "0.2", "--epochs", "1", "--force", "--seed", seed];
        let (table, _) = succeeded(path, &train("train.csv", "classify", &more));
        let classes = std::fs::read_to_string(path.join("run/classes.csv")).unwrap();
        for row in ["down,8,", "up,4,", "else,0,0,,"] {
            assert!(classes.lines().any(|line| line.starts_with(row)), "{row}: {classes}");
        }
        let row = table.lines().find(|line| line.trim().starts_with("`else`"));
        let cells: Vec<_> = row.unwrap().split_whitespace().collect();
        assert_eq!(cells, ["`else`", "0", "0", "–", "–"], "{table}");
    }
}

#[test]
fn numeric_labels_are_refused_unless_forced() {
    let mut csv = "id,x,y\n".to_owned();
    for i in 0..60 {
        csv += &format!("s{},{i},{:.3}\n", i / 3, (f64::from(i) * 0.7).sin() * 9.0);
    }
    let directory = folder_with(&[("train.csv", &csv)]);
    let path = directory.path();
    let words = ["`train.csv`: the label column `y` has 60 different labels", "`gru forecast`"];
    assert_refused(path, &train("train.csv", "label", &[]), &words);
    succeeded(path, &train("train.csv", "label", &["--categorical", "y", "--epochs", "1"]));
}

#[test]
fn a_run_folder_is_not_overwritten_or_mixed_up() {
    let directory = folder_with(&[("train.csv", &table(0..40)), ("other.csv", "id,level\na,1\n")]);
    let path = directory.path();
    let short = ["--epochs", "1"];
    assert_refused(path, &["train", "--resume", "run"], &["it does not exist"]);
    assert_refused(path, &["predict", "run", "train.csv"], &["it does not exist"]);
    assert_refused(path, &["predict", ".", "train.csv"], &["it has no config.toml"]);
    succeeded(path, &train("train.csv", "classify", &short));
    let words = ["`run` already holds a run", "--resume", "--force"];
    assert_refused(path, &train("train.csv", "classify", &short), &words);
    succeeded(path, &train("train.csv", "classify", &["--epochs", "1", "--force"]));
    assert_refused(
        path,
        &["predict", "run", "other.csv"],
        &["`other.csv`: there is no column `sign`"],
    );
    assert_refused(
        path,
        &["predict", "run", "train.csv", "--output", "p.txt"],
        &["must have the extension .csv"],
    );

    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    let change = |from: &str, to: &str| {
        std::fs::write(path.join("run/config.toml"), config.replace(from, to)).unwrap();
    };
    for (from, to, words) in [
        ("hidden = 6", "hidden = \"six\"", "model.hidden: invalid type: string"),
        ("hidden = 6", "hidden = 1.5", "`1.5`, expected a whole number"),
        ("hidden = 6", "hidden = -1", "model.hidden: invalid value: integer `-1`"),
        ("hidden = 6", "hidden = 1e300", "00…`, expected a whole number"),
        ("hidden = 6", "hidden = 0", "model.hidden = 0: expected a whole number of at least 1"),
        ("hidden = 6", "hidden = 7", "[model] describes GRU 3→7, reset after"),
        ("hidden = 6", "hidden = 100000000000", "[model]: the parameters: the size overflows"),
        ("hidden = 6\n", "", "model: missing field `hidden`"),
        (
            "layers = 1",
            "layers = 99999",
            "[model]: the number of layers L is 99999; expected at most",
        ),
        ("dropout = 0.0", "dropout = 1", "model.dropout = 1.0: expected a number of at least 0"),
        ("direction = \"forward\"", "direction = 1", "model.direction: expected a string"),
        (
            "classes = [\"down\", \"up\"]",
            "classes = [\"up\", \"down\"]",
            "columns.classes: expected at least two classes, sorted",
        ),
        ("task = \"classify\"", "task = \"classify\"\nmore = 1", "more: unknown field `more`"),
        ("deviation = ", "deviation = -", "column `level`: features.deviation = -"),
        ("mean = ", "mean = nan\n# ", "column `level`: features.mean = NaN: expected a finite"),
        ("mean = ", "average = ", "features: expected the keys column, mean and deviation, or"),
        ("words = [", "words = [\"z\", ", "column `sign`: features.words: expected sorted words"),
        ("delimiter = \",\"", "delimiter = \"ł\"", "data.format.delimiter: expected one of"),
        ("holdout = 0.1", "holdout = inf", "data.holdout = inf: expected a number between"),
        ("epochs = 1", "epochs = 0", "training.epochs = 0: expected a whole number of at least 1"),
        ("batch = 4", "batch = 0", "training.batch = 0: expected a whole number of at least 1"),
        ("accumulate = 1", "accumulate = 0", "training.accumulate = 0: expected a whole number"),
        (
            "rate = 0.03",
            "rate = -1",
            "training.learning_rate = -1.0: expected a finite number above",
        ),
        (
            "rate = 0.03",
            "rate = nan",
            "training.learning_rate = NaN: expected a finite number above",
        ),
        ("weight_decay = ", "weight_decay = -", "training.weight_decay = -0.01: expected a finite"),
        ("warmup = 0.05", "warmup = 1", "training.warmup = 1.0: expected a number of at least 0"),
        ("schedule = \"cosine\"", "schedule = \"step:2:0.5\"", "training.warmup needs schedule = "),
        ("schedule = \"cosine\"", "schedule = \"linear\"", "training.schedule: expected constant"),
        ("clip = \"norm:1\"", "clip = \"norm:0\"", "training.clip: expected none, norm:X"),
        ("clip = \"norm:1\"", "clip = []", "training.clip: expected none, norm:X"),
        ("seed = 1", "seed = 1\nmomentum = 0.5", "training.momentum needs optimizer = \"sgd\""),
        ("seed = 1", "seed = 1\npatience = 0", "training.patience = 0: expected a whole number"),
        (
            "seed = 1",
            "seed = 1\n[[changes]]\nupdates = 1\nepochs = 0\nlearning_rate = 1\nclip = 1",
            "changes.epochs = 0: expected a whole number of at least 1",
        ),
    ] {
        assert!(config.contains(from), "{from}: {config}");
        change(from, to);
        let words = ["error: `run/config.toml`", words];
        assert_refused(path, &["predict", "run", "train.csv", "--device", "cpu"], &words);
        let resume = gru(path, &["train", "--resume", "run", "--device", "cpu"]);
        let error = text(&resume.stderr);
        let is_layout = to == "hidden = 7";
        assert!(error.contains(words[0]) && (is_layout || error.contains(words[1])), "{error}");
    }
    // A changed scale shows only in the examples.
    change("mean = ", "mean = 1");
    assert_refused(
        path,
        &["train", "--resume", "run", "--device", "cpu"],
        &["`run/config.toml`: the tables that describe the data have changed"],
    );
    change("", "");
    std::fs::write(path.join("train.csv"), table(0..41)).unwrap();
    assert_refused(
        path,
        &["train", "--resume", "run"],
        &["train.csv` has changed since the run started"],
    );
}

/// Checks how an update is made, and the learning rate at the end of each epoch.
#[test]
fn schedules_clipping_momentum_and_accumulation_take_effect() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    let rates = |more: &[&str]| {
        let words = [&["--epochs", "5", "--force"], more].concat();
        succeeded(path, &train("train.csv", "classify", &words));
        metric(&path.join("run"), "learning_rate")
    };
    let close = |got: Vec<f64>, expected: [f64; 5]| {
        let off = got.iter().zip(expected).any(|(got, expected)| (got - expected).abs() > 1e-9);
        assert!(!off, "{got:?}, expected {expected:?}");
    };
    let config = || std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    close(rates(&["--schedule", "constant", "--clip", "none"]), [0.03; 5]);
    assert!(config().contains("clip = \"none\"") && !config().contains("warmup"), "{}", config());
    let more = ["--optimizer", "sgd", "--momentum", "0.5", "--schedule", "step:2:0.1"];
    let more = [&more[..], &["--clip", "value:0.01", "--accumulate", "2"]].concat();
    close(rates(&more), [0.03, 0.03, 0.003, 0.003, 0.0003]);
    // Nine batches of an epoch make five updates.
    assert_eq!(metric(&path.join("run"), "updates"), [5.0, 10.0, 15.0, 20.0, 25.0]);
    let losses = metric(&path.join("run"), "train_loss");
    for word in ["momentum = 0.5", "accumulate = 2", "\"step:2:0.1\"", "clip = \"value:0.01\""] {
        assert!(config().contains(word), "{}", config());
    }
    // Each option has an effect.
    for (option, value) in [
        ("--momentum", "0.9"),
        ("--clip", "value:0.001"),
        ("--clip", "0.01"),
        ("--accumulate", "1"),
    ] {
        rates(&[&more[..], &[option, value]].concat());
        assert_ne!(metric(&path.join("run"), "train_loss"), losses, "{option} {value}");
    }
    let last = rates(&["--schedule", "cosine:0.5"])[4];
    assert!((0.015..0.016).contains(&last), "{last}");

    // A run from before these settings existed resumes.
    rates(&[]);
    let left_out = ["accumulate", "schedule"];
    let old = config().replace("clip = \"norm:1\"", "clip = 1.0");
    let old = old.lines().filter(|line| !left_out.iter().any(|word| line.starts_with(word)));
    let old: String = old.flat_map(|line| [line, "\n"]).collect();
    assert!(old.contains("clip = 1.0") && !old.contains("accumulate"), "{old}");
    std::fs::write(path.join("run/config.toml"), old).unwrap();
    succeeded(path, &["train", "--resume", "run", "--device", "cpu"]);

    for (more, words) in [
        (["--momentum", "0.5"], "--momentum needs --optimizer sgd"),
        (["--schedule", "step:2:nan"], ""),
        (["--schedule", "cosine:2"], ""),
        (["--clip", "value:0"], ""),
        (["--clip", "most"], ""),
        (["--accumulate", "0"], ""),
    ] {
        let more = [&more[..], &["--force"]].concat();
        let arguments = train("train.csv", "classify", &more);
        match words {
            "" => assert_eq!(gru(path, &arguments).status.code(), Some(2), "{more:?}"),
            words => assert_refused(path, &arguments, &[words]),
        }
    }
    let more = ["--warmup", "0.1", "--schedule", "constant", "--force"];
    let words = ["--warmup needs --schedule cosine, not constant"];
    assert_refused(path, &train("train.csv", "classify", &more), &words);
}

#[test]
fn probabilities_of_all_classes_are_columns() {
    let test = table(40..50).replace("id,level,sign,class", "id,level,sign,probability");
    let files = [("train.csv", &*table(0..40)), ("test.csv", &*test)];
    let directory = folder_with(&files);
    let path = directory.path();
    for task in ["classify", "label"] {
        succeeded(path, &train("train.csv", task, &["--epochs", "1", "--force"]));
        let arguments = ["predict", "run", "test.csv", "--device", "cpu", "--probabilities"];
        let (rows, _) = succeeded(path, &arguments);
        let rows: Vec<Vec<_>> = rows.lines().map(|line| line.split(',').collect()).collect();
        let step = usize::from(task == "label");
        let names = ["predicted", "probability", "probability:down", "probability:up"];
        assert_eq!(rows[0][1 + step..], names);
        assert!(rows.len() > 10, "{rows:?}");
        for row in &rows[1..] {
            let shares: Vec<f64> =
                row[2 + step..].iter().map(|cell| cell.parse().unwrap()).collect();
            assert!((shares[1] + shares[2] - 1.0).abs() < 2e-6, "{row:?}");
            let said = if shares[1] >= shares[2] { ("down", shares[1]) } else { ("up", shares[2]) };
            assert_eq!((row[1 + step], shares[0]), said, "{row:?}");
        }
    }
}

/// No file is written if a prediction is not finite.
#[test]
fn a_model_without_finite_outputs_predicts_nothing() {
    use gru_wgpu::formats::safetensors;

    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &["--epochs", "1"]));
    let model = path.join("run/model.safetensors");
    let mut params =
        safetensors::load_network(&model, &safetensors::SafetensorsOptions::new()).unwrap();
    params.get_mut("head.bias").unwrap().fill(3e38);
    let mut weight = params.get_mut("head.weight").unwrap();
    weight.index_axis_mut(ndarray::Axis(0), 0).fill(3e38);
    weight.index_axis_mut(ndarray::Axis(0), 1).fill(-3e38);
    safetensors::save_network(&model, &params).unwrap();
    // The checkpoint knows the hash of another model.
    std::fs::remove_file(path.join("run/checkpoint.safetensors")).unwrap();
    let arguments = ["predict", "run", "train.csv", "--device", "cpu", "--output", "p.csv"];
    let words = ["the predictions for sequence `s", "in `train.csv` are not finite"];
    assert_refused(path, &arguments, &words);
    assert_refused(path, &arguments[..5], &words);
    assert!(!path.join("p.csv").exists());
}

#[test]
fn columns_of_equal_names_are_chosen_by_number() {
    let twice = table(0..40).replace("id,level,sign,class", "x,x,sign,x");
    let directory = folder_with(&[("train.csv", &twice)]);
    let path = directory.path();
    assert_refused(
        path,
        &train("train.csv", "classify", &["--label", "x"]),
        &["3 columns are named `x`; choose one by its number: #1 or #2 or #4"],
    );
    let named = ["--sequence", "#1", "--label", "#4", "--features", "sign,#2"];
    for more in [&named[..], &["--force"]] {
        succeeded(path, &train("train.csv", "classify", more));
        let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
        for word in ["sequence = \"#1\"", "label = \"#4\"", "column = \"#2\"", "column = \"sign\""]
        {
            assert!(config.contains(word), "{word}: {config}");
        }
        let (_, told) = succeeded(path, &["predict", "run", "train.csv", "--device", "cpu"]);
        assert!(told.contains("accuracy"), "{told}");
    }
}

/// NA is an ordinary label if labels are words, which a note reports; an empty cell is no label.
#[test]
fn words_for_missing_values_may_be_labels() {
    let labels = labelled(0..40).replace(",inner\n", ",none\n");
    let directory = folder_with(&[("train.csv", &labels)]);
    let path = directory.path();
    let (_, told) = succeeded(path, &train("train.csv", "label", &["--epochs", "1"]));
    assert!(told.contains("`none` in column `part` is used as a class"), "{told}");
    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    assert!(config.contains("classes = [\"end\", \"none\"]"), "{config}");
}

#[test]
fn column_names_that_are_numbers_are_names() {
    let train_csv = table(0..40).replacen("level", "1", 1).replacen("sign", "2", 1);
    let numbers = train_csv.replace("go", "7").replace("stop", "8");
    let directory = folder_with(&[("train.csv", &numbers)]);
    let path = directory.path();
    let (_, told) = succeeded(path, &train("train.csv", "classify", &[]));
    assert!(
        told.contains("using the first row as header; pass --header no if that is wrong"),
        "{told}"
    );
    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    assert!(config.contains("header = true") && config.contains("label = \"class\""), "{config}");

    for (cell, advice) in [
        ("x", "fix this cell, or train again with --missing"),
        ("", "fill it in, or train again with --missing"),
    ] {
        let csv = format!("id,1,2,class\na,50,7,up\na,{cell},7,up\n");
        std::fs::write(path.join("new.csv"), csv).unwrap();
        assert_refused(path, &["predict", "run", "new.csv", "--device", "cpu"], &[advice]);
    }
    let csv = "id,1,2,class\na,50,7,up\na,51,7,down\nb,51,8,up\n";
    std::fs::write(path.join("new.csv"), csv).unwrap();
    let (rows, told) = succeeded(path, &["predict", "run", "new.csv", "--device", "cpu"]);
    assert_eq!(rows.lines().count(), 3, "{rows}");
    assert!(told.contains("changes inside sequences `a`; the accuracy leaves them out"), "{told}");
    assert!(told.contains("of 1 labels in column `class`"), "{told}");
}
