//! Measures one device: checks its results, warms up, measures times.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gru_wgpu::{Device, DeviceKind, Gradients, Gru, KernelTime, Output, Profile, TimeSource};
use ndarray::Array3;

use super::copies::Copies;
use super::memory;
use super::verify::{Verified, verify};
use super::workload::Workload;
use crate::ui::device::open;

/// Without `--repeats` a measurement ends after this many calls,
const MAX_CALLS: usize = 20;
/// or after [`TIME_BUDGET`] once there are this many,
const MIN_CALLS: usize = 3;
const TIME_BUDGET: Duration = Duration::from_secs(3);
/// or after this time, however few there are.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The warm-up, after which caches, clocks and pages are steady.
const WARM_UP: Duration = Duration::from_millis(300);

/// A device, and the kind that the user gave.
#[derive(Clone, Debug)]
pub struct BenchDevice {
    pub kind: DeviceKind,
    pub device: Device,
}

impl BenchDevice {
    pub fn open(kind: DeviceKind) -> Result<Self> {
        Ok(Self { kind, device: open(kind)? })
    }
}

impl fmt::Display for BenchDevice {
    /// Writes the adapter's name, after its index if the user gave one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DeviceKind::GpuAt(_) => write!(f, "{}, {}", self.kind, self.device),
            _ => self.device.fmt(f),
        }
    }
}

/// The results of one device. Times are in ms.
pub struct Measurement {
    pub device: BenchDevice,
    pub verified: Verified,
    pub repeats: usize,
    /// The time of a whole call, from arrays to arrays.
    pub median: f64,
    pub min: f64,
    pub upload: f64,
    pub forward: f64,
    pub backward: f64,
    pub compute: f64,
    pub download: f64,
    /// The median time of a whole call into the caller's arrays.
    pub into: f64,
    /// `None` on the CPU.
    pub copies: Option<Copies>,
    pub time_source: TimeSource,
    /// The dispatches of a run and the bytes of its buffers, from the plan; `None` on the CPU.
    pub planned: Option<(usize, u64)>,
    /// With `--profile`.
    pub profile: Option<KernelProfile>,
}

/// The kernels of the fastest of a few runs.
pub struct KernelProfile {
    pub times: Vec<KernelTime>,
    pub runs: usize,
}

/// Checks, warms up and measures.
fn measure(
    workload: &Workload,
    device: &BenchDevice,
    repeats: Option<usize>,
    profile: bool,
) -> Result<Measurement> {
    memory::check(workload, &device.device)?;
    let gru = workload.model(&device.device)?;
    let x = workload.x()?;
    let start = Instant::now();
    let verified = verify(workload, &gru, &x)?;
    let dy = workload.trains().then(|| workload.dy()).transpose()?;
    let runs = RepeatedRun { gru: &gru, x: &x, dy: dy.as_ref() };
    // The check has run it already, perhaps for long enough.
    let warm = Instant::now();
    let mut arrays = runs.call()?.1;
    for run in 0..MIN_CALLS {
        if start.elapsed() > TIME_LIMIT || (run > 0 && warm.elapsed() > WARM_UP) {
            break;
        }
        runs.call()?;
        runs.call_into(&mut arrays)?;
        runs.time()?;
    }
    let Calls { calls, into, times } = runs.measure(&mut arrays, repeats)?;
    drop(arrays);
    let of = |stage: fn(&Profile) -> Duration| median(times.iter().map(|t| ms(stage(t))).collect());
    let plan = gru.plan(workload.shape, workload.mode)?;
    let planned = device
        .device
        .is_adapter()
        .then(|| (plan.forward_dispatches() + plan.backward_dispatches(), plan.bytes()));
    let (upload, download) = (of(|t| t.upload), of(|t| t.download));
    let copies = device.device.is_adapter().then(|| {
        Copies::measure((times[0].upload_bytes, upload), (times[0].download_bytes, download))
    });
    Ok(Measurement {
        verified,
        repeats: calls.len(),
        min: calls.iter().copied().fold(f64::INFINITY, f64::min),
        median: median(calls),
        upload,
        forward: of(|t| t.forward),
        backward: of(|t| t.backward),
        compute: of(Profile::compute),
        download,
        into: median(into),
        copies: copies.transpose()?,
        time_source: times[0].time_source,
        planned,
        profile: profile
            .then(|| runs.profile(repeats.unwrap_or(MIN_CALLS).min(MIN_CALLS)))
            .transpose()?,
        device: device.clone(),
    })
}

/// Measures every device.
pub fn measure_all(
    workload: &Workload,
    devices: &[BenchDevice],
    repeats: Option<usize>,
    profile: bool,
) -> Result<Vec<Measurement>> {
    let each = |device| {
        measure(workload, device, repeats, profile).with_context(|| format!("on {device}"))
    };
    devices.iter().map(each).collect()
}

/// The results of a call.
type Arrays = (Output, Option<Gradients>);

/// The measurements of a run: the times of calls that return new arrays and of calls into arrays,
/// in ms, and the times of the phases.
struct Calls {
    calls: Vec<f64>,
    into: Vec<f64>,
    times: Vec<Profile>,
}

/// A run that is measured repeatedly.
struct RepeatedRun<'a> {
    gru: &'a Gru,
    x: &'a Array3<f32>,
    dy: Option<&'a Array3<f32>>,
}

impl RepeatedRun<'_> {
    /// Returns the time of a call as a user makes it, by the host's clock, in ms, and its results.
    fn call(&self) -> Result<(f64, Arrays)> {
        let start = Instant::now();
        let arrays = match self.dy {
            None => (self.gru.forward(self.x)?, None),
            Some(dy) => {
                let (output, tape) = self.gru.forward_train(self.x)?;
                (output, Some(self.gru.backward(tape, Some(dy.view()), None)?))
            }
        };
        Ok((ms(start.elapsed()), arrays))
    }

    /// Returns the time of a call into the arrays of an earlier call.
    fn call_into(&self, (output, gradients): &mut Arrays) -> Result<f64> {
        let start = Instant::now();
        match (self.dy, gradients) {
            (Some(dy), Some(gradients)) => {
                let tape = self.gru.forward_train_into(self.x, output)?;
                self.gru.backward_into(tape, Some(dy.view()), None, gradients)?;
            }
            _ => self.gru.forward_into(self.x, output)?,
        }
        Ok(ms(start.elapsed()))
    }

    /// Runs with each phase timed separately.
    fn time(&self) -> Result<Profile> {
        Ok(self.gru.time(self.x, self.dy.map(|dy| dy.view()))?)
    }

    /// Takes turns, so that a disturbance affects all.
    fn measure(&self, arrays: &mut Arrays, repeats: Option<usize>) -> Result<Calls> {
        let (mut calls, mut into, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let start = Instant::now();
        loop {
            calls.push(self.call()?.0);
            into.push(self.call_into(arrays)?);
            times.push(self.time()?);
            let (count, passed) = (calls.len(), start.elapsed());
            let enough = match repeats {
                Some(repeats) => count >= repeats,
                None => {
                    count >= MAX_CALLS
                        || passed > TIME_LIMIT
                        || (passed > TIME_BUDGET && count >= MIN_CALLS)
                }
            };
            if enough {
                return Ok(Calls { calls, into, times });
            }
        }
    }

    /// Returns the fastest of `count` profiled runs.
    fn profile(&self, count: usize) -> Result<KernelProfile> {
        let mut best = self.gru.profile(self.x, self.dy.map(|dy| dy.view()))?;
        for _ in 1..count {
            let next = self.gru.profile(self.x, self.dy.map(|dy| dy.view()))?;
            if next.compute() < best.compute() {
                best = next;
            }
        }
        Ok(KernelProfile { times: best.kernels, runs: count })
    }
}

/// Converts to milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns the middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, expected) in
            [(vec![3.0], 3.0), (vec![4.0, 1.0], 2.5), (vec![9.0, 1.0, 2.0], 2.0)]
        {
            assert_eq!(median(values), expected);
        }
    }
}
