//! `gru train --init`: runs that start from a model file.

use std::fmt::Write;
use std::path::Path;

use gru_wgpu::Head;
use gru_wgpu::formats::{StateDictOptions, pytorch, safetensors};

use super::common::program::assert_refused;
use super::common::sequences::{folder_with, json, succeeded, table, train};

/// Options of a run that changes its parameters by nothing that counts.
const STILL: [&str; 4] = ["--learning-rate", "1e-12", "--epochs", "1"];

/// Returns the arguments of a run without [`SMALL`](super::common::sequences::SMALL) settings.
fn plain<'a>(csv: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", csv, "--task", "classify", "--device", "cpu", "--force"], &STILL[..], more].concat()
}

#[test]
fn a_network_of_a_run_starts_another() {
    let directory = folder_with(&[("train.csv", &table(0..40)), ("valid.csv", &table(40..60))]);
    let directory = directory.path();
    let more = ["--valid", "valid.csv", "--run", "first", "--json"];
    let before = json(directory, &train("train.csv", "classify", &more));
    let start = ["--valid", "valid.csv", "--hidden", "6", "--init", "first/model.safetensors"];
    let after = json(directory, &plain("train.csv", &[&start[..], &["--json"]].concat()));
    let loss = |said: &serde_json::Value| said["loss"].as_f64().unwrap();
    assert!((loss(&after) - loss(&before)).abs() < 1e-6, "{before} {after}");
    let (_, said) = succeeded(directory, &plain("train.csv", &start));
    assert!(said.contains("training starts from its GRU and its head, `head`"), "{said}");
    let config = std::fs::read_to_string(directory.join("run/config.toml")).unwrap();
    assert!(
        config.contains("[init]")
            && config.contains("head = \"head\"")
            && config.contains("first/model.safetensors"),
        "{config}"
    );
    let new = [&start[..], &["--init-head", "new", "--json"]].concat();
    let new = json(directory, &plain("train.csv", &new));
    assert!((loss(&new) - loss(&before)).abs() > 1e-3, "{before} {new}");
    // Settings that are not the file's are refused, with those that are.
    for (more, expected) in [
        (
            &["--hidden", "7", "--init", "first/model.safetensors"][..],
            "but the run trains a GRU 3→7, reset after, z keeps, two biases; pass --hidden 6",
        ),
        (
            &["--hidden", "6", "--features", "level", "--init", "first/model.safetensors"],
            "its GRU has 3 inputs, but the columns give 1",
        ),
        (&["--hidden", "6", "--init", "nowhere.pt"], "cannot open `nowhere.pt`"),
        (&["--hidden", "6", "--init", "train.csv"], "is not recognised as a model file"),
    ] {
        assert_refused(directory, &plain("train.csv", more), &[expected]);
    }
}

/// Returns sequences of three numbers, of the four classes of `head.pt`.
fn numbers() -> String {
    let mut csv = "id,a,b,c,class\n".to_owned();
    for i in 0..40 {
        for t in 0..3 {
            let x = |k: usize| ((i * 31 + t * 17 + k * 7) as f64).sin();
            writeln!(csv, "s{i},{:.4},{:.4},{:.4},c{}", x(0), x(1), x(2), i % 4).unwrap();
        }
    }
    csv
}

#[test]
fn a_state_dict_with_a_head_starts_a_run() {
    let directory = folder_with(&[("train.csv", &numbers())]);
    let directory = directory.path();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/pytorch");
    let file = |name: &str| files.join(name).to_str().unwrap().to_owned();
    let same = ["--hidden", "5", "--direction", "both", "--scale", "none"];
    for (name, more, prefix) in [
        ("head.pt", &[][..], "gru"),
        ("heads.pt", &["--init-prefix", "ema.gru"], "ema.gru"),
        ("head_choice.pt", &["--init-head", "fc"], "gru"),
    ] {
        let file = file(name);
        let more = [&same[..], &["--init", &file], more].concat();
        succeeded(directory, &plain("train.csv", &more));
        let read = StateDictOptions::new().with_prefix(prefix).with_head(Head::last(4));
        let read = read.with_head_name((name == "head_choice.pt").then_some("fc"));
        let expected = pytorch::load_network(&file, &read).unwrap();
        let model = directory.join("run/model.safetensors");
        let trained = safetensors::load_network(model, &StateDictOptions::new()).unwrap();
        for (name, array) in trained.iter() {
            let error = (&array - &expected.get(name).unwrap()).mapv(f32::abs);
            assert!(error.iter().all(|&error| error < 1e-6), "{name}: {error}");
        }
    }
    // A GRU without biases gets biases of 0.
    let bare = file("head_no_biases.pt");
    succeeded(
        directory,
        &plain("train.csv", &["--hidden", "5", "--scale", "none", "--init", &bare]),
    );
    let read = StateDictOptions::new().with_prefix("gru");
    let model = safetensors::load(directory.join("run/model.safetensors"), &read).unwrap();
    let bias = model.get("bias_hh_l0").unwrap();
    assert!(bias.iter().all(|&bias| bias.abs() < 1e-6), "{bias}");
    // A GRU without a head, and heads that are not clear.
    let zip = file("cells.pt");
    let head = ["--direction", "forward", "--init", &zip, "--init-prefix", "cell0"];
    let more = [&same[..2], &head[..]].concat();
    assert_refused(
        directory,
        &plain("train.csv", &more),
        &["it has no linear layer with 5 inputs", "--init-head new draws one"],
    );
    let (_, said) = succeeded(
        directory,
        &plain("train.csv", &[&more[..], &["--init-head", "new", "--reset", "after"]].concat()),
    );
    assert!(said.contains("the head is new"), "{said}");
    let choice = file("head_choice.pt");
    let more = [&same[..], &["--init", &choice]].concat();
    assert_refused(directory, &plain("train.csv", &more), &["2 heads", "`aux`, `fc`"]);
}
