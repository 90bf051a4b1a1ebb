//! Models called from inside the caller's own parallel loops, on the CPU: the library's work and
//! the caller's share rayon's threads, and a thread that waits takes whatever work there is, so no
//! lock may be held meanwhile.
//!
//! Each case runs in a process of its own, which is killed when it hangs.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gru_wgpu::{Batch, Device, Gru, GruConfig, Head, Network, ParamLayout, Params};
use ndarray::{Array3, ArrayView3};
use rayon::prelude::*;

/// Says in the environment which case a process runs.
const CASE: &str = "GRU_RAYON_CASE";

/// Far longer than a case takes, on a busy machine too.
const HANGS_AFTER: Duration = Duration::from_secs(180);

/// Callers at a time, and models one after the other: each fresh, so that its weights are not
/// packed yet.
const CALLERS: usize = 16;
const MODELS: usize = 8;

fn config() -> GruConfig {
    GruConfig::pytorch(256, 512)
}

fn x() -> Array3<f32> {
    Array3::from_elem((1, 1, 256), 0.5)
}

/// Runs this test again in a process with eight threads; there it does `work`.
fn in_a_process(case: &str, work: impl Fn()) {
    if std::env::var(CASE).is_ok_and(|running| running == case) {
        return work();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([case, "--exact", "--nocapture"])
        .env(CASE, case)
        .env("RAYON_NUM_THREADS", "8")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while start.elapsed() < HANGS_AFTER {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{case}: {status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("{case} hangs");
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
