//! [`Runner`]: what the sessions of one model share, and the sessions at rest.

use std::sync::{Arc, Mutex};

use crate::config::{GruConfig, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, lock};
use crate::params::{ParamLayout, Params};
use crate::plan::{Mode, Plan};
use crate::session::Session;

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
type Key = (Shape, Mode);

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
    pub fn new(gpu: &Gpu, config: &GruConfig) -> Result<Self> {
        Self::allow(gpu, config)?;
        let len = ParamLayout::new(config)?.flat_len();
        let params = gpu.guard(|| Ok(gpu.buffer("params", len, wgpu::BufferUsages::STORAGE)))?;
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

    /// A session for runs of `shape`, with `params` of this `version` on the device.
    pub fn session(
        &self,
        params: &Params,
        version: u64,
        shape: Shape,
        mode: Mode,
    ) -> Result<SessionGuard> {
        let key = (shape, mode);
        let resting = {
            let mut idle = lock(&self.idle);
            let at = idle.iter().position(|lease| lease.key == key);
            at.map(|at| idle.remove(at))
        };
        let lease = match resting {
            Some(lease) => lease,
            None => {
                let plan = Plan::new(params.layout().config(), shape, mode)?;
                let session = match Session::new(&self.gpu, plan.clone(), Some(&self.params)) {
                    // The sessions at rest may hold what is missing.
                    Err(Error::OutOfMemory(_)) => {
                        lock(&self.idle).clear();
                        self.gpu.wait()?;
                        Session::new(&self.gpu, plan, Some(&self.params))?
                    }
                    made => made?,
                };
                Lease { key, session }
            }
        };
        let mut uploaded = lock(&self.uploaded);
        if *uploaded != Some(version) {
            *uploaded = None;
            let upload = || {
                self.gpu.upload(&self.params, 0, params.as_slice());
                Ok(())
            };
            self.gpu.guard(upload)?;
            *uploaded = Some(version);
        }
        Ok(SessionGuard { lease: Some(lease), idle: Arc::clone(&self.idle) })
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
