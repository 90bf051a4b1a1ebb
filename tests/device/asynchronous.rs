//! Every blocking call has an async version with the same results. Its future can move between
//! threads and can be dropped before it completes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use crate::common::{devices, random3};
use gru_wgpu::{
    Batch, Device, Error, Gru, GruConfig, Head, Init, Learner, LearnerConfig, LearnerState, Loss,
    Network, Optimizer, ParamLayout, Params, check,
};
use ndarray::{Array2, Array3};
use pollster::block_on;

/// Requires a future that can move between threads.
fn sendable<F: Future + Send>(future: F) -> F {
    future
}

fn gru(device: &Device) -> Gru {
    let config = GruConfig::pytorch(3, 5).with_layers(2);
    block_on(sendable(Gru::new_async(config, Init::Uniform, 1, device))).unwrap()
}

#[test]
fn async_calls_equal_blocking_calls() {
    let x = random3([4, 2, 3], 1);
    let chunk = Array3::ones((1, 2, 3));
    for device in devices() {
        let gru = gru(&device);
        let output = gru.forward(&x).unwrap();
        assert_eq!(block_on(sendable(gru.forward_async(&x))).unwrap(), output);
        let (_, tape) = gru.forward_train(&x).unwrap();
        let state = tape.state().unwrap();
        assert_eq!(state.to_array().unwrap(), output.h_n);
        assert_eq!(block_on(sendable(state.to_array_async())).unwrap(), output.h_n);
        let grads = gru.backward(tape, Some(output.y.view()), None).unwrap();
        let (again, tape) = block_on(sendable(gru.forward_train_async(&x))).unwrap();
        assert_eq!(again, output);
        assert_eq!(block_on(sendable(tape.state_async())).unwrap().shape(), state.shape());
        let dy = Some(output.y.view());
        assert_eq!(block_on(sendable(gru.backward_async(tape, dy, None))).unwrap(), grads);

        let next = gru.forward_from(&state, &x).unwrap();
        assert_ne!(next, output);
        assert_eq!(gru.forward(Batch::new(x.view()).with_h0(output.h_n.view())).unwrap(), next);
        assert_eq!(block_on(sendable(gru.forward_from_async(&state, &x))).unwrap(), next);
        let trained = gru.forward_train_from(&state, &x).unwrap().0;
        assert_eq!(trained, next);
        assert_eq!(block_on(sendable(gru.forward_train_from_async(&state, &x))).unwrap().0, next);

        let mut streams =
            [gru.stream(2, &[1]).unwrap(), block_on(sendable(gru.stream_async(2, &[1]))).unwrap()];
        let [mut y, mut y_async] = [(); 2].map(|()| Array3::zeros((1, 2, 5)));
        for state in [Array3::zeros((2, 2, 5)), random3([2, 2, 5], 7)] {
            let [one, other] = &mut streams;
            one.set_state(state.view()).unwrap();
            block_on(sendable(other.set_state_async(state.view()))).unwrap();
            gru.step(one, chunk.view(), y.view_mut()).unwrap();
            block_on(sendable(gru.step_async(other, chunk.view(), y_async.view_mut()))).unwrap();
            assert_eq!(y_async, y);
            block_on(sendable(other.set_reset_state_async(state.view()))).unwrap();
            assert_eq!(one.state().unwrap(), block_on(sendable(other.state_async())).unwrap());
        }
    }
}

#[test]
fn devices_open_and_are_checked_asynchronously() {
    let device = crate::common::adapter();
    let again = block_on(sendable(device.with_default_limits_async())).unwrap();
    assert_eq!(again.to_string(), device.to_string());
    assert_eq!(block_on(sendable(Device::adapters_async())).len(), Device::adapters().len());
    assert_eq!(block_on(sendable(Device::auto_async())).to_string(), Device::auto().to_string());
    drop((sendable(Device::gpu_async()), sendable(Device::software_async())));
    drop((sendable(check::run_async(device)), sendable(check::Section::Models.run_async(device))));
}

/// Returns the ids of this process' threads that wait for a device.
#[cfg(target_os = "linux")]
fn waiting_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = |task: &std::path::Path| {
        // A thread that has ended has no name.
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "gru-wait")
    };
    let waiting = tasks.filter(|task| named(&task.path()));
    waiting.map(|task| task.file_name().to_string_lossy().into_owned()).collect()
}

/// Runs in its own process, in which no other test waits for a device.
#[cfg(target_os = "linux")]
#[test]
fn futures_of_a_device_share_one_waiting_thread() {
    let name = "futures_of_a_device_share_one_waiting_thread";
    if !crate::common::in_own_process(module_path!(), name, &[]) {
        return;
    }
    let gru = gru(crate::common::adapter());
    let inputs: Vec<_> = (0..16).map(|seed| random3([60, 20, 3], seed)).collect();
    let expected: Vec<_> = inputs.iter().map(|x| gru.forward(x).unwrap()).collect();
    let mut futures: Vec<_> = inputs.iter().map(|x| Box::pin(gru.forward_async(x))).collect();
    let mut outputs: Vec<_> = futures.iter().map(|_| None).collect();
    let mut seen = std::collections::BTreeSet::new();
    let all = std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => *output = Some(done.unwrap()),
                    std::task::Poll::Pending => {}
                }
            }
        }
        seen.extend(waiting_threads());
        match outputs.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    });
    block_on(all);
    for (output, expected) in outputs.iter().zip(&expected) {
        assert_eq!(output.as_ref(), Some(expected));
    }
    // Also one after another.
    for (x, expected) in inputs.iter().zip(&expected) {
        assert_eq!(&block_on(gru.forward_async(x)).unwrap(), expected);
        seen.extend(waiting_threads());
    }
    assert!(seen.len() <= 1, "{seen:?}");

    let own = crate::common::adapter().with_default_limits().unwrap();
    block_on(self::gru(&own).forward_async(&inputs[0])).unwrap();
    let others = waiting_threads().into_iter().filter(|thread| !seen.contains(thread));
    let others: Vec<_> = others.collect();
    assert!(others.len() <= 1, "{others:?}");
    drop(own);
    // A thread that has ended stays listed for a moment.
    while others.iter().any(|thread| waiting_threads().contains(thread)) {
        std::thread::yield_now();
    }
}

struct NoWaker;

impl Wake for NoWaker {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_future_may_be_dropped_before_it_completes() {
    let gru = gru(crate::common::adapter());
    let waker = Waker::from(Arc::new(NoWaker));
    let mut context = Context::from_waker(&waker);
    let x = random3([40, 20, 3], 1);
    let expected = gru.forward(&x).unwrap();
    let other = random3([40, 20, 3], 2);
    // On a fast adapter a call may complete immediately, but not every time.
    let mut dropped = 0;
    for _ in 0..20 {
        let mut future = pin!(gru.forward_async(&other));
        dropped += usize::from(future.as_mut().poll(&mut context).is_pending());
    }
    assert!(dropped > 0);
    // The calls that they had begun do not disturb others.
    assert_eq!(gru.forward(&x).unwrap(), expected);

    let mut stream = gru.stream(20, &[40]).unwrap();
    let mut y = Array3::zeros((40, 20, 5));
    let drops_a_step = |_| {
        let mut future = pin!(gru.step_async(&mut stream, x.view(), y.view_mut()));
        future.as_mut().poll(&mut context).is_pending()
    };
    assert!((0..20).any(drops_a_step));
    for _ in 0..2 {
        assert_eq!(
            gru.step(&mut stream, x.view(), y.view_mut()).unwrap_err(),
            Error::Interrupted { what: "stream" }
        );
    }
    let mut stream = gru.stream(20, &[40]).unwrap();
    gru.step(&mut stream, x.view(), y.view_mut()).unwrap();
    assert_eq!(y, expected.y);
}

fn learner_parts() -> (Params, LearnerConfig) {
    let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 5), Head::every_step(2)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    (params, LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01).with_accumulation(2))
}

#[test]
fn an_async_learner_equals_a_blocking_one() {
    let (x, targets) = (random3([4, 2, 3], 1), random3([4, 2, 2], 2));
    for device in devices() {
        let (params, training) = learner_parts();
        let mut one = Learner::new(params.clone(), training, &device).unwrap();
        let other = Learner::new_async(params, training, &device);
        let mut other = block_on(sendable(other)).unwrap();
        for _ in 0..5 {
            one.step(&x, targets.view()).unwrap();
            block_on(sendable(other.step_async(&x, targets.view()))).unwrap();
        }
        one.apply().unwrap();
        block_on(sendable(other.apply_async())).unwrap();
        let reports = one.metrics().unwrap();
        assert_eq!(reports.len(), 3);
        assert_eq!(block_on(sendable(other.metrics_async())).unwrap(), reports);
        let outputs = one.forward(&x).unwrap();
        assert_eq!(block_on(sendable(other.forward_async(&x))).unwrap(), outputs);
        let evaluation = one.evaluate(&x, targets.view()).unwrap();
        let awaited = other.evaluate_async(&x, targets.view());
        assert_eq!(block_on(sendable(awaited)).unwrap(), evaluation);
        let gradient = one.gradient().unwrap();
        assert_eq!(block_on(sendable(other.gradient_async())).unwrap(), gradient);
        one.accumulate(&x, targets.view()).unwrap();
        block_on(sendable(other.accumulate_async(&x, targets.view()))).unwrap();
        let gradient = one.gradient().unwrap();
        assert_eq!(block_on(sendable(other.gradient_async())).unwrap(), gradient);
        one.set_gradient(&gradient).unwrap();
        block_on(sendable(other.set_gradient_async(&gradient))).unwrap();
        let loss = one.step_with_loss(&x, targets.view()).unwrap();
        let awaited = other.step_with_loss_async(&x, targets.view());
        assert_eq!(block_on(sendable(awaited)).unwrap(), loss);
        let outputs = one.forward(&x).unwrap();
        assert_eq!(block_on(sendable(other.params_async())).unwrap(), one.params().unwrap());
        let state: LearnerState = one.state().unwrap();
        assert_eq!(block_on(sendable(other.state_async())).unwrap(), state);
        drop(sendable(Learner::resume_async(state.clone(), training, &device)));
        let network = block_on(sendable(other.into_network_async())).unwrap();
        assert_eq!(block_on(sendable(network.forward_async(&x))).unwrap(), outputs);
        let mean_squared = Loss::MeanSquared;
        let evaluation = network.evaluate(&mean_squared, &x, targets.view()).unwrap();
        let awaited = network.evaluate_async(&mean_squared, &x, targets.view());
        assert_eq!(block_on(sendable(awaited)).unwrap(), evaluation);
        let sequences = [Array2::ones((4, 3)), Array2::ones((2, 3))];
        let each = network.forward_each(&sequences, 2).unwrap();
        let awaited = network.forward_each_async(&sequences, 2);
        assert_eq!(block_on(sendable(awaited)).unwrap(), each);
        let again = block_on(sendable(Network::new_async(state.params, &device))).unwrap();
        assert_eq!(again.forward(&x).unwrap(), outputs);
    }
}

/// Steps may be dropped before they are done. Then their update includes the next batches, or the
/// learner reports that it is interrupted.
#[test]
fn the_future_of_a_learner_step_may_be_dropped() {
    let (params, training) = learner_parts();
    let mut learner = Learner::new(params, training, crate::common::adapter()).unwrap();
    let (x, targets) = (random3([40, 20, 3], 1), random3([40, 20, 2], 2));
    let waker = Waker::from(Arc::new(NoWaker));
    let mut context = Context::from_waker(&waker);
    for _ in 0..10 {
        let mut future = pin!(learner.step_async(&x, targets.view()));
        let _ = future.as_mut().poll(&mut context);
    }
    for _ in 0..10 {
        let mut future = pin!(learner.metrics_async());
        let _ = future.as_mut().poll(&mut context);
    }
    match learner.metrics() {
        Ok(_) => learner.step(&x, targets.view()).unwrap(),
        Err(error) => {
            assert_eq!(error, Error::Interrupted { what: "learner" });
            assert!(learner.step(&x, targets.view()).is_err());
        }
    }
}
