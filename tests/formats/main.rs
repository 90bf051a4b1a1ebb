//! Model files: files of other frameworks compute what those frameworks compute, written files load
//! back bit for bit, and damaged or hostile files are refused with the reason.

#[path = "../common/mod.rs"]
mod common;

mod fuzzed;
mod hostile;
mod layouts;
mod models;
mod onnx;
mod pytorch;
mod rnnoise;
mod roundtrips;
mod serde;
mod weight_layouts;
