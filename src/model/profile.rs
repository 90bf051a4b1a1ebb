//! [`Profile`]: where the time of a run goes. Nothing else in this library looks at a clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ndarray::ArrayView3;

use crate::cpu::Asked;
use crate::error::Result;
use crate::gpu::pool::PooledSession;
use crate::gpu::session::Timing;
use crate::gpu::transfer::Wait;
use crate::model::executor::{Input, download_output, upload_gradients};
use crate::model::gru::Gru;
use crate::plan::{Dispatch, Mode, Pass, Purpose, Stage};
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::Shape;

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
    /// Runs the model once, for its time: forward, and with `dy` training, that is forward and backward.
    ///
    /// The device computes exactly as in [`Self::forward`] or [`Self::forward_train`] and
    /// [`Self::backward`], with a wait between upload, computing and download so that each can be
    /// told. The parameters are on the device before, and so is whatever a first run makes: run once
    /// to warm up.
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
    pub fn time<'a>(
        &self,
        batch: impl Into<Batch<'a>>,
        dy: Option<ArrayView3<'_, f32>>,
    ) -> Result<Profile> {
        pollster::block_on(self.run_timed(batch.into(), dy, false, Wait::Block))
    }

    /// As [`Self::time`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::time`].
    pub async fn time_async<'a>(
        &self,
        batch: impl Into<Batch<'a>>,
        dy: Option<ArrayView3<'_, f32>>,
    ) -> Result<Profile> {
        self.run_timed(batch.into(), dy, false, Wait::Async).await
    }

    /// As [`Self::time`], with each kernel timed for itself: every dispatch begins when the one before
    /// has ended, so the sum may be more than [`Self::time`] says. Without timestamps a row is a stage
    /// of the plan, all steps of a loop together, with the way to the device and back.
    ///
    /// # Errors
    /// As [`Self::time`].
    pub fn profile<'a>(
        &self,
        batch: impl Into<Batch<'a>>,
        dy: Option<ArrayView3<'_, f32>>,
    ) -> Result<Profile> {
        pollster::block_on(self.run_timed(batch.into(), dy, true, Wait::Block))
    }

    /// As [`Self::profile`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::profile`].
    pub async fn profile_async<'a>(
        &self,
        batch: impl Into<Batch<'a>>,
        dy: Option<ArrayView3<'_, f32>>,
    ) -> Result<Profile> {
        self.run_timed(batch.into(), dy, true, Wait::Async).await
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
                self.run_backward(tape, dy, None, Asked::All, wait).await?;
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

    /// Piece after piece, where there are several; each from its own start, which takes as long.
    async fn timed_on(
        &self,
        shape: Shape,
        batch: Batch<'_>,
        dy: Option<ArrayView3<'_, f32>>,
        by_kernel: bool,
        wait: Wait,
    ) -> Result<Profile> {
        let mode = if dy.is_some() { Mode::Training } else { Mode::Inference };
        let chunks = self.chunks_of(shape, mode, Purpose::States)?;
        let input = Input::new(shape, mode, &chunks, None, batch, wait).await?;
        let mut kernels = Kernels::default();
        let [mut upload, mut forward, mut backward, mut download] = [Duration::ZERO; 4];
        for chunk in &chunks {
            let part = chunk.shape(shape);
            let mut session = self.session(part, mode, Purpose::States, None).await?;
            let gpu = session.gpu().clone();
            gpu.sync(wait).await?;

            let start = Instant::now();
            input.upload(&mut session, chunk, None).await?;
            if let Some(dy) = dy {
                let dy = chunk.of_sequence(dy, shape.layout);
                upload_gradients(&mut session, part, Some(dy), None).await?;
            }
            gpu.sync(wait).await?;
            upload += start.elapsed();

            let passes = [(Pass::Forward, &mut forward), (Pass::Backward, &mut backward)];
            for (pass, time) in passes.into_iter().take(if dy.is_some() { 2 } else { 1 }) {
                *time += match by_kernel {
                    true => kernels.time(&mut session, pass, wait).await?,
                    false => session.time(pass, wait).await?,
                };
            }

            let start = Instant::now();
            download_output(&mut session, part, wait).await?;
            if dy.is_some() {
                self.download_gradients(&mut session, part, wait).await?;
            }
            download += start.elapsed();
        }
        let has_clock = self.session_pool()?.gpu().tick().is_some();
        let clock = if has_clock { Clock::Adapter } else { Clock::Host };
        Ok(Profile { upload, forward, backward, download, clock, kernels: kernels.sorted() })
    }
}

/// What has been timed so far.
#[derive(Default)]
struct Kernels {
    rows: Vec<KernelTime>,
    /// Where in `rows` a kernel with a label is.
    places: HashMap<(String, String), usize>,
}

impl Kernels {
    /// Runs a schedule part by part, and gives the sum of their times.
    async fn time(
        &mut self,
        session: &mut PooledSession,
        pass: Pass,
        wait: Wait,
    ) -> Result<Duration> {
        let timing = session.time_parts(pass, wait).await?;
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
        let place = match self.places.get(&key) {
            Some(&place) => place,
            None => {
                let (kernel, label) = key.clone();
                let (calls, time, flops, bytes) = Default::default();
                self.rows.push(KernelTime { kernel, label, calls, time, flops, bytes });
                self.places.insert(key, self.rows.len() - 1);
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[place];
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

/// A dispatch's label without its steps, layer and direction: `dx = da · W_ih` of `l1: reverse: dx = …`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::{Device, test_device};
    use crate::spec::config::{Direction, GruConfig};
    use crate::spec::options::{Recurrence, RunOptions};
    use crate::spec::params::Init;
    use ndarray::Array3;

    /// Of a model of two layers in both directions.
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

    /// Calls, FLOPs and bytes of the plan's dispatches.
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
    fn every_dispatch_of_the_plan_is_in_the_profile_once() {
        let (device, _) = test_device();
        let plain = RunOptions::default();
        let others = [
            plain.with_recurrence(Recurrence::Step),
            plain.with_recurrence(Recurrence::Sequence),
            plain.with_recompute(true),
        ];
        for options in [plain].into_iter().chain(others) {
            for config in [GruConfig::new(4, 5), GruConfig::pytorch(4, 5)] {
                for train in [false, true] {
                    assert_whole(&device, config.clone(), train, options);
                }
            }
        }
        // And without timestamps.
        assert_whole(&device.with_default_limits().unwrap(), GruConfig::new(4, 5), true, plain);
    }

    fn assert_whole(device: &Device, config: GruConfig, train: bool, options: RunOptions) {
        let (profile, stages) = profile(device, config, train, options);
        let rows = &profile.kernels;
        let of_rows = [
            rows.iter().map(|row| row.calls as u64).sum(),
            rows.iter().map(|row| row.flops).sum(),
            rows.iter().map(|row| row.bytes).sum::<u64>(),
        ];
        assert_eq!(of_rows, sums(&stages), "{rows:?}");
        assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row.time)));
        let time: Duration = rows.iter().map(|row| row.time).sum();
        assert_eq!(time, profile.compute());
        assert!(train || profile.backward == Duration::ZERO);
        let labels = rows.iter().map(|row| &row.label);
        let named = |word: &str| labels.clone().any(|label| label.contains(word));
        assert!(!named("l0") && !named("l1") && !named("reverse"), "{rows:?}");
    }

    #[test]
    fn a_label_says_what_and_not_where() {
        for label in ["dx = da", "l1: dx = da", "l0: reverse: dx = da", "reverse: dx = da"] {
            assert_eq!(without_cell(label), "dx = da");
        }
        for label in ["0 to 15: l0: r, z; h'", "16 down to 0: r, z; h'", "r, z; h'"] {
            assert_eq!(without_cell(label), "r, z; h'");
        }
        assert_eq!(without_cell("other: dx = da"), "other: dx = da");
    }

    #[test]
    fn more_dispatches_than_a_query_set_holds_are_all_timed() {
        let (device, gpu) = test_device();
        let gru = Gru::new(GruConfig::pytorch(1, 1), Init::Uniform, 1, &device).unwrap();
        let x = Array3::ones((2100, 1, 1));
        let step = crate::spec::options::RunOptions::default()
            .with_recurrence(crate::spec::options::Recurrence::Step);
        let profile = gru.with_options(step).profile(&x, None).unwrap();
        let calls: usize = profile.kernels.iter().map(|row| row.calls).sum();
        assert_eq!(calls, 2101);
        let clock = if gpu.tick().is_some() { Clock::Adapter } else { Clock::Host };
        assert_eq!(profile.clock, clock);
    }

    #[test]
    fn a_timed_run_leaves_the_next_ones_numbers_as_they_were() {
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
    fn the_cpu_has_one_time_and_no_kernels() {
        let plain = RunOptions::default();
        let (profile, _) = profile(&Device::cpu(), GruConfig::new(4, 5), true, plain);
        assert!(profile.kernels.is_empty() && profile.clock == Clock::Host);
        assert_eq!((profile.upload, profile.download), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn what_cannot_run_cannot_be_timed() {
        let (device, _) = test_device();
        for device in [Device::cpu(), device] {
            let gru = Gru::new(GruConfig::new(4, 5), Init::Uniform, 1, &device).unwrap();
            let (x, dy) = (Array3::ones((6, 3, 4)), Array3::ones((6, 3, 4)));
            let error = gru.time(&x, Some(dy.view())).unwrap_err();
            assert!(matches!(error, crate::Error::Shape { .. }), "{error}");
        }
    }
}
