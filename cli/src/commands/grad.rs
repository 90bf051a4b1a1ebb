//! `gru grad`: the gradients of a model over a file of sequences.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{DeviceKind, Error};

use crate::data::model_file::{InputArgs, ModelArgs, load_array, on_device, save_array};
use crate::ui::output::{log, quote_path};
use crate::ui::outputs::OutputFiles;

/// Run a model forward and backward over sequences and write every gradient.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  gru grad gru.safetensors --input x.npy --dy dy.npy --output grads.safetensors

grads.safetensors holds the gradient of every parameter under PyTorch's name for it, of x as `input`
and of h0 as `h0`. dy is [T, B, D·H], as y, and --dhn [L·D, B, H], as h_n; without --dhn the last states
count as part of y alone.")]
pub struct GradArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    input: InputArgs,

    /// The gradient of y, an .npy file of [T, B, D·H].
    #[arg(long, value_name = "dy.npy")]
    dy: PathBuf,

    /// The gradient of the last states besides, [L·D, B, H].
    #[arg(long, value_name = "f.npy")]
    dhn: Option<PathBuf>,

    /// The seed of dropout and zoneout, for a model that has them.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Where the gradients go.
    #[arg(long, value_name = "grads.safetensors")]
    output: PathBuf,

    /// Where the last states go, [L·D, B, H].
    #[arg(long, value_name = "f.npy")]
    hn: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &GradArgs, kind: DeviceKind) -> Result<()> {
    let GradArgs { model, input, dy, dhn, seed, output, hn } = arguments;
    let inputs = [Some(&model.path), Some(dy), dhn.as_ref()].into_iter().flatten();
    let hn_output = hn.as_deref().map(|hn| ("--hn", hn, "npy"));
    let outputs = [("--output", &**output, "safetensors")].into_iter().chain(hn_output);
    let outputs = OutputFiles::check(outputs, input.paths().chain(inputs.map(|path| &**path)))?;
    let model = model.load(&outputs)?;
    let input = input.load(&model)?;
    let dy = load_array(dy)?;
    let dhn = dhn.as_deref().map(load_array).transpose()?;
    let gru = on_device(kind, model.params)?;
    let mut batch = input.batch();
    batch.seed = *seed;
    let run = gru.forward_train(batch);
    let (out, tape) = run.map_err(|error| match error {
        Error::NoSeed => {
            anyhow!("this model draws random numbers while training; --seed gives it a seed")
        }
        other => other.into(),
    })?;
    let gradients = gru.backward(tape, Some(dy.view()), dhn.as_ref().map(|dhn| dhn.view()))?;
    safetensors::save_gradients(output, &gradients)?;
    log(format_args!("wrote {}", quote_path(output)));
    if let Some(hn) = hn {
        save_array(hn, &out.h_n)?;
    }
    Ok(())
}
