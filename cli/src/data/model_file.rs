//! Model files, and the arrays that go with them, as several commands take them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use gru_wgpu::formats::onnx::Given;
use gru_wgpu::formats::{npy, onnx, quote, safetensors};
use gru_wgpu::{Batch, Layout, Params};
use ndarray::{Array3, Ix3};

use crate::ui::output::{check_output, log, quote_path};

/// Which GRU of which file.
#[derive(clap::Args, Debug)]
pub struct ModelArguments {
    /// The model: a .safetensors file (a state dict of PyTorch's, or one of this program's own) or an
    /// .onnx file.
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,

    #[command(flatten)]
    choice: Choice,
}

/// Which GRU of a file, and how strictly.
#[derive(clap::Args, Debug)]
pub struct Choice {
    /// What stands in front of `weight_ih_l0` in the names of a .safetensors file with several GRUs.
    #[arg(long, value_name = "P")]
    prefix: Option<String>,

    /// The GRU node of an .onnx file with several; `first..last` for layers of a stack.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// Take weights that are infinite or NaN.
    #[arg(long)]
    allow_non_finite: bool,
}

/// A GRU out of a file, and what the file says of its runs.
pub struct Model {
    pub params: Params,
    pub h0: Given<Array3<f32>>,
    pub lengths: Given<Vec<usize>>,
    /// The files besides MODEL that its weights lie in.
    files: Vec<PathBuf>,
}

impl ModelArguments {
    /// Reads the model, whose files none of the outputs may be; says on stderr what it is.
    pub fn load(&self, outputs: &Outputs<'_>) -> Result<Model> {
        let model = self.choice.load(&self.path)?;
        model.files.iter().try_for_each(|file| outputs.spare(file))?;
        Ok(model)
    }
}

impl Choice {
    /// Reads a model; says on stderr what it is.
    pub fn load(&self, path: &Path) -> Result<Model> {
        let model = match extension(path).as_str() {
            "safetensors" => self.load_safetensors(path)?,
            "onnx" => self.load_onnx(path)?,
            _ => bail!("{} is no .safetensors or .onnx file by its name", quote_path(path)),
        };
        log(format_args!("model: {}", model.params.layout().config()));
        Ok(model)
    }

    /// Whether there is nothing to choose.
    pub fn is_empty(&self) -> bool {
        self.prefix.is_none() && self.node.is_none() && !self.allow_non_finite
    }

    fn load_safetensors(&self, path: &Path) -> Result<Model> {
        ensure!(
            self.node.is_none(),
            "--node is for .onnx files; a GRU of a .safetensors file goes by --prefix"
        );
        let options = safetensors::SafetensorsOptions::new()
            .with_prefix(self.prefix.as_deref())
            .with_non_finite(self.allow_non_finite);
        let params = safetensors::load(path, &options)?;
        let (h0, lengths) = (Given::Nothing, Given::Nothing);
        Ok(Model { params, h0, lengths, files: Vec::new() })
    }

    fn load_onnx(&self, path: &Path) -> Result<Model> {
        ensure!(
            self.prefix.is_none(),
            "--prefix is for .safetensors files; a GRU of an .onnx file goes by --node"
        );
        let options = onnx::OnnxOptions::new()
            .with_node(self.node.as_deref())
            .with_non_finite(self.allow_non_finite);
        let onnx::OnnxModel { params, nodes, h0, lengths, external_data, .. } =
            onnx::load(path, &options)?;
        let nodes: Vec<_> = nodes.iter().map(|name| quote(name)).collect();
        log(format_args!("nodes: {}", nodes.join(", ")));
        Ok(Model { params, h0, lengths, files: external_data })
    }
}

/// What a model runs over.
#[derive(clap::Args, Debug)]
pub struct InputArguments {
    /// x: an .npy file of float32 [T, B, I]; float64 and float16 are converted.
    #[arg(long, value_name = "x.npy")]
    input: PathBuf,

    /// The states to start from, [L·D, B, H] [default: those that the model holds, or zeros].
    #[arg(long, value_name = "f.npy")]
    h0: Option<PathBuf>,

    /// The length of each row, int32 or int64 `[B]` [default: those that the model holds, or T].
    #[arg(long, value_name = "n.npy")]
    lengths: Option<PathBuf>,

    /// x and y, and their gradients, are [B, T, ·].
    #[arg(long)]
    batch_first: bool,
}

/// The arrays of a run.
pub struct Input {
    x: Array3<f32>,
    layout: Layout,
    h0: Option<Array3<f32>>,
    lengths: Option<Vec<usize>>,
}

impl InputArguments {
    /// Reads the arrays. What the model itself says of h0 and lengths stands where nothing was given.
    pub fn load(&self, model: &Model) -> Result<Input> {
        let x = load_array(&self.input)?;
        let (layout, rows) = match self.batch_first {
            true => (Layout::BatchFirst, x.dim().0),
            false => (Layout::TimeMajor, x.dim().1),
        };
        let h0 = match &self.h0 {
            Some(path) => Some(load_array(path)?),
            None => {
                let held = or_held("h0", "zeros are taken", &model.h0);
                check_rows("h0", held.as_ref().map(|h0| h0.dim().1), rows)?;
                held
            }
        };
        let lengths = match &self.lengths {
            Some(path) => Some(npy::load_lengths(path)?),
            None => {
                let otherwise = "every row is taken to be of length T";
                let held = or_held("lengths", otherwise, &model.lengths);
                check_rows("lengths", held.as_ref().map(Vec::len), rows)?;
                held
            }
        };
        Ok(Input { x, layout, h0, lengths })
    }

    /// The files that are read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.input), self.h0.as_ref(), self.lengths.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

impl Input {
    /// As a run takes it.
    pub fn batch(&self) -> Batch<'_> {
        let batch = Batch::new(self.x.view()).with_layout(self.layout);
        let batch = batch.with_h0(self.h0.as_ref().map(|h0| h0.view()));
        match &self.lengths {
            Some(lengths) => batch.with_lengths(lengths),
            None => batch,
        }
    }
}

/// What the model holds of an input that was not given. What it gets from elsewhere is not known here,
/// which is said.
fn or_held<T: Clone>(option: &str, otherwise: &str, given: &Given<T>) -> Option<T> {
    match given {
        Given::Constant(held) => {
            log(format_args!("{option}: what the model holds"));
            Some(held.clone())
        }
        Given::AtRun(words) => {
            log(format_args!(
                "{option}: the model takes it from {words}; {otherwise} (--{option} gives it)"
            ));
            None
        }
        _ => None,
    }
}

/// `Ok` when what the model holds is for as many rows as there are.
fn check_rows(option: &str, held: Option<usize>, rows: usize) -> Result<()> {
    let other = held.filter(|&held| held != rows);
    other.map_or(Ok(()), |other| {
        bail!("the model holds {option} of {other} rows, x has {rows} (--{option} gives others)")
    })
}

/// An array of three axes; says where its numbers were converted.
pub fn load_array(path: &Path) -> Result<Array3<f32>> {
    let (array, numbers) = npy::load_as::<Ix3>(path)?;
    if numbers != npy::Numbers::F32 {
        log(format_args!("{}: {numbers}, converted to float32", quote_path(path)));
    }
    Ok(array)
}

/// Writes an array and says so.
pub fn save_array(path: &Path, array: &Array3<f32>) -> Result<()> {
    npy::save(path, array.view())?;
    log(format_args!("wrote {} {:?}", quote_path(path), array.shape()));
    Ok(())
}

/// The files that a command is to write.
pub struct Outputs<'a>(Vec<&'a Path>);

impl<'a> Outputs<'a> {
    /// `Ok` when each can be written, as a file of its kind, and takes no other file's place: before work
    /// is done for it.
    pub fn check(
        outputs: impl IntoIterator<Item = (&'a Path, &'a str)>,
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let mut checked = Self(Vec::new());
        for (output, kind) in outputs {
            check_output(output, kind)?;
            checked.spare(output)?;
            checked.0.push(output);
        }
        inputs.into_iter().try_for_each(|input| checked.spare(input))?;
        Ok(checked)
    }

    /// `Ok` when `file` is none of them.
    pub fn spare(&self, file: &Path) -> Result<()> {
        let is_taken = self.0.iter().any(|output| place(output) == place(file));
        ensure!(!is_taken, "{} is named twice; it would be overwritten", quote_path(file));
        Ok(())
    }
}

/// Where a file lies, whatever the ways to it, and whether or not it is there yet.
fn place(path: &Path) -> PathBuf {
    let whole = path.canonicalize();
    whole.unwrap_or_else(|_| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).canonicalize().unwrap_or_default();
        parent.join(path.file_name().unwrap_or_default())
    })
}

/// A file name's end, in small letters.
pub fn extension(path: &Path) -> String {
    path.extension().map_or(String::new(), |end| end.to_string_lossy().to_ascii_lowercase())
}

/// Opens the device and makes the model on it.
pub fn on_device(kind: gru_wgpu::DeviceKind, params: Params) -> Result<gru_wgpu::Gru> {
    let device = crate::ui::output::open(kind)?;
    gru_wgpu::Gru::with_params(params, &device).context("the model does not fit the device")
}
