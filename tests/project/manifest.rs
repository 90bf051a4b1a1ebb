//! The manifests: the lowest Rust version that the dependencies allow, few packages, and a small
//! download.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::common::{files_in, metadata};

/// Parses `1.87` or `1.87.0`.
fn version(text: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = text.split('.').map(|n| n.parse().unwrap()).collect();
    numbers.resize(3, 0);
    numbers
}

/// No dependency needs a newer Rust than the manifest states, and one needs exactly that version.
/// Clippy's `incompatible_msrv` and the next test check the code itself.
#[test]
fn rust_version_is_the_highest_of_the_dependencies() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    // Packages of this workspace come from no registry.
    let (own, others): (Vec<_>, Vec<_>) =
        packages.iter().partition(|package| package["source"].is_null());
    let asked = others.iter().filter_map(|package| {
        let version_asked = version(package["rust_version"].as_str()?);
        Some((version_asked, package["name"].as_str()?))
    });
    let (highest, name) = asked.max().unwrap();
    for package in own {
        assert_eq!(version(package["rust_version"].as_str().unwrap()), highest, "asked by {name}");
    }
}

/// Chains of `let` in conditions need Rust 1.88, and no lint checks that.
#[test]
fn no_let_chains_are_used() {
    let crates = ["src", "cli/src", "benches/gpu_probes/src", "benches/kernel_stats/src"];
    for path in crates.into_iter().flat_map(|folder| files_in(Path::new(folder))) {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut is_condition = false;
        for line in text.lines().map(str::trim) {
            // A condition goes on over lines that begin with `&&`.
            is_condition = line.starts_with("if let ")
                || line.starts_with("while let ")
                || (is_condition && line.starts_with("&& "));
            let is_chained = line.starts_with("&& ") || line.contains(" && ");
            let is_chain = line.contains("&& let ") || (is_condition && is_chained);
            assert!(!is_chain, "{}: {line}", path.display());
        }
    }
}

/// Returns cargo's output.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the packages that a user of the library compiles, including itself.
fn packages(features: &str) -> BTreeSet<String> {
    let tree = cargo(&[
        "tree",
        "--package=gru-wgpu",
        "--edges=normal",
        "--prefix=none",
        "--format={p}",
        "--features",
        features,
    ]);
    tree.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn the_library_does_not_depend_on_the_programs_packages() {
    // benches/NOTES.md states the numbers.
    for (features, at_most) in [("", 80), ("safetensors", 95)] {
        let packages = packages(features);
        let names: Vec<_> =
            packages.iter().filter_map(|line| line.split_whitespace().next()).collect();
        assert!(names.contains(&"wgpu"), "{names:?}");
        // Other systems use other wgpu backends.
        if cfg!(target_os = "linux") {
            assert!(packages.len() <= at_most, "{} packages with `{features}`", packages.len());
        }
        for cli in
            ["anyhow", "chrono", "clap", "csv", "ctrlc", "fs4", "indicatif", "plotters", "toml"]
        {
            assert!(!names.contains(&cli), "{cli} is a dependency of the library");
        }
        for of_formats in ["serde_json", "tempfile"] {
            assert_eq!(names.contains(&of_formats), !features.is_empty(), "{of_formats}");
        }
    }
}

/// No features and the default features give the same packages.
#[test]
fn no_feature_is_on_by_default() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let own = packages.iter().find(|package| package["name"] == "gru-wgpu").unwrap();
    let features: Vec<_> = own["features"].as_object().unwrap().keys().collect();
    assert_eq!(features, ["npy", "onnx", "pytorch", "safetensors", "serde"]);
}

/// The package for crates.io: everything that the library is built from, and no data.
#[test]
fn the_package_is_small_and_complete() {
    const MOST: u64 = 1_500_000;
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().to_str().unwrap();
    let package = ["package", "--package=gru-wgpu", "--allow-dirty"];
    cargo(&[&package[..], &["--no-verify", "--quiet", "--target-dir", target]].concat());
    let file =
        folder.path().join(concat!("package/gru-wgpu-", env!("CARGO_PKG_VERSION"), ".crate"));
    let size = std::fs::metadata(file).unwrap().len();
    assert!(size < MOST, "{size} bytes");
    let list = cargo(&[&package[..], &["--list"]].concat());
    let listed: BTreeSet<_> = list.lines().collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in ["src", "shaders"].into_iter().flat_map(|folder| files_in(&root.join(folder))) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        assert!(listed.contains(name), "{name} is not in the package");
    }
    for name in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        assert!(listed.contains(name), "{name} is not in the package");
    }
    let stray = listed.iter().find(|name| {
        ["data/", "tests/", "benches/results/", "cli/"]
            .iter()
            .any(|folder| name.starts_with(folder))
    });
    assert_eq!(stray, None);
}
