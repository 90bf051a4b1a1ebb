//! Timing a schedule, as a whole or dispatch by dispatch.

use std::time::Duration;

use super::{PreparedDispatch, Prologue, Session, encode_dispatches};
use crate::error::Result;
use crate::gpu::clock::Instant;
use crate::gpu::context::Gpu;
use crate::gpu::wait::Wait;
use crate::plan::Pass;

/// Dispatches timed with one query set. WebGPU allows 4096 queries per set, and each dispatch takes
/// two.
const TIMED_DISPATCHES: usize = 2048;

/// The time of each part of a schedule, by the most precise clock available.
#[derive(Debug)]
pub(crate) enum Timing {
    /// By the adapter's timestamps: the time of each dispatch, in order of execution.
    Dispatches(Vec<Duration>),
    /// By the host's clock, around a submit and the wait for it: the time of each stage.
    Stages(Vec<Duration>),
}

/// The timestamps that a schedule's compute passes write. Query 0 gets the start of the first pass.
/// Query 1 gets the end of every pass, so it finally holds the end of the last one.
pub(super) struct PassTimestamps<'a> {
    queries: &'a wgpu::QuerySet,
    begun: bool,
}

impl<'a> PassTimestamps<'a> {
    pub fn next_pass(&mut self) -> wgpu::ComputePassTimestampWrites<'a> {
        let first = !std::mem::replace(&mut self.begun, true);
        wgpu::ComputePassTimestampWrites {
            query_set: self.queries,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: Some(1),
        }
    }
}

/// A query set and the buffers to read it back.
struct TimestampQueries {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// Nanoseconds per tick.
    tick: f64,
}

impl TimestampQueries {
    /// Creates a set of `count` timestamps, or `None` if the device has none.
    async fn new(gpu: &Gpu, count: usize) -> Result<Option<Self>> {
        use wgpu::BufferUsages as Usage;
        let Some(tick) = gpu.tick() else { return Ok(None) };
        let make = || {
            let queries = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("gru.timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: count as u32,
            });
            let resolved = gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some("gru.timestamps"),
                size: 8 * count as u64,
                usage: Usage::QUERY_RESOLVE | Usage::COPY_SRC,
                mapped_at_creation: false,
            });
            Ok(Self { queries, resolved, tick })
        };
        gpu.guard(make).await.map(Some)
    }

    /// Waits for the queued work and returns the time from each even query to the next odd one.
    async fn read(&self, gpu: &Gpu, count: usize, wait: Wait) -> Result<Vec<Duration>> {
        let resolve = || {
            let mut encoder = gpu.encoder("timestamps");
            encoder.resolve_query_set(&self.queries, 0..count as u32, &self.resolved, 0);
            gpu.submit(encoder.finish());
            Ok(())
        };
        gpu.guard(resolve).await?;
        // Each is a u64, which shaders do not have: its low half, then its high half.
        let halves: Vec<u32> =
            gpu.download(&[(&self.resolved, 0, 2 * count)], wait).await?.swap_remove(0);
        let stamp = |low: usize| u64::from(halves[low + 1]) << 32 | u64::from(halves[low]);
        let between = |pair: usize| stamp(4 * pair + 2).saturating_sub(stamp(4 * pair));
        let time = |ticks: u64| Duration::from_nanos((ticks as f64 * self.tick) as u64);
        Ok((0..count / 2).map(between).map(time).collect())
    }
}

impl Session {
    /// Runs one of the plan's schedules like [`Self::run`], waits for it, and returns its time:
    /// from the start of its first compute pass to the end of its last by the adapter's timestamps,
    /// or by the host's clock if there are none.
    pub async fn time(&mut self, pass: Pass, wait: Wait) -> Result<Duration> {
        // The caller may drop this future before it is done.
        let broken = std::mem::replace(&mut self.broken, true);
        let time = self.time_once(pass, wait).await?;
        self.broken = broken;
        Ok(time)
    }

    async fn time_once(&mut self, pass: Pass, wait: Wait) -> Result<Duration> {
        let clock = TimestampQueries::new(&self.gpu, 2).await?;
        self.gpu.sync(wait).await?;
        let start = Instant::now();
        let prologue = self.take_prologue(pass);
        let queue = || {
            let stamps =
                clock.as_ref().map(|c| PassTimestamps { queries: &c.queries, begun: false });
            self.queue(pass, &prologue, stamps);
            Ok(())
        };
        self.gpu.guard(queue).await?;
        match clock {
            Some(clock) => Ok(clock.read(&self.gpu, 2, wait).await?.remove(0)),
            None => {
                self.gpu.sync(wait).await?;
                Ok(start.elapsed())
            }
        }
    }

    /// Runs one of the plan's schedules in parts and times each part.
    pub async fn time_parts(&mut self, pass: Pass, wait: Wait) -> Result<Timing> {
        // The caller may drop this future before it is done.
        let broken = std::mem::replace(&mut self.broken, true);
        let prologue = self.take_prologue(pass);
        self.run_prologue(&prologue).await?;
        let timing = match TimestampQueries::new(&self.gpu, 2 * TIMED_DISPATCHES).await? {
            Some(clock) => Timing::Dispatches(self.time_dispatches(pass, &clock, wait).await?),
            None => Timing::Stages(self.time_stages(pass, wait).await?),
        };
        self.broken = broken;
        Ok(timing)
    }

    async fn run_prologue(&self, prologue: &[Prologue]) -> Result<()> {
        let queue = || {
            let mut encoder = self.gpu.encoder("ahead");
            prologue.iter().for_each(|prologue| self.encode_prologue(prologue, &mut encoder));
            self.gpu.submit(encoder.finish());
            Ok(())
        };
        self.gpu.guard(queue).await
    }

    /// Runs each dispatch in its own compute pass.
    async fn time_dispatches(
        &self,
        pass: Pass,
        clock: &TimestampQueries,
        wait: Wait,
    ) -> Result<Vec<Duration>> {
        let most = self.plan.submit_flops();
        let mut times = Vec::new();
        let mut dispatches = self.dispatches(pass, 0).peekable();
        while dispatches.peek().is_some() {
            let (mut flops, mut batch): (u64, Vec<(&PreparedDispatch, usize)>) = Default::default();
            while let Some((dispatch, block)) =
                dispatches.next_if(|_| flops < most && batch.len() < TIMED_DISPATCHES)
            {
                flops += dispatch.flops;
                batch.push((dispatch, block));
            }
            let queue = || {
                let mut encoder = self.gpu.encoder(pass.name());
                for (&dispatch, query) in batch.iter().zip((0..).step_by(2)) {
                    let writes = wgpu::ComputePassTimestampWrites {
                        query_set: &clock.queries,
                        beginning_of_pass_write_index: Some(query),
                        end_of_pass_write_index: Some(query + 1),
                    };
                    encode_dispatches(&mut encoder, pass, std::iter::once(dispatch), Some(writes));
                }
                self.gpu.submit(encoder.finish());
                Ok(())
            };
            self.gpu.guard(queue).await?;
            times.extend(clock.read(&self.gpu, 2 * batch.len(), wait).await?);
        }
        Ok(times)
    }

    /// Runs each stage in its own submit, or in several submits if it is long.
    async fn time_stages(&self, pass: Pass, wait: Wait) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for stage in self.stages(pass) {
            self.gpu.sync(wait).await?;
            let start = Instant::now();
            let queue = || {
                self.queue_dispatches(pass, &[], stage.dispatches(), None);
                Ok(())
            };
            self.gpu.guard(queue).await?;
            self.gpu.sync(wait).await?;
            times.push(start.elapsed());
        }
        Ok(times)
    }
}
