//! Gated recurrent units (GRUs) on any GPU through wgpu compute shaders, forward and backward.
//!
//! A [`Gru`] consists of a [`GruConfig`], its [`Params`] and a [`Device`]. It takes ndarray views
//! and returns arrays. A GPU, a software adapter and the CPU return the same numbers, to rounding.
//!
//! ```
//! use gru_wgpu::{Device, Gru, GruConfig, Init, OptimizerState, Optimizer};
//! use ndarray::Array3;
//!
//! // PyTorch's definition. Device::auto() opens a hardware GPU, or the CPU if there is none.
//! let mut gru = Gru::new(GruConfig::pytorch(3, 16), Init::Uniform, 42, &Device::auto())?;
//! let (adam, mut state) = (Optimizer::adam(), OptimizerState::zeros(gru.params().as_slice().len())?);
//! let x = Array3::from_shape_fn((20, 4, 3), |(t, b, i)| ((t + 2 * b + 3 * i) as f32).sin());
//! for _ in 0..3 {
//!     let (out, tape) = gru.forward_train(&x)?;
//!     let dy = out.y * (2.0 / 16.0); // the gradient of Σ y² / 16
//!     let grads = gru.backward(tape, Some(dy.view()), None)?;
//!     adam.step(1e-2, gru.params_mut().as_mut_slice(), grads.params.as_slice(), &mut state)?;
//! }
//! # Ok::<(), gru_wgpu::Error>(())
//! ```
//!
//! # Notation
//!
//! T time steps, B batch rows, I input size, H hidden size, L layers, D directions (1 or 2:
//! forward, reverse or both). "Step" means time step. "Cell" means one direction of one layer.
//!
//! Arrays have PyTorch's time-major shapes:
//!
//! - x `[T, B, I]`
//! - y `[T, B, D·H]`, the forward direction's half first
//! - initial states h0 and last states h_n `[L·D, B, H]`, layer-major, forward before reverse
//!
//! The gates are r (reset), z (update) and n (the candidate, h̃ in papers). Parameters stack the
//! gates in this order, as `[3H, ·]`, under PyTorch's names (`weight_ih_l0`, …). A gradient's name
//! is `d` and the name of the variable: `da_n` is the gradient of the pre-activation of n. ⊙ is the
//! elementwise product.
//!
//! # Equations
//!
//! ```text
//! r = σ(W_ir x + b_ir + W_hr h + b_hr)
//! z = σ(W_iz x + b_iz + W_hz h + b_hz)
//! reset before the product:  n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn)
//! reset after the product:   n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
//! z overwrites:              h' = (1 − z) ⊙ h + z ⊙ n
//! z keeps:                   h' = z ⊙ h + (1 − z) ⊙ n
//! ```
//!
//! | | [`Reset`] | [`Update`] | [`Bias`] |
//! |---|---|---|---|
//! | [`GruConfig::new`], this library's default | before | overwrites | one |
//! | [`GruConfig::pytorch`], PyTorch and cuDNN | after | keeps | two |
//! | Keras, `reset_after=True` | after | keeps | two |
//! | ONNX's default, `linear_before_reset=0` | before | keeps | two |
//!
//! All combinations work, forward and backward, on every device. Other functions can replace σ and
//! tanh ([`Activation`]), in one direction or both ([`GruConfig::with_reverse_activations`]).
//! [`GruConfig::with_clip`] bounds their arguments.
//!
//! With "z overwrites", the gradient through time is ∂h'/∂h = (1 − z) + z ∂n/∂h plus the paths
//! through r and z. Where z is small, the gradient flows straight through h.
//! `examples/gradient_flow` measures how far for several biases of z, compares a plain RNN, and
//! plots the result (`examples/gradient_flow.svg`).
//!
//! These apply at each step, in this order:
//!
//! 1. Resets ([`Batch::resets`]): a row that is cut at this step starts from the reset state.
//! 2. Padding ([`Batch::lengths`]): a step past a row's length keeps h and outputs 0.
//! 3. Zoneout ([`GruConfig::zoneout`]): h' becomes ζ ⊙ h + (1 − ζ) ⊙ h'. In training ζ is drawn, 0
//!    or 1. In inference ζ is its expected value, the zoneout probability.
//! 4. Dropout ([`GruConfig::dropout`]): scales the output that the next layer reads.
//!
//! Draws come from Philox4x32-10 with the counter (unit, row, step, 2 · layer + purpose) and the
//! run's seed as the key.
//!
//! # How data flows
//!
//! ```text
//! GruConfig + Shape ─▶ Plan: buffers and dispatches, as data ─▶ Session on a Gpu ─▶ y, gradients
//! Params: one flat buffer, named ranges ──────────────┴─────▶ cpu, on its threads ─▶     │
//! reference: the same functions in plain loops, the specification   Learner: loss, optimizer
//! ```
//!
//! **Forward**, for each layer:
//!
//! 1. One matrix product x · W_ihᵀ over all steps, or over as many steps as the adapter can bind
//!    the gates for.
//! 2. The recurrence, for all directions at once. It fuses the gates' recurrent products with the
//!    elementwise update.
//!
//! **Backward**, for each layer from the last to the first:
//!
//! 1. The recurrence in reverse.
//! 2. One product each for dx, dW_ih and dW_hh, and column sums for the biases.
//!
//! The recurrence has three kernel families ([`Recurrence`]). *Step* runs a dispatch for each step
//! (two with reset before) and spreads the units over the device. *Sequence* runs many steps in one
//! dispatch: each workgroup computes all units of a few rows and keeps their states in workgroup
//! memory. *Persistent* does the same with the recurrent weights in its threads' registers.
//! `plan/tiles.rs` chooses the family.
//!
//! The plan splits long work. No dispatch, and no submit that this library makes, takes longer than
//! a fraction of a second at the speed of a slow adapter of its kind. (An encoded [`ForwardPass`]
//! is one compute pass, which its caller submits.) There are no float atomics and the order of
//! additions is fixed, so the same inputs on the same adapter give the same bits.
//!
//! ## Buffers
//!
//! A layer's run uses four buffers:
//!
//! - `states [3, L·D, B, H]`, shared by all layers: the first states, the reset states, the last
//!   states.
//! - `h [D, T, B, H]`: the state that each step starts from, after a reset. Inference needs only
//!   the last two.
//! - `gates [D, T, B, 4H]`: before a step, the input's products. After the step, r, z, n and the
//!   recurrent input of n (`W_hn h + b_hn`, or `r ⊙ h` with reset before). In the backward pass,
//!   their gradients, in the same elements. With [`RunOptions::recompute`] the buffer holds an
//!   eighth of the steps, and the backward pass repeats the forward pass of each eighth before it
//!   runs backward through that eighth.
//! - `y [T, B, D·H]`: the layer's output, the input of the next layer.
//!
//! In the backward pass `dstates` has the layout of `states` and holds its gradients: first dh_n,
//! then the part of dh that needs no product, in the end dh0. `step_flags [T, B]` marks the steps
//! that are padding and the steps that start from the reset state. x, y, h and gates keep the
//! caller's order of the axes T and B. Only strides differ: the step kernels take two of them, and
//! a matrix product treats each (t, b) as a row.
//!
//! ## One call on an adapter
//!
//! [`Gru::forward_train`] checks the shapes and requests a session of that shape from the model's
//! session pool. The pool returns an idle session, or makes one from a [`plan::Plan`] after it has
//! checked the plan against the adapter's limits. The executor uploads x, h0 and the step flags,
//! runs the plan's forward schedule, and reads back y and h_n. If a run needs a buffer larger than
//! the device allows, the executor cuts the run into chunks, with one session each. The sessions
//! move into the [`Tape`].
//!
//! [`Gru::backward`] uploads dy and dh_n, runs the backward schedules and reads back the gradients.
//! A dropped tape returns its sessions to the pool. The pool always keeps the two most recent idle
//! sessions, and up to 32 as long as together they hold at most 512 MiB.
//!
//! ## On the CPU
//!
//! The layers run in `cpu/`. The weights are packed once for each version of the parameters. Each
//! thread runs some rows of the batch through all steps. If there are too few rows, threads share
//! each step where that is measured to be faster. Products and the elementwise update work on 32
//! units at a time (16 without AVX-512), which stay in the L1 cache. After the steps of a backward
//! pass, dx, dW_ih, dW_hh and the biases' gradients are products over all steps. The bits do not
//! depend on the number of threads.
//!
//! The threads are rayon's: `RAYON_NUM_THREADS`, or the pool that a call runs in, limits them. Those
//! that share steps are threads of this library's own, one less than the computer has cores. They
//! spin between two steps, and sleep after a millisecond without work.
//!
//! ## Streams, forward passes and async
//!
//! A [`Stream`] is a session that keeps its states between steps. After each step the first and the
//! last third of `states` swap roles, so a step copies no states and makes nothing. A
//! [`ForwardPass`] is a session over the caller's buffers, encoded into the caller's encoder.
//!
//! A call that waits for the device (in a browser, also for its errors) is async inside. The
//! blocking call is `block_on` of its async version.
//!
//! # The layers
//!
//! A file imports from its own folder and from folders above it in this table, never from one below
//! (`tests/project/layers.rs` checks this):
//!
//! | layer | contents |
//! |---|---|
//! | `error.rs`, `fingerprint.rs`, `lock.rs`, `process.rs` | [`Error`]; [`DataFingerprint`]; locking a mutex; detecting a forked process |
//! | `spec/` | what a model computes, as plain data: [`GruConfig`], [`Params`], [`Batch`], [`Head`], [`Loss`], [`Optimizer`], [`RunOptions`]; validation, initialization, the draws of dropout |
//! | `kernels/` | a row for each kernel of `shaders/*.wgsl`; a test compares the rows with the WGSL by reflection |
//! | `plan/` | [`plan::Plan`], the schedule as data: buffers, dispatches, tiles, limits, computed by arithmetic alone |
//! | `reference.rs` | [`mod@reference`]: forward and backward in plain loops, f32 and f64 |
//! | `gpu/` | an open adapter, pipelines, transfers, waiting; a plan's GPU resources (session); idle sessions (pool) |
//! | `cpu/` | the CPU device: packed weights, threads, SIMD code |
//! | `model/` | what a user holds: [`Device`], [`Gru`], [`Tape`], [`State`], [`Stream`], [`Network`], [`ForwardPass`], [`Profile`]; the executor |
//! | `formats/` | [`mod@formats`]: safetensors, PyTorch's files, ONNX, `.npz`, `.npy`; other frameworks' layouts |
//! | `training/` | [`Learner`], [`Trainer`], data sets, checkpoints |
//! | `check/` | [`mod@check`]: compares a device with the reference |
//!
//! Outside the library: `cli/`, the program `gru`; `examples/`; `benches/` with the measurements.
//!
//! # Where the next feature goes
//!
//! - **A kernel**: a file in `shaders/`, a row in `kernels/`, a stage in `plan/`, a reference in
//!   `reference.rs`, a comparison in `check/`.
//! - **A kernel family of the recurrence**: follow the list at the top of `plan/tiles.rs`.
//! - **A file format**: a file in `formats/` with a feature of its own, a fuzz target, and in
//!   `tests/formats/` a round trip in `roundtrips.rs`, a file written by the format's own framework
//!   in `models.rs`, and malformed files in `hostile.rs`. A format with named tensors implements
//!   `StateDict` of `formats/state_dict.rs`, which finds the GRUs among them.
//! - **A layout of weights**: `formats/weight_layout.rs`, its names and axes for reading in
//!   `formats/state_dict/cells.rs` and for writing in `formats/layout_arrays.rs`, a round trip in
//!   `tests/formats/layouts.rs`, and its framework in `tests/against_frameworks.py`.
//! - **A data set**: your own [`Dataset`], outside the library. For one inside the library, a file
//!   beside `training/dataset.rs`. For a table that the program reads, a file in `cli/src/data/`.
//! - **An element type**: `spec/element.rs`, `UploadData` in `model/executor.rs`, `ELEMENT` in
//!   `plan/allocate.rs`, the bindings in `kernels/` and the shaders. For a type in files only,
//!   `formats/numbers.rs` and the format.
//! - **An activation**: `spec/activation.rs` (the kernels' reference too),
//!   `shaders/activations.wgsl`, `cpu/simd/activations.rs`, its name in `formats/onnx/activations.rs`.
//! - **A loss**: `spec/loss.rs` (the kernel's reference too), `shaders/loss.wgsl`, its number in
//!   `kernels/training.rs`, its argument in `plan/head.rs`, its targets in `plan/allocate.rs`.
//! - **An optimizer**: `spec/optimizer.rs` (the kernel's reference too). If the constants of an
//!   update are not enough, also `shaders/optimizer.wgsl` and `plan/update.rs`.
//! - **A learning-rate schedule**: `spec/optimizer.rs`.
//! - **A loss, an optimizer or a schedule** also needs a word in `training/checkpoint/encoding.rs`,
//!   a case in `tests/formats/serde.rs`, and an option in `cli/src/commands/train/config.rs` or
//!   `cli/src/ui/training_options.rs`. A loss or an optimizer also needs a case in
//!   `check/training.rs`.
//! - **A command**: a file in `cli/src/commands/`.
//!
//! # Not supported yet
//!
//! - Backward passes over a caller's own buffers.
//! - Streams of a model with a reverse direction, because a stream has no last step to start from.
//! - f16 on the device (f16 files can be read).
//! - Some runs whose x, y or states exceed what the adapter can bind. [`Gru::chunks`] cuts such a
//!   run into chunks of steps or of rows. [`Error::Limit`] names the limit if a run cannot be cut
//!   into steps (it has two directions, or a [`Learner`] trains it) and a single row is too large.
//!   Streams and passes over a caller's own buffers are never cut. (The gates are four times as
//!   large, but the plan splits them over several buffers or computes some steps at a time.)
//! - Runs of more than about 260,000 steps on WebGPU's default limits, if they cannot be cut into
//!   steps and use the step kernels ([`Recurrence::Step`]): each dispatch takes 256 bytes of
//!   arguments.
//!
//! # NaN
//!
//! A NaN in the input gives NaN in the output, in its own row and in no other row.
//!
//! - **Forward**: a row's y and h_n are NaN from the first step that reads NaN, in x or in its
//!   state, until a reset cuts the row. The other rows' bits do not change. A stream's row keeps
//!   NaN until [`Stream::reset_row`].
//! - **Backward**: NaN in dy or dh_n, or from the forward pass, reaches dx and dh0 of its own row.
//!   Gradients of parameters are sums over all rows, so they are NaN if one row's part is NaN.
//! - **Padding**: values past a row's length are ignored, NaN or not.
//! - **Training**: a [`Learner`] makes no update from numbers that are not finite. It returns
//!   [`Error::Diverged`].
//!
//! Infinities are treated like other numbers and may become NaN. WGSL allows a driver to lose a
//! NaN. The kernels' comparisons are written so that no known driver does; `tests/device/nan.rs`
//! tests the driver that it runs on.
//!
//! # Processes that fork
//!
//! A process cannot use a device that its parent opened before the fork. The threads of the driver
//! and of the CPU device stay with the parent, so a call that waited for them would never return.
//! In the child, calls that compute return [`Error::Forked`], on an adapter and on the CPU, and
//! drops leave the parent's resources alone. Fork before the first use, or run a separate program
//! in the child. (The library cannot detect rayon threads that only the caller's code started
//! before the fork.)
//!
//! # Features
//!
//! No feature is on by default. The library computes and trains without any.
//!
//! | feature | what it adds |
//! |---|---|
//! | `safetensors` | `formats::safetensors`: PyTorch's state dicts and this library's own files; [`Checkpoint`] |
//! | `pytorch` | `formats::pytorch`: PyTorch's own files, read only |
//! | `onnx` | `formats::onnx` |
//! | `npy` | `formats::npy` and `formats::npz`: NumPy's files |
//! | `serde` | `Serialize` and `Deserialize` on configurations |

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used))]

pub mod check;
mod clock;
mod cpu;
mod error;
mod fingerprint;
pub mod formats;
mod gpu;
mod kernels;
mod lock;
mod model;
pub mod plan;
mod process;
pub mod reference;
mod spec;
mod training;

pub use error::{Cause, Error, MadeFrom, Result};
pub use fingerprint::DataFingerprint;
pub use gpu::adapter::{AdapterFeature, AdapterInfo, AdapterKind, Backend};
pub use gpu::pipeline_cache::PipelineCacheStatus;
pub use model::device::{Device, DeviceKind};
pub use model::gru::{Gru, Tape};
pub use model::interop::{Buffers, ForwardPass};
pub use model::network::{Evaluation, Network};
pub use model::output::{Output, OutputMut};
pub use model::profile::{KernelTime, Profile, TimeSource};
pub use model::state::State;
pub use model::stream::Stream;
pub use spec::activation::{Activation, Activations};
pub use spec::batch::{Batch, step_flag};
pub use spec::config::{Bias, Direction, GruConfig, Layout, Reset, Shape, Update};
pub use spec::head::{Head, Readout};
pub use spec::loss::{Loss, Targets};
pub use spec::optimizer::{Adam, Clip, Optimizer, OptimizerState, Schedule};
pub use spec::options::{Recurrence, RunOptions};
pub use spec::params::{Gradients, Init, ParamEntry, ParamLayout, Params};
#[cfg(feature = "safetensors")]
pub use training::checkpoint::Checkpoint;
pub use training::config::{Order, TrainerConfig};
pub use training::dataset::{Dataset, Example, Target, TargetArray, TrainingBatch};
pub use training::learner::{Learner, LearnerConfig, LearnerState, LossGradient, StepMetrics};
pub use training::progress::{BestNetwork, DataFingerprints, Event, Progress, StopReason};
pub use training::trainer::Trainer;
pub use training::windows::SequenceWindows;
pub use wgpu;

// The examples of README and of the guides are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/models.md")]
#[doc = include_str!("../docs/ci.md")]
#[doc = include_str!("../docs/training.md")]
#[doc = include_str!("../docs/wgpu.md")]
struct Guides;
