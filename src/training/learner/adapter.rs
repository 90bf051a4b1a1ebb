//! Training on an adapter.

use std::borrow::Cow;

use super::{LearnerConfig, Part, RawMetrics};
use crate::error::Result;
use crate::gpu::pool::GradientAccumulator;
use crate::gpu::session::{Bound, Session};
use crate::gpu::transfer::Wait;
use crate::model::executor::Input;
use crate::model::network::Network;
use crate::plan::{Mode, Pass, Plan, Purpose, REPORT, SLOTS, UpdateBuffers, numbers};
use crate::spec::element::ElementType;
use crate::spec::head::Readout;
use crate::spec::loss::{PreparedTargets, TargetData};
use crate::spec::optimizer::{Clip, Constants, OptimizerState};

/// Bytes of batches on their way to the device, which wgpu holds until they have arrived.
const UNDER_WAY: u64 = 128 << 20;

/// What a learner on an adapter holds besides its network, whose parameters it moves where they are.
#[derive(Debug)]
pub(super) struct OnAdapter {
    /// The sum of the gradients and losses of an update's batches, which every run adds to.
    gathered: GradientAccumulator,
    update: Session,
    buffers: UpdateBuffers,
    /// Updates whose reports are still on the device.
    pending: usize,
    /// Updates queued since this was made.
    queued: usize,
    /// Bytes of batches queued since the last wait.
    under_way: u64,
}

impl OnAdapter {
    pub async fn new(
        network: &Network,
        config: &LearnerConfig,
        moments: &OptimizerState,
    ) -> Result<Self> {
        let len = network.params().layout().flat_len();
        let pool = network.gru().session_pool()?;
        let gathered = GradientAccumulator::new(pool.gpu(), len).await?;
        let caps = pool.gpu().caps();
        let adam = config.optimizer.is_adam();
        let (plan, buffers) = Plan::of_update(len, adam, config.clip, &caps)?;
        let bound = [
            (buffers.gradient, Bound::from(&gathered.gradient)),
            (buffers.loss, Bound::from(&gathered.loss)),
        ];
        network.gru().acquire_params().await?;
        let mut update = pool.make_with(plan, buffers.params, &bound).await?;
        for (buffer, data) in
            [(buffers.first_moment, &moments.first), (buffers.second_moment, &moments.second)]
        {
            update.write(buffer, 0, data).await?;
        }
        update.clear(buffers.reports, 0..REPORT * (1 + SLOTS));
        Ok(Self { gathered, update, buffers, pending: 0, queued: 0, under_way: 0 })
    }

    /// Queues a batch, whose loss and gradient are added to those of the update: those of each piece, where it
    /// is made of several.
    pub async fn gather(&mut self, part: Part<'_>, wait: Wait) -> Result<()> {
        let Part { network, loss, shape, batch, wanted, is_first } = part;
        let (mode, purpose) = (Mode::Training, Purpose::Loss(loss));
        let chunks = network.gru().chunks_of(shape, mode, purpose)?;
        let input = Input::new(shape, mode, &chunks, None, batch, wait).await?;
        for (at, chunk) in chunks.iter().enumerate() {
            let wanted = match chunks.len() {
                1 => Cow::Borrowed(wanted),
                _ => Cow::Owned(wanted.of_rows(&network.head().rows_of(chunk, shape))),
            };
            let part = chunk.shape(shape);
            let sent = part.x().iter().product::<usize>() + wanted.len();
            self.make_room(ElementType::F32.bytes(sent), wait).await?;
            let mut session =
                network.gru().session(part, mode, purpose, Some(&self.gathered)).await?;
            input.upload(&mut session, chunk, None).await?;
            let is_first = is_first && at == 0;
            run_chunk(network, &mut session, &wanted, is_first).await?;
        }
        Ok(())
    }

    /// Waits, where more would be under way than may be, for what is.
    async fn make_room(&mut self, bytes: u64, wait: Wait) -> Result<()> {
        if self.under_way > 0 && self.under_way + bytes > UNDER_WAY {
            self.update.gpu().sync(wait).await?;
            self.under_way = 0;
        }
        self.under_way += bytes;
        Ok(())
    }

    /// Queues an update. Returns whether its report must be read before the next one.
    pub async fn update(&mut self, clip: Clip, constants: &Constants) -> Result<bool> {
        let numbers = numbers(self.queued % SLOTS, clip, constants);
        self.update.write(self.buffers.update, 0, &numbers).await?;
        self.update.run(Pass::Forward).await?;
        self.queued += 1;
        self.pending += 1;
        Ok(self.pending == SLOTS)
    }

    /// Waits for all that was queued; the reports of the updates since the last time.
    pub async fn take_metrics(&mut self, wait: Wait) -> Result<Vec<RawMetrics>> {
        if self.pending == 0 {
            return Ok(Vec::new());
        }
        let all = 0..REPORT * (1 + SLOTS);
        let reports: Vec<u32> =
            self.update.read(&[(self.buffers.reports, all)], wait).await?.swap_remove(0);
        let report = |queued: usize| {
            let at = REPORT * (1 + queued % SLOTS);
            let [loss, norm, largest, place, stopped] = [0, 1, 2, 3, 4].map(|i| reports[at + i]);
            let [loss, norm, largest] = [loss, norm, largest].map(f32::from_bits);
            RawMetrics { loss, norm, largest, place: place as usize, moved: stopped == 0 }
        };
        let reports: Vec<_> = (self.queued - self.pending..self.queued).map(report).collect();
        (self.pending, self.under_way) = (0, 0);
        if reports.iter().any(|report| !report.moved) {
            // The next update may move the parameters again.
            self.update.clear(self.buffers.reports, 0..1);
        }
        Ok(reports)
    }

    /// Waits for all that was queued; the parameters and the moments.
    pub async fn download(&mut self, wait: Wait) -> Result<[Vec<f32>; 3]> {
        let UpdateBuffers { params, first_moment, second_moment, .. } = self.buffers;
        let whole = |id| (id, 0..self.update.plan().spec(params).len);
        let parts = [params, first_moment, second_moment].map(whole);
        let read = self.update.read(&parts, wait).await?;
        Ok(read.try_into().expect("three parts asked for"))
    }
}

/// Queues a run whose input is there, and adds its loss and gradient to those of the update.
async fn run_chunk(
    network: &Network,
    session: &mut Session,
    wanted: &PreparedTargets,
    is_first: bool,
) -> Result<()> {
    let run = session.plan().run_buffers().clone();
    let config = run.training.expect("a training plan");
    let buffers = session.plan().head_buffers().loss.expect("a plan of a loss");
    match &wanted.targets {
        TargetData::Values(values) => session.write(buffers.targets, 0, values).await?,
        TargetData::Classes(classes) => session.write(buffers.targets, 0, classes).await?,
    }
    session.write(buffers.weights, 0, &wanted.weights).await?;
    session.run(Pass::Forward).await?;
    // What the head does not write of the gradients that flow into the GRU: one over every step, all of dy.
    if network.head().readout == Readout::LastState {
        let dy = session.plan().spec(config.dy).len;
        session.clear(config.dy, 0..dy);
    }
    let dstates = session.plan().spec(config.dstates).len;
    session.clear(config.dstates, 0..dstates);
    if is_first {
        session.clear(config.dparams, 0..network.params().layout().flat_len());
        session.clear(buffers.sum, 0..1);
    }
    session.run(Pass::Backward).await
}
