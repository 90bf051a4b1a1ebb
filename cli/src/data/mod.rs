//! Tables and models as they come from files, and what a model sees of them.

pub mod baselines;
pub mod csv_table;
pub mod fingerprint;
pub mod holdout;
pub mod model_file;
pub mod series;
pub mod table;
pub mod windows;
