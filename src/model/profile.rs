//! [`Profile`]: the time of each part of a run, by the clocks of the host and the adapter.

use std::collections::HashMap;
use std::time::Duration;

use ndarray::ArrayView3;

use crate::clock::Instant;
use crate::cpu::GradientsWanted;
use crate::error::Result;
use crate::gpu::session::{Read, Session, Timing};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::executor::{
    BackwardRun, ChunkPosition, ChunkedRun, Executor, ForwardRun, Hooks, RunInput, Upload,
};
use crate::model::gru::Gru;
use crate::plan::{Dispatch, Mode, Pass, Plan, RunPurpose, Stage};
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;

#[cfg(test)]
mod tests;

/// The clock that measured the computing time in a [`Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// The adapter's timestamps.
    Adapter,
    /// The host's clock. The time includes the latency between host and device.
    Host,
}

/// The time of each part of a run, from [`Gru::time`] or [`Gru::profile`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// The upload of the inputs, by the host's clock. Zero on the CPU.
    pub upload: Duration,
    /// The forward schedule.
    pub forward: Duration,
    /// The backward schedule. Zero without one.
    pub backward: Duration,
    /// The download of the results, by the host's clock. Zero on the CPU.
    pub download: Duration,
    /// The bytes of the inputs that were uploaded. Zero on the CPU.
    pub upload_bytes: u64,
    /// The bytes of the results that were downloaded, to new memory. Zero on the CPU.
    pub download_bytes: u64,
    /// The clock that measured `forward`, `backward` and `kernels`.
    pub time_source: TimeSource,
    /// The kernels, slowest first. Empty except after [`Gru::profile`] on an adapter.
    pub kernels: Vec<KernelTime>,
}

impl Profile {
    /// Returns a profile of nothing, by the host's clock.
    fn zero() -> Self {
        let [upload, forward, backward, download] = [Duration::ZERO; 4];
        let [upload_bytes, download_bytes] = [0; 2];
        let (time_source, kernels) = (TimeSource::Host, Vec::new());
        Self {
            upload,
            forward,
            backward,
            download,
            upload_bytes,
            download_bytes,
            time_source,
            kernels,
        }
    }

    /// Returns the time of forward and backward, with all data on the device.
    pub fn compute(&self) -> Duration {
        self.forward + self.backward
    }

    /// Returns the total time.
    pub fn total(&self) -> Duration {
        self.upload + self.compute() + self.download
    }
}

/// The total time of a kernel's dispatches with one label, over all steps, layers and directions.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KernelTime {
    /// The kernel's name.
    pub kernel: String,
    /// The formula that the kernel computes, as the plan labels it: `dx = da · W_ih`.
    pub label: String,
    /// The number of dispatches.
    pub calls: usize,
    /// The time of all dispatches together.
    pub time: Duration,
    /// The multiplications and additions in the dispatches' products.
    pub flops: u64,
    /// The bytes that the dispatches must move at least.
    pub bytes: u64,
}

impl KernelTime {
    /// Returns the rate in billions of operations per second.
    pub fn gflops(&self) -> f64 {
        giga_per_second(self.flops, self.time)
    }

    /// Returns the rate in billions of bytes per second, from `bytes`. The memory may have moved
    /// fewer, because of caches.
    pub fn gbytes(&self) -> f64 {
        giga_per_second(self.bytes, self.time)
    }
}

fn giga_per_second(amount: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { amount as f64 / seconds / 1e9 } else { 0.0 }
}

impl Gru {
    blocking_and_async! {
        /// Runs the model once and measures the time. With `dy` the run is a training run: forward
        /// and backward. Without, it is forward only.
        ///
        /// The device does the same work as in [`Self::forward`], or in [`Self::forward_train`] and
        /// [`Self::backward`]. A wait between upload, computing and download separates their times.
        /// On an adapter the times include neither the upload of the parameters nor the setup of a
        /// first run. Run once before, to warm up.
        ///
        /// ```
        /// use gru_wgpu::{Device, Gru, GruConfig, Init};
        /// use ndarray::Array3;
        ///
        /// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 42, &Device::cpu())?;
        /// let (x, dy) = (Array3::ones((10, 2, 3)), Array3::ones((10, 2, 8)));
        /// gru.time(&x, Some(dy.view()))?;
        /// let time = gru.time(&x, Some(dy.view()))?;
        /// println!("{:?} forward, {:?} backward", time.forward, time.backward);
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Self::forward`], or of [`Self::forward_train`] and [`Self::backward`].
        pub fn time, time_async<'a>(
            &self,
            batch: impl Into<Batch<'a>>,
            dy: Option<ArrayView3<'_, f32>>,
        ) -> Result<Profile> {
            |wait| self.run_timed(batch.into(), dy, false, wait)
        }

        /// Runs like [`Self::time`] and measures the time of each kernel.
        ///
        /// Each dispatch starts after the previous one has ended, so the sum may exceed the time of
        /// [`Self::time`]. Without timestamps, each [`KernelTime`] is for a stage of the plan: all
        /// steps of a loop together, and the latency between host and device.
        ///
        /// # Errors
        /// The errors of [`Self::time`].
        pub fn profile, profile_async<'a>(
            &self,
            batch: impl Into<Batch<'a>>,
            dy: Option<ArrayView3<'_, f32>>,
        ) -> Result<Profile> {
            |wait| self.run_timed(batch.into(), dy, true, wait)
        }
    }

    async fn run_timed(
        &self,
        batch: Batch<'_>,
        dy: Option<ArrayView3<'_, f32>>,
        by_kernel: bool,
        wait: Wait,
    ) -> Result<Profile> {
        let (batch, shape) = self.check(None, batch.reborrow())?;
        shape.check_not_empty()?;
        if dy.is_some() {
            batch.noise(self.config(), Mode::Training)?;
            reference::check_gradients(&shape, dy.map(|d| d.dim()), None)?;
        }
        match self.device().is_adapter() {
            true => self.time_on_adapter(shape, batch, dy, by_kernel, wait).await,
            false => self.time_on_cpu(batch, dy, wait).await,
        }
    }

    async fn time_on_cpu(
        &self,
        batch: Batch<'_>,
        dy: Option<ArrayView3<'_, f32>>,
        wait: Wait,
    ) -> Result<Profile> {
        let start = Instant::now();
        let (forward, end) = match dy {
            None => {
                self.run_forward(None, batch, None, wait).await?;
                (start.elapsed(), start.elapsed())
            }
            Some(_) => {
                let (_, tape) = self.run_forward_train(None, batch, None, wait).await?;
                let forward = start.elapsed();
                self.run_backward(tape, dy, None, GradientsWanted::All, wait).await?;
                (forward, start.elapsed())
            }
        };
        let backward = if dy.is_some() { end - forward } else { Duration::ZERO };
        Ok(Profile { forward, backward, ..Profile::zero() })
    }

    /// Times the chunks one after the other. Each chunk starts from the batch's first states, not
    /// from the previous chunk's last states, which takes equally long.
    async fn time_on_adapter(
        &self,
        shape: Shape,
        batch: Batch<'_>,
        dy: Option<ArrayView3<'_, f32>>,
        by_kernel: bool,
        wait: Wait,
    ) -> Result<Profile> {
        let mode = if dy.is_some() { Mode::Training } else { Mode::Inference };
        let mut executor =
            Executor::new(self.on_adapter()?, shape, mode, RunPurpose::States, wait)?;
        let input = RunInput::new(executor.mode(), None, batch.reborrow())?;
        let forward = ForwardRun::new(&executor, input, None)?;
        let backward = |dy| BackwardRun::new(&executor, Some(ArrayView3::reborrow(dy)), None, None);
        let backward = dy.map(backward).transpose()?;
        let mut timer = PhaseTimer::new(by_kernel);
        executor.run_with(&mut TimedRun { forward, backward }, &mut timer).await?;
        let has_timestamps = self.session_pool()?.gpu().timestamp_period().is_some();
        let time_source = if has_timestamps { TimeSource::Adapter } else { TimeSource::Host };
        let kernels = timer.kernels.map(KernelTimes::into_sorted).unwrap_or_default();
        Ok(Profile { time_source, kernels, ..timer.profile })
    }
}

/// A run whose results are discarded: forward, then in training backward.
struct TimedRun<'a, 'o> {
    forward: ForwardRun<'a, 'o>,
    backward: Option<BackwardRun<'a, 'o>>,
}

impl ChunkedRun for TimedRun<'_, '_> {
    fn passes(&self) -> &'static [Pass] {
        if self.backward.is_some() { &[Pass::Forward, Pass::Backward] } else { &[Pass::Forward] }
    }

    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let at = ChunkPosition { previous: None, ..*at };
        let mut uploads = self.forward.uploads(&at, plan)?;
        if let Some(backward) = &self.backward {
            uploads.extend(backward.uploads(&at, plan)?);
        }
        Ok(uploads)
    }

    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>> {
        let backward = self.backward.iter_mut().flat_map(|backward| backward.reads(at, plan));
        self.forward.reads(at, plan).into_iter().chain(backward).collect()
    }
}

/// Measures the phases of each chunk and waits for the device between them.
struct PhaseTimer {
    /// The start of the current phase.
    start: Instant,
    /// The times and bytes so far, without kernels.
    profile: Profile,
    /// `Some` to time each kernel.
    kernels: Option<KernelTimes>,
}

impl PhaseTimer {
    fn new(by_kernel: bool) -> Self {
        let kernels = by_kernel.then(KernelTimes::default);
        Self { start: Instant::now(), profile: Profile::zero(), kernels }
    }
}

impl Hooks for PhaseTimer {
    async fn before_upload(&mut self, session: &Session, bytes: u64, wait: Wait) -> Result<()> {
        session.gpu().sync(wait).await?;
        self.profile.upload_bytes += bytes;
        self.start = Instant::now();
        Ok(())
    }

    async fn after_upload(&mut self, session: &Session, wait: Wait) -> Result<()> {
        session.gpu().sync(wait).await?;
        self.profile.upload += self.start.elapsed();
        Ok(())
    }

    async fn run(&mut self, session: &mut Session, pass: Pass, wait: Wait) -> Result<()> {
        let time = match &mut self.kernels {
            Some(kernels) => kernels.time(session, pass, wait).await?,
            None => session.time(pass, wait).await?,
        };
        match pass {
            Pass::Forward => self.profile.forward += time,
            Pass::Backward => self.profile.backward += time,
        }
        Ok(())
    }

    fn before_read(&mut self, bytes: u64) {
        self.profile.download_bytes += bytes;
        self.start = Instant::now();
    }

    fn after_read(&mut self) {
        self.profile.download += self.start.elapsed();
    }
}

/// The times of the kernels that have run so far.
#[derive(Default)]
struct KernelTimes {
    times: Vec<KernelTime>,
    /// Kernel and label → the index in `times`.
    indices: HashMap<(String, String), usize>,
}

impl KernelTimes {
    /// Runs a schedule, times each dispatch or stage, and returns the sum of the times.
    async fn time(&mut self, session: &mut Session, pass: Pass, wait: Wait) -> Result<Duration> {
        let timing = session.time_each(pass, wait).await?;
        let stages = session.plan().stages(pass);
        let times = match timing {
            Timing::Dispatches(times) => {
                let dispatches = stages.iter().flat_map(|stage| {
                    let (body, count) = stage.dispatches();
                    std::iter::repeat_n(body, count).flatten()
                });
                for (dispatch, &time) in dispatches.zip(&times) {
                    self.add(std::slice::from_ref(dispatch), 1, time);
                }
                times
            }
            Timing::Stages(times) => {
                for (stage, &time) in stages.iter().zip(&times) {
                    let (body, count) = Stage::dispatches(stage);
                    self.add(body, count, time);
                }
                times
            }
        };
        Ok(times.iter().sum())
    }

    /// Adds the total `time` of `count` runs of the dispatches in `body`.
    fn add(&mut self, body: &[Dispatch], count: usize, time: Duration) {
        let kernel = join_distinct(body.iter().map(|dispatch| dispatch.kernel_name()));
        let label = join_distinct(body.iter().map(|dispatch| strip_cell(&dispatch.label)));
        let key = (kernel, label);
        let index = match self.indices.get(&key) {
            Some(&index) => index,
            None => {
                let (kernel, label) = key.clone();
                let (calls, time, flops, bytes) = Default::default();
                self.times.push(KernelTime { kernel, label, calls, time, flops, bytes });
                self.indices.insert(key, self.times.len() - 1);
                self.times.len() - 1
            }
        };
        let total = &mut self.times[index];
        total.calls += body.len() * count;
        total.time += time;
        total.flops += count as u64 * body.iter().map(|dispatch| dispatch.flops).sum::<u64>();
        total.bytes += count as u64 * body.iter().map(|dispatch| dispatch.bytes).sum::<u64>();
    }

    /// Returns the times, longest first.
    fn into_sorted(self) -> Vec<KernelTime> {
        let mut times = self.times;
        times.sort_by_key(|kernel| std::cmp::Reverse(kernel.time));
        times
    }
}

/// Joins the distinct names in order: `a + b`.
fn join_distinct<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct.join(" + ")
}

/// Removes the steps, the layer and the direction from a dispatch's label:
/// `l1: reverse: dx = da · W_ih` becomes `dx = da · W_ih`.
fn strip_cell(mut label: &str) -> &str {
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_prefix = |word: &str| {
        let span = word.split_once(" down to ").or_else(|| word.split_once(" to "));
        word == "reverse"
            || word.strip_prefix('l').is_some_and(is_number)
            || span.is_some_and(|(first, last)| is_number(first) && is_number(last))
    };
    while let Some((_, rest)) = label.split_once(": ").filter(|(word, _)| is_prefix(word)) {
        label = rest;
    }
    label
}
