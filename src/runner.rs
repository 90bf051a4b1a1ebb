//! [`Runner`]: what the sessions of one model share, and the sessions at rest.

use std::sync::{Arc, Mutex};

use crate::config::{GruConfig, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, lock};
use crate::options::Options;
use crate::params::{ParamLayout, Params};
use crate::plan::{BufferId, Mode, Plan, Purpose};
use crate::session::{Bound, Session};

/// Sessions at rest that a model keeps for the next run of the same shape.
const IDLE_SESSIONS: usize = 2;

/// What the sessions of one model share.
#[derive(Debug)]
pub(crate) struct Runner {
    gpu: Gpu,
    params: wgpu::Buffer,
    held: Mutex<Held>,
    idle: Arc<Mutex<Vec<Lease>>>,
}

/// Which parameters the device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    /// None that are known to be whole.
    #[default]
    Nothing,
    /// This version of the model's.
    Version(u64),
    /// Its own, which it moves itself.
    Own,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Job {
    pub shape: Shape,
    pub mode: Mode,
    pub options: Options,
    pub purpose: Purpose,
}

/// What the runs of an update's batches add to.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// Laid out as the parameters.
    pub gradient: wgpu::Buffer,
    /// `[1]`
    pub loss: wgpu::Buffer,
}

impl Gathered {
    /// For models of `len` parameters.
    pub async fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let make =
            || Ok(Self { gradient: gpu.buffer("dparams", len), loss: gpu.buffer("loss", 1) });
        gpu.guard(make).await
    }
}

#[derive(Debug)]
struct Lease {
    key: Job,
    session: Session,
}

/// A session in use. Goes back to its model's pool when dropped.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    lease: Option<Lease>,
    idle: Arc<Mutex<Vec<Lease>>>,
}

impl Gathered {
    /// Where a plan of a loss has them.
    fn bound(&self, plan: &Plan) -> Vec<(BufferId, Bound)> {
        let training = plan.run_buffers().training.as_ref().expect("a training plan");
        let loss = plan.head_buffers().loss.expect("a plan of a loss");
        vec![(training.dparams, Bound::from(&self.gradient)), (loss.sum, Bound::from(&self.loss))]
    }
}

impl Runner {
    /// A runner for models of this layout.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub async fn new(gpu: &Gpu, layout: &ParamLayout) -> Result<Self> {
        Self::allow(gpu, layout.config())?;
        let params = gpu.guard(|| Ok(gpu.buffer("params", layout.flat_len()))).await?;
        let (held, idle) = Default::default();
        Ok(Self { gpu: gpu.clone(), params, held, idle })
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

    /// A session for a job, with `params` of this `version` on the device. That of a loss adds to what is
    /// `gathered`.
    pub async fn session(
        &self,
        params: &Params,
        version: u64,
        job: Job,
        gathered: Option<&Gathered>,
    ) -> Result<SessionGuard> {
        let resting = {
            let mut idle = lock(&self.idle);
            let at = idle.iter().position(|lease| lease.key == job);
            at.map(|at| idle.remove(at))
        };
        let lease = match resting {
            Some(lease) => lease,
            None => {
                let Job { shape, mode, options, purpose } = job;
                let machine = self.gpu.machine();
                let layout = params.layout();
                let plan = Plan::of_run(layout, shape, mode, options, purpose, &machine)?;
                let bound = gathered.map(|to| to.bound(&plan)).unwrap_or_default();
                Lease { key: job, session: self.make(plan, &bound).await? }
            }
        };
        self.with_parameters(params, version, || Ok(())).await?;
        Ok(SessionGuard { lease: Some(lease), idle: Arc::clone(&self.idle) })
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
    pub async fn hand_over(&self, params: &Params, version: u64) -> Result<()> {
        self.with_parameters(params, version, || Ok(())).await?;
        *lock(&self.held) = Held::Own;
        Ok(())
    }

    /// What the device holds is old.
    pub fn take_back(&self) {
        *lock(&self.held) = Held::Nothing;
    }

    fn upload(&self, params: &Params, version: u64) {
        let mut held = lock(&self.held);
        if *held != Held::Version(version) && *held != Held::Own {
            self.gpu.upload(&self.params, 0, params.as_slice());
            *held = Held::Version(version);
        }
    }

    /// An upload may not have arrived whole.
    fn forget(&self) {
        let mut held = lock(&self.held);
        if *held != Held::Own {
            *held = Held::Nothing;
        }
    }
}

impl std::ops::Deref for SessionGuard {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.lease.as_ref().expect("held until dropped").session
    }
}

impl std::ops::DerefMut for SessionGuard {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.lease.as_mut().expect("held until dropped").session
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mut idle = lock(&self.idle);
        idle.extend(self.lease.take().filter(|lease| !lease.session.is_broken()));
        // The one at rest for longest goes.
        if idle.len() > IDLE_SESSIONS {
            idle.remove(0);
        }
    }
}
