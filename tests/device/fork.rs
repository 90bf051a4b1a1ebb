//! A process that forks. In the child, objects of the parent give [`Error::Forked`], and the child
//! ends without waiting for the parent's threads.

#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{adapter, random3};
use gru_wgpu::{
    Batch, Device, Error, Gru, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Network,
    Optimizer, ParamLayout, Params,
};
use ndarray::Array3;

/// Runs `work` in a forked child. Returns its result, 99 after a panic, or `None` if it hangs.
#[allow(unsafe_code, reason = "fork has no safe form")]
fn in_child(work: impl FnOnce() -> i32) -> Option<i32> {
    const TIME_LIMIT: Duration = Duration::from_secs(60);
    // SAFETY: the child runs `work` on the one thread it has, which takes no lock that a thread of
    // the parent may have held: the test's other threads sleep in the harness, the library's and
    // the driver's have nothing to do, and glibc and macOS make their allocators ready for a fork.
    // It leaves by _exit, so it never returns into the harness.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends this process, and no destructor runs.
        unsafe { libc::_exit(ran.unwrap_or(99)) };
    }
    assert!(child > 0, "the process would not fork");
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call, and `child` is this process' own.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if ended == child {
            return Some(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 98 });
        }
        if start.elapsed() > TIME_LIMIT {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns 0 if all calls were refused because of the fork, or else the number of the first that
/// was not, from 1.
fn first_not_refused(outcomes: Vec<Result<(), Error>>) -> i32 {
    let refused = |outcome: &Result<(), Error>| matches!(outcome, Err(Error::Forked { .. }));
    outcomes.iter().position(|outcome| !refused(outcome)).map_or(0, |at| at as i32 + 1)
}

fn config() -> GruConfig {
    GruConfig::pytorch(3, 5)
}

fn forward(device: &Device) -> Result<Array3<f32>, Error> {
    let gru = Gru::new(config(), Init::Uniform, 1, device)?;
    Ok(gru.forward(&random3([4, 2, 3], 1))?.y)
}

/// Checks that the child gets an error for every kind of object of the parent, and that the parent
/// can still use them.
fn refuses(device: &Device) {
    let layout = ParamLayout::with_head(&config(), Head::last(2)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    let gru = Gru::new(config(), Init::Uniform, 1, device).unwrap();
    let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
    let mut learner = Learner::new(params.clone(), training, device).unwrap();
    let network = Network::new(params, device).unwrap();
    let x = random3([4, 2, 3], 1);
    let classes = [0, 1];
    let mut stream = gru.stream(2, &[1]).unwrap();
    let mut y = Array3::zeros((1, 2, 5));
    let one = random3([1, 2, 3], 2);
    let (output, tape) = gru.forward_train(&x).unwrap();
    let state = tape.state().unwrap();
    gru.step(&mut stream, one.view(), y.view_mut()).unwrap();
    learner.step(&x, &classes[..]).unwrap();
    // From here on a thread of the parent polls the adapter for waiting futures.
    pollster::block_on(gru.forward_async(&x)).unwrap();
    let in_the_child = in_child(|| {
        let (_, other) = match gru.forward_train(&x) {
            Err(error) => (Err::<(), _>(error), tape),
            Ok(_) => return 97,
        };
        let outcomes = vec![
            gru.forward(&x).map(drop),
            pollster::block_on(gru.forward_async(&x)).map(drop),
            gru.forward_from(&state, &x).map(drop),
            gru.forward_train(Batch::batch_first(x.view())).map(drop),
            gru.backward(other, Some(output.y.view()), None).map(drop),
            gru.step(&mut stream, one.view(), y.view_mut()),
            gru.time(&x, None).map(drop),
            network.forward(&x).map(drop),
            learner.step(&x, &classes[..]),
            // Calls that need only the host's memory may succeed on the CPU.
            if device.is_adapter() { stream.state().map(drop) } else { gru.forward(&x).map(drop) },
            if device.is_adapter() {
                state.to_array().map(drop)
            } else {
                gru.forward(&x).map(drop)
            },
            if device.is_adapter() { learner.state().map(drop) } else { gru.forward(&x).map(drop) },
            forward(device).map(drop),
        ];
        let first = first_not_refused(outcomes);
        // The child can drop all of them.
        drop((stream, learner, network, state, gru));
        first
    });
    assert_eq!(
        in_the_child,
        Some(0),
        "{device}: the call that was not refused, or None for a hang"
    );
}

/// One test, because the state at a fork belongs to the whole process.
#[test]
fn a_forked_child_gets_an_error_for_its_parents_objects() {
    let on = |device: &Device| match forward(device) {
        Ok(y) if y.iter().all(|y| y.is_finite()) => 0,
        _ => 1,
    };
    // Before the first use a child is a process like any other.
    assert_eq!(in_child(|| on(&Device::cpu())), Some(0));
    assert_eq!(in_child(|| on(adapter())), Some(0));
    for device in common::devices() {
        let before = forward(&device).unwrap();
        refuses(&device);
        let error = in_child(|| match forward(&device) {
            Err(error) => i32::from(!error.to_string().contains("forked from it")),
            Ok(_) => 2,
        });
        assert_eq!(error, Some(0), "{device}");
        assert_eq!(forward(&device).unwrap(), before, "the parent goes on");
    }
    // The last handle of a device is dropped in the child.
    let last = adapter().with_default_limits().unwrap();
    forward(&last).unwrap();
    let gru = Gru::new(config(), Init::Uniform, 1, &last).unwrap();
    pollster::block_on(gru.forward_async(&random3([4, 2, 3], 1))).unwrap();
    let ended = in_child(move || {
        let refused = i32::from(last.with_default_limits().is_ok());
        drop((gru, last));
        refused
    });
    assert_eq!(ended, Some(0));
}
