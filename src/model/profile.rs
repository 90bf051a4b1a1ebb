//! [`Profile`]: where the time of a run goes, by the clocks of the host and the device.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use ndarray::ArrayView3;

use crate::cpu::GradientsWanted;
use crate::error::Result;
use crate::gpu::clock::Instant;
use crate::gpu::session::{Session, Timing};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::executor::{
    BackwardRun, ChunkPosition, ChunkedRun, Executor, ForwardRun, Hooks, RunInput, Upload,
};
use crate::model::gru::Gru;
use crate::plan::{BufferId, Dispatch, Mode, Pass, Plan, RunPurpose, Stage};
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;

#[cfg(test)]
mod tests;

/// Which clock said how long the device was computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The adapter's own, by timestamps.
    Adapter,
    /// The host's, which sees the way there and back too.
    Host,
}

/// Where the time of a run went; see [`Gru::time`] and [`Gru::profile`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// Inputs on their way to the device, by the host's clock. Nothing on the CPU.
    pub upload: Duration,
    /// The forward schedule.
    pub forward: Duration,
    /// The backward schedule, where there was one.
    pub backward: Duration,
    /// Results on their way back, by the host's clock. Nothing on the CPU.
    pub download: Duration,
    /// What `forward`, `backward` and `kernels` were measured with.
    pub clock: Clock,
    /// The kernels, the one that took longest first. Of [`Gru::profile`] on an adapter alone.
    pub kernels: Vec<KernelTime>,
}

impl Profile {
    /// Forward and backward: the time with all data on the device.
    pub fn compute(&self) -> Duration {
        self.forward + self.backward
    }

    /// Everything.
    pub fn total(&self) -> Duration {
        self.upload + self.compute() + self.download
    }
}

/// What all dispatches of a kernel for one purpose took together, over all steps, layers and
/// directions.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KernelTime {
    /// The kernel's name.
    pub kernel: String,
    /// What it computes, for people, as in the plan: `dx = da · W_ih`.
    pub label: String,
    /// How many dispatches there were.
    pub calls: usize,
    /// How long they took.
    pub time: Duration,
    /// Multiplications and additions of their products.
    pub flops: u64,
    /// Bytes they had to move at least.
    pub bytes: u64,
}

impl KernelTime {
    /// Billions of operations a second.
    pub fn gflops(&self) -> f64 {
        rate(self.flops, self.time)
    }

    /// Billions of bytes a second that had to be moved; caches may have moved fewer.
    pub fn gbytes(&self) -> f64 {
        rate(self.bytes, self.time)
    }
}

fn rate(amount: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { amount as f64 / seconds / 1e9 } else { 0.0 }
}

impl Gru {
    blocking_and_async! {
        /// Runs the model once, for its time: forward, and with `dy` training, that is forward and
        /// backward.
        ///
        /// The device computes exactly as in [`Self::forward`] or [`Self::forward_train`] and
        /// [`Self::backward`], with a wait between upload, computing and download so that each can
        /// be told. The parameters are on the device before, and so is whatever a first run makes:
        /// run once to warm up.
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
        /// As the calls that it stands for.
        pub fn time, time_async<'a>(
            &self,
            batch: impl Into<Batch<'a>>,
            dy: Option<ArrayView3<'_, f32>>,
        ) -> Result<Profile> {
            |wait| self.run_timed(batch.into(), dy, false, wait)
        }

        /// As [`Self::time`], with each kernel timed for itself: every dispatch begins when the one
        /// before has ended, so the sum may be more than [`Self::time`] says. Without timestamps a
        /// row is a stage of the plan, all steps of a loop together, with the way to the device and
        /// back.
        ///
        /// # Errors
        /// As [`Self::time`].
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
        if dy.is_some() {
            batch.noise(self.config(), Mode::Training)?;
            reference::check_gradients(&shape, dy.map(|d| d.dim()), None)?;
        }
        match self.device().is_adapter() {
            true => self.timed_on(shape, batch, dy, by_kernel, wait).await,
            false => self.timed_on_cpu(batch, dy, wait).await,
        }
    }

    async fn timed_on_cpu(
        &self,
        batch: Batch<'_>,
        dy: Option<ArrayView3<'_, f32>>,
        wait: Wait,
    ) -> Result<Profile> {
        let start = Instant::now();
        let (forward, end) = match dy {
            None => {
                self.run_forward(None, batch, wait).await?;
                (start.elapsed(), start.elapsed())
            }
            Some(_) => {
                let (_, tape) = self.run_forward_train(None, batch, wait).await?;
                let forward = start.elapsed();
                self.run_backward(tape, dy, None, GradientsWanted::All, wait).await?;
                (forward, start.elapsed())
            }
        };
        Ok(Profile {
            upload: Duration::ZERO,
            forward,
            backward: if dy.is_some() { end - forward } else { Duration::ZERO },
            download: Duration::ZERO,
            clock: Clock::Host,
            kernels: Vec::new(),
        })
    }

    /// Chunk after chunk, where there are several; each from its own start, which takes as long.
    async fn timed_on(
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
        let input = RunInput::new(&executor, None, batch.reborrow()).await?;
        let forward = ForwardRun::new(&executor, input)?;
        let backward = |dy| BackwardRun::new(&executor, Some(ArrayView3::reborrow(dy)), None);
        let backward = dy.map(backward).transpose()?;
        let mut stopwatch = PhaseTimer::new(by_kernel);
        executor.run_with(&mut TimedRun { forward, backward }, &mut stopwatch).await?;
        let has_clock = self.session_pool()?.gpu().timestamp_period().is_some();
        let clock = if has_clock { Clock::Adapter } else { Clock::Host };
        let PhaseTimer { upload, forward, backward, download, kernels, .. } = stopwatch;
        let kernels = kernels.map(KernelTimes::sorted).unwrap_or_default();
        Ok(Profile { upload, forward, backward, download, clock, kernels })
    }
}

/// Forward, and in training backward at once, for its time alone.
struct TimedRun<'a> {
    forward: ForwardRun<'a>,
    backward: Option<BackwardRun<'a>>,
}

impl ChunkedRun for TimedRun<'_> {
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

    fn reads(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<(BufferId, Range<usize>)> {
        let of_backward = self.backward.iter().flat_map(|backward| backward.reads(at, plan));
        self.forward.reads(at, plan).into_iter().chain(of_backward).collect()
    }

    fn collect(&mut self, _: &ChunkPosition<'_>, _: Vec<Vec<f32>>) -> Result<()> {
        Ok(())
    }
}

/// Measures the phases of each chunk, with a wait between them.
struct PhaseTimer {
    /// When the present phase began.
    begun: Instant,
    upload: Duration,
    forward: Duration,
    backward: Duration,
    download: Duration,
    /// Where each kernel is timed for itself.
    kernels: Option<KernelTimes>,
}

impl PhaseTimer {
    fn new(by_kernel: bool) -> Self {
        let [upload, forward, backward, download] = [Duration::ZERO; 4];
        let kernels = by_kernel.then(KernelTimes::default);
        Self { begun: Instant::now(), upload, forward, backward, download, kernels }
    }
}

impl Hooks for PhaseTimer {
    async fn before_upload(&mut self, session: &Session, _: u64, wait: Wait) -> Result<()> {
        session.gpu().sync(wait).await?;
        self.begun = Instant::now();
        Ok(())
    }

    async fn after_upload(&mut self, session: &Session, wait: Wait) -> Result<()> {
        session.gpu().sync(wait).await?;
        self.upload += self.begun.elapsed();
        Ok(())
    }

    async fn run(&mut self, session: &mut Session, pass: Pass, wait: Wait) -> Result<()> {
        let time = match &mut self.kernels {
            Some(kernels) => kernels.time(session, pass, wait).await?,
            None => session.time(pass, wait).await?,
        };
        match pass {
            Pass::Forward => self.forward += time,
            Pass::Backward => self.backward += time,
        }
        Ok(())
    }

    fn before_read(&mut self) {
        self.begun = Instant::now();
    }

    fn after_read(&mut self) {
        self.download += self.begun.elapsed();
    }
}

/// What has been timed so far.
#[derive(Default)]
struct KernelTimes {
    rows: Vec<KernelTime>,
    /// The index in `rows` of a kernel with a label.
    indices: HashMap<(String, String), usize>,
}

impl KernelTimes {
    /// Runs a schedule part by part, and gives the sum of their times.
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

    /// Adds what the dispatches of `body` took together, each of them called `count` times.
    fn add(&mut self, body: &[Dispatch], count: usize, time: Duration) {
        let kernel = joined(body.iter().map(|dispatch| dispatch.kernel_name()));
        let label = joined(body.iter().map(|dispatch| without_cell(&dispatch.label)));
        let key = (kernel, label);
        let index = match self.indices.get(&key) {
            Some(&index) => index,
            None => {
                let (kernel, label) = key.clone();
                let (calls, time, flops, bytes) = Default::default();
                self.rows.push(KernelTime { kernel, label, calls, time, flops, bytes });
                self.indices.insert(key, self.rows.len() - 1);
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[index];
        row.calls += body.len() * count;
        row.time += time;
        row.flops += count as u64 * body.iter().map(|dispatch| dispatch.flops).sum::<u64>();
        row.bytes += count as u64 * body.iter().map(|dispatch| dispatch.bytes).sum::<u64>();
    }

    fn sorted(self) -> Vec<KernelTime> {
        let mut rows = self.rows;
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
        rows
    }
}

/// The different ones of `words`, in order.
fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for word in words {
        if !seen.contains(&word) {
            seen.push(word);
        }
    }
    seen.join(" + ")
}

/// A dispatch's label without its steps, layer and direction: `dx = da · W_ih` of `l1: reverse: dx
/// = …`.
fn without_cell(mut label: &str) -> &str {
    let number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_place = |word: &str| {
        let span = word.split_once(" down to ").or_else(|| word.split_once(" to "));
        word == "reverse"
            || word.strip_prefix('l').is_some_and(number)
            || span.is_some_and(|(first, last)| number(first) && number(last))
    };
    while let Some((_, rest)) = label.split_once(": ").filter(|(word, _)| is_place(word)) {
        label = rest;
    }
    label
}
