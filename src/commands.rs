//! The commands of the program, a file each.

pub mod arguments;
pub mod bench;
pub mod check;
pub mod checkpoints;
pub mod convert;
pub mod folder;
pub mod forecast;
pub mod grad;
pub mod info;
pub mod interrupt;
pub mod model;
pub mod output;
pub mod pace;
pub mod plot;
pub mod predict;
pub mod progress;
pub mod run;
pub mod settings;
pub mod sheet;
pub mod train;
pub mod words;
