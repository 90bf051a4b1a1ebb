//! `gru bench`. No test depends on a measured time.

use std::path::Path;

use crate::common::program::{assert_refused, gru, text};
use serde_json::Value;
use tempfile::TempDir;

/// Returns the value of `--device` for the adapter, and true if it is a software adapter.
fn adapter() -> (&'static str, bool) {
    let software = crate::common::adapter().adapter().unwrap().is_software();
    (if software { "software" } else { "gpu" }, software)
}

fn bench(directory: &Path, arguments: &[&str]) -> String {
    let output = gru(directory, &[&["bench", "--repeats", "2"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs the command, which must print one JSON object on one line and nothing else.
fn json(directory: &Path, arguments: &[&str]) -> Value {
    let stdout = bench(directory, &[arguments, &["--json"]].concat());
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn number(object: &Value, name: &str) -> f64 {
    object[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {object}"))
}

/// Returns the names of the compared results.
fn results(object: &Value) -> Vec<&str> {
    object["checked"]["results"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// Checks what holds for every measurement.
fn assert_consistent(object: &Value) {
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} and {b}: {object}");
    let [median, min] = ["median_ms", "min_ms"].map(|name| number(object, name));
    assert!(0.0 < min && min <= median, "{object}");
    near(number(object, "gflops"), number(object, "gflop") / median * 1e3);
    let compute = number(object, "compute_ms");
    near(number(object, "compute_gflops"), number(object, "gflop") / compute * 1e3);
    near(number(object, "us_per_step"), 1e3 * compute / object["shape"][0].as_f64().unwrap());
    let checked = &object["checked"];
    assert!(number(checked, "share") <= 1.0 && number(checked, "steps") >= 1.0, "{object}");
    let cells = object["layers"].as_u64().unwrap() as usize
        * if object["bidirectional"] == true { 2 } else { 1 };
    let biases = if object["reset"] == "after" { 2 } else { 1 };
    let names = results(object);
    match object["mode"].as_str() {
        Some("forward") => assert_eq!(names, ["y", "h_n"], "{object}"),
        _ => {
            assert_eq!(names[..4], ["y", "h_n", "dx", "dh0"], "{object}");
            assert_eq!(names.len(), 4 + cells * (2 + biases), "{object}");
        }
    }
    assert!(object["repeats"].is_u64() && object["version"].is_string());
    let [device, adapter] = ["device", "adapter"].map(|name| object[name].as_str());
    assert!(number(object, "into_ms") > 0.0, "{object}");
    let rates = ["upload", "upload_copy", "download", "download_copy", "download_new_copy"];
    let rates = rates.map(|name| format!("{name}_gbytes_per_s"));
    let on_adapter = ["adapter_kind", "backend", "driver", "dispatches", "plan_bytes"];
    match device {
        Some("cpu") => {
            assert!(adapter.is_none() && object["compute_clock"] == "host", "{object}");
            assert!(on_adapter.iter().all(|&name| object[name].is_null()), "{object}");
            assert!(rates.iter().all(|name| object[name].is_null()), "{object}");
        }
        _ => {
            let info = crate::common::adapter().adapter().unwrap();
            assert_eq!(adapter, Some(info.name.as_str()));
            assert_eq!(object["adapter_kind"], info.kind.to_string());
            assert!(on_adapter.iter().all(|&name| !object[name].is_null()), "{object}");
            assert!(rates.iter().all(|name| number(object, name) > 0.0), "{object}");
            let [t, b, i, h] = [0, 1, 2, 3].map(|at| object["shape"][at].as_u64().unwrap());
            let directions = if object["bidirectional"] == true { 2 } else { 1 };
            let states = object["layers"].as_u64().unwrap() * directions * b * h;
            if object["mode"] == "forward" {
                assert_eq!(object["upload_bytes"], 4 * t * b * i, "{object}");
                assert_eq!(object["download_bytes"], 4 * (t * b * directions * h + states));
            }
        }
    }
}

#[test]
fn json_contains_the_settings_and_the_results() {
    let directory = TempDir::new().unwrap();
    for device in ["cpu", adapter().0] {
        let shape = ["--device", device, "--shape", "5,3,2,7"];
        let forward = json(directory.path(), &shape);
        assert_consistent(&forward);
        assert_eq!(forward["device"], device);
        assert_eq!((&forward["mode"], &forward["reset"]), (&"forward".into(), &"after".into()));
        assert_eq!(forward["shape"], serde_json::json!([5, 3, 2, 7]));
        assert_eq!(forward["repeats"], 2);
        assert_eq!(number(&forward, "gflop"), 6.0 * 5.0 * 3.0 * 7.0 * 9.0 / 1e9);
        assert_eq!((number(&forward, "backward_ms"), &forward["kernel"]), (0.0, &"auto".into()));
        let step = json(directory.path(), &[&shape[..], &["--kernel", "step"]].concat());
        assert_eq!(step["kernel"], "step");

        let more = ["--mode", "train", "--reset", "before", "--layers", "2", "--bidirectional"];
        let train = json(directory.path(), &[&shape[..], &more].concat());
        assert_consistent(&train);
        assert_eq!((&train["mode"], &train["reset"]), (&"train".into(), &"before".into()));
        assert_eq!((&train["layers"], &train["bidirectional"]), (&2.into(), &true.into()));
        // Four cells; those of the second layer read 14 inputs.
        let gflop = 3.0 * 2.0 * 6.0 * 5.0 * 3.0 * 7.0 * (9.0 + 21.0) / 1e9;
        assert!((number(&train, "gflop") - gflop).abs() < 1e-15);
    }
}

#[test]
fn recomputing_gates_takes_less_memory() {
    let directory = TempDir::new().unwrap();
    let train = ["--device", adapter().0, "--shape", "300,4,3,32", "--mode", "train"];
    let kept = json(directory.path(), &train);
    let again =
        json(directory.path(), &[&train[..], &["--recompute", "--kernel", "step"]].concat());
    assert_consistent(&again);
    assert_eq!((&kept["recompute"], &again["recompute"]), (&false.into(), &true.into()));
    assert!(number(&again, "plan_bytes") < number(&kept, "plan_bytes"), "{kept} {again}");
}

#[test]
fn devices_are_compared_side_by_side() {
    let directory = TempDir::new().unwrap();
    let (word, software) = adapter();
    let devices = format!("cpu,{word}");
    let arguments = ["--device", devices.as_str(), "--shape", "3,2,4,5"];
    let first = json(directory.path(), &arguments);
    let others = first["others"].as_array().unwrap();
    assert_eq!((first["device"].as_str(), others.len()), (Some("cpu"), 1));
    assert_eq!(others[0]["device"], word);
    assert_consistent(&first);
    assert_consistent(&others[0]);
    let ratio = number(&others[0], "median_ms") / number(&first, "median_ms");
    assert!((number(&others[0], "ratio") - ratio).abs() < 1e-6 * ratio);

    let table =
        bench(directory.path(), &[&arguments[..], &["--mode", "train", "--profile"]].concat());
    let checked = "cpu: y, h_n, dx, dh0 and the gradients of 4 parameters within ";
    for words in ["median ms", "upload", "compute", "download", "GFLOP/s", "ratio", checked] {
        assert!(table.contains(words), "{words}: {table}");
    }
    for kernel in ["forward: ", "backward: ", ": dx = da · W_ih", "GB/s", "the fastest of 2 runs"]
    {
        assert!(table.contains(kernel), "{kernel}: {table}");
    }
    if software {
        // In its row, in the verification and in the legend; and it is never called a GPU.
        assert!(table.matches("software adapter").count() >= 4, "{table}");
        assert!(!table.to_lowercase().replace("gru", "").contains("gpu"), "{table}");
    }
}

#[test]
fn a_profile_has_every_dispatch() {
    let directory = TempDir::new().unwrap();
    let arguments = ["--device", adapter().0, "--shape", "9,2,4,5", "--mode", "train", "--profile"];
    let object = json(directory.path(), &arguments);
    let rows = object["profile"].as_array().unwrap();
    let sum = |name: &str| rows.iter().map(|row| number(row, name)).sum::<f64>();
    assert_eq!(sum("calls"), number(&object, "dispatches"));
    assert!((sum("share") - 1.0).abs() < 1e-9, "{object}");
    assert_eq!(object["profile_runs"], 2);
    assert!(rows.is_sorted_by(|a, b| number(a, "ms") >= number(b, "ms")), "{object}");
    // The CPU has no kernels.
    let object = json(directory.path(), &["--device", "cpu", "--shape", "2,1,1,1", "--profile"]);
    assert_eq!(object["profile"], serde_json::json!([]));
}

#[test]
fn a_sweep_writes_a_table_and_a_plot() {
    let directory = TempDir::new().unwrap();
    let (word, software) = adapter();
    let devices = format!("cpu,{word}");
    let arguments = ["--device", devices.as_str(), "--shape", "3,2,4,5", "--sweep", "B=4,1,4"];
    let table = bench(directory.path(), &arguments);
    assert!(table.contains("µs a step") && table.contains("dispatches"), "{table}");
    let svg = std::fs::read_to_string(directory.path().join("bench.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("B, batch rows"));
    if software {
        assert!(svg.contains("software adapter ("), "{svg}");
        assert!(!svg.to_lowercase().contains("gpu"), "{svg}");
    }
    let more = ["--output", "other.svg"];
    let object = json(directory.path(), &[&arguments[..], &more].concat());
    assert_eq!((&object["sweep"], &object["values"]), (&"B".into(), &serde_json::json!([1, 4])));
    for (point, size) in object["points"].as_array().unwrap().iter().zip([1, 4]) {
        assert_eq!(point["shape"], serde_json::json!([3, size, 4, 5]));
        assert_consistent(point);
        assert_consistent(&point["others"][0]);
    }
    assert!(object["crossings"].is_array());
    assert_eq!(object["failed"], serde_json::json!([]));
    // No other file is left behind.
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    for axis in ["T=2,3", "H=2,3"] {
        let object =
            json(directory.path(), &["--device", "cpu", "--shape", "2,1,1,2", "--sweep", axis]);
        assert_eq!(object["points"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_failing_size_does_not_affect_the_others() {
    let directory = TempDir::new().unwrap();
    let (word, _) = adapter();
    let few = "--repeats=1";
    let sweep = |sizes: &str, more: &[&str]| {
        let arguments = [
            "bench", "--device", word, "--shape", "2,2,3,4", few, "--output", "s.svg", "--sweep",
            sizes,
        ];
        gru(directory.path(), &[&arguments[..], more].concat())
    };
    let output = sweep("T=2,4000000000,3", &[]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stdout.contains("T 4000000000 failed: on ") && stdout.contains("u32"), "{stdout}");
    assert!(stderr.lines().last().unwrap().starts_with("error: T 4000000000 "), "{stderr}");
    assert!(std::fs::read_to_string(directory.path().join("s.svg")).unwrap().contains("T, steps"));
    std::fs::remove_file(directory.path().join("s.svg")).unwrap();

    let output = sweep("T=2,4000000000,3", &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["values"], serde_json::json!([2, 3]));
    let points = object["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    points.iter().for_each(assert_consistent);
    let failed = object["failed"].as_array().unwrap();
    assert_eq!((failed.len(), &failed[0]["value"]), (1, &4_000_000_000_u64.into()));
    assert!(failed[0]["error"].as_str().unwrap().contains("x [T, B, I]"), "{object}");
    std::fs::remove_file(directory.path().join("s.svg")).unwrap();

    let output = sweep("T=4000000000,5000000000", &[]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
    let stderr = text(&output.stderr);
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: none of the sizes ") && last.contains("u32"), "{stderr}");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

/// Linux would grant the memory, and kill the program that uses it.
#[test]
#[cfg(target_os = "linux")]
fn what_the_host_has_no_memory_for_is_refused() {
    let directory = TempDir::new().unwrap();
    for (shape, mode) in [
        ("1000000,1000000,8,8", "forward"),
        ("10000000,1000,8,64", "train"),
        ("1,1,1,1000000", "train"),
    ] {
        let arguments = ["bench", "--device", "cpu", "--shape", shape, "--mode", mode];
        let words =
            ["on cpu: out of memory: ", " takes at least ", " TB of the host's memory, but "];
        assert_refused(directory.path(), &arguments, &words);
    }
    // A sweep continues with the next size.
    let arguments =
        ["bench", "--device", "cpu", "--shape", "2,1,1,1", "--sweep", "B=1,1000000000000"];
    let output = gru(directory.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("B 1000000000000 failed: on cpu: out of memory"));
}

#[test]
fn a_plan_is_printed_and_nothing_runs() {
    let directory = TempDir::new().unwrap();
    // The CPU has no plan and shows an adapter's. The size would take far too long to run.
    let arguments = ["--plan", "--shape", "50000,8,64,512", "--mode", "train", "--device", "cpu"];
    let plan = bench(directory.path(), &arguments);
    let own = "the CPU has no dispatches; it needs at least ";
    for words in
        ["cpu: training, GRU 64→512, reset after", own, "T 50000", "backward", "total: ", " held"]
    {
        assert!(plan.contains(words), "{words}: {plan}");
    }
    // The CPU is not limited by an adapter's indices.
    let plan =
        bench(directory.path(), &["--plan", "--shape", "1000000,1000000,8,8", "--device", "cpu"]);
    assert!(
        plan.contains(own) && plan.contains("would refuse: ") && plan.contains("u32"),
        "{plan}"
    );
    let none = ["bench", "--device", adapter().0, "--plan", "--shape", "1000000,1000000,8,8"];
    assert_refused(directory.path(), &none, &["u32"]);
    let step = ["--plan", "--shape", "7,2,3,5", "--kernel", "step", "--device", adapter().0];
    let plan = bench(directory.path(), &step);
    assert!(plan.contains("for each of 7 steps") && plan.contains("total: 8 dispatches"), "{plan}");
}

#[test]
fn bad_input_prints_one_error_line_and_writes_no_file() {
    let directory = TempDir::new().unwrap();
    std::fs::create_dir(directory.path().join("folder.svg")).unwrap();
    let huge = "1000000,1000000,8,8";
    let (word, _) = adapter();
    let cases: [(&[&str], &[&str]); 12] = [
        (&["bench", "--device", "cpu,tpu"], &["`tpu`", "expected auto, cpu, gpu, software"]),
        (&["bench", "--device", "cpu,"], &["unknown device ``"]),
        (&["bench", "--device", word, "--shape", huge], &["x [T, B, I]", "u32"]),
        (
            &["bench", "--device", "cpu", "--shape", "1,1,1,18446744073709551615"],
            &["the size overflows"],
        ),
        (&["bench", "--device", word, "--shape", "1,1,99999,99999"], &["the buffer params"]),
        (&["bench", "--device", "cpu", "--sweep", "T", "--output", "x.png"], &["x.png", ".svg"]),
        (&["bench", "--device", "cpu", "--sweep", "T", "--output", "no/x.svg"], &["`no`"]),
        (
            &["bench", "--device", "cpu", "--sweep", "B", "--output", "folder.svg"],
            &["regular file"],
        ),
        (&["bench", "--device", "cpu", "--recompute"], &["--mode train"]),
        (&["info", "--device", "cpu,auto"], &["2 devices", "gru bench"]),
        (&["bench", "--device", "cpu,cpu"], &["--device names the device cpu twice"]),
        (&["bench", "--device", "gpu,gpu:0"], &["--device names the device gpu:0 twice"]),
    ];
    for (arguments, words) in cases {
        assert_refused(directory.path(), arguments, words);
    }
    for (arguments, words) in [
        (&["--shape", "1,2,3"][..], "the 4 sizes T,B,I,H, got 3"),
        (&["--shape", "1,0,1,1"], "expected a whole number of at least 1, got `0`"),
        (&["--shape", "1,x,1,1"], "at least 1, got `x`"),
        (&["--shape", "1,,1,1"], "at least 1, got ``"),
        (&["--shape", "1,1,1,99999999999999999999"], "too large"),
        (&["--mode", "backward"], "forward, train"),
        (&["--reset", "never"], "after, before"),
        (&["--kernel", "fast"], "auto, step, sequence or persistent"),
        (&["--repeats", "0"], "at least 1, got `0`"),
        (&["--layers", "0"], "at least 1, got `0`"),
        (&["--sweep", "I"], "T, B or H"),
        (&["--sweep", "T="], "at least 1, got ``"),
        (&["--sweep", "T=0"], "at least 1, got `0`"),
        (&["--output", "x.svg"], "--sweep"),
        (&["--plan", "--json"], "--json"),
        (&["extra"], "extra"),
    ] {
        let output = gru(directory.path(), &[&["bench", "--device", "cpu"], arguments].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: `{words}` is not in {stderr}");
    }
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}
