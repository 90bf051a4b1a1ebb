//! The arguments for model files and input arrays that several commands share.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use gru_wgpu::formats::onnx::OptionalInput;
use gru_wgpu::formats::{StateDictOptions, WeightLayout, npy, npz, onnx, pytorch, safetensors};
use gru_wgpu::{Batch, DeviceKind, Gru, Layout, Params, Reset};
use ndarray::{Array3, Ix3};

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
        let Self { prefix, layout, reset, node, allow_non_finite } = self;
        let is_named = prefix.is_some() || node.is_some();
        !is_named && layout.is_none() && reset.is_none() && !allow_non_finite
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
            .with_non_finite(self.allow_non_finite);
        let params = load(path, &options).map_err(of_file(path))?;
        let layout = layout(path, &options).map_err(of_file(path))?;
        if layout != WeightLayout::Pytorch {
            log(format_args!("layout: {layout}"));
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
            self.layout.is_none() && self.reset.is_none(),
            "--layout and --reset are for PyTorch, safetensors and .npz files; an ONNX model says both"
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

/// The format of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelFormat {
    Safetensors,
    Pytorch,
    Npz,
    Onnx,
}

impl ModelFormat {
    /// Recognises a file's format by its content, and by its name if the content tells nothing.
    /// Logs the format if the name is that of another one.
    fn of(path: &Path) -> Result<Self> {
        let end = extension(path);
        let named = match end.as_str() {
            "safetensors" => Some(Self::Safetensors),
            "pt" | "pth" | "bin" | "ckpt" => Some(Self::Pytorch),
            "npz" => Some(Self::Npz),
            "onnx" => Some(Self::Onnx),
            _ => None,
        };
        let found = match (Content::of(path), named) {
            (Content::Model(found), _) => found,
            (Content::Array, _) => bail!(
                "{} is an array of NumPy; give the model first and the array with --input",
                quote_path(path)
            ),
            (Content::Keras, _) => bail!(keras_advice(path)),
            (Content::Zip, Some(Self::Npz)) => Self::Npz,
            // The reader says what the archive holds.
            (Content::Zip, _) => Self::Pytorch,
            // The reader says what is wrong with the file, or why it cannot be opened.
            (Content::Unknown, Some(named)) => return Ok(named),
            (Content::Unknown, None) => bail!(
                "{} is not recognised as a model file by its content or its name; expected a file \
                 of torch.save (.pt, .pth, .bin, .ckpt), a .safetensors, .npz or .onnx file",
                quote_path(path)
            ),
        };
        if named.is_some_and(|named| named != found) {
            log(format_args!(
                "{}: the content is {}, although the name ends in .{end}",
                quote_path(path),
                found.name()
            ));
        }
        Ok(found)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "a safetensors file",
            Self::Pytorch => "a file of torch.save",
            Self::Npz => "an .npz archive",
            Self::Onnx => "an ONNX model",
        }
    }
}

/// What the first bytes of a file tell.
enum Content {
    Model(ModelFormat),
    /// An array of NumPy.
    Array,
    /// A model or weights of Keras.
    Keras,
    /// A zip archive whose first entry tells nothing.
    Zip,
    Unknown,
}

impl Content {
    fn of(path: &Path) -> Self {
        // A pipe would wait for its writer.
        let is_file = path.is_file();
        let mut start = Vec::new();
        let read = is_file.then(|| File::open(path)?.take(4096).read_to_end(&mut start));
        match read {
            Some(Ok(_)) => Self::of_start(&start),
            _ => Self::Unknown,
        }
    }

    fn of_start(start: &[u8]) -> Self {
        // The length of a safetensors header is below 100 MB, and the header is a JSON object.
        let has_json = start.get(8) == Some(&b'{') && start[4..8] == [0; 4];
        match start {
            // First: the length may look like the start of the others.
            _ if has_json => Self::Model(ModelFormat::Safetensors),
            [b'P', b'K', 3, 4, ..] => Self::of_zip(start),
            [0x80, 0..=5, ..] => Self::Model(ModelFormat::Pytorch),
            // The digits of torch.save's magic number.
            _ if start.starts_with(b"L1195470371460388") => Self::Model(ModelFormat::Pytorch),
            // The field ir_version, which is below 128 and which every exporter writes first.
            [8, 1..=127, ..] => Self::Model(ModelFormat::Onnx),
            _ if start.starts_with(b"\x93NUMPY") => Self::Array,
            _ if start.starts_with(b"\x89HDF\r\n") => Self::Keras,
            _ => Self::Unknown,
        }
    }

    /// Tells archives apart by the name of their first entry that is no folder.
    fn of_zip(mut start: &[u8]) -> Self {
        loop {
            let (Some(header), true) = (start.get(..30), start.starts_with(b"PK\x03\x04")) else {
                return Self::Zip;
            };
            // The lengths of the name and of the extra field after it.
            let len = |at| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
            let Some(name) = start.get(30..30 + len(26)) else { return Self::Zip };
            let is = |end: &str| name.ends_with(end.as_bytes());
            if is("/") {
                start = start.get(30 + len(26) + len(28)..).unwrap_or_default();
            } else if is(".npy") {
                return Self::Model(ModelFormat::Npz);
            } else if is("metadata.json") || is("config.json") || is("model.weights.h5") {
                return Self::Keras;
            } else {
                return Self::Zip;
            }
        }
    }
}

/// Says how to write the arrays of a file of Keras to an .npz file.
fn keras_advice(path: &Path) -> String {
    let name = path.to_string_lossy();
    let stem = ["keras", "weights.h5", "h5", "hdf5"].into_iter().find_map(|end| {
        let stem = name.strip_suffix(end)?.strip_suffix('.')?;
        Some(stem.to_owned())
    });
    let npz = format!("{}.npz", stem.unwrap_or_else(|| name.clone().into_owned()));
    let load = match name.ends_with(".weights.h5") {
        true => format!("model.load_weights({name:?})"),
        false => {
            format!("import keras, numpy; model = keras.saving.load_model({name:?}, compile=False)")
        }
    };
    let save = format!("numpy.savez({npz:?}, **{{w.path: w.numpy() for w in model.weights}})");
    format!(
        "{} is a file of Keras; write its arrays as an .npz file, in Python: `{load}`, then `{save}`",
        quote_path(path)
    )
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

/// Returns a file name's extension in lower case.
pub fn extension(path: &Path) -> String {
    path.extension().map_or(String::new(), |end| end.to_string_lossy().to_ascii_lowercase())
}

/// Opens the device and creates the model of the file `path` on it.
pub fn on_device(kind: DeviceKind, params: Params, path: &Path) -> Result<Gru> {
    let device = open(kind)?;
    let gru = Gru::with_params(params, &device);
    gru.with_context(|| format!("the model in {} does not fit the device", quote_path(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of a safetensors header may look like the start of a pickle or of a model.
    #[test]
    fn formats_are_told_apart_by_the_first_bytes() {
        for length in [0x0208_u64, 0x0280, 0x0580, 0x4b50, 24] {
            let start = [&length.to_le_bytes()[..], b"{\"a\""].concat();
            let found = Content::of_start(&start);
            assert!(matches!(found, Content::Model(ModelFormat::Safetensors)), "{length:#x}");
        }
        for (start, expected) in [
            (&b"\x80\x02\x8a\x0al\xfc\x9cF"[..], ModelFormat::Pytorch),
            (b"\x80\x02}q\x00", ModelFormat::Pytorch),
            (b"\x08\x08\x12\x07pytorch", ModelFormat::Onnx),
        ] {
            let found = Content::of_start(start);
            assert!(matches!(found, Content::Model(found) if found == expected), "{start:?}");
        }
        let entry = |name: &str| {
            let len = name.len() as u8;
            [&b"PK\x03\x04"[..], &[0; 22], &[len, 0, 0, 0], name.as_bytes()].concat()
        };
        let found = Content::of_start(&[entry("sequential/"), entry("sequential/W.npy")].concat());
        assert!(matches!(found, Content::Model(ModelFormat::Npz)));
        for name in ["metadata.json", "config.json", "model.weights.h5"] {
            assert!(matches!(Content::of_start(&entry(name)), Content::Keras), "{name}");
        }
        let torch = entry("archive/data.pkl");
        for start in [&torch, &entry("a/"), &torch[..40], &torch[..29]] {
            assert!(matches!(Content::of_start(start), Content::Zip), "{start:?}");
        }
        for start in [&b""[..], b"\x80", b"{}", b"id,x\n"] {
            assert!(matches!(Content::of_start(start), Content::Unknown), "{start:?}");
        }
    }
}
