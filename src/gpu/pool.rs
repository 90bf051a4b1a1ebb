//! [`SessionPool`]: the idle sessions of one model, and the parameter buffer that all its sessions
//! share.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::context::Gpu;
use crate::gpu::session::{BufferBinding, Session};
use crate::lock::lock;
use crate::plan::{BufferId, Mode, Plan, RunPurpose};
use crate::spec::chunk::{Chunk, chunks};
use crate::spec::config::{GruConfig, Shape};
use crate::spec::element::ElementType::F32;
use crate::spec::options::RunOptions;
use crate::spec::params::{ParamLayout, Params};

/// The number of idle sessions that a pool keeps regardless of their size, for later runs of the
/// same shape.
const MIN_IDLE_SESSIONS: usize = 2;

/// The most idle sessions that a pool keeps, while they hold at most [`MAX_IDLE_BYTES`] together.
/// Training on sequences of different lengths needs many shapes: one for every eighth length.
const MAX_IDLE_SESSIONS: usize = 32;

/// The most device memory of idle sessions beyond [`MIN_IDLE_SESSIONS`]: a fraction of any GPU's
/// memory.
const MAX_IDLE_BYTES: u64 = 512 << 20;

/// The sessions of one model on one device, and the parameter buffer that they share.
#[derive(Debug)]
pub(crate) struct SessionPool {
    gpu: Gpu,
    params: wgpu::Buffer,
    residency: Mutex<Residency>,
    /// Idle sessions, the one idle for longest first.
    idle: Arc<Mutex<Vec<PoolEntry>>>,
    /// Number of sessions created.
    #[cfg(test)]
    created: std::sync::atomic::AtomicUsize,
    /// Number of plans made.
    #[cfg(test)]
    planned: std::sync::atomic::AtomicUsize,
}

/// A chunk of a run, with the plan that was made to check that the chunk fits. Planning is slow, so
/// the plan is kept.
#[derive(Debug)]
pub(crate) struct PlannedChunk {
    pub chunk: Chunk,
    /// `None` if the pool has an idle session for the run.
    pub plan: Option<Arc<Plan>>,
}

/// The state of the parameter buffer on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Residency {
    /// The content is stale or unknown.
    #[default]
    Stale,
    /// The buffer holds this version of the model's parameters.
    Version(u64),
    /// A learner updates the parameters on the device. They are not uploaded.
    Acquired,
}

/// The key of a session: runs with equal keys can use the same session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SessionKey {
    pub shape: Shape,
    pub mode: Mode,
    pub options: RunOptions,
    pub purpose: RunPurpose,
}

/// Buffers for gradient accumulation: all batches of an update add their gradients and losses to
/// them.
#[derive(Debug)]
pub(crate) struct GradientAccumulator {
    /// The gradient, in the layout of the parameters.
    pub gradient: wgpu::Buffer,
    /// The sum of the losses, `[1]`.
    pub loss: wgpu::Buffer,
}

impl GradientAccumulator {
    /// Creates the buffers for a model of `len` parameters.
    pub async fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let create = || {
            Ok(Self {
                gradient: gpu.buffer("dparams", F32.bytes(len)),
                loss: gpu.buffer("loss", F32.size()),
            })
        };
        gpu.guard(create).await
    }

    /// Returns the bindings for a plan that computes a loss.
    fn bindings(&self, plan: &Plan) -> Vec<(BufferId, BufferBinding)> {
        let training = plan.run_buffers().training.as_ref().expect("a training plan");
        let loss = plan.loss_buffers();
        vec![
            (training.dparams, BufferBinding::from(&self.gradient)),
            (loss.sum, BufferBinding::from(&self.loss)),
        ]
    }
}

#[derive(Debug)]
struct PoolEntry {
    key: SessionKey,
    session: Session,
    /// Device memory of the session's own buffers.
    bytes: u64,
}

/// A session in use. Returns to its pool when dropped.
#[derive(Debug)]
pub(crate) struct PooledSession {
    entry: Option<PoolEntry>,
    idle: Arc<Mutex<Vec<PoolEntry>>>,
}

impl SessionPool {
    /// Creates the pool of a model with this parameter layout.
    ///
    /// # Errors
    /// The errors of [`Self::check_limits`].
    pub async fn new(gpu: &Gpu, layout: &ParamLayout) -> Result<Self> {
        Self::check_limits(gpu, layout.config())?;
        let params = gpu.guard(|| Ok(gpu.buffer("params", F32.bytes(layout.flat_len())))).await?;
        gpu.check_lost()?;
        let (residency, idle) = Default::default();
        Ok(Self {
            gpu: gpu.clone(),
            params,
            residency,
            idle,
            #[cfg(test)]
            created: Default::default(),
            #[cfg(test)]
            planned: Default::default(),
        })
    }

    /// Checks that the smallest run, of one step and one row, fits the device's limits. If it does
    /// not fit, no run does.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) with the limit that is too low.
    pub fn check_limits(gpu: &Gpu, config: &GruConfig) -> Result<()> {
        Plan::new(config, config.shape(1, 1)?, Mode::Inference)?.check(gpu.limits())
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Cuts a run into the chunks that fit the device. A run can be cut along time if states can be
    /// carried from one chunk to the next. They cannot if the run computes the gradient of a loss,
    /// because the gradient would have to be carried back.
    ///
    /// # Errors
    /// [`Error::Limit`] if not even the smallest chunk fits the device.
    pub fn chunks(&self, layout: &ParamLayout, key: SessionKey) -> Result<Vec<PlannedChunk>> {
        if lock(&self.idle).iter().any(|entry| entry.key == key) {
            return Ok(vec![PlannedChunk { chunk: Chunk::whole(key.shape), plan: None }]);
        }
        let carried = match key.purpose {
            RunPurpose::Loss(_) => None,
            RunPurpose::States | RunPurpose::Outputs | RunPurpose::Evaluation(_) => {
                Some(layout.config().direction)
            }
        };
        let plans = RefCell::new(Vec::<(Shape, Arc<Plan>)>::new());
        let chunks = chunks(key.shape, carried, |shape| {
            let plan = self.plan(layout, SessionKey { shape, ..key })?;
            plan.check(self.gpu.limits())?;
            plans.borrow_mut().push((shape, plan));
            Ok(())
        })?;
        let mut plans = plans.into_inner();
        let planned = |chunk: Chunk| {
            let shape = chunk.shape(key.shape);
            let known = plans.iter().find(|(other, _)| *other == shape);
            let plan = match known.map(|(_, plan)| Arc::clone(plan)) {
                Some(plan) => plan,
                // Not checked: it is smaller than the largest chunk, which fits.
                None => {
                    let plan = self.plan(layout, SessionKey { shape, ..key })?;
                    plans.push((shape, Arc::clone(&plan)));
                    plan
                }
            };
            Ok(PlannedChunk { chunk, plan: Some(plan) })
        };
        chunks.into_iter().map(planned).collect()
    }

    fn plan(&self, layout: &ParamLayout, key: SessionKey) -> Result<Arc<Plan>> {
        #[cfg(test)]
        self.planned.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let SessionKey { shape, mode, options, purpose } = key;
        let plan = Plan::of_run(layout, shape, mode, options, purpose, &self.gpu.caps())?;
        Ok(Arc::new(plan))
    }

    /// Returns a session for a run, with this `version` of `params` on the device. Takes an idle
    /// session, or creates one from `plan`, or plans and creates one. A session that computes the
    /// gradient of a loss adds to the `accumulator`.
    pub async fn session(
        &self,
        params: &Params,
        version: u64,
        key: SessionKey,
        plan: Option<Arc<Plan>>,
        accumulator: Option<&GradientAccumulator>,
    ) -> Result<PooledSession> {
        let idle = {
            let mut idle = lock(&self.idle);
            let at = idle.iter().position(|entry| entry.key == key);
            at.map(|at| idle.remove(at))
        };
        let entry = match (idle, plan) {
            (Some(entry), _) => entry,
            (None, Some(plan)) => self.create_entry(key, plan, accumulator).await?,
            (None, None) => {
                self.create_entry(key, self.plan(params.layout(), key)?, accumulator).await?
            }
        };
        self.with_parameters(params, version, || Ok(())).await?;
        Ok(PooledSession { entry: Some(entry), idle: Arc::clone(&self.idle) })
    }

    async fn create_entry(
        &self,
        key: SessionKey,
        plan: Arc<Plan>,
        accumulator: Option<&GradientAccumulator>,
    ) -> Result<PoolEntry> {
        #[cfg(test)]
        self.created.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let bound = accumulator.map(|to| to.bindings(&plan)).unwrap_or_default();
        let shared = bound.iter().map(|(id, _)| *id).chain([plan.run_buffers().params]);
        let shared = shared.map(|id| plan.buffers()[id.index()].bytes());
        let bytes = plan.bytes() - shared.sum::<u64>();
        Ok(PoolEntry { key, session: self.create_session(plan, &bound).await?, bytes })
    }

    /// Creates a session for `plan` outside the pool, with the model's parameters and the `bound`
    /// buffers.
    pub async fn create_session(
        &self,
        plan: impl Into<Arc<Plan>>,
        bound: &[(BufferId, BufferBinding)],
    ) -> Result<Session> {
        let plan = plan.into();
        let params = plan.run_buffers().params;
        self.create_session_with(plan, params, bound).await
    }

    /// Creates a session like [`Self::create_session`], for a plan of another kind whose parameters
    /// are the buffer `params`.
    pub async fn create_session_with(
        &self,
        plan: impl Into<Arc<Plan>>,
        params: BufferId,
        bound: &[(BufferId, BufferBinding)],
    ) -> Result<Session> {
        let plan = plan.into();
        let params = (params, BufferBinding::from(&self.params));
        let bound: Vec<_> = bound.iter().cloned().chain([params]).collect();
        match Session::new(&self.gpu, Arc::clone(&plan), &bound).await {
            // Free the memory of the idle sessions and try again.
            Err(Error::OutOfMemory { .. }) => {
                // The sessions are dropped after the lock is released.
                drop(std::mem::take(&mut *lock(&self.idle)));
                self.gpu.free_dropped()?;
                Session::new(&self.gpu, plan, &bound).await
            }
            created => created,
        }
    }

    /// Uploads `params` unless the device already holds this `version`, then calls `work`.
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
        self.gpu.guard(work).await.inspect_err(|_| self.invalidate_params())
    }

    /// Does the same as [`Self::with_parameters`] for callers that cannot await.
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
        self.gpu.guard_now(work).inspect_err(|_| self.invalidate_params())
    }

    /// Uploads `params` and lets a learner update them on the device. Until
    /// [`Self::release_params`], no call uploads parameters.
    pub async fn acquire_params(&self, params: &Params, version: u64) -> Result<()> {
        self.with_parameters(params, version, || Ok(())).await?;
        *lock(&self.residency) = Residency::Acquired;
        Ok(())
    }

    /// Marks the device's parameters as stale, so that the next run uploads them.
    pub fn release_params(&self) {
        *lock(&self.residency) = Residency::Stale;
    }

    fn upload(&self, params: &Params, version: u64) {
        let mut residency = lock(&self.residency);
        if *residency != Residency::Version(version) && *residency != Residency::Acquired {
            self.gpu.upload(&self.params, 0, params.as_slice());
            *residency = Residency::Version(version);
        }
    }

    /// Marks the device's parameters as stale after an error: an upload may be incomplete.
    fn invalidate_params(&self) {
        let mut residency = lock(&self.residency);
        if *residency != Residency::Acquired {
            *residency = Residency::Stale;
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
        let entry = self.entry.take().and_then(|PoolEntry { key, session, bytes }| {
            session.into_idle().map(|session| PoolEntry { key, session, bytes })
        });
        let surplus: Vec<_> = {
            let mut idle = lock(&self.idle);
            idle.extend(entry);
            let surplus = surplus(idle.iter().map(|entry| entry.bytes));
            idle.drain(..surplus).collect()
        };
        // Dropped without the lock: freeing sessions is slow, and other threads need the lock to
        // start a run.
        drop(surplus);
    }
}

/// Returns how many idle sessions to drop, from those idle for longest. `bytes` are the sessions'
/// sizes, the one idle for longest first.
fn surplus(bytes: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator) -> usize {
    let (len, mut total) = (bytes.len(), 0);
    let keep = |&(newer, bytes): &(usize, u64)| {
        total += bytes;
        newer < MIN_IDLE_SESSIONS || (newer < MAX_IDLE_SESSIONS && total <= MAX_IDLE_BYTES)
    };
    len - bytes.rev().enumerate().take_while(keep).count()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::atomic::Ordering;

    use ndarray::{Array2, Array3};

    use super::*;
    use crate::gpu::session::CopyRegion;
    use crate::model::device::{test_device, test_device_with_bindings};
    use crate::model::gru::Gru;
    use crate::{
        Event, Example, Head, Init, Learner, LearnerConfig, Loss, Network, Optimizer, Target,
        Trainer, TrainerConfig,
    };

    /// A call that fails, or whose future is dropped, may leave clears and copies queued that never
    /// run.
    #[test]
    fn an_idle_session_keeps_no_queued_work_of_its_last_call() {
        let (device, gpu) = test_device();
        let gru = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &device).unwrap();
        let x = Array3::from_shape_fn((4, 2, 3), |(t, b, i)| ((t + 2 * b + 3 * i) as f32).sin());
        let expected = gru.forward(&x).unwrap();
        let pool = gru.session_pool().unwrap();
        let created = || pool.created.load(Ordering::Relaxed);
        let before = created();
        let other = gpu.buffer("other", F32.bytes(x.len()));
        gpu.upload(&other, 0, &[7.0_f32; 24]);
        for copies in [false, true] {
            let shape = gru.config().shape(4, 2).unwrap();
            let (mode, options, purpose) = (Mode::Inference, gru.options(), RunPurpose::States);
            let key = SessionKey { shape, mode, options, purpose };
            let session = pool.session(gru.params(), gru.version(), key, None, None);
            let mut session = pollster::block_on(session).unwrap();
            let to = session.plan().run_buffers().x;
            match copies {
                true => {
                    let whole = CopyRegion { from: 0, to: 0, len: x.len() };
                    session.copy_in(&other, to, vec![whole]);
                }
                false => session.clear(to, 0..x.len()),
            }
            drop(session);
            assert_eq!(gru.forward(&x).unwrap(), expected, "copies: {copies}");
        }
        assert_eq!(created(), before, "the pool created a session instead of reusing one");
    }

    #[test]
    fn idle_sessions_are_bounded_by_bytes_and_number() {
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

    /// Trains on sequences as long as those of data/phonemes_train.csv: 200 updates in two epochs.
    /// The second epoch creates no session.
    #[test]
    fn sessions_are_reused_for_shapes_seen_before() {
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
        let mut created = Vec::new();
        let listen = |trainer: &mut Trainer, event: &Event<'_>| {
            let pool = trainer.learner().network().gru().session_pool()?;
            if matches!(event, Event::Epoch { .. }) {
                created.push(pool.created.load(Ordering::Relaxed));
            }
            Ok(ControlFlow::Continue(()))
        };
        trainer.run(train, valid, listen).unwrap();
        assert_eq!(trainer.learner().updates(), 200);
        // Training: 8, 16 and 24 steps. Validation: 16 and 24 steps, and one smaller batch.
        assert_eq!(created, [6, 6]);
    }

    /// Returns the number of plans needed to cut a run into chunks, and the number of chunks.
    fn plans_needed(gru: &Gru, shape: Shape, mode: Mode, purpose: RunPurpose) -> (usize, usize) {
        let pool = gru.session_pool().unwrap();
        let before = planned(gru);
        let key = SessionKey { shape, mode, options: gru.options(), purpose };
        let chunks = pool.chunks(gru.params().layout(), key).unwrap();
        (planned(gru) - before, chunks.len())
    }

    fn planned(gru: &Gru) -> usize {
        gru.session_pool().unwrap().planned.load(Ordering::Relaxed)
    }

    /// Covers every kind of run, whole and in chunks.
    #[test]
    fn a_run_is_planned_once() {
        for (device, steps) in [(test_device().0, 5), (test_device_with_bindings(16 << 10), 61)] {
            let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 7), Head::every_step(2));
            let params = Params::init_of(layout.unwrap(), Init::Uniform, 1).unwrap();
            let shape = params.layout().config().shape(steps, 11).unwrap();
            let (x, targets) = (Array3::ones((steps, 11, 3)), Array3::zeros((steps, 11, 2)));
            let loss = Loss::MeanSquared;
            let network = Network::new(params.clone(), &device).unwrap();
            let gru = network.gru();
            let forward = || drop(gru.forward(&x).unwrap());
            let train = || drop(gru.forward_train(&x).unwrap());
            let outputs = || drop(network.forward(&x).unwrap());
            let evaluate = || assert!(network.evaluate(&loss, &x, targets.view()).is_ok());
            let runs: [(Mode, RunPurpose, &dyn Fn()); 4] = [
                (Mode::Inference, RunPurpose::States, &forward),
                (Mode::Training, RunPurpose::States, &train),
                (Mode::Inference, RunPurpose::Outputs, &outputs),
                (Mode::Inference, RunPurpose::Evaluation(loss), &evaluate),
            ];
            for (mode, purpose, run) in runs {
                let (needed, chunks) = plans_needed(gru, shape, mode, purpose);
                assert_eq!(chunks > 1, steps > 5);
                let before = planned(gru);
                run();
                assert_eq!(planned(gru) - before, needed, "{mode:?}, {purpose:?}");
            }
            let config = LearnerConfig::new(loss, Optimizer::adam(), 0.01);
            let mut learner = Learner::new(params, config, &device).unwrap();
            let (mode, purpose) = (Mode::Training, RunPurpose::Loss(loss));
            let (needed, _) = plans_needed(learner.network().gru(), shape, mode, purpose);
            learner.step(&x, targets.view()).unwrap();
            assert_eq!(planned(learner.network().gru()), 2 * needed);
        }
    }
}
