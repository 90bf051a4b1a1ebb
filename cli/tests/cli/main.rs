//! The program `gru`, called as a user calls it: what it prints, writes and returns.

mod common;

mod bench;
mod commands;
mod fuzzed;
mod init;
mod outputs;
mod pipeline_cache;
mod program;
mod regress;
mod resume;
mod scene;
mod tables;
mod train;
