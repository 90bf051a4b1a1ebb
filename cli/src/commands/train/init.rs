//! `gru train --init`: starts a run from the network of a model file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gru_wgpu::formats::{StateDictOptions, npz, pytorch, safetensors};
use gru_wgpu::{GruConfig, Head, Init, ParamLayout, Params, Reset};

use crate::data::fingerprint::canonical;
use crate::data::model_format::ModelFormat;
use crate::ui::output::{log, of_file, quote_path};

/// The model file that a run starts from.
#[derive(clap::Args, Debug)]
pub struct InitArgs {
    #[arg(long)]
    init: Option<PathBuf>,
    #[arg(long, requires = "init")]
    init_prefix: Option<String>,
    #[arg(long, requires = "init", default_value = FOUND)]
    init_head: String,
}

/// `--init-head`: the layer of the head's shape.
const FOUND: &str = "found";
/// `--init-head`: a head that is drawn.
const NEW: &str = "new";

impl InitArgs {
    /// Returns the file's path, for config.toml.
    pub fn path(&self) -> Result<Option<PathBuf>> {
        self.init.as_deref().map(canonical).transpose()
    }

    /// Returns the parameters that a run with `layout` starts from, or `None` without `--init`.
    pub fn params(&self, layout: &ParamLayout, seed: u64) -> Result<Option<Params>> {
        let Some(path) = &self.init else { return Ok(None) };
        let head = layout.head().context("a run's network has a head")?;
        let loaded = self.load(path, head)?;
        check_gru(layout.config(), loaded.layout().config())
            .with_context(|| format!("--init {}", quote_path(path)))?;
        let mut params = Params::init_of(layout.clone(), Init::Uniform, seed)?;
        loaded.iter().try_for_each(|(name, array)| params.set(name, array))?;
        let what = match loaded.layout().head() {
            Some(_) => "its GRU and its head",
            None => "its GRU; the head is new",
        };
        log(format_args!("--init {}: training starts from {what}", quote_path(path)));
        Ok(Some(params))
    }
}

impl InitArgs {
    /// Reads the GRU of a file and, unless it is to be new, its head.
    fn load(&self, path: &Path, head: Head) -> Result<Params> {
        let options = StateDictOptions::new().with_prefix(self.init_prefix.as_deref());
        let format = ModelFormat::of(path)?;
        if self.init_head == NEW {
            let load = match format {
                ModelFormat::Safetensors => safetensors::load,
                ModelFormat::Pytorch => pytorch::load,
                ModelFormat::Npz => npz::load,
                ModelFormat::Onnx => {
                    bail!(
                        "--init does not read .onnx files; write a .safetensors file with gru convert"
                    )
                }
            };
            return load(path, &options).map_err(of_file(path));
        }
        let name = Some(&*self.init_head).filter(|&name| name != FOUND);
        let options = options.with_head(head).with_head_name(name);
        let network = match format {
            ModelFormat::Safetensors => safetensors::load_network(path, &options),
            ModelFormat::Pytorch => pytorch::load_network(path, &options),
            ModelFormat::Npz | ModelFormat::Onnx => bail!(
                "{} has no head that this program reads; --init-head new draws one",
                quote_path(path)
            ),
        };
        network.map_err(of_file(path)).context(
            "--init needs a GRU and a linear head; --init-head NAME names the head, and --init-head new draws one",
        )
    }
}

/// Checks that a file's GRU is the one that the run trains, except for dropout.
fn check_gru(run: &GruConfig, file: &GruConfig) -> Result<()> {
    if file.input_size != run.input_size {
        bail!(
            "its GRU has {} inputs, but the columns give {}; choose the columns with --features",
            file.input_size,
            run.input_size
        );
    }
    let same = file.clone().with_dropout(run.dropout).with_zoneout(run.zoneout);
    if same == *run {
        return Ok(());
    }
    let reset = if file.reset == Reset::Before { "before" } else { "after" };
    let direction = match file.direction.count() {
        2 => "both",
        _ if file.direction.is_reverse(0) => "reverse",
        _ => "forward",
    };
    bail!(
        "it holds a {file}, but the run trains a {run}; these options give the run as many layers, units and \
         directions: --hidden {} --layers {} --direction {direction} --reset {reset}",
        file.hidden_size,
        file.layers,
    );
}
