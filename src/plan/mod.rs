//! The schedule as data: the buffers that a run needs and the kernels that it dispatches, in order.
//!
//! A [`Plan`] is computed from a configuration and a shape by plain arithmetic. It uses no wgpu
//! type, so it can be made, checked against an adapter's [`Limits`], printed and tested without a
//! GPU. A session (`gpu/`) executes it. Its `Display` is like a database's EXPLAIN:
//!
//! ```
//! use gru_wgpu::{GruConfig, plan::{Limits, Mode, Plan}};
//!
//! let config = GruConfig::pytorch(8, 32);
//! let plan = Plan::new(&config, config.shape(104, 64)?, Mode::Training)?;
//! plan.check(&Limits::WEBGPU_DEFAULT)?;
//! println!("{plan}");
//! assert_eq!(plan.forward_dispatches(), 2); // the input product, and all steps
//! # Ok::<(), gru_wgpu::Error>(())
//! ```

mod allocate;
mod buffers;
mod caps;
mod display;
mod head;
mod limits;
mod planner;
mod products;
mod run_buffers;
mod stage;
mod stages;
mod steps;
#[cfg(test)]
mod tests;
mod tiles;
mod update;

pub(crate) use allocate::recomputed_at_once;
pub(crate) use buffers::BufferList;
pub use buffers::{BufferId, BufferSlice, BufferSpec, Role};
pub use caps::{DeviceCaps, SubgroupSizes};
pub use limits::Limits;
pub(crate) use limits::{ARGS_BLOCK, BINDING_ALIGNMENT};
pub(crate) use products::{ColumnSum, Epilogue, Operand, Product, ProductPlanner, WeightGradient};
pub(crate) use run_buffers::{HeadBuffers, LossBuffers, RunBuffers, StateSlot, TrainingBuffers};
pub use stage::{Dispatch, Shader, Stage};
pub(crate) use update::{REPORT, SLOTS, UpdateBuffers, numbers};

use std::collections::HashSet;

use crate::error::{Result, check_shape};
use crate::spec::config::{GruConfig, Shape};
pub use crate::spec::element::ElementType;
use crate::spec::loss::Loss;
pub use crate::spec::options::Mode;
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

/// What a run computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RunPurpose {
    /// The states. In training also the gradients of everything that the states depend on.
    States,
    /// In inference: the outputs of the head.
    Outputs,
    /// In inference: the loss of the outputs, and the number of correct rows for classes.
    Evaluation(Loss),
    /// In training: the loss of the outputs and the gradient of the parameters, which is added to
    /// the accumulated gradient.
    Loss(Loss),
}

/// One of a plan's two schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

impl Pass {
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

/// The complete schedule of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    title: String,
    buffers: Vec<BufferSpec>,
    forward: Vec<Stage>,
    backward: Vec<Stage>,
    /// Buffers that must be zero before the backward schedule.
    accumulators: Vec<BufferId>,
    run: Option<RunBuffers>,
    carries: bool,
    submit_flops: u64,
    /// True if no buffer holds the arguments.
    immediates: bool,
}

impl Plan {
    /// Makes the schedule of a run of `config` over `shape`, for [`DeviceCaps::WEBGPU`].
    ///
    /// # Errors
    /// The errors of [`Self::with_options`].
    pub fn new(config: &GruConfig, shape: Shape, mode: Mode) -> Result<Self> {
        Self::with_options(config, shape, mode, RunOptions::default(), &DeviceCaps::WEBGPU)
    }

    /// Makes the schedule of a run of `config` over `shape` on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::ZeroSize`](crate::Error::ZeroSize) or [`Error::Overflow`](crate::Error::Overflow)
    /// if `config` is not valid, [`Error::Limit`](crate::Error::Limit) if a buffer has more
    /// elements than a u32 can index, [`Error::Shape`](crate::Error::Shape) if another
    /// configuration made `shape`. [`Plan::check`] checks whether an adapter can run the plan.
    pub fn with_options(
        config: &GruConfig,
        shape: Shape,
        mode: Mode,
        options: RunOptions,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let layout = ParamLayout::new(config)?;
        // The fields of a shape are public, and the rest relies on the checks of
        // `GruConfig::shape`. Any layout is valid.
        let sizes = |s: Shape| [s.steps, s.batch, s.input, s.hidden, s.layers, s.directions];
        let expected = config.shape(shape.steps, shape.batch)?;
        check_shape("the run's [T, B, I, H, L, D]", &sizes(expected), &sizes(shape))?;
        Self::of_run(&layout, shape, mode, options, RunPurpose::States, caps)
    }

    /// Makes a plan from stages assembled by hand, to check a single kernel.
    pub(crate) fn of_stages(
        title: &str,
        buffers: Vec<BufferSpec>,
        forward: Vec<Stage>,
        caps: &DeviceCaps,
    ) -> Self {
        let (title, submit_flops) = (title.to_owned(), caps.dispatch_flops());
        let immediates = caps.immediates;
        let (backward, accumulators, run, carries) = Default::default();
        Self {
            title,
            buffers,
            forward,
            backward,
            accumulators,
            run,
            carries,
            submit_flops,
            immediates,
        }
    }

    /// Changes the plan so that each run starts from the last states of the previous run. The first
    /// and the last third of `states` swap roles after each run, and nothing is copied.
    pub(crate) fn carrying(self) -> Self {
        Self { carries: true, ..self }
    }

    /// Returns the buffers that must be zero before the backward schedule.
    pub(crate) fn accumulators(&self) -> &[BufferId] {
        &self.accumulators
    }

    /// Returns the number of FLOPs after which commands are submitted, which keeps submits short.
    pub(crate) fn submit_flops(&self) -> u64 {
        self.submit_flops
    }

    /// Returns the number of parities. Runs of a plan that carries states alternate between two
    /// parities, each with its own arguments: in runs of odd parity the first and the last third of
    /// `states` are swapped. Other plans have one parity.
    pub(crate) fn parities(&self) -> usize {
        if self.carries { 2 } else { 1 }
    }

    /// Returns the buffer called `name`.
    pub fn buffer(&self, name: &str) -> Option<BufferId> {
        self.buffers.iter().position(|spec| spec.name == name).map(BufferId)
    }

    /// Returns the description of a buffer.
    pub(crate) fn spec(&self, buffer: BufferId) -> &BufferSpec {
        &self.buffers[buffer.0]
    }

    /// Returns the schedule of a pass.
    pub(crate) fn stages(&self, pass: Pass) -> &[Stage] {
        match pass {
            Pass::Forward => &self.forward,
            Pass::Backward => &self.backward,
        }
    }

    /// Returns the buffers, indexed by [`BufferId`].
    pub fn buffers(&self) -> &[BufferSpec] {
        &self.buffers
    }

    /// Returns the forward schedule.
    pub fn forward(&self) -> &[Stage] {
        &self.forward
    }

    /// Returns the backward schedule; empty for [`Mode::Inference`].
    pub fn backward(&self) -> &[Stage] {
        &self.backward
    }

    /// Returns the number of dispatches in the forward schedule.
    pub fn forward_dispatches(&self) -> usize {
        count(&self.forward)
    }

    /// Returns the number of dispatches in the backward schedule.
    pub fn backward_dispatches(&self) -> usize {
        count(&self.backward)
    }

    /// Returns the number of compute pipelines of both schedules. The driver compiles each at its
    /// first use on a device.
    pub fn pipelines(&self) -> usize {
        let stages = self.forward.iter().chain(&self.backward);
        let dispatches = stages.flat_map(|stage| stage.dispatches().0);
        dispatches.map(Dispatch::pipeline).collect::<HashSet<_>>().len()
    }

    /// Returns the multiplications and additions of the forward schedule's products.
    pub fn forward_flops(&self) -> u64 {
        flops(&self.forward)
    }

    /// Returns the multiplications and additions of the backward schedule's products.
    pub fn backward_flops(&self) -> u64 {
        flops(&self.backward)
    }

    /// Returns the bytes of device memory that the plan takes: all buffers, including the
    /// parameters, and the arguments.
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(BufferSpec::bytes).sum::<u64>() + self.argument_bytes()
    }

    /// Returns the bytes of the buffer with the arguments of all dispatches: 0 if they are immediates.
    /// They are stored once for every step of a loop, so a run uploads none.
    pub fn argument_bytes(&self) -> u64 {
        if self.immediates {
            return 0;
        }
        let dispatches = self.forward_dispatches() + self.backward_dispatches();
        (dispatches * self.parities()) as u64 * ARGS_BLOCK
    }

    /// Checks that an adapter with `limits` can run this plan.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) with the first limit that is too low.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        limits.allow(self)
    }

    pub(crate) fn head_buffers(&self) -> HeadBuffers {
        self.run_buffers().head.expect("a plan of a network's run")
    }

    pub(crate) fn loss_buffers(&self) -> LossBuffers {
        self.head_buffers().loss.expect("a plan of a loss")
    }

    pub(crate) fn run_buffers(&self) -> &RunBuffers {
        self.run.as_ref().expect("a plan of a run")
    }
}

fn flops(stages: &[Stage]) -> u64 {
    let each = |(body, times): (&[Dispatch], usize)| {
        body.iter().map(|dispatch| dispatch.flops).sum::<u64>() * times as u64
    };
    stages.iter().map(Stage::dispatches).map(each).sum()
}

fn count(stages: &[Stage]) -> usize {
    stages.iter().map(Stage::dispatches).map(|(body, times)| body.len() * times).sum()
}
