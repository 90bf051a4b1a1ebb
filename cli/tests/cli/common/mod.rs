//! What the program's tests share, with the library's.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

#[path = "../../../../tests/common/mod.rs"]
mod library;
pub mod program;
pub mod sequences;

pub use library::*;
