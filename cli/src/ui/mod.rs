//! The command line: arguments in; messages, tables, files and plots out.

pub mod arguments;
pub mod device;
pub mod files;
pub mod help;
pub mod numbers;
pub mod output;
pub mod outputs;
pub mod plot;
pub mod progress;
pub mod training_options;
