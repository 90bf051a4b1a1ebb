//! Words of the command line, and what is printed and drawn.

pub mod arguments;
pub mod output;
pub mod plot;
pub mod progress;
pub mod words;
