//! The arguments for model files and input arrays that several commands share.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use gru_wgpu::formats::onnx::OptionalInput;
use gru_wgpu::formats::{StateDictOptions, WeightLayout, npy, npz, onnx, pytorch, safetensors};
use gru_wgpu::{Activation, Activations, Batch, DeviceKind, Gru, Layout, Params, Reset};
use ndarray::{Array3, Ix3};

use crate::data::model_format::ModelFormat;
use crate::ui::arguments::{LayoutArg, ResetArg};
use crate::ui::device::open;
use crate::ui::output::{log, of_file, quote, quote_path};
use crate::ui::outputs::OutputFiles;

/// A model file and the choice of one of its GRUs.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// A .safetensors, .pt, .pth, .bin, .ckpt, .npz or .onnx file.
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,

    #[command(flatten)]
    selection: ModelSelection,
}

/// The choice of a GRU in a model file, and whether its weights must be finite.
#[derive(clap::Args, Debug)]
pub struct ModelSelection {
    /// For a file with several GRUs: the prefix of the GRU's names, in front of `weight_ih_l0` or
    /// `kernel`. Commas join cells to layers, a plus joins two directions.
    #[arg(long)]
    prefix: Option<String>,

    /// The framework whose names and axes the arrays have, if the names do not tell.
    #[arg(long)]
    layout: Option<LayoutArg>,

    /// Where the reset gate acts, if the arrays do not tell.
    #[arg(long)]
    reset: Option<ResetArg>,

    /// The activation of r and z, which arrays do not tell.
    #[arg(long, value_name = "FUNCTION")]
    gate: Option<Activation>,

    /// The activation of n, which arrays do not tell.
    #[arg(long, value_name = "FUNCTION")]
    candidate: Option<Activation>,

    /// For an .onnx file with several GRUs: the name of the GRU node, or `first..last` for the
    /// layers of a stack.
    #[arg(long)]
    node: Option<String>,

    /// Accept weights that are infinite or NaN.
    #[arg(long)]
    allow_non_finite: bool,
}

/// A GRU from a file, with the initial states and lengths that the file stores.
pub struct LoadedModel {
    pub params: Params,
    pub h0: OptionalInput<Array3<f32>>,
    pub lengths: OptionalInput<Vec<usize>>,
    /// Other files that hold its weights.
    external_data: Vec<PathBuf>,
}

impl ModelArgs {
    /// Reads the model and logs its configuration.
    ///
    /// # Errors
    /// Also if one of its files is one of `outputs`.
    pub fn load(&self, outputs: &OutputFiles) -> Result<LoadedModel> {
        let model = self.selection.load(&self.path)?;
        model.external_data.iter().try_for_each(|file| outputs.check_input(file))?;
        Ok(model)
    }
}

impl ModelSelection {
    /// Reads a model and logs its configuration.
    pub fn load(&self, path: &Path) -> Result<LoadedModel> {
        let model = match ModelFormat::of(path)? {
            ModelFormat::Safetensors => {
                self.load_state_dict(path, safetensors::load, safetensors::layout)?
            }
            ModelFormat::Pytorch => self.load_state_dict(path, pytorch::load, pytorch::layout)?,
            ModelFormat::Npz => self.load_state_dict(path, npz::load, npz::layout)?,
            ModelFormat::Onnx => self.load_onnx(path)?,
        };
        log(format_args!("model: {}", model.params.layout().config()));
        Ok(model)
    }

    /// Returns true if no option was given.
    pub fn is_empty(&self) -> bool {
        let Self { prefix, node, allow_non_finite, .. } = self;
        let is_named = prefix.is_some() || node.is_some();
        !is_named && !self.is_described() && !allow_non_finite
    }

    /// Returns true if an option says what arrays may not tell.
    fn is_described(&self) -> bool {
        let Self { layout, reset, gate, candidate, .. } = self;
        layout.is_some() || reset.is_some() || gate.is_some() || candidate.is_some()
    }

    fn activations(&self) -> Option<Activations> {
        let Activations { gate, candidate } = Activations::default();
        (self.gate.is_some() || self.candidate.is_some()).then(|| Activations {
            gate: self.gate.unwrap_or(gate),
            candidate: self.candidate.unwrap_or(candidate),
        })
    }

    fn load_state_dict<'a>(
        &self,
        path: &'a Path,
        load: impl FnOnce(&'a Path, &StateDictOptions) -> gru_wgpu::Result<Params>,
        layout: impl FnOnce(&'a Path, &StateDictOptions) -> gru_wgpu::Result<WeightLayout>,
    ) -> Result<LoadedModel> {
        ensure!(
            self.node.is_none(),
            "--node is for ONNX models; choose a GRU of another file with --prefix"
        );
        let options = StateDictOptions::new()
            .with_prefix(self.prefix.as_deref())
            .with_layout(self.layout.map(WeightLayout::from))
            .with_reset(self.reset.map(Reset::from))
            .with_activations(self.activations())
            .with_non_finite(self.allow_non_finite);
        let params = load(path, &options).map_err(of_file(path))?;
        let layout = layout(path, &options).map_err(of_file(path))?;
        if layout != WeightLayout::Pytorch {
            let config = params.layout().config();
            let is_plain = config.activations == Activations::default();
            let untold = match is_plain && self.activations().is_none() {
                true => {
                    "; the activations (--gate, --candidate), go_backwards and merge_mode are not in the arrays"
                }
                false => "",
            };
            log(format_args!("layout: {layout}{untold}"));
        }
        let (h0, lengths) = (OptionalInput::Nothing, OptionalInput::Nothing);
        Ok(LoadedModel { params, h0, lengths, external_data: Vec::new() })
    }

    fn load_onnx(&self, path: &Path) -> Result<LoadedModel> {
        ensure!(
            self.prefix.is_none(),
            "--prefix is for PyTorch, safetensors and .npz files; choose a GRU of an ONNX model with --node"
        );
        ensure!(
            !self.is_described(),
            "--layout, --reset, --gate and --candidate are for PyTorch, safetensors and .npz files; an ONNX model says \
             all of it"
        );
        let options = onnx::OnnxOptions::new()
            .with_node(self.node.as_deref())
            .with_non_finite(self.allow_non_finite);
        let onnx::OnnxModel { params, nodes, h0, lengths, external_data, notes, .. } =
            onnx::load(path, &options).map_err(of_file(path))?;
        let nodes: Vec<_> = nodes.iter().map(|name| quote(name)).collect();
        log(format_args!("nodes: {}", nodes.join(", ")));
        notes.iter().for_each(|note| log(format_args!("{}: {note}", quote_path(path))));
        Ok(LoadedModel { params, h0, lengths, external_data })
    }
}

/// The arguments for the input arrays of a run.
#[derive(clap::Args, Debug)]
pub struct InputArgs {
    /// The input x: an .npy file of float32 [T, B, I]; float64 and float16 are converted.
    #[arg(long)]
    input: PathBuf,

    /// The first states, [L·D, B, H] [default: those stored in the model, or zeros].
    #[arg(long)]
    h0: Option<PathBuf>,

    /// The length of each row, int32 or int64 `[B]` [default: those stored in the model, or T].
    #[arg(long)]
    lengths: Option<PathBuf>,

    /// Use the layout [B, T, ·] for x, y and their gradients.
    #[arg(long)]
    batch_first: bool,
}

/// The input arrays of a run, in memory.
pub struct InputArrays {
    x: Array3<f32>,
    layout: Layout,
    h0: Option<Array3<f32>>,
    lengths: Option<Vec<usize>>,
}

impl InputArgs {
    /// Reads the arrays. Without `--h0` and `--lengths`, uses those stored in the model.
    pub fn load(&self, model: &LoadedModel) -> Result<InputArrays> {
        let x = load_array(&self.input)?;
        let (layout, rows) = match self.batch_first {
            true => (Layout::BatchFirst, x.dim().0),
            false => (Layout::TimeMajor, x.dim().1),
        };
        let h0 = match &self.h0 {
            Some(path) => Some(load_array(path)?),
            None => {
                let stored = stored_input("h0", "using zeros", &model.h0);
                self.check_rows("h0", stored.as_ref().map(|h0| h0.dim().1), rows)?;
                stored
            }
        };
        let lengths = match &self.lengths {
            Some(path) => Some(npy::load_lengths(path).map_err(of_file(path))?),
            None => {
                let default = "using length T for every row";
                let stored = stored_input("lengths", default, &model.lengths);
                self.check_rows("lengths", stored.as_ref().map(Vec::len), rows)?;
                stored
            }
        };
        Ok(InputArrays { x, layout, h0, lengths })
    }

    /// Checks that the stored value has as many rows as x.
    fn check_rows(&self, option: &str, stored: Option<usize>, rows: usize) -> Result<()> {
        let other = stored.filter(|&stored| stored != rows);
        other.map_or(Ok(()), |other| {
            bail!(
                "the model stores {option} for {other} rows, but {} has {rows}; give others with --{option}",
                quote_path(&self.input)
            )
        })
    }

    /// Names the files of a run: the model's, then the arrays'. An array's error says which one.
    pub fn describe<'a>(&'a self, model: &'a Path, more: &[&'a Path]) -> String {
        let paths = [model].into_iter().chain(self.paths()).chain(more.iter().copied());
        paths.map(quote_path).collect::<Vec<_>>().join(", ")
    }

    /// Returns the paths of the files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.input), self.h0.as_ref(), self.lengths.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

impl InputArrays {
    /// Borrows the arrays as a batch.
    pub fn batch(&self) -> Batch<'_> {
        let batch = Batch::new(self.x.view()).with_layout(self.layout);
        let batch = batch.with_h0(self.h0.as_ref().map(|h0| h0.view()));
        match &self.lengths {
            Some(lengths) => batch.with_lengths(lengths),
            None => batch,
        }
    }
}

/// Returns the value that the model stores for an optional input, if any, and logs it. If the model
/// computes the input at run time, its value is unknown here; logs `default` instead.
fn stored_input<T: Clone>(option: &str, default: &str, given: &OptionalInput<T>) -> Option<T> {
    match given {
        OptionalInput::Constant(stored) => {
            log(format_args!("{option}: using the value stored in the model"));
            Some(stored.clone())
        }
        OptionalInput::AtRun(words) => {
            log(format_args!(
                "{option}: the model takes it from {words}; {default} (set it with --{option})"
            ));
            None
        }
        _ => None,
    }
}

/// Reads an array of three axes. Logs a note if its numbers were converted.
pub fn load_array(path: &Path) -> Result<Array3<f32>> {
    let (array, numbers) = npy::load_as::<Ix3>(path).map_err(of_file(path))?;
    if numbers != npy::NpyElement::F32 {
        log(format_args!("{}: {numbers}, converted to float32", quote_path(path)));
    }
    Ok(array)
}

/// Writes an array and logs its path and shape.
pub fn save_array(path: &Path, array: &Array3<f32>) -> Result<()> {
    npy::save(path, array.view())?;
    log(format_args!("wrote {} {:?}", quote_path(path), array.shape()));
    Ok(())
}

/// Opens the device and creates the model of the file `path` on it.
pub fn on_device(kind: DeviceKind, params: Params, path: &Path) -> Result<Gru> {
    let device = open(kind)?;
    let gru = Gru::with_params(params, &device);
    gru.with_context(|| format!("the model in {} does not fit the device", quote_path(path)))
}
