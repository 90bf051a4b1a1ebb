//! Words of the command line, and what is printed and drawn.

pub mod arguments;
pub mod output;
#[allow(dead_code)]
pub mod outputs;
pub mod plot;
pub mod progress;
pub mod words;
