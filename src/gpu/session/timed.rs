//! Timed runs of a schedule: as a whole, or each dispatch or stage by itself.

use std::time::Duration;

use super::{PreparedDispatch, Prologue, Session};
use crate::clock::Instant;
use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::wait::Wait;
use crate::plan::Pass;

/// Dispatches timed by one query set. WebGPU allows 4096 queries per set; a dispatch takes two.
const TIMED_DISPATCHES: usize = 2048;

/// Durations measured within a schedule, in the order in which its work ran.
#[derive(Debug)]
pub(crate) enum Timing {
    /// The duration of each dispatch, by the adapter's timestamps.
    Dispatches(Vec<Duration>),
    /// The duration of each stage, by the host's clock: the time to submit it and wait for it. Used
    /// if the device has no timestamps.
    Stages(Vec<Duration>),
}

/// The timestamp queries of a schedule's compute passes. The first pass writes its beginning to
/// query 0. Every pass writes its end to query 1, which in the end holds the last pass's.
pub(super) struct PassTimestamps<'a> {
    queries: &'a wgpu::QuerySet,
    started: bool,
}

impl<'a> PassTimestamps<'a> {
    pub fn next_pass(&mut self) -> wgpu::ComputePassTimestampWrites<'a> {
        let first = !std::mem::replace(&mut self.started, true);
        wgpu::ComputePassTimestampWrites {
            query_set: self.queries,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: Some(1),
        }
    }
}

/// A query set of timestamps, and the buffer that they are resolved to.
struct TimestampQueries {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// Nanoseconds per tick.
    period: f64,
}

impl TimestampQueries {
    /// Creates queries for `count` timestamps, or returns `None` if the device has no timestamps.
    async fn new(gpu: &Gpu, count: usize) -> Result<Option<Self>> {
        use wgpu::BufferUsages as Usage;
        let Some(period) = gpu.timestamp_period() else { return Ok(None) };
        let create = || {
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
            Ok(Self { queries, resolved, period })
        };
        gpu.guard(create).await.map(Some)
    }

    /// Waits for all queued work and returns the time from each even query to the next odd query.
    async fn read(&self, gpu: &Gpu, count: usize, wait: Wait) -> Result<Vec<Duration>> {
        let resolve = || {
            let mut encoder = gpu.encoder("timestamps");
            encoder.resolve_query_set(&self.queries, 0..count as u32, &self.resolved, 0);
            gpu.submit(encoder.finish());
            Ok(())
        };
        gpu.guard(resolve).await?;
        // A timestamp is a u64, read as two u32: the low half, then the high half.
        let halves: Vec<u32> =
            gpu.download(&[(&self.resolved, 0, 2 * count)], wait).await?.swap_remove(0);
        let timestamp = |low: usize| u64::from(halves[low + 1]) << 32 | u64::from(halves[low]);
        let ticks = |pair: usize| timestamp(4 * pair + 2).saturating_sub(timestamp(4 * pair));
        let duration = |ticks: u64| Duration::from_nanos((ticks as f64 * self.period) as u64);
        Ok((0..count / 2).map(ticks).map(duration).collect())
    }
}

impl Session {
    /// Runs one of the plan's schedules as [`Self::run`] does, waits for it, and returns its
    /// duration: from the beginning of the first compute pass to the end of the last by the
    /// adapter's timestamps, or by the host's clock if the device has no timestamps.
    pub async fn time(&mut self, pass: Pass, wait: Wait) -> Result<Duration> {
        // The session stays broken if the caller drops this future before it completes.
        let broken = std::mem::replace(&mut self.broken, true);
        let time = self.time_once(pass, wait).await?;
        self.broken = broken;
        Ok(time)
    }

    async fn time_once(&mut self, pass: Pass, wait: Wait) -> Result<Duration> {
        let queries = TimestampQueries::new(&self.gpu, 2).await?;
        self.gpu.sync(wait).await?;
        let start = Instant::now();
        let prologue = self.take_prologue(pass);
        let queue = || {
            let timestamps =
                queries.as_ref().map(|q| PassTimestamps { queries: &q.queries, started: false });
            self.queue(pass, &prologue, timestamps);
            Ok(())
        };
        self.gpu.guard(queue).await?;
        match queries {
            Some(queries) => Ok(queries.read(&self.gpu, 2, wait).await?.remove(0)),
            None => {
                self.gpu.sync(wait).await?;
                Ok(start.elapsed())
            }
        }
    }

    /// Runs one of the plan's schedules and times each dispatch, or each stage if the device has no
    /// timestamps.
    pub async fn time_each(&mut self, pass: Pass, wait: Wait) -> Result<Timing> {
        // The session stays broken if the caller drops this future before it completes.
        let broken = std::mem::replace(&mut self.broken, true);
        let prologue = self.take_prologue(pass);
        self.run_prologue(&prologue).await?;
        let timing = match TimestampQueries::new(&self.gpu, 2 * TIMED_DISPATCHES).await? {
            Some(queries) => Timing::Dispatches(self.time_dispatches(pass, &queries, wait).await?),
            None => Timing::Stages(self.time_stages(pass, wait).await?),
        };
        self.broken = broken;
        Ok(timing)
    }

    async fn run_prologue(&self, prologue: &[Prologue]) -> Result<()> {
        let queue = || {
            let mut encoder = self.gpu.encoder("prologue");
            prologue.iter().for_each(|prologue| self.encode_prologue(prologue, &mut encoder));
            self.gpu.submit(encoder.finish());
            Ok(())
        };
        self.gpu.guard(queue).await
    }

    /// Runs and times each dispatch in its own compute pass.
    async fn time_dispatches(
        &self,
        pass: Pass,
        queries: &TimestampQueries,
        wait: Wait,
    ) -> Result<Vec<Duration>> {
        let max_flops = self.plan.submit_flops();
        let mut times = Vec::new();
        let mut dispatches = self.dispatches(pass, 0).peekable();
        while dispatches.peek().is_some() {
            let (mut flops, mut batch): (u64, Vec<(&PreparedDispatch, usize)>) = Default::default();
            while let Some((dispatch, block)) =
                dispatches.next_if(|_| flops < max_flops && batch.len() < TIMED_DISPATCHES)
            {
                flops += dispatch.flops;
                batch.push((dispatch, block));
            }
            let queue = || {
                let mut encoder = self.gpu.encoder(pass.name());
                for (&dispatch, query) in batch.iter().zip((0..).step_by(2)) {
                    let writes = wgpu::ComputePassTimestampWrites {
                        query_set: &queries.queries,
                        beginning_of_pass_write_index: Some(query),
                        end_of_pass_write_index: Some(query + 1),
                    };
                    let dispatch = std::iter::once(dispatch);
                    self.encode_dispatches(&mut encoder, pass, dispatch, Some(writes));
                }
                self.gpu.submit(encoder.finish());
                Ok(())
            };
            self.gpu.guard(queue).await?;
            times.extend(queries.read(&self.gpu, 2 * batch.len(), wait).await?);
        }
        Ok(times)
    }

    /// Runs and times each stage in its own submit, or in several submits if it is long.
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
