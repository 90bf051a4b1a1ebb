//! Times the GRUs of Burn and Candle. `peers burn-wgpu|burn-flex|candle` reads lines `forward|train
//! T,B,I,H REPEATS` on stdin and writes a line of milliseconds for each on stdout, like
//! `peer_times` of gru-wgpu. `benches/against_peers.py` calls both in turn.
//!
//! A call ends with its results in host memory: y, or the gradient of a recurrent weight, which is
//! computed last. Training is a forward pass and the backward pass of the sum of y.

use std::io::BufRead;
use std::time::Instant;

use burn::nn::gru::GruConfig;
use burn::tensor::{Device, Distribution, Tensor};
use candle_core::{DType, Tensor as CandleTensor};
use candle_nn::{RNN, VarBuilder, VarMap, rnn};

/// T, B, I, H.
type Sizes = [usize; 4];

/// Returns the function to time for a line.
fn prepare(peer: &str, is_training: bool, sizes: Sizes) -> Box<dyn FnMut()> {
    match peer {
        "burn-wgpu" => burn(Device::wgpu(Default::default()), is_training, sizes),
        "burn-flex" => burn(Device::flex(), is_training, sizes),
        "candle" => candle(is_training, sizes),
        other => panic!("unknown peer {other}: expected burn-wgpu, burn-flex or candle"),
    }
}

fn burn(device: Device, is_training: bool, [steps, batch, input, hidden]: Sizes) -> Box<dyn FnMut()> {
    let device = if is_training { device.autodiff() } else { device };
    let gru = GruConfig::new(input, hidden, true).init(&device);
    let normal = Distribution::Normal(0.0, 1.0);
    let x = Tensor::<3>::random([batch, steps, input], normal, &device);
    Box::new(move || {
        let y = gru.forward(x.clone(), None);
        if is_training {
            let gradients = y.sum().backward();
            let weight = gru.update_gate.hidden_transform.weight.val();
            weight.grad(&gradients).expect("it is trained").into_data();
        } else {
            y.into_data();
        }
    })
}

fn candle(is_training: bool, [steps, batch, input, hidden]: Sizes) -> Box<dyn FnMut()> {
    let device = candle_core::Device::Cpu;
    let variables = VarMap::new();
    let builder = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let gru = rnn::gru(input, hidden, Default::default(), builder).expect("sizes are positive");
    let x = CandleTensor::randn(0f32, 1f32, (batch, steps, input), &device).expect("fits memory");
    Box::new(move || {
        let states = gru.seq(&x).expect("the sizes fit");
        let y = gru.states_to_tensor(&states).expect("the sizes fit");
        if is_training {
            y.sum_all().and_then(|sum| sum.backward()).expect("it is trained");
        }
    })
}

fn main() {
    let peer = std::env::args().nth(1).expect("usage: peers burn-wgpu|burn-flex|candle");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [mode, shape, repeats] = words[..] else { continue };
        let sizes: Vec<usize> = shape.split(',').filter_map(|size| size.parse().ok()).collect();
        let (Ok(sizes), Ok(repeats)) = (Sizes::try_from(sizes), repeats.parse::<usize>()) else {
            continue;
        };
        let mut call = prepare(&peer, mode == "train", sizes);
        let mut times = Vec::new();
        for repeat in 0..repeats + 2 {
            let start = Instant::now();
            call();
            if repeat >= 2 {
                times.push(format!("{:.4}", start.elapsed().as_secs_f64() * 1e3));
            }
        }
        println!("{}", times.join(" "));
    }
}
