//! [`AdapterBackend`]: training on an adapter.

use super::LearnerConfig;
use super::backend::{LearnerBackend, PreparedBatch, RawMetrics};
use crate::error::Result;
use crate::gpu::pool::GradientAccumulator;
use crate::gpu::session::{BufferBinding, Read, Session};
use crate::gpu::wait::Wait;
use crate::model::executor::{
    ChunkPosition, ChunkedRun, Executor, Hooks, RunInput, Upload, UploadData,
};
use crate::model::network::{Network, target_uploads};
use crate::model::state::State;
use crate::plan::{BufferId, Mode, Pass, Plan, REPORT, RunPurpose, SLOTS, UpdateBuffers, numbers};
use crate::spec::config::Shape;
use crate::spec::element::BufferElement;
use crate::spec::head::Head;
use crate::spec::loss::PreparedTargets;
use crate::spec::optimizer::{Clip, OptimizerState, UpdateConstants};
use crate::spec::params::Params;

/// Limit on the bytes of uploads in flight. wgpu holds their memory until they finish.
const MAX_IN_FLIGHT: u64 = 128 << 20;

/// The gradients and moments of a learner on an adapter. It updates the network's parameters in
/// place, on the adapter.
#[derive(Debug)]
pub(super) struct AdapterBackend {
    /// Sum of the gradients and losses of an update's batches. Every run adds to it.
    accumulator: GradientAccumulator,
    update: Session,
    buffers: UpdateBuffers,
    /// Number of updates whose metrics are still on the device.
    pending: usize,
    /// Number of updates queued since creation.
    queued: usize,
    in_flight: InFlight,
}

/// Bytes of batches queued since the last wait.
#[derive(Debug, Default)]
struct InFlight(u64);

impl AdapterBackend {
    pub async fn new(
        network: &Network,
        config: &LearnerConfig,
        moments: &OptimizerState,
        wait: Wait,
    ) -> Result<Self> {
        let len = network.params().layout().flat_len();
        let pool = network.gru().session_pool()?;
        let accumulator = GradientAccumulator::new(pool.gpu(), len).await?;
        let caps = pool.gpu().caps();
        let adam = config.optimizer.is_adam();
        let (plan, buffers) = Plan::of_update(len, adam, config.clip, &caps)?;
        let bound = [
            (buffers.gradient, BufferBinding::from(&accumulator.gradient)),
            (buffers.loss, BufferBinding::from(&accumulator.loss)),
        ];
        network.gru().acquire_params().await?;
        let mut update = pool.create_session_with(plan, buffers.params, &bound).await?;
        for (buffer, data) in
            [(buffers.first_moment, &moments.first), (buffers.second_moment, &moments.second)]
        {
            update.write(buffer, 0, data, wait).await?;
        }
        update.clear(buffers.reports, 0..REPORT * (1 + SLOTS));
        let (pending, queued, in_flight) = Default::default();
        Ok(Self { accumulator, update, buffers, pending, queued, in_flight })
    }

    /// Waits for all queued work and reads whole buffers.
    async fn download<T: BufferElement>(
        &mut self,
        buffers: &[BufferId],
        wait: Wait,
    ) -> Result<Vec<Vec<T>>> {
        let specs = self.update.plan().buffers();
        let whole: Vec<_> = buffers.iter().map(|&id| (id, 0..specs[id.index()].len)).collect();
        self.update.read(&whole, wait).await
    }
}

impl LearnerBackend for AdapterBackend {
    /// Queues a batch. It adds its loss and gradient to those of the update, chunk by chunk if the
    /// batch is split into chunks.
    async fn accumulate(
        &mut self,
        network: &Network,
        batch: PreparedBatch<'_>,
        wait: Wait,
    ) -> Result<Option<State>> {
        let PreparedBatch { loss, shape, state, keeps_last, batch, targets, is_first } = batch;
        let (mode, purpose) = (Mode::Training, RunPurpose::Loss(loss));
        let executor = Executor::new(network.gru().on_adapter()?, shape, mode, purpose, wait)?;
        let mut executor = executor.with_accumulator(&self.accumulator);
        if keeps_last {
            executor.keep_last_states().await?;
        }
        let input = RunInput::new(mode, state, batch)?;
        let mut run = LossRun { input, head: network.head(), shape, targets, is_first };
        executor.run_with(&mut run, &mut self.in_flight).await?;
        Ok(executor.into_last_states())
    }

    async fn gradient(&mut self, wait: Wait) -> Result<(Vec<f32>, f32)> {
        let read = self.download(&[self.buffers.gradient, self.buffers.loss], wait).await?;
        let [gradient, loss] = read.try_into().expect("two buffers were read");
        Ok((gradient, loss[0]))
    }

    async fn loss(&mut self, wait: Wait) -> Result<f64> {
        let read = self.download::<f32>(&[self.buffers.loss], wait).await?;
        Ok(read[0][0].into())
    }

    async fn set_loss(&mut self, loss: f64, wait: Wait) -> Result<()> {
        self.update.write(self.buffers.loss, 0, &[loss as f32], wait).await
    }

    async fn set_gradient(&mut self, flat: &[f32], loss: f32, wait: Wait) -> Result<()> {
        self.update.write(self.buffers.gradient, 0, flat, wait).await?;
        self.update.write(self.buffers.loss, 0, &[loss], wait).await
    }

    async fn apply(
        &mut self,
        _: &mut Network,
        clip: Clip,
        constants: &UpdateConstants,
        wait: Wait,
    ) -> Result<bool> {
        let numbers = numbers(self.queued % SLOTS, clip, constants);
        self.update.write(self.buffers.update, 0, &numbers, wait).await?;
        self.update.run(Pass::Forward).await?;
        self.queued += 1;
        self.pending += 1;
        Ok(self.pending == SLOTS)
    }

    async fn take_metrics(&mut self, wait: Wait) -> Result<Vec<RawMetrics>> {
        if self.pending == 0 {
            return Ok(Vec::new());
        }
        let reports = self.download::<u32>(&[self.buffers.reports], wait).await?.swap_remove(0);
        let metrics = |queued: usize| {
            let at = REPORT * (1 + queued % SLOTS);
            let [loss, norm, largest, index, stopped] = [0, 1, 2, 3, 4].map(|i| reports[at + i]);
            let [loss, norm, largest] = [loss, norm, largest].map(f32::from_bits);
            RawMetrics { loss, norm, largest, index: index as usize, applied: stopped == 0 }
        };
        let metrics: Vec<_> = (self.queued - self.pending..self.queued).map(metrics).collect();
        self.pending = 0;
        self.in_flight = InFlight::default();
        if metrics.iter().any(|metrics| !metrics.applied) {
            // Clear the stop flag, so that the next update can be applied.
            self.update.clear(self.buffers.reports, 0..1);
        }
        Ok(metrics)
    }

    async fn params(&mut self, network: &Network, wait: Wait) -> Result<Params> {
        let flat = self.download(&[self.buffers.params], wait).await?.swap_remove(0);
        Ok(Params::from_flat(network.params().layout().clone(), flat))
    }

    async fn state(&mut self, network: &Network, wait: Wait) -> Result<(Params, [Vec<f32>; 2])> {
        let UpdateBuffers { params, first_moment, second_moment, .. } = self.buffers;
        let read = self.download(&[params, first_moment, second_moment], wait).await?;
        let [flat, first, second] = read.try_into().expect("three buffers were read");
        Ok((Params::from_flat(network.params().layout().clone(), flat), [first, second]))
    }
}

/// The run of one batch: from x and targets to the loss and the parameters' gradient, which stay on
/// the device.
struct LossRun<'a> {
    input: RunInput<'a>,
    head: Head,
    shape: Shape,
    targets: &'a PreparedTargets,
    /// True for the first batch of an update: clears the accumulated loss and gradient first.
    is_first: bool,
}

impl ChunkedRun for LossRun<'_> {
    fn passes(&self) -> &'static [Pass] {
        &[Pass::Forward, Pass::Backward]
    }

    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let training =
            plan.run_buffers().training.as_ref().expect("a training plan has training buffers");
        let zeros = |buffer: BufferId| {
            let range = 0..plan.spec(buffer).len;
            Upload { buffer, range, data: UploadData::Zeros }
        };
        let mut uploads = self.input.uploads(at, plan, None)?;
        uploads.extend(target_uploads(self.targets, &self.head, self.shape, at, plan));
        uploads.push(zeros(training.dstates));
        if self.is_first && at.previous.is_none() {
            uploads.extend([training.dparams, plan.loss_buffers().sum].map(zeros));
        }
        Ok(uploads)
    }

    fn reads<'s>(&'s mut self, _: &ChunkPosition<'_>, _: &Plan) -> Vec<Read<'s, f32>> {
        Vec::new()
    }
}

impl Hooks for InFlight {
    /// Waits for the uploads in flight if this one would exceed the limit.
    async fn before_upload(&mut self, session: &Session, bytes: u64, wait: Wait) -> Result<()> {
        let Self(in_flight) = self;
        if *in_flight > 0 && *in_flight + bytes > MAX_IN_FLIGHT {
            session.gpu().sync(wait).await?;
            *in_flight = 0;
        }
        *in_flight += bytes;
        Ok(())
    }
}
