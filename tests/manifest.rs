//! The manifest keeps its promises: the lowest Rust that the dependencies allow, and a small library.

mod common;

use std::process::Command;

use common::metadata;

/// `1.87` or `1.87.0` as numbers.
fn version(text: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = text.split('.').map(|n| n.parse().unwrap()).collect();
    numbers.resize(3, 0);
    numbers
}

/// No dependency asks for a newer Rust than the manifest states, and one asks for just that. That
/// the code itself asks for no more is clippy's `incompatible_msrv` and the next test.
#[test]
fn rust_version_is_the_highest_of_the_dependencies() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let (own, others): (Vec<_>, Vec<_>) =
        packages.iter().partition(|package| package["name"] == "gru-wgpu");
    let asked = others.iter().filter_map(|package| {
        let version_asked = version(package["rust_version"].as_str()?);
        Some((version_asked, package["name"].as_str()?))
    });
    let (highest, name) = asked.max().unwrap();
    assert_eq!(version(own[0]["rust_version"].as_str().unwrap()), highest, "asked by {name}");
}

/// Chains of `let` in conditions came with Rust 1.88, and no lint knows that.
#[test]
fn no_let_chains_are_used() {
    let mut folders = vec![std::path::PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                for line in text.lines().map(str::trim) {
                    let conditional = line.starts_with("if let ") || line.starts_with("while let ");
                    let chained = line.starts_with("&& ") || line.contains(" && ");
                    let chain = line.contains("&& let ") || (conditional && chained);
                    assert!(!chain, "{}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn the_library_alone_draws_in_no_part_of_the_program() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-p",
            "gru-wgpu",
            "--no-default-features",
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .args(["--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"wgpu"), "{tree}");
    for cli in [
        "anyhow",
        "chrono",
        "clap",
        "csv",
        "ctrlc",
        "fs4",
        "indicatif",
        "plotters",
        "serde_json",
        "tempfile",
        "toml",
    ] {
        assert!(!names.contains(&cli), "{cli} is a dependency of the library");
    }
}
