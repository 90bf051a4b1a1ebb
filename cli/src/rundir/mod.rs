//! A run's folder: its files, its settings, and what a run that goes on may change.

pub mod checkpoints;
pub mod config;
pub mod epochs;
pub mod folder;
pub mod interrupt;
pub mod settings;
