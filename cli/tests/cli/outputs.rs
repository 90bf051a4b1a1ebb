//! No command overwrites its inputs, another output or a file of a run, or replaces a file that is
//! not regular.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gru_wgpu::formats::npy;

use crate::common::program::assert_refused;
use crate::common::{assert_close, random3, within};
use crate::scene::Scene;

/// Returns every file of the folder with its contents.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

/// Checks that the command is refused with a message that contains `words`, and changes no file.
fn assert_kept(scene: &Scene, arguments: &[&str], words: &[&str]) {
    let before = snapshot(scene.path());
    assert_refused(scene.path(), arguments, words);
    assert!(snapshot(scene.path()) == before, "{arguments:?} changed a file");
}

/// Returns other paths to `file` that an output of this kind may have. The folder `folder` exists.
fn other_names(scene: &Scene, file: &str, kind: &str) -> Vec<String> {
    let mut names = Vec::new();
    let at = |name: &str| scene.path().join(name);
    #[cfg(unix)]
    {
        let links = ["hard", "soft"].map(|link| format!("{link}.{kind}"));
        links.iter().for_each(|link| drop(std::fs::remove_file(at(link))));
        std::fs::hard_link(at(file), at(&links[0])).unwrap();
        std::os::unix::fs::symlink(file, at(&links[1])).unwrap();
        names.extend(links);
        if !at("here").exists() {
            std::os::unix::fs::symlink(".", at("here")).unwrap();
        }
    }
    if file.ends_with(&format!(".{kind}")) {
        let prefixes: &[&str] =
            if cfg!(unix) { &["", "./", "folder/../", "here/"] } else { &["", "./", "folder/../"] };
        names.extend(prefixes.iter().map(|prefix| format!("{prefix}{file}")));
    }
    names
}

#[test]
fn no_command_overwrites_its_inputs() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path().join("folder")).unwrap();
    let input = ["--input", "x.npy", "--h0", "h0.npy", "--lengths", "n.npy", "--device", "cpu"];
    let run = [&["run", "model.safetensors"], &input[..]].concat();
    let grad = ["grad", "model.onnx", "--dy", "dy.npy", "--dhn", "dhn.npy"];
    let grad = [&grad[..], &input].concat();
    std::fs::copy(scene.path().join("h0.npy"), scene.path().join("dhn.npy")).unwrap();
    let arrays = ["x.npy", "h0.npy", "n.npy"];
    let of_run = [&["model.safetensors"], &arrays[..]].concat();
    let of_grad = [&["model.onnx", "dy.npy", "dhn.npy"], &arrays[..]].concat();
    let (with_y, with_g) = (["--output", "y.npy"], ["--output", "g.safetensors"]);
    for (arguments, option, kind, files) in [
        (run.clone(), &["--output"][..], "npy", &of_run),
        ([&run[..], &with_y].concat(), &["--hn"], "npy", &of_run),
        (grad.clone(), &["--output"], "safetensors", &of_grad),
        ([&grad[..], &with_g].concat(), &["--hn"], "npy", &of_grad),
        (vec!["convert", "model.safetensors"], &[], "safetensors", &vec!["model.safetensors"]),
        (vec!["convert", "model.safetensors"], &[], "onnx", &vec!["model.safetensors"]),
        (vec!["convert", "model.onnx"], &[], "onnx", &vec!["model.onnx"]),
        (vec!["convert", "model.onnx"], &[], "npz", &vec!["model.onnx"]),
    ] {
        for file in files {
            let said = format!("is the same file as the input `{file}`; it would be overwritten");
            for name in other_names(&scene, file, kind) {
                let named = format!("{} `{name}` is the same", option.first().unwrap_or(&"OUTPUT"));
                let arguments = [&arguments[..], option, &[&name]].concat();
                assert_kept(&scene, &arguments, &[&named, &said]);
            }
        }
    }
}

#[test]
fn no_command_writes_two_outputs_to_one_file() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path().join("folder")).unwrap();
    let input = ["--input", "x.npy", "--device", "cpu"];
    let run = [&["run", "model.onnx"], &input[..]].concat();
    // For files that exist and files that do not.
    std::fs::write(scene.path().join("there.npy"), "before").unwrap();
    other_names(&scene, "there.npy", "npy");
    let mut pairs = vec![("y.npy", "./y.npy"), ("y.npy", "folder/../y.npy")];
    if cfg!(unix) {
        pairs.extend([
            ("y.npy", "here/y.npy"),
            ("there.npy", "hard.npy"),
            ("soft.npy", "hard.npy"),
        ]);
    }
    for (output, hn) in pairs {
        let said = format!("--hn `{hn}` is the same file as --output `{output}`; it would be");
        let outputs = ["--output", output, "--hn", hn];
        assert_kept(&scene, &[&run[..], &outputs].concat(), &[&said]);
    }
    #[cfg(unix)]
    {
        std::fs::write(scene.path().join("g.safetensors"), "before").unwrap();
        std::fs::hard_link(scene.path().join("g.safetensors"), scene.path().join("g.npy")).unwrap();
        let grad = ["grad", "model.onnx", "--dy", "dy.npy"];
        let outputs = ["--output", "g.safetensors", "--hn", "g.npy"];
        let arguments = [&grad[..], &input, &outputs].concat();
        assert_kept(
            &scene,
            &arguments,
            &["--hn `g.npy` is the same file as --output `g.safetensors`"],
        );
    }
}

/// The files of a run's folder, existing or not.
#[test]
fn no_command_overwrites_a_file_of_a_run() {
    let scene = Scene::new();
    let run = scene.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("config.toml"), "# A run of `gru train`.\n").unwrap();
    std::fs::write(run.join("model.safetensors"), "a model").unwrap();
    let grad = ["grad", "model.onnx", "--input", "x.npy", "--dy", "dy.npy", "--output"];
    let sweep = ["bench", "--device", "cpu", "--shape", "2,1,1,1", "--sweep", "T=2", "--output"];
    for (arguments, output) in [
        (&["convert", "model.onnx"][..], "run/model.safetensors"),
        (&grad, "run/checkpoint.safetensors"),
        (&sweep, "run/curves.svg"),
    ] {
        let said = format!("`{output}` is a file of the run in `");
        let before = snapshot(&run);
        assert_kept(&scene, &[arguments, &[output]].concat(), &[&said]);
        assert!(snapshot(&run) == before, "{arguments:?}");
    }
    // Other names in its folder are allowed.
    scene.run(&["convert", "model.onnx", "run/other.safetensors"]);
    // So is any name beside another program's config.toml.
    std::fs::write(run.join("config.toml"), "baseURL = \"https://example.org/\"\n").unwrap();
    scene.run(&["convert", "model.onnx", "run/model.safetensors"]);
}

/// Special files are neither read nor replaced; a link is followed.
#[cfg(unix)]
#[test]
fn pipes_devices_and_links_are_not_replaced() {
    let scene = Scene::new();
    let path = scene.path();
    let pipe = |name: &str| {
        let made = std::process::Command::new("mkfifo").arg(path.join(name)).status().unwrap();
        assert!(made.success());
    };
    pipe("pipe.npy");
    pipe("pipe.onnx");
    std::os::unix::fs::symlink("/dev/null", path.join("null.npy")).unwrap();
    std::os::unix::fs::symlink("nowhere.npy", path.join("dangling.npy")).unwrap();
    std::os::unix::fs::symlink("real.npy", path.join("link.npy")).unwrap();
    std::fs::write(path.join("real.npy"), "before").unwrap();
    let run = |model, input, output| {
        ["run", model, "--input", input, "--output", output, "--device", "cpu"]
    };
    for (arguments, words) in [
        (run("model.onnx", "pipe.npy", "y.npy"), "`pipe.npy` is not a regular file"),
        (run("pipe.onnx", "x.npy", "y.npy"), "`pipe.onnx` is not a regular file"),
        (run("model.onnx", "null.npy", "y.npy"), "`null.npy` is not a regular file"),
        (run("model.onnx", "x.npy", "pipe.npy"), "`pipe.npy` is not a regular file"),
        (run("model.onnx", "x.npy", "null.npy"), "`null.npy` is not a regular file"),
        (run("model.onnx", "x.npy", "dangling.npy"), "`dangling.npy` is not a regular file"),
        (run("model.onnx", "x.npy", "/dev/null"), "`/dev/null` must have the extension .npy"),
    ] {
        assert_refused(path, &arguments, &[words]);
    }
    assert!(!path.join("y.npy").exists());
    scene.run(&run("model.onnx", "x.npy", "link.npy"));
    assert!(path.join("link.npy").symlink_metadata().unwrap().is_symlink());
    let expected = scene.gru.forward(&scene.x).unwrap().y;
    assert_close("y", &scene.array("real.npy"), &expected, within(2e-6));
    // The file behind a link counts as the same output.
    let arguments = [&run("model.onnx", "x.npy", "link.npy")[..], &["--hn", "real.npy"]].concat();
    assert_refused(path, &arguments, &["--hn `real.npy` is the same file as --output `link.npy`"]);
    let error = npy::save(path.join("pipe.npy"), scene.x.view()).unwrap_err().to_string();
    assert!(error.ends_with("pipe.npy` cannot be written: it is not a regular file"), "{error}");
}

/// The weights beside their model are protected too.
#[test]
fn external_data_is_not_overwritten() {
    let scene = Scene::new();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    for name in ["torch_new_denoiser.onnx", "torch_new_denoiser.onnx.data"] {
        std::fs::copy(models.join(name), scene.path().join(name)).unwrap();
    }
    // Under a name that an output could have.
    let model = std::fs::read(scene.path().join("torch_new_denoiser.onnx")).unwrap();
    let name = b"torch_new_denoiser.onnx.data";
    let renamed: Vec<u8> = {
        let mut bytes = model.clone();
        let places: Vec<_> =
            (0..bytes.len() - name.len()).filter(|&at| bytes[at..].starts_with(name)).collect();
        for at in places {
            bytes[at..at + name.len()].copy_from_slice(b"torch_new_denoiser_data1.npy");
        }
        bytes
    };
    std::fs::write(scene.path().join("renamed.onnx"), renamed).unwrap();
    let weights = scene.path().join("torch_new_denoiser_data1.npy");
    std::fs::rename(scene.path().join("torch_new_denoiser.onnx.data"), &weights).unwrap();
    let before = std::fs::read(&weights).unwrap();
    npy::save(scene.path().join("x3.npy"), random3([2, 2, 3], 1).view()).unwrap();
    let run = ["run", "renamed.onnx", "--input", "x3.npy", "--device", "cpu", "--output"];
    scene.run(&[&run[..], &["y.npy"]].concat());
    let said = "torch_new_denoiser_data1.npy`; it would be overwritten";
    std::fs::create_dir(scene.path().join("folder")).unwrap();
    for name in other_names(&scene, "torch_new_denoiser_data1.npy", "npy") {
        assert_kept(&scene, &[&run[..], &[&name]].concat(), &[said]);
    }
    for name in other_names(&scene, "torch_new_denoiser_data1.npy", "npz") {
        assert_kept(&scene, &["convert", "renamed.onnx", &name], &[said]);
    }
    assert_eq!(std::fs::read(&weights).unwrap(), before);
}
