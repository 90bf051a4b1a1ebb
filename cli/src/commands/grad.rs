//! `gru grad`: computes the gradients of a model over a file of sequences.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{DeviceKind, Error};

use crate::data::model_file::{InputArgs, ModelArgs, load_array, on_device, save_array};
use crate::ui::output::{log, quote_path};
use crate::ui::outputs::OutputFiles;

/// Compute every gradient of a model over a file of sequences.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, after_long_help = DETAILS)]
pub struct GradArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    input: InputArgs,

    #[arg(long)]
    dy: PathBuf,

    #[arg(long)]
    dhn: Option<PathBuf>,

    #[arg(long)]
    seed: Option<u64>,

    #[arg(long)]
    output: PathBuf,

    #[arg(long)]
    hn: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  gru grad gru.safetensors --input x.npy --dy dy.npy --output grads.safetensors";

const DETAILS: &str = "\
grads.safetensors holds the gradient of every parameter under PyTorch's name, of x as `input`, and
of h0 as `h0`. dy is [T, B, D·H], like y. --dhn adds a gradient of the last states, [L·D, B, H].";

/// Runs the command.
pub fn run(arguments: &GradArgs, kind: DeviceKind) -> Result<()> {
    let GradArgs { model, input, dy, dhn, seed, output, hn } = arguments;
    let inputs = [Some(&model.path), Some(dy), dhn.as_ref()].into_iter().flatten();
    let hn_output = hn.as_deref().map(|hn| ("--hn", hn, "npy"));
    let outputs = [("--output", &**output, "safetensors")].into_iter().chain(hn_output);
    let outputs = OutputFiles::check(outputs, input.paths().chain(inputs.map(|path| &**path)))?;
    let more: Vec<_> = [Some(dy), dhn.as_ref()].into_iter().flatten().map(|path| &**path).collect();
    let shown = || input.describe(&model.path, &more);
    let loaded = model.load(&outputs)?;
    let arrays = input.load(&loaded)?;
    let dy = load_array(dy)?;
    let dhn = dhn.as_deref().map(load_array).transpose()?;
    let gru = on_device(kind, loaded.params, &model.path)?;
    let mut batch = arrays.batch();
    batch.seed = *seed;
    let run = gru.forward_train(batch);
    let (out, tape) = run.map_err(|error| match error {
        Error::NoSeed => {
            anyhow!("this model has dropout or zoneout, which draw random numbers; give --seed")
        }
        other => anyhow::Error::new(other).context(shown()),
    })?;
    let gradients = gru.backward(tape, Some(dy.view()), dhn.as_ref().map(|dhn| dhn.view()));
    let gradients = gradients.with_context(shown)?;
    safetensors::save_gradients(output, &gradients)?;
    log(format_args!("wrote {}", quote_path(output)));
    if let Some(hn) = hn {
        save_array(hn, &out.h_n)?;
    }
    Ok(())
}
