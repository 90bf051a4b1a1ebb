//! Models called from the caller's own parallel loops, on the CPU. The library and the caller share
//! rayon's threads, and a waiting thread may start any other work, so the library must hold no lock
//! while it waits.
//!
//! Each case runs in a process of its own, which is killed if it hangs.

use crate::common::in_own_process;
use gru_wgpu::{Batch, Device, Gru, GruConfig, Head, Network, ParamLayout, Params};
use ndarray::{Array3, ArrayView3};
use rayon::prelude::*;

/// The number of simultaneous callers, and of models one after another. Each model is new, so that
/// its weights are not packed yet.
const CALLERS: usize = 16;
const MODELS: usize = 8;

fn config() -> GruConfig {
    GruConfig::pytorch(256, 512)
}

fn x() -> Array3<f32> {
    Array3::from_elem((1, 1, 256), 0.5)
}

/// Runs `work` in its own process with eight threads.
fn in_a_process(case: &str, work: impl Fn()) {
    if in_own_process(module_path!(), case, &[("RAYON_NUM_THREADS", "8")]) {
        work();
    }
}

fn for_fresh_models(call: impl Fn(&Gru, ArrayView3<'_, f32>) + Sync) {
    let x = x();
    for _ in 0..MODELS {
        let params = Params::zeros(&config()).unwrap();
        let gru = Gru::with_params(params, &Device::cpu()).unwrap();
        (0..CALLERS).into_par_iter().for_each(|_| call(&gru, x.view()));
    }
}

#[test]
fn forward() {
    in_a_process("forward", || {
        for_fresh_models(|gru, x| drop(gru.forward(Batch::new(x)).unwrap()));
    });
}

#[test]
fn forward_train() {
    in_a_process("forward_train", || {
        for_fresh_models(|gru, x| {
            let (out, tape) = gru.forward_train(Batch::new(x)).unwrap();
            gru.backward(tape, Some(out.y.view()), None).unwrap();
        });
    });
}

#[test]
fn network() {
    in_a_process("network", || {
        let x = x();
        let layout = ParamLayout::with_head(&config(), Head::last(2)).unwrap();
        for _ in 0..MODELS {
            let params = Params::zeros_of(layout.clone()).unwrap();
            let network = Network::new(params, &Device::cpu()).unwrap();
            (0..CALLERS).into_par_iter().for_each(|_| drop(network.forward(&x).unwrap()));
        }
    });
}

#[test]
fn stream() {
    in_a_process("stream", || {
        for_fresh_models(|gru, x| {
            let mut stream = gru.stream(1, &[1]).unwrap();
            let mut y = Array3::zeros((1, 1, 512));
            gru.step(&mut stream, x, y.view_mut()).unwrap();
        });
    });
}
