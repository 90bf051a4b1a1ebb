//! The commands of the program, one file or folder each.

pub mod bench;
pub mod check;
pub mod convert;
pub mod forecast;
pub mod grad;
pub mod info;
pub mod predict;
pub mod run;
pub mod train;
mod training_run;
