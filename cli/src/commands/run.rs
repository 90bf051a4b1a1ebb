//! `gru run`: a model over a file of sequences.

use std::path::PathBuf;

use anyhow::Result;
use gru_wgpu::DeviceKind;

use crate::data::model_file::{InputArgs, ModelArgs, on_device, save_array};
use crate::ui::outputs::OutputFiles;

/// Run a model over sequences: PyTorch's, ONNX's or one of this program's own, to the same numbers.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  gru run gru.safetensors --input x.npy --output y.npy
  gru run speech.safetensors --prefix encoder.gru --input x.npy --lengths n.npy --output y.npy
  gru run denoiser.onnx --node gru_1 --input x.npy --h0 h.npy --output y.npy --hn hn.npy

A model of several GRUs lists them when none is chosen. x is [T, B, I], y [T, B, D·H] (with
--batch-first [B, T, ·]), h0 and hn [L·D, B, H], layer-major, forward before reverse, whatever the
model's format.")]
pub struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    input: InputArgs,

    /// Where y goes: all states of the last layer, [T, B, D·H].
    #[arg(long, value_name = "y.npy")]
    output: PathBuf,

    /// Where the last states go, [L·D, B, H].
    #[arg(long, value_name = "f.npy")]
    hn: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &RunArgs, kind: DeviceKind) -> Result<()> {
    let RunArgs { model, input, output, hn } = arguments;
    let hn_output = hn.as_deref().map(|hn| ("--hn", hn, "npy"));
    let outputs = [("--output", &**output, "npy")].into_iter().chain(hn_output);
    let outputs = OutputFiles::check(outputs, input.paths().chain([&*model.path]))?;
    let model = model.load(&outputs)?;
    let input = input.load(&model)?;
    let gru = on_device(kind, model.params)?;
    let out = gru.forward(input.batch())?;
    save_array(output, &out.y)?;
    if let Some(hn) = hn {
        save_array(hn, &out.h_n)?;
    }
    Ok(())
}
