//! `gru train --init`: starts a run from the network of a model file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use gru_wgpu::formats::{StateDictOptions, pytorch, safetensors};
use gru_wgpu::{Bias, GruConfig, Head, Init, ParamLayout, Params};
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::data::fingerprint::canonical;
use crate::data::model_format::ModelFormat;
use crate::ui::output::{log, of_file, quote, quote_path};

/// The model that a run starts from.
#[derive(clap::Args, Debug)]
pub struct InitArgs {
    #[arg(long)]
    init: Option<PathBuf>,
    #[arg(long, requires = "init")]
    init_prefix: Option<String>,
    #[arg(long, requires = "init", default_value = FOUND)]
    init_head: String,
}

/// The model that a run started from, in config.toml.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitSettings {
    pub file: PathBuf,
    /// The prefix of the GRU, if it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The name of the head; `None` if it was drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

/// `--init-head`: the layer of the head's shape.
const FOUND: &str = "found";
/// `--init-head`: a head that is drawn.
const NEW: &str = "new";

impl InitArgs {
    /// Reads the parameters that a run with `layout` starts from. Returns them with the settings
    /// for config.toml, or `None` without `--init`.
    pub fn read(&self, layout: &ParamLayout, seed: u64) -> Result<Option<(InitSettings, Params)>> {
        let Some(path) = &self.init else { return Ok(None) };
        // The folder of a run.
        let path = if path.is_dir() { &path.join("model.safetensors") } else { path };
        let file = canonical(path)?;
        let head = layout.head().context("a run's network has a head")?;
        let (loaded, head) = self.load(path, head)?;
        let shown = || format!("--init {}", quote_path(path));
        let params = started(&loaded, layout, seed).with_context(shown)?;
        let what = match &head {
            Some(name) => format!("its GRU and its head, {}", quote(name)),
            None => "its GRU; the head is new".to_owned(),
        };
        log(format_args!("--init {}: training starts from {what}", quote_path(path)));
        let settings = InitSettings { file, prefix: self.init_prefix.clone(), head };
        Ok(Some((settings, params)))
    }

    /// Reads the GRU of a file and, unless it is to be new, its head with its name.
    fn load(&self, path: &Path, head: Head) -> Result<(Params, Option<String>)> {
        type Load = fn(&Path, &StateDictOptions) -> gru_wgpu::Result<Params>;
        type Name = fn(&Path, &StateDictOptions) -> gru_wgpu::Result<String>;
        let (gru, network, name): (Load, Load, Name) = match ModelFormat::of(path)? {
            ModelFormat::Safetensors => (
                |path, options| safetensors::load(path, options),
                |path, options| safetensors::load_network(path, options),
                |path, options| safetensors::head_name(path, options),
            ),
            ModelFormat::Pytorch => (
                |path, options| pytorch::load(path, options),
                |path, options| pytorch::load_network(path, options),
                |path, options| pytorch::head_name(path, options),
            ),
            ModelFormat::Npz | ModelFormat::Onnx => bail!(
                "--init reads safetensors and PyTorch files; gru convert {} gru.safetensors writes the GRU, for \
                 --init-head new",
                quote_path(path)
            ),
        };
        let options = StateDictOptions::new().with_prefix(self.init_prefix.as_deref());
        let alone = gru(path, &options).map_err(of_file(path))?;
        if self.init_head == NEW {
            return Ok((alone, None));
        }
        let asked = Some(&*self.init_head).filter(|&name| name != FOUND);
        let options = options.with_head(head).with_head_name(asked);
        let read = || Ok((network(path, &options)?, Some(name(path, &options)?)));
        read().map_err(of_file(path)).context(
            "--init found no head for this run; --init-head NAME names it, and --init-head new draws one",
        )
    }
}

/// Returns the parameters of a run: those of the file, zeros for biases that the file's GRU lacks,
/// and a drawn head if the file gave none.
fn started(loaded: &Params, layout: &ParamLayout, seed: u64) -> Result<Params> {
    let (run, file) = (layout.config(), loaded.layout().config());
    check_gru(run, file)?;
    let mut params = Params::init_of(layout.clone(), Init::Uniform, seed)?;
    for entry in layout.entries() {
        match loaded.get(&entry.name) {
            Ok(array) => params.set(&entry.name, array)?,
            Err(_) if entry.name.starts_with("bias") => {
                params.set(&entry.name, ArrayD::zeros(&entry.shape[..]).view())?;
            }
            Err(_) => {}
        }
    }
    Ok(params)
}

/// Checks that a file's GRU is the one that the run trains, except for biases that it lacks and for
/// dropout.
fn check_gru(run: &GruConfig, file: &GruConfig) -> Result<()> {
    ensure!(
        file.input_size == run.input_size,
        "its GRU has {} inputs, but the columns give {}; choose the columns with --features",
        file.input_size,
        run.input_size
    );
    let bias = match (file.bias, run.bias) {
        (Bias::Two, Bias::One) => Bias::Two,
        _ => run.bias,
    };
    let same = file.clone().with_bias(bias).with_dropout(run.dropout).with_zoneout(run.zoneout);
    if same == *run {
        return Ok(());
    }
    let size =
        |name: &str, file: usize, run: usize| (file != run).then(|| format!("--{name} {file}"));
    let word = |name: &str, file: String, run: String| {
        (file != run).then(|| format!("--{name} {}", file.to_lowercase()))
    };
    let options = [
        size("hidden", file.hidden_size, run.hidden_size),
        size("layers", file.layers, run.layers),
        word("direction", format!("{:?}", file.direction), format!("{:?}", run.direction)),
        word("reset", format!("{:?}", file.reset), format!("{:?}", run.reset)),
    ];
    let options: Vec<_> = options.into_iter().flatten().collect();
    if options.is_empty() {
        bail!("it holds a {file}, which this command cannot train; a run trains a {run}");
    }
    bail!("it holds a {file}, but the run trains a {run}; pass {}", options.join(" "))
}
