//! `gru convert`: writes a model in another format.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use gru_wgpu::formats::{npz, onnx, safetensors};

use crate::data::model_file::{ModelArgs, extension};
use crate::ui::output::{log, quote_path};
use crate::ui::outputs::OutputFiles;

/// Convert a model to .safetensors, .onnx or .npz.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct ConvertArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The file to write.
    #[arg(value_name = "OUTPUT")]
    output: PathBuf,

    #[arg(long)]
    with_h0: bool,

    #[arg(long)]
    with_lengths: bool,
}

const EXAMPLES: &str = "\
Examples:
  gru convert denoiser.onnx --node gru_1 gru.safetensors
  gru convert last.ckpt --prefix state_dict.model.gru gru.safetensors
  gru convert gru.safetensors gru.onnx --with-h0";

const DETAILS: &str = "\
Only the GRU is written. A .safetensors file holds PyTorch's tensors, and the definition in its
metadata. An .npz file holds only the tensors. An .onnx file is a model from x [T, B, I] to y [T,
B, D·H] and h_n [L·D, B, H].";

/// Runs the command.
pub fn run(arguments: &ConvertArgs) -> Result<()> {
    let ConvertArgs { model, output, with_h0, with_lengths } = arguments;
    let format = extension(output);
    ensure!(
        format == "onnx" || !(*with_h0 || *with_lengths),
        "--with-h0 and --with-lengths are for .onnx files"
    );
    if !["safetensors", "onnx", "npz"].contains(&format.as_str()) {
        bail!("{} must have the extension .safetensors, .onnx or .npz", quote_path(output));
    }
    let outputs = OutputFiles::check([("OUTPUT", &**output, &*format)], [&*model.path])?;
    let params = model.load(&outputs)?.params;
    match format.as_str() {
        "safetensors" => safetensors::save(output, &params)?,
        "onnx" => {
            let inputs = onnx::Inputs::new().with_h0(*with_h0).with_lengths(*with_lengths);
            onnx::save(output, &params, &inputs)?;
        }
        _ => npz::save(output, &params, str::to_owned)?,
    }
    log(format_args!("wrote {}", quote_path(output)));
    Ok(())
}
