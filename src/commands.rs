//! The commands of the program, a file each.

pub mod check;
pub mod forecast;
pub mod info;
pub mod output;
