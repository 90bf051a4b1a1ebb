//! Rules about the sources and the package, checked by reading them.

#[path = "../common/mod.rs"]
mod common;

mod layers;
mod manifest;
