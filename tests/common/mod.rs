//! Helpers of all test programs. `tests/README.md` says what each program proves.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod proto;
pub mod torch_file;

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use gru_wgpu::check::Tolerance;
use gru_wgpu::{Device, DeviceKind, wgpu};
use ndarray::{Array3, ArrayView, Dimension};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Returns the device of a process' GPU tests, opened once so that each kernel is compiled once:
/// GRU_DEVICE if it is set, or a hardware GPU, or a software adapter. Without any adapter the test
/// fails; it is never skipped. With GRU_LIMITS the device has no optional feature and only the
/// limits that WebGPU guarantees (`default`) or that the library needs (`needed`).
pub fn adapter() -> &'static Device {
    static ADAPTER: OnceLock<Device> = OnceLock::new();
    ADAPTER.get_or_init(open_adapter)
}

/// Opens another device on the adapter of [`adapter`].
pub fn open_adapter() -> Device {
    let word = std::env::var("GRU_DEVICE").ok().filter(|word| !word.is_empty());
    let opened = match word {
        Some(word) => word.parse::<DeviceKind>().and_then(DeviceKind::open),
        None => Device::gpu().or_else(|_| Device::software()),
    };
    let device = opened.unwrap_or_else(|error| {
        panic!("this test needs a GPU or a software adapter: {error}");
    });
    assert!(
        device.is_adapter(),
        "GRU_DEVICE={device} is not an adapter; set it to gpu or software for this test"
    );
    match std::env::var("GRU_LIMITS").unwrap_or_default().as_str() {
        "" => device,
        "default" => open_with_limits(&device, wgpu::Limits::default()),
        "needed" => open_with_limits(&device, Device::needed_limits()),
        other => panic!("GRU_LIMITS={other} is unknown; expected default or needed"),
    }
}

/// Opens a separate device with these limits.
fn open_with_limits(found: &Device, limits: wgpu::Limits) -> Device {
    let (adapter, device, queue) = open_named(&found.adapter().unwrap().name, |_| limits.clone());
    Device::from_wgpu(&adapter, &device, &queue).unwrap()
}

/// Opens that adapter like a program of its own, with limits chosen from the adapter's.
pub fn open_wgpu(
    limits: impl Fn(&wgpu::Adapter) -> wgpu::Limits,
) -> (wgpu::Adapter, wgpu::Device, wgpu::Queue) {
    open_named(&adapter().adapter().unwrap().name, limits)
}

fn open_named(
    name: &str,
    limits: impl Fn(&wgpu::Adapter) -> wgpu::Limits,
) -> (wgpu::Adapter, wgpu::Device, wgpu::Queue) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters.into_iter().find(|adapter| adapter.get_info().name == name).unwrap();
    let descriptor =
        wgpu::DeviceDescriptor { required_limits: limits(&adapter), ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    (adapter, device, queue)
}

/// Returns the CPU and the adapter.
pub fn devices() -> [Device; 2] {
    [Device::cpu(), adapter().clone()]
}

/// Returns a command that runs a single test of this test program. `module` is the test's
/// `module_path!()`.
pub fn rerun(module: &str, test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&name_of(module, test), "--exact", "--nocapture"]);
    command
}

fn name_of(module: &str, test: &str) -> String {
    // The first is the crate.
    module.split("::").skip(1).chain([test]).collect::<Vec<_>>().join("::")
}

/// Runs a test in its own process, with these environment variables. Returns true in that process.
/// In the calling process, returns false if the other one has passed, and panics if it has failed
/// or hangs.
pub fn in_own_process(module: &str, test: &str, variables: &[(&str, &str)]) -> bool {
    /// Names the test that a process runs.
    const RUNNING: &str = "GRU_TEST_PROCESS";
    /// Far longer than any of these tests takes, also on a busy machine.
    const HANGS_AFTER: Duration = Duration::from_secs(180);
    let name = name_of(module, test);
    if std::env::var(RUNNING).is_ok_and(|running| running == name) {
        return true;
    }
    // A file, because a full pipe would block the process.
    let mut stderr = tempfile::tempfile().unwrap();
    let mut child = rerun(module, test)
        .env(RUNNING, &name)
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > HANGS_AFTER {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut text = Vec::new();
    stderr.rewind().unwrap();
    stderr.read_to_end(&mut text).unwrap();
    assert!(status.success(), "{name}: {status}\n{}", String::from_utf8_lossy(&text));
    false
}

/// Returns what cargo knows of this package and its dependencies.
pub fn metadata() -> serde_json::Value {
    // For this platform only: a new machine has not fetched other platforms' packages.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns every file in a folder and its subfolders, sorted.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// The tests' one random generator. Equal seeds give equal numbers.
pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Returns an array uniform in ±1.
pub fn random3(shape: [usize; 3], seed: u64) -> Array3<f32> {
    let mut rng = rng(seed);
    Array3::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0))
}

/// Returns a tolerance of this absolute difference.
pub const fn within(atol: f64) -> Tolerance {
    Tolerance { atol, rtol: 0.0 }
}

/// Fails if a shape differs or if an element is further from the expected one than
/// `atol + rtol · |expected|`. Names the first such element, the worst and how many there are.
#[track_caller]
pub fn assert_close<'a, A, E, D: Dimension>(
    what: &str,
    got: impl Into<ArrayView<'a, A, D>>,
    expected: impl Into<ArrayView<'a, E, D>>,
    tolerance: Tolerance,
) where
    A: Copy + Into<f64> + 'a,
    E: Copy + Into<f64> + 'a,
{
    let (got, expected) = (got.into(), expected.into());
    assert_eq!(got.shape(), expected.shape(), "{what}: shape");
    let wrong: Vec<_> = got
        .indexed_iter()
        .zip(&expected)
        .map(|((index, &got), &expected)| (index, got.into(), expected.into()))
        .filter(|&(_, got, expected)| tolerance.fraction(got, expected) > 1.0)
        .collect();
    let Some((index, first, first_expected)) = wrong.first() else { return };
    let excess = |&(_, got, expected): &(_, f64, f64)| tolerance.fraction(got, expected);
    let worst = wrong.iter().max_by(|a, b| excess(a).total_cmp(&excess(b))).unwrap();
    panic!(
        "{what}: {} of {} elements are wrong; {index:?} is {first:e}, expected {first_expected:e}; \
         the worst, {:?}, is {:e}, expected {:e}",
        wrong.len(),
        got.len(),
        worst.0,
        worst.1,
        worst.2
    );
}
