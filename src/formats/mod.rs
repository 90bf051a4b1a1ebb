//! Models of other frameworks, in and out; arrays in files.
//!
//! Most wrong numbers come from here: the order of the gates, halves of biases, where the reset
//! gate acts. Weights from elsewhere become [`Cell`]s of this crate's own layout first, and a
//! [`Params`](crate::Params) is put together of those.
//!
//! | format | feature | a file's path | a stream |
//! |---|---|---|---|
//! | safetensors: PyTorch's state dicts, our own files | `safetensors` | `safetensors::{load, save}` | `safetensors::{read, write}` |
//! | the same with a linear head | `safetensors` | `safetensors::{load_network, save_network}` | `safetensors::{read_network, write_network}` |
//! | gradients by name | `safetensors` | `safetensors::save_gradients` | `safetensors::write_gradients` |
//! | ONNX: the GRU nodes of any model | `onnx` | `onnx::{load, save}` | `onnx::{read, write}` |
//! | `.npz`: weights by name | `npy` | `npz::{load, save}` | `npz::{read, write}` |
//! | `.npz`: any arrays | `npy` | `npz::{load_arrays, save_arrays}` | `npz::{read_arrays, write_arrays}` |
//! | `.npy`: data | `npy` | `npy::{load, load_as, load_lengths, save}` | `npy::{read, read_as, read_lengths, write}` |
//!
//! `load` and `save` take a path, `read` and `write` a stream, and they do the same. Bytes in
//! memory, such as an embedded file or what a browser fetched, are a stream too:
//!
//! ```
//! # #[cfg(feature = "safetensors")] {
//! use std::io::Cursor;
//!
//! use gru_wgpu::formats::safetensors::{self, SafetensorsOptions};
//! use gru_wgpu::{GruConfig, Init, Params};
//!
//! let params = Params::init(&GruConfig::pytorch(3, 8), Init::Uniform, 1)?;
//! let mut bytes = Vec::new();
//! safetensors::write(&mut bytes, &params)?;
//! assert_eq!(safetensors::read(Cursor::new(&bytes), &SafetensorsOptions::new())?, params);
//! # }
//! # Ok::<(), gru_wgpu::Error>(())
//! ```
//!
//! The weights of PyTorch, Keras, ONNX, MLX and Flax as arrays go through [`Cell`], in and out. A
//! network in the middle of training is a `Checkpoint`.
//!
//! # What is promised of files
//!
//! Nothing read from a file is trusted. A file that is cut short, claims sizes it does not have,
//! has names twice or holds nothing usable gives one typed error with the reason. No file makes a
//! reader panic, go on without end, or allocate more than 64 times the file's length (of an `.npz`,
//! of what its arrays take); a file of use costs two to six times its weights. What is no regular
//! file, such as a pipe, is not opened. Weights that are infinite or NaN are refused unless asked
//! for. `tests/hostile.rs` holds the readers to this, and the fuzz targets in `tests/fuzz` look for
//! more. A file that is written appears under its name whole, flushed to the disk, or not at all;
//! where the name is a link, the file behind it is replaced.

mod cell;
#[cfg(feature = "safetensors")]
pub(crate) mod checkpoint_metadata;
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
pub(crate) mod files;
#[cfg(any(feature = "onnx", feature = "safetensors"))]
pub(crate) mod metadata;
#[cfg(feature = "npy")]
pub mod npy;
#[cfg(feature = "npy")]
pub mod npz;
#[cfg(any(feature = "onnx", feature = "safetensors"))]
mod numbers;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "safetensors")]
pub mod safetensors;

pub use cell::{Cell, FlaxCell, MlxCell};
