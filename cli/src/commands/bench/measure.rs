//! One device's share of the work: numbers, warm-up, times.

use std::time::{Duration, Instant};

use anyhow::Result;
use gru_wgpu::{Clock, Device, Gru, KernelTime, Profile};
use ndarray::Array3;

use super::verify::{Verified, verify};
use super::workload::Workload;

/// Calls that are measured unless somebody asks for another number, and how long they may take.
const MOST: usize = 20;
const ENOUGH: Duration = Duration::from_secs(3);
/// A call so slow that few must do.
const FEW: usize = 3;
const LONG: Duration = Duration::from_secs(10);
/// Caches, clocks and pages have settled after this.
const WARM: Duration = Duration::from_millis(300);

/// What came out for one device. Times are in ms.
pub struct Measurement {
    pub device: Device,
    pub verified: Verified,
    pub repeats: usize,
    /// Of a whole call, from arrays to arrays.
    pub median: f64,
    pub min: f64,
    pub upload: f64,
    pub forward: f64,
    pub backward: f64,
    pub compute: f64,
    pub download: f64,
    pub clock: Clock,
    /// What the plan says: dispatches of a run, bytes held. Not of the CPU.
    pub planned: Option<(usize, u64)>,
    /// Where it was asked for.
    pub profile: Option<Kernels>,
}

/// The kernels of the fastest of a few runs.
pub struct Kernels {
    pub times: Vec<KernelTime>,
    pub runs: usize,
}

/// Checks, warms up and measures.
pub fn measure(
    job: &Workload,
    device: &Device,
    repeats: Option<usize>,
    profile: bool,
) -> Result<Measurement> {
    let gru = job.model(device)?;
    let x = job.x()?;
    let start = Instant::now();
    let verified = verify(job, &gru, &x)?;
    let dy = job.trains().then(|| job.dy()).transpose()?;
    let runs = Runs { gru: &gru, x: &x, dy: dy.as_ref() };
    // The check was a first run already, and may have been long enough.
    let warm = Instant::now();
    for run in 0..FEW {
        if start.elapsed() > LONG || (run > 0 && warm.elapsed() > WARM) {
            break;
        }
        runs.call()?;
        runs.time()?;
    }
    let (calls, times) = runs.measure(repeats)?;
    let of = |part: fn(&Profile) -> Duration| median(times.iter().map(|t| ms(part(t))).collect());
    let plan = gru.plan(job.shape, job.mode)?;
    let planned = device
        .is_adapter()
        .then(|| (plan.forward_dispatches() + plan.backward_dispatches(), plan.bytes()));
    Ok(Measurement {
        verified,
        repeats: calls.len(),
        min: calls.iter().copied().fold(f64::INFINITY, f64::min),
        median: median(calls),
        upload: of(|t| t.upload),
        forward: of(|t| t.forward),
        backward: of(|t| t.backward),
        compute: of(Profile::compute),
        download: of(|t| t.download),
        clock: times[0].clock,
        planned,
        profile: profile.then(|| runs.profile(repeats.unwrap_or(FEW).min(FEW))).transpose()?,
        device: device.clone(),
    })
}

/// The same run over and over.
struct Runs<'a> {
    gru: &'a Gru,
    x: &'a Array3<f32>,
    dy: Option<&'a Array3<f32>>,
}

impl Runs<'_> {
    /// A call as a user makes it, by the host's clock, in ms.
    fn call(&self) -> Result<f64> {
        let start = Instant::now();
        match self.dy {
            None => {
                self.gru.forward(self.x)?;
            }
            Some(dy) => {
                let (_, tape) = self.gru.forward_train(self.x)?;
                self.gru.backward(tape, Some(dy.view()), None)?;
            }
        }
        Ok(ms(start.elapsed()))
    }

    /// The same, split.
    fn time(&self) -> Result<Profile> {
        Ok(self.gru.time(self.x, self.dy.map(|dy| dy.view()))?)
    }

    /// Both in turn, so that what disturbs one disturbs the other.
    fn measure(&self, repeats: Option<usize>) -> Result<(Vec<f64>, Vec<Profile>)> {
        let (mut calls, mut times) = (Vec::new(), Vec::new());
        let start = Instant::now();
        loop {
            calls.push(self.call()?);
            times.push(self.time()?);
            let (count, passed) = (calls.len(), start.elapsed());
            let enough = match repeats {
                Some(repeats) => count >= repeats,
                None => count >= MOST || passed > LONG || (passed > ENOUGH && count >= FEW),
            };
            if enough {
                return Ok((calls, times));
            }
        }
    }

    fn profile(&self, count: usize) -> Result<Kernels> {
        let mut best = self.gru.profile(self.x, self.dy.map(|dy| dy.view()))?;
        for _ in 1..count {
            let next = self.gru.profile(self.x, self.dy.map(|dy| dy.view()))?;
            if next.compute() < best.compute() {
                best = next;
            }
        }
        Ok(Kernels { times: best.kernels, runs: count })
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle one, or the middle of the middle two.
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
