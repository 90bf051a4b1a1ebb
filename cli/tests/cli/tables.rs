//! How `gru forecast` and `gru train` read tables in the forms that people have.

use std::fmt::Write;

use super::common::program::assert_refused;
use super::common::sequences::{folder_with, succeeded, table, train};

/// Returns 96 days of a series: a header, and rows from `row(day of April to July, value)`.
fn series(header: &str, row: impl Fn(chrono::NaiveDate, f64) -> String) -> String {
    let first = chrono::NaiveDate::from_ymd_opt(2024, 4, 1).unwrap();
    let mut text = format!("{header}\n");
    for (day, i) in first.iter_days().zip(0..96) {
        let value = 20.0 + 5.0 * f64::from(i % 6).sin();
        writeln!(text, "{}", row(day, value)).unwrap();
    }
    text
}

fn plain() -> String {
    series("date,sales", |day, value| format!("{day},{value:.1}"))
}

fn forecast(csv: &str) -> Vec<&str> {
    let small = "--input 12 --horizon 6 --season 6 --epochs 1 --hidden 4 --device cpu";
    ["forecast", csv].into_iter().chain(small.split(' ')).collect()
}

/// The same series in other forms gives the same forecasts, and what was judged is said.
#[test]
fn tables_in_other_forms_give_the_same_numbers() {
    let comma = |value: f64| format!("{value:.1}").replace('.', ",");
    let text = plain();
    let files: [(&str, Vec<u8>, &[&str]); 9] = [
        ("plain.csv", text.clone().into(), &[]),
        (
            "german.csv",
            series("Datum;Umsatz, EUR", |day, value| {
                format!("{};{}", day.format("%d.%m.%Y"), comma(value))
            })
            .into(),
            &["the delimiter is `;`", "a decimal comma"],
        ),
        ("mark.csv", format!("\u{feff}{text}").into(), &[]),
        (
            "utf16.csv",
            format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect(),
            &[],
        ),
        (
            "single.csv",
            series("'date','sales'", |day, value| format!("'{day}','{value:.1}'")).into(),
            &["cells are quoted by `'` (--quote)"],
        ),
        ("sep.csv", format!("sep=;\r\n{}", text.replace(',', ";")).into(), &[]),
        ("mac.csv", text.replace('\n', "\r").into(), &[]),
        (
            "tabs.csv",
            series("date\tsales", |day, value| format!("{}\t{value:.1}", day.format("%m/%d/%Y")))
                .into(),
            &["the delimiter is"],
        ),
        (
            "quoted.csv",
            series("date,sales", |day, value| format!("{day}T00:00:00Z,\"{}\"", comma(value)))
                .into(),
            &["a decimal comma"],
        ),
    ];
    let directory = folder_with(&[]);
    let mut expected = None;
    for (name, bytes, words) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
        let (report, told) = succeeded(directory.path(), &forecast(name));
        let report = report.replace("Umsatz, EUR", "sales").replace("Umsatz", "sales");
        assert_eq!(*expected.get_or_insert_with(|| report.clone()), report, "{name}");
        for word in words {
            assert!(told.contains(word), "{name}: `{word}` is not in {told}");
        }
    }
}

#[test]
fn what_would_be_misread_is_refused() {
    let mut total = plain();
    total.push_str("Total,1920.0\n");
    let newest_first: String = {
        let text = plain();
        let (header, rows) = text.split_once('\n').unwrap();
        let rows: Vec<_> = rows.lines().rev().collect();
        format!("{header}\n{}\n", rows.join("\n"))
    };
    let stores = series("date,store,sales", |day, value| {
        format!("{day},A,{value:.1}\n{day},B,{:.1}", 100.0 * value)
    });
    let directory = folder_with(&[
        ("total.csv", &total),
        ("empty.csv", &plain().replace("2024-05-02,", ",")),
        ("newest.csv", &newest_first),
        ("stores.csv", &stores),
        ("dollars.csv", &series("date,sales", |day, value| format!("{day},${value:.1}"))),
        ("percent.csv", &series("date,sales", |day, value| format!("{day},{value:.1} %"))),
        ("either.csv", &series("date,sales", |day, _| format!("{day},\"1,234\""))),
        // 600 beside 1.399: thousands, or decimals?
        (
            "points.csv",
            &series("date;sales", |day, value| match value > 20.0 {
                true => format!("{day};{:.3}", value / 10.0),
                false => format!("{day};{value:.0}"),
            }),
        ),
        ("euros.csv", &series("date,sales", |day, value| format!("{day},{value:.1} EUR"))),
        ("minus.csv", &series("date,sales", |day, value| format!("{day},\u{2212}{value:.1}"))),
        ("latin.csv", "date,sales\n"),
    ]);
    let path = directory.path();
    std::fs::write(path.join("latin.csv"), b"date,Ums\xe4tze\n2024-04-01,1\n").unwrap();
    for (name, words) in [
        ("total.csv", &["line 98: `Total` in column `date` is no time stamp", "YYYY-MM-DD"][..]),
        ("empty.csv", &["line 33: column `date` has no time stamp"]),
        ("newest.csv", &["line 3: ", "newest first"]),
        ("stores.csv", &["line 3: `2024-04-01` in column `date` repeats", "several series"]),
        ("dollars.csv", &["line 2: ", "has the sign `$`"]),
        ("percent.csv", &["line 2: ", "has the sign `%`"]),
        ("either.csv", &["line 2: `1,234` in column `sales`", "--decimal", "--thousands"]),
        ("points.csv", &["in column `sales` may have a decimal point", "--thousands ."]),
        ("euros.csv", &["line 2: ", "has the sign `EUR`"]),
        ("minus.csv", &["line 2: ", "is written in a form that is not read", "-1234.5"]),
        ("latin.csv", &["line 1 is not UTF-8", "save the file as UTF-8"]),
    ] {
        assert_refused(path, &forecast(name), words);
    }
    let mut both = forecast("either.csv");
    both.extend(["--decimal", ",", "--thousands", ","]);
    assert_refused(path, &both, &["--decimal and --thousands name the same mark"]);
    for more in [["--decimal", ","], ["--thousands", ","]] {
        let mut arguments = forecast("either.csv");
        arguments.extend(more);
        succeeded(path, &arguments);
    }
}

/// Numbers in another format are no words.
#[test]
fn numbers_of_another_format_are_not_categories() {
    // Levels with a decimal comma beside a column with points.
    let mixed: String = table(0..40)
        .lines()
        .map(|line| match line.split_once(',') {
            Some(("id", rest)) => format!("id,other,{rest}\n"),
            Some((id, rest)) => {
                let (level, rest) = rest.split_once(',').unwrap();
                format!("{id},1.25,\"{}\",{rest}\n", level.replace('.', ","))
            }
            None => unreachable!(),
        })
        .collect();
    let commas = mixed.replace("1.25", "7");
    let directory = folder_with(&[("mixed.csv", &mixed), ("commas.csv", &commas)]);
    let path = directory.path();
    assert_refused(
        path,
        &train("mixed.csv", "classify", &[]),
        &["line 2: ", "in column `level` is not a number with a decimal point"],
    );
    let (_, told) = succeeded(path, &train("commas.csv", "classify", &[]));
    assert!(told.contains("a decimal comma"), "{told}");
    let config = std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    assert!(config.contains("decimal = \",\""), "{config}");
    // The run's format is that of later files, also if they would be judged otherwise.
    let few = "id,other,level,sign,class\na,7,\"51,234\",go,up\n";
    std::fs::write(path.join("few.csv"), few).unwrap();
    succeeded(path, &["predict", "run", "few.csv", "--device", "cpu"]);
}

/// Data that come through a pipe can be read once, and a run has to read them again.
#[cfg(unix)]
#[test]
fn a_run_refuses_data_from_a_pipe() {
    let directory = folder_with(&[]);
    let path = directory.path();
    let made = std::process::Command::new("mkfifo").arg(path.join("pipe.csv")).status().unwrap();
    assert!(made.success());
    let words = ["`pipe.csv` is a pipe or a device", "save the data to a file first"];
    assert_refused(path, &[&forecast("pipe.csv")[..], &["--run", "it"]].concat(), &words);
    assert_refused(path, &train("pipe.csv", "classify", &[]), &words);
}

#[test]
fn labels_that_training_did_not_see_are_counted() {
    let known = table(0..40);
    let some = known.replacen(",down\n", ",sideways\n", 3);
    let none = known.replace(",up\n", ",left\n").replace(",down\n", ",right\n");
    let directory = folder_with(&[("train.csv", &known), ("some.csv", &some), ("none.csv", &none)]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "label", &[]));
    let predict = |csv| succeeded(path, &["predict", "run", csv, "--device", "cpu"]).1;
    assert!(!predict("train.csv").contains("no class"));
    let told = predict("some.csv");
    assert!(told.contains(": 3 of ") && told.contains("count as wrong: `sideways`"), "{told}");
    assert!(told.contains("accuracy "), "{told}");
    let told = predict("none.csv");
    assert!(told.contains("no label in column `class` is a class of the run"), "{told}");
    assert!(!told.contains("accuracy 0"), "{told}");
}

/// `--run` and `--resume` do not send the user from one to the other.
#[test]
fn a_run_without_a_checkpoint_is_replaced() {
    let directory = folder_with(&[("train.csv", &table(0..40))]);
    let path = directory.path();
    succeeded(path, &train("train.csv", "classify", &[]));
    for file in ["checkpoint.safetensors", "checkpoint.safetensors.before", "metrics.csv"] {
        _ = std::fs::remove_file(path.join("run").join(file));
    }
    let words = ["`run` already holds a run", "no checkpoint to resume from", "with --force"];
    assert_refused(path, &train("train.csv", "classify", &[]), &words);
    assert_refused(path, &["train", "--resume", "run"], &["no checkpoint yet", "--force"]);
    succeeded(path, &train("train.csv", "classify", &["--force"]));
}

/// Two columns of time, a version and a duration beside the day: the axis is the one in order.
#[test]
fn the_time_axis_is_a_column_in_order() {
    let text = series("build,updated,took,date,sales", |day, value| {
        format!("1.2.3,2025-01-01,05:00,{day},{value:.1}")
    });
    let unknown = series("date,sales", |day, value| format!("{},{value:.1}", day.format("%j/%Y")));
    let uneven = plain().replace("2024-04-03,", "2024-04-02 12:00,");
    let directory =
        folder_with(&[("axis.csv", &text), ("unknown.csv", &unknown), ("uneven.csv", &uneven)]);
    let path = directory.path();
    let (_, told) = succeeded(path, &forecast("axis.csv"));
    assert!(!told.contains("no column has time stamps"), "{told}");
    let (_, told) = succeeded(path, &forecast("unknown.csv"));
    assert!(told.contains("no column has time stamps that are known"), "{told}");
    let (_, told) = succeeded(path, &forecast("uneven.csv"));
    assert!(
        told.contains("other than the usual 1 day: 2 of 95, from 12 hours to 1.5 days"),
        "{told}"
    );
}

/// Returns the sequences of [`table`] with the day of each row. Later sequences start later, but
/// the file has them in another order.
fn dated() -> String {
    let text = table(0..40);
    let first = chrono::NaiveDate::from_ymd_opt(2024, 1, 1).unwrap();
    let mut blocks: Vec<Vec<String>> = vec![Vec::new(); 40];
    for line in text.lines().skip(1) {
        let (id, rest) = line.split_once(',').unwrap();
        let sequence: usize = id[1..].parse().unwrap();
        let block = &mut blocks[sequence];
        let day = first + chrono::Days::new((10 * sequence + block.len()) as u64);
        block.push(format!("{id},{day},{rest}\n"));
    }
    let order = (0..40).map(|i| 7 * i % 40);
    let rows: String =
        order.flat_map(|sequence| blocks[sequence].concat().into_bytes()).map(char::from).collect();
    format!("id,day,level,sign,class\n{rows}")
}

#[test]
fn the_latest_sequences_are_held_out_where_rows_have_time_stamps() {
    let text = dated();
    let swapped = text.replacen("s7,2024-03-11", "s7,2024-03-30", 1);
    assert_ne!(text, swapped);
    let directory = folder_with(&[("train.csv", &text), ("swapped.csv", &swapped)]);
    let path = directory.path();
    let config = || std::fs::read_to_string(path.join("run/config.toml")).unwrap();
    let (_, told) = succeeded(path, &train("train.csv", "classify", &[]));
    assert!(told.contains("column `day` has time stamps and is no input"), "{told}");
    assert!(told.contains("start last, by column `day`, are held out"), "{told}");
    assert!(config().contains("time = \"day\"") && !config().contains("column = \"day\""));
    // Trained without the four latest sequences, with any seed.
    let latest = ["s36,", "s37,", "s38,", "s39,"];
    let early: String = text
        .lines()
        .filter(|line| !latest.iter().any(|id| line.starts_with(id)))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(path.join("early.csv"), early).unwrap();
    std::fs::write(
        path.join("late.csv"),
        text.lines()
            .filter(|line| line.starts_with("id") || latest.iter().any(|id| line.starts_with(id)))
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
    .unwrap();
    let model = |more: &[&str]| {
        succeeded(
            path,
            &train(more[0], "classify", &[&["--force", "--seed", "3"], &more[1..]].concat()),
        );
        std::fs::read(path.join("run/model.safetensors")).unwrap()
    };
    assert_eq!(model(&["train.csv"]), model(&["early.csv", "--valid", "late.csv"]));
    assert_ne!(model(&["train.csv"]), model(&["train.csv", "--time", "none"]));
    assert!(!config().contains("time ="));

    let words =
        ["swapped.csv", "in column `day`; expected the rows of a sequence in the order of time"];
    assert_refused(path, &train("swapped.csv", "classify", &["--force"]), &words);
    succeeded(path, &train("swapped.csv", "classify", &["--force", "--time", "none"]));
    let words = ["column `level` has no time stamps"];
    assert_refused(path, &train("train.csv", "classify", &["--force", "--time", "level"]), &words);
}

/// One model learns all series, and each is scaled by itself: a series a hundred times as large has
/// a hundred times the forecasts and errors.
#[test]
fn several_series_are_forecast_each_in_its_own_unit() {
    let stores = series("date,store,sales", |day, value| {
        let value = (10.0 * value).round() / 10.0;
        format!("{day},A,{value:.1}\n{day},B,{:.1}", 100.0 * value)
    });
    let mut blocks: Vec<_> = stores.lines().skip(1).collect();
    blocks.sort_by_key(|line| line.split(',').nth(1).unwrap().to_owned());
    let blocks = format!("date,store,sales\n{}\n", blocks.join("\n"));
    let directory = folder_with(&[
        ("stores.csv", &stores),
        ("blocks.csv", &blocks),
        ("short.csv", &format!("{stores}2024-07-06,C,5\n")),
        ("empty.csv", &stores.replacen(",B,", ",,", 1)),
        ("new.csv", &stores.replace(",B,", ",C,")),
    ]);
    let path = directory.path();
    let with =
        |csv, more: &[&'static str]| [&forecast(csv)[..], &["--series", "store"], more].concat();
    let (report, told) = succeeded(path, &with("stores.csv", &["--run", "it"]));
    assert!(told.contains("2 series by `store`, column `sales`, 192 rows"), "{told}");
    let row = |name: &str| -> Vec<f64> {
        let line = report.lines().find(|line| line.contains(name)).unwrap();
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let (a, b) = (row("`A`"), row("`B`"));
    assert_eq!((a[0], b[0]), (14.0, 14.0), "{report}");
    assert!((b[1] / a[1] - 100.0).abs() < 0.2, "{report}");
    assert!(report.contains(" of 2 series"), "{report}");
    // The order of the rows does not matter, and a run resumes.
    let (other, _) = succeeded(path, &with("blocks.csv", &[]));
    assert_eq!(other, report);
    succeeded(path, &["forecast", "--resume", "it", "--epochs", "2", "--device", "cpu"]);

    let predict = |csv| succeeded(path, &["predict", "it", csv, "--device", "cpu"]).0;
    let lines: Vec<_> = predict("stores.csv").lines().map(str::to_owned).collect();
    assert_eq!((&*lines[0], lines.len()), ("store,ahead,predicted", 13));
    let value = |line: usize| lines[line].rsplit(',').next().unwrap().parse::<f64>().unwrap();
    assert!(lines[1].starts_with("A,1,") && lines[7].starts_with("B,1,"), "{lines:?}");
    assert!((value(7) / value(1) - 100.0).abs() < 1e-3, "{lines:?}");
    assert_eq!(predict("blocks.csv").lines().collect::<Vec<_>>(), lines);

    assert_refused(path, &with("short.csv", &[]), &["series `C`: 1 rows are too few"]);
    assert_refused(path, &with("empty.csv", &[]), &["line 3: the series column `store` is empty"]);
    let words = ["--column and --series name the same column"];
    assert_refused(path, &with("stores.csv", &["--column", "store"]), &words);
    let words = ["the run knows no series `C`; it was trained on `A`, `B`"];
    assert_refused(path, &["predict", "it", "new.csv", "--device", "cpu"], &words);
    // Without --series the message names it.
    assert_refused(
        path,
        &forecast("stores.csv"),
        &["several series, pass the column that names them to --series"],
    );
}
