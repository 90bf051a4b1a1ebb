//! Times this library. Reads lines `forward|train|step T,B,I,H REPEATS` on stdin and writes a line
//! of milliseconds for each on stdout. `step` is one step of a stream. `against_peers.py` calls it
//! in turn with other programs. GRU_DEVICE names the device; the default is the CPU.
#![allow(clippy::print_stdout, reason = "a program")]

use std::io::BufRead;
use std::time::Instant;

use gru_wgpu::{DeviceKind, Gru, GruConfig, Init, Result};
use ndarray::{Array3, s};

fn main() -> Result<()> {
    let word = std::env::var("GRU_DEVICE").unwrap_or_default();
    let kind = if word.is_empty() { DeviceKind::Cpu } else { word.parse()? };
    let device = kind.open()?;
    for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        let mut words = line.split_whitespace();
        let (Some(mode), Some(shape), Some(repeats)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let sizes: Vec<usize> = shape.split(',').filter_map(|size| size.parse().ok()).collect();
        let [steps, batch, input, hidden] = sizes[..] else { continue };
        let config = GruConfig::pytorch(input, hidden);
        let mut gru = Gru::new(config, Init::Uniform, 1, &device)?;
        let x = Array3::from_shape_fn((steps, batch, input), |(t, b, i)| {
            ((7 * t + 5 * b + 3 * i) % 19) as f32 * 0.1 - 0.9
        });
        let dy = Array3::ones((steps, batch, hidden));
        let now = x.slice(s![..1, .., ..]);
        let mut stream = gru.stream(batch, &[1])?;
        let mut y = Array3::zeros((1, batch, hidden));
        let repeats: usize = repeats.parse().unwrap_or(5);
        let mut times = Vec::new();
        for repeat in 0..repeats + 2 {
            let start = Instant::now();
            match mode {
                "train" => {
                    // Marks the parameters as changed, as an update does. The weights are then
                    // packed again.
                    gru.params_mut();
                    let (_, tape) = gru.forward_train(&x)?;
                    gru.backward(tape, Some(dy.view()), None)?;
                }
                "step" => gru.step(&mut stream, now, y.view_mut())?,
                _ => {
                    gru.forward(&x)?;
                }
            }
            if repeat >= 2 {
                times.push(format!("{:.4}", start.elapsed().as_secs_f64() * 1e3));
            }
        }
        println!("{}", times.join(" "));
    }
    Ok(())
}
