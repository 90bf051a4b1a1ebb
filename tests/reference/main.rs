//! The reference is right. `tests/README.md` says how.

#[path = "../common/mod.rs"]
mod common;

mod expected;
mod gradients;
mod meaning;
