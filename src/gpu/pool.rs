//! [`SessionPool`]: what the sessions of one model share, and the sessions at rest.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::context::{Gpu, lock};
use crate::gpu::session::{Bound, Session};
use crate::plan::{BufferId, Mode, Plan, Purpose};
use crate::spec::chunk::{Chunk, chunks};
use crate::spec::config::{GruConfig, Shape};
use crate::spec::element::ElementType::F32;
use crate::spec::options::RunOptions;
use crate::spec::params::{ParamLayout, Params};

/// Sessions at rest that a model keeps for the next run of the same shape, whatever they hold.
const IDLE_AT_LEAST: usize = 2;

/// And at most, as long as all of them together hold no more than [`IDLE_BYTES`]: sequences of unequal lengths
/// make a shape of every eighth length.
const IDLE_SESSIONS: usize = 32;

/// What they may hold on the device: a part of the memory that any GPU has.
const IDLE_BYTES: u64 = 512 << 20;

/// What the sessions of one model share.
#[derive(Debug)]
pub(crate) struct SessionPool {
    gpu: Gpu,
    params: wgpu::Buffer,
    residency: Mutex<Residency>,
    /// Those at rest for longest come first.
    idle: Arc<Mutex<Vec<PoolEntry>>>,
    #[cfg(test)]
    made: std::sync::atomic::AtomicUsize,
}

/// Which parameters the device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Residency {
    /// None that are known to be whole.
    #[default]
    Nothing,
    /// This version of the model's.
    Version(u64),
    /// Its own, which it moves itself.
    Acquired,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SessionKey {
    pub shape: Shape,
    pub mode: Mode,
    pub options: RunOptions,
    pub purpose: Purpose,
}

/// What the runs of an update's batches add to.
#[derive(Debug)]
pub(crate) struct GradientAccumulator {
    /// Laid out as the parameters.
    pub gradient: wgpu::Buffer,
    /// `[1]`
    pub loss: wgpu::Buffer,
}

impl GradientAccumulator {
    /// For models of `len` parameters.
    pub async fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let make = || {
            Ok(Self {
                gradient: gpu.buffer("dparams", F32.bytes(len)),
                loss: gpu.buffer("loss", F32.size()),
            })
        };
        gpu.guard(make).await
    }
}

#[derive(Debug)]
struct PoolEntry {
    key: SessionKey,
    session: Session,
    /// On the device, and its own.
    bytes: u64,
}

/// A session in use. Goes back to its model's pool when dropped.
#[derive(Debug)]
pub(crate) struct PooledSession {
    entry: Option<PoolEntry>,
    idle: Arc<Mutex<Vec<PoolEntry>>>,
}

impl GradientAccumulator {
    /// Where a plan of a loss has them.
    fn bound(&self, plan: &Plan) -> Vec<(BufferId, Bound)> {
        let training = plan.run_buffers().training.as_ref().expect("a training plan");
        let loss = plan.head_buffers().loss.expect("a plan of a loss");
        vec![(training.dparams, Bound::from(&self.gradient)), (loss.sum, Bound::from(&self.loss))]
    }
}

impl SessionPool {
    /// A runner for models of this layout.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub async fn new(gpu: &Gpu, layout: &ParamLayout) -> Result<Self> {
        Self::allow(gpu, layout.config())?;
        let params = gpu.guard(|| Ok(gpu.buffer("params", F32.bytes(layout.flat_len())))).await?;
        let (residency, idle) = Default::default();
        Ok(Self {
            gpu: gpu.clone(),
            params,
            residency,
            idle,
            #[cfg(test)]
            made: Default::default(),
        })
    }

    /// `Ok` when the smallest run fits the device: whatever it asks too much of, every run does.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) with the limit that is too low.
    pub fn allow(gpu: &Gpu, config: &GruConfig) -> Result<()> {
        Plan::new(config, config.shape(1, 1)?, Mode::Inference)?.check(gpu.limits())
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The pieces that a job is made of; its states can be carried from one to the next unless its gradient,
    /// which a loss starts, would have to be carried back.
    ///
    /// # Errors
    /// [`Error::Limit`] when not the smallest piece fits the device.
    pub fn chunks(&self, layout: &ParamLayout, job: SessionKey) -> Result<Vec<Chunk>> {
        let SessionKey { shape, mode, options, purpose } = job;
        if lock(&self.idle).iter().any(|entry| entry.key == job) {
            return Ok(vec![Chunk::whole(shape)]);
        }
        let caps = self.gpu.caps();
        let carried = match purpose {
            Purpose::Loss(_) => None,
            Purpose::States | Purpose::Outputs => Some(layout.config().direction),
        };
        chunks(shape, carried, |shape| {
            let plan = Plan::of_run(layout, shape, mode, options, purpose, &caps)?;
            plan.check(&caps.limits)
        })
    }

    /// A session for a job, with `params` of this `version` on the device. That of a loss adds to what is
    /// `gathered`.
    pub async fn session(
        &self,
        params: &Params,
        version: u64,
        job: SessionKey,
        gathered: Option<&GradientAccumulator>,
    ) -> Result<PooledSession> {
        let resting = {
            let mut idle = lock(&self.idle);
            let at = idle.iter().position(|entry| entry.key == job);
            at.map(|at| idle.remove(at))
        };
        let entry = match resting {
            Some(entry) => entry,
            None => {
                let SessionKey { shape, mode, options, purpose } = job;
                let caps = self.gpu.caps();
                let layout = params.layout();
                let plan = Plan::of_run(layout, shape, mode, options, purpose, &caps)?;
                let bound = gathered.map(|to| to.bound(&plan)).unwrap_or_default();
                let shared = bound.iter().map(|(id, _)| *id).chain([plan.run_buffers().params]);
                let shared = shared.map(|id| plan.spec(id).bytes());
                let bytes = plan.bytes() - shared.sum::<u64>();
                #[cfg(test)]
                self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                PoolEntry { key: job, session: self.make(plan, &bound).await?, bytes }
            }
        };
        self.with_parameters(params, version, || Ok(())).await?;
        Ok(PooledSession { entry: Some(entry), idle: Arc::clone(&self.idle) })
    }

    /// A session of its own for `plan`, with the model's parameters bound and others besides.
    pub async fn make(&self, plan: Plan, bound: &[(BufferId, Bound)]) -> Result<Session> {
        let params = plan.run_buffers().params;
        self.make_with(plan, params, bound).await
    }

    /// The same for a plan of another kind, whose parameters are this buffer.
    pub async fn make_with(
        &self,
        plan: Plan,
        params: BufferId,
        bound: &[(BufferId, Bound)],
    ) -> Result<Session> {
        let params = (params, Bound::from(&self.params));
        let bound: Vec<_> = bound.iter().cloned().chain([params]).collect();
        match Session::new(&self.gpu, plan.clone(), &bound).await {
            // The sessions at rest may hold what is missing.
            Err(Error::OutOfMemory(_)) => {
                lock(&self.idle).clear();
                self.gpu.collect()?;
                Session::new(&self.gpu, plan, &bound).await
            }
            made => made,
        }
    }

    /// Calls `work` after `params` of this `version` went to the device, if it held others.
    pub async fn with_parameters<T>(
        &self,
        params: &Params,
        version: u64,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let work = || {
            self.upload(params, version);
            work()
        };
        self.gpu.guard(work).await.inspect_err(|_| self.forget())
    }

    /// The same where it cannot be waited for.
    pub fn with_parameters_now(
        &self,
        params: &Params,
        version: u64,
        work: impl FnOnce(),
    ) -> Result<()> {
        let work = || {
            self.upload(params, version);
            work();
        };
        self.gpu.guard_now(work).inspect_err(|_| self.forget())
    }

    /// Uploads `params` and leaves them to what moves them on the device.
    pub async fn acquire_params(&self, params: &Params, version: u64) -> Result<()> {
        self.with_parameters(params, version, || Ok(())).await?;
        *lock(&self.residency) = Residency::Acquired;
        Ok(())
    }

    /// What the device holds is old.
    pub fn release_params(&self) {
        *lock(&self.residency) = Residency::Nothing;
    }

    fn upload(&self, params: &Params, version: u64) {
        let mut residency = lock(&self.residency);
        if *residency != Residency::Version(version) && *residency != Residency::Acquired {
            self.gpu.upload(&self.params, 0, params.as_slice());
            *residency = Residency::Version(version);
        }
    }

    /// An upload may not have arrived whole.
    fn forget(&self) {
        let mut residency = lock(&self.residency);
        if *residency != Residency::Acquired {
            *residency = Residency::Nothing;
        }
    }
}

impl std::ops::Deref for PooledSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.entry.as_ref().expect("held until dropped").session
    }
}

impl std::ops::DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.entry.as_mut().expect("held until dropped").session
    }
}

impl Drop for PooledSession {
    fn drop(&mut self) {
        let mut idle = lock(&self.idle);
        idle.extend(self.entry.take().filter(|entry| !entry.session.is_broken()));
        let surplus = surplus(idle.iter().map(|entry| entry.bytes));
        idle.drain(..surplus);
    }
}

/// How many of the sessions at rest go, those first that have been so for longest.
fn surplus(bytes: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator) -> usize {
    let (len, mut residency) = (bytes.len(), 0);
    let stays = |&(newer, bytes): &(usize, u64)| {
        residency += bytes;
        newer < IDLE_AT_LEAST || (newer < IDLE_SESSIONS && residency <= IDLE_BYTES)
    };
    len - bytes.rev().enumerate().take_while(stays).count()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::atomic::Ordering;

    use ndarray::Array2;

    use super::*;
    use crate::model::device::test_device;
    use crate::{
        Event, Example, Head, Init, Learner, LearnerConfig, Loss, Optimizer, Target, Trainer,
        TrainerConfig,
    };

    #[test]
    fn sessions_at_rest_are_bounded_by_bytes_and_number() {
        const MIB: u64 = 1 << 20;
        for (bytes, expected) in [
            (vec![], 0),
            (vec![9000 * MIB], 0),
            (vec![9000 * MIB; 3], 1),
            (vec![MIB; 32], 0),
            (vec![MIB; 35], 3),
            (vec![128 * MIB; 5], 1),
            (vec![MIB, 600 * MIB, MIB, MIB], 2),
            (vec![MIB, MIB, 600 * MIB, MIB], 2),
            (vec![150 * MIB, 400 * MIB, MIB, MIB], 1),
            (vec![100 * MIB, 400 * MIB, MIB, MIB], 0),
        ] {
            assert_eq!(surplus(bytes.iter().copied()), expected, "{bytes:?}");
        }
    }

    /// Words as long as those of data/phonemes_train.csv: 200 updates in two epochs. The second one makes
    /// nothing that the first has made.
    #[test]
    fn shapes_that_come_again_need_no_new_session() {
        let example = |i: usize| {
            let steps = [5, 7, 6, 8, 9, 7, 4, 11, 8, 6, 10, 19][i * 7 % 12];
            let x = Array2::from_shape_fn((steps, 3), |(t, j)| ((i + 5 * t + j) as f32).sin());
            Example::new(x, Target::Classes((0..steps).map(|t| ((i + t) % 3) as i32).collect()))
        };
        let examples: Vec<_> = (0..442).map(example).collect();
        let (train, valid) = examples.split_at(400);
        let (device, _) = test_device();
        let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 4), Head::every_step(3));
        let params = Params::init_of(layout.unwrap(), Init::Uniform, 1).unwrap();
        let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
        let learner = Learner::new(params, training, &device).unwrap();
        let mut trainer = Trainer::new(learner, TrainerConfig::new(2, 4)).unwrap();
        let mut made = Vec::new();
        let listen = |trainer: &mut Trainer, event: &Event<'_>| {
            let runner = trainer.learner().network().gru().session_pool()?;
            if matches!(event, Event::Epoch { .. }) {
                made.push(runner.made.load(Ordering::Relaxed));
            }
            Ok(ControlFlow::Continue(()))
        };
        trainer.run(train, valid, listen).unwrap();
        assert_eq!(trainer.learner().updates(), 200);
        // Training: 8, 16 and 24 steps. Validation: 16 and 24, and a batch that is smaller.
        assert_eq!(made, [6, 6]);
    }
}
