//! Files that the fuzzers kept because they reach new code or found a bug. Each is read or refused.
//! `tests/fuzz/README.md` says how they were made.

use std::io::Cursor;
use std::path::Path;

use gru_wgpu::formats::{StateDictOptions, npy, npz, onnx, pytorch, safetensors};
use gru_wgpu::{Error, Params, Reset};

/// Reads every file of a target. Returns the number of files and of successful reads.
fn read_all(target: &str, read: impl Fn(&Path) -> Result<(), Error>) -> (usize, usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzzed").join(target);
    let (mut files, mut good) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        files += 1;
        match read(&path) {
            Ok(()) => good += 1,
            Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{}", path.display()),
        }
    }
    (files, good)
}

fn check_finite(params: &Params) {
    assert!(params.as_slice().iter().all(|number| number.is_finite()));
}

#[test]
fn safetensors_files() {
    let read = |path: &Path, prefix| {
        let options = safetensors::SafetensorsOptions::new().with_prefix(prefix);
        safetensors::load(path, &options).map(|params| check_finite(&params))
    };
    let (files, good) = read_all("safetensors", |path| read(path, None).or(read(path, Some("a"))));
    assert!(files > good && good > 0, "{good} of {files}");
}

#[test]
fn pytorch_files() {
    let (files, good) = read_all("pytorch", |path| {
        let prefixes = pytorch::prefixes(path)?;
        let options = StateDictOptions::new().with_prefix(prefixes.first().map(String::as_str));
        pytorch::load(path, &options).map(|params| check_finite(&params))
    });
    assert!(files > good && good > 0, "{good} of {files}");
}

#[test]
fn onnx_files() {
    let read = |path: &Path, node| {
        let model = onnx::load(path, &onnx::OnnxOptions::new().with_node(node))?;
        check_finite(&model.params);
        let mut written = Vec::new();
        onnx::write(&mut written, &model.params, &onnx::Inputs::new())?;
        assert_eq!(
            onnx::read(Cursor::new(&written), &onnx::OnnxOptions::new())?.params,
            model.params
        );
        Ok(())
    };
    let (files, good) = read_all("onnx", |path| read(path, None).or(read(path, Some("Y0"))));
    assert!(files > good && good > 0, "{good} of {files}");
}

#[test]
fn npz_files() {
    let (files, good) = read_all("npz", |path| {
        let prefixes = npz::prefixes(path)?;
        let read = |prefix, reset| {
            let options = StateDictOptions::new().with_prefix(prefix).with_reset(reset);
            npz::load(path, &options).map(|params| check_finite(&params))
        };
        let first = prefixes.first().map(String::as_str);
        read(None, None).or(read(first, None)).or(read(first, Some(Reset::Before)))
    });
    assert!(files > good && good > 0, "{good} of {files}");
}

#[test]
fn npy_files() {
    let (files, good) = read_all("npy", |path| {
        let (array, _) = npy::load(path)?;
        assert!(array.is_standard_layout());
        Ok(())
    });
    assert!(files > good && good > 0, "{good} of {files}");
}
