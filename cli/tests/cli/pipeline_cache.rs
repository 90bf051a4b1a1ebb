//! `--pipeline-cache` and GRU_PIPELINE_CACHE: where compiled pipelines are kept, and that no folder
//! keeps a command from its results.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{adapter, program::text};

/// Runs a command on an adapter, with only these variables of those that give the folder.
fn gru_with(home: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let device = if adapter().adapter().unwrap().is_software() { "software" } else { "gpu" };
    let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
    command.current_dir(home).env("GRU_DEVICE", device).args(arguments);
    for variable in ["GRU_PIPELINE_CACHE", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"] {
        command.env_remove(variable);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    output
}

fn info(home: &Path, variables: &[(&str, &str)], more: &[&str]) -> Value {
    let output = gru_with(home, variables, &[&["info", "--json"], more].concat());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// True if the device that the commands take has pipeline caches.
fn is_supported(info: &Value) -> bool {
    let (adapters, device) = (info["adapters"].as_array().unwrap(), &info["device"]);
    let taken = adapters.iter().find(|adapter| {
        device["device"].as_str().unwrap().contains(adapter["name"].as_str().unwrap())
    });
    let features = taken.unwrap()["features"].as_array().unwrap();
    let is_gpu = taken.unwrap()["software"] == false;
    is_gpu && features.iter().any(|feature| feature == "PIPELINE_CACHE")
}

const BENCH: [&str; 5] = ["bench", "--shape", "2,1,2,3", "--repeats", "1"];

#[test]
fn pipelines_are_kept_in_the_folder_of_the_option_the_variable_or_the_platform() {
    let home = TempDir::new().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let variable = ("GRU_PIPELINE_CACHE", &*path("variable"));
    let home_variable = ("HOME", home.path().to_str().unwrap());
    let folder = |variables: &[(&str, &str)], more: &[&str]| {
        let info = info(home.path(), variables, more);
        let cache = &info["pipeline_cache"];
        assert_eq!(cache["file"].is_string(), is_supported(&info) && cache["folder"].is_string());
        cache["folder"].as_str().map(str::to_owned)
    };
    let option = ["--pipeline-cache", "option"];
    assert_eq!(folder(&[variable], &option), Some("option".to_owned()));
    assert_eq!(folder(&[variable, home_variable], &[]), Some(path("variable")));
    assert_eq!(folder(&[variable], &["--pipeline-cache", "none"]), None);
    assert_eq!(folder(&[("GRU_PIPELINE_CACHE", "none"), home_variable], &[]), None);
    assert_eq!(folder(&[], &[]), None);
    #[cfg(target_os = "linux")]
    {
        let unset = ("GRU_PIPELINE_CACHE", "");
        assert_eq!(folder(&[unset, home_variable], &[]), Some(path(".cache/gru-wgpu")));
    }
}

#[test]
fn the_next_run_loads_what_a_run_has_kept() {
    let home = TempDir::new().unwrap();
    let option = ["--pipeline-cache", "kept"];
    gru_with(home.path(), &[], &[&BENCH[..], &option].concat());
    let info = info(home.path(), &[], &option);
    let cache = &info["pipeline_cache"];
    let plain = text(&gru_with(home.path(), &[], &["info", "--pipeline-cache", "kept"]).stdout);
    if !is_supported(&info) {
        assert!(!home.path().join("kept").exists());
        assert!(plain.contains("unused: "), "{plain}");
        return;
    }
    let loaded = cache["loaded"].as_u64().unwrap();
    assert!(loaded > 0, "{cache}");
    assert!(plain.contains(&format!("({loaded} bytes loaded)")), "{plain}");
    assert_eq!(cache["error"], Value::Null);
}

#[test]
fn without_a_folder_nothing_is_written() {
    let home = TempDir::new().unwrap();
    let home_variable = ("HOME", home.path().to_str().unwrap());
    let output = gru_with(
        home.path(),
        &[home_variable, ("MESA_SHADER_CACHE_DISABLE", "true")],
        &[&BENCH[..], &["--pipeline-cache", "none"]].concat(),
    );
    assert!(!home.path().join(".cache/gru-wgpu").exists(), "{}", text(&output.stderr));
    let plain = gru_with(home.path(), &[], &["info", "--pipeline-cache", "none"]);
    assert!(text(&plain.stdout).contains("pipeline cache: none"));
}

/// The run has its results, and one warning with the reason and the way out.
#[test]
fn a_folder_that_cannot_be_written_is_a_warning() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("file"), "text").unwrap();
    let option = ["--pipeline-cache", "file/below"];
    let output = gru_with(home.path(), &[], &[&BENCH[..], &option].concat());
    let stderr = text(&output.stderr);
    let warnings: Vec<_> = stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    let info = info(home.path(), &[], &option);
    if !is_supported(&info) {
        assert_eq!(warnings, Vec::<&str>::new());
        return;
    }
    assert_eq!(warnings.len(), 1, "{stderr}");
    assert!(warnings[0].contains("pipeline cache in `file/below` cannot be "), "{stderr}");
    assert!(warnings[0].contains("--pipeline-cache"), "{stderr}");
    assert!(info["pipeline_cache"]["error"].is_string(), "{info}");
}

#[test]
fn a_file_is_no_folder() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("file"), "text").unwrap();
    let run = |variable: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gru"));
        command.current_dir(&home).env("GRU_DEVICE", "cpu").env("GRU_PIPELINE_CACHE", variable);
        let output = command.arg("info").args(arguments).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (status, stderr) = run("none", &["--pipeline-cache", "file"]);
    assert_eq!((status, &*stderr), (Some(1), "error: --pipeline-cache: `file` is not a folder\n"));
    let (status, stderr) = run("file", &[]);
    assert_eq!(
        (status, &*stderr),
        (Some(1), "error: GRU_PIPELINE_CACHE: `file` is not a folder\n")
    );
    // The option overrides the variable.
    assert_eq!(run("file", &["--pipeline-cache", "none"]), (Some(0), String::new()));
    assert_eq!(run("none", &["--pipeline-cache", ""]).0, Some(2));
    assert_eq!(run("none", &["--pipeline-cache"]).0, Some(2));
}
