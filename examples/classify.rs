//! Trains a classifier for sequences of unequal lengths from a CSV file (one row per time step),
//! with validation, early stopping and a checkpoint, then tests it.
//!
//! ```sh
//! cargo run --release --example classify
//! ```
//!
//! The classes are nine speakers who say the vowels /ae/ (source: `data/README.md`). If you
//! interrupt the program and start it again, it resumes from `vowels.run.safetensors` and gives the
//! same bits.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{
    Checkpoint, Device, Direction, Evaluation, Event, Example, GruConfig, Head, Init, Learner,
    LearnerConfig, Loss, Optimizer, ParamLayout, Params, Schedule, Target, Trainer, TrainerConfig,
};
use ndarray::{Array2, Axis};

const FEATURES: usize = 12;
const SPEAKERS: usize = 9;
const CHECKPOINT: &str = "vowels.run.safetensors";

/// Reads rows `sequence, f1, …, f12, label`, in which the rows of a sequence are consecutive.
fn read(path: &str) -> Result<Vec<Example>> {
    let mut file = csv::Reader::from_path(path).with_context(|| format!("opening {path}"))?;
    let mut sequences: Vec<(u32, Vec<f32>, i32)> = Vec::new();
    for row in file.deserialize() {
        let (sequence, features, label): (u32, [f32; FEATURES], i32) = row?;
        match sequences.last_mut() {
            Some((last, x, _)) if *last == sequence => x.extend(features),
            _ => sequences.push((sequence, features.to_vec(), label)),
        }
    }
    let example = |(_, x, label): (u32, Vec<f32>, i32)| {
        let x = Array2::from_shape_vec((x.len() / FEATURES, FEATURES), x)?;
        Ok(Example::new(x, Target::Class(label - 1)))
    };
    sequences.into_iter().map(example).collect()
}

fn fresh(updates: u64, trainer_config: TrainerConfig, device: &Device) -> Result<Trainer> {
    let config = GruConfig::pytorch(FEATURES, 32).with_direction(Direction::Both);
    let layout = ParamLayout::with_head(&config, Head::last(SPEAKERS))?;
    let params = Params::init_of(layout, Init::Orthogonal, 1)?;
    let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adamw(0.01), 5e-3)
        .with_schedule(Schedule::cosine(updates));
    Ok(Trainer::new(Learner::new(params, training, device)?, trainer_config)?)
}

fn main() -> Result<()> {
    let device = Device::cpu(); // or Device::auto()
    let all = read("data/japanese_vowels_train.csv")?;
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for (at, example) in all.into_iter().enumerate() {
        if at % 5 == 0 { &mut valid } else { &mut train }.push(example);
    }
    let trainer_config = TrainerConfig::new(60, 16).with_patience(15);
    let mut trainer = if Path::new(CHECKPOINT).exists() {
        let (last, refused) = Checkpoint::load_last(CHECKPOINT)?;
        if let Some(why) = refused {
            eprintln!("cannot read the newest checkpoint, resuming from the one before: {why}");
        }
        Trainer::from_checkpoint(last, &device)?
    } else {
        fresh(
            60 * trainer_config.updates(&train, &Loss::cross_entropy(), 1),
            trainer_config,
            &device,
        )?
    };
    trainer.run(&train, &valid, |trainer, event| {
        if let Event::Epoch { epoch, loss, validation: Some(now), is_best } = event {
            let accuracy = 100.0 * now.accuracy().unwrap_or(0.0);
            let best = if *is_best { ", the best so far" } else { "" };
            println!("epoch {epoch}: loss {loss:.4}, validation accuracy {accuracy:.1} %{best}");
            trainer.checkpoint()?.save(CHECKPOINT)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    // The best epoch on the validation set.
    let network = trainer.into_network(&device)?;
    safetensors::save_network("vowels.safetensors", network.params())?;
    let mut tested = Evaluation::default();
    for Example { x, target, .. } in read("data/japanese_vowels_test.csv")? {
        let Target::Class(class) = target else { continue };
        let x = x.view().insert_axis(Axis(1)); // [T, 1, 12]
        tested += network.evaluate(&Loss::cross_entropy(), x, &[class][..])?;
    }
    let accuracy = 100.0 * tested.accuracy().unwrap_or(0.0);
    println!("test accuracy {accuracy:.1} % on {} sequences", tested.counted);
    Ok(())
}
