//! Reads CSV tables and model files, and turns table columns into model inputs.

pub mod baselines;
pub mod csv_table;
pub mod dialect;
pub mod errors;
pub mod example_set;
pub mod features;
pub mod fingerprint;
pub mod holdout;
pub mod labels;
pub mod model_file;
pub mod model_format;
pub mod numbers;
pub mod predictor;
pub mod sequences;
pub mod series;
pub mod table;
pub mod table_options;
pub mod text;
pub mod time_axis;
pub mod timestamps;
pub mod windows;
