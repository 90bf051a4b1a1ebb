//! `gru run`: runs a model over a file of sequences.

use std::path::PathBuf;

use anyhow::{Context, Result};
use gru_wgpu::DeviceKind;

use crate::data::model_file::{InputArgs, ModelArgs, on_device, save_array};
use crate::ui::outputs::OutputFiles;

/// Run a PyTorch, ONNX or gru-wgpu model over a file of sequences.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    input: InputArgs,

    #[arg(long)]
    output: PathBuf,

    #[arg(long)]
    hn: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  gru run model.pt --input x.npy --output y.npy
  gru run speech.safetensors --prefix encoder.gru --input x.npy --lengths n.npy --output y.npy
  gru run denoiser.onnx --node gru_1 --input x.npy --h0 h.npy --output y.npy --hn hn.npy";

const DETAILS: &str = "\
If a file has several GRUs and none is chosen, the error lists them. Shapes are the same for every
format: x [T, B, I], y [T, B, D·H] (with --batch-first [B, T, ·]), h0 and hn [L·D, B, H],
layer-major, forward before reverse. T steps, B rows, I inputs, H hidden units, L layers, D
directions.";

/// Runs the command.
pub fn run(arguments: &RunArgs, kind: DeviceKind) -> Result<()> {
    let RunArgs { model, input, output, hn } = arguments;
    let hn_output = hn.as_deref().map(|hn| ("--hn", hn, "npy"));
    let outputs = [("--output", &**output, "npy")].into_iter().chain(hn_output);
    let outputs = OutputFiles::check(outputs, input.paths().chain([&*model.path]))?;
    let shown = || input.describe(&model.path, &[]);
    let loaded = model.load(&outputs)?;
    let arrays = input.load(&loaded)?;
    let gru = on_device(kind, loaded.params, &model.path)?;
    let out = gru.forward(arrays.batch()).with_context(shown)?;
    save_array(output, &out.y)?;
    if let Some(hn) = hn {
        save_array(hn, &out.h_n)?;
    }
    Ok(())
}
