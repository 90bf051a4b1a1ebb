//! Devices destroyed during every kind of call, and waits that reach their limit.
//!
//! `GRU_FAULTS` sets how many devices of each kind are destroyed. The default is 12.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::common::{adapter, open_wgpu, random3, rng};
use gru_wgpu::{
    Device, Error, Gru, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Network, Optimizer,
    ParamLayout, Params, wgpu,
};
use ndarray::{Array3, s};
use rand::RngExt;

/// A longer wait counts as a hang.
const HANG: Duration = Duration::from_secs(120);

fn faults() -> u64 {
    let word = std::env::var("GRU_FAULTS").unwrap_or_default();
    if word.is_empty() { 12 } else { word.parse().expect("GRU_FAULTS is a number") }
}

/// Opens a device for one test. It panics at any error that the test does not expect.
fn open() -> (Device, wgpu::Device) {
    let (adapter, device, queue) = open_wgpu(|_| wgpu::Limits::default());
    device.on_uncaptured_error(std::sync::Arc::new(|error| panic!("uncaptured: {error}")));
    (Device::from_wgpu(&adapter, &device, &queue).unwrap(), device)
}

fn assert_lost(error: &Error) {
    assert!(matches!(error, Error::DeviceLost(reason) if !reason.is_empty()), "{error:?}");
}

/// Calls `work`, which calls the library until that fails, on many devices. Another thread destroys
/// each device at a random moment of a call, or before the first call.
fn destroy_during<T: Send + 'static>(
    kind: &str,
    begin: impl Fn(&Device) -> T,
    work: impl Fn(T) -> Error + Send + Copy + 'static,
) {
    let mut rng = rng(7);
    let mut slowest = Duration::ZERO;
    let mut call = Duration::from_millis(20);
    for fault in 0..faults() {
        let (shared, device) = open();
        let begun = begin(&shared);
        let before_all = fault % 6 == 5;
        if before_all {
            device.destroy();
        }
        let (tell, told) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let error = work(begun);
            tell.send((error, Instant::now())).unwrap();
        });
        let started = Instant::now();
        if !before_all {
            std::thread::sleep(call.mul_f64(rng.random_range(0.0..3.0)));
            device.destroy();
        }
        let destroyed = Instant::now();
        let (error, returned) = match told.recv_timeout(HANG) {
            Ok(told) => told,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{kind}, fault {fault}: hangs"),
            // The thread panicked, and printed why.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                std::panic::resume_unwind(worker.join().unwrap_err())
            }
        };
        worker.join().unwrap();
        assert_lost(&error);
        slowest = slowest.max(returned.saturating_duration_since(destroyed));
        if fault == 0 {
            call = (returned - started).clamp(Duration::from_millis(1), Duration::from_millis(100));
        }
    }
    eprintln!("{kind}: {} faults, the slowest return {slowest:?} after", faults());
}

const SHAPE: [usize; 3] = [40, 16, 24];

fn model(device: &Device) -> Gru {
    Gru::new(GruConfig::pytorch(24, 48).with_layers(2), Init::Uniform, 1, device).unwrap()
}

#[test]
fn forwards() {
    let (x, expected) = (random3(SHAPE, 1), model(adapter()).forward(&random3(SHAPE, 1)).unwrap());
    let begin = |device: &Device| (model(device), x.clone(), expected.clone());
    destroy_during("forward", begin, |(gru, x, expected)| {
        let error = loop {
            match gru.forward(&x) {
                Ok(output) => assert_eq!(output, expected, "stale"),
                Err(error) => break error,
            }
        };
        assert_lost(&gru.forward(&x).unwrap_err());
        assert_lost(&gru.forward_train(&x).unwrap_err());
        assert_lost(&gru.stream(2, &[1]).unwrap_err());
        assert_lost(&Gru::new(GruConfig::new(1, 1), Init::Uniform, 1, gru.device()).unwrap_err());
        // The model continues on another device.
        assert_eq!(gru.to(adapter()).unwrap().forward(&x).unwrap(), expected);
        error
    });
}

#[test]
fn awaited_forwards() {
    let (x, expected) = (random3(SHAPE, 1), model(adapter()).forward(&random3(SHAPE, 1)).unwrap());
    let begin = |device: &Device| (model(device), x.clone(), expected.clone());
    destroy_during("awaited forward", begin, |(gru, x, expected)| {
        loop {
            match pollster::block_on(gru.forward_async(&x)) {
                Ok(output) => assert_eq!(output, expected, "stale"),
                Err(error) => break error,
            }
        }
    });
}

#[test]
fn backwards() {
    let x = random3(SHAPE, 1);
    let run = |gru: &Gru, x: &Array3<f32>| {
        let (output, tape) = gru.forward_train(x)?;
        let state = tape.state()?;
        let gradients = gru.backward(tape, Some(output.y.view()), None)?;
        Ok::<_, Error>((output, state.to_array()?, gradients))
    };
    let expected = run(&model(adapter()), &x).unwrap();
    let begin = |device: &Device| (model(device), x.clone(), expected.clone());
    destroy_during("forward and backward", begin, move |(gru, x, expected)| {
        loop {
            match run(&gru, &x) {
                Ok(got) => assert!(got == expected, "stale"),
                Err(error) => break error,
            }
        }
    });
}

#[test]
fn streams() {
    let x = random3(SHAPE, 1);
    let expected = model(adapter()).forward(&x).unwrap().y;
    let begin = |device: &Device| {
        let gru = model(device);
        let stream = gru.stream(16, &[1]).unwrap();
        (gru, stream, x.clone(), expected.clone())
    };
    destroy_during("stream", begin, |(gru, mut stream, x, expected)| {
        let mut y = Array3::zeros((1, 16, 48));
        let mut t = 0;
        let error = loop {
            if t == SHAPE[0] {
                t = 0;
                stream.reset();
            }
            let now = s![t..t + 1, .., ..];
            match gru.step(&mut stream, x.slice(now), y.view_mut()) {
                Ok(()) => assert_eq!(y, expected.slice(now), "stale"),
                Err(error) => break error,
            }
            t += 1;
        };
        assert_lost(&gru.step(&mut stream, x.slice(s![..1, .., ..]), y.view_mut()).unwrap_err());
        assert_lost(&stream.state().unwrap_err());
        assert_lost(&stream.set_state(Array3::zeros((2, 16, 48)).view()).unwrap_err());
        error
    });
}

/// Three threads share one device; each gets the loss as an error.
#[test]
fn threads_that_share_a_device() {
    let (x, expected) = (random3(SHAPE, 1), model(adapter()).forward(&random3(SHAPE, 1)).unwrap());
    let begin = |device: &Device| (model(device), x.clone(), expected.clone());
    destroy_during("three threads", begin, |(gru, x, expected)| {
        let run = || {
            loop {
                match gru.forward(&x) {
                    Ok(output) => assert_eq!(output, expected, "stale"),
                    Err(error) => break error,
                }
            }
        };
        std::thread::scope(|scope| {
            let others = [scope.spawn(run), scope.spawn(run)];
            let error = run();
            others.into_iter().for_each(|other| assert_lost(&other.join().unwrap()));
            error
        })
    });
}

fn learner(device: &Device) -> Learner {
    let config = GruConfig::pytorch(24, 32);
    let layout = ParamLayout::with_head(&config, Head::every_step(24)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    let training = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
    Learner::new(params, training, device).unwrap()
}

const UPDATES: u64 = 12;

/// Trains until the last update, and returns the network's parameters.
fn finish(mut learner: Learner, x: &Array3<f32>) -> Result<Params, Error> {
    while learner.updates() < UPDATES {
        learner.step(x, x.view())?;
    }
    learner.into_network().map(|network: Network| network.params().clone())
}

#[test]
fn training_continues_from_its_last_state_on_another_device() {
    let x = random3([20, 8, 24], 1);
    let expected = finish(learner(adapter()), &x).unwrap();
    let begin = |device: &Device| (learner(device), x.clone(), expected.clone());
    destroy_during("training", begin, |(mut learner, x, expected)| {
        let training = *learner.config();
        let mut kept = None;
        let error = loop {
            let updated = learner.step(&x, x.view()).and_then(|()| {
                if learner.updates() % 3 == 0 && learner.updates() <= UPDATES {
                    kept = Some(learner.state()?);
                }
                Ok(())
            });
            if let Err(error) = updated {
                break error;
            }
        };
        assert_lost(&learner.step(&x, x.view()).unwrap_err());
        assert_lost(&learner.metrics().unwrap_err());
        assert_lost(&learner.state().unwrap_err());
        assert_lost(&learner.into_network().unwrap_err());
        if let Some(state) = kept {
            let resumed = Learner::resume(state, training, adapter()).unwrap();
            assert_eq!(finish(resumed, &x).unwrap(), expected);
        }
        error
    });
}

/// A step of a stream is one submit, so it does not wait for another one in a driver, and this one
/// takes long.
#[test]
fn a_wait_ends_at_its_limit_and_the_model_stays_usable() {
    // A separate device, so that no other test's submits come first.
    let (own, _) = open();
    let device = own.clone().with_wait_limit(Duration::ZERO);
    let new = |device: &Device| Gru::new(GruConfig::pytorch(24, 64), Init::Uniform, 1, device);
    let (gru, unlimited) = (new(&device).unwrap(), new(&own).unwrap());
    let x = random3([300, 4, 24], 1);
    let expected = unlimited.forward(&x).unwrap();
    let mut y = Array3::zeros(expected.y.raw_dim());
    let mut streams = [(); 2].map(|()| gru.stream(4, &[300]).unwrap());
    let [blocking, awaiting] = &mut streams;
    let error = gru.step(blocking, x.view(), y.view_mut()).unwrap_err();
    let what = "a step of a stream";
    assert_eq!(error, Error::Timeout { what, limit: Duration::ZERO });
    assert_eq!(
        error.to_string(),
        "waited 0ns for a step of a stream, but the device has not finished; raise the limit of \
         Device::with_wait_limit"
    );
    unlimited.forward(&x).unwrap();
    let awaited = gru.step_async(awaiting, x.view(), y.view_mut());
    assert_eq!(pollster::block_on(awaited), Err(Error::Timeout { what, limit: Duration::ZERO }));
    for stream in &mut streams {
        let again = gru.step(stream, x.view(), y.view_mut());
        assert_eq!(again, Err(Error::Interrupted { what: "stream" }));
    }
    // A driver that blocks in a submit may have finished when the library begins to wait.
    match gru.forward(&x) {
        Ok(output) => assert_eq!(output, expected),
        Err(error) => assert!(matches!(error, Error::Timeout { what: "results", .. }), "{error}"),
    }
    // The same device without a limit gives the right results afterwards.
    assert_eq!(unlimited.forward(&x).unwrap(), expected);
    let longest = own.with_wait_limit(Duration::MAX);
    assert_eq!(gru.to(&longest).unwrap().forward(&x).unwrap(), expected);
}
