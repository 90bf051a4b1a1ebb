//! `gru convert`: a model in another format.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use gru_wgpu::formats::{npz, onnx, safetensors};

use crate::data::model_file::{ModelArgs, extension};
use crate::ui::output::{log, quote_path};
use crate::ui::outputs::OutputFiles;

/// Write a model in another format: .safetensors, .onnx or .npz, by the output's name.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  gru convert denoiser.onnx --node gru_1 gru.safetensors
  gru convert gru.safetensors gru.onnx --with-h0

Only the GRU is written, not what stands around it. A .safetensors file holds PyTorch's tensors and, in
its metadata, which definition they belong to; an .npz file the tensors alone; an .onnx file is a whole
model from x [T, B, I] to y [T, B, D·H] and h_n [L·D, B, H].")]
pub struct ConvertArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Where the model goes.
    #[arg(value_name = "OUTPUT")]
    output: PathBuf,

    /// Of an .onnx file: let the states to start from be an input, h0.
    #[arg(long)]
    with_h0: bool,

    /// Of an .onnx file: let the length of each row be an input, lengths.
    #[arg(long)]
    with_lengths: bool,
}

/// Runs the command.
pub fn run(arguments: &ConvertArgs) -> Result<()> {
    let ConvertArgs { model, output, with_h0, with_lengths } = arguments;
    let format = extension(output);
    ensure!(
        format == "onnx" || !(*with_h0 || *with_lengths),
        "--with-h0 and --with-lengths are for .onnx files"
    );
    if !["safetensors", "onnx", "npz"].contains(&format.as_str()) {
        bail!("{} is no .safetensors, .onnx or .npz file by its name", quote_path(output));
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
