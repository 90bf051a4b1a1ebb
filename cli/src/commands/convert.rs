//! `gru convert`: writes a model in another format.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use gru_wgpu::formats::{npz, onnx, safetensors};

use crate::data::model_file::ModelArgs;
use crate::data::model_format::extension;
use crate::ui::arguments::LayoutArg;
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
    output_layout: Option<LayoutArg>,

    #[arg(long)]
    with_h0: bool,

    #[arg(long)]
    with_lengths: bool,
}

const EXAMPLES: &str = "\
Examples:
  gru convert denoiser.onnx --node gru_1 gru.safetensors
  gru convert last.ckpt --prefix state_dict.model.gru gru.safetensors
  gru convert keras.npz --prefix sequential/gru gru.safetensors
  gru convert gru.safetensors flax.npz --output-layout flax
  gru convert gru.safetensors gru.onnx --with-h0";

const DETAILS: &str = "\
Only the GRU is written. A .safetensors or .npz file holds its arrays, with the names and axes of
PyTorch or of --output-layout, and the definition: in the metadata, or as the archive's comment. An
.onnx file is a model from x [T, B, I] to y [T, B, D·H] and h_n [L·D, B, H].";

/// Runs the command.
pub fn run(arguments: &ConvertArgs) -> Result<()> {
    let ConvertArgs { model, output, output_layout, with_h0, with_lengths } = arguments;
    let format = extension(output);
    ensure!(
        format == "onnx" || !(*with_h0 || *with_lengths),
        "--with-h0 and --with-lengths are for .onnx files"
    );
    ensure!(
        format != "onnx" || output_layout.is_none(),
        "--output-layout is for .npz and .safetensors files"
    );
    if !["safetensors", "onnx", "npz"].contains(&format.as_str()) {
        bail!("{} must have the extension .safetensors, .onnx or .npz", quote_path(output));
    }
    let outputs = OutputFiles::check([("OUTPUT", &**output, &*format)], [&*model.path])?;
    let params = model.load(&outputs)?.params;
    let layout = output_layout.unwrap_or(LayoutArg::Pytorch).into();
    match format.as_str() {
        "safetensors" => safetensors::save_as(output, &params, layout)?,
        "onnx" => {
            let inputs = onnx::Inputs::new().with_h0(*with_h0).with_lengths(*with_lengths);
            onnx::save(output, &params, &inputs)?;
        }
        _ => npz::save(output, &params, layout)?,
    }
    log(format_args!("wrote {}", quote_path(output)));
    Ok(())
}
