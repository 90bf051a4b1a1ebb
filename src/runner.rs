//! [`Runner`]: what the sessions of one model share, and the sessions at rest.

use std::sync::{Arc, Mutex};

use crate::config::{GruConfig, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, lock};
use crate::options::Options;
use crate::params::{ParamLayout, Params};
use crate::plan::{BufferId, Mode, Plan};
use crate::session::{Bound, Session};

/// Sessions at rest that a model keeps for the next run of the same shape.
const IDLE_SESSIONS: usize = 2;

/// What the sessions of one model share.
#[derive(Debug)]
pub(crate) struct Runner {
    gpu: Gpu,
    params: wgpu::Buffer,
    /// The version of the parameters that the device holds.
    uploaded: Mutex<Option<u64>>,
    idle: Arc<Mutex<Vec<Lease>>>,
}

/// A session's key in the pool.
type Key = (Shape, Mode, Options);

#[derive(Debug)]
struct Lease {
    key: Key,
    session: Session,
}

/// A session in use. Goes back to its model's pool when dropped.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    lease: Option<Lease>,
    idle: Arc<Mutex<Vec<Lease>>>,
}

impl Runner {
    /// A runner for models of `config`.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub async fn new(gpu: &Gpu, config: &GruConfig) -> Result<Self> {
        Self::allow(gpu, config)?;
        let len = ParamLayout::new(config)?.flat_len();
        let params = gpu.guard(|| Ok(gpu.buffer("params", len))).await?;
        let (uploaded, idle) = Default::default();
        Ok(Self { gpu: gpu.clone(), params, uploaded, idle })
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

    /// A session for runs of `shape`, with `params` of this `version` on the device.
    pub async fn session(
        &self,
        params: &Params,
        version: u64,
        shape: Shape,
        mode: Mode,
        options: Options,
    ) -> Result<SessionGuard> {
        let key = (shape, mode, options);
        let resting = {
            let mut idle = lock(&self.idle);
            let at = idle.iter().position(|lease| lease.key == key);
            at.map(|at| idle.remove(at))
        };
        let lease = match resting {
            Some(lease) => lease,
            None => {
                let config = params.layout().config();
                let machine = self.gpu.machine();
                let plan = Plan::with_options(config, shape, mode, options, &machine)?;
                Lease { key, session: self.make(plan, &[]).await? }
            }
        };
        self.with_parameters(params, version, || Ok(())).await?;
        Ok(SessionGuard { lease: Some(lease), idle: Arc::clone(&self.idle) })
    }

    /// A session of its own for `plan`, with the model's parameters bound and others besides.
    pub async fn make(&self, plan: Plan, bound: &[(BufferId, Bound)]) -> Result<Session> {
        let params = (plan.run_buffers().params, Bound::from(&self.params));
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

    fn upload(&self, params: &Params, version: u64) {
        let mut uploaded = lock(&self.uploaded);
        if *uploaded != Some(version) {
            self.gpu.upload(&self.params, 0, params.as_slice());
            *uploaded = Some(version);
        }
    }

    /// What the device holds is not known to be whole.
    fn forget(&self) {
        *lock(&self.uploaded) = None;
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
