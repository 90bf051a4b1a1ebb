//! Many repetitions, on the CPU and on the adapter, do not increase memory, handles or threads.
//!
//! By default the tests do a hundredth of the work. `GRU_SOAK=1` does all of it: 100,000 steps of a
//! stream, 10,000 runs forward and backward, 1,000 creations of everything: `GRU_SOAK=1 cargo test
//! --release --test soak -- --nocapture`. On Linux, memory is the resident size and handles are the
//! open files, both from /proc. On other systems the tests only do the work.
//!
//! A test program of its own, because it measures its process.

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use common::{assert_close, devices, random3, within};
use gru_wgpu::{
    Batch, Device, DeviceKind, Gru, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Network,
    Optimizer, ParamLayout, Params,
};
use gru_wgpu::{Checkpoint, Trainer, TrainerConfig};
use ndarray::{Array2, Array3};

/// Returns how many of the `all` repetitions of a full soak to do.
fn times(all: usize) -> usize {
    let share = std::env::var("GRU_SOAK").map_or(0.01, |share| share.parse().expect("a number"));
    ((all as f64 * share) as usize).max(5)
}

/// The tests measure the process, so they run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resources of this process.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Bytes resident.
    memory: u64,
    /// Files open, which are a driver's handles too.
    files: usize,
    threads: usize,
}

impl Held {
    /// Now, where the system tells.
    fn now() -> Option<Self> {
        let count = |folder| fs::read_dir(folder).ok().map(Iterator::count);
        let pages = fs::read_to_string("/proc/self/statm").ok()?;
        let resident: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
        let [files, threads] = ["/proc/self/fd", "/proc/self/task"].map(count);
        Some(Self { memory: 4096 * resident, files: files?, threads: threads? })
    }
}

/// Runs `work` `count` times, after a tenth as many runs that fill the caches. Afterwards the
/// process must have no more files and threads than before, and at most `growth` more bytes.
fn soak(what: &str, count: usize, growth: u64, mut work: impl FnMut(usize)) {
    let start = Instant::now();
    let warm = (count / 10).max(2);
    (0..warm).for_each(&mut work);
    let before = Held::now();
    (warm..warm + count).for_each(&mut work);
    let seconds = start.elapsed().as_secs_f64();
    let (Some(before), Some(mut after)) = (before, Held::now()) else { return };
    // A thread that has ended stays listed for a moment.
    for _ in 0..1000 {
        if after.threads <= before.threads {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
        after = Held::now().expect("there a moment ago");
    }
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    println!(
        "{what}: {count} in {seconds:.1} s; {:.1} MiB before, {:.1} after; {} and {} files, {} and {} threads",
        mib(before.memory),
        mib(after.memory),
        before.files,
        after.files,
        before.threads,
        after.threads
    );
    assert!(after.memory <= before.memory + growth, "{what}: {before:?}, then {after:?}");
    assert!(after.files <= before.files, "{what}: {before:?}, then {after:?}");
    assert!(after.threads <= before.threads, "{what}: {before:?}, then {after:?}");
}

/// The memory that an allocator may keep.
const SLACK: u64 = 8 << 20;

fn gru(device: &Device) -> Gru {
    Gru::new(GruConfig::pytorch(3, 8).with_layers(2), Init::Uniform, 1, device).unwrap()
}

#[test]
fn a_stream_of_many_steps_takes_no_more_memory() {
    let _alone = alone();
    for device in devices() {
        let gru = gru(&device);
        let mut stream = gru.stream(4, &[1]).unwrap();
        let x = random3([1, 4, 3], 1);
        let mut y = Array3::zeros((1, 4, 8));
        soak(&format!("steps of a stream on {device}"), times(100_000), SLACK, |step| {
            if step % 100 == 0 {
                stream.reset();
            }
            gru.step(&mut stream, x.view(), y.view_mut()).unwrap();
        });
        // 100 steps from a reset equal the first ones.
        let whole = Array3::from_shape_fn((7, 4, 3), |(_, row, i)| x[[0, row, i]]);
        let expected = gru.forward(&whole).unwrap();
        stream.reset();
        for _ in 0..7 {
            gru.step(&mut stream, x.view(), y.view_mut()).unwrap();
        }
        let last = expected.y.slice(ndarray::s![6..7, .., ..]);
        assert_close("y of the last step", &y, last, within(1e-6));
    }
}

#[test]
fn many_runs_forward_and_backward_take_no_more_memory() {
    let _alone = alone();
    for device in devices() {
        let gru = gru(&device);
        let x = random3([5, 4, 3], 1);
        let dy = random3([5, 4, 8], 2);
        let lengths = [5, 3, 0, 1];
        let batch = Batch::new(x.view()).with_lengths(&lengths);
        let run = || {
            let (_, tape) = gru.forward_train(batch).unwrap();
            gru.backward(tape, Some(dy.view()), None).unwrap()
        };
        let first = run();
        soak(&format!("runs forward and backward on {device}"), times(10_000), SLACK, |_| {
            assert_eq!(run(), first);
        });
    }
}

#[test]
fn many_shapes_take_no_more_memory() {
    let _alone = alone();
    for device in devices() {
        let gru = gru(&device);
        // More shapes than a model keeps sessions for.
        soak(&format!("runs of changing shapes on {device}"), times(10_000), SLACK, |i| {
            let x = random3([1 + i % 7, 1 + i % 5, 3], 1);
            let (output, tape) = gru.forward_train(&x).unwrap();
            gru.backward(tape, Some(output.y.view()), None).unwrap();
        });
    }
}

/// Makes every kind of object on a device, uses each once and drops it.
fn make_everything(device: &Device) {
    let gru = gru(device);
    let x = random3([5, 4, 3], 1);
    let (output, tape) = gru.forward_train(&x).unwrap();
    let state = tape.state().unwrap();
    gru.backward(tape, Some(output.y.view()), None).unwrap();
    let (_, unused) = gru.forward_train_from(&state, &x).unwrap();
    drop(unused);
    let mut stream = gru.stream(4, &[1, 5]).unwrap();
    gru.step(&mut stream, x.view(), Array3::zeros((5, 4, 8)).view_mut()).unwrap();
    stream.state().unwrap();
    let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 8), Head::last(2)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    let network = Network::new(params.clone(), device).unwrap();
    network.forward_each(&[Array2::ones((3, 3)), Array2::ones((5, 3))], 2).unwrap();
    let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
    let mut learner = Learner::new(params, training, device).unwrap();
    learner.step(&x, &[0, 1, 1, 0][..]).unwrap();
    learner.metrics().unwrap();
    resume_from_checkpoint(learner, device).into_network().unwrap();
}

/// Saves a checkpoint and resumes training from it.
fn resume_from_checkpoint(learner: Learner, device: &Device) -> Learner {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut trainer = Trainer::new(learner, TrainerConfig::new(1, 2)).unwrap();
    trainer.checkpoint().unwrap().save(&path).unwrap();
    let mut again = Trainer::from_checkpoint(Checkpoint::load(&path).unwrap(), device).unwrap();
    let (state, training) = (again.learner().state().unwrap(), *again.learner().config());
    Learner::resume(state, training, device).unwrap()
}

#[cfg(not(feature = "safetensors"))]
fn resume_from_checkpoint(mut learner: Learner, device: &Device) -> Learner {
    let training = *learner.config();
    Learner::resume(learner.state().unwrap(), training, device).unwrap()
}

#[test]
fn dropped_objects_leave_nothing() {
    let _alone = alone();
    for device in devices() {
        let what = format!("creations of everything on {device}");
        soak(&what, times(1000), SLACK, |_| make_everything(&device));
    }
}

/// The driver keeps some memory of each device, and of each kernel that it compiled for it.
const KEPT_BY_THE_DRIVER: u64 = 256 << 10;

/// The allocator keeps memory for threads that compile, and the next threads use it again. The
/// memory grows with the number of cores and not with that of devices: with MALLOC_ARENA_MAX=1, 100
/// devices take 0.1 MiB.
const KEPT_FOR_THREADS: u64 = 64 << 20;

#[test]
fn dropped_devices_leave_no_handle() {
    let _alone = alone();
    let kind = match common::adapter().adapter().unwrap().is_software() {
        true => DeviceKind::Software,
        false => DeviceKind::Gpu,
    };
    let (count, x) = (times(1000), random3([2, 2, 3], 1));
    let growth = SLACK + KEPT_FOR_THREADS + count as u64 * KEPT_BY_THE_DRIVER;
    soak(&format!("devices ({kind:?})"), count, growth, |_| {
        let device = kind.open().unwrap();
        gru(&device).forward(&x).unwrap();
    });
}

/// Each thread does different work, with its own models and one that all share.
#[test]
fn eight_threads_on_one_device_get_the_results_of_each_alone() {
    let _alone = alone();
    for device in devices() {
        let shared = gru(&device);
        let work = |thread: usize| {
            let config = GruConfig::new(3, 4 + thread % 3).with_layers(1 + thread % 2);
            let own = Gru::new(config, Init::Uniform, thread as u64, &device).unwrap();
            let x = random3([2 + thread, 1 + thread % 4, 3], thread as u64);
            let mut gradients = Vec::new();
            for gru in [&own, &shared] {
                let (output, tape) = gru.forward_train(&x).unwrap();
                gradients.push(gru.backward(tape, Some(output.y.view()), None).unwrap());
            }
            let mut stream = own.stream(x.dim().1, &[x.dim().0]).unwrap();
            let mut y = Array3::zeros((x.dim().0, x.dim().1, own.config().hidden_size));
            own.step(&mut stream, x.view(), y.view_mut()).unwrap();
            (gradients, y)
        };
        let expected: Vec<_> = (0..8).map(work).collect();
        std::thread::scope(|scope| {
            for (thread, expected) in expected.iter().enumerate() {
                let (work, device) = (&work, &device);
                scope.spawn(move || {
                    for turn in 0..times(500) {
                        assert!(
                            work(thread) == *expected,
                            "thread {thread}, turn {turn} on {device}"
                        );
                    }
                });
            }
        });
    }
}
