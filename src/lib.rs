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
//! T time steps, B batch rows, I input size, H hidden size, L layers, D directions (1 or 2: forward, reverse or both). Arrays are
//! time-major and those of PyTorch: x `[T, B, I]`, y `[T, B, D·H]` with the forward half first, first
//! and last states `[L·D, B, H]`, layer-major, forward before reverse. A cell is one direction of one
//! layer. "Step" means time step. The gates r (reset), z (update) and n (candidate, h̃ in papers) are
//! stacked in this order, as `[3H, ·]`, under PyTorch's names (`weight_ih_l0`, …). A gradient is `d` and
//! the name of what it belongs to; `da_n` is that of the pre-activation of n. ⊙ is the elementwise
//! product.
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
//! place of σ and tanh ([`Activation`]). With z overwrites, the gradient through time is
//! ∂h'/∂h = (1 − z) + z ∂n/∂h and the paths through r and z: where z is small it flows straight
//! through h. `examples/gradient_flow` measures how far, by the bias of z and beside a plain RNN, and draws it
//! (`examples/gradient_flow.svg`).
//!
//! Around a step, in this order: a row that is cut here ([`Batch::resets`]) starts from the reset
//! state; a step past a row's length ([`Batch::lengths`]) leaves h as it is and puts out 0; zoneout
//! ([`GruConfig::zoneout`]) turns h' into ζ ⊙ h + (1 − ζ) ⊙ h', with ζ drawn 0 or 1 while training and
//! its probability in use; dropout ([`GruConfig::dropout`]) scales what goes to the next layer. The
//! draws are Philox4x32-10 of the counter (unit, row, step, 2 · layer + purpose) and the run's seed.
//!
//! # How data flows
//!
//! ```text
//! GruConfig + Shape ─▶ Plan: buffers and dispatches, as data ─▶ Session on a Gpu ─▶ y, gradients
//! Params: one flat buffer, named ranges ──────────────┴─────▶ cpu, on its threads ─▶     │
//! reference: the same contract in plain loops, the specification      Learner: loss, optimiser
//! ```
//!
//! Forward, for each layer: one product x · W_ihᵀ over all steps (or as many as the adapter can bind the
//! gates of), then the recurrence, which fuses the
//! gates' recurrent products with the elementwise update, for all directions at once. Backward, for each
//! layer from the last: the recurrence the other way, then one product each for dx, dW_ih and dW_hh, and
//! column sums for the biases. The recurrence is walked in one of two ways ([`Recurrence`]), by the same
//! kernels: a dispatch a step (two with reset before), its units spread over the device; or a dispatch for
//! many steps, in which a workgroup makes all units of a few rows and what the weights are multiplied with
//! stays in its own memory. The plan takes the second where H is at most 128, or 256 with many rows, and the
//! adapter's workgroups have the memory (`plan/tiles.rs` has the rule and the tiles' sizes). What takes long is
//! cut: no dispatch, and no submit of this library's own, is longer than a fraction of a second at the rate of a
//! slow adapter of its kind. (An encoded [`ForwardPass`] is one pass; its caller submits it.) No float atomics and a fixed order of additions: the same inputs on the same adapter give the
//! same bits.
//!
//! Four buffers carry a layer's run. `states [3, L·D, B, H]`, for all layers: the first states, those
//! that resets go back to, and the last. `h [D, T, B, H]`: the state that each step starts from, after
//! a reset; without a backward pass the last two are enough. `gates [D, T, B, 4H]`: on a step's entry
//! the input's products, then r, z, n and what n took from the past (`W_hn h + b_hn`, or `r ⊙ h` with
//! reset before), and in backward the gradients of those, each in its own place. `y [T, B, D·H]`: what
//! the layer puts out, the input of the next one. ([`RunOptions::recompute`] leaves room in gates for an eighth
//! of the steps: the forward pass fills it again and again, and the backward pass runs each part forward
//! once more before it goes back through it.) In backward `dstates` has the gradients of `states`
//! in the same places: dh_n, which becomes the part of dh that needs no product, and in the end dh0.
//! `step_flags [T, B]` says which steps are padding and which start afresh. x, y, h and gates have their
//! axes T and B in the caller's order: the step kernels go by two strides, and to a matrix product the
//! rows are rows.
//!
//! One call, end to end, on an adapter. [`Gru::forward_train`] checks the shapes and asks the model's
//! `Runner` for a `Session` of that shape: one at rest, or a new one made from a [`plan::Plan`], which
//! is first checked against the adapter's limits. It writes x, h0 and the marks to the session's
//! buffers, queues the plan's forward stages and reads y and h_n. The session goes into the [`Tape`];
//! [`Gru::backward`] writes dy and dh_n, queues the backward stages and reads the gradients. When the
//! tape is dropped its session goes back to rest, ready for the next call. Those of the last 32 shapes rest
//! while they hold 512 MiB at most, and the last two whatever they hold.
//!
//! On the CPU the layers run in `cpu.rs`: weights packed once for each version of the parameters, the
//! rows of a batch cut over threads, each of which takes its rows through all steps; a step's products
//! and the elementwise update of 32 units (16 without AVX-512) at a time, in the nearest cache. After
//! the steps of a backward pass come dx, dW_ih, dW_hh and the biases as products over all steps. The
//! tape holds h, the gates and x. With [`RunOptions::recompute`] it holds h and x, and the backward pass
//! takes an eighth of the steps at a time: their gates, all at once, for the states that they start
//! from are known; the steps; the products. The bits do not depend on the number of threads.
//!
//! A [`Stream`] is a session that lives on: from one step to the next the first and the last third of
//! `states` change places, and nothing is copied or made. A [`ForwardPass`] is a session over a
//! caller's buffers, which goes into the caller's encoder. What waits for the device, or in a browser
//! for its errors, is async inside; the blocking calls are `block_on` of the same.
//!
//! # Where to change what
//!
//! | file | holds |
//! |---|---|
//! | `config.rs`, `batch.rs` | [`GruConfig`], [`Shape`], [`Batch`]: the variants; a run's input; validation |
//! | `noise.rs` | what dropout and zoneout draw |
//! | `params.rs` | [`ParamLayout`], [`Params`], [`Gradients`]; initialisation |
//! | `reference.rs` | [`mod@reference`]: forward and backward in plain loops, f32 and f64 |
//! | `cpu.rs`, `cpu/` | the CPU device: layers and threads; `simd`, `product`, `steps` |
//! | `shaders/*.wgsl`, `kernels/` | the kernels, and a row for each that tests hold against the WGSL |
//! | `plan.rs`, `plan/` | [`plan::Plan`]: buffers, stages, steps, products, head, update, limits and text, by arithmetic alone |
//! | `adapter.rs`, `gpu.rs`, `pace.rs`, `transfer.rs` | an adapter; opened: pipelines and faults; how long submits take; upload, download, waiting |
//! | `process.rs` | which process a device or the CPU's threads belong to, for one that forks |
//! | `session.rs`, `runner.rs` | a plan made real, and run; the sessions a model keeps |
//! | `pieces.rs` | how a run that is too large for one plan is cut |
//! | `session/timed.rs`, `profile.rs` | the same run to be timed; [`Profile`]: where a run's time goes |
//! | `options.rs` | [`RunOptions`]: how a model runs |
//! | `device.rs`, `gru.rs`, `state.rs` | [`Device`], [`Gru`], [`Tape`], [`State`]: what a user holds |
//! | `gru/adapter.rs` | its runs on an adapter, piece by piece |
//! | `stream.rs`, `embed.rs` | [`Stream`]; [`Buffers`] and [`ForwardPass`]: inside a caller's program |
//! | `formats.rs`, `formats/` | [`mod@formats`]: safetensors, ONNX, `.npz` and `.npy` files; other frameworks' layouts |
//! | `check.rs`, `check/` | [`mod@check`]: a device against the reference, for `gru check` and the tests |
//! | `head.rs` | [`Head`]: a linear layer on a GRU |
//! | `objective.rs` | [`Loss`], [`Targets`] |
//! | `optim.rs` | [`Optimizer`], [`Clip`], [`Schedule`] |
//! | `network.rs` | [`Network`]: a GRU with a linear head |
//! | `learner.rs`, `learner/` | [`Learner`]: a network in training, on the host or an adapter |
//! | `trainer.rs`, `trainer/` | [`Trainer`]: epochs over [`Example`]s, validated |
//! | `checkpoint.rs`, `checkpoint/` | [`Checkpoint`]: all that training goes on from, in a file |
//! | `main.rs`, `commands/` | the program `gru`, a file a command |
//! | `examples/` | `gradient_flow`: how much of a gradient is left after many steps, and the picture of it; `own_loop`, `classify`: training |
//! | `benches/` | the parts with criterion; a GPU beside cuDNN; what was measured, and what it taught |
//!
//! A new format is a file in `formats/` with a feature of its own, a round trip in `tests/roundtrips.rs`,
//! a file by its own framework in `tests/models.rs`, hostile ones in `tests/hostile.rs` and a fuzz target.
//! A new kernel is a file in `shaders/`, a row in `kernels.rs`, a stage in `plan/`, a twin in
//! `reference.rs` and a comparison in `check/`.
//!
//! # Not supported yet
//!
//! - Backward passes over a caller's own buffers; streams of a reverse direction (there is no end
//!   to start it from).
//! - Activations with parameters of their own, such as leaky ReLU; different ones in the two directions;
//!   ONNX's `clip`; f16 on the device (files of it are read).
//! - On the CPU one row's steps run on one thread unless H is in the hundreds: for less, threads would
//!   wait for each other longer than they work.
//! - A run whose x, y or states exceed what the adapter can bind is made in pieces ([`Gru::pieces`]), but
//!   refused, with the limit named, where it can be cut neither into steps (for it has two directions, or a
//!   [`Learner`] trains it) nor into rows (for one alone is too much); and so are streams, and passes over a
//!   caller's own buffers. (The gates, four times as large, are kept in several buffers, or made some steps
//!   at a time.) A step takes 256 bytes of arguments a dispatch where the host walks over the steps, so what
//!   cannot be cut into steps ends at some 260,000 of them on WebGPU's default limits.
//!
//! # NaN
//!
//! NaN in, NaN out, in the rows concerned and in no other row. A row's y and h_n are NaN from the step on
//! that first meets NaN, in x or in its state, until a reset cuts the row; other rows are what they would be
//! without it, bit for bit. A stream's row keeps NaN until [`Stream::reset_row`]. Backward, NaN in dy or
//! dh_n, or left by the forward pass, goes back through its own row's dx and dh0; the gradients of the
//! parameters are sums over all rows, and NaN where one of them is. Past a row's length nothing is looked
//! at, NaN or not. A [`Learner`] moves nothing by what is not finite: [`Error::Diverged`]. Infinities are
//! numbers like any other, and may become NaN. (WGSL leaves a driver free to lose a NaN; the kernels'
//! comparisons are written so that none known does, and `tests/nan.rs` says whether one at hand does.)
//!
//! # Processes that fork
//!
//! What a process opened is of no use in a child that it forks afterwards: the driver's threads and the
//! CPU's stay with the parent, and whoever waited for them would wait for ever. Calls that compute are
//! refused there with [`Error::Forked`], on an adapter and on the CPU alike, and what the child lets go of
//! is left to the parent. Fork before the first use, or run a program of its own in the child. (Rayon's
//! threads, where only the caller's own code started them before the fork, are not known of.)
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `cli` (default) | the program `gru`, and all of the following |
//! | `safetensors` | `formats::safetensors`: PyTorch's state dicts, and this crate's own files; [`Checkpoint`] |
//! | `onnx` | `formats::onnx` |
//! | `npy` | `formats::npy` and `formats::npz`: NumPy's files |
//!
//! A library user takes what is needed:
//! `gru-wgpu = { version = "0.1", default-features = false, features = ["safetensors"] }`.

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used))]

pub mod check;
mod cpu;
mod error;
mod fingerprint;
pub mod formats;
mod gpu;
mod kernels;
mod model;
pub mod plan;
mod process;
pub mod reference;
mod spec;
mod training;

pub use error::{Error, MadeFrom, Result};
pub use fingerprint::DataFingerprint;
pub use gpu::adapter::AdapterInfo;
pub use model::device::{Device, DeviceKind};
pub use model::gru::{Gru, Output, Tape};
pub use model::interop::{Buffers, ForwardPass};
pub use model::network::{Evaluation, Network};
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
pub use training::dataset::{Example, Target};
pub use training::learner::{Learner, LearnerConfig, LearnerState, StepMetrics};
pub use training::trainer::{
    Best, DataFingerprints, Event, Progress, StopReason, Trainer, TrainerConfig,
};
pub use wgpu;

/// README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
