//! The schedule as data: which buffers a run needs and which kernels it dispatches, in which order.
//!
//! A [`Plan`] is plain arithmetic on a configuration and a shape. It names no wgpu type, so it is
//! made, checked against an adapter's [`Limits`], printed and tested without a GPU; `runner.rs`
//! executes it. Its `Display` reads like a database's EXPLAIN:
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

use std::ops::Range;

mod display;
mod head;
mod limits;
mod planner;
mod products;
mod stages;
mod steps;
mod tiles;
mod update;

pub(crate) use limits::ARGS_BLOCK;
pub use limits::Limits;
pub(crate) use planner::recomputed_at_once;
pub(crate) use products::{Columns, Epilogue, Operand, Products};
pub(crate) use update::{REPORT, SLOTS, UpdateBuffers, numbers};

use crate::error::{Result, check_shape};
use crate::kernels::Kernel;
use crate::spec::config::{GruConfig, Shape};
use crate::spec::loss::Loss;
pub use crate::spec::options::Mode;
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

/// What a plan knows of the adapter that it is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceCaps {
    /// Its limits.
    pub limits: Limits,
    /// Whether it computes on the CPU: a few threads, to which a load costs as much as some
    /// multiplications.
    pub software: bool,
}

impl DeviceCaps {
    /// A GPU that has what every WebGPU implementation has, and no more.
    pub const WEBGPU: Self = Self::new(Limits::WEBGPU_DEFAULT, false);

    /// An adapter of these limits, in software or not.
    pub const fn new(limits: Limits, software: bool) -> Self {
        Self { limits, software }
    }

    /// Work of one dispatch, and about that of one submit, so that none takes long: a sixth of a second at
    /// 200 GFLOP/s, a slow GPU's rate, or at the 3 to 8 GFLOP/s of a software adapter. (Windows ends a
    /// submit, and loses the device, after 2 seconds.)
    pub(crate) const fn dispatch_flops(&self) -> u64 {
        if self.software { 1_000_000_000 } else { 32_000_000_000 }
    }

    /// Work of one workgroup, which has a small part of the device to itself.
    pub(crate) const fn group_flops(&self) -> u64 {
        if self.software { 500_000_000 } else { 2_000_000_000 }
    }
}

/// What of a run is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Purpose {
    /// States, and gradients of all that they depend on.
    States,
    /// The outputs of the head. In inference.
    Outputs,
    /// The loss of the outputs, and how many rows of classes are correct. In inference.
    Evaluation(Loss),
    /// The loss of the outputs, and the parameters' gradient, added to what is there. In training.
    Loss(Loss),
}

/// Which buffer of a plan: an index into [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub(crate) usize);

impl BufferId {
    /// Where it stands in [`Plan::buffers`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Written by the host before a run.
    Input,
    /// The model's parameters: shared by every run of a model, not the plan's own.
    Parameters,
    /// Read by the host after a run.
    Output,
    /// Written before a run and read after it.
    InputOutput,
    /// Never leaves the device.
    Scratch,
    /// Zero from the start and never written.
    Zeros,
}

/// A buffer of f32 (but `step_flags`, of u32) that a plan asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BufferSpec {
    /// Its name, as the shaders' comments use it.
    pub name: String,
    /// Its axes, for people: `[T, B, I]`.
    pub axes: String,
    /// Its elements.
    pub len: usize,
    /// What it is for.
    pub role: Role,
}

/// The buffers asked for so far.
#[derive(Default)]
pub(crate) struct Buffers {
    specs: Vec<BufferSpec>,
}

impl Buffers {
    pub fn add(&mut self, name: &str, axes: impl Into<String>, len: usize, role: Role) -> BufferId {
        let (name, axes) = (name.to_owned(), axes.into());
        self.specs.push(BufferSpec { name, axes, len, role });
        BufferId(self.specs.len() - 1)
    }

    /// What the next buffer will be known by.
    pub fn next_id(&self) -> BufferId {
        BufferId(self.specs.len())
    }

    /// The buffer that `products` need, if any, once their stages are made.
    pub fn add_partials(&mut self, products: &Products<'_>) {
        let len = products.partials_len();
        if len > 0 {
            self.add("partials", "[parts, ·]", len, Role::Scratch);
        }
    }

    pub fn whole(&self, buffer: BufferId) -> Slice {
        Slice { buffer, first: 0, len: self.specs[buffer.0].len }
    }

    /// `Ok` when every element has an index in u32, as the kernels count.
    pub fn check_indices(&self) -> Result<()> {
        let (limit, allowed) = ("the largest index in u32", u64::from(u32::MAX));
        self.specs.iter().try_for_each(|spec| {
            let what = || format!("the buffer {} {}", spec.name, spec.axes);
            limits::within(what, limit, spec.len as u64, allowed)
        })
    }

    pub fn into_specs(self) -> Vec<BufferSpec> {
        self.specs
    }
}

/// The part of a buffer that a dispatch binds. `first` is a multiple of 64 elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Slice {
    /// The buffer.
    pub buffer: BufferId,
    /// Its first element bound.
    pub first: usize,
    /// How many elements are bound.
    pub len: usize,
}

/// One dispatch of one kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dispatch {
    /// What it computes, for people: `gates[r z n] = x · W_ihᵀ + b_ih`.
    pub label: String,
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Values of the kernel's override constants, in its order; a bool is 0 or 1.
    pub constants: Vec<u32>,
    /// What each storage binding gets, in the kernel's order.
    pub bindings: Vec<Slice>,
    /// The kernel's arguments, in its order. A loop sets the one named `step`.
    pub args: Vec<u32>,
    /// Workgroups along x, y, z.
    pub workgroups: [u64; 3],
    /// Multiplications and additions of its products (elementwise work not counted).
    pub flops: u64,
    /// The same with those that its threads make for tiles' padding.
    pub padded_flops: u64,
    /// Bytes it must move at least, each element once.
    pub bytes: u64,
    /// An upper bound of the loop iterations of one invocation.
    pub iterations: u64,
}

/// A piece of a schedule.
#[derive(Clone, Debug)]
pub enum Stage {
    /// One dispatch.
    Once(Dispatch),
    /// `body` for each step from `first` to `last`, both included, upwards or downwards.
    Steps {
        /// The first step (forward) or state (backward).
        first: usize,
        /// The last one.
        last: usize,
        /// What is dispatched for each, in order.
        body: Vec<Dispatch>,
    },
}

impl Stage {
    /// The stage's dispatches, each as it stands in the schedule, and how often each runs.
    pub fn dispatches(&self) -> (&[Dispatch], usize) {
        match self {
            Stage::Once(dispatch) => (std::slice::from_ref(dispatch), 1),
            Stage::Steps { first, last, body } => (body, first.abs_diff(*last) + 1),
        }
    }

    /// The steps that the stage runs its dispatches for, in order.
    pub(crate) fn steps(&self) -> Box<dyn Iterator<Item = Option<u32>>> {
        match *self {
            Stage::Once(_) => Box::new(std::iter::once(None)),
            Stage::Steps { first, last, .. } if first <= last => {
                Box::new((first..=last).map(|t| Some(t as u32)))
            }
            Stage::Steps { first, last, .. } => {
                Box::new((last..=first).rev().map(|t| Some(t as u32)))
            }
        }
    }
}

/// The buffers of a run, by meaning. Sequences have their axes T and B as the shape's layout says.
#[derive(Clone, Debug)]
pub(crate) struct RunBuffers {
    /// `[T, B, I]`
    pub x: BufferId,
    /// `[T, B]` of u32: bits of [`step_flag`](mod@crate::step_flag). While training four more,
    /// what is drawn from.
    pub step_flags: BufferId,
    /// `[3, L·D, B, H]`: the first states, those that resets go back to, and the last.
    pub states: BufferId,
    /// `[T, B, D·H]`
    pub y: BufferId,
    /// The flat parameters.
    pub params: BufferId,
    /// What only training has.
    pub training: Option<TrainingBuffers>,
    /// What only a network's runs have.
    pub head: Option<HeadBuffers>,
}

/// The buffers of a backward pass, by meaning.
#[derive(Clone, Debug)]
pub(crate) struct TrainingBuffers {
    /// `[T, B, D·H]`
    pub dy: BufferId,
    /// The gradients of states, in their places: dh_n in; dh0 and the reset states' out.
    pub dstates: BufferId,
    /// Of each layer's input: `[T, B, I]`, then `[T, B, D·H]`. Where only the parameters' gradient is asked
    /// for, there is none of x.
    pub dx: Vec<Option<BufferId>>,
    /// Laid out as the parameters.
    pub dparams: BufferId,
}

/// The buffers of a linear head, by meaning, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadBuffers {
    /// `[rows, C]`; of a loss, their gradient in the end.
    pub outputs: BufferId,
    /// What a loss needs besides.
    pub loss: Option<LossBuffers>,
}

/// The buffers of a loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossBuffers {
    /// `[rows, C]` of f32 or `[rows]` of u32.
    pub targets: BufferId,
    /// `[rows]`: what each row counts.
    pub weights: BufferId,
    /// `[rows]`: each row's loss. In evaluation `[rows, 2]`, with 1 where the row is correct.
    pub each: BufferId,
    /// `[1]`: added to. In evaluation `[2]`: written.
    pub sum: BufferId,
}

/// A third of `states`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum States {
    First,
    Reset,
    Last,
}

impl States {
    /// Its elements in a run of `shape`.
    pub fn range(self, shape: Shape) -> Range<usize> {
        let len = shape.state().iter().product::<usize>();
        self as usize * len..(self as usize + 1) * len
    }
}

/// The whole schedule of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    title: String,
    buffers: Vec<BufferSpec>,
    forward: Vec<Stage>,
    backward: Vec<Stage>,
    /// Buffers that must be zero ahead of the backward schedule.
    accumulators: Vec<BufferId>,
    run: Option<RunBuffers>,
    carries: bool,
    submit_flops: u64,
}

impl Plan {
    /// The schedule of a run of `config` over `shape`, for [`DeviceCaps::WEBGPU`].
    ///
    /// # Errors
    /// As [`Self::with_options`].
    pub fn new(config: &GruConfig, shape: Shape, mode: Mode) -> Result<Self> {
        Self::with_options(config, shape, mode, RunOptions::default(), &DeviceCaps::WEBGPU)
    }

    /// The schedule of a run of `config` over `shape` on `caps`.
    ///
    /// # Errors
    /// [`Error::ZeroSize`](crate::Error::ZeroSize) or [`Error::Overflow`](crate::Error::Overflow)
    /// when `config` is not valid, [`Error::Limit`](crate::Error::Limit) when a buffer has more
    /// elements than a u32 can index, [`Error::Shape`](crate::Error::Shape) when another
    /// configuration made `shape`. Whether an adapter can run it is for [`Plan::check`] to say.
    pub fn with_options(
        config: &GruConfig,
        shape: Shape,
        mode: Mode,
        options: RunOptions,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let layout = ParamLayout::new(config)?;
        // Its fields are public; what follows relies on what `GruConfig::shape` checked. Any layout is
        // as good as another.
        let sizes = |s: Shape| [s.steps, s.batch, s.input, s.hidden, s.layers, s.directions];
        let expected = config.shape(shape.steps, shape.batch)?;
        check_shape("the run's [T, B, I, H, L, D]", &sizes(expected), &sizes(shape))?;
        Self::of_run(&layout, shape, mode, options, Purpose::States, caps)
    }

    /// A plan of stages put together by hand, for a kernel's own check.
    pub(crate) fn of_stages(
        title: &str,
        buffers: Vec<BufferSpec>,
        forward: Vec<Stage>,
        caps: &DeviceCaps,
    ) -> Self {
        let (title, submit_flops) = (title.to_owned(), caps.dispatch_flops());
        let (backward, accumulators, run, carries) = Default::default();
        Self { title, buffers, forward, backward, accumulators, run, carries, submit_flops }
    }

    /// The same for runs that each start from the last one's states: from one run to the next, the
    /// first and the last third of `states` change places, and nothing is copied.
    pub(crate) fn carrying(self) -> Self {
        Self { carries: true, ..self }
    }

    /// Buffers that must be zero ahead of the backward schedule.
    pub(crate) fn accumulators(&self) -> &[BufferId] {
        &self.accumulators
    }

    /// Work after which commands are handed to the device, so that it never runs long without a pause.
    pub(crate) fn submit_flops(&self) -> u64 {
        self.submit_flops
    }

    /// How many ways there are for a run to use `states`, each with arguments of its own.
    pub(crate) fn turns(&self) -> usize {
        if self.carries { 2 } else { 1 }
    }

    /// The buffer called `name`.
    pub fn buffer(&self, name: &str) -> Option<BufferId> {
        self.buffers.iter().position(|spec| spec.name == name).map(BufferId)
    }

    /// The buffers, in the order that [`BufferId`] counts.
    pub fn buffers(&self) -> &[BufferSpec] {
        &self.buffers
    }

    /// The forward schedule.
    pub fn forward(&self) -> &[Stage] {
        &self.forward
    }

    /// The backward schedule; empty for [`Mode::Inference`].
    pub fn backward(&self) -> &[Stage] {
        &self.backward
    }

    /// How many dispatches the forward schedule makes.
    pub fn forward_dispatches(&self) -> usize {
        count(&self.forward)
    }

    /// How many dispatches the backward schedule makes.
    pub fn backward_dispatches(&self) -> usize {
        count(&self.backward)
    }

    /// Multiplications and additions of the forward schedule's products.
    pub fn forward_flops(&self) -> u64 {
        flops(&self.forward)
    }

    /// Multiplications and additions of the backward schedule's products.
    pub fn backward_flops(&self) -> u64 {
        flops(&self.backward)
    }

    /// Bytes held on the device: all buffers, the parameters' included, and the arguments.
    pub fn bytes(&self) -> u64 {
        let buffers: u64 = self.buffers.iter().map(|b| 4 * b.len as u64).sum();
        buffers + self.argument_bytes()
    }

    /// Bytes of the arguments of all dispatches. They are laid out once for every step of a loop,
    /// so that a run uploads none.
    pub fn argument_bytes(&self) -> u64 {
        let dispatches = self.forward_dispatches() + self.backward_dispatches();
        (dispatches * self.turns()) as u64 * ARGS_BLOCK
    }

    /// `Ok` when an adapter with `limits` can run this plan.
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
