//! The probes on the software adapter: that they run, what they say, and how they fail. Times there
//! mean nothing.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu_probes"))
        .args(["--device", "software", "--repeats", "1"])
        .args(arguments)
        .output()
        .unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn dispatches_are_timed_with_both_kinds_of_arguments() {
    let answer = json(&["dispatch", "--count", "7", "--workgroups", "1,3"]);
    let rows = answer["rows"].as_array().unwrap();
    let groups: Vec<_> = rows.iter().map(|row| row["workgroups"].as_u64().unwrap()).collect();
    assert_eq!((groups, &answer["dispatches"]), (vec![1, 3], &7.into()));
    for row in rows {
        assert!(row["storage_us"].is_number(), "{row}");
        // null where the adapter has none.
        assert!(row["immediates_us"].is_number() || row["immediates_us"].is_null(), "{row}");
    }
}

/// Every kernel of the recurrence and the products, quads and scalars, checked and unchecked.
#[test]
fn a_kernel_of_a_plan_runs_by_itself() {
    for (shape, family, name, steps) in [
        ("9,3,5,8", "persistent", "persistent_forward", true),
        ("9,3,5,7", "persistent", "persistent_backward", true),
        ("3,1,2,8", "sequence", "forward", true),
        ("3,5,2,7", "step", "forward", true),
        ("3,5,2,8", "step", "backward", true),
        ("3,5,2,8", "step", "matmul", false),
        ("3,5,2,8", "step", "column_sum", false),
    ] {
        for checks in ["library", "unchecked"] {
            let options = ["--kernel", family, "--name", name, "--checks", checks, "--chain", "2"];
            let answer = json(&[&["kernel", shape, "--mode", "train"], &options[..]].concat());
            let kernel = answer["kernel"].as_str().unwrap();
            // Weights are loaded as numbers, not as quads, where H is no multiple of four.
            assert!(kernel.starts_with(name), "{answer}");
            assert_eq!(kernel.ends_with("_scalar"), shape.ends_with('7'), "{answer}");
            assert_eq!(answer["checks"], checks);
            assert!(answer["us"].is_number() && answer["gflops"].is_number(), "{answer}");
            assert_eq!(answer["us_per_step"].is_number(), steps, "{answer}");
            // Not the last, shorter one, which runs once.
            assert_ne!(answer["label"], "dh0");
        }
    }
}

/// The first of the states, the last in time, has no product: its time would be too short.
#[test]
fn a_step_is_one_in_the_middle() {
    for (mode, name, step) in [("forward", "forward", 3), ("train", "backward", 4)] {
        let options = ["--mode", mode, "--kernel", "step", "--name", name];
        let answer = json(&[&["kernel", "7,2,3,5"], &options[..]].concat());
        assert_eq!(answer["step"], step, "{answer}");
    }
}

#[test]
fn constants_arguments_and_workgroups_can_be_set() {
    let persistent =
        ["kernel", "9,3,5,8", "--kernel", "persistent", "--name", "persistent_forward"];
    let answer =
        json(&[&persistent[..], &["--constants", "ROWS=2", "--workgroups", "1,2,1"]].concat());
    assert_eq!(answer["constants"]["ROWS"], 2);
    assert_eq!(answer["workgroups"], serde_json::json!([1, 2, 1]));
    let with = |more: &[&str], code| error(&[&persistent[..], more].concat(), code);
    for (more, code, expected) in [
        (&["--constants", "ROW=2"][..], 1, "the kernel has no constant ROW; it has RESET_BEFORE, "),
        (&["--constants", "ROWS"], 2, "expected NAME=VALUE with a whole number, got `ROWS`"),
        (&["--args", "n=2"], 1, "the kernel has no argument n; it has steps, "),
        (&["--workgroups", "1,2"], 1, "expected workgroups x,y,z, got [1, 2]"),
        // The device refuses it; nothing panics.
        (&["--constants", "THREADS=100000"], 1, "error: "),
        (&["--workgroups", "1,100000,1"], 1, "error: "),
    ] {
        let error = with(more, code);
        assert!(error.contains(expected) && !error.contains("panicked"), "{more:?}: {error}");
    }
}

#[test]
fn errors_say_what_was_expected() {
    let kernel = ["kernel", "3,2,5,7", "--kernel", "step", "--name"];
    let unknown = error(&[&kernel[..], &["nothing"]].concat(), 1);
    assert_eq!(unknown, "error: the plan has no kernel nothing; it has forward, matmul\n");
    let sizes = error(&["kernel", "3,2,5", "--name", "forward"], 1);
    assert_eq!(sizes, "error: expected T,B,I,H, got [3, 2, 5]\n");
    let zero = error(&["kernel", "3,2,0,5", "--name", "forward"], 1);
    assert!(zero.starts_with("error: ") && !zero.contains("panicked"), "{zero}");
}

/// One workgroup waits for nobody. More than a device runs at once must give up, and say so.
#[test]
fn a_barrier_completes_or_says_why_not() {
    let spins = ["grid-barrier", "--rounds", "3", "--spins", "100", "--workgroups", "1,1021"];
    let answer = json(&spins);
    let rows = answer["rows"].as_array().unwrap();
    assert!(rows[0]["us"].is_number(), "{answer}");
    let why = rows[1]["error"].as_str().unwrap();
    assert_eq!(why, "a workgroup gave up after 100 spins: the 1021 do not run at once");
    let none = error(&["grid-barrier", "--workgroups", "0"], 1);
    assert_eq!(none, "error: expected 1 to 65535 workgroups, got 0\n");
}
