//! Gated recurrent units on any GPU through wgpu compute shaders, forward and backward.
//!
//! A [`Gru`] holds a [`GruConfig`], its [`Params`] and a [`Device`]. It takes ndarray views, gives
//! arrays, and gives the same numbers, to rounding, on a GPU, on a software adapter and on the CPU:
//!
//! ```
//! use gru_wgpu::{Device, Gru, GruConfig, Init, OptimizerState, Optimizer};
//! use ndarray::Array3;
//!
//! // PyTorch's definition; Device::auto() takes a hardware GPU where there is one, or the CPU.
//! let mut gru = Gru::new(GruConfig::pytorch(3, 16), Init::Uniform, 42, &Device::auto())?;
//! let (adam, mut moments) = (Optimizer::adam(), OptimizerState::zeros(gru.params().as_slice().len())?);
//! let x = Array3::from_shape_fn((20, 4, 3), |(t, b, i)| ((t + 2 * b + 3 * i) as f32).sin());
//! for _ in 0..3 {
//!     let (out, tape) = gru.forward_train(&x)?;
//!     let dy = out.y * (2.0 / 16.0); // of the mean of y², more or less
//!     let grads = gru.backward(tape, Some(dy.view()), None)?;
//!     adam.step(1e-2, gru.params_mut().as_mut_slice(), grads.params.as_slice(), &mut moments)?;
//! }
//! # Ok::<(), gru_wgpu::Error>(())
//! ```
//!
//! # Notation
//!
//! T time steps, B batch rows, I input size, H hidden size, L layers, D directions (1 or 2:
//! forward, reverse or both). Arrays are time-major and those of PyTorch: x `[T, B, I]`, y
//! `[T, B, D·H]` with the forward half first, first and last states `[L·D, B, H]`, layer-major,
//! forward before reverse. A cell is one direction of one layer. "Step" means time step. The gates
//! r (reset), z (update) and n (candidate, h̃ in papers) are stacked in this order, as `[3H, ·]`,
//! under PyTorch's names (`weight_ih_l0`, …). A gradient is `d` and the name of what it belongs to;
//! `da_n` is that of the pre-activation of n. ⊙ is the elementwise product.
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
//! | [`GruConfig::new`], the project's own statement | before | overwrites | one |
//! | [`GruConfig::pytorch`], PyTorch and cuDNN | after | keeps | two |
//! | Keras, `reset_after=True` | after | keeps | two |
//! | ONNX's default, `linear_before_reset=0` | before | keeps | two |
//!
//! All combinations work, forward and backward, on every device, and so do other functions in the
//! place of σ and tanh ([`Activation`]). With z overwrites, the gradient through time is ∂h'/∂h =
//! (1 − z) + z ∂n/∂h and the paths through r and z: where z is small it flows straight through h.
//! `examples/gradient_flow` measures how far, by the bias of z and beside a plain RNN, and draws it
//! (`examples/gradient_flow.svg`).
//!
//! Around a step, in this order: a row that is cut here ([`Batch::resets`]) starts from the reset
//! state; a step past a row's length ([`Batch::lengths`]) leaves h as it is and puts out 0; zoneout
//! ([`GruConfig::zoneout`]) turns h' into ζ ⊙ h + (1 − ζ) ⊙ h', with ζ drawn 0 or 1 while training
//! and its probability in use; dropout ([`GruConfig::dropout`]) scales what goes to the next layer.
//! The draws are Philox4x32-10 of the counter (unit, row, step, 2 · layer + purpose) and the run's
//! seed.
//!
//! # How data flows
//!
//! ```text
//! GruConfig + Shape ─▶ Plan: buffers and dispatches, as data ─▶ Session on a Gpu ─▶ y, gradients
//! Params: one flat buffer, named ranges ──────────────┴─────▶ cpu, on its threads ─▶     │
//! reference: the same contract in plain loops, the specification    Learner: loss, optimizer
//! ```
//!
//! Forward, for each layer: one product x · W_ihᵀ over all steps (or over as many as the adapter
//! can bind the gates of), then the recurrence, which fuses the gates' recurrent products with the
//! elementwise update, for all directions at once. Backward, for each layer from the last: the
//! recurrence the other way, then one product each for dx, dW_ih and dW_hh, and column sums for the
//! biases. The recurrence has two kernel families ([`Recurrence`]): one dispatch for each step (two
//! with reset before), its units spread over the device; or one dispatch for many steps, in which a
//! workgroup computes all units of a few rows and keeps their states in its own memory.
//! `plan/tiles.rs` chooses. Long work is cut: no dispatch, and no submit of this library's own,
//! takes longer than a fraction of a second at the rate of a slow adapter of its kind. (An encoded
//! [`ForwardPass`] is one compute pass; its caller submits it.) There are no float atomics and the
//! order of additions is fixed: the same inputs on the same adapter give the same bits.
//!
//! Four buffers carry a layer's run:
//!
//! - `states [3, L·D, B, H]`, for all layers: the first states, the reset states, the last states.
//! - `h [D, T, B, H]`: the state that each step starts from, after a reset. Without a backward pass
//!   the last two are enough.
//! - `gates [D, T, B, 4H]`: before a step the input's products, after it r, z, n and what n took from
//!   the past (`W_hn h + b_hn`, or `r ⊙ h` with reset before); in the backward pass their gradients, in
//!   the same places. With [`RunOptions::recompute`] it holds an eighth of the steps: the backward pass
//!   runs each eighth forward once more before it goes back through it.
//! - `y [T, B, D·H]`: the layer's output, the input of the next one.
//!
//! In the backward pass `dstates` holds the gradients of `states` in the same places: dh_n, then
//! the part of dh that needs no product, in the end dh0. `step_flags [T, B]` says which steps are
//! padding and which start afresh. x, y, h and gates have their axes T and B in the caller's order:
//! the step kernels take two strides, and to a matrix product the rows are rows.
//!
//! One call, end to end, on an adapter. [`Gru::forward_train`] checks the shapes and asks the
//! model's session pool for a session of that shape: an idle one, or a new one made from a
//! [`plan::Plan`], which is first checked against the adapter's limits. The executor writes x, h0
//! and the step flags, runs the plan's forward schedule and reads y and h_n. A run that no buffer
//! of the device can hold is cut into chunks, one session each. The sessions go into the [`Tape`];
//! [`Gru::backward`] writes dy and dh_n, runs the backward schedules and reads the gradients. A
//! dropped tape gives its sessions back to the pool, which keeps those of the last 32 shapes while
//! they hold at most 512 MiB, and the last two whatever they hold.
//!
//! On the CPU the layers run in `cpu/`: the weights are packed once for each version of the
//! parameters; threads take rows of the batch through all steps; products and the elementwise
//! update go 32 units at a time (16 without AVX-512), in the nearest cache. After the steps of a
//! backward pass come dx, dW_ih, dW_hh and the biases as products over all steps. The bits do not
//! depend on the number of threads.
//!
//! A [`Stream`] is a session that lives on: from one step to the next the first and the last third
//! of `states` change places, and nothing is copied or made. A [`ForwardPass`] is a session over a
//! caller's buffers, encoded into the caller's encoder. What waits for the device, or in a browser
//! for its errors, is async inside; a blocking call is `block_on` of its async twin.
//!
//! # The layers
//!
//! A file imports from its own folder and from those above it in this table, never from one below
//! (`tests/layers.rs` holds it):
//!
//! | layer | holds |
//! |---|---|
//! | `error.rs`, `fingerprint.rs`, `lock.rs`, `process.rs` | [`Error`]; [`DataFingerprint`]; locks; which process made something |
//! | `spec/` | what is computed, as plain data: [`GruConfig`], [`Params`], [`Batch`], [`Head`], [`Loss`], [`Optimizer`], [`RunOptions`]; validation, initialisation, the draws of dropout |
//! | `kernels/` | a row for each kernel of `shaders/*.wgsl`, held against the WGSL by reflection |
//! | `plan/` | [`plan::Plan`], the schedule as data: buffers, dispatches, tiles, limits, by arithmetic alone |
//! | `reference.rs` | [`mod@reference`]: forward and backward in plain loops, f32 and f64 |
//! | `gpu/` | an open adapter, pipelines, transfers, waiting; a plan made real (session); idle sessions (pool) |
//! | `cpu/` | the CPU device: packed weights, threads, vector code |
//! | `model/` | what a user holds: [`Device`], [`Gru`], [`Tape`], [`State`], [`Stream`], [`Network`], [`ForwardPass`], [`Profile`]; the executor |
//! | `formats/` | [`mod@formats`]: safetensors, ONNX, `.npz`, `.npy`; other frameworks' layouts |
//! | `training/` | [`Learner`], [`Trainer`], data sets, checkpoints |
//! | `check/` | [`mod@check`]: a device against the reference |
//!
//! Beside the library: `cli/`, the program `gru`; `examples/`; `benches/`, and what was measured.
//!
//! - **A new kernel**: a file in `shaders/`, a row in `kernels/`, a stage in `plan/`, a twin in
//!   `reference.rs`, a comparison in `check/`.
//! - **A new kernel family of the recurrence**: the list at the head of `plan/tiles.rs`.
//! - **A new format**: a file in `formats/` with a feature of its own, a round trip in
//!   `tests/roundtrips.rs`, a file by its own framework in `tests/models.rs`, hostile ones in
//!   `tests/hostile.rs`, and a fuzz target.
//! - **A new data set**: a [`Dataset`] of your own, outside the library; one that it brings: a file
//!   beside `training/dataset.rs`. A new table for the program: a file in `cli/src/data/`.
//! - **A new element type**: `spec/element.rs`, `Data` in `model/executor.rs`, `ELEMENT` in
//!   `plan/allocate.rs`, the bindings in `kernels/` and the shaders; of a file alone,
//!   `formats/numbers.rs` and the format.
//! - **A new loss**: `spec/loss.rs` (its CPU twin too), `shaders/loss.wgsl`, its number in
//!   `kernels/training.rs`, its argument in `plan/head.rs`, its targets in `plan/allocate.rs`.
//! - **A new optimizer**: `spec/optimizer.rs` (its CPU twin too) and, where the constants of an update
//!   are not enough, `shaders/optimizer.wgsl` and `plan/update.rs`.
//! - **A new schedule**: `spec/optimizer.rs`. It, a loss and an optimizer also take a word in
//!   `training/checkpoint/encoding.rs`, a case in `tests/serde.rs`, and an option in
//!   `cli/src/commands/train/config.rs` or `cli/src/ui/training_options.rs`; a loss and an optimizer a
//!   case in `check/training.rs`.
//! - **A new command**: a file in `cli/src/commands/`.
//!
//! # Not supported yet
//!
//! - Backward passes over a caller's own buffers; streams of a reverse direction (there is no end
//!   to start it from).
//! - Activations with parameters of their own, such as leaky ReLU; different ones in the two directions;
//!   ONNX's `clip`; f16 on the device (files of it are read).
//! - On the CPU one row's steps run on one thread unless H is in the hundreds: for less, threads would
//!   wait for each other longer than they work.
//! - A run whose x, y or states exceed what the adapter can bind is made in chunks ([`Gru::chunks`]), but
//!   refused, with the limit named, where it can be cut neither into steps (for it has two directions, or a
//!   [`Learner`] trains it) nor into rows (for one alone is too much); and so are streams, and passes over a
//!   caller's own buffers. (The gates, four times as large, are kept in several buffers, or made some steps
//!   at a time.) A step takes 256 bytes of arguments a dispatch where the host walks over the steps, so what
//!   cannot be cut into steps ends at some 260,000 of them on WebGPU's default limits.
//!
//! # NaN
//!
//! NaN in, NaN out, in the rows concerned and in no other row. A row's y and h_n are NaN from the
//! step on that first meets NaN, in x or in its state, until a reset cuts the row; other rows are
//! what they would be without it, bit for bit. A stream's row keeps NaN until
//! [`Stream::reset_row`]. Backward, NaN in dy or dh_n, or left by the forward pass, goes back
//! through its own row's dx and dh0; the gradients of the parameters are sums over all rows, and
//! NaN where one of them is. Past a row's length nothing is looked at, NaN or not. A [`Learner`]
//! moves nothing by what is not finite: [`Error::Diverged`]. Infinities are numbers like any other,
//! and may become NaN. (WGSL leaves a driver free to lose a NaN; the kernels' comparisons are
//! written so that none known does, and `tests/nan.rs` says whether one at hand does.)
//!
//! # Processes that fork
//!
//! What a process opened is of no use in a child that it forks afterwards: the driver's threads and
//! the CPU's stay with the parent, and whoever waited for them would wait for ever. Calls that
//! compute are refused there with [`Error::Forked`], on an adapter and on the CPU alike, and what
//! the child lets go of is left to the parent. Fork before the first use, or run a program of its
//! own in the child. (Rayon's threads, where only the caller's own code started them before the
//! fork, are not known of.)
//!
//! # Features
//!
//! None is on by default: the library alone computes and trains.
//!
//! | feature | what it adds |
//! |---|---|
//! | `safetensors` | `formats::safetensors`: PyTorch's state dicts and this library's own files; [`Checkpoint`] |
//! | `onnx` | `formats::onnx` |
//! | `npy` | `formats::npy` and `formats::npz`: NumPy's files |
//! | `serde` | `Serialize` and `Deserialize` on configurations |

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used))]

pub mod check;
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
pub use model::device::{Device, DeviceKind};
pub use model::gru::{Gru, Tape};
pub use model::interop::{Buffers, ForwardPass};
pub use model::network::{Evaluation, Network};
pub use model::output::Output;
pub use model::profile::{Clock, KernelTime, Profile};
pub use model::state::State;
pub use model::stream::Stream;
pub use spec::batch::{Batch, step_flag};
pub use spec::config::{Activation, Bias, Direction, GruConfig, Layout, Reset, Shape, Update};
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
pub use wgpu;

/// README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
