//! A folder with a model and arrays for it.

use std::path::{Path, PathBuf};

use gru_wgpu::formats::{npy, onnx, safetensors};
use gru_wgpu::{Batch, Device, Direction, Gru, GruConfig, Init};
use ndarray::{Array1, Array3, Ix3};
use tempfile::TempDir;

use crate::common::program::{gru, text};
use crate::common::random3;

/// A model, arrays for it, and the library's results.
pub struct Scene {
    directory: TempDir,
    pub gru: Gru,
    pub x: Array3<f32>,
    pub h0: Array3<f32>,
    pub dy: Array3<f32>,
    pub lengths: [usize; 3],
}

impl Scene {
    /// Writes model.safetensors, model.onnx, x.npy, h0.npy, dy.npy, n.npy, and batch-first `xb.npy`
    /// and `dyb.npy`.
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let config = GruConfig::pytorch(4, 5).with_layers(2).with_direction(Direction::Both);
        let gru = Gru::new(config, Init::Uniform, 1, &Device::cpu()).unwrap();
        let (x, h0, dy) = (random3([6, 3, 4], 1), random3([4, 3, 5], 2), random3([6, 3, 10], 3));
        let at = |name: &str| directory.path().join(name);
        safetensors::save(at("model.safetensors"), gru.params()).unwrap();
        onnx::save(at("model.onnx"), gru.params(), &onnx::Inputs::new()).unwrap();
        for (name, array) in [("x.npy", &x), ("h0.npy", &h0), ("dy.npy", &dy)] {
            npy::save(at(name), array.view()).unwrap();
        }
        for (name, array) in [("xb.npy", &x), ("dyb.npy", &dy)] {
            npy::save(at(name), array.view().permuted_axes([1, 0, 2])).unwrap();
        }
        let lengths = [4, 0, 6];
        ndarray_npy::write_npy(at("n.npy"), &Array1::from(lengths.map(|n| n as i64).to_vec()))
            .unwrap();
        Self { directory, gru, x, h0, dy, lengths }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self.x.view()).with_h0(self.h0.view()).with_lengths(&self.lengths)
    }

    /// Runs the program, which must succeed and print nothing on stdout. Returns its stderr.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = gru(self.path(), arguments);
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        stderr
    }

    pub fn array(&self, name: &str) -> Array3<f32> {
        npy::load_as::<Ix3>(self.path().join(name)).unwrap().0
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}
