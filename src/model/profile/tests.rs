//! A profile contains every dispatch once. A profiled run does not change the next run's results.

use super::*;
use crate::model::device::{Device, test_device};
use crate::spec::config::{Direction, GruConfig};
use crate::spec::options::{Recurrence, RunOptions};
use crate::spec::params::Init;
use ndarray::Array3;

/// Profiles a model of two layers in both directions. Returns the profile and the plan's stages.
fn profile(
    device: &Device,
    config: GruConfig,
    train: bool,
    options: RunOptions,
) -> (Profile, Vec<Stage>) {
    let config = config.with_layers(2).with_direction(Direction::Both);
    let gru = Gru::new(config, Init::Uniform, 1, device).unwrap().with_options(options);
    let (x, dy) = (Array3::ones((6, 3, 4)), Array3::ones((6, 3, 10)));
    let profile = gru.profile(&x, train.then_some(dy.view())).unwrap();
    let mode = if train { Mode::Training } else { Mode::Inference };
    let plan = gru.plan(gru.config().shape(6, 3).unwrap(), mode).unwrap();
    (profile, [plan.forward(), plan.backward()].concat())
}

/// Returns the calls, FLOPs and bytes of all dispatches.
fn sums(stages: &[Stage]) -> [u64; 3] {
    let mut sums = [0; 3];
    for (body, times) in stages.iter().map(Stage::dispatches) {
        for dispatch in body {
            let each = [1, dispatch.flops, dispatch.bytes];
            sums.iter_mut().zip(each).for_each(|(sum, each)| *sum += times as u64 * each);
        }
    }
    sums
}

#[test]
fn a_profile_contains_every_dispatch_of_the_plan_once() {
    let (device, _) = test_device();
    let plain = RunOptions::default();
    let others = [
        plain.with_recurrence(Recurrence::Step),
        plain.with_recurrence(Recurrence::Sequence),
        plain.with_recurrence(Recurrence::Persistent),
        plain.with_recompute(true),
    ];
    for options in [plain].into_iter().chain(others) {
        for config in [GruConfig::new(4, 5), GruConfig::pytorch(4, 5)] {
            for train in [false, true] {
                check_profile(&device, config.clone(), train, options);
            }
        }
    }
    // Default limits come without timestamps.
    check_profile(&device.with_default_limits().unwrap(), GruConfig::new(4, 5), true, plain);
}

fn check_profile(device: &Device, config: GruConfig, train: bool, options: RunOptions) {
    let (profile, stages) = profile(device, config, train, options);
    let kernels = &profile.kernels;
    let profiled = [
        kernels.iter().map(|kernel| kernel.calls as u64).sum(),
        kernels.iter().map(|kernel| kernel.flops).sum(),
        kernels.iter().map(|kernel| kernel.bytes).sum::<u64>(),
    ];
    assert_eq!(profiled, sums(&stages), "{kernels:?}");
    assert!(kernels.is_sorted_by_key(|kernel| std::cmp::Reverse(kernel.time)));
    let time: Duration = kernels.iter().map(|kernel| kernel.time).sum();
    assert_eq!(time, profile.compute());
    assert!(train || profile.backward == Duration::ZERO);
    let labels = kernels.iter().map(|kernel| &kernel.label);
    let named = |word: &str| labels.clone().any(|label| label.contains(word));
    assert!(!named("l0") && !named("l1") && !named("reverse"), "{kernels:?}");
}

#[test]
fn labels_lose_their_steps_layer_and_direction() {
    for label in ["dx = da", "l1: dx = da", "l0: reverse: dx = da", "reverse: dx = da"] {
        assert_eq!(strip_cell(label), "dx = da");
    }
    for label in ["0 to 15: l0: r, z; h'", "16 down to 0: r, z; h'", "r, z; h'"] {
        assert_eq!(strip_cell(label), "r, z; h'");
    }
    assert_eq!(strip_cell("other: dx = da"), "other: dx = da");
}

#[test]
fn a_run_of_more_dispatches_than_a_query_set_holds_is_timed_whole() {
    let (device, gpu) = test_device();
    let gru = Gru::new(GruConfig::pytorch(1, 1), Init::Uniform, 1, &device).unwrap();
    let x = Array3::ones((2100, 1, 1));
    let options = RunOptions::default().with_recurrence(Recurrence::Step);
    let profile = gru.with_options(options).profile(&x, None).unwrap();
    let calls: usize = profile.kernels.iter().map(|kernel| kernel.calls).sum();
    assert_eq!(calls, 2101);
    let expected =
        if gpu.timestamp_period().is_some() { TimeSource::Adapter } else { TimeSource::Host };
    assert_eq!(profile.time_source, expected);
}

#[test]
fn a_timed_run_does_not_change_the_next_runs_results() {
    let (device, _) = test_device();
    let gru = Gru::new(GruConfig::new(4, 5), Init::Uniform, 1, &device).unwrap();
    let gru = gru.with_options(RunOptions::default().with_recompute(true));
    let (x, dy) = (Array3::ones((6, 3, 4)), Array3::ones((6, 3, 5)));
    let run = || {
        let (output, tape) = gru.forward_train(&x).unwrap();
        (output, gru.backward(tape, Some(dy.view()), None).unwrap().params)
    };
    let before = run();
    for _ in 0..2 {
        gru.time(&x, Some(dy.view())).unwrap();
        gru.profile(&x, Some(dy.view())).unwrap();
        let profile = pollster::block_on(gru.profile_async(&x, None)).unwrap();
        assert!(profile.total() >= profile.compute());
        assert_eq!(run(), before);
    }
}

#[test]
fn a_profile_on_the_cpu_has_no_kernels_and_no_transfers() {
    let plain = RunOptions::default();
    let (profile, _) = profile(&Device::cpu(), GruConfig::new(4, 5), true, plain);
    assert!(profile.kernels.is_empty() && profile.time_source == TimeSource::Host);
    assert_eq!((profile.upload, profile.download), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn timing_refuses_a_gradient_of_the_wrong_shape() {
    let (device, _) = test_device();
    for device in [Device::cpu(), device] {
        let gru = Gru::new(GruConfig::new(4, 5), Init::Uniform, 1, &device).unwrap();
        let (x, dy) = (Array3::ones((6, 3, 4)), Array3::ones((6, 3, 4)));
        let error = gru.time(&x, Some(dy.view())).unwrap_err();
        assert!(matches!(error, crate::Error::Shape { .. }), "{error}");
    }
}
