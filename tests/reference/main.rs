//! The reference is right: its numbers are PyTorch's (or those of the equations in NumPy, where
//! PyTorch lacks the variant), its gradients are central differences, and its gates do what the
//! equations say.

#[path = "../common/mod.rs"]
mod common;

mod expected;
mod gradients;
mod meaning;
