//! Reading and writing of model files and array files, and conversion from and to the weight
//! layouts of other frameworks.
//!
//! Conversions are the most likely source of wrong numbers: frameworks differ in the order of the
//! gates, in the number of biases and in where the reset gate acts. Weights of another framework
//! are first converted to [`Cell`]s, in this crate's layout, and then to [`Params`](crate::Params).
//!
//! | format | feature | from or to a path | from or to a stream |
//! |---|---|---|---|
//! | safetensors: state dicts, this crate's own files | `safetensors` | `safetensors::{load, save, save_as}` | `safetensors::{read, write, write_as}` |
//! | safetensors: networks with a linear head | `safetensors` | `safetensors::{load_network, save_network}` | `safetensors::{read_network, write_network}` |
//! | safetensors: gradients by name | `safetensors` | `safetensors::save_gradients` | `safetensors::write_gradients` |
//! | PyTorch's files: `.pt`, `.pth`, `.bin`, `.ckpt` | `pytorch` | `pytorch::load` | `pytorch::read` |
//! | ONNX: the GRU nodes of any model | `onnx` | `onnx::{load, save}` | `onnx::{read, write}` |
//! | `.npz`: weights in the layout of any framework | `npy` | `npz::{load, save}` | `npz::{read, write}` |
//! | `.npz`: any arrays | `npy` | `npz::{load_arrays, save_arrays}` | `npz::{read_arrays, write_arrays}` |
//! | `.npy`: data | `npy` | `npy::{load, load_as, load_lengths, save}` | `npy::{read, read_as, read_lengths, write}` |
//!
//! `load` and `save` take a path; `read` and `write` take a stream. Bytes in memory,
//! such as an embedded file or a browser's download, are a stream too:
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
//! The arrays of a safetensors file, an `.npz` or a `.pt` may have the names and axes of PyTorch,
//! Keras, Flax, MLX or ONNX (`WeightLayout`); the names tell which. [`Cell`] converts single
//! arrays. A `Checkpoint` stores a network in the middle of training.
//!
//! # Guarantees
//!
//! Readers trust nothing in a file. A file that is cut short, claims sizes it does not have,
//! repeats a name or holds nothing usable gives one typed error with the reason. No file makes a
//! reader panic, loop forever, or allocate more than 64 times the file's length (for an `.npz`, 64
//! times the size of its arrays). A valid file takes two to six times the memory of its weights.
//! Readers open only regular files, not pipes or devices. They refuse weights that are infinite or
//! NaN unless an option allows them. `tests/formats/hostile.rs` tests these guarantees, and the
//! fuzz targets in `tests/fuzz` search for inputs that break them.
//!
//! A written file appears under its name complete and flushed to the disk, or not at all. If the
//! name is a symbolic link, the link's target is replaced.

mod cell;
#[cfg(feature = "safetensors")]
pub(crate) mod checkpoint_metadata;
#[cfg(any(feature = "npy", feature = "onnx", feature = "pytorch", feature = "safetensors"))]
pub(crate) mod files;
#[cfg(any(feature = "npy", feature = "safetensors"))]
mod layout_arrays;
#[cfg(any(feature = "npy", feature = "pytorch", feature = "safetensors"))]
mod layout_names;
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
pub(crate) mod metadata;
#[cfg(feature = "npy")]
pub mod npy;
#[cfg(feature = "npy")]
pub mod npz;
#[cfg(any(feature = "onnx", feature = "pytorch", feature = "safetensors"))]
mod numbers;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "pytorch")]
pub mod pytorch;
#[cfg(feature = "safetensors")]
pub mod safetensors;
#[cfg(any(feature = "npy", feature = "pytorch", feature = "safetensors"))]
pub(crate) mod state_dict;
#[cfg(any(feature = "npy", feature = "pytorch", feature = "safetensors"))]
mod weight_layout;
#[cfg(any(feature = "npy", feature = "pytorch"))]
mod zip_archive;

pub use cell::{Cell, FlaxCell, MlxCell};
#[cfg(any(feature = "npy", feature = "pytorch", feature = "safetensors"))]
pub use state_dict::StateDictOptions;
#[cfg(any(feature = "npy", feature = "pytorch", feature = "safetensors"))]
pub use weight_layout::WeightLayout;
