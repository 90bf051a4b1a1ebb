//! Helpers of the tests of `gru`, and the helpers of the library's tests.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

#[path = "../../../../tests/common/mod.rs"]
mod library;
pub mod program;
pub mod sequences;

pub use library::*;
