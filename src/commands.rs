//! The commands of the program, a file each.

pub mod arguments;
pub mod bench;
pub mod check;
pub mod convert;
pub mod forecast;
pub mod grad;
pub mod info;
pub mod interrupt;
pub mod model;
pub mod output;
pub mod plot;
pub mod predict;
pub mod progress;
pub mod run;
pub mod sheet;
pub mod train;
