//! Run folders: their files, their settings, and the settings that a resumed run may change.

pub mod checkpoints;
pub mod config;
pub mod epochs;
pub mod folder;
pub mod interrupt;
pub mod settings;
