//! The program as a user runs it, without a driver or a compiler: those are not everywhere.
//! `.ci/run` runs it on RADV.

use std::process::{Command, Output};

/// Runs the program without AMD's and NVIDIA's compilers.
fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kernel_stats"))
        .args(["--family", "none", "--nvidia", "none"])
        .args(arguments)
        .output()
        .unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the error that the program ends with.
fn error(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(&[arguments, &["--json"]].concat())).unwrap()
}

#[test]
fn the_kernels_of_plans_are_listed_once() {
    let report = json(&["5,3,2,7", "7,3,2,7", "--definition", "pytorch,own"]);
    let kernels = report["kernels"].as_array().unwrap();
    let of = |name: &str| {
        let named = kernels.iter().filter(|kernel| kernel["kernel"] == name);
        named.map(|kernel| kernel["used_by"].as_array().unwrap().len()).collect::<Vec<_>>()
    };
    // One for each definition, each of both shapes.
    assert_eq!(of("forward_lanes_scalar"), [2, 2]);
    assert_eq!(of("backward_lanes_scalar"), [2, 2]);
    let threads = kernels.iter().map(|kernel| kernel["threads"].as_u64().unwrap());
    assert!(threads.clone().all(|threads| threads > 0), "{kernels:?}");
    // Column sums keep a number of each thread.
    let sums = kernels.iter().find(|kernel| kernel["kernel"] == "column_sum").unwrap();
    assert_eq!((&sums["threads"], &sums["workgroup_bytes"]), (&256.into(), &1024.into()));
}

#[test]
fn options_choose_other_kernels() {
    let resident = |arguments: &[&str]| {
        let report = json(arguments);
        let kernels = report["kernels"].as_array().unwrap();
        let forward =
            kernels.iter().find(|kernel| kernel["kernel"] == "forward_lanes").unwrap().clone();
        (forward["constants"]["RESIDENT"].as_f64(), forward["constants"]["NOISE"].as_f64())
    };
    assert_eq!(resident(&["5,3,4,32"]), (Some(1.0), Some(0.0)));
    assert_eq!(resident(&["5,3,4,32", "--kernel", "step"]), (Some(0.0), Some(0.0)));
    assert_eq!(resident(&["5,3,4,32", "--noise"]), (Some(1.0), Some(1.0)));
}

#[test]
fn dispatches_have_their_warps() {
    let plans = json(&["5,3,2,8", "--kernel", "step", "--dispatches"]);
    let rows = plans["plans"][0]["dispatches"].as_array().unwrap();
    let forward = rows.iter().find(|row| row["kernel"] == "forward").unwrap();
    assert_eq!(forward["times"], 5);
    let groups: Vec<_> =
        forward["workgroups"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let warps = groups.iter().product::<u64>() * forward["threads"].as_u64().unwrap().div_ceil(32);
    assert_eq!(forward["warps"].as_f64().unwrap(), warps as f64 / 132.0);
    let text = stdout(&["5,3,2,8", "--kernel", "step", "--dispatches"]);
    assert!(text.starts_with("5,3,2,8 pytorch\n") && text.contains("     5 x forward "), "{text}");
    let table = stdout(&["5,3,2,8", "--dispatches", "--markdown"]);
    assert!(table.starts_with("| plan | times | kernel |"), "{table}");
}

#[test]
fn a_kernel_of_ones_own_is_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let shared = file("shared.wgsl", "fn half(x: f32) -> f32 { return 0.5 * x; }\n");
    let own = file(
        "own.wgsl",
        "override COUNT: u32 = 3u;
         struct Args { n: u32 }
         @group(0) @binding(0) var<storage, read> args: Args;
         @group(0) @binding(1) var<storage, read_write> y: array<f32>;
         var<workgroup> part: array<f32, COUNT>;
         @compute @workgroup_size(COUNT)
         fn main(@builtin(local_invocation_index) i: u32) {
             part[i] = half(y[i]);
             workgroupBarrier();
             if i < args.n { y[i] = part[(i + 1u) % COUNT]; }
         }",
    );
    let files = format!("{shared},{own}");
    let dump = folder.path().join("dump");
    let dumped = ["--dump", dump.to_str().unwrap()];
    let report = json(&[&["--wgsl", &files, "--constants", "COUNT=97"], &dumped[..]].concat());
    let row = &report["kernels"][0];
    assert_eq!(
        (&row["kernel"], &row["threads"], &row["workgroup_bytes"]),
        (&"own".into(), &97.into(), &388.into())
    );
    for name in ["00_own.spv", "00_own.metal"] {
        assert!(dump.join(name).is_file(), "{name}");
    }
    // Index and division are checked, unless that is not wanted.
    for (checks, checked) in [("checked", true), ("unchecked", false)] {
        stdout(&[&["--wgsl", &files, "--checks", checks], &dumped[..]].concat());
        let msl = std::fs::read_to_string(dump.join("00_own.metal")).unwrap();
        for word in ["naga_mod", "metal::min(unsigned"] {
            assert_eq!(msl.contains(word), checked, "{checks} {word}: {msl}");
        }
    }
    let unknown = error(&["--wgsl", &files, "--constants", "COUNTS=97"], 1);
    assert_eq!(unknown, "error: kernel own has no constant COUNTS; it has COUNT\n");
    let invalid = error(&["--wgsl", &own], 1);
    assert!(invalid.starts_with("error: kernel own: ") && invalid.contains("half"), "{invalid}");
    // It needs no budget.
    stdout(&["--wgsl", &files, "--limits"]);
}

#[test]
fn errors_say_what_was_expected() {
    for (arguments, code, expected) in [
        (&[][..], 1, "expected a shape T,B,I,H or --wgsl FILE"),
        (&["5,3,2"], 2, "expected four whole numbers of at least 1, T,B,I,H, got `5,3,2`"),
        (&["5,3,0,2"], 2, "got `5,3,0,2`"),
        (&["5,3,2,8", "--constants", "A=1"], 2, "--wgsl"),
        (&["--wgsl", "a", "--constants", "A"], 2, "expected NAME=VALUE with a number, got `A`"),
        // `run` names a family, too.
        (&["5,3,2,8", "--driver"], 2, "--driver"),
        (&["--wgsl", "none.wgsl"], 1, "error: none.wgsl: "),
        (&["5,3,2,8", "--kernel", "other"], 2, "other"),
        (&["99999999999,99999999,9,9"], 1, "error: the plan of 99999999999,99999999,9,9: "),
    ] {
        let error = error(arguments, code);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}

#[test]
fn help_states_the_options() {
    let help = stdout(&["--help"]);
    for option in ["--definition", "--limits", "--dispatches", "--nvidia", "--wgsl", "Exit status"]
    {
        assert!(help.contains(option), "{option}: {help}");
    }
}
